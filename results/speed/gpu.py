"""What --cuda gains: every script on a GPU and on one thread of the CPU -> gpu.csv, gpu_table.csv.

    python results/speed/gpu.py                     # about twenty minutes

A process on each device works at a time. As in measure.py, steps a second are the difference in steps over the
difference in wall-clock time between a long run and a short one, so start-up does not count. A further call adds
rounds to gpu.csv.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import measure
import pandas as pd
import torch
import tyro

HERE = Path(__file__).resolve().parent
SEAQUEST = "--env-id results.minatar.envs:MinAtar/Seaquest-v1 --reward-scale 1 --num-envs 16 --num-steps 128"
SEAQUEST += " --segment-length 1 --num-minibatches 8"
TASKS = {"umbrella": ("", 10_000, 60_000), "hopper": (measure.HOPPER, 2_048, 10_240)}  # options, few steps, many
TASKS |= {"seaquest": (SEAQUEST, 8_192, 131_072)}  # the largest observations of a study: 1,000 numbers
SCRIPTS = ("ppo_vanilla", "ppo_lirpg", "ppo_metairn", "ppo_cln")


@dataclass
class Args:
    rounds: int = 2  # how often each is measured


def timed(device, task, script, options, few, many, runs):
    """-> a row of gpu.csv"""
    flags = f"{options} {measure.NO_EVALUATION} --runs-dir {runs}/{device}"
    flags += " --cuda" if device == "cuda" else ""
    if script == "ppo_metairn":
        flags += " --held-steps {}" if task in measure.HELD else " --held-steps 0"
    command = measure.ours(measure.ROOT / f"{script}.py", flags)
    row = {"task": task, "script": script, "device": device, "gpu": torch.cuda.get_device_name()}
    row |= {"few": few, "many": many}
    for name in ("few", "many"):
        row[f"seconds_{name}"] = round(measure.measure(command(row[name]))[1], 3)
    print(row)
    return row


def summarize(rows):
    """Medians over the rounds -> gpu_table.csv"""
    rows["sps"] = (rows["many"] - rows["few"]) / (rows["seconds_many"] - rows["seconds_few"])
    rows = rows.pivot(index=["task", "script", "round"], columns="device", values="sps")
    rows = rows.assign(ratio=rows["cuda"] / rows["cpu"]).groupby(["task", "script"]).median()
    rows.columns = ["cpu_steps_per_second", "gpu_steps_per_second", "gpu_over_cpu"]
    rows.round(dict(zip(rows, (0, 0, 2), strict=True))).to_csv(HERE / "gpu_table.csv")


def main(args):
    if not torch.cuda.is_available():
        print("error: no CUDA device is available", file=sys.stderr)
        sys.exit(2)
    todo = [(task, script, *sizes) for task, sizes in TASKS.items() for script in SCRIPTS]
    todo += [(task, "ppo_metairn", *sizes) for task, sizes in measure.HELD.items()]
    path = HERE / "gpu.csv"
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame()
    for _ in range(args.rounds):
        index = rows["round"].max() + 1 if len(rows) else 0
        with TemporaryDirectory() as runs, ThreadPoolExecutor(2) as lanes:
            done = lanes.map(lambda device, runs=runs: [timed(device, *x, runs) for x in todo], ("cpu", "cuda"))
            new = [row | {"round": index} for pair in zip(*done, strict=True) for row in pair]
        rows = pd.concat([rows, pd.DataFrame(new)])
        rows.to_csv(path, index=False)
        summarize(rows.copy())


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
