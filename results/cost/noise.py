"""Could a test see credit in bsuite's noise? Evidence of perfect credit, and of credit that is learned -> noise.csv.

    python results/cost/noise.py       # beside this file; about a minute

Episodes of an untouched policy, L = 20, as in phase 1 of ppo_metairn.py. Two fifths of the environments are the test.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
import ppo_metairn as metairn  # noqa: E402

SEEDS, EPISODES, LAMBDAS = range(3101, 3111), (120, 600, 2400), (0.95, 0.0)  # tuning seeds


def main():
    rows = []
    for seed in SEEDS:
        args = metairn.Args(seed=seed, env_id="umbrella_env:UmbrellaLengthBsuite-v0", chain_length=20)
        envs, device = metairn.set_up(args)
        spaces = envs.single_observation_space.shape[0], envs.single_action_space
        actor, perfect = metairn.Actor(*spaces), metairn.IntrinsicRewardNetwork(*spaces, args.irn)
        metairn.load_irn(HERE.parent / "umbrella" / "bsuite" / "oracle.pt", perfect, device)
        obs, _ = envs.reset(seed=metairn.random_seeds(args, "train", count=args.num_envs))
        rollouts, ended = [], 0
        for episodes in EPISODES:
            while ended < episodes:
                batch, obs, _ = metairn.rollout(envs, actor, obs, args, device)
                rollouts.append(batch)
                ended += int(batch.dones.sum())
            held = metairn.Batch(*(torch.cat(x, 1) for x in zip(*rollouts, strict=True)))  # [T, N, ...]
            N = held.dones.shape[1]
            for args.gae_lambda in LAMBDAS:
                row = {"seed": seed, "episodes": episodes, "gae_lambda": args.gae_lambda}
                torch.manual_seed(seed)
                learned, tested = torch.randperm(N).split([N - 2 * N // 5, 2 * N // 5])
                for inner in (20, 200):  # at most so many environments are what the look-ahead learns from
                    batches = [metairn.Batch(*(x[:, y] for x in held)) for y in (learned[:inner], tested)]
                    gains = metairn.look_ahead_gains(actor, perfect, *batches, args).detach()
                    evidence = (gains.mean() / (gains.std() / len(gains) ** 0.5)).item()
                    rows.append({"credit": "perfect", "inner": inner, **row, "evidence": evidence})
                torch.manual_seed(seed)
                irn = metairn.IntrinsicRewardNetwork(*spaces, args.irn)
                losses = metairn.learn_from_held(actor, irn, metairn.flat_parameters(irn), held, args)
                rows.append({"credit": "learned", "inner": 20, **row, "evidence": losses["evidence"]})
    groups = pd.DataFrame(rows).groupby(["credit", "inner", "gae_lambda", "episodes"])["evidence"]
    groups.agg(seeds="count", median="median", lowest="min", highest="max").round(2).to_csv(HERE / "noise.csv")


if __name__ == "__main__":
    main()
