"""Tables and figures of environments without a known optimum, of hand-made run folders with known answers."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import plot_results

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
STEPS = [0, 100, 200, 300, 400, 500]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(plot_results, "RESAMPLES", 300)


@pytest.fixture
def plot(tmp_path):
    """plot(arm=[returns of seed 1, of seed 2, ...], ...) -> folder of tables and figures, summary.csv by algorithm"""

    def run(**arms):
        for name, seeds in arms.items():
            for seed, returns in enumerate(seeds, start=1):
                folder = tmp_path / "runs" / f"Some-v5__{name}__0__{seed}"
                folder.mkdir(parents=True)
                args = {"env_id": "Some-v5", "exp_name": name, "chain_length": 0, "seed": seed, "reward_delay": 20}
                args |= {"num_envs": 10, "num_steps": 10, "total_timesteps": 500}
                (folder / "args.json").write_text(json.dumps(args))
                columns = {"global_step": STEPS, "eval_return": returns, "eval_success": np.nan}
                columns |= {"sps": 100, "wall_time": 1.5, "intrinsic_attention_entropy": np.nan}
                pd.DataFrame(columns).to_csv(folder / "progress.csv", index=False)
                np.savez(folder / "intrinsic.npz", first_step_attention=np.ones((5, 10)))  # of episodes of any length
        out = tmp_path / "out"
        plot_results.main(plot_results.Args(runs=str(tmp_path / "runs"), out=str(out)))
        return out, pd.read_csv(out / "summary.csv").set_index("algorithm")

    return run


def constant(*returns):
    """Runs whose evaluations are all alike, but for the first, which counts nowhere"""
    return [[-1e6] + [x] * 5 for x in returns]


def test_known_answers(plot, capsys):
    """By hand: the last three of x are 6 in the mean, all five after step 0 are 4; one run of it is not finite."""
    x = [[-1e6, 0, 2, 5, 6, 7]] * 3 + [[0, 0, np.nan, 0, 0, 0]]
    out, summary = plot(dense=constant(9, 10, 10, 11), delayed=constant(2, 2, 2, 2), x=x)
    assert (out / "runs.csv").read_text().splitlines()[-3:] == [f"x,0,{seed},6,4" for seed in (1, 2, 3)]
    assert summary.index.tolist() == ["delayed", "dense", "x"]
    assert summary.loc["x", ["runs", "runs_expected"]].tolist() == [3, 4]
    assert summary.loc["dense", ["final_return_iqm", "mean_return_iqm"]].tolist() == [10, 10]
    low, high = summary.loc["dense", ["final_return_low", "final_return_high"]]
    assert 9 <= low < 10 < high <= 11
    assert summary.loc["x", ["final_return_share", "mean_return_share"]].tolist() == [0.5, 0.25]
    # x and delayed do not vary, so the interval of the share is that of dense, turned upside down
    ends = summary.loc["x", ["final_return_share_low", "final_return_share_high"]]
    np.testing.assert_allclose(ends, [4 / (high - 2), 4 / (low - 2)], atol=1e-3)
    assert summary.loc[["delayed", "dense"]].filter(like="share").isna().all(axis=None)
    better = summary.filter(like="better")
    assert better.loc["x", ["final_return_better", "mean_return_better_low"]].tolist() == [1, 1]
    assert better.loc["delayed"].isna().all()
    text = (out / "summary.md").read_text()
    assert "| `x` | 3/4 | 6.00 [6.00, 6.00] | 0.50 [0.4" in text
    assert "| `delayed` | 4/4 | 2.00 [2.00, 2.00] |  |  | 2.00 [2.00, 2.00] |  |  |" in text
    assert "not resolved" not in text
    assert text.endswith("Runs left out, for the reasons in `left_out.csv`: 1 of `x`.\n")
    assert capsys.readouterr().out == text
    assert pd.read_csv(out / "left_out.csv")["reason"].tolist() == ["an evaluation is not finite"]
    assert "eval_success" not in pd.read_csv(out / "evaluations.csv.gz")
    assert json.loads((out / "settings.json").read_text())["x"]["reward_delay"] == 20


def test_a_gap_that_is_not_resolved_has_no_share(plot):
    """The intervals of the final returns of dense and delayed overlap, those of their means over training do not."""
    dense = [[0, 90, 90, x, x, x] for x in (5, 9, 12, 16)]
    delayed = [[0, 0, 0, x, x, x] for x in (4, 7, 9, 10)]
    out, summary = plot(dense=dense, delayed=delayed, x=dense)
    text = (out / "summary.md").read_text()
    assert text.count("not resolved") == 1
    assert "\nThe gap in the final return is not resolved: `dense`'s interval is not above `delayed`'s.\n" in text
    header, row = [
        next(line for line in text.splitlines() if line.startswith(x)).split(" | ") for x in ("|  |", "| `x`")
    ]
    cells = dict(zip(header, row, strict=True))
    assert [name for name in cells if "gap" in name] == ["gap closed, mean return"]
    assert cells["gap closed, mean return"].startswith("1.00 [")
    assert summary.loc["x", "final_return_share"] == 1  # a number without a meaning: in the CSV file alone


def test_probability_of_doing_better_than_delayed(plot):
    """Of the 6 pairs x is ahead in 4 and level in 1; a resample may draw the run of 1 twice, which x always beats."""
    _, summary = plot(delayed=constant(1, 5), x=constant(2, 5, 7))
    p, low, high = summary.loc["x", ["mean_return_better", "mean_return_better_low", "mean_return_better_high"]]
    assert p == pytest.approx((4 + 0.5) / 6, abs=1e-3)
    assert low < p < high == 1


def test_no_gap_at_all(plot):
    out, summary = plot(dense=constant(5, 5), delayed=constant(5, 5), x=constant(5, 5))
    assert summary.loc["x"].filter(like="share").isna().all()
    assert (out / "summary.md").read_text().count("not resolved") == 2


def test_without_both_ends_there_is_no_gap(plot):
    out, summary = plot(dense=constant(5), x=constant(4))
    text = (out / "summary.md").read_text()
    assert "gap" not in text
    assert "| `x` | 1/1 | 4.00 [no interval of one run] | 4.00 [no interval of one run] |" in text


def test_figures_and_tables(plot):
    """These and no others; again from the CSV files alone, the same bytes."""
    out, _ = plot(dense=constant(9, 10, 11), delayed=[STEPS] * 3)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    collected = {"evaluations.csv.gz", "wall_clock.csv", "left_out.csv", "settings.json"}
    assert set(first) == collected | {"runs.csv", "summary.csv", "summary.md", "learning.png", "wall_clock.png"}
    for name in ("learning", "wall_clock"):
        image = plt.imread(out / f"{name}.png")[..., :3]
        assert (image.min(-1) < 0.9).mean() > 0.02  # not blank
    plot_results.main(plot_results.Args(out=str(out)))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_curves():
    learning = {(0, "x"): (np.array([0, 1000]), np.array([[1, 2], [0, 1], [2, 3]]))}
    styles = plot_results.assign_styles(["x"])
    axis = plot_results.plot_returns(learning, {(0, "x"): (2, 3)}, styles, "Some-v5").axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[0, 1], [1, 2]]
    assert axis.lines[0].get_label() == "x (2 of 3 runs)"
    band = axis.collections[0].get_paths()[0].vertices
    assert {(0, 0), (1, 1), (1, 3), (0, 2)} == set(map(tuple, band))
    plt.close("all")
