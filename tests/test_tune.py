"""tune.py, with runs that take no time (`inside`), with a fake script (`outside`, `run_fake`), and with a real one.

The fake script trains nothing and only writes progress.csv: success is --height plus a thousandth of the seed; with the
finalists' seeds the lower --height is the better one. At the rung it waits for a moment to be stopped. `actions` are
executed where a run begins, that of the n-th run that begins or of the first with a finalist's seed ("finalist").
"""

import copy
import csv
import fcntl
import json
import os
import re
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import ppo_lirpg
import ppo_metairn
import ppo_vanilla

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install -r requirements-tune.txt")
sqlalchemy = pytest.importorskip("sqlalchemy")
tune = pytest.importorskip("tune")

ROOT = Path(__file__).parents[1]
SCRIPTS = {f"{script.__name__}.py": script for script in (ppo_vanilla, ppo_lirpg, ppo_metairn)}
STUDIES = {name: ROOT / "results" / name / "tune.toml" for name in ("umbrella", "cartpole", "continuous_control")}
ARMS = [(name, arm) for name, path in STUDIES.items() for arm in tomllib.loads(path.read_text())["arms"]]
STATES = optuna.trial.TrialState
FAKE = """
import itertools, json, os, signal, sys, time
from pathlib import Path
parent, words = os.getppid(), [part for word in sys.argv[1:] for part in word.split("=")]
args = dict(zip(words[::2], words[1::2]))
resumed = args.get("--resume")
folder = Path(resumed or f"{args['--runs-dir']}/Fake__0__{args['--seed']}")
folder.mkdir(parents=True, exist_ok=True)
args = json.loads((folder / "args.json").read_text()) if resumed else args
(folder / "args.json").write_text(json.dumps(args))
height, seed, end = float(args["--height"]), int(args["--seed"]), int(args["--total-timesteps"])
moments = Path(os.environ["MOMENTS"])
def begins(name):
    try:
        return not os.close(os.open(moments / name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
actions = {} if resumed else json.loads(os.environ["ACTIONS"])
exec("" if resumed else actions.get(next(str(i) for i in itertools.count() if begins(str(i))), ""))
exec(actions.get("finalist", "") if seed > 3 and begins("finalist") else "")
until = time.monotonic() + 10
for step in range(int((folder / "checkpoint.pt").read_text()) if resumed else 0, end + 1, 1000):
    rows = [f"{s},0,{(height if seed < 4 else 1 - 2 * height) + seed / 1000}" for s in range(0, step + 1, 1000)]
    rows = "\\n".join(["global_step,eval_return,eval_success", *rows])
    for name, text in (("progress.csv", rows), ("checkpoint.pt", str(step))):
        (folder / "tmp").write_text(text)
        (folder / "tmp").replace(folder / name)
    while step == 2000 and not resumed and seed < 4 and os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.01)
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
def folder(tmp_path, monkeypatch):
    """With the fake script, and with spaces in its name"""
    path = tmp_path / "a folder"
    (path / "moments").mkdir(parents=True)
    monkeypatch.setenv("MOMENTS", str(path / "moments"))
    (path / "fake.py").write_text(FAKE)
    (path / "tune.toml").write_text(TOML.replace("fake.py", str(path / "fake.py")))
    return path


@pytest.fixture
def inside(folder, monkeypatch):
    """inside(trials=3) tunes in this process -> the table; before(holder, key) is called where a run would begin"""

    def tune_inside(heights=(), before=lambda holder, key: None, text=TOML, **options):
        (folder / "tune.toml").write_text(text.replace("fake.py", str(folder / "fake.py")))
        options = {"family": "easy", "arm": "fake", "trials": len(heights) or 8, "workers": 1} | options
        args = tune.Args(folder / "tune.toml", **{"out": folder / "out"} | options)
        task = copy.copy(args)
        tune.read_task(task)
        tune_inside.study = lambda: tune.open_study(task)
        if heights and not args.out.exists():  # those of the first trials
            study = tune.open_study(task)
            for height in heights:
                study.enqueue_trial({"height": height})

        def run(task, params, seed, end, holder, key):
            if key not in holder.user_attrs:
                before(holder, key)
                height = params["height"] if seed < 4 else 1 - 2 * params["height"]
                holder.set_user_attr(key, height + seed / 1000)
            return holder.user_attrs[key]

        monkeypatch.setattr(tune, "run", run)
        tune.main(args)
        return read_table(args.out)

    def quick(connection, _):
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", quick)
    tune_inside.out = folder / "out"
    yield tune_inside
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", quick)


@pytest.fixture
def outside(folder):
    """outside("--workers", 1) runs tune.py on the fake script; hasty: a silence of three seconds is one"""

    def run(*flags, actions=None, begin=subprocess.run, hasty=False, out="out"):
        hurry = "import tune, tyro; tune.BEAT, tune.SILENCE = 1, 3; tune.main(tyro.cli(tune.Args))"
        words = [sys.executable, *(["-c", hurry] if hasty else [ROOT / "tune.py"]), "tune.toml", "--family", "easy"]
        words += ["--arm", "fake", "--out", out, "--trials", "8", "--workers", "2", *flags]
        env = os.environ | {"ACTIONS": json.dumps(actions or {}), "PYTHONPATH": str(ROOT)}
        return begin(words, cwd=folder, env=env, start_new_session=True, stderr=subprocess.PIPE, text=True)

    run.out = folder / "out"
    return run


def read_table(out, arms=("fake",)):
    with open(out / "trials.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["arm"] in arms]


def load(out):
    storage = f"sqlite:///{out}/easy__fake.db"
    return optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)


def give_up(study, trial):
    """What Optuna does with a trial that was silent for too long."""
    study._storage.set_trial_state_values(trial._trial_id, STATES.FAIL)
    study._storage.get_heartbeat_stale_trial_callback()(study, trial)


def check_complete(out, trials):
    """All trials are there, with the right values; so are the finalists, and the winner is the best of them."""
    rows = read_table(out)
    for row in rows:
        complete = row["state"] == "COMPLETE"
        assert complete or row["state"] == "PRUNED", row["failure"]
        areas = [float(row[f"rung_{seed}"]) - seed / 1000 for seed in (1, 2, 3)]
        assert [*areas, float(row["value_at_rung"]) - 0.002] == pytest.approx([float(row["height"])] * 4)
        assert row["value"] == (row["value_at_rung"] if complete else "") and bool(row["area_1"]) == complete
    best = sorted((row for row in rows if row["value"]), key=lambda row: -float(row["value"]))[:2]
    assert sorted(row["number"] for row in rows if row["value_of_all_seeds"]) == sorted(row["number"] for row in best)
    for row in best:
        height = float(row["height"])
        assert float(row["value_of_all_seeds"]) == pytest.approx((3 * height + 2 * (1 - 2 * height)) / 5 + 0.003)
    first = max(best, key=lambda row: float(row["value_of_all_seeds"]))
    winner = json.loads((out / "winners.json").read_text())["easy__fake"]
    expected = {name: first[name] for name in ("height", "rate", "clip") if first[name] != "none"}
    assert {name: str(value) for name, value in winner.items()} == expected
    assert len({row["rate"] for row in rows}) == len(rows) == trials  # each draws for itself, in whichever process
    assert not list(out.glob("*.tmp"))


def test_area(folder):
    """By hand; and a success that is missing once is no reason to take the return: the trial has failed."""
    assert tune.area([(0, 0.5), (10, 0.5), (20, 1.0), (40, 1.0)], 40) == pytest.approx((5 + 7.5 + 20) / 40)
    assert tune.area([(0, 0.0), (16, 0.0), (32, 1.0), (48, 0.0)], 24) == pytest.approx((8 * 0.5 / 2) / 24)
    assert tune.area([(0, 0.0), (10, 0.8)], 20) == pytest.approx((10 * 0.4 + 10 * 0.8) / 20)
    for successes, expected in (([0.5, 1], [0.5, 1]), (["nan", "nan"], [20, 30]), ([0.5, "nan"], [0.5, np.nan])):
        rows = [f"{step},{10 * step},{x}" for step, x in zip((2, 3), successes, strict=True)]
        (folder / "moments" / "progress.csv").write_text("\n".join(["global_step,eval_return,eval_success", *rows]))
        np.testing.assert_equal(tune.read_curve(folder), [*zip((2, 3), expected, strict=True)])


def test_what_is_there_stays(inside):
    """Of other arms and families, in committed files; and of this arm, which has nothing left to do, or a bit."""
    inside.out.mkdir()
    for name in ("trials.csv", "winners.json"):
        shutil.copy(STUDIES["umbrella"].with_name(name), inside.out)
    arms = [arm for name, arm in ARMS if name == "umbrella"]
    before, winners = read_table(inside.out, arms), json.loads((inside.out / "winners.json").read_text())
    rows = inside(trials=6)
    check_complete(inside.out, 6)
    assert inside(trials=6, before=lambda *_: pytest.fail("again"), text=f"# in other words\n{TOML}") == rows
    inside(trials=8)
    check_complete(inside.out, 8)
    inside(trials=6, text=TOML.replace("0.1]", "0.0]"))  # another study
    assert inside(trials=6, before=lambda *_: pytest.fail("again")) != []
    assert [{name: row[name] for name in before[0]} for row in read_table(inside.out, arms)] == before
    assert json.loads((inside.out / "winners.json").read_text()).items() > winners.items()


@pytest.mark.parametrize("seed", range(3))
def test_pruning_is_successive_halving(inside, seed):
    """As by Optuna's pruner, without interruptions: who is in the best third of those so far goes on."""
    heights = np.random.default_rng(seed).choice([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 14).tolist()
    pruner = optuna.pruners.SuccessiveHalvingPruner(2000, reduction_factor=3)
    oracle, expected = optuna.create_study(direction="maximize", pruner=pruner), []
    for height in heights:
        trial = oracle.ask()
        trial.report(height, 2000)
        expected.append("PRUNED" if trial.should_prune() else "COMPLETE")
    assert [row["state"] for row in inside(heights)] == expected
    assert {*expected} == {"COMPLETE", "PRUNED"}


def test_an_interrupted_trial_counts_once(inside):
    """Trial 4 is interrupted behind the rung, and tried again last. All end as they do without that.

    If its attempts counted as two, number 5 would not be in the best third, for 0.8 and 0.8 of seven would; if they did
    not count, number 7 would be. Number 4 itself was in the best third, but is not when it is tried again.
    """
    text = TOML.replace("0.6, 0.5", "0.75, 0.78, 0.76, 0.85, 0.95")
    heights = [0.1, 0.2, 0.3, 0.4, 0.8, 0.75, 0.78, 0.76, 0.9, 0.85, 0.95]
    calls = []

    def note(holder, key):
        calls.append(key if getattr(holder, "number", None) in (4, 11) else "")
        if calls.count("area_2") == 1 and calls[-1]:
            sys.exit("power cut")

    with pytest.raises(SystemExit, match="power cut"):
        inside(heights, note, text)
    trial = inside.study().trials[4]
    assert trial.state == STATES.RUNNING
    give_up(inside.study(), trial)
    rows = inside(heights, note, text)
    assert rows[5]["state"] == "COMPLETE" and rows[7]["state"] == "PRUNED"
    assert [key for key in calls if key] == ["rung_1", "rung_2", "rung_3", "area_1", "area_2", "area_2", "area_3"]
    expected = inside(heights, text=text, out=inside.out.with_name("other"))
    columns = [name for name in expected[0] if name not in ("rate", "clip", "seconds")]
    assert [[row[name] for name in columns] for row in rows] == [[row[name] for name in columns] for row in expected]


def test_first_come_first_served(monkeypatch):
    """What several processes began at once: the surplus ends at once and does not count."""
    study = optuna.create_study()
    for state, first in (("PRUNED", None), ("FAIL", None), ("PRUNED", None), ("RUNNING", 1), ("WAITING", 1)):
        attrs = {} if first is None else {"failed_trial": first}
        study.add_trial(optuna.trial.create_trial(state=STATES[state], system_attrs=attrs))
    task = SimpleNamespace(trials=3)
    assert {first: trial.number for first, trial in tune.counted(task, study).items()} == {0: 0, 1: 3, 2: 2}
    monkeypatch.setattr(tune, "run", lambda *args: pytest.fail("runs"))
    for number in (4, 5):  # the second new attempt, and a fourth trial
        study.optimize(lambda trial: tune.run_trial(task, study, trial), 5)
        assert [trial.number for trial in study.trials if trial.state == STATES.FAIL][-1] == number
    assert [*tune.counted(task, study)] == [0, 1, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trial_that_another_process_took_over(inside, workers):
    """It was silent for a minute, and is tried again; the process that began it gives it up and goes on."""

    def take_over(holder, key):
        if getattr(holder, "number", None) == 0 and key == "rung_2":
            give_up(inside.study(), inside.study().trials[0])

    inside(before=take_over, workers=workers)
    check_complete(inside.out, 8)
    assert [trial.state for trial in load(inside.out).trials].count(STATES.FAIL) == 1


def test_failed_trials_are_recorded_and_counted(inside, capsys):
    """Before the rung and behind it, and a finalist; none is tried again. Then all."""
    heights = [0.1, 0.3, 0.4, 0.9, 0.9, 0.7, 0.6, 0.5]

    def before(holder, key):
        if (getattr(holder, "number", None), key) in ((1, "rung_2"), (3, "area_3"), (None, "4_4")):
            raise ChildProcessError(f"exit status 3: {key}")

    rows = inside(heights, before)
    assert [row["state"] for row in rows] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE", *["PRUNED"] * 3]
    assert [row["failure"] for row in rows if row["failure"]] == ["exit status 3: rung_2", "exit status 3: area_3"]
    assert rows[1]["rung_1"] and rows[3]["area_2"] and not rows[1]["value_at_rung"] and not rows[3]["value"]
    assert rows[4]["value"] and not rows[4]["value_of_all_seeds"]
    assert json.loads((inside.out / "winners.json").read_text())["easy__fake"]["height"] == 0.4  # the other finalist
    assert [row["state"] for row in inside(heights)] == [row["state"] for row in rows]
    out = inside.out.with_name("other")
    with pytest.raises(SystemExit, match="2"):
        inside(out=out, before=lambda holder, key: os.stat("nothing"))
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: there is no winner")
    assert [row["state"] for row in read_table(out)] == ["FAIL"] * 8 and not (out / "winners.json").exists()


@pytest.fixture
def run_fake(folder, monkeypatch):
    """run_fake("rung", 1, 2000) runs the fake script with seed 1 by tune.run, until it is evaluated at 2000"""
    monkeypatch.setattr(tune, "POLL", 0.02)
    task = SimpleNamespace(script=folder / "fake.py", options=["--length", "2"], timesteps=5000, settings="")
    task.folder, study = folder / "moments", optuna.create_study()

    def run(key, seed, end, action=""):
        monkeypatch.setenv("ACTIONS", json.dumps({"0": action}))
        return tune.run(task, {"height": 0.5, "learning_rate": 0.25, "clip": "none"}, seed, end, study, key)

    run.folder, run.study = task.folder, study
    return run


def test_a_run_is_stopped_at_the_rung_and_goes_on(run_fake):
    """When it goes on, it waits for one that a killed tune.py left behind: the test holds the lock in its place."""
    assert run_fake("rung", 1, 2000) == pytest.approx(0.501)
    (path,), (log,) = run_fake.folder.glob("*/Fake__0__1/args.json"), run_fake.folder.glob("*.log")
    args = {"--length": "2", "--height": "0.5", "--learning-rate": "0.25", "--seed": "1", "--total-timesteps": "5000"}
    args |= {"--eval-every": "1000", "--eval-episodes": "100", "--runs-dir": str(path.parents[1])}
    assert json.loads(path.read_text()) == args  # "none" leaves the option out
    assert tune.read_curve(path.parents[1])[-1][0] == 2000
    with open(log) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=run_fake, args=("area", 1, 5000))
        thread.start()
        thread.join(0.5)
        assert "--resume" not in log.read_text()
    thread.join()
    assert tune.read_curve(path.parents[1])[-1][0] == 5000
    assert run_fake("area", 1, 5000) and log.read_text().count("fake.py") == 2  # the area is kept
    assert log.read_text().count("--resume") == 1
    assert run_fake.study.user_attrs == {"rung": pytest.approx(0.501), "area": pytest.approx(0.501)}


FAILURES = {
    r"sys.exit('error: something is wrong\n----')": "exit status 1: error: something is wrong",
    "os.kill(os.getpid(), signal.SIGKILL)": "killed by signal 9",
    "sys.exit()": "there is no finite evaluation in progress.csv",
    "height = float('inf')": "there is no finite evaluation in progress.csv",
}


@pytest.mark.parametrize("action", FAILURES)
def test_a_run_fails(run_fake, action):
    with pytest.raises(ChildProcessError, match=f"^{FAILURES[action]}$"):
        run_fake("area", 4, 5000, action)
    assert run_fake.study.user_attrs == {}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["4", "finalist"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_interrupted_trials_are_tried_again(outside, name, moment):
    """Also while runs that tune.py left behind go on. A terminal sends Ctrl-C to the runs, too."""
    action = "os.killpg(0, signal.SIGINT)" if name == "SIGINT" else f"os.kill(parent, signal.{name})"
    assert outside(actions={moment: action}).returncode == -getattr(signal, name)
    assert not [*outside.out.glob("*.[cj]s*")]
    lost = [trial.number for trial in load(outside.out).trials if trial.state == STATES.RUNNING]
    assert bool(lost) == (moment != "finalist")
    if name == "SIGKILL":  # as if it had come before a trial's first sign of life
        with sqlite3.connect(outside.out / "easy__fake.db") as database:
            database.execute("DELETE FROM trial_heartbeats")
    continued = outside(hasty=True)
    assert continued.returncode == 0, continued.stderr
    check_complete(outside.out, 8)
    trials = load(outside.out).trials
    again = {trial.system_attrs["failed_trial"]: trial for trial in trials if "failed_trial" in trial.system_attrs}
    assert {*lost} <= {*again} and all(again[n].params.items() >= trials[n].params.items() for n in lost)


@pytest.fixture
def postgresql():
    """The URL of a PostgreSQL that runs in a temporary folder, or a skip that says why not"""
    places = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    initdb, pg_ctl = shutil.which("initdb", path=places), shutil.which("pg_ctl", path=places)
    if not (initdb and pg_ctl):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    path = tempfile.mkdtemp()  # not tmp_path, which only root may enter if root runs the tests
    user = {"user": "nobody"} if os.getuid() == 0 else {}  # it refuses to run as root
    if user:
        shutil.chown(path, "nobody")

    def call(*command):
        return subprocess.run(command, cwd=path, stdout=subprocess.DEVNULL, **user).returncode

    options = f"-k {path} -c listen_addresses='' -c fsync=off"
    failed = call(initdb, "--pgdata", f"{path}/data", "--username", "tester", "--auth", "trust", "--no-sync")
    try:
        if failed or call(pg_ctl, "start", "-w", "-D", f"{path}/data", "-l", f"{path}/log", "-o", options):
            pytest.skip("PostgreSQL does not start here")
        yield f"postgresql://tester@/postgres?host={path}"
    finally:
        call(pg_ctl, "stop", "-w", "-m", "immediate", "-D", f"{path}/data")
        shutil.rmtree(path)


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["file", "PostgreSQL"])
def test_two_processes_share_the_trials(outside, shared, request):
    """The first run waits for the second one, which only another process can begin: each has one worker."""
    storage = ["--storage", request.getfixturevalue("postgresql")] if shared == "PostgreSQL" else []
    other = "(moments / '1').exists()"
    action = f"[time.sleep(0.01) for _ in range(6000) if not {other}] and {other} or sys.exit('there is no other')"
    outs = ["out", "other" if storage else "out"]
    kinds = {"actions": {"0": action}, "begin": subprocess.Popen}
    processes = [outside("--workers", "1", *storage, out=out, **kinds) for out in outs]
    ends = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert all(re.search(r"Trial \d (finished|pruned)", end) and "Traceback" not in end for end in ends)
    for out in outs:
        check_complete(outside.out.with_name(out), 8)
    assert len({(outside.out.with_name(out) / "trials.csv").read_text() for out in outs}) == 1
    logs = "".join(path.read_text() for path in outside.out.glob("easy__fake/*.log"))
    complete = sum(row["state"] == "COMPLETE" for row in read_table(outside.out))
    assert storage or logs.count("fake.py") == (8 + complete) * 3 + min(complete, 2) * 2  # nothing ran twice


BAD_FILES = """
rung = 2000 -> rungs = 2000 -> missing or unknown: rung
rung = 2000 -> rung = 'x' -> TypeError
rung = 2000 -> rung = 5000 -> rung must be above 0 and below timesteps
rung = 2000 -> rung 2000 -> line 5
finalists = 2 -> finalists = 2.5 -> finalists must be a whole number above 0
[1, 2, 3] -> [] -> seeds and finalist_seeds must all be different
[1, 2, 3] -> [1, 2, 4] -> seeds and finalist_seeds must all be different
timesteps = 5000, -> timesteps = 5000, steps = 3, -> missing or unknown: steps
--length 2 -> --length 2 --seed=3 -> options must not set seed
--length 2 -> --height 2 -> options must not set height
["none", 0.5] -> [] -> choices
["none", 0.5] -> 0.5 -> float
["none", 0.5] -> { lin = [1, 2] } -> log
[1e-3, 1e-1] -> [1e-1, 1e-3] -> low=0.1, high=0.001
[1e-3, 1e-1] -> [0, 1e-3] -> low
script = "fake.py" -> script = "nothing.py" -> nothing.py
[arms.fake] -> [arms.real] -> fake is none of its arms: real
easy = -> hard = -> easy is none of its families: hard
""".strip().splitlines()


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(inside, capsys, case):
    old, new, message = case.split(" -> ")
    with pytest.raises(SystemExit, match="2"):
        inside(text=TOML.replace(old, new))
    assert re.fullmatch(f"error: .*tune.toml: .*{re.escape(message)}.*\n", capsys.readouterr().err)
    assert not inside.out.exists()


@pytest.mark.parametrize(
    "options", ["trials=0", "workers=0", f"out={__file__}", "storage=x", "storage=postgresql:///y"]
)
def test_bad_options(inside, capsys, monkeypatch, options):
    name, value = options.split("=")
    message = "--trials and --workers must be" if value == "0" else "cannot open the study's database: "
    monkeypatch.setattr(tune.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit, match="2"):
        inside(**{name: {"0": 0, __file__: Path(__file__)}.get(value, value)})
    assert re.fullmatch(f"error: {message}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("words", [["--help"], [str(STUDIES["umbrella"]), "--family", "hidden_50", "--arm", "ppo"]])
def test_without_optuna(monkeypatch, capsys, words):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr(sys, "argv", ["tune.py", *words])
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tune.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert end.value.code == (0 if words == ["--help"] else 2)
    assert re.fullmatch("" if words == ["--help"] else "error: .* requirements-tune.txt\n", err)
    assert ("--storage" in out) == (words == ["--help"])


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_scripts_take_what_the_committed_studies_draw(monkeypatch, tmp_path, study, arm):
    """The first of all choices, and the last: the smallest and the largest."""
    if study == "continuous_control":
        pytest.importorskip("mujoco", reason="MuJoCo is not installed: pip install -r requirements-mujoco.txt")
    monkeypatch.setattr(subprocess, "Popen", lambda words, **_: sys.argv.__setitem__(slice(None), words[1:]) or exit())
    for family in tomllib.loads(STUDIES[study].read_text())["families"]:
        task = tune.Args(STUDIES[study], family, arm, out=tmp_path)
        tune.read_task(task)
        task.folder.mkdir()
        for end in (0, -1):
            params = {name: (x["log"] if isinstance(x, dict) else x)[end] for name, x in task.space.items()}
            with pytest.raises(SystemExit):
                tune.run(task, params, 1, task.rung, optuna.create_study(), "rung_1")
            args = SCRIPTS[task.script].parse_args()
            SCRIPTS[task.script].set_up(args)[0].close()
            assert vars(args).items() >= {k: None if value == "none" else value for k, value in params.items()}.items()


@pytest.mark.slow
def test_a_real_study(tmp_path):
    """A script that is stopped and continued; the winner's options are taken by benchmark.sh."""
    text = TOML.replace("height = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]", "target_kl = ['none', 0.1]")
    text = text.replace("rate", "learning_rate").replace("clip", "intrinsic_coef").replace('"none", 0.5', "0.5, 1.0")
    text = text.replace("[1, 2, 3]", "[1]").replace("[4, 5]", "[4]").replace("--length", "--chain-length")
    (tmp_path / "tune.toml").write_text(text.replace("fake.py", "ppo_metairn.py"))
    command = [sys.executable, ROOT / "tune.py", "tune.toml", "--family", "easy", "--arm", "fake", "--out", "out"]
    subprocess.run([*command, "--trials", "2"], cwd=tmp_path, check=True)
    for row in read_table(tmp_path / "out"):
        (log,) = [path for path in tmp_path.glob("out/*/*.1.log") if row["learning_rate"] in path.read_text()]
        curve = tune.read_curve(log.with_suffix(""))
        assert ("--resume" in log.read_text()) == (row["state"] == "COMPLETE")
        assert float(row["value_at_rung"]) == pytest.approx(tune.area(curve, 2000))
        assert row["state"] == "PRUNED" or float(row["value"]) == pytest.approx(tune.area(curve, 5000))
    (tmp_path / "study.txt").write_text(f"best ppo_metairn 2 1000 @{tmp_path}/out/winners.json#easy__fake\n")
    env = os.environ | {"STUDY": "study.txt", "OUT": "runs", "SEEDS": "1", "PYTHON": sys.executable}
    subprocess.run(["bash", ROOT / "benchmark.sh"], cwd=tmp_path, env=env, check=True)
    args = json.loads((tmp_path / "runs" / "UmbrellaLength-v0__best__2__1" / "args.json").read_text())
    assert args.items() >= json.loads((tmp_path / "out" / "winners.json").read_text())["easy__fake"].items()
