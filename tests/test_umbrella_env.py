"""Umbrella Length: the contract of bsuite's umbrella_chain.py, scalar and vectorised."""

import itertools
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from umbrella_env import UmbrellaEnv, UmbrellaVectorEnv

PAPER, BSUITE = "umbrella_env:UmbrellaLength-v0", "umbrella_env:UmbrellaLengthBsuite-v0"


def episode(env, actions, seed=None):
    """Observations (L + 1), rewards (L) and last info of one episode."""
    obs, info = env.reset(seed=seed)
    observations, rewards = [obs], []
    for i, action in enumerate(actions):
        assert info == {}
        obs, reward, terminated, truncated, info = env.step(action)
        assert (terminated, truncated) == (i == len(actions) - 1, False)
        observations.append(obs)
        rewards.append(reward)
    return np.array(observations), np.array(rewards), info


@pytest.mark.parametrize("env_id", [PAPER, BSUITE])
@pytest.mark.parametrize("kwargs", [{}, {"chain_length": 1}, {"chain_length": 3, "n_distractor": 4}])
def test_gymnasium_accepts_it(env_id, kwargs):
    check_env(gym.make(env_id, **kwargs).unwrapped)
    envs = gym.make_vec(env_id, num_envs=3, vectorization_mode="vector_entry_point", **kwargs)
    obs, _ = envs.reset(seed=1)
    assert obs in envs.observation_space
    assert envs.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP


def test_the_two_ids_differ_in_rewards_and_distractors():
    paper, bsuite = gym.make(PAPER).unwrapped, gym.make(BSUITE).unwrapped
    assert (paper.noise_reward, paper.final_reward, paper.n_distractor) == (0.1, 10.0, 0)
    assert (bsuite.noise_reward, bsuite.final_reward, bsuite.n_distractor) == (1.0, 1.0, 20)


@pytest.mark.parametrize("chain_length", [1, 2, 7])
def test_rewards_take_only_the_legal_values(chain_length):
    rng, env = np.random.default_rng(0), UmbrellaEnv(chain_length, noise_reward=0.5, final_reward=3.0)
    noise, final = set(), set()
    for seed in range(60):
        observations, rewards, info = episode(env, rng.integers(2, size=chain_length), seed)
        np.testing.assert_allclose(observations[:, 2], 1 - np.arange(chain_length + 1) / chain_length, rtol=1e-6)
        noise |= set(rewards[:-1])
        final.add(rewards[-1])
        assert info["success"] == (rewards[-1] == 3.0)
        assert info["regret"] == (0.0 if info["success"] else 2.0)
    assert final == {3.0, -3.0}
    assert noise == ({0.5, -0.5} if chain_length > 1 else set())


def test_only_the_first_action_matters_and_what_hiding_and_inverting_change():
    """Hiding changes only what `have` shows, inverting only the last reward and its info."""
    at_reset = set()
    for seed, action in itertools.product(range(20), (0, 1)):
        plain = episode(UmbrellaEnv(4, 2), [action, 1, 0, 1], seed)
        later = episode(UmbrellaEnv(4, 2), [action, 0, 1, 0], seed)
        other = episode(UmbrellaEnv(4, 2), [1 - action, 1, 0, 1], seed)
        hidden = episode(UmbrellaEnv(4, 2, hide_umbrella=True), [action, 1, 0, 1], seed)
        inverted = episode(UmbrellaEnv(4, 2, invert_umbrella=True), [action, 1, 0, 1], seed)
        assert (plain[0][1:, 1] == action).all()
        assert (hidden[0][:, 1] == 0).all()
        assert plain[2]["success"] == later[2]["success"] == hidden[2]["success"] == (plain[0][0, 0] == action)
        for x in (later, inverted):
            np.testing.assert_array_equal(plain[0], x[0])
        np.testing.assert_array_equal(np.delete(plain[0], 1, axis=1), np.delete(hidden[0], 1, axis=1))
        for x in (later, hidden):
            np.testing.assert_array_equal(plain[1], x[1])
        for x in (other, inverted):
            np.testing.assert_array_equal(plain[1] * [1, 1, 1, -1], x[1])
            assert x[2] == {"success": not plain[2]["success"], "regret": 2.0 - plain[2]["regret"]}
        at_reset.add(plain[0][0, 1])
    assert at_reset == {0, 1}  # random before the first action


def test_coins_are_fair_and_independent():
    envs = UmbrellaVectorEnv(4000, chain_length=2, n_distractor=1)
    first, _ = envs.reset(seed=7)
    second, rewards, *_ = envs.step(np.zeros(4000, int))
    coins = np.stack([first[:, 0], first[:, 1], first[:, 3], second[:, 3], rewards > 0])
    # a fair coin's mean over 4,000 has standard deviation 0.0079, a correlation 0.0158: 4.5 of each are allowed
    np.testing.assert_allclose(coins.mean(1), 0.5, atol=0.036)
    np.testing.assert_allclose(np.corrcoef(coins) - np.eye(5), 0, atol=0.071)


@pytest.mark.parametrize("kwargs", [{"n_distractor": 3}, {"hide_umbrella": True}, {"invert_umbrella": True}])
@pytest.mark.parametrize("chain_length", [1, 5])
def test_vector_of_one_reproduces_the_scalar_env(chain_length, kwargs):
    env, envs = UmbrellaEnv(chain_length, **kwargs), UmbrellaVectorEnv(1, chain_length, **kwargs)
    np.testing.assert_array_equal(env.reset(seed=5)[0], envs.reset(seed=5)[0][0])
    for action in np.random.default_rng(0).integers(2, size=120):
        obs, reward, terminated, truncated, info = env.step(action)
        vector_obs, rewards, terminations, truncations, infos = envs.step(np.array([action]))
        assert (reward, terminated, truncated) == (rewards[0], terminations[0], truncations[0])
        if terminated:
            np.testing.assert_array_equal(obs, infos["final_obs"][0])
            assert info == {key: infos["final_info"][key][0] for key in info}
            obs, _ = env.reset()
        np.testing.assert_array_equal(obs, vector_obs[0])


def test_vector_infos_are_laid_out_as_sync_vector_env_does():
    """Structure, keys, shapes and dtypes of a terminal step; the values differ, as the random streams do."""
    mode = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}
    sync = gym.make_vec(PAPER, 3, "sync", vector_kwargs=mode, chain_length=1)
    ours = gym.make_vec(PAPER, 3, "vector_entry_point", chain_length=1)

    def layout(x):
        return {k: layout(v) for k, v in sorted(x.items())} if isinstance(x, dict) else (x.shape, x.dtype)

    sync.reset(seed=1)
    ours.reset(seed=1)
    for a, b in zip(*(envs.step(np.zeros(3, int)) for envs in (sync, ours)), strict=True):
        assert layout(a) == layout(b)


def test_every_call_returns_fresh_arrays():
    for env, action in [(UmbrellaEnv(3), 0), (UmbrellaVectorEnv(2, 3), np.zeros(2, int))]:
        arrays, infos = [env.reset(seed=1)[0]], []
        for _ in range(4 if isinstance(env, UmbrellaVectorEnv) else 3):
            *results, info = env.step(action)
            arrays += [x for x in results if isinstance(x, np.ndarray)]
            infos.append(info)
        copies = [x.copy() for x in arrays]
        for i, x in enumerate(arrays):
            x[...] = 1 - x
            copies[i] = x.copy()
            for other, copy in zip(arrays, copies, strict=True):
                np.testing.assert_array_equal(other, copy)
        assert len({id(info) for info in infos}) == len(infos)


def test_seeding():
    def trace(seed):
        envs = UmbrellaVectorEnv(5, 4, n_distractor=2)
        obs = [envs.reset(seed=seed)[0]]
        return np.stack(obs + [envs.step(np.ones(5, int))[0] for _ in range(12)])

    np.testing.assert_array_equal(trace(3), trace(3))
    np.testing.assert_array_equal(trace([3, 9]), trace([3, 9]))
    assert not np.array_equal(trace(3), trace(4))
    assert not np.array_equal(trace([3, 9]), trace([3, 8]))
    env = UmbrellaEnv(4)  # a reset without a seed goes on with the stream: episodes differ
    needs = [env.reset(seed=s)[0][0] for s in (0, None, None, None, None, None, None, None)]
    assert set(needs) == {0, 1}


def test_bad_arguments():
    bad = [("chain_length", 0), ("chain_length", 2.5), ("n_distractor", -1), ("noise_reward", -0.1)]
    for name, value in [*bad, ("final_reward", float("nan"))]:
        for make in (UmbrellaEnv, partial(UmbrellaVectorEnv, 2)):
            with pytest.raises(ValueError, match=name):
                make(**{name: value})


def test_bad_calls():
    env, envs = UmbrellaEnv(2), UmbrellaVectorEnv(2, 2)
    for x, action in ((env, 0), (envs, np.zeros(2, int))):
        with pytest.raises(ResetNeeded):
            x.step(action)
        x.reset(seed=1)
    one, two = [2, -1, 0.5, None, np.zeros(2, int)], [[0], [0, 2], [0, -1], [0.0, 1.0], [[0], [0]], 1, np.uint8([0, 2])]
    for x, action in [*((env, x) for x in one), *((envs, x) for x in two)]:
        with pytest.raises(ValueError, match="action"):
            x.step(action)
    envs.step(np.uint8([0, 1]))  # integers of every kind
    env.step(0)
    env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ValueError, match="num_envs"):
        UmbrellaVectorEnv(0)
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.array([True, False])})
