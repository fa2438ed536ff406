"""The study's networks that no meta-gradient has made, each written as an irn.pt.

    python results/carry_over/other_teachers.py oracle               # results/{carry_over,umbrella/bsuite}/oracle.pt
    python results/carry_over/other_teachers.py supervised runs/carry_over  # OUT/supervised/{1 ... 20}.pt

oracle: set by hand. Every reward goes to its episode's first step.

supervised: what one would try first. The redistributing network's attention, taught by regression: from the steps that
it points at, a per-step network must predict the episode's return. That is how SECRET (Ferret et al., IJCAI 2020) and,
with an LSTM, RUDDER (Arjona-Medina et al., 2019) find credit. The data are those that a teacher sees: 5,000 episodes of
10 steps, the umbrella hidden, of the untrained policy. Rewards are kept from the attention, which could give them away.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import ppo_metairn as metairn

CPU, EPISODES, BATCH, EPOCHS, LEARNING_RATE = torch.device("cpu"), 5_000, 100, 40, 1e-3


def write(irn, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    network = {"config": irn.config, "parameters": irn.state_dict()}
    metairn.write_atomically(path, lambda file: torch.save(network, file))


def collect(seed, length=10):
    """One rollout of EPISODES whole episodes, one an environment, of the untrained policy: Batch [length, EPISODES]."""
    args = metairn.Args(seed=seed, chain_length=length, num_steps=length, hide_umbrella=True)
    torch.manual_seed(seed)
    envs = metairn.make_envs(args, EPISODES)
    obs, _ = envs.reset(seed=metairn.random_seeds(args, "train"))
    actor = metairn.Actor(obs.shape[1], envs.single_action_space)
    return metairn.rollout(envs, actor, obs, args, CPU)[0], envs.single_action_space


def supervised(seed):
    batch, action_space = collect(seed)
    obs_dim, T = batch.obs.shape[-1], len(batch.obs)
    irn = metairn.IntrinsicRewardNetwork(obs_dim, action_space, "redistribution")
    irn.embed.weight.data[:, obs_dim] = 0  # the reward's
    value = metairn.make_mlp(obs_dim + int(action_space.n), 1, std=1.0)  # of a step: what it says of the return
    actions = torch.nn.functional.one_hot(batch.actions, int(action_space.n)).float()
    steps = torch.cat([batch.obs, actions], -1)  # [T, N, obs_dim + num_actions]
    returns, nothing = batch.rewards.sum(0), torch.zeros_like(batch.rewards)
    optimizer = torch.optim.Adam([*irn.parameters(), *value.parameters()], LEARNING_RATE)
    for _ in range(EPOCHS):
        for n in torch.randperm(EPISODES).split(BATCH):
            _, weights = irn(batch.obs[:, n], batch.actions[:, n], nothing[:, n], batch.dones[:, n])  # [n, 1, T, T]
            predictions = torch.einsum("nts,tn->sn", weights[:, 0], value(steps[:, n]).squeeze(-1))  # [T, n]
            loss = (predictions - returns[n]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"seed {seed}: loss {loss:.4f}, of the return's variance {returns.var():.4f}; weight of the last reward on "
          f"the first step {weights[:, 0, 0, T - 1].mean():.2f}")  # fmt: skip
    return irn


def oracle(obs_dim):
    _, action_space = collect(1)
    irn = metairn.IntrinsicRewardNetwork(obs_dim, action_space, "redistribution")
    for p in irn.parameters():
        p.data.zero_()
    irn.embed.weight.data[0, obs_dim + 1], irn.embed.bias.data[0] = -100, 10  # h[0] is 1 at time 0 and -1 after
    irn.query.weight.data[0, 0], irn.key.bias.data[0] = 100, 1
    return irn


if __name__ == "__main__":
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["oracle"]:
            for study, n_distractor in (("carry_over", 0), ("umbrella/bsuite", 20)):
                write(oracle(3 + n_distractor), Path(__file__).parents[1] / study / "oracle.pt")
        case ["supervised", out, *seeds]:
            for seed in map(int, seeds or range(1, 21)):
                write(supervised(seed), Path(out, "supervised", f"{seed}.pt"))
        case _:
            metairn.fail("other_teachers.py takes `oracle` or `supervised OUT [SEED...]`")
