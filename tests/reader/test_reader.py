"""The Reader as a notebook uses it, on the trees of all generations, whole and broken."""

from __future__ import annotations

import datetime
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import mlxpy
import numpy as np
import pandas as pd
import pytest

from mlxjobs.errors import (
    ArtifactNotFoundError,
    InvalidArtifactError,
    InvalidKeyError,
    MLXJobsError,
    RunError,
)
from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.reader.index import INDEX_NAME
from mlxjobs.reader.reader import UnreadableRunWarning
from tests.run_trees import GENERATIONS, LOSSES, age, write_run


@pytest.fixture(params=GENERATIONS)
def logs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    logs = tmp_path / "logs"
    for log_id, lr in ((1, 0.1), (2, 0.01), (10, 0.1)):
        config = {"seed": log_id, "optimizer": {"lr": lr, "name": "adam"}, "layers": [1, 2]}
        write_run(logs, log_id, config, generation=request.param)
    return logs


def test_runs_of_every_generation_are_found_by_a_query(logs: Path) -> None:
    reader = mlxpy.Reader(str(logs))
    assert len(reader) == 3
    found = reader.filter("info.status == 'COMPLETE' & config.optimizer.lr <= 1e-1")
    assert found[:]["config.seed"] == [1, 2, 10]
    assert reader.filter("config.optimizer.lr == 0.1")[:]["config.seed"] == [1, 10]


@pytest.mark.parametrize("key", ["info.log_id", "info.logger.log_id"])
def test_both_names_of_the_run_number_answer(logs: Path, key: str) -> None:
    found = mlxpy.Reader(logs).filter(f"{key} == 10")
    assert [row["config.seed"] for row in found] == [10]
    assert found[0][key] == 10


def test_series_are_shown_lazily_and_loaded_when_touched(logs: Path) -> None:
    results = mlxpy.Reader(logs).filter()
    assert "LAZYDATA" in repr(results[0])
    assert results.toPandas()["train.loss"].tolist() == ["LAZYDATA"] * 3
    assert results.toPandasDF(lazy=False)["train.loss"].tolist() == [list(LOSSES)] * 3
    assert results[0]["train.loss"] == list(LOSSES)
    assert results[:]["train.epoch"] == [[0, 1, 2]] * 3
    assert results[1:][0]["config.seed"] == 2
    assert results.keys()[-2:] == ["train.epoch", "train.loss"]
    frame = pd.DataFrame(results)
    assert frame["config.seed"].tolist() == [1, 2, 10]


def test_pandas_is_a_result_format(logs: Path) -> None:
    frame = mlxpy.Reader(logs).filter("config.seed > 1", result_format="pandas")
    assert frame["config.optimizer.lr"].tolist() == [0.01, 0.1]
    assert frame["train.loss"].iloc[0] == list(LOSSES)
    assert frame["config.layers"].iloc[0] == [1, 2]
    with pytest.raises(MLXJobsError, match="result_format 'numpy' is not one of"):
        mlxpy.Reader(logs).filter(result_format="numpy")


def test_fields_and_searchable_name_all_columns_and_their_types(logs: Path) -> None:
    reader = mlxpy.Reader(logs)
    assert reader.fields.loc["config.optimizer.lr", "Type"] == "<class 'float'>"
    assert reader.fields.loc["train.loss", "Type"] == "LAZYDATA"
    assert "train.loss" not in reader.searchable.index
    assert {"train.loss.last", "config.seed", "info.status"} <= set(reader.searchable.index)


def test_a_second_reader_reads_no_run_again(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlxpy.Reader(logs).filter("train.loss.last < 1")
    for name in ("reader.index.read_facts", "record.facts.read_plain", "reader.table.summarise"):
        monkeypatch.setattr(f"mlxjobs.{name}", _refuse)
    reader = mlxpy.Reader(logs)
    assert len(reader.filter("train.loss.last == 0.25 & config.seed == 2")) == 1


def _refuse(*arguments: Any) -> None:
    raise AssertionError(f"read again: {arguments}")


def test_new_changed_and_removed_runs_are_seen(logs: Path) -> None:
    reader = mlxpy.Reader(logs)
    write_run(logs, 11, {"seed": 11})
    path = logs / "1" / "metadata" / "config.yaml"
    path.write_text("seed: 77\n")
    (logs / "2").rename(logs / "elsewhere")
    assert mlxpy.Reader(logs).filter()[:]["config.seed"] == [77, 10, 11]
    assert reader.filter()[:]["config.seed"] == [1, 2, 10]  # as it was made
    assert len(reader.refresh()) == 3


def test_a_running_run_shows_its_newest_state_without_a_new_reader(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, generation="mlxp-1.0", info={"status": "RUNNING"})
    reader = mlxpy.Reader(tmp_path)
    assert len(reader.filter("train.loss.last == 0.25")) == 1
    with (run / "metrics" / "train.json").open("a") as stream:
        stream.write('{"loss": 0.125}\n')
    assert len(reader.filter("train.loss.last == 0.125")) == 1
    (run / "metrics" / ".keys" / "test.yaml").write_text("acc: ''\n")
    (run / "metrics" / "test.json").write_text('{"acc": 0.5}\n')
    assert reader.filter("test.acc.last == 0.5")[0]["test.acc"] == [0.5]
    info = run / "metadata" / "info.yaml"
    info.write_text(info.read_text().replace("RUNNING", "COMPLETE"))
    assert len(reader.filter("info.status == 'COMPLETE'")) == 1


def test_what_is_no_run_is_passed_over(tmp_path: Path) -> None:
    write_run(tmp_path, 3, {"seed": 1})
    for name in ("7", "notes", "007", "1e3", "8/metadata", "٣"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "9").write_text("no folder")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(mlxpy.Reader(tmp_path)) == 1


def test_an_empty_log_directory_has_no_runs(tmp_path: Path) -> None:
    reader = mlxpy.Reader(tmp_path)
    assert len(reader) == 0
    assert len(reader.filter("config.lr > 1")) == 0
    assert reader.filter().toPandas().empty
    assert list(reader.filter().groupby("config.lr")) == []
    assert len(reader.metrics("", "train.loss")) == 0


def test_a_missing_log_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no log directory at .*nowhere: No such file"):
        mlxpy.Reader(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="Not a directory"):
        mlxpy.Reader(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: [1\n", "is not YAML"),
        ("- 1\n", "no keys and values"),
        ("\x00", "is not YAML"),
        ("a: *b", "is not YAML"),
        ("a: &a\n  b: *a\n", "contain themselves"),
    ],
)
def test_a_broken_run_is_reported_and_the_others_are_served(tmp_path: Path, text: str, said: str) -> None:
    for log_id in (1, 2, 3):
        write_run(tmp_path, log_id, {"seed": log_id})
    (tmp_path / "2" / "metadata" / "config.yaml").write_text(text)
    with pytest.warns(UnreadableRunWarning, match=f"1 of 3 runs cannot be read: run 2: .*{said}"):
        reader = mlxpy.Reader(tmp_path)
    assert reader.filter()[:]["config.seed"] == [1, 3]
    assert said in reader.problems[2]
    age(tmp_path / "2")
    with pytest.warns(UnreadableRunWarning):  # from the index, too
        mlxpy.Reader(tmp_path)
    (tmp_path / "2" / "metadata" / "config.yaml").write_text("seed: 22\n")
    assert mlxpy.Reader(tmp_path).filter()[:]["config.seed"] == [1, 22, 3]


def test_a_status_that_is_none_hides_no_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {"seed": 1})
    (run / "metadata" / "info.yaml").write_text("status: [1]\n")
    assert mlxpy.Reader(tmp_path).filter()[:]["info.status"] == [[1]]


def test_a_run_without_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, 1, {"seed": 1}, generation="mlxp-1.0")
    write_run(tmp_path, 2, {"seed": 2})

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        if "/1/metadata" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *arguments, **options)

    real = os.stat
    monkeypatch.setattr("os.stat", refuse)  # root may read everything
    (tmp_path / "1" / "metadata" / "info.yaml").unlink()
    with pytest.warns(UnreadableRunWarning, match="run 1"):
        assert len(mlxpy.Reader(tmp_path)) == 1


def test_tags_that_build_objects_are_read_as_plain_data(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, generation="mlxp-0.1")
    text = "a: !!python/tuple [1, 2]\nb: !!python/object/apply:os.system ['touch hacked']\nc: 2023-04-20\n"
    (run / "metadata" / "config.yaml").write_text(text)
    row = mlxpy.Reader(tmp_path).filter("config.c >= 2023-04-20")[0]
    assert row["config.a"] == [1, 2]
    assert row["config.c"] == "2023-04-20"
    assert not Path("hacked").exists()


def test_values_survive_the_index(tmp_path: Path) -> None:
    config: dict[Any, Any] = {
        "nan": float("nan"), "inf": float("-inf"), "long": 2**70, "none": None, "text": "ü\n\u2028",
        "nested": [{"a": [float("inf"), None]}], "date": datetime.date(2023, 4, 20), "empty": {}, 5: "key",
        "a/b": {"c d": 1},
    }  # fmt: skip
    write_run(tmp_path, 1, config, generation="mlxp-0.1")
    mlxpy.Reader(tmp_path)
    row = mlxpy.Reader(tmp_path).filter("config.long > 1 & config.inf < 0 & `config.a/b.c d` == 1")[0]
    assert np.isnan(row["config.nan"])
    assert row["config.long"] == 2**70
    assert row["config.nested"] == [{"a": [float("inf"), None]}]
    assert row["config.text"] == "ü\n\u2028"
    assert row["config.none"] is None
    assert row["config.5"] == "key"
    assert "config.empty" not in row


def test_the_json_copy_is_not_believed_when_the_yaml_is_newer(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {"seed": 1})
    yaml_file, copy = run / "metadata" / "config.yaml", run / "metadata" / ".config.json"
    assert copy.exists()
    yaml_file.write_text("seed: 2\n")
    os.utime(copy, (0, 0))
    assert mlxpy.Reader(tmp_path).filter()[0]["config.seed"] == 2
    yaml_file.write_text("seed: 333\n")  # another size, and the copy newer
    os.utime(copy)
    assert mlxpy.Reader(tmp_path).filter()[0]["config.seed"] == 333
    copy.write_text("{broken")
    assert mlxpy.Reader(tmp_path, reload=True).filter()[0]["config.seed"] == 333


def test_artifacts_and_checkpoints_load_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {})
    logger = DefaultLogger(run)
    logger.log_checkpoint({"epoch": 3}, "last_ckpt")
    logger.log_artifacts({"w": np.arange(3)}, "best/weights", "numpy")
    logger.close()
    row = mlxpy.Reader(tmp_path).filter("'last_ckpt.pkl' in artifact.Checkpoint")[0]
    assert row.load_checkpoint("last_ckpt") == row.load_checkpoint() == {"epoch": 3}
    assert row.load_artifact("best/weights")["w"].tolist() == [0, 1, 2]
    assert "ARTIFACT" in repr(row)
    assert row["artifact.numpy..best"]["weights"].load()["w"].tolist() == [0, 1, 2]
    assert row["artifact.Checkpoint."]["last_ckpt.pkl"].load() == {"epoch": 3}


def test_artifacts_that_were_removed_do_not_hide_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1, {"seed": 1}) / "artifacts" / "numpy" / "best"
    folder.mkdir(parents=True)
    (folder / "x.npy").touch()
    mlxpy.Reader(tmp_path)
    shutil.rmtree(folder.parent)
    frame = mlxpy.Reader(tmp_path).filter("", "pandas")
    with pytest.raises(ArtifactNotFoundError):
        frame["artifact.numpy..best"][0]["x.npy"].load()


def test_artifacts_of_mlxp_load_and_unknown_types_run_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path, 1, {}, generation="mlxp-1.0")
    for kind in ("pickle", "mine"):
        (run / "artifacts" / kind).mkdir()
        (run / "artifacts" / kind / "last_ckpt").write_bytes(pickle.dumps({"a": 1}))
    row = mlxpy.Reader(tmp_path).filter()[0]
    assert row["artifact.pickle."]["last_ckpt"].load() == {"a": 1}
    assert row.load_checkpoint("last_ckpt") == {"a": 1}
    with pytest.raises(InvalidArtifactError, match="'mine' is not an artifact type"):
        row["artifact.mine."]["last_ckpt"].load()


def test_a_parser_of_the_users_own_is_asked(logs: Path) -> None:
    from mlxpy.parser import DefaultParser, Parser

    class Mine(Parser):
        def parse(self, query: str) -> Any:
            return lambda row: row["config.seed"] == int(query)

    assert len(mlxpy.Reader(logs, parser=Mine()).filter("2")) == 1
    assert len(mlxpy.Reader(logs, None, DefaultParser()).filter("config.seed > 1")) == 2


def test_what_no_run_has_is_a_key_error_with_what_is_near(logs: Path) -> None:
    results = mlxpy.Reader(logs).filter()
    with pytest.raises(KeyError):
        results[0]["config.lr"]
    with pytest.raises(InvalidKeyError, match=r"config\.optimizer\.lr"):
        results[:]["config.lr"]
    with pytest.raises(InvalidKeyError, match=r"near: train\.loss"):
        mlxpy.Reader(logs).metrics("", "train.los")


def test_reading_writes_nothing_but_the_index(logs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in logs.rglob("*")}
    mlxpy.Reader(logs).filter("train.loss.last < 1").toPandas(lazy=False)
    after = {path: path.stat().st_mtime_ns for path in logs.rglob("*")}
    assert set(after) - set(before) == {logs / INDEX_NAME}
    assert all(after[path] == time for path, time in before.items())
