"""The meta-gradient against finite differences and against LIRPG's closed form; the Adam step it goes through."""

import itertools
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

import ppo_metairn as m

RESULTS = Path(__file__).parents[1] / "results"


def make_problem(env_id, kind, num_envs=6, T=8):
    """Networks and a real rollout: actor, irn and the Minibatch of all environments, in the current default dtype."""
    args = m.Args(env_id=env_id, chain_length=4, n_distractor=1, num_steps=T, clip_coef=0.2, max_grad_norm=0.5)
    torch.manual_seed(0)
    envs, _ = m.make_envs(args, num_envs)
    obs, _ = envs.reset(seed=list(range(num_envs)))
    obs_dim, space = envs.single_observation_space.shape[0], envs.single_action_space
    actor, critic = m.Actor(obs_dim, space), m.Critic(obs_dim)
    irn = m.IntrinsicRewardNetwork(obs_dim, space, kind, dim=4)
    for p in itertools.chain(actor.net[-1].parameters(), irn.parameters()):
        p.data += 0.3 * torch.randn_like(p)  # away from the nearly uniform policy and the nearly constant reward
    batch, _, _ = m.rollout(envs, actor, obs, args, torch.device("cpu"))
    with torch.no_grad():
        logprobs = actor(batch.obs, batch.actions)[0]
        logprobs += 0.3 * torch.randn_like(logprobs)  # a behaviour policy far enough for some ratios to be clipped
        ext_advantages = torch.randn_like(logprobs)
        values = critic(batch.obs), critic(batch.next_obs)
        r_in, _ = irn(batch.obs, batch.actions, batch.rewards, batch.dones)
    ends = batch.terminations, batch.dones
    data = m.Minibatch(
        batch.obs, batch.actions, batch.rewards, *ends, logprobs, r_in, *values, ext_advantages, ext_advantages
    )
    return args, actor, irn, data


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("env_id", ["umbrella_env:UmbrellaLength-v0", "Pendulum-v1"], ids=["discrete", "continuous"])
@pytest.mark.parametrize("kind", ["redistribution", "kernel", "attention", "mlp"])
def test_whole_chain_against_finite_differences(float64, kind, env_id, inner_steps):
    """IRN -> mixed GAE -> normalized advantage -> clipped PPO loss -> clipped gradient -> Adam -> ... -> outer loss."""
    args, actor, irn, data = make_problem(env_id, kind)
    theta, eta = m.flat_parameters(actor), m.flat_parameters(irn)
    torch.manual_seed(1)
    adam = 0.1 * torch.randn_like(theta), 0.01 * torch.rand_like(theta), 5  # as if in the middle of a run
    minibatches = [m.Minibatch(*(x[:, 2 * i : 2 * i + 2] for x in data)) for i in range(3)]

    def chain():
        inner_theta, inner_adam = theta, adam
        for mb in minibatches[:inner_steps]:
            advantages = m.mixed_advantages(irn, mb, args)
            inner_theta, inner_adam, _ = m.inner_step(actor, inner_theta, inner_adam, mb, advantages, 0.05, args)
        return m.outer_loss(actor, inner_theta, data, args)

    chain().backward(inputs=list(irn.parameters()))
    directions = torch.randn(24, len(eta))
    start, h, differences = eta.data.clone(), 1e-6, []
    for direction in directions:
        ends = []
        for sign in (1, -1):
            eta.data.copy_(start + sign * h * direction)
            ends.append(chain().item())
        differences.append((ends[0] - ends[1]) / (2 * h))
    expected = torch.tensor(differences)
    assert expected.norm() > 1e-6
    assert (directions @ eta.grad - expected).norm() / expected.norm() < 1e-5


def test_lirpg_closed_form(float64, monkeypatch):
    """Zheng et al. 2018, eq. 10 and 11 (slides, "Full derivation"): with one plain gradient step from the policy that
    acted and no normalization, d J_ex / d eta = alpha lambda sum_t sum_{i >= t} gamma^(i-t) d r_in(s_i, a_i) / d eta
    * <grad log pi(a_t | s_t), grad J_ex(theta')>, every sum a mean over the batch's steps here."""
    alpha, lam, gamma = 0.7, 0.4, 0.9
    args, actor, irn, data = make_problem("umbrella_env:UmbrellaLength-v0", "mlp", num_envs=2)
    zeros, steps = torch.zeros_like(data.rewards), data.rewards.numel()
    data = data._replace(values=zeros, next_values=zeros, logprobs=actor(data.obs, data.actions)[0].detach())
    vars(args).update(gamma=gamma, gae_lambda=1.0, norm_adv=False, intrinsic_coef=lam, clip_coef=1e9)
    args.max_grad_norm = 1e9
    monkeypatch.setattr(m, "adam_step", lambda theta, grad, adam, lr: (theta - lr * grad, adam))
    theta, parameters = m.flat_parameters(actor), list(irn.parameters())
    new_theta, *_ = m.inner_step(actor, theta, None, data, m.mixed_advantages(irn, data, args), alpha, args)
    ours = torch.autograd.grad(m.outer_loss(actor, new_theta, data, args), parameters)

    # the same by hand: one log-probability and one reward at a time, in plain loops
    policy = list(actor.parameters())
    gradient = partial(torch.autograd.grad, retain_graph=True)

    def log_prob_gradients():
        return {
            (t, n): torch.cat([g.flatten() for g in gradient(actor(data.obs[t, n], data.actions[t, n])[0], policy)])
            for t, n in itertools.product(*map(range, data.rewards.shape))
        }

    before = log_prob_gradients()
    r_in = irn(data.obs, data.actions, data.rewards, data.dones)[0]
    old_theta, old_logprobs = theta.data.clone(), data.logprobs
    theta.data.copy_(new_theta)
    ratios = (actor(data.obs, data.actions)[0].detach() - old_logprobs).exp()
    grad_j_ex = sum(data.ext_advantages[k] * ratios[k] * g for k, g in log_prob_gradients().items()) / steps
    theta.data.copy_(old_theta)
    expected = [torch.zeros_like(p) for p in parameters]
    for (t, n), grad_log_prob in before.items():
        end = next((i for i in range(t, len(r_in)) if data.dones[i, n]), len(r_in) - 1)
        for i in range(t, end + 1):
            factor = alpha * lam * gamma ** (i - t) * (grad_log_prob @ grad_j_ex) / steps
            for total, g in zip(expected, gradient(r_in[i, n], parameters), strict=True):
                total += factor * g
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(-a, b, rtol=1e-9, atol=1e-14)  # the outer loss is -J_ex


@pytest.mark.parametrize("script_name", ["ppo_vanilla", "ppo_metairn"])
def test_adam_step_is_torch_adam(float64, script_name):
    script = __import__(script_name)
    torch.manual_seed(0)
    reference = torch.nn.Parameter(torch.randn(50))
    optimizer = torch.optim.Adam([reference], eps=1e-5)
    theta, adam = reference.data.clone(), script.new_adam(reference)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = lr = 0.1 / (1 + step)
        grad = torch.randn(50) * (torch.arange(50) > 4)  # some gradients are always 0
        reference.grad = grad.clone()
        optimizer.step()
        theta, adam = script.adam_step(theta, grad, adam, lr)
    torch.testing.assert_close(theta, reference.data, rtol=1e-12, atol=1e-12)


def test_clip_grad_norm_is_torch_clip_grad_norm():
    torch.manual_seed(0)
    for scale in (0.01, 100.0):
        reference = torch.nn.Parameter(torch.zeros(20))
        reference.grad = scale * torch.randn(20)
        ours = m.clip_grad_norm(reference.grad.clone(), 0.5)
        torch.nn.utils.clip_grad_norm_([reference], 0.5)
        torch.testing.assert_close(ours, reference.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_exactly_zero_gives_no_nan(dtype):
    """The weights of an input that always reads 0 (`have`, when hidden) never get a gradient."""
    theta = torch.ones(3, dtype=dtype, requires_grad=True)
    eta = torch.tensor(2.0, dtype=dtype, requires_grad=True)
    adam = m.new_adam(theta)
    new_theta = theta
    for _ in range(3):
        new_theta, adam = m.adam_step(new_theta, torch.stack([0 * eta, eta, 1e-30 * eta]), adam, 0.1)
    (grad,) = torch.autograd.grad(new_theta.sum(), eta)
    assert new_theta.isfinite().all()
    assert new_theta[0] == 1
    assert grad.isfinite()


@pytest.mark.parametrize("kind", ["redistribution", "kernel", "attention", "mlp"])
def test_meta_gradient_is_finite_when_the_umbrella_is_hidden(kind):
    args, actor, irn, data = make_problem("umbrella_env:UmbrellaLength-v0", kind)
    obs = data.obs.clone()
    obs[..., 1] = 0
    theta, eta = m.flat_parameters(actor), m.flat_parameters(irn)
    data = data._replace(obs=obs)
    advantages = m.mixed_advantages(irn, data, args)
    new_theta, *_ = m.inner_step(actor, theta, m.new_adam(theta), data, advantages, 0.05, args)
    m.outer_loss(actor, new_theta, data, args).backward(inputs=list(irn.parameters()))
    assert eta.grad.isfinite().all()
    assert eta.grad.norm() > 0


# ---------------------------------------------------------------------------------------------- the held phase


HELD_KINDS = pytest.mark.parametrize("kind", ["redistribution", "kernel"])


def held_problem(chain_length=10, num_envs=12, irn_from=None, **kwargs):
    """Episodes of the untouched policy, the umbrella hidden: args, actor, its theta, an IRN, the Batch [T, N, ...]."""
    args = m.Args(chain_length=chain_length, hide_umbrella=True, num_steps=chain_length, **kwargs)
    torch.manual_seed(0)
    envs, _ = m.make_envs(args, num_envs)
    obs, _ = envs.reset(seed=0)
    obs_dim, space = envs.single_observation_space.shape[0], envs.single_action_space
    actor, irn = m.Actor(obs_dim, space), m.IntrinsicRewardNetwork(obs_dim, space, args.irn)
    if irn_from:
        m.load_irn(irn_from, irn, "cpu")
    batch = m.rollout(envs, actor, obs, args, torch.device("cpu"))[0]
    return args, actor, m.flat_parameters(actor), irn, batch


@HELD_KINDS
def test_look_ahead_is_ppo_on_each_stretch_alone(float64, kind):
    """By brute force: a copy of the policy for each stretch of 5 steps (kernel: one for all), torch's Adam, torch's
    clipping, one by one."""
    args, actor, theta, irn, batch = held_problem(irn=kind)
    inner, outer = [m.Batch(*(x[:, envs] for x in batch)) for envs in (slice(0, 5), slice(5, 12))]
    gains = m.look_ahead_gains(actor, theta, irn, inner, outer, args)
    zeros, advantages = torch.zeros(10, 12), []
    for x, n in ((inner, 5), (outer, 7)):
        mixed = irn(x.obs, x.actions, x.rewards, x.dones)[0].detach() + x.rewards
        v = zeros[:, :n]
        advantages.append(m.compute_gae(mixed, v, v, x.terminations, x.dones, args.gamma, args.gae_lambda))
    outer_advantages = m.normalize(advantages[1])
    expected = torch.zeros(7)
    for t in (slice(0, 10),) if kind == "kernel" else (slice(0, 5), slice(5, 10)):
        policy = m.Actor(3, m.gym.spaces.Discrete(2))
        policy.load_state_dict(actor.state_dict())
        optimizer = torch.optim.Adam(policy.parameters(), m.LOOK_AHEAD_LR, eps=1e-5)
        before = actor(inner.obs[t], inner.actions[t])[0].detach()
        for _ in range(m.LOOK_AHEAD_STEPS):
            ratio = (policy(inner.obs[t], inner.actions[t])[0] - before).exp()
            a = m.normalize(advantages[0][t])
            loss = -torch.min(a * ratio, a * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
            optimizer.step()
        new, old = [x(outer.obs[t], outer.actions[t])[0] for x in (policy, actor)]
        expected += (((new - old).exp() - 1) * outer_advantages[t]).sum(0).detach()
    assert expected.abs().min() > 1e-3
    torch.testing.assert_close(gains.detach(), expected, rtol=1e-6, atol=1e-8)


@HELD_KINDS
def test_look_ahead_gradient_against_finite_differences(float64, kind):
    args, actor, theta, irn, batch = held_problem(irn=kind)
    eta = m.flat_parameters(irn)
    eta.data += 0.3 * torch.randn_like(eta)
    halves = [m.Batch(*(x[:, envs] for x in batch)) for envs in (slice(0, 6), slice(6, 12))]

    def mean_gain():
        return m.look_ahead_gains(actor, theta, irn, *halves, args).mean()

    mean_gain().backward(inputs=list(irn.parameters()))
    start, directions, differences = eta.data.clone(), torch.randn(12, len(eta)), []
    for direction in directions:
        ends = []
        for sign in (1, -1):
            eta.data.copy_(start + sign * 1e-6 * direction)
            ends.append(mean_gain().item())
        differences.append((ends[0] - ends[1]) / 2e-6)
    expected = torch.tensor(differences)
    assert expected.norm() > 1e-3
    assert (directions @ eta.grad - expected).norm() / expected.norm() < 1e-5
    assert torch.equal(theta.grad, torch.zeros_like(theta))  # the policy stays where it is


def test_the_credit_that_is_right_gains_and_no_other_does():
    """40 episodes of 50 steps to learn from, 40 to test. What a wrong credit gains is chance, a few standard errors."""
    args, actor, theta, irn, batch = held_problem(50, 80, RESULTS / "carry_over" / "oracle.pt")
    halves = [m.Batch(*(x[:, envs] for x in batch)) for envs in (slice(0, 40), slice(40, 80))]

    def evidence():
        gains = m.look_ahead_gains(actor, theta, irn, *halves, args).detach()
        return (gains.mean() / (gains.std() / 40**0.5)).item()

    assert evidence() > m.EVIDENCE
    irn.embed.weight.data[0, 4] *= -1  # h[0] is then 1 at the end of an episode: each reward goes to its last step
    irn.embed.weight.data[0, 3 + 1], irn.embed.weight.data[0, 3 + 2] = 0, -100
    assert abs(evidence()) < 4


def test_a_held_kernel_finds_which_steps_have_earned():
    """What actions earn in 5 steps, each in its own state, observed at random, is paid 2 steps later: PPO's lambda of 0
    never reaches it. Uniform weights pay 5 of 60 to the right steps."""
    args = m.Args(irn="kernel", gae_lambda=0.0, meta_learning_rate=3e-2)
    torch.manual_seed(0)
    space = m.gym.spaces.Box(-1, 1, (1,))
    actor, irn = m.Actor(1, space), m.IntrinsicRewardNetwork(1, space, "kernel")
    theta, eta = m.flat_parameters(actor), m.flat_parameters(irn)
    obs = torch.randn(60, 100, 1)
    actions, dones = actor.sample(obs).detach(), torch.zeros(60, 100)
    rewards = torch.zeros(60, 100)
    rewards[6::5] = (obs * actions).squeeze(-1).unflatten(0, (12, 5)).sum(1)[:11]
    losses = m.learn_from_held(actor, theta, irn, eta, m.Batch(obs, actions, rewards, obs, dones, dones), args)
    weights = irn(obs, actions, rewards, dones)[1][0, 0, :, 36]  # [60] where a reward goes that is paid at step 36
    assert losses["evidence"] > 4 > 2 > abs(losses["ppo_evidence"])  # 5.2 to 10.0 with seeds 0 to 5
    assert weights[30:35].sum() > 0.7  # 0.82 to 0.88


def test_ppo_alone_learns_from_the_rewards_as_they_come():
    """Without an IRN; an IRN that pays nothing is the same."""
    args, actor, theta, irn, batch = held_problem()
    halves = [m.Batch(*(x[:, envs] for x in batch)) for envs in (slice(0, 6), slice(6, 12))]
    alone = m.look_ahead_gains(actor, theta, None, *halves, args)
    torch.testing.assert_close(alone, m.look_ahead_gains(actor, theta, lambda *x: (0 * x[2], None), *halves, args))
    assert not torch.allclose(alone, m.look_ahead_gains(actor, theta, irn, *halves, args))


def test_evidence_is_of_environments_that_nothing_has_learned_from(monkeypatch):
    args, actor, theta, irn, batch = held_problem(2, 10)
    batch.obs[:] = torch.arange(10.0).unsqueeze(-1)  # so that an environment tells its number
    calls, results, networks, gains, eta = [], [], [], m.look_ahead_gains, m.flat_parameters(irn)

    def recorded_gains(actor, theta, irn, inner, outer, args):
        calls.append([x.obs[0, :, 0].tolist() for x in (inner, outer)])
        results.append(gains(actor, theta, irn, inner, outer, args))
        networks.append(irn)
        return results[-1]

    monkeypatch.setattr(m, "look_ahead_gains", recorded_gains)
    losses = m.learn_from_held(actor, theta, irn, eta, batch, args)
    *learning, (_, tested), (_, tested_alone) = calls
    assert len(learning) == m.META_STEPS
    assert len(tested) == 4
    assert tested == tested_alone
    assert networks[-2:] == [irn, None]
    for name, x in (("evidence", results[-2]), ("ppo_evidence", results[-1])):
        assert losses[name] == pytest.approx((x.mean() / (x.std() / 2)).item(), rel=1e-5)  # standard error of 4
    for inner, outer in learning:
        assert len(inner) == len(outer) == 3
        assert sorted(inner + outer + tested) == list(range(10))
    assert len({tuple(inner) for inner, _ in learning}) > m.META_STEPS / 2  # new halves each time


def test_the_control_deals_the_outer_rewards_out_anew(monkeypatch):
    """The same rewards, each time to other outer episodes, and nothing else; then the right credit gains nothing."""
    control = runpy.run_path(str(RESULTS / "one_run" / "shuffled.py"))["shuffled_gains"]
    args, actor, theta, irn, batch = held_problem(50, 80, RESULTS / "carry_over" / "oracle.pt")
    inner, outer = [m.Batch(*(x[:, envs] for x in batch)) for envs in (slice(0, 40), slice(40, 80))]
    outer.rewards[0] = torch.arange(40.0) / 1e6  # so that an episode's rewards tell its number
    seen = []
    monkeypatch.setitem(control.__globals__, "look_ahead_gains", lambda *x: seen.append(x))
    for _ in range(2):
        control(actor, theta, irn, inner, outer, args)
    dealt = [rewards for *_, (_, _, rewards, *_), _ in seen]
    for rewards, (*others, passed_inner, passed_outer, _) in zip(dealt, seen, strict=True):
        assert others == [actor, theta, irn]
        assert passed_inner is inner
        assert passed_outer._replace(rewards=outer.rewards) == outer  # the very same tensors
        order = rewards[0].argsort()
        assert torch.equal(rewards[:, order], outer.rewards)  # whole episodes' rewards
        assert (order != torch.arange(40)).sum() > 30
    assert not torch.equal(*dealt)
    monkeypatch.undo()
    gains = [gain(actor, theta, irn, inner, outer, args).detach() for gain in (m.look_ahead_gains, control)]
    right, shuffled = [(x.mean() / (x.std() / 40**0.5)).item() for x in gains]
    assert abs(shuffled) < 4 < m.EVIDENCE < right


def test_the_controls_runs_and_their_evidence(tmp_path, monkeypatch, capsys):
    """A run of the control is a run of ppo_metairn.py, options and all; afterwards its evidence is read."""
    monkeypatch.setattr(m, "look_ahead_gains", m.look_ahead_gains)  # undone at the end
    path = str(RESULTS / "one_run" / "shuffled.py")
    options = "--exp-name control --chain-length 10 --hide-umbrella --total-timesteps 4000 --held-steps 3000 --seed 3"
    monkeypatch.setattr(sys, "argv", [path, *options.split(), "--runs-dir", str(tmp_path)])
    runpy.run_path(path, run_name="__main__")
    assert m.look_ahead_gains.__name__ == "shuffled_gains"
    output = capsys.readouterr().out
    assert "policy let go      at step 3000, learns alone (evidence " in output
    monkeypatch.setattr(sys, "argv", [path, "evidence", str(tmp_path)])
    runpy.run_path(path, run_name="__main__")
    header, *rows = capsys.readouterr().out.splitlines()
    assert header == "algorithm,chain_length,seed,global_step,evidence,ppo_evidence"
    assert [row.split(",")[:4] for row in rows] == [["control", "10", "3", str(step)] for step in (1000, 2000, 3000)]
    assert f"(evidence {float(rows[-1].split(',')[4]):.1f}, PPO alone {float(rows[-1].split(',')[5]):.1f})" in output


def test_signal_to_noise_of_known_gradients(monkeypatch):
    """Draws of mean 3 / 20 and deviation 1 in each of 400 directions: 3 / 20, since both norms grow alike; with mean 0,
    the mean of 200 draws is 0.07 of the noise all the same, of which the correction leaves little."""
    monkeypatch.syspath_prepend(str(RESULTS / "one_run"))
    script = runpy.run_path(str(RESULTS / "one_run" / "signal_to_noise.py"))
    torch.manual_seed(0)
    noise = torch.randn(200, 400)
    assert script["signal_to_noise"](noise + 3 / 20) == pytest.approx(3 / 20, rel=0.1)
    assert script["signal_to_noise"](noise) < 0.04


def test_a_frozen_network_keeps_no_graph():
    args, actor, irn, data = make_problem("umbrella_env:UmbrellaLength-v0", "redistribution")
    theta, eta = m.flat_parameters(actor), m.flat_parameters(irn)
    steps = []
    for args.meta_learning_rate in (1e-3, 0.0):
        advantages = m.mixed_advantages(irn, data, args)
        new_theta, (mean, *_), _ = m.inner_step(actor, theta, m.new_adam(theta), data, advantages, 0.05, args)
        steps.append(new_theta.detach())
        assert mean.requires_grad == (args.meta_learning_rate > 0)
    assert torch.equal(*steps)  # the step itself is the same
    m.outer_loss(actor, new_theta, data, args).backward()
    assert not eta.grad.any()
