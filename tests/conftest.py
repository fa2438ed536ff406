import signal
import sys
from pathlib import Path

import pytest
import torch
from helpers import exit_status

import ppo_cln
import ppo_lirpg
import ppo_metairn
import ppo_vanilla

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=[ppo_vanilla, ppo_lirpg, ppo_metairn, ppo_cln], ids=["vanilla", "lirpg", "metairn", "cln"])
def script(request):
    return request.param


@pytest.fixture
def float64():
    """Everything in double precision, networks made by the scripts included."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """cli(script, "--seed", 3) runs a script in this process, with its runs in tmp_path -> the run's folder."""

    def run(script, *flags):
        monkeypatch.setattr(sys, "path", list(sys.path))  # a run appends the current folder
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--runs-dir", str(tmp_path), *map(str, flags)])
        return script.main(script.parse_args())

    return run


@pytest.fixture
def refused(cli, tmp_path, capsys):
    """Exit status 2, one line on stderr (the command line's parser words its own), and nothing written."""

    def files():
        paths = [path for path in sorted(tmp_path.rglob("*")) if path.name != "lock"]
        return [(path, path.is_file() and "events" not in path.name and path.read_bytes()) for path in paths]

    def check(script, flags, named):
        before, _ = files(), capsys.readouterr()
        assert exit_status(cli, script, *flags) == 2
        captured = capsys.readouterr()
        assert named in captured.err
        if flags[0] not in ("--no-such-flag", "--num-envs=many"):
            assert captured.err.startswith("error: ")
            assert captured.err.count("\n") == 1
        assert captured.out == ""
        assert files() == before

    return check


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C at the start of the fourth rollout of run(*args) -> the run's folder, the arguments of all rollouts"""

    def interrupt(script, run, *args):
        calls, rollout = [], script.rollout

        def interrupted(*args):
            calls.append(args)
            if len(calls) == 4:
                signal.raise_signal(signal.SIGINT)
            return rollout(*args)

        monkeypatch.setattr(script, "rollout", interrupted)
        assert exit_status(run, *args) == 128 + signal.SIGINT
        options = calls[0][3]
        return next(Path(options.runs_dir).glob(f"*__{options.exp_name}__*")), calls

    return interrupt
