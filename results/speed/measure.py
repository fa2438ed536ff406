"""How fast PPO and the learned rewards are here, before, and in other libraries -> speed.csv, beside this file.

    python results/speed/measure.py --rounds 5                    # everything that is installed; about an hour
    python results/speed/measure.py --tasks umbrella --programs ppo_vanilla ppo_vanilla.compile cleanrl --rounds 5

Each program runs twice in a round, for a few and for many steps, in a process and on one thread. The programs take
turns, so that all of them meet the same load. Steps a second are the difference in steps over the difference in time,
so that imports and compilation do not count; these are the start-up. `before` is the code of --commit.
Other libraries: pip install stable-baselines3 sbx-rl rejax; and --cleanrl PATH, a clone of vwxyzjn/cleanrl.
"""

import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

ROOT = Path(__file__).parent.parent.parent
HOPPER = "--normalize --reward-scale 1 --learning-rate 3e-4 --num-envs 1 --num-steps 2048 --segment-length 1"
HOPPER = f"--env-id Hopper-v5 {HOPPER} --num-minibatches 32 --update-epochs 10 --clip-coef 0.2"
CARTPOLE = "--env-id CartPole-v1 --num-envs 8 --num-steps 256 --reward-delay 500 --reward-scale 0.01"
TASKS = {"umbrella": ("", 20_000, 220_000), "hopper": (HOPPER, 2_048, 14_336)}  # options, few steps, many
NOISE = "--hide-umbrella --env-id umbrella_env:UmbrellaLengthBsuite-v0"  # in which no credit is found
HELD = {f"frozen_{n}": (f"{NOISE} --chain-length {n}", 20 * n, 100 * n) for n in (50, 200, 500)}
HELD["frozen_cartpole"] = (CARTPOLE, 2_048, 20_480)  # MetaIRN's frozen phase alone
NO_EVALUATION = "--eval-every 1000000000 --eval-episodes 1"
SB3 = """
import sys; sys.path.insert(0, {root!r})
import gymnasium as gym, umbrella_env, torch
from stable_baselines3.common.env_util import make_vec_env
torch.set_num_threads(1)
{imports}
envs = make_vec_env("umbrella_env:UmbrellaLength-v0", 20)
PPO("MlpPolicy", envs, n_steps=50, batch_size=250, n_epochs=4, policy_kwargs={{"net_arch": [64, 64]}}).learn({steps})
"""
REJAX = """
import jax, rejax
from gymnax.environments.bsuite.umbrella_chain import UmbrellaChain
env = UmbrellaChain()
params = env.default_params.replace(chain_length=50)
ppo = rejax.get_algo("ppo").create(env=env, env_params=params, num_envs=20, num_steps=50, num_epochs=4,
    num_minibatches=4, total_timesteps={steps}, eval_freq={steps}, learning_rate=4e-3)
ppo = ppo.replace(eval_callback=lambda *x: ())
jax.block_until_ready(jax.jit(ppo.train)(jax.random.key(0)))
"""


@dataclass
class Args:
    tasks: tuple[str, ...] = (*TASKS, *HELD)  # which of the tasks
    programs: tuple[str, ...] = ()  # which of the programs; all of them if none is named
    rounds: int = 5  # how often each is measured
    commit: str = "b7f795e"  # what `before` is
    cleanrl: Path | None = None  # a clone of vwxyzjn/cleanrl
    peers: str = sys.executable  # the Python in which the other libraries are installed
    out: Path = Path(__file__).with_name("speed.csv")  # where a row is added for each measurement


def commands(args, before, runs):
    """{(task, program): function of the number of steps -> command}"""
    made = {}
    for place, prefix in ((ROOT, ""), (before, "before.")):
        for task, (options, *_) in TASKS.items():
            for script in ("ppo_vanilla", "ppo_lirpg", "ppo_metairn", *["ppo_cln"] * (place == ROOT)):
                flags = f"{options} {NO_EVALUATION} --runs-dir {runs}"
                flags += " --held-steps 0" if script == "ppo_metairn" else ""
                made[task, prefix + script] = ours(place / f"{script}.py", flags)
        for task, (options, *_) in HELD.items():
            flags = f"{options} {NO_EVALUATION} --runs-dir {runs} --held-steps {{}}"
            made[task, f"{prefix}ppo_metairn"] = ours(place / "ppo_metairn.py", flags)
    for task, (options, *_) in TASKS.items():
        for script in ("ppo_vanilla", "ppo_lirpg"):
            flags = f"{options} {NO_EVALUATION} --runs-dir {runs} --compile"
            made[task, f"{script}.compile"] = ours(ROOT / f"{script}.py", flags)
    if args.cleanrl:
        flags = "--env-id umbrella_env:UmbrellaLength-v0 --num-envs 20 --num-steps 50 --no-cuda"
        made["umbrella", "cleanrl"] = lambda n: [
            args.peers,
            args.cleanrl / "cleanrl/ppo.py",
            *flags.split(),
            "--total-timesteps",
            n,
        ]
    for name, imports in (("stable_baselines3", "from stable_baselines3 import PPO"), ("sbx", "from sbx import PPO")):
        made["umbrella", name] = lambda n, imports=imports: [
            args.peers,
            "-c",
            SB3.format(root=str(ROOT), imports=imports, steps=n),
        ]
    made["umbrella", "rejax"] = lambda n: [args.peers, "-c", REJAX.format(steps=n)]
    return made


def ours(script, flags):
    """The command of one of our scripts. A pair of braces in the flags stands for the number of steps."""

    def command(n):
        name = f"speed{time.time_ns()}"  # a run folder of its own
        return [sys.executable, script, *flags.format(n).split(), "--exp-name", name, "--total-timesteps", n]

    return command


def measure(command):
    """-> CPU and wall-clock seconds of a command, on one thread"""
    threads = ("OMP", "OPENBLAS", "MKL", "VECLIB")
    one = {f"{x}_NUM_THREADS": "1" for x in threads} | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    }
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*map(str, command)], env=os.environ | one, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, time.perf_counter() - start


def summarize(path):
    """speed.csv -> table.csv and table.md: medians over rounds; ratios are of one round, so that both met one load"""
    data = pd.read_csv(path)
    steps = data["many"] - data["few"]
    for x in ("cpu", "wall"):
        data[x] = steps / (data[f"{x}_many"] - data[f"{x}_few"])
        data[f"{x}_start"] = data[f"{x}_few"] - data["few"] / data[x]
    rows = []
    for (task, program), mine in data.groupby(["task", "program"], sort=False):
        row = {"task": task, "program": program, "rounds": len(mine)}
        row |= {"steps_per_cpu_second": mine["cpu"].median(), "start_up_seconds": mine["cpu_start"].median()}
        mine = mine.set_index("round")["cpu"]
        for name, other in (("before", f"before.{program}".replace(".compile", "")), ("ppo_vanilla", "ppo_vanilla")):
            theirs = data[(data["task"] == task) & (data["program"] == other)].set_index("round")["cpu"]
            row[f"times_{name}"] = (mine / theirs).dropna().median()
        rows.append(row)
    table = pd.DataFrame(rows)
    # The frozen phase learns anew from all episodes so far, so a later step takes longer and start-up cannot be told
    table.loc[table["task"].isin(HELD), "start_up_seconds"] = float("nan")
    # From how many steps on a run takes less time than PPO's in eager mode, start-up included
    ours = table[table["program"] == "ppo_vanilla"].set_index("task").reindex(table["task"]).reset_index()
    wait = table["start_up_seconds"] - ours["start_up_seconds"]
    saved = (1 - 1 / table["times_ppo_vanilla"]) / ours["steps_per_cpu_second"]  # load does not move a ratio
    table["faster_from"] = (wait / saved).where((table["times_ppo_vanilla"] > 1.1) & (wait > 0))
    table.to_csv(path.with_name("table.csv"), index=False, float_format="%.4g")
    heads = ["task", "program", "rounds", "steps per CPU second", "start-up, CPU s", "times before", "times PPO"]
    heads.append("faster than PPO from")
    lines = [heads, ["---"] * len(heads)]
    for row in table[~table["program"].str.startswith("before.")].itertuples(index=False):
        numbers = [
            f"{row[3]:,.0f}",
            *("" if pd.isna(x) else f"{x:.{n}f}" for x, n in zip(row[4:7], (1, 2, 2), strict=True)),
        ]
        numbers.append("" if pd.isna(row.faster_from) else f"{row.faster_from:,.0f} steps")
        lines.append([row.task, f"`{row.program}`", str(row.rounds), *numbers])
    path.with_name("table.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder, "before")
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", before, args.commit], check=True)
        try:
            made = commands(args, before, Path(folder, "runs"))
            named = {"tasks": {task for task, _ in made}, "programs": {program for _, program in made}}
            for what, known in named.items():
                if unknown := set(getattr(args, what)) - known:
                    print(
                        f"error: --{what}: {', '.join(unknown)} is none of {', '.join(sorted(known))}", file=sys.stderr
                    )
                    sys.exit(2)
            first = pd.read_csv(args.out)["round"].max() + 1 if args.out.exists() else 0
            for index in range(first, first + args.rounds):
                for (task, program), command in made.items():
                    if task not in args.tasks or (args.programs and program not in args.programs):
                        continue
                    few, many = (TASKS | HELD)[task][1:]
                    many *= 10 if program == "rejax" else 1  # it is so fast that its compilation would hide the steps
                    try:
                        if index == first and program.endswith(".compile"):
                            measure(command(few))  # fills the compiler's cache
                        measured = [measure(command(n)) for n in (few, many)]
                    except (RuntimeError, OSError) as error:
                        print(f"{task} {program}: {error}", file=sys.stderr)
                        continue
                    row = {"task": task, "program": program, "round": index, "few": few, "many": many}
                    for name, (short, long) in zip(("cpu", "wall"), zip(*measured, strict=True), strict=True):
                        row |= {f"{name}_few": round(short, 3), f"{name}_many": round(long, 3)}
                    print(row)
                    new = not args.out.exists()
                    with open(args.out, "a", newline="") as file:
                        writer = csv.DictWriter(file, row)
                        if new:
                            writer.writeheader()
                        writer.writerow(row)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", before], check=True)
    summarize(args.out)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
