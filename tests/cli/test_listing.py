"""`mlxjobs ls QUERY` and `mlxjobs export`, as they are typed."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from mlxjobs.cli import listing, tables
from mlxjobs.cli.app import app
from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.reader.columns import publish_index
from mlxjobs.record.history import Attempt, RunState
from mlxjobs.record.run import Run
from mlxjobs.system.console import say
from tests.run_trees import GENERATIONS, write_run


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    for log_id, generation in enumerate(GENERATIONS, start=1):
        config = {"lr": log_id / 10, "name": "a,b", "layers": [1, log_id]}
        write_run(tmp_path / "logs", log_id, config, generation=generation, losses=[1.0, 4.0 - log_id])
    return tmp_path / "logs"


def mlxjobs(logs: Path, *arguments: str, code: int = 0, ascii: bool = False) -> str:
    command = [sys.executable, "-m", "mlxjobs", *arguments]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"} if ascii else None
    done = subprocess.run(command, cwd=logs.parent, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def test_ls_shows_the_runs_that_match_sorted(logs: Path) -> None:
    header, *rows = mlxjobs(logs, "ls", "config.lr > 0.1", "--sort", "train.loss.last").splitlines()
    assert header.split() == ["log_id", "status", "layers", "lr", "train.epoch.last", "train.loss.last"]
    assert [row.split()[0] for row in rows] == ["3", "2"]
    shown = mlxjobs(logs, "ls", "--sort", "-config.lr", "--columns", "config.lr,train.loss", "--json")
    assert [json.loads(line) for line in shown.splitlines()] == [
        {"config.lr": 0.3, "train.loss.last": 1.0},
        {"config.lr": 0.2, "train.loss.last": 2.0},
        {"config.lr": 0.1, "train.loss.last": 3.0},
    ]


def test_ls_sorts_by_the_last_value_of_a_series(logs: Path) -> None:
    write_run(logs, 4, {"lr": 0.4}, losses=[float("nan"), 10.0])
    rows = mlxjobs(logs, "ls", "--sort", "-train.loss", "--columns", "config.lr", "--json").splitlines()
    assert [json.loads(row)["config.lr"] for row in rows] == [0.4, 0.1, 0.2, 0.3]
    assert len(mlxjobs(logs, "ls", "config.lr > 1", "--sort", "config.lr").splitlines()) == 1


def test_ls_shows_names_and_values_as_they_are(logs: Path) -> None:
    run = write_run(logs, 4, {"lr": 0.4, "steps": "0:100:5", "word": "\u2192"})
    logger = DefaultLogger(run)
    logger.log_metrics({"loss[red]": 1, "[/b]": 2}, "m")
    query = f"config.lr in [{', '.join(['0.4'] * 100)}]"  # longer than the name of a file can be
    shown = mlxjobs(logs, "ls", query, "--columns", "config.steps,config.word,m.loss[red],m.[/b]", ascii=True)
    header, row = shown.splitlines()
    assert header.split() == ["steps", "word", "m.loss[red].last", "m.[/b].last"]
    assert row.split() == ["0:100:5", r"\u2192", "1", "2"]


def test_what_a_terminal_has_no_sign_for_is_said_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    say("run 3: job 5  +x='\xe9\u2192'")  # as after a submission
    assert written.getvalue() == rb"run 3: job 5  +x='\xe9\u2192'" + b"\n"


def test_a_reader_that_has_seen_enough_is_no_error(logs: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "mlxjobs", "export", "--csv", "-"]
    with os.fdopen(write) as pipe:
        done = subprocess.run(command, cwd=logs.parent, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert done.stderr == b""


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "config.lr > 0"], ["export", "--csv", "-"]])
def test_a_full_disk_behind_the_output_is_said(logs: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "mlxjobs", *arguments]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, cwd=logs.parent, stdout=full, stderr=subprocess.PIPE, check=False)
    assert b"standard output" in done.stderr
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode == 2


def test_ls_writes_the_index_once_for_all_metrics(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = listing.trusting_reader(logs)
    with monkeypatch.context() as patched:
        written = Mock(wraps=publish_index)
        patched.setattr("mlxjobs.reader.index.publish_index", written)
        listing.list_runs(reader, "", sort="train.loss", columns=())
    assert written.call_count == 1


def test_ls_says_which_runs_it_does_not_show(logs: Path) -> None:
    command = [sys.executable, "-m", "mlxjobs", "ls"]
    done = subprocess.run(command, cwd=logs.parent, capture_output=True, text=True, check=True)
    assert "2 runs of MLXP are not shown" in done.stderr


def test_ls_shows_when_a_run_began_by_the_clock_of_whoever_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    state = RunState(attempts=[Attempt(1, "2026-11-23T23:30:00-05:00")])
    with monkeypatch.context() as here:
        here.setenv("TZ", "UTC")
        time.tzset()
        assert tables._clock(state) == "24/11 04:30"
    time.tzset()


def test_ls_tells_keys_apart_whose_last_parts_are_the_same(tmp_path: Path) -> None:
    for log_id in (1, 2):
        config = {"a": {"lr": log_id}, "b": {"lr": -log_id}, "optimizer": {"beta": log_id}, "id": log_id}
        Run(write_run(tmp_path, log_id, config, generation="mlxp-1.0")).adopt()
    header = CliRunner().invoke(app, ["ls", str(tmp_path)]).stdout.splitlines()[0].split()
    assert header[5:9] == ["a.lr", "b.lr", "config.id", "beta"]


def test_a_range_that_goes_back_names_no_run(logs: Path) -> None:
    assert "begins with the smaller number" in mlxjobs(logs, "cancel", "9-7", code=2)


def test_ls_still_takes_a_log_directory(logs: Path) -> None:
    assert "no runs in" in mlxjobs(logs, "ls", str(logs))  # those here have no history to check
    assert "no log directory at" in mlxjobs(logs, "ls", "nowhere", code=2)
    assert "log_id" in mlxjobs(logs.parent / "logs", "ls", "config.lr > 0", "-d", str(logs))


def test_a_bad_query_is_pointed_at(logs: Path) -> None:
    assert mlxjobs(logs, "ls", "config.lr = 1", code=2).splitlines()[-1].endswith("          ^")
    assert "near: config.lr" in mlxjobs(logs, "ls", "config.lrr > 1", code=2)
    assert "near: config.lr" in mlxjobs(logs, "ls", "--columns", "config.lrr", code=2)
    assert "near: config.lr" in mlxjobs(logs, "ls", "--sort", "config.lrr", code=2)


def test_a_broken_run_is_a_warning(logs: Path) -> None:
    (logs / "2" / "metadata" / "info.yaml").write_text("[")
    command = [sys.executable, "-m", "mlxjobs", "ls", "config.lr > 0"]
    done = subprocess.run(command, cwd=logs.parent, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 3
    assert "warning: 1 of 3 runs cannot be read: run 2" in done.stderr


def test_export_to_csv(logs: Path) -> None:
    assert mlxjobs(logs, "export", "config.lr > 0.1", "--csv", "out.csv") == "2 rows in out.csv\n"
    with (logs.parent / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["config.lr"] for row in rows] == ["0.2", "0.3"]
    assert rows[0]["config.name"] == "a,b"
    assert rows[0]["config.layers"] == "[1, 2]"
    assert rows[0]["train.loss.last"] == "2.0"


def test_export_to_json_lines_and_of_a_series(logs: Path) -> None:
    write_run(logs, 4, {"lr": 0.4}, losses=[float("nan")])
    rows = [json.loads(line) for line in mlxjobs(logs, "export", "--json", "-").splitlines()]
    assert [row["config.lr"] for row in rows] == [0.1, 0.2, 0.3, 0.4]
    assert rows[3]["train.loss.last"] == "NaN"
    assert rows[3]["config.name"] is None
    series = mlxjobs(logs, "export", "config.lr == 0.1", "--csv", "-", "--metrics", "train.loss")
    assert series == "log_id,step,value\n1,0,1.0\n1,1,3.0\n"


def test_export_to_parquet(logs: Path) -> None:
    write_run(logs, 4, {"lr": 0.4, "seed": 2**64 - 1})
    try:
        import pyarrow.parquet
    except ImportError:
        assert "pip install 'mlxjobs[parquet]'" in mlxjobs(logs, "export", "--parquet", "x.parquet", code=2)
    else:
        mlxjobs(logs, "export", "--parquet", "x.parquet")
        table = pyarrow.parquet.read_table(logs.parent / "x.parquet")
        assert table.column("config.lr").to_pylist() == [0.1, 0.2, 0.3, 0.4]
        assert table.column("config.seed").to_pylist() == [None, None, None, str(2**64 - 1)]


def test_export_says_what_is_missing(logs: Path) -> None:
    assert "give one of --csv FILE" in mlxjobs(logs, "export", code=2)
    assert "cannot be written: No such file" in mlxjobs(logs, "export", "--csv", "no/where.csv", code=2)
