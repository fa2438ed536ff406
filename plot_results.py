"""Statistics, figure and table of the learning runs; from run folders, or from the committed CSV.

    python plot_results.py --runs runs     # collect the runs into results/evaluations.csv, then as below
    python plot_results.py                 # results/evaluations.csv -> summary.csv, summary.md, learning.png

Interquartile means and their 95 % intervals are rliable's, by stratified bootstrap over runs:
    Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tyro
from rliable import library
from scipy.stats import trim_mean

# Final evaluation return, IQM of 10 seeds, read from the MetaIRN paper's figure 4; length: (PPO, MetaIRN)
PUBLISHED = {2: (0.90, 0.03), 5: (1.06, 0.33), 10: (0.78, 0.27), 20: (0.88, 0.51), 50: (0.79, 0.66)}
COLORS = {"ppo_vanilla": "#0072B2", "ppo_metairn": "#D55E00"}  # Okabe-Ito: safe for colour-blind readers
RESAMPLES = 5_000
SOLVED = 0.95


@dataclass
class Args:
    runs: str | None = None
    """directory with run folders; their evaluations replace OUT/evaluations.csv"""
    out: str = "results"
    """directory of the CSV files, the figure and the table"""


def collect(runs):
    """One row per evaluation of every finished run in `runs`; unfinished and broken ones are named and left out."""
    tables = []
    for folder in sorted(path.parent for path in Path(runs).glob("*/args.json")):
        args = json.loads((folder / "args.json").read_text())
        try:
            table = pd.read_csv(folder / "progress.csv")
            batch = args["num_envs"] * args["num_steps"]
            if table["global_step"].iloc[-1] != args["total_timesteps"] // batch * batch:
                raise ValueError(f"stopped at step {table['global_step'].iloc[-1]}")
            if not np.isfinite(table[["eval_return", "eval_success"]]).all(axis=None):
                raise ValueError("an evaluation is not finite")
        except (OSError, ValueError, KeyError, IndexError) as error:
            print(f"left out: {folder}: {error}", file=sys.stderr)
            continue
        key = {"algorithm": args["exp_name"], "chain_length": args["chain_length"], "seed": args["seed"]}
        columns = [*key, *table.columns]
        digits = dict.fromkeys(table.filter(regex="intrinsic|meta").columns, 6) | {"sps": 0, "wall_time": 2}
        tables.append(table.round(digits).assign(**key)[columns])
    if not tables:
        sys.exit(f"error: no finished run in {runs}")
    return pd.concat(tables).sort_values(["algorithm", "chain_length", "seed", "global_step"])


def iqm_with_interval(scores):
    """scores [runs, points] -> IQM over runs [points], lower and upper end of its 95 % interval [points]"""
    np.random.seed(0)  # noqa: NPY002 - rliable draws from numpy's global stream

    def iqm(x):  # [runs, 1, points] -> [points]; rliable.metrics.aggregate_iqm at every point
        return trim_mean(x[:, 0], proportiontocut=0.25, axis=0)

    estimate, interval = library.get_interval_estimates({"": scores[:, None, :]}, iqm, reps=RESAMPLES)
    return estimate[""], interval[""][0], interval[""][1]


def summarize(group):
    """All evaluations of one algorithm at one length -> one row of the summary."""
    last = group.groupby("seed").last()
    iqm, low, high = (x[0] for x in iqm_with_interval(last["eval_return"].to_numpy()[:, None]))
    solved = group[group["eval_success"] >= SOLVED].groupby("seed")["global_step"].min()
    first = solved.reindex(last.index).fillna(np.inf)  # unsolved runs count as later than all others
    return pd.Series(
        {
            "runs": len(last),
            "solved_at_end": int((last["eval_success"] >= SOLVED).sum()),
            "final_return_iqm": round(iqm, 2),
            "final_return_low": round(low, 2),
            "final_return_high": round(high, 2),
            "solved_ever": len(solved),
            "steps_to_95_median": first.median(),
            "steps_to_95_max": first.max(),
            "sps_median": last["sps"].median(),
            "seconds_median": round(last["wall_time"].median(), 1),
            "advantage_share_median": round(last["intrinsic_advantage_share"].dropna().median(), 3),
            "attention_entropy_median": round(last["intrinsic_attention_entropy"].dropna().median(), 3),
        }
    )


def markdown(summary):
    lines = [
        "| L | | runs | solved at the end | final return, IQM [95 % CI] | published | steps to 95 %, median (max) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in summary.itertuples():
        published = PUBLISHED.get(row.chain_length, ("", ""))[row.algorithm == "ppo_metairn"]
        interval = f"{row.final_return_iqm:.2f} [{row.final_return_low:.2f}, {row.final_return_high:.2f}]"
        steps = f"{row.steps_to_95_median:,.0f} ({row.steps_to_95_max:,.0f})"
        solved = f"{row.solved_at_end} of {row.runs}"
        lines.append(
            f"| {row.chain_length} | `{row.algorithm}` | {row.runs} | {solved} | {interval} | {published} | {steps} |"
        )
    return "\n".join(lines) + "\n"


def plot(evaluations, path):
    lengths = sorted(evaluations["chain_length"].unique())
    figure, axes = plt.subplots(1, len(lengths), figsize=(10, 2.9), sharey=True, layout="constrained", squeeze=False)
    for axis, length in zip(axes[0], lengths, strict=True):
        for algorithm, color in COLORS.items():
            runs = evaluations[(evaluations["algorithm"] == algorithm) & (evaluations["chain_length"] == length)]
            if runs.empty:
                continue
            table = runs.pivot(index="seed", columns="global_step", values="eval_return")
            iqm, low, high = iqm_with_interval(table.to_numpy())
            steps = table.columns / 1000
            width = 4 if algorithm == "ppo_vanilla" else 1.5  # where the two coincide, both are seen
            axis.plot(steps, iqm, color=color, linewidth=width, label=f"{algorithm} (IQM of {len(table)} runs)")
            axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        if length in PUBLISHED:
            axis.axhline(PUBLISHED[length][0], color="0.4", linestyle=":", label="published PPO, after 100k steps")
            axis.axhline(PUBLISHED[length][1], color="0.4", linestyle="--", label="published MetaIRN, after 100k steps")
        axis.set(title=f"L = {length}", xlabel="environment steps (thousands)", ylim=(-4, 11))
        axis.xaxis.label.set_size(8)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("evaluation return")
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=130)


def main(args):
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.runs is not None:
        collect(args.runs).to_csv(out / "evaluations.csv", index=False)
    if not (out / "evaluations.csv").exists():
        sys.exit(f"error: {out / 'evaluations.csv'} does not exist: collect runs into it with --runs RUNS_DIR")
    evaluations = pd.read_csv(out / "evaluations.csv")
    keys = ["chain_length", "algorithm"]
    groups = evaluations.groupby(keys)[[c for c in evaluations if c not in keys]]
    summary = groups.apply(summarize).reset_index().sort_values(keys, ascending=[True, False])
    counts = ["runs", "solved_at_end", "solved_ever"]
    summary = summary.astype(dict.fromkeys(counts, int))
    summary.to_csv(out / "summary.csv", index=False)
    (out / "summary.md").write_text(markdown(summary))
    plot(evaluations, out / "learning.png")
    print(markdown(summary), end="")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
