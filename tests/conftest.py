import signal
import sys

import pytest
import torch

import ppo_lirpg
import ppo_metairn
import ppo_vanilla

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=[ppo_vanilla, ppo_lirpg, ppo_metairn], ids=["vanilla", "lirpg", "metairn"])
def script(request):
    """Each of the scripts, as a module."""
    return request.param


@pytest.fixture
def float64():
    """Everything in double precision, networks made by the scripts included."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """cli(script, "--seed", 3) runs a script in this process as its command line would, with its runs in tmp_path.

    Returns the run's folder.
    """

    def run(script, *flags):
        monkeypatch.setattr(sys, "path", list(sys.path))  # a run appends the current folder
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--runs-dir", str(tmp_path), *map(str, flags)])
        return script.main(script.parse_args())

    return run
