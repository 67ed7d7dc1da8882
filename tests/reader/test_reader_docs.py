"""The examples of docs/reader.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlxpy
import pytest

from mlxjobs.logger.logger import DefaultLogger
from tests.run_trees import write_run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reader.md"


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "logs"
    for log_id in (1, 2, 3, 4):
        config = {"seed": log_id, "optimizer": {"lr": 0.1 if log_id % 2 else 0.01}}
        logger = DefaultLogger(write_run(logs, log_id, config))
        logger.log_checkpoint({"epoch": 1}, "last_ckpt")
        logger.close()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["reader"]) == 4
    assert names["table"][0]["train.loss_avg"].tolist() == [1.0, 0.5, 0.25]
    assert names["best"][:]["smallest"] == [1, 2]
    assert len(names["long"]) == 12
    assert names["results"].diff() == ["config.optimizer.lr", "config.seed"]


def test_the_page_names_every_public_method() -> None:
    text = PAGE.read_text()
    classes = (mlxpy.Reader, mlxpy.DataFrame)
    own = {name for cls in classes for name in vars(cls) if not name.startswith("_")}
    assert [name for name in sorted(own) if name not in text] == []
