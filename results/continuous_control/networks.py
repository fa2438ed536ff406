"""The kernel that is set by hand, and the kernels that were learned on Swimmer. From the project's folder:

    python results/continuous_control/networks.py window OUT              # OUT/kernels/window.pt
    python results/continuous_control/networks.py kernels OUT/Swimmer-v5  # Swimmer-v5/kernels.csv, of all its teachers
    python results/continuous_control/networks.py table                   # Swimmer-v5/{kernels.png,table.csv}, of that

window: a kernel that knows the delay. Each reward goes to the 20 steps that earned it, in equal shares.
kernels: of each run of `teacher` (study.txt), the steps it was frozen for, the evidence then, without and with the
learned reward, in standard errors, and the largest without; which share of a reward its kernel pays to the 20 steps
that earned it; and where it goes, weight_0 to the step at which it was paid, weight_1 to the one before, ...
"""

import json
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from gymnasium.spaces import Discrete

sys.path.insert(0, str(Path(__file__).parents[2]))
import ppo_metairn as metairn

DELAY, ROLLOUT, WEIGHTS = 20, 256, 40  # steps: of the study, and in kernels.csv
SWIMMER = Path(__file__).parent / "Swimmer-v5"


def window(steps):
    """The kernel of equal weights from 0 to steps - 1 steps ago"""
    irn = metairn.IntrinsicRewardNetwork(1, Discrete(2), "kernel")
    for p in irn.parameters():
        p.data.zero_()
    irn.net[0].weight.data[:2] = 1e4  # two steep steps: one is up from 0 steps ago on, one down from `steps` on
    irn.net[0].bias.data[:2] = -1e4 * torch.tensor([-0.1, math.log(steps + 0.5) / 3])
    irn.net[2].weight.data[0, :2] = torch.tensor([50.0, -50.0])
    return irn


@torch.no_grad()
def kernels(runs):
    """The table of the kernels that the runs of `teacher` in a folder have learned"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = []
    folders = sorted(Path(runs).glob("*__teacher__*"))
    for folder in folders or metairn.fail(f"there is no run of the arm teacher in {runs}"):
        irn, zeros = metairn.IntrinsicRewardNetwork(1, Discrete(2), "kernel"), torch.zeros(ROLLOUT, 1)
        metairn.load_irn(folder, irn, "cpu")
        _, weights = irn(zeros.unsqueeze(-1), zeros.long(), zeros, zeros)
        last = weights[0, 0, :, -1].flip(0)  # [ROLLOUT] where the last step's reward goes: 0, 1, ... steps back
        events = EventAccumulator(str(folder)).Reload()
        learned, alone = [events.Scalars(f"losses/{name}") for name in ("evidence", "ppo_evidence")]
        row = {"seed": json.loads((folder / "args.json").read_text())["seed"], "held_steps": learned[-1].step}
        row |= {"evidence": learned[-1].value, "ppo_evidence": alone[-1].value}
        row |= {"ppo_evidence_max": max(x.value for x in alone), "paid_to_earners": last[:DELAY].sum().item()}
        rows.append(row | {f"weight_{ago}": last[ago].item() for ago in range(WEIGHTS)})
    return pd.DataFrame(rows).sort_values("seed")


def summarize(table):
    """One row: of the kernels, the smallest, the middle and the largest of each number"""
    weights, row = table.filter(like="weight_").to_numpy(), {"arm": "teacher", "runs": len(table)}
    numbers = table[["held_steps", "evidence", "paid_to_earners"]].assign(
        half_steps=1 + (weights.cumsum(axis=1) < 0.5).sum(axis=1), peak=weights.argmax(axis=1)
    )
    for name, x in numbers.items():
        row |= {f"{name}_min": x.min(), f"{name}_median": x.median(), f"{name}_max": x.max()}
    return pd.DataFrame([row | {"ppo_evidence_max": table["ppo_evidence_max"].max()}])


def plot(table, path):
    """Where the kernels pay a reward: all of them, their median, and the window"""
    weights = table.filter(like="weight_").T.to_numpy()  # [WEIGHTS, kernels]
    figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    axis.plot(weights, color="#009E73", alpha=0.2, linewidth=0.8)
    axis.plot(
        np.median(weights, axis=1), color="#009E73", linewidth=2, label="learned on Swimmer: all, and their median"
    )
    axis.step([0, DELAY, WEIGHTS], [1 / DELAY, 0, 0], "-.", where="post", color="#000000", label="credit set by hand")
    axis.axhline(1 / ROLLOUT, color="#777777", linestyle=":", label="untrained")
    axis.set(xlabel="steps before the reward is paid", ylabel="share of the reward", xlim=(0, WEIGHTS), ylim=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["window", out]:
            path, irn = Path(out, "kernels", "window.pt"), window(DELAY)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"config": irn.config, "parameters": irn.state_dict()}, path)
        case ["kernels", runs]:
            kernels(runs).to_csv(SWIMMER / "kernels.csv", index=False, float_format="%.4f")
        case ["table"]:
            plot(pd.read_csv(SWIMMER / "kernels.csv"), SWIMMER / "kernels.png")
            summarize(pd.read_csv(SWIMMER / "kernels.csv")).to_csv(SWIMMER / "table.csv", index=False)
        case _:
            metairn.fail("networks.py takes `window OUT`, `kernels RUNS` or `table`")
