"""Could the test see credit where MetaIRN finds none? Evidence of perfect and of learned credit -> evidence.csv.

    pip install -r requirements-mujoco.txt && python results/cost/evidence.py       # about 3 minutes

Rollouts of an untouched policy, as in phase 1 of ppo_metairn.py: in bsuite's noise at L = 20, and on HalfCheetah with
rewards that are paid every 20 steps, where perfect credit pays each reward to the 20 steps that have earned it.
"""

import json
import sys
from pathlib import Path

import pandas as pd
import torch

RESULTS = Path(__file__).resolve().parent.parent
sys.path += [str(RESULTS.parent), str(RESULTS / "continuous_control")]
import networks  # noqa: E402

import ppo_metairn as metairn  # noqa: E402

SEEDS, LAMBDAS = range(3101, 3111), (None, 0.0)  # tuning seeds; None: PPO's own
INNER = 20, 200  # environments that the look-ahead learns from, at most
CHEETAH = json.loads((RESULTS / "continuous_control" / "winners.json").read_text())["halfcheetah__ppo"]
CHEETAH |= {"env_id": "HalfCheetah-v5", "normalize": True, "reward_scale": 1.0, "num_envs": 8, "num_steps": 256}
CHEETAH |= {"segment_length": 8, "num_minibatches": 8, "reward_delay": 20, "irn": "kernel"}
NOISE = {"env_id": "umbrella_env:UmbrellaLengthBsuite-v0", "chain_length": 20}
TASKS = {"noise": (NOISE, [2_400, 12_000, 48_000]), "halfcheetah": (CHEETAH, [60_000])}  # options, steps


def main():
    rows = []
    for seed, (task, (options, sizes)) in ((seed, x) for seed in SEEDS for x in TASKS.items()):
        args = metairn.Args(seed=seed, **options)
        envs, device = metairn.set_up(args)
        spaces, gae_lambda = (envs.single_observation_space.shape[0], envs.single_action_space), args.gae_lambda
        actor, perfect = metairn.Actor(*spaces), networks.window(networks.DELAY)
        if task == "noise":
            perfect = metairn.IntrinsicRewardNetwork(*spaces, args.irn)
            metairn.load_irn(RESULTS / "umbrella" / "bsuite" / "oracle.pt", perfect, device)
        obs, _ = envs.reset(seed=metairn.random_seeds(args, "train", count=args.num_envs))
        rollouts = []
        for steps in sizes:
            while len(rollouts) * args.num_envs * args.num_steps < steps:
                batch, obs, _ = metairn.rollout(envs, actor, obs, args, device)
                rollouts.append(batch)
            held = metairn.Batch(*(torch.cat(x, 1) for x in zip(*rollouts, strict=True)))  # [T, N, ...]
            N = held.dones.shape[1]
            for given in LAMBDAS:
                args.gae_lambda = gae_lambda if given is None else given
                row = {"task": task, "seed": seed, "steps": steps, "gae_lambda": "PPO's" if given is None else given}
                torch.manual_seed(seed)
                learned, tested = torch.randperm(N).split([N - 2 * N // 5, 2 * N // 5])
                for inner in INNER:
                    batches = [metairn.Batch(*(x[:, y] for x in held)) for y in (learned[:inner], tested)]
                    gains = metairn.look_ahead_gains(actor, perfect, *batches, args).detach()
                    evidence = (gains.mean() / (gains.std() / len(gains) ** 0.5)).item()
                    rows.append(row | {"credit": "perfect", "inner": inner, "evidence": evidence})
                torch.manual_seed(seed)
                irn = metairn.IntrinsicRewardNetwork(*spaces, args.irn)
                losses = metairn.learn_from_held(actor, irn, metairn.flat_parameters(irn), held, args)
                rows.append(row | {"credit": "learned", "inner": 20, "evidence": losses["evidence"]})
    groups = pd.DataFrame(rows).groupby(["task", "credit", "inner", "gae_lambda", "steps"], sort=False)["evidence"]
    table = groups.agg(seeds="count", median="median", lowest="min", highest="max").round(2)
    table.to_csv(RESULTS / "cost" / "evidence.csv")


if __name__ == "__main__":
    main()
