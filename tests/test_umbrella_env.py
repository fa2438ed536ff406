"""Umbrella Length: the contract of bsuite's umbrella_chain.py, scalar and vectorised."""

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
    assert info == {}
    observations, rewards, terminated = [obs], [], False
    for action in actions:
        assert not terminated
        obs, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        assert terminated or info == {}
        observations.append(obs)
        rewards.append(reward)
    assert terminated
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
    rng = np.random.default_rng(0)
    env = UmbrellaEnv(chain_length, noise_reward=0.5, final_reward=3.0)
    noise, final = [], set()
    for seed in range(60):
        observations, rewards, info = episode(env, rng.integers(2, size=chain_length), seed)
        np.testing.assert_allclose(observations[:, 2], 1 - np.arange(chain_length + 1) / chain_length, rtol=1e-6)
        noise += rewards[:-1].tolist()
        final.add(rewards[-1])
        assert info["success"] == (rewards[-1] == 3.0)
        assert info["regret"] == (0.0 if info["success"] else 2.0)
    assert final == {3.0, -3.0}
    assert set(noise) == ({0.5, -0.5} if chain_length > 1 else set())


def test_only_the_first_action_matters():
    env = UmbrellaEnv(chain_length=6, n_distractor=2)
    for seed in range(20):
        take, later = episode(env, [1, 0, 0, 0, 0, 0], seed), episode(env, [1, 1, 0, 1, 1, 1], seed)
        np.testing.assert_array_equal(take[0], later[0])
        np.testing.assert_array_equal(take[1], later[1])
        leave = episode(env, [0, 1, 1, 1, 1, 1], seed)
        np.testing.assert_array_equal(take[1][:-1], leave[1][:-1])
        assert take[1][-1] == -leave[1][-1]
        need = take[0][0, 0]
        assert take[2]["success"] == (need == 1)


def test_have_shows_the_first_action_unless_hidden():
    at_reset = set()
    for seed in range(20):
        for action in (0, 1):
            shown, _, _ = episode(UmbrellaEnv(4), [action, 1 - action, 0, 1], seed)
            hidden, _, info = episode(UmbrellaEnv(4, hide_umbrella=True), [action, 1 - action, 0, 1], seed)
            assert (shown[1:, 1] == action).all()
            assert (hidden[:, 1] == 0).all()
            np.testing.assert_array_equal(np.delete(shown, 1, axis=1), np.delete(hidden, 1, axis=1))
            assert info["success"] == (hidden[0, 0] == action)
            at_reset.add(shown[0, 1])
    assert at_reset == {0, 1}  # random before the first action


def test_inverted_it_pays_for_the_opposite_and_is_the_same_otherwise():
    for seed in range(20):
        for action in (0, 1):
            plain, rewards, info = episode(UmbrellaEnv(4), [action, 1, 0, 1], seed)
            inverted, inverted_rewards, inverted_info = episode(
                UmbrellaEnv(4, invert_umbrella=True), [action, 1, 0, 1], seed
            )
            np.testing.assert_array_equal(plain, inverted)
            np.testing.assert_array_equal(rewards * [1, 1, 1, -1], inverted_rewards)
            assert inverted_info == {"success": not info["success"], "regret": 2.0 - info["regret"]}


def test_coins_are_fair_and_independent():
    envs = UmbrellaVectorEnv(4000, chain_length=2, n_distractor=1)
    first, _ = envs.reset(seed=7)
    second, rewards, *_ = envs.step(np.zeros(4000, int))
    coins = np.stack([first[:, 0], first[:, 1], first[:, 3], second[:, 3], rewards > 0])
    # a fair coin's mean over 4,000 has standard deviation 0.0079, a correlation 0.0158: 4.5 of each are allowed
    np.testing.assert_allclose(coins.mean(1), 0.5, atol=0.036)
    np.testing.assert_allclose(np.corrcoef(coins) - np.eye(5), 0, atol=0.071)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"chain_length": 1},
        {"chain_length": 5, "n_distractor": 3},
        {"hide_umbrella": True},
        {"invert_umbrella": True, "chain_length": 4},
    ],
)
def test_vector_of_one_reproduces_the_scalar_env(kwargs):
    env, envs = UmbrellaEnv(**kwargs), UmbrellaVectorEnv(1, **kwargs)
    rng = np.random.default_rng(0)
    (obs, _), (vector_obs, _) = env.reset(seed=5), envs.reset(seed=5)
    np.testing.assert_array_equal(obs, vector_obs[0])
    for action in rng.integers(2, size=120):
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

    results = []
    for envs in (sync, ours):
        envs.reset(seed=1)
        results.append(envs.step(np.zeros(3, int)))
    for a, b in zip(*results, strict=True):
        assert layout(a) == layout(b)


def test_every_call_returns_fresh_arrays():
    for env, action in [(UmbrellaEnv(3), 0), (UmbrellaVectorEnv(2, 3), np.zeros(2, int))]:
        arrays, infos = [env.reset(seed=1)[0]], []
        for _ in range(4 if isinstance(env, UmbrellaVectorEnv) else 3):
            obs, reward, terminated, truncated, info = env.step(action)
            arrays += [x for x in (obs, reward, terminated, truncated) if isinstance(x, np.ndarray)]
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


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"chain_length": 0}, "chain_length"),
        ({"chain_length": 2.5}, "chain_length"),
        ({"n_distractor": -1}, "n_distractor"),
        ({"noise_reward": -0.1}, "noise_reward"),
        ({"final_reward": float("nan")}, "final_reward"),
    ],
)
def test_bad_arguments(kwargs, named):
    with pytest.raises(ValueError, match=named):
        UmbrellaEnv(**kwargs)
    with pytest.raises(ValueError, match=named):
        UmbrellaVectorEnv(2, **kwargs)


def test_bad_calls():
    env, envs = UmbrellaEnv(2), UmbrellaVectorEnv(2, 2)
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ResetNeeded):
        envs.step(np.zeros(2, int))
    env.reset(seed=1)
    envs.reset(seed=1)
    for action in (2, -1, 0.5, None, np.zeros(2, int)):
        with pytest.raises(ValueError, match="action"):
            env.step(action)
    for actions in ([0], [0, 2], [0, -1], [0.0, 1.0], np.zeros((2, 1), int), 1):
        with pytest.raises(ValueError, match="actions"):
            envs.step(np.asarray(actions))
    env.step(0)
    env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)
    with pytest.raises(ValueError, match="num_envs"):
        UmbrellaVectorEnv(0)
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.array([True, False])})
