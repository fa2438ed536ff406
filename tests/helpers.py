"""What several test files need: short runs, what they leave, and refusals of bad input."""

import csv
import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import torch

COMPILES = shutil.which("g++") and " " not in torch.__file__
# 8 environments x 4 steps = 32 steps per iteration, evaluated every second iteration
TINY = ["--chain-length", 4, "--num-envs", 8, "--num-steps", 4, "--num-minibatches", 2, "--update-epochs", 2]
TINY += ["--eval-every", 64, "--eval-episodes", 3]


def read_rows(folder):
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return [float(row[name]) for row in read_rows(folder)]


def read_checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=False)


def read_result(folder):
    """All that a run leaves and that must not depend on how often it was interrupted."""
    checkpoint = read_checkpoint(folder)
    state = {name: x for name, x in vars(checkpoint["state"]).items() if name not in ("seconds", "rows")}
    rows = [{k: v for k, v in row.items() if k not in ("sps", "wall_time")} for row in read_rows(folder)]
    arrays = dict(np.load(folder / "intrinsic.npz")) if (folder / "intrinsic.npz").exists() else {}
    return checkpoint["networks"], state, checkpoint["random"], checkpoint["statistics"], rows, arrays


def assert_same(a, b):
    """Equal to the bit, through dicts, sequences and objects that hold nothing else."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        assert_same(list(a.values()), [b[key] for key in a])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor | np.ndarray):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    elif hasattr(a, "__dict__") and not dataclasses.is_dataclass(a):
        assert_same(vars(a), vars(b))
    else:
        assert a == b or (a != a and b != b)  # NaN is the same as NaN


def make_actor(script, obs_dim, space):
    if not hasattr(script, "ConditionalActor"):
        return script.Actor(obs_dim, space)
    return script.ConditionalActor(obs_dim, space, script.IntrinsicRewardNetwork(obs_dim, space))


def roll_out(script, args, num_envs, seed):
    """-> environments, policy, and the Batch and the episodes of its first rollout"""
    envs = script.make_envs(args, num_envs)
    obs, _ = envs.reset(seed=seed)
    actor = make_actor(script, obs.shape[1], envs.single_action_space)
    batch, _, episodes = script.rollout(envs, actor, obs, args, "cpu")
    return envs, actor, batch, episodes


def run_cli(script, *flags, **kwargs):
    """Runs a script in a process of its own."""
    command = [sys.executable, script.__file__, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def exit_status(run, *args):
    """The status with which run(*args) ends. What pytest.raises keeps would hold the run and its folder's lock."""
    try:
        run(*args)
    except SystemExit as ended:
        return ended.code
    raise AssertionError("it has not ended early")
