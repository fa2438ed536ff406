"""Tables, figures and pages of benchmarks; from run folders, or from the CSV files that an earlier call wrote.

    python plot_results.py --runs runs/study --out results/study    # collects the runs; then the table and the figure
    python plot_results.py --out results/study                      # table and figure again, from the CSV files
    python plot_results.py --pages                                  # all tables in results/, and the pages made of them

An arm is what study.txt calls so: a method with its options. With --runs, OUT gets what the finished runs hold. A
run replaces the one of its arm, length and seed. If its options have changed, all runs of that arm and length go.
The others stay. OUT holds:
    evaluations.csv.gz  every evaluation of every run, a row each
    settings.json       the options of each arm; by length where they differ
    invocations.csv     what benchmark.sh wrote of commit, processor and time; `arms` says of which arms
    left_out.csv        runs that are missing, unfinished or not finite, and why; only if there are any
Then, from these: table.csv and table.md, and a figure, steps_to_95.png (Umbrella, several lengths) or learning.png.

Return over training is the mean height of the lines that join a run's evaluations, however many these are; the last one
holds to the last of any arm. Final return is the mean of the last 3. Point estimates are interquartile means (IQM),
intervals 95 % percentile intervals of a bootstrap over runs, stratified by length, with a fixed seed: Agarwal et al.,
"Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021. Their last decimal is above the
bootstrap's Monte Carlo error and a thousandth of the interval, and the second at most. PPO is the first arm of `ppo`,
`ppo.hand`, `ppo.tpe`, `delayed`. The gap is that between it and `oracle` or `dense`. An arm closes (IQM - low IQM) /
(high IQM - low IQM) of it. If the upper end's interval is not above the lower's, there is no gap.
"""

import gzip
import io
import json
import os
import re
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

ROOT = Path(__file__).parent
UMBRELLA = "umbrella_env:"  # environments whose optimum is known, and what success is
BLUE, SKY, GREEN, BLACK = "#0072B2", "#56B4E9", "#009E73", "#000000"  # Okabe and Ito's, for all readers
RED, ORANGE, PINK, GREY = "#D55E00", "#E69F00", "#CC79A7", "#777777"
ARMS = {  # full name, colour, marker, line: the same in all figures, and in this order; related arms share a colour
    "ppo": ("PPO", BLUE, "o", "-"),
    "ppo.hand": ("PPO, tuned by hand", BLUE, "o", "-"),
    "ppo.tpe": ("PPO, tuned by TPE", BLUE, "s", "--"),
    "delayed": ("PPO", BLUE, "o", "-"),
    "tuned": ("PPO, tuned for the delay", BLUE, "^", "--"),
    "tuned.halfcheetah": ("PPO, tuned for the delay", BLUE, ">", "--"),
    "same": ("PPO with LIRPG's settings", BLUE, "v", ":"),
    "bonus": ("PPO, constant bonus", BLUE, "<", "-."),
    "norm": ("PPO, layer norm", SKY, "s", "--"),
    "constant": ("PPO, CLN's layer", SKY, "v", ":"),
    "regression": ("return decomposition", SKY, "P", "-"),
    "cln": ("CLN", ORANGE, "D", "-"),
    "noise": ("CLN without eq. 15", ORANGE, "d", ":"),
    "terms.15.10.11": ("CLN, eq. 15 + 10 + 11", RED, "s", "--"),
    "terms.11": ("CLN, eq. 11 instead of 15", PINK, "v", "-."),
    "lirpg": ("LIRPG", PINK, "P", "-"),
    "lirpg.alone": ("LIRPG, its reward alone", PINK, "p", ":"),
    "lirpg.added": ("LIRPG, its reward added", PINK, "p", "--"),
    "attention": ("MetaIRN as published", ORANGE, "X", "-"),
    "metairn": ("MetaIRN", RED, "D", "-"),
    "metairn.defaults": ("MetaIRN, not tuned", RED, "d", "--"),
    "shuffled": ("MetaIRN, rewards shuffled", RED, "h", ":"),
    "untrained": ("MetaIRN, untrained", GREY, "v", "-"),
    "carried": ("credit from another task", GREEN, "^", "-"),
    "carried.ppo": ("credit from another task, PPO tuned", GREEN, "<", "--"),
    "supervised": ("credit by regression", SKY, ">", "-."),
    "oracle": ("perfect credit", BLACK, "*", "-"),
    "window": ("credit set by hand", BLACK, "x", "-."),
    "dense": ("PPO, rewards not delayed", BLACK, "*", "-"),
    "dense.tuned": ("rewards not delayed, PPO tuned for it", BLACK, "+", "--"),
    "teacher": ("teacher", SKY, "1", ":"),
}
BASES = "ppo", "ppo.hand", "ppo.tpe", "delayed"  # what is PPO in a study: the first that it has
RESAMPLES, CURVE_RESAMPLES = 20_000, 1_000
SOLVED, LAST = 0.95, 3  # success rate; evaluations in the final return: one alone is noisy
RUN, MEASURES = ["arm", "length", "seed"], ["eval_return", "eval_success", "evidence", "intrinsic_used", "rho"]
TEXT = {"arm": str}  # as converters: an arm's name may look like a number, 1e-3, or like none, NA
DIFFER = {"exp_name", "seed", "chain_length", "runs_dir", "resume", "evaluate", "cuda", "track"}


@dataclass
class Args:
    runs: str | None = None  # directory with run folders; without it, the CSV files in OUT are read
    out: str | None = None  # directory of the CSV files, the table and the figure
    pages: bool = False  # write the tables and pages of results/ again, and what README.md shows of them


def fail(message):
    """Ends the program over something the user can mend: one line, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def write(path, data):
    """Writes text, or a table as CSV, to `path`, which is at any moment whole: old or new."""
    data = data if isinstance(data, str) else data.to_csv(index=False, float_format="%.12g")
    data = gzip.compress(data.encode(), mtime=0) if path.suffix == ".gz" else data.encode()  # the same bytes each time
    path.with_name(f".{path.name}").write_bytes(data)
    os.replace(path.with_name(f".{path.name}"), path)


def read_run(folder, args):
    """Evaluations of a run folder, one row each; an exception says why it cannot be used."""
    progress = pd.read_csv(folder / "progress.csv")
    step, batch = progress["global_step"].iloc[-1], args["num_envs"] * args["num_steps"]
    if step != args["total_timesteps"] // batch * batch:
        raise ValueError(f"unfinished: stopped at step {step} of {args['total_timesteps']}")
    if not np.isfinite(progress[MEASURES[: 1 + args["env_id"].startswith(UMBRELLA)]]).all(axis=None):
        raise ValueError("an evaluation is not finite")
    if args["chain_length"] and (folder / "intrinsic.npz").exists():  # 0: episodes of no fixed length
        weight = np.load(folder / "intrinsic.npz")["first_step_attention"][-1, args["chain_length"] - 1]
        progress.loc[progress.index[-1], "first_to_last"] = float(f"{weight:.3g}")
    progress = progress[progress.columns.intersection(["global_step", *MEASURES, "first_to_last"])]
    return progress.replace(-np.inf, np.nan).round(dict.fromkeys(MEASURES, 4))


def collect(runs):
    """Evaluations, settings and left-out runs of the run folders in `runs`, and of those that benchmark.sh planned"""
    evaluations, left_out, settings, found = [], {}, {}, set()
    for folder in sorted(path.parent for path in Path(runs).glob("*/args.json")):
        try:
            args = json.loads((folder / "args.json").read_text())
            run = args["exp_name"], args["chain_length"], args["seed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"{folder}/args.json cannot be read: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if run in found:
            fail(f"{folder}: there is another run with arm, length and seed {run} in {runs}: plot them apart")
        found.add(run)
        try:
            progress = read_run(folder, args)
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
            left_out[run] = str(error).replace(f"{folder}/", "")
        else:
            same = {name: value for name, value in args.items() if name not in DIFFER}
            other_folder, other = settings.setdefault(run[:2], (folder, same))
            for name in sorted(same.keys() | other.keys()):
                if (x := same.get(name)) != (y := other.get(name)):
                    fail(f"{folder} and {other_folder} differ in {name} ({x}, {y}): plot them apart")
            evaluations.append(progress.assign(**dict(zip(RUN, run, strict=True))))
    planned = Path(runs, "planned").read_text().splitlines() if Path(runs, "planned").exists() else []
    for name, length, seed in sorted({tuple(line.split()) for line in planned if len(line.split()) == 3}):
        if (run := (name, int(length), int(seed))) not in found:
            left_out[run] = "missing: there is no readable run folder"
    if not evaluations:
        fail(f"there is no finished run in {runs}" + "".join(f"; {run}: {why}" for run, why in left_out.items()))
    for (arm, length, seed), why in left_out.items():
        print(f"left out: {arm}, L = {length}, seed {seed}: {why}", file=sys.stderr)
    left_out = pd.DataFrame([(*run, why) for run, why in left_out.items()], columns=[*RUN, "reason"])
    return pd.concat(evaluations), {cell: same for cell, (_, same) in settings.items()}, left_out


def merge(settings):
    """{(arm, length): {option: value}} -> {arm: {option: value, or {length: value} where they differ}}"""
    merged = {}
    for arm, _ in (settings := dict(sorted(settings.items()))):
        lengths = {str(length): same for (a, length), same in settings.items() if a == arm}
        merged[arm] = {name: value for same in lengths.values() for name, value in same.items()}
        for name, value in merged[arm].items():
            if any(same.get(name) != value for same in lengths.values()):
                merged[arm][name] = {length: same.get(name) for length, same in lengths.items()}
    return merged


def by_cell(evaluations, settings, name):
    """{(length, arm): value of the option}"""
    cells = evaluations[["length", "arm"]].drop_duplicates().sort_values(["length", "arm"]).to_numpy().tolist()
    values = {(length, arm): settings[arm].get(name) for length, arm in cells}
    return {cell: x.get(str(cell[0])) if isinstance(x, dict) else x for cell, x in values.items()}


def store(runs, out):
    """Collects `runs` into the files of `out`. What is replaced there, and what stays: see the top of this file."""
    evaluations, settings, left_out = collect(runs)
    tables = {"evaluations.csv.gz": evaluations, "left_out.csv": left_out}
    if Path(runs, "invocations.csv").exists():
        table = read_table(Path(runs, "invocations.csv"))
        tables["invocations.csv"] = table.assign(arms=" ".join(sorted({arm for arm, _ in settings})))
    if (out / "evaluations.csv.gz").exists():
        had, ran = read_settings(out), pd.MultiIndex.from_frame(evaluations[RUN])
        old = {name: read_table(out / name) for name in tables if (out / name).exists()}
        was = {(arm, n): {} for arm, n in old["evaluations.csv.gz"][RUN[:2]].drop_duplicates().to_numpy().tolist()}
        for (arm, n), options in was.items():
            options |= {x: y.get(str(n)) if isinstance(y, dict) else y for x, y in had[arm].items()}
        # An option that either of the two does not have is of another version, and changes nothing
        changed = [cell for cell in was if any(was[cell].get(x, y) != y for x, y in settings.get(cell, {}).items())]
        for name in old.keys() - {"invocations.csv"}:
            gone = [pd.MultiIndex.from_frame(old[name][x]).isin(y) for x, y in ((RUN[:2], changed), (RUN, ran))]
            old[name] = old[name][~np.any(gone, axis=0)]
        if "invocations.csv" in old:
            table, stay = old["invocations.csv"], set(old["evaluations.csv.gz"]["arm"])
            table["arms"] = [" ".join(arm for arm in arms.split() if arm in stay) for arms in table["arms"]]
            old["invocations.csv"] = table[table["arms"] != ""]
        tables |= {name: pd.concat([table, tables[name]]) for name, table in old.items()}
        settings, left_out = was | settings, tables["left_out.csv"].drop_duplicates(RUN, keep="last")
        ran = pd.MultiIndex.from_frame(tables["evaluations.csv.gz"][RUN])
        tables["left_out.csv"] = left_out[~pd.MultiIndex.from_frame(left_out[RUN]).isin(ran)]
    evaluations, settings = tables["evaluations.csv.gz"].dropna(axis=1, how="all"), merge(settings)
    envs = by_cell(evaluations, settings, "env_id")
    for (length, arm), env in envs.items():  # of one task, but where each arm is named after its own
        if any(env != x and (length == n or arm == a) and not env.endswith(arm) for (n, a), x in envs.items()):
            fail(f"{runs} and {out}: arms of one length, or one arm, differ in env_id ({envs}): plot them apart")
    order = [name for name in [*RUN, "global_step", *MEASURES, "first_to_last"] if name in evaluations]
    tables["evaluations.csv.gz"] = evaluations[order].sort_values(order[:4])
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(out / "settings.json", json.dumps(dict(sorted(settings.items())), indent=2) + "\n")
        for name, table in tables.items():
            write(out / name, table) if len(table) else (out / name).unlink(missing_ok=True)
    except OSError as error:
        fail(f"--out {out} cannot be written: {error.strerror}")


def read_table(path):
    """A CSV file that this program wrote. Fails if it cannot be read."""
    kinds = {"dtype": str} if path.name == "invocations.csv" else {"converters": TEXT}  # 9048e84 is a commit
    try:
        return pd.read_csv(path, float_precision="round_trip", **kinds)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        fail(f"{path} is not what an earlier call collected ({error}); collect runs with --runs RUNS_DIR")


def read_settings(out):
    try:
        return json.loads((out / "settings.json").read_text())
    except (OSError, ValueError) as error:
        fail(f"{out} does not hold what an earlier call collected ({error}); collect runs with --runs RUNS_DIR")


def load(out):
    """Evaluations up to the smallest budget of all arms of a length; what to say of that; left-out runs; the task"""
    settings, evaluations = read_settings(out), read_table(out / "evaluations.csv.gz")
    left_out = read_table(path) if (path := out / "left_out.csv").exists() else pd.DataFrame(columns=RUN)
    budgets, said = by_cell(evaluations, settings, "total_timesteps"), []
    least = {length: min(x for (n, _), x in budgets.items() if n == length) for length, _ in budgets}
    for (length, arm), budget in budgets.items():
        if budget > (n := least[length]):
            said.append(
                f"`{arm}`, L = {length}: of its {budget:,} steps the first {n:,} count, as many as others have."
            )
    evaluations = evaluations[evaluations["global_step"] <= evaluations["length"].map(least)]
    return evaluations, said, left_out, next(iter(settings.values()))["env_id"]


def iqm(scores):
    """scores [runs, ...] -> interquartile mean over runs [...]; as rliable.metrics.aggregate_iqm"""
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut : len(scores) - cut].mean(0)


def draw(arm, *size):
    """The runs [resamples, runs, tasks] that a bootstrap draws anew for each task; each arm has a stream of its own"""
    return np.random.default_rng(zlib.crc32(arm.encode())).integers(size[1], size=size)


def interval(estimate, samples, runs):
    """Estimate and its bootstrap samples -> with the ends of its 95 % interval, and the decimals that these have"""
    samples = samples[np.isfinite(samples)]
    row = {"": estimate, "_low": np.nan, "_high": np.nan, "_digits": 2, "_runs": runs}
    if runs > 1 and len(samples):
        step = min(0.02, np.sqrt(0.025 * 0.975 / len(samples)))
        low, high, *around = np.quantile(samples, np.add.outer([0, -step, step], [0.025, 0.975]).ravel())
        # An end's error is that of its rank: half the distance of the samples one standard error below and above
        error = max((around[2] - around[0]) / 2, (around[3] - around[1]) / 2, (high - low) / 1_000)
        digits = np.clip(np.ceil(-np.log10(error)) - 1, -3, 2) if error > 0 else 2
        row |= {"_low": low, "_high": high, "_digits": int(digits)}
    return row


def times_drawn(drawn):
    """drawn [B, runs, tasks] -> how often each resample holds each run [tasks, B, runs]; single precision is exact"""
    size, runs, tasks = drawn.shape
    cells = np.arange(size)[:, None, None] + size * np.arange(tasks)  # [B, 1, tasks]
    return np.bincount((cells * runs + drawn).ravel(), minlength=drawn.size).reshape(tasks, size, runs).astype("f4")


def probability_of_improvement(x, y, times_x, times_y):
    """scores x [n, tasks], y [m, tasks] -> probability that x beats y, ties count half, mean over tasks; samples"""
    wins = ((x[:, None] > y) + (x[:, None] == y) / 2).transpose(2, 0, 1).astype("f4")  # [tasks, n, m]
    return wins.mean(dtype=float), ((times_x @ wins) * times_y).sum((0, 2), dtype=float) / wins.size


def compare(scores, base, top):
    """{arm: scores [runs, tasks]} -> {arm: its IQM; P(better than base); share of the gap to top}, with intervals"""
    drawn = {arm: draw(arm, RESAMPLES, *x.shape) for arm, x in scores.items()}
    samples = {arm: iqm(x[drawn[arm], np.arange(x.shape[1])].reshape(RESAMPLES, -1).T) for arm, x in scores.items()}
    points, runs = {arm: iqm(x.ravel()) for arm, x in scores.items()}, {arm: len(x) for arm, x in scores.items()}
    times = {arm: times_drawn(x) for arm, x in drawn.items()}
    rows = {arm: interval(points[arm], samples[arm], runs[arm]) for arm in scores}
    gap = {base, top} <= scores.keys() and rows[top]["_low"] > rows[base]["_high"]
    for arm, row in rows.items():
        compared = {}
        if base in scores and arm != base:
            better = probability_of_improvement(scores[arm], scores[base], times[arm], times[base])
            compared["_better"] = interval(*better, min(runs[arm], runs[base]))
        if gap and arm not in (base, top):
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = [(x[arm] - x[base]) / (x[top] - x[base]) for x in (points, samples)]
            compared["_closed"] = interval(*shares, min(runs[arm], runs[base], runs[top]))
        elif {base, top} <= scores.keys() and np.isfinite([rows[top]["_low"], rows[base]["_high"]]).all():
            row["_no_gap"] = int(not gap)
        row |= {name + end: value for name, values in compared.items() for end, value in values.items()}
    return rows


def quartiles(steps):
    """Values of runs, not means of two: an unsolved run, later than all others, has no number to average with"""
    return np.quantile(steps, [0.25, 0.5, 0.75], method="inverted_cdf")


def mean_height(curve, end):
    """Of the lines that join a run's evaluations, from the first to step `end`; the last one holds"""
    steps, heights = [*curve["global_step"], end], [*curve["eval_return"], curve["eval_return"].iloc[-1]]
    return np.trapezoid(heights, steps) / (end - steps[0])


def measure_runs(evaluations, known):
    """All evaluations -> table with a row for each run"""
    last, later = evaluations.groupby(RUN).last(), evaluations[evaluations["global_step"] > 0].groupby(RUN)
    columns = {"final_return": later["eval_return"].apply(lambda x: x.tail(LAST).mean())}
    ends = evaluations.groupby("length")["global_step"].max()  # of any arm: rollouts of other sizes end elsewhere
    curves = evaluations.groupby(RUN)[["global_step", "eval_return"]]
    columns["mean_return"] = curves.apply(lambda curve: mean_height(curve, ends[curve.name[1]]))
    if known:
        first = evaluations[evaluations["eval_success"] >= SOLVED].groupby(RUN)["global_step"].min()
        columns |= {"steps_to_95": first.reindex(last.index).fillna(np.inf), "final_success": last["eval_success"]}
    if "intrinsic_used" in last:  # the policy is fixed until this is known
        columns["held_steps"] = evaluations[evaluations["intrinsic_used"].notna()].groupby(RUN)["global_step"].min()
    columns |= {"evidence": later["evidence"].max()} if "evidence" in last else {}
    columns |= {"rho": later["rho"].mean()} if "rho" in last else {}
    columns |= {name: last[name] for name in last.columns.intersection(["intrinsic_used", "first_to_last"])}
    return pd.DataFrame(columns).reset_index()


def shared_lengths(runs):
    """Those that more than one arm has, not a teacher alone; if there are none, all"""
    having = runs.groupby("length")["arm"].nunique()
    return sorted(having.index[having > 1]) or sorted(having.index)


def summarize(runs, left_out, known):
    """Table by run -> table with a row for each length and arm, and for each arm over all lengths"""
    base, top = next((x for x in BASES if x in set(runs["arm"])), ""), "oracle" if known else "dense"
    parts, rows = {length: part for length, part in runs.groupby("length")}, []
    if known and len(lengths := shared_lengths(runs)) > 1:
        parts["all"] = runs[runs["length"].isin(lengths)]
    for length, part in parts.items():
        found = {}
        for name in ["mean_return"] if known else ["final_return", "mean_return"]:
            tables = {arm: x.pivot(index="seed", columns="length", values=name) for arm, x in part.groupby("arm")}
            scores = {arm: tables[arm].dropna().to_numpy() for arm in in_order(tables)}  # only seeds of all lengths
            scores = {arm: x for arm, x in scores.items() if len(x) and x.shape[1] == part["length"].nunique()}
            for arm, row in compare(scores, base, top).items():
                found.setdefault(arm, {}).update({name + end: value for end, value in row.items()})
        for arm, row in found.items():
            x, first = part[part["arm"] == arm], {"arm": arm, "length": length, "runs": row["mean_return_runs"]}
            if length != "all":
                first["runs_expected"] = len(x) + (left_out[RUN[:2]] == [arm, length]).all(axis=1).sum()
                if known:
                    steps = [*quartiles(x["steps_to_95"]), x["steps_to_95"].max()]
                    first |= {f"steps_to_95_{q}": y for q, y in zip(["q1", "median", "q3", "max"], steps, strict=True)}
                    first["solved_at_end"] = (x["final_success"] >= SOLVED).sum()
                    first["solved_ever"] = np.isfinite(x["steps_to_95"]).sum()
                x = x.dropna(axis=1, how="all")
                first |= {"used": (x["intrinsic_used"] == 1).sum()} if "intrinsic_used" in x else {}
                for name in x.columns.intersection(["final_success", "held_steps", "evidence", "first_to_last", "rho"]):
                    first |= {f"{name}_{what}": getattr(x[name], what)() for what in ("min", "median", "max")}
            rows.append(first | row)
    return pd.DataFrame(rows)


def in_order(arms):
    return sorted(arms, key=lambda arm: (list(ARMS).index(arm) if arm in ARMS else len(ARMS), arm))


def markdown(rows):
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def fixed(x, decimals=0):
    return "never" if x == np.inf else f"{round(float(x), decimals) + 0.0:,.{max(decimals, 0)}f}"  # + 0.0: no -0.00


def interval_text(row, name):
    """`name` of a table's row with its interval, or with its quartiles; and the number of runs where these are few"""
    if name == "steps_to_95":
        value, low, high, runs = *(fixed(row[f"{name}_{q}"]) for q in ("median", "q1", "q3")), row["runs"]
    elif pd.isna(row.get(name)):
        return "no gap" if row.get(name.replace("_closed", "_no_gap")) == 1 else ""
    else:
        value, low, high = (fixed(row[name + end], int(row[f"{name}_digits"])) for end in ("", "_low", "_high"))
        runs = row[f"{name}_runs"]
    return f"{value} of 1 run" if runs == 1 else f"{value} [{low}, {high}]{' of 2 runs' if runs == 2 else ''}"


def tables(evaluations, said, left_out, env_id):
    """{file name: text} of the table"""
    known = env_id.startswith(UMBRELLA)
    table, rows = summarize(measure_runs(evaluations, known), left_out, known), []
    table = table.to_csv(index=False, float_format="%.6g")
    for row in pd.read_csv(io.StringIO(table), dtype=TEXT).to_dict("records"):
        of_all, arm = row["length"] == "all", row["arm"]
        cells = {"L": row["length"]} if known else {}
        cells[""] = f"{ARMS[arm][0]} (`{arm}`)" if arm in ARMS else f"`{arm}`"
        cells["runs"] = row["runs"] if of_all else f"{row['runs']}/{row['runs_expected']:.0f}"
        if known:
            cells["solved at the end"] = "" if of_all else f"{row['solved_at_end']:.0f}"
            cells["steps to 95 %: median [quartiles]"] = "" if of_all else interval_text(row, "steps_to_95")
        for name, what in {"final_return": "final return", "mean_return": "return over training"}.items():
            cells[f"{what}, IQM [95 % CI]"] = interval_text(row, name)
            cells[f"{what}: P(> PPO)"] = interval_text(row, f"{name}_better")
            cells[f"{what}: gap closed"] = interval_text(row, f"{name}_closed")
        cells["learned reward used"] = f"{row['used']:.0f}/{row['runs']}" if row.get("used", -1) >= 0 else ""
        rows.append(cells)
    shown = [name for name in rows[0] if name == "" or any(row[name] != "" for row in rows)]
    for (length, arm), number in left_out.groupby(["length", "arm"]).size().items():
        said = [*said, f"`{arm}`, L = {length}: {number} left out, for the reasons in `left_out.csv`."]
    text = markdown([shown, *([row[name] for name in shown] for row in rows)]) + "".join(f"\n{x}\n" for x in said)
    return {"table.csv": table, "table.md": text}


def plot(title, xlabel, ylabel, lines, **look):
    """A figure of lines with bands, {arm: (x, [y, low, high])}; arms without a name of their own differ as well"""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")  # not by pyplot, which would keep it
    axis = figure.subplots()
    for arm, (x, (y, low, high)) in lines.items():
        i = [*(a for a in lines if a not in ARMS), arm].index(arm)
        other = arm, [SKY, ORANGE, GREEN, PINK, GREY][i % 5], "ov^sD<>"[i % 7], ["-", "--", ":"][i % 3]
        name, color, marker, line = ARMS.get(arm, other)
        axis.fill_between(x, low, high, color=color, alpha=0.1, linewidth=0)
        width = 1.5 if axis.lines else 4  # where two lines coincide, both are seen
        axis.plot(x, y, color=color, marker=marker, linestyle=line, linewidth=width, label=name, **look)
    handles = sorted(axis.lines, key=lambda line: -line.get_ydata()[-1])  # in the order in which they end
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    return figure, axis


def plot_steps_to_95(runs):
    """Medians and quartiles against length; what never gets there is an open marker at the top edge"""
    top, lines = 2 * (runs["steps_to_95"].replace(np.inf, 0).max() or 1_000), {}
    for arm in in_order(runs["arm"].unique()):
        groups = runs[runs["arm"] == arm].groupby("length")["steps_to_95"]
        q1, median, q3 = np.stack([quartiles(steps) for _, steps in groups]).clip(1, top).T
        lines[arm] = np.array([*groups.groups]), (median, q1, q3)
    figure, axis = plot("Steps to 95 % success: median, quartiles", "episode length L", "environment steps", lines)
    for line in [*axis.lines]:
        x, y = line.get_data()
        axis.plot(x[y == top], y[y == top], line.get_marker(), color=line.get_color(), markerfacecolor="white")
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(*[sorted(runs["length"].unique())] * 2)
    ticks = np.outer(10.0 ** np.arange(8), [1, 2, 5]).ravel()
    axis.set_yticks(ticks[(ticks >= axis.get_ylim()[0]) & (ticks < top / 1.2)])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.text(-0.01, top, "never", transform=axis.get_yaxis_transform(), ha="right", va="center")
    return figure


def plot_learning(evaluations, env_id):
    """IQM over runs of success or return, and its interval, against steps"""
    known, lines = env_id.startswith(UMBRELLA), {}
    for arm in in_order(set(evaluations["arm"])):
        runs = evaluations[evaluations["arm"] == arm]
        table = runs.pivot(index="global_step", columns="seed", values="eval_success" if known else "eval_return")
        if table.isna().any(axis=None):
            fail(f"runs of {arm} were evaluated at different steps: plot them apart")
        x = table.to_numpy().T  # [runs, E]
        samples = iqm(x[draw(arm, CURVE_RESAMPLES, len(x)).T])  # [B, E] of [runs, B, E]
        lines[arm] = table.index / 1000, (iqm(x), *np.quantile(samples, [0.025, 0.975], axis=0))
    labels = "environment steps [thousands]", f"{'success rate' if known else 'return'} (IQM, 95 % CI)"
    return plot(env_id.split(":")[-1], *labels, lines, markersize=4, markevery=0.12)[0]


def row_of(path, **where):
    """The one row of a CSV file in results/ in which these columns have these values"""
    table = pd.read_csv(ROOT / "results" / path, converters=TEXT)
    table = table[(table[[*where]].astype(str) == [*map(str, where.values())]).all(axis=1)]
    assert len(table) == 1, f"{path}: {len(table)} rows with {where}"
    return table.iloc[0]


def better(tasks, arm, other=None, name="mean_return", length=0, after=0):
    """The probability that a run of `arm` is better than one of `other`, with its interval

    tasks: the folder of a study; or a list of (folder, other, episode length), of the tasks whose mean it is.
    after: the seeds are larger than this.
    """
    tasks = [(tasks, other, length)] if isinstance(tasks, str) else tasks
    scores = {arm: [], (other := tasks[0][1]): []}
    for folder, *arms, length in tasks:
        evaluations, _, _, env_id = load(ROOT / "results" / folder)
        evaluations = evaluations[(evaluations["length"] == length) & (evaluations["seed"] > after)]
        runs = measure_runs(evaluations, env_id.startswith(UMBRELLA))
        for columns, x in zip(scores.values(), (arm, *arms), strict=True):
            columns.append(runs[runs["arm"] == x][name].to_numpy())
    scores = {x: np.stack(columns, axis=1) for x, columns in scores.items()}
    return interval_text(compare(scores, other, None)[arm], "_better")


def at_random(folder, family, arm):
    """Of the first ten trials of a tuning, whose settings all arms share: mean value, how often it is above PPO's"""
    trials = pd.read_csv(ROOT / "results" / folder / "trials.csv", converters=TEXT)
    trials = trials[(trials["family"] == family) & (trials["number"] < 10)]
    values, rates = (trials.pivot(index="number", columns="arm", values=x) for x in ("value_at_rung", "learning_rate"))
    assert rates[arm].tolist() == rates["ppo"].tolist(), f"{folder}: {family}, {arm} and ppo began with other settings"
    return {"value": values[arm].mean(), "ahead": (values[arm] > values["ppo"]).sum()}


def study(*folders):
    """Where and for how long a study ran, in a line; of all its folders"""
    table = pd.concat([pd.read_csv(ROOT / "results" / x / "invocations.csv", dtype=str) for x in folders])
    commits = ", ".join(table["commit"].str.replace("-dirty", " with changes").unique())
    packages = [x for x in ("cpu", "torch", "numpy", "gymnasium", "mujoco") if x in table and table[x].notna().any()]
    used = [f"{x} {' or '.join(table[x].dropna().unique())}".removeprefix("cpu ") for x in packages]
    hours, workers = table["seconds"].astype(float).sum() / 3600, " or ".join(sorted(table["workers"].unique()))
    return f"Commits {commits}; {'; '.join(used)}; {workers} runs at a time, {hours:.1f} hours in all."


def render():
    """{path: text} of the pages: templates/NAME.md is results/NAME.md, unless NAME begins with _; parts of README.md"""
    import jinja2

    results, options = ROOT / "results", {"undefined": jinja2.StrictUndefined, "keep_trailing_newline": True}
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(results / "templates"), **options)
    templates.filters |= {"steps": fixed, "fixed": fixed}
    templates.globals |= {"cell": lambda path, column, **where: row_of(path, **where)[column]}
    templates.globals |= {"study": study, "better": better, "at_random": at_random}
    templates.globals |= {"interval": lambda path, name, **where: interval_text(row_of(path, **where), name)}
    templates.globals |= {"table": lambda x: (results / x / "table.md").read_text().rstrip("\n")}
    templates.globals |= {"answers": lambda: templates.get_template("_answers.md").render().rstrip("\n")}
    texts = {name: templates.get_template(name).render() for name in templates.list_templates(["md"])}
    mark = re.compile(r"(<!-- results/templates/(\S+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)
    readme = mark.sub(lambda x: f"{x[1]}{texts[x[2]].rstrip()}\n{x[3]}", (ROOT / "README.md").read_text())
    return {results / name: text for name, text in texts.items() if name[0] != "_"} | {ROOT / "README.md": readme}


def main(args):
    if bool(args.pages) == bool(args.out) or (args.pages and args.runs):
        fail("give --out FOLDER, for CSV files, table and figure, with or without --runs; or --pages, and nothing else")
    if args.runs:
        store(args.runs, Path(args.out))
    for path in sorted((ROOT / "results").rglob("settings.json")) if args.pages else [Path(args.out, "settings.json")]:
        out = path.parent
        evaluations, said, left_out, env_id = load(out)
        texts = tables(evaluations, said, left_out, env_id)
        for name, text in texts.items():
            write(out / name, text)
    if args.pages:
        return [write(path, text) for path, text in render().items()]
    shown = evaluations[evaluations["length"].isin(shared_lengths(evaluations))]
    steps = env_id.startswith(UMBRELLA) and shown["length"].nunique() > 1
    figure = plot_steps_to_95(measure_runs(shown, known=True)) if steps else plot_learning(shown, env_id)
    figure.savefig(out / ("steps_to_95.png" if steps else "learning.png"), dpi=150)
    return print(texts["table.md"], end="")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
