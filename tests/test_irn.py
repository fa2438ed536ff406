"""The intrinsic reward network is alive, and an episode's intrinsic reward depends on that episode alone."""

import itertools
import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import roll_out
from torch.utils.tensorboard import SummaryWriter

import ppo_lirpg
import ppo_metairn
from ppo_metairn import IntrinsicRewardNetwork, load_irn

RESULTS = Path(__file__).parents[1] / "results"
T, N = 12, 3
DISCRETE, BOX = gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,))
SPACES = pytest.mark.parametrize("space", [DISCRETE, BOX], ids=["discrete", "box"])
REDISTRIBUTES = pytest.mark.parametrize("kind", ["redistribution", "kernel"])


def make_irn(space=DISCRETE, kind="redistribution"):
    """With a redistribution that is far from uniform"""
    torch.manual_seed(0)
    if kind in ("mlp", "tanh", "attention"):
        name = "attention" if kind == "attention" else "mlp"
        return ppo_lirpg.IntrinsicRewardNetwork(4, space, name, dim=8, tanh=kind == "tanh")
    irn = IntrinsicRewardNetwork(4, space, kind, dim=8)
    weight, factor = (irn.query.weight, 20) if kind == "redistribution" else (irn.net[-1].weight, 100)
    weight.data *= factor
    return irn


def reward_of(irn, *episodes):
    """r_in [T, N]; a network of ppo_metairn.py returns its weights as well."""
    output = irn(*episodes)
    return output if torch.is_tensor(output) else output[0]


def make_episodes(space=DISCRETE, lengths=(5, 7)):
    """obs, actions, rewards, dones of N environments; the rollout's end cuts what is left of T."""
    torch.manual_seed(1)
    obs, rewards, dones = torch.randn(T, N, 4), torch.randn(T, N), torch.zeros(T, N)
    dones[np.cumsum(lengths) - 1] = 1
    actions = torch.randint(3, (T, N)) if space is DISCRETE else torch.randn(T, N, 2)
    return obs, actions, rewards, dones


def ends_of(lengths):
    """(first step, first step of the next) of each episode"""
    return list(itertools.pairwise(sorted({0, *np.cumsum(lengths).astype(int).tolist(), T})))


@pytest.mark.parametrize("script", [ppo_lirpg, ppo_metairn])
def test_episodes_and_times(script):
    dones = torch.tensor([[0, 1], [1, 0], [0, 0], [0, 1], [0, 1]]).float()
    episode, time = script.episodes_and_times(dones)
    assert episode.T.tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 2]]
    assert time.T.tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 0]]


READ = [("redistribution", "obs"), ("redistribution", "reward")]


@SPACES
@pytest.mark.parametrize(("kind", "what"), [*READ, *(("attention", x) for x in ("obs", "action", "reward"))])
def test_one_change_alters_every_step_of_its_episode_and_no_bit_of_any_other(space, kind, what):
    irn, episodes = make_irn(space, kind), make_episodes(space)
    before = reward_of(irn, *episodes)
    assert before.std(0).min() > 0  # varies over each trajectory
    obs, actions, rewards, dones = (x.clone() for x in episodes)
    if what == "action" and space is DISCRETE:
        actions[3, 1] = (actions[3, 1] + 1) % 3
    else:
        {"obs": obs, "action": actions, "reward": rewards}[what][3, 1] += 1
    expected = torch.zeros(T, N, dtype=torch.bool)
    expected[:5, 1] = True  # of the first episode of environment 1: earlier steps, the step itself and later ones
    assert torch.equal(before != reward_of(irn, obs, actions, rewards, dones), expected)


@pytest.mark.parametrize("kind", ["redistribution", "kernel", "attention"])
def test_an_episode_is_the_same_wherever_it_stands_in_the_rollout(kind):
    irn = make_irn(kind=kind)
    episodes = make_episodes(lengths=(5, 7))
    r_in, moved = reward_of(irn, *episodes), reward_of(irn, *(torch.cat([x[5:], x[:5]]) for x in episodes))
    torch.testing.assert_close(torch.cat([r_in[5:], r_in[:5]]), moved, rtol=0, atol=1e-6)


def test_attention_is_self_attention_within_each_episode():
    """By torch's own, episode by episode, with a residual connection around it."""
    irn, (obs, actions, rewards, dones) = make_irn(kind="attention"), make_episodes(lengths=(5,))
    r_in = irn(obs, actions, rewards, dones)
    for start, end in ends_of((5,)):
        times = torch.arange(1.0, 1 + end - start).log().expand(N, -1).T
        x = torch.cat([obs, torch.eye(3)[actions], rewards[..., None]], -1)[start:end]
        x = irn.embed(torch.cat([x, times[..., None]], -1).transpose(0, 1)).tanh()
        x = x + irn.out(torch.nn.functional.scaled_dot_product_attention(*irn.qkv(x).chunk(3, -1)))
        torch.testing.assert_close(r_in[start:end], irn.head(x).squeeze(-1).T)


@REDISTRIBUTES
@pytest.mark.parametrize("lengths", [(12,), (5, 7), (1, 4), (3, 3, 1), ()], ids=str)
def test_redistribution_creates_no_reward(lengths, kind):
    """A step gets its share of every reward of its episode and gives up its own."""
    obs, actions, rewards, dones = make_episodes(lengths=lengths)
    r_in, weights = make_irn(kind=kind)(obs, actions, rewards, dones)
    own = torch.block_diag(*[torch.ones(end - start, end - start) for start, end in ends_of(lengths)]).bool()
    assert weights.shape == (N, 1, T, T)
    assert (weights[..., own] > 0).all()
    assert (weights[..., ~own] == 0).all()
    torch.testing.assert_close(weights.sum(-2), torch.ones(N, 1, T))
    expected = torch.einsum("nhts,sn->tn", weights, rewards) - rewards
    torch.testing.assert_close(r_in, expected, atol=1e-5, rtol=0)
    for start, end in ends_of(lengths):
        torch.testing.assert_close(r_in[start:end].sum(0), torch.zeros(N), atol=1e-5, rtol=0)
        assert end - start == 1 or r_in[start:end].abs().max() > 0.1


@REDISTRIBUTES
def test_redistribution_begins_nearly_uniform(kind):
    torch.manual_seed(0)
    _, weights = IntrinsicRewardNetwork(4, DISCRETE, kind)(*make_episodes(lengths=(12,)))
    torch.testing.assert_close(weights, torch.full((N, 1, T, T), 1 / T), atol=0.5 / T, rtol=0)


def test_redistribution_is_as_sharp_on_long_episodes_as_on_short_ones():
    """A step whose score stands out by c * log n / log 10 keeps a weight of 1 / (1 + (n - 1) * n^(-c / log 10))."""
    irn = IntrinsicRewardNetwork(1, DISCRETE, "redistribution", dim=1)
    for p in irn.parameters():
        torch.nn.init.zeros_(p)
    irn.embed.weight.data[0, 0] = 20.0  # h = 1 where obs is 1, else 0
    irn.query.weight.data.fill_(3.0)
    irn.key.bias.data.fill_(1.0)
    for n in (2, 10, 200):
        obs = torch.zeros(n, 1, 1)
        obs[0] = 1
        _, weights = irn(obs, torch.zeros(n, 1, dtype=torch.long), torch.zeros(n, 1), torch.zeros(n, 1))
        expected = 1 / (1 + (n - 1) * n ** (-3 / math.log(10)))
        torch.testing.assert_close(weights[0, 0, 0], torch.full((n,), expected))


def test_kernel_is_a_function_of_the_elapsed_time(tmp_path):
    """By brute force, reward by reward; and in another environment."""
    obs, actions, rewards, dones = make_episodes(lengths=(5, 7))
    irn = make_irn(kind="kernel")
    _, weights = irn(obs, actions, rewards, dones)
    for start, end in ends_of((5, 7)):
        for source in range(start, end):
            ago = torch.arange(source - start, source - end, -1.0)  # of each step of the episode, as destination
            scores = irn.net((ago.sign() * (1 + ago.abs()).log() / 3).unsqueeze(-1)).squeeze(-1)
            expected = (scores * math.log10(end - start)).softmax(0)
            torch.testing.assert_close(weights[:, 0, start:end, source], expected.expand(N, -1))
    assert weights[0, 0, 5:, 8].max() > 1.5 / 7  # far from uniform
    other = IntrinsicRewardNetwork(9, BOX, "kernel", dim=8)
    torch.save({"config": irn.config, "parameters": irn.state_dict()}, tmp_path / "irn.pt")
    load_irn(tmp_path, other, "cpu")
    assert torch.equal(other(torch.randn(T, N, 9), torch.randn(T, N, 2), torch.randn(T, N), dones)[1], weights)


def test_the_table_of_kernels_says_where_they_pay(tmp_path):
    script = runpy.run_path(str(RESULTS / "continuous_control" / "networks.py"))
    for seed in (10, 9):
        folder, irn = tmp_path / f"Swimmer-v5__teacher__0__{seed}", script["window"](20)
        with SummaryWriter(folder) as writer:
            for step in (1, 2):
                writer.add_scalar("losses/evidence", seed * step, step)
                writer.add_scalar("losses/ppo_evidence", -seed * step, step)
        torch.save({"config": irn.config, "parameters": irn.state_dict()}, folder / "irn.pt")
        (folder / "args.json").write_text(json.dumps({"seed": seed}))
    table = script["kernels"](tmp_path)
    numbers = table[["seed", "held_steps", "evidence", "ppo_evidence", "ppo_evidence_max", "paid_to_earners"]]
    np.testing.assert_allclose(numbers, [[9, 2, 18, -18, -9, 1], [10, 2, 20, -20, -10, 1]], rtol=1e-5)
    np.testing.assert_allclose(table.filter(like="weight_"), [[1 / 20] * 20 + [0] * 20] * 2, atol=1e-5)


@SPACES
def test_tanh_of_a_reward_that_is_not_small_at_first(space):
    """As in baselines/ppo2/policies.py of Hwhitetooth/lirpg; without tanh it is small, and has no bounds."""
    torch.manual_seed(0)
    obs, actions, *rest = make_episodes(space)
    irn, small = [ppo_lirpg.IntrinsicRewardNetwork(4, space, "mlp", tanh=tanh) for tanh in (True, False)]
    inputs = torch.cat([obs, torch.eye(3)[actions] if space is DISCRETE else actions], -1)
    torch.testing.assert_close(irn(obs, actions, *rest), irn.net(inputs).squeeze(-1).tanh())
    assert irn(obs, actions, *rest).std() > 0.1
    assert small(obs, actions, *rest).std() < 0.02
    for x in (irn, small):
        x.net[-1].weight.data.fill_(100)
    assert irn(obs, actions, *rest).abs().max() <= 1 < small(obs, actions, *rest).abs().max()


@pytest.mark.parametrize("kind", ["mlp", "tanh"])
def test_mlp_reads_one_state_and_action(kind):
    irn, episodes = make_irn(kind=kind), make_episodes()
    obs, actions, rewards, dones = (x.clone() for x in episodes)
    obs[3, 1] += 1
    actions[6, 2] = (actions[6, 2] + 1) % 3
    changed = irn(*episodes) != irn(obs, actions, rewards + 1, 1 - dones)
    assert changed.nonzero().tolist() == [[3, 1], [6, 2]]


@SPACES
@pytest.mark.parametrize("kind", ["redistribution", "kernel", "attention", "mlp", "tanh"])
def test_every_parameter_has_a_gradient(space, kind):
    irn = make_irn(space, kind)
    (reward_of(irn, *make_episodes(space)) * torch.randn(T, N)).sum().backward()
    for name, p in irn.named_parameters():
        shift = torch.zeros_like(p).bool()  # what adds the same to all scores of a softmax: no gradient, by theory
        if name == "query.bias" or (kind, name) == ("kernel", "net.2.bias"):
            shift[:] = True
        elif name == "qkv.bias":
            shift[8:16] = True  # of all keys
        assert (p.grad[~shift].abs() > 0).any() or shift.all(), name
        assert (p.grad[shift].abs() < 1e-5).all(), name


def test_what_is_logged_of_a_known_credit(tmp_path):
    """The first step gets half of every reward. 21 evaluations on episodes of 5 and 7 steps, the last on 3 and 9."""

    def irn(obs, actions, rewards, dones):
        blocks = [torch.full((n, n), 0.5 / (n - 1)) for n in lengths]
        for block in blocks:
            block[0] = 0.5
        return 3 * rewards, torch.block_diag(*blocks).expand(N, 1, T, T)

    irn.config, irn.state_dict = {}, dict
    state = SimpleNamespace(used=1, test={"evidence": 9.0, "ppo_evidence": 1.0}, credit=[])
    args = ppo_metairn.Args(total_timesteps=210, eval_every=1)
    run = SimpleNamespace(state=state, folder=tmp_path, args=args, writer=Mock(), num_iterations=21)
    for run.global_step in range(10, 220, 10):
        lengths = (5, 7) if run.global_step < 210 else (3, 9)
        obs, actions, rewards, dones = make_episodes(lengths=lengths)
        ppo_metairn.log_credit(run, irn, batch := ppo_metairn.Batch(obs, actions, rewards, obs, dones, dones))
    columns = ppo_metairn.credit_columns(state, irn, batch)
    entropy = math.log(2) + (3 * math.log(2) + 9 * math.log(8)) / 2 / T
    assert list(columns.values()) == pytest.approx([3 * rewards.std().item(), entropy, 9, 1, 1], rel=1e-5)
    for state.used in (0, math.nan):
        assert ppo_metairn.credit_columns(state, irn, batch)["intrinsic_std"] == 0  # as PPO sees it
    assert all(map(math.isnan, ppo_metairn.credit_columns(SimpleNamespace(used=math.nan, test={})).values()))
    pictures = [call.args[1].shape for call in run.writer.add_image.call_args_list]  # at most ten
    assert pictures == [(200, 200)] * 6 + [(201, 201)]  # of 40 and 67 pixels a step
    arrays = np.load(tmp_path / "intrinsic.npz")
    assert arrays["global_step"].tolist() == [*range(10, 220, 10)]
    first_rows = [[0.5] * 5] * 20 + [[0.5] * 3 + [np.nan] * 2]  # filled up to the longest
    np.testing.assert_array_equal(arrays["first_step_attention"], first_rows)
    np.testing.assert_array_equal(arrays["attention_map"], [[0.5] * 3, [0.25] * 3, [0.25] * 3])


def test_the_picture_of_a_long_episode_has_blocks(tmp_path):
    """120 steps, three a block. The first is paid alone, and its weights grow with the step whose reward it is."""
    weights, zeros = torch.zeros(120, 120), torch.zeros(120, 1)
    weights[0] = torch.arange(1, 121) / 120
    irn = Mock(return_value=(zeros, weights.expand(1, 1, 120, 120)), config={}, state_dict=dict)
    args = ppo_metairn.Args(total_timesteps=1, eval_every=1)
    state, writer = SimpleNamespace(credit=[], used=1), Mock()
    run = SimpleNamespace(state=state, folder=tmp_path, args=args, writer=writer, num_iterations=1, global_step=1)
    ppo_metairn.log_credit(run, irn, ppo_metairn.Batch(*[zeros] * 6))
    expected = np.zeros((40, 40))
    expected[0] = np.arange(3, 121, 3) / 120
    np.testing.assert_allclose(writer.add_image.call_args.args[1], np.kron(expected, np.ones((5, 5))), rtol=1e-6)


NETWORKS = [*(("oracle", 0.9999, length) for length in (2, 10, 200)), ("irn", 0.9, 10), ("irn", 0.9, 200)]


@pytest.mark.parametrize(("name", "least", "length"), NETWORKS)
def test_the_committed_networks_pay_the_first_step_for_the_last_reward(name, least, length):
    """The oracle for every reward; the taught one (README: 10 steps, seed 3) all but a tenth or less, won or lost."""
    args = ppo_metairn.Args(chain_length=length, num_steps=length, hide_umbrella=True, invert_umbrella=True)
    envs, _, batch, _ = roll_out(ppo_metairn, args, 20, seed=1)
    irn = IntrinsicRewardNetwork(3, envs.single_action_space, "redistribution")
    load_irn(RESULTS / "carry_over" / f"{name}.pt", irn, "cpu")
    with torch.no_grad():
        r_in, weights = irn(batch.obs, batch.actions, batch.rewards, batch.dones)
    assert (weights[:, 0, 0, -1] >= least).all()
    if name == "oracle":
        mixed = torch.zeros(length, 20)
        mixed[0] = batch.rewards.sum(0)
        torch.testing.assert_close(batch.rewards + r_in, mixed, rtol=0, atol=1e-4)


def test_the_networks_that_no_meta_gradient_has_made():
    """The committed oracles are those that the script makes; the supervised attention never sees a reward."""
    script = runpy.run_path(str(RESULTS / "carry_over" / "other_teachers.py"))
    for study, obs_dim in (("carry_over", 3), ("umbrella/bsuite", 23)):
        committed = torch.load(RESULTS / study / "oracle.pt", weights_only=True)["parameters"]
        made = script["oracle"](obs_dim).state_dict()
        assert all(torch.equal(made[name], committed[name]) for name in committed)
    script["supervised"].__globals__.update(EPISODES=200, EPOCHS=2)
    irn = script["supervised"](1)
    assert not irn.embed.weight[:, 3].any()
    assert irn.embed.weight[:, 4].any()
