"""The intrinsic reward network is alive, and an episode's intrinsic reward depends on that episode alone."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from ppo_metairn import Args, IntrinsicRewardNetwork, Minibatch, diagnose, episodes_and_times

T, N = 12, 3
DISCRETE, BOX = gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,))
SIZES = [(1, 1), (2, 2)]  # heads, layers


def make_irn(space=DISCRETE, kind="attention", heads=1, layers=1):
    torch.manual_seed(0)
    return IntrinsicRewardNetwork(4, space, kind, dim=8, heads=heads, layers=layers)


def make_episodes(space=DISCRETE, lengths=(5, 7)):
    """obs, actions, rewards, dones of N environments, each holding episodes of the given lengths one after another."""
    torch.manual_seed(1)
    obs, rewards, dones = torch.randn(T, N, 4), torch.randn(T, N), torch.zeros(T, N)
    dones[np.cumsum(lengths) - 1] = 1
    actions = torch.randint(3, (T, N)) if space is DISCRETE else torch.randn(T, N, 2)
    return obs, actions, rewards, dones


def test_episodes_and_times():
    dones = torch.tensor([[0, 1], [1, 0], [0, 0], [0, 1], [0, 1]]).float()
    episode, time = episodes_and_times(dones)
    assert episode.T.tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 2]]
    assert time.T.tolist() == [[0, 1, 0, 1, 2], [0, 0, 1, 2, 0]]


@pytest.mark.parametrize("space", [DISCRETE, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize(("heads", "layers"), SIZES)
@pytest.mark.parametrize("what", ["obs", "action", "reward"])
def test_one_change_alters_every_step_of_its_episode_and_no_bit_of_any_other(space, heads, layers, what):
    irn, episodes = make_irn(space, heads=heads, layers=layers), make_episodes(space)
    before, _ = irn(*episodes)
    assert before.std(0).min() > 0  # varies over each trajectory
    obs, actions, rewards, dones = (x.clone() for x in episodes)
    t, n = 3, 1  # the first episode, steps 0 ... 4, of environment 1
    if what == "obs":
        obs[t, n] += 1
    elif what == "action":
        actions[t, n] = (actions[t, n] + 1) % 3 if space is DISCRETE else actions[t, n] + 1
    else:
        rewards[t, n] += 1
    after, _ = irn(obs, actions, rewards, dones)
    changed = before != after
    assert changed[:5, n].all()  # earlier steps, the step itself and later ones
    changed[:5, n] = False
    assert not changed.any()


def test_an_episode_is_the_same_wherever_it_stands_in_the_rollout():
    irn = make_irn()
    obs, actions, rewards, dones = make_episodes(lengths=(5, 7))
    swapped = [torch.cat([x[5:], x[:5]]) for x in (obs, actions, rewards, dones)]
    r_in, _ = irn(obs, actions, rewards, dones)
    moved, _ = irn(*swapped)
    torch.testing.assert_close(torch.cat([r_in[5:], r_in[:5]]), moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("heads", "layers"), SIZES)
def test_attention_is_a_distribution_over_the_own_episode(heads, layers):
    *episode, dones = make_episodes()
    r_in, attention = make_irn(heads=heads, layers=layers)(*episode, dones)
    assert r_in.shape == (T, N)
    assert attention.shape == (N, heads, T, T)
    torch.testing.assert_close(attention.sum(-1), torch.ones(N, heads, T))
    own = torch.block_diag(torch.ones(5, 5), torch.ones(7, 7)).bool()
    assert (attention[..., own] > 0).all()
    assert (attention[..., ~own] == 0).all()


def test_mlp_reads_one_state_and_action():
    irn, episodes = make_irn(kind="mlp"), make_episodes()
    before, attention = irn(*episodes)
    assert torch.equal(attention, torch.eye(T).expand(N, 1, T, T))
    obs, actions, rewards, dones = (x.clone() for x in episodes)
    obs[3, 1] += 1
    actions[6, 2] = (actions[6, 2] + 1) % 3
    rewards += 1
    dones[0] = 1
    changed = before != irn(obs, actions, rewards, dones)[0]
    assert changed.nonzero().tolist() == [[3, 1], [6, 2]]


@pytest.mark.parametrize("space", [DISCRETE, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize(("kind", "heads", "layers"), [("attention", 1, 1), ("attention", 2, 2), ("mlp", 1, 1)])
def test_every_parameter_has_a_gradient(space, kind, heads, layers):
    irn = make_irn(space, kind, heads, layers)
    (irn(*make_episodes(space))[0] * torch.randn(T, N)).sum().backward()
    for name, p in irn.named_parameters():
        key_bias = torch.zeros_like(p, dtype=torch.bool)
        if name.startswith("qkv") and name.endswith("bias"):
            key_bias[8:16] = True  # a shift of all keys adds the same to every score of a row: no derivative, by theory
        assert p.grad[~key_bias].abs().max() > 0, name


def test_diagnose_on_a_known_reward():
    """r_in given by hand: every number can be checked on paper."""
    obs, actions, rewards, dones = make_episodes(lengths=(5, 7))
    _, time = episodes_and_times(dones)
    attention = torch.zeros(N, 1, T, T)
    attention[..., :5, 4] = 1  # all steps of the first episode attend to its last, those of the second to its first
    attention[..., 5:, 5] = 1

    def irn(*_):
        return 2 * rewards + 0 * time, attention

    zeros = torch.zeros(T, N)
    data = Minibatch(obs, actions, rewards, dones, dones, *[zeros] * 6)
    scalars, arrays = diagnose(irn, data, Args(intrinsic_coef=0.5, extrinsic_coef=3.0))
    assert scalars["mean"] == pytest.approx(2 * rewards.mean().item(), abs=1e-6)
    assert scalars["extrinsic_correlation"] == pytest.approx(1, abs=1e-5)
    assert scalars["advantage_share"] == pytest.approx(1 / 4, abs=1e-5)  # 0.5 * 2 of 0.5 * 2 + 3
    assert scalars["attention_entropy"] == 0
    by_time = [2 * rewards[time == t] for t in range(7)]
    np.testing.assert_allclose(arrays["r_in_mean"][:7], [x.mean() for x in by_time], rtol=1e-5)
    np.testing.assert_allclose(arrays["r_in_std"][:7], [x.std(correction=0) for x in by_time], rtol=1e-4)
    assert np.isnan(arrays["r_in_mean"][7:]).all()  # no episode is longer than 7
    np.testing.assert_allclose(arrays["first_step_attention"][:7], [0.5, 0, 0, 0, 0.5, 0, 0])
    assert arrays["attention_map"].shape == (5, 5)
    assert (arrays["attention_map"][:, 4] == 1).all()
