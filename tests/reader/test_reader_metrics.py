"""Metrics in bulk: every value of every whole line, as the type it was logged with."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import mlxpy
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxjobs.errors import InvalidKeyError, MLXJobsError
from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.reader import series
from mlxjobs.reader.reader import UnreadableRunWarning
from mlxjobs.reader.series import Source, load_series, summarise
from tests.run_trees import GENERATIONS, write_run

NAN, INF = math.nan, math.inf


def test_one_long_table_of_all_runs_that_match(tmp_path: Path) -> None:
    for log_id, generation in enumerate(GENERATIONS, start=1):
        write_run(
            tmp_path, log_id, {"lr": 0.1 * log_id}, generation=generation, losses=[log_id, log_id + 0.5]
        )
    reader = mlxpy.Reader(tmp_path)
    table = reader.metrics("config.lr > 0.15", "train.loss")
    assert isinstance(table, pd.DataFrame)
    assert table.to_dict("list") == {"log_id": [2, 2, 3, 3], "step": [0, 1, 0, 1], "value": [2, 2.5, 3, 3.5]}
    assert str(table.dtypes["value"]) == "float64"
    epochs = reader.metrics("", "train.loss", step="train.epoch".partition(".")[2])
    assert epochs["step"].tolist() == [0, 1] * 3
    with pytest.raises(InvalidKeyError, match=r"near: train\.loss"):
        reader.metrics("", "train.lossy")
    with pytest.raises(MLXJobsError, match="result_format 'csv' is not one of"):
        reader.metrics("", "train.loss", result_format="csv")


@pytest.mark.parametrize("package", ["polars", "pyarrow"])
def test_other_packages_get_the_same_table(tmp_path: Path, package: str) -> None:
    write_run(tmp_path, 1, {}, losses=[1.0, NAN])
    reader = mlxpy.Reader(tmp_path)
    name = {"polars": "polars", "pyarrow": "arrow"}[package]
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(MLXJobsError, match=f"pip install {package}"):
            reader.metrics("", "train.loss", result_format=name)
    else:
        table = reader.metrics("", "train.loss", result_format=name)
        assert table.shape == (2, 3)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_nan_and_infinities_come_back_as_floats(tmp_path: Path, generation: str) -> None:
    losses = [1.0, NAN, INF, -INF, 0.5]
    write_run(tmp_path, 1, {}, generation=generation, losses=losses)
    reader = mlxpy.Reader(tmp_path)
    assert repr(reader.filter()[0]["train.loss"]) == repr(losses)
    assert repr(reader.metrics("", "train.loss")["value"].tolist()) == repr(losses)
    assert len(reader.filter("train.loss.last == 0.5 & train.loss.max == inf & train.loss.count == 5")) == 1


def test_strings_that_were_logged_as_strings_stay_strings(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, losses=[])
    logger = DefaultLogger(run)
    for name in ("good", "NaN", "Infinity"):
        logger.log_metrics({"word": name, "whole": 2**60 + 1, "maybe": None}, "notes")
    logger.close()
    reader = mlxpy.Reader(tmp_path, reload=True)
    assert reader.filter()[0]["notes.word"] == ["good", "NaN", "Infinity"]
    assert reader.filter()[0]["notes.whole"] == [2**60 + 1] * 3
    assert reader.metrics("", "notes.word")["value"].tolist() == ["good", "NaN", "Infinity"]
    assert reader.metrics("", "notes.maybe")["value"].isna().all()
    assert len(reader.filter("notes.word.last == 'Infinity'")) == 1


def test_a_step_that_no_run_has_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, 1, {"seed": 1})
    with pytest.raises(InvalidKeyError, match=r"no run has the series 'train\.epcoh'; near: train\.epoch"):
        mlxpy.Reader(tmp_path).metrics("", "train.loss", step="epcoh")


def test_logs_may_be_named_as_other_columns_are(tmp_path: Path) -> None:
    logger = DefaultLogger(write_run(tmp_path, 1, {"seed": 1}))
    for name in ("artifact", "guard"):
        logger.log_metrics({"code": 1.5}, name)
    reader = mlxpy.Reader(tmp_path)
    (row,) = reader.filter("artifact.code.last == 1.5 & guard.code.last == 1.5")
    assert row["artifact.code"] == row["guard.code"] == [1.5]
    assert reader.filter("", "pandas")["guard.code"].tolist() == [[1.5]]


def test_a_series_of_one_name_may_be_in_other_logs(tmp_path: Path) -> None:
    for log_id, log_name, key in ((1, "val.top", "acc"), (2, "val", "top.acc")):
        DefaultLogger(write_run(tmp_path, log_id, {})).log_metrics({key: log_id}, log_name)
    reader = mlxpy.Reader(tmp_path)
    assert reader.filter("val.top.acc.last >= 1")[:]["val.top.acc"] == [[1], [2]]


def test_a_torn_last_line_is_left_out_and_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {})
    write_run(tmp_path, 2, {})
    with (run / "metrics" / "train.json").open("a") as stream:
        stream.write('{"loss": 0.1, "ep')
    reader = mlxpy.Reader(tmp_path)
    with pytest.warns(
        UnreadableRunWarning, match=r"last line of train\.json is not finished.* in 1 run: 1$"
    ) as caught:
        table = reader.metrics("", "train.loss")
    assert caught[0].filename == __file__
    assert len(table) == 6
    assert reader.filter("info.log_id == 1")[0]["train.loss"] == [1.0, 0.5, 0.25]


def test_a_line_that_is_being_written_is_not_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, info={"status": "RUNNING"})
    with (run / "metrics" / "train.json").open("a") as stream:
        stream.write('{"loss"')
    assert len(mlxpy.Reader(tmp_path).metrics("", "train.loss")) == 3


def test_lines_that_are_no_json_are_counted_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {})
    with (run / "metrics" / "train.json").open("ab") as stream:
        stream.write(b'\x00\x00\x00\n[1]\n\n{"loss": 7}, {"loss": 8}\n{"loss": 9}')
    with pytest.warns(UnreadableRunWarning, match="not JSON"):
        table = mlxpy.Reader(tmp_path).metrics("", "train.loss")
    assert table["value"].tolist() == [1.0, 0.5, 0.25, 9.0]


def test_superseded_lines_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, losses=[3.0, 2.0])
    aside = run / "metrics" / ".superseded" / "2"
    aside.mkdir(parents=True)
    (aside / "train.json").write_text('{"loss": 99.0, "epoch": 1}\n')
    (run / "metrics" / ".superseded" / "torn").mkdir()
    (run / "metrics" / ".superseded" / "torn" / "train.json").write_text('{"lo\n')
    DefaultLogger(run).log_metrics({"loss": 5.0}, "fold[1]")
    (aside / "fold[1].json").write_text('{"loss": 4.0}\n')
    reader = mlxpy.Reader(tmp_path)
    assert reader.metrics("", "train.loss")["value"].tolist() == [3.0, 2.0]
    table = reader.metrics("", "train.loss", superseded=True)
    assert table["value"].tolist() == [99.0, 3.0, 2.0]
    assert table["attempt"].tolist() == ["2", "", ""]
    assert reader.metrics("", "fold[1].loss", superseded=True)["value"].tolist() == [4.0, 5.0]


def test_names_with_dots_and_slashes(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, losses=[])
    logger = DefaultLogger(run)
    logger.log_metrics({"top/acc.5": 0.5}, "a.b")
    logger.log_metrics({"top/acc.5": 0.75}, "a.b")
    logger.close()
    reader = mlxpy.Reader(tmp_path, reload=True)
    assert reader.filter("a.b.top/acc.5.max == 0.75")[0]["a.b.top/acc.5"] == [0.5, 0.75]
    assert reader.metrics("", "a.b.top/acc.5")["value"].tolist() == [0.5, 0.75]


def test_a_run_whose_registry_is_lost_still_has_its_series(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, generation="mlxp-1.0")
    (run / "metrics" / ".keys" / "train.yaml").unlink()
    assert mlxpy.Reader(tmp_path).filter()[0]["train.loss"] == [1.0, 0.5, 0.25]


def test_a_log_that_is_called_metrics_is_no_registry(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, generation="mlxp-1.0")
    (run / "metrics" / ".keys" / "metrics.yaml").write_text("acc: ''\n")
    (run / "metrics" / "metrics.json").write_text('{"acc": 1}\n')
    assert mlxpy.Reader(tmp_path).filter()[0]["metrics.acc"] == [1]


VALUES = (
    st.floats() | st.integers(-(2**63), 2**64 - 1) | st.booleans() | st.none() | st.sampled_from(["a", "NaN"])
)
LINES = st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3), max_size=12)


@settings(max_examples=60)
@given(LINES, st.integers(1, 40), st.sampled_from(["\n", ""]))
def test_any_lines_in_any_chunks_are_read_as_json_reads_them(
    lines: list[dict[str, Any]], chunk: int, end: str
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "_CHUNK", chunk)
        path = Path(folder, "x.json")
        path.write_text("\n".join(map(json.dumps, lines)) + (end if lines else ""))
        source = Source(str(path), dict.fromkeys("xyz", "str"))
        expected = {key: [line[key] for line in lines if key in line] for key in "xyz"}
        assert repr(load_series(source, "xyz")) == repr(expected)
        assert (source.bad, source.torn) == (0, False)
        for key, summary in summarise(source).items():
            values = expected[key]
            numbers = [v for v in values if isinstance(v, (int, float)) and v == v]
            assert repr(summary[:2]) == repr([values[0], values[-1]])
            assert summary[5] == len(values)
            assert summary[2:4] == ([min(numbers), max(numbers)] if numbers else [None, None])
