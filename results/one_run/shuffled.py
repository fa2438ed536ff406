"""A control that must not help: ppo_metairn.py, but its outer episodes are paid one another's rewards.

    python results/one_run/shuffled.py --hide-umbrella --seed 3             # takes the options of ppo_metairn.py
    python results/one_run/shuffled.py evidence runs/one_run_tuned > results/one_run_tuned/evidence.csv

What the outer objective says then has nothing to do with the actions, in learning and in the test of what was learned.
With `evidence`: evidence of every rollout of the held phase, read from TensorBoard's files of the runs in a folder.
"""

import json
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[2]))
import ppo_metairn as metairn

look_ahead_gains = metairn.look_ahead_gains


def shuffled_gains(actor, theta, irn, inner, outer, args):
    """look_ahead_gains with the rewards of the outer episodes dealt out anew among them, each time"""
    rewards = outer.rewards[:, torch.randperm(outer.rewards.shape[1])]
    return look_ahead_gains(actor, theta, irn, inner, outer._replace(rewards=rewards), args)


def print_evidence(runs):
    print("algorithm,chain_length,seed,global_step,evidence,ppo_evidence")
    for folder in sorted(path.parent for path in Path(runs).glob("*/args.json")):
        args = json.loads((folder / "args.json").read_text())
        events = EventAccumulator(str(folder)).Reload()
        if "losses/evidence" not in events.Tags()["scalars"]:
            continue
        learned, alone = [events.Scalars(f"losses/{name}") for name in ("evidence", "ppo_evidence")]
        for x, y in zip(learned, alone, strict=True):
            run = args["exp_name"], args["chain_length"], args["seed"], x.step
            print(*run, f"{x.value:.3f},{y.value:.3f}", sep=",")


if __name__ == "__main__":
    if sys.argv[1:2] == ["evidence"]:
        print_evidence(sys.argv[2])
    else:
        metairn.look_ahead_gains = shuffled_gains
        metairn.main(metairn.parse_args())
