"""The same tuning for every method (arm) on every task (family): Optuna's TPE, and successive halving with one rung.

    pip install -r requirements.txt -r requirements-tune.txt
    python tune.py results/one_run/tune.toml --family hidden_50 --arm ppo
    python tune.py results/one_run/tune.toml --family hidden_50 --arm ppo --storage postgresql://user@host/database

A trial is one choice from the arm's space. The script runs with it once for each of `seeds`; the trial's value is the
mean area under their curves of success, or of the return where no success is reported. At `rung` steps the runs are
stopped, and only trials in the best third so far go on. The `finalists` best trials run for `finalist_seeds` too; the
best mean of all these areas wins.

OUT/FAMILY__ARM.csv holds every trial, the failed ones too, OUT/FAMILY__ARM.json the winner's options, which a study of
benchmark.sh takes as @FILE.json. Beside them are the run folders, logs/ and, without --storage, the study itself.
After Ctrl-C, SIGKILL or a power cut the same command completes the set: an interrupted trial is tried again with the
same options, under a new number. Run twice at once, or on several machines with --storage, the command shares the
trials, and all its processes end when all trials have; those of a killed process are tried again after a minute.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import uuid
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import optuna
import tyro
from optuna.trial import TrialState

HERE = Path(__file__).parent
BEAT, SILENCE = 10, 60  # seconds between a trial's signs of life, and without one until it counts as interrupted
OURS = ["seed", "total_timesteps", "runs_dir", "exp_name", "resume", "evaluate"]
STOPPED = []  # signals received


@dataclass
class Args:
    file: tyro.conf.Positional[Path]  # the TOML file with the families, the arms and their spaces
    family: str  # which family of the file
    arm: str  # which arm of the file
    trials: int = 64  # how many, in all processes that share the study together
    workers: int = os.cpu_count() or 1  # how many at a time in this process, one CPU thread each
    storage: str | None = None  # the study's database, as Optuna takes it (default: the file OUT/FAMILY__ARM.db)
    out: Path = Path("runs/tune")  # where everything is written


class Failed(Exception):
    """A run failed, and so has its trial."""


def fail(message):
    """Ends the program over something the user can mend: one line, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def read_task(args):
    """What the file says of this arm on this family; fails if anything in the file is wrong, and says what."""

    def check(valid, message):
        if not valid:
            fail(f"{args.file}: {message}")

    def check_table(table, where, must, may=""):
        check(isinstance(table, dict), f"{where} must be a table")
        for name in table:
            check(name in f"{must} {may}".split(), f"{where} has the unknown key {name}")
        for name in must.split():
            check(name in table, f"{where} lacks {name}")
        for name, value in table.items():
            if name in ("timesteps", "rung", "finalists"):
                check(type(value) is int and value > 0, f"{where}: {name} must be a whole number above 0")
            elif name in ("seeds", "finalist_seeds"):
                valid = isinstance(value, list) and value and all(type(x) is int and x >= 0 for x in value)
                check(valid, f"{where}: {name} must be a list of whole numbers")
            elif name in ("script", "options"):
                check(isinstance(value, str), f"{where}: {name} must be a string")
            else:
                check(isinstance(value, dict), f"{where}: {name} must be a table")
        for name, choices in table.get("space", {}).items():
            ends = choices.get("log") if isinstance(choices, dict) and len(choices) == 1 else choices
            valid = isinstance(ends, list) and ends and all(type(x) in (int, float, str) for x in ends)
            valid = valid and len(set(ends)) == len(ends)
            check(
                valid, f"{where}: {name} must be {{ log = [low, high] }} or a list of numbers or words, all different"
            )
            if isinstance(choices, dict):
                valid = len(ends) == 2 and str not in map(type, ends) and 0 < ends[0] < ends[1] < math.inf
                check(valid, f"{where}: {name} must go from low to high, both above 0")

    try:
        file = tomllib.loads(args.file.read_text())
    except (OSError, ValueError) as error:
        fail(f"{args.file}: {getattr(error, 'strerror', None) or error}")
    check_table(file, "the file", "seeds finalist_seeds finalists rung space families arms")
    for seed, count in Counter(file["seeds"] + file["finalist_seeds"]).items():
        check(count == 1, f"seed {seed} is listed twice in seeds and finalist_seeds")
    for name, family in file["families"].items():
        check_table(family, f"family {name}", "timesteps", "options rung")
        check(family.get("rung", file["rung"]) < family["timesteps"], f"family {name}: rung must be below timesteps")
    for name, arm in file["arms"].items():
        check_table(arm, f"arm {name}", "script", "options space")
        check((HERE / arm["script"]).is_file(), f"arm {name}: there is no script {arm['script']}")
    for kind, name in (("families", args.family), ("arms", args.arm)):
        check(name in file[kind], f"{name} is none of its {kind}: {', '.join(file[kind])}")
        check(re.fullmatch("[A-Za-z0-9.-]+(_[A-Za-z0-9.-]+)*", name), f"{name} cannot be part of a file's name")
    family, arm = file["families"][args.family], file["arms"][args.arm]
    options = f"{family.get('options', '')} {arm.get('options', '')}".split()
    space = file["space"] | arm.get("space", {})
    for flag in re.findall("--([^= ]+)", " ".join(options)):
        check(flag.replace("-", "_") not in {*OURS, *space}, f"options must not set --{flag}, the tuning does")
    settings = {key: file[key] for key in ("seeds", "finalist_seeds", "finalists", "rung")} | family | arm
    code = (HERE / arm["script"]).read_bytes() + (HERE / "umbrella_env.py").read_bytes()
    settings |= {"options": options, "space": space, "code": zlib.crc32(code)}
    return SimpleNamespace(**settings, settings=settings, name=f"{args.family}__{args.arm}", out=args.out)


def open_study(task, storage, name):
    """The study of this name, new or as it is; fails if it was begun with other settings."""
    url = storage or f"sqlite:///{task.out / task.name}.db"
    engine = {"pool_pre_ping": True} | ({"connect_args": {"timeout": 60}} if url.startswith("sqlite:") else {})
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=task.rung, reduction_factor=3)
    for attempt in range(5):  # another process may be making the same tables at this moment
        try:
            kinds = {"storage": optuna.storages.RDBStorage(url, engine), "pruner": pruner, "direction": "maximize"}
            study = optuna.create_study(study_name=name, load_if_exists=True, **kinds)
            break
        except Exception as error:  # which one depends on the database
            if attempt == 4:
                fail(f"cannot open the study's database: {' '.join(str(error.__cause__ or error).split())}")
            time.sleep(0.2)
    if "settings" not in study.user_attrs:
        study.set_user_attr("settings", task.settings)
    changed = [key for key, value in task.settings.items() if study.user_attrs["settings"].get(key) != value]
    if changed:
        fail(f"{name} was begun with other settings ({', '.join(changed)}): restore them, or set another --out")
    return study


def area(curve, end):
    """Mean height of a curve from step 0 to `end`; of success in [0, 1].

    curve: (step, success or return) of each evaluation, in order. Straight lines join them (trapezoids), and the last
    one holds up to `end`. What lies behind `end` changes nothing but the line that crosses it.
    """
    steps, heights = zip(*curve, strict=True)
    grid = [0, *(step for step in steps if 0 < step < end), end]
    return float(np.trapezoid(np.interp(grid, steps, heights), grid)) / end


def read_curve(folder):
    """What `area` takes of a run folder, which may be None; empty if there is nothing yet."""
    try:
        with open(folder / "progress.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    except (TypeError, FileNotFoundError):
        return []
    reports = any(row["eval_success"] != "nan" for row in rows)  # Umbrella does
    column = "eval_success" if reports else "eval_return"
    return [(int(row["global_step"]), float(row.get(column, "nan"))) for row in rows]


def command(task, name, params, seed):
    """The words that start a run."""
    words = [sys.executable, str(HERE / task.script), "--eval-every", "1000", "--eval-episodes", "100", *task.options]
    for key, value in params.items():
        words += [f"--{key.replace('_', '-')}", str(value)] if value != "none" else []
    words += ["--seed", str(seed), "--total-timesteps", str(task.timesteps)]
    return words + ["--runs-dir", str(task.out / task.name), "--exp-name", name]


def run(task, name, params, seed, end):
    """A generator that goes on while the script runs, from where it was stopped, until it is evaluated at `end`.

    Returns the area up to there; raises Failed. Whoever closes it ends the script.
    """

    def find():
        return next((task.out / task.name).glob(f"*__{name}__*__{seed}"), None)

    words, expected = command(task, name, params, seed), {0}
    if folder := find():
        words[2:] = ["--resume", str(folder)]
    with open(task.out / "logs" / task.name / f"{name}__{seed}.log", "a+") as file:
        print(shlex.join(words), file=file, flush=True)
        output = file.tell()
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(words, stdout=file, stderr=file, env=env, start_new_session=True)  # without Ctrl-C
        try:
            while process.poll() is None:
                yield
                folder = folder or find()
                if len(expected) == 1 and end < task.timesteps and (read_curve(folder) or [[0]])[-1][0] >= end:
                    process.terminate()  # it writes a checkpoint; --resume loses nothing
                    expected |= {128 + signal.SIGTERM, -signal.SIGTERM}
        finally:
            process.kill()
            process.wait()
        file.seek(output)
        lines = [line.strip() for line in file if re.search("[A-Za-z0-9]", line)]
    status = process.returncode
    while STOPPED and status:  # the signal may have been for all processes: an interruption, no failure
        yield
    if status not in expected:
        raise Failed(f"killed by signal {-status}" if status < 0 else f"exit status {status}: {(lines or ['-'])[-1]}")
    curve = read_curve(find())
    if not curve or not math.isfinite(area(curve, end)):
        raise Failed("there is no finite evaluation in progress.csv")
    return area(curve, end)


def run_seeds(task, trial, name, params, seeds, end, label):
    """Runs one seed after another and keeps their areas with the trial -> the areas."""
    if label == "rung" and next((task.out / task.name).glob(f"*__{name}__*"), None):
        fail(f"{task.out / task.name} holds runs {name} of another study: remove them, or set another --out")
    areas = []
    for seed in seeds:
        areas.append((yield from run(task, name, params, seed, end)))
        trial.set_user_attr(f"{label}_{seed}", areas[-1])
    return areas


def run_trial(task, trial):
    """A generator that runs the trial -> its value; None if it is pruned."""
    name = f"trial{trial.number:04}"
    areas = yield from run_seeds(task, trial, name, trial.params, task.seeds, task.rung, "rung")
    trial.report(fmean(areas), task.rung)
    if trial.should_prune():
        return None
    return fmean((yield from run_seeds(task, trial, name, trial.params, task.seeds, task.timesteps, "area")))


def run_finalist(task, trial, name, best):
    """A generator that runs the other seeds of the trial `best` -> the mean area over all its seeds."""
    trial.set_user_attr("trial", best.number)
    areas = yield from run_seeds(task, trial, name, best.params, task.finalist_seeds, task.timesteps, "area")
    return fmean(areas + [best.user_attrs[f"area_{seed}"] for seed in task.seeds])


def interrupted(trial):
    return trial.state == TrialState.FAIL and "failure" not in trial.user_attrs


def latest_attempts(study, total):
    """The first `total` trials, each as its latest attempt.

    They follow from what trials were made with, and in which order. So all processes agree on them, without a lock:
    what two of them begin at the same moment, a surplus trial or a second new attempt at one, is left out by both.
    """
    first, again = [], {}
    for trial in study.get_trials(deepcopy=False):
        if "again" in trial.user_attrs:
            again.setdefault(trial.user_attrs["again"], trial)
        else:
            first.append(trial)
    attempts = []
    for trial in first[:total]:
        while trial.number in again:
            trial = again[trial.number]
        attempts.append(trial)
    return attempts


def finished(study, total):
    """Those that completed, were pruned or failed."""
    trials = [t for t in latest_attempts(study, total) if t.state.is_finished() and not interrupted(t)]
    return sorted(trials, key=lambda trial: trial.number)


def completed(study, total):
    """Those that completed, the best first."""
    return sorted((t for t in finished(study, total) if t.state == TrialState.COMPLETE), key=lambda t: -t.value)


def end_trial(study, number, state, value=None):
    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # another process was faster
        study.tell(number, value, state, skip_if_finished=True)


def claim(study, total, space, mine, heard):
    """A trial to run, with its parameters, or None. Trials that were interrupted are enqueued again.

    mine: numbers of the trials that this process runs; heard: number -> others' last sign of life, and when it came
    """
    now = time.monotonic()
    for trial in latest_attempts(study, total):
        if interrupted(trial):
            study.enqueue_trial(trial.params, {"again": trial.number})
        elif trial.state == TrialState.RUNNING and trial.number not in mine:
            beat = trial.user_attrs.get("beat", 0)
            if heard.setdefault(trial.number, (beat, now))[0] != beat:
                heard[trial.number] = beat, now
            if now - heard[trial.number][1] > SILENCE:
                end_trial(study, trial.number, TrialState.FAIL)
    attempts = latest_attempts(study, total)
    if len(attempts) == total and all(trial.state != TrialState.WAITING for trial in attempts):
        return None
    trial = study.ask()
    if trial.number not in [attempt.number for attempt in latest_attempts(study, total)]:
        end_trial(study, trial.number, TrialState.FAIL)
        return None
    study.sampler = optuna.samplers.TPESampler(seed=trial.number, constant_liar=True)  # no two processes draw the same
    for name, choices in space.items():
        if isinstance(choices, dict):
            trial.suggest_float(name, *choices["log"], log=True)
        else:
            trial.suggest_categorical(name, choices)
    return trial


def work(study, total, space, workers, noun, start):
    """Runs trials, each as the generator start(trial), until `total` are finished or a signal ends the program."""
    jobs, heard, began, before = {}, {}, time.monotonic(), len(finished(study, total))
    claim_at = beat_at = began
    waiting = False
    try:
        while not STOPPED:
            now = time.monotonic()
            if len(jobs) < workers and now >= claim_at:
                if trial := claim(study, total, space, jobs, heard):
                    jobs[trial.number] = trial, start(trial)
                elif len(finished(study, total)) == total:
                    return
                else:
                    claim_at = now + 1
                    if not jobs and not waiting:
                        print(f"waiting for {noun}s that other processes run, or left behind", flush=True)
                        waiting = True
            if beats := now >= beat_at:
                beat_at = now + BEAT
            for number, (trial, job) in list(jobs.items()):
                state, value = TrialState.FAIL, None
                try:
                    if beats:
                        trial.set_user_attr("beat", now)
                    try:
                        next(job)
                        continue
                    except StopIteration as end:
                        state = TrialState.PRUNED if end.value is None else TrialState.COMPLETE
                        value = end.value
                    except Failed as error:
                        trial.set_user_attr("failure", str(error))
                except optuna.exceptions.UpdateFinishedTrialError:  # after a silence, another process took it over
                    job.close()
                end_trial(study, number, state, value)
                del jobs[number]
                progress(study, total, noun, number, time.monotonic() - began, before)
            time.sleep(0.1)
        print("stopped: the same command tries again what was interrupted")
        sys.exit(128 + STOPPED[0])
    finally:
        for _, job in jobs.values():
            job.close()
        for number in jobs:
            end_trial(study, number, TrialState.FAIL)


def progress(study, total, noun, number, seconds, before):
    """Prints how far the study is. seconds: since it had `before` finished trials."""
    trials = {trial.number: trial for trial in finished(study, total)}
    counts = Counter(trial.state for trial in trials.values())
    best = "".join(f", best {trial.value:.3f}" for trial in completed(study, total)[:1])
    left = int(seconds * (total - len(trials)) / max(1, len(trials) - before))
    pruned, failed = counts[TrialState.PRUNED], counts[TrialState.FAIL]
    line = f"{len(trials)} of {total} {noun}s, {pruned} pruned, {failed} failed{best}, "
    line += f"about {left // 60}:{left % 60:02} left"
    if trial := trials.get(number):  # it is not there where another process took it over
        value = trial.user_attrs.get("failure") or f"{trial.value:.3f}"
        line += f"; {noun} {number}: {value} in {trial.duration.total_seconds():.0f} s"
    print(line, flush=True)


def write_atomically(path, text):
    """Writes `text` under another name first, of this process alone, so that `path` is at any moment whole."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def write_table(task, study, finals, total):
    """One row for each finished trial; cells are empty where a seed was not run, or not as far."""
    finalists = {trial.user_attrs.get("trial"): trial for trial in finished(finals, task.finalists)}
    rungs, areas = [f"rung_{x}" for x in task.seeds], [f"area_{x}" for x in task.seeds + task.finalist_seeds]
    heads = ["number", "state", "value", "value_at_rung", "value_of_all_seeds"]
    file = io.StringIO()
    rows = csv.DictWriter(file, [*heads, *task.space, *rungs, *areas, "failure", "seconds"], extrasaction="ignore")
    rows.writeheader()
    for trial in finished(study, total):
        row = trial.params | trial.user_attrs
        row |= {"number": trial.number, "state": trial.state.name, "seconds": round(trial.duration.total_seconds(), 1)}
        row["value_at_rung"] = trial.intermediate_values.get(task.rung)
        row["value"] = trial.value if trial.state == TrialState.COMPLETE else None
        if finalist := finalists.get(trial.number):
            row |= finalist.user_attrs | {"value_of_all_seeds": finalist.value}
            row |= {"failure": f"finalist: {row['failure']}"} if "failure" in row else {}
        rows.writerow(row)
    write_atomically(task.out / f"{task.name}.csv", file.getvalue())


def main(args):
    if min(args.trials, args.workers) < 1:
        fail("--trials and --workers must be at least 1")
    task = read_task(args)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, _: STOPPED.append(signum))
    try:
        (args.out / "logs" / task.name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {args.out}: {error.strerror}")
    study = open_study(task, args.storage, task.name)
    finals = open_study(task, args.storage, f"{task.name}__finalists_of_{args.trials}")

    def start_finalist(trial):
        attempts = [attempt.number for attempt in latest_attempts(finals, len(best))]
        name = f"finalists{args.trials}_{trial.number:04}"
        return run_finalist(task, trial, name, best[attempts.index(trial.number)])

    try:
        work(study, args.trials, task.space, args.workers, "trial", lambda trial: run_trial(task, trial))
        best = completed(study, args.trials)[: task.finalists]
        work(finals, len(best), {}, args.workers, "finalist", start_finalist)
    finally:
        write_table(task, study, finals, args.trials)
    winners = completed(finals, len(best))
    if not winners:
        sys.exit(f"error: there is no winner, all have failed: see {task.out / task.name}.csv")
    number = winners[0].user_attrs["trial"]
    options = {name: value for name, value in study.trials[number].params.items() if value != "none"}
    write_atomically(task.out / f"{task.name}.json", json.dumps(options, indent=2) + "\n")
    print(f"trial {number} wins with {winners[0].value:.3f} over all seeds: {task.out / task.name}.json")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        main(tyro.cli(Args, description=__doc__))
    except optuna.exceptions.StorageInternalError as error:
        sys.exit(f"error: the study's database: {' '.join(str(error.__cause__).split())}; the same command goes on")
