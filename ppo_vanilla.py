"""PPO for flat observations, discrete or continuous actions, in one file. The baseline of ppo_metairn.py.

    python ppo_vanilla.py --seed 3                    # Umbrella Length 50, 100k steps: solved, in about 3 seconds
    python ppo_vanilla.py --env-id CartPole-v1        # any Gymnasium env with a flat Box observation
    python ppo_vanilla.py --resume runs/FOLDER        # go on where a run was stopped, bit for bit
    python ppo_vanilla.py --evaluate runs/FOLDER --eval-episodes 1000
    tensorboard --logdir runs

References:
    Schulman et al., "Proximal Policy Optimization Algorithms", 2017, arXiv:1707.06347
    Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", ICLR 2016
    vwxyzjn/cleanrl: cleanrl/ppo.py, whose order, names and TensorBoard tags this file keeps
"""

import importlib.util
import json
import math
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.wrappers.utils import RunningMeanStd
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = "ppo_vanilla"  # the name of this experiment, part of the run folder's name
    seed: int = 1  # seed of everything: networks, actions, minibatches, training and evaluation environments
    cuda: bool = False  # run the networks on the GPU; off: they are so small that one CPU thread is faster
    track: bool = False  # mirror the run to Weights & Biases (needs `pip install wandb`)
    runs_dir: str = "runs"  # where run folders are made: RUNS_DIR/{env}__{exp_name}__{chain_length}__{seed}
    resume: str | None = None  # continue the run in this folder, with its arguments (MuJoCo: new episodes begin)
    evaluate: str | None = None  # train nothing: evaluate the agent in this run folder for --eval-episodes episodes
    eval_every: int = 5_000  # environment steps between evaluations (and checkpoints)
    eval_episodes: int = 20  # episodes of one evaluation; actions are sampled, as in training

    # The task
    env_id: str = "umbrella_env:UmbrellaLength-v0"  # flat Box observation, Discrete or flat Box action
    chain_length: int = 50  # Umbrella only: the episode's length
    n_distractor: int | None = None  # Umbrella only: random bits in the observation (default: the environment's)
    hide_umbrella: bool = False  # Umbrella only: the observation never shows whether the umbrella was taken
    invert_umbrella: bool = False  # Umbrella only: the opposite of the right first action is right
    reward_delay: int = 1  # rewards are summed and paid every so many steps and at an episode's end (logs: as earned)
    normalize: bool = False  # observations and rewards by running statistics, for continuous control

    # The algorithm
    total_timesteps: int = 100_000  # environment steps of the whole run
    learning_rate: float = 4e-3  # Adam's step size, for actor and critic
    num_envs: int = 20  # parallel environments
    num_steps: int | None = None  # of each per rollout (default: 50; on Umbrella as many whole episodes as fit in 50)
    anneal_lr: bool = True  # lower the learning rate linearly to 0 over the run
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # lambda of generalized advantage estimation
    segment_length: int | None = None  # of the pieces that minibatches are made of (default: num_steps, not cut)
    num_minibatches: int = 4  # per epoch; each holds whole segments, so it must divide their number
    update_epochs: int = 4  # passes over a rollout
    norm_adv: bool = True  # normalize advantages in each minibatch
    clip_coef: float = 0.3  # clipping range of the probability ratio; 0.2 left more failures near the solution
    ent_coef: float = 0.0  # weight of the entropy bonus; 0: Umbrella is learned before exploration runs out
    vf_coef: float = 0.5  # weight of the value loss
    max_grad_norm: float = 0.5  # gradient-norm limit, for actor and critic each on its own
    target_kl: float | None = None  # end an update after the epoch whose approximate KL divergence exceeds this
    reward_scale: float = 0.1  # rewards times this are learned from, so that returns are near 1 (logs: not scaled)


def layer_init(layer, std=2**0.5, bias_const=0.0):
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias_const)
    return layer


def make_mlp(inputs, outputs, std):
    return nn.Sequential(
        layer_init(nn.Linear(inputs, 64)),
        nn.ReLU(),
        layer_init(nn.Linear(64, 64)),
        nn.ReLU(),
        layer_init(nn.Linear(64, outputs), std=std),
    )


class Actor(nn.Module):
    """pi(a|s): Categorical for a Discrete action space, a Gaussian with state-independent deviations for a Box."""

    def __init__(self, obs_dim, action_space):
        super().__init__()
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        action_dim = int(action_space.n if self.discrete else action_space.shape[0])
        self.net = make_mlp(obs_dim, action_dim, std=0.01)
        if not self.discrete:
            self.logstd = nn.Parameter(torch.zeros(action_dim))

    def sample(self, obs):
        """obs [..., obs_dim] -> actions [...] or [..., action_dim]"""
        output = self.net(obs)
        if self.discrete:
            return torch.multinomial(output.softmax(-1), 1).squeeze(-1)
        return torch.normal(output, self.logstd.exp().expand_as(output))

    def forward(self, obs, actions):
        """obs [..., obs_dim], actions [...] or [..., action_dim] -> log-probabilities [...], entropies [...]"""
        output = self.net(obs)
        if self.discrete:
            logprobs = output.log_softmax(-1)  # [..., action_dim]
            return logprobs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)
        logprobs = -0.5 * ((actions - output) / self.logstd.exp()) ** 2 - self.logstd - 0.5 * math.log(2 * math.pi)
        return logprobs.sum(-1), (0.5 + 0.5 * math.log(2 * math.pi) + self.logstd).sum().expand(obs.shape[:-1])


class Critic(nn.Module):
    """V(s): obs [..., obs_dim] -> [...]"""

    def __init__(self, obs_dim):
        super().__init__()
        self.net = make_mlp(obs_dim, 1, std=1.0)

    def forward(self, obs):
        return self.net(obs).squeeze(-1)


def flat_parameters(module):
    """The module's parameters as one vector [P] of which, gradients included, they become views from now on.

    Clipping and Adam then take a few operations on one vector, not a few for each weight and bias.
    """
    parameters = list(module.parameters())
    flat = nn.Parameter(nn.utils.parameters_to_vector(parameters).detach())
    flat.grad = torch.zeros_like(flat)
    sizes = [p.numel() for p in parameters]
    for p, data, grad in zip(parameters, flat.data.split(sizes), flat.grad.split(sizes), strict=True):
        p.data, p.grad = data.view_as(p), grad.view_as(p)
    return flat


class Batch(NamedTuple):
    """One rollout of T steps in N environments; what followed action t is at index t, not t + 1."""

    obs: torch.Tensor  # [T, N, obs_dim]
    actions: torch.Tensor  # [T, N] integers, or [T, N, action_dim]
    rewards: torch.Tensor  # [T, N] extrinsic, scaled by --reward-scale
    next_obs: torch.Tensor  # [T, N, obs_dim] before any reset
    terminations: torch.Tensor  # [T, N] 1 where next_obs is terminal, else 0
    dones: torch.Tensor  # [T, N] 1 where the episode ended, terminated or truncated, else 0


class LearnersView(gym.vector.VectorWrapper):
    """What is learned from: rewards delayed (--reward-delay); observations and rewards normalized (--normalize).

    Observations less their running mean over their deviation, rewards over that of the discounted return, both clipped
    at 10: gymnasium's NormalizeObservation and NormalizeReward as in cleanrl/ppo_continuous_action.py, but with one set
    of statistics for all environments. Those of an evaluation are given and stay as they are.
    """

    def __init__(self, envs, args, statistics=None):
        super().__init__(envs)
        self.args, self.learns = args, args.normalize and statistics is None
        self.statistics = statistics or (RunningMeanStd(shape=self.single_observation_space.shape), RunningMeanStd())

    def view(self, obs):
        mean, var = self.statistics[0].mean, self.statistics[0].var
        return ((obs - mean) / np.sqrt(var + 1e-8)).clip(-10, 10) if self.args.normalize else obs

    def reset(self, **kwargs):
        obs, infos = self.env.reset(**kwargs)
        self.owed, self.returns, self.steps = np.zeros((3, self.num_envs))  # [N] each, since the episode began
        if self.learns:
            self.statistics[0].update(obs)
        return self.view(obs), infos

    def step(self, actions):
        obs, rewards, terminations, truncations, infos = self.env.step(actions)
        ended = terminations | truncations
        self.steps += 1
        self.owed += rewards
        rewards = np.where(ended | (self.steps % self.args.reward_delay == 0), self.owed, 0.0)
        self.owed -= rewards
        self.returns = self.args.gamma * self.returns + rewards
        if self.learns:
            for statistics, x in zip(self.statistics, (obs, self.returns), strict=True):
                statistics.update(x)
        self.steps[ended] = self.owed[ended] = self.returns[ended] = 0
        if self.args.normalize:
            rewards = (rewards / np.sqrt(self.statistics[1].var + 1e-8)).clip(-10, 10)
        for i in np.flatnonzero(ended):
            infos["final_obs"][i] = self.view(infos["final_obs"][i])
        return self.view(obs), rewards, terminations, truncations, infos


def act(actor, obs, space, device):
    """obs [N, obs_dim] -> sampled actions [N] or [N, action_dim], as they are and as the environment takes them"""
    actions = actor.sample(torch.as_tensor(obs, dtype=torch.get_default_dtype(), device=device)).cpu().numpy()
    return actions, actions if actor.discrete else actions.clip(space.low, space.high).astype(space.dtype)


def ended_episodes(infos, ended):
    """(return, length, success) of each episode that a step ended, `ended` [N] bool; success is NaN if not reported."""
    success = infos["final_info"].get("success", np.full(len(ended), np.nan))
    return np.stack([infos["episode"]["r"], infos["episode"]["l"], success], axis=1)[ended].tolist()


@torch.no_grad()
def rollout(envs, actor, obs, args, device):
    """Runs `actor` for num_steps steps in every environment, from obs [N, obs_dim].

    Returns the Batch, the observation to go on from, and the episodes that ended, as (return, length, success).
    """
    steps, episodes = [], []
    for _ in range(args.num_steps):
        actions, env_actions = act(actor, obs, envs.single_action_space, device)
        following_obs, rewards, terminations, truncations, infos = envs.step(env_actions)
        next_obs, dones = following_obs.copy(), terminations | truncations
        if dones.any():  # following_obs already begins the next episodes: put back what the action led to
            next_obs[dones] = np.stack(infos["final_obs"][dones])
            episodes += ended_episodes(infos, dones)
        steps.append((obs, actions, rewards * args.reward_scale, next_obs, terminations, dones))
        obs = following_obs
    batch = Batch(*(torch.as_tensor(np.stack(x), device=device) for x in zip(*steps, strict=True)))  # [T, N, ...]
    floats = [name for name in Batch._fields if not (name == "actions" and actor.discrete)]
    return batch._replace(**{x: getattr(batch, x).to(torch.get_default_dtype()) for x in floats}), obs, episodes


def compute_gae(rewards, values, next_values, terminations, dones, gamma, gae_lambda):
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), differentiable in rewards and both values.

    All arguments are [T, N]: values[t] = V(s_t); next_values[t] = V(the state that followed a_t, before any reset);
    terminations[t] = 1 where that state is terminal (bootstrap 0); dones[t] = 1 where the episode ended, terminated or
    truncated (the recursion A_t = delta_t + gamma * lambda * (1 - dones_t) * A_{t+1} stops). Returns advantages [T, N].
    The recursion is solved by doubling: log2(T) passes, each of which lets every step see twice as far ahead.
    Raises ValueError when T or N is 0.
    """
    if rewards.numel() == 0:
        raise ValueError(f"compute_gae needs at least one step of one environment, got rewards {tuple(rewards.shape)}")
    advantages = rewards + gamma * next_values * (1 - terminations) - values  # the deltas: each step sees itself
    decay = gamma * gae_lambda * (1 - dones)  # [T, N] weight of what lies `reach` steps ahead; 0 past an episode's end
    reach = 1
    while reach < len(rewards):
        ahead, beyond = advantages[reach:], advantages[-reach:]  # the last `reach` steps see the rollout's end already
        advantages = torch.cat([advantages[:-reach] + decay[: len(ahead)] * ahead, beyond])
        decay = decay[:-reach] * decay[reach:]
        reach *= 2
    return advantages


def cut(x, length):
    """x [T, N, ...] -> [length, N * T / length, ...], each environment's steps cut into segments"""
    return x.transpose(0, 1).unflatten(1, (-1, length)).flatten(0, 1).transpose(0, 1)


def normalize(advantages):
    std, mean = torch.std_mean(advantages)
    return (advantages - mean) / (std + 1e-8)


def policy_loss(new_logprobs, entropies, logprobs, advantages, clip_coef, ent_coef):
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7) minus the entropy bonus; and statistics to log, [5].

    All tensors have one shape; logprobs are those under the policy that acted.
    """
    logratio = new_logprobs - logprobs
    ratio = logratio.exp()
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    pg_loss = -torch.min(advantages * ratio, advantages * clipped_ratio).mean()
    entropy = entropies.mean()
    with torch.no_grad():
        approx_kl = (ratio - 1 - logratio).mean()  # http://joschu.net/blog/kl-approx.html
        clipfrac = (ratio != clipped_ratio).to(ratio.dtype).mean()
        stats = torch.stack([pg_loss, entropy, -logratio.mean(), approx_kl, clipfrac])
    return pg_loss - ent_coef * entropy if ent_coef else pg_loss, stats


def clip_grad_norm(grad, max_norm):
    """grad [P] scaled to a norm of at most max_norm, as nn.utils.clip_grad_norm_ does but differentiable"""
    return grad * (max_norm / (grad.norm() + 1e-6)).clamp(max=1.0)


def adam_step(theta, grad, adam, lr, beta1=0.9, beta2=0.999, eps=1e-5):
    """One step of torch.optim.Adam from theta [P], differentiable in all it is given -> new theta, new state.

    adam: (first moment [P], second moment [P], number of steps taken). The second moment is kept off zero, where the
    root has no derivative: a parameter whose gradients have all been exactly 0 (a weight of an input that always
    reads 0) would turn a gradient through this step into NaN.
    """
    m, v, step = adam
    step += 1
    m = m.lerp(grad, 1 - beta1)
    v = torch.addcmul(beta2 * v, grad, grad, value=1 - beta2)
    root = (v / (1 - beta2**step)).clamp_min(torch.finfo(v.dtype).tiny).sqrt()
    return torch.addcdiv(theta, m, root + eps, value=-lr / (1 - beta1**step)), (m, v, step)


def new_adam(theta):
    return torch.zeros_like(theta.data), torch.zeros_like(theta.data), 0


@torch.no_grad()
def descend(theta, adam, lr, max_grad_norm, eps=1e-5):
    """Takes an Adam step from theta [P] along its clipped gradient, in place, and zeroes the gradient -> new state."""
    new_theta, adam = adam_step(theta, clip_grad_norm(theta.grad, max_grad_norm), adam, lr, eps=eps)
    theta.copy_(new_theta)
    theta.grad.zero_()
    return adam


def main(args):
    envs, device = set_up(args)
    obs_dim, action_space = envs.single_observation_space.shape[0], envs.single_action_space
    actor, critic = Actor(obs_dim, action_space).to(device), Critic(obs_dim).to(device)
    learners = {"actor": actor, "critic": critic}
    theta, phi = [flat_parameters(learner) for learner in learners.values()]
    adam = {name: new_adam(p) for name, p in zip(learners, (theta, phi), strict=True)}
    if args.evaluate:
        _, state = load_checkpoint(args, learners, envs, device)
        eval_return, _, eval_success = evaluate(args, actor, state["statistics"], device, "evaluate")
        print(f"{args.eval_episodes} episodes: return {eval_return:.3f}, success {eval_success:.3f}")
        return
    run = Run(args, envs, learners, adam, device)
    adam = run.state["adam"]  # with --resume that of the checkpoint
    while run.goes_on():
        # Rollout
        batch, run.state["obs"], episodes = rollout(run.envs, actor, run.state["obs"], args, device)
        with torch.no_grad():
            logprobs, _ = actor(batch.obs, batch.actions)  # [T, N]
            values, next_values = critic(batch.obs), critic(batch.next_obs)  # [T, N]
            advantages = compute_gae(
                batch.rewards, values, next_values, batch.terminations, batch.dones, args.gamma, args.gae_lambda
            )
            returns = advantages + values

        # Update
        frac = 1.0 - run.state["iteration"] / run.num_iterations if args.anneal_lr else 1.0
        lr = frac * args.learning_rate
        data = [cut(x, args.segment_length) for x in (batch.obs, batch.actions, logprobs, advantages, returns)]
        stats = []  # one row [6] per minibatch
        for _ in range(args.update_epochs):
            for mb in torch.randperm(data[0].shape[1]).to(device).chunk(args.num_minibatches):  # whole segments
                mb_obs, mb_actions, mb_logprobs, mb_advantages, mb_returns = [x[:, mb] for x in data]
                if args.norm_adv:
                    mb_advantages = normalize(mb_advantages)
                new_logprobs, entropies = actor(mb_obs, mb_actions)
                loss, mb_stats = policy_loss(
                    new_logprobs, entropies, mb_logprobs, mb_advantages, args.clip_coef, args.ent_coef
                )
                v_loss = 0.5 * (critic(mb_obs) - mb_returns).square().mean()
                (loss + args.vf_coef * v_loss).backward()
                adam["actor"] = descend(theta, adam["actor"], lr, args.max_grad_norm)
                adam["critic"] = descend(phi, adam["critic"], lr, args.max_grad_norm)
                stats.append(torch.cat([mb_stats, v_loss.detach()[None]]))
            if args.target_kl is not None and mb_stats[3] > args.target_kl:
                break

        # Logging
        names = ["policy_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "value_loss"]
        losses = dict(zip(names, torch.stack(stats).mean(0).tolist(), strict=True))
        losses["explained_variance"] = (1 - advantages.var() / returns.var()).item()
        run.log(losses, episodes, lr)


# ----------------------------------------------------------------------------------------------------------------------
# Bookkeeping. Here the method ends; what follows any training script needs: checks, evaluation, checkpoints, logs.
# ----------------------------------------------------------------------------------------------------------------------


def fail(message):
    """Ends the program over something the user can mend: one line, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def parse_args():
    """Args from the command line; with --resume or --evaluate, on top of those stored in the run folder."""
    args = tyro.cli(Args, description=__doc__)
    folder = args.resume or args.evaluate
    if folder is None:
        return args
    try:
        stored = Args(**json.loads(Path(folder, "args.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        fail(f"{folder} is not a run folder of this script: cannot read its args.json ({error})")
    args = tyro.cli(Args, description=__doc__, default=stored)
    if args.resume and args.evaluate:
        fail("--resume and --evaluate exclude each other")
    for name, value in vars(stored).items() if args.resume else []:
        if name not in {"resume", "runs_dir", "cuda", "track"} and getattr(args, name) != value:
            fail(f"--{name.replace('_', '-')} is {value} in {folder} and cannot change with --resume: leave it out")
    return args


def check(args, names, valid, must):
    """Fails, naming the flag, unless valid(value) for each of the arguments in `names`."""
    for name in names.split():
        if not valid(getattr(args, name)):
            fail(f"--{name.replace('_', '-')} must {must}, got {getattr(args, name)}")


def make_envs(args, num_envs, statistics=None):
    """Environments with SAME_STEP autoreset (no dead transitions, true last observation); whether they are Umbrella.

    statistics: those that a LearnersView is to use and leave as they are, for an evaluation.
    """
    try:
        umbrella = args.env_id.startswith("umbrella_env:")
        if umbrella:
            names = "chain_length", "n_distractor", "hide_umbrella", "invert_umbrella"
            kwargs = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
            envs = gym.make_vec(args.env_id, num_envs, "vector_entry_point", **kwargs)
        else:
            envs = gym.make_vec(args.env_id, num_envs, "sync", {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP})
    except (gym.error.Error, ImportError, ValueError) as error:
        fail(f"--env-id {args.env_id}: {str(error).splitlines()[0]}")
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    flat_obs, flat_action = [isinstance(x, gym.spaces.Box) and len(x.shape) == 1 for x in (obs_space, action_space)]
    if not flat_obs:
        fail(f"--env-id {args.env_id}: the observation space must be a flat Box, got {obs_space}")
    if not (flat_action or (isinstance(action_space, gym.spaces.Discrete) and action_space.start == 0)):
        fail(f"--env-id {args.env_id}: the action space must be Discrete from 0 or a flat Box, got {action_space}")
    return LearnersView(gym.wrappers.vector.RecordEpisodeStatistics(envs), args, statistics), umbrella


def set_up(args):
    """Checks the arguments (naming the flag) and fills in those that depend on others -> environments, device."""
    counts = "eval_every eval_episodes total_timesteps num_envs num_minibatches update_epochs reward_delay"
    sizes = "seed learning_rate clip_coef ent_coef vf_coef max_grad_norm reward_scale"
    check(args, counts, lambda x: x >= 1, "be at least 1")
    check(args, sizes, lambda x: math.isfinite(x) and x >= 0, "be a finite number of at least 0")
    check(args, "gamma gae_lambda", lambda x: 0 <= x <= 1, "lie in [0, 1]")
    check(args, "num_steps", lambda x: x is None or x >= 2, "be at least 2")  # one advantage cannot be normalized
    if args.track and importlib.util.find_spec("wandb") is None:
        fail("--track needs Weights & Biases: pip install wandb")
    if args.cuda and not torch.cuda.is_available():
        fail("--cuda: no CUDA device is available; leave the flag out to run on the CPU")
    torch.set_num_threads(1)  # the fastest for networks this small, and it leaves the other cores to other runs
    envs, umbrella = make_envs(args, args.num_envs)
    if not umbrella:
        args.chain_length = 0
    if args.num_steps is None:
        args.num_steps = args.chain_length * max(1, 50 // args.chain_length) if umbrella else 50
    if args.segment_length is None:
        args.segment_length = args.num_steps
    if args.segment_length < 1 or args.num_steps % args.segment_length:
        fail(f"--segment-length {args.segment_length} must divide num_steps = {args.num_steps}")
    segments = args.num_envs * args.num_steps // args.segment_length
    if segments % args.num_minibatches:
        where = "num_envs * num_steps / segment_length"
        fail(f"--num-minibatches {args.num_minibatches} must divide the segments, {where} = {segments}")
    batch_size = args.num_envs * args.num_steps
    if args.total_timesteps < batch_size:
        fail(f"--total-timesteps {args.total_timesteps} is less than num_envs * num_steps = {batch_size}, one batch")
    torch.manual_seed(args.seed)
    return envs, torch.device("cuda" if args.cuda else "cpu")


def random_seeds(args, stream, index=0, count=1):
    """`count` seeds for a named stream of the run; neither other streams nor runs with neighbouring seeds share any."""
    stream = ["train", "eval", "evaluate", "resume"].index(stream)
    return [int(s) for s in np.random.SeedSequence([args.seed, stream, index]).generate_state(count)]


@torch.inference_mode()
def evaluate(args, actor, statistics, device, stream, index=0):
    """Mean return, length, success (NaN if not reported) of eval_episodes episodes; actions are sampled as ever."""
    seeds = random_seeds(args, stream, index, args.eval_episodes)
    envs, _ = make_envs(args, len(seeds), statistics)
    obs, _ = envs.reset(seed=seeds)
    episodes, running = [], np.ones(len(seeds), bool)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # training's is left as it was
        torch.manual_seed(seeds[0])
        while running.any():
            _, env_actions = act(actor, obs, envs.single_action_space, device)
            obs, _, terminations, truncations, infos = envs.step(env_actions)
            ended = running & (terminations | truncations)  # an environment's later episodes do not count
            if ended.any():
                episodes += ended_episodes(infos, ended)
                running &= ~ended
    envs.close()
    return np.mean(episodes, axis=0).tolist()


def write_atomically(path, write):
    """Calls write(temporary file) and renames it to `path`, so that `path` is at any moment whole: old or new."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
    temporary.replace(path)


def save_checkpoint(folder, learners, envs, state):
    """Writes all that the next iteration depends on: networks, environments, random streams and `state`."""
    # MuJoCo, Box2D, Atari: pickle would keep their arguments and lose their state
    lossy = any(isinstance(env.unwrapped, gym.utils.EzPickle) for env in getattr(envs.unwrapped, "envs", []))
    checkpoint = {
        "learners": {name: learner.state_dict() for name, learner in learners.items()},
        "envs": None if lossy else cloudpickle.dumps(envs),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
        "state": state,
    }
    write_atomically(folder / "checkpoint.pt", lambda file: torch.save(checkpoint, file))


def load_checkpoint(args, learners, envs, device):
    """Undoes save_checkpoint: restores `learners` and the random streams, returns environments and state."""
    path = Path(args.resume or args.evaluate, "checkpoint.pt")
    if not path.exists():
        fail(f"{path} does not exist: the run was stopped before its first checkpoint, start it again")
    try:  # weights_only=False lets a file run code: load only checkpoints that you trust
        checkpoint = torch.load(path, map_location=device, weights_only=False)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        fail(f"{path} is damaged and cannot be loaded ({type(error).__name__})")
    if checkpoint["learners"].keys() != learners.keys():
        fail(f"{path} was written by another script: it holds {', '.join(checkpoint['learners'])}")
    for name, learner in learners.items():
        learner.load_state_dict(checkpoint["learners"][name])
    torch.set_rng_state(checkpoint["torch_rng"].cpu())
    if checkpoint["cuda_rng"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([rng.cpu() for rng in checkpoint["cuda_rng"]])
    state = checkpoint["state"]
    if checkpoint["envs"] is not None:
        envs = cloudpickle.loads(checkpoint["envs"])
    envs.statistics = state["statistics"]
    if checkpoint["envs"] is None:  # begin new episodes
        state["obs"], _ = envs.reset(seed=random_seeds(args, "resume", state["iteration"], args.num_envs))
    return envs, state


def open_run(args):
    """Makes the run folder and writes args.json; fails rather than overwrite a run."""
    env_name = args.env_id.split(":")[-1].replace("/", "_")
    folder = Path(args.runs_dir, f"{env_name}__{args.exp_name}__{args.chain_length}__{args.seed}")
    if (folder / "checkpoint.pt").exists():
        fail(f"{folder} holds a run already: continue it with --resume {folder}, remove it, or change --exp-name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "args.json", lambda file: file.write(json.dumps(vars(args), indent=2).encode()))
    except OSError as error:
        fail(f"cannot write the run folder {folder}: {error.strerror}")
    return folder


class Run:
    """What surrounds the algorithm: run folder, evaluations, checkpoints, logs, progress bar, Ctrl-C.

    `state` is what a checkpoint holds beside learners, environments and random streams: iterations done, seconds
    elapsed, the observation to go on from, Adam's state, episodes since the last evaluation, rows of progress.csv, the
    environments' statistics.
    """

    def __init__(self, args, envs, learners, adam, device):
        self.args, self.learners, self.device = args, learners, device
        self.batch_size = args.num_envs * args.num_steps
        self.num_iterations = args.total_timesteps // self.batch_size
        if args.resume:
            self.folder = Path(args.resume)
            self.envs, self.state = load_checkpoint(args, learners, envs, device)
        else:
            self.folder, self.envs = open_run(args), envs
            obs, _ = envs.reset(seed=random_seeds(args, "train", count=args.num_envs))
            self.state = {"iteration": 0, "elapsed": 0.0, "obs": obs, "adam": adam, "episodes": [], "rows": []}
            self.state["statistics"] = envs.statistics
        if args.track:  # WANDB_PROJECT and WANDB_ENTITY choose where it goes
            wandb = importlib.import_module("wandb")
            wandb.init(name=self.folder.name, config=vars(args), sync_tensorboard=True, save_code=True)
        self.writer = SummaryWriter(self.folder, purge_step=self.global_step + 1)
        table = "\n".join(f"|{name}|{value}|" for name, value in vars(args).items())
        self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")
        self.stop = []  # signals received: the iteration under way is finished, nothing is lost
        self.handlers = {signum: signal.signal(signum, self.request_stop) for signum in (signal.SIGINT, signal.SIGTERM)}
        self.start_time = time.perf_counter() - self.state["elapsed"]
        total = self.num_iterations * self.batch_size
        self.bar = tqdm(initial=self.global_step, total=total, unit="step", disable=None)

    @property
    def global_step(self):
        return self.state["iteration"] * self.batch_size

    def request_stop(self, signum, _):
        self.stop.append(signum)
        signal.signal(signum, self.handlers[signum])  # a second one stops at once

    def goes_on(self, diagnose=dict):
        """Evaluates and saves where due: at the start, whenever a multiple of eval_every is passed, at the end.

        diagnose() -> further columns of progress.csv. Returns False at the end; ends the program where a signal asked.
        """
        args, state, step = self.args, self.state, self.global_step
        evaluated = state["rows"][-1]["global_step"] if state["rows"] else -1
        finished = state["iteration"] == self.num_iterations
        due = step // args.eval_every > evaluated // args.eval_every or (finished and step > evaluated)
        if due:
            eval_return, _, eval_success = evaluate(
                args, self.learners["actor"], state["statistics"], self.device, "eval", step
            )
            train_return, _, train_success = np.mean(state["episodes"] or [[math.nan] * 3], axis=0).tolist()
            seconds = time.perf_counter() - self.start_time
            row = {"global_step": step, "eval_return": eval_return, "eval_success": eval_success}
            row |= {"train_return": train_return, "train_success": train_success}
            row |= {"sps": step / seconds, "wall_time": seconds} | diagnose()
            state["episodes"] = []
            state["rows"].append(row)
            lines = [",".join(map(str, line)) + "\n" for line in (row, *(row.values() for row in state["rows"]))]
            write_atomically(self.folder / "progress.csv", lambda file: file.write("".join(lines).encode()))
            self.writer.add_scalar("eval/return", eval_return, step)
            if math.isfinite(eval_success):
                self.writer.add_scalar("eval/success", eval_success, step)
            self.bar.set_postfix_str(f"return {eval_return:.2f}, success {eval_success:.2f}", refresh=False)
        if due or self.stop:
            state["elapsed"] = time.perf_counter() - self.start_time
            save_checkpoint(self.folder, self.learners, self.envs, state)
        if not (finished or self.stop):
            return True
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)
        for resource in (self.bar, self.envs, self.writer):
            resource.close()
        if not finished:
            print(f"stopped at step {step}; continue with: python {Path(__file__).name} --resume {self.folder}")
            sys.exit(128 + self.stop[0])
        last = state["rows"][-1]
        print(f"final evaluation   return {last['eval_return']:.2f}, success {last['eval_success']:.2f}")
        if math.isfinite(last["eval_success"]):
            solved = [row["global_step"] for row in state["rows"] if row["eval_success"] >= 0.95]
            print(f"95 % success       {f'first evaluated at step {solved[0]}' if solved else 'not reached'}")
        print(f"training time      {last['wall_time']:.1f} s, {last['sps']:.0f} steps/s")
        print(f"run folder         {self.folder}")
        return False

    def log(self, losses, episodes, lr):
        """Ends an iteration: counts it and logs it; exit status 1 if a loss or a parameter is not finite."""
        self.state["iteration"] += 1
        self.state["episodes"] += episodes
        bad = [name for name, x in losses.items() if not math.isfinite(x) and name != "explained_variance"]
        parameters = nn.ModuleDict(self.learners).named_parameters()
        bad += [f"parameter {name}" for name, p in parameters if not p.isfinite().all()]
        if bad:  # the last checkpoint stays as it was
            where = f"error: iteration {self.state['iteration']}: {bad[0]} is not finite"
            sys.exit(f"{where}; the last good checkpoint is in {self.folder}")
        sps = self.global_step / (time.perf_counter() - self.start_time)
        scalars = {f"losses/{name}": x for name, x in losses.items()} | {"charts/learning_rate": lr, "charts/SPS": sps}
        if episodes:
            scalars["charts/episodic_return"], scalars["charts/episodic_length"], _ = np.mean(episodes, axis=0)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, self.global_step)
        self.bar.update(self.batch_size)


if __name__ == "__main__":
    main(parse_args())
