"""The statistics on run folders with known answers, and README.md against what is committed."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rliable.metrics

import plot_results
import ppo_metairn
import ppo_vanilla

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
STEPS = [0, 5_000, 10_000]


def write_run(runs, algorithm, length, seed, returns, successes, steps=STEPS):
    folder = runs / f"UmbrellaLength-v0__{algorithm}__{length}__{seed}"
    folder.mkdir(parents=True)
    args = {"exp_name": algorithm, "chain_length": length, "seed": seed}
    args |= {"num_envs": 20, "num_steps": 50, "total_timesteps": 10_500}  # the last half batch is not run
    (folder / "args.json").write_text(json.dumps(args))
    columns = {"global_step": steps, "eval_return": returns, "eval_success": successes}
    columns |= {"train_return": np.nan, "train_success": np.nan, "sps": 100.4, "wall_time": 1.234}
    if algorithm == "ppo_metairn":
        columns |= {"intrinsic_advantage_share": 0.25, "intrinsic_attention_entropy": 1.5}
    pd.DataFrame(columns).to_csv(folder / "progress.csv", index=False)
    return folder


def test_iqm_is_rliables():
    scores = np.random.default_rng(0).normal(size=(11, 3))
    iqm, _, _ = plot_results.iqm_with_interval(scores)
    np.testing.assert_allclose(iqm, [rliable.metrics.aggregate_iqm(scores[:, i]) for i in range(3)])


def test_known_answers(tmp_path):
    runs, out = tmp_path / "runs", tmp_path / "out"
    finals = [-10, 1, 2, 3, 4, 5, 6, 100]  # the interquartile mean keeps 2, 3, 4, 5
    for seed, final in enumerate(finals):
        solved_at = {0: [0, 0, 0], 1: [0, 1, 0.9]}.get(seed, [0, 0.5, 1])
        write_run(runs, "ppo_vanilla", 3, seed, [0, 0, final], solved_at)
    write_run(runs, "ppo_metairn", 3, 0, [0, 7, 7], [0, 0.96, 0.96])  # a single run has no spread
    plot_results.main(plot_results.Args(runs=str(runs), out=str(out)))
    summary = pd.read_csv(out / "summary.csv").set_index("algorithm")
    vanilla, metairn = summary.loc["ppo_vanilla"], summary.loc["ppo_metairn"]
    assert (vanilla["runs"], vanilla["solved_ever"], vanilla["solved_at_end"]) == (8, 7, 6)
    assert vanilla["final_return_iqm"] == 3.5
    assert vanilla["final_return_low"] < 3.5 < vanilla["final_return_high"]
    assert (vanilla["steps_to_95_median"], vanilla["steps_to_95_max"]) == (10_000, np.inf)
    assert metairn["final_return_low"] == metairn["final_return_iqm"] == metairn["final_return_high"] == 7
    assert metairn["steps_to_95_median"] == 5_000
    assert (metairn["advantage_share_median"], metairn["attention_entropy_median"]) == (0.25, 1.5)
    assert (out / "learning.png").stat().st_size > 10_000


def test_the_interval_covers_the_truth(monkeypatch):
    """95 % intervals of the IQM of 10 normal runs should cover 0 in most of 60 repetitions; the bootstrap of so few
    runs is known to be too narrow: about 90 %. Below 47 of 60 would be 3 standard deviations under that."""
    monkeypatch.setattr(plot_results, "RESAMPLES", 500)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        _, low, high = plot_results.iqm_with_interval(rng.normal(size=(10, 1)))
        covered += low[0] < 0 < high[0]
    assert 47 <= covered < 60


def test_unfinished_and_broken_runs_are_named_and_left_out(tmp_path, capsys):
    write_run(tmp_path, "ppo_vanilla", 2, 1, [0, 5, 9], [0, 0.5, 1])
    partial = write_run(tmp_path, "ppo_vanilla", 2, 2, [0, 5], [0, 0.5], STEPS[:2])
    broken = write_run(tmp_path, "ppo_vanilla", 2, 3, [0, np.nan, 9], [0, 0.5, 1])
    (write_run(tmp_path, "ppo_vanilla", 2, 4, [0, 0, 0], [0, 0, 0]) / "progress.csv").unlink()
    evaluations = plot_results.collect(tmp_path)
    assert set(evaluations["seed"]) == {1}
    err = capsys.readouterr().err
    assert f"{partial}: stopped at step 5000" in err
    assert f"{broken}: an evaluation is not finite" in err
    assert "2__4: " in err
    with pytest.raises(SystemExit, match="no finished run"):
        plot_results.collect(tmp_path / "nowhere")


def test_committed_results_are_recomputed_from_the_committed_evaluations(tmp_path):
    evaluations = pd.read_csv(ROOT / "results" / "evaluations.csv")
    evaluations.to_csv(tmp_path / "evaluations.csv", index=False)
    plot_results.main(plot_results.Args(out=str(tmp_path)))
    for name in ("summary.csv", "summary.md"):
        assert (tmp_path / name).read_text() == (ROOT / "results" / name).read_text()
    assert (ROOT / "results" / "summary.md").read_text() in README
    assert set(evaluations["seed"]) == set(range(1, 11))
    counts = evaluations.groupby(["algorithm", "chain_length"])["seed"].nunique()
    assert len(counts) == 10
    assert (counts == 10).all()  # all seeds, the failed ones too


def test_what_the_readme_says_of_earlier_defaults():
    earlier = pd.read_csv(ROOT / "results" / "earlier_defaults.csv")
    unsolved = earlier[earlier["eval_success"] < plot_results.SOLVED]
    assert set(zip(unsolved["algorithm"], unsolved["chain_length"], strict=True)) == {("ppo_metairn", 50)}
    assert [int((unsolved["defaults"] == n).sum()) for n in (1, 2, 3, 4)] == [1, 0, 2, 0]
    keys = ["algorithm", "chain_length", "seed"]
    last = pd.read_csv(ROOT / "results" / "evaluations.csv").groupby(keys).last()["eval_success"]
    committed = earlier[earlier["defaults"] == 4].set_index(keys)["eval_success"]
    pd.testing.assert_series_equal(last.sort_index(), committed.sort_index())


def test_readme_lists_every_option_with_its_default():
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| (.*?) \|", README, flags=re.MULTILINE))
    for args in (ppo_vanilla.Args(), ppo_metairn.Args()):
        for f in dataclasses.fields(args):
            if f.init and f.name != "exp_name":
                default = getattr(args, f.name)
                shown = {"None": "", "True": "on", "False": "off"}.get(str(default), f"`{default}`")
                assert rows[f.name.replace("_", "-")] == shown
    assert len(rows) == sum(f.init for f in dataclasses.fields(ppo_metairn.Args))
