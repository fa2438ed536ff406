"""tune.py as a user runs it: whole, stopped, killed, failing, twice at once, and on a real PostgreSQL.

Most of these tests tune a fake script, which trains nothing and only writes progress.csv: success is --height plus a
thousandth of the seed throughout; with the finalists' seeds the lower --height is the better one. It fails unless it is
stopped at the rung. To interrupt tune.py at an exact moment, a run does it: `actions` are executed where a run begins,
each in that of one trial with one seed.
"""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest

import ppo_metairn
import ppo_vanilla

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install -r requirements-tune.txt")
tune = pytest.importorskip("tune")

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "results" / "one_run" / "tune.toml"
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # it is waited for
parent, args = os.getppid(), dict(zip(sys.argv[1::2], sys.argv[2::2]))
resumed = args.get("--resume")
folder = Path(resumed or f"{args['--runs-dir']}/Fake__{args['--exp-name']}__0__{args['--seed']}")
if resumed:
    args = json.loads((folder / "args.json").read_text())
else:
    folder.mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(args | {"pid": os.getpid()}))
height, seed, end = float(args["--height"]), int(args["--seed"]), int(args["--total-timesteps"])
exec(json.loads(os.environ["ACTIONS"]).get(f"{args['--exp-name']} {seed}", "") if not resumed else "")
for step in range(0, end + 1, 1000):
    rows = [f"{s},{(height if seed < 4 else 1 - 2 * height) + seed / 1000}" for s in range(0, step + 1, 1000)]
    (folder / "tmp").write_text("global_step,eval_success\\n" + "\\n".join(rows) + "\\n")
    (folder / "tmp").replace(folder / "progress.csv")
    if step == 2000 and not resumed and seed in (1, 2, 3):
        waits = (signal.sigtimedwait([signal.SIGTERM], 1) for _ in range(60) if os.getppid() == parent)
        sys.exit(143 if any(waits) else "not stopped at the rung")
"""
TOML = """
seeds = [1, 2, 3]
finalist_seeds = [4, 5]
finalists = 2
rung = 2000
[space]
height = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
rate = { log = [1e-3, 1e-1] }
clip = ["none", 0.5]
[families]
easy = { timesteps = 5000, options = "--length 2" }
[arms.fake]
script = "fake.py"
"""


@pytest.fixture
def tuning(tmp_path):
    """tuning("--trials", 3) runs tune.py on the fake script, in a folder whose name has spaces, as OUT's has"""
    folder = tmp_path / "a folder"
    folder.mkdir()

    def run(*flags, text=TOML, fake=FAKE, actions=None, fast=False, out="out put", begin=subprocess.run):
        (tmp_path / "fake.py").write_text(fake)
        (folder / "tune.toml").write_text(text.replace('"fake.py"', f'"{tmp_path / "fake.py"}"'))
        clock = "import time\nreal = time.monotonic\ntime.monotonic = lambda: 100 * real()\n"
        (tmp_path / "sitecustomize.py").write_text(clock if fast else "")
        command = [sys.executable, ROOT / "tune.py", "tune.toml", "--family", "easy", "--arm", "fake", "--out", out]
        command += ["--trials", 8, "--workers", 2, *flags]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        env = os.environ | {"PYTHONPATH": str(tmp_path), "ACTIONS": json.dumps(actions or {})}
        return begin([str(word) for word in command], cwd=folder, env=env, start_new_session=True, **streams)

    run.out = folder / "out put"
    return run


def read_table(out):
    with open(out / "easy__fake.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_trials(out, name="easy__fake", storage=None):
    return optuna.load_study(study_name=name, storage=storage or f"sqlite:///{out}/easy__fake.db").trials


def last_step(out, name, seed):
    return tune.read_curve(out / "easy__fake" / f"Fake__{name}__0__{seed}")[-1][0]


def check_complete(out, trials):
    """All trials are there, with the right values; so are the finalists, and the winner is the best of them."""
    rows = read_table(out)
    assert len(rows) == trials
    for row in rows:
        height = float(row["height"])
        assert row["state"] in ("COMPLETE", "PRUNED")
        assert float(row["value_at_rung"]) == pytest.approx(height + 0.002)
        assert [float(row[f"rung_{seed}"]) for seed in (1, 2, 3)] == pytest.approx(
            [height + seed / 1000 for seed in (1, 2, 3)]
        )
        if row["state"] == "COMPLETE":
            assert float(row["value"]) == pytest.approx(height + 0.002)
        else:
            assert row["value"] == row["area_1"] == ""
    best = sorted((row for row in rows if row["state"] == "COMPLETE"), key=lambda row: -float(row["value"]))[:2]
    assert sorted(row["number"] for row in rows if row["area_5"]) == sorted(row["number"] for row in best)
    for row in best:
        height = float(row["height"])
        assert float(row["value_of_all_seeds"]) == pytest.approx((3 * height + 2 * (1 - 2 * height)) / 5 + 0.003)
        assert float(row["area_5"]) == pytest.approx(1 - 2 * height + 0.005)
    first = max(best, key=lambda row: float(row["value_of_all_seeds"]))
    winner = json.loads((out / "easy__fake.json").read_text())
    expected = {name: first[name] for name in ("height", "rate", "clip") if first[name] != "none"}
    assert {name: str(value) for name, value in winner.items()} == expected
    assert len({row["rate"] for row in rows}) == trials  # each draws for itself, in whichever process
    assert not list(out.glob("*.tmp"))


def test_area():
    """By hand: a line, a step, a curve that is cut between two evaluations, one that ends early, one that is 1."""
    assert tune.area([(0, 0.0), (100, 1.0)], 100) == pytest.approx(0.5)
    assert tune.area([(0, 0.5), (10, 0.5), (20, 1.0), (40, 1.0)], 40) == pytest.approx((5 + 7.5 + 20) / 40)
    assert tune.area([(0, 0.0), (16, 0.0), (32, 1.0), (48, 0.0)], 24) == pytest.approx((8 * 0.5 / 2) / 24)
    assert tune.area([(0, 0.0), (10, 0.8)], 20) == pytest.approx((10 * 0.4 + 10 * 0.8) / 20)
    assert tune.area([(0, 1.0), (3, 1.0), (7, 1.0)], 5) == pytest.approx(1)
    assert tune.area([(0, 0.25)], 5) == pytest.approx(0.25)


def test_pruning(tuning):
    """One worker: a trial goes on if it is in the best third of those so far, and else has ended at the rung."""
    process = tuning("--workers", 1, "--trials", 12)
    assert (process.returncode, process.stderr) == (0, "")
    check_complete(tuning.out, 12)
    heights, states = [], []
    for number, row in enumerate(read_table(tuning.out)):
        heights.append(float(row["height"]))
        best = heights[-1] >= sorted(heights)[-max(1, len(heights) // 3)]
        states.append(row["state"])
        assert row["number"] == str(number)
        assert row["state"] == ("COMPLETE" if best else "PRUNED")
        for seed in (1, 2, 3):
            assert last_step(tuning.out, f"trial{number:04}", seed) == (5000 if best else 2000)
    assert {*states} == {"COMPLETE", "PRUNED"}
    lines = process.stdout.splitlines()
    assert len(lines) == 12 + 2 + 1
    line = rf"12 of 12 trials, {states.count('PRUNED')} pruned, 0 failed, best {max(heights) + 0.002:.3f}, "
    assert re.fullmatch(rf"{line}about 0:00 left; trial 11: {heights[-1] + 0.002:.3f} in \d+ s", lines[11])
    assert re.match(r"2 of 2 finalists, 0 pruned, 0 failed, best 0\.\d{3}, about 0:00 left; finalist ", lines[13])
    again = tuning("--workers", 1, "--trials", 12)
    assert (again.returncode, again.stdout) == (0, lines[14] + "\n")
    more = tuning("--trials", 15)
    assert (more.returncode, more.stderr) == (0, "")
    check_complete(tuning.out, 15)


def test_a_run_gets_its_options(tuning):
    """Those of the family, of the arm and of the trial, of which "none" is left out."""
    text = TOML + 'options = "--rule odd --eval-episodes 7"\n[arms.fake.space]\nheight = [0.5]\nshare = [3]\n'
    assert tuning(text=text).returncode == 0
    clips = set()
    for row in read_table(tuning.out):
        path = tuning.out / "easy__fake" / f"Fake__trial{int(row['number']):04}__0__3" / "args.json"
        args = json.loads(path.read_text())
        clips.add(args.get("--clip", "none"))
        expected = {"--length": "2", "--rule": "odd", "--height": "0.5", "--share": "3", "--rate": row["rate"]}
        expected |= {"--seed": "3", "--total-timesteps": "5000", "--eval-every": "1000", "--eval-episodes": "7"}
        assert args.items() >= expected.items()
        assert ("--clip" in args) == (row["clip"] != "none")
        assert 1e-3 <= float(row["rate"]) <= 1e-1
    assert clips == {"none", "0.5"}


@pytest.mark.parametrize("moment", ["trial0000 1", "trial0003 2", "finalists8_0000 5"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_interrupted_trials_are_tried_again(tuning, name, moment):
    """Also while runs that a killed tune.py left behind go on. Its minute of silence takes a hundredth of that here."""
    action = f"os.kill(parent, signal.{name})"
    if name == "SIGINT":
        action += "; signal.sigtimedwait([signal.SIGTERM], 5); Path(folder, 'outlived').touch()"  # it is to be killed
    stopped = tuning(actions={moment: action})
    assert stopped.returncode == {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}[name]
    assert stopped.stderr == ""
    assert not (tuning.out / "easy__fake.json").exists()
    before = read_trials(tuning.out)
    if name != "SIGKILL":
        assert stopped.stdout.endswith("stopped: the same command tries again what was interrupted\n")
        assert not [trial for trial in before if trial.state == optuna.trial.TrialState.RUNNING]
        counted = [trial.number for trial in before if not tune.interrupted(trial)]
        assert [int(row["number"]) for row in read_table(tuning.out)] == counted
        assert not [*tuning.out.glob("easy__fake/*/outlived")]
        for path in tuning.out.glob("easy__fake/*/args.json"):
            pytest.raises(ProcessLookupError, os.kill, json.loads(path.read_text())["pid"], 0)
    continued = tuning(fast=True)
    assert (continued.returncode, continued.stderr) == (0, "")
    check_complete(tuning.out, 8)
    study = "easy__fake" if moment.startswith("trial") else "easy__fake__finalists_of_8"
    trials = read_trials(tuning.out, study)
    lost = [trial for trial in trials if tune.interrupted(trial)]
    assert all("beat" in trial.user_attrs for trial in trials if "again" in trial.user_attrs)
    assert int(moment[-6:-2]) in [trial.number for trial in lost]
    assert len(trials) == (8 if study == "easy__fake" else 2) + len(lost)
    for trial in lost:
        (again,) = [other for other in trials if other.user_attrs.get("again") == trial.number]
        assert again.params == trial.params


def test_failed_trials_are_recorded_and_counted(tuning):
    """A run that fails, one that is killed, one without success, one that is not a number; a finalist that fails."""
    actions = {
        "trial0001 2": r"print('error: something is wrong', '----', sep='\n', file=sys.stderr); sys.exit(3)",
        "trial0002 1": "os.kill(os.getpid(), signal.SIGKILL)",
        "trial0003 1": "sys.exit()",
        "trial0004 1": "height = float('nan')",
        "finalists8_0000 4": "sys.exit(1)",
    }
    process = tuning(actions=actions)
    assert (process.returncode, process.stderr) == (0, "")
    rows = read_table(tuning.out)
    assert [row["number"] for row in rows] == [str(number) for number in range(8)]
    failures = ["exit status 3: error: something is wrong", "killed by signal 9"]
    failures += ["there is no finite evaluation in progress.csv"] * 2
    assert [row["failure"] for row in rows[1:5]] == failures
    assert [row["state"] for row in rows[1:5]] == ["FAIL"] * 4
    assert rows[1]["rung_1"] and not rows[1]["rung_2"]
    assert "8 of 8 trials, " in process.stdout and " 4 failed, " in process.stdout
    assert "trial 1: exit status 3: error: something is wrong in " in process.stdout
    (failed,) = [row for row in rows if row["failure"].startswith("finalist: exit status 1")]
    assert failed["state"] == "COMPLETE" and not failed["value_of_all_seeds"]
    (winner,) = [row for row in rows if row["value_of_all_seeds"]]
    assert json.loads((tuning.out / "easy__fake.json").read_text())["rate"] == float(winner["rate"])
    again = tuning()
    assert (again.returncode, read_table(tuning.out)) == (0, rows)  # none is tried again


def test_the_curve_is_of_success_or_else_of_the_return(tmp_path):
    """A success that is missing once is no reason to take the return: the trial has failed."""
    for successes, expected in (([0.5, 1], [0.5, 1]), (["nan", "nan"], [20, 30]), ([0.5, "nan"], [0.5, np.nan])):
        rows = [f"{step},{10 * step},{x}" for step, x in zip((2, 3), successes, strict=True)]
        (tmp_path / "progress.csv").write_text("\n".join(["global_step,eval_return,eval_success", *rows, ""]))
        steps, heights = zip(*tune.read_curve(tmp_path), strict=True)
        assert steps == (2, 3)
        np.testing.assert_equal(heights, expected)


def test_all_fail(tuning):
    process = tuning("--trials", 2, fake="import sys\nsys.exit('error: no')\n")
    assert (process.returncode, process.stderr.count("\n")) == (1, 1)
    assert process.stderr.startswith("error: there is no winner")
    assert [row["failure"] for row in read_table(tuning.out)] == ["exit status 1: error: no"] * 2
    assert not (tuning.out / "easy__fake.json").exists()


def test_a_trial_that_another_process_took_over(tuning):
    """Its run tells the study that it is dead: the process that began it gives it up, and the trial is tried again."""
    load = f"optuna.load_study(study_name='easy__fake', storage='sqlite:///{tuning.out}/easy__fake.db')"
    action = f"import optuna; {load}.tell(0, state=optuna.trial.TrialState.FAIL)"
    process = tuning(actions={"trial0000 1": action})
    assert (process.returncode, process.stderr) == (0, "")
    check_complete(tuning.out, 8)
    assert [row["number"] for row in read_table(tuning.out)] == [str(number) for number in range(1, 9)]


@pytest.fixture
def postgresql():
    """The URL of a PostgreSQL that runs in a temporary folder, or a skip that says why not"""
    places = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    initdb, pg_ctl = shutil.which("initdb", path=places), shutil.which("pg_ctl", path=places)
    if not (initdb and pg_ctl):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = tempfile.mkdtemp()  # not tmp_path, which only root may enter if root runs the tests
    user = {"user": "nobody"} if os.getuid() == 0 else {}  # it refuses to run as root
    if user:
        shutil.chown(folder, "nobody")

    def call(*command):
        return subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **user)

    started = call(initdb, "--pgdata", f"{folder}/data", "--username", "tester", "--auth", "trust", "--no-sync")
    if started.returncode == 0:
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        started = call(pg_ctl, "start", "-w", "-D", f"{folder}/data", "-l", f"{folder}/log", "-o", options)
    try:
        if started.returncode:
            pytest.skip(f"PostgreSQL does not start here: {started.stderr}")
        yield f"postgresql://tester@/postgres?host={folder}"
    finally:
        call(pg_ctl, "stop", "-w", "-m", "immediate", "-D", f"{folder}/data")
        shutil.rmtree(folder)


@pytest.mark.parametrize("shared", ["file", "PostgreSQL"])
def test_two_processes_share_the_trials(tuning, shared, request):
    """The first trial waits for the second one, which only another process can begin: each has one worker."""
    storage = request.getfixturevalue("postgresql") if shared == "PostgreSQL" else None
    outs = ["out put", "other"] if storage else ["out put"] * 2
    other = "not [*Path.cwd().glob('*/*/*__trial0001__*')]"
    action = f"[time.sleep(0.01) for _ in range(6000) if {other}] and {other} and sys.exit('there is no other')"
    flags = ["--workers", 1, *(["--storage", storage] if storage else [])]
    processes = [tuning(*flags, out=out, actions={"trial0000 1": action}, begin=subprocess.Popen) for out in outs]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [stderr for _, stderr in ends] == ["", ""]
    assert all(re.search("^[1-8] of 8 trials", stdout) for stdout, _ in ends)  # both have finished some
    folders = [tuning.out.parent / out for out in outs]
    for out in folders:
        check_complete(out, 8)
    assert len({(out / "easy__fake.csv").read_text() for out in folders}) == 1
    runs = sorted(path.name for out in {*folders} for path in out.glob("easy__fake/*"))
    assert len(runs) == len({*runs}) == 8 * 3 + 2 * 2


def test_latest_attempts():
    """Of what several processes began at once, all see the same: first come, first served."""
    study = optuna.create_study(direction="maximize")
    fail = optuna.trial.TrialState.FAIL
    for again in (None, None, None, 1, 1, 3, None):
        attrs = {} if again is None else {"again": again}
        study.add_trial(optuna.trial.create_trial(state=fail, user_attrs=attrs))
    assert [trial.number for trial in tune.latest_attempts(study, 2)] == [0, 5]
    assert [trial.number for trial in tune.latest_attempts(study, 4)] == [0, 5, 2, 6]
    assert tune.finished(study, 4) == []
    study.add_trial(optuna.trial.create_trial(state=fail, user_attrs={"again": 0, "failure": "error"}))
    assert [trial.number for trial in tune.finished(study, 4)] == [7]


def test_a_signal_to_all_processes_is_no_failure(tmp_path, monkeypatch):
    """The script has ended, with its status for that, before tune.py looks; without a signal that is a failure."""
    (tmp_path / "script.py").write_text("raise SystemExit(143)")
    (tmp_path / "logs" / "task").mkdir(parents=True)
    task = SimpleNamespace(script=tmp_path / "script.py", options=[], timesteps=10, name="task", out=tmp_path)
    monkeypatch.setattr(tune, "STOPPED", [15])
    run = tune.run(task, "trial", {}, 1, 10)
    next(run)
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    next(run)
    next(run)
    monkeypatch.setattr(tune, "STOPPED", [])
    with pytest.raises(tune.Failed, match="exit status 143: -"):
        next(run)


def test_claim_leaves_out_what_another_process_has(monkeypatch):
    """Between a look at the study and asking it for a trial, another process begins the last one, or the retry."""
    study = optuna.create_study(direction="maximize")
    ask = study.ask

    def ask_second():
        ask()
        return ask()

    monkeypatch.setattr(study, "ask", ask_second)
    assert tune.claim(study, 1, {}, {}, {}) is None
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "FAIL"]
    study.tell(0, state=optuna.trial.TrialState.FAIL)
    monkeypatch.setattr(study, "ask", ask)
    study.enqueue_trial({}, {"again": 0})  # at the same moment by another process
    trial = tune.claim(study, 1, {}, {}, {})
    assert (trial.number, trial.user_attrs) == (2, {"again": 0})
    assert tune.claim(study, 1, {}, {2}, {}) is None
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "RUNNING"]


def test_claim_takes_over_only_what_is_silent(monkeypatch):
    """By a clock of the test: signs of life are looked for, at 0, 50, 100 and 170 seconds, and one came in between."""
    study = optuna.create_study(direction="maximize")
    trial, heard = study.ask(), {}
    for second, beat, state in ((0, 1, "RUNNING"), (50, 1, "RUNNING"), (100, 2, "RUNNING"), (170, 2, "FAIL")):
        monkeypatch.setattr(tune.time, "monotonic", lambda second=second: second)
        trial.set_user_attr("beat", beat)
        assert tune.claim(study, 1, {}, {}, heard) is None
        assert study.trials[0].state.name == state
    assert tune.claim(study, 1, {}, {}, heard).user_attrs == {"again": 0}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rung = 2000", "rung = 2000\nrungs = 3", "the file has the unknown key rungs"),
        ("rung = 2000", "rung = 2.5", "rung must be a whole number above 0"),
        ("rung = 2000", "rung = 5000", "family easy: rung must be below timesteps"),
        ("rung = 2000", "", "the file lacks rung"),
        ("rung = 2000", "rung 2000", "line 5"),
        ("[1, 2, 3]", "[]", "seeds must be a list of whole numbers"),
        ("[1, 2, 3]", "[1, 2, 4]", "seed 4 is listed twice"),
        ("timesteps = 5000", "steps = 5000", "family easy has the unknown key steps"),
        ("timesteps = 5000,", "", "family easy lacks timesteps"),
        ("--length 2", "--length 2 --seed=3", "options must not set --seed"),
        ("--length 2", "--height 2", "options must not set --height"),
        ('["none", 0.5]', "[]", "clip must be { log = [low, high] } or a list of numbers or words, all different"),
        ('["none", 0.5]', "[1, 1]", "clip must be { log = [low, high] } or a list of numbers or words, all different"),
        ('["none", 0.5]', "[true]", "clip must be { log = [low, high] } or a list of numbers or words"),
        ('["none", 0.5]', "0.5", "clip must be { log = [low, high] } or a list of numbers or words"),
        ('["none", 0.5]', "{ lin = [1, 2] }", "clip must be { log = [low, high] } or a list of numbers or words"),
        ("log = [1e-3, 1e-1]", "log = [1e-1, 1e-3]", "rate must go from low to high, both above 0"),
        ("log = [1e-3, 1e-1]", "log = [0, 1e-3]", "rate must go from low to high, both above 0"),
        ("[arms.fake]", "[arms.fake]\nscripts = 3", "arm fake has the unknown key scripts"),
        ("[arms.fake]", "[arms.fake]\noptions = 3", "arm fake: options must be a string"),
        ('script = "fake.py"', 'script = "nothing.py"', "arm fake: there is no script nothing.py"),
        ("[arms.fake]", "[arms.real]", "fake is none of its arms: real"),
        ("easy =", "hard =", "easy is none of its families: hard"),
    ],
)
def test_bad_files(tuning, old, new, message):
    process = tuning(text=TOML.replace(old, new))
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert process.stderr.startswith("error: tune.toml: ")
    assert message in process.stderr
    assert not tuning.out.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", 0], "--trials and --workers must be at least 1"),
        (["--workers", 0], "--trials and --workers must be at least 1"),
        (["--out", "tune.toml"], "--out tune.toml: "),
        (["--storage", "postgresql://nobody@127.0.0.1:1/none"], "cannot open the study's database: "),
        (["--storage", "nonsense"], "cannot open the study's database: "),
    ],
)
def test_bad_options(tuning, flags, message):
    process = tuning(*flags)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert process.stderr.startswith(f"error: {message}")


def test_another_study_is_not_continued(tuning):
    assert tuning("--trials", 1).returncode == 0
    changes = {
        "space": {"text": TOML.replace("0.1]", "0.0]")},
        "timesteps": {"text": TOML.replace("5000", "6000")},
        "finalists": {"text": TOML.replace("finalists = 2", "finalists = 1")},
        "code": {"fake": FAKE + "\n"},
    }
    before = read_trials(tuning.out)
    for name, change in changes.items():
        process = tuning(**change)
        assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
        assert f"easy__fake was begun with other settings ({name})" in process.stderr
    assert tuning("--trials", 1, text=f"# in other words\n{TOML}").returncode == 0
    assert read_trials(tuning.out) == before
    (tuning.out / "easy__fake.db").unlink()
    process = tuning()
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "easy__fake holds runs trial0000 of another study" in process.stderr


def test_help(tuning):
    process = tuning("--help")
    assert (process.returncode, process.stderr) == (0, "")
    assert "--storage" in process.stdout


def ends_of_space(arm):
    """The first of all choices, and the last: the smallest and the largest."""
    table = tomllib.loads(STUDY.read_text())
    space = table["space"] | table["arms"][arm].get("space", {})
    return [{name: (x["log"] if isinstance(x, dict) else x)[end] for name, x in space.items()} for end in (0, -1)]


@pytest.mark.parametrize("family", tomllib.loads(STUDY.read_text())["families"])
@pytest.mark.parametrize("arm", tomllib.loads(STUDY.read_text())["arms"])
def test_scripts_take_what_the_committed_study_draws(monkeypatch, tmp_path, family, arm):
    task = tune.read_task(tune.Args(STUDY, family, arm))
    for params in ends_of_space(arm):
        script = {"ppo_vanilla.py": ppo_vanilla, "ppo_metairn.py": ppo_metairn}[task.script]
        words = tune.command(task, "name", params, 1)
        monkeypatch.setattr(sys, "argv", words[1:])
        args = script.parse_args()
        script.set_up(args)[0].close()
        for name, value in params.items():
            assert getattr(args, name) == (None if value == "none" else value)


def test_a_real_study(tmp_path):
    """Both scripts, stopped and continued; the winner's options are taken by benchmark.sh."""
    text = """
seeds = [1, 2]
finalist_seeds = [3]
finalists = 1
rung = 2000
[space]
learning_rate = { log = [1e-3, 1e-2] }
target_kl = ["none"]
[families]
tiny = { timesteps = 6000, options = "--chain-length 2" }
[arms.ppo]
script = "ppo_vanilla.py"
[arms.redistribution]
script = "ppo_metairn.py"
[arms.redistribution.space]
intrinsic_coef = [0.5]
"""
    (tmp_path / "tune.toml").write_text(text)
    lines = []
    for arm, script in (("ppo", "ppo_vanilla"), ("redistribution", "ppo_metairn")):
        command = [sys.executable, ROOT / "tune.py", "tune.toml", "--family", "tiny", "--arm", arm, "--out", "out"]
        command += ["--trials", "2", "--workers", "2"]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (process.returncode, process.stderr) == (0, "")
        lines.append(f"{arm} {script} 2 1000 @{tmp_path}/out/tiny__{arm}.json\n")
        with open(tmp_path / "out" / f"tiny__{arm}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
        for row in rows:
            name = f"UmbrellaLength-v0__trial{int(row['number']):04}__2"
            folders = [tmp_path / "out" / f"tiny__{arm}" / f"{name}__{seed}" for seed in (1, 2)]
            rung = fmean(tune.area(tune.read_curve(folder), 2000) for folder in folders)
            assert float(row["value_at_rung"]) == pytest.approx(rung)
            if row["state"] == "COMPLETE":
                whole = [tune.read_curve(folder) for folder in folders]
                assert [curve[-1][0] for curve in whole] == [6000, 6000]
                assert float(row["value"]) == pytest.approx(fmean(tune.area(curve, 6000) for curve in whole))
            log = (tmp_path / "out" / "logs" / f"tiny__{arm}" / f"trial{int(row['number']):04}__1.log").read_text()
            resumed = log.count(f"\n{shlex.quote(sys.executable)} ")  # a second command, --resume
            assert resumed == (row["state"] == "COMPLETE")
    (tmp_path / "study.txt").write_text("".join(lines))
    env = os.environ | {"STUDY": "study.txt", "OUT": "runs", "SEEDS": "1", "PYTHON": sys.executable}
    process = subprocess.run(["bash", ROOT / "benchmark.sh"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    for arm in ("ppo", "redistribution"):
        args = json.loads((tmp_path / "runs" / f"UmbrellaLength-v0__{arm}__2__1" / "args.json").read_text())
        winner = json.loads((tmp_path / "out" / f"tiny__{arm}.json").read_text())
        assert args.items() >= winner.items()
        assert args["target_kl"] is None
