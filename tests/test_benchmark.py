"""benchmark.sh as a user runs it: whole, stopped, killed, failing, twice at once, and on Slurm.

Most tests run stand-ins for the project's scripts (stand_in.py), which take no time and execute the Python code
`at_checkpoint` after each checkpoint: so a run itself interrupts the benchmark at an exact moment.
"""

import fcntl
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
SHUFFLED = "results/umbrella/tuned/shuffled"
ENVS = "small ppo_vanilla 0 2000\nother ppo_metairn 0 2000 --gamma 0.5"
ARMS = f"""# three arms, of which one has other options at other lengths

teacher ppo_metairn 2 1000 --intrinsic-coef 0.5   # half
plain   ppo_lirpg 2,5 1000
plain   ppo_metairn 10 2000 --gamma 1 --irn-from {{out}}/UmbrellaLength-v0__teacher__2__{{seed}}
own     {SHUFFLED} 20 1000"""


@pytest.fixture
def benchmark(tmp_path):
    """benchmark("--smoke", SEEDS=1) runs a copy of benchmark.sh from elsewhere; all that this runs are stand-ins."""
    folder, project = tmp_path / "a folder", tmp_path / "a clone of [ppo_metairn] & more"
    folder.mkdir()
    (project / SHUFFLED).parent.mkdir(parents=True)
    for name in ("ppo_vanilla", "ppo_metairn", "ppo_lirpg", SHUFFLED, "umbrella_env", "plot_results"):
        shutil.copy(ROOT / "tests" / "stand_in.py", project / f"{name}.py")
    shutil.copy(ROOT / "benchmark.sh", project)
    defaults = {"LENGTHS": 2, "SEEDS": 1, "TOTAL_TIMESTEPS": 3000, "WORKERS": 2, "OUT": "out & put"}
    defaults |= {"PYTHON": sys.executable} | dict.fromkeys(("STUDY", "ALGOS", "ENV_IDS", "EXTRA_ARGS", "LAUNCHER"))

    def run(*arguments, at_checkpoint="", text=None, **settings):
        if text is not None:  # of a study
            (folder / "arms of it.txt").write_text(text)
            settings = {"STUDY": "arms of it.txt", "LENGTHS": None, "TOTAL_TIMESTEPS": None} | settings
        env = os.environ | {"AT_CHECKPOINT": at_checkpoint} | defaults | settings
        env = {name: str(value) for name, value in env.items() if value is not None}
        command = ["bash", str(project / "benchmark.sh"), *arguments]
        process = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, start_new_session=True)
        leave_at_once = 0 if process.returncode < 0 or "SLURM_CONF" in env else fcntl.LOCK_NB
        for path in folder.glob("out & put/**/lock"):  # none of its runs is left; if it was killed, they soon end
            with open(path) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | leave_at_once)
        return process

    run.out, run.project = folder / "out & put", project
    return run


def finished(out):
    return sorted(path.parent.name.split("__", 1)[1] for path in out.glob("*/finished"))


def args_of(out):
    """What each run was told: name, length and seed -> options"""
    return {p.parent.name.split("__", 1)[1]: json.loads(p.read_text()) for p in sorted(out.glob("*/args.json"))}


def files_in(out):
    return {p: p.stat().st_mtime_ns for p in out.rglob("*") if "results" not in p.parts and p.is_file()}


def assert_good(process):
    assert (process.returncode, process.stderr) == (0, "")


def assert_refused(process, message):
    """One line that names the fault, status 2, and nothing done"""
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert re.match(f"error: .*{message}", process.stderr)


def test_the_default_protocol_then_nothing_is_run_again(benchmark):
    settings = {"LENGTHS": None, "TOTAL_TIMESTEPS": None, "EXTRA_ARGS": "--eval-every 50000"}
    assert_good(first := benchmark(**settings))
    lines = first.stdout.splitlines()
    assert {"ALGOS=ppo_vanilla ppo_metairn", "LENGTHS=2 5 10 20 50", "TOTAL_TIMESTEPS=100000", "SEEDS=1"} <= set(lines)
    runs = [f"{name}__{length}__1" for name in ("ppo_vanilla", "ppo_metairn") for length in (2, 5, 10, 20, 50)]
    commands = [shlex.split(line) for line in lines if line.startswith("    ")]  # they can be pasted into a shell
    for run, options in args_of(benchmark.out).items():
        script = str(benchmark.project / f"{run.split('__')[0]}.py")
        assert options.pop("script") == script
        (command,) = [c for c in commands if c[:2] == [sys.executable, script] and options["chain-length"] == c[5]]
        assert dict(zip([word[2:] for word in command[2::2]], command[3::2], strict=True)) == options
    done = re.findall("\n(\\d+) of 10 done, \\d running, 0 failed, about \\d+:\\d\\d left; ", first.stdout)
    assert done == [str(number) for number in range(1, 11)]
    assert finished(benchmark.out) == list(args_of(benchmark.out)) == sorted(runs)
    assert sorted((benchmark.out / "planned").read_text().splitlines()) == sorted(x.replace("__", " ") for x in runs)
    before = files_in(benchmark.out)
    assert_good(second := benchmark(**settings))
    assert "10 runs, of which 10 are finished" in second.stdout and files_in(benchmark.out) == before


@pytest.mark.parametrize(
    ("name", "whom", "status"),
    [("KILL", "pg(0", -9), ("TERM", "(os.getppid()", 143), ("INT", "(os.getppid()", 130), ("INT", "pg(0", 130)],
)
def test_stopped_and_continued_is_as_if_never_stopped(benchmark, name, whom, status):
    """Ctrl-C and a power cut hit all processes, `kill` hits the benchmark alone. Two runs are at work then."""
    action = f"""if seed == 2 and step == 2000:  # the third starts when the first has finished
    while not list(folder.parent.glob("*__3/checkpoint.pt")): pass
    os.kill{whom}, signal.SIG{name})
seed == 1 or resumed or (seed, step) == (2, 1000) or signal.pause()"""
    settings = {"SEEDS": "1 2 3", "ALGOS": "ppo_metairn"}
    stopped = benchmark(at_checkpoint=action, **settings)
    assert stopped.returncode == status
    assert finished(benchmark.out) == ["ppo_metairn__2__1"]
    if name != "KILL":
        assert stopped.stdout.endswith("stopped; the same command goes on from the last evaluation of each run\n")
        invocations = pd.read_csv(benchmark.out / "invocations.csv")
        assert invocations[["workers", "finished", "failed"]].to_numpy().tolist() == [[2, 1, 0]]
    assert_good(continued := benchmark(**settings))
    assert "3 runs, of which 1 are finished" in continued.stdout
    log = (benchmark.out / "logs" / "ppo_metairn__2__2.log").read_text()
    assert re.findall("begins at step (\\d+)", log) == ["0", "2000"]
    assert_good(benchmark(OUT="whole", **settings))
    results = [out / "results" / "evaluations.csv" for out in (benchmark.out, benchmark.out.parent / "whole")]
    assert results[0].read_text() == results[1].read_text()


def test_what_failed_or_was_killed_is_said_and_what_ran_is_recorded(benchmark):
    """Length 0 does not exist, and one run is killed. A commit is no tag's name, and a row stands under its header."""
    git = ["git", "-C", benchmark.project, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in ("init", "add .", "commit -m a", "tag -a -m a first"):
        subprocess.run([*git, *command.split()], check=True, capture_output=True)
    commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
    action = "if step == 2000 and 'metairn' in options['exp-name']: os.kill(os.getpid(), signal.SIGKILL)"
    process = benchmark(at_checkpoint=action, LENGTHS="2 0", WORKERS=3)
    assert ", 3 failed, about 0:00 left; " in process.stdout
    failed = re.findall("(\\w+ \\d 1) FAILED with status (\\d+)", process.stdout)
    assert sorted(failed) == [("ppo_metairn 0 1", "2"), ("ppo_metairn 2 1", "137"), ("ppo_vanilla 0 1", "2")]
    why = {f"{x} 0 1: error: no UmbrellaLength-v0 of length 0 ({x}__0__1" for x in ("ppo_vanilla", "ppo_metairn")}
    said = re.sub("\\(out & put/logs/", "(", process.stdout)
    assert {*re.findall("not finished: (.*).log", said)} == why | {
        "ppo_metairn 2 1: killed by signal 9 (ppo_metairn__2__1"
    }
    assert finished(benchmark.out) == ["ppo_vanilla__2__1"]
    expected = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "gymnasium")}
    expected |= {"commit": commit, "workers": "3", "finished": "1", "failed": "3"}
    (row,) = pd.read_csv(path := benchmark.out / "invocations.csv", dtype=str).to_dict("records")
    assert row.items() >= expected.items()
    assert {"date", "cpu", "mujoco", "seconds"} <= row.keys()
    again = benchmark(LENGTHS="2 0")
    assert (process.returncode, again.returncode) == (1, 1)
    assert finished(benchmark.out) == ["ppo_metairn__2__1", "ppo_vanilla__2__1"]
    assert "ppo_vanilla 0 1 FAILED" in again.stdout  # was tried again
    path.write_text("date,commit,cpu,workers,finished,failed,seconds\n2026-01-01,abc,A,1,5,0,144\n")
    assert_refused(benchmark(LENGTHS="5"), "invocations.csv")


def test_a_run_that_left_no_folder_has_failed(benchmark):
    """The others go on. Then the same command completes the set, also where a full disk has left an empty `kind`."""
    action = "if step == 3000 and 'vanilla' in options['exp-name']: os.rename(folder, 'gone')"
    process = benchmark(at_checkpoint=action, WORKERS=1)
    assert process.returncode == 1 and "ppo_vanilla 2 1 FAILED with status 1" in process.stdout
    assert finished(benchmark.out) == ["ppo_metairn__2__1"]
    (benchmark.out / "kind").write_text("")
    assert_good(benchmark(ENV_IDS=" ", SEEDS=" 1  "))
    assert finished(benchmark.out) == ["ppo_metairn__2__1", "ppo_vanilla__2__1"]
    assert (benchmark.out / "kind").read_text().startswith("STUDY= ")


def test_a_second_benchmark_leaves(benchmark):
    """The second one is started by a run of the first; so is a third, when SIGKILL has made that run an orphan."""
    action = f"""if step == 1000:
    del os.environ["AT_CHECKPOINT"]
    again = {["bash", str(benchmark.project / "benchmark.sh")]}
    with open("said", "w") as said:
        print(subprocess.call(again, stdout=said, stderr=said), file=said, flush=True)
        os.kill(parent := os.getppid(), signal.SIGKILL)
        while os.getppid() == parent: pass
        print(subprocess.call(again, stdout=said, stderr=said), file=said)"""
    assert benchmark(at_checkpoint=action, WORKERS=1, LENGTHS="2 5").returncode == -9
    said = (benchmark.out.parent / "said").read_text()
    assert re.fullmatch("(error: another benchmark, or a run that one left behind.*\n2\n){2}", said)
    assert_good(benchmark(LENGTHS="2 5"))


MALFORMED = ["arm ppo_vanilla 2", "arm ppo_vanilla 2,five 1000", "arm ppo_vanilla 2,,5 1000", "arm ppo_vanilla 2 1e5"]
MALFORMED += ["arm ppo_vanilla.py 2 1000", "arm ../ppo_vanilla 2 1000", "a__rm ppo_vanilla 2 1", "a/b ppo_vanilla 2 1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ALGOS": "ppo_vanilla ppo"}, "there is no .*ppo.py"),
        ({"LENGTHS": "2 five"}, "five is not a whole number"),
        ({"SEEDS": "01"}, "01 is not a whole number"),
        ({"TOTAL_TIMESTEPS": "100 200"}, "100 200 is not a whole number"),
        ({"SEEDS": "1 2 1"}, "ppo_vanilla 2 1 is listed twice"),
        ({"WORKERS": 0}, "WORKERS must be at least 1"),
        ({"LAUNCHER": "pbs"}, "LAUNCHER must be local or slurm, got pbs"),
        ({"EXTRA_ARGS": "--hide-umbrella --seed=4"}, "EXTRA_ARGS must not set --seed"),
        ({"STUDY": "nothing.txt"}, "STUDY: there is no file nothing.txt"),
        ({"OUT": __file__}, "OUT: .* cannot be made"),
        ({"PYTHON": "false"}, "PYTHON=false does not find torch"),
        ({"text": ARMS, "ALGOS": "teacher ppo_vanilla"}, "ALGOS: arms of it.txt has no arm ppo_vanilla"),
        ({"text": ARMS, "ALGOS": "teacher", "LENGTHS": "10"}, "no arm runs at 10"),
        ({"text": ARMS, "LENGTHS": "2 50"}, "no arm runs at 50"),
        ({"text": ARMS, "TOTAL_TIMESTEPS": 1000}, "TOTAL_TIMESTEPS must not be set"),
        ({"text": ARMS, "ALGOS": "nothing", "ENV_IDS": "A-v1 B-v1"}, "has no arm nothing"),  # once, not for each
        ({"text": ARMS + "\nplain ppo_vanilla 2 1000 --gamma 1"}, "plain 2 1 is listed twice"),
        ({"text": "# nothing\n"}, "arms of it.txt has no arms"),
        ({"text": "\na results/ppo 2 1000"}, "arms of it.txt, line 2: there is no .*/results/ppo.py"),
        ({"text": "\na ppo_vanilla 2 1000 @nothing.json"}, "line 2: there is no .*/nothing.json"),
        ({"text": "\na ppo_vanilla 2 1000 --exp_name=x"}, "line 2: .* must not set --exp-name"),
        *[({"text": "\n" + line}, "arms of it.txt, line 2: not NAME SCRIPT LENGTHS") for line in MALFORMED],
    ],
)
def test_bad_settings(benchmark, settings, message):
    assert_refused(benchmark(**settings), message)
    assert not benchmark.out.exists()


def test_help_and_report_run_nothing(benchmark):
    assert_good(shown := benchmark("--help"))
    assert shown.stdout.endswith("EXTRA_ARGS OUT WORKERS LAUNCHER PYTHON\n")
    assert_refused(benchmark("--seed"), "unknown argument --seed")
    nothing = benchmark("--report")
    assert (nothing.returncode, nothing.stderr) == (1, "error: there is no finished run in out & put\n")
    assert not benchmark.out.exists()
    assert_good(benchmark(ALGOS="ppo_vanilla"))
    before = files_in(benchmark.out)
    partial = benchmark("--report")
    assert (partial.returncode, files_in(benchmark.out)) == (1, before)
    for process, drawn in ((nothing, 0), (partial, 1)):
        assert process.stdout.count("figures and tables of what is finished") == drawn
        assert "not finished: ppo_metairn 2 1: never started (out & put/logs/ppo_metairn__2__1.log)" in process.stdout


def test_study_and_runs_of_another_kind(benchmark):
    """A selection of its arms first, then more of them, in the same OUT. Other options or scripts need another OUT."""
    assert_good(benchmark(text=ARMS, ALGOS="teacher", SEEDS="1 2"))
    assert finished(benchmark.out) == ["teacher__2__1", "teacher__2__2"]
    assert_good(second := benchmark(text=ARMS, LENGTHS=" 2\n10  20"))
    assert "4 runs, of which 1 are finished" in second.stdout
    teacher = ("ppo_metairn", "1000", {"intrinsic-coef": "0.5"})
    taught = {"gamma": "1", "irn-from": "out & put/UmbrellaLength-v0__teacher__2__{seed}"}  # {seed} is the script's
    given = {"own__20__1": (SHUFFLED, "1000", {}), "plain__10__1": ("ppo_metairn", "2000", taught)}
    given |= {"plain__2__1": ("ppo_lirpg", "1000", {}), "teacher__2__1": teacher, "teacher__2__2": teacher}
    assert finished(benchmark.out) == list(args := args_of(benchmark.out)) == list(given)
    for run, (script, steps, options) in given.items():
        expected = {"eval-every": "1000", "eval-episodes": "100", "runs-dir": "out & put", "total-timesteps": steps}
        expected |= dict(zip(("exp-name", "chain-length", "seed"), run.split("__"), strict=True))
        assert args[run] == expected | options | {"script": str(benchmark.project / f"{script}.py")}
    report = benchmark("--report", text=ARMS)
    assert (report.returncode, re.findall("not finished: (.*): never", report.stdout)) == (1, ["plain 5 1"])
    assert_good(benchmark("--report", text=ARMS, ALGOS="plain", LENGTHS="2 10"))
    others = [{"text": ARMS.replace("2000", "3000")}, {"text": ARMS + "\nanother ppo_vanilla 2 1000"}]
    for settings in [*others, {"text": ARMS, "EXTRA_ARGS": "--gamma 1"}, {"TOTAL_TIMESTEPS": 1000}]:
        assert_refused(benchmark(**settings), "holds runs of another kind")
    for name in ("ppo_vanilla", "umbrella_env", SHUFFLED):
        content = (script := benchmark.project / f"{name}.py").read_text()
        script.write_text(content + "# changed")
        assert_refused(benchmark(text=ARMS, ALGOS="teacher"), "holds runs of another kind")
        script.write_text(content)
    assert_good(benchmark(text=ARMS + "\n# said in other words", ALGOS="teacher"))


@pytest.mark.parametrize("key", ["", "#hidden_50__ppo.tpe"])
def test_options_from_a_file(benchmark, key):
    """They are those of the run, and another content is another kind of run."""
    text = f"arm ppo_metairn 2 1000 --gae-lambda 0.5 --gamma 0.5 @results/tuned.json{key} --clip-coef 0.1 # words"

    def run(options, key=key[1:]):
        options = options if isinstance(options, str) else json.dumps({key: options} if key else options)
        (benchmark.project / "results" / "tuned.json").write_text(options)
        return benchmark(text=text)

    assert_good(run({"gamma": 1.0, "irn": "mlp", "update_epochs": 2}))
    expected = {"gamma": "1.0", "irn": "mlp", "update-epochs": "2", "gae-lambda": "0.5", "clip-coef": "0.1"}
    assert (args := args_of(benchmark.out)["arm__2__1"]).items() >= expected.items()
    assert "words" not in args.values()
    assert_refused(run({"gamma": 1.0, "irn": "mlp", "update_epochs": 3}), "holds runs of another kind")
    where = "arms of it.txt, line 1: "
    for options in ('{"gamma": 1.0', [1], {"gamma": True}, {"gamma": "1 --seed 2"}):
        assert_refused(run(options), f"{where}results/tuned.json{key} is not a JSON object")
    assert_refused(run({"gamma": 1.0}, "other"), f"{where}results/tuned.json{key} is not a JSON object")
    assert_refused(run({"seed": 4}), f"{where}options and EXTRA_ARGS must not set --seed")


def test_environments(benchmark):
    """Each has a folder of its own; one that does not exist fails, and the others are run."""
    settings = {"text": ENVS, "ENV_IDS": "CartPole-v1 gymnasium.envs:Nothing-v0 Pendulum-v1", "EXTRA_ARGS": "--gamma 1"}
    first = benchmark(**settings)
    assert (first.returncode, first.stdout.count("not finished: small 0 1: error: no Nothing-v0")) == (1, 1)
    assert {path.name for path in benchmark.out.iterdir()} == {"CartPole-v1", "Nothing-v0", "Pendulum-v1"}
    assert finished(benchmark.out / "Nothing-v0") == []
    settings["ENV_IDS"] = "CartPole-v1 Pendulum-v1"
    for env_id in settings["ENV_IDS"].split():
        args = args_of(benchmark.out / env_id)
        assert finished(benchmark.out / env_id) == list(args) == ["other__0__1", "small__0__1"]
        assert [run["env-id"] for run in args.values()] == [env_id, env_id]
        assert [run["gamma"] for run in args.values()] == ["0.5", "1"]  # an arm's options come last
    (benchmark.out / "CartPole-v1" / "CartPole-v1__other__0__1" / "finished").unlink()
    report = benchmark("--report", **settings)
    assert (report.returncode, report.stdout.count("figures and tables of what is finished")) == (1, 2)
    assert_good(benchmark(ENV_IDS="CartPole-v1", LENGTHS=None, OUT="no study"))
    assert finished(benchmark.out.parent / "no study" / "CartPole-v1") == ["ppo_metairn__0__1", "ppo_vanilla__0__1"]


@pytest.mark.parametrize(("whom", "status"), [("killpg(0, signal.SIGINT)", 130), ("kill(os.getpgrp(), 15)", 143)])
def test_a_signal_ends_all_environments(benchmark, whom, status):
    """Ctrl-C goes to all processes, kill to the one that was started alone; this run has both as ancestors."""
    settings = {"text": ENVS, "ENV_IDS": "CartPole-v1 Pendulum-v1", "ALGOS": "small"}
    stopped = benchmark(at_checkpoint=f"os.{whom}, signal.pause()", WORKERS=1, **settings)
    assert (stopped.returncode, stopped.stdout.count("stopped; the same command goes on")) == (status, 1)
    assert not (benchmark.out / "Pendulum-v1").exists()
    assert_good(benchmark(**settings))
    assert finished(benchmark.out / "CartPole-v1") == finished(benchmark.out / "Pendulum-v1") == ["small__0__1"]


@pytest.fixture(params=["stub", pytest.param("real", marks=pytest.mark.slow)])
def slurm(request, tmp_path, monkeypatch):
    """A Slurm of one node with two CPUs that takes arrays of two tasks, or a stub of it -> its folder"""
    folder, real = tmp_path / "slurm", request.param == "real"
    folder.mkdir()
    call = ["bash", ROOT / "tests" / "slurm.sh"]
    started = subprocess.run([*call, request.param, folder], capture_output=True, text=True, check=not real)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")  # the stub's
    if real:
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    try:
        if started.returncode:
            pytest.skip(f"no Slurm starts here (apt-get install slurm-wlm munge): {started.stderr}")
        yield folder
    finally:
        if real:
            subprocess.run([*call, "stop", folder], check=True)


def test_slurm(benchmark, slurm):
    """More runs than an array takes, of which one fails; what is left by another submission; a Slurm that is full."""
    settings, folder = {"LAUNCHER": "slurm", "LENGTHS": "2 5 0", "ALGOS": "ppo_metairn"}, benchmark.out / "slurm"
    stub = not (slurm / "slurm.conf").exists()

    def submit(**others):
        subprocess.run(["scontrol", "update", "PartitionName=test", "State=DOWN"], check=True)  # nothing begins
        assert_good(benchmark(**settings | others))
        *arrays, figures = (folder / "jobs").read_text().strip().split(",")
        (slurm / "at_work").write_text("what the stub's squeue prints")
        for launcher in ("slurm", "local"):
            assert_refused(benchmark(**settings | {"LAUNCHER": launcher}), "at work in out & put")
        (slurm / "at_work").unlink()
        subprocess.run(["scontrol", "update", "PartitionName=test", "State=UP"], check=True)
        if not stub:  # Slurm waits until they have ended
            wait = ["sbatch", "--wait", f"--dependency=afterany:{figures}", "--output=/dev/null", "--wrap", "true"]
            subprocess.run(wait, check=True, capture_output=True)
        return [len(list(folder.glob(f"{job}_*.out"))) for job in arrays], (folder / f"{figures}.out").read_text()

    tasks, report = submit()
    assert tasks == [2, 1]
    assert finished(benchmark.out) == ["ppo_metairn__2__1", "ppo_metairn__5__1"]
    assert re.findall("not finished: (.*): error: no", report) == ["ppo_metairn 0 1"]
    assert not stub or "--dependency=afterany:1:2 " in (slurm / "submitted").read_text().splitlines()[-1]
    (benchmark.out / "UmbrellaLength-v0__ppo_metairn__2__1" / "finished").unlink()
    tasks, report = submit(LENGTHS="2 5")
    assert (tasks, "not finished" in report) == ([1], False)
    assert "begins at step 3000" in (benchmark.out / "logs" / "ppo_metairn__2__1.log").read_text()
    (slurm / "full").touch()
    assert not stub or benchmark(**settings).stderr == "error: sbatch refused a job; submitted: none\n"


KILL_AT_THE_THIRD_CHECKPOINT = """
import os
replace, acts = os.replace, iter([int, int, lambda: os.kill(os.getpid(), 9)])
os.replace = lambda source, target: (replace(source, target), str(target).endswith("checkpoint.pt") and next(acts)())
"""


@pytest.mark.slow
def test_own_scripts_continue_to_the_same_numbers(benchmark, tmp_path):
    """All are killed. One of the checkpoints is then damaged, so that this run begins again."""
    for path in [*ROOT.glob("ppo_*.py"), ROOT / "umbrella_env.py", ROOT / "plot_results.py"]:
        shutil.copy(path, benchmark.project)
    (tmp_path / "sitecustomize.py").write_text(KILL_AT_THE_THIRD_CHECKPOINT)
    scripts = ["ppo_metairn", "ppo_vanilla"]
    settings = {"ALGOS": " ".join(scripts), "TOTAL_TIMESTEPS": 4000}
    killed = benchmark("--smoke", **settings, PYTHONPATH=tmp_path)
    assert (killed.returncode, killed.stdout.count("FAILED with status 137")) == (1, 2)
    os.truncate(benchmark.out / "UmbrellaLength-v0__ppo_vanilla__2__1" / "checkpoint.pt", 1000)
    assert_good(benchmark("--smoke", **settings))
    assert_good(benchmark("--smoke", **settings, OUT="whole"))
    outs = [benchmark.out, benchmark.out.parent / "whole"]
    for path in [f"UmbrellaLength-v0__{name}__2__1/progress.csv" for name in scripts] + ["results/evaluations.csv.gz"]:
        tables = [pd.read_csv(out / path).drop(columns=["sps", "wall_time"], errors="ignore") for out in outs]
        pd.testing.assert_frame_equal(*tables)
    assert sorted(tables[0]["arm"].unique()) == scripts
    assert any(path.stat().st_size > 10_000 for path in (benchmark.out / "results").glob("*.png"))
