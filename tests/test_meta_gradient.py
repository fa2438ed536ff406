"""The meta-gradient against finite differences and against LIRPG's closed form; the Adam step it goes through."""

import copy
import itertools
import json
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import COMPILES, TINY, roll_out
from torch import nn

import ppo_lirpg as lirpg
import ppo_metairn as m

RESULTS = Path(__file__).parents[1] / "results"
UMBRELLA = "umbrella_env:UmbrellaLength-v0"
KINDS = pytest.mark.parametrize("kind", ["mlp", "tanh", "attention"])


def make_problem(env_id, kind, num_envs=6, num_steps=8, **kwargs):
    """Of ppo_lirpg.py, in the current default dtype: args, the four networks, and a rollout: a Batch [T, N, ...]."""
    options = {"num_envs": num_envs, "num_steps": num_steps, "segment_length": num_steps, "tanh_reward": kind == "tanh"}
    options |= {"irn": "attention" if kind == "attention" else "mlp", "extrinsic_coef": 1.0, "clip_coef": 0.2}
    args = lirpg.Args(env_id=env_id, chain_length=4, n_distractor=1, **options | kwargs)
    torch.manual_seed(0)
    envs = lirpg.make_envs(args, num_envs)
    obs, _ = envs.reset(seed=list(range(num_envs)))
    obs_dim, space = envs.single_observation_space.shape[0], envs.single_action_space
    lirpg.check_irn_args(args, space)
    actor, critic, ext_critic = lirpg.Actor(obs_dim, space), lirpg.Critic(obs_dim), lirpg.Critic(obs_dim)
    irn = lirpg.IntrinsicRewardNetwork(obs_dim, space, args.irn, dim=4, tanh=args.tanh_reward)
    for p in itertools.chain(actor.net[-1].parameters(), irn.parameters()):
        p.data += 0.3 * torch.randn_like(p)  # away from the nearly uniform policy and the nearly constant reward
    networks = nn.ModuleDict({"actor": actor, "critic": critic, "ext_critic": ext_critic, "irn": irn})
    return args, networks, lirpg.rollout(envs, actor, obs, args, "cpu")[0]


def split(batch, *sizes):
    """Batches of so many environments"""
    return [m.Batch(*x) for x in zip(*(x.split(sizes, 1) for x in batch), strict=True)]


def mixed_advantages(networks, batch, args):
    """PPO's advantages of the mixed reward [T, N], with a graph that leads to the intrinsic reward network"""
    values = [networks["critic"](x).detach() for x in (batch.obs, batch.next_obs)]
    r_in = networks["irn"](batch.obs, batch.actions, batch.rewards, batch.dones)
    rewards = args.extrinsic_coef * batch.rewards + args.intrinsic_coef * r_in
    return lirpg.compute_gae(rewards, *values, batch.terminations, batch.dones, args.gamma, args.gae_lambda)


def assert_right_gradient(function, irn):
    """Of function() [] with respect to each weight and bias of the network, by central differences"""
    parameters = list(irn.parameters())
    assert max(x.norm() for x in torch.autograd.grad(function(), parameters)) > 1e-4
    assert torch.autograd.gradcheck(lambda *_: function(), parameters, atol=1e-9, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("env_id", [UMBRELLA, "Pendulum-v1"])
@KINDS
def test_whole_chain_against_finite_differences(float64, kind, env_id, inner_steps):
    """The outer loss after steps on two environments each, from the middle of a run"""
    args, networks, batch = make_problem(env_id, kind, ent_coef=0.01)
    actor = networks["actor"]
    logprobs = actor(batch.obs, batch.actions)[0].detach()
    logprobs += 0.3 * torch.randn_like(logprobs)  # a behaviour policy far enough for some ratios to be clipped
    theta, ext_advantages = lirpg.flat_parameters(actor), torch.randn_like(logprobs)
    first_adam = 0.1 * torch.randn_like(theta), 0.01 * torch.rand_like(theta), 5

    def chain():
        new_theta, adam = theta, first_adam
        for mb, mb_logprobs in list(zip(split(batch, 2, 2, 2), logprobs.split(2, 1), strict=True))[:inner_steps]:
            data = mb.obs, mb.actions, mb_logprobs, mixed_advantages(networks, mb, args)
            new_theta, adam, _ = lirpg.inner_step(actor, new_theta, adam, *data, 0.05, args)
        return lirpg.outer_loss(actor, new_theta, batch.obs, batch.actions, logprobs, ext_advantages, args)

    assert_right_gradient(chain, networks["irn"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_exactly_zero_gives_no_nan(dtype):
    new_theta = torch.ones(3, dtype=dtype)
    adam, eta = lirpg.new_adam(new_theta), torch.tensor(2.0, dtype=dtype, requires_grad=True)
    for _ in range(3):
        new_theta, adam = lirpg.adam_step(new_theta, torch.stack([0 * eta, eta, 1e-30 * eta]), adam, 0.1)
    new_theta.sum().backward()
    assert new_theta.isfinite().all()
    assert new_theta[0] == 1
    assert eta.grad.isfinite()


@pytest.mark.parametrize("kind", ["mlp", "tanh"])
def test_lirpg_closed_form(float64, monkeypatch, kind):
    """Zheng et al. 2018, eq. 10 and 11, sums made means: with one plain gradient step from the policy that acted,
    d J_ex / d eta = alpha lambda sum_t sum_{i >= t} gamma^(i-t) d r_in(s_i, a_i) / d eta
    * <grad log pi(a_t | s_t), grad J_ex(theta')>."""
    alpha, lam, gamma = 0.7, 0.4, 0.9
    args, networks, batch = make_problem(UMBRELLA, kind, num_envs=2)
    actor, irn, steps = networks["actor"], networks["irn"], batch.rewards.numel()
    networks["critic"].net[-1].weight.data.zero_()  # no critic
    logprobs, ext_advantages = actor(batch.obs, batch.actions)[0].detach(), torch.randn_like(batch.rewards)
    vars(args).update(gamma=gamma, gae_lambda=1.0, norm_adv=False, intrinsic_coef=lam)
    args.clip_coef = args.max_grad_norm = 1e9
    monkeypatch.setattr(lirpg, "adam_step", lambda theta, grad, adam, lr: (theta - lr * grad, adam))
    theta, parameters = lirpg.flat_parameters(actor), list(irn.parameters())
    data = batch.obs, batch.actions, logprobs
    new_theta, *_ = lirpg.inner_step(actor, theta, None, *data, mixed_advantages(networks, batch, args), alpha, args)
    ours = torch.autograd.grad(lirpg.outer_loss(actor, new_theta, *data, ext_advantages, args), parameters)

    # The same by hand, one log-probability and one reward at a time
    gradient, policy = partial(torch.autograd.grad, retain_graph=True), list(actor.parameters())
    indices = list(itertools.product(*map(range, batch.rewards.shape)))

    def log_prob_gradients():
        logprobs = actor(batch.obs, batch.actions)[0]
        return {k: torch.cat([g.flatten() for g in gradient(logprobs[k], policy)]) for k in indices}

    before, r_in = log_prob_gradients(), irn(batch.obs, batch.actions, batch.rewards, batch.dones)
    theta.data.copy_(new_theta)
    ratios = (actor(batch.obs, batch.actions)[0].detach() - logprobs).exp()
    grad_j_ex = sum(ext_advantages[k] * ratios[k] * g for k, g in log_prob_gradients().items()) / steps
    expected = [torch.zeros_like(p) for p in parameters]
    for t, n in indices:
        end = next((i for i in range(t, len(r_in)) if batch.dones[i, n]), len(r_in) - 1)
        for i in range(t, end + 1):
            factor = alpha * lam * gamma ** (i - t) * (before[t, n] @ grad_j_ex) / steps
            for total, g in zip(expected, gradient(r_in[i, n], parameters), strict=True):
                total += factor * g
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(-a, b, rtol=1e-9, atol=1e-14)  # the outer loss is -J_ex


@pytest.mark.parametrize("steps", [1, 2, 5, 16, 23])
def test_discounted_sum_is_what_rewards_add_to_gae(float64, steps):
    torch.manual_seed(0)
    rewards, values, next_values = torch.randn(3, steps, 4)
    terminations, more = (torch.rand(steps, 4) < 0.1).double(), torch.randn(steps, 4, requires_grad=True)
    dones = terminations.maximum((torch.rand(steps, 4) < 0.1).double())
    rest = values, next_values, terminations, dones, 0.9, 0.8
    sums = lirpg.DiscountedSum.apply(more, lirpg.doubling_weights(dones, 0.9 * 0.8))
    together, alone = lirpg.compute_gae(rewards + more, *rest), lirpg.compute_gae(rewards, *rest)
    torch.testing.assert_close(sums, together - alone)
    upstream = torch.randn(steps, 4)
    gradients = [torch.autograd.grad(x, more, upstream)[0] for x in (sums, together)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_descend_is_torchs_clipping_and_adam(float64, script, limit):
    torch.manual_seed(0)
    reference, theta = nn.Parameter(torch.ones(50)), nn.Parameter(torch.ones(50))
    optimizer, adam = torch.optim.Adam([reference], eps=1e-7), script.new_adam(theta)
    theta.grad = torch.zeros(50)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = lr = 0.1 / (1 + step)
        reference.grad = torch.randn(50) * (torch.arange(50) > 4) / (1 + step)  # some are always 0, all get small
        theta.grad += reference.grad
        nn.utils.clip_grad_norm_([reference], limit)
        optimizer.step()
        adam = script.descend(theta, adam, lr, limit, eps=1e-7)
        assert not theta.grad.any()
    torch.testing.assert_close(theta, reference, rtol=1e-12, atol=1e-12)


SIZES = [(8, 16, 4, "next"), (8, 4, 4, "same"), (8, 4, 4, "next"), (2, 8, 2, "next"), (1, 4, 2, "next")]
SIZES += [(1, 4, 1, "same")]


def plain_update(networks, batch, frac, args):
    """What lirpg_update does, plainly: advantages of the whole rollout, cut, then selected; optimizers of torch.

    With joint_ext_critic one optimizer descends the sum of the outer and the extrinsic critic's loss, as in ppo2.py of
    LIRPG's authors.
    """
    actor, critic, ext_critic, irn = networks.values()
    theta = lirpg.flat_parameters(actor)
    adam, lr, meta_lr = lirpg.new_adam(theta), frac * args.learning_rate, frac * args.meta_learning_rate
    if args.joint_ext_critic:
        groups = {("critic",): (lr, 1e-5), ("ext_critic", "irn"): (meta_lr, 1e-5)}
    else:
        groups = {("critic",): (lr, 1e-5), ("ext_critic",): (lr, 1e-5), ("irn",): (meta_lr, 1e-10)}
    groups = {names: ([p for x in names for p in networks[x].parameters()], *x) for names, x in groups.items()}
    optimizers = {names: torch.optim.Adam(p, rate, eps=eps) for names, (p, rate, eps) in groups.items()}
    with torch.no_grad():
        logprobs, values = actor(batch.obs, batch.actions)[0], critic(batch.obs)
        ext_values, ext_next_values = ext_critic(batch.obs), ext_critic(batch.next_obs)
    ends = batch.terminations, batch.dones, args.outer_gamma, args.outer_gae_lambda
    ext_advantages = lirpg.compute_gae(batch.rewards, ext_values, ext_next_values, *ends)
    mixed = {"irn": irn, "critic": copy.deepcopy(critic)}  # the critic as it was during the rollout

    def select(x, segments):  # [T, N, ...] -> [segment_length, segments, ...]: environment by environment
        pieces = [piece for n in range(x.shape[1]) for piece in x[:, n].split(args.segment_length)]
        return torch.stack([pieces[i] for i in segments.tolist()], 1)

    def step(names, losses):
        parameters, *_ = groups[names]
        optimizers[names].zero_grad()
        sum(losses[name] for name in names).backward(inputs=parameters)
        nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        optimizers[names].step()

    for _ in range(args.update_epochs):
        minibatches = torch.randperm(args.num_envs * args.num_steps // args.segment_length).chunk(args.num_minibatches)
        for i, mb in enumerate(minibatches):
            advantages = mixed_advantages(mixed, batch, args)
            outer_mb = mb if args.outer_batch == "same" else minibatches[(i + 1) % len(minibatches)]
            data = batch.obs, batch.actions, logprobs
            inner = [select(x, mb) for x in (*data, advantages)]
            outer = [select(x, outer_mb) for x in (*data, ext_advantages)]
            new_theta, adam, _ = lirpg.inner_step(actor, theta, adam, *inner, lr, args)
            returns, ext_returns = advantages.detach() + values, ext_advantages + ext_values
            losses = {"irn": lirpg.outer_loss(actor, new_theta, *outer, args)}
            for name, target in (("critic", returns), ("ext_critic", ext_returns)):
                losses[name] = args.vf_coef * 0.5 * (networks[name](inner[0]) - select(target, mb)).square().mean()
            for names in groups:
                step(names, losses)
            theta.data.copy_(new_theta.detach())
            adam = adam[0].detach(), adam[1].detach(), adam[2]


@pytest.mark.parametrize("sizes", SIZES)
@KINDS
def test_the_update_is_that_of_whole_rollouts(float64, kind, sizes):
    """Though it computes rewards of only a minibatch's environments where it has whole rollouts."""
    options = {"update_epochs": 3, "intrinsic_coef": 0.7, "extrinsic_coef": 0.3, "outer_gamma": 0.9, "ent_coef": 0.01}
    options |= {"joint_ext_critic": kind == "tanh", "max_grad_norm": 0.2}
    options |= dict(zip(("num_envs", "segment_length", "num_minibatches", "outer_batch"), sizes, strict=True))
    args, networks, batch = make_problem("Pendulum-v1", kind, num_steps=16, meta_learning_rate=1e-3, **options)
    batch.dones[[4, 9]], batch.terminations[9] = 1, 1  # one is truncated, one terminated
    expected, before, seen = copy.deepcopy(networks), copy.deepcopy(networks), []
    torch.manual_seed(1)
    plain_update(expected, batch, 0.5, args)
    parameters = [lirpg.flat_parameters(network) for network in networks.values()]
    adam = {name: lirpg.new_adam(x) for name, x in zip(networks, parameters, strict=True)}
    networks["irn"].register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    torch.manual_seed(1)
    lirpg.lirpg_update(networks, parameters, adam, batch, 0.5, args)
    for (name, p), start in zip(expected.named_parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(networks.get_parameter(name), p, rtol=1e-6, atol=1e-6, msg=name)
        assert (p - start).abs().max() > 1e-4, name
    num_envs = args.num_envs // args.num_minibatches if args.segment_length == 16 else args.num_envs
    assert seen == [num_envs] * 3 * args.num_minibatches


@pytest.mark.slow
@pytest.mark.skipif(not COMPILES, reason="torch.compile needs g++, and a path to torch without spaces")
@pytest.mark.parametrize(("kind", "sizes"), [("tanh", SIZES[3]), ("attention", SIZES[0])])
def test_the_compiled_update_is_the_eager_one(float64, kind, sizes):
    sizes = dict(zip(("num_envs", "segment_length", "num_minibatches", "outer_batch"), sizes, strict=True))
    options = {"max_grad_norm": 0.2, "intrinsic_coef": 0.7, "joint_ext_critic": kind == "tanh", "num_steps": 16}
    args, networks, batch = make_problem("Pendulum-v1", kind, **options, **sizes)
    batch.dones[[4, 9]], batch.terminations[9] = 1, 1  # one is truncated, one terminated
    updated = []
    for compiled in (False, True):
        copies = copy.deepcopy(networks)
        parameters = [lirpg.flat_parameters(network) for network in copies.values()]
        adam = {name: lirpg.new_adam(x) for name, x in zip(copies, parameters, strict=True)}
        step = lirpg.compile_step(copies, args) if compiled else lirpg.lirpg_step
        torch.manual_seed(1)
        losses = lirpg.lirpg_update(copies, parameters, adam, batch, 0.5, args, step)
        updated.append((parameters, adam, losses))
    torch.testing.assert_close(*updated, rtol=1e-9, atol=1e-9)


AUTHORS = {"extrinsic_coef": 0.0, "tanh_reward": True, "outer_batch": "same", "joint_ext_critic": True}
AUTHORS |= {"outer_gamma": 0.9, "outer_gae_lambda": 0.8}
OURS = {"extrinsic_coef": 1.0, "tanh_reward": False, "outer_batch": "next", "joint_ext_critic": False}
OURS |= {"outer_gamma": 1.0, "outer_gae_lambda": 1.0}
ENDS = ["--gamma", 0.9, "--gae-lambda", 0.8, "--total-timesteps", 64]
DEFAULTS = [("Pendulum-v1", [], AUTHORS), ("CartPole-v1", [], OURS), ("Pendulum-v1", ["--irn", "attention"], OURS)]
CHOSEN = {"extrinsic_coef": 0.0, "tanh_reward": False, "outer_batch": "next", "joint_ext_critic": False}
CHOSEN |= {"outer_gamma": 0.0, "outer_gae_lambda": 0.5}
FLAGS = [x for name, value in CHOSEN.items() for x in ("--" + name.replace("_", "-"), value)]
DEFAULTS += [("Pendulum-v1", FLAGS, CHOSEN), ("CartPole-v1", FLAGS, CHOSEN)]


@pytest.mark.parametrize(("env_id", "flags", "expected"), DEFAULTS)
def test_defaults_are_the_authors_where_actions_are_continuous(cli, monkeypatch, env_id, flags, expected):
    made, network = [], lirpg.IntrinsicRewardNetwork
    monkeypatch.setattr(lirpg, "IntrinsicRewardNetwork", lambda *x, **y: made.append(network(*x, **y)) or made[-1])
    folder = cli(lirpg, *TINY, *ENDS, "--env-id", env_id, *flags)
    stored = json.loads((folder / "args.json").read_text())
    assert {name: stored[name] for name in expected} == expected
    assert made[0].tanh == expected["tanh_reward"]
    cli(lirpg, "--resume", folder)
    assert json.loads((folder / "args.json").read_text()) == stored


def test_tanh_with_attention_is_refused(refused):
    refused(lirpg, ["--irn", "attention", "--tanh-reward", "True"], "--tanh-reward")


ORACLE = RESULTS / "carry_over" / "oracle.pt"


def held_problem(chain_length=10, num_envs=12, irn_from=None, **kwargs):
    """Episodes of the untouched policy, the umbrella hidden: args, actor, its theta, an IRN, the Batch [T, N, ...]."""
    args = m.Args(chain_length=chain_length, hide_umbrella=True, num_steps=chain_length, **kwargs)
    torch.manual_seed(0)
    envs, actor, batch, _ = roll_out(m, args, num_envs, seed=0)
    irn = m.IntrinsicRewardNetwork(3, envs.single_action_space, args.irn)
    if irn_from:
        m.load_irn(irn_from, irn, "cpu")
    return args, actor, m.flat_parameters(actor), irn, batch


def t_statistic(gains):
    return (gains.mean() / (gains.std() / len(gains) ** 0.5)).item()


@pytest.mark.parametrize(("kind", "used"), [("redistribution", True), ("kernel", True), ("redistribution", False)])
def test_look_ahead_is_ppo_on_each_stretch_alone(float64, kind, used):
    """By a last layer for each stretch of 5 steps (kernel: one), torch's Adam and clipping. Also without IRN"""
    args, actor, _, irn, batch = held_problem(irn=kind)
    inner, outer = split(batch, 5, 7)
    gains = m.look_ahead_gains(actor, irn if used else None, inner, outer, args)
    advantages, expected, scale = [], torch.zeros(7), actor.net[:-1](inner.obs).square().mean().sqrt().item()
    for x in (inner, outer):
        zeros = torch.zeros_like(x.rewards)
        mixed = x.rewards + (irn(x.obs, x.actions, x.rewards, x.dones)[0].detach() if used else zeros)
        advantages.append(m.compute_gae(mixed, zeros, zeros, x.terminations, x.dones, args.gamma, args.gae_lambda))
    for t in (slice(0, 10),) if kind == "kernel" else (slice(0, 5), slice(5, 10)):
        last = copy.deepcopy(actor.net[-1])
        last.weight.data *= scale
        optimizer = torch.optim.Adam(last.parameters(), m.LOOK_AHEAD_LR, eps=1e-5)

        def policy(x, t=t, last=last):
            distribution = torch.distributions.Categorical(logits=last(actor.net[:-1](x.obs[t]).detach() / scale))
            return distribution.log_prob(x.actions[t])

        for _ in range(m.LOOK_AHEAD_STEPS):
            ratio = (policy(inner) - actor(inner.obs[t], inner.actions[t])[0].detach()).exp()
            a = m.normalize(advantages[0][t])
            loss = -torch.min(a * ratio, a * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(last.parameters(), args.max_grad_norm)
            optimizer.step()
        ratio = (policy(outer) - actor(outer.obs[t], outer.actions[t])[0]).exp()
        expected += ((ratio - 1) * m.normalize(advantages[1])[t]).sum(0).detach()
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(gains.detach(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["redistribution", "kernel"])
def test_look_ahead_gradient_against_finite_differences(float64, kind):
    args, actor, theta, irn, batch = held_problem(irn=kind)
    for p in irn.parameters():
        p.data += 0.3 * torch.randn_like(p)
    assert_right_gradient(lambda: m.look_ahead_gains(actor, irn, *split(batch, 6, 6), args).mean(), irn)
    assert torch.equal(theta.grad, torch.zeros_like(theta))  # the policy stays where it is


def test_a_look_ahead_is_finite_where_all_observations_are_0():
    args, actor, _, irn, batch = held_problem()
    blind = batch._replace(obs=torch.zeros_like(batch.obs))
    gains = m.look_ahead_gains(actor, irn, *split(blind, 6, 6), args)
    gains.mean().backward()
    assert gains.isfinite().all()
    assert all(p.grad.isfinite().all() for p in irn.parameters() if p.grad is not None)


def test_the_credit_that_is_right_gains_and_no_other_does():
    """40 episodes of 50 steps to learn from, 40 to test. What a wrong credit gains is chance, a few standard errors."""
    args, actor, theta, irn, batch = held_problem(50, 80, ORACLE)
    gains = partial(m.look_ahead_gains, actor, irn, *split(batch, 40, 40), args)
    assert t_statistic(gains()) > m.EVIDENCE
    irn.embed.weight.data[0, 4] *= -1  # h[0] is then 1 at the end of an episode: each reward goes to its last step
    irn.embed.weight.data[0, 3 + 1], irn.embed.weight.data[0, 3 + 2] = 0, -100
    assert abs(t_statistic(gains())) < 4


def test_a_kernel_of_the_frozen_phase_finds_which_steps_have_earned():
    """What actions earn in 5 steps is paid 2 steps later, which lambda = 0 never reaches. Chance: 5 of 60 steps."""
    args = m.Args(irn="kernel", gae_lambda=0.0, meta_learning_rate=3e-2)
    torch.manual_seed(0)
    space = m.gym.spaces.Box(-1, 1, (1,))
    actor, irn = m.Actor(1, space), m.IntrinsicRewardNetwork(1, space, "kernel")
    eta = m.flat_parameters(irn)
    obs = torch.randn(60, 100, 1)
    actions, dones = torch.normal(actor.net(obs), 1.0).detach(), torch.zeros(60, 100)
    rewards = torch.zeros(60, 100)
    rewards[6::5] = (obs * actions).squeeze(-1).unflatten(0, (12, 5)).sum(1)[:11]
    losses = m.learn_from_held(actor, irn, eta, m.Batch(obs, actions, rewards, obs, dones, dones), args)
    weights = irn(obs, actions, rewards, dones)[1][0, 0, :, 36]  # [60] where a reward goes that is paid at step 36
    assert losses["evidence"] > 4 > 2 > abs(losses["ppo_evidence"])  # 5.2 to 10.0 with seeds 0 to 5
    assert weights[30:35].sum() > 0.7  # 0.82 to 0.88


def test_evidence_is_of_environments_that_nothing_has_learned_from(monkeypatch):
    args, actor, theta, irn, batch = held_problem(2, 10)
    batch.obs[:] = torch.arange(10.0).unsqueeze(-1)  # so that an environment tells its number
    calls, look_ahead_gains = [], m.look_ahead_gains

    def recorded_gains(actor, irn, inner, outer, args):
        gains = look_ahead_gains(actor, irn, inner, outer, args)
        calls.append((irn, inner.obs[0, :, 0].tolist(), outer.obs[0, :, 0].tolist(), gains))
        return gains

    monkeypatch.setattr(m, "look_ahead_gains", recorded_gains)
    losses = m.learn_from_held(actor, irn, m.flat_parameters(irn), batch, args)
    *learning, (last, _, tested, gains), (alone, _, tested_alone, gains_alone) = calls
    assert (last, alone) == (irn, None)
    assert len(tested) == 4
    assert tested == tested_alone
    assert losses["evidence"] == pytest.approx(t_statistic(gains), rel=1e-5)
    assert losses["ppo_evidence"] == pytest.approx(t_statistic(gains_alone), rel=1e-5)
    assert len(learning) == m.META_STEPS
    for _, inner, outer, _ in learning:
        assert len(inner) == len(outer) == 3
        assert sorted(inner + outer + tested) == list(range(10))
    assert len({tuple(inner) for _, inner, *_ in learning}) > m.META_STEPS / 2  # new halves each time


def test_the_control_deals_the_outer_rewards_out_anew(monkeypatch):
    """It changes nothing else; and the right credit then gains nothing."""
    control = runpy.run_path(str(RESULTS / "umbrella" / "tuned" / "shuffled.py"))["shuffled_gains"]
    args, actor, theta, irn, batch = held_problem(50, 80, ORACLE)
    inner, outer = split(batch, 40, 40)
    outer.rewards[0] = torch.arange(40.0) / 1e6  # so that an episode's rewards tell its number
    with monkeypatch.context() as patch:
        patch.setitem(control.__globals__, "look_ahead_gains", lambda *x: x)
        seen = [control(actor, irn, inner, outer, args) for _ in range(2)]
    orders = [x[3].rewards[0].argsort() for x in seen]
    for x, order in zip(seen, orders, strict=True):
        assert (*x[:3], x[4]) == (actor, irn, inner, args)
        assert x[3]._replace(rewards=outer.rewards) == outer  # the very same tensors
        assert torch.equal(x[3].rewards[:, order], outer.rewards)  # whole episodes' rewards
    assert not torch.equal(*orders)
    right, shuffled = [t_statistic(x(actor, irn, inner, outer, args)) for x in (m.look_ahead_gains, control)]
    assert abs(shuffled) < 4 < m.EVIDENCE < right


@pytest.mark.slow
def test_a_run_of_the_control_is_a_run_with_other_gains(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(m, "look_ahead_gains", m.look_ahead_gains)  # undone at the end
    path = str(RESULTS / "umbrella" / "tuned" / "shuffled.py")
    options = f"--chain-length 10 --hide-umbrella --total-timesteps 3000 --held-steps 2000 --runs-dir {tmp_path}"
    monkeypatch.setattr(sys, "argv", [path, *options.split()])
    runpy.run_path(path, run_name="__main__")
    assert m.look_ahead_gains.__name__ == "shuffled_gains"
    assert "step 2000: PPO begins to learn from the environment's own reward (" in capsys.readouterr().out


def test_signal_to_noise_of_known_gradients(monkeypatch, capsys):
    """Mean 3 / 20, deviation 1, in each of 400 directions; with mean 0, chance alone is 0.07 before the correction."""
    monkeypatch.syspath_prepend(str(RESULTS / "umbrella" / "credit"))
    script = runpy.run_path(str(RESULTS / "umbrella" / "credit" / "signal_to_noise.py"))
    torch.manual_seed(0)
    noise = torch.randn(200, 400)
    assert script["signal_to_noise"](noise + 3 / 20) == pytest.approx(3 / 20, rel=0.1)
    assert script["signal_to_noise"](noise) < 0.04
    monkeypatch.setattr(m, "META_STEPS", 10)
    script["main"].__globals__.update(LENGTHS=(5,), EPISODES=(20,), SEEDS=(1,), DRAWS=3)
    script["main"]()
    header, *rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["policy", "policy first", "meta initial", "meta right"]
    assert float(rows[1][-1]) > float(rows[0][-1]) >= 0
