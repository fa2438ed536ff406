"""How many episodes until a gradient is more signal than noise? Those of the untouched policy, the umbrella hidden.

    python results/one_run/signal_to_noise.py > results/one_run/signal_to_noise.csv         # about 10 minutes

A row: a gradient, a length, a number of episodes, a seed (of policy and network); signal over noise of the gradient
from that many episodes, of DRAWS draws. Signal: the norm of its mean, less what that owes to so few draws; noise: the
root of its total variance. Draws are with replacement, from
20,000 episodes (L = 200: 6,666).

    policy          what PPO sees: of the return, discount and lambda 1, in the policy's parameters
    policy first    the part of it that the first action has, the only one that matters: what perfect credit leaves
    meta initial    of ppo_metairn.py's held phase, at the untrained network; half of the episodes inside, half outside
    meta right      the same after 10 steps of the held phase on 60 other episodes
"""

import torch
from credit import collect, metairn, returns

LENGTHS, EPISODES, SEEDS, DRAWS = (10, 50, 200), (20, 40, 80), range(601, 607), 50
NAMES = "policy", "policy first", "meta initial", "meta right"


def policy_gradient(actor, batch, steps):
    """Of the first `steps` steps' actions [P]"""
    logprobs = actor(batch.obs, batch.actions)[0] * returns(None, batch, None)
    return torch.cat([x.flatten() for x in torch.autograd.grad(logprobs[:steps].sum(0).mean(), [*actor.parameters()])])


def meta_gradient(actor, theta, irn, batch, args):
    """[P] of the network"""
    inner, outer = [metairn.Batch(*x) for x in zip(*(x.tensor_split(2, 1) for x in batch), strict=True)]
    gain = metairn.look_ahead_gains(actor, theta, irn, inner, outer, args).mean()
    return torch.cat([x.flatten() for x in torch.autograd.grad(gain, list(irn.parameters()))])


def signal_to_noise(gradients):
    """gradients [draws, P]"""
    noise = gradients.var(0).sum()
    signal = (gradients.mean(0).square().sum() - noise / len(gradients)).clamp_min(0)
    return (signal / noise).sqrt().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    metairn.META_STEPS = 10
    print("gradient,chain_length,episodes,seed,signal_to_noise")
    for length in LENGTHS:
        for seed in SEEDS:
            batch, actor, args = collect(seed, length, 100)
            irns = [metairn.IntrinsicRewardNetwork(batch.obs.shape[-1], metairn.gym.spaces.Discrete(2), args.irn)]
            irns += [metairn.copy.deepcopy(irns[0])]
            theta, eta = metairn.flat_parameters(metairn.copy.deepcopy(actor)), metairn.flat_parameters(irns[1])
            metairn.learn_from_held(actor, theta, irns[1], eta, batch, args)
            pool = collect(seed + 1000, length, 20_000 if length < 200 else 6_666, actor)[0]
            for episodes in EPISODES:
                draws = []
                for _ in range(DRAWS):
                    chosen = torch.randint(pool.rewards.shape[1], (episodes,))
                    draw = metairn.Batch(*(x[:, chosen] for x in pool))
                    draws.append([policy_gradient(actor, draw, steps) for steps in (length, 1)])
                    draws[-1] += [meta_gradient(actor, theta, irn, draw, args) for irn in irns]
                for name, *gradients in zip(NAMES, *draws, strict=True):
                    print(
                        f"{name},{length},{episodes},{seed},{signal_to_noise(torch.stack(gradients)):.4f}", flush=True
                    )
