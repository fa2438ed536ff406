"""Statistics, figures and tables of a benchmark; from run folders, or from the CSV files that an earlier call wrote.

    python plot_results.py --runs runs/benchmark --out runs/benchmark/results    # what benchmark.sh calls
    python plot_results.py                     # everything in results/protocol again, from its CSV files
    python plot_results.py --format pdf --credit-length 20 --credit-seed 3 --figures learning credit_attention
    python plot_results.py --runs runs/study --out results/study --credit-map teacher:10 student:200

With --runs, OUT gets what the run folders hold; an algorithm is what the benchmark calls an arm:
    evaluations.csv.gz  return and success of every evaluation of every finished run, and two measures of its reward;
                        at the last one also the first step's attention to the last step of its episode
    credit.csv.gz       mean r_in, and what the first step attends to; by run of one algorithm, 10 evaluations, and time
    credit_map.csv.gz   with --credit-map: weight with which each step's reward (source) goes to each step (destination)
    wall_clock.csv      steps/s and seconds of every finished run (the only one of these that differs when repeated)
    left_out.csv        the runs that are missing, unfinished or not finite, and why; they are in no other file
    settings.json       the options of each algorithm; by length where they differ
and always what follows from these:
    runs                table by run: steps to 95 % success, success and return at the end, first_to_last (the attention
                        above: of a network that redistributes, the part of the last reward that the first step gets)
    summary             table by length: final return, steps to 95 % success
    steps_to_95         table and figure: steps to 95 % success against length, beside the maps of credit_map.csv.gz
    aggregate           table and figure over all lengths: IQM, median, optimality gap, performance profiles; beside an
                        arm `ppo` (or ppo_vanilla) the probability of doing better than it; beside `ppo` and `oracle`
                        the share of the gap between them, in the mean return over training, that an arm closes
    learning            evaluation return and success against environment steps
    final_return        final return against length, with the published numbers
    credit_attention    attention of the first step's intrinsic reward, against training, beside the optimal one
    credit_reward       profile of the intrinsic reward over the episode, against training
    wall_clock          table and figure
Where no optimum is known, for all but Umbrella that is, only learning (of the return), wall_clock (the figure), and
    runs                table by run: final_return (mean of the last 3 evaluations: one alone is noisy) and mean_return
                        (of all evaluations after step 0: the area under the curve)
    summary             table of both by algorithm; beside an arm `delayed` also the probability of doing better than
                        it; beside `delayed` and `dense` the share of the gap between them that an arm closes,
                        (IQM - IQM delayed) / (IQM dense - IQM delayed)

Point estimates are interquartile means (IQM); intervals are 95 % percentile intervals of a bootstrap over runs,
stratified by length, with a fixed seed:
    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021 (rliable)
"""

import functools
import gzip
import itertools
import json
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from matplotlib.colors import LogNorm
from rliable import library, metrics

plt.switch_backend("Agg")
plt.rcParams |= {"figure.constrained_layout.use": True, "font.size": 9, "svg.hashsalt": "metairn"}

# The MetaIRN paper's figure 4: final evaluation return, IQM of 10 seeds, 100k steps; length: (PPO, MetaIRN)
PUBLISHED = {2: (0.90, 0.03), 5: (1.06, 0.33), 10: (0.78, 0.27), 20: (0.88, 0.51), 50: (0.79, 0.66)}
PUBLISHED_MINUTES = 40 / 60, 200 / 60  # of a run, about: PPO, MetaIRN
PUBLISHED_SETTING = {"env_id": "umbrella_env:UmbrellaLength-v0", "total_timesteps": 100_000}
PUBLISHED_SETTING |= {"hide_umbrella": False, "invert_umbrella": False}
OPTIMUM = {"umbrella_env:UmbrellaLength-v0": 10.0, "umbrella_env:UmbrellaLengthBsuite-v0": 1.0}
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"]  # Okabe-Ito: for all readers
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
LINES = ["-", "--", ":"]
RESAMPLES = 5_000
CURVE_POINTS = 128  # at most, of a learning curve
CREDIT_POINTS = 10  # evaluations of a run in the credit figures
SOLVED = 0.95
LAST = 3  # evaluations in the final return where no optimum is known
RETURNS = ["final_return", "mean_return"]
MEASURES = ["eval_return", "eval_success", "intrinsic_advantage_share", "intrinsic_attention_entropy"]
FIGURES = Literal[
    "learning",
    "steps_to_95",
    "final_return",
    "aggregate",
    "wall_clock",
    "credit_attention",
    "credit_reward",
]
RUN = ["algorithm", "chain_length", "seed"]
DIFFER = {"exp_name", "seed", "chain_length", "num_steps", "runs_dir", "resume", "evaluate", "cuda", "track"}


@dataclass
class Args:
    runs: str | None = None
    """directory with run folders; without it, the CSV files in OUT are read"""
    out: str = "results/protocol"
    """directory of the CSV files, tables and figures"""
    format: Literal["png", "svg", "pdf"] = "png"
    """of the figures"""
    figures: tuple[FIGURES, ...] = get_args(FIGURES)
    """the figures to draw, of those that there are; the tables are always written"""
    credit_algorithm: str | None = None
    """with --runs: algorithm of the credit figures (default: ppo_metairn if it is there)"""
    credit_map: tuple[str, ...] = ()
    """with --runs: ALGORITHM:LENGTH of the maps beside the steps to 95 %, of the lowest seed"""
    credit_length: int | None = None
    """episode length in the credit figures (default: the longest)"""
    credit_seed: int | None = None
    """seed of the single run in the credit figures (default: the lowest)"""


def fail(message):
    """Ends the program over something the user can mend: one line, exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def write_atomically(path, write):
    """Calls write(temporary path) and renames it to `path`, so that `path` is at any moment whole: old or new."""
    temporary = path.with_name(f".{path.name}")
    write(temporary)
    os.replace(temporary, path)


def write_table(path, table):
    """A CSV file, compressed where its name ends in .gz; the same bytes each time"""
    data = table.to_csv(index=False, float_format="%.12g").encode()
    data = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
    write_atomically(path, lambda temporary: temporary.write_bytes(data))


def digits(x, n=3):
    """x [...] with n significant digits"""
    return np.vectorize(lambda value: float(f"{value:.{n}g}"), otypes=[float])(x)


def measured_by(env_id):
    """Columns of evaluations: an environment without a known optimum may not know success either"""
    return ["eval_return", "eval_success"] if env_id in OPTIMUM else ["eval_return"]


# Reading


def read_run(folder, args):
    """Evaluations and credit of a run folder, one row each; an exception says why it cannot be used."""
    progress = pd.read_csv(folder / "progress.csv")
    step, batch = progress["global_step"].iloc[-1], args["num_envs"] * args["num_steps"]
    if step != args["total_timesteps"] // batch * batch:
        raise ValueError(f"unfinished: stopped at step {step} of {args['total_timesteps']}")
    if not np.isfinite(progress[measured_by(args["env_id"])]).all(axis=None):
        raise ValueError("an evaluation is not finite")
    credit = pd.DataFrame()
    if args["chain_length"] and (folder / "intrinsic.npz").exists():  # 0: episodes of no fixed length
        with np.load(folder / "intrinsic.npz") as arrays:
            last = arrays["first_step_attention"][-1, args["chain_length"] - 1]
            progress.loc[progress.index[-1], "first_to_last"] = digits(last)
            shown = np.unique(np.linspace(0, len(arrays["global_step"]) - 1, CREDIT_POINTS).round().astype(int))
            steps, times = arrays["global_step"][shown], range(args["chain_length"])
            names = "r_in_mean", "first_step_attention"
            columns = {name: digits(arrays[name][shown][:, times].ravel()) for name in names}
        index = pd.MultiIndex.from_product([steps, times], names=["global_step", "time"])
        credit = pd.DataFrame(columns, index=index).reset_index()
    return progress, credit


def read_map(runs, name):
    """Folders of finished runs by (algorithm, length, seed), and ALGORITHM:LENGTH -> attention_map, a row a weight"""
    algorithm, _, length = name.rpartition(":")
    found = [(run, f) for run, f in sorted(runs.items()) if (run[0], str(run[1])) == (algorithm, length)]
    if not found or not (found[0][1] / "intrinsic.npz").exists():
        fail(f"--credit-map {name}: no finished run with an intrinsic reward is of this ALGORITHM:LENGTH")
    run, folder = found[0]
    with np.load(folder / "intrinsic.npz") as arrays:
        weights = digits(arrays["attention_map"])
    destination, source = np.indices(weights.shape).reshape(2, -1) + 1
    table = pd.DataFrame({"destination": destination, "source": source, "weight": weights.ravel()})
    return table.assign(**dict(zip(RUN, run, strict=True)))


def collect(runs, credit_algorithm, credit_map):
    """What the run folders in `runs` hold, as {file name: table}, and the settings; see the head of this file.

    Runs that cannot be used are named on stderr and in left_out.csv. So are runs that are not there, of those in the
    file `planned`, to which benchmark.sh adds what it sets out to do.
    """
    evaluations, credits, clocks, left_out, settings, found, used = [], [], [], {}, {}, set(), {}
    for folder in sorted(path.parent for path in Path(runs).glob("*/args.json")):
        try:
            args = json.loads((folder / "args.json").read_text())
            run = args["exp_name"], args["chain_length"], args["seed"]
        except (OSError, ValueError, KeyError) as error:
            print(f"{folder}/args.json cannot be read: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if run in found:
            fail(f"{folder}: there is another run with algorithm, length and seed {run} in {runs}: plot them apart")
        found.add(run)
        try:
            progress, credit = read_run(folder, args)
        except OSError as error:
            left_out[run] = f"{error.strerror}: {Path(error.filename).name}"
            continue
        except (ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
            left_out[run] = str(error)
            continue
        same = {name: value for name, value in args.items() if name not in DIFFER}
        for cell, (other_folder, other) in settings.items():
            for name in sorted(same.keys() | other.keys() if cell == run[:2] else ["env_id"]):
                if same.get(name) != other.get(name):
                    both = f"({same.get(name)}, {other.get(name)})"
                    fail(f"{folder} and {other_folder} differ in {name} {both}: plot them apart")
        settings.setdefault(run[:2], (folder, same))
        used[run] = folder
        key = dict(zip(RUN, run, strict=True))
        last = progress.iloc[-1]
        clocks.append(key | {"sps": round(last["sps"]), "seconds": round(last["wall_time"], 2)})
        columns = progress.columns.intersection(["global_step", *MEASURES, "first_to_last"])
        evaluations.append(progress[columns].round(dict.fromkeys(MEASURES, 4)).assign(**key))
        if run[0] == (credit_algorithm or "ppo_metairn") and len(credit):
            credits.append(credit.assign(**key))
    if not evaluations:
        fail(f"there is no finished run in {runs}" + "".join(f"; {run}: {why}" for run, why in left_out.items()))
    if credit_algorithm and not credits:
        fail(f"--credit-algorithm {credit_algorithm}: no finished run with an intrinsic reward is of this algorithm")
    planned = Path(runs, "planned").read_text().split("\n") if Path(runs, "planned").exists() else []
    for name, length, seed in sorted({tuple(line.split()) for line in planned if line}):
        if (run := (name, int(length), int(seed))) not in found:
            left_out[run] = "missing: there is no readable run folder"
    for (algorithm, length, seed), why in left_out.items():
        print(f"left out: {algorithm}, L = {length}, seed {seed}: {why}", file=sys.stderr)
    tables = {
        "evaluations.csv.gz": pd.concat(evaluations).dropna(axis=1, how="all"),
        "credit.csv.gz": pd.concat(credits) if credits else pd.DataFrame(),
        "credit_map.csv.gz": pd.concat([read_map(used, name) for name in credit_map] or [pd.DataFrame()]),
        "wall_clock.csv": pd.DataFrame(clocks),
        "left_out.csv": pd.DataFrame([(*run, why) for run, why in left_out.items()], columns=[*RUN, "reason"]),
    }
    for name, table in tables.items():
        order = [c for c in [*RUN, "global_step", "time", "destination", "source"] if c in table]
        rest = [c for c in table if c not in order]
        tables[name] = table.reindex(columns=order + rest).sort_values(order) if order else table
    return tables, merge_settings({cell: same for cell, (_, same) in sorted(settings.items())})


def merge_settings(settings):
    """{(algorithm, length): {option: value}} -> {algorithm: {option: value, or {length: value} where they differ}}"""
    merged = {}
    for algorithm in dict.fromkeys(algorithm for algorithm, _ in settings):
        lengths = {str(length): same for (a, length), same in settings.items() if a == algorithm}
        merged[algorithm] = {}
        for name in dict.fromkeys(itertools.chain.from_iterable(lengths.values())):
            values = {length: same.get(name) for length, same in lengths.items()}
            first, *others = values.values()
            merged[algorithm][name] = first if all(value == first for value in others) else values
    return merged


# Statistics


def iqm(scores):
    """scores [runs, ...] -> interquartile mean over runs [...]; rliable.metrics.aggregate_iqm, 10 times faster"""
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut : len(scores) - cut].mean(0)


def bootstrap(statistic, *scores):
    """statistic(*scores) [points] of scores [runs, tasks, ...]; lower and upper end of its 95 % interval [points]

    Runs are resampled within each task. Without two runs there is no interval: its ends are NaN.
    """
    np.random.seed(0)  # noqa: NPY002 - rliable draws from numpy's global stream
    argument = scores if len(scores) > 1 else scores[0]  # a tuple: rliable resamples its members independently
    estimate, interval = library.get_interval_estimates({"": argument}, statistic, reps=RESAMPLES)
    enough = min(len(x) for x in scores) > 1
    return np.stack([estimate[""], *(interval[""] if enough else np.full_like(interval[""], np.nan))])


def curves(runs, measures):
    """All evaluations of one algorithm at one length -> steps [E]; IQM and interval of each measure [3, E]

    Of many evaluations, every second or third and so on, the last one included.
    """
    steps = np.sort(runs["global_step"].unique())[::-1]
    steps = steps[:: -(-len(steps) // CURVE_POINTS)][::-1]
    runs = runs[runs["global_step"].isin(steps)]
    table = runs.pivot(index="seed", columns="global_step", values=measures)
    if table.isna().any(axis=None):
        fail("runs of one algorithm and length were evaluated at different steps: plot them apart")
    points = bootstrap(lambda x: iqm(x[:, 0]), table.to_numpy()[:, None])  # [3, measures E]
    return steps, *np.split(points, len(measures), axis=1)


def steps_to_solve(runs):
    """All evaluations of one algorithm at one length -> first step with 95 % success of each run; infinity if never"""
    first = runs[runs["eval_success"] >= SOLVED].groupby("seed")["global_step"].min()
    return first.reindex(runs["seed"].unique()).fillna(np.inf)


def quartiles(steps):
    """Values of runs, not means of two: an unsolved run is later than all others, and has no number to average with"""
    return np.quantile(steps, [0.25, 0.5, 0.75], method="inverted_cdf")


def measure_runs(groups):
    """Evaluations by (length, algorithm) -> table with a row for each run: its speed, its end, and its mean success"""
    tables = []
    for (length, algorithm), runs in groups.items():
        by_seed = runs.groupby("seed")
        last = by_seed.last()
        columns = {"steps_to_95": steps_to_solve(runs), "solved_at_end": (last["eval_success"] >= SOLVED).astype(int)}
        columns |= {"final_return": last["eval_return"], "final_success": last["eval_success"]}
        columns |= {"mean_success": by_seed["eval_success"].mean().round(4)}
        columns |= {name: last[name] for name in last.columns.intersection(["first_to_last"])}
        table = pd.DataFrame(columns).reset_index(names="seed")
        tables.append(table.assign(chain_length=length, algorithm=algorithm))
    table = pd.concat(tables).sort_values(RUN)
    return table[[*RUN, *table.columns.difference(RUN, sort=False)]]


def summarize(groups, learning, counts):
    """Evaluations, curves and run counts by (length, algorithm) -> table with a row for each"""
    rows = []
    for (length, algorithm), runs in groups.items():
        last, steps = runs.groupby("seed").last(), steps_to_solve(runs)
        q1, median, q3 = quartiles(steps)
        final = learning[length, algorithm][1][:, -1].round(3)
        row = {"chain_length": length, "algorithm": algorithm}
        row |= dict(zip(["runs", "runs_expected"], counts[length, algorithm], strict=True))
        row |= {"solved_at_end": (last["eval_success"] >= SOLVED).sum(), "solved_ever": np.isfinite(steps).sum()}
        row |= dict(zip(["final_return_iqm", "final_return_low", "final_return_high"], final, strict=True))
        row |= {
            "steps_to_95_q1": q1,
            "steps_to_95_median": median,
            "steps_to_95_q3": q3,
            "steps_to_95_max": steps.max(),
        }
        for name in runs.columns.intersection(["intrinsic_advantage_share", "intrinsic_attention_entropy"]):
            row[f"{name}_median"] = round(last[name].dropna().median(), 3)
        rows.append(row)
    return pd.DataFrame(rows)


def measure_returns(evaluations):
    """Table with a row for each run of an environment without a known optimum"""
    returns = evaluations[evaluations["global_step"] > 0].groupby(RUN)["eval_return"]
    final = returns.apply(lambda x: x.tail(LAST).mean())
    return pd.DataFrame(dict(zip(RETURNS, [final, returns.mean()], strict=True))).round(4).reset_index()


def gap_closed(x, low, high):
    """scores [runs, tasks, points] -> share of the gap between the IQMs of `low` and `high` that x closes [points]"""
    x, low, high = (iqm(scores.reshape(-1, scores.shape[-1])) for scores in (x, low, high))
    return (x - low) / np.where(high == low, np.nan, high - low)


def summarize_returns(measured, algorithms, counts):
    """Table of measure_returns, and run counts by (length, algorithm) -> table with a row for each algorithm"""
    scores = {a: measured.loc[measured["algorithm"] == a, RETURNS].to_numpy()[:, None] for a in algorithms}
    ends = ["iqm", "low", "high"] + [what + end for what in ("share", "better") for end in ("", "_low", "_high")]
    rows = []
    for algorithm, x in scores.items():
        points, shares, better = bootstrap(lambda x: iqm(x[:, 0]), x), *np.full((2, 3, len(RETURNS)), np.nan)
        others = scores.keys() - {algorithm}
        if {"delayed", "dense"} <= others:
            shares = bootstrap(gap_closed, x, scores["delayed"], scores["dense"])
        if "delayed" in others:
            pairs = [(x[..., i], scores["delayed"][..., i]) for i in range(len(RETURNS))]
            better = np.stack([bootstrap(probability_of_improvement, *pair)[:, 0] for pair in pairs], axis=1)
        row = {"algorithm": algorithm} | dict(zip(["runs", "runs_expected"], counts[0, algorithm], strict=True))
        for name, values in zip(RETURNS, np.concatenate([points, shares, better]).T.round(3), strict=True):
            row |= {f"{name}_{end}": value for end, value in zip(ends, values, strict=True)}
        rows.append(row)
    return pd.DataFrame(rows)


def score_matrices(evaluations, algorithms, optimum):
    """{kind: {algorithm: scores [seeds, lengths]}}, where 1 is the optimum and 0 a random policy

    Only seeds with a finished run at every length: stratified resampling has no place for a missing one. Every length
    is one that at least half of the algorithms have: an arm that a study trains at one length alone has no score.
    """
    scores = {}
    having = evaluations.groupby("chain_length")["algorithm"].nunique()
    evaluations = evaluations[evaluations["chain_length"].isin(having.index[having >= len(algorithms) / 2])]
    for kind, statistic in {"final return": "last", "mean return over training": "mean"}.items():
        table = evaluations.groupby(RUN)["eval_return"].agg(statistic).unstack("chain_length").dropna() / optimum
        scores[kind] = {a: table.loc[a].to_numpy() for a in algorithms if a in table.index}
    return scores


def probability_of_improvement(x, y):
    """scores x [n, tasks], y [m, tasks] -> probability that x beats y, mean over tasks; ties count half (rliable's)"""
    x = x[:, None]  # [n, 1, tasks]
    return np.array([np.mean((x > y) + 0.5 * (x == y))])


def performance_profile(scores, thresholds):
    """scores [runs, tasks] -> share of runs above each threshold, mean over tasks (rliable's run-score distribution)"""
    return (scores[..., None] > thresholds).mean((0, 1))


def aggregate(scores):
    """{kind: {algorithm: scores}} -> table over all lengths: IQM, median, optimality gap, and comparisons with PPO"""

    def statistics(x):  # [runs, lengths] -> [3]
        return np.array([iqm(x.ravel()), metrics.aggregate_median(x), metrics.aggregate_optimality_gap(x)])

    rows = []
    for kind, matrices in scores.items():
        for algorithm, matrix in matrices.items():
            for name, values in zip(["IQM", "median", "optimality gap"], bootstrap(statistics, matrix).T, strict=True):
                rows.append((kind, name, algorithm, len(matrix), *values.round(4)))
        ppo = next((matrices[name] for name in ("ppo_vanilla", "ppo") if name in matrices), None)
        for algorithm, matrix in matrices.items():
            if ppo is not None and matrix is not ppo:
                values = bootstrap(probability_of_improvement, matrix, ppo)[:, 0]
                rows.append((kind, "P(better than PPO)", algorithm, min(len(matrix), len(ppo)), *values.round(4)))
        for algorithm in matrices if {"ppo", "oracle"} <= matrices.keys() else []:
            if kind != "final return" and algorithm not in ("ppo", "oracle"):  # both may end at the optimum
                trio = [matrices[name][..., None] for name in (algorithm, "ppo", "oracle")]
                values = bootstrap(gap_closed, *trio)[:, 0]
                rows.append((kind, "gap closed", algorithm, min(map(len, trio)), *values.round(4)))
    return pd.DataFrame(rows, columns=["score", "statistic", "algorithm", "seeds", "estimate", "low", "high"])


# Tables


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def interval_text(estimate, low, high, digits=2):
    if np.isnan(low):
        return f"{estimate:.{digits}f} [no interval of one run]"
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def steps_text(steps):
    return f"{steps:,.0f}" if np.isfinite(steps) else "never"


def summary_markdown(summary, left_out, published):
    header = ["L", "", "runs", "solved at the end", "final return, IQM [95 % CI]", "solved ever"]
    header += ["steps to 95 % success: median [quartiles], last"]
    rows = []
    for row in summary.itertuples():
        steps = [steps_text(getattr(row, f"steps_to_95_{q}")) for q in ("median", "q1", "q3", "max")]
        interval = interval_text(row.final_return_iqm, row.final_return_low, row.final_return_high)
        rows.append([row.chain_length, f"`{row.algorithm}`", f"{row.runs}/{row.runs_expected}", row.solved_at_end])
        rows[-1] += [interval, row.solved_ever, "{} [{}, {}], {}".format(*steps)]
        if published:
            numbers = zip(["ppo_vanilla", "ppo_metairn"], published.get(row.chain_length, ()), strict=False)
            rows[-1].insert(5, dict(numbers).get(row.algorithm, ""))
    if published:
        header.insert(5, "published")
    return markdown(header, rows) + left_out_text(left_out)


def left_out_text(left_out):
    lost = left_out.groupby(["chain_length", "algorithm"]).size().items()
    lost = "; ".join(f"{number} of `{name}`" + f" at L = {length}" * (length > 0) for (length, name), number in lost)
    return f"\nRuns left out, for the reasons in `left_out.csv`: {lost}.\n" if lost else ""


def returns_markdown(summary, left_out):
    table, text = summary.set_index("algorithm"), ""
    columns = {"": [f"`{a}`" for a in table.index]}
    columns["runs"] = [f"{n}/{expected}" for n, expected in table[["runs", "runs_expected"]].to_numpy()]
    for name in RETURNS:
        label, points = name.replace("_", " "), table.filter(regex=f"{name}_(iqm|low|high)")
        columns[f"{label}, IQM [95 % CI]"] = [interval_text(*row) for row in points.to_numpy()]
        compared = {}
        if {"delayed", "dense"} <= set(table.index):
            if points.loc["dense"].iloc[1] > points.loc["delayed"].iloc[2]:
                compared[f"gap closed, {label}"] = table.filter(like=f"{name}_share")
            else:
                text += f"\nThe gap in the {label} is not resolved: `dense`'s interval is not above `delayed`'s.\n"
        if "delayed" in table.index:
            compared[f"P(> `delayed`), {label}"] = table.filter(like=f"{name}_better")
        for header, cells in compared.items():
            columns[header] = [interval_text(*cell) if np.isfinite(cell[0]) else "" for cell in cells.to_numpy()]
    return markdown(list(columns), zip(*columns.values(), strict=True)) + text + left_out_text(left_out)


def steps_markdown(runs, algorithms):
    """Table by run -> steps to 95 % success: a row for each length, a column for each algorithm"""
    cells = {}
    for cell, steps in runs.groupby(["chain_length", "algorithm"])["steps_to_95"]:
        q1, median, q3 = map(steps_text, quartiles(steps))
        cells[cell] = f"{median} [{q1}, {q3}], {np.isfinite(steps).sum()}/{len(steps)}"
    lengths = sorted(runs["chain_length"].unique())
    rows = [[length, *(cells.get((length, a), "") for a in algorithms)] for length in lengths]
    text = "\nSteps to 95 % success: median [quartiles], runs that get there/runs.\n"
    return markdown(["L", *(f"`{a}`" for a in algorithms)], rows) + text


def aggregate_markdown(table, scores, algorithms):
    rows = []
    for (score, statistic), group in table.groupby(["score", "statistic"], sort=False):
        cells = {row.algorithm: interval_text(row.estimate, row.low, row.high, 3) for row in group.itertuples()}
        rows.append([score, statistic, *(cells.get(a, "") for a in algorithms)])
    seeds = {a: len(scores["final return"].get(a, [])) for a in algorithms}
    return markdown(["score / optimum", "", *(f"`{a}`, {n} seeds at every length" for a, n in seeds.items())], rows)


def wall_clock_markdown(clock, algorithms):
    rows = []
    for length, algorithm in itertools.product(sorted(clock["chain_length"].unique()), algorithms):
        runs = clock[(clock["chain_length"] == length) & (clock["algorithm"] == algorithm)]
        if len(runs):
            sps, seconds = runs[["sps", "seconds"]].median()
            rows.append([length, f"`{algorithm}`", len(runs), f"{sps:,.0f}", f"{seconds / 60:.2f}"])
    table = markdown(["L", "", "runs", "steps/s, median", "minutes per run, median"], rows)
    return table + f"\n{clock['seconds'].sum() / 60:.1f} minutes of training in all {len(clock)} runs.\n"


# Figures


def assign_styles(algorithms):
    """{algorithm: colour, marker and line}; the two scripts come first and keep theirs, whichever is there"""
    order = ["ppo_vanilla", "ppo_metairn", *sorted(set(algorithms) - {"ppo_vanilla", "ppo_metairn"})]
    cycles = {"color": COLORS, "marker": MARKERS, "linestyle": LINES}
    styles = {a: {name: cycle[i % len(cycle)] for name, cycle in cycles.items()} for i, a in enumerate(order)}
    for script in order[:2]:
        styles[script]["linestyle"] = "-"
    return {a: style for a, style in styles.items() if a in algorithms}


def dodge(i, styles, widest):
    """Offset in x of the i-th algorithm, so that bars stand side by side: `widest` apart, or within 0.7 in all"""
    return min(widest, 0.7 / len(styles)) * (i - (len(styles) - 1) / 2)


def add_legend(figure, handles, labels, columns):
    """Above the figure, which grows by its rows"""
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.2 * max(0, -(-len(labels) // columns) - 2))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def plot_learning(learning, counts, styles, published):
    """Return and success against steps, a column for each length; {(length, algorithm): curves}"""
    lengths = sorted({length for length, _ in learning})
    size = max(6.5, 1.2 + 1.8 * len(lengths)), 4.6  # room for the legend
    figure, axes = plt.subplots(2, len(lengths), figsize=size, sharex="col", sharey="row", squeeze=False)
    for (length, algorithm), (steps, *scores) in learning.items():
        column = axes[:, lengths.index(length)]
        wide = algorithm == "ppo_vanilla"  # where two curves coincide, both are seen
        for axis, (estimate, low, high) in zip(column, scores, strict=True):
            color, line = styles[algorithm]["color"], styles[algorithm]["linestyle"]
            axis.plot(steps / 1000, estimate, line, color=color, linewidth=4 if wide else 1.5, label=algorithm)
            axis.fill_between(
                steps / 1000, low, high, color=color, alpha=0.25 if len(styles) < 4 else 0.08, linewidth=0
            )
        if len(styles) > 3:  # the texts would cover the curves; the tables have these numbers too
            continue
        position = list(styles).index(algorithm)
        text = "{} of {} runs".format(*counts[length, algorithm])
        column[1].text(0.97, 0.05 + 0.1 * position, text, color=color, ha="right", transform=column[1].transAxes)
    for length, (top, bottom) in zip(lengths, axes.T, strict=True):
        if length in published:
            top.axhline(published[length][0], color="0.35", linestyle=":", label="published PPO after 100k steps")
            top.axhline(published[length][1], color="0.35", linestyle="--", label="published MetaIRN after 100k steps")
        top.set_title(f"L = {length}", fontsize=10)
        bottom.set_xscale("symlog", linthresh=1)
        bottom.xaxis.set_major_formatter("{x:.0f}")
        bottom.set(xlim=(0, None), ylim=(-0.05, 1.05))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("evaluation return")
    axes[1, 0].set_ylabel("evaluation success rate")
    figure.supxlabel("environment steps [thousands; the scale is logarithmic above 1]", fontsize=10)
    legend = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    add_legend(figure, legend.values(), legend.keys(), 2 if len(styles) < 4 else max(3, len(lengths)))
    return figure


def plot_returns(learning, counts, styles, env_id):
    figure, axis = plt.subplots(figsize=(6.5, 4))
    for (length, algorithm), (steps, (estimate, low, high)) in learning.items():
        color, line = styles[algorithm]["color"], styles[algorithm]["linestyle"]
        label = "{} ({} of {} runs)".format(algorithm, *counts[length, algorithm])
        axis.plot(steps / 1000, estimate, line, color=color, label=label)
        axis.fill_between(steps / 1000, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set(title=env_id, xlabel="environment steps [thousands]", ylabel="evaluation return (IQM, 95 % CI)")
    axis.grid(alpha=0.3)
    add_legend(figure, *axis.get_legend_handles_labels(), 2)
    return figure


def plot_steps_to_95(runs, styles, budget, credit_map):
    """Steps to 95 % success against length: medians and quartiles of `runs`; beside it the maps of `credit_map`

    What never gets there, within the `budget` of its steps, is an open marker at the top edge. Lengths that less than
    half of the arms have (a teacher's own) are left out, unless all are such.
    """
    arms = runs.groupby("chain_length")["algorithm"].transform("nunique")
    if (2 * arms >= len(styles)).any():
        runs = runs[2 * arms >= len(styles)]
        styles = {algorithm: style for algorithm, style in styles.items() if (runs["algorithm"] == algorithm).any()}
    maps = list(credit_map.groupby(["chain_length", "algorithm"])) if len(credit_map) else []
    ratios = [1.7, *[1] * len(maps)]
    figure, axes = plt.subplots(
        1, 1 + len(maps), figsize=(6.5 + 3 * len(maps), 4.2), width_ratios=ratios, squeeze=False
    )
    axis, *others = axes[0]
    lengths = np.sort(runs["chain_length"].unique())
    room = np.log(lengths[1:] / lengths[:-1]).min(initial=np.log(2))  # between two lengths
    top, low = 1.8 * budget, np.inf
    axis.set(xscale="log", yscale="log", autoscaley_on=False)
    axis.set(xlim=(lengths[0] * np.exp(-0.6 * room), lengths[-1] * np.exp(0.6 * room)))
    for i, (algorithm, style) in enumerate(styles.items()):
        groups = runs[runs["algorithm"] == algorithm].groupby("chain_length")["steps_to_95"]
        points = np.stack([quartiles(steps) for _, steps in groups])  # [lengths, 3]
        x, never = np.array([*groups.groups]) * np.exp(room * dodge(i, styles, 0.15)), np.isinf(points[:, 1])
        q1, median, q3 = np.where(np.isinf(points), top, np.maximum(points, 1)).T
        low = min(low, q1.min())
        bars = [median - q1, q3 - median]
        axis.errorbar(x, median, bars, linewidth=1.3, elinewidth=1, capsize=2, label=algorithm, **style)
        axis.plot(x[never], median[never], **style | {"linestyle": "", "markerfacecolor": "white", "zorder": 3})
    axis.set_ylim(low / 1.4, top * 1.25)
    axis.axhline(budget, color="0.6", linewidth=0.8, zorder=0)
    axis.text(1.005 * axis.get_xlim()[0], budget, "largest budget", color="0.4", fontsize=8, va="bottom")
    axis.set(xlabel="episode length L [steps]", ylabel="environment steps to 95 % success\n(median, quartiles)")
    axis.set_xticks(lengths, lengths)
    axis.set_xticks([], minor=True)
    axis.set_yticks([tick for tick in axis.get_yticks() if low / 1.4 <= tick <= budget])  # above, there is "never"
    axis.text(-0.01, top, "never", transform=axis.get_yaxis_transform(), ha="right", va="center")
    axis.grid(alpha=0.3)
    norm = LogNorm(vmin=0.1 / max([1, *(length for (length, _), _ in maps)]), vmax=1)
    for axis, ((length, algorithm), rows) in zip(others, maps, strict=True):
        table = rows.pivot(index="destination", columns="source", values="weight")
        extent = 0.5, length + 0.5, length + 0.5, 0.5
        image = axis.imshow(table.clip(lower=norm.vmin), norm=norm, extent=extent, interpolation="nearest")
        axis.set_title(f"credit at L = {length}\n{algorithm}, seed {rows['seed'].iloc[0]}", fontsize=10)
        axis.set(xlabel="source: step of the reward", ylabel="destination: step that is paid")
    if others:
        figure.colorbar(image, ax=others, label="weight", extend="min", shrink=0.6)
    add_legend(figure, *axes[0, 0].get_legend_handles_labels(), 3 if not others else 5)
    return figure


def plot_final_return(summary, styles, published, optimum):
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    lengths = sorted(summary["chain_length"].unique())
    for i, (algorithm, style) in enumerate(styles.items()):
        rows = summary[summary["algorithm"] == algorithm]
        x = [lengths.index(length) + dodge(i, styles, 0.16) for length in rows["chain_length"]]
        y = rows["final_return_iqm"]
        bars = np.abs(rows[["final_return_low", "final_return_high"]].to_numpy().T - y.to_numpy())
        label = f"{algorithm} ({rows['runs'].sum()} of {rows['runs_expected'].sum()} runs)"
        axis.errorbar(x, y, bars, capsize=3, label=label, **style | {"linestyle": ""})
    for i, name in enumerate(["PPO", "MetaIRN"] if published else []):
        shown = [length for length in lengths if length in published]
        x, y = [lengths.index(length) for length in shown], [published[length][i] for length in shown]
        axis.plot(x, y, color="0.35", linestyle=[":", "--"][i], marker=".", label=f"published {name}, 10 runs each")
    axis.axhline(optimum, color="0.7", linewidth=1, zorder=0)
    axis.text(-0.47, 1.01 * optimum, "optimum", color="0.4", va="bottom", fontsize=8)
    axis.set(
        xlabel="episode length L [steps]",
        ylabel="final evaluation return (IQM, 95 % CI)",
        xlim=(-0.5, len(lengths) - 0.5),
    )
    axis.set_xticks(range(len(lengths)), lengths)
    axis.set_ylim(
        min(-0.1 * optimum, 1.1 * summary[["final_return_iqm", "final_return_low"]].min().min()), 1.15 * optimum
    )
    axis.grid(alpha=0.3, axis="y")
    add_legend(figure, *axis.get_legend_handles_labels(), 2)
    return figure


def plot_aggregate(table, scores, styles):
    """Intervals of all statistics and a performance profile; a row for each kind of score"""
    names = ["IQM", "median", "optimality gap", "P(better than PPO)"]
    ratios = [1, 1, 1, 1, 1.6]
    size = 10, max(2.1, 0.25 * len(styles)) * len(scores)
    figure, axes = plt.subplots(len(scores), 5, figsize=size, width_ratios=ratios, squeeze=False)
    for row, (kind, matrices) in zip(axes, scores.items(), strict=True):
        for axis, name in zip(row, names, strict=False):
            found = table[(table["score"] == kind) & (table["statistic"] == name)]
            for y, (_, line) in enumerate(found[::-1].iterrows()):
                bars = np.abs([[line["estimate"] - line["low"]], [line["high"] - line["estimate"]]])
                axis.errorbar(line["estimate"], y, xerr=bars, capsize=3, **styles[line["algorithm"]])
            axis.set(title=name, ylim=(-0.6, max(1, len(found)) - 0.4), yticks=[])
            axis.locator_params(axis="x", nbins=2)
            axis.margins(x=0.2)
            axis.grid(alpha=0.3, axis="x")
        row[3].axvline(0.5, color="0.6", linewidth=1)
        row[3].set_xlim(-0.02, 1.02)
        row[0].set_ylabel(kind.replace(" over", "\nover"))
        lowest = min([0.95, *(matrix.min() for matrix in matrices.values())])
        thresholds = np.linspace(lowest - 0.05, 1.05, 101)
        for algorithm, matrix in matrices.items():
            profile, low, high = bootstrap(functools.partial(performance_profile, thresholds=thresholds), matrix)
            color, line = styles[algorithm]["color"], styles[algorithm]["linestyle"]
            row[4].plot(thresholds, profile, line, color=color, linewidth=4 if algorithm == "ppo_vanilla" else 1.5)
            row[4].fill_between(thresholds, low, high, color=color, alpha=0.25, linewidth=0)
        row[4].set(title="share of runs above the score", ylim=(-0.05, 1.05))
        row[4].grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("score / optimum")
    axes[-1, 3].set_xlabel("probability")
    for algorithm, style in styles.items():
        seeds, lengths = scores["final return"][algorithm].shape if algorithm in scores["final return"] else (0, 0)
        axes[0, 0].plot([], [], **style, label=f"{algorithm} ({seeds} seeds x {lengths} lengths)")
    add_legend(figure, *axes[0, 0].get_legend_handles_labels(), min(3, len(styles)))
    return figure


def mean_over_seeds(credit, column):
    """credit rows -> table [time, global_step]"""
    return credit.pivot_table(index="time", columns="global_step", values=column, aggfunc="mean")


def heat_map(axis, table, **kwargs):
    steps, times = table.columns.to_numpy() / 1000, table.index.to_numpy() + 1
    if len(steps) == 1:  # the width of a single column has to be made up
        steps, table = np.array([0, steps[0]]), table.iloc[:, [0, 0]]
    mesh = axis.pcolormesh(steps, times, table.to_numpy(), shading="nearest", rasterized=True, **kwargs)
    axis.set_xlabel("environment steps [thousands]")
    return mesh


def plot_credit_attention(credit, length, seed):
    """The paper's figure 2: what an episode's first step attends to, against training, beside the optimal attention"""
    one = mean_over_seeds(credit[credit["seed"] == seed], "first_step_attention")
    mean = mean_over_seeds(credit, "first_step_attention")
    optimal = mean * 0
    optimal.loc[optimal.index.max()] = 1
    seeds = credit["seed"].nunique()
    panels = {f"seed {seed}": one, f"mean of {seeds} seeds": mean, "optimal: all on the step that pays": optimal}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
    norm = LogNorm(vmin=0.1 / length, vmax=1)
    for axis, (title, table) in zip(axes, panels.items(), strict=True):
        mesh = heat_map(axis, table.clip(lower=norm.vmin), norm=norm, cmap="viridis")
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel("attended step of the episode")
    bar = figure.colorbar(mesh, ax=axes, label="attention of the first step", extend="min")
    bar.ax.axhline(1 / length, color="white", linewidth=2)
    bar.ax.text(-0.4, 1 / length, f"1/{length}: uniform", rotation=90, ha="right", va="center", fontsize=8)
    figure.suptitle(f"Attention behind the first step's intrinsic reward, L = {length}", fontsize=11)
    return figure


def plot_credit_reward(credit, length, seed):
    """Mean intrinsic reward of every step of the episode, in units of reward times reward_scale"""
    panels = {f"seed {seed}": credit[credit["seed"] == seed], f"mean of {credit['seed'].nunique()} seeds": credit}
    panels = {title: mean_over_seeds(rows, "r_in_mean") for title, rows in panels.items()}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    limit = max(np.abs(table.to_numpy()).max() for table in panels.values()) or 1
    for axis, (title, table) in zip(axes, panels.items(), strict=False):
        mesh = heat_map(axis, table, vmin=-limit, vmax=limit, cmap="PuOr")
        axis.set_title(title, fontsize=10)
        axis.set_ylabel("step of the episode")
    figure.colorbar(mesh, ax=axes[:2], label="intrinsic reward [scaled reward]")
    last = credit[credit["global_step"] == credit["global_step"].max()]
    for _, run in last.groupby("seed"):
        axes[2].plot(run["time"] + 1, run["r_in_mean"], color="0.7", linewidth=1)
    mean = last.groupby("time")["r_in_mean"].mean()
    axes[2].plot(mean.index + 1, mean, color=COLORS[1], linewidth=2.5)
    axes[2].axhline(0, color="black", linewidth=0.8)
    axes[2].set_title("at the end: all seeds, mean", fontsize=10)
    axes[2].set(xlabel="step of the episode", ylabel="intrinsic reward [scaled reward]")
    axes[2].grid(alpha=0.3)
    figure.suptitle(f"Profile of the intrinsic reward over the episode, L = {length}", fontsize=11)
    return figure


def plot_wall_clock(clock, styles, published):
    """Steps per second and minutes of every run (dots), and their medians (lines)"""
    lengths = sorted(clock["chain_length"].unique())
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
    for axis, column, unit in zip(axes, ["sps", "seconds"], [1, 60], strict=True):
        for i, (algorithm, style) in enumerate(styles.items()):
            runs = clock[clock["algorithm"] == algorithm]
            x = runs["chain_length"].map(lengths.index) + dodge(i, styles, 0.2)
            axis.plot(x, runs[column] / unit, markersize=4, alpha=0.5, **style | {"linestyle": ""})
            median = runs.groupby("chain_length")[column].median() / unit
            axis.plot(sorted(set(x)), median, label=f"{algorithm}, median of {len(runs)} runs", **style)
        axis.set(xlabel="episode length L [steps]" * any(lengths), xticks=range(len(lengths)))
        axis.set_xticklabels([length or "" for length in lengths])
        axis.grid(alpha=0.3, axis="y")
    for i, name in enumerate(["PPO", "MetaIRN"] if published else []):
        label = f"published {name}, other hardware"
        axes[1].axhline(PUBLISHED_MINUTES[i], color="0.35", linestyle=[":", "--"][i], label=label)
    axes[0].set(ylabel="environment steps / s", ylim=(0, None))
    axes[1].set(ylabel="minutes per run", yscale="log")
    axes[1].yaxis.set_major_formatter("{x:g}")
    axes[1].yaxis.set_minor_formatter("")
    add_legend(figure, *axes[1].get_legend_handles_labels(), 2)
    return figure


def load(out):
    """The tables of `out` (evaluations, credit, credit_map, wall_clock, left_out) and the settings

    The two of credit are empty where there is no such file.
    """
    names = ["evaluations.csv.gz", "credit.csv.gz", "credit_map.csv.gz", "wall_clock.csv", "left_out.csv"]
    try:
        tables = [
            pd.read_csv(out / name, float_precision="round_trip")
            if (out / name).exists() or not name.startswith("credit")
            else pd.DataFrame(columns=RUN)
            for name in names
        ]
        return *tables, json.loads((out / "settings.json").read_text())
    except (OSError, ValueError) as error:
        fail(f"{out} does not hold what an earlier call collected ({error}); collect runs with --runs RUNS_DIR")


def main(args):
    out = Path(args.out)
    if args.runs is not None:
        tables, settings = collect(args.runs, args.credit_algorithm, args.credit_map)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"--out {out} cannot be made: {error.strerror}")
        for name, table in tables.items():
            if table.columns.empty:
                (out / name).unlink(missing_ok=True)
            else:
                write_table(out / name, table)
        write_atomically(out / "settings.json", lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))
    elif args.credit_algorithm or args.credit_map:
        fail("--credit-algorithm and --credit-map say what to collect: they need --runs RUNS_DIR")
    evaluations, credit, credit_map, clock, left_out, settings = load(out)
    env_id = next(iter(settings.values()))["env_id"]
    measured = (s.get(name, False) == value for s in settings.values() for name, value in PUBLISHED_SETTING.items())
    published = PUBLISHED if all(measured) else {}
    length = args.credit_length if args.credit_length is not None else credit["chain_length"].max()
    credit = credit[credit["chain_length"] == length]
    seed = args.credit_seed if args.credit_seed is not None else credit["seed"].min()
    if (args.credit_length, args.credit_seed) != (None, None) and not (credit["seed"] == seed).any():
        fail(f"--credit-length {length}, --credit-seed {seed}: no finished run with an intrinsic reward has these")

    # Statistics
    styles = assign_styles(evaluations["algorithm"].unique())
    cells = itertools.product(sorted(evaluations["chain_length"].unique()), styles)
    groups = {cell: evaluations[(evaluations[["chain_length", "algorithm"]] == cell).all(axis=1)] for cell in cells}
    groups = {cell: runs for cell, runs in groups.items() if len(runs)}
    learning = {cell: curves(runs, measured_by(env_id)) for cell, runs in groups.items()}
    lost = left_out.groupby(["chain_length", "algorithm"]).size()
    counts = {
        cell: (runs["seed"].nunique(), runs["seed"].nunique() + lost.get(cell, 0)) for cell, runs in groups.items()
    }
    if env_id not in OPTIMUM:
        measured = measure_returns(evaluations)
        summary = summarize_returns(measured, styles, counts)
        texts = {"summary.csv": summary.to_csv(index=False), "summary.md": returns_markdown(summary, left_out)}
        draw = {
            "learning": lambda: plot_returns(learning, counts, styles, env_id),
            "wall_clock": lambda: plot_wall_clock(clock, styles, {}),
        }
        return write_outputs(out, args, measured, texts, draw)
    optimum = OPTIMUM[env_id]
    measured = measure_runs(groups)
    summary = summarize(groups, learning, counts)
    scores = score_matrices(evaluations, styles, optimum)
    overall = aggregate(scores)

    # Tables and figures
    texts = {
        "summary.csv": summary.to_csv(index=False),
        "summary.md": summary_markdown(summary, left_out, published),
        "steps_to_95.md": steps_markdown(measured, styles),
        "aggregate.csv": overall.to_csv(index=False),
        "aggregate.md": aggregate_markdown(overall, scores, styles),
        "wall_clock.md": wall_clock_markdown(clock, styles),
    }
    draw = {
        "learning": lambda: plot_learning(learning, counts, styles, published),
        "steps_to_95": lambda: plot_steps_to_95(measured, styles, evaluations["global_step"].max(), credit_map),
        "final_return": lambda: plot_final_return(summary, styles, published, optimum),
        "aggregate": lambda: plot_aggregate(overall, scores, styles),
        "wall_clock": lambda: plot_wall_clock(clock, styles, published),
        "credit_attention": lambda: plot_credit_attention(credit, length, seed),
        "credit_reward": lambda: plot_credit_reward(credit, length, seed),
    }
    if credit.empty:
        del draw["credit_attention"], draw["credit_reward"]
    return write_outputs(out, args, measured, texts, draw)


def write_outputs(out, args, measured, texts, draw):
    """Tables, and those figures of `draw` that args ask for"""
    write_table(out / "runs.csv", measured)
    for name, text in texts.items():
        write_atomically(out / name, lambda path, text=text: path.write_text(text))
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(args.format)  # the same bytes each time
    for name in [name for name in args.figures if name in draw]:
        figure = draw[name]()
        save = functools.partial(figure.savefig, format=args.format, dpi=150, metadata=metadata)
        write_atomically(out / f"{name}.{args.format}", save)
        plt.close(figure)
    shown = [texts[name] for name in ("summary.md", "aggregate.md", "wall_clock.md") if name in texts]
    print(*shown, sep="\n", end="")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
