"""Reward networks that are set by hand, and the kernels that were learned on Swimmer. From the project's folder:

    python results/delayed_tuned/networks.py window runs/delayed_tuned   # OUT/kernels/window.pt
    python results/delayed_tuned/networks.py bonus runs/delayed_tuned    # OUT/{Hopper-v5, Walker2d-v5}/bonus.pt
    python results/delayed_tuned/networks.py kernels runs/fresh/Swimmer-v5 > results/delayed_tuned/kernels.csv
    python results/delayed_tuned/networks.py figure                      # kernels.png, from the committed kernels.csv

window: a kernel that knows the delay. Each reward goes to the 20 steps that earned it, in equal shares.
bonus: 1 at every step, the control of LIRPG (Zheng, Oh and Singh 2018); --intrinsic-coef says how much.
kernels: of each run of `teacher` in a folder (Swimmer-v5/study.txt), which share of a reward its kernel pays to the 20
steps that earned it; and where it goes, weight_0 to the step at which it was paid, weight_1 to the one before, ...
kernels_first.csv has these of 60 kernels that were learned otherwise (study.txt), and their gains in standard errors.
"""

import json
import math
import sys
from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from gymnasium.spaces import Discrete

sys.path.insert(0, str(Path(__file__).parents[2]))
import ppo_metairn as metairn

DELAY, ROLLOUT, WEIGHTS = 20, 256, 40  # steps: of the study, and in kernels.csv


def window(steps):
    """The kernel of equal weights from 0 to steps - 1 steps ago"""
    irn = metairn.IntrinsicRewardNetwork(1, Discrete(2), "kernel")
    for p in irn.parameters():
        p.data.zero_()
    irn.net[0].weight.data[:2] = 1e4  # two steep steps: one is up from 0 steps ago on, one down from `steps` on
    edges = [-0.1, math.log(steps + 0.5) / 3]
    irn.net[0].bias.data[:2] = -1e4 * torch.tensor(edges)
    irn.net[2].weight.data[0, :2] = torch.tensor([50.0, -50.0])
    return irn


def bonus(env_id):
    """The network that pays 1 at every step"""
    with gym.make(env_id) as env:
        irn = metairn.IntrinsicRewardNetwork(env.observation_space.shape[0], env.action_space, "mlp")
    for p in irn.parameters():
        p.data.zero_()
    irn.net[-1].bias.data.fill_(1.0)
    return irn


@torch.no_grad()
def kernels(runs):
    """The table of the kernels that the runs of `teacher` in a folder have learned"""
    rows = []
    for folder in Path(runs).glob("*__teacher__*"):
        irn, zeros = metairn.IntrinsicRewardNetwork(1, Discrete(2), "kernel"), torch.zeros(ROLLOUT, 1)
        metairn.load_irn(folder, irn, "cpu")
        _, weights = irn(zeros.unsqueeze(-1), zeros.long(), zeros, zeros)
        last = weights[0, 0, :, -1].flip(0)  # [ROLLOUT] where the last step's reward goes: 0, 1, ... steps back
        seed = json.loads((folder / "args.json").read_text())["seed"]
        rows.append({"seed": seed, "paid_to_earners": last[:DELAY].sum().item()})
        rows[-1] |= {f"weight_{ago}": last[ago].item() for ago in range(WEIGHTS)}
    return pd.DataFrame(rows).sort_values("seed")


def plot(table, first, path):
    """Where the kernels pay a reward: all of them, their median, that of the first ones, and the window"""
    weights, first_weights = [x.filter(like="weight_").T.to_numpy() for x in (table, first)]  # [WEIGHTS, kernels]
    figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    axis.plot(weights, color="#D55E00", alpha=0.2, linewidth=0.8)
    axis.plot(np.median(weights, axis=1), color="#D55E00", linewidth=2, label="learned on Swimmer: all, their median")
    axis.plot(np.median(first_weights, axis=1), color="#999999", linewidth=2, label="learned otherwise (first): median")
    axis.step([0, DELAY, WEIGHTS], [1 / DELAY, 0, 0], where="post", color="#000000", label="set by hand (window)")
    axis.axhline(1 / ROLLOUT, color="#0072B2", linestyle=":", label="untaught")
    axis.set(xlabel="steps before the reward is paid", ylabel="share of the reward", xlim=(0, WEIGHTS), ylim=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=150)


def write(irn, path):
    network = {"config": irn.config, "parameters": irn.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    metairn.write_atomically(path, lambda file: torch.save(network, file))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["window", out]:
            write(window(DELAY), Path(out, "kernels", "window.pt"))
        case ["bonus", out]:
            for env_id in ("Hopper-v5", "Walker2d-v5"):
                write(bonus(env_id), Path(out, env_id, "bonus.pt"))
        case ["kernels", runs]:
            kernels(runs).to_csv(sys.stdout, index=False, float_format="%.4f")
        case ["figure"]:
            folder = Path(__file__).parent
            tables = [pd.read_csv(folder / f"{name}.csv") for name in ("kernels", "kernels_first")]
            plot(*tables, folder / "kernels.png")
        case _:
            metairn.fail("networks.py takes `window OUT`, `bonus OUT`, `kernels RUNS` or `figure`")
