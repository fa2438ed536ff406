"""What stands between environments and learner: delayed and normalized rewards, normalized observations, segments."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import assert_same, column, read_checkpoint, read_result

import ppo_cln
import ppo_lirpg
import ppo_metairn
import ppo_vanilla

# 4 environments x 16 steps = 64 steps per iteration, evaluated every second iteration
TRAINS = ["--num-envs", 4, "--num-steps", 16, "--num-minibatches", 2, "--update-epochs", 2, "--eval-every", 128]
TRAINS += ["--eval-episodes", 3, "--total-timesteps", 512]
WALK = [*TRAINS, "--env-id", "field_envs:Walk-v0"]


def fixed(script):
    """A network of ppo_metairn.py stays untrained: these runs are too small for its phase 1."""
    return ["--meta-learning-rate", 0] if script is ppo_metairn else []


def view_of(num_envs, env_id="field_envs:Walk-v0", **kwargs):
    return ppo_vanilla.make_envs(ppo_vanilla.Args(env_id=env_id, **kwargs), num_envs)


def steps_of(envs, count):
    """The first observation, and `count` steps as (obs, rewards, terminations, truncations, infos)."""
    obs, _ = envs.reset(seed=3)
    return obs, [envs.step(np.zeros(envs.num_envs, int)) for _ in range(count)]


@pytest.mark.parametrize("num_envs", [1, 5])
@pytest.mark.parametrize("delay", [1, 4, 20])
def test_a_delayed_reward_is_the_sum_since_the_last_one_and_nothing_is_lost(num_envs, delay):
    _, dense = steps_of(view_of(num_envs), 200)
    _, delayed = steps_of(view_of(num_envs, reward_delay=delay), 200)
    episodes = np.zeros(2)  # terminated, truncated
    for n in range(num_envs):
        owed, steps = 0.0, 0
        for (obs, reward, *ends, infos), (delayed_obs, paid, *_, delayed_infos) in zip(dense, delayed, strict=True):
            owed, steps, ended = owed + reward[n], steps + 1, ends[0][n] or ends[1][n]
            np.testing.assert_array_equal(obs, delayed_obs)
            due = owed if steps % delay == 0 or ended else 0.0
            assert paid[n] == pytest.approx(due)
            owed -= due
            if ended:  # what is logged is the environment's own return, whatever the delay
                assert infos["episode"]["r"][n] == delayed_infos["episode"]["r"][n]
                episodes, steps = episodes + [end[n] for end in ends], 0
    assert (episodes > 2).all()


def test_normalized_rewards_may_be_delayed():
    """--delay-normalized: what is paid is the sum of what would have been paid, normalized, at each step."""
    _, dense = steps_of(view_of(3, normalize=True), 200)
    _, delayed = steps_of(view_of(3, normalize=True, reward_delay=4, delay_normalized=True), 200)
    owed, steps, paid = np.zeros(3), np.zeros(3), 0
    for (_, rewards, *ends, _), (_, payments, *_) in zip(dense, delayed, strict=True):
        owed, steps, ended = owed + rewards, steps + 1, ends[0] | ends[1]
        due = np.where(ended | (steps % 4 == 0), owed, 0)
        np.testing.assert_allclose(payments, due, atol=1e-12)
        owed, steps, paid = owed - due, np.where(ended, 0, steps), paid + (due != 0).sum()
    assert paid > 100


def test_a_live_bonus_is_paid_at_every_step(cli, monkeypatch):
    seen, update = [], ppo_vanilla.ppo_update
    monkeypatch.setattr(ppo_vanilla, "ppo_update", lambda *args: seen.append(args[5].rewards) or update(*args))
    for bonus in (0, 0.25):
        cli(ppo_vanilla, *WALK, "--total-timesteps", 64, "--live-bonus", bonus, "--exp-name", bonus)
    torch.testing.assert_close(seen[1], seen[0] + 0.25)


def test_within_an_episode_normalization_is_that_of_gymnasium():
    """Of one environment, to the end of its first episode: after it gymnasium's counts the last observation too."""
    env = gym.wrappers.NormalizeReward(gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1")), gamma=0.9)
    envs = view_of(1, "Pendulum-v1", normalize=True, gamma=0.9)
    obs, _ = envs.reset(seed=[5])
    expected, _ = env.reset(seed=5)
    np.testing.assert_allclose(obs[0], expected, atol=1e-4)  # single precision there
    for t in range(199):
        action = np.array([np.sin(t)], np.float32)
        expected, reward, *_ = env.step(2 * action)  # Pendulum's actions lie in [-2, 2], the learner's in [-1, 1]
        obs, rewards, *_ = envs.step(action[None])
        np.testing.assert_allclose(obs[0], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(rewards[0], np.clip(reward, -10, 10), rtol=1e-4)


def test_statistics_are_of_all_environments_and_both_are_clipped_at_10():
    first, raw = steps_of(view_of(3), 300)
    view = view_of(3, normalize=True, gamma=0.9)
    _, seen = steps_of(view, 300)
    all_obs = np.concatenate([first, *(obs for obs, *_ in raw)])
    for name in ("mean", "var"):
        np.testing.assert_allclose(getattr(view.statistics[0], name), getattr(all_obs, name)(0), rtol=1e-4)
    returns, running = [], np.zeros(3)
    for _, rewards, terminations, truncations, _ in raw:
        running = 0.9 * running + rewards
        returns.append(running.copy())
        running[terminations | truncations] = 0
    np.testing.assert_allclose(view.statistics[1].var, np.var(returns), rtol=1e-4)
    np.testing.assert_allclose(seen[-1][0], (raw[-1][0] - all_obs.mean(0)) / all_obs.std(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen[-1][1], raw[-1][1] / np.std(returns), rtol=1e-3)
    for (*_, terminations, truncations, infos), (*_, seen_infos) in zip(raw, seen, strict=True):
        for n in np.flatnonzero(terminations | truncations):  # the last observation is seen as the others are
            assert infos["final_obs"][n].max() > 5
            assert abs(seen_infos["final_obs"][n]).max() < 5
    view.statistics[0].var[:], view.statistics[1].var, view.learns = 1e-12, 1e-12, False
    obs, rewards, *_ = view.step(np.zeros(3, int))
    assert abs(obs).max() == rewards.max() == 10


def test_without_normalize_nothing_is_changed_or_learned():
    plain = gym.make_vec("field_envs:Walk-v0", 3, "sync", {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP})
    view = view_of(3)
    obs, _ = view.reset(seed=3)
    np.testing.assert_array_equal(obs, plain.reset(seed=3)[0])
    for _ in range(50):
        assert_same(*(envs.step(np.zeros(3, int))[:4] for envs in (view, plain)))
    assert view.statistics[0].count == pytest.approx(1e-4)


def test_an_evaluation_uses_the_statistics_and_leaves_them_alone(script, cli, monkeypatch):
    folder = cli(script, *WALK, *fixed(script), "--normalize")
    stored = read_checkpoint(folder)["statistics"]
    assert stored[0].count == pytest.approx(512 + 4 + 1e-4)  # the training's steps and its first observations
    used, first, make_envs = [], [], script.make_envs

    def recorded(*args):
        used.append(make_envs(*args))
        reset = used[-1].reset
        used[-1].reset = lambda **kwargs: first.append(reset(**kwargs)) or first[-1]
        return used[-1]

    monkeypatch.setattr(script, "make_envs", recorded)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    cli(script, "--evaluate", folder)
    assert_same(used[-1].statistics, stored)
    expected = ([5, 0] - stored[0].mean) / np.sqrt(stored[0].var)
    np.testing.assert_allclose(first[-1][0][0], expected, rtol=1e-5)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


KINDS = [(ppo_lirpg, ["--outer-batch", "same", "--irn", x]) for x in ("mlp", "attention")]
KINDS += [(ppo_metairn, ["--irn", x]) for x in ("redistribution", "kernel")]


@pytest.mark.parametrize(("script", "flags"), [(ppo_vanilla, []), *KINDS])
def test_all_segments_in_one_minibatch_are_the_whole_rollouts(script, flags, cli, float64):
    """Advantages and intrinsic rewards are of whole rollouts, however they are cut."""
    common = [*WALK, *fixed(script), "--num-minibatches", 1, "--normalize", *flags]
    networks = []
    for length in (16, 8, 1):
        cut = ["--segment-length", length, "--exp-name", length, "--total-timesteps", 64]
        networks.append(read_checkpoint(cli(script, *common, *cut))["networks"])
        torch.testing.assert_close(networks[-1], networks[0], rtol=1e-7, atol=1e-7)


def test_a_segment_is_a_minibatchs_unit(script, cli, monkeypatch):
    """With segments of 4 steps a rollout of 4 x 16 steps gives 16 minibatches of one segment; each is used once."""
    seen, policy_loss = [], script.policy_loss

    def recorded(new_logprobs, *args):
        seen.append(sorted(new_logprobs.shape))
        return policy_loss(new_logprobs, *args)

    monkeypatch.setattr(script, "policy_loss", recorded)
    flags = ["--num-minibatches", 16, "--total-timesteps", 64, "--segment-length", 4]
    cli(script, *WALK, *fixed(script), *flags)
    passes = {ppo_lirpg: 2 * 2, ppo_cln: 1 + 2}.get(script, 2)  # inner and outer steps; one pass of reward iterations
    assert seen == [[1, 4]] * 16 * passes


@pytest.mark.slow
def test_mujoco_loses_no_statistics_when_it_is_resumed_and_repeats_a_run(script, cli, interrupt, capsys):
    pytest.importorskip("mujoco", reason="needs requirements-mujoco.txt")
    flags = ["--env-id", "Hopper-v5", "--normalize", "--reward-delay", 4, "--segment-length", 4, *fixed(script)]
    straight = [cli(script, *TRAINS, *flags, "--exp-name", name) for name in ("a", "b")]
    assert_same(*map(read_result, straight))
    folder, calls = interrupt(script, cli, script, *TRAINS, *flags)
    assert read_checkpoint(folder)["statistics"][0].count == pytest.approx(2 * 64 + 4 + 1e-4)  # the last evaluation
    cli(script, "--resume", folder)
    assert len(calls) == 4 + 6
    ended = read_checkpoint(folder)["statistics"]
    assert ended[0].count == pytest.approx(512 + 4 + 4 + 1e-4)  # new episodes began when it was resumed
    assert ended[1].count == pytest.approx(512 + 1e-4)
    assert column(folder, "global_step") == [0, 128, 256, 384, 512]
    capsys.readouterr()
    for path in straight:
        cli(script, "--evaluate", path)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert float(first.split("return ")[1].split(",")[0]) > 0
