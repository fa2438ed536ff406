"""benchmark.sh as a user runs it: whole, stopped, killed, failing, twice at once, and on a real Slurm of one node.

To interrupt a benchmark at an exact moment, not after some seconds, a run does it itself: `at_checkpoint` is executed
in the run that writes a checkpoint, through a sitecustomize module of the test.
"""

import fcntl
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
BENCHMARK = ["bash", str(ROOT / "benchmark.sh")]
OUTPUTS = ["learning", "steps_to_95", "final_return", "aggregate", "wall_clock", "credit_attention", "credit_reward"]
HOOK = """
import os, signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # in all threads: `action` takes it when it wants it
replace, count = os.replace, 0
def replace_then_act(source, target):
    global count
    replace(source, target)
    if str(target).endswith("checkpoint.pt"):
        count += 1
        run = sys.argv
{action}
os.replace = replace_then_act
"""


@pytest.fixture
def benchmark(tmp_path):
    """benchmark("--smoke", SEEDS=1) runs benchmark.sh in a folder whose name has spaces, as OUT's has"""
    folder = tmp_path / "a folder"
    folder.mkdir()
    small = {
        "LENGTHS": 2,
        "SEEDS": 1,
        "TOTAL_TIMESTEPS": 3000,
        "WORKERS": 2,
        "OUT": "out put",
        "PYTHON": sys.executable,
    }

    def run(*arguments, at_checkpoint=None, **settings):
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in {*small, "STUDY", "ALGOS", "ENV_IDS", "EXTRA_ARGS", "LAUNCHER"}
        }
        env |= {name: str(value) for name, value in (small | settings).items() if value is not None}
        if at_checkpoint is not None:
            indented = "".join(f"        {line}\n" for line in at_checkpoint.splitlines())
            (tmp_path / "sitecustomize.py").write_text(HOOK.format(action=indented))
            env["PYTHONPATH"] = str(tmp_path)
        command = [*BENCHMARK, *arguments]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, start_new_session=True)

    run.out = folder / "out put"
    return run


def finished(out):
    return sorted(path.parent.name.split("__", 1)[1] for path in out.glob("*/finished"))


def numbers(out):
    """All that training decides; the rest of the results follow from it."""
    return [(out / "results" / name).read_bytes() for name in ("evaluations.csv.gz", "credit.csv.gz", "runs.csv")]


def test_smoke_then_nothing_is_run_again(benchmark):
    settings = {"LENGTHS": None, "SEEDS": None, "TOTAL_TIMESTEPS": None}  # those of --smoke
    first = benchmark("--smoke", **settings)
    assert (first.returncode, first.stderr) == (0, "")
    lines = first.stdout.splitlines()
    assert {"LENGTHS=2 5", "SEEDS=1 2", "TOTAL_TIMESTEPS=10000", "OUT=out put", "EXTRA_ARGS="} <= set(lines)
    commands = [shlex.split(line) for line in lines if line.startswith("    ")]  # they can be pasted into a shell
    assert len(commands) == 8
    for executable, script, *options in commands:
        assert (executable, Path(script).parent) == (sys.executable, ROOT)
        assert options[-2:] == ["--runs-dir", "out put"]
    assert any(line.startswith("8 of 8 done, 0 running, 0 failed, about 0:00 left; ") for line in lines)
    assert len(finished(benchmark.out)) == 8
    for name in OUTPUTS:
        assert (benchmark.out / "results" / f"{name}.png").stat().st_size > 10_000
    invocations = pd.read_csv(benchmark.out / "invocations.csv")
    assert invocations[["workers", "finished", "failed"]].to_numpy().tolist() == [[2, 8, 0]]

    def files():
        return {p: p.stat().st_mtime_ns for p in benchmark.out.rglob("*") if "results" not in p.parts and p.is_file()}

    before, results = files(), {p.name: p.read_bytes() for p in (benchmark.out / "results").iterdir()}
    second = benchmark("--smoke", **settings)
    assert (second.returncode, second.stderr) == (0, "")
    assert "8 runs, of which 8 are finished" in second.stdout
    assert files() == before
    assert {p.name: p.read_bytes() for p in (benchmark.out / "results").iterdir()} == results


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_stopped_and_continued_is_as_if_never_stopped(benchmark, signal):
    """SIGKILL hits all processes, the others the benchmark alone, which hands them on to its runs as SIGTERM."""
    action = "if count == 2 and run[run.index('--seed') + 1] == '2':\n    "
    if signal == "SIGKILL":
        action += "os.killpg(0, signal.SIGKILL)"
    else:  # waits for what is handed on, so that it comes at this moment
        action += f"os.kill(os.getppid(), signal.{signal})\n    "
        action += "signal.raise_signal(signal.sigtimedwait([signal.SIGTERM], 60).si_signo)\n    "
        action += "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])"
    settings = {"SEEDS": "1 2", "ALGOS": "ppo_metairn"}
    stopped = benchmark(at_checkpoint=action, WORKERS=1, **settings)
    assert stopped.returncode == {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}[signal]
    assert finished(benchmark.out) == ["ppo_metairn__2__1"]
    with open(benchmark.out / "lock") as lock:  # until the last of the killed processes is gone
        fcntl.flock(lock, fcntl.LOCK_EX)
    if signal != "SIGKILL":
        assert "stopped, nothing is lost" in stopped.stdout
        assert "stopped at step 1000" in (benchmark.out / "logs" / "ppo_metairn__2__2.log").read_text()
    continued = benchmark(**settings)
    assert (continued.returncode, continued.stderr) == (0, "")
    assert "2 runs, of which 1 are finished" in continued.stdout
    assert "--resume" in continued.stdout
    whole = benchmark(OUT="whole", **settings)
    assert whole.returncode == 0
    assert numbers(benchmark.out) == numbers(benchmark.out.parent / "whole")


def test_failed_and_killed_runs_do_not_vanish(benchmark):
    """Length 0 does not exist, and one run is killed after its second checkpoint."""
    action = "if count == 2 and 'metairn' in run[0]:\n    os.kill(os.getpid(), signal.SIGKILL)"
    settings = {"LENGTHS": "2 0", "SEEDS": "1"}
    process = benchmark(at_checkpoint=action, **settings)
    assert process.returncode == 1
    assert "ppo_metairn 2 1 FAILED with status 137" in process.stdout
    assert "ppo_vanilla 0 1 FAILED with status 2" in process.stdout
    for algorithm in ("ppo_vanilla", "ppo_metairn"):
        assert f"not finished: {algorithm} 0 1: error: " in process.stdout
        assert (
            f"chain_length must be an integer of at least 1, got 0 (out put/logs/{algorithm}__0__1.log)"
            in process.stdout
        )
    assert "not finished: ppo_metairn 2 1: killed by signal 9 (" in process.stdout
    assert "left out: ppo_metairn, L = 2, seed 1: unfinished: stopped at step 1000 of 3000\n" in process.stderr
    assert finished(benchmark.out) == ["ppo_vanilla__2__1"]
    left_out = pd.read_csv(benchmark.out / "results" / "left_out.csv")
    assert list(zip(left_out["algorithm"], left_out["chain_length"], left_out["reason"].str[:7], strict=True)) == [
        ("ppo_metairn", 0, "missing"),
        ("ppo_metairn", 2, "unfinis"),
        ("ppo_vanilla", 0, "missing"),
    ]
    summary = pd.read_csv(benchmark.out / "results" / "summary.csv")
    assert summary["algorithm"].tolist() == ["ppo_vanilla"]
    assert (
        "1 of `ppo_metairn`; 1 of `ppo_vanilla`; 1 of `ppo_metairn` at L = 2."
        in (benchmark.out / "results" / "summary.md").read_text()
    )

    again = benchmark(**settings)
    assert again.returncode == 1
    assert finished(benchmark.out) == ["ppo_metairn__2__1", "ppo_vanilla__2__1"]
    assert "not finished: ppo_metairn 2 1" not in again.stdout
    assert "ppo_vanilla 0 1 FAILED" in again.stdout  # was tried again


def test_a_second_benchmark_leaves(benchmark):
    """The second one is started by a run of the first; so is a third, when SIGKILL has made that run an orphan."""
    action = f"""if count == 1:
    del os.environ["PYTHONPATH"]
    with open("second", "w") as second, open("third", "w") as third:
        statuses = [subprocess.call({BENCHMARK}, stdout=second, stderr=second)]
        os.kill(os.getppid(), signal.SIGKILL)
        statuses += [subprocess.call({BENCHMARK}, stdout=third, stderr=third)]
    print(statuses, file=open("statuses", "w"))"""
    settings = {"ALGOS": "ppo_vanilla", "LENGTHS": "2 5"}
    first = benchmark(at_checkpoint=action, WORKERS=1, **settings)
    assert first.returncode == -9
    with open(benchmark.out / "lock") as lock:  # held until the orphan has ended
        fcntl.flock(lock, fcntl.LOCK_EX)
    folder = benchmark.out.parent
    assert (folder / "statuses").read_text() == "[2, 2]\n"
    for name in ("second", "third"):
        assert (folder / name).read_text().startswith("error: another benchmark, or a run that one left behind")
    last = benchmark(**settings)
    assert (last.returncode, last.stderr) == (0, "")
    assert finished(benchmark.out) == ["ppo_vanilla__2__1", "ppo_vanilla__5__1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ALGOS": "ppo_vanilla ppo"}, "there is no .*ppo.py"),
        ({"LENGTHS": "2 five"}, "five is not a whole number"),
        ({"SEEDS": "01"}, "01 is not a whole number"),
        ({"SEEDS": "1 2 1"}, "ppo_vanilla 2 1 is listed twice"),
        ({"TOTAL_TIMESTEPS": "1e5"}, "1e5 is not a whole number"),
        ({"WORKERS": 0}, "WORKERS must be at least 1"),
        ({"LAUNCHER": "pbs"}, "LAUNCHER must be local or slurm, got pbs"),
        ({"EXTRA_ARGS": "--hide-umbrella --seed=4"}, "EXTRA_ARGS must not set --seed"),
        ({"EXTRA_ARGS": "--runs_dir elsewhere"}, "EXTRA_ARGS must not set --runs_dir"),
        ({"ALGOS": "../ppo_vanilla"}, "not NAME SCRIPT"),
        ({"STUDY": "nothing.txt"}, "STUDY: there is no file nothing.txt"),
        ({"PYTHON": "false"}, "PYTHON=false does not find torch"),
    ],
)
def test_bad_settings(benchmark, settings, message):
    process = benchmark(**settings)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""
    assert re.search(message, process.stderr)
    assert not benchmark.out.exists()


def test_report_runs_nothing(benchmark):
    nothing = benchmark("--report")
    assert (nothing.returncode, nothing.stderr) == (1, "error: there is no finished run in out put\n")
    assert "not finished: ppo_metairn 2 1: never started" in nothing.stdout
    assert "figures and tables" not in nothing.stdout
    assert not benchmark.out.exists()
    assert benchmark(ALGOS="ppo_vanilla").returncode == 0
    before = {path.stat().st_mtime_ns for path in benchmark.out.glob("*/progress.csv")}
    partial = benchmark("--report")
    assert partial.returncode == 1
    assert "not finished: ppo_metairn 2 1: never started" in partial.stdout
    assert "figures and tables of what is finished: out put/results" in partial.stdout
    assert {path.stat().st_mtime_ns for path in benchmark.out.glob("*/progress.csv")} == before


def test_help(benchmark):
    process = benchmark("--help")
    assert process.returncode == 0
    assert process.stdout.startswith("The paper's protocol: ")
    assert process.stdout.endswith("EXTRA_ARGS OUT WORKERS LAUNCHER PYTHON\n")


def test_unknown_argument(benchmark):
    process = benchmark("--seed")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert "unknown argument --seed" in process.stderr


def test_runs_of_another_kind_are_not_mixed(benchmark):
    assert benchmark(ALGOS="ppo_vanilla", TOTAL_TIMESTEPS=1000).returncode == 0
    for settings in ({"TOTAL_TIMESTEPS": 2000}, {"TOTAL_TIMESTEPS": 1000, "EXTRA_ARGS": "--gamma 1"}):
        process = benchmark(ALGOS="ppo_vanilla", **settings)
        assert (process.returncode, process.stderr.count("\n")) == (2, 1)
        assert "holds runs of another kind" in process.stderr


ARMS = """# two arms, of which the second has other options at other lengths

teacher ppo_metairn 2 1000 --intrinsic-coef 0.5   # half
plain   ppo_metairn 2,5 1000
plain   ppo_metairn 10 2000 --gamma 1 --meta-learning-rate=0 --irn-from {out}/UmbrellaLength-v0__teacher__2__{seed}
"""


@pytest.fixture
def study(benchmark):
    """study("--report", text=ARMS, SEEDS=1) runs the benchmark with a study file of this text"""

    def run(*arguments, text=ARMS, **settings):
        (benchmark.out.parent / "arms of it.txt").write_text(text)
        free = {"STUDY": "arms of it.txt", "LENGTHS": None, "TOTAL_TIMESTEPS": None}
        return benchmark(*arguments, **free | settings)

    return run


def test_study(benchmark, study):
    """A selection of its arms first, then all of them, in the same OUT; then with other arms."""
    first = study(ALGOS="teacher", SEEDS="1 2")
    assert (first.returncode, first.stderr) == (0, "")
    assert finished(benchmark.out) == ["teacher__2__1", "teacher__2__2"]
    second = study(LENGTHS=" 2\n10 ")
    assert (second.returncode, second.stderr) == (0, "")
    assert "3 runs, of which 1 are finished" in second.stdout
    assert finished(benchmark.out) == ["plain__10__1", "plain__2__1", "teacher__2__1", "teacher__2__2"]
    args = {
        path.parent.name.split("__", 1)[1]: json.loads(path.read_text()) for path in benchmark.out.glob("*/args.json")
    }
    assert args["teacher__2__2"]["intrinsic_coef"] == 0.5
    assert args["plain__2__1"]["gamma"] == 0.99
    assert args["plain__10__1"]["gamma"] == 1
    assert [args[f"plain__{length}__1"]["total_timesteps"] for length in (2, 10)] == [1000, 2000]
    taught = args["plain__10__1"]["irn_from"]
    assert taught == "out put/UmbrellaLength-v0__teacher__2__{seed}"  # {seed} is the script's
    assert {run["eval_every"] for run in args.values()} == {1000}
    settings = json.loads((benchmark.out / "results" / "settings.json").read_text())
    assert settings["plain"]["gamma"] == {"2": 0.99, "10": 1.0}

    report = study("--report")
    assert report.returncode == 1
    assert re.findall("not finished: (.*): never started", report.stdout) == ["plain 5 1"]
    assert study("--report", ALGOS="plain", LENGTHS="2 10").returncode == 0
    for text in (ARMS.replace("2000", "3000"), ARMS + "another ppo_vanilla 2 1000"):
        other = study(text=text)
        assert (other.returncode, other.stderr.count("\n")) == (2, 1)
        assert "holds runs of another kind" in other.stderr
    assert study(text=ARMS + "\n# said in other words", ALGOS="teacher").returncode == 0
    shutil.rmtree(next(benchmark.out.glob("*__teacher__2__2")))
    lost = study("--report", ALGOS="teacher")
    assert lost.stderr == "left out: teacher, L = 2, seed 2: missing: there is no readable run folder\n"


def test_a_study_continues_and_fails_as_others_do(benchmark, study):
    """A run of an arm that is killed goes on with its own script, to the same end."""
    action = "if count == 2:\n    os.kill(os.getpid(), signal.SIGKILL)"
    text = "arm ppo_metairn 2 3000 --intrinsic-coef 0.5\nbroken ppo_vanilla 2 3000 --gamma\n"
    killed = study(text=text, at_checkpoint=action)
    assert killed.returncode == 1
    assert "not finished: arm 2 1: killed by signal 9" in killed.stdout
    assert "not finished: broken 2 1: " in killed.stdout
    assert study(text=text).returncode == 1
    assert "ppo_metairn.py --resume" in (benchmark.out / "logs" / "arm__2__1.log").read_text()
    assert finished(benchmark.out) == ["arm__2__1"]
    whole = study(text=text, ALGOS="arm", OUT="whole")
    assert (whole.returncode, whole.stderr) == (0, "")
    tables = [
        pd.read_csv(out / "results" / "evaluations.csv.gz") for out in (benchmark.out, benchmark.out.parent / "whole")
    ]
    pd.testing.assert_frame_equal(*tables)


ENVS = """small ppo_vanilla 0 64 --num-envs 4 --num-steps 8 --num-minibatches 2 --eval-every 64 --eval-episodes 2
held ppo_metairn 0 64 --num-envs 4 --num-steps 8 --num-minibatches 2 --eval-every 64 --eval-episodes 2 --held-steps 0
"""


def test_environments(benchmark, study):
    """Each has a folder of its own; one that does not exist fails, and the others are run; again, nothing is."""
    settings = {"text": ENVS, "ENV_IDS": "CartPole-v1 gymnasium.envs:Nothing-v0 Pendulum-v1", "EXTRA_ARGS": "--gamma 1"}
    first = study(**settings)
    assert first.returncode == 1
    assert "not finished: small 0 1: error: --env-id gymnasium.envs:Nothing-v0" in first.stdout
    assert {path.name for path in benchmark.out.iterdir()} == {"CartPole-v1", "Nothing-v0", "Pendulum-v1"}
    assert finished(benchmark.out / "Nothing-v0") == []
    settings["ENV_IDS"] = "CartPole-v1 Pendulum-v1"
    for env_id in settings["ENV_IDS"].split():
        out = benchmark.out / env_id
        assert finished(out) == ["held__0__1", "small__0__1"]
        assert pd.read_csv(out / "results" / "runs.csv")["algorithm"].tolist() == ["held", "small"]
        assert {p.stem for p in (out / "results").glob("*.png")} == {"learning", "wall_clock"}
        args = json.loads((out / f"{env_id}__small__0__1" / "args.json").read_text())
        expected = {"env_id": env_id, "gamma": 1, "eval_every": 64, "eval_episodes": 2, "total_timesteps": 64}
        assert args.items() >= expected.items()
    before = {p: p.stat().st_mtime_ns for p in benchmark.out.rglob("*") if "results" not in p.parts and p.is_file()}
    second = study(**settings)
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout.count("2 runs, of which 2 are finished") == 2
    assert {p: p.stat().st_mtime_ns for p in before} == before
    (benchmark.out / "CartPole-v1" / "CartPole-v1__held__0__1" / "finished").unlink()
    report = study("--report", **settings)
    assert (report.returncode, report.stdout.count("figures and tables of what is finished")) == (1, 2)
    assert not (benchmark.out / "CartPole-v1" / "CartPole-v1__held__0__1" / "finished").exists()
    bad = study(**settings, ALGOS="nothing")  # is said once, not for each environment
    assert (bad.returncode, bad.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(("signal", "to"), [("SIGINT", "all"), ("SIGTERM", "benchmark")])
def test_a_signal_ends_all_environments(benchmark, study, signal, to):
    """Ctrl-C goes to all processes, kill to the one that was started alone; this run has both as ancestors."""
    whom = "os.killpg(0, signal.SIGINT)" if to == "all" else "os.kill(os.getpgrp(), signal.SIGTERM)"
    action = f"if count == 1:\n    {whom}\n    signal.sigtimedwait([signal.SIGTERM], 60)\n    os._exit(1)"
    settings = {"text": ENVS, "ENV_IDS": "CartPole-v1 Pendulum-v1", "ALGOS": "small"}
    stopped = study(at_checkpoint=action, WORKERS=1, **settings)
    assert stopped.returncode == {"SIGINT": 130, "SIGTERM": 143}[signal]
    assert stopped.stdout.count("stopped, nothing is lost") == 1
    assert not (benchmark.out / "Pendulum-v1").exists()
    assert study(**settings).returncode == 0
    assert finished(benchmark.out / "CartPole-v1") == finished(benchmark.out / "Pendulum-v1") == ["small__0__1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("arm ppo_vanilla 2", "not NAME SCRIPT LENGTHS TIMESTEPS"),
        ("arm ppo_vanilla 2,five 1000", "not NAME SCRIPT LENGTHS TIMESTEPS"),
        ("arm ppo_vanilla 2,,5 1000", "not NAME SCRIPT LENGTHS TIMESTEPS"),
        ("arm ppo_vanilla 2 1e5", "not NAME SCRIPT LENGTHS TIMESTEPS"),
        ("arm ppo_vanilla.py 2 1000", "not NAME SCRIPT LENGTHS TIMESTEPS"),
        ("a__rm ppo_vanilla 2 1000", "not NAME SCRIPT LENGTHS TIMESTEPS"),
        ("a/rm ppo_vanilla 2 1000", "not NAME SCRIPT LENGTHS TIMESTEPS"),
        ("arm ppo 2 1000", "there is no .*/ppo.py"),
        ("arm results/ppo 2 1000", "there is no .*/results/ppo.py"),
        ("arm ppo_vanilla 2 1000 --gamma 1 --seed 3", "must not set --seed"),
        ("arm ppo_vanilla 2 1000 --exp_name=x", "must not set --exp_name"),
    ],
)
def test_bad_lines_of_a_study(benchmark, study, line, message):
    process = study(text=f"# arms\n\ngood ppo_vanilla 2 1000\n{line}", ALGOS="good")
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert re.match(f"error: arms of it.txt, line 4: .*{message}", process.stderr)
    assert not benchmark.out.exists()


def test_options_from_a_file(benchmark, study, tmp_path):
    """They are those of the run, and another content is another kind of run."""
    file = tmp_path / "tuned.json"
    file.write_text('{"gamma": 1.0, "irn": "mlp", "update_epochs": 2}')
    text = f"arm ppo_metairn 2 1000 --gae-lambda 0.5 @{file} --clip-coef 0.1"
    relative = text.replace(str(file), os.path.relpath(file, ROOT))
    assert study(text=text).returncode == 0
    args = json.loads((benchmark.out / "UmbrellaLength-v0__arm__2__1" / "args.json").read_text())
    expected = {"gamma": 1, "irn": "mlp", "update_epochs": 2, "gae_lambda": 0.5, "clip_coef": 0.1, "ent_coef": 0}
    assert args.items() >= expected.items()
    same = study("--report", text=relative.replace("arm ", "other "))
    assert "not finished: other 2 1: never started" in same.stdout
    assert study(text=relative).returncode == 0
    file.write_text('{"gamma": 1.0, "irn": "mlp", "update_epochs": 3}')
    other = study(text=text)
    assert (other.returncode, other.stdout, other.stderr.count("\n")) == (2, "", 1)
    assert "holds runs of another kind" in other.stderr
    for content in ('{"gamma": 1.0', "[1]", '{"gamma": true}', '{"gamma": "1 --seed 2"}', '{"seed": 4}', None):
        file.unlink() if content is None else file.write_text(content)
        bad = study(text=text)
        assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)
        what = (
            "options and EXTRA_ARGS must not set --seed" if content == '{"seed": 4}' else f"{file} is not a JSON object"
        )
        assert bad.stderr.startswith(f"error: arms of it.txt, line 1: {what}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ALGOS": "teacher ppo_vanilla"}, "ALGOS: arms of it.txt has no arm ppo_vanilla"),
        ({"LENGTHS": "3 4"}, "arms of it.txt has none of these: 3 4"),
        ({"ALGOS": "teacher", "LENGTHS": "10"}, "has none of these: 10"),
        ({"TOTAL_TIMESTEPS": 1000}, "TOTAL_TIMESTEPS must not be set"),
        ({"text": ARMS + "plain ppo_vanilla 2 1000 --gamma 1"}, "plain 2 1 is listed twice"),
        ({"text": "# nothing\n"}, "arms of it.txt"),
    ],
)
def test_bad_selections_of_a_study(benchmark, study, settings, message):
    process = study(**settings)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert re.match(f"error: .*{message}", process.stderr)
    assert not benchmark.out.exists()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm of one node with two CPUs, or a skip that says why not"""
    missing = [
        n
        for n in ("munged", "slurmctld", "slurmd", "sbatch")
        if not shutil.which(n, path=os.environ["PATH"] + ":/usr/sbin")
    ]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)} missing): apt-get install slurm-wlm munge")
    folder = tmp_path / "slurm"
    folder.mkdir()
    started = subprocess.run(["bash", ROOT / "tests" / "slurm.sh", "start", folder], capture_output=True, text=True)
    try:
        if started.returncode:
            logs = "".join(path.read_text() for path in folder.glob("*.out"))
            pytest.skip(f"Slurm does not start here: {started.stderr}{logs}")
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield
    finally:
        subprocess.run(["scancel", "--user", str(os.getuid())], capture_output=True)
        subprocess.run(["bash", ROOT / "tests" / "slurm.sh", "stop", folder], check=True)


def wait_for(*jobs):
    """Of Slurm, until they have ended"""
    after = f"--dependency=afterany:{':'.join(jobs)}"
    wait = ["sbatch", "--wait", "--deadline=now+15minutes", after, "--output=/dev/null", "--wrap", "true"]
    subprocess.run(wait, check=True, capture_output=True)


def test_slurm(benchmark, slurm, tmp_path):
    settings = {"LAUNCHER": "slurm", "LENGTHS": "2 0"}  # length 0 fails

    def jobs():
        array, figures = (benchmark.out / "slurm" / "jobs").read_text().strip().split(",")
        return array, figures, benchmark.out / "slurm" / f"{figures}.out"

    def tasks(array):
        return len(list((benchmark.out / "slurm").glob(f"{array}_*.out")))

    first = benchmark(**settings)
    assert (first.returncode, first.stderr) == (0, "")
    array, figures, report = jobs()
    squeue = ["squeue", "--noheader", "--format=%E", f"--jobs={figures}"]
    assert f"afterany:{array}" in subprocess.run(squeue, check=True, capture_output=True, text=True).stdout
    for launcher in ("slurm", "local"):
        second = benchmark(**settings | {"LAUNCHER": launcher})
        assert second.returncode == 2
        assert re.fullmatch(
            "error: (Slurm jobs .* are|another benchmark, .* is) at work in out put: .*\n", second.stderr
        )
    wait_for(figures)
    assert tasks(array) == 4  # one run each
    assert finished(benchmark.out) == ["ppo_metairn__2__1", "ppo_vanilla__2__1"]
    assert "not finished: ppo_vanilla 0 1: error: " in report.read_text()
    assert "not finished: ppo_metairn 2 1" not in report.read_text()

    # Another submission runs what is not finished, and continues what has a checkpoint. Here sbatch waits for its job:
    # tasks may well run before the benchmark has ended that submits them
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\nexec {shutil.which("sbatch")} --wait "$@"\n')
    (tmp_path / "sbatch").chmod(0o755)
    (benchmark.out / "UmbrellaLength-v0__ppo_metairn__2__1" / "finished").unlink()
    path = f"{tmp_path}:{os.environ['PATH']}"
    last = benchmark(**settings | {"LENGTHS": 2, "PATH": path})
    assert (last.returncode, last.stderr) == (0, "")
    array, _, report = jobs()
    assert tasks(array) == 1
    assert "--resume" in (benchmark.out / "logs" / "ppo_metairn__2__1.log").read_text()
    assert "not finished" not in report.read_text()
    assert benchmark(OUT="local").returncode == 0
    assert numbers(benchmark.out) == numbers(benchmark.out.parent / "local")


def test_slurm_with_environments(benchmark, study, slurm):
    """Each is submitted, and drawn, on its own."""
    env_ids = "CartPole-v1 Pendulum-v1"
    submitted = study(text=ENVS, ENV_IDS=env_ids, LAUNCHER="slurm", EXTRA_ARGS="--gamma 0.9")
    assert (submitted.returncode, submitted.stderr) == (0, "")
    outs = [benchmark.out / env_id for env_id in env_ids.split()]
    reports = [(out / "slurm" / "jobs").read_text().strip().split(",")[1] for out in outs]
    wait_for(*reports)
    for out, report in zip(outs, reports, strict=True):
        assert finished(out) == ["held__0__1", "small__0__1"]
        assert "not finished" not in (out / "slurm" / f"{report}.out").read_text()
        assert json.loads((out / f"{out.name}__small__0__1" / "args.json").read_text())["gamma"] == 0.9
        assert pd.read_csv(out / "results" / "runs.csv")["algorithm"].tolist() == ["held", "small"]
