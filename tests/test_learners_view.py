"""What stands between environments and learner: delayed and normalized rewards, normalized observations, segments."""

import os
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_scripts import TINY, assert_same, only_run, read_result, read_rows

import ppo_metairn
import ppo_vanilla

# An environment that both terminates and is truncated, by chance; its reward is never 0 and its observation not normal
TRAINS = ["--num-envs", 4, "--num-steps", 16, "--num-minibatches", 2, "--update-epochs", 2, "--eval-every", 128]
TRAINS += ["--eval-episodes", 3, "--total-timesteps", 512]


class Walk(gym.Env):
    """A random walk that terminates far from its start and is truncated after 11 steps. The reward is the position."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.time = 5.0, 0
        return self.obs(), {}

    def obs(self):
        return np.array([self.position, 10.0 * self.time], np.float32)

    def step(self, action):
        self.position += self.np_random.normal()
        self.time += 1
        return self.obs(), self.position, abs(self.position - 5) > 3, self.time == 11, {}


gym.register("Walk-v0", Walk)


def view_of(script, num_envs, statistics=None, **kwargs):
    args = script.Args(env_id="Walk-v0", **kwargs)
    return script.make_envs(args, num_envs, statistics)[0]


def steps_of(envs, count, seed=3):
    """The first observation, and `count` steps as (obs, rewards, terminations, truncations, infos)."""
    obs, _ = envs.reset(seed=seed)
    return obs, [envs.step(np.zeros(envs.num_envs, int)) for _ in range(count)]


# ---------------------------------------------------------------------------------------------- delayed rewards


@pytest.mark.parametrize("num_envs", [1, 5])
@pytest.mark.parametrize("delay", [1, 4, 20])
def test_a_delayed_reward_is_the_sum_since_the_last_one_and_nothing_is_lost(script, num_envs, delay):
    _, dense = steps_of(view_of(script, num_envs), 200)
    _, delayed = steps_of(view_of(script, num_envs, reward_delay=delay), 200)
    terminated = truncated = 0
    for n in range(num_envs):
        owed, steps = 0.0, 0
        for (obs, reward, *ends, infos), (delayed_obs, paid, *_, delayed_infos) in zip(dense, delayed, strict=True):
            owed, steps = owed + reward[n], steps + 1
            ended = ends[0][n] or ends[1][n]
            np.testing.assert_array_equal(obs, delayed_obs)
            if steps % delay == 0 or ended:
                assert paid[n] == pytest.approx(owed)
                owed = 0.0
            else:
                assert paid[n] == 0
            if ended:  # what is logged is the environment's own return, whatever the delay
                assert infos["episode"]["r"][n] == delayed_infos["episode"]["r"][n]
                terminated, truncated, steps = terminated + ends[0][n], truncated + ends[1][n], 0
    assert terminated > 2
    assert truncated > 2


# ---------------------------------------------------------------------------------------------- normalization


def test_within_an_episode_normalization_is_that_of_gymnasium(script):
    """Of one environment, to the end of its first episode: after it gymnasium's counts the last observation too."""
    env = gym.wrappers.NormalizeReward(gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1")), gamma=0.9)
    envs, _ = script.make_envs(script.Args(env_id="Pendulum-v1", normalize=True, gamma=0.9), 1)
    obs, _ = envs.reset(seed=[5])
    expected, _ = env.reset(seed=5)
    np.testing.assert_allclose(obs[0], expected, atol=1e-4)  # single precision there
    for t in range(199):
        action = np.array([np.sin(t)], np.float32)
        expected, reward, *_ = env.step(action)
        obs, rewards, *_ = envs.step(action[None])
        np.testing.assert_allclose(obs[0], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(rewards[0], np.clip(reward, -10, 10), rtol=1e-4)


def test_statistics_are_of_all_environments_and_both_are_clipped_at_10(script):
    gamma = 0.9
    first, raw = steps_of(view_of(script, 3), 300)
    view = view_of(script, 3, normalize=True, gamma=gamma)
    first_seen, seen = steps_of(view, 300)
    all_obs = np.concatenate([first, *(obs for obs, *_ in raw)])
    np.testing.assert_allclose(view.statistics[0].mean, all_obs.mean(0), rtol=1e-4)
    np.testing.assert_allclose(view.statistics[0].var, all_obs.var(0), rtol=1e-4)
    returns, running = [], np.zeros(3)
    for _, rewards, terminations, truncations, _ in raw:
        running = gamma * running + rewards
        returns.append(running.copy())
        running[terminations | truncations] = 0
    np.testing.assert_allclose(view.statistics[1].var, np.var(returns), rtol=1e-4)
    last, (seen_obs, seen_rewards, *_) = raw[-1], seen[-1]
    np.testing.assert_allclose(seen_obs, (last[0] - all_obs.mean(0)) / all_obs.std(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen_rewards, last[1] / np.std(returns), rtol=1e-3)
    for (*_, terminations, truncations, infos), (*_, seen_infos) in zip(raw, seen, strict=True):
        for n in np.flatnonzero(terminations | truncations):  # the last observation is seen as the others are
            assert infos["final_obs"][n].max() > 5
            assert abs(seen_infos["final_obs"][n]).max() < 5
    view.statistics[0].var[:], view.statistics[1].var = 1e-12, 1e-12
    view.learns = False
    obs, rewards, *_ = view.step(np.zeros(3, int))
    assert abs(obs).max() == 10
    assert rewards.max() == 10


def test_without_normalize_nothing_is_changed_or_learned(script):
    args = script.Args(env_id="Walk-v0")
    plain = gym.make_vec("Walk-v0", 3, "sync", {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP})
    view, _ = script.make_envs(args, 3)
    obs, _ = view.reset(seed=3)
    np.testing.assert_array_equal(obs, plain.reset(seed=3)[0])
    for _ in range(50):
        seen, expected = view.step(np.zeros(3, int)), plain.step(np.zeros(3, int))
        assert_same(list(seen[:4]), list(expected[:4]))
    assert view.statistics[0].count == pytest.approx(1e-4)


def test_an_evaluation_uses_the_statistics_and_leaves_them_alone(script, cli, tmp_path, monkeypatch):
    cli(script, *TRAINS, "--env-id", "Walk-v0", "--normalize")
    folder = only_run(tmp_path)
    stored = torch.load(folder / "checkpoint.pt", weights_only=False)["state"]["statistics"]
    assert stored[0].count == pytest.approx(512 + 4 + 1e-4)  # the training's steps and its first observations
    used, steps, make_envs = [], [], script.make_envs

    def recorded(*args):
        envs, umbrella = make_envs(*args)
        used.append(envs)
        step = envs.step
        envs.step = lambda actions: steps.append(step(actions)) or steps[-1]
        return envs, umbrella

    monkeypatch.setattr(script, "make_envs", recorded)
    before = (folder / "checkpoint.pt").read_bytes()
    cli(script, "--evaluate", folder)
    for ours, theirs in zip(used[-1].statistics, stored, strict=True):
        np.testing.assert_array_equal(ours.mean, theirs.mean)
        np.testing.assert_array_equal(ours.var, theirs.var)
        assert ours.count == theirs.count
    assert abs(steps[0][0]).max() < 5  # positions near 5 and times up to 110, normalized
    assert (folder / "checkpoint.pt").read_bytes() == before


# ---------------------------------------------------------------------------------------------- segments


def test_segments_are_pieces_of_rollouts(script):
    x = torch.arange(12 * 3 * 2).view(12, 3, 2)
    pieces = {tuple(x[4 * i : 4 * i + 4, n, 0].tolist()) for i in range(3) for n in range(3)}
    assert {tuple(piece) for piece in script.cut(x, 4)[..., 0].T.tolist()} == pieces
    assert torch.equal(script.cut(x, 12), x)


LEARNS_AT_ONCE = ["--held-steps", 0, "--meta-learning-rate", 1e-3, "--outer-batch", "same"]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        (ppo_vanilla, []),
        (ppo_metairn, ["--meta-learning-rate", 0]),
        (ppo_metairn, LEARNS_AT_ONCE),
        (ppo_metairn, [*LEARNS_AT_ONCE, "--irn", "mlp"]),
        (ppo_metairn, [*LEARNS_AT_ONCE, "--irn", "attention"]),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else x.__name__,
)
def test_all_segments_in_one_minibatch_are_the_whole_rollouts(script, flags, cli, tmp_path):
    """However rollouts are cut, advantages and redistribution are of the whole of them, so the updates are equal."""
    torch.set_default_dtype(torch.float64)
    try:
        for length in (16, 8, 1):
            common = [*TRAINS, "--env-id", "Walk-v0", "--num-minibatches", 1, "--normalize", "--exp-name", f"S{length}"]
            cli(script, *common, "--total-timesteps", 64, "--segment-length", length, *flags)
    finally:
        torch.set_default_dtype(torch.float32)
    learners = [
        torch.load(next(tmp_path.glob(f"*__S{length}__*/checkpoint.pt")), weights_only=False)["learners"]
        for length in (16, 8, 1)
    ]
    for other in learners[1:]:
        for name, parameters in learners[0].items():
            for key, value in parameters.items():
                torch.testing.assert_close(other[name][key], value, rtol=1e-7, atol=1e-7)


def test_a_segment_is_a_minibatchs_unit(script, cli, monkeypatch):
    """With segments of 4 steps a rollout of 4 x 16 steps gives 16 minibatches of one segment; each is used once."""
    seen, policy_loss = [], script.policy_loss

    def recorded(new_logprobs, *args):
        seen.append(new_logprobs.shape)
        return policy_loss(new_logprobs, *args)

    monkeypatch.setattr(script, "policy_loss", recorded)
    flags = [*TRAINS, "--env-id", "Walk-v0", "--num-minibatches", 16, "--total-timesteps", 64, "--segment-length", 4]
    cli(script, *flags, *(["--meta-learning-rate", 0] if script is ppo_metairn else []))
    assert seen == [(4, 1)] * 16 * 2


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--segment-length", 3], "--segment-length 3 must divide num_steps = 8"),
        (["--segment-length", 0], "--segment-length 0 must divide num_steps = 8"),
        (["--segment-length", 4, "--num-minibatches", 3], "--num-minibatches 3 must divide the segments"),
        (["--reward-delay", 0], "--reward-delay must be at least 1"),
    ],
    ids=lambda x: " ".join(map(str, x)) if isinstance(x, list) else "",
)
def test_bad_input(script, cli, tmp_path, capsys, flags, named):
    with pytest.raises(SystemExit) as refused:
        cli(script, *TINY, *flags)
    captured = capsys.readouterr()
    assert refused.value.code == 2
    assert named in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------- MuJoCo

HOPPER = [*TRAINS, "--env-id", "Hopper-v5", "--normalize", "--reward-delay", 5, "--segment-length", 4]


def test_mujoco_loses_no_statistics_when_it_is_resumed(script, cli, tmp_path, monkeypatch):
    pytest.importorskip("mujoco", reason="needs requirements-mujoco.txt")
    calls, rollout = [], script.rollout

    def interrupted_rollout(*args):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return rollout(*args)

    monkeypatch.setattr(script, "rollout", interrupted_rollout)
    with pytest.raises(SystemExit):
        cli(script, *HOPPER)
    folder = only_run(tmp_path)
    stopped = torch.load(folder / "checkpoint.pt", weights_only=False)["state"]["statistics"]
    assert stopped[0].count == pytest.approx(3 * 64 + 4 + 1e-4)
    cli(script, "--resume", folder)
    assert len(calls) == 8
    ended = torch.load(folder / "checkpoint.pt", weights_only=False)["state"]["statistics"]
    assert ended[0].count == pytest.approx(512 + 4 + 4 + 1e-4)  # new episodes began when it was resumed
    assert ended[1].count == pytest.approx(512 + 1e-4)
    assert [int(row["global_step"]) for row in read_rows(folder)] == [0, 128, 256, 384, 512]


def test_mujoco_same_seed_same_progress_and_evaluation_from_the_folder(script, cli, tmp_path, capsys):
    pytest.importorskip("mujoco", reason="needs requirements-mujoco.txt")
    for name in ("a", "b"):
        cli(script, *HOPPER, "--exp-name", name)
    folders = [next(tmp_path.glob(f"*__{name}__*")) for name in ("a", "b")]
    assert_same(*map(read_result, folders))
    capsys.readouterr()
    for folder in folders:
        cli(script, "--evaluate", folder)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert float(first.split("return ")[1].split(",")[0]) > 0


def test_without_mujoco_one_line_says_what_to_install(script, cli, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)  # makes `import mujoco` fail
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit) as refused:
        cli(script, *HOPPER)
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert "gymnasium[mujoco]" in error
    assert error.count("\n") == 1
