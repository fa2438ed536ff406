"""PPO with a meta-learned intrinsic reward, in one file: ppo_vanilla.py plus the method.

An intrinsic reward network (IRN) reads whole episodes with self-attention and gives every step an intrinsic reward. PPO
learns from extrinsic + intrinsic reward. The IRN learns from the gradient of the *extrinsic* objective after PPO's
steps, taken through those steps: while the policy is held, by look-aheads, until episodes that nothing has learned from
are shown to gain; if none is, it is PPO alone. `diff ppo_vanilla.py ppo_metairn.py` shows the method and nothing else.

    python ppo_metairn.py --seed 3                    # Umbrella Length 50, 100k steps: solved, in about 10 seconds
    python ppo_metairn.py --hide-umbrella --chain-length 200 --total-timesteps 200000          # credit alone is missing
    python ppo_metairn.py --env-id CartPole-v1        # any Gymnasium env with a flat Box observation
    python ppo_metairn.py --irn mlp --extrinsic-coef 0         # LIRPG: a per-step reward, and the policy sees no other
    python ppo_metairn.py --resume runs/FOLDER        # go on where a run was stopped, bit for bit
    python ppo_metairn.py --evaluate runs/FOLDER --eval-episodes 1000
    tensorboard --logdir runs

Credit that carries over: a teacher on short episodes, then a student on long ones, where the opposite action is right

    python ppo_metairn.py --hide-umbrella --chain-length 10 --total-timesteps 3000 --held-steps 2000 --seed 3
    python ppo_metairn.py --hide-umbrella --invert-umbrella --chain-length 200 --meta-learning-rate 0 --seed 3
        --irn-from runs/UmbrellaLength-v0__ppo_metairn__10__3

References, beside those of ppo_vanilla.py:
    Zheng, Oh and Singh, "On Learning Intrinsic Rewards for Policy Gradient Methods" (LIRPG), NeurIPS 2018
    Jiang et al., "Self-Attention based Temporal Intrinsic Reward for Reinforcement Learning" (SAIR), CAC 2021
    Zheng et al., "Adaptive Pairwise Weights for Temporal Credit Assignment", AAAI 2022
    Link, Heidmann and Liebig-Schultz, "MetaIRN: Metagradient Based Intrinsic Rewards Via Attention Network", 2025
    Nakanishi, "Scalable-Softmax Is Superior for Attention", 2025
"""

import copy
import importlib.util
import json
import math
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.wrappers.utils import RunningMeanStd
from matplotlib import colormaps
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass
class Args:
    exp_name: str = "ppo_metairn"  # the name of this experiment, part of the run folder's name
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

    # The intrinsic reward
    irn: str = "redistribution"  # moves reward in time; kernel: by elapsed time alone; attention: MetaIRN; mlp: LIRPG
    irn_from: str | None = None  # begin with this network: a run folder or an irn.pt; {seed} stands for this run's seed
    held_steps: int | None = None  # hold the policy until the reward helps; so long at most (default: 1/5 of the run)
    meta_learning_rate: float = 1e-2  # Adam's step size for the intrinsic reward network; 0: it stays as it is
    intrinsic_coef: float = 1.0  # weight of the intrinsic reward in the policy's reward
    extrinsic_coef: float = 1.0  # weight of the extrinsic reward there; 0: only the intrinsic reward is learned from
    outer_batch: str = "held-out"  # of the outer loss: the epoch's next minibatch; same: the inner step's episodes
    outer_gamma: float = 1.0  # discount factor of the outer loss's extrinsic advantage; no end in sight: below 1
    outer_gae_lambda: float = 1.0  # its lambda; both 1: return minus value, far-sighted whatever PPO's own sight is

    @property
    def learns_at_once(self):
        return self.meta_learning_rate > 0 and not self.held_steps


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


class IntrinsicRewardNetwork(nn.Module):
    """r_in for every step of the episodes in a rollout. Four kinds:

    redistribution: moves extrinsic reward in time and creates none. Each step's reward is spread over the steps of its
        episode by weights that sum to 1, so r_in sums to 0 in every episode. No value path, no head: nothing can drift.
        The pairwise weights of Zheng et al. (AAAI 2022) as a zero-sum attention; their logits are scaled by the log of
        the episode's length, so that attention is as sharp on long episodes as on short ones (Nakanishi 2025).
    kernel: the same with weights that depend on the time between the two steps alone, so that it fits any environment.
    attention: self-attention and a linear head (MetaIRN, section 3) over observations, actions, rewards and times.
    mlp: LIRPG's r_in(s_t, a_t), of one step's observation and action.

    All but mlp see the whole episode, earlier and later steps, and nothing else. An episode that the rollout's start or
    end cuts is seen, and its time counted, as far as the rollout reaches.
    """

    def __init__(self, obs_dim, action_space, kind, dim=32):
        super().__init__()
        self.kind = kind
        self.num_actions = int(action_space.n) if isinstance(action_space, gym.spaces.Discrete) else None
        action_dim = self.num_actions or action_space.shape[0]
        self.config = {"kind": kind, "obs_dim": obs_dim, "action_dim": action_dim, "discrete": bool(self.num_actions)}
        if kind == "redistribution":
            self.embed = layer_init(nn.Linear(obs_dim + 3, dim), std=1.0)
            self.query = layer_init(nn.Linear(dim, dim), std=0.1)  # at first the weights are nearly uniform
            self.key = layer_init(nn.Linear(dim, dim), std=1.0)
        elif kind == "kernel":
            self.config = {"kind": kind}
            self.net = nn.Sequential(nn.Linear(1, dim), nn.Tanh(), layer_init(nn.Linear(dim, 1), std=0.01))
            nn.init.normal_(self.net[0].weight, std=3.0)  # features that bend at all times between
            nn.init.uniform_(self.net[0].bias, -3.0, 3.0)
        elif kind == "attention":
            self.embed = layer_init(nn.Linear(obs_dim + action_dim + 2, dim), std=1.0)
            self.qkv = layer_init(nn.Linear(dim, 3 * dim), std=1.0)
            self.out = layer_init(nn.Linear(dim, dim), std=1.0)
            self.head = layer_init(nn.Linear(dim, 1), std=0.01)
        else:
            self.net = make_mlp(obs_dim + action_dim, 1, std=0.01)

    def forward(self, obs, actions, rewards, dones):
        """obs [T, N, obs_dim], actions [T, N] or [T, N, action_dim], rewards and dones [T, N] -> r_in [T, N], weights
        [N, 1, T, T]. Row: the step that is paid, column: the step it is paid for or attends to (mlp: only itself)."""
        T, N = rewards.shape
        if self.num_actions:
            actions = nn.functional.one_hot(actions, self.num_actions).to(rewards.dtype)  # [T, N, num_actions]
        if self.kind == "mlp":
            weights = torch.eye(T, dtype=rewards.dtype, device=rewards.device).expand(N, 1, T, T)
            return self.net(torch.cat([obs, actions], -1)).squeeze(-1), weights
        episode, time = episodes_and_times(dones)  # [T, N]
        same = episode.T[:, :, None] == episode.T[:, None, :]  # [N, T, T] both steps belong to one episode
        if self.kind == "attention":
            x = torch.cat([obs, actions, rewards.unsqueeze(-1), time.log1p().unsqueeze(-1)], -1)  # [T, N, features]
            x = self.embed(x.transpose(0, 1)).tanh()  # [N, T, dim]
            q, k, v = self.qkv(x).chunk(3, -1)  # [N, T, dim] each
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # [N, T, T]
            weights = scores.masked_fill(~same, -math.inf).softmax(-1)
            return self.head(x + self.out(weights @ v)).squeeze(-1).T, weights.unsqueeze(1)
        length = same.sum(-1).T  # [T, N] of the step's episode
        if self.kind == "kernel":
            step = torch.arange(T, dtype=rewards.dtype, device=rewards.device)
            ago = step.unsqueeze(-1) - step  # [source, destination] steps since the destination, negative: until
            scores = self.net((ago.sign() * ago.abs().log1p() / 3).unsqueeze(-1)).squeeze(-1)
        else:
            times = torch.stack([time, length - 1 - time], -1).log1p() / 3  # [T, N, 2] since its start, to its end
            h = torch.cat([obs, rewards.unsqueeze(-1), times], -1)  # [T, N, features]
            h = self.embed(h.transpose(0, 1)).tanh()  # [N, T, dim]
            scores = self.key(h) @ self.query(h).transpose(-1, -2) / math.sqrt(h.shape[-1])  # [N, source, destination]
        scores = scores * (length.T.log() / math.log(10)).unsqueeze(-1)
        weights = scores.masked_fill(~same, -math.inf).softmax(-1)  # [N, T, T] a source's weights sum to 1
        return (rewards.T.unsqueeze(1) @ weights).squeeze(1).T - rewards, weights.transpose(1, 2).unsqueeze(1)


def episodes_and_times(dones):
    """dones [T, N] -> for each step the number of its episode within the rollout, and the steps taken in it before."""
    episode = dones.cumsum(0) - dones
    step = torch.arange(len(dones), dtype=dones.dtype, device=dones.device).unsqueeze(-1)  # [T, 1]
    begins = torch.cat([torch.ones_like(dones[:1]), dones[:-1]])  # [T, N]
    return episode, step - (step * begins).cummax(0).values


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


class Minibatch(NamedTuple):
    """What the inner and the outer step need of n rollouts or segments of them, values from before. All [T, n, ...]."""

    obs: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    terminations: torch.Tensor
    dones: torch.Tensor
    logprobs: torch.Tensor
    r_in: torch.Tensor  # of the IRN
    values: torch.Tensor  # of the mixed critic
    next_values: torch.Tensor
    ext_advantages: torch.Tensor  # by the extrinsic critic
    ext_returns: torch.Tensor


def unflatten(theta, module):
    """theta [P] -> the dict of parameters that functional_call takes"""
    parameters = dict(module.named_parameters())
    parts = theta.split([p.numel() for p in parameters.values()])
    return {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}


def mixed_advantages(irn, data, args):
    """PPO's advantages [T, n] of the mixed reward; data: a Minibatch of whole rollouts. The graph leads to the IRN."""
    learns = args.learns_at_once  # else the IRN stays as it is, and no graph is kept
    r_in = irn(data.obs, data.actions, data.rewards, data.dones)[0] if learns else data.r_in  # [T, n]
    mixed_rewards = args.extrinsic_coef * data.rewards + args.intrinsic_coef * r_in
    ends = data.terminations, data.dones
    return compute_gae(mixed_rewards, data.values, data.next_values, *ends, args.gamma, args.gae_lambda)


def inner_step(actor, theta, adam, mb, advantages, lr, args):
    """The step that ppo_vanilla.py takes, with its graph kept: theta' as a function of the advantages [S, n].

    theta [P]: the actor's parameters; adam: their Adam state. Returns theta', its state and statistics to log.
    """
    if args.norm_adv:
        advantages = normalize(advantages)
    new_logprobs, entropies = torch.func.functional_call(actor, unflatten(theta, actor), (mb.obs, mb.actions))
    loss, stats = policy_loss(new_logprobs, entropies, mb.logprobs, advantages, args.clip_coef, args.ent_coef)
    (grad,) = torch.autograd.grad(loss, theta, create_graph=advantages.requires_grad)
    theta, adam = adam_step(theta, clip_grad_norm(grad, args.max_grad_norm), adam, lr)
    return theta, adam, stats


def outer_loss(actor, theta, mb, args):
    """PPO's loss of the extrinsic advantage at theta' [P]: what the IRN is to lower. A scalar."""
    advantages = normalize(mb.ext_advantages) if args.norm_adv else mb.ext_advantages
    new_logprobs, entropies = torch.func.functional_call(actor, unflatten(theta, actor), (mb.obs, mb.actions))
    return policy_loss(new_logprobs, entropies, mb.logprobs, advantages, args.clip_coef, 0.0)[0]


# Of the held phase
EPISODES = 40  # and half as many environments, before anything is learned: of fewer, the test might see one kind only
META_STEPS = 40  # whenever a rollout comes in
LOOK_AHEAD_STEPS, LOOK_AHEAD_LR = 8, 1e-2  # about as far as one of PPO's updates
STRETCH = 5  # time steps that share a look-ahead, at most
EVIDENCE = 8.0  # standard errors by which others must gain before the policy is let go
MARGIN = 4.0  # times that of PPO alone, which is itself known to one standard error


def redistributed_advantages(irn, batch, args):
    """PPO's advantages [T, n] of the reward that the IRN gives to a Batch [T, n, ...]; there is no critic yet.

    irn None: of the extrinsic reward alone, as it comes.
    """
    zeros = torch.zeros_like(batch.rewards)
    r_in = irn(batch.obs, batch.actions, batch.rewards, batch.dones)[0] if irn else zeros
    mixed_rewards = args.extrinsic_coef * batch.rewards + args.intrinsic_coef * r_in
    return compute_gae(mixed_rewards, zeros, zeros, batch.terminations, batch.dones, args.gamma, args.gae_lambda)


def look_ahead_gains(actor, theta, irn, inner, outer, args):
    """What the outer episodes gain when PPO learns from the reward that the IRN gives to the inner ones: [n_outer].

    inner and outer: Batch [T, n, ...] of environments under the policy theta [P]. PPO takes LOOK_AHEAD_STEPS full-batch
    steps on the inner ones; the gain is its surrogate on the outer ones, summed over time. The graph leads to the IRN.
    Inside and outside, advantages are of the redistributed reward. It is the extrinsic return, of which redistribution
    neither adds nor takes any, paid where the IRN says that it was earned. Paid to all steps, it would drown what the
    right one gains in the noise of the others.
    Each stretch of up to STRETCH steps has a look-ahead of its own, from theta. All steps share one policy network: in
    a common look-ahead each would be judged by the noise of all. A kernel is the same at all steps: it has one, of all.
    """
    T = len(inner.rewards)
    stretch = T if args.irn == "kernel" else max(n for n in range(1, STRETCH + 1) if T % n == 0)
    vmap = torch.func.vmap
    call = vmap(lambda theta, *x: torch.func.functional_call(actor, unflatten(theta, actor), x))

    def cut(x):  # [T, n, ...] -> [S, stretch * n, ...] for S stretches
        return x.unflatten(0, (-1, stretch)).flatten(1, 2)

    theta = theta.repeat(T // stretch, 1)  # [S, P]
    adam, inner_advantages = new_adam(theta), cut(redistributed_advantages(irn, inner, args))
    if args.norm_adv:
        inner_advantages = vmap(normalize)(inner_advantages)
    logprobs, outer_logprobs = [actor(cut(x.obs), cut(x.actions))[0].detach() for x in (inner, outer)]
    for _ in range(LOOK_AHEAD_STEPS):
        new_logprobs, entropies = call(theta, cut(inner.obs), cut(inner.actions))
        loss, _ = policy_loss(new_logprobs, entropies, logprobs, inner_advantages, args.clip_coef, args.ent_coef)
        (grad,) = torch.autograd.grad(loss * len(theta), theta, create_graph=True)  # a mean over stretches made a sum
        grad = vmap(clip_grad_norm, (0, None))(grad, args.max_grad_norm)
        theta, adam = adam_step(theta, grad, adam, LOOK_AHEAD_LR)
    ratio = (call(theta, cut(outer.obs), cut(outer.actions))[0] - outer_logprobs).exp()
    outer_advantages = normalize(redistributed_advantages(irn, outer, args))  # [T, n_outer]
    gains = (ratio - 1) * cut(outer_advantages)  # [S, stretch * n_outer]
    return gains.unflatten(1, (stretch, -1)).sum((0, 1))


def learn_from_held(actor, theta, irn, eta, held, args):
    """Learns the IRN, parameters eta, from episodes of the untouched policy and tests it on others: statistics to log.

    held: Batch [T, N, ...]. Three fifths of the environments are learned from; each meta step draws up to 20 of them
    for the inner episodes and as many for the outer ones. The others are the test: `evidence` is their mean gain over
    its standard error, `ppo_evidence` the same where PPO learns from the extrinsic reward alone.
    """

    def gains(irn, *environments):  # inner and outer
        batches = [Batch(*(x[:, envs] for x in held)) for envs in environments]
        return look_ahead_gains(actor, theta, irn, *batches, args)

    def test(irn):
        x = gains(irn, learned[:20], tested).detach()  # [2 * N // 5]
        return (x.mean() / (x.std() / len(x) ** 0.5 + 1e-8)).item()

    N = held.rewards.shape[1]
    learned, tested = torch.randperm(N).split([N - 2 * N // 5, 2 * N // 5])
    adam, stats = new_adam(eta), []
    for _ in range(META_STEPS):
        meta_loss = -gains(irn, *learned[torch.randperm(len(learned))[:40]].tensor_split(2)).mean()
        meta_loss.backward(inputs=list(irn.parameters()))
        stats.append(torch.stack([meta_loss.detach(), eta.grad.norm()]))
        # Meta-gradients pass through the policy's steps and are smaller than Adam's usual eps of 1e-5
        adam = descend(eta, adam, args.meta_learning_rate, args.max_grad_norm, eps=1e-10)
    losses = dict(zip(["meta_loss", "meta_grad_norm"], torch.stack(stats).mean(0).tolist(), strict=True))
    return losses | {"evidence": test(irn), "ppo_evidence": test(None)}


def main(args):
    check_irn_args(args)
    envs, device = set_up(args)
    obs_dim, action_space = envs.single_observation_space.shape[0], envs.single_action_space
    actor, critic = Actor(obs_dim, action_space).to(device), Critic(obs_dim).to(device)
    ext_critic = copy.deepcopy(critic)
    with torch.random.fork_rng(devices=[]):  # so that the rollouts draw the numbers that ppo_vanilla.py draws
        irn = IntrinsicRewardNetwork(obs_dim, action_space, args.irn).to(device)
    if args.irn_from and not (args.resume or args.evaluate):
        load_irn(args.irn_from.replace("{seed}", str(args.seed)), irn, device)
    learners = {"actor": actor, "critic": critic, "ext_critic": ext_critic, "irn": irn}
    theta, phi, ext_phi, eta = [flat_parameters(learner) for learner in learners.values()]
    adam = {name: new_adam(p) for name, p in zip(learners, (theta, phi, ext_phi, eta), strict=True)}
    if args.evaluate:
        _, state = load_checkpoint(args, learners, envs, device)
        eval_return, _, eval_success = evaluate(args, actor, state["statistics"], device, "evaluate")
        print(f"{args.eval_episodes} episodes: return {eval_return:.3f}, success {eval_success:.3f}")
        return
    initial_eta = eta.detach().clone()  # what the held phase begins with
    run = Run(args, envs, learners, adam, device)
    adam = run.state["adam"]  # with --resume that of the checkpoint
    run.state.setdefault("held", [] if args.held_steps else None)  # rollouts of the untouched policy; None: it moves
    run.state.setdefault("first_update", 0)  # the iteration from which on it moves
    run.state.setdefault("redistributes", True)  # False: without evidence, it is PPO alone
    data, losses = None, {}  # of the iteration before
    while run.goes_on(partial(log_irn, run, irn, data, losses)):
        # Rollout
        batch, run.state["obs"], episodes = rollout(run.envs, actor, run.state["obs"], args, device)

        # Held phase: learn the reward anew from all episodes so far, until others are shown to gain by it
        losses = {}
        if run.state["held"] is not None:
            run.state["held"].append(tuple(batch))
            held = Batch(*(torch.cat(x, dim=1) for x in zip(*run.state["held"], strict=True)))  # [T, all, ...]
            eta.data.copy_(initial_eta)
            if min(held.dones.sum(), 2 * held.dones.shape[1]) >= EPISODES:
                losses = learn_from_held(actor, theta, irn, eta, held, args)
            learned, alone = [losses.get(name, -math.inf) for name in ("evidence", "ppo_evidence")]
            helps = learned > max(EVIDENCE, MARGIN * (alone + 1))
            needless = alone > EVIDENCE  # others gain by what PPO alone learns: it is not credit that is missing
            ends = run.global_step + run.batch_size >= args.held_steps
            if not helps:
                eta.data.copy_(initial_eta)
            if ends or helps or needless:  # from here on the policy moves and the reward stays, if it helps
                run.state |= {"held": None, "first_update": run.state["iteration"], "redistributes": helps}
                what = "learns from the redistributed reward" if helps else "learns alone"
                why = f"(evidence {learned:.1f}, PPO alone {alone:.1f})"
                run.bar.write(f"policy let go      at step {run.global_step + run.batch_size}, {what} {why}")
        with torch.no_grad():
            logprobs, _ = actor(batch.obs, batch.actions)  # [T, N]
            r_in, _ = irn(batch.obs, batch.actions, batch.rewards, batch.dones)  # [T, N]
            r_in = r_in * run.state["redistributes"]
            values, next_values = critic(batch.obs), critic(batch.next_obs)  # [T, N]
            ext_values, ext_next_values = ext_critic(batch.obs), ext_critic(batch.next_obs)  # [T, N]
            outer_horizon = args.outer_gamma, args.outer_gae_lambda
            ext_advantages = compute_gae(
                batch.rewards, ext_values, ext_next_values, batch.terminations, batch.dones, *outer_horizon
            )
            ext_returns = ext_advantages + ext_values
        data = Minibatch(
            batch.obs, batch.actions, batch.rewards, batch.terminations, batch.dones, logprobs, r_in,
            values, next_values, ext_advantages, ext_returns,
        )  # fmt: skip

        if run.state["held"] is not None:
            run.log(losses, episodes, lr=0.0)
            continue

        # Update
        first = run.state["first_update"]
        frac = 1.0 - (run.state["iteration"] - first) / (run.num_iterations - first) if args.anneal_lr else 1.0
        lr = frac * args.learning_rate
        meta = args.learns_at_once
        stats, meta_stats = [], []  # one row [7] per minibatch (frozen: [6]), one row [2] per meta step
        segments = Minibatch(*(cut(x, args.segment_length) for x in data))
        whole = args.segment_length == args.num_steps  # a rollout that is not cut is one segment
        if not meta:
            advantages = cut(mixed_advantages(irn, data, args), args.segment_length)
        for _ in range(args.update_epochs):
            minibatches = torch.randperm(segments.rewards.shape[1]).to(device).chunk(args.num_minibatches)
            for i, mb_segments in enumerate(minibatches):
                # Inner step: PPO on the mixed reward
                mb = Minibatch(*(x[:, mb_segments] for x in segments))
                if meta and not whole:  # the IRN has moved
                    advantages = cut(mixed_advantages(irn, data, args), args.segment_length)
                mb_advantages = mixed_advantages(irn, mb, args) if meta and whole else advantages[:, mb_segments]
                inner_theta, inner_adam, mb_stats = inner_step(actor, theta, adam["actor"], mb, mb_advantages, lr, args)

                # Critics, each on its own return; the extrinsic one serves the outer loss alone
                v_losses = [0.5 * (critic(mb.obs) - (mb_advantages.detach() + mb.values)).square().mean()]
                if meta:
                    v_losses.append(0.5 * (ext_critic(mb.obs) - mb.ext_returns).square().mean())
                (args.vf_coef * sum(v_losses)).backward()
                adam["critic"] = descend(phi, adam["critic"], lr, args.max_grad_norm)
                if meta:
                    adam["ext_critic"] = descend(ext_phi, adam["ext_critic"], lr, args.max_grad_norm)
                stats.append(torch.cat([mb_stats, torch.stack(v_losses).detach()]))

                # Outer step: the IRN on the extrinsic loss at theta', through the inner step
                if meta:
                    held_out = args.outer_batch == "held-out"
                    outer_segments = minibatches[(i + 1) % len(minibatches)] if held_out else mb_segments
                    outer_mb = Minibatch(*(x[:, outer_segments] for x in segments))
                    meta_loss = outer_loss(actor, inner_theta, outer_mb, args)
                    meta_loss.backward(inputs=list(irn.parameters()))
                    meta_stats.append(torch.stack([meta_loss.detach(), eta.grad.norm()]))
                    # Meta-gradients pass through the policy's step and are smaller than Adam's usual eps of 1e-5
                    meta_lr = frac * args.meta_learning_rate
                    adam["irn"] = descend(eta, adam["irn"], meta_lr, args.max_grad_norm, eps=1e-10)

                # Commit theta', without its graph
                theta.data.copy_(inner_theta.data)
                m, v, step = inner_adam
                adam["actor"] = m.detach(), v.detach(), step
            if args.target_kl is not None and mb_stats[3] > args.target_kl:
                break

        # Logging
        names = ["policy_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "value_loss", "ext_value_loss"]
        losses |= dict(zip(names, torch.stack(stats).mean(0).tolist(), strict=meta))
        if meta:
            losses |= dict(zip(["meta_loss", "meta_grad_norm"], torch.stack(meta_stats).mean(0).tolist(), strict=True))
            losses["explained_variance"] = (1 - ext_advantages.var() / ext_returns.var()).item()
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


def check_irn_args(args):
    """Fails, naming the flag, on values of the intrinsic reward's arguments that no run could use."""
    kinds = "redistribution", "kernel", "attention", "mlp"
    check(args, "irn", kinds.__contains__, "be redistribution, kernel, attention or mlp")
    check(args, "outer_batch", ["same", "held-out"].__contains__, "be same or held-out")
    coefs = "meta_learning_rate intrinsic_coef extrinsic_coef"
    check(args, coefs, lambda x: math.isfinite(x) and x >= 0, "be a finite number of at least 0")
    check(args, "outer_gamma outer_gae_lambda", lambda x: 0 <= x <= 1, "lie in [0, 1]")
    check(args, "held_steps", lambda x: x is None or x >= 0, "be at least 0")
    redistributes = args.irn in ("redistribution", "kernel")
    can_hold = redistributes and not args.irn_from and args.meta_learning_rate > 0 and args.num_envs >= 6
    if args.held_steps is None:
        args.held_steps = args.total_timesteps // 5 if can_hold else 0
    if args.held_steps and not can_hold:
        fail("--held-steps needs --irn redistribution or kernel, meta_learning_rate > 0, num_envs >= 6, no --irn-from")
    if args.intrinsic_coef == args.extrinsic_coef == 0:
        fail("--intrinsic-coef and --extrinsic-coef are both 0: the policy would have no reward to learn from")
    if redistributes and args.extrinsic_coef == 0:
        fail("--extrinsic-coef 0 needs --irn attention or mlp: a redistributed reward alone sums to 0 in every episode")
    if args.learns_at_once and args.outer_batch == "held-out" and args.num_minibatches == 1:
        fail("--outer-batch held-out needs num_minibatches of at least 2: one to learn from, one that is held out")


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


INTRINSIC_SCALARS = ["mean", "std", "extrinsic_correlation", "advantage_share", "attention_entropy"]


def load_irn(path, irn, device):
    """Copies into `irn` the network of a run folder or an irn.pt. Such a file holds tensors and cannot run code."""
    path = Path(path, "irn.pt") if Path(path).is_dir() else Path(path)
    try:
        network = torch.load(path, map_location=device, weights_only=True)
        if not all(p.isfinite().all() for p in network["parameters"].values()):
            raise ValueError
        for name, value in irn.config.items():
            if network["config"].get(name) != value:
                fail(f"--irn-from {path}: its network has {name} {network['config'].get(name)}, this run needs {value}")
        irn.load_state_dict(network["parameters"])
    except (FileNotFoundError, PermissionError) as error:
        fail(f"--irn-from {path}: {error.strerror}")
    except Exception:  # what a damaged file raises depends on where it is damaged
        fail(f"--irn-from {path} is damaged, or not an irn.pt that a run of this script wrote")


@torch.no_grad()
def diagnose(irn, data, args, redistributes=True):
    """What the intrinsic reward does on one rollout, all of whose environments `data` holds: scalars and arrays.

    Scalars (INTRINSIC_SCALARS): mean and standard deviation of r_in; its correlation with the extrinsic reward; the
    part of the mixed advantage's variance that comes from r_in (covariance over variance); attention entropy in nats.
    Arrays, by time in the episode, NaN where no episode is that long: r_in_mean and first_step_attention, [T] (what an
    episode's first step is paid for or attends to, mean over episodes); and attention_map [L, L] of environment 0's
    first episode, of L steps (row: the step that is paid).
    """
    r_in, attention = irn(data.obs, data.actions, data.rewards, data.dones)  # [T, N], [N, 1, T, T]
    r_in = r_in * redistributes  # False: PPO learns alone
    attention = attention.squeeze(1)  # [N, T, T]
    episode, time = (x.T for x in episodes_and_times(data.dones))  # [N, T]
    zeros = torch.zeros_like(r_in)
    gae_args = data.terminations, data.dones, args.gamma, args.gae_lambda
    in_advantages = compute_gae(args.intrinsic_coef * r_in, zeros, zeros, *gae_args)
    ex_advantages = compute_gae(args.extrinsic_coef * data.rewards, data.values, data.next_values, *gae_args)
    covariance = torch.cov(torch.stack([in_advantages, in_advantages + ex_advantages]).flatten(1))
    correlation = torch.corrcoef(torch.stack([r_in, data.rewards]).flatten(1))[0, 1]
    share = covariance[0, 1] / covariance[1, 1]
    entropy = -attention.xlogy(attention).sum(-1).mean()
    scalars = torch.stack([r_in.mean(), r_in.std(), correlation, share, entropy]).tolist()
    of_first_step = (attention * (time == 0).unsqueeze(-1)).sum(1)  # [N, T]: an episode's attention is 0 in all others
    T, times = len(r_in), time.flatten().long()
    sums = [times.bincount(x.flatten().double(), T) for x in (r_in.T, of_first_step)]  # [T] each
    r_in_mean, first_step_attention = torch.stack(sums) / times.bincount(minlength=T)
    length = int((episode[0] == 0).sum())
    arrays = {"r_in_mean": r_in_mean, "first_step_attention": first_step_attention}
    arrays["attention_map"] = attention[0, :length, :length]
    return dict(zip(INTRINSIC_SCALARS, scalars, strict=True)), {k: x.cpu().numpy() for k, x in arrays.items()}


def log_irn(run, irn, data, losses):
    """What the intrinsic reward did in the last iteration, as columns of progress.csv (NaN before the first).

    Its profiles over the episode go to intrinsic.npz and, as pictures, to TensorBoard.
    """
    scalars = dict.fromkeys(INTRINSIC_SCALARS, math.nan)
    if data is not None:
        scalars, arrays = diagnose(irn, data, run.args, run.state["redistributes"])
        for name, value in scalars.items():
            run.writer.add_scalar(f"intrinsic/{name}", value, run.global_step)
        credit = run.state.setdefault("credit", {"global_step": [], "r_in_mean": [], "first_step_attention": []})
        credit["global_step"].append(run.global_step)
        credit["attention_map"] = arrays["attention_map"]
        for name in ("r_in_mean", "first_step_attention"):
            credit[name].append(arrays[name])
            arrays[name] = np.stack(credit[name], axis=1)  # a row for each time, a column for each evaluation
        write_atomically(run.folder / "intrinsic.npz", lambda file: np.savez_compressed(file, **credit))
        for name, values in arrays.items():
            run.writer.add_image(f"intrinsic/{name}", heat_map(values), run.global_step, dataformats="HWC")
    network = {"config": irn.config, "parameters": irn.state_dict()}
    write_atomically(run.folder / "irn.pt", lambda file: torch.save(network, file))
    columns = {f"intrinsic_{name}": value for name, value in scalars.items()}
    return columns | {name: losses.get(name, math.nan) for name in ("meta_loss", "meta_grad_norm")}


def heat_map(values):
    """values [rows, columns] -> RGB image for TensorBoard, lowest value dark, at least 200 pixels wide and high"""
    values = values[~np.isnan(values).all(1)]  # times that no episode reaches
    low, high = np.nanmin(values), np.nanmax(values)
    image = colormaps["viridis"](np.nan_to_num((values - low) / max(high - low, 1e-12)))[..., :3]  # [rows, columns, 3]
    return image.repeat(-(-200 // image.shape[0]), axis=0).repeat(-(-200 // image.shape[1]), axis=1)


if __name__ == "__main__":
    main(parse_args())
