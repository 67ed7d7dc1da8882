"""Damage to any file of a run, at any byte: what is shown is as before, or fsck names the file; no traceback.

A sample of the offsets; `make damage` takes all of them, and all bits.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mlxjobs.care.fsck import check_logs
from mlxjobs.cli.app import app
from mlxjobs.cli.tables import list_rows
from mlxjobs.errors import MLXJobsError
from mlxjobs.jobs.look import look_at_runs
from mlxjobs.logger.checkpoints import candidates, load_first
from mlxjobs.reader.reader import Reader
from tests.project import Project
from tests.run_trees import write_run

# offsets in a file, for each kind of damage
SAMPLE = int(os.environ.get("MLXJOBS_DAMAGE", "5"))
ALL = SAMPLE >= 10**6
TIMEOUT_S = 300 if SAMPLE < 20 else 36_000
KINDS = ("cut", "short", "bit", "hole")
MAIN = """
import mlxpy

@mlxpy.launch(config_path='./configs')
def train(ctx: mlxpy.Context) -> None:
    try:
        start = ctx.logger.load_checkpoint()["epoch"] + 1
    except FileNotFoundError:
        start = 0
    for epoch in range(start, 4):
        ctx.logger.log_metrics({"loss": 0.5 ** epoch, "epoch": epoch, "best": float("nan")}, "train")
        ctx.logger.log_metrics({"acc": 0.25 * epoch}, "val")
        if start == 0 and epoch == 2:
            raise ValueError("once")
        ctx.logger.log_checkpoint({"epoch": epoch, "weights": [1.5] * 4})

if __name__ == "__main__":
    train()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log directory with one run, which failed once and went on from its checkpoint."""
    project = Project(tmp_path_factory.mktemp("damage") / "project", MAIN, "seed: 7\nlr: 0.125\nname: a\n")
    project.run(code=1)
    project.run("+mlxpy.logger.forced_log_id=1")
    return project.logs


@pytest.fixture(scope="module")
def by_mlxp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("mlxp")
    write_run(logs, 1, {"seed": 7, "lr": 0.125}, generation="mlxp-1.0")
    return logs


def files_of(logs: Path) -> list[str]:
    return sorted(str(path.relative_to(logs)) for path in logs.glob("1/**/*") if path.is_file())


def shown(logs: Path, cache: Path) -> dict[str, Any]:
    """All values that anybody shows of the run; an error of ours or a doubt is a text in their place."""
    values: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in list_rows(look_at_runs(logs)):
            json.dumps(row, default=str)
            doubt = row.pop("doubt")
            values["ls"] = "doubt" if doubt else row
        table = CliRunner().invoke(app, ["ls", str(logs)])
        assert table.exit_code == 0, table.exception
        try:
            reader = Reader(logs, dst_dir=cache, reload=True)
            for found in reader.filter(""):
                values["reader"] = {k: v for k, v in found.flattened().items() if v != "LAZYDATA"}
                for key in reader.types():
                    if "." in key and key.split(".")[0] in ("train", "val"):
                        values[key] = repr(found[key]) if key in found else None
                        table = reader.metrics("", key, superseded=True, result_format="arrays")
                        values[f"{key}, superseded"] = repr([(name, list(table[name])) for name in table])
        except MLXJobsError as error:
            values["reader"] = str(error)
        try:
            folder = logs / "1" / "artifacts" / "Checkpoint"
            values["checkpoint"] = (
                load_first(candidates(folder, None)).checkpoint if folder.exists() else None
            )
        except (MLXJobsError, IndexError) as error:
            values["checkpoint"] = str(error)
    return values


def damages(size: int, name: str) -> Iterator[tuple[str, int, int]]:
    """(kind, offset, bit)"""
    chance = random.Random(name)
    for kind in KINDS:
        for offset in sorted(chance.sample(range(size), min(SAMPLE, size))):
            bits = range(8) if ALL and kind == "bit" else [chance.randrange(8)]
            yield from ((kind, offset, bit) for bit in bits)


def damage(text: bytes, kind: str, offset: int, bit: int) -> bytes:
    if kind == "cut":  # as a killed writer, or a disk that lost the end
        return text[:offset]
    if kind == "short":  # a byte is lost
        return text[:offset] + text[offset + 1 :]
    if kind == "hole":  # a block that was never written reads as zeros
        return text[:offset] + bytes(min(16, len(text) - offset)) + text[offset + 16 :]
    return text[:offset] + bytes([text[offset] ^ (1 << bit)]) + text[offset + 1 :]


def try_all(logs: Path, tmp_path: Path, *, told: bool) -> None:
    assert [finding.what for finding in check_logs(logs)] == []
    before = shown(logs, tmp_path / "cache")
    for name in files_of(logs):
        path = logs / name
        text, stat = path.read_bytes(), path.stat()
        for kind, offset, bit in damages(len(text), name):
            new = damage(text, kind, offset, bit)
            path.chmod(0o644)
            path.write_bytes(new)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a disk tells nobody
            where = f"{name}: {kind} at {offset}, bit {bit}: {new[max(0, offset - 40) : offset + 40]!r}"
            findings = list(check_logs(logs))
            now = shown(logs, tmp_path / "cache")
            assert not [one.what for one in findings if "could not be checked" in one.what], where
            if told and now != before:
                changed = [(key, before[key], now.get(key)) for key in before if before[key] != now.get(key)]
                named = [one.path for one in findings]
                assert any(path.is_relative_to(one) for one in named), f"{where}\n{changed}\n{named}"
        path.write_bytes(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.timeout(TIMEOUT_S)
def test_what_is_shown_is_right_or_fsck_names_the_file(made: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    shutil.copytree(made, logs, symlinks=True)
    os.utime(logs / "1" / "metadata" / ".history", (1.7e9, 1.7e9))  # else info.yaml may be painted again
    try_all(logs, tmp_path, told=True)


@pytest.mark.timeout(TIMEOUT_S)
def test_a_damaged_run_of_mlxp_makes_nobody_crash(by_mlxp: Path, tmp_path: Path) -> None:
    # such files have no checksums: a changed number cannot be told
    logs = tmp_path / "logs"
    shutil.copytree(by_mlxp, logs)
    try_all(logs, tmp_path, told=False)
