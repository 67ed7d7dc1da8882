"""Results: groups, aggregates and maps, with the names of both generations of MLXP."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import mlxpy
import numpy as np
import pandas as pd
import pytest
from mlxpy.data_structures.contrib.aggregation_maps import AggregationMap, AvgStd, Last, Max, Min, MinLast

from mlxjobs.errors import InvalidKeyError, InvalidMapError
from mlxjobs.reader.frame import DataDictList, DataFrame, GroupedDataDicts, GroupedDataFrame
from mlxjobs.reader.rows import DataDict
from tests.run_trees import GENERATIONS, write_run

LOSSES = {1: [4.0, 2.0], 2: [2.0, 0.0, 7.0], 3: [1.0, 5.0], 4: [8.0, 6.0]}


@pytest.fixture(params=GENERATIONS)
def results(request: pytest.FixtureRequest, tmp_path: Path) -> DataFrame:
    for log_id, losses in LOSSES.items():
        lr = 0.1 if log_id <= 2 else 0.01
        config: dict[str, Any] = {"lr": lr, "seed": log_id, "layers": [log_id % 2, 5]}
        write_run(tmp_path, log_id, config, losses=losses, generation=request.param)
    found = mlxpy.Reader(tmp_path).filter()
    assert isinstance(found, DataFrame)
    return found


def test_the_classes_have_the_names_of_both_generations() -> None:
    assert mlxpy.DataDictList is mlxpy.DataFrame is DataDictList
    assert GroupedDataDicts is GroupedDataFrame


def test_group_by_of_the_first_generation(results: DataFrame) -> None:
    grouped = results.groupBy(["config.lr"])
    assert list(grouped) == [("0.1",), ("0.01",)]
    assert {key: len(group) for key, group in grouped.items()} == {("0.1",): 2, ("0.01",): 2}
    table = grouped.aggregate([AvgStd("train.loss")])
    assert isinstance(table, DataDictList)
    assert sorted(table.keys()) == ["config.lr", "train.loss_avg", "train.loss_std"]
    assert table[0]["config.lr"] == "0.1"
    np.testing.assert_allclose(table[0]["train.loss_avg"], [3, 1])  # up to the shortest
    np.testing.assert_allclose(table[0]["train.loss_std"], [1, 1])
    frame = table.toPandasDF()
    np.testing.assert_allclose(frame["train.loss_avg"].iloc[1], [4.5, 5.5])


def test_group_by_of_the_second_generation(results: DataFrame) -> None:
    grouped = results.groupby("config.lr")
    assert list(grouped.keys()) == [(0.1,), (0.01,)]
    means = grouped.aggregate(
        (lambda losses: float(np.mean([one[-1] for one in losses])), "train.loss", "mean")
    )
    assert isinstance(means, GroupedDataFrame)
    assert means[(0.1,)][0]["mean"] == 4.5
    flat = means.ungroup()
    assert [dict(row) for row in flat] == [{"mean": 4.5, "config.lr": 0.1}, {"mean": 5.5, "config.lr": 0.01}]
    both = grouped.aggregate(
        [(max, ("config.seed", "config.lr"), ("most", "lr")), (len, "config.seed")], ungroup=True
    )
    assert both.toPandas()["most"].tolist() == [2, 4]
    assert both[0]["flen.config.seed"] == 2


def test_groups_by_several_keys_and_by_lists(results: DataFrame) -> None:
    grouped = results.groupby(["config.lr", "config.layers"])
    assert grouped.groups_size == len(grouped) == 4
    assert grouped[(0.1, [1, 5])][0]["config.seed"] == 1
    assert grouped[("0.1", "(1, 5)")][0]["config.seed"] == 1
    assert results.groupBy("config.layers").group_vals == [("(1, 5)",), ("(0, 5)",)]
    assert list(grouped.select([(0.1, (1, 5))])) == [(0.1, (1, 5))]
    assert results.groupby("config.lr").groupby("config.layers")[(0.1,)][((1, 5),)][0]["config.seed"] == 1
    with pytest.raises(InvalidKeyError, match="there is no group 7"):
        grouped[7]
    with pytest.raises(InvalidKeyError, match=r"'config\.l'; near: .*config\.lr"):
        results.groupby("config.l")


def test_groups_of_runs_that_lack_the_key(tmp_path: Path) -> None:
    write_run(tmp_path, 1, {"a": 1})
    write_run(tmp_path, 2, {"a": None})
    write_run(tmp_path, 3, {})
    grouped = mlxpy.Reader(tmp_path).filter().groupby(["config.a"])
    assert {key: len(group) for key, group in grouped.items()} == {(1,): 1, (None,): 2}


def test_groups_are_shown_by_pandas(results: DataFrame) -> None:
    grouped = results.groupby(["config.lr", "config.layers"])
    frame = grouped.toPandas()
    assert frame.index.names == ["config.lr", "config.layers", None]
    assert frame["config.seed"].tolist() == [4, 3, 2, 1]
    assert grouped.toPandasDF().index.names == ["config.lr", "config.layers"]
    assert results.groupby("config.lr").toPandas(lazy=False)["train.loss"].iloc[0] == LOSSES[3]
    assert "config.seed" in repr(grouped)
    assert "config.seed" in grouped._repr_html_()
    assert "<table" in results._repr_html_()
    assert "config.seed" in results[0]._repr_html_()


def test_groups_are_selected_as_they_are_looked_up(results: DataFrame) -> None:
    for grouped in (results.groupBy("config.lr"), results.groupby("config.lr")):
        for key in (0.1, "0.1", (0.1,), ["0.1"], np.float64(0.1)):
            assert list(grouped.select([key, "nothing"]).keys()) == list(grouped)[:1]
            assert grouped[key][:]["config.seed"] == [1, 2]


def test_a_key_that_only_other_groups_have_is_no_mistake() -> None:
    rows = DataFrame(DataDict(values) for values in ({"name": "adam"}, {"name": "sgd", "momentum": 0.9}))
    grouped = rows.groupby("name")
    assert grouped.filter("momentum > 0.5", ungroup=True)[:]["name"] == ["sgd"]
    assert grouped.sort("momentum", ungroup=True)[:]["name"] == ["adam", "sgd"]
    inner = grouped.groupby("momentum")
    assert [list(group) for group in inner.grouped_dict.values()] == [[(None,)], [(0.9,)]]
    assert inner.toPandasDF().index.tolist() == ["adam", "sgd"]
    with pytest.raises(InvalidKeyError, match="no run has the field 'moment'; near: momentum"):
        grouped.filter("moment > 0.5")
    with pytest.raises(InvalidKeyError, match="no row has the key 'moment'; near: momentum"):
        grouped.sort("moment")


def test_groups_by_what_is_no_column_are_shown_too(results: DataFrame) -> None:
    for key in ("guard.finished", "train.loss.last", "info.log_id", "info.logger.log_id"):
        grouped = results.groupby(key)
        assert key in repr(grouped)
        assert grouped.toPandasDF().index.name == key


def test_the_other_ready_maps(results: DataFrame) -> None:
    table = results.groupby("config.lr").aggregate(
        [Min("train.loss"), MinLast("train.loss"), Max("train.loss")]
    )
    first = dict(table[0])
    assert first["min(train.loss)"] == 2.0  # MinLast has the same name, and came later
    assert first["max(train.loss)"] == 7.0
    assert first["arg_max(train.loss)"] == 1
    assert results.aggregate(Min("config.seed"))[0]["min(config.seed)"] == 1
    assert results.aggregate(Last("train.loss"))[0]["last(train.loss)"] == [2.0, 7.0, 5.0, 6.0]
    assert results.aggregate(AvgStd("config.seed"))[0]["config.seed_avg"] == 2.5
    with pytest.raises(InvalidMapError, match="AvgStd"):
        results.aggregate(AvgStd("info.status"))


def test_maps_of_the_users_own(results: DataFrame) -> None:
    class Spread(AggregationMap):
        def apply(self, data: list[dict[str, Any]]) -> Any:
            values = [row["config.seed"] for row in data]
            return {self.name: max(values) - min(values)}, None

    class Later(AggregationMap):
        def _apply(self, data: list[dict[str, Any]]) -> Any:
            return {"n": len(data)}, None

    table = results.aggregate([Spread(["config.seed"], map_name="spread"), Later(["config.seed"])])
    assert dict(table[0]) == {"spread(config.seed)": 3, "n": 4}
    with pytest.raises(InvalidMapError, match="no method apply"):
        results.aggregate(AggregationMap(["config.seed"]))


def test_apply_transform_and_map(results: DataFrame) -> None:
    assert results.map((lambda seed: seed * 2, "config.seed", "double"))[:]["double"] == [2, 4, 6, 8]
    ranks = results.transform((lambda seeds: sorted(seeds, reverse=True), "config.seed", "rank"))
    assert ranks[:]["rank"] == [4, 3, 2, 1]
    pair = (lambda lr, seed: lr * seed, ("config.lr", "config.seed"), "product")
    assert results.apply(pair, map_type="Rowwise")[1]["product"] == 0.2
    total = (lambda lrs, seeds: sum(lrs) + sum(seeds), ("config.lr", "config.seed"), "total")
    assert results.apply(total)[0]["total"] == pytest.approx(10.22)
    two = (lambda seeds: (seeds, [-seed for seed in seeds]), "config.seed", ("plus", "minus"))
    assert dict(results.apply(two)[1]) == {"plus": 2, "minus": -2}
    assert results.apply((sum, "config.seed"), map_type="Columnwise")[0]["fsum.config.seed"] == 10
    assert len(results.apply((lambda seed: seed, "config.seed"), map_type="Pointwise")) == 4
    by_group = results.groupby("config.lr").transform(
        (lambda v: [one - min(v) for one in v], "config.seed", "d")
    )
    assert by_group.ungroup()[:]["d"] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: r.aggregate(max), "is not a map: give"),
        (lambda r: r.aggregate((max, 3)), "strings"),
        (lambda r: r.aggregate((max, ("config.seed", "config.lr"), "one")), "takes 2 columns and names 1"),
        (lambda r: r.transform((sum, "config.seed")), "see aggregate"),
        (lambda r: r.apply((len, "config.seed"), map_type="Odd"), "map_type 'Odd' is not one of"),
        (lambda r: r.apply((len, "config.seed", ("a", "b"))), "names 2 results, its function gave one int"),
        (lambda r: r.filter((sum, "config.seed")), "one truth value for each row"),
        (lambda r: r.merge(r[:1]), "4 rows cannot be merged with 1"),
        (lambda r: DataFrame(list[Any](dict(row) for row in r)), "a row is a DataDict, not dict"),
    ],
)
def test_maps_that_cannot_be_applied_say_why(results: DataFrame, call: Any, said: str) -> None:
    with pytest.raises(InvalidMapError, match=said):
        call(results)


def test_rows_are_filtered_by_maps_queries_and_functions(results: DataFrame) -> None:
    above = results.filter((lambda seeds: [seed > 2 for seed in seeds], "config.seed"))
    assert above[:]["config.seed"] == [3, 4]
    assert results.filter("config.lr == 0.1 & train.loss.last > 5")[:]["config.seed"] == [2]
    assert results.filter(lambda row: row["train.loss"][0] == 8.0)[:]["config.seed"] == [4]
    smallest = (lambda seeds: [seed == min(seeds) for seed in seeds], "config.seed")
    assert results.filter(smallest, bygroups="config.lr")[:]["config.seed"] == [1, 3]
    assert results.groupby("config.layers").filter(smallest, bygroups="config.lr", ungroup=True)[:][
        "config.seed"
    ] == [1, 3]
    table = results.map((lambda seed: seed, "config.seed", "s"))
    assert len(table.filter("s > 1")) == 3
    with pytest.raises(InvalidKeyError, match="no run has the field 't'"):
        table.filter("t > 1")


def test_rows_are_sorted_with_what_has_no_value_last(results: DataFrame) -> None:
    assert results.sort(["config.lr", "config.seed"], ascending=False)[:]["config.seed"] == [2, 1, 4, 3]
    assert results.sort("config.lr")[:]["config.seed"] == [3, 4, 1, 2]
    assert results.sort("train.loss.last")[:]["config.seed"] == [1, 3, 4, 2]
    odd = DataFrame(DataDict({"a": value}) for value in [None, "x", 2, float("nan"), 1, [3]])
    assert [repr(v) for v in odd.sort("a")[:]["a"]] == ["1", "2", "'x'", "[3]", "nan", "None"]
    lists = DataFrame(DataDict({"a": value}) for value in ([64, 64], [128], ["x"], [9]))
    assert lists.sort("a")[:]["a"] == [[9], [64, 64], [128], ["x"]]
    backwards = odd.sort("a", ascending=False)[:]["a"]
    assert [repr(v) for v in backwards] == ["[3]", "'x'", "2", "1", "None", "nan"]
    assert (
        results.groupby("config.lr").sort("config.seed", ascending=False, ungroup=True)[0]["config.seed"] == 2
    )


def test_what_numpy_worked_out_is_filtered_sorted_and_grouped() -> None:
    best = DataFrame(DataDict({"best": value}) for value in np.array([10, 9, 100]))
    assert best.sort("best")[:]["best"] == [9, 10, 100]
    assert best.filter("best < 50")[:]["best"] == [10, 9]
    assert best.aggregate([AvgStd("best")])[0]["best_avg"] == pytest.approx(119 / 3)
    curves = DataFrame(DataDict({"lr": lr, "curve": np.array([lr, 1.0])}) for lr in (0.1, 0.2))
    assert curves.filter("lr < 0.15")[:]["lr"] == [0.1]
    assert len(curves.groupby("curve")) == 2


def test_no_row_is_lost_where_two_values_read_the_same() -> None:
    values = [None, "None", 1, "1", float("nan"), -float("nan")]
    odd = DataFrame(DataDict({"x": value}) for value in values)
    assert {key: len(rows) for key, rows in odd.groupBy("x").items()} == {
        ("None",): 2, ("1",): 2, ("nan",): 2
    }  # fmt: skip
    assert [len(rows) for rows in odd.groupby("x").grouped_dict.values()] == [1, 1, 1, 1, 2]


def test_an_empty_result_stays_one() -> None:
    none = DataFrame()
    for found in (none.sort("a"), none.select("a"), none.filter((list, "a")), none.groupby("a").ungroup()):
        assert isinstance(found, DataFrame)
        assert not found


def test_rows_are_merged_and_columns_selected(results: DataFrame) -> None:
    more = results.map((lambda seed: -seed, "config.seed", "minus"))
    merged = results.merge(more)
    assert merged[1]["minus"] == -2
    assert merged[1]["train.loss"] == LOSSES[2]
    assert "minus" not in results[1]
    assert merged.toPandas()["minus"].tolist() == [-1, -2, -3, -4]
    chosen = results.select(["config.lr", "train.loss"])
    assert chosen.keys() == ["config.lr", "train.loss"]
    assert chosen[0]["train.loss"] == LOSSES[1]


def test_diff_names_what_is_not_the_same(results: DataFrame) -> None:
    assert results.diff() == results.config_diff() == ["config.layers", "config.lr", "config.seed"]
    assert results[:1].diff() == []
    assert DataFrame(DataDict({"config.a": float("nan")}) for _ in range(2)).diff() == []
    assert "info.process_id" in results.diff("info")


def test_a_row_is_a_mapping_that_can_be_changed(results: DataFrame) -> None:
    row = results[0]
    row.update({"config.lr": 7, "new": "x"})
    assert row["config.lr"] == 7
    assert results[:]["config.lr"] == [7, 0.1, 0.01, 0.01]
    assert dict(row)["new"] == "x"
    assert len(row) == len(list(row)) == len(dict(row))
    assert row.get("nothing") is None


def test_pandas_shows_missing_values_and_keeps_lists(tmp_path: Path) -> None:
    write_run(tmp_path, 1, {"a": 1, "l": [1]})
    write_run(tmp_path, 2, {"b": "x", "l": [1, 2]})
    frame = mlxpy.Reader(tmp_path).filter().toPandas()
    assert frame["config.a"].isna().tolist() == [False, True]
    assert frame["config.b"].isna().tolist() == [True, False]
    assert frame["config.l"].tolist() == [[1], [1, 2]]
    assert pd.DataFrame(frame).shape[0] == 2


def test_what_returns_no_pandas_works_without_it(tmp_path: Path) -> None:
    write_run(tmp_path, 1, {"lr": 0.1})
    write_run(tmp_path, 2, {"lr": 0.1})
    program = f"""
import sys
sys.modules["pandas"] = sys.modules["numpy"] = None
import mlxpy
from mlxpy.data_structures.contrib.aggregation_maps import AvgStd
reader = mlxpy.Reader({str(tmp_path)!r})
results = reader.filter("train.loss.last < 1")
assert results.groupby("config.lr").aggregate([AvgStd("train.loss")])[0]["train.loss_avg"] == [1.0, 0.5, 0.25]
assert list(reader.metrics("", "train.loss", result_format="arrays")["value"]) == [1.0, 0.5, 0.25] * 2
assert reader.types()["train.loss"] == "LAZYDATA"
assert "config.lr" in repr(results)
try:
    reader.fields
except mlxpy.MLXJobsError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "this needs pandas, which is not installed: pip install 'mlxjobs[data]'\n"


# -- the guard ------------------------------------------------------------------------------------


def _guarded(tmp_path: Path) -> DataFrame:
    facts: list[dict[str, Any]] = [
        {"version_manager": {"commit_hash": "a"}},
        {"version_manager": {"commit_hash": "b"}, "attempts": [{"host": "node1"}, {"host": "gpu7"}]},
        {"version_manager": {"commit_hash": "a"}, "status": "RUNNING"},
        {"version_manager": {"commit_hash": "a"}, "hostname": "node2"},
    ]
    for log_id, info in enumerate(facts, start=1):
        write_run(tmp_path, log_id, {"lr": 0.1 if log_id <= 2 else 0.5}, info=info)
    found: DataFrame = mlxpy.Reader(tmp_path).filter()
    return found


def test_the_guard_says_once_what_groups_mix(tmp_path: Path) -> None:
    grouped = _guarded(tmp_path).groupby("config.lr")
    with pytest.warns(mlxpy.MixedRunsWarning) as caught:
        grouped.aggregate((max, "train.loss"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grouped.aggregate([AvgStd("train.loss")])
    (warning,) = caught
    assert warning.filename == __file__
    text = str(warning.message)
    assert "lr=0.1: 2 code versions, 1 of 2 runs resumed, 2 kinds of machines" in text
    assert "lr=0.5: 1 of 2 runs not complete" in text
    assert "groupby(['config.lr', 'guard.code', 'guard.resumed', 'guard.hardware'])" in text
    assert "filter('guard.finished')" in text


def test_the_guard_is_content_once_runs_are_split_or_left_out(tmp_path: Path) -> None:
    results = _guarded(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split = results.filter("guard.finished").groupby(["config.lr", "guard.code", "guard.hardware"])
        split.aggregate((max, "train.loss"))
        results.filter("guard.code == 'a' & guard.finished").aggregate((max, "train.loss"))
    with pytest.warns(mlxpy.MixedRunsWarning, match="all rows: 2 code versions"):
        results.aggregate((max, "train.loss"))
    assert results.filter("guard.resumed")[:]["info.log_id"] == [2]


def test_the_guard_warns_at_the_line_of_a_plain_aggregate(tmp_path: Path) -> None:
    with pytest.warns(mlxpy.MixedRunsWarning) as caught:
        _guarded(tmp_path).aggregate(AvgStd("train.loss"))
    assert caught[0].filename == __file__
