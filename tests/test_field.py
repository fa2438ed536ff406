"""What users have met: environments, disks and options that are not as one expects."""

import errno
import fcntl
import json
import math
import os
import random
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from field_envs import SPACES
from helpers import TINY, assert_same, column, exit_status, read_result, read_rows, roll_out, run_cli

import ppo_cln
import ppo_lirpg
import ppo_metairn
import ppo_vanilla


def args_of(env_id, **kwargs):
    return ppo_vanilla.Args(env_id=f"field_envs:{env_id}-v0", **kwargs)


def make(env_id, num_envs=1):
    """Reset environments of ppo_vanilla.py, and the first of them without wrappers"""
    envs = ppo_vanilla.make_envs(args_of(env_id), num_envs)
    envs.reset(seed=list(range(num_envs)))
    return envs, envs.unwrapped.envs[0].unwrapped


@pytest.mark.slow
@pytest.mark.parametrize(("env_id", "least"), [("NanEnd", 9), ("From5", 9), ("Far", -5)])
def test_learns(script, cli, env_id, least):
    """Of Far, if actions were not scaled, all would be clipped to 10: a return of -50."""
    flags = ["--extrinsic-coef", 1] if script in (ppo_lirpg, ppo_cln) else []
    flags += ["--intrinsic-coef", 0] if script is ppo_cln else []
    flags += ["--total-timesteps", 12_000, "--gamma", 0.9, "--learning-rate", 0.02, "--no-anneal-lr"]
    assert max(column(cli(script, "--env-id", f"field_envs:{env_id}-v0", *flags), "eval_return")) > least


def test_an_endless_task_trains_and_its_evaluations_are_cut(script, cli, capsys):
    flags = ["--env-id", "field_envs:Endless-v0", "--total-timesteps", 128, "--eval-max-steps", 40]
    folder, captured = cli(script, *TINY, *flags), capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("step")]
    assert ["3 of 3 episodes were cut after 40 steps" in line for line in lines] == [True] * 3  # an evaluation each
    assert not re.search("nan|success", captured.out + captured.err)
    assert all(5 < value < 35 for value in column(folder, "eval_return"))  # about half of the steps pay 1
    assert read_result(folder)[1]["iteration"] == 4


def test_episodes_that_are_cut_count_with_their_return_so_far(cli, monkeypatch, capsys):
    folder = cli(ppo_vanilla, *TINY, "--env-id", "field_envs:CartPoleNoLimit-v0", "--total-timesteps", 64)
    lengths, ended_episodes = [], ppo_vanilla.ended_episodes

    def recorded(*args):
        lengths.extend(length for _, length, _ in ended_episodes(*args))  # in CartPole, the return
        return ended_episodes(*args)

    monkeypatch.setattr(ppo_vanilla, "ended_episodes", recorded)
    cli(ppo_vanilla, "--evaluate", folder, "--eval-episodes", 50)
    within = [length for length in lengths if length <= 20]
    assert 5 < len(within) < 45 < len(lengths) == 50
    mean = np.minimum(lengths, 20).mean()
    capsys.readouterr()
    cli(ppo_vanilla, "--evaluate", folder, "--eval-episodes", 50, "--eval-max-steps", 20)
    assert f"return {mean:.2f} ({50 - len(within)} of 50" in capsys.readouterr().out


def test_an_episode_that_is_cut_is_no_success(script, cli):
    """Of Umbrella with L = 4. Before training has reported any success, it is not known that the task reports it."""
    folder = cli(script, *TINY, "--total-timesteps", 128, "--eval-max-steps", 3)
    assert column(folder, "eval_success") == pytest.approx([math.nan, 0, 0], nan_ok=True)


def test_no_report_of_success_is_no_success_once_there_was_one():
    (envs, _), seen = make("OnlySuccess", 8), set()
    for _ in range(30):
        *_, ended, _, infos = envs.step(np.arange(8) % 2)  # action 1, in every other environment, is a success
        episodes = ppo_vanilla.ended_episodes(infos, ended) if ended.any() else []
        for i, (_, _, success) in zip(np.flatnonzero(ended), episodes, strict=True):
            assert success == 1 if i % 2 else math.isnan(success)
            seen.add(int(i))
    assert seen == set(range(8))
    run = SimpleNamespace(state=SimpleNamespace(reports_success=False))
    never, once = [[0, 5, math.nan]] * 3, [[0, 5, math.nan], [1, 5, 1.0]]
    successes = [ppo_vanilla.Run.means(run, episodes)[2] for episodes in ([], never, once, never, [])]
    assert successes == pytest.approx([math.nan, math.nan, 0.5, 0, math.nan], nan_ok=True)


def test_an_environment_may_reuse_its_array():
    """Observations are the time: what an action led to is one later, at the end of an episode too."""
    _, _, batch, _ = roll_out(ppo_vanilla, args_of("Reuse", num_steps=25), 2, seed=0)
    assert batch.obs[:, 0, 0].tolist() == [t % 10 for t in range(25)]
    assert batch.next_obs[:, 0, 0].tolist() == [t % 10 + 1 for t in range(25)]
    assert not batch.terminations.any()
    assert batch.dones[:, 0].nonzero().flatten().tolist() == [9, 19]


@pytest.mark.parametrize("name", SPACES)
def test_observations_become_vectors(cli, name):
    args = args_of(f"{name}Observations", num_steps=12)
    envs, _, batch, _ = roll_out(ppo_vanilla, args, 1, seed=0)
    given = envs.unwrapped.envs[0].unwrapped.given
    flat = np.stack([gym.spaces.flatten(SPACES[name], x) for x in given]).astype(np.float32)
    assert_same(batch.obs[:, 0].numpy(), np.concatenate([flat[:10], flat[11:13]]))  # after 10 steps, a reset
    assert_same(batch.next_obs[:, 0].numpy(), np.concatenate([flat[1:11], flat[12:14]]))
    for script in (ppo_lirpg, ppo_metairn):
        assert len(read_rows(cli(script, *TINY, "--env-id", args.env_id, "--total-timesteps", 64))) == 2


def test_actions_reach_the_environment_scaled_or_clipped_only():
    actions = np.random.default_rng(1).normal(scale=2, size=(5, 1, 3)).astype(np.float32)
    envs, env = make("UnitActions")
    for x in actions:
        envs.step(x)
    assert_same(np.stack(env.got), actions[:, 0].clip(-1, 1))  # to the bit
    envs, env = make("MixedActions")  # bounded below, above, below, on both sides
    for x in (-3.0, -0.5, 0.0, 0.5, 3.0):
        envs.step(np.full((1, 4), x, np.float32))
    expected = [[-2, -3, 0, 10], [-0.5, -0.5, 0, 12.5], [0, 0, 0, 15], [0.5, 0.5, 0.5, 17.5], [3, 0.5, 3, 20]]
    assert np.stack(env.got).tolist() == expected


@pytest.mark.parametrize("env_id", ["GlobalRandom", "PyRandom"])
def test_an_environment_may_draw_from_global_streams(cli, interrupt, env_id):
    flags, results = [*TINY, "--env-id", f"field_envs:{env_id}-v0", "--total-timesteps", 256], []
    for seed in (1, 1, 2):
        np.random.seed(len(results))  # noqa: NPY002
        random.seed(len(results))
        results.append(read_result(cli(ppo_vanilla, *flags, "--exp-name", len(results), "--seed", seed)))
    assert_same(results[0], results[1])
    assert not np.array_equal(results[0][1]["obs"], results[2][1]["obs"])
    folder, _ = interrupt(ppo_vanilla, cli, ppo_vanilla, *flags)
    random.seed(99)
    assert_same(read_result(cli(ppo_vanilla, "--resume", folder)), results[0])


SURVIVE = ["umbrella_env:UmbrellaLength-v0", "CartPole-v1"]
SURVIVE += [f"field_envs:{name}-v0" for name in ("OnlySuccess", "GlobalRandom", "NanEnd", "Far", "From5")]
SURVIVE += ["results.minatar.envs:MinAtar/Breakout-v1"]
DO_NOT = ["Hopper-v5", "field_envs:Lock-v0", "field_envs:Forgets-v0"]


@pytest.mark.parametrize("env_id", SURVIVE + DO_NOT)
def test_whether_an_environment_survives_pickling_is_found_out(env_id):
    if package := {"Hopper-v5": "mujoco", SURVIVE[-1]: "minatar"}.get(env_id):
        pytest.importorskip(package)
    before = ppo_vanilla.random_state()
    assert ppo_vanilla.survives_pickling(ppo_vanilla.Args(env_id=env_id)) == (env_id in SURVIVE)
    assert_same(ppo_vanilla.random_state(), before)


def test_new_episodes_begin_where_an_environment_cannot_be_stored(script, cli, interrupt, capsys):
    flags = [*TINY, "--env-id", "field_envs:Lock-v0", "--total-timesteps", 256]
    straight = read_result(cli(script, *flags, "--exp-name", "straight"))
    folder, calls = interrupt(script, cli, script, *flags)
    capsys.readouterr()
    *_, rows, _ = read_result(cli(script, "--resume", folder))
    assert "new episodes begin" in capsys.readouterr().err
    assert [obs[0, 0] for _, _, obs, *_ in calls[:5]] == [0, 4, 8, 2, 0]  # the time, which began anew
    assert_same(rows[:2], straight[4][:2])  # up to the checkpoint
    assert [row["global_step"] for row in rows] == [row["global_step"] for row in straight[4]]


def test_one_process_at_a_time_uses_a_folder(cli, tmp_path, refused, monkeypatch):
    flags, calls, rollout = [*TINY, "--total-timesteps", 256], [], ppo_vanilla.rollout
    straight = cli(ppo_vanilla, *flags, "--exp-name", "straight")

    def disturbed(*args):
        calls.append(None)
        if len(calls) in (1, 4):
            folder, state = next(tmp_path.glob("*__ppo_vanilla__*")), ppo_vanilla.random_state()
            for other in ([*flags, "--gamma", 0.5], ["--resume", folder]):
                refused(ppo_vanilla, other, "in use by another process")
            ppo_vanilla.set_random_state(state)
        return rollout(*args)

    monkeypatch.setattr(ppo_vanilla, "rollout", disturbed)
    folder = cli(ppo_vanilla, *flags)
    assert_same(read_result(folder), read_result(straight))
    cli(ppo_vanilla, "--resume", folder)  # the folder is free again


def test_runs_where_files_cannot_be_locked(cli, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    for name in ("no locks", "no module"):
        assert len(read_rows(cli(ppo_vanilla, *TINY, "--total-timesteps", 64, "--exp-name", name))) == 2
        assert "lock" in capsys.readouterr().err
        monkeypatch.setitem(sys.modules, "fcntl", None)


@pytest.mark.parametrize(("script", "keep"), [*((ppo_vanilla, x) for x in (0, 100, 9_000, -1)), (ppo_metairn, 0)])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_begins_again(script, cli, interrupt, refused, capsys, keep):
    flags = [*TINY, "--total-timesteps", 128]
    if script is ppo_metairn:
        flags += ["--irn-from", cli(script, *flags, "--exp-name", "source", "--seed", 9, "--held-steps", 0)]
    straight = cli(script, *flags, "--exp-name", "straight")
    (folder, _), before = interrupt(script, cli, script, *flags), read_result(straight)
    for path in (straight, folder):
        part = (path / "checkpoint.pt").read_bytes()[:keep]
        (path / "checkpoint.pt").write_bytes(part)
    refused(script, ["--resume", straight], "checkpoint.pt is damaged")  # it has ended
    refused(script, ["--evaluate", folder], "checkpoint.pt is damaged")
    assert cli(script, "--resume", folder) == folder
    assert "checkpoint.pt.damaged" in capsys.readouterr().err
    assert (folder / "checkpoint.pt.damaged").stat().st_size == len(part)
    assert_same(read_result(folder), before)


@pytest.mark.parametrize("count", range(1, 7))
def test_a_full_disk_is_said_and_leaves_whole_files(cli, tmp_path, monkeypatch, capsys, count):
    """The first six files are args.json and, twice, progress.csv and a checkpoint, then progress.csv again."""
    flags, full = [*TINY, "--total-timesteps", 128], OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    straight = cli(ppo_vanilla, *flags, "--exp-name", "straight")
    capsys.readouterr()
    monkeypatch.setattr(os, "fsync", Mock(side_effect=[*[None] * (count - 1), full, *[None] * 99]))
    assert exit_status(cli, ppo_vanilla, *flags) == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("step")]
    assert full.with_traceback(None).strerror in error  # the traceback holds the run and its folder's lock
    folder = next(tmp_path.glob("*__ppo_vanilla__*"))
    assert (folder / "args.json").exists() == (count > 1)
    assert (folder / "checkpoint.pt").exists() == (count > 3)
    cli(ppo_vanilla, *(["--resume", folder] if count > 3 else flags))
    assert_same(read_result(folder), read_result(straight))


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 12, 80, 240])
def test_a_file_system_of_so_many_kilobytes(tmp_path, size):
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        process = run_cli(ppo_vanilla, *TINY, "--runs-dir", tmp_path, "--total-timesteps", 64 * 100)
        errors = [line for line in process.stderr.splitlines() if not re.match(r"step \d+: ", line)]
        assert [error.startswith("error: cannot write") for error in errors] == [True], process.stderr
        assert process.returncode == 2
        for path in tmp_path.glob("*/*.json"):
            json.loads(path.read_text())
        for path in tmp_path.glob("*/checkpoint.pt"):
            torch.load(path, weights_only=False)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_evaluate_names_what_does_not_fit(cli, refused):
    folder = cli(ppo_vanilla, *TINY, "--total-timesteps", 64)
    for flags in (["--env-id", "CartPole-v1"], ["--n-distractor", 3]):
        refused(ppo_vanilla, ["--evaluate", folder, *flags], "checkpoint.pt: its networks")
    refused(ppo_lirpg, ["--evaluate", folder], "does not hold the options of a run of this script")
    assert cli(ppo_vanilla, "--evaluate", folder, "--hide-umbrella", "--chain-length", 7) == folder  # this fits


BAD = [{"num_envs": "many"}, {"gamma": None}, {"seed": 1.5}, {"anneal_lr": "yes"}, {"irn": "lstm"}]


@pytest.mark.parametrize("options", [*BAD, {"no_such_option": 1}, b"[1, 2]", b"\xff\xfe", b"{", b""], ids=str)
def test_options_of_the_wrong_type_are_named(cli, tmp_path, refused, capsys, options):
    """In a changed args.json, and from Python."""
    path, named = cli(ppo_metairn, *TINY, "--total-timesteps", 64) / "args.json", "args.json"
    if options in BAD:
        named = f"--{next(iter(options))}".replace("_", "-")
        assert exit_status(ppo_metairn.main, ppo_metairn.Args(runs_dir=str(tmp_path), **options)) == 2
        assert named in capsys.readouterr().err
    if isinstance(options, dict):
        options = json.dumps(json.loads(path.read_text()) | options).encode()
    path.write_bytes(options)
    for flag in ("--resume", "--evaluate"):
        refused(ppo_metairn, [flag, path.parent], named)


def test_without_mujoco_what_to_install_is_named(refused, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("mujoco", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)  # makes `import mujoco` fail
    refused(ppo_vanilla, ["--env-id", "Hopper-v5"], "requirements-mujoco.txt")


@pytest.mark.slow
def test_a_name_outside_ascii_in_the_c_locale(tmp_path):
    flags, folder = [*TINY, "--exp-name", "größe", "--total-timesteps", 64], "runs/UmbrellaLength-v0__größe__4__1"
    env = os.environ | {"LC_ALL": "C"}
    for arguments in (flags, ["--resume", folder], ["--evaluate", folder]):
        process = run_cli(ppo_vanilla, *arguments, cwd=tmp_path, env=env)
        assert (process.returncode, "error" in process.stderr) == (0, False), process.stderr
    process = run_cli(ppo_vanilla, *flags, cwd=tmp_path, env=env | {"PYTHONUTF8": "0"})  # here Python cannot read it
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert "--exp-name" in process.stderr


def test_one_step_a_rollout_is_enough(script, cli):
    flags = ["--num-envs", 20, "--num-steps", 1, "--num-minibatches", 2, "--chain-length", 3]
    folder = cli(script, *flags, "--total-timesteps", 60, "--eval-every", 40, "--eval-episodes", 2)
    assert column(folder, "global_step") == [0, 40, 60]


@pytest.mark.parametrize(("episode", "flags", "step"), [(4, [], 32), (99, [], 32), (99, ["--held-steps", 96], 96)])
def test_too_few_episodes_for_a_test_are_said_as_soon_as_that_is_sure(cli, capsys, monkeypatch, episode, flags, step):
    """The three rollouts that a fifth of the run has would hold 24 episodes of 4 steps, one less than a test needs, and
    none of 99. With --held-steps that is waited for."""
    monkeypatch.setattr(ppo_metairn, "EPISODES", 25)
    flags = [*flags, "--chain-length", episode, "--num-steps", 4, "--num-envs", 8, "--eval-every", 32]
    rows = read_rows(cli(ppo_metairn, *flags, "--eval-episodes", 1, "--total-timesteps", 480))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert line.startswith(f"step {step}:") and "too few" in line and not re.search(r"\binf|nan", line)
    assert [row["intrinsic_used"] for row in rows] == ["nan"] * (step // 32) + ["0"] * (16 - step // 32)
    assert {row[name] for row in rows for name in ("evidence", "ppo_evidence")} == {"nan"}
