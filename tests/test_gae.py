"""compute_gae against its definition, and its derivatives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_vanilla import compute_gae  # the other scripts' is the same text: test_scripts.py


def brute_force(rewards, values, next_values, terminations, dones, gamma, gae_lambda):
    """Schulman et al. 2016, eq. 16: k-step advantages, weights (1 - lambda) lambda^(k-1), the last by all the rest"""
    advantages = np.zeros_like(rewards)
    for t, n in np.ndindex(rewards.shape):
        last = next((i for i in range(t, len(rewards)) if dones[i, n]), len(rewards) - 1) - t + 1
        for k in range(1, last + 1):
            end = t + k - 1
            bootstrap = 0.0 if terminations[end, n] else next_values[end, n]
            k_step = gamma ** np.arange(k) @ rewards[t : end + 1, n] + gamma**k * bootstrap - values[t, n]
            advantages[t, n] += gae_lambda ** (k - 1) * (1 if k == last else 1 - gae_lambda) * k_step
    return advantages


def random_rollout(T, N, seed, p_done=0.15):
    """Consistent data: next_values[t] = values[t + 1] except where an episode ended; NaN where it terminated."""
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, T, N))
    dones = rng.random((T, N)) < p_done
    terminations = dones & (rng.random((T, N)) < 0.5)
    next_values[:-1] = np.where(dones[:-1], next_values[:-1], values[1:])
    next_values[terminations] = np.nan
    return rewards, values, next_values, terminations.astype(float), dones.astype(float)


unit = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


@settings(deadline=None, max_examples=150)
@given(T=st.integers(1, 70), N=st.integers(1, 3), seed=st.integers(0, 10**6), gamma=unit, gae_lambda=unit, p_done=unit)
def test_equals_the_definition(T, N, seed, gamma, gae_lambda, p_done):
    data = random_rollout(T, N, seed, p_done)
    ours = compute_gae(*map(torch.from_numpy, data), gamma, gae_lambda)
    np.testing.assert_allclose(ours, brute_force(*data, gamma, gae_lambda), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.97, 0.9), (1.0, 1.0), (0.9, 0.0)])
def test_gradients(gamma, gae_lambda):
    rewards, values, next_values, *ends = map(torch.from_numpy, random_rollout(13, 2, seed=1))
    inputs = [x.requires_grad_() for x in (rewards, values, next_values)]
    assert torch.autograd.gradcheck(lambda *x: compute_gae(*x, *ends, gamma, gae_lambda), inputs)


@pytest.mark.parametrize("which", [0, 1], ids=["reward", "value"])
def test_nan_reaches_the_earlier_steps_of_its_episode_and_no_others(which):
    data = [torch.from_numpy(x) for x in random_rollout(12, 2, seed=2, p_done=0)]
    data[4][[4, 8]] = 1  # episodes of 5 and 4 steps, and one that the rollout cuts
    data[which][7, 0] = torch.nan
    nan = compute_gae(*data, 0.99, 0.95).isnan()
    assert nan.nonzero().tolist() == [[5, 0], [6, 0], [7, 0]]


def test_the_value_of_a_terminal_state_is_never_used():
    """It may be NaN: the terminal step's advantage is its reward minus its value."""
    rewards, values, next_values, terminations, dones = map(torch.from_numpy, random_rollout(12, 2, seed=3, p_done=0))
    dones[[4, 8]], terminations[4], next_values[4] = 1, 1, torch.nan
    inputs = [x.requires_grad_() for x in (rewards, values, next_values)]
    advantages = compute_gae(*inputs, terminations, dones, 0.99, 0.95)
    assert advantages.isfinite().all()
    assert torch.equal(advantages[4], (rewards - values)[4])
    advantages.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert not next_values.grad[4].any()
    assert next_values.grad[8].all()  # of an episode that was truncated: this one is used


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_input_raises(shape):
    with pytest.raises(ValueError, match="at least one step"):
        compute_gae(*[torch.zeros(shape)] * 5, 0.99, 0.95)
