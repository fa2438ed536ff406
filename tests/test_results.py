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
from rliable import library, metrics

import plot_results

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
ROOT = Path(__file__).parents[1]
STUDIES = [path.parent for path in sorted((ROOT / "results").rglob("settings.json"))]
STEPS, SEEDS = [0, 5_000, 10_000], (1, 2, 3)
RESAMPLES = plot_results.RESAMPLES


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(plot_results, "RESAMPLES", 1_000)
    monkeypatch.setattr(plot_results, "CURVE_RESAMPLES", 50)


def write_runs(folder, arm, length, seeds, returns, successes=(0, 0, 1), steps=STEPS, columns=None, **args):
    """Runs in folder/runs -> folder of the last; of all but `ppo`, the first step attends to the last with 0.25."""
    defaults = {"env_id": "umbrella_env:UmbrellaLength-v0", "hide_umbrella": False, "total_timesteps": 10_500}
    for seed in np.atleast_1d(seeds).tolist():
        run = folder / "runs" / f"UmbrellaLength-v0__{arm}__{length}__{seed}"
        run.mkdir(parents=True)
        named = {"exp_name": arm, "chain_length": length, "seed": seed, "num_envs": 20, "num_steps": 50}
        (run / "args.json").write_text(json.dumps(named | defaults | args))
        progress = {"global_step": steps, "eval_return": returns, "eval_success": successes, "sps": 100.4}
        pd.DataFrame(progress | (columns or {})).to_csv(run / "progress.csv", index=False)
        if arm != "ppo":
            attention = np.full((len(steps) - 1, length or 10), 0.75 / (length - 1))
            attention[:, -1] = 0.25
            np.savez(run / "intrinsic.npz", first_step_attention=attention)
    return run


def plot(folder, index="arm", out=None):
    """Collects folder/runs into folder/out, or into `out` -> table.csv, by arm or by length and arm, and table.md"""
    out = out or folder / "out"
    plot_results.main(plot_results.Args(runs=str(folder / "runs"), out=str(out)))
    return pd.read_csv(out / "table.csv", converters={"arm": str}).set_index(index), (out / "table.md").read_text()


def plot_any_env(folder, env_id="Some-v5", **arms):
    """arm=[returns of seed 1, of seed 2, ...]: the same, of an environment whose optimum is not known"""
    for arm, seeds in arms.items():
        for seed, returns in enumerate(seeds, start=1):
            options = {"env_id": env_id, "total_timesteps": 5_000, "reward_delay": 20}
            write_runs(folder, arm, 0, seed, returns, np.nan, range(0, 6_000, 1_000), **options)
    return plot(folder)


def constant(*returns):
    """Runs whose evaluations are all alike"""
    return [[x] * 6 for x in returns]


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
        np.testing.assert_allclose(plot_results.iqm(x), [metrics.aggregate_iqm(x[:, [i]]) for i in range(3)])
        x = rng.integers(0, 3, size=(runs, 3)) / 2  # ties
        drawn = plot_results.draw("x", 5, *x.shape), plot_results.draw("y", 5, *y.shape)
        times = map(plot_results.times_drawn, drawn)
        estimate, samples = plot_results.probability_of_improvement(x, y, *times)
        assert estimate == pytest.approx(metrics.probability_of_improvement(x, y))
        for sample, i, j in zip(samples, *drawn, strict=True):
            pair = [np.take_along_axis(scores, index, 0) for scores, index in ((x, i), (y, j))]
            assert sample == pytest.approx(metrics.probability_of_improvement(*pair))


def test_intervals_are_rliables(monkeypatch):
    """The same stratified bootstrap: the ends agree within four of their Monte Carlo errors."""
    monkeypatch.setattr(plot_results, "RESAMPLES", 2_000)
    rng = np.random.default_rng(1)
    x, ppo, oracle = rng.normal(1, size=(10, 2)), rng.normal(size=(12, 2)), rng.normal(4, size=(9, 2))
    scores = {"ppo": ppo + [0, 3], "oracle": oracle + [0, 3], "x": x + [0, 3]}
    iqm, better = metrics.aggregate_iqm, metrics.probability_of_improvement

    def closed(x, low, high):
        return (iqm(x) - iqm(low)) / (iqm(high) - iqm(low))

    rows = plot_results.compare(scores, "ppo", "oracle")
    np.random.seed(0)  # noqa: NPY002 - rliable draws from numpy's global stream
    statistics = {"": (iqm, "x"), "_better": (better, "x", "ppo"), "_closed": (closed, "x", "ppo", "oracle")}
    for name, (statistic, *arms) in statistics.items():
        compared = {"x": tuple(scores[arm] for arm in arms)}
        estimate, ends = library.get_interval_estimates(compared, lambda *x, f=statistic: np.array([f(*x)]), reps=2_000)
        ours = [rows["x"][name + end] for end in ("", "_low", "_high")]
        assert ours[0] == pytest.approx(estimate["x"][0])
        width = ours[2] - ours[1]
        np.testing.assert_allclose(ours[1:], ends["x"][:, 0], atol=0.06 * width)  # error: 0.0096 of the width


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


def test_unsolved_runs_in_the_quartiles():
    for solved in ([5_000, np.inf, 10_000, 0], [np.inf]):  # first steps with success
        rows = [("x", 5, seed, step, 0.0, step == first) for seed, first in enumerate(solved) for step in STEPS]
        columns = [*plot_results.RUN, "global_step", "eval_return", "eval_success"]
        runs = plot_results.measure_runs(pd.DataFrame(rows, columns=columns).astype({"eval_success": float}), True)
        assert runs["steps_to_95"].tolist() == solved
    assert plot_results.quartiles([1, 2, np.inf, np.inf]).tolist() == [1, 2, np.inf]


def test_known_answers(tmp_path):
    finals = [
        -10,
        1,
        2,
        3,
        4,
        5,
        6,
        100,
    ]  # the interquartile mean keeps 2, 3, 4, 5; over the training it is a quarter
    for seed, final in enumerate(finals):
        successes = {0: [0, 0, 0], 1: [0, 0, 0.94], 2: [0, 1, 0.9]}.get(seed, [0, 0.5, 0.95])
        write_runs(tmp_path, "ppo.hand", 3, seed, [0, 0, final], successes)
    write_runs(tmp_path, "x", 3, 0, [0, 7, 7], [0, 0.96, 0.96])  # the other seven are missing
    planned = [f"{arm} 3 {seed}\n" for arm in ("ppo.hand", "x") for seed in range(8)]  # as benchmark.sh writes it
    (tmp_path / "runs" / "planned").write_text("".join(planned))
    table, text = plot(tmp_path)
    ppo, x = table.loc["ppo.hand"], table.loc["x"]
    assert ppo[["runs", "runs_expected", "solved_ever", "solved_at_end", "mean_return"]].tolist() == [8, 8, 6, 5, 0.875]
    assert ppo["mean_return_low"] < 0.875 < ppo["mean_return_high"]
    # First steps with 95 %: 5,000 once, 10,000 five times, twice never
    assert ppo.filter(like="steps_to_95").tolist() == [10_000, 10_000, 10_000, np.inf]
    assert x[["runs", "runs_expected", "solved_ever", "solved_at_end"]].tolist() == [1, 8, 1, 1]
    assert x[["mean_return_better", "steps_to_95_median", "first_to_last_median"]].tolist() == [7 / 8, 5_000, 0.25]
    assert x[["mean_return_low", "mean_return_high", "mean_return_better_low"]].isna().all()  # one run has no interval
    assert "| 3 | PPO, tuned by hand (`ppo.hand`) | 8/8 | 5 | 10,000 [10,000, 10,000] |" in text
    assert "| 3 | `x` | 1/8 | 1 | 5,000 of 1 run | 5.25 of 1 run |" in text
    assert text.endswith("\n`x`, L = 3: 7 left out, for the reasons in `left_out.csv`.\n")


def test_return_over_training_does_not_depend_on_the_number_of_evaluations(tmp_path):
    """Points of the same lines, which rise to 8 in half of the time: their mean height is 6."""
    write_runs(tmp_path, "ppo", 2, SEEDS, [0, 8, 8])
    steps = {"steps": [0, 2_500, 5_000, 7_500, 10_000], "successes": [0] * 5}
    write_runs(tmp_path, "often", 2, SEEDS, [0, 4, 8, 8, 8], **steps)
    write_runs(tmp_path, "short", 2, SEEDS, [0, 8, 8], steps=[0, 5_000, 7_500], num_steps=375)  # another would be later
    table, _ = plot(tmp_path)
    assert table["mean_return"].to_dict() == {"ppo": 6, "often": 6, "short": 6}


def test_known_answers_of_any_environment(tmp_path, capsys):
    """By hand: the last three of x are 6 in the mean, the lines that join all six 4; one run of it is not finite."""
    x = [[1, 1, 4, 5, 6, 7]] * 3 + [[0, 0, np.nan, 0, 0, 0]]
    table, text = plot_any_env(tmp_path, dense=constant(9, 10, 10, 11), delayed=constant(2, 2, 2, 2), x=x)
    assert table.index.tolist() == ["delayed", "dense", "x"]
    assert table.loc["x", ["final_return", "mean_return", "runs", "runs_expected"]].tolist() == [6, 4, 3, 4]
    assert table.loc["dense", ["final_return", "mean_return"]].tolist() == [10, 10]
    low, high = table.loc["dense", ["final_return_low", "final_return_high"]]
    assert 9 <= low < 10 < high <= 11
    assert table.loc["x", ["final_return_closed", "mean_return_closed"]].tolist() == [0.5, 0.25]
    # x and delayed do not vary, so the interval of the share is that of dense, turned upside down
    ends = table.loc["x", ["final_return_closed_low", "final_return_closed_high"]]
    np.testing.assert_allclose(ends, [4 / (high - 2), 4 / (low - 2)], atol=1e-3)
    assert table.loc[["delayed", "dense"]].filter(regex="closed$|closed_low").isna().all(axis=None)
    assert table.loc["x", ["final_return_better", "mean_return_better_low"]].tolist() == [1, 1]
    assert np.isnan(table.loc["delayed", "final_return_better"])
    assert "| `x` | 3/4 | 6.00 [6.00, 6.00] | 1.00 [1.00, 1.00] | 0.50 [0.4" in text
    assert "| PPO (`delayed`) | 4/4 | 2.00 [2.00, 2.00] |  |  | 2.00 [2.00, 2.00] |  |  |" in text
    assert "no gap" not in text
    assert text.endswith("\n`x`, L = 0: 1 left out, for the reasons in `left_out.csv`.\n")
    assert capsys.readouterr().out == text
    assert pd.read_csv(tmp_path / "out" / "left_out.csv")["reason"].tolist() == ["an evaluation is not finite"]
    assert "eval_success" not in pd.read_csv(tmp_path / "out" / "evaluations.csv.gz")
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["x"]["reward_delay"] == 20


def test_gap_between_ppo_and_the_oracle(tmp_path):
    """By hand: of 2 to 7, x's 4 and 6 are 0.6. The interval's ends are those of x, since the others do not vary."""
    for length in (2, 5):
        for arm, seeds, height in ("ppo", range(4), 2), ("oracle", range(4), 7), ("x", (0, 1), 4), ("x", (2, 3), 6):
            write_runs(tmp_path, arm, length, seeds, [height] * 3)
    table, text = plot(tmp_path, ["length", "arm"])
    for length in ("2", "5", "all"):
        ends = [f"mean_return_closed{end}" for end in ("", "_low", "_high")]
        np.testing.assert_allclose(table.loc[(length, "x"), ends].astype(float), [0.6, 0.4, 0.8], atol=0.05)
        assert (table.loc[length].loc[["x", "oracle"], "mean_return_better"] == 1).all()
        assert table.loc[length].loc[["ppo", "oracle"], "mean_return_closed"].isna().all()
    assert re.search(r"\| 2 \| `x` \| 4/4 \| 4 \| .* \| 0.60 \[0.4", text)


def test_where_perfect_credit_is_not_better_there_is_no_gap(tmp_path):
    """The intervals of the final returns of dense and delayed overlap, those of their means over training do not."""
    dense = [[0, 90, 90, x, x, x] for x in (5, 9, 12, 16)]
    delayed = [[0, 0, 0, x, x, x] for x in (4, 7, 9, 10)]
    table, text = plot_any_env(tmp_path, dense=dense, delayed=delayed, x=dense)
    header, row = [[x.strip() for x in line.split("|")] for line in text.splitlines()[::4][:2]]
    cells = dict(zip(header, row, strict=True))
    assert cells["final return: gap closed"] == "no gap"
    assert cells["return over training: gap closed"].startswith("1.0")
    assert text.count("no gap") == 3
    assert "final_return_closed" not in table
    no_gap = table[["final_return_no_gap", "mean_return_no_gap"]]
    assert no_gap.drop_duplicates().dropna().to_numpy().tolist() == [[1, 0]]


def test_comparisons_of_few_runs(tmp_path):
    """Of the 6 pairs x is ahead in 4 and level in 1; a resample may draw the run of 1 twice, which x always beats."""
    table, text = plot_any_env(tmp_path, delayed=constant(1, 5), x=constant(2, 5, 7))
    p, low, high = table.loc["x", [f"mean_return_better{end}" for end in ("", "_low", "_high")]]
    assert p == pytest.approx((4 + 0.5) / 6, abs=1e-3)
    assert low < p < high == 1
    assert "| 2/2 | 3.00 [1.00, 5.00] of 2 runs |" in text
    assert "| `x` | 3/3 | 4.67 [2.00, 7.00] | 0.75 [0.17, 1.00] of 2 runs |" in text
    assert text.count("of 2 runs") == 4
    _, text = plot_any_env(tmp_path / "without delayed", dense=constant(5), x=constant(4))
    assert "gap" not in text
    assert "| `x` | 1/1 | 4.00 of 1 run | 4.00 of 1 run |" in text
    _, text = plot_any_env(tmp_path / "one each", delayed=constant(0), dense=constant(9), x=constant(4))
    assert "gap" not in text  # whether there is one is not known


def test_any_two_arms_can_be_compared(tmp_path, monkeypatch):
    """And PPO may be called `ppo` outside Umbrella, where nobody has tuned it."""
    runs = {"ppo": constant(1, 3, 5), "cln": constant(2, 4, 6), "regression": constant(0, 3, 9)}
    out = tmp_path / "results" / "study"
    monkeypatch.setattr(plot_results, "ROOT", tmp_path)
    for arm, rows in runs.items():
        for seed, returns in enumerate(rows, start=1):
            columns = {"rho": [np.nan] + [seed / 10] * 5} if arm == "cln" else {}
            options = {"env_id": "Some-v5", "total_timesteps": 5_000, "columns": columns}
            write_runs(tmp_path, arm, 0, seed, returns, np.nan, range(0, 6_000, 1_000), **options)
    table, text = plot(tmp_path, out=out)
    assert table.loc["cln", "mean_return_better"] == pytest.approx(6 / 9)
    assert table.loc["cln", ["rho_min", "rho_median", "rho_max"]].tolist() == [0.1, 0.2, 0.3]
    assert "| PPO (`ppo`) |" in text
    assert "P(> PPO)" in text
    assert plot_results.better("study", "cln", "regression").startswith("0.56 [")  # 5 of 9 pairs
    assert plot_results.better("study", "regression", "cln", "final_return").startswith("0.44 [")
    assert plot_results.better("study", "cln", "regression", after=1).startswith("0.50 [")  # 2 of 4 pairs
    for arm, returns in {"cln": 5, "regression": 4}.items():  # of another length, which is compared apart
        for seed in (1, 2, 3):
            write_runs(tmp_path, arm, 7, seed, [returns] * 6, np.nan, range(0, 6_000, 1_000), **options)
    plot_results.store(tmp_path / "runs", out)
    assert plot_results.better("study", "cln", "regression").startswith("0.56 [")
    assert plot_results.better("study", "cln", "regression", length=7).startswith("1.00 [")
    for arm, returns in {"cln": 5, "ppo": 4}.items():  # another task, for the mean of both
        for seed in (1, 2, 3):
            write_runs(tmp_path / "other", arm, 7, seed, [returns] * 6, np.nan, range(0, 6_000, 1_000), **options)
    plot_results.store(tmp_path / "other" / "runs", out.with_name("other"))
    assert plot_results.better([("study", "regression", 0), ("other", "ppo", 7)], "cln").startswith("0.78 [")


def test_over_all_lengths_only_complete_seeds_count(tmp_path):
    """Seed 3 lacks L = 5; `teacher` has a length of its own, which no other arm has."""
    write_runs(tmp_path, "teacher", 10, SEEDS, [0, 1, 1], [0, 0, 0])
    write_runs(tmp_path, "ppo", 2, SEEDS, [6, 6, 6])
    write_runs(tmp_path, "ppo", 5, (1, 2), [3, 3, 3])
    write_runs(tmp_path, "x", 2, 1, [6, 9, 12])
    write_runs(tmp_path, "x", 2, (2, 3), [6, 6, 6])
    write_runs(tmp_path, "x", 5, (1, 2), [12, 12, 12])
    overall = plot(tmp_path, ["length", "arm"])[0].loc["all"]
    assert overall["runs"].to_dict() == {"ppo": 2, "x": 2}
    assert overall["mean_return"].to_dict() == {"ppo": 4.5, "x": 10.5}  # of 6, 6, 3, 3; of 6, 9, 12, 12
    assert overall.loc["x", "mean_return_better"] == 0.875  # L = 2: one of two seeds ties; L = 5: better


def test_learned_rewards_that_are_used_are_counted(tmp_path):
    for seed, used in enumerate([[np.nan, np.nan, 0], [np.nan, np.nan, 1], [np.nan, 0, 0], [np.nan, 1, 1]]):
        columns = {"intrinsic_used": used, "evidence": [np.nan, -np.inf, 2.0 + seed if seed else -np.inf]}
        write_runs(tmp_path, "metairn", 2, seed, [0, 5, 9], columns=columns)
    write_runs(tmp_path, "ppo", 2, range(4), [0, 5, 9])
    table, text = plot(tmp_path)
    columns = ["used", "held_steps_min", "held_steps_median", "held_steps_max", "evidence_min", "evidence_max"]
    assert table.loc["metairn", columns].tolist() == [2, 5e3, 7.5e3, 1e4, 3, 5]
    assert np.isnan(table.loc["ppo", "used"])
    assert re.search(r"MetaIRN \(`metairn`\) \|.*\| 2/4 \|\n", text)
    assert re.search(r"`ppo`\) \|.*\|  \|\n", text)


def test_of_different_budgets_the_longer_is_cut(tmp_path):
    longer = {"successes": [0, 0, 0, 1], "steps": [*STEPS, 20_000], "total_timesteps": 20_500}
    write_runs(tmp_path, "ppo", 5, SEEDS, [0, 5, 9])
    write_runs(tmp_path, "long", 5, SEEDS, [5, 5, 5, 99], **longer)
    write_runs(tmp_path, "long", 8, SEEDS, [0, 5, 5, 5], **longer)
    table, text = plot(tmp_path, ["length", "arm"])
    assert table.loc[(5, "long"), ["solved_ever", "mean_return"]].tolist() == [0, 5]
    assert table.loc[(8, "long"), "solved_ever"] == 3
    assert text.endswith("\n`long`, L = 5: of its 20,500 steps the first 10,500 count, as many as others have.\n")
    assert text.count("steps the first") == 1
    assert pd.read_csv(tmp_path / "out" / "evaluations.csv.gz")["global_step"].max() == 20_000  # nothing is lost


def test_settings_may_differ_by_length_and_arm(tmp_path, capsys):
    longer = {"total_timesteps": 20_500, "irn": "redistribution", "gamma": 0.9, "steps": [*STEPS, 20_000]}
    longer |= {"returns": [0, 9, 9, 9], "successes": [0, 1, 1, 1]}
    write_runs(tmp_path, "ppo", 50, (1, 2), [0, 9, 9])
    write_runs(tmp_path, "carried", 50, (1, 2), [0, 9, 9], irn="redistribution", gamma=1)
    write_runs(tmp_path, "carried", 200, (1, 2), **longer)
    plot(tmp_path)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["ppo"]["total_timesteps"] == 10_500
    expected = {"total_timesteps": {"50": 10_500, "200": 20_500}, "gamma": {"50": 1, "200": 0.9}}
    assert settings["carried"].items() >= (expected | {"irn": "redistribution"}).items()
    assert not (tmp_path / "out" / "left_out.csv").exists()  # ppo has no runs of 200 steps, and misses none
    write_runs(tmp_path, "teacher", 10, 1, [0, 1, 1], env_id="umbrella_env:UmbrellaLengthBsuite-v0")
    plot(tmp_path)  # at a length of its own
    write_runs(tmp_path, "x", 50, 1, [0, 1, 1], env_id="umbrella_env:UmbrellaLengthBsuite-v0")
    fails(capsys, "differ in env_id", runs=tmp_path / "runs", out=tmp_path / "out")
    for length, env_id in {5: "umbrella_env:UmbrellaLength-v0", 7: "umbrella_env:UmbrellaLengthBsuite-v0"}.items():
        write_runs(tmp_path / "one arm", "x", length, 1, [0, 1, 1], env_id=env_id)
    fails(capsys, "differ in env_id", runs=tmp_path / "one arm" / "runs", out=tmp_path / "one arm" / "out")
    plot_any_env(tmp_path / "2", "Hopper-v4", **{"Hopper-v4": constant(1, 2, 3)})  # named after its environment
    table, _ = plot_any_env(tmp_path / "2", "Swimmer-v4", **{"Swimmer-v4": constant(4, 5, 6)})
    assert table["mean_return"].to_dict() == {"Hopper-v4": 2, "Swimmer-v4": 5}
    with pytest.raises(SystemExit):
        plot_any_env(tmp_path / "2", "Ant-v4", x=constant(4, 5, 6))


def test_an_arm_may_have_a_name_that_looks_like_a_number(tmp_path):
    for arm in ("1e-3", "007", "NA", "my run"):
        write_runs(tmp_path, arm, 5, SEEDS, [0, 2, 2])
    (tmp_path / "runs" / "planned").write_text("007 5 4\n")
    for _ in range(2):  # the second time beside what the first has stored
        table, text = plot(tmp_path)
        assert table["runs_expected"].to_dict() == {"007": 4, "1e-3": 3, "NA": 3, "my run": 3}
        assert set(table["mean_return"]) == {1.5}
        assert "`007`" in text


def test_runs_with_other_options_replace_all_of_their_arm_and_no_other_arm(tmp_path):
    first, second, out = tmp_path / "1", tmp_path / "2", tmp_path / "out"
    write_runs(first, "ppo", 5, SEEDS, [2, 2, 2])
    write_runs(first, "a", 5, SEEDS, [4, 4, 4], gamma=0.5)
    write_runs(second, "a", 5, (11, 12, 13), [6, 6, 6], gamma=0.9)
    (first / "runs" / "planned").write_text("a 5 4\nppo 5 4\n")
    (first / "runs" / "invocations.csv").write_text("commit,seconds\n9048e84,7\n")
    (second / "runs" / "invocations.csv").write_text("commit,torch,seconds\n0123456,2.0,8\n")
    plot(first, out=out)
    table, text = plot(second, out=out)
    assert table[["mean_return", "runs_expected"]].T.to_dict("list") == {"ppo": [2, 4], "a": [6, 3]}
    rows = pd.read_csv(out / "evaluations.csv.gz")[["arm", "seed"]].drop_duplicates().to_numpy().tolist()
    assert rows == [["a", 11], ["a", 12], ["a", 13], ["ppo", 1], ["ppo", 2], ["ppo", 3]]
    settings = json.loads((out / "settings.json").read_text())
    assert {arm: options.get("gamma") for arm, options in settings.items()} == {"ppo": None, "a": 0.9}
    assert "`ppo`, L = 5: 1 left out" in text
    assert "`a`, L = 5" not in text
    rows = pd.read_csv(out / "invocations.csv", dtype=str)  # commits that look like numbers
    assert rows[["arms", "commit", "seconds"]].to_numpy().tolist() == [["ppo", "9048e84", "7"], ["a", "0123456", "8"]]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    plot(second, out=out)  # once more: nothing new
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_runs_with_the_same_options_join_those_of_other_seeds(tmp_path):
    """Seed 2 ran again, seed 3 in vain; seed 4 was missing, and runs later. An option that is new changes nothing."""
    first, second, out = tmp_path / "1", tmp_path / "2", tmp_path / "out"
    write_runs(first, "ppo", 5, SEEDS, [2, 2, 2])
    write_runs(first, "a", 5, SEEDS, [4, 4, 4])
    (first / "runs" / "planned").write_text("a 5 4\na 5 5\n")
    write_runs(second, "a", 5, (2, 4), [6, 6, 6], gamma=0.9)
    write_runs(second, "a", 5, 3, [9, 9], [0, 0.5], STEPS[:2], gamma=0.9)  # unfinished
    for folder in (first, second):
        (folder / "runs" / "invocations.csv").write_text(f"commit,seconds\n{folder.name},7\n")
        table, text = plot(folder, out=out)
    assert table[["runs", "runs_expected"]].T.to_dict("list") == {"ppo": [3, 3], "a": [4, 5]}
    rows = pd.read_csv(out / "evaluations.csv.gz").query("arm == 'a' and global_step == 0")
    assert dict(zip(rows["seed"], rows["eval_return"], strict=True)) == {1: 4, 2: 6, 3: 4, 4: 6}
    assert pd.read_csv(out / "left_out.csv")["seed"].tolist() == [5]
    rows = pd.read_csv(out / "invocations.csv", dtype=str)[["commit", "arms"]]
    assert rows.to_numpy().tolist() == [["1", "a ppo"], ["2", "a"]]
    assert json.loads((out / "settings.json").read_text())["a"]["gamma"] == 0.9


def test_runs_of_one_length_leave_the_others_as_they_are(tmp_path):
    """First a further seed, then a run with another option"""
    first, second, third = (tmp_path / name for name in "123")
    for length in (5, 8):
        write_runs(first, "a", length, SEEDS, [4, 4, 4], gamma=length)
    write_runs(second, "a", 5, 4, [6, 6, 6], gamma=5)
    write_runs(third, "a", 5, 1, [6, 6, 6], gamma=7)
    for folder, runs, gamma in ((first, 3, 5), (second, 4, 5), (third, 1, 7)):
        table, _ = plot(folder, "length", out=tmp_path / "out")
        assert table["runs"].drop("all").to_dict() == {"5": runs, "8": 3}
        settings = json.loads((tmp_path / "out" / "settings.json").read_text())
        assert settings["a"]["gamma"] == {"5": gamma, "8": 8}


def test_runs_that_cannot_be_used_are_named_and_left_out(tmp_path, capsys):
    write_runs(tmp_path, "ppo", 2, 1, [0, 5, 9])
    write_runs(tmp_path, "ppo", 2, 2, [0, 5], [0, 0.5], STEPS[:2])
    write_runs(tmp_path, "ppo", 2, 3, [0, np.nan, 9])
    write_runs(tmp_path, "ppo", 2, 4, [0, 5, np.inf])
    (write_runs(tmp_path, "ppo", 2, 5, [0, 0, 0]) / "progress.csv").unlink()
    (write_runs(tmp_path, "ppo", 2, 6, [0, 0, 0]) / "progress.csv").write_text("")
    write_runs(tmp_path, "metairn", 2, 1, [0, 5, 9])
    (write_runs(tmp_path, "metairn", 2, 2, [0, 5, 9]) / "intrinsic.npz").write_text("damaged")
    (write_runs(tmp_path, "ppo", 2, 7, [0, 0, 0]) / "args.json").write_text("{")
    (write_runs(tmp_path, "ppo", 2, 8, [0, 0, 0]) / "args.json").write_text("[]")
    (tmp_path / "runs" / "planned").write_text(
        "".join(f"metairn 2 {seed}\n" for seed in (1, 2, 3, 6, 3)) + "ppo 2 7\nppo 2"
    )
    table, _ = plot(tmp_path)
    err = capsys.readouterr().err
    reasons = {2: "unfinished: stopped at step 5000", 3: "not finite", 4: "not finite", 5: "No such file"}
    for seed, why in reasons.items():
        assert re.search(f"left out: ppo, L = 2, seed {seed}: .*{why}", err)
    for name, seed in (("metairn", 3), ("metairn", 6), ("ppo", 7)):
        assert f"{name}, L = 2, seed {seed}: missing: there is no readable run folder" in err
    assert re.search("__ppo__2__7/args.json cannot be read: JSONDecodeError", err)
    assert re.search("__ppo__2__8/args.json cannot be read: TypeError", err)
    assert set(pd.read_csv(tmp_path / "out" / "evaluations.csv.gz")["seed"]) == {1}
    reasons = pd.read_csv(tmp_path / "out" / "left_out.csv")["reason"]
    assert (len(reasons), reasons.str.contains(str(tmp_path)).any()) == (err.count("left out: "), False) == (9, False)
    assert table[["runs", "runs_expected"]].to_numpy().tolist() == [[1, 7], [1, 4]]


def test_what_is_left_out_is_listed_once(tmp_path):
    """Also of an arm that has no finished run, collected twice"""
    write_runs(tmp_path, "ppo", 2, 1, [0, 5, 9])
    write_runs(tmp_path, "x", 2, SEEDS, [0, 5], [0, 0.5], STEPS[:2])
    for _ in range(2):
        plot(tmp_path)
    assert pd.read_csv(tmp_path / "out" / "left_out.csv")["seed"].tolist() == [*SEEDS]


def test_bad_input(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    fails(capsys, "there is no finished run in .*runs", runs=runs, out=out)
    fails(capsys, "does not hold what an earlier call collected", out=out)
    write_runs(tmp_path, "ppo", 2, 1, [0, 5], [0, 0.5], STEPS[:2])
    fails(capsys, "there is no finished run in .*runs", runs=runs, out=out)
    run = write_runs(tmp_path, "ppo", 2, 2, [0, 5, 9])
    for args in {"runs": runs}, {"out": out, "pages": True}, {"runs": runs, "pages": True}:  # no folder by default
        fails(capsys, "give --out FOLDER.*or --pages, and nothing else", **args)
    shutil.copytree(run, runs / "copy")
    fails(capsys, "there is another run with arm, length and seed", runs=runs, out=out)
    shutil.rmtree(runs / "copy")
    run = write_runs(tmp_path, "ppo", 2, 3, [0, 5, 9], gamma=0.9)
    fails(capsys, r"__3 and .*__2 differ in gamma \(0.9, None\)", runs=runs, out=out)
    shutil.rmtree(run)
    run = write_runs(tmp_path, "ppo", 2, 3, [0, 5, 9], num_steps=100)
    fails(capsys, r"__3 and .*__2 differ in num_steps \(100, 50\)", runs=runs, out=out)
    shutil.rmtree(run)
    (tmp_path / "file").touch()
    fails(capsys, "--out .*file.* cannot be written: ", runs=runs, out=tmp_path / "file" / "x")
    plot(tmp_path)
    for name, size in {"evaluations.csv.gz": 40, "settings.json": 9}.items():
        (out / name).write_bytes((out / name).read_bytes()[:size])
        fails(capsys, "not what an earlier call|not hold what an earlier call", out=out)
        fails(capsys, "not what an earlier call|not hold what an earlier call", runs=runs, out=out)


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
    rows = [("carried", 2, 5e3), ("carried", 5, 1e4), ("carried", 10, np.inf), ("ppo", 2, 5e3), ("ppo", 5, 5e3)]
    late = [("carried", 2, 1e4), ("carried", 5, np.inf), ("carried", 10, np.inf), ("ppo", 2, 5e3), ("ppo", 5, 5e3)]
    runs = pd.DataFrame(rows * 2 + late, columns=["arm", "length", "steps_to_95"])
    figure = plot_results.plot_steps_to_95(runs)
    axis, legend = figure.axes[0], [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["credit from another task", "PPO"]  # as the lines end, from top to bottom
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


def test_curves():
    runs = {"arm": "x", "seed": [1, 1, 2, 2], "global_step": [0, 1000, 0, 1000], "eval_return": [0, 1, 2, 3]}
    axis = plot_results.plot_learning(pd.DataFrame(runs), "Some-v5").axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[0, 1], [1, 2]]
    assert axis.lines[0].get_label() == "x"
    band = axis.collections[0].get_paths()[0].vertices
    assert {(0, 0), (1, 1), (1, 3), (0, 2)} == set(map(tuple, band))


def test_an_arm_looks_the_same_in_all_figures():
    line = np.array([0, 1]), np.ones((3, 2))

    def looks(*arms):
        axis = plot_results.plot("", "", "", dict.fromkeys(arms, line))[1]
        found = [(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axis.lines]
        return dict(zip(arms, found, strict=True))

    every = looks(*(arm for arm in plot_results.ARMS if arm != "ppo.hand"))  # which is `ppo` where that is not run
    assert looks("oracle", "metairn") == {arm: every[arm] for arm in ("oracle", "metairn")}
    together = [arm for arm in every if arm not in ("delayed", "same", "dense", "dense.tuned", "window")]
    assert len({every[arm] for arm in together}) == len(together)
    assert len({every[arm] for arm in set(every) - {"ppo", "oracle"}}) == len(every) - 2
    assert len(set(looks(*"abcdefghijkl").values())) == 12  # arms without a name


def test_lengths_of_one_arm_alone_are_in_no_figure():
    rows = pd.DataFrame([("teacher", 2), ("a", 5), ("b", 5)], columns=["arm", "length"])
    assert plot_results.shared_lengths(rows) == [5]
    assert plot_results.shared_lengths(rows.assign(length=[2, 5, 9])) == [2, 5, 9]


def test_figures_are_drawn_and_are_the_same_each_time(tmp_path):
    for figure, lengths in {"learning.png": (5,), "steps_to_95.png": (2, 5)}.items():
        for seed in SEEDS:
            for length in lengths:
                write_runs(tmp_path / figure, "ppo", length, seed, [0, seed, 9], [0, 0.5, 1])
                write_runs(tmp_path / figure, "metairn", length, seed, [0, seed / 2, 9], [0, 0.9, 0.96])
        plot(tmp_path / figure)
        out = tmp_path / figure / "out"
        first = {path.name: path.read_bytes() for path in out.iterdir()}
        assert set(first) == {"evaluations.csv.gz", "settings.json", "table.csv", "table.md", figure}
        image = plt.imread(out / figure)[..., :3]
        assert (image.min(-1) < 0.9).mean() > 0.02  # not blank
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50  # not only axes
        plot_results.main(plot_results.Args(out=str(out)))  # from the CSV files alone
        assert {path.name: path.read_bytes() for path in out.iterdir()} == first


MARKED = [pytest.param(path, marks=[pytest.mark.slow] * (path.name != "tuned")) for path in STUDIES]


@pytest.mark.parametrize("folder", MARKED, ids=lambda path: path.name)
def test_committed_tables_are_those_of_the_committed_data(folder, monkeypatch):
    monkeypatch.setattr(plot_results, "RESAMPLES", RESAMPLES)
    assert RESAMPLES >= 5_000
    for name, text in plot_results.tables(*plot_results.load(folder)).items():
        assert (folder / name).read_text() == text
    evaluations = pd.read_csv(folder / "evaluations.csv.gz")
    cells = evaluations.groupby(["arm", "length"])["seed"].agg(set)
    assert all(seeds <= others or seeds >= others or not seeds & others for seeds in cells for others in cells)


def test_pages_are_those_of_the_committed_tables(monkeypatch):
    """So `--pages` changes nothing: with the tables above, these are all the files that it writes."""
    monkeypatch.setattr(plot_results, "RESAMPLES", RESAMPLES)  # of probabilities that no table has
    pages = plot_results.render()
    assert {path.name for path in pages} >= {"README.md", "umbrella.md", "history.md"}
    for path, text in pages.items():
        assert path.read_text() == text, path
        links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("#", "http"))]
        assert [link for link in links if not path.parent.joinpath(link.split("#")[0]).exists()] == []
        assert [name for name in re.findall(r"STUDY=(results/\S+)", text) if not (ROOT / name).exists()] == []


def test_templates_read_one_cell(tmp_path, monkeypatch):
    (tmp_path / "results" / "templates").mkdir(parents=True)
    (tmp_path / "results" / "a.csv").write_text("arm,length,x,x_low,x_high,x_digits,x_runs\np,5,1234.5,-4.0,2e4,-1,3\n")
    template = '{{ cell("a.csv", "x", arm="p", length=5) | steps }}; {{ interval("a.csv", "x", arm="p") }}\n'
    (tmp_path / "results" / "templates" / "page.md").write_text(template)
    (tmp_path / "README.md").write_text("a\n<!-- results/templates/page.md -->\nold\n<!-- end -->\nb\n")
    monkeypatch.setattr(plot_results, "ROOT", tmp_path)
    page = "1,234; 1,230 [0, 20,000]\n"  # and no -0
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
    settings = json.loads((folder / "settings.json").read_text())["ppo.hand"]
    options = list(trials.columns[1 : trials.columns.get_loc("seed")])
    for length, rows in trials.groupby("length"):
        medians = rows.groupby(options)["first_95"].agg(["size", "median"]).query("size == 10")["median"]
        used = [x[str(length)] if isinstance(x := settings[name], dict) else x for name in options]
        assert medians.idxmin() == tuple(used)
