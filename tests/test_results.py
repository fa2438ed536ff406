"""The statistics on run folders with known answers, and README.md against what is committed."""

import dataclasses
import json
import re
import shutil
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import rliable.library
import rliable.metrics

import plot_results
import ppo_metairn
import ppo_vanilla

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STUDIES = "\n".join(path.read_text() for path in sorted((ROOT / "results").glob("*.md")))
STEPS = [0, 5_000, 10_000]
RESAMPLES = plot_results.RESAMPLES


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(plot_results, "RESAMPLES", 300)


def write_run(runs, algorithm, length, seed, returns, successes, steps=STEPS, **args):
    """A run folder; of all but vanilla PPO, the first step attends to the last with a weight of 0.25, in the map of
    length L step i (from 0) to step j with a weight of i + j / L, and r_in is 1, 2, 3, ..."""
    folder = runs / f"UmbrellaLength-v0__{algorithm}__{length}__{seed}"
    folder.mkdir(parents=True)
    args = {"exp_name": algorithm, "chain_length": length, "seed": seed, "num_envs": 20, "num_steps": 50} | args
    args = {"env_id": "umbrella_env:UmbrellaLength-v0", "hide_umbrella": False, "total_timesteps": 10_500} | args
    (folder / "args.json").write_text(json.dumps(args))
    columns = {"global_step": steps, "eval_return": returns, "eval_success": successes}
    columns |= {"train_return": np.nan, "train_success": np.nan, "sps": 100.4, "wall_time": 1.234}
    if algorithm != "ppo_vanilla":
        columns |= {"intrinsic_advantage_share": 0.25, "intrinsic_attention_entropy": 1.5}
        attention = np.full((len(steps) - 1, length), 0.75 / (length - 1))
        attention[:, -1] = 0.25
        r_in = np.tile(np.arange(1.0, length + 1), (len(steps) - 1, 1))
        arrays = {"global_step": steps[1:], "r_in_mean": r_in, "first_step_attention": attention}
        arrays["attention_map"] = np.add.outer(np.arange(length), np.arange(length) / length)
        np.savez(folder / "intrinsic.npz", **arrays)
    pd.DataFrame(columns).to_csv(folder / "progress.csv", index=False)
    return folder


def write_plan(runs, *planned):
    """As benchmark.sh writes it: algorithm, length and seed of each run"""
    (runs / "planned").write_text("".join(f"{name} {length} {seed}\n" for name, length, seed in planned))


def plot(runs, out, **args):
    plot_results.main(plot_results.Args(runs=str(runs), out=str(out), **args))


def test_statistics_are_rliables():
    rng = np.random.default_rng(0)
    for runs in (1, 2, 7, 10, 11):
        x, y = rng.normal(size=(runs, 3)), rng.integers(0, 3, size=(8, 3)) / 2
        np.testing.assert_allclose(plot_results.iqm(x), [rliable.metrics.aggregate_iqm(x[:, [i]]) for i in range(3)])
        x = rng.integers(0, 3, size=(runs, 3)) / 2  # ties
        expected = rliable.metrics.probability_of_improvement(x, y)
        np.testing.assert_allclose(plot_results.probability_of_improvement(x, y), [expected])
        thresholds = [0, 0.25, 0.5, 1]
        expected = [rliable.library.run_score_deviation(x, threshold) for threshold in thresholds]
        np.testing.assert_allclose(plot_results.performance_profile(x, thresholds), expected)


def test_known_answers(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    finals = [-10, 1, 2, 3, 4, 5, 6, 100]  # the interquartile mean keeps 2, 3, 4, 5
    for seed, final in enumerate(finals):
        successes = {0: [0, 0, 0], 1: [0, 0, 0.94], 2: [0, 1, 0.9]}.get(seed, [0, 0.5, 0.95])
        write_run(runs, "ppo_vanilla", 3, seed, [0, 0, final], successes)
    write_run(runs, "ppo_metairn", 3, 0, [0, 7, 7], [0, 0.96, 0.96])  # the other seven are missing
    write_plan(runs, *[(name, 3, seed) for name in ("ppo_vanilla", "ppo_metairn") for seed in range(8)])
    plot(runs, out)
    summary = pd.read_csv(out / "summary.csv").set_index("algorithm")
    vanilla, metairn = summary.loc["ppo_vanilla"], summary.loc["ppo_metairn"]
    assert vanilla[["runs", "runs_expected", "solved_ever", "solved_at_end"]].tolist() == [8, 8, 6, 5]
    assert vanilla["final_return_iqm"] == 3.5
    assert vanilla["final_return_low"] < 3.5 < vanilla["final_return_high"]
    # First steps with 95 %: 5,000 once, 10,000 five times, twice never
    assert vanilla.filter(like="steps_to_95").tolist() == [10_000, 10_000, 10_000, np.inf]
    assert metairn[["runs", "runs_expected", "solved_ever", "solved_at_end"]].tolist() == [1, 8, 1, 1]
    assert metairn["final_return_iqm"] == 7
    assert metairn[["final_return_low", "final_return_high"]].isna().all()  # one run has no interval
    assert metairn["steps_to_95_median"] == 5_000
    assert metairn[["intrinsic_advantage_share_median", "intrinsic_attention_entropy_median"]].tolist() == [0.25, 1.5]
    text = (out / "summary.md").read_text()
    assert "| 3 | `ppo_vanilla` | 8/8 | 5 | 3.50 [" in text
    assert "| 10,000 [10,000, 10,000], never |" in text
    assert "| 3 | `ppo_metairn` | 1/8 | 1 | 7.00 [no interval of one run] | 1 | 5,000 [5,000, 5,000], 5,000 |" in text
    assert "Runs left out, for the reasons in `left_out.csv`: 7 of `ppo_metairn` at L = 3." in text
    credit = pd.read_csv(out / "credit.csv.gz")
    assert credit["time"].tolist() == [0, 1, 2, 0, 1, 2]
    assert credit["r_in_mean"].tolist() == [1, 2, 3, 1, 2, 3]
    assert credit["first_step_attention"].tolist() == [0.375, 0.375, 0.25] * 2
    assert pd.read_csv(out / "wall_clock.csv")[["sps", "seconds"]].drop_duplicates().to_numpy().tolist() == [
        [100, 1.23]
    ]


def test_table_by_run(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_run(runs, "ppo_vanilla", 5, 2, [-1, 3, 2], [0.25, 0.95, 0.75])
    write_run(runs, "student", 5, 1, [0, 0, 0], [0.5, 0.5, 0.5])
    write_run(runs, "student", 5, 2, [0, 9, 10], [0.5, 0.96, 1])
    plot(runs, out, figures=())
    columns = "steps_to_95,solved_at_end,final_return,final_success,mean_success,first_to_last"
    assert (out / "runs.csv").read_text().splitlines() == [
        f"algorithm,chain_length,seed,{columns}",
        "ppo_vanilla,5,2,5000,0,2,0.75,0.65,",
        "student,5,1,inf,0,0,0.5,0.5,0.25",
        "student,5,2,5000,1,10,1,0.82,0.25",
    ]
    assert not (out / "credit.csv.gz").exists()  # no ppo_metairn, no --credit-algorithm
    written = (out / "runs.csv").read_bytes()
    (out / "runs.csv").unlink()
    plot_results.main(plot_results.Args(out=str(out), figures=()))  # from the other files
    assert (out / "runs.csv").read_bytes() == written


def test_steps_to_95_by_length(tmp_path, monkeypatch):
    """Two arms, three lengths; one never solves the longest, the other does not have it."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    for seed in (1, 2, 3):
        for length, first in {2: [1, 1], 5: [2, 1], 10: [3, None]}.items():
            for algorithm, solved in zip(["student", "ppo_vanilla"], first, strict=True):
                if solved is not None:
                    late = solved + (algorithm == "student") * (seed == 3)  # the upper quartile of 3 is the last
                    write_run(runs, algorithm, length, seed, [0, 0, 0], [float(i >= late) for i in range(3)])
    figures = {}
    monkeypatch.setattr(
        plt.Figure, "savefig", lambda self, path, **_: figures.update({path.name: self}) or path.touch()
    )
    plot(runs, out, figures=("steps_to_95",), credit_map=("student:5", "student:10"))
    assert (out / "steps_to_95.md").read_text().splitlines()[:5] == [
        "| L | `ppo_vanilla` | `student` |",
        "| --- | --- | --- |",
        "| 2 | 5,000 [5,000, 5,000], 3/3 | 5,000 [5,000, 10,000], 3/3 |",
        "| 5 | 5,000 [5,000, 5,000], 3/3 | 10,000 [10,000, never], 2/3 |",
        "| 10 |  | never [never, never], 0/3 |",
    ]
    assert not (out / "learning.png").exists()
    axis, *maps = next(iter(figures.values())).axes
    top = axis.texts[-1].get_position()[1]
    assert axis.texts[-1].get_text() == "never"
    assert 10_000 < top < axis.get_ylim()[1]
    student, _, bars = axis.containers[1]
    np.testing.assert_allclose(student.get_ydata(), [5_000, 10_000, top])
    ends = [[y for _, y in segment] for segment in bars[0].get_segments()]
    np.testing.assert_allclose(ends, [[5_000, 10_000], [10_000, top], [top, top]])
    never = [line for line in axis.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_ydata()) for line in never] == [[], [top]]
    x = [container[0].get_xdata() for container in axis.containers]
    assert (x[0] < x[1][:2]).all()  # side by side
    assert [m.get_title().splitlines()[0] for m in maps[:2]] == ["credit at L = 5", "credit at L = 10"]
    image = maps[0].images[0]
    assert image.get_array().shape == (5, 5)
    assert image.get_array()[4, 2] == 4.4  # what step 5 gets of step 3
    assert image.get_array()[2, 4] == 2.8
    assert image.get_extent() == [0.5, 5.5, 5.5, 0.5]


def test_steps_to_95_leaves_out_lengths_that_few_arms_have():
    rows = [("teacher", 2, np.inf), ("a", 5, 3_000.0), ("b", 5, np.inf)]
    runs = pd.DataFrame(rows, columns=["algorithm", "chain_length", "steps_to_95"])
    styles = plot_results.assign_styles(["teacher", "a", "b"])
    axis = plot_results.plot_steps_to_95(runs, styles, 10_000, pd.DataFrame()).axes[0]
    assert axis.get_xticks().tolist() == [5]
    assert [container.get_label() for container in axis.containers] == ["a", "b"]
    assert max(axis.get_yticks()) <= 10_000  # above stands "never"
    apart = runs.assign(chain_length=[2, 5, 9])  # no length has half of the arms: all are shown
    axis = plot_results.plot_steps_to_95(apart, styles, 10_000, pd.DataFrame()).axes[0]
    assert axis.get_xticks().tolist() == [2, 5, 9]


def test_credit_map_is_that_of_the_lowest_seed(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for seed in (2, 10):
        write_run(runs, "teacher", 3, seed, [0, 9, 9], [0, 1, 1])
        write_run(runs, "ppo_vanilla", 3, seed, [0, 9, 9], [0, 1, 1])
    plot(runs, out, figures=(), credit_map=("teacher:3",), credit_algorithm="teacher")
    table = pd.read_csv(out / "credit_map.csv.gz")
    assert list(table) == ["algorithm", "chain_length", "seed", "destination", "source", "weight"]
    assert table["seed"].unique() == [2]
    assert table.query("destination == 3 and source == 2")["weight"].tolist() == [2.33]
    assert table.query("destination == 2 and source == 3")["weight"].tolist() == [1.67]
    assert set(pd.read_csv(out / "credit.csv.gz")["algorithm"]) == {"teacher"}
    plot(runs, out, figures=())
    assert not (out / "credit_map.csv.gz").exists()
    assert not (out / "credit.csv.gz").exists()
    args = {"runs": str(runs), "out": str(out)}
    for name in ("teacher:4", "student:3", "ppo_vanilla:3", "teacher"):
        fails(capsys, f"--credit-map {name}: no finished run", credit_map=(name,), **args)
    fails(capsys, "--credit-algorithm ppo_vanilla: no finished run", credit_algorithm="ppo_vanilla", **args)
    fails(capsys, "need --runs", credit_map=("teacher:3",), out=str(out))


def test_settings_may_differ_by_length_and_algorithm(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for seed in (1, 2):
        write_run(runs, "ppo_vanilla", 50, seed, [0, 9, 9], [0, 1, 1])
        write_run(runs, "student", 50, seed, [0, 9, 9], [0, 1, 1], irn="redistribution", gamma=1)
        longer = {"total_timesteps": 20_500, "irn": "redistribution", "gamma": 0.9}
        write_run(runs, "student", 200, seed, [0, 9, 9, 9], [0, 1, 1, 1], [*STEPS, 20_000], **longer)
    plot(runs, out, figures=("learning",))
    settings = json.loads((out / "settings.json").read_text())
    assert settings["ppo_vanilla"]["total_timesteps"] == 10_500
    assert settings["student"]["total_timesteps"] == {"50": 10_500, "200": 20_500}
    assert settings["student"]["gamma"] == {"50": 1, "200": 0.9}
    assert settings["student"]["irn"] == "redistribution"
    assert pd.read_csv(out / "left_out.csv").empty  # ppo_vanilla has no runs of 200 steps, and misses none
    write_run(runs, "student", 200, 3, [0, 9, 9, 9], [0, 1, 1, 1], [*STEPS, 20_000], **longer | {"gamma": 0.8})
    fails(capsys, r"__3 and .*__1 differ in gamma \(0.8, 0.9\)", runs=str(runs), out=str(out))
    shutil.rmtree(runs / "UmbrellaLength-v0__student__200__3")
    other = {"env_id": "umbrella_env:UmbrellaLengthBsuite-v0"}
    write_run(runs, "teacher", 50, 1, [0, 1, 1], [0, 1, 1], **other)
    fails(capsys, "differ in env_id", runs=str(runs), out=str(out))


def test_twelve_arms_look_different():
    arms = ["ppo_metairn", "ppo_vanilla", *"jihgfedcba"]
    styles = plot_results.assign_styles(arms)
    assert list(styles) == ["ppo_vanilla", "ppo_metairn", *"abcdefghij"]
    assert styles["ppo_vanilla"] == {"color": "#0072B2", "marker": "o", "linestyle": "-"}
    assert styles["ppo_metairn"] == {"color": "#D55E00", "marker": "s", "linestyle": "-"}
    assert plot_results.assign_styles(["ppo_metairn"])["ppo_metairn"] == styles["ppo_metairn"]
    for names in (["color", "marker"], ["color", "linestyle"]):  # two lines differ also where no marker is
        assert len({tuple(style[name] for name in names) for style in styles.values()}) == 12


def test_the_bytes_of_a_compressed_table_do_not_depend_on_time(tmp_path, monkeypatch):
    table = pd.DataFrame({"steps": [1_000_000.0, np.inf], "weight": [0.1, 0.123]})
    for name, now in {"a.csv.gz": 1e9, "b.csv.gz": 2e9}.items():
        monkeypatch.setattr(time, "time", lambda now=now: now)
        plot_results.write_table(tmp_path / name, table)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv.gz"), table)
    plot_results.write_table(tmp_path / "c.csv", table)
    assert (tmp_path / "c.csv").read_text() == "steps,weight\n1000000,0.1\ninf,0.123\n"


def test_unsolved_runs_in_the_quartiles():
    def first(*steps):  # seeds that solve at these steps, or never
        rows = [(seed, s, float(s == solved)) for seed, solved in enumerate(steps) for s in STEPS]
        return plot_results.steps_to_solve(pd.DataFrame(rows, columns=["seed", "global_step", "eval_success"]))

    assert first(5_000, None, 10_000).tolist() == [5_000, np.inf, 10_000]
    assert first(None).tolist() == [np.inf]
    assert first(0, 0).tolist() == [0, 0]


def test_aggregates_over_lengths(tmp_path):
    """Two lengths; seed 3 lacks one of them and takes part in neither."""
    runs, out = tmp_path / "runs", tmp_path / "out"
    for seed in (1, 2, 3):
        write_run(runs, "ppo_vanilla", 2, seed, [0, 0, 6], [0, 0, 1])
        write_run(runs, "ppo_metairn", 2, seed, [0, 6, 6 + 3 * (seed == 1)], [0, 0, 1])
        if seed < 3:
            write_run(runs, "ppo_vanilla", 5, seed, [0, 0, 3], [0, 0, 1])
            write_run(runs, "ppo_metairn", 5, seed, [0, 12, 12], [0, 0, 1])
    plot(runs, out)
    table = pd.read_csv(out / "aggregate.csv").set_index(["score", "statistic", "algorithm"])
    assert (table["seeds"] == 2).all()
    final = table.loc["final return"]["estimate"]
    assert final["IQM", "ppo_vanilla"] == 0.45  # of 0.6, 0.6, 0.3, 0.3
    assert final["median", "ppo_vanilla"] == 0.45
    assert final["optimality gap", "ppo_vanilla"] == 0.55
    assert final["IQM", "ppo_metairn"] == 1.05  # of 0.6, 0.9, 1.2, 1.2: the middle two
    assert final["median", "ppo_metairn"] == 0.975  # of the means 0.75 and 1.2
    assert final["optimality gap", "ppo_metairn"] == 0.125  # more than the optimum does not count
    assert final["P(better than PPO)", "ppo_metairn"] == 0.875  # L = 2: one of two seeds ties; L = 5: better
    training = table.loc["mean return over training"]["estimate"]
    assert training["IQM", "ppo_vanilla"] == 0.15
    assert training["P(better than PPO)", "ppo_metairn"] == 1
    assert (table["low"] <= table["estimate"]).all()
    assert (table["estimate"] <= table["high"]).all()


def test_arms_beside_ppo_and_the_oracle(tmp_path):
    """By hand, in units of the optimum: means over training of 0.2 (ppo), 0.7 (oracle), 0.4 and 0.6 (x): 0.6 of it.
    The ends of the interval are those of x's IQM, since the others do not vary."""
    for seed in (1, 2):
        for length in (2, 5):
            for arm, height in {"ppo": 2, "oracle": 7, "x": 4 if seed == 1 else 6}.items():
                write_run(tmp_path / "runs", arm, length, seed, [height] * 3, [0, 0, 1])
    plot(tmp_path / "runs", tmp_path / "out", figures=("aggregate",))
    table = pd.read_csv(tmp_path / "out" / "aggregate.csv").set_index(["statistic", "algorithm"])
    gap = table.loc["gap closed"]
    assert gap.index.tolist() == ["x"]  # of the mean over training alone
    assert gap.loc["x", ["score", "seeds"]].tolist() == ["mean return over training", 2]
    assert gap.loc["x", ["estimate", "low", "high"]].tolist() == [0.6, 0.4, 0.8]
    assert table.loc["P(better than PPO)"].index.tolist() == ["oracle", "x"] * 2
    assert (table.loc["P(better than PPO)", ["estimate", "low", "high"]] == 1).all(axis=None)
    text = (tmp_path / "out" / "aggregate.md").read_text()
    assert "| mean return over training | gap closed |  |  | 0.600 [0.400, 0.800] |" in text


def test_no_seed_is_complete(tmp_path):
    """Then there are no aggregates, and all else is still drawn."""
    write_run(tmp_path / "runs", "ppo_vanilla", 2, 1, [0, 0, 6], [0, 0, 1])
    write_run(tmp_path / "runs", "ppo_vanilla", 5, 2, [0, 0, 6], [0, 0, 1])
    write_plan(tmp_path / "runs", *[("ppo_vanilla", length, seed) for length in (2, 5) for seed in (1, 2)])
    plot(tmp_path / "runs", tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "aggregate.csv").empty
    assert "`ppo_vanilla`, 0 seeds at every length" in (tmp_path / "out" / "aggregate.md").read_text()
    assert pd.read_csv(tmp_path / "out" / "summary.csv")[["runs", "runs_expected"]].to_numpy().tolist() == [[1, 2]] * 2
    assert "nan" not in (tmp_path / "out" / "wall_clock.md").read_text()


def test_the_interval_covers_the_truth():
    """95 % intervals of the IQM of 10 normal runs should cover 0 in most of 60 repetitions; the bootstrap of so few
    runs is known to be too narrow: about 90 %. Below 47 of 60 would be 3 standard deviations under that."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        _, low, high = plot_results.bootstrap(lambda x: plot_results.iqm(x)[0], rng.normal(size=(10, 1, 1)))
        covered += low[0] < 0 < high[0]
    assert 47 <= covered < 60


def test_runs_are_resampled_within_each_length():
    """Scores differ by 100 between lengths, and not within: a bootstrap that mixed lengths would have an interval."""
    scores = np.array([[0.0, 100.0]] * 5)
    _, low, high = plot_results.bootstrap(lambda x: np.array([x.mean()]), scores)
    assert low == high == 50


def test_runs_that_cannot_be_used_are_named_and_left_out(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    write_run(runs, "ppo_vanilla", 2, 1, [0, 5, 9], [0, 0.5, 1])
    write_run(runs, "ppo_vanilla", 2, 2, [0, 5], [0, 0.5], STEPS[:2])
    write_run(runs, "ppo_vanilla", 2, 3, [0, np.nan, 9], [0, 0.5, 1])
    write_run(runs, "ppo_vanilla", 2, 4, [0, 5, np.inf], [0, 0.5, 1])
    (write_run(runs, "ppo_vanilla", 2, 5, [0, 0, 0], [0, 0, 0]) / "progress.csv").unlink()
    (write_run(runs, "ppo_vanilla", 2, 6, [0, 0, 0], [0, 0, 0]) / "progress.csv").write_text("")
    write_run(runs, "ppo_metairn", 2, 1, [0, 5, 9], [0, 0.5, 1])
    (write_run(runs, "ppo_metairn", 2, 2, [0, 5, 9], [0, 0.5, 1]) / "intrinsic.npz").write_text("damaged")
    (write_run(runs, "ppo_vanilla", 2, 7, [0, 0, 0], [0, 0, 0]) / "args.json").write_text("{")
    write_plan(runs, *[("ppo_metairn", 2, seed) for seed in (1, 2, 3, 6, 3)], ("ppo_vanilla", 2, 7))
    plot(runs, out)
    err = capsys.readouterr().err
    for seed, why in {
        2: "unfinished: stopped at step 5000",
        3: "not finite",
        4: "not finite",
        5: "No such file",
    }.items():
        assert re.search(f"left out: ppo_vanilla, L = 2, seed {seed}: .*{why}", err)
    for name, seed in (("ppo_metairn", 3), ("ppo_metairn", 6), ("ppo_vanilla", 7)):
        assert f"{name}, L = 2, seed {seed}: missing: there is no readable run folder" in err
    assert re.search("__ppo_vanilla__2__7/args.json cannot be read: JSONDecodeError", err)
    assert set(pd.read_csv(out / "evaluations.csv.gz")["seed"]) == {1}
    assert len(pd.read_csv(out / "left_out.csv")) == err.count("left out: ") == 9
    summary = pd.read_csv(out / "summary.csv")
    assert summary[["runs", "runs_expected"]].to_numpy().tolist() == [[1, 7], [1, 4]]


def test_an_algorithm_may_have_seeds_of_its_own(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for seed in (1, 2):
        write_run(runs, "ppo_vanilla", 2, seed, [0, 5, 9], [0, 0.5, 1])
        write_run(runs, "ppo_metairn", 2, seed + 1, [0, 5, 9], [0, 0.5, 1])
    plot(runs, out)
    assert "left out" not in capsys.readouterr().err
    assert pd.read_csv(out / "summary.csv")["runs_expected"].tolist() == [2, 2]


def fails(capsys, message, **args):
    with pytest.raises(SystemExit) as error:
        plot_results.main(plot_results.Args(**args))
    assert error.value.code == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ")
    assert re.search(message, err[-1])


def test_bad_input(tmp_path, capsys):
    runs, out = tmp_path / "runs", str(tmp_path / "out")
    fails(capsys, "there is no finished run in .*runs", runs=str(runs), out=out)
    fails(capsys, "does not hold what an earlier call collected", out=out)
    write_run(runs, "ppo_vanilla", 2, 1, [0, 5], [0, 0.5], STEPS[:2])
    fails(capsys, "there is no finished run in .*runs", runs=str(runs), out=out)
    write_run(runs, "ppo_vanilla", 2, 2, [0, 5, 9], [0, 0.5, 1])
    fails(capsys, "--credit-seed 2: no finished run", runs=str(runs), out=out, credit_seed=2)
    write_run(runs, "ppo_vanilla", 2, 3, [0, 5, 9], [0, 0.5, 1], gamma=0.9)
    fails(capsys, r"__3 and .*__2 differ in gamma \(0.9, None\)", runs=str(runs), out=out)
    (tmp_path / "file").touch()
    shutil.rmtree(runs / "UmbrellaLength-v0__ppo_vanilla__2__3")
    fails(capsys, "--out .*file cannot be made: File exists", runs=str(runs), out=str(tmp_path / "file"))


def test_settings_that_the_paper_has_not_measured_show_no_published_numbers(tmp_path):
    for name, args in {"paper": {}, "hidden": {"hide_umbrella": True}}.items():
        args |= {"total_timesteps": 100_000, "num_envs": 2_000}
        write_run(tmp_path / name, "ppo_vanilla", 2, 1, [0, 9], [0, 1], [0, 100_000], **args)
        plot(tmp_path / name, tmp_path / name / "out")
    assert "published" in (tmp_path / "paper" / "out" / "summary.md").read_text()
    assert "published" not in (tmp_path / "hidden" / "out" / "summary.md").read_text()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figures_are_drawn_and_are_the_same_each_time(tmp_path, suffix):
    for seed in (1, 2, 3):
        for length in (2, 5):
            write_run(tmp_path / "runs", "ppo_vanilla", length, seed, [0, seed, 9], [0, 0.5, 1])
            write_run(tmp_path / "runs", "ppo_metairn", length, seed, [0, seed / 2, 9], [0, 0.5, 1])
    maps = "ppo_metairn:5", "ppo_metairn:2"
    plot(tmp_path / "runs", tmp_path / "out", format=suffix, credit_map=maps)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    names = get_args(plot_results.FIGURES)
    assert {f"{name}.{suffix}" for name in names} == {name for name in first if name.endswith(suffix)}
    assert not any(name.startswith(".") for name in first)
    assert sum(name.endswith(".gz") for name in first) == 3
    plot_results.main(plot_results.Args(out=str(tmp_path / "out"), format=suffix))  # from the CSV files alone
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    plot(tmp_path / "runs", tmp_path / "few", format=suffix, figures=("wall_clock",))
    few = {path.name for path in (tmp_path / "few").iterdir()}
    assert few == {n for n in first if not n.endswith(suffix)} - {"credit_map.csv.gz"} | {f"wall_clock.{suffix}"}
    if suffix == "png":
        for name in names:
            image = plt.imread(tmp_path / "out" / f"{name}.png")[..., :3]
            assert (image.min(-1) < 0.9).mean() > 0.02  # not blank
            assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50  # not only axes


@pytest.mark.parametrize(
    "folder", [path.parent for path in sorted((ROOT / "results").rglob("settings.json"))], ids=lambda p: p.name
)
def test_committed_tables_are_recomputed_from_the_committed_csv_files(tmp_path, folder, monkeypatch):
    """To the byte; of most studies, for time, only the tables without bootstrap intervals."""
    whole = folder.name in {"one_run", "protocol", "Hopper-v5"}
    monkeypatch.setattr(plot_results, "RESAMPLES", RESAMPLES if whole else 20)
    assert RESAMPLES >= 5_000
    for path in folder.iterdir():
        if path.name.endswith(".csv.gz") or path.name in {"wall_clock.csv", "left_out.csv", "settings.json"}:
            shutil.copy(path, tmp_path)
    plot_results.main(plot_results.Args(out=str(tmp_path), figures=()))
    tables = [path.name for path in tmp_path.iterdir() if path.suffix != ".gz"]
    env_id = next(iter(json.loads((folder / "settings.json").read_text()).values()))["env_id"]
    of_umbrella = {"steps_to_95.md", "aggregate.csv"} if env_id in plot_results.OPTIMUM else set()
    assert {"runs.csv", "summary.csv", "summary.md"} | of_umbrella <= set(tables)
    for name in tables if whole else {"runs.csv", "steps_to_95.md", "wall_clock.md"} & set(tables):
        assert (tmp_path / name).read_text() == (folder / name).read_text()
    runs, left_out = pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "left_out.csv")
    assert len(pd.read_csv(folder / "wall_clock.csv")) == len(runs)
    everything = pd.concat([runs, left_out])[plot_results.RUN]  # the failed ones too
    assert not everything.duplicated().any()
    cells = everything.groupby(["algorithm", "chain_length"])["seed"].agg(set)
    assert all(seeds <= others or seeds >= others or not seeds & others for seeds in cells for others in cells)


STUDIED = [  # of several environments, each has a folder in the study's
    path
    for path in sorted((ROOT / "results").rglob("settings.json"))
    if any(folder.joinpath("study.txt").exists() for folder in path.parents[:2])
]


@pytest.mark.parametrize("path", STUDIED, ids=lambda path: path.parent.name)
def test_the_studies_arms_are_those_of_the_settings(path):
    """Every option in study.txt is the one that its runs had; and every length has its runs."""
    settings = json.loads(path.read_text())
    runs = pd.read_csv(path.parent / "runs.csv")
    study = next(folder / "study.txt" for folder in path.parents if (folder / "study.txt").exists())
    arms = [line.split() for line in study.read_text().splitlines() if line and not line.startswith("#")]
    arms = [arm for arm in arms if arm[0] in settings or study.parent == path.parent]
    assert {arm[0] for arm in arms} == set(settings)
    expected = {(name, int(length)) for name, _, lengths, *_ in arms for length in lengths.split(",")}
    assert set(zip(runs["algorithm"], runs["chain_length"], strict=True)) == expected
    for name, _, lengths, steps, *options in arms:
        for word in [word for word in options if word.startswith("@")]:
            stored = json.loads((ROOT / word[1:]).read_text())
            flags = [f"--{option.replace('_', '-')} {value}" for option, value in stored.items()]
            options[options.index(word)] = " ".join(flags)
        out = str(path.parent.relative_to(ROOT / "results")).removesuffix("/fresh")
        options = " ".join(options).replace("{out}", f"runs/{out}")
        said = dict(re.findall(r"--(\S+)(?: (?!--)(\S+))?", options)) | {"total-timesteps": steps}
        for option, value in said.items():
            if option.replace("-", "_") in plot_results.DIFFER:  # not in settings
                continue
            had = settings[name].get(option.replace("-", "_"))
            if had is None and option == "held-steps":  # of a time when no policy was held
                had = 0
            if had is None and option.startswith("outer-"):  # its default
                had = settings[name][option.removeprefix("outer-").replace("-", "_")]
            for length in lengths.split(","):
                here = had[length] if isinstance(had, dict) else had
                assert value == here or str(here) == (value or "True") or float(value) == here


@pytest.mark.parametrize("path", ["README.md", "results/README.md", "results/older_studies.md"])
def test_readmes_show_the_committed_tables(path):
    text = (ROOT / path).read_text()
    for name, table in re.findall(r"<!-- (results/\S+\.md) -->\n(.*?)<!-- end -->", text, flags=re.DOTALL):
        assert table == (ROOT / name).read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("#", "http"))]
    for link in links:
        assert (ROOT / path).parent.joinpath(link.split("#")[0]).exists(), link
    for name in re.findall(r"STUDY=(results/\S+)", text):
        assert (ROOT / name).exists(), name


def results(name, table):
    return pd.read_csv(ROOT / "results" / name / table)


def said(text):
    """Whether a page of results/ says this, wherever its lines break"""
    return " ".join(text.split()) in " ".join(STUDIES.split())


def mean_returns(folder):
    """{arm: how its mean return is said} of a summary.csv: iqm, interval, share of the gap, better; helps: surely"""
    table = results(folder, "summary.csv").set_index("algorithm")
    means = {}
    for arm, row in table.filter(like="mean_return").iterrows():
        share, better = row.filter(like="share"), row.filter(like="better")
        iqm = row[["mean_return_iqm", "mean_return_low", "mean_return_high"]]
        means[arm] = SimpleNamespace(
            iqm=f"{iqm.iloc[0]:,.0f}",
            interval="{:,.0f} [{:,.0f}, {:,.0f}]".format(*iqm),
            share=plot_results.interval_text(*share),
            better=plot_results.interval_text(*better),
            helps=better.iloc[1] > 0.5,
        )
    return means


def medians(study):
    """{(algorithm, length): median steps to 95 % success}"""
    return results(study, "summary.csv").set_index(["algorithm", "chain_length"])["steps_to_95_median"].to_dict()


def steps_said(study, algorithm, *lengths):
    return ", ".join(plot_results.steps_text(medians(study)[algorithm, length]) for length in lengths)


def test_what_is_said_of_carry_over():
    lengths = 50, 100, 200, 500
    summary = results("carry_over", "summary.csv").set_index(["algorithm", "chain_length"])
    steps = medians("carry_over")
    for arm in ("student", "oracle", "supervised"):
        assert said(f"{steps_said('carry_over', arm, *lengths)}")
        assert (summary.loc[arm, ["runs", "solved_ever"]] == 20).all(axis=None)
    assert said(f"(medians {steps_said('carry_over', 'ppo', *lengths)})")
    assert all(steps["student", length] <= 1.3 * steps["oracle", length] for length in lengths)
    ratios = [steps["ppo", length] / steps["student", length] for length in lengths]
    assert said(f"still needs {min(ratios):.1f} to {max(ratios):.1f} times as many steps")
    for length in lengths:  # the intervals are apart
        assert summary.loc[("student", length), "steps_to_95_q3"] < summary.loc[("ppo", length), "steps_to_95_q1"]
    together = [50_000 + steps["student", length] for length in lengths]
    assert said(f"needs {', '.join(map(plot_results.steps_text, together))} steps in all")
    assert [50_000 + steps["student", length] < steps["ppo", length] for length in lengths] == [
        False,
        False,
        True,
        True,
    ]
    weights = results("carry_over", "runs.csv").groupby(["algorithm", "chain_length"])["first_to_last"].min()
    assert said(f"at least {weights['teacher', 10]:.2f} at L = 10")
    assert said(", ".join(f"{weights['student', length]:.3f}" for length in lengths))
    readme = " ".join(README.split())
    assert f"{steps_said('carry_over', 'student', *lengths)} steps" in readme
    assert f"{steps_said('carry_over', 'ppo', *lengths)}" in readme


def test_what_is_said_of_other_teachers():
    summary = results("carry_over_teachers", "summary.csv").set_index(["algorithm", "chain_length"])
    arms = "of5", "of10short", "of20", "of50"
    assert said(", ".join(plot_results.steps_text(summary.loc[(arm, 200), "steps_to_95_median"]) for arm in arms))
    assert all(summary.loc[(arm, 200), "solved_ever"] == summary.loc[(arm, 200), "runs"] for arm in arms[:3])
    solved = [summary.loc[(arm, 50), "solved_ever"] for arm in ("ofattention", "ofmlp")]
    number = int(summary["runs"].max())
    assert said(f"solved at L = 50 by {solved[0]:.0f} of {number} and {solved[1]:.0f} of {number} students")
    runs = results("carry_over_teachers", "runs.csv").query("chain_length == 200").groupby("algorithm")["final_success"]
    assert said(f"of {runs.median()['ofattention']:.2f} and {runs.median()['ofmlp']:.2f} (medians)")


def test_what_is_said_of_other_students():
    ppo, tuned = medians("carry_over"), medians("carry_over_students")
    pairs = [tuple(f"{x['tuned' if x is tuned else 'ppo', L]:,.0f}" for L in (50, 200)) for x in (tuned, ppo)]
    assert said(
        "{} and {} steps at L = 50 and 200, where PPO without the network takes {} and {}.".format(*sum(pairs, ()))
    )
    assert all(tuned["learning", length] <= 1.34 * ppo["student", length] for length in (50, 200))  # one rollout


def test_what_is_said_of_choices():
    weights = results("carry_over", "choices.csv").query("chain_length == 10")
    for variant, sentence in {
        "as it is": "without it {} to {}",
        "queries and keys see the action": "is {} to {},",
    }.items():
        rows = weights[weights["variant"] == variant][["weight_won", "weight_lost"]]
        assert said(sentence.format(f"{rows.min().min():.2f}", f"{rows.max().max():.2f}"))
    columns = results("carry_over", "choices.csv").set_index(["variant", "seed", "chain_length"])
    assert columns.loc["as it is"].equals(columns.loc["rewards flow only backward"])


def test_what_is_said_of_one_run():
    summary = results("carry_over_in_view", "summary.csv").set_index(["algorithm", "chain_length"])
    for algorithm in ("ppo_metairn", "uniform", "student"):
        row = summary.loc[(algorithm, 200)]
        assert said(f"{row['solved_ever']:.0f} of {row['runs']:.0f}, in")
        assert said(f"{row['steps_to_95_median']:,.0f}")
    assert said(f"PPO solves {summary.loc[('ppo_vanilla', 200), 'solved_ever']:.0f} of 10 runs within 100,000 steps")
    summary = results("protocol", "summary.csv")
    assert said(
        f"{summary['solved_at_end'].sum()} of {summary['runs'].sum()} runs end solved. MetaIRN needs at no length"
    )
    steps = summary.set_index(["algorithm", "chain_length"])["steps_to_95_median"]
    assert (steps["ppo_metairn"] <= steps["ppo_vanilla"]).all()
    better = results("protocol", "aggregate.csv").set_index(["score", "statistic", "algorithm"])
    better = better.loc["mean return over training", "P(better than PPO)", "ppo_metairn"]
    assert said(f"probability of {better['estimate']:.3f} [{better['low']:.3f}, {better['high']:.3f}]")
    assert better["low"] > 0.5


def test_what_is_said_of_tuning_ppo():
    """The settings in study.txt are those with the lowest median over all ten tuning seeds."""
    trials = results("carry_over", "tuning.csv")
    assert trials["seed"].between(101, 110).all()
    assert said(f"all {len(trials)} trials")
    options = list(trials.columns[1 : trials.columns.get_loc("seed")])
    settings = json.loads((ROOT / "results" / "carry_over" / "settings.json").read_text())["ppo"]
    for length, rows in trials.groupby("chain_length"):
        cells = rows.groupby(options)["first_95"].agg(["size", "median"]).query("size == 10")["median"]
        used = [x[str(length)] if isinstance(x := settings[name], dict) else x for name in options]
        assert cells.idxmin() == tuple(used)
        if length == 200:
            grid = cells[[epochs <= 10 and clip == 0.3 for _, epochs, *_, clip in cells.index]]
            assert said(f"from {grid.min():,.0f} with the best of the grid to a median of {cells.min():,.0f}")


def test_what_is_said_of_the_protocol_with_the_attention_network():
    summary = results("protocol_attention", "summary.csv")
    assert summary[["runs", "solved_at_end"]].sum().tolist() == [200, 200]
    assert said("200 of 200 runs end solved")
    fresh = results("protocol_attention", "runs.csv").query("seed > 10")
    assert (len(fresh), fresh["solved_at_end"].sum()) == (100, 100)
    overall = results("protocol_attention", "aggregate.csv").set_index(["score", "statistic", "algorithm"])
    better = overall.loc["mean return over training", "P(better than PPO)", "ppo_metairn"]
    assert said(f"is {better['estimate']:.3f} [{better['low']:.3f}, {better['high']:.3f}]: no difference")
    assert better["low"] < 0.5 < better["high"]
    for (_, statistic), rows in overall.groupby(["score", "statistic"]):  # every interval overlaps the other's
        assert statistic.startswith("P(") or rows["low"].max() < rows["high"].min()
    metairn = summary.set_index(["chain_length", "algorithm"]).loc[50, "ppo_metairn"]
    assert said(f"final entropy is {metairn['intrinsic_attention_entropy_median']:.3f}, and ln 50 = 3.912")
    last = results("protocol_attention", "evaluations.csv.gz").query(
        "algorithm == 'ppo_metairn' and chain_length == 50"
    )
    share = last.groupby("seed")["intrinsic_advantage_share"].last()
    old, new = (share[part].median() for part in (share.index <= 10, share.index > 10))
    assert said(
        f"comes from the intrinsic reward is {share.median():.2f} "
        f"(seeds 1 to 10: {old:.2f}, seeds 11 to 20: {new:.2f})."
    )


def test_what_is_said_of_wall_clock_time():
    run = results("protocol_attention", "invocations.csv").set_index("commit").loc["155cdef"]
    clock = results("protocol_attention", "wall_clock.csv").query("seed <= 10")
    seconds = clock.groupby("algorithm")["seconds"].sum()
    assert (run["workers"], run["finished"], run["failed"]) == (2, len(clock), 0)
    assert said(f"100 runs, took {run['seconds']} s with two at a time")
    assert said(f"{seconds.sum() / (2 * run['seconds']):.0%} of the time is training".replace("%", " %"))
    assert said(f"start-up, {(2 * run['seconds'] - seconds.sum()) / 100:.1f} s a run")
    assert said(f"MetaIRN takes {seconds['ppo_metairn'] / seconds['ppo_vanilla']:.1f} times as long")
    for row in pd.read_csv(ROOT / "results" / "speed.csv").itertuples():
        numbers = f"{row.steps_per_second:,} | {row.seconds_with_startup} | {row.peak_memory_mb} MB"
        assert said(f"| `{row.script}` | {row.chain_length} | {numbers} |")


def test_what_is_said_of_the_hidden_umbrella():
    hidden = results("hide_umbrella", "runs.csv").query("chain_length == 50")
    wrong = (hidden["final_success"] < 0.05).sum()
    assert said(f"{wrong} of the {len(hidden)} runs at L = 50 even end wrong in more than 95 %")
    assert not hidden["solved_at_end"].any()
    undiscounted = results("hide_umbrella_undiscounted", "summary.csv").query("chain_length == 50")
    assert undiscounted["solved_ever"].tolist() == [9, 9]
    assert said("9 of 10 runs of either script get to 95 % at L = 50")
    summary = results("hide_umbrella_far_sighted", "summary.csv").set_index(["chain_length", "algorithm"])
    metairn, vanilla = summary.loc[50, "ppo_metairn"], summary.loc[50, "ppo_vanilla"]
    solved = (
        f"{metairn['solved_ever']:.0f} of 10 runs get to 95 % ({metairn['solved_at_end']:.0f} are there at the end)"
    )
    assert said(f"{solved}, against {vanilla['solved_ever']:.0f} of 10")
    intervals = [plot_results.interval_text(*row.filter(like="final_return")) for row in (metairn, vanilla)]
    assert said(f"{intervals[0]} against {intervals[1]}.")
    assert metairn["final_return_low"] > vanilla["final_return_high"]
    solved = summary.loc[20]["solved_at_end"]
    assert solved["ppo_vanilla"] == 10
    assert said(f"MetaIRN {solved['ppo_metairn']} at the end")
    near = results("hide_umbrella_near_sighted", "summary.csv").set_index("chain_length")
    assert said(f"{near.loc[50, 'solved_ever']} of 10 instead of {metairn['solved_ever']:.0f} of 10 runs")
    assert near.loc[50, "steps_to_95_q1"] > metairn["steps_to_95_q1"]  # later
    assert near.loc[20, "solved_at_end"] == 10


def test_what_is_said_of_the_far_sighted_networks_attention():
    credit = results("hide_umbrella_far_sighted", "credit.csv.gz").query("chain_length == 50")
    last = credit[credit["global_step"] == credit["global_step"].max()]
    attention = last.set_index(["seed", "time"])["first_step_attention"].unstack("time")
    assert attention.index[attention[49] > 0.5].tolist() == [1, 9, 10]
    assert attention.index[attention[0] > 0.5].tolist() == [2, 4, 7]
    runs = results("hide_umbrella_far_sighted", "runs.csv").query("algorithm == 'ppo_metairn' and chain_length == 50")
    runs = runs.set_index("seed")
    assert (runs["first_to_last"] == attention[49]).all()
    assert set(runs.index[np.isfinite(runs["steps_to_95"])]) & {1, 9, 10, 2, 4, 7} == {9, 10}
    assert said("in seeds 1, 9 and 10 (two of them are solved), and to itself in seeds 2, 4 and 7 (none is)")
    assert 175 < last.groupby("seed")["r_in_mean"].mean().abs().max() < 185
    assert said("to 180 in one seed")


def test_what_is_said_of_earlier_defaults():
    earlier = pd.read_csv(ROOT / "results" / "earlier_defaults.csv")
    unsolved = earlier[earlier["eval_success"] < plot_results.SOLVED]
    assert set(zip(unsolved["algorithm"], unsolved["chain_length"], strict=True)) == {("ppo_metairn", 50)}
    assert [int((unsolved["defaults"] == n).sum()) for n in (1, 2, 3, 4)] == [1, 0, 2, 0]


def test_what_is_said_of_tuning_with_the_umbrella_hidden():
    tuning = pd.read_csv(ROOT / "results" / "tuning_hide_umbrella.csv")
    assert tuning["seed"].between(101, 120).all()
    far = tuning[(tuning["outer_gae_lambda"] == 1) & (tuning["gae_lambda"] < 1)]
    slow = far[far["meta_learning_rate"] <= 1e-3]
    assert said(f"1e-3 and less, {np.isfinite(slow['first_95_step']).sum()} of {len(slow)} runs were ever solved")
    fast = far[(far["meta_learning_rate"] == 1e-2) & (far["learning_rate"] == 4e-3) & (far["intrinsic_coef"] == 1)]
    fast = fast[(fast["extrinsic_coef"] == 1) & fast["target_kl"].isna()]
    mlp, attention = (np.isfinite(fast[fast["irn"] == irn]["first_95_step"]) for irn in ("mlp", "attention"))
    assert said(f"solved {mlp.sum()} of {len(mlp)} seeds where attention solved {attention.sum()} of {len(attention)}.")


def test_readme_lists_every_option_with_its_default():
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| (.*?) \|", README, flags=re.MULTILINE))
    for args in (ppo_vanilla.Args(), ppo_metairn.Args()):
        for f in dataclasses.fields(args):
            if f.init and f.name != "exp_name":
                default = getattr(args, f.name)
                shown = {"None": "", "True": "on", "False": "off"}.get(str(default), f"`{default}`")
                assert rows[f.name.replace("_", "-")] == shown
    assert len(rows) == sum(f.init for f in dataclasses.fields(ppo_metairn.Args))


def test_what_is_said_of_learning_in_one_run():
    lengths = 50, 100, 200, 500
    summary = results("one_run", "summary.csv").set_index(["algorithm", "chain_length"])
    learned, oracle = summary.loc["learned"], summary.loc["oracle"]
    tunings = summary.loc["ppo"], summary.loc["ppo.tpe"]
    ppo = pd.concat(
        [min(tunings, key=lambda x: x.loc[length, "steps_to_95_median"]).loc[[length]] for length in lengths]
    )
    readme, steps = " ".join(README.split()), "steps_to_95_median"
    needs = ", ".join(map(plot_results.steps_text, ppo[steps]))
    for text in (readme, " ".join(STUDIES.split())):
        assert f"{learned['solved_ever'].sum():.0f} of {learned['runs'].sum():.0f} runs" in text
        assert steps_said("one_run", "learned", *lengths) in text
        solved = f"{ppo['solved_ever'].sum():.0f} of {ppo['runs'].sum():.0f}"
        assert f"the better of two tunings at each length, needs {needs} and solves {solved}" in text
    ratios = ppo[steps] / learned[steps]
    assert f"{ratios.min():.1f} to {ratios.max():.1f} times sooner" in readme
    share = (ppo[steps] - learned[steps]) / (ppo[steps] - oracle[steps])  # of the gap to perfect credit that is closed
    assert said(", ".join(f"{x:.0%}".replace("%", " %") for x in share))
    for tuning in tunings:  # apart by more than chance: their quartiles do not overlap
        assert (learned["steps_to_95_q3"] < tuning["steps_to_95_q1"]).all()
    overall = results("one_run", "aggregate.csv").set_index(["score", "statistic", "algorithm"])
    second = overall.loc["mean return over training", "P(better than PPO)", "ppo.tpe"]
    assert said(f"ahead with a probability of {second['estimate']:.3f} [{second['low']:.3f}, {second['high']:.3f}]")


def test_what_is_said_of_learning_in_one_run_with_the_umbrella_in_view():
    summary = results("one_run_in_view", "summary.csv").set_index(["algorithm", "chain_length"])
    steps = summary["steps_to_95_median"].unstack(0)
    assert (steps["learned"] <= steps["ppo"]).all()
    cells = {(arm, length): f"{steps.loc[length, arm]:,.0f}" for arm in ("ppo.tpe", "learned") for length in (50, 200)}
    assert said(f"that brings PPO to {cells['ppo.tpe', 200]} steps, of `learned`'s {cells['learned', 200]}; at L = 50")
    assert said(
        f"at L = 50 to {cells['ppo.tpe', 50]}, before `learned`'s {cells['learned', 50]}, and one of the 5 runs"
    )
    assert summary.loc["ppo.tpe", "solved_ever"].tolist() == [5, 5]
    assert summary.loc[("ppo.tpe", 50), "solved_at_end"] == 4


def test_what_is_said_of_how_many_episodes_it_takes():
    rows = results("one_run", "credit.csv")
    rows["right"] = rows[["weight_won", "weight_lost"]].min(axis=1) > 0.8
    for way in ("held", "one step", "common", "return", "regression"):
        cells = rows[rows["way"] == way].groupby(["chain_length", "episodes"])["right"]
        assert said(f"| `{way}` | {' | '.join(f'{cell.sum()}/{len(cell)}' for _, cell in cells)} |")
    long = rows[(rows["episodes"] == 80) & (rows["chain_length"] > 10)].groupby("way")["right"]
    right, seeds = long.sum(), long.count()
    assert said(f"in {right['return']} of {seeds['return']} seeds, `held` in {right['held']} of {seeds['held']}")
    held = results("one_run", "held.csv").groupby("chain_length")["episodes"]
    assert held.median().to_dict() == {50: 40, 100: 40, 200: 40, 500: 60}
    assert held.max().max() == 120


def test_what_is_said_of_signal_and_noise():
    rows = results("one_run", "signal_to_noise.csv").query("episodes == 80")
    ratios = rows.groupby(["gradient", "chain_length"])["signal_to_noise"].median()
    assert set(rows.groupby(["gradient", "chain_length"]).size()) == {6}
    for name, label in {
        "policy": "policy gradient",
        "policy first": "its part of the first action: what perfect credit leaves",
        "meta initial": "meta-gradient, untrained network",
        "meta right": "meta-gradient after 10 meta steps",
    }.items():
        assert said(f"| {label} | {' | '.join(f'{ratios[name, length]:.2f}' for length in (10, 50, 200))} |")
    assert ratios["policy", 10] / ratios["policy", 200] == pytest.approx(20**0.5, rel=0.2)
    assert ratios["meta initial", 10] / ratios["meta initial", 200] == pytest.approx(2, rel=0.1)
    growth = ratios["meta right"] / ratios["meta initial"]
    assert growth.min() > 1.9
    assert growth.max() < 3.1


def test_what_is_said_of_what_failed_in_one_run():
    gates = results("one_run", "earlier_gates.csv")
    (first, one), (second, two) = gates.groupby("gate", sort=False)["steps_to_95"]
    assert first.startswith("5")
    assert said(f"{np.isinf(one).sum()} of its {len(one)} runs (seeds 1 to 7;")
    assert said(f"{np.isinf(two).sum()} of {len(two)} (seeds 21 to 37)")
    steps = results("one_run", "at_once.csv").groupby("chain_length")["steps_to_95"].apply(sorted)
    assert said(
        f"in {steps[50][0]:,.0f} to {steps[50][-2]:,.0f} steps on {np.isfinite(steps[50]).sum()} of {len(steps[50])}"
    )
    assert said(f"three of four took {steps[200][0]:,.0f} to {steps[200][-2]:,.0f}")
    cartpole = results("one_run", "cartpole.csv")
    returns = cartpole.groupby("arm")["final_return"].agg(list)
    assert said(f"returns of {', '.join(f'{x:.0f}' for x in returns['8 standard errors'])}.")
    assert sorted(returns["learned"], reverse=True)[:6] == [500] * 6
    assert said(f"6 of 8 reached 500 ({', '.join(f'{x:.0f}' for x in returns['learned'] if x < 500)})")
    for arm, text in (("ppo, 32000 steps", "on {} of {} seeds"), ("ppo", "with 40,000 on {} of {}")):
        assert said(text.format(sum(x > 480 for x in returns[arm]), len(returns[arm])))
    uniform = returns["uniform, 32000 steps"]
    assert said(f"below 480 on {sum(x < 480 for x in uniform)} of {len(uniform)}")
    keys, held, released = ["chain_length", "seed"], results("one_run", "held.csv"), results("one_run", "release.csv")
    both = held.merge(released, on=keys)
    assert len(both) == len(released) == len(held)
    assert (both["episodes_x"] == both["episodes_y"]).all()
    least = np.maximum(ppo_metairn.EVIDENCE, ppo_metairn.MARGIN * (released["ppo_evidence"] + 1))
    assert (released["evidence"] > least).all()
    learned = cartpole[cartpole["arm"] == "learned"]
    assert (learned["evidence"] < ppo_metairn.MARGIN * (learned["other_evidence"] + 1)).all()


def test_what_is_said_of_the_second_tuning():
    sights = {
        "hidden_50": (1, 1),
        "hidden_200": (1, 1),
        "in_view_50": (0.999, 1),
        "in_view_200": (1, 1),
        "bsuite_20": (1, 0.9),
    }
    for family, sight in sights.items():
        trials = results("one_run", f"{family}__ppo.csv")
        assert (len(trials), trials["failure"].notna().sum()) == (64, 0)
        best = trials.loc[trials["value_of_all_seeds"].idxmax()]
        winner = json.loads((ROOT / "results" / "one_run" / f"{family}__ppo.json").read_text())
        assert all(float(best[name]) == pytest.approx(value) for name, value in winner.items())
        assert (winner["gamma"], winner["gae_lambda"]) == sight


def test_what_is_said_of_bsuites_rewards():
    readme = " ".join(README.split())
    aggregate = results("bsuite", "aggregate.csv").query("score == 'mean return over training'")
    aggregate = aggregate.set_index(["statistic", "algorithm"])[["estimate", "low", "high"]]
    of = {name: "{:.3f} [{:.3f}, {:.3f}]".format(*row) for name, row in aggregate.iterrows()}
    share, better = of["gap closed", "carried"], of["P(better than PPO)", "carried"]
    assert f"closes {share} of the gap between tuned PPO and perfect credit" in readme
    assert said(
        f"closes {share} of the gap between tuned PPO and perfect credit, and is better than PPO with a probability"
    )
    assert said(f"of {better}; the network as it begins, {of['gap closed', 'uniform']}; learned within the run,")
    assert said(f"learned within the run, {of['gap closed', 'learned']}")
    runs = results("bsuite", "runs.csv").groupby("algorithm")
    success = {arm: f"{x + 1e-9:.2f}" for arm, x in runs["final_success"].median().items()}  # halves go up
    assert f"success rate is {success['carried']}, PPO's {success['ppo']}." in readme
    assert said(f"{success['carried']} for `carried`, {success['carried.ppo']} with the settings")
    assert said(f"(`carried.ppo`, {of['gap closed', 'carried.ppo']} of the gap)")
    assert said(", ".join(f"{success[arm]} for `{arm}`" for arm in ("ppo", "uniform", "learned", "oracle")))
    least, most = runs["first_to_last"].min(), runs["first_to_last"].max()
    assert said(f"{least['carried']:.2f} to {most['carried']:.2f} on the first step, untrained {most['uniform']:.2f}")
    assert said(f"even with perfect credit {runs['solved_at_end'].sum()['oracle']} of 10 runs are solved at the end")
    held = results("bsuite", "evidence.csv")
    assert held.groupby("seed")["global_step"].max().tolist() == 10 * [12_000]
    assert said(
        f"never exceeds {held['evidence'].max() + 0.05:.1f} in {12_000 // 20} episodes, and {ppo_metairn.EVIDENCE:.0f}"
    )
    assert f"no evidence within {12_000 // 20} episodes, on {held['seed'].nunique()} of 10 seeds" in readme
    taught = results("bsuite/teachers", "evidence.csv").groupby("seed").last()
    least = np.maximum(ppo_metairn.EVIDENCE, ppo_metairn.MARGIN * (taught["ppo_evidence"] + 1))
    assert len(taught) == 20
    assert (taught["evidence"] > least).all()
    first, last = taught["global_step"].agg(["min", "max"])
    assert said(f"after {first // 10:,} to {last // 10:,} episodes: {first:,} to {last:,} steps")


def test_what_is_said_of_tuning_all_arms_alike():
    """Each row of the table, and that the arms were tuned alike."""
    tuned = "ppo", "learned", "uniform", "attention", "mlp"
    trials = {arm: results("one_run", f"hidden_50__{arm}.csv").set_index("number") for arm in tuned}
    shared = list(tomllib.loads((ROOT / "results" / "one_run" / "tune.toml").read_text())["space"])
    ppo = trials["ppo"].iloc[:10].reset_index().set_index("learning_rate")
    random = {}
    for arm, table in trials.items():
        assert (len(table), table["failure"].notna().sum()) == (64, 0)
        random[arm] = table.reset_index().set_index("learning_rate").loc[lambda x: x.index.isin(ppo.index)]
        assert random[arm][shared[1:]].equals(ppo.loc[random[arm].index, shared[1:]])
        assert len(random[arm]) == (9 if arm == "mlp" else 10)
        best = table.loc[table["value_of_all_seeds"].idxmax()]
        winner = json.loads((ROOT / "results" / "one_run" / f"hidden_50__{arm}.json").read_text())
        assert all(float(best[name]) == pytest.approx(value) for name, value in winner.items())
    runs = results("one_run_tuned", "runs.csv").groupby("algorithm")
    overall = results("one_run_tuned", "aggregate.csv").set_index(["score", "statistic", "algorithm"])
    overall = overall.loc["mean return over training"]
    for arm, rows in runs:
        assert (rows["seed"].min(), rows["seed"].max(), len(rows)) == (61, 80, 20)
        cells = [f"`{arm}`", "", ""]
        if arm in trials:
            heights = random[arm]["value_at_rung"]
            ahead = (heights > ppo.loc[heights.index, "value_at_rung"]).sum()
            cells[1] = f"{heights.mean():.2f}" + f", {ahead}/{len(heights)}" * (arm != "ppo")
            cells[2] = f"{trials[arm]['value_of_all_seeds'].max():.3f}"
        q1, median, q3 = map(plot_results.steps_text, plot_results.quartiles(rows["steps_to_95"]))
        cells.append(f"{median} [{q1}, {q3}], {np.isfinite(rows['steps_to_95']).sum()}/20")
        for statistic in ("P(better than PPO)", "gap closed"):
            known = (statistic, arm) in overall.index
            values = overall.loc[(statistic, arm), ["estimate", "low", "high"]] if known else None
            cells.append(plot_results.interval_text(*values) if known else "")
        assert said(f"| {' | '.join(cells)} |")
    arms = ["learned", "defaults", "uniform", "attention", "mlp", "ppo"]
    medians = {arm: plot_results.steps_text(runs.get_group(arm)["steps_to_95"].median()) for arm in arms}
    solved = runs["solved_at_end"].sum()
    for text in (
        "a median of {learned} steps, at its defaults {defaults}; its network untrained {uniform}; the paper's "
        "attention network {attention}",
        "LIRPG {mlp}; PPO {ppo}. With",
    ):
        assert text.format(**medians) in " ".join(README.split())
    assert f"but {solved['attention']} of 20 are right at the end" in " ".join(README.split())
    assert said(f"only {solved['attention']} of 20 runs are still right at the end, of `ppo` {solved['ppo']}")


def test_what_is_said_of_the_control():
    evidence = results("one_run_tuned", "evidence.csv").set_index("algorithm").loc["shuffled", "evidence"]
    low, high = f"{evidence.min():.1f}", f"{evidence.max():.1f}"
    assert said(
        f"{len(evidence)} tests lies between {low} and {high}, with a standard deviation of {evidence.std():.2f}"
    )
    assert max(-evidence.min(), evidence.max()) < ppo_metairn.EVIDENCE / 2


def test_what_is_said_of_cartpole_paid_at_the_end():
    arms = "ppo", "lirpg", "uniform", "redistribution"
    trials = {arm: results("cartpole", f"episodic__{arm}.csv").set_index("number") for arm in arms}
    shared = list(tomllib.loads((ROOT / "results" / "cartpole" / "tune.toml").read_text())["space"])
    for arm, table in trials.items():
        assert len(table) == 20
        assert table["failure"].isna().all()
        assert table[shared][:10].equals(trials["ppo"][shared][:10])
        best = table.loc[table["value_of_all_seeds"].idxmax()]
        winner = json.loads((ROOT / "results" / "cartpole" / f"episodic__{arm}.json").read_text())
        assert all(best[name] == pytest.approx(value) for name, value in winner.items())
        assert set(shared) <= set(winner)
    assert trials["ppo"].loc[trials["ppo"]["value_of_all_seeds"].idxmax(), ["gamma", "gae_lambda"]].tolist() == [1, 1]
    ppo, *others = (table["value_at_rung"][:10] for table in trials.values())
    assert all((other > ppo).all() for other in others)
    lirpg, uniform, redistribution = (other.mean() for other in others)
    assert said(f"{lirpg:.0f} against {ppo.mean():.0f} over the first 32,768 steps")
    assert said(f"{uniform:.0f} and {redistribution:.0f}, each ahead of PPO on 10 of 10")
    runs = results("cartpole", "runs.csv").groupby("algorithm")["mean_return"].agg(sorted)
    means = mean_returns("cartpole")
    for arm, after in (("lirpg", ";"), ("redistribution", ")")):
        assert said(f"probability of {means[arm].better}{after}")
    late = ", ".join(f"{x:.0f}" for x in runs["lirpg"][:3])
    assert said(f"with mean returns of {late}; the lowest of `delayed` is {runs['delayed'][0]:.0f}")
    assert runs["lirpg"][2] < runs["delayed"][0] < runs["lirpg"][3]
    summary = results("cartpole", "summary.csv").set_index("algorithm")
    assert summary.loc["lirpg", "mean_return_share"] == pytest.approx(2 / 3, abs=0.05)
    assert f"closes {means['lirpg'].share} of the gap" in " ".join(README.split())
    assert summary.loc["lirpg", "mean_return_share_low"] > 0
    assert summary.loc["lirpg", "final_return_share_low"] < 0
    settings = json.loads((ROOT / "results" / "cartpole" / "settings.json").read_text())
    assert all(settings["same"][name] == settings["lirpg"][name] for name in shared)


def test_what_is_said_of_tuning_with_a_delay():
    folder = ROOT / "results" / "delayed_tuned"
    arms = "ppo", "lirpg", "bonus", "uniform", "learned"
    names = {arm: f"hopper__{arm}" for arm in arms} | {"dense": "hopper_dense__ppo"}
    trials = {arm: results("delayed_tuned", f"{name}.csv").set_index("number") for arm, name in names.items()}
    shared, winners = list(tomllib.loads((folder / "tune.toml").read_text())["space"]), {}
    for arm, table in trials.items():
        assert (len(table), table["failure"].notna().sum()) == (16, 0)
        assert table[shared][:10].equals(trials["ppo"][shared][:10])
        best = table.loc[table["value_of_all_seeds"].idxmax()]
        winners[arm] = json.loads((folder / f"{names[arm]}.json").read_text())
        assert all(best[name] == pytest.approx(value) for name, value in winners[arm].items())
        assert set(shared) <= set(winners[arm])
    ppo, lirpg, bonus, uniform, learned, _ = winners.values()
    assert (ppo["gamma"], ppo["gae_lambda"], lirpg["extrinsic_coef"]) == (0.999, 1, 1)
    assert uniform.items() <= learned.items()  # the same settings
    assert said(f"`bonus` adds {bonus['intrinsic_coef']:.3f} to each step's reward")
    options = tomllib.loads((folder / "tune.toml").read_text())["families"]["hopper"]["options"]
    common = json.loads((folder / "common.json").read_text())
    for option, value in common.items():  # tuned with what the runs have
        assert float(re.search(rf"--{option.replace('_', '-')} (\S+)", options)[1]) == value
    ppo, lirpg, bonus, uniform, learned, _ = (table["value_at_rung"][:10] for table in trials.values())
    for other, name in ((lirpg, "lirpg"), (bonus, "bonus"), (uniform, "uniform"), (learned, "learned")):
        assert said(f"`{name}` {other.mean():.0f}, ahead on {(other > ppo).sum()} of 10")
    assert said(f"a mean return of {ppo.mean():.0f} over the first 65,536 steps")
    runs = results("delayed_tuned", "Hopper-v5/runs.csv").groupby("algorithm")
    means = runs["mean_return"].agg(sorted)
    sizes = {"bonus": 13, "carried.first": 5, "delayed": 20, "dense": 5, "dense.tuned": 5, "learned": 8, "lirpg": 5}
    assert runs.size().to_dict() == sizes | {"uniform": 20}
    assert means["lirpg"][-1] < means["delayed"][0]
    hopper, untuned = mean_returns("delayed_tuned/Hopper-v5"), mean_returns("delayed/Hopper-v5")
    delayed, dense, tuned = (hopper[arm].iqm for arm in ("delayed", "dense", "dense.tuned"))
    assert said(f"of {delayed} with it, of {dense} without, of {tuned} without it and tuned")
    assert said(f"`dense` has {untuned['dense'].iqm}.")
    uniform_, learned_ = hopper["uniform"], hopper["learned"]
    assert said(f"does not help**: {uniform_.iqm} against {delayed}, better with a probability of {uniform_.better}.")
    assert [arm for arm in hopper if hopper[arm].helps] == []
    assert said(f"help either**: {learned_.iqm}, better than `delayed` with a probability of {learned_.better}")
    best = {arm: f"{table['value_of_all_seeds'].max():,.0f}" for arm, table in trials.items()}
    control = hopper["bonus"]
    evaluations = results("delayed_tuned", "Hopper-v5/evaluations.csv.gz").query("global_step == 49152")
    early = evaluations.groupby("algorithm")["eval_return"].agg(lambda x: plot_results.iqm(x.to_numpy()))
    assert said(
        f"a return of {early['bonus']:.0f}, `delayed` {early['delayed']:.0f}; over the whole training {control.iqm},"
    )
    assert said(f"{control.iqm}, better than `delayed` with a probability of {control.better}.")
    bests = "({bonus}, `learned` {learned}, `dense.tuned` {dense}, `uniform` {uniform}, `delayed` {ppo})"
    assert said(bests.format(**best))
    first = results("delayed_tuned", "Hopper-v5/runs.csv").query("seed <= 5").groupby("algorithm")["mean_return"]
    five = {arm: f"{plot_results.iqm(x.to_numpy()[:, None])[0]:,.0f}" for arm, x in first}
    assert said(f"had it ahead, {five['uniform']} against {five['delayed']}; the other fifteen")
    ahead = (uniform > ppo).sum()
    for study, family in (("one_run", "hidden_50"), ("cartpole", "episodic")):
        ppo, uniform = (results(study, f"{family}__{arm}.csv") for arm in ("ppo", "uniform"))
        both = ppo[:10].merge(uniform, on="learning_rate")
        assert len(both) == 10
        ahead += (both["value_at_rung_y"] > both["value_at_rung_x"]).sum()
    assert said(f"ahead of PPO at {ahead} of 30 random settings")
    assert f"ahead of PPO at {ahead} of 30 random settings" in " ".join(README.split())


def test_what_is_said_of_continuous_control():
    for env_id, least in {"Hopper-v4": 2383 - 272, "Walker2d-v4": 2288 - 572, "HalfCheetah-v4": 1443 - 46}.items():
        returns = results("delayed", f"{env_id}/runs.csv")["final_return"]
        cells = [f"{x:,.0f}" for x in (*returns, returns.mean())]
        assert len(cells) == 4
        assert said(f"| {env_id} | {' | '.join(cells)} |")
        assert returns.mean() > least
    runs = results("delayed", "Hopper-v5/runs.csv").set_index(["algorithm", "seed"])
    above = (runs.loc["uniform"] > runs.loc["delayed"]).sum()
    assert said(f"on {above['final_return']} of 3 at the end, on {above['mean_return']} of 3 in the mean over training")
    assert (runs.loc["learned"]["final_return"] < runs.loc["delayed"]["final_return"].median()).all()
    shares = results("delayed", "Hopper-v5/summary.csv").set_index("algorithm").loc["uniform"]
    assert shares["final_return_share_low"] < 0 < shares["final_return_share_high"]
    peer, _, ppo, frozen, mlp = results("delayed", "speed.csv")["steps_per_second"]
    assert said(f"{ppo:,.0f} steps/s here, CleanRL's file, run beside it, {peer:,.0f}")
    assert said(f"MetaIRN frozen {frozen:,.0f}, with `mlp`, which learns at every minibatch, {mlp}")
    assert ppo > 1.5 * peer
    assert min(frozen, mlp) > ppo / 4


def where_they_pay(kernels):
    """Medians over kernels: the number of steps that have half of a reward, the step with the largest share"""
    weights = kernels.filter(like="weight_").to_numpy()  # [kernels, steps before the payment]
    return np.median(1 + (weights.cumsum(axis=1) < 0.5).sum(axis=1)), np.median(weights.argmax(axis=1))


def test_what_is_said_of_credit_carried_over_to_halfcheetah(monkeypatch):
    monkeypatch.setattr(plot_results, "RESAMPLES", RESAMPLES)
    folder = ROOT / "results" / "delayed_tuned"
    trials = {
        name: results("delayed_tuned", f"halfcheetah{name}.csv") for name in ("__ppo", "__uniform", "_dense__ppo")
    }
    for name, table in trials.items():
        assert (len(table), table["failure"].notna().sum()) == (16, 0)
        best = table.loc[table["value_of_all_seeds"].idxmax()]
        winner = json.loads((folder / f"halfcheetah{name}.json").read_text())
        assert all(best[option] == pytest.approx(value) for option, value in winner.items())
    ppo, uniform = (trials[name][:10] for name in ("__ppo", "__uniform"))
    shared = list(tomllib.loads((folder / "tune.toml").read_text())["space"])
    assert ppo[shared].equals(uniform[shared])
    behind = (uniform["value_at_rung"] < ppo["value_at_rung"]).sum()
    assert said(f"At random settings `uniform` is behind PPO on {behind} of 10")
    assert f"behind at {behind} of 10 on HalfCheetah" in " ".join(README.split())
    runs = results("delayed_tuned", "HalfCheetah-v5/runs.csv").groupby("algorithm")
    sizes = {
        "carried.first": 20,
        "delayed": 20,
        "dense": 10,
        "dense.tuned": 10,
        "learned": 5,
        "lirpg": 5,
        "uniform": 10,
    }
    assert runs.size().to_dict() == sizes | {"window": 10}
    of = mean_returns("delayed_tuned/HalfCheetah-v5")
    said_of_delay = "of {} with it, of {} without, of {} without it"
    assert said(said_of_delay.format(*(of[arm].interval for arm in ("delayed", "dense", "dense.tuned"))))
    learned, lirpg = of["learned"].interval, of["lirpg"].interval
    assert said(f"`uniform` {of['uniform'].interval}, tuned as hard, `learned` {learned}, `lirpg` {lirpg}, these two")
    assert not any(of[arm].helps for arm in ("uniform", "learned", "lirpg"))
    fresh = mean_returns("delayed_tuned/HalfCheetah-v5/fresh")
    assert [arm for arm in fresh if fresh[arm].helps] == ["carried", "carried.first", "dense", "window"]
    seeds = results("delayed_tuned", "HalfCheetah-v5/fresh/runs.csv").groupby("algorithm")["seed"].agg(list)
    assert seeds["carried"] == seeds["carried.first"] == seeds["delayed"] == list(range(21, 61))
    assert seeds["dense"] == seeds["window"] == list(range(21, 41))
    carried, first, delayed, window = (fresh[arm] for arm in ("carried", "carried.first", "delayed", "window"))
    assert said(
        f"gives back {carried.share} of what the delay costs**: {carried.interval} against {delayed.interval}, "
        f"better with a probability of {carried.better}."
    )
    summary = results("delayed_tuned", "HalfCheetah-v5/fresh/summary.csv").set_index("algorithm")
    at_the_end = plot_results.interval_text(*summary.loc["carried"].filter(like="final_return_share"))
    assert said(f"At the end of the training it is {at_the_end}.")
    assert said(f"`carried.first` has {first.interval}, {first.share} of the gap.")
    runs = results("delayed_tuned", "HalfCheetah-v5/fresh/runs.csv").groupby("algorithm")["mean_return"]
    both = [runs.get_group(arm).to_numpy()[:, None] for arm in ("carried", "carried.first")]
    ahead = plot_results.bootstrap(plot_results.probability_of_improvement, *both).ravel()
    assert ahead[1] > 0.5
    assert said(f"is better than that with a probability of {plot_results.interval_text(*ahead)}")
    tried = results("delayed_tuned", "HalfCheetah-v5/tried.csv")
    assert tried["seed"].tolist() == list(range(101, 113))
    assert said(f"12 students, which had {plot_results.iqm(tried['mean_return'].to_numpy()):,.0f} (")
    assert said(f"`window` closes {window.share} of the gap.")
    assert said(f"Credit set by hand gives back {window.share} of that")
    assert said(f"learned on Swimmer {carried.share} (40 fresh seeds)")
    steps = results("delayed_tuned/Swimmer-v5", "evidence.csv").groupby("seed")["global_step"].last().median()
    in_short = (
        f"a median of {steps:,.0f} steps, gives back {carried.share} of it (40 fresh seeds, their number fixed in"
    )
    assert f"{in_short} advance), credit set by hand {window.share} (20)" in " ".join(README.split())
    assert 0.4 < 1 - summary.loc["delayed", "mean_return_iqm"] / summary.loc["dense", "mean_return_iqm"] < 0.5
    hopper = mean_returns("delayed_tuned/HalfCheetah-v5.hopper")
    assert said("`delayed` has {}, `dense` {}, `uniform` {} (5 seeds)".format(*(x.iqm for x in hopper.values())))
    kernels, first = (results("delayed_tuned", f"{name}.csv") for name in ("kernels", "kernels_first"))
    assert (kernels["seed"].tolist(), len(first)) == (list(range(21, 61)), 60)
    paid, first_paid = kernels["paid_to_earners"], first["paid_to_earners"]
    assert said(f"pay {paid.min():.2f} to {paid.max():.2f} of a reward (median {paid.median():.2f})")
    assert said(f"untaught ones {20 / 256:.2f};")
    half, most = where_they_pay(kernels)
    assert said(f"half of it to the last {half:g} steps")
    assert most == 6
    assert said("the largest share to the step six before the payment (medians)")
    half, most = where_they_pay(first)
    paid = f"{first_paid.min():.2f} to {first_paid.max():.2f} (median {first_paid.median():.2f})"
    assert said(f"`carried.first`: {paid}, half to the last {half:g}, the largest share to the step two before")
    assert most == 2
    evidence = results("delayed_tuned/Swimmer-v5", "evidence.csv").groupby("seed")
    teachers = evidence.last()
    assert len(teachers) == 40
    assert (teachers["evidence"] > np.maximum(8, 4 * (teachers["ppo_evidence"] + 1))).all()
    steps = teachers["global_step"]
    assert said(
        f"All 40 teachers got there, in {steps.min():,} to {steps.max():,} steps, a median of {steps.median():,.0f}"
    )
    assert said(f"PPO alone never had more than {evidence['ppo_evidence'].max().max():.1f} standard errors")
    walker, hopper = (mean_returns(f"delayed_tuned/{task}-v5") for task in ("Walker2d", "Hopper"))
    means = results("delayed_tuned", "Walker2d-v5/runs.csv").groupby("algorithm")["mean_return"].agg(["min", "max"])
    assert means.loc["bonus", "min"] > means.loc["delayed", "max"]
    assert said(f"`bonus` has {walker['bonus'].iqm}, more than any run of `delayed`")
    assert [arm for arm in walker if walker[arm].helps] == ["bonus"]
    uniform = results("delayed_tuned", "Walker2d-v5/summary.csv").set_index("algorithm").loc["uniform"]
    ahead = plot_results.interval_text(*uniform.filter(like="final_return_better"))
    assert said(f"At the end `uniform` is better than `delayed` with a probability of {ahead}")
    arms = "delayed", "dense", "uniform", "carried.first", "lirpg"
    assert said("(5 seeds, Hopper's settings): " + ", ".join(f"`{arm}` {walker[arm].iqm}" for arm in arms))
    carried = hopper["carried.first"]
    assert said(
        f"On Hopper `carried.first` has {carried.iqm}, better than `delayed` with a probability of {carried.better}"
    )
