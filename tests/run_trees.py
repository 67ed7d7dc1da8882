"""Run directories as this package, MLXP 0.1 and MLXP 1.0 write them, made without running anything."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.record.run import Run

GENERATIONS = ("ours", "mlxp-0.1", "mlxp-1.0")
LOSSES = (1.0, 0.5, 0.25)


def age(run: Path) -> None:
    """Make the metadata look a minute old, so that the index trusts what it has read."""
    then = time.time() - 60
    for path in (run / "metadata").glob("*.yaml"):
        os.utime(path, (then, then))


def write_run(
    logs: Path,
    log_id: int,
    config: Mapping[str, Any],
    *,
    generation: str = "ours",
    info: Mapping[str, Any] | None = None,
    losses: Sequence[float] = LOSSES,
    old: bool = True,
) -> Path:
    """Make a run with a series `train.loss` and `train.epoch`."""
    run = logs / str(log_id)
    facts = {
        "executable": "/usr/bin/python", "hostname": "node1", "process_id": log_id,
        "start_date": "20/04/2023", "start_time": "16:01:13", "status": "COMPLETE",
    }  # fmt: skip
    where = {"log_id": log_id, "log_dir": str(run), "metrics_dir": str(run / "metrics")}
    rows = [{"loss": loss, "epoch": epoch} for epoch, loss in enumerate(losses)]
    if generation == "ours":
        made = Run.create(logs, log_id)
        made.write_yaml("config", dict(config))
        made.write_yaml("info", {**facts, **where, **(info or {})})
        logger = DefaultLogger(run)
        for row in rows:
            logger.log_metrics(row, "train")
        logger.close()
    else:
        for folder in ("metadata", "metrics/.keys", "artifacts"):
            (run / folder).mkdir(parents=True)
        inner = where if generation == "mlxp-0.1" else {"logger": where}
        for name, content in (("config", config), ("info", {**facts, **inner, **(info or {})})):
            (run / "metadata" / f"{name}.yaml").write_text(yaml.dump(dict(content)))
        (run / "metrics" / ".keys" / "train.yaml").write_text("epoch: ''\nloss: ''\n")
        (run / "metrics" / "train.json").write_text("".join(json.dumps(row) + os.linesep for row in rows))
    if old:
        age(run)
        for copy in (run / "metadata").glob(".*.json"):
            os.utime(copy)
    return run
