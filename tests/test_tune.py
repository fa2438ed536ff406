"""tune.py, with runs that take no time (`inside`), with stand_in.py for a script (`outside`), and with a real one.

The stand-in's success is its --height plus a thousandth of the seed; with the finalists' seeds it is minus two heights.
So the finalist with the lower height wins. At the rung the stand-in waits to be stopped.
"""

import fcntl
import importlib
import json
import os
import re
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install -r requirements-tune.txt")
tune = pytest.importorskip("tune")

ROOT = Path(__file__).parents[1]
NAMES = ["umbrella", "cartpole", "continuous_control", "minatar"]
STUDIES = {name: ROOT / "results" / name / "tune.toml" for name in NAMES}
ARMS = [(name, arm) for name, path in STUDIES.items() for arm in tomllib.loads(path.read_text())["arms"]]
STATES = optuna.trial.TrialState
OUT = Path("out")
TOML = """
seeds = [1, 2, 3]
finalist_seeds = [4, 5]
finalists = 2
rung = 2000
space = { height = { log = [0.1, 0.9] } }
families = { easy = { timesteps = 5000, options = "--chain-length 2" } }
arms = { fake = { script = "fake.py", options = "--gamma 0.9", space = { clip_coef = ["none", 0.5] } } }
"""
AT_FIRST = "if step == 1000 and not resumed:\n    {}"


def success(height, seed):
    return height * (1 if seed < 4 else -2) + seed / 1000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current one, with spaces in its name, and with the stand-in for a script"""
    path = tmp_path / "a folder"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.setattr(tune, "HERE", path)
    Path("tune.toml").write_text(TOML)
    Path("umbrella_env.py").touch()
    shutil.copy(ROOT / "tests" / "stand_in.py", "fake.py")


@pytest.fixture
def inside(monkeypatch):
    """inside(trials=3) tunes in this process -> the table; before(number, key) is called where a run would begin"""
    open_study, real_run = tune.open_study, tune.run

    def tune_inside(heights=(), before=lambda number, key: None, text=TOML, action=None, **options):
        def open_with_heights(*args):
            tune_inside.study = open_study(*args)
            for height in heights if not tune_inside.study.trials else ():  # those of the first trials
                tune_inside.study.enqueue_trial({"height": height})
            return tune_inside.study

        def run(task, params, seed, end, holder, key):
            if key not in holder.user_attrs:
                before(getattr(holder, "number", None), key)
                holder.set_user_attr(key, success(params["height"], seed))
            return holder.user_attrs[key]

        Path("tune.toml").write_text(text)
        monkeypatch.setattr(tune, "open_study", open_with_heights)
        monkeypatch.setattr(tune, "run", real_run if action else run)
        monkeypatch.setenv("AT_CHECKPOINT", AT_FIRST.format(action))
        options = {"family": "easy", "arm": "fake", "trials": len(heights) or 8, "workers": 1, "out": OUT} | options
        tune.main(tune.Args(Path("tune.toml"), **options))
        return read_table()

    return tune_inside


def start(*flags, action="pass", silence=60, out="out"):
    """Starts tune.py, whose runs execute `action` at first; silence: in seconds"""
    text = (ROOT / "tune.py").read_text().replace("SILENCE, POLL = 10, 60", f"SILENCE, POLL = 1, {silence}")
    Path("tune.py").write_text(text)
    words = [sys.executable, "tune.py", "tune.toml", "--family", "easy", "--arm", "fake", "--out", out, "--trials", "8"]
    env = os.environ | {"AT_CHECKPOINT": AT_FIRST.format(action)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*words, "--workers", "2", *flags], env=env, start_new_session=True, **pipes)


def read_table(out=OUT):
    rows = pd.read_csv(out / "trials.csv", dtype={"clip_coef": str}, float_precision="round_trip")
    return rows[rows["arm"] == "fake"].set_index("number")


def check_complete(trials=8, out=OUT):
    """All trials are there, with the right values; so are the finalists, and the winner is the best of them."""
    rows = read_table(out)
    assert len(rows) == trials and rows["height"].is_unique  # each draws for itself, in whichever process
    assert {*rows["state"]} <= {"COMPLETE", "PRUNED"}, rows["failure"]
    heights, complete = rows["height"], rows["state"] == "COMPLETE"
    best = rows[complete].nlargest(2, "height")
    expected = {"value_at_rung": heights + 0.002, "value": (heights + 0.002).where(complete)}
    for seed in (1, 2, 3):
        expected |= {f"rung_{seed}": (areas := success(heights, seed)), f"area_{seed}": areas.where(complete)}
    expected["value_of_all_seeds"] = (0.003 - heights / 5).where(rows.index.isin(best.index))
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name], values, err_msg=name)
    first = best.loc[best["height"].idxmin()]
    winner = {"height": first["height"]} | ({} if first["clip_coef"] == "none" else {"clip_coef": 0.5})
    assert json.loads((out / "winners.json").read_text())["easy__fake"] == winner
    assert not list(out.glob("*.tmp"))


def test_area():
    """By hand; and a success that is missing once is no reason to take the return: the trial has failed."""
    assert tune.area([(0, 0.5), (10, 0.5), (20, 1.0), (40, 1.0)], 40) == pytest.approx((5 + 7.5 + 20) / 40)
    assert tune.area([(0, 0.0), (16, 0.0), (32, 1.0), (48, 0.0)], 24) == pytest.approx((8 * 0.5 / 2) / 24)
    assert tune.area([(0, 0.0), (10, 0.8)], 20) == pytest.approx((10 * 0.4 + 10 * 0.8) / 20)
    Path("run").mkdir()
    for x, y, expected in ((0.5, 1, [0.5, 1]), ("nan", "nan", [20, 30]), (0.5, "nan", [0.5, np.nan])):
        Path("run/progress.csv").write_text(f"global_step,eval_return,eval_success\n2,20,{x}\n3,30,{y}")
        np.testing.assert_equal(tune.read_curve(Path()), [*zip((2, 3), expected, strict=True)])


def test_what_is_there_stays(inside):
    """Of other arms and families, in committed files; and of this arm, which has nothing left to do, or a bit."""
    shutil.copytree(committed := STUDIES["umbrella"].parent, OUT)
    rows = inside(trials=6)
    check_complete(6)
    pd.testing.assert_frame_equal(inside(trials=6, before=None, text=f"# in other words\n{TOML}"), rows)
    inside(trials=8)
    check_complete(8)
    inside(trials=6, text=TOML.replace("0.9]", "0.8]"))  # another study
    check_complete(6)
    Path("fake.py").write_text("another script")
    with pytest.raises(TypeError):  # and begins to run
        inside(trials=6, before=None)
    old, new = [pd.read_csv(path / "trials.csv", dtype=str) for path in (committed, OUT)]
    pd.testing.assert_frame_equal(new[old.columns][:-6], old)
    old, new = [json.loads((path / "winners.json").read_text()) for path in (committed, OUT)]
    assert new.items() > old.items()


@pytest.mark.parametrize(("workers", "moment"), [(1, "area_2"), (2, "rung_2")])
def test_a_trial_that_another_process_took_over_counts_once(inside, workers, moment):
    """Trial 4 was silent for a minute, and is tried again last. With one worker, all end as they do without that.

    If its attempts counted as two, number 5 would not be in the best third, for 0.8 and 0.8 of seven would; if they did
    not count, number 7 would be. Number 4 itself was in the best third, but is not when it is tried again.
    """
    heights, calls = [0.1, 0.2, 0.3, 0.4, 0.8, 0.75, 0.78, 0.76, 0.9, 0.85, 0.89], []

    def before(number, key):
        if number in (4, 11):
            calls.append(key)
            if key == moment and calls.count(key) == 1:  # Optuna does this
                storage, trial = inside.study._storage, inside.study.trials[4]
                storage.set_trial_state_values(trial._trial_id, STATES.FAIL)
                storage.get_heartbeat_stale_trial_callback()(inside.study, trial)

    states = inside(heights, before, workers=workers)["state"]
    check_complete(11)
    assert calls.count("rung_1") == 1 and calls.count(moment) == 2
    pruner = optuna.pruners.SuccessiveHalvingPruner(2000, reduction_factor=3)
    oracle = optuna.create_study(direction="maximize", pruner=pruner)
    for height, state in zip(heights, states, strict=True):
        trial = oracle.ask()
        trial.report(height, 2000)
        assert workers == 2 or state == ("PRUNED" if trial.should_prune() else "COMPLETE")


def test_first_come_first_served(monkeypatch):
    """What several processes began at once: the surplus ends at once and does not count."""
    study, task = optuna.create_study(), SimpleNamespace(trials=3)
    for state, first in (("PRUNED", None), ("FAIL", None), ("PRUNED", None), ("RUNNING", 1), ("WAITING", 1)):
        attrs = {} if first is None else {"failed_trial": first}
        study.add_trial(optuna.trial.create_trial(state=STATES[state], system_attrs=attrs))
    assert {first: trial.number for first, trial in tune.counted(task, study).items()} == {0: 0, 1: 3, 2: 2}
    monkeypatch.setattr(tune, "run", None)
    for number in (4, 5):  # the second new attempt, and a fourth trial
        study.optimize(lambda trial: tune.run_trial(task, study, trial), 5)
        assert [trial.number for trial in study.trials if trial.state == STATES.FAIL][-1] == number
    assert [*tune.counted(task, study)] == [0, 1, 2]


def test_failed_trials_are_recorded_and_counted(inside, capfd):
    """Before the rung and behind it, and a finalist; none is tried again."""

    def before(number, key):
        if (number, key) in ((1, "rung_2"), (3, "area_3"), (None, "4_4")):
            raise ChildProcessError(f"exit status 3: {key}")

    rows = inside([0.1, 0.3, 0.4, 0.9, 0.9, 0.7, 0.6, 0.5], before)
    assert rows["state"].tolist() == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE", *["PRUNED"] * 3]
    assert rows["failure"].dropna().to_dict() == {1: "exit status 3: rung_2", 3: "exit status 3: area_3"}
    there = rows[["rung_1", "area_2", "value_at_rung", "value", "value_of_all_seeds"]].notna().astype(int)
    assert there.loc[[1, 3, 4]].to_numpy().tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert json.loads((OUT / "winners.json").read_text())["easy__fake"]["height"] == 0.4  # the other finalist
    assert "finalist 4 cannot win, seed 4 failed: exit status 3: 4_4" in capfd.readouterr().err
    assert inside(trials=8)["state"].tolist() == rows["state"].tolist()


def test_runs_are_stopped_at_the_rung_and_go_on(inside, monkeypatch):
    """Each waits for a lock, which the script inherits: one that a killed tune.py left behind may hold it."""
    flock, kinds, logs = fcntl.flock, [], []
    monkeypatch.setattr(fcntl, "flock", lambda file, kind: kinds.append(kind) or flock(file, kind))
    for _ in range(2):  # the second time, everything is kept
        text = TOML.replace('"none", 0.5', '"none"')  # which leaves the option out
        inside([0.5], text=text, action="fcntl.flock(1, fcntl.LOCK_EX | fcntl.LOCK_NB)")
        check_complete(1)
        logs.append({path: path.read_text() for path in sorted(OUT.glob("*/*.log"))})
    assert logs[0] == logs[1] and {*kinds} == {fcntl.LOCK_EX}
    for seed, (path, log) in zip((1, 2, 3, 4, 5), logs[0].items(), strict=True):
        args = {"chain-length": "2", "height": "0.5", "seed": str(seed), "total-timesteps": "5000"}
        args |= {"eval-every": "1000", "eval-episodes": "100", "runs-dir": str(path.with_suffix("")), "gamma": "0.9"}
        (written,) = path.with_suffix("").glob("*/args.json")
        assert json.loads(written.read_text()) == args | {"script": str(Path("fake.py").resolve())}
        assert re.findall("begins at step (.*)", log) == (["0", "2000"] if seed < 4 else ["0"])


FAILURES = {
    r"sys.exit('error: something is wrong\n----')": "exit status 1: error: something is wrong",
    "os.kill(os.getpid(), signal.SIGKILL)": "killed by signal 9",
    "sys.exit((folder / 'progress.csv').unlink())": "there is no finite evaluation in progress.csv",
    "success = float('inf')": "there is no finite evaluation in progress.csv",
    "fcntl.flock(open(options['runs-dir'] + '.log'), 6)": "exit status 1: BlockingIOError: .*",  # tune.py holds it
}


@pytest.mark.parametrize("action", FAILURES)
def test_all_runs_fail(inside, capsys, action):
    with pytest.raises(SystemExit, match="2"):
        inside([0.5], action=action)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: there is no winner")
    row = read_table().loc[0]
    assert row["state"] == "FAIL" and re.fullmatch(FAILURES[action], row["failure"]) and "rung_1" not in row
    assert not (OUT / "winners.json").exists()


SIGNALS = [  # a terminal sends Ctrl-C to the runs, too; `kill` does not
    ("SIGINT", 2, "os.killpg(0, signal.SIGINT)"),
    ("SIGINT", 4, "os.killpg(0, signal.SIGINT)"),
    ("SIGTERM", 2, "os.kill(parent, signal.SIGTERM), time.sleep(9), print('left behind', flush=True)"),
    ("SIGKILL", 2, "os.kill(parent, signal.SIGKILL)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed", "action"), SIGNALS)
def test_interrupted_trials_are_tried_again(name, seed, action):
    """Also while runs go on that SIGKILL has left behind."""
    stopped = start(action=f"seed == {seed} and first('one') and ({action})")
    assert (stopped.communicate(), stopped.returncode)[1] == -getattr(signal, name)
    assert not [*OUT.glob("*.[cj]s*")]
    with sqlite3.connect(OUT / "easy__fake.db") as database:
        lost = [n for (n,) in database.execute("SELECT number FROM trials WHERE state = 'RUNNING'")]
        if name == "SIGKILL":  # as if it had come before a trial's first sign of life
            database.execute("DELETE FROM trial_heartbeats")
    assert bool(lost) == (seed == 2)
    continued = start(silence=3)
    output, errors = continued.communicate()
    assert continued.returncode == 0, errors
    assert [int(n) for n in re.findall(r"^trial (\d+): another process", output, re.M)] == lost
    check_complete()
    assert {*lost} <= {*read_table().index}
    assert "left behind" not in "".join(path.read_text() for path in OUT.glob("*/*.log"))


@pytest.mark.slow
@pytest.mark.parametrize("storage", [[], ["--storage", "sqlite:///shared.db"]])
def test_two_processes_share_the_trials(storage):
    """The first run waits for the second one, which only another process can begin: each has one worker."""
    action = "waits = first('one') or first('two') is None\n    while waits and not Path('two').exists(): pass"
    outs = ["out", "other"] if storage else ["out", "out"]
    processes = [start("--workers", "1", *storage, out=out, action=action) for out in outs]
    ends = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert all(re.search(r"Trial \d (finished|pruned)", end) and "Traceback" not in end for end in ends)
    for out in outs:
        check_complete(out=Path(out))
    rows = read_table()
    pd.testing.assert_frame_equal(rows, read_table(Path(outs[1])))
    begun = "".join(path.read_text() for path in OUT.glob("*/*.log")).count("fake.py")
    complete = (rows["state"] == "COMPLETE").sum()
    assert storage or begun == (8 + complete) * 3 + min(complete, 2) * 2  # nothing ran twice


def test_all_arms_begin_with_the_same_settings(inside):
    """Of what both draw; after the first ten, what each arm has found decides."""
    text = TOML.replace("arms = {", 'arms = { other = { script = "fake.py" },')
    mine = inside(trials=14, text=text)["height"]
    inside(trials=14, text=text, arm="other")
    table = pd.read_csv(OUT / "trials.csv", float_precision="round_trip")
    other = table[table["arm"] == "other"].set_index("number")["height"]
    assert mine[:10].is_unique and mine[:10].tolist() == other[:10].tolist()
    assert not set(mine[10:]) & set(other[10:])


BAD = """
rung = 2000 -> rungs = 2000 -> missing or unknown: rung
rung = 2000 -> rung = 'x' -> TypeError
rung = 2000 -> rung = 5000 -> rung must be above 0 and below timesteps
finalists = 2 -> finalists = 2.0 -> finalists must be a whole number above 0
[1, 2, 3] -> [] -> seeds and finalist_seeds must all be different
[1, 2, 3] -> [1, 2, 4] -> seeds and finalist_seeds must all be different
--chain-length 2 -> --chain-length 2 --seed=3 -> options must not set seed
--chain-length 2 -> --height 2 -> options must not set height
["none", 0.5] -> { lin = [1, 2] } -> log
[0.1, 0.9] -> [0.9, 0.1] -> low=0.9, high=0.1
script = "fake.py" -> script = "nothing.py" -> nothing.py
{ fake -> { real -> fake is none of its arms: real
{ easy -> { hard -> easy is none of its families: hard
""".strip().splitlines()
BAD = [({"text": TOML.replace(*x.split(" -> ")[:2])}, f".*toml: .*{re.escape(x.split(' -> ')[2])}") for x in BAD]
BAD += [({name: 0}, "--trials and --workers must be") for name in ("trials", "workers")]
BAD += [(x, "cannot open the study's database: ") for x in ({"out": Path(__file__)}, {"storage": "x"})]
BAD += [({"storage": "postgresql://[::1]:1/x"}, "cannot open .*port 1 ")]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_files_and_options(inside, capsys, monkeypatch, options, message):
    monkeypatch.setattr(tune.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit, match="2"):
        inside(**options)
    assert re.fullmatch(f"error: {message}.*\n", capsys.readouterr().err)
    assert not OUT.exists() or "storage" in options


def test_without_optuna(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    study = [str(STUDIES["umbrella"]), "--family", "hidden_50", "--arm", "ppo"]
    for words, code in ((["--help"], 0), (study, 2)):
        monkeypatch.setattr(sys, "argv", ["tune.py", *words])
        with pytest.raises(SystemExit, match=str(code)):
            runpy.run_path(str(ROOT / "tune.py"), run_name="__main__")
        out, err = capsys.readouterr()
        assert re.fullmatch("error: .* requirements-tune.txt\n" if code else "", err) and ("--storage" in out) != code


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_scripts_take_what_the_committed_studies_draw(monkeypatch, tmp_path, study, arm):
    """The first of all choices, and the last: the smallest and the largest."""
    monkeypatch.setattr(tune, "HERE", ROOT)
    package = {"continuous_control": "mujoco", "minatar": "minatar"}.get(study, "numpy")
    pytest.importorskip(package, reason=f"pip install -r requirements-{package}.txt")
    monkeypatch.setattr(subprocess, "Popen", lambda words, **_: sys.argv.__setitem__(slice(None), words[1:]) or exit())
    for family in tomllib.loads(STUDIES[study].read_text())["families"]:
        task = tune.Args(STUDIES[study], family, arm, out=tmp_path)
        tune.read_task(task)
        task.folder.mkdir()
        script = importlib.import_module(task.script.removesuffix(".py"))
        for end in (0, -1):
            params = {name: (x["log"] if isinstance(x, dict) else x)[end] for name, x in task.space.items()}
            with pytest.raises(SystemExit):
                tune.run(task, params, 1, task.rung, optuna.create_study(), "rung_1")
            args = script.parse_args()
            script.set_up(args)[0].close()
            assert vars(args).items() >= {k: None if value == "none" else value for k, value in params.items()}.items()


@pytest.mark.slow
def test_a_real_study():
    """A script that is stopped at the rung and continued."""
    text = TOML.replace("height", "learning_rate").replace("[0.1, 0.9]", "[1e-3, 1e-2]")
    Path("tune.toml").write_text(text.replace("1, 2, 3", "1").replace("4, 5", "4").replace("fake.py", "ppo_metairn.py"))
    command = [sys.executable, ROOT / "tune.py", "tune.toml", "--family", "easy", "--arm", "fake", "--out", "out"]
    subprocess.run([*command, "--trials", "1"], check=True)
    (log,), row = OUT.glob("*/*.1.log"), read_table().loc[0]
    assert "--resume" in log.read_text()
    curve = tune.read_curve(log.with_suffix(""))
    assert [row["value_at_rung"], row["value"]] == pytest.approx([tune.area(curve, end) for end in (2000, 5000)])
