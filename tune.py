"""The same tuning for every method (arm) on every task (family): Optuna's TPE, and successive halving with one rung.

    pip install -r requirements.txt -r requirements-tune.txt
    python tune.py results/umbrella/tune.toml --family hidden_50 --arm ppo [--storage postgresql://user@host/database]

A trial is one choice from the arm's space. Its value is the mean, over `seeds`, of the area under the curve of success,
or of the return where no success is reported. At `rung` steps the runs are stopped, and only trials in the best third
so far go on. The `finalists` best ones also run for `finalist_seeds`, and the best mean of all areas wins. Then
OUT/trials.csv holds all trials, and OUT/winners.json the winner's options, which benchmark.sh takes as
@OUT/winners.json#FAMILY__ARM. After Ctrl-C or a kill the same command goes on. Several processes, or machines with
--storage, share the trials; those of a dead process are tried again after a minute.
"""

import csv
import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

optuna = importlib.util.find_spec("optuna") and importlib.import_module("optuna")  # --help works without
HERE = Path(__file__).parent
BEAT, SILENCE, POLL = 10, 60, 0.1  # seconds: between signs of life, without one, between two looks at a run
KEYS = {"seeds", "finalist_seeds", "finalists", "rung", "space", "timesteps", "script", "options", "families", "arms"}
RUNS = []  # the processes that this one has started
OURS = {"seed", "total_timesteps", "runs_dir", "exp_name", "resume", "evaluate"}  # options that the tuning sets


@dataclass
class Args:
    file: tyro.conf.Positional[Path]  # the TOML file with the families, the arms and their spaces
    family: str  # which family of the file
    arm: str  # which arm of the file
    trials: int = 64  # how many, in all processes that share the study together
    workers: int = os.cpu_count() or 1  # how many at a time in this process, one CPU thread each
    storage: str | None = None  # the study's database, as Optuna takes it (default: the file OUT/FAMILY__ARM.db)
    out: Path = Path("runs/tune")  # where everything is written


def check(valid, message):
    """Unless `valid`, ends the program over something the user can mend: one line, exit status 2."""
    if not valid:
        print(f"error: {' '.join(str(message).split())}", file=sys.stderr)
        sys.exit(2)


def read_task(args):
    """Adds what the file says of this arm on this family, checked, to the arguments."""
    try:
        file = tomllib.loads(args.file.read_text())
        parts = [{"options": ""}, file]
        for key, name in (("families", args.family), ("arms", args.arm)):
            check(name in file[key], f"{args.file}: {name} is none of its {key}: {', '.join(file[key])}")
            parts.append(file[key][name])
        task = {key: value for part in parts for key, value in part.items()}
        check(task.keys() == KEYS, f"{args.file}: missing or unknown: {', '.join(task.keys() ^ KEYS)}")
        task["space"] = {name: x for part in parts for name, x in part.get("space", {}).items()}
        draw = optuna.distributions  # which say what is wrong
        for x in task["space"].values():
            draw.FloatDistribution(*x["log"], log=True) if isinstance(x, dict) else draw.CategoricalDistribution(x)
        x, y = task["seeds"], task["finalist_seeds"]
        check(x and y and len({*x, *y}) == len(x + y), f"{args.file}: seeds and finalist_seeds must all be different")
        check(0 < task["rung"] < task["timesteps"], f"{args.file}: rung must be above 0 and below timesteps")
        check(
            type(task["finalists"]) is int and task["finalists"] > 0,
            f"{args.file}: finalists must be a whole number above 0",
        )
        task["options"] = " ".join(part.get("options", "") for part in parts).split()
        twice = {x[2:].split("=")[0].replace("-", "_") for x in task["options"]} & {*OURS, *task["space"]}
        check(not twice, f"{args.file}: options must not set {', '.join(twice)}, which the tuning sets")
        code = (HERE / task["script"]).read_bytes() + (HERE / "umbrella_env.py").read_bytes()
    except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        check(False, f"{args.file}: {type(error).__name__}: {error}")
    task = {key: task[key] for key in KEYS - {"families", "arms"}} | {"code": zlib.crc32(code)}
    vars(args).update(task, settings=json.dumps(task, sort_keys=True), folder=args.out / f"{args.family}__{args.arm}")


def make_sampler():
    """TPE that knows of running trials. Its first ten trials are random, and all arms draw the same in them."""

    class Sampler(optuna.samplers.TPESampler):
        def sample_independent(self, study, trial, name, distribution):
            first = trial.system_attrs.get("failed_trial", trial.number)
            if first >= 10:
                return super().sample_independent(study, trial, name, distribution)
            random = optuna.samplers.RandomSampler(seed=zlib.crc32(f"{first} {name}".encode()))
            return random.sample_independent(study, trial, name, distribution)

    return Sampler(constant_liar=True)


def open_study(task, left=4):
    """The study, new or as it is. With other settings it is another study."""
    url = task.storage or f"sqlite:///{task.folder}.db"
    again = optuna.storages.RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    kinds = {"heartbeat_interval": BEAT, "grace_period": SILENCE, "heartbeat_stale_trial_callback": again}
    kinds["engine_kwargs"] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {"pool_pre_ping": True}
    names = {"study_name": f"{task.folder.name}.{zlib.crc32(task.settings.encode()):08x}", "direction": "maximize"}
    names["sampler"] = make_sampler()
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        return optuna.create_study(storage=optuna.storages.RDBStorage(url, **kinds), load_if_exists=True, **names)
    except Exception as error:  # which one depends on the database
        check(left, f"cannot open the study's database: {error.__cause__ or error}")
        time.sleep(0.2)  # another process may be making the same tables at this moment
        return open_study(task, left - 1)


def area(curve, end):
    """Mean height, from step 0 to `end`, of the straight lines that join a curve's points; the last one holds."""
    steps, heights = zip(*curve, strict=True)
    grid = [0, *(step for step in steps if 0 < step < end), end]
    return float(np.trapezoid(np.interp(grid, steps, heights), grid)) / end


def read_curve(folder):
    """(step, success or else return) of each evaluation of the run in this folder."""
    rows = [row for path in folder.glob("*/progress.csv") for row in csv.DictReader(path.read_text().splitlines())]
    column = "eval_success" if any(row["eval_success"] != "nan" for row in rows) else "eval_return"
    return [(int(row["global_step"]), float(row[column])) for row in rows]


def stop(number, _):
    """Kills the runs of this process, and then the process itself, by the signal it got."""
    for process in RUNS:
        process.kill()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def run(task, params, seed, end, keep, key):
    """Runs the script, or goes on, until it is evaluated at `end` -> the area, which `keep` keeps as `key`."""
    # what determines a run is in its folder's name, so the folder is that of no other run
    folder = task.folder / f"{zlib.crc32(f'{task.settings}{sorted(params.items())}'.encode()):08x}.{seed}"
    rung = end if end < task.timesteps else np.inf
    with open(f"{folder}.log", "a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # a run that a killed tune.py left behind holds it until it ends
        if key in keep.user_attrs:
            return keep.user_attrs[key]
        words = [sys.executable, str(HERE / task.script), "--eval-every=1000", "--eval-episodes=100", *task.options]
        for name, value in params.items():
            words += [f"--{name.replace('_', '-')}", str(value)] if value != "none" else []
        words += ["--seed", str(seed), "--total-timesteps", str(task.timesteps), "--runs-dir", str(folder)]
        if checkpoint := next(folder.glob("*/checkpoint.pt"), None):
            words[2:] = ["--resume", str(checkpoint.parent)]
        print(subprocess.list2cmdline(words), file=log, flush=True)
        process = subprocess.Popen(words, stdout=log, stderr=log)
        RUNS.append(process)
        while (step := max(read_curve(folder), default=(0, 0))[0]) < rung and process.poll() is None:
            time.sleep(POLL)
        time.sleep(POLL)  # a checkpoint follows the evaluation; and Ctrl-C, which ends both, is no failure of the run
        process.kill()
        status, curve = process.wait(), read_curve(folder) or [(0, np.nan)]
        if status and step < rung:
            last = [x.strip() for x in Path(log.name).read_text().splitlines() if any(map(str.isalnum, x))][-1]
            raise ChildProcessError(f"killed by signal {-status}" if status < 0 else f"exit status {status}: {last}")
        if not np.isfinite(area(curve, end)):
            raise ChildProcessError("there is no finite evaluation in progress.csv")
        keep.set_user_attr(key, area(curve, end))
        return area(curve, end)


def counted(task, study):
    """The trials that count so far: number of the first attempt -> the attempt that was not interrupted."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name != "FAIL"]
    firsts = {trial.system_attrs.get("failed_trial", trial.number): trial for trial in reversed(trials)}
    return dict(sorted(firsts.items())[: task.trials])


def run_trial(task, study, trial):
    """Runs a trial -> its value. A new attempt at a trial begins with what is known from the last one."""
    if trial.number not in [t.number for t in counted(task, study).values()]:  # other processes were faster
        return study.stop()
    for name, x in task.space.items():
        trial.suggest_float(name, *x["log"], log=True) if isinstance(x, dict) else trial.suggest_categorical(name, x)
    try:
        value = np.mean([run(task, trial.params, x, task.rung, trial, f"rung_{x}") for x in task.seeds]).item()
        trial.report(value, task.rung)
        values = sorted(x for t in counted(task, study).values() for x in t.intermediate_values.values())
        if not trial.user_attrs.get("goes_on") and value < values[-max(1, len(values) // 3)]:
            raise optuna.TrialPruned
        trial.set_user_attr("goes_on", True)
        return np.mean([run(task, trial.params, x, task.timesteps, trial, f"area_{x}") for x in task.seeds]).item()
    except (OSError, LookupError, ValueError) as error:
        trial.set_user_attr("failure", str(error))
        raise optuna.TrialPruned(error) from error  # FAIL is what was interrupted, and is tried again


def main(task):
    check(optuna, "Optuna is not installed: pip install -r requirements-tune.txt")
    check(min(task.trials, task.workers) >= 1, "--trials and --workers must be at least 1")
    read_task(task)
    warnings.simplefilter("ignore")
    optuna.logging.get_logger("optuna.study._optimize").addFilter(lambda record: record.levelname == "INFO")
    study = open_study(task)
    for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study._storage.record_heartbeat(trial._trial_id)  # without a first one, none would ever be missed
        print(f"trial {trial.number}: another process runs it, or else it is tried again in {SILENCE} s", flush=True)
    while True:
        try:
            optuna.storages.fail_stale_trials(study)
            trials = counted(task, study)
            states = [trial.state.name for trial in trials.values()]
            if free := task.trials - len(states) + states.count("WAITING"):
                study.optimize(lambda t: run_trial(task, study, t), free, n_jobs=task.workers)
            elif "RUNNING" not in states:
                break
            time.sleep(POLL)
        except (ValueError, optuna.exceptions.OptunaError) as error:  # or another process has taken a trial over
            check(str(error)[:6] in ("Cannot", "Trial#"), f"{error.__cause__ or error}; the same command goes on")
    done = sorted((n for n, t in trials.items() if t.state.name == "COMPLETE"), key=lambda n: -trials[n].value)
    best = done[: task.finalists]
    jobs = {}
    with ThreadPoolExecutor(task.workers) as pool:
        for n in best:
            for x in np.random.default_rng().permutation(task.finalist_seeds).tolist():  # processes share them
                jobs[n, x] = pool.submit(run, task, trials[n].params, x, task.timesteps, study, f"{n}_{x}")
    for (n, x), job in jobs.items():
        if error := job.exception():
            print(f"finalist {n} cannot win, seed {x} failed: {error}", file=sys.stderr)
    rows = []
    for n, t in trials.items():
        row = {"family": task.family, "arm": task.arm, "number": n, "state": t.state.name, "value": None}
        row |= {"value": t.value} if n in done else {"state": "FAIL"} if "failure" in t.user_attrs else {}
        row |= {"value_at_rung": t.intermediate_values.get(task.rung), "seconds": t.duration.total_seconds()} | t.params
        rows.append(row | t.user_attrs | {f"area_{x}": study.user_attrs.get(f"{n}_{x}") for x in task.finalist_seeds})
    rows = pd.DataFrame(rows, index=[*trials]).drop(columns="goes_on", errors="ignore")
    areas = rows.reindex(columns=[f"area_{x}" for x in task.seeds + task.finalist_seeds])
    rows["value_of_all_seeds"] = totals = areas.astype(float).mean(axis=1, skipna=False).where(areas.index.isin(best))
    winner = totals.fillna(-np.inf).idxmax()
    options = {name: x for name, x in trials[winner].params.items() if x != "none"}
    table, winners = task.out / "trials.csv", task.out / "winners.json"
    with open(task.out / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        old = pd.read_csv(table, dtype=str, keep_default_na=False) if table.exists() else rows[:0]
        rows = pd.concat([old[old["family"] + "__" + old["arm"] != task.folder.name], rows])
        known = json.loads(winners.read_text()) if winners.exists() else {}
        known = json.dumps(known | {task.folder.name: options}, indent=2) + "\n"
        for path, text in ((table, rows.to_csv(index=False)), (winners, known)):
            Path(f"{path}.tmp").write_text(text)
            Path(f"{path}.tmp").replace(path)
            check(np.isfinite(totals[winner]), f"there is no winner, all have failed: see {table}")
    print(f"trial {winner} wins with {totals[winner]:.3f} over all seeds: {winners}")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends it at once; a terminal sends it to its runs as well
    signal.signal(signal.SIGTERM, stop)
    main(tyro.cli(Args, description=__doc__))
