"""ppo_cln.py: gradients of the reward iterations against finite differences, segments against a loop, whole runs."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from field_envs import Noise
from helpers import TINY, assert_same, column, read_checkpoint, read_result, read_rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import ppo_cln as cln
import ppo_vanilla

UMBRELLA = "umbrella_env:UmbrellaLength-v0"
ENVS = pytest.mark.parametrize("env_id", [UMBRELLA, "Pendulum-v1"])
SPACES = pytest.mark.parametrize(
    "space", [gym.spaces.Discrete(4), gym.spaces.Box(-1, 1, (2,))], ids=["discrete", "box"]
)
CONSTANT = ["--meta-learning-rate", 0, "--noise", 0, "--intrinsic-coef", 0, "--extrinsic-coef", 1]  # eta plays no part


class Paid(Noise):
    """Ten steps. Action 1 earns what was seen before it, action 0 nothing."""

    def step(self, action):
        earned = float(self.seen[0]) if action == 1 else 0.0
        obs, _, *ends = super().step(action)
        return obs, earned, *ends

    def obs(self):
        self.seen = super().obs()
        return self.seen


gym.register("Paid-v0", Paid)


def make_problem(env_id, num_envs=4, num_steps=8, **kwargs):
    """In the current default dtype: args, the four networks, their vectors, Adam's states, and a rollout.

    Everything that is small or 0 at first is not: policy, layer, critics, and the steps that Adam has taken.
    """
    sizes = {"num_envs": num_envs, "num_steps": num_steps, "segment_length": num_steps, "num_minibatches": 2}
    args = cln.Args(env_id=env_id, chain_length=3, n_distractor=1, clip_coef=0.2, gamma=0.9, **sizes | kwargs)
    torch.manual_seed(0)
    envs = cln.make_envs(args, num_envs)
    obs, _ = envs.reset(seed=list(range(num_envs)))
    obs_dim, space = obs.shape[1], envs.single_action_space
    irn = cln.IntrinsicRewardNetwork(obs_dim, space)
    actor = cln.ConditionalActor(obs_dim, space, irn, args.layer, eta_scale=3.0)
    networks = nn.ModuleDict({"actor": actor, "critic": cln.Critic(obs_dim), "ext_critic": cln.Critic(obs_dim)})
    networks["irn"] = irn
    for p in networks.parameters():
        p.data += 0.2 * torch.randn_like(p)
    parameters = [cln.flat_parameters(network) for network in networks.values()]
    adam = {
        x: (0.1 * torch.randn_like(p), 0.01 * torch.rand_like(p), 5) for x, p in zip(networks, parameters, strict=True)
    }
    adam = {x: tuple(y.detach() if torch.is_tensor(y) else y for y in state) for x, state in adam.items()}
    return args, networks, parameters, adam, cln.rollout(envs, actor, obs, args, "cpu")[0]


def plain_logprobs(actor, obs, actions, eta):
    """log pi(a|s, eta) and entropies by torch.distributions and the layer's formula"""
    x = actor.body(obs)
    if actor.layer != "none":
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    if actor.layer == "cln":
        (F, H), (c, d), eta = actor.weight.chunk(2), actor.bias.chunk(2), actor.eta_scale * eta
        x = torch.sigmoid(F @ eta + c) * x + H @ eta + d
    elif actor.layer == "norm":
        x = actor.gain * x + actor.bias
    x = actor.head(x.relu())
    if actor.discrete:
        policy = torch.distributions.Categorical(logits=x)
    else:
        policy = torch.distributions.Independent(torch.distributions.Normal(x, actor.logstd.exp()), 1)
    return policy.log_prob(actions), policy.entropy()


@SPACES
@pytest.mark.parametrize("layer", ["cln", "norm", "none"])
def test_policy_is_the_formula(space, layer, float64):
    """Log-probabilities and entropies at any eta; what acts is the same network at the reward's own eta."""
    torch.manual_seed(0)
    irn, obs = cln.IntrinsicRewardNetwork(3, space), torch.randn(5, 7, 3)
    actor = cln.ConditionalActor(3, space, irn, layer, eta_scale=2.0)
    for p in [*actor.parameters(), irn.eta]:
        p.data += 0.5 * torch.randn_like(p)
    actions = torch.randint(4, (5, 7)) if actor.discrete else torch.randn(5, 7, 2)
    eta = torch.randn(65)
    torch.testing.assert_close(actor(obs, actions, eta), plain_logprobs(actor, obs, actions, eta))
    torch.testing.assert_close(actor(obs, actions), plain_logprobs(actor, obs, actions, irn.eta))
    assert torch.equal(actor(obs, actions)[0], actor(obs, actions, eta)[0]) == (layer != "cln")
    obs, noise = torch.randn(50, 3), actor.noise(50)
    output = actor.net(obs).detach()
    expected = (output + noise).argmax(-1) if actor.discrete else output + actor.logstd.exp().detach() * noise
    np.testing.assert_allclose(actor.policy()(obs.numpy(), noise), expected, rtol=1e-10, atol=1e-12)


@ENVS
@pytest.mark.parametrize("terms", ["15", "10", "11", "15,10,11"])
def test_gradient_of_eta_against_central_differences(float64, terms, env_id):
    """Of a plain function of three etas, each of them where one term has it, the others constant. For all three terms
    this is the derivative of J_ex after PPO's step."""
    args, networks, (theta, *_), adam, batch = make_problem(env_id, terms=terms, ent_coef=0.01, extrinsic_coef=0.3)
    actor, irn = networks["actor"], networks["irn"]
    logprobs = actor(batch.obs, batch.actions)[0].detach()
    logprobs += 0.2 * torch.randn_like(logprobs)  # a behaviour policy far enough for some ratios to be clipped
    critics = [networks["critic"](x).detach() for x in (batch.obs, batch.next_obs)]
    data = (
        batch.obs,
        batch.actions,
        logprobs,
        torch.randn_like(logprobs),
        *cln.intrinsic_gae(irn, batch, *critics, args),
    )
    mbs = [[x[:, :2] for x in data], [x[:, 2:] for x in data]]
    m, v, steps = adam["actor"]

    def plain(eta_15, eta_10, eta_11):
        policy = copy.deepcopy(actor)
        optimizer = torch.optim.Adam(policy.parameters(), 0.1, eps=1e-5)
        sizes = [p.numel() for p in policy.parameters()]
        for p, m_p, v_p in zip(policy.parameters(), m.split(sizes), v.split(sizes), strict=True):
            moments = {"exp_avg": m_p.view_as(p).clone(), "exp_avg_sq": v_p.view_as(p).clone()}
            optimizer.state[p] = moments | {"step": torch.tensor(float(steps))}

        def loss(mb, advantages, eta, ent_coef):
            new_logprobs, entropies = plain_logprobs(policy, *mb[:2], eta)
            ratio = (new_logprobs - mb[2]).exp()
            a = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            return -torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a).mean() - ent_coef * entropies.mean()

        if terms != "15":
            loss(mbs[0], 0.3 * mbs[0][3] + mbs[0][4] @ eta_11 + mbs[0][5], eta_10, 0.01).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), args.max_grad_norm)
            optimizer.step()
        mb = mbs[terms != "15"]
        return loss(mb, mb[3], eta_15, 0.0).item()

    expected, eta = [], irn.eta.detach()
    directions = torch.linalg.qr(torch.randn(65, 20)).Q.T
    for direction in 1e-5 * directions:
        moved = [[eta + s * direction if x in terms.split(",") else eta for x in ("15", "10", "11")] for s in (1, -1)]
        expected.append((plain(*moved[0]) - plain(*moved[1])) / 2e-5)
    ours = cln.extrinsic_loss(actor, theta, adam["actor"], irn.eta, *mbs, 0.1, args)
    assert ours.item() == pytest.approx(plain(eta, eta, eta), rel=1e-12)
    (gradient,) = torch.autograd.grad(ours, irn.eta)
    expected = torch.tensor(expected)  # [20] the slope in each direction
    assert expected.norm() > 2e-5
    assert (directions @ gradient - expected).norm() < 1e-5 * expected.norm()


@ENVS
def test_intrinsic_advantages_are_linear_in_eta(float64, env_id):
    args, networks, _, _, batch = make_problem(env_id, num_steps=30)
    batch.dones[[4, 9]], batch.terminations[9] = 1, 1  # one is truncated, one terminated
    values = [networks["critic"](x).detach() for x in (batch.obs, batch.next_obs)]
    G, B = cln.intrinsic_gae(networks["irn"], batch, *values, args)
    for _ in range(3):
        networks["irn"].eta.data += torch.randn(65)
        r_in, ends = networks["irn"](batch.obs, batch.actions).detach(), (batch.terminations, batch.dones)
        expected = cln.compute_gae(r_in, *values, *ends, args.gamma, args.gae_lambda)
        torch.testing.assert_close(G @ networks["irn"].eta.detach() + B, expected, rtol=1e-12, atol=1e-12)


def hold(batch, age=0):
    numbers, _ = cln.step_numbers(batch.dones, torch.full_like(batch.dones[0], age, dtype=torch.long))
    return batch.obs, batch.actions, batch.rewards, numbers, batch.dones


@pytest.mark.parametrize("terms", ["15", "15,10,11", "11", "none"])
@pytest.mark.parametrize("regression", [True, False])
def test_what_the_reward_iterations_move(float64, monkeypatch, terms, regression):
    """Never theta; eta by every term; phi by the regression alone, as in Algorithm 1. And PPO's leave phi and eta."""
    args, networks, parameters, adam, batch = make_problem(UMBRELLA, terms=terms, num_steps=9)
    adam["irn"] = cln.new_adam(parameters[3])
    if not regression:
        batch.dones[:], args.reg_length = 0, 100
    start, seen = copy.deepcopy(dict(networks["irn"].named_parameters())), []

    def recorded(*args, function=cln.intrinsic_gae):
        seen.append([x.detach().clone() for x in (parameters[0], parameters[0].grad, parameters[3])])
        return function(*args)

    monkeypatch.setattr(cln, "intrinsic_gae", recorded)
    theta = parameters[0].detach().clone()
    losses = cln.cln_update(networks, parameters, adam, [hold(batch)], batch, 1.0, args)
    assert torch.equal(seen[-1][0], theta)  # the last is before the policy iterations
    assert not seen[-1][1].any()
    assert not torch.equal(parameters[0], theta)
    assert torch.equal(seen[-1][2], parameters[3])
    for name, p in networks["irn"].named_parameters():
        assert torch.equal(p, start[name]) == (not regression and (terms == "none" or name != "eta")), name
    if regression or terms != "none":
        assert (losses["reg_loss"] > 0) == (losses["reg_grad_norm"] > 0) == regression
        assert (losses["meta_grad_norm"] > 0) == (terms != "none")
    else:  # no iteration was taken
        assert not {"reg_loss", "meta_loss"} & losses.keys()


def test_the_update_is_algorithm_1(float64):
    """cln_update against a plain one: three loops, optimizers of torch, one GAE of the noisy reward a minibatch."""
    options = {"num_steps": 12, "segment_length": 4, "update_epochs": 2, "meta_epochs": 2, "reg_batch": 3}
    options |= {"noise": 0.3, "meta_coef": 0.7, "intrinsic_coef": 0.8, "extrinsic_coef": 0.4, "reg_length": 2}
    args, networks, parameters, adam, batch = make_problem("Pendulum-v1", **options)
    batch.dones[[4, 9]], batch.terminations[9] = 1, 1
    adam = {name: cln.new_adam(p) for name, p in zip(networks, parameters, strict=True)}
    expected, start = copy.deepcopy(networks), copy.deepcopy(networks)
    torch.manual_seed(1)
    cln.cln_update(networks, parameters, adam, [hold(batch, 0), hold(batch, 7)], batch, 0.5, args)

    actor, critic, ext_critic, irn = expected.values()
    rates = dict.fromkeys(expected, 0.5 * args.learning_rate) | {"irn": 0.5 * args.meta_learning_rate}
    eps = dict.fromkeys(expected, 1e-5) | {"irn": 1e-10}
    optimizers = {x: torch.optim.Adam(expected[x].parameters(), rates[x], eps=eps[x]) for x in expected}
    ends, gae = (batch.terminations, batch.dones), (args.gamma, args.gae_lambda)
    with torch.no_grad():
        logprobs = actor(batch.obs, batch.actions)[0]
        values = [[x(y) for y in (batch.obs, batch.next_obs)] for x in (critic, ext_critic)]
        ext_advantages = cln.compute_gae(batch.rewards, *values[1], *ends, *gae)

    def select(x, pieces):  # [T, N, ...] -> [number of pieces, 4, ...]: environment by environment
        every = [piece for n in range(x.shape[1]) for piece in x[:, n].split(4)]
        return torch.stack([every[i] for i in pieces.tolist()])

    def step(*names):
        for name in names:
            nn.utils.clip_grad_norm_(expected[name].parameters(), args.max_grad_norm)
            optimizers[name].step()
        for optimizer in optimizers.values():
            optimizer.zero_grad()

    def surrogate(pieces, advantages, eta):
        obs, actions, old, a = [select(x, pieces) for x in (batch.obs, batch.actions, logprobs, advantages)]
        ratio = (plain_logprobs(actor, obs, actions, eta)[0] - old).exp()
        a = (a - a.mean()) / (a.std() + 1e-8)
        return -torch.min(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()

    torch.manual_seed(1)
    data_set = [torch.cat(x) for x in zip(hold(batch, 0), hold(batch, 7), strict=True)]
    segments = brute_force_segments(*data_set[3:], 2)
    assert len(segments) > 20
    for _ in range(2):
        for mb in torch.randperm(12).chunk(2):
            loss = 0.7 * surrogate(mb, ext_advantages, irn.eta + 0.3 * torch.randn(65))
            for i in torch.randint(len(segments), (3,)).tolist():
                t, n = zip(*segments[i], strict=True)
                difference = sum((data_set[2] - irn(*data_set[:2]))[list(t), list(n)])
                loss = loss + difference**2 / 2 / 3
            loss.backward(inputs=list(irn.parameters()))
            step("irn")
    eta = irn.eta.detach()
    for _ in range(2):
        for mb in torch.randperm(12).chunk(2):
            noisy = eta + 0.3 * torch.randn(65)
            returns, advantages = [
                cln.compute_gae(irn.features(batch.obs, batch.actions).detach() @ x, *values[0], *ends, *gae)
                for x in (eta, noisy)
            ]
            returns = returns + values[0][0]
            loss = surrogate(mb, 0.8 * advantages + 0.4 * ext_advantages, noisy)
            for x, y in ((critic, returns), (ext_critic, ext_advantages + values[1][0])):
                loss = loss + 0.5 * args.vf_coef * (x(select(batch.obs, mb)) - select(y, mb)).square().mean()
            loss.backward()
            step("actor", "critic", "ext_critic")
    for (name, p), before in zip(expected.named_parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(networks.get_parameter(name), p, rtol=1e-6, atol=1e-7, msg=name)
        assert (p - before).abs().max() > 1e-4, name


def brute_force_segments(numbers, dones, length):
    """[[(t, n), ...], ...] in the order in which they begin"""
    found = []
    for n in range(dones.shape[1]):
        segment = None  # none until one begins
        for t in range(len(dones)):
            if numbers[t, n] % length == 0:
                segment = []
            elif t and numbers[t, n] != numbers[t - 1, n] + 1:
                segment = None
            if segment is not None:
                segment.append((t, n))
                if dones[t, n] or len(segment) == length:
                    found.append(segment)
                    segment = None
    return sorted(found)


@pytest.mark.parametrize("length", [1, 3, 4, 1000])
@pytest.mark.parametrize("p_done", [0.0, 0.1, 0.5])
def test_segments_are_those_of_a_loop(length, p_done):
    """Over five rollouts, of which four are held. Before the third all episodes begin anew, as after some --resume"""
    torch.manual_seed(0)
    rollouts, numbers, age = (torch.rand(5, 11, 3) < p_done).float(), [], torch.zeros(3, dtype=torch.long)
    if p_done == 0:
        rollouts[3, 5, 1] = 1
    for i, dones in enumerate(rollouts):
        age = 0 * age if i == 2 else age
        numbers.append(torch.zeros(11, 3, dtype=torch.long))
        ours, next_age = cln.step_numbers(dones, age)
        for t in range(11):
            numbers[-1][t] = age
            age = torch.where(dones[t] > 0, 0, age + 1)
        assert torch.equal(ours, numbers[-1])
        assert torch.equal(next_age, age)
    numbers, dones = torch.cat(numbers[1:]), rollouts[1:].flatten(0, 1)
    index, mask = cln.whole_segments(numbers, dones, length)
    assert index.max() < dones.numel()
    ours = [[divmod(int(i), 3) for i, m in zip(*x, strict=True) if m] for x in zip(index, mask, strict=True)]
    assert ours == brute_force_segments(numbers, dones, length)
    assert {len(x) for x in ours} <= set(range(1, length + 1))
    crossing = [x for x in ours if x[0][0] // 11 != x[-1][0] // 11]
    assert bool(crossing) == (length > 1)
    assert not any(x[0][0] // 11 == 0 and x[-1][0] // 11 == 1 for x in ours)


def test_the_regression_compares_sums(float64):
    args, networks, _, _, batch = make_problem(UMBRELLA, num_steps=9)
    batch.dones[[1, 7], 0] = 1
    index, mask = cln.whole_segments(*hold(batch)[3:], 4)
    segments = brute_force_segments(*hold(batch)[3:], 4)
    difference = batch.rewards - networks["irn"](batch.obs, batch.actions)
    expected = sum(sum(difference[i] for i in x) ** 2 for x in segments) / len(segments) / max(map(len, segments))
    data = [x.flatten(0, 1)[index] for x in batch[:3]]
    torch.testing.assert_close(cln.regression_loss(networks["irn"], *data, mask), expected)


EMPTY = [["--env-id", "Pendulum-v1", "--reg-length", 10**9], ["--env-id", "Pendulum-v1", "--reg-length", 100]]


@pytest.mark.parametrize("flags", EMPTY)
def test_without_a_whole_segment_there_is_no_regression(cli, flags):
    folder = cli(cln, *TINY, *flags, "--terms", "none", "--total-timesteps", 128)
    p = read_checkpoint(folder)["networks"]["irn"]
    irn = cln.IntrinsicRewardNetwork(3, gym.spaces.Box(-1, 1, (1,)))
    irn.load_state_dict(p)
    assert all(x.isfinite().all() for x in p.values())
    assert irn.eta.norm().item() == pytest.approx(0.1)  # as it was at first
    assert read_checkpoint(folder)["state"].adam["irn"][2] == 0  # steps
    assert column(folder, "intrinsic_std")[-1] > 0


@pytest.mark.parametrize("env", [["--chain-length", 4], ["--env-id", "Pendulum-v1"]], ids=["umbrella", "pendulum"])
def test_with_a_constant_eta_it_is_vanilla(cli, env):
    """To the last bit, extrinsic critic included"""
    flags = [*TINY, *env, "--total-timesteps", 256, "--seed", 5]
    vanilla, ours = cli(ppo_vanilla, *flags), cli(cln, *flags, *CONSTANT, "--layer", "none")
    columns = ["global_step", "eval_return", "eval_success", "train_return", "train_success"]
    assert [[row[x] for x in columns] for row in read_rows(vanilla)] == [
        [row[x] for x in columns] for row in read_rows(ours)
    ]
    (expected, first, *_), (networks, second, *_) = read_result(vanilla), read_result(ours)
    assert_same([*expected["actor"].values()], [*networks["actor"].values()])
    assert_same(expected["critic"], networks["ext_critic"])
    assert_same([*first["adam"].values()], [second["adam"]["actor"], second["adam"]["ext_critic"]])
    flags += ["--layer", "none", "--terms", "none", "--noise", 0, "--exp-name", "used"]
    used = read_checkpoint(cli(cln, *flags))["networks"]
    assert any(not torch.equal(*x) for x in zip(expected["actor"].values(), used["actor"].values(), strict=True))


class GatedLayerNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.bias = nn.Parameter(torch.zeros(64)), nn.Parameter(torch.zeros(64))

    def forward(self, x):
        return torch.sigmoid(self.gate) * nn.functional.layer_norm(x, (64,)) + self.bias


class GatedActor(ppo_vanilla.Actor):
    def __init__(self, obs_dim, action_space):
        super().__init__(obs_dim, action_space)
        self.net.insert(3, GatedLayerNorm())

    def policy(self):
        def act(obs, noise):
            output = self.net(torch.as_tensor(obs, dtype=torch.get_default_dtype())).detach().numpy()
            return (output + noise).argmax(-1) if self.discrete else output + self.logstd.exp().detach().numpy() * noise

        return act


@pytest.mark.parametrize("env", [["--chain-length", 4], ["--env-id", "Pendulum-v1"]], ids=["umbrella", "pendulum"])
def test_with_a_constant_eta_the_layer_is_a_gated_layer_norm(cli, float64, monkeypatch, env):
    flags = [*TINY, *env, "--total-timesteps", 256, "--seed", 5]
    ours = read_checkpoint(cli(cln, *flags, *CONSTANT, "--eta-scale", 0))["networks"]["actor"]
    monkeypatch.setattr(ppo_vanilla, "Actor", GatedActor)
    expected = read_checkpoint(cli(ppo_vanilla, *flags))["networks"]["actor"]
    names = {"net.0": "body.0", "net.2": "body.2", "net.5": "head"}
    for name, p in expected.items():
        if name.startswith("net.3"):
            q = ours["bias"].chunk(2)[name == "net.3.bias"]
            assert p.abs().max() > 1e-3
        else:
            q = ours[names[name[:5]] + name[5:]] if name.startswith("net") else ours[name]
        torch.testing.assert_close(q, p, rtol=0, atol=1e-9, msg=name)
    assert not ours["weight"].any()  # F and H get no gradient from an eta of 0


RESUMED = [["--chain-length", 4, "--terms", "15,10,11"], ["--env-id", "CartPole-v1", "--reg-length", 3]]
DELAYED = ["--env-id", "Pendulum-v1", "--normalize", "--reward-delay", 3, "--reg-length", 3, "--segment-length", 2]
RESUMED += [pytest.param(DELAYED, marks=pytest.mark.slow)]


@pytest.mark.parametrize("env", RESUMED)
def test_resume_changes_no_bit(cli, interrupt, env):
    """The data set, which holds rollouts from before and after, is part of what is compared."""
    flags = [*TINY, *env, "--total-timesteps", 32 * 8, "--data-rollouts", 5]
    straight = cli(cln, *flags, "--exp-name", "straight")
    folder, calls = interrupt(cln, cli, cln, *flags)  # the third iteration is lost
    assert cli(cln, "--resume", folder) == folder
    assert len(calls) == 4 + 6
    assert_same(read_result(straight), read_result(folder))
    held = read_checkpoint(folder)["state"].held
    assert [len(x[0]) for x in held] == [4] * 5
    assert held[-1][0].shape[1] == 8


def test_evaluations_draw_nothing_from_the_run(cli):
    flags = [*TINY, "--total-timesteps", 256]
    results = [read_result(cli(cln, *flags, "--exp-name", x, "--eval-every", x)) for x in (64, 10**6)]
    assert_same(*([x[0], x[1]["adam"], x[1]["held"], x[2]] for x in results))


def test_eta_is_in_the_checkpoint_once_and_the_policy_follows_it(cli):
    networks = read_checkpoint(cli(cln, *TINY, "--total-timesteps", 64))["networks"]
    eta = networks["irn"]["eta"]
    assert [(x, y) for x, part in networks.items() for y, p in part.items() if p.shape == eta.shape] == [("irn", "eta")]
    space, obs = gym.spaces.Discrete(2), torch.randn(9, 3)
    irn = cln.IntrinsicRewardNetwork(3, space)
    actor = cln.ConditionalActor(3, space, irn)
    both = nn.ModuleDict({"actor": actor, "irn": irn})
    assert not {"actor.irn", "actor.irn.eta", "actor.eta"} & set(dict(both.named_parameters()))
    for vectors in (lambda: None, lambda: [cln.flat_parameters(x) for x in both.values()]):
        vectors()
        for name, network in both.items():
            network.load_state_dict(networks[name])
        torch.testing.assert_close(actor.net(obs), actor.net(obs, eta))
    before = actor.net(obs).detach()
    irn.eta.data += 0.01
    assert not torch.allclose(actor.net(obs), before)


WALK = ["--env-id", "field_envs:Walk-v0", "--num-envs", 4, "--num-steps", 6, "--num-minibatches", 2]
WALK += ["--eval-every", 10**6, "--eval-episodes", 2, "--total-timesteps", 24 * 9, "--data-rollouts", 6]


@pytest.mark.parametrize("delay", [1, 4, 1000])
def test_the_sum_of_a_segment_is_what_was_paid_for_it(cli, delay):
    """Episodes of up to 11 steps, in rollouts of 6. The time is part of the observation, the reward the position."""
    flags = ["--reward-delay", delay, "--reg-length", delay, "--reward-scale", 1]
    held = read_checkpoint(cli(cln, *WALK, *flags))["state"].held
    assert len(held) == 6
    obs, _, rewards, numbers, dones = [torch.cat(x) for x in zip(*held, strict=True)]
    assert torch.equal(obs[..., 1], 10.0 * numbers)
    index, mask = cln.whole_segments(numbers, dones, delay)
    assert len(index) > 10
    paid = (rewards.flatten()[index] * mask).sum(1)
    assert torch.equal(paid, rewards.flatten()[index[:, -1]])  # nothing earlier
    followed = ~dones.flatten()[index[:, -1]].bool()
    following = obs.flatten(0, 1)[(index + 4).clamp(max=dones.numel() - 1), 0]  # the position after each step
    whole = followed & (index[:, -1] + 4 < dones.numel())
    torch.testing.assert_close(paid[whole], (following * mask).sum(1)[whole])
    assert whole.any() == (delay < 1000)


def test_a_resumed_run_that_begins_new_episodes_counts_from_0(cli, interrupt):
    """The environment cannot be stored. What it shows is the time, and its episodes have ten steps."""
    flags = ["--env-id", "field_envs:Lock-v0", "--num-envs", 2, "--num-steps", 8, "--num-minibatches", 2]
    flags += ["--eval-every", 16, "--eval-episodes", 1, "--total-timesteps", 16 * 6, "--reg-length", 10]
    folder, _ = interrupt(cln, cli, cln, *flags)
    cli(cln, "--resume", folder)
    obs, _, _, numbers, dones = [torch.cat(x) for x in zip(*read_checkpoint(folder)["state"].held, strict=True)]
    assert torch.equal(obs[..., 0], numbers.float())
    index, _ = cln.whole_segments(numbers, dones, 10)
    assert index.shape == (2 * (2 + 2), 10)  # two episodes of 24 steps before and two after it


BAD = "meta-learning-rate=-1 meta-coef=inf noise=nan eta-scale=-1 intrinsic-coef=-1 extrinsic-coef=inf meta-epochs=0"
BAD = [(f"--{x}", f"--{x.split('=')[0]} must") for x in f"{BAD} reg-length=0 reg-batch=0 data-rollouts=0".split()]
BAD += [("--intrinsic-coef 0", "both 0"), ("--layer norm", "--layer norm"), ("--layer none --terms 10", "--layer none")]
BAD += [("--layer none --terms 15,10,11 --noise 0", "depend on eta"), ("--layer none --terms 11", "noise must be 0")]
BAD += [("--terms 11 --num-minibatches 1", "at least 2"), ("--reward-delay 20", "multiple of --reward-delay")]


@pytest.mark.parametrize(("flags", "named"), BAD)
def test_bad_input(refused, flags, named):
    refused(cln, flags.split(" "), named)


PAID = ["--env-id", "Paid-v0", "--num-envs", 8, "--reward-scale", 1, "--total-timesteps", 20_000]


@pytest.mark.slow
def test_the_policy_is_a_best_response_only_if_the_reward_has_the_noise(cli, monkeypatch):
    """Six seeds, four evaluations each: rho was 0.16 to 0.37, and -0.08 to 0.08 where the reward was of eta itself."""
    flags = [*PAID, "--num-steps", 100, "--segment-length", 1, "--gamma", 0, "--update-epochs", 10]
    flags += ["--noise", 0.3, "--eta-scale", 3]
    rho = column(cli(cln, *flags), "rho")
    assert min(rho[1:]) > 0.12

    def update(networks, *args, update=cln.cln_update, mixed=cln.mixed_advantages):
        eta = networks["irn"].eta
        monkeypatch.setattr(cln, "mixed_advantages", lambda a, G, B, _, args: mixed(a, G, B, eta.detach(), args))
        return update(networks, *args)

    monkeypatch.setattr(cln, "cln_update", update)
    rho = column(cli(cln, *flags, "--exp-name", "without"), "rho")
    assert max(map(abs, rho[1:])) < 0.12


@pytest.mark.slow
def test_regression_alone_recovers_the_reward_of_each_step(cli):
    """Paid every five steps. The policy stays uniform. The correlation was 0.997 with two of two seeds."""
    flags = [*PAID, "--terms", "none", "--noise", 0, "--layer", "none", "--reward-delay", 5, "--reg-length", 5]
    folder = cli(cln, *flags, "--meta-epochs", 4, "--learning-rate", 0)
    irn = cln.IntrinsicRewardNetwork(3, gym.spaces.Discrete(2))
    irn.load_state_dict(read_checkpoint(folder)["networks"]["irn"])
    torch.manual_seed(0)
    obs, actions = torch.randn(1000, 3), torch.randint(2, (1000,))
    earned, r_in = obs[:, 0] * actions, irn(obs, actions).detach()
    assert (earned - r_in).square().mean() < 0.03 * earned.var()
    assert column(folder, "reward_correlation")[-1] < 0.5  # with what was paid, and when


@pytest.mark.parametrize(("rollouts", "counts"), [(2, [0] * 6), (3, [0, 0, 8, 0, 0, 8])])
def test_how_many_sums_the_regression_has_is_logged(cli, rollouts, counts):
    """Episodes have 12 steps, and a rollout has 4 of each of 8 environments. So only three in a row hold an episode."""
    flags = [*TINY, "--chain-length", 12, "--reg-length", 12, "--data-rollouts", rollouts, "--total-timesteps", 32 * 6]
    events = EventAccumulator(str(cli(cln, *flags))).Reload()
    assert [event.value for event in events.Scalars("losses/segments")] == counts
