"""PPO with all seeds of a study in one process, by torch.func.vmap, against a process for each run -> seeds.csv.

    python results/speed/seeds.py                     # each way three times: 20 seeds, two processes at a time
    python results/speed/seeds.py --train 10          # 10 seeds in this process; with --compile, as one machine code

Networks, loss and Adam are those of ppo_vanilla.py, at its defaults, without evaluations.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
import tyro
from torch.func import functional_call, vmap

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))
import ppo_vanilla as ppo  # noqa: E402


@dataclass
class Args:
    seeds: int = 20  # runs of a study
    steps: int = 100_000  # environment steps of a run
    processes: int = 2  # how many work at a time
    rounds: int = 3  # how often each way is measured; seeds.csv gets the medians
    train: int = 0  # train so many seeds in this process, and measure nothing
    compile: bool = False  # with --train: compile the update


def train(seeds, steps, compiled):
    """Trains `seeds` policies at once, S below. Returns the success of each in its last rollout, [S]."""
    args = ppo.Args(num_envs=20 * seeds, total_timesteps=steps * seeds)
    envs, device = ppo.set_up(args)
    n, iterations = args.num_envs, steps // (20 * args.num_steps)
    obs_dim, space = envs.single_observation_space.shape[0], envs.single_action_space
    actor, critic = ppo.Actor(obs_dim, space), ppo.Critic(obs_dim)
    pairs = [(ppo.Actor(obs_dim, space), ppo.Critic(obs_dim)) for _ in range(seeds)]
    theta, phi = (
        torch.stack([torch.nn.utils.parameters_to_vector(x.parameters()) for x in y]) for y in zip(*pairs, strict=True)
    )
    theta, phi, step = theta.detach(), phi.detach(), torch.zeros(seeds)
    adam = [(torch.zeros_like(x), torch.zeros_like(x), step) for x in (theta, phi)]

    def call(network, flat, *x):
        return functional_call(network, ppo.unflatten(flat, network), x)

    def loss_of(theta, phi, minibatch):
        return ppo.ppo_loss(lambda *x: call(actor, theta, *x), lambda *x: call(critic, phi, *x), minibatch, args)

    def update(theta, phi, adam, minibatch, lr):
        grads, _ = torch.func.grad(loss_of, argnums=(0, 1), has_aux=True)(theta, phi, minibatch)
        grads = [ppo.clip_grad_norm(grad, args.max_grad_norm) for grad in grads]
        return [ppo.adam_step(*x, lr) for x in zip((theta, phi), grads, adam, strict=True)]

    update = vmap(update, (0, 0, 0, 0, None))
    update = torch.compile(update) if compiled else update

    class Policies:  # what rollout() needs of an actor: S policies, each for 20 of the environments
        discrete, noise = True, actor.noise

        def policy(self):
            weights = vmap(lambda x: tuple(ppo.unflatten(x, actor).values()))(theta)
            w1, b1, w2, b2, w3, b3 = (x.numpy().swapaxes(1, -1) if x.ndim == 3 else x[:, None].numpy() for x in weights)

            def act(obs, noise):
                x = np.maximum(obs.reshape(seeds, 20, -1) @ w1 + b1, 0)
                output = np.maximum(x @ w2 + b2, 0) @ w3 + b3
                return (output.reshape(n, -1) + noise).argmax(-1)

            return act

    obs, _ = envs.reset(seed=list(range(n)))
    for iteration in range(iterations):
        batch, obs, _ = ppo.rollout(envs, Policies(), obs, args, device)
        lr = torch.tensor(args.learning_rate * (1 - iteration / iterations))
        with torch.no_grad():
            mine = [x.unflatten(1, (seeds, 20)).transpose(0, 1) for x in (batch.obs, batch.actions, batch.next_obs)]
            logprobs, _ = vmap(lambda *x: call(actor, *x))(theta, *mine[:2])  # [S, T, 20]
            values, next_values = (vmap(lambda *x: call(critic, *x))(phi, x) for x in mine[::2])
            values, next_values = (x.transpose(0, 1).flatten(1) for x in (values, next_values))  # [T, n]
            ends = batch.terminations, batch.dones
            advantages = ppo.compute_gae(batch.rewards, values, next_values, *ends, args.gamma, args.gae_lambda)
            advantages, returns = (
                x.unflatten(1, (seeds, 20)).transpose(0, 1) for x in (advantages, advantages + values)
            )
            data = [x.transpose(1, 2) for x in (*mine[:2], logprobs, advantages, returns)]  # [S, 20, T, ...]
            for _ in range(args.update_epochs):
                order = torch.rand(seeds, 20).argsort(1)
                shuffled = [x[torch.arange(seeds)[:, None], order].chunk(args.num_minibatches, 1) for x in data]
                for minibatch in zip(*shuffled, strict=True):
                    (theta, adam[0]), (phi, adam[1]) = update(theta, phi, adam, minibatch, lr)
    last = batch.rewards.sum(0).unflatten(0, (seeds, 20)) / args.reward_scale
    return (last > 0).double().mean(1)


def measure(commands, processes):
    """Wall-clock seconds until all commands have run, so many at a time."""
    start = time.perf_counter()

    def run(command):
        subprocess.run([sys.executable, *map(str, command)], stderr=subprocess.DEVNULL, check=True)

    with ThreadPoolExecutor(processes) as pool:
        list(pool.map(run, commands))  # raises what a run has raised
    return time.perf_counter() - start


def main(args):
    if args.train:
        success = train(args.train, args.steps, args.compile)
        print("last rollout's share of positive returns:", " ".join(f"{x:.2f}" for x in success))
        return
    if args.seeds % args.processes:
        print(f"error: --processes {args.processes} must divide --seeds {args.seeds}", file=sys.stderr)
        sys.exit(2)
    seconds = {"process": [], "vmap": [], "vmap compiled": []}
    for _ in range(args.rounds):
        with TemporaryDirectory() as folder:
            options = f"--total-timesteps {args.steps} --eval-every 1000000000 --eval-episodes 1".split()
            script = [HERE.parent.parent / "ppo_vanilla.py", *options, "--runs-dir", folder]
            commands = {"process": [[*script, "--seed", seed] for seed in range(args.seeds)]}
            share = [__file__, "--train", args.seeds // args.processes, "--steps", args.steps]
            commands |= {"vmap": [share] * args.processes, "vmap compiled": [[*share, "--compile"]] * args.processes}
            for way in seconds:
                seconds[way].append(measure(commands[way], args.processes))
    rows = [{"way": way, **asdict(args), "wall_seconds": np.median(x).round(1)} for way, x in seconds.items()]
    pd.DataFrame(rows).drop(columns=["train", "compile"]).to_csv(HERE / "seeds.csv", index=False)


if __name__ == "__main__":
    main(tyro.cli(Args))
