"""Kernels that are learned on one MuJoCo task with delayed rewards, to be carried over to another. From here:

    python results/delayed_tuned/teach.py runs/delayed_tuned         # OUT/kernels/{1 ... 20}.pt, ten seconds each
    python results/delayed_tuned/teach.py runs/fresh {21..60}        # the same of other seeds; kernels.csv has all 60
    python results/delayed_tuned/teach.py runs/delayed_tuned window  # OUT/kernels/window.pt, which is set by hand
    python results/delayed_tuned/teach.py runs/delayed_tuned bonus   # OUT/{Hopper-v5, Walker2d-v5}/bonus.pt, too
    python results/delayed_tuned/teach.py figure                     # kernels.png, from the committed kernels.csv

The policy is the untouched one of Swimmer-v5. Its rewards are paid every 20 steps, and --irn kernel is learned from 24
rollouts, 49,152 steps, by the meta-gradient: PPO takes 8 full-batch steps on what the kernel makes of 20 pieces of 256
steps; the kernel ascends what 20 others gain, of the reward as it is paid, discounted by 0.99. Two fifths of the pieces
are neither: on these, kernels.csv says what is gained, in standard errors, with the learned kernel, with the same
before it has learned, and by PPO alone; which share of a reward the kernel pays to the 20 steps that earned it; and
where it goes, weight_0 to the step at which it was paid, weight_1 to the one before, and so on.

window: what the delay's length alone would tell. Each reward goes to the 20 steps that earned it, in equal shares.
bonus: 1 at every step, the control of LIRPG (Zheng, Oh and Singh 2018); --intrinsic-coef says how much.
"""

import csv
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

ROLLOUTS, PIECES, META_STEPS, META_LEARNING_RATE = 24, 20, 60, 1e-2
WEIGHTS = 40  # of kernels.csv
ARGS = {"env_id": "Swimmer-v5", "reward_delay": 20, "normalize": True, "reward_scale": 1, "num_envs": 8}
ARGS |= {"num_steps": 256, "gamma": 0.99, "gae_lambda": 0.9, "irn": "kernel"}


def gains(actor, theta, irn, inner, outer, args):
    """What `outer` gains when PPO learns from what irn (None: nothing) makes of `inner`, both Batch [T, n, ...]: [n]"""
    logprobs, outer_logprobs = [actor(x.obs, x.actions)[0].detach() for x in (inner, outer)]
    zeros = torch.zeros_like(inner.rewards)
    minibatch = metairn.Minibatch(
        inner.obs, inner.actions, inner.rewards, inner.terminations, inner.dones, logprobs, *[zeros] * 5
    )
    advantages, adam = metairn.redistributed_advantages(irn, inner, args), metairn.new_adam(theta)
    for _ in range(metairn.LOOK_AHEAD_STEPS):
        theta, adam, _ = metairn.inner_step(actor, theta, adam, minibatch, advantages, metairn.LOOK_AHEAD_LR, args)
    zeros = torch.zeros_like(outer.rewards)
    returns = metairn.compute_gae(outer.rewards, zeros, zeros, outer.terminations, outer.dones, 0.99, 1.0)
    parameters = metairn.unflatten(theta, actor)
    ratio = (torch.func.functional_call(actor, parameters, (outer.obs, outer.actions))[0] - outer_logprobs).exp()
    return ((ratio - 1) * metairn.normalize(returns)).sum(0)


def teach(seed):
    """The kernel, and its row of kernels.csv"""
    args = metairn.Args(seed=seed, **ARGS)
    envs, device = metairn.set_up(args)
    obs_dim, action_space = envs.single_observation_space.shape[0], envs.single_action_space
    actor, irn = metairn.Actor(obs_dim, action_space), metairn.IntrinsicRewardNetwork(obs_dim, action_space, args.irn)
    theta, eta = metairn.flat_parameters(actor), metairn.flat_parameters(irn)
    obs, _ = envs.reset(seed=metairn.random_seeds(args, "train", count=args.num_envs))
    rollouts = []
    for _ in range(ROLLOUTS):
        batch, obs, _ = metairn.rollout(envs, actor, obs, args, device)
        rollouts.append(batch)
    pieces = metairn.Batch(*(torch.cat(x, dim=1) for x in zip(*rollouts, strict=True)))  # [T, N, ...]
    N = pieces.rewards.shape[1]
    learned, tested = torch.randperm(N).split([N - 2 * N // 5, 2 * N // 5])

    def gained(irn, inner, outer):
        return gains(actor, theta, irn, *(metairn.Batch(*(x[:, n] for x in pieces)) for n in (inner, outer)), args)

    def evidence(irn):
        x = gained(irn, learned[:PIECES], tested).detach()
        return (x.mean() / (x.std() / len(x) ** 0.5)).item()

    row = {"seed": seed, "ppo": evidence(None), "before": evidence(irn)}
    adam = metairn.new_adam(eta)
    for _ in range(META_STEPS):
        loss = -gained(irn, *learned[torch.randperm(len(learned))[: 2 * PIECES]].tensor_split(2)).mean()
        loss.backward(inputs=list(irn.parameters()))
        adam = metairn.descend(eta, adam, META_LEARNING_RATE, args.max_grad_norm, eps=1e-10)
    _, weights = irn(*(x[:, :1] for x in (pieces.obs, pieces.actions, pieces.rewards, torch.zeros_like(pieces.dones))))
    last = weights[0, 0, :, -1].detach()  # [T] where the last step's reward goes
    row |= {"learned": evidence(irn), "paid_to_earners": last[-args.reward_delay :].sum().item()}
    return irn, row | {f"weight_{ago}": last[-1 - ago].item() for ago in range(WEIGHTS)}


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


def plot(table, path):
    """Where the kernels pay a reward: all of them, their median, and the window"""
    weights = table.filter(like="weight_").T.to_numpy()  # [WEIGHTS, kernels]
    figure, axis = plt.subplots(figsize=(6.5, 3.2), layout="constrained")
    axis.plot(weights, color="#D55E00", alpha=0.2, linewidth=0.8)
    axis.plot(
        np.median(weights, axis=1), color="#D55E00", linewidth=2, label="learned on Swimmer: all, and their median"
    )
    earned = ARGS["reward_delay"]
    axis.step([0, earned, WEIGHTS], [1 / earned, 0, 0], where="post", color="#000000", label="set by hand (window)")
    axis.axhline(1 / ARGS["num_steps"], color="#0072B2", linestyle=":", label="untaught")
    axis.set(xlabel="steps before the reward is paid", ylabel="share of the reward", xlim=(0, WEIGHTS), ylim=0)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=150)


def write(irn, path):
    network = {"config": irn.config, "parameters": irn.state_dict()}
    path.parent.mkdir(parents=True, exist_ok=True)
    metairn.write_atomically(path, lambda file: torch.save(network, file))


if __name__ == "__main__":
    if sys.argv[1:] == ["figure"]:
        folder = Path(__file__).parent
        sys.exit(plot(pd.read_csv(folder / "kernels.csv"), folder / "kernels.png"))
    if len(sys.argv) < 2 or not (sys.argv[2:] in (["window"], ["bonus"]) or all(map(str.isdigit, sys.argv[2:]))):
        metairn.fail("teach.py takes a folder, then nothing, `window`, `bonus`, or seeds; or `figure` alone")
    out, rows = Path(sys.argv[1], "kernels"), []
    if sys.argv[2:] == ["window"]:
        sys.exit(write(window(ARGS["reward_delay"]), out / "window.pt"))
    if sys.argv[2:] == ["bonus"]:
        for env_id in ("Hopper-v5", "Walker2d-v5"):
            write(bonus(env_id), out.with_name(env_id) / "bonus.pt")
        sys.exit()
    for seed in map(int, sys.argv[2:] or range(1, 21)):
        irn, row = teach(seed)
        rows.append({name: round(value, 4) for name, value in row.items()})
        print(rows[-1])
        write(irn, out / f"{seed}.pt")
    with open(out / "kernels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
