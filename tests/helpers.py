"""What several test files need: short runs, what they leave, and refusals of bad input."""

import csv
import dataclasses
import signal
import subprocess
import sys

import numpy as np
import torch

TIME_COLUMNS = {"sps", "wall_time"}
# 8 environments x 4 steps = 32 steps per iteration, evaluated every second iteration
TINY = ["--chain-length", 4, "--num-envs", 8, "--num-steps", 4, "--num-minibatches", 2, "--update-epochs", 2]
TINY += ["--eval-every", 64, "--eval-episodes", 3]


def only_run(tmp_path):
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    return folder


def read_rows(folder):
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=False)


def read_result(folder):
    """All that a run leaves and that must not depend on how often it was interrupted."""
    checkpoint = read_checkpoint(folder)
    state = {name: x for name, x in vars(checkpoint["state"]).items() if name not in ("seconds", "rows")}
    rows = [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in read_rows(folder)]
    arrays = dict(np.load(folder / "intrinsic.npz")) if (folder / "intrinsic.npz").exists() else {}
    return checkpoint["networks"], state, checkpoint["random"], checkpoint["statistics"], rows, arrays


def assert_same(a, b):
    """Equal to the bit, through dicts, sequences and objects that hold nothing else."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
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


def interrupt(monkeypatch, script, count):
    """Ctrl-C at the start of the rollout of this number. Returns the list of the arguments of all rollouts."""
    calls, rollout = [], script.rollout

    def interrupted(*args):
        calls.append(args)
        if len(calls) == count:
            signal.raise_signal(signal.SIGINT)
        return rollout(*args)

    monkeypatch.setattr(script, "rollout", interrupted)
    return calls


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


def check_refusal(script, cli, tmp_path, capsys, flags, named):
    """Exit status 2, one line on stderr (the command line's parser words its own), and nothing written."""

    def files():
        paths = [path for path in sorted(tmp_path.rglob("*")) if path.name != "lock"]
        return [(path, path.is_file() and path.read_bytes()) for path in paths]

    before = files()
    assert exit_status(cli, script, *flags) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    if flags[0] not in ("--no-such-flag", "--num-envs=many"):
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert files() == before
