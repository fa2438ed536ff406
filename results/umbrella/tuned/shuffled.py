"""A control that must not help: ppo_metairn.py, but its outer episodes are paid one another's rewards.

    python results/umbrella/tuned/shuffled.py --hide-umbrella --seed 3      # takes the options of ppo_metairn.py

What the outer objective says then has nothing to do with the actions, in learning and in the test of what was learned.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
import ppo_metairn as metairn

look_ahead_gains = metairn.look_ahead_gains


def shuffled_gains(actor, irn, inner, outer, args):
    """look_ahead_gains with the rewards of the outer episodes dealt out anew among them, each time"""
    rewards = outer.rewards[:, torch.randperm(outer.rewards.shape[1])]
    return look_ahead_gains(actor, irn, inner, outer._replace(rewards=rewards), args)


if __name__ == "__main__":
    metairn.look_ahead_gains = shuffled_gains
    metairn.main(metairn.parse_args())
