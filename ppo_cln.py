"""CLN: PPO with a policy that is conditioned on the intrinsic reward it learns from, in one file.

The intrinsic reward is linear in its last layer eta: r_in(s, a) = eta . (h_phi(s, a), 1). Gain and bias of the policy's
last hidden layer are functions of eta, so that the policy can be a *best response*: it changes with eta as is best for
the reward of eta. Two loops follow each rollout. In the reward iterations the policy's weights stay. The gradient of
the *extrinsic* objective reaches eta through gain and bias, and a regression keeps sums of r_in near those of the
extrinsic reward. In the policy iterations eta stays, and PPO learns from r_in. There the same noise is added to eta in
the policy and in the reward, which teaches the policy how to change when eta does.

--terms none --noise 0 --layer none leaves only the regression: a reward for each step that is learned from sums.

Everything else is ppo_vanilla.py, without --compile and --live-bonus: `diff ppo_vanilla.py ppo_cln.py` shows it.

    python ppo_cln.py --env-id Hopper-v5 --normalize --reward-scale 1 --learning-rate 3e-4 --num-envs 1 \\
        --num-steps 2048 --segment-length 1 --num-minibatches 32 --update-epochs 10 --clip-coef 0.2 \\
        --total-timesteps 100000                      # about 2 minutes
    python ppo_cln.py --terms none --noise 0 --layer none --reward-delay 20 --reg-length 20   # regression alone
    python ppo_cln.py --resume runs/FOLDER            # continue a run that was stopped, with the same numbers

References, besides those of ppo_vanilla.py:
    Zhang, Stadie and Ba, "Learning Intrinsic Rewards as a Bi-Level Optimization Problem", UAI 2020
    MacKay et al., "Self-Tuning Networks: Bilevel Optimization of Hyperparameters", ICLR 2019
"""

import copy
import errno
import importlib
import io
import json
import math
import os
import random
import shlex
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple, get_type_hints

import cloudpickle
import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.wrappers.utils import RunningMeanStd
from threadpoolctl import threadpool_limits
from torch import nn
from torch.func import functional_call
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from typeguard import TypeCheckError, check_type


@dataclass
class Args:
    exp_name: str = "ppo_cln"  # name of the experiment, part of the run folder's name
    seed: int = 1  # seed of everything: networks, actions, minibatches, training and evaluation environments
    cuda: bool = False  # train the networks on the GPU; it gains where observations or episodes are long, else it costs
    runs_dir: str = "runs"  # where the run folder is made: RUNS_DIR/{env}__{exp_name}__{chain_length}__{seed}
    resume: str | None = None  # continue the run in this folder, with its options
    evaluate: str | None = None  # train nothing: evaluate the policy in this run folder for --eval-episodes episodes
    eval_every: int = 5_000  # environment steps between two evaluations; each is followed by a checkpoint
    eval_episodes: int = 20  # episodes per evaluation; actions are sampled, as they are in training
    eval_max_steps: int = 10_000  # an evaluation episode is cut after so many steps, and counts with its return so far

    # The task
    env_id: str = "umbrella_env:UmbrellaLength-v0"  # Gymnasium environment with Discrete or flat Box actions
    chain_length: int = 50  # Umbrella only: steps per episode
    n_distractor: int | None = None  # Umbrella only: random bits in the observation; None: the environment's own number
    hide_umbrella: bool = False  # Umbrella only: the observation never shows whether the umbrella was taken
    invert_umbrella: bool = False  # Umbrella only: the opposite of the right first action is right
    reward_delay: int = 1  # the learner gets the summed reward of this many steps at once, or at an episode's end
    normalize: bool = False  # normalize observations and rewards by running statistics, for continuous control
    delay_normalized: bool = False  # with --normalize: delay the normalized rewards; else the delayed are normalized

    # PPO
    total_timesteps: int = 100_000  # environment steps of the whole run
    learning_rate: float = 4e-3  # Adam's step size for actor and critic
    num_envs: int = 20  # parallel environments
    num_steps: int | None = None  # steps per environment and rollout; None: 50; Umbrella: whole episodes, one or more
    anneal_lr: bool = True  # lower the learning rate linearly to 0 over the run
    gamma: float = 0.99  # discount factor of PPO's advantages
    gae_lambda: float = 0.95  # lambda of generalized advantage estimation
    segment_length: int | None = None  # minibatches are made of segments of this many steps; None: of whole rollouts
    num_minibatches: int = 4  # minibatches per epoch; all have the same number of segments
    update_epochs: int = 4  # passes over a rollout per update
    norm_adv: bool = True  # normalize advantages in each minibatch
    clip_coef: float = 0.3  # clipping range of the probability ratio; 0.2 left more failures near the solution
    ent_coef: float = 0.0  # weight of the entropy bonus; Umbrella is learned before exploration runs out
    vf_coef: float = 0.5  # weight of the value loss; it matters only where the critic's gradient is limited
    max_grad_norm: float = 0.5  # gradient-norm limit, for each network on its own
    target_kl: float | None = None  # end an update when the KL divergence of an epoch's last minibatch exceeds this
    reward_scale: float = 0.1  # PPO learns from rewards times this, so that returns are near 1 (logs are not scaled)

    # The intrinsic reward
    layer: Literal["cln", "norm", "none"] = "cln"  # policy's layer norm: gain and bias of eta (cln), free (norm), none
    terms: Literal["15", "15,10,11", "10", "11", "none"] = "15"  # eta follows eq. 15; "15,10,11" is the sum of three
    meta_learning_rate: float = 1e-3  # Adam's step size for the reward, annealed as learning_rate is; 0: it stays
    meta_epochs: int = 1  # N_r, the reward iterations, is this times num_minibatches
    meta_coef: float = 10.0  # lambda: weight of the extrinsic gradient (--terms) against that of the regression
    noise: float = 0.01  # standard deviation of what is added to each number of eta; one draw a minibatch
    eta_scale: float = 100.0  # eta times this enters the layer; times --noise about 1, so that the layer can see noise
    reg_length: int = 32  # K: steps of an episode over which the regression sums; a multiple of reward_delay
    reg_batch: int = 16  # sums in one reward iteration
    data_rollouts: int = 10  # the regression's data are the last so many rollouts
    intrinsic_coef: float = 1.0  # weight of the intrinsic advantage in the advantage that PPO learns from
    extrinsic_coef: float = 0.0  # weight of the extrinsic advantage in it


def layer_init(layer, std=2**0.5, bias_const=0.0):  # shared
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias_const)
    return layer


def make_mlp(inputs, outputs, std):  # shared
    return nn.Sequential(
        layer_init(nn.Linear(inputs, 64)),
        nn.ReLU(),
        layer_init(nn.Linear(64, 64)),
        nn.ReLU(),
        layer_init(nn.Linear(64, outputs), std=std),
    )


class IntrinsicRewardNetwork(nn.Module):
    """r_in(s, a) = eta . (h_phi(s, a), 1): phi has two hidden layers, eta [65] is the last layer's weights and bias."""

    def __init__(self, obs_dim, action_space):
        super().__init__()
        self.num_actions = int(action_space.n) if isinstance(action_space, gym.spaces.Discrete) else None
        *phi, last = make_mlp(obs_dim + (self.num_actions or action_space.shape[0]), 1, std=0.1)
        self.phi = nn.Sequential(*phi)
        self.eta = nn.Parameter(torch.cat([last.weight[0], last.bias]).detach())

    def features(self, obs, actions):
        """obs [..., obs_dim], actions [...] or [..., action_dim] -> (h_phi(s, a), 1) [..., 65]"""
        if self.num_actions:
            actions = nn.functional.one_hot(actions, self.num_actions).to(obs.dtype)  # [..., num_actions]
        return nn.functional.pad(self.phi(torch.cat([obs, actions], -1)), (0, 1), value=1.0)

    def forward(self, obs, actions):
        """obs [..., obs_dim], actions [...] or [..., action_dim] -> r_in [...]"""
        return self.features(obs, actions) @ self.eta


class ConditionalActor(nn.Module):
    """pi(a|s, eta): ppo_vanilla.py's policy with a last hidden layer that is normalized and depends on eta.

    cln: relu(sigmoid(F x + c) * LN(a) + H x + d) with x = eta_scale * eta (Conditional Layer Normalization, Zhang et
    al., eq. 18 to 20). F, H, c, d are 0 at first, so that every dependence on eta is learned. norm: layer normalization
    with free gain and bias. none: relu(a). The actor reads eta from `irn`, which owns it.
    """

    def __init__(self, obs_dim, action_space, irn, layer="cln", eta_scale=100.0):
        super().__init__()
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        self.action_dim = int(action_space.n if self.discrete else action_space.shape[0])
        *body, _, head = make_mlp(obs_dim, self.action_dim, std=0.01)
        self.body, self.head = nn.Sequential(*body), head
        self.irn = (irn,)  # in a tuple, so that the reward's parameters are not the actor's as well
        self.layer, self.eta_scale = layer, eta_scale
        if layer == "cln":
            self.weight = nn.Parameter(torch.zeros(2 * 64, 65))  # F above H
            self.bias = nn.Parameter(torch.zeros(2 * 64))  # c, d
        elif layer == "norm":
            self.gain, self.bias = nn.Parameter(torch.ones(64)), nn.Parameter(torch.zeros(64))
        if not self.discrete:
            self.logstd = nn.Parameter(torch.zeros(self.action_dim))

    def gain_and_bias(self, eta=None):
        """Those [64] of the normalized layer for eta [65], or for the reward's own eta as a constant"""
        if self.layer == "norm":
            return self.gain, self.bias
        eta = self.irn[0].eta.detach() if eta is None else eta
        gain, bias = torch.addmv(self.bias, self.weight, self.eta_scale * eta).chunk(2)
        return gain.sigmoid(), bias

    def net(self, obs, eta=None):
        """obs [..., obs_dim] -> logits or means [..., action_dim]"""
        x = self.body(obs)
        if self.layer != "none":
            x = nn.functional.layer_norm(x, x.shape[-1:], *self.gain_and_bias(eta))
        return self.head(x.relu())

    def noise(self, *shape):
        """What sampling needs, [*shape, action_dim] in numpy: Gumbel noise (Discrete) or standard normal noise (Box)"""
        noise = torch.empty(*shape, self.action_dim)
        return (noise.exponential_().log_().neg_() if self.discrete else noise.normal_()).numpy()

    @torch.no_grad()
    def policy(self):
        """Returns ppo_vanilla.py's act(obs, noise) -> actions, of the present weights and the reward's present eta."""
        layers = self.body[0], self.body[2], self.head
        w1, b1, w2, b2, w3, b3 = (p.cpu().numpy().T for layer in layers for p in layer.parameters())
        std = None if self.discrete else self.logstd.exp().cpu().numpy()
        gain, bias = (None, None) if self.layer == "none" else (x.cpu().numpy() for x in self.gain_and_bias())

        def act(obs, noise):
            x = np.maximum(obs.astype(w1.dtype, copy=False) @ w1 + b1, 0) @ w2 + b2
            if gain is not None:
                x = x - x.mean(-1, keepdims=True)
                x = gain * x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) + bias
            output = np.maximum(x, 0) @ w3 + b3
            return (output + noise).argmax(-1) if self.discrete else output + std * noise

        return act

    def forward(self, obs, actions, eta=None):
        """obs [..., obs_dim], actions [...] or [..., action_dim] -> log-probabilities [...], entropies [...]

        eta [65]: what the policy is conditioned on, if it is not the reward's own.
        """
        output = self.net(obs, eta)
        if self.discrete:
            logprobs = output.log_softmax(-1)  # [..., action_dim]
            return logprobs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)
        logprobs = -0.5 * ((actions - output) / self.logstd.exp()) ** 2 - self.logstd - 0.5 * math.log(2 * math.pi)
        return logprobs.sum(-1), (0.5 + 0.5 * math.log(2 * math.pi) + self.logstd).sum().expand(obs.shape[:-1])


class Critic(nn.Module):  # shared
    """V(s): obs [..., obs_dim] -> [...]"""

    def __init__(self, obs_dim):
        super().__init__()
        self.net = make_mlp(obs_dim, 1, std=1.0)

    def forward(self, obs):
        return self.net(obs).squeeze(-1)


def flat_parameters(module):  # shared
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


class Batch(NamedTuple):  # shared
    """One rollout of T steps in N environments; what followed action t is at index t, not t + 1."""

    obs: torch.Tensor  # [T, N, obs_dim]
    actions: torch.Tensor  # [T, N] integers, or [T, N, action_dim]
    rewards: torch.Tensor  # [T, N] extrinsic, scaled by --reward-scale
    next_obs: torch.Tensor  # [T, N, obs_dim] before any reset
    terminations: torch.Tensor  # [T, N] 1 where next_obs is terminal, else 0
    dones: torch.Tensor  # [T, N] 1 where the episode ended, terminated or truncated, else 0


@torch.no_grad()
def rollout(envs, actor, obs, args, device):  # shared
    """Runs `actor` for num_steps steps in every environment, from obs [N, obs_dim].

    Returns the Batch, the observation to go on from, and the episodes that ended, as (return, length, success).
    """
    act, noise, steps, episodes = actor.policy(), actor.noise(args.num_steps, len(obs)), [], []
    for step_noise in noise:
        actions = act(obs, step_noise)
        following_obs, rewards, terminations, truncations, infos = envs.step(actions)
        next_obs, dones = following_obs, terminations | truncations
        if dones.any():  # following_obs already begins the next episodes: put back what the action led to
            next_obs = following_obs.copy()
            next_obs[dones] = np.stack(infos["final_obs"][dones])
            episodes += ended_episodes(infos, dones)
        steps.append((obs, actions, rewards * args.reward_scale, next_obs, terminations, dones))
        obs = following_obs
    batch = Batch(*(torch.as_tensor(np.stack(x), device=device) for x in zip(*steps, strict=True)))  # [T, N, ...]
    floats = [name for name in Batch._fields if not (name == "actions" and actor.discrete)]
    return batch._replace(**{x: getattr(batch, x).to(torch.get_default_dtype()) for x in floats}), obs, episodes


def compute_gae(rewards, values, next_values, terminations, dones, gamma, gae_lambda):  # shared
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), differentiable in rewards and both values.

    All arguments are [T, N]: values[t] = V(s_t); next_values[t] = V(the state that followed a_t, before any reset);
    terminations[t] = 1 where that state is terminal: its value counts as 0, and may be NaN; dones[t] = 1 where the
    episode ended, terminated or truncated: the recursion A_t = delta_t + gamma * lambda * A_{t+1} stops there. Returns
    advantages [T, N]. The recursion is solved by doubling: log2(T) passes, each of which lets every step see twice as
    far ahead. Raises ValueError when T or N is 0.
    """
    if rewards.numel() == 0:
        raise ValueError(f"compute_gae needs at least one step of one environment, got rewards {tuple(rewards.shape)}")
    next_values = next_values.masked_fill(terminations > 0, 0.0)
    advantages = rewards + gamma * next_values - values  # the deltas: each step sees itself
    decay = gamma * gae_lambda * (1 - dones)  # [T, N] weight of what lies `reach` steps ahead; 0 past an episode's end
    reach = 1
    while reach < len(rewards):
        ahead, beyond = advantages[reach:], advantages[-reach:]  # the last `reach` steps see the rollout's end already
        seen = (decay[: len(ahead)] * ahead).masked_fill(decay[: len(ahead)] == 0, 0.0)  # 0 * NaN would be NaN
        advantages = torch.cat([advantages[:-reach] + seen, beyond])
        decay = decay[:-reach] * decay[reach:]
        reach *= 2
    return advantages


def cut(x, length):  # shared
    """x [T, N, ...] -> [length, N * T / length, ...], each environment's steps cut into segments"""
    return x.transpose(0, 1).unflatten(1, (-1, length)).flatten(0, 1).transpose(0, 1)


def normalize(advantages):  # shared
    std, mean = torch.std_mean(advantages)
    return (advantages - mean) / (std + 1e-8)


def policy_loss(new_logprobs, entropies, logprobs, advantages, clip_coef, ent_coef):  # shared
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


def clip_grad_norm(grad, max_norm):  # shared
    """grad [..., P] scaled to norms of at most max_norm, as nn.utils.clip_grad_norm_ does but differentiable"""
    return grad * (max_norm / (torch.linalg.vector_norm(grad, dim=-1, keepdim=True) + 1e-6)).clamp(max=1.0)


def adam_step(theta, grad, adam, lr, beta1=0.9, beta2=0.999, eps=1e-5):  # shared
    """One step of torch.optim.Adam from theta [P], differentiable in all it is given -> new theta, new state.

    adam: (first moment [P], second moment [P], number of steps taken). The second moment is kept off zero, where the
    root has no derivative: a parameter whose gradients have all been exactly 0 (a weight of an input that always
    reads 0) would turn a gradient through this step into NaN.
    """
    m, v, step = adam
    step = step + 1
    m = m.lerp(grad, 1 - beta1)
    v = torch.addcmul(beta2 * v, grad, grad, value=1 - beta2)
    root = (v / (1 - beta2**step)).clamp_min(torch.finfo(v.dtype).tiny).sqrt()
    return theta - lr / (1 - beta1**step) * m / (root + eps), (m, v, step)


def new_adam(theta):  # shared
    return torch.zeros_like(theta.data), torch.zeros_like(theta.data), 0


@torch.no_grad()
def descend(theta, adam, lr, max_grad_norm, eps=1e-5):  # shared
    """Takes an Adam step from theta [P] along its clipped gradient, in place, and zeroes the gradient -> new state."""
    new_theta, adam = adam_step(theta, clip_grad_norm(theta.grad, max_grad_norm), adam, lr, eps=eps)
    theta.copy_(new_theta)
    theta.grad.zero_()
    return adam


def unflatten(theta, module):  # shared
    """theta [P] -> the dict of parameters that functional_call takes"""
    parameters = dict(module.named_parameters())
    parts = theta.split([p.numel() for p in parameters.values()])
    return {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}


def noisy(eta, args):
    return eta + args.noise * torch.randn(len(eta)).to(eta.device) if args.noise else eta


@torch.no_grad()
def intrinsic_gae(irn, batch, values, next_values, args):
    """G [T, N, 65] and B [T, N], such that the advantages of r_in at any eta and the present phi are G eta + B.

    GAE is linear in the rewards, and these are linear in eta: G is what it makes of the features, B of the values.
    """
    features = irn.features(batch.obs, batch.actions)  # [T, N, 65]
    zeros, ends = torch.zeros_like(features), (batch.terminations, batch.dones)
    G = compute_gae(features, zeros, zeros, *(x.unsqueeze(-1) for x in ends), args.gamma, args.gae_lambda)
    return G, compute_gae(torch.zeros_like(values), values, next_values, *ends, args.gamma, args.gae_lambda)


def mixed_advantages(ext_advantages, G, B, eta, args):
    """What PPO learns from at eta, normalized over the minibatch: of one shape with ext_advantages"""
    advantages = args.extrinsic_coef * ext_advantages + args.intrinsic_coef * (G @ eta + B)
    return normalize(advantages) if args.norm_adv else advantages


def extrinsic_loss(actor, theta, adam, eta, mb, next_mb, lr, args):
    """-J_ex, a scalar, with a graph to eta [65] through what --terms names (Zhang et al., eq. 15, 10 and 11).

    15: PPO's loss of the extrinsic advantage on mb at pi(a|s, eta), theta constant; the graph passes through the layer.
    With 10 or 11 it is the loss on next_mb at theta', PPO's step from theta on mb. 10: through the policy in that step.
    11: through the intrinsic advantages in it, as in LIRPG, but to the reward's last layer alone: phi follows only the
    regression. 15 is then eq. 9: through the policy at theta'.
    mb, next_mb: obs, actions, logprobs, ext_advantages, and with 10 or 11 also G and B; theta [P]; adam: its state.
    """
    eta_of = {term: eta if term in args.terms.split(",") else eta.detach() for term in ("15", "10", "11")}
    if args.terms == "15":
        theta = theta.detach()
    else:
        obs, actions, logprobs, ext_advantages, G, B = mb
        advantages = mixed_advantages(ext_advantages, G, B, eta_of["11"], args)
        new_logprobs, entropies = functional_call(actor, unflatten(theta, actor), (obs, actions, eta_of["10"]))
        loss, _ = policy_loss(new_logprobs, entropies, logprobs, advantages, args.clip_coef, args.ent_coef)
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta, _ = adam_step(theta, clip_grad_norm(grad, args.max_grad_norm), adam, lr)
        mb = next_mb
    obs, actions, logprobs, ext_advantages, *_ = mb
    advantages = normalize(ext_advantages) if args.norm_adv else ext_advantages
    new_logprobs, entropies = functional_call(actor, unflatten(theta, actor), (obs, actions, eta_of["15"]))
    return policy_loss(new_logprobs, entropies, logprobs, advantages, args.clip_coef, 0.0)[0]


def step_numbers(dones, age):
    """The number, from 0, of each step in its episode [T, N], and of what comes next [N]; from dones [T, N].

    age [N]: the number of the first steps. It is not 0 where an episode goes on from the rollout before.
    """
    step = torch.arange(len(dones), device=dones.device).unsqueeze(-1)  # [T, 1]
    began = torch.where(dones[:-1] > 0, step[1:], -age)  # [T - 1, N]
    numbers = step - torch.cat([-age.unsqueeze(0), began]).cummax(0).values
    return numbers, torch.where(dones[-1] > 0, 0, numbers[-1] + 1)


def whole_segments(numbers, dones, length):
    """The segments of T steps in N environments: the indices of their steps in the flat [T * N], and a mask, [n, K].

    A segment is at most `length` steps of one episode. It begins at a multiple of `length` steps since the episode did,
    and ends with the episode, if not before. Those that are cut off at either edge of the T steps are left out. K is
    the length of the longest; the mask is 0 where a segment is shorter. numbers: the steps' numbers in their episodes.
    """
    T, N = dones.shape
    step = torch.arange(T, device=dones.device).unsqueeze(-1)  # [T, 1]
    is_end = (dones > 0) | ((numbers + 1) % length == 0)  # [T, N]
    end = torch.where(is_end, step, T).flip(0).cummin(0).values.flip(0)  # [T, N] the first end from here on
    # Where a resumed run has lost the end of an episode, a new one begins and the numbers do not go on
    whole = (end < T) & (numbers.gather(0, end.clamp(max=T - 1)) - numbers == end - step)
    first, env = torch.nonzero((numbers % length == 0) & whole, as_tuple=True)  # [n] each
    first, last, env = [x.unsqueeze(-1) for x in (first, end[first, env], env)]  # [n, 1] each
    steps = first + torch.arange(int((last - first).max()) + 1 if len(first) else 0, device=dones.device)  # [n, K]
    return torch.min(steps, last) * N + env, (steps <= last).to(dones.dtype)


def regression_loss(irn, obs, actions, rewards, mask):
    """Squared difference of segments' sums of r and of r_in (Zhang et al., eq. 21). obs [n, K, obs_dim], others [n, K]

    It is divided by K, the length of the longest segment, which the paper does not do.
    """
    return ((rewards - irn(obs, actions)) * mask).sum(1).square().mean() / mask.shape[1]


def cln_update(networks, parameters, adam, held, batch, frac, args):
    """Algorithm 1 of Zhang et al. on one rollout: reward, then policy iterations. Changes parameters and adam in place.

    networks: actor, critic (of r_in), extrinsic critic, intrinsic reward network; parameters: their vectors [P]; adam:
    {name: state}; held: the data set D_r, (obs, actions, rewards, step numbers, dones) of the last rollouts; frac: what
    is left of the learning rates. Returns what is to be logged, means over all minibatches. Unlike the paper's, the
    reward's gradient is limited, as the others are, and phi and eta share the limit.
    """
    actor, critic, ext_critic, irn = networks.values()
    theta, critic_vector, ext_critic_vector, phi_and_eta = parameters
    lr, meta_lr = frac * args.learning_rate, frac * args.meta_learning_rate
    with torch.no_grad():
        logprobs, _ = actor(batch.obs, batch.actions)  # [T, N]
        values, next_values = critic(batch.obs), critic(batch.next_obs)  # [T, N]
        ext_values, ext_next_values = ext_critic(batch.obs), ext_critic(batch.next_obs)  # [T, N]
        gae = batch.terminations, batch.dones, args.gamma, args.gae_lambda
        ext_advantages = compute_gae(batch.rewards, ext_values, ext_next_values, *gae)
        ext_returns = ext_advantages + ext_values

    def pieces(*data):  # for minibatches, [number of pieces, segment_length, ...] each
        return [cut(x, args.segment_length).transpose(0, 1) for x in data]

    # Reward iterations: phi and eta move, theta stays
    *data_set, numbers, dones = [torch.cat(x) for x in zip(*held, strict=True)]  # [T * rollouts, N, ...] each
    index, mask = whole_segments(numbers, dones, args.reg_length)
    data_set = [x.flatten(0, 1) for x in data_set]  # obs, actions, rewards: [T * rollouts * N, ...] each
    data = pieces(batch.obs, batch.actions, logprobs, ext_advantages)
    meta_stats = []  # one row [4] per minibatch
    learns = args.meta_learning_rate and (args.terms != "none" or len(mask))  # there may be no whole segment at first
    for _ in range(args.meta_epochs if learns else 0):
        minibatches = torch.randperm(len(data[0])).to(theta.device).chunk(args.num_minibatches)
        for mb, next_mb in zip(minibatches, minibatches[1:] + minibatches[:1], strict=True):
            meta_loss, meta_grad, reg_loss = torch.zeros(3, 1, device=theta.device)
            if args.terms != "none":
                if args.terms != "15":
                    data[4:] = pieces(*intrinsic_gae(irn, batch, values, next_values, args))  # of the present phi
                mbs = [[x[i] for x in data] for i in (mb, next_mb)]
                meta_loss = extrinsic_loss(actor, theta, adam["actor"], noisy(irn.eta, args), *mbs, lr, args)
                (meta_grad,) = torch.autograd.grad(args.meta_coef * meta_loss, irn.eta)
            if len(mask):
                sample = torch.randint(len(mask), (args.reg_batch,)).to(theta.device)
                reg_loss = regression_loss(irn, *(x[index[sample]] for x in data_set), mask[sample])
                reg_loss.backward()
            sizes = meta_grad.norm(), irn.eta.grad.norm()
            irn.eta.grad += meta_grad
            # PPO's eps of 1e-5 is not small against the gradients of eq. 10 and 11
            adam["irn"] = descend(phi_and_eta, adam["irn"], meta_lr, args.max_grad_norm, eps=1e-10)
            meta_stats.append(torch.stack([x.detach().squeeze() for x in (meta_loss, reg_loss, *sizes)]))

    # Policy iterations: theta moves, phi and eta stay
    eta = irn.eta.detach()
    G, B = intrinsic_gae(irn, batch, values, next_values, args)
    returns = G @ eta + B + values  # [T, N]
    data = pieces(batch.obs, batch.actions, logprobs, ext_advantages, G, B, returns, ext_returns)
    stats = []  # one row [7] per minibatch
    for _ in range(args.update_epochs):
        order = torch.randperm(len(data[0])).to(theta.device)
        minibatches = zip(*(x[order].chunk(args.num_minibatches) for x in data), strict=True)
        for mb_obs, mb_actions, mb_logprobs, mb_ext_advantages, mb_G, mb_B, mb_returns, mb_ext_returns in minibatches:
            mb_eta = noisy(eta, args)  # of the policy and of the reward alike
            mb_advantages = mixed_advantages(mb_ext_advantages, mb_G, mb_B, mb_eta, args)
            new_logprobs, entropies = actor(mb_obs, mb_actions, mb_eta)
            loss, mb_stats = policy_loss(
                new_logprobs, entropies, mb_logprobs, mb_advantages, args.clip_coef, args.ent_coef
            )
            v_loss = 0.5 * (critic(mb_obs) - mb_returns).square().mean()
            ext_v_loss = 0.5 * (ext_critic(mb_obs) - mb_ext_returns).square().mean()
            (loss + args.vf_coef * (v_loss + ext_v_loss)).backward()
            adam["actor"] = descend(theta, adam["actor"], lr, args.max_grad_norm)
            adam["critic"] = descend(critic_vector, adam["critic"], lr, args.max_grad_norm)
            adam["ext_critic"] = descend(ext_critic_vector, adam["ext_critic"], lr, args.max_grad_norm)
            stats.append(torch.cat([mb_stats, torch.stack([v_loss, ext_v_loss]).detach()]))
        if args.target_kl is not None and mb_stats[3] > args.target_kl:  # the noise and the change of eta count too
            break
    names = ["policy_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "value_loss", "ext_value_loss"]
    losses = dict(zip(names, torch.stack(stats).mean(0).tolist(), strict=True))
    if meta_stats:
        names = ["meta_loss", "reg_loss", "meta_grad_norm", "reg_grad_norm"]  # of eta; the first times --meta-coef
        losses |= dict(zip(names, torch.stack(meta_stats).mean(0).tolist(), strict=True))
    r_in = irn(batch.obs, batch.actions).mean().item()
    losses |= {"intrinsic_reward": r_in, "extrinsic_reward": batch.rewards.mean().item(), "segments": len(mask)}
    return losses | {"explained_variance": (1 - ext_advantages.var() / ext_returns.var()).item()}


@torch.no_grad()
def describe_reward(networks, batch, args):
    """What progress.csv tells of the reward on a rollout.

    rho: when eta changes, does the policy change as the reward's advantages do? The correlation, over steps, of
    log pi(a|s, eta + v) - log pi(a|s, eta) and G v; mean of 16 random v. It is near 0 for a policy that changes in
    other ways, and nan for one that does not depend on eta.
    """
    actor, irn = networks["actor"], networks["irn"]
    zeros = torch.zeros_like(batch.rewards)
    (G, _), r_in = intrinsic_gae(irn, batch, zeros, zeros, args), irn(batch.obs, batch.actions)  # [T, N, 65], [T, N]
    logprobs, _ = actor(batch.obs, batch.actions)

    def correlation(x, y):
        return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item()

    generator = torch.Generator().manual_seed(args.seed)  # the run's own stream goes on as if nothing had been drawn
    directions = (args.noise or 0.01) * torch.randn(16, len(irn.eta), generator=generator).to(irn.eta.device)
    rho = [correlation(actor(batch.obs, batch.actions, irn.eta + v)[0] - logprobs, G @ v) for v in directions]
    columns = {"intrinsic_mean": r_in.mean().item(), "intrinsic_std": r_in.std().item(), "rho": np.mean(rho).item()}
    return columns | {"reward_correlation": correlation(r_in, batch.rewards)}


def main(args):
    """Trains a policy, or evaluates one that was trained (args.evaluate). Returns the run's folder, a Path."""
    args = copy.copy(args)  # what is filled in below is not the caller's
    envs, device = set_up(args)
    check_irn_args(args)
    obs_dim, action_space = envs.single_observation_space.shape[0], envs.single_action_space
    with torch.random.fork_rng(devices=[]):  # so that all else is drawn as ppo_vanilla.py draws it
        torch.manual_seed(args.seed)  # the same start as the actor's
        irn = IntrinsicRewardNetwork(obs_dim, action_space).to(device)
    actor = ConditionalActor(obs_dim, action_space, irn, args.layer, args.eta_scale).to(device)
    critic = Critic(obs_dim).to(device)
    ext_critic = copy.deepcopy(critic)
    networks = nn.ModuleDict({"actor": actor, "critic": critic, "ext_critic": ext_critic, "irn": irn})
    parameters = [flat_parameters(network) for network in networks.values()]
    adam = {name: new_adam(x) for name, x in zip(networks, parameters, strict=True)}
    age = torch.zeros(args.num_envs, dtype=torch.long, device=device)  # [N] steps that the running episodes have had
    run = Run(args, envs, networks, device, adam=adam, held=[], age=age)
    if args.evaluate:
        return run.report()
    state = run.state  # what the loop carries from one iteration to the next; with --resume, that of the checkpoint
    state.age = state.age if run.pickles else age  # --resume has begun new episodes if environments cannot be stored
    with run:
        if run.evaluation_is_due():
            columns = "intrinsic_mean", "intrinsic_std", "rho", "reward_correlation"
            run.evaluate_and_save(**dict.fromkeys(columns, math.nan))
        while state.iteration < run.num_iterations:
            batch, state.obs, episodes = rollout(run.envs, actor, state.obs, args, device)
            numbers, state.age = step_numbers(batch.dones, state.age)
            state.held.append((batch.obs, batch.actions, batch.rewards, numbers, batch.dones))
            del state.held[: -args.data_rollouts]
            frac = 1.0 - state.iteration / run.num_iterations if args.anneal_lr else 1.0
            losses = cln_update(networks, parameters, state.adam, state.held, batch, frac, args)
            run.log(losses, episodes, frac * args.learning_rate)
            if run.evaluation_is_due():
                run.evaluate_and_save(**describe_reward(networks, batch, args))
    return run.folder


def check_irn_args(args):
    """Fails, naming the option, on values of the intrinsic reward's options that no run could use."""
    sizes = "meta_learning_rate meta_coef noise eta_scale intrinsic_coef extrinsic_coef"
    check(args, sizes, lambda x: math.isfinite(x) and x >= 0, "be a finite number of at least 0")
    counts = "meta_epochs reg_length reg_batch data_rollouts"
    check(args, counts, lambda x: 1 <= x < 2**31, "be at least 1, and less than 2147483648")
    if args.intrinsic_coef == args.extrinsic_coef == 0:
        fail("--intrinsic-coef and --extrinsic-coef are both 0: PPO would have no reward to learn from")
    if args.meta_learning_rate == args.extrinsic_coef == 0:
        fail("--meta-learning-rate and --extrinsic-coef are both 0: PPO would learn from an untrained reward alone")
    if args.terms == "11" and args.intrinsic_coef == 0:
        fail("--terms 11 goes through the intrinsic advantage: --intrinsic-coef must not be 0")
    if args.layer != "cln" and args.meta_learning_rate and args.terms not in ("11", "none"):
        fail(f"--layer {args.layer} does not depend on eta: --terms {args.terms} needs --layer cln")
    if args.layer != "cln" and args.noise:
        fail(f"--layer {args.layer} does not show the policy the noise in its reward: --noise must be 0")
    if args.terms not in ("15", "none") and args.num_minibatches == 1:
        fail(f"--num-minibatches must be at least 2 with --terms {args.terms}, which needs one after PPO's step")
    if args.reg_length % args.reward_delay and args.meta_learning_rate:
        fail("--reg-length must be a multiple of --reward-delay, so that its sums hold the rewards of their own steps")


# ----------------------------------------------------------------------------------------------------------------------
# Bookkeeping, shared by all scripts: options, environments, run folder. Nothing below this line learns.
# ----------------------------------------------------------------------------------------------------------------------


def fail(message):
    """Ends the program because of something that the user can correct: one line, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def parse_args():
    """The options from the command line. With --resume or --evaluate, those of the run folder are the defaults."""
    args = tyro.cli(Args, description=__doc__)
    if args.resume or args.evaluate:
        args = tyro.cli(Args, description=__doc__, default=stored_args(args))
        args.complete = True  # not an option: set_up need not look for what was chosen
    return args


def stored_args(args):
    """The options in the run folder that --resume or --evaluate names."""
    path = Path(args.resume or args.evaluate, "args.json")
    try:
        return check_types(Args(**json.loads(path.read_text())))
    except (OSError, ValueError, TypeError) as error:
        fail(f"{path} does not hold the options of a run of this script: {error}")


def check_types(args):
    for name, kind in get_type_hints(Args).items():
        try:
            check_type(getattr(args, name), kind)
        except TypeCheckError as error:
            fail(f"--{name.replace('_', '-')}: {error}")
    return args


def check(args, names, valid, must):
    """Fails, naming the option, unless each of the options in `names` is None or valid(value)."""
    for name in names.split():
        if (value := getattr(args, name)) is not None and not valid(value):
            fail(f"--{name.replace('_', '-')} must {must}, got {value}")


def set_up(args):
    """Checks the options, fills in those that follow from others, seeds the random streams -> environments, device."""
    if args.resume and args.evaluate:
        fail("--resume and --evaluate exclude each other")
    if args.resume or args.evaluate:
        stored = asdict(stored_args(args))
        if not hasattr(args, "complete"):  # from Python: what is not at its default is what the caller has chosen
            vars(args).update(stored | {name: x for name, x in asdict(args).items() if x != getattr(Args, name)})
        for name in stored.keys() - {"resume", "runs_dir", "cuda"} if args.resume else ():
            if getattr(args, name) != stored[name]:
                fail(f"--{name.replace('_', '-')} is {stored[name]} in {args.resume} and cannot change with --resume")
    check_types(args)
    counts = "eval_every eval_episodes eval_max_steps total_timesteps num_envs num_steps segment_length num_minibatches"
    sizes = "learning_rate clip_coef ent_coef vf_coef target_kl"
    check(args, f"{counts} update_epochs reward_delay", lambda x: x >= 1, "be at least 1")
    check(args, sizes, lambda x: math.isfinite(x) and x >= 0, "be a finite number of at least 0")
    check(args, "max_grad_norm reward_scale", lambda x: math.isfinite(x) and x > 0, "be a finite number above 0")
    check(args, "gamma gae_lambda", lambda x: 0 <= x <= 1, "lie in [0, 1]")
    check(args, "seed", lambda x: 0 <= x < 2**32, "lie in [0, 4294967295]")
    check(args, "exp_name", lambda x: x.isprintable() and x and "/" not in x, "be a printable name without /")
    if args.cuda and not torch.cuda.is_available():
        fail("--cuda: no CUDA device is available; --no-cuda runs on the CPU")
    if args.delay_normalized and not args.normalize:
        fail("--delay-normalized needs --normalize")
    for name in ("n_distractor", "hide_umbrella", "invert_umbrella"):
        if getattr(args, name) not in (None, False) and not is_umbrella(args):
            fail(f"--{name.replace('_', '-')} is for Umbrella, not for --env-id {args.env_id}")
    sys.path.append(os.getcwd())  # so that --env-id my_module:MyEnv-v0 finds a module of the current folder
    envs = make_envs(args, args.num_envs)
    args.chain_length = args.chain_length if is_umbrella(args) else 0
    whole_episodes = args.chain_length * max(1, 50 // max(1, args.chain_length))
    args.num_steps = args.num_steps or whole_episodes or 50
    args.segment_length = args.segment_length or args.num_steps
    batch_size = args.num_envs * args.num_steps
    segments = batch_size // args.segment_length
    if args.num_steps % args.segment_length:
        fail(f"--segment-length {args.segment_length} must divide num_steps = {args.num_steps}")
    if segments % args.num_minibatches:
        where = "num_envs * num_steps / segment_length"
        fail(f"--num-minibatches {args.num_minibatches} must divide the number of segments, {where} = {segments}")
    if args.norm_adv and batch_size == args.num_minibatches:
        fail(f"--num-minibatches {args.num_minibatches} leaves one step a minibatch, and one cannot be normalized")
    if args.total_timesteps < batch_size:
        fail(f"--total-timesteps {args.total_timesteps} is less than num_envs * num_steps = {batch_size}, one rollout")
    torch.set_num_threads(1)  # the fastest for networks this small, and it leaves the other cores to other runs
    threadpool_limits(1, "blas")  # the same for numpy, which is several times as slow if all runs want all cores
    seed_all(args.seed)
    return envs, torch.device("cuda" if args.cuda else "cpu")


def is_umbrella(args):
    return args.env_id.startswith("umbrella_env:")


def make_envs(args, num_envs, statistics=None):
    """Vector environment with SAME_STEP autoreset: no dead transitions, and the true last observation in its info.

    statistics: what an evaluation is to normalize with, and to leave unchanged. Observations of every space that
    gymnasium can flatten become vectors. That also copies them, since some environments reuse one array for all.
    """
    try:
        if is_umbrella(args):
            names = "chain_length", "n_distractor", "hide_umbrella", "invert_umbrella"
            kwargs = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
            envs = gym.make_vec(args.env_id, num_envs, "vector_entry_point", **kwargs)
        else:
            same_step = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
            envs = gym.make_vec(args.env_id, num_envs, "sync", same_step, [gym.wrappers.FlattenObservation])
    except Exception as error:  # an environment may raise anything while it is made
        hint = " (pip install -r requirements-mujoco.txt)" if "mujoco" in str(error).lower() else ""
        fail(f"--env-id {args.env_id}: {type(error).__name__}: {' '.join(str(error).split())}{hint}")
    obs_space, action_space = envs.single_observation_space, envs.single_action_space
    if not isinstance(obs_space, gym.spaces.Box):
        fail(f"--env-id {args.env_id}: observations of {obs_space} cannot be made vectors of one length")
    if not isinstance(action_space, gym.spaces.Discrete) and not (
        isinstance(action_space, gym.spaces.Box) and len(action_space.shape) == 1
    ):
        fail(f"--env-id {args.env_id}: the action space must be Discrete or a flat Box, got {action_space}")
    return LearnersView(gym.wrappers.vector.RecordEpisodeStatistics(envs), args, statistics)


class LearnersView(gym.vector.VectorWrapper):
    """What the learner sees of an environment, and what the environment gets of the learner's actions.

    --reward-delay: rewards are summed, and paid every so many steps and at an episode's end. --normalize: observations
    are shifted and scaled by their running mean and deviation, rewards are divided by the deviation of the discounted
    return, and both are clipped at 10. This is what gymnasium's NormalizeObservation and NormalizeReward do in
    cleanrl/ppo_continuous_action.py, but with one set of statistics for all environments. Rewards are delayed first,
    or normalized first (--delay-normalized), as in Hwhitetooth/lirpg: baselines/ppo2. Actions of a bounded Box are
    scaled from [-1, 1] to its bounds; all are clipped to the Box. Discrete actions count from 0.
    """

    def __init__(self, envs, args, statistics=None):
        super().__init__(envs)
        self.args, self.learns = args, args.normalize and statistics is None
        self.statistics = statistics or (RunningMeanStd(shape=self.single_observation_space.shape), RunningMeanStd())
        space = self.single_action_space
        if isinstance(space, gym.spaces.Box):
            bounded = space.bounded_below & space.bounded_above
            low, high = np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)
            self.center, self.half = (low + high) / 2, (high - low) / 2  # 0 and 1 for [-1, 1], or without bounds

    def view(self, obs, check=True):
        if check and not np.isfinite(obs).all():
            fail(f"--env-id {self.args.env_id}: an observation of the environment is not finite")
        mean, var = self.statistics[0].mean, self.statistics[0].var
        return clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10) if self.args.normalize else obs

    def reset(self, **kwargs):
        obs, infos = self.env.reset(**kwargs)
        self.owed, self.returns, self.steps = np.zeros((3, self.num_envs))  # [N] each, since the episode began
        self.learn(self.statistics[0], obs)
        return self.view(obs), infos

    def learn(self, statistics, x):
        if self.learns:  # one row has no variance, and numpy takes long to say so
            mean, var = (x[0], np.zeros_like(x[0])) if len(x) == 1 else (x.mean(0), x.var(0))
            statistics.update_from_moments(mean, var, len(x))

    def delayed(self, rewards, ended):
        if self.args.reward_delay == 1:
            return rewards
        self.steps += 1
        self.owed += rewards
        rewards = np.where(ended | (self.steps % self.args.reward_delay == 0), self.owed, 0.0)
        self.owed -= rewards
        self.steps[ended] = 0
        return rewards

    def normalized(self, rewards, ended):
        if not self.args.normalize:
            return rewards
        self.returns = self.args.gamma * self.returns + rewards
        self.learn(self.statistics[1], self.returns)
        self.returns[ended] = 0
        return clip(rewards / np.sqrt(self.statistics[1].var + 1e-8), -10, 10)

    def step(self, actions):
        space = self.single_action_space
        if isinstance(space, gym.spaces.Discrete):
            actions = actions + space.start
        else:
            actions = clip(self.center + self.half * actions, space.low, space.high).astype(space.dtype)
        obs, rewards, terminations, truncations, infos = self.env.step(actions)
        if not np.isfinite(rewards).all():
            fail(f"--env-id {self.args.env_id}: a reward of the environment is not finite")
        ended = terminations | truncations
        self.learn(self.statistics[0], obs)
        for change in (self.delayed, self.normalized)[:: -1 if self.args.delay_normalized else 1]:
            rewards = change(rewards, ended)
        for i in np.flatnonzero(ended):  # a terminal observation may be anything, since nothing is learned from it
            infos["final_obs"][i] = self.view(infos["final_obs"][i], check=not terminations[i])
        return self.view(obs), rewards, terminations, truncations, infos


def clip(x, low, high):
    """np.clip, which takes several times as long for a few numbers"""
    return np.minimum(np.maximum(x, low), high)


def ended_episodes(infos, ended):
    """(return, length, success) of each episode that a step ended, `ended` [N] bool; success is NaN if not reported."""
    info = infos["final_info"]
    success = np.where(info.get("_success", False), info.get("success", math.nan), math.nan)
    return np.stack([infos["episode"]["r"], infos["episode"]["l"], success + np.zeros(len(ended))], 1)[ended].tolist()


def random_seeds(args, stream, index=0, count=1):
    """`count` seeds for a named stream of the run. Other streams, and runs with neighbouring seeds, share none."""
    stream = ["train", "eval", "evaluate", "resume"].index(stream)
    return [int(s) for s in np.random.SeedSequence([args.seed, stream, index]).generate_state(count)]


def seed_all(seed):
    """Seeds torch and, for the sake of environments that draw from them, numpy's and Python's global streams."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def random_state():
    """What is drawn from: the scripts draw all their numbers on the CPU, also with --cuda."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def set_random_state(state):
    torch.set_rng_state(state[0].cpu())
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])


def survives_pickling(args):
    """Whether an environment that is pickled goes on from its state (MuJoCo does not), found out by 100 steps of it."""
    before, envs, paths = random_state(), make_envs(args, 1), []
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() - getattr(envs.single_action_space, "start", 0) for _ in range(110)]
    try:
        envs.reset(seed=0)
        for action in actions[:10]:
            envs.step(action)
        copy, now = cloudpickle.loads(cloudpickle.dumps(envs)), random_state()
        for x in (envs, copy):
            set_random_state(now)
            paths.append([np.concatenate([np.ravel(y) for y in x.step(action)[:4]]) for action in actions[10:]])
        return np.array_equal(*paths, equal_nan=True)
    except Exception:  # an environment may raise anything when it is pickled, or stepped after that
        return False
    finally:
        set_random_state(before)
        envs.close()


def write_atomically(path, write):
    """Puts into the file `path` what write(file) writes. The file is whole at any moment: old or new."""
    buffer, temporary = io.BytesIO(), path.with_name(path.name + ".tmp")
    write(buffer)
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # a full disk, say
        temporary.unlink(missing_ok=True)
        raise


class Run:
    """The folder of a run (args.json, progress.csv, checkpoint.pt, TensorBoard's files), evaluations, progress bar.

    `state` is what the training loop carries from one iteration to the next besides networks, environments and random
    streams. A checkpoint holds all of these, so a resumed run ends with the same numbers as one that was never stopped.
    `with run:` closes at its end what the run has opened, and says how to continue a run that was stopped.
    """

    def __init__(self, args, envs, networks, device, **state):
        self.args, self.envs, self.networks, self.device = args, envs, networks, device
        self.batch_size = args.num_envs * args.num_steps
        self.num_iterations = args.total_timesteps // self.batch_size
        self.state = SimpleNamespace(iteration=0, seconds=0.0, episodes=[], rows=[], reports_success=False, **state)
        if args.evaluate:
            self.folder = Path(args.evaluate)
            self.load()
            return
        self.pickles = survives_pickling(args)
        self.folder = self.open_folder()
        if not (args.resume and self.load()):
            self.state.obs, _ = envs.reset(seed=random_seeds(args, "train", count=args.num_envs))
        # The thread that writes TensorBoard's events prints a traceback when a disk is full; one line will say so
        threading.excepthook = lambda x: isinstance(x.exc_value, OSError) or threading.__excepthook__(x)
        try:
            self.writer = SummaryWriter(self.folder, purge_step=self.global_step + 1)
        except OSError as error:
            fail(f"cannot write the run folder {self.folder}: {error.strerror}")
        table = "\n".join(f"|{name}|{value}|" for name, value in asdict(args).items())
        self.writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")
        self.start_time = time.perf_counter() - self.state.seconds
        total = self.num_iterations * self.batch_size
        self.bar = tqdm(initial=self.global_step, total=total, unit="step", disable=None)

    @property
    def global_step(self):
        return self.state.iteration * self.batch_size

    def open_folder(self):
        """Makes the folder of a new run. Locks it until the run ends, so that no second process can use it."""
        args, name = self.args, self.args.env_id.split(":")[-1].replace("/", "_")
        name += f"__{args.exp_name}__{args.chain_length}__{args.seed}"
        folder = Path(args.resume or Path(args.runs_dir, name))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = open(folder / "lock", "w")  # noqa: SIM115
            try:
                fcntl = importlib.import_module("fcntl")
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fail(f"{folder} is in use by another process: wait for its end, or change --exp-name or --seed")
            except (ImportError, OSError):
                print(f"no file locks here: see to it that no other process uses {folder}", file=sys.stderr)
            if (folder / "checkpoint.pt").exists() and not args.resume:
                fail(f"{folder} holds a run: continue it with --resume {folder}, remove it, or change --exp-name")
            if not args.resume:
                text = json.dumps(asdict(args), indent=2).encode()
                write_atomically(folder / "args.json", lambda file: file.write(text))
        except OSError as error:
            fail(f"cannot write the run folder {folder}: {error.strerror}")
        return folder

    def save(self):
        checkpoint = {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "envs": cloudpickle.dumps(self.envs) if self.pickles else None,
            "statistics": self.envs.statistics,
            "random": random_state(),
            "state": self.state,
        }
        write_atomically(self.folder / "checkpoint.pt", lambda file: torch.save(checkpoint, file))

    def load(self):
        """Takes over the checkpoint. Returns False if it is damaged, so that the run has to begin again."""
        args, path = self.args, self.folder / "checkpoint.pt"
        if not path.exists():
            fail(f"{path} does not exist: the run was stopped before its first checkpoint, start it again")
        try:  # weights_only=False lets a file run code: load only checkpoints that you trust
            checkpoint = torch.load(path, map_location=self.device, weights_only=False)
        except (ImportError, PermissionError, MemoryError) as error:
            fail(f"{path} cannot be read here ({type(error).__name__}: {error})")
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            damaged = f"{path} is damaged ({type(error).__name__})"
            progress = self.folder / "progress.csv"
            last_step = progress.read_text().splitlines()[-1].split(",")[0] if progress.exists() else ""
            if args.evaluate or last_step == str(self.num_iterations * self.batch_size):
                fail(f"{damaged}; the run has ended, and progress.csv is whole" if args.resume else damaged)
            path.replace(path.with_name("checkpoint.pt.damaged"))
            print(f"{damaged}: it is now called checkpoint.pt.damaged, and the run begins again", file=sys.stderr)
            return False
        try:
            for name, network in self.networks.items():
                network.load_state_dict(checkpoint["networks"][name])
        except (KeyError, RuntimeError):
            fail(f"{path}: its networks are not those of {Path(__file__).name} on {args.env_id} with these options")
        self.state, self.envs.statistics = checkpoint["state"], checkpoint["statistics"]
        set_random_state(checkpoint["random"])
        if args.resume and checkpoint["envs"] is not None:
            self.envs = cloudpickle.loads(checkpoint["envs"])
        elif args.resume:
            print("new episodes begin, since this environment's state cannot be stored", file=sys.stderr)
            seeds = random_seeds(args, "resume", self.state.iteration, args.num_envs)
            self.state.obs, _ = self.envs.reset(seed=seeds)
        return True

    def log(self, losses, episodes, lr):
        """Ends an iteration: counts it and logs it. Exit status 1 if a loss or a parameter is not finite."""
        self.state.iteration += 1
        self.state.episodes += episodes
        bad = [name for name, x in losses.items() if not math.isfinite(x) and name != "explained_variance"]
        bad += [f"parameter {name}" for name, p in self.networks.named_parameters() if not p.isfinite().all()]
        if bad:  # the last checkpoint stays as it was
            where = f"error: iteration {self.state.iteration}: {bad[0]} is not finite"
            sys.exit(f"{where}; the last good checkpoint is in {self.folder}")
        sps = self.global_step / (time.perf_counter() - self.start_time)
        scalars = {f"losses/{name}": x for name, x in losses.items()} | {"charts/learning_rate": lr, "charts/SPS": sps}
        if episodes:
            scalars["charts/episodic_return"], scalars["charts/episodic_length"], _ = self.means(episodes)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, self.global_step)
        self.bar.update(self.batch_size)

    def means(self, episodes):
        """Mean return, length and success. Once any episode has reported its success, no report means no success."""
        values = np.array(episodes or [[math.nan] * 3])
        self.state.reports_success |= bool(np.isfinite(values[:, 2]).any())
        if episodes and self.state.reports_success:
            values[:, 2] = np.nan_to_num(values[:, 2])
        return values.mean(0).tolist()

    @torch.inference_mode()
    def evaluate(self, stream, index=0):
        """Mean return and success of eval_episodes episodes, and both as text. Actions are sampled, as in training."""
        args, before = self.args, random_state()
        seeds = random_seeds(args, stream, index, args.eval_episodes)
        seed_all(seeds[0])
        envs = make_envs(args, len(seeds), self.envs.statistics)
        obs, _ = envs.reset(seed=seeds)
        actor, episodes, running, step = self.networks["actor"], [], np.ones(len(seeds), bool), 0
        act = actor.policy()
        while running.any() and step < args.eval_max_steps:
            obs, _, terminations, truncations, infos = envs.step(act(obs, actor.noise(len(seeds))))
            ended = running & (terminations | truncations)  # an environment's later episodes do not count
            if ended.any():
                episodes += ended_episodes(infos, ended)
            running, step = running & ~ended, step + 1
        episodes += [(so_far, step, math.nan) for so_far in envs.env.episode_returns[running]]  # those that are cut
        envs.close()
        set_random_state(before)  # training goes on as if nothing had been evaluated
        mean, _, success = self.means(episodes)
        cut = f" ({running.sum()} of {len(seeds)} episodes were cut after {step} steps)"
        return mean, success, self.in_words(mean, success) + cut * bool(running.any())

    def in_words(self, mean, success):
        return f"return {mean:.2f}" + (f", success {success:.2f}" if math.isfinite(success) else "")

    def report(self):
        """Prints an evaluation of the policy in the run folder, which it returns: what --evaluate asks for."""
        print(f"{self.args.eval_episodes} episodes: {self.evaluate('evaluate')[2]}")
        return self.folder

    def evaluation_is_due(self):
        """At the start, whenever a multiple of eval_every has been passed, at the end; not twice at one step."""
        step, rows = self.global_step, self.state.rows
        due = step % self.args.eval_every < self.batch_size or self.state.iteration == self.num_iterations
        return due and not (rows and rows[-1]["global_step"] == step)

    def evaluate_and_save(self, **columns):
        """A row of progress.csv, which ends with the script's own `columns`, and a checkpoint"""
        step, state = self.global_step, self.state
        eval_return, eval_success, text = self.evaluate("eval", step)
        train_return, _, train_success = self.means(state.episodes)
        state.seconds, state.episodes = time.perf_counter() - self.start_time, []
        row = {"global_step": step, "eval_return": eval_return, "eval_success": eval_success}
        row |= {"train_return": train_return, "train_success": train_success}
        row |= {"sps": step / state.seconds, "wall_time": state.seconds} | columns
        state.rows.append(row)
        lines = [",".join(map(str, line)) + "\n" for line in (row, *(row.values() for row in state.rows))]
        write_atomically(self.folder / "progress.csv", lambda file: file.write("".join(lines).encode()))
        for name in ("eval_return", "eval_success"):
            if math.isfinite(row[name]):
                self.writer.add_scalar(name.replace("_", "/"), row[name], step)
        self.bar.set_postfix_str(text, refresh=False)
        if self.bar.disable:  # stderr is no terminal
            print(f"step {step}: {text}", file=sys.stderr)
        self.save()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        for resource in (self.bar, self.envs, self.writer, self.lock):
            try:
                resource.close()
            except OSError as unwritten:
                error = error or unwritten
        if kind is KeyboardInterrupt:
            command = [sys.executable, str(Path(__file__).resolve()), "--resume", str(self.folder.resolve())]
            again = f"continue from the last evaluation: cd {shlex.quote(os.getcwd())} && {shlex.join(command)}"
            stored = (self.folder / "checkpoint.pt").exists()
            print(f"stopped; {again if stored else 'there is no checkpoint yet, so start it again'}")
            sys.exit(130)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # a full disk
            fail(f"cannot write {error.filename or self.folder}: {error.strerror}")
        if kind is None and error:  # while closing
            raise error
        if error is None:
            last = self.state.rows[-1]
            print(f"final evaluation   {self.in_words(last['eval_return'], last['eval_success'])}")
            if math.isfinite(last["eval_success"]):
                solved = [row["global_step"] for row in self.state.rows if row["eval_success"] >= 0.95]
                print(f"95 % success       {f'first evaluated at step {solved[0]}' if solved else 'not reached'}")
            print(f"training time      {last['wall_time']:.1f} s, {last['sps']:.0f} steps/s")
            print(f"run folder         {self.folder}")


if __name__ == "__main__":
    main(parse_args())
