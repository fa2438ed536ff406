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
    monkeypatch.setattr(plot_results, "RESAMPLES", 3_000)


@pytest.fixture
def plot(tmp_path):
    """plot(arm=[returns of seed 1, of seed 2, ...], ...) -> folder of table and figure, table.csv by arm, table.md"""

    def run(env_id="Some-v5", **arms):
        for name, seeds in arms.items():
            for seed, returns in enumerate(seeds, start=1):
                folder = tmp_path / "runs" / f"{env_id}__{name}__0__{seed}"
                folder.mkdir(parents=True)
                args = {"env_id": env_id, "exp_name": name, "chain_length": 0, "seed": seed, "reward_delay": 20}
                args |= {"num_envs": 10, "num_steps": 10, "total_timesteps": 500}
                (folder / "args.json").write_text(json.dumps(args))
                columns = {"global_step": STEPS, "eval_return": returns, "eval_success": np.nan}
                pd.DataFrame(columns | {"sps": 100}).to_csv(folder / "progress.csv", index=False)
                np.savez(folder / "intrinsic.npz", first_step_attention=np.ones((5, 10)))  # of episodes of any length
        out = tmp_path / "out"
        plot_results.main(plot_results.Args(runs=str(tmp_path / "runs"), out=str(out)))
        return out, pd.read_csv(out / "table.csv").set_index("arm"), (out / "table.md").read_text()

    return run


def constant(*returns):
    """Runs whose evaluations are all alike, but for the first, which counts nowhere"""
    return [[-1e6] + [x] * 5 for x in returns]


def test_known_answers(plot, capsys):
    """By hand: the last three of x are 6 in the mean, all five after step 0 are 4; one run of it is not finite."""
    x = [[-1e6, 0, 2, 5, 6, 7]] * 3 + [[0, 0, np.nan, 0, 0, 0]]
    out, table, text = plot(dense=constant(9, 10, 10, 11), delayed=constant(2, 2, 2, 2), x=x)
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
    assert pd.read_csv(out / "left_out.csv")["reason"].tolist() == ["an evaluation is not finite"]
    assert "eval_success" not in pd.read_csv(out / "evaluations.csv.gz")
    assert json.loads((out / "settings.json").read_text())["x"]["reward_delay"] == 20


def test_where_dense_is_not_above_delayed_there_is_no_gap(plot):
    """The intervals of the final returns of dense and delayed overlap, those of their means over training do not."""
    dense = [[0, 90, 90, x, x, x] for x in (5, 9, 12, 16)]
    delayed = [[0, 0, 0, x, x, x] for x in (4, 7, 9, 10)]
    _, table, text = plot(dense=dense, delayed=delayed, x=dense)
    header, row = [[x.strip() for x in line.split("|")] for line in text.splitlines()[::4][:2]]
    cells = dict(zip(header, row, strict=True))
    assert cells["final return: gap closed"] == "no gap"
    assert cells["return over training: gap closed"].startswith("1.0")
    assert "final_return_closed" not in table
    assert table[["final_return_no_gap", "mean_return_no_gap"]].drop_duplicates().dropna().to_numpy().tolist() == [
        [1, 0]
    ]


def test_probability_of_doing_better_than_delayed(plot):
    """Of the 6 pairs x is ahead in 4 and level in 1; a resample may draw the run of 1 twice, which x always beats."""
    _, table, _ = plot(delayed=constant(1, 5), x=constant(2, 5, 7))
    p, low, high = table.loc["x", ["mean_return_better", "mean_return_better_low", "mean_return_better_high"]]
    assert p == pytest.approx((4 + 0.5) / 6, abs=1e-3)
    assert low < p < high == 1


def test_two_runs_of_an_arm_are_named(plot):
    """Also where a comparison rests on the two runs of the arm that is compared with."""
    _, _, text = plot(delayed=constant(1, 5), x=constant(2, 5, 7))
    assert "| 2/2 | 3.00 [1.00, 5.00] of 2 runs |" in text
    assert "| `x` | 3/3 | 4.67 [2.00, 7.00] | 0.75 [0.17, 1.00] of 2 runs |" in text
    assert text.count("of 2 runs") == 4


def test_without_both_ends_there_is_no_gap(plot):
    _, _, text = plot(dense=constant(5), x=constant(4))
    assert "gap" not in text
    assert "| `x` | 1/1 | 4.00 of 1 run | 4.00 of 1 run |" in text


def test_arms_named_after_their_environments_may_differ_in_it(plot):
    plot("Hopper-v4", **{"Hopper-v4": constant(1, 2, 3)})
    _, table, _ = plot("Swimmer-v4", **{"Swimmer-v4": constant(4, 5, 6)})
    assert table["mean_return"].to_dict() == {"Hopper-v4": 2, "Swimmer-v4": 5}
    with pytest.raises(SystemExit):
        plot("Ant-v4", x=constant(4, 5, 6))


def test_curves(plot):
    runs = pd.DataFrame(
        {"arm": "x", "seed": [1, 1, 2, 2], "global_step": [0, 1000, 0, 1000], "eval_return": [0, 1, 2, 3]}
    )
    axis = plot_results.plot_learning(runs, "Some-v5").axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[0, 1], [1, 2]]
    assert axis.lines[0].get_label() == "x"
    band = axis.collections[0].get_paths()[0].vertices
    assert {(0, 0), (1, 1), (1, 3), (0, 2)} == set(map(tuple, band))
    plt.close("all")
