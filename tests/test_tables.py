"""Tables: averages worked out by hand, intervals against closed forms, and every way a file can be wrong."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from example_scores import add_failure, add_model, add_run, first, tables_job, write

from fusion.allocation import ALLOCATION
from fusion.intervals import difference_z, percentile_interval, resampled_means, wilson
from fusion.stages.tables import TABLES, make_tables, markdown
from fusion.tables.costs import too_much_asked
from fusion.tables.leaderboard import COLUMNS
from fusion.tables.score_rows import GROUP


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Tasks a (10 test examples) and b (20), two seeds of one merged model, round averages."""
    add_model(tmp_path, "pretrained", {"a": first(5, 10), "b": first(8, 20)}, mode="", entropy=1.0)
    for seed in (0, 1):
        own = {"seed": seed, "finetune_seconds": 30.0 + seed, "entropy": 0.1}
        add_model(tmp_path, "individual", {"a": first(10, 10), "b": first(2, 20)}, trained_on="a", **own)
        add_model(tmp_path, "individual", {"a": first(3, 10), "b": first(16, 20)}, trained_on="b", **own)
    merged = {"space": "weight", "selected_on": "val"}
    for seed, (a, b) in enumerate([(8, 12), (6, 16)]):
        chosen = {"hyperparameters": f'{{"scaling": 0.{seed + 3}}}'}
        chosen |= {"fuse_seconds": 2.0 + seed, "select_seconds": 20.0 + seed}
        add_model(tmp_path, "task_arithmetic", {"a": first(a, 10), "b": first(b, 20)}, seed=seed, **chosen, **merged)
    add_model(tmp_path, "adamerging", {"a": first(9, 10), "b": first(15, 20)}, space="weight", adapted_on="val")
    add_failure(tmp_path, "tsv_m", "only one-dimensional tensors", space="weight")
    return tmp_path


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    make_tables(tables_job(folder))
    return {name: pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in TABLES}


def test_leaderboard_averages_tasks_and_seeds_as_worked_out_by_hand(run: Path) -> None:
    board = tables_of(run)["leaderboard"].set_index("method")
    assert list(board.reset_index()[COLUMNS]) == COLUMNS
    assert board["accuracy"].drop("tsv_m").to_dict() == pytest.approx(
        {
            "pretrained": (0.5 + 0.4) / 2,
            "individual": (1.0 + 0.8) / 2,  # each on its own task
            "task_arithmetic": ((0.8 + 0.6) / 2 + (0.6 + 0.8) / 2) / 2,
            "adamerging": (0.9 + 0.75) / 2,
        }
    )
    assert board["normalized"].drop("tsv_m").to_dict() == pytest.approx(
        {
            "pretrained": (0.5 / 1.0 + 0.4 / 0.8) / 2,
            "individual": 1.0,
            "task_arithmetic": ((0.8 / 1.0 + 0.6 / 0.8) / 2 + (0.6 / 1.0 + 0.8 / 0.8) / 2) / 2,
            "adamerging": (0.9 / 1.0 + 0.75 / 0.8) / 2,
        }
    )
    assert board.loc["individual", ["normalized_ci_low", "normalized_ci_high"]].tolist() == [1.0, 1.0]
    assert board.loc["pretrained", ["mode", "seeds", "n_tasks", "entropy"]].tolist() == ["full", 1, 2, 1.0]


def test_two_seeds_are_two_rows_of_scores_and_one_of_the_leaderboard_with_a_spread(run: Path) -> None:
    tables = tables_of(run)
    scores = tables["scores"].query("method == 'task_arithmetic' and metric == 'accuracy' and task == 'a'")
    assert scores["seed"].tolist() == [0, 1]
    row = tables["leaderboard"].set_index("method").loc["task_arithmetic"]
    assert row["seeds"] == 2 and row["seed_std"] == pytest.approx(0.0)  # .7 and .7 on average
    assert row["hyperparameters"] == '{"seed 0": {"scaling": 0.3}, "seed 1": {"scaling": 0.4}}'
    assert row["fuse_seconds"] == 2.5 and row["selected_on"] == "val"
    assert math.isnan(tables["leaderboard"].set_index("method").loc["adamerging", "seed_std"])


def test_seed_spread_is_the_sample_standard_deviation_and_widens_the_interval(tmp_path: Path) -> None:
    for seed, k in ((0, 100), (1, 300)):
        add_model(tmp_path, "ties", {"a": first(k, 400)}, seed=seed, space="weight")
        add_model(tmp_path, "tsv_m", {"a": first(200, 400)}, seed=seed, space="weight")
    board = tables_of(tmp_path)["leaderboard"].set_index("method")
    assert board.loc["ties", "seed_std"] == pytest.approx(0.5 / math.sqrt(2))
    width = board["ci_high"] - board["ci_low"]
    assert width["ties"] > 0.45 and width["tsv_m"] < 0.11
    assert math.isnan(board.loc["ties", "normalized"])  # there are no individual models to compare with


def test_classes_are_ordered_and_methods_ranked_only_within_their_class(run: Path) -> None:
    board = tables_of(run)["leaderboard"]
    assert board["method"].tolist() == ["individual", "pretrained", "task_arithmetic", "tsv_m", "adamerging"]
    assert board["method_class"].drop_duplicates().tolist() == ["reference", "data-free", "unlabelled"]


def test_a_combination_that_could_not_run_is_a_row_with_its_reason(run: Path) -> None:
    tables = tables_of(run)
    failed = tables["leaderboard"].set_index("method").loc["tsv_m"]
    assert failed["reason"] == "only one-dimensional tensors" and math.isnan(failed["accuracy"])
    assert (failed["seeds"], failed["n_tasks"]) == (0, 0)
    assert tables["per_task"].set_index("method").loc["tsv_m", ["a", "b", "average"]].isna().all()
    assert "tsv_m" not in set(tables["costs"]["method"])


def test_a_method_that_applies_in_no_place_has_its_reason_and_disturbs_no_other_row(run: Path) -> None:
    before = tables_of(run)
    for space in ("weight", "adapter"):
        add_failure(run, "emr", "needs two tasks: got 1", mode="lora", space=space, seed=1)
    write(run / "selection" / "emr.parquet", pd.DataFrame())
    after = tables_of(run)
    for name in ("leaderboard", "per_task"):
        made = after[name][after[name]["mode"] == "full"].reset_index(drop=True)
        pd.testing.assert_frame_equal(made, before[name], check_dtype=False)
    pd.testing.assert_frame_equal(after["costs"], before["costs"])
    failed = after["leaderboard"].query("method == 'emr'")
    assert failed["reason"].tolist() == ["needs two tasks: got 1"] * 2 and failed["accuracy"].isna().all()


def test_a_method_that_ran_with_one_seed_alone_has_numbers_and_a_reason(tmp_path: Path) -> None:
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight", seed=0)
    add_failure(tmp_path, "ties", "out of memory", space="weight", seed=1)
    row = tables_of(tmp_path)["leaderboard"].iloc[0]
    assert (row["accuracy"], row["seeds"], row["reason"]) == (0.8, 1, "out of memory")


def test_the_multitask_model_is_a_reference_relative_to_the_individual_models_of_its_seed(run: Path) -> None:
    for seed, (a, b) in enumerate([(9, 16), (10, 12)]):
        right = {"a": first(a, 10), "b": first(b, 20)}
        add_model(run, "multitask", right, seed=seed, finetune_seconds=70.0 + seed, fuse_seconds=math.nan)
    tables = tables_of(run)
    row = tables["leaderboard"].set_index("method").loc["multitask"]
    assert (row["method_class"], row["seeds"]) == ("reference", 2)
    assert row["accuracy"] == pytest.approx(((0.9 + 0.8) / 2 + (1.0 + 0.6) / 2) / 2)
    assert row["normalized"] == pytest.approx(((0.9 / 1.0 + 0.8 / 0.8) / 2 + (1.0 / 1.0 + 0.6 / 0.8) / 2) / 2)
    cost = tables["costs"].set_index(["step", "method", "task"]).loc[("finetune", "multitask", "")]
    assert cost["seconds"] == 70.5
    assert tables["leaderboard"]["method"].iloc[0] == "individual"  # 90 %, multi-task 82.5 %, pre-trained 45 %


def test_the_leaderboard_counts_what_a_model_stores_beyond_one(tmp_path: Path) -> None:
    for seed, extra in ((0, 300), (1, 500)):
        add_model(tmp_path, "emr", {"a": first(9, 10)}, space="weight", seed=seed, extra_parameters=extra)
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight")
    add_failure(tmp_path, "tsv_m", "no matrices", space="weight")
    board = tables_of(tmp_path)["leaderboard"].set_index("method")
    assert board["method_class"].to_dict()["emr"] == "multi-model"
    assert board.loc[["emr", "ties"], "extra_parameters"].tolist() == [500, 0]
    assert math.isnan(board.loc["tsv_m", "extra_parameters"])


def test_per_task_has_a_column_per_task_and_a_row_per_model(run: Path) -> None:
    table = tables_of(run)["per_task"]
    assert list(table) == [*GROUP, "trained_on", "seeds", "average", "seed_std", "a", "b"]
    cells = table.set_index(["method", "trained_on"])[["a", "b", "average"]]
    assert cells.loc[("individual", "a")].tolist() == pytest.approx([1.0, 0.1, 0.55])
    assert cells.loc[("individual", "b")].tolist() == pytest.approx([0.3, 0.8, 0.55])
    assert cells.loc[("task_arithmetic", "")].tolist() == pytest.approx([0.7, 0.7, 0.7])


def test_a_task_that_the_models_were_not_fused_from_has_a_column_but_no_part_in_the_average(
    tmp_path: Path,
) -> None:
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight")
    unseen = pd.read_parquet(tmp_path / "scores" / "full-weight-pair-ties-seed0.parquet")
    unseen = unseen.assign(task="new", seen=False, value=0.1)
    write(tmp_path / "scores" / "unseen.parquet", unseen)
    tables = tables_of(tmp_path)
    assert tables["leaderboard"]["accuracy"].tolist() == [0.8]
    assert tables["per_task"][["a", "new", "average"]].values.tolist() == [[0.8, 0.1, 0.8]]


def test_references_measured_once_stand_in_every_suite_and_mode(tmp_path: Path) -> None:
    add_model(tmp_path, "pretrained", {"a": first(5, 10), "b": first(4, 10)}, mode="", suite="")
    for mode in ("full", "lora"):
        for task in ("a", "b"):
            right = {"a": first(9, 10), "b": first(8, 10)}
            add_model(tmp_path, "individual", right, mode=mode, suite="", trained_on=task)
        add_model(tmp_path, "ties", {"a": first(6, 10)}, mode=mode, space="weight", suite="single")
        add_model(tmp_path, "ties", {"a": first(6, 10), "b": first(6, 10)}, mode=mode, space="weight")
    board = tables_of(tmp_path)["leaderboard"].set_index(["suite", "mode", "method"])
    assert len(board) == 12
    assert board.loc[("single", "lora", "pretrained"), "accuracy"] == 0.5
    assert board.loc[("pair", "full", "individual"), "accuracy"] == pytest.approx(0.85)
    assert board.loc[("single", "full", "individual"), "accuracy"] == pytest.approx(0.9)


def test_selection_curves_average_tasks_and_seeds_and_count_the_seeds_that_chose_them(tmp_path: Path) -> None:
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight")
    keys = {"backbone": "tiny", "mode": "full", "space": "weight", "suite": "pair", "method": "ties"}
    rows = [
        {**keys, "seed": seed, "hyperparameters": f'{{"scaling": {s}}}', "scaling": s, "task": task, "value": value}
        | {"split": "val", "metric": "accuracy", "n": 10, "selected": s == 1}
        for s, values in ((0.5, (0.2, 0.4, 0.6, 0.8)), (1, (0.4, 0.6, 0.8, 1.0)))
        for value, (seed, task) in zip(values, ((0, "a"), (0, "b"), (1, "a"), (1, "b")), strict=True)
    ]
    write(tmp_path / "selection" / "ties.parquet", pd.DataFrame(rows))
    table = tables_of(tmp_path)["selection"]
    assert table["scaling"].tolist() == [0.5, 1.0]
    assert table["value"].tolist() == pytest.approx([0.5, 0.7])
    assert table["seed_std"].tolist() == pytest.approx([0.4 / math.sqrt(2)] * 2)
    assert table["selected_seeds"].tolist() == [0, 2]


def test_costs_hold_fine_tuning_per_task_and_fusion_per_method(run: Path) -> None:
    costs = tables_of(run)["costs"].set_index(["step", "method", "task"])
    assert costs.loc[("finetune", "individual", "a"), "seconds"] == 30.5
    fused = costs.loc[("fuse", "task_arithmetic", "")]
    assert fused[["seconds", "select_seconds", "seeds", "peak_bytes"]].tolist() == [2.5, 20.5, 2, 1000]
    assert math.isnan(costs.loc[("finetune", "individual", "a"), "select_seconds"])
    scored = costs.loc[("evaluate", "pretrained", "")]
    assert scored[["seconds", "queue_seconds", "seeds", "peak_bytes"]].tolist() == [3.0, 1.0, 1, 2000]
    assert costs.loc[("evaluate", "individual", "a"), "seeds"] == 2
    assert "pretrained" not in costs.drop("evaluate").index.get_level_values("method")


def test_a_rule_that_used_under_a_quarter_of_what_it_asked_for_is_named(tmp_path: Path) -> None:
    asked = {"asked_mb": 8000.0, "asked_minutes": 240.0, "evaluate_asked_mb": 4000.0}
    used = {"used_mb": 1500.0, "used_minutes": 100.0, "evaluate_used_mb": 1200.0}
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight", **asked, **used)
    more = used | {"used_mb": 1900.0, "seed": 1}
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight", **asked, **more)
    costs = tables_of(tmp_path)["costs"].set_index("step")
    assert costs.loc["fuse", list(ALLOCATION)].tolist() == [8000, 1900, 240, 100]
    assert costs.loc["evaluate", list(ALLOCATION)].fillna(0).tolist() == [4000, 1200, 0, 0]
    assert too_much_asked(costs.reset_index()).endswith(": fuse 1900 of 8000 MB")


def test_nothing_is_said_of_what_nobody_was_asked_for(run: Path) -> None:
    costs = tables_of(run)["costs"]
    assert costs[list(ALLOCATION)].isna().all().all() and too_much_asked(costs) == ""


def test_a_cost_that_was_not_measured_is_missing(tmp_path: Path) -> None:
    missing = {"peak_bytes": -1, "evaluate_peak_bytes": -1}
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight", **missing)
    assert tables_of(tmp_path)["costs"]["peak_bytes"].isna().all()


def test_diagnostics_are_joined_and_a_method_without_any_has_no_row(run: Path) -> None:
    where = {"backbone": "b", "suite": "s", "mode": "full", "space": "weight", "method": "concrete", "seed": 0}
    write(run / "diagnostics/concrete.parquet", pd.DataFrame([where | {"name": "density", "key": "", "value": 0.5}]))
    write(run / "diagnostics/ties.parquet", pd.DataFrame())
    assert tables_of(run)["diagnostics"]["value"].tolist() == [0.5]


def test_similarity_is_averaged_over_seeds(tmp_path: Path) -> None:
    add_model(tmp_path, "ties", {"a": first(8, 10)}, space="weight")
    keys = {
        "backbone": "tiny",
        "mode": "full",
        "space": "weight",
        "suite": "pair",
        "task_a": "a",
        "task_b": "b",
    }
    for seed, cosine in ((0, 0.1), (1, 0.3)):
        write(
            tmp_path / "similarity" / f"{seed}.parquet",
            pd.DataFrame([{**keys, "seed": seed, "cosine": cosine}]),
        )
    row = tables_of(tmp_path)["similarity"].iloc[0]
    assert row["cosine"] == pytest.approx(0.2) and row["seeds"] == 2


def test_tables_are_written_three_ways_and_identically_every_time(run: Path) -> None:
    tables_of(run)
    written = {p.name: p.read_bytes() for p in (run / "tables").iterdir()}
    assert set(written) == {f"{name}.{kind}" for name in TABLES for kind in ("parquet", "csv", "md")}
    tables_of(run)
    assert {p.name: p.read_bytes() for p in (run / "tables").iterdir()} == written


def test_interval_does_not_move_when_another_method_is_added(run: Path) -> None:
    columns = ["ci_low", "ci_high", "normalized_ci_low", "normalized_ci_high"]
    before = tables_of(run)["leaderboard"].set_index("method").loc["task_arithmetic", columns].tolist()
    add_model(run, "ties", {"a": first(7, 10), "b": first(9, 20)}, space="weight")
    assert tables_of(run)["leaderboard"].set_index("method").loc["task_arithmetic", columns].tolist() == before


def test_bootstrap_interval_of_an_average_matches_the_binomial_standard_error(tmp_path: Path) -> None:
    add_model(tmp_path, "ties", {"a": first(300, 400), "b": first(800, 1600)}, space="weight")
    row = tables_of(tmp_path)["leaderboard"].iloc[0]
    error = math.sqrt(0.75 * 0.25 / 400 + 0.5 * 0.5 / 1600) / 2
    assert row["accuracy"] == 0.625
    assert [row["ci_low"], row["ci_high"]] == pytest.approx([0.625 - 1.96 * error, 0.625 + 1.96 * error], abs=2e-3)


def test_normalized_interval_is_paired_with_the_individual_model(tmp_path: Path) -> None:
    # The merged model errs on exactly the examples the individual errs on: their ratio has no spread.
    add_model(tmp_path, "individual", {"a": first(300, 400)}, trained_on="a")
    add_model(tmp_path, "ties", {"a": first(300, 400)}, space="weight")
    row = tables_of(tmp_path)["leaderboard"].set_index("method").loc["ties"]
    assert row["ci_high"] - row["ci_low"] > 0.07
    assert [row["normalized_ci_low"], row["normalized_ci_high"]] == [1.0, 1.0]


def test_resampled_means_do_not_depend_on_the_block_size_in_distribution() -> None:
    right = np.stack([first(30, 100), first(60, 100)], axis=1)
    means = resampled_means(right, 3000, np.random.default_rng(0))
    assert means.shape == (3000, 2)
    assert means.mean(axis=0) == pytest.approx([0.3, 0.6], abs=3e-3)
    assert means.std(axis=0) == pytest.approx([math.sqrt(0.0021), math.sqrt(0.0024)], rel=0.05)


def test_wilson_interval_matches_published_values_and_its_defining_equation() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I, method 3
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)
    for limit in wilson(7, 30):
        assert abs(7 / 30 - limit) == pytest.approx(1.959964 * math.sqrt(limit * (1 - limit) / 30), rel=1e-6)
    with pytest.raises(ValueError, match="got 5 correct of 4"):
        wilson(5, 4)


def test_difference_z_is_the_pooled_two_sample_statistic() -> None:
    assert difference_z(0.6, 100, 0.4, 100) == pytest.approx(0.2 / math.sqrt(0.25 * 2 / 100))
    assert difference_z(1.0, 10, 1.0, 10) == 0.0


def test_percentile_interval_ignores_ratios_that_do_not_exist() -> None:
    assert percentile_interval(np.array([1.0, np.inf, np.nan, 1.0])) == (1.0, 1.0)
    assert all(math.isnan(x) for x in percentile_interval(np.array([np.nan])))


def test_predictions_that_disagree_with_the_scores_are_an_error(run: Path) -> None:
    path = run / "predictions" / "full-weight-pair-adamerging-seed0.parquet"
    write(path, pd.read_parquet(path).assign(prediction=1))
    with pytest.raises(ValueError, match=r"adamerging.*got accuracy 0.900000 in scores but 1.000000 in predictions"):
        make_tables(tables_job(run))
    assert not (run / "tables").exists()


def test_a_model_without_predictions_is_an_error(run: Path) -> None:
    (run / "predictions" / "full-weight-pair-adamerging-seed0.parquet").unlink()
    with pytest.raises(ValueError, match=r"no predictions of .*adamerging"):
        make_tables(tables_job(run))


def test_a_model_that_lacks_a_task_is_an_error_that_names_both(run: Path) -> None:
    path = run / "scores" / "full-weight-pair-adamerging-seed0.parquet"
    write(path, pd.read_parquet(path).query("task == 'a'"))
    with pytest.raises(ValueError, match=r"adamerging.*no test accuracy on \['b'\]"):
        make_tables(tables_job(run))


def test_a_missing_column_or_key_is_an_error_that_names_the_file(run: Path) -> None:
    path = run / "scores" / "full-weight-pair-adamerging-seed0.parquet"
    good = pd.read_parquet(path)
    write(path, good.drop(columns="seed"))
    with pytest.raises(ValueError, match=r"adamerging-seed0.parquet: columns \['seed'\] are missing"):
        make_tables(tables_job(run))
    write(path, good.assign(space=None))
    with pytest.raises(ValueError, match=r"adamerging-seed0.parquet: got missing values in \['space'\]"):
        make_tables(tables_job(run))


@pytest.mark.slow
def test_a_run_of_ordinary_size_has_every_row(tmp_path: Path) -> None:
    add_run(tmp_path)
    tables = tables_of(tmp_path)
    board = tables["leaderboard"]
    assert len(board) == 3 * 3 + 5 * 5 + 1  # references per mode, methods per mode and space, one failure
    assert (board["ci_low"] < board["accuracy"]).sum() == (board["accuracy"] < board["ci_high"]).sum() == len(board) - 1
    assert len(tables["similarity"]) == 5 * 10 and len(tables["selection"]) == 5 * 2 * 8


def test_markdown_escapes_bars_and_leaves_missing_numbers_empty() -> None:
    text = markdown(pd.DataFrame({"name": ["a|b"], "value": [float("nan")], "n": [3]}))
    assert text == "| name | value | n |\n| --- | ---: | ---: |\n| a\\|b |  | 3 |\n"
