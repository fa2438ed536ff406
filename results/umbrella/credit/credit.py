"""How many episodes does it take to find the credit? Those of the untouched policy, with the umbrella hidden.

    python results/umbrella/credit/credit.py > credit.csv      # about 20 minutes; then move it here
    python results/umbrella/credit/credit.py table                                  # table.csv and table.md, of it

A row: a way to learn the redistribution network, a length, a number of episodes, a seed; the weight of the last reward
on the episode's first three steps, for won and for lost episodes; the evidence of two thirds as many other episodes.

    held          as ppo_metairn.py does in its held phase
    one step      look-aheads of a single step of PPO
    common        one look-ahead for all steps of the episode, not one for each stretch of 5
    return        the outer loss of the return, paid to every step (discount and lambda 1, less its mean)
    regression    supervised: from the steps that the attention points at, a per-step network predicts the return

and, for what PPO itself sees, `policy gradient`: from that many episodes (discount and lambda 1), its component along
the true gradient, of 5,000 episodes, as a multiple of that (column `gradient`; 1 in the mean, its spread is noise).
"""

import math
import sys
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
import ppo_metairn as metairn

CPU, LENGTHS, EPISODES, SEEDS = torch.device("cpu"), (10, 50, 200), (20, 40, 80), range(401, 407)
advantages_without_critic = metairn.advantages_without_critic


def collect(seed, length, episodes, actor=None):
    """Batch [length, episodes], actor and arguments"""
    args = metairn.Args(seed=seed, chain_length=length, num_steps=length, hide_umbrella=True)
    torch.manual_seed(seed)
    envs = metairn.make_envs(args, episodes)
    obs, _ = envs.reset(seed=metairn.random_seeds(args, "train"))
    actor = actor or metairn.Actor(obs.shape[1], envs.single_action_space)
    return metairn.rollout(envs, actor, obs, args, CPU)[0], actor, args


def returns(_, batch, args):
    """The return, less its mean over episodes that begin alike, for every step: [T, n]"""
    begins = batch.obs[0, :, 0] > 0.5  # need
    total = batch.rewards.flip(0).cumsum(0).flip(0)
    means = torch.stack([total[:, begins == x].mean(1) for x in (False, True)], 1).nan_to_num()  # [T, 2]
    return total - means[:, begins.long()]


def regress(irn, batch, steps=300):
    """As in results/carry_over/other_teachers.py, on all episodes at once; the attention does not see the rewards."""
    obs_dim = batch.obs.shape[-1]
    irn.embed.weight.data[:, obs_dim] = 0
    value = metairn.make_mlp(obs_dim + 2, 1, std=1.0)
    x = torch.cat([batch.obs, torch.nn.functional.one_hot(batch.actions, 2).float()], -1)
    total, nothing = batch.rewards.sum(0), torch.zeros_like(batch.rewards)
    optimizer = torch.optim.Adam([*irn.parameters(), *value.parameters()], 3e-3)
    for _ in range(steps):
        _, weights = irn(batch.obs, batch.actions, nothing, batch.dones)  # [n, 1, T, T]
        predictions = torch.einsum("nt,tn->n", weights[:, 0, :, -1], value(x).squeeze(-1))
        loss = (predictions - total).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def learn(way, batch, actor, args):
    """From three fifths of the batch -> weights of the last reward on the first three steps (won, lost), evidence"""
    irn = metairn.IntrinsicRewardNetwork(batch.obs.shape[-1], metairn.gym.spaces.Discrete(2), "redistribution")
    metairn.LOOK_AHEAD_STEPS = 1 if way == "one step" else 8
    metairn.STRETCH = len(batch.obs) if way == "common" else 5
    calls = []

    def outer_of_returns(irn, batch, args):  # a look-ahead asks for the inner advantages, then for the outer ones
        calls.append(None)
        return (advantages_without_critic if len(calls) % 2 else returns)(irn, batch, args)

    metairn.advantages_without_critic = outer_of_returns if way == "return" else advantages_without_critic
    evidence = math.nan
    if way == "regression":
        regress(irn, metairn.Batch(*(x[:, : x.shape[1] - 2 * x.shape[1] // 5] for x in batch)))
    else:
        eta = metairn.flat_parameters(irn)
        evidence = metairn.learn_from_held(actor, irn, eta, batch, args)["evidence"]
    with torch.no_grad():
        rewards = torch.zeros_like(batch.rewards) if way == "regression" else batch.rewards
        weights = irn(batch.obs, batch.actions, rewards, batch.dones)[1][:, 0, :3, -1].sum(-1)  # [n]
    won = batch.rewards[-1] > 0
    return weights[won].mean().item(), weights[~won].mean().item(), evidence


def gradient(actor, batch):
    """The undiscounted policy gradient [P]"""
    loss = (actor(batch.obs, batch.actions)[0] * returns(None, batch, None)).sum(0).mean()
    return torch.cat([x.flatten() for x in torch.autograd.grad(loss, list(actor.parameters()))])


def main():
    torch.set_num_threads(1)
    print("way,length,episodes,seed,weight_won,weight_lost,evidence,gradient")
    for length in LENGTHS:
        for seed in SEEDS:
            _, actor, _ = collect(seed, length, 2)
            true = gradient(actor, collect(seed + 1000, length, 5_000, actor)[0])
            for episodes in EPISODES:
                batch, _, args = collect(seed, length, episodes * 5 // 3, actor)
                estimate = gradient(actor, metairn.Batch(*(x[:, :episodes] for x in batch)))
                print(f"policy gradient,{length},{episodes},{seed},,,,{estimate @ true / (true @ true):.4f}")
                for way in ("held", "one step", "common", "return", "regression"):
                    torch.manual_seed(seed)
                    won, lost, evidence = learn(way, batch, actor, args)
                    print(f"{way},{length},{episodes},{seed},{won:.4f},{lost:.4f},{evidence:.2f},", flush=True)


def tabulate(folder):
    """Networks with right credit: the last reward's weight on the first three steps is above 0.8, for won and lost"""
    rows = pd.read_csv(folder / "credit.csv").query("way != 'policy gradient'")
    rows["right"] = rows[["weight_won", "weight_lost"]].min(axis=1) > 0.8
    table = rows.groupby(["way", "length", "episodes"], sort=False)["right"].agg(["sum", "count"]).reset_index()
    table = table.rename(columns={"sum": "right", "count": "seeds"})
    table.to_csv(folder / "table.csv", index=False)
    cells = table.assign(text=table["right"].astype(str) + "/" + table["seeds"].astype(str))
    cells = cells.pivot(index="way", columns=["length", "episodes"], values="text").loc[list(table["way"].unique())]
    lines = [["", *(f"L = {length}, N = {episodes}" for length, episodes in cells)], ["---"] * (1 + len(cells.columns))]
    lines += [[f"`{way}`", *row] for way, row in zip(cells.index, cells.to_numpy(), strict=True)]
    (folder / "table.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            main()
        case ["table"]:
            tabulate(Path(__file__).parent)
        case _:
            metairn.fail("credit.py takes `table` or nothing")
