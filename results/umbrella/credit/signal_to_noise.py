"""How many episodes until a gradient is more signal than noise? Those of the untouched policy, the umbrella hidden.

    python results/umbrella/credit/signal_to_noise.py > signal_to_noise.csv  # about 10 minutes; then move it here
    python results/umbrella/credit/signal_to_noise.py figure                            # its picture, and signal.csv

A row: a gradient, a length, a number of episodes, a seed (of policy and network); signal over noise of the gradient
from that many episodes, of DRAWS draws. Signal: the norm of its mean, less what that owes to so few draws; noise: the
root of its total variance. Draws are with replacement, from 20,000 episodes (L = 200: 6,666).

    policy          what PPO sees: of the return, discount and lambda 1, in the policy's parameters
    policy first    the part of it that the first action has, the only one that matters: what perfect credit leaves
    meta initial    of ppo_metairn.py's held phase, at the untrained network; half of the episodes inside, half outside
    meta right      the same after 10 steps of the held phase on 60 other episodes
"""

import copy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from credit import collect, metairn, returns

LENGTHS, EPISODES, SEEDS, DRAWS = (10, 50, 200), (20, 40, 80), range(601, 607), 50
NAMES = "policy", "policy first", "meta initial", "meta right"
FIGURE_EPISODES = 80


def policy_gradient(actor, batch, steps):
    """Of the first `steps` steps' actions [P]"""
    logprobs = actor(batch.obs, batch.actions)[0] * returns(None, batch, None)
    return torch.cat([x.flatten() for x in torch.autograd.grad(logprobs[:steps].sum(0).mean(), [*actor.parameters()])])


def meta_gradient(actor, irn, batch, args):
    """[P] of the network"""
    inner, outer = [metairn.Batch(*x) for x in zip(*(x.tensor_split(2, 1) for x in batch), strict=True)]
    gain = metairn.look_ahead_gains(actor, irn, inner, outer, args).mean()
    return torch.cat([x.flatten() for x in torch.autograd.grad(gain, list(irn.parameters()))])


def signal_to_noise(gradients):
    """gradients [draws, P]"""
    noise = gradients.var(0).sum()
    signal = (gradients.mean(0).square().sum() - noise / len(gradients)).clamp_min(0)
    return (signal / noise).sqrt().item()


def main():
    torch.set_num_threads(1)
    metairn.META_STEPS = 10
    print("gradient,length,episodes,seed,signal_to_noise")
    for length in LENGTHS:
        for seed in SEEDS:
            batch, actor, args = collect(seed, length, 100)
            irns = [metairn.IntrinsicRewardNetwork(batch.obs.shape[-1], metairn.gym.spaces.Discrete(2), args.irn)]
            irns += [copy.deepcopy(irns[0])]
            eta = metairn.flat_parameters(irns[1])
            metairn.learn_from_held(actor, irns[1], eta, batch, args)
            pool = collect(seed + 1000, length, 20_000 if length < 200 else 6_666, actor)[0]
            for episodes in EPISODES:
                draws = []
                for _ in range(DRAWS):
                    chosen = torch.randint(pool.rewards.shape[1], (episodes,))
                    draw = metairn.Batch(*(x[:, chosen] for x in pool))
                    draws.append([policy_gradient(actor, draw, steps) for steps in (length, 1)])
                    draws[-1] += [meta_gradient(actor, irn, draw, args) for irn in irns]
                for name, *gradients in zip(NAMES, *draws, strict=True):
                    ratio = signal_to_noise(torch.stack(gradients))
                    print(f"{name},{length},{episodes},{seed},{ratio:.4f}", flush=True)


def plot(table, path):
    """Median over seeds against length, and all seeds as dots"""
    figure, axis = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    labels = "policy gradient, as PPO sees it", "policy gradient of the first action alone: perfect credit"
    labels += "meta-gradient, untrained network", "meta-gradient after 10 meta steps"
    table = table[table["episodes"] == FIGURE_EPISODES]
    for name, label, color in zip(NAMES, labels, ("#0072B2", "#000000", "#E69F00", "#D55E00"), strict=True):
        rows = table[table["gradient"] == name]
        median = rows.groupby("length")["signal_to_noise"].median()
        axis.plot(rows["length"], rows["signal_to_noise"].clip(lower=0.05), ".", color=color, alpha=0.4)
        axis.plot(median.index, median, "o-", color=color, label=label)
    first = table[table["gradient"] == "policy"].groupby("length")["signal_to_noise"].median()
    axis.plot(LENGTHS, [first[10] * (10 / x) ** 0.5 for x in LENGTHS], ":", color="0.4", label="falls as 1 / sqrt(L)")
    axis.set(xscale="log", yscale="log", xlabel="episode length L [steps]", xticks=LENGTHS, xticklabels=LENGTHS)
    axis.set(ylabel=f"signal / noise of the gradient\nfrom {FIGURE_EPISODES} episodes", yticks=[0.1, 0.3, 1, 3])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if sys.argv[1:] == ["figure"]:
        folder = Path(__file__).parent
        table = pd.read_csv(folder / "signal_to_noise.csv")
        plot(table, folder / "signal_to_noise.png")
        median = table.groupby(["gradient", "length", "episodes"], sort=False)["signal_to_noise"].median()
        median.rename("median").reset_index().to_csv(folder / "signal.csv", index=False, float_format="%.4g")
    else:
        main()
