"""compute_gae against two independent ways to compute it, and its derivatives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_metairn import compute_gae  # ppo_vanilla.py's is the same text: test_scripts.py


def backward_loop(rewards, values, next_values, terminations, dones, gamma, gae_lambda):
    """The textbook recursion, one environment and one step at a time."""
    advantages = np.zeros_like(rewards)
    for n in range(rewards.shape[1]):
        following = 0.0
        for t in reversed(range(len(rewards))):
            bootstrap = 0.0 if terminations[t, n] else next_values[t, n]
            delta = rewards[t, n] + gamma * bootstrap - values[t, n]
            following = delta + (0.0 if dones[t, n] else gamma * gae_lambda * following)
            advantages[t, n] = following
    return advantages


def brute_force(rewards, values, next_values, terminations, dones, gamma, gae_lambda):
    """Eq. 16 of Schulman et al. 2016 as it stands: the lambda-weighted mean of all k-step advantages.

    A^(k) = sum_{l<k} gamma^l r_{t+l} + gamma^k V(s_{t+k}) - V(s_t), the weights (1 - lambda) lambda^(k-1), and all the
    remaining weight on the last k that the episode (or the rollout) allows.
    """
    T, N = rewards.shape
    advantages = np.zeros_like(rewards)
    for n in range(N):
        for t in range(T):
            last = next((i for i in range(t, T) if dones[i, n]), T - 1) - t + 1
            for k in range(1, last + 1):
                end = t + k - 1
                bootstrap = 0.0 if terminations[end, n] else next_values[end, n]
                discounts = gamma ** np.arange(k)
                k_step = discounts @ rewards[t : end + 1, n] + gamma**k * bootstrap - values[t, n]
                weight = gae_lambda ** (k - 1) * (1 if k == last else 1 - gae_lambda)
                advantages[t, n] += weight * k_step
    return advantages


def random_rollout(T, N, seed, p_done=0.15):
    """Consistent data: next_values[t] = values[t + 1] except where an episode ended."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, T, N))
    dones = rng.random((T, N)) < p_done
    terminations = dones & (rng.random((T, N)) < 0.5)
    next_values[:-1] = np.where(dones[:-1], next_values[:-1], values[1:])
    return rewards, values, next_values, terminations.astype(float), dones.astype(float)


unit = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@settings(deadline=None, max_examples=150)
@given(T=st.integers(1, 300), N=st.integers(1, 4), seed=st.integers(0, 10**6), gamma=unit, gae_lambda=unit, p_done=unit)
def test_equals_the_backward_loop(T, N, seed, gamma, gae_lambda, p_done):
    data = random_rollout(T, N, seed, p_done)
    ours = compute_gae(*map(torch.from_numpy, data), gamma, gae_lambda)
    np.testing.assert_allclose(ours, backward_loop(*data, gamma, gae_lambda), rtol=1e-10, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(T=st.integers(1, 25), seed=st.integers(0, 10**6), gamma=unit, gae_lambda=unit)
def test_equals_the_definition(T, seed, gamma, gae_lambda):
    data = random_rollout(T, 2, seed)
    ours = compute_gae(*map(torch.from_numpy, data), gamma, gae_lambda)
    np.testing.assert_allclose(ours, brute_force(*data, gamma, gae_lambda), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.97, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_gradients(gamma, gae_lambda):
    rewards, values, next_values, *ends = map(torch.from_numpy, random_rollout(13, 2, seed=1))
    inputs = [x.requires_grad_() for x in (rewards, values, next_values)]
    assert torch.autograd.gradcheck(lambda *x: compute_gae(*x, *ends, gamma, gae_lambda), inputs)


def test_nan_propagates_to_the_steps_before_it():
    data = [torch.from_numpy(x) for x in random_rollout(9, 1, seed=2, p_done=0)]
    data[0][5] = torch.nan
    nan = compute_gae(*data, 0.99, 0.95).isnan().squeeze()
    assert nan[:6].all()
    assert not nan[6:].any()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_input_raises(shape):
    with pytest.raises(ValueError, match="at least one step"):
        compute_gae(*[torch.zeros(shape)] * 5, 0.99, 0.95)
