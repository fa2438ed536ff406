"""The statistics on run folders with known answers; and the committed results, which are to be made of their data."""

import json
import re
import shutil
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import rliable.library
import rliable.metrics

import plot_results

ROOT = Path(__file__).parents[1]
STUDIES = [path.parent for path in sorted((ROOT / "results").rglob("settings.json"))]
STEPS = [0, 5_000, 10_000]
RESAMPLES = plot_results.RESAMPLES


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(plot_results, "RESAMPLES", 300)
    monkeypatch.setattr(plot_results, "CURVE_RESAMPLES", 50)


def write_run(runs, arm, length, seed, returns, successes, steps=STEPS, columns=None, **args):
    """A run folder; of all but `ppo`, the first step attends to the last with a weight of 0.25."""
    folder = runs / f"UmbrellaLength-v0__{arm}__{length}__{seed}"
    folder.mkdir(parents=True)
    args = {"exp_name": arm, "chain_length": length, "seed": seed, "num_envs": 20, "num_steps": 50} | args
    args = {"env_id": "umbrella_env:UmbrellaLength-v0", "hide_umbrella": False, "total_timesteps": 10_500} | args
    (folder / "args.json").write_text(json.dumps(args))
    progress = {"global_step": steps, "eval_return": returns, "eval_success": successes, "sps": 100.4}
    pd.DataFrame(progress | (columns or {})).to_csv(folder / "progress.csv", index=False)
    if arm != "ppo":
        attention = np.full((len(steps) - 1, length), 0.75 / (length - 1))
        attention[:, -1] = 0.25
        np.savez(folder / "intrinsic.npz", first_step_attention=attention)
    return folder


def write_plan(runs, *planned):
    """As benchmark.sh writes it: arm, length and seed of each run"""
    (runs / "planned").write_text("".join(f"{arm} {length} {seed}\n" for arm, length, seed in planned))


def plot(runs, out, index="arm"):
    """Collects `runs` into `out` -> table.csv, by arm or by length and arm, and table.md"""
    plot_results.main(plot_results.Args(runs=str(runs), out=str(out)))
    return pd.read_csv(out / "table.csv").set_index(index), (out / "table.md").read_text()


def fails(capsys, message, **args):
    with pytest.raises(SystemExit) as error:
        plot_results.main(plot_results.Args(**args))
    assert error.value.code == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ")
    assert re.search(message, err[-1])


def test_statistics_are_rliables():
    rng = np.random.default_rng(0)
    for runs in (1, 2, 7, 10, 11):
        x, y = rng.normal(size=(runs, 3)), rng.integers(0, 3, size=(8, 3)) / 2
        np.testing.assert_allclose(plot_results.iqm(x), [rliable.metrics.aggregate_iqm(x[:, [i]]) for i in range(3)])
        x = rng.integers(0, 3, size=(runs, 3)) / 2  # ties
        drawn = plot_results.draw("x", 5, *x.shape), plot_results.draw("y", 5, *y.shape)
        estimate, samples = plot_results.probability_of_improvement(x, y, *drawn)
        assert estimate == pytest.approx(rliable.metrics.probability_of_improvement(x, y))
        for sample, i, j in zip(samples, *drawn, strict=True):
            pair = [np.take_along_axis(scores, index, 0) for scores, index in ((x, i), (y, j))]
            assert sample == pytest.approx(rliable.metrics.probability_of_improvement(*pair))


def test_intervals_are_rliables(monkeypatch):
    """The same stratified bootstrap: the ends agree within four of their Monte Carlo errors."""
    monkeypatch.setattr(plot_results, "RESAMPLES", 2_000)
    rng = np.random.default_rng(1)
    scores = {"ppo": rng.normal(size=(12, 2)) + [0, 3], "oracle": rng.normal(4, size=(9, 2)) + [0, 3]}
    scores["x"] = rng.normal(1, size=(10, 2)) + [0, 3]

    def closed(x, low, high):
        x, low, high = (rliable.metrics.aggregate_iqm(scores) for scores in (x, low, high))
        return np.array([(x - low) / (high - low)])

    rows = plot_results.compare(scores, "ppo", "oracle")
    np.random.seed(0)  # noqa: NPY002 - rliable draws from numpy's global stream
    pairs = {"": (scores["x"], lambda x: np.array([rliable.metrics.aggregate_iqm(x)]))}
    pairs["_better"] = (
        (scores["x"], scores["ppo"]),
        lambda *x: np.array([rliable.metrics.probability_of_improvement(*x)]),
    )
    pairs["_closed"] = (scores["x"], scores["ppo"], scores["oracle"]), closed
    for name, (argument, statistic) in pairs.items():
        estimate, ends = rliable.library.get_interval_estimates({"x": argument}, statistic, reps=2_000)
        ours = [rows["x"][name + end] for end in ("", "_low", "_high")]
        assert ours[0] == pytest.approx(estimate["x"][0])
        width = ours[2] - ours[1]
        np.testing.assert_allclose(ours[1:], ends["x"][:, 0], atol=0.06 * width)  # error: 0.0096 of the width


def test_the_interval_covers_the_truth():
    """95 % intervals of the IQM of 10 normal runs should cover 0 in most of 60 repetitions; the bootstrap of so few
    runs is known to be too narrow: about 90 %. Below 47 of 60 would be 3 standard deviations under that."""
    rng = np.random.default_rng(0)
    rows = [plot_results.compare({str(i): rng.normal(size=(10, 1))}, "", "")[str(i)] for i in range(60)]
    covered = sum(row["_low"] < 0 < row["_high"] for row in rows)
    assert 47 <= covered < 60


def test_runs_are_resampled_within_each_length_and_for_each_arm():
    """Scores differ by 100 between lengths, and not within: a bootstrap that mixed lengths would have an interval."""
    row = plot_results.compare({"x": np.array([[0.0, 100.0]] * 6)}, "", "")["x"]
    assert row["_low"] == row["_high"] == 50
    assert not (plot_results.draw("x", 20, 10, 1) == plot_results.draw("y", 20, 10, 1)).all()
    assert (plot_results.draw("x", 20, 10, 1) == plot_results.draw("x", 20, 10, 1)).all()


@pytest.mark.parametrize("scale", [0.01, 1, 3_000])
def test_no_more_decimals_than_the_bootstrap_fixes(scale):
    """Of 20 bootstraps of the same data, the ends vary by less than the last decimal, which is not far above that."""
    rng, rows = np.random.default_rng(0), []
    data = scale * rng.normal(size=15)
    for _ in range(20):
        samples = plot_results.iqm(data[rng.integers(15, size=(15, 4_000))])
        rows.append(plot_results.interval(plot_results.iqm(data), samples, 15))
    spread = pd.DataFrame(rows)[["_low", "_high"]].std().max()
    steps = {10.0 ** -row["_digits"] for row in rows}
    assert min(steps) > 0.5 * spread
    assert max(steps) < max(30 * spread, 0.011)  # two decimals at most
    ends = plot_results.interval(0.5, np.repeat([0.0, 1 / 3, 700.0], 1_000), 5)  # a few values: no Monte Carlo error
    assert (ends["_low"], ends["_high"], ends["_digits"]) == (0, 700, 0)


def test_few_runs_are_named():
    row = {"x": 0.5, "x_low": 0.25, "x_high": 0.754, "x_digits": 2, "x_runs": 3, "y_no_gap": 1, "y_closed": np.nan}
    assert plot_results.interval_text(row, "x") == "0.50 [0.25, 0.75]"
    assert plot_results.interval_text(row | {"x_runs": 2}, "x") == "0.50 [0.25, 0.75] of 2 runs"
    assert plot_results.interval_text(row | {"x_runs": 1, "x_low": np.nan}, "x") == "0.50 of 1 run"
    assert plot_results.interval_text(row | {"x": 1234.5, "x_low": -4, "x_high": 2e4, "x_digits": -1}, "x") == (
        "1,230 [0, 20,000]"
    )
    assert plot_results.interval_text(row, "y_closed") == "no gap"
    assert plot_results.interval_text(row, "z") == ""


def test_unsolved_runs_in_the_quartiles():
    def first(*steps):  # seeds that solve at these steps, or never
        rows = [("x", 5, i, s, 0.0, float(s == solved)) for i, solved in enumerate(steps) for s in STEPS]
        columns = [*plot_results.RUN, "global_step", "eval_return", "eval_success"]
        return plot_results.measure_runs(pd.DataFrame(rows, columns=columns), True)["steps_to_95"].tolist()

    assert first(5_000, None, 10_000) == [5_000, np.inf, 10_000]
    assert first(None) == [np.inf]
    assert first(0, 0) == [0, 0]
    assert plot_results.quartiles([1, 2, np.inf, np.inf]).tolist() == [1, 2, np.inf]


def test_known_answers(tmp_path):
    finals = [-10, 1, 2, 3, 4, 5, 6, 100]  # the interquartile mean keeps 2, 3, 4, 5; the mean over training is half
    for seed, final in enumerate(finals):
        successes = {0: [0, 0, 0], 1: [0, 0, 0.94], 2: [0, 1, 0.9]}.get(seed, [0, 0.5, 0.95])
        write_run(tmp_path / "runs", "ppo", 3, seed, [-1e6, 0, final], successes)
    write_run(tmp_path / "runs", "x", 3, 0, [0, 7, 7], [0, 0.96, 0.96])  # the other seven are missing
    write_plan(tmp_path / "runs", *[(name, 3, seed) for name in ("ppo", "x") for seed in range(8)])
    table, text = plot(tmp_path / "runs", tmp_path / "out")
    ppo, x = table.loc["ppo"], table.loc["x"]
    assert ppo[["runs", "runs_expected", "solved_ever", "solved_at_end"]].tolist() == [8, 8, 6, 5]
    assert ppo["mean_return"] == 1.75
    assert ppo["mean_return_low"] < 1.75 < ppo["mean_return_high"]
    # First steps with 95 %: 5,000 once, 10,000 five times, twice never
    assert ppo.filter(like="steps_to_95").tolist() == [10_000, 10_000, 10_000, np.inf]
    assert x[["runs", "runs_expected", "solved_ever", "solved_at_end"]].tolist() == [1, 8, 1, 1]
    assert x["mean_return_better"] == 7 / 8
    assert x[["mean_return_low", "mean_return_high", "mean_return_better_low"]].isna().all()  # one run has no interval
    assert x["steps_to_95_median"] == 5_000
    assert x["first_to_last_median"] == 0.25
    assert "| 3 | PPO, tuned by hand (`ppo`) | 8/8 | 5 | 10,000 [10,000, 10,000] |" in text
    assert "| 3 | `x` | 1/8 | 1 | 5,000 of 1 run | 7.00 of 1 run |" in text
    assert text.endswith("\n`x`, L = 3: 7 left out, for the reasons in `left_out.csv`.\n")


def test_gap_between_ppo_and_the_oracle(tmp_path):
    """By hand: means over training of 2 (ppo), 7 (oracle), 4 and 6 (x): 0.6 of it. The ends of the interval are those
    of x's IQM, since the others do not vary."""
    for seed in (1, 2, 3, 4):
        for length in (2, 5):
            for arm, height in {"ppo": 2, "oracle": 7, "x": 4 if seed % 2 else 6}.items():
                write_run(tmp_path / "runs", arm, length, seed, [height] * 3, [0, 0, 1])
    table, text = plot(tmp_path / "runs", tmp_path / "out", ["length", "arm"])
    for length in ("2", "5", "all"):
        ends = [f"mean_return_closed{end}" for end in ("", "_low", "_high")]
        np.testing.assert_allclose(table.loc[(length, "x"), ends].astype(float), [0.6, 0.4, 0.8], atol=0.05)
        assert (table.loc[length].loc[["x", "oracle"], "mean_return_better"] == 1).all()
        assert table.loc[length].loc[["ppo", "oracle"], "mean_return_closed"].isna().all()
    assert re.search(r"\| 2 \| `x` \| 4/4 \| 4 \| .* \| 0.60 \[0.4", text)


def test_no_gap_where_perfect_credit_is_not_better(tmp_path):
    for seed in (1, 2, 3, 4):
        for arm, height in {"ppo": seed, "oracle": seed + 1, "x": 9}.items():
            write_run(tmp_path / "runs", arm, 2, seed, [height] * 3, [0, 0, 1])
    table, text = plot(tmp_path / "runs", tmp_path / "out")
    assert (table["mean_return_no_gap"] == 1).all()
    assert text.count("no gap") == 3


def test_over_all_lengths_only_complete_seeds_count(tmp_path):
    """Seed 3 lacks L = 5; `teacher` has a length of its own, which no other arm has."""
    for seed in (1, 2, 3):
        write_run(tmp_path / "runs", "teacher", 10, seed, [0, 1, 1], [0, 0, 0])
        write_run(tmp_path / "runs", "ppo", 2, seed, [0, 6, 6], [0, 0, 1])
        write_run(tmp_path / "runs", "x", 2, seed, [0, 6, 6 + 6 * (seed == 1)], [0, 0, 1])
        if seed < 3:
            write_run(tmp_path / "runs", "ppo", 5, seed, [0, 3, 3], [0, 0, 1])
            write_run(tmp_path / "runs", "x", 5, seed, [0, 12, 12], [0, 0, 1])
    table, _ = plot(tmp_path / "runs", tmp_path / "out", ["length", "arm"])
    overall = table.loc["all"]
    assert overall["runs"].to_dict() == {"ppo": 2, "x": 2}
    assert overall["mean_return"].to_dict() == {"ppo": 4.5, "x": 10.5}  # of 6, 6, 3, 3; of 6, 9, 12, 12
    assert overall.loc["x", "mean_return_better"] == 0.875  # L = 2: one of two seeds ties; L = 5: better


def test_learned_rewards_that_are_used_are_counted(tmp_path):
    nan = np.nan
    for seed, used in enumerate([[nan, nan, 0], [nan, nan, 1], [nan, 0, 0], [nan, 1, 1]]):
        columns = {"intrinsic_used": used, "evidence": [nan, -np.inf, 2.0 + seed if seed else -np.inf]}
        write_run(tmp_path / "runs", "metairn", 2, seed, [0, 5, 9], [0, 0.5, 1], columns=columns)
        write_run(tmp_path / "runs", "ppo", 2, seed, [0, 5, 9], [0, 0.5, 1])
    table, text = plot(tmp_path / "runs", tmp_path / "out")
    assert table.loc["metairn", "used"] == 2
    assert np.isnan(table.loc["ppo", "used"])
    assert table.loc["metairn", ["held_steps_min", "held_steps_median", "held_steps_max"]].tolist() == [5e3, 7.5e3, 1e4]
    assert table.loc["metairn", ["evidence_min", "evidence_max"]].tolist() == [3, 5]
    assert re.search(r"MetaIRN \(`metairn`\) \|.*\| 2/4 \|\n", text)
    assert re.search(r"`ppo`\) \|.*\|  \|\n", text)


def test_of_different_budgets_the_longer_is_cut(tmp_path):
    """`long` gets there after the smallest budget, which does not count."""
    steps = [*STEPS, 20_000]
    for seed in (1, 2, 3):
        write_run(tmp_path / "runs", "ppo", 5, seed, [0, 5, 9], [0, 0, 1])
        write_run(tmp_path / "runs", "long", 5, seed, [0, 5, 5, 99], [0, 0, 0, 1], steps, total_timesteps=20_500)
        write_run(tmp_path / "runs", "long", 8, seed, [0, 5, 5, 5], [0, 0, 0, 1], steps, total_timesteps=20_500)
    table, text = plot(tmp_path / "runs", tmp_path / "out", ["length", "arm"])
    assert table.loc[(5, "long"), ["solved_ever", "mean_return"]].tolist() == [0, 5]
    assert table.loc[(8, "long"), "solved_ever"] == 3
    assert text.endswith("\n`long`, L = 5: of its 20,500 steps the first 10,500 count, as many as others have.\n")
    assert text.count("steps the first") == 1
    assert pd.read_csv(tmp_path / "out" / "evaluations.csv.gz")["global_step"].max() == 20_000  # nothing is lost


def test_settings_may_differ_by_length_and_arm(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    longer = {"total_timesteps": 20_500, "irn": "redistribution", "gamma": 0.9, "steps": [*STEPS, 20_000]}
    for seed in (1, 2):
        write_run(runs, "ppo", 50, seed, [0, 9, 9], [0, 1, 1])
        write_run(runs, "carried", 50, seed, [0, 9, 9], [0, 1, 1], irn="redistribution", gamma=1)
        write_run(runs, "carried", 200, seed, [0, 9, 9, 9], [0, 1, 1, 1], **longer)
    plot(runs, out)
    settings = json.loads((out / "settings.json").read_text())
    assert settings["ppo"]["total_timesteps"] == 10_500
    assert settings["carried"]["total_timesteps"] == {"50": 10_500, "200": 20_500}
    assert settings["carried"]["gamma"] == {"50": 1, "200": 0.9}
    assert settings["carried"]["irn"] == "redistribution"
    assert not (out / "left_out.csv").exists()  # ppo has no runs of 200 steps, and misses none
    write_run(runs, "carried", 200, 3, [0, 9, 9, 9], [0, 1, 1, 1], **longer | {"gamma": 0.8})
    fails(capsys, r"__3 and .*__1 differ in gamma \(0.8, 0.9\)", runs=str(runs), out=str(out))
    shutil.rmtree(runs / "UmbrellaLength-v0__carried__200__3")
    other = {"env_id": "umbrella_env:UmbrellaLengthBsuite-v0"}
    write_run(runs, "teacher", 10, 1, [0, 1, 1], [0, 1, 1], **other)
    plot(runs, out)  # at a length of its own
    write_run(runs, "x", 50, 1, [0, 1, 1], [0, 1, 1], **other)
    fails(capsys, "differ in env_id", runs=str(runs), out=str(out))


def test_new_runs_replace_their_arms_and_no_others(tmp_path):
    """All that the folder says of an arm follows: evaluations, settings, left-out runs, invocations."""
    first, second, out = tmp_path / "1", tmp_path / "2", tmp_path / "out"
    for seed in (1, 2, 3):
        write_run(first, "ppo", 5, seed, [0, 2, 2], [0, 0, 1])
        write_run(first, "a", 5, seed, [0, 4, 4], [0, 0, 1], gamma=0.5)
        write_run(second, "a", 5, seed + 10, [0, 6, 6], [0, 1, 1], gamma=0.9)
    write_plan(first, ("a", 5, 4), ("ppo", 5, 4))
    (first / "invocations.csv").write_text("commit,seconds\naaa,7\n")
    (second / "invocations.csv").write_text("commit,torch,seconds\nbbb,2.0,8\n")
    plot(first, out)
    table, text = plot(second, out)
    assert table["mean_return"].to_dict() == {"ppo": 2, "a": 6}
    assert table["runs_expected"].to_dict() == {"ppo": 4, "a": 3}
    rows = pd.read_csv(out / "evaluations.csv.gz")[["arm", "seed"]].drop_duplicates().to_numpy().tolist()
    assert rows == [["a", 11], ["a", 12], ["a", 13], ["ppo", 1], ["ppo", 2], ["ppo", 3]]
    assert {arm: x.get("gamma") for arm, x in json.loads((out / "settings.json").read_text()).items()} == {
        "ppo": None,
        "a": 0.9,
    }
    assert "`ppo`, L = 5: 1 left out" in text
    assert "`a`, L = 5" not in text
    rows = pd.read_csv(out / "invocations.csv")
    assert rows[["arms", "commit", "seconds"]].to_numpy().tolist() == [["ppo", "aaa", 7], ["a", "bbb", 8]]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    plot(second, out)  # once more: nothing new
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_runs_that_cannot_be_used_are_named_and_left_out(tmp_path, capsys):
    runs = tmp_path / "runs"
    write_run(runs, "ppo", 2, 1, [0, 5, 9], [0, 0.5, 1])
    write_run(runs, "ppo", 2, 2, [0, 5], [0, 0.5], STEPS[:2])
    write_run(runs, "ppo", 2, 3, [0, np.nan, 9], [0, 0.5, 1])
    write_run(runs, "ppo", 2, 4, [0, 5, np.inf], [0, 0.5, 1])
    (write_run(runs, "ppo", 2, 5, [0, 0, 0], [0, 0, 0]) / "progress.csv").unlink()
    (write_run(runs, "ppo", 2, 6, [0, 0, 0], [0, 0, 0]) / "progress.csv").write_text("")
    write_run(runs, "metairn", 2, 1, [0, 5, 9], [0, 0.5, 1])
    (write_run(runs, "metairn", 2, 2, [0, 5, 9], [0, 0.5, 1]) / "intrinsic.npz").write_text("damaged")
    (write_run(runs, "ppo", 2, 7, [0, 0, 0], [0, 0, 0]) / "args.json").write_text("{")
    write_plan(runs, *[("metairn", 2, seed) for seed in (1, 2, 3, 6, 3)], ("ppo", 2, 7))
    table, _ = plot(runs, tmp_path / "out")
    err = capsys.readouterr().err
    reasons = {2: "unfinished: stopped at step 5000", 3: "not finite", 4: "not finite", 5: "No such file"}
    for seed, why in reasons.items():
        assert re.search(f"left out: ppo, L = 2, seed {seed}: .*{why}", err)
    for name, seed in (("metairn", 3), ("metairn", 6), ("ppo", 7)):
        assert f"{name}, L = 2, seed {seed}: missing: there is no readable run folder" in err
    assert re.search("__ppo__2__7/args.json cannot be read: JSONDecodeError", err)
    assert set(pd.read_csv(tmp_path / "out" / "evaluations.csv.gz")["seed"]) == {1}
    reasons = pd.read_csv(tmp_path / "out" / "left_out.csv")["reason"]
    assert (len(reasons), reasons.str.contains(str(tmp_path)).any()) == (err.count("left out: "), False) == (9, False)
    assert table[["runs", "runs_expected"]].to_numpy().tolist() == [[1, 7], [1, 4]]


def test_bad_input(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    fails(capsys, "there is no finished run in .*runs", runs=str(runs), out=str(out))
    fails(capsys, "does not hold what an earlier call collected", out=str(out))
    write_run(runs, "ppo", 2, 1, [0, 5], [0, 0.5], STEPS[:2])
    fails(capsys, "there is no finished run in .*runs", runs=str(runs), out=str(out))
    write_run(runs, "ppo", 2, 2, [0, 5, 9], [0, 0.5, 1])
    fails(capsys, "give --out FOLDER", runs=str(runs))  # so that no committed folder is written by default
    fails(capsys, "or --pages, and nothing else", out=str(out), pages=True)
    fails(capsys, "or --pages, and nothing else", runs=str(runs), pages=True)
    shutil.copytree(runs / "UmbrellaLength-v0__ppo__2__2", runs / "copy")
    fails(capsys, "there is another run with arm, length and seed", runs=str(runs), out=str(out))
    shutil.rmtree(runs / "copy")
    write_run(runs, "ppo", 2, 3, [0, 5, 9], [0, 0.5, 1], gamma=0.9)
    fails(capsys, r"__3 and .*__2 differ in gamma \(0.9, None\)", runs=str(runs), out=str(out))
    (tmp_path / "file").touch()
    shutil.rmtree(runs / "UmbrellaLength-v0__ppo__2__3")
    fails(capsys, "--out .*file.* cannot be made: ", runs=str(runs), out=str(tmp_path / "file" / "x"))


def test_the_bytes_of_a_compressed_table_do_not_depend_on_time(tmp_path, monkeypatch):
    table = pd.DataFrame({"steps": [1_000_000.0, np.inf], "weight": [0.1, 0.123]})
    for name, now in {"a.csv.gz": 1e9, "b.csv.gz": 2e9}.items():
        monkeypatch.setattr(time, "time", lambda now=now: now)
        plot_results.write(tmp_path / name, table)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv.gz"), table)
    plot_results.write(tmp_path / "c.csv", table)
    assert (tmp_path / "c.csv").read_text() == "steps,weight\n1000000,0.1\ninf,0.123\n"


def test_steps_to_95_by_length(tmp_path):
    """Two arms, three lengths; one never solves the longest, the other does not have it."""
    rows = [("carried", 2, 5e3), ("carried", 5, 1e4), ("carried", 10, np.inf), ("ppo", 2, 5e3), ("ppo", 5, 5e3)]
    late = [("carried", 2, 1e4), ("carried", 5, np.inf), ("carried", 10, np.inf), ("ppo", 2, 5e3), ("ppo", 5, 5e3)]
    runs = pd.DataFrame(rows * 2 + late, columns=["arm", "length", "steps_to_95"])
    figure = plot_results.plot_steps_to_95(runs)
    axis, legend = figure.axes[0], [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["credit from another task", "PPO, tuned by hand"]  # as the lines end, from top to bottom
    top = axis.texts[-1].get_position()[1]
    assert axis.texts[-1].get_text() == "never"
    assert 10_000 < top < axis.get_ylim()[1]
    ppo, carried, *never = axis.lines
    np.testing.assert_allclose(carried.get_xydata(), [[2, 5_000], [5, 10_000], [10, top]])  # no shift along the axis
    np.testing.assert_allclose(ppo.get_xydata(), [[2, 5_000], [5, 5_000]])
    assert [list(line.get_ydata()) for line in never] == [[], [top]]
    assert {line.get_markerfacecolor() for line in never} == {"white"}
    band = axis.collections[1].get_paths()[0].vertices
    assert {(2, 5_000), (2, 10_000), (5, 10_000), (5, top), (10, top)} == set(map(tuple, band))
    assert axis.get_xticks().tolist() == [2, 5, 10]
    assert max(axis.get_yticks()) <= 10_000  # above stands "never"
    plt.close("all")


def test_an_arm_looks_the_same_in_all_figures():
    line = np.array([0, 1]), np.ones((3, 2))

    def looks(*arms):
        axis = plot_results.plot("", "", "", dict.fromkeys(arms, line))[1]
        return {
            arm: (x.get_color(), x.get_marker(), x.get_linestyle()) for arm, x in zip(arms, axis.lines, strict=True)
        }

    every = looks(*plot_results.ARMS)
    assert looks("oracle", "metairn") == {arm: every[arm] for arm in ("oracle", "metairn")}
    together = [arm for arm in every if arm not in ("delayed", "same", "dense", "dense.tuned", "window")]
    assert len({every[arm] for arm in together}) == len(together)
    assert len({every[arm] for arm in set(every) - {"ppo", "oracle"}}) == len(every) - 2
    assert len(set(looks(*"abcdefghijkl").values())) == 12  # arms without a name
    plt.close("all")


def test_lengths_of_one_arm_alone_are_in_no_figure():
    rows = pd.DataFrame([("teacher", 2), ("a", 5), ("b", 5)], columns=["arm", "length"])
    assert plot_results.shared_lengths(rows) == [5]
    assert plot_results.shared_lengths(rows.assign(length=[2, 5, 9])) == [2, 5, 9]


def test_figures_are_drawn_and_are_the_same_each_time(tmp_path):
    for folder, lengths in {"one": (5,), "more": (2, 5)}.items():
        for seed in (1, 2, 3):
            for length in lengths:
                write_run(tmp_path / folder, "ppo", length, seed, [0, seed, 9], [0, 0.5, 1])
                write_run(tmp_path / folder, "metairn", length, seed, [0, seed / 2, 9], [0, 0.9, 0.96])
        out = tmp_path / folder / "out"
        plot(tmp_path / folder, out)
        first = {path.name: path.read_bytes() for path in out.iterdir()}
        figure = {"one": "learning.png", "more": "steps_to_95.png"}[folder]
        assert set(first) == {"evaluations.csv.gz", "settings.json", "table.csv", "table.md", figure}
        image = plt.imread(out / figure)[..., :3]
        assert (image.min(-1) < 0.9).mean() > 0.02  # not blank
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50  # not only axes
        plot_results.main(plot_results.Args(out=str(out)))  # from the CSV files alone
        assert {path.name: path.read_bytes() for path in out.iterdir()} == first


@pytest.mark.parametrize(
    "folder",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.name != "tuned")) for path in STUDIES],
    ids=lambda path: path.name,
)
def test_committed_tables_are_those_of_the_committed_data(folder, monkeypatch):
    monkeypatch.setattr(plot_results, "RESAMPLES", RESAMPLES)
    assert RESAMPLES >= 5_000
    for name, text in plot_results.tables(*plot_results.load(folder)).items():
        assert (folder / name).read_text() == text
    evaluations = pd.read_csv(folder / "evaluations.csv.gz")
    cells = evaluations.groupby(["arm", "length"])["seed"].agg(set)
    assert all(seeds <= others or seeds >= others or not seeds & others for seeds in cells for others in cells)


def test_pages_are_those_of_the_committed_tables():
    """So `--pages` changes nothing: with the tables above, these are all the files that it writes."""
    pages = plot_results.render()
    assert {path.name for path in pages} >= {"README.md", "umbrella.md", "history.md"}
    for path, text in pages.items():
        assert path.read_text() == text, path
        links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("#", "http"))]
        assert [link for link in links if not path.parent.joinpath(link.split("#")[0]).exists()] == []
        assert [name for name in re.findall(r"STUDY=(results/\S+)", text) if not (ROOT / name).exists()] == []


def test_templates_read_one_cell(tmp_path, monkeypatch):
    (tmp_path / "results" / "templates").mkdir(parents=True)
    (tmp_path / "results" / "a.csv").write_text("arm,length,x,x_low,x_high,x_digits,x_runs\np,50,1234.5,1,2e4,0,3\n")
    (tmp_path / "results" / "templates" / "page.md").write_text(
        '{{ cell("a.csv", "x", arm="p", length=50) | steps }}; {{ interval("a.csv", "x", arm="p") }}\n'
    )
    (tmp_path / "README.md").write_text("a\n<!-- results/templates/page.md -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr(plot_results, "ROOT", tmp_path)
    page = "1,234; 1,234 [1, 20,000]\n"
    readme = f"a\n<!-- results/templates/page.md -->\n{page}<!-- end -->\nb\n"
    assert plot_results.render() == {tmp_path / "results" / "page.md": page, tmp_path / "README.md": readme}
    with pytest.raises(AssertionError, match="0 rows"):
        plot_results.row_of("a.csv", arm="q")


@pytest.mark.parametrize("folder", STUDIES, ids=lambda path: path.name)
def test_the_studies_arms_are_those_of_the_settings(folder):
    """Every option in study.txt is the one that its runs had; and every length has its runs."""
    settings = json.loads((folder / "settings.json").read_text())
    table = pd.read_csv(folder / "table.csv").query("length != 'all'")
    study = next(path / "study.txt" for path in (folder, folder.parent) if (path / "study.txt").exists())
    arms = [line.split() for line in study.read_text().splitlines() if line and line[0] != "#"]
    arms = [arm for arm in arms if arm[0] in settings or study.parent == folder]
    assert {arm[0] for arm in arms} == set(settings)
    expected = {(name, length) for name, _, lengths, *_ in arms for length in lengths.split(",")}
    assert set(zip(table["arm"], table["length"].astype(str), strict=True)) == expected
    for name, script, lengths, steps, *options in arms:
        assert (ROOT / f"{script}.py").exists()
        for word in [word for word in options if word.startswith("@")]:
            path, key = word[1:].split("#")
            stored = json.loads((ROOT / path).read_text())[key]
            flags = [f"--{option.replace('_', '-')} {value}" for option, value in stored.items()]
            options[options.index(word)] = " ".join(flags)
        said = dict(re.findall(r"--(\S+)(?: (?!--)(\S+))?", " ".join(options))) | {"total-timesteps": steps}
        for option, value in said.items():
            had = settings[name].get(option.replace("-", "_"))
            if option.replace("-", "_") in plot_results.DIFFER or had is None:  # had None: of a time without it
                continue
            for length in lengths.split(","):
                here = had[length] if isinstance(had, dict) else had
                same = value == here or str(here) == (value or "True") or str(here).endswith(value.split("{out}")[-1])
                assert same or float(value) == here


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("winners.json")), ids=lambda path: path.parent.name)
def test_winners_are_the_best_trials(path):
    trials = pd.read_csv(path.with_name("trials.csv")).groupby(["family", "arm"])
    winners = json.loads(path.read_text())
    assert set(winners) == {f"{family}__{arm}" for family, arm in trials.groups}
    for (family, arm), rows in trials:
        best = rows.loc[rows["value_of_all_seeds"].idxmax()]
        assert all(float(best[name]) == pytest.approx(value) for name, value in winners[f"{family}__{arm}"].items())


def test_the_settings_tuned_by_hand_are_those_with_the_lowest_median():
    folder = ROOT / "results" / "umbrella" / "hidden"
    trials = pd.read_csv(folder / "tuned_by_hand.csv")
    settings = json.loads((folder / "settings.json").read_text())["ppo"]
    options = list(trials.columns[1 : trials.columns.get_loc("seed")])
    for length, rows in trials.groupby("length"):
        medians = rows.groupby(options)["first_95"].agg(["size", "median"]).query("size == 10")["median"]
        used = [x[str(length)] if isinstance(x := settings[name], dict) else x for name in options]
        assert medians.idxmin() == tuple(used)
