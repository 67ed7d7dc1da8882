"""One object of each type that a user can put into a pickle, and words for what it is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import mlxpy

import mlxjobs

HOME = Path("/var/tmp/mlxjobs-stored")
# modules whose names users import
PUBLIC = [
    *("mlxpy", "mlxpy.errors", "mlxpy.scheduler", "mlxpy.version_manager", "mlxpy.reader", "mlxpy.parser"),
    *(f"mlxpy.data_structures.{name}" for name in ("artifacts", "config_dict", "data_dict", "dataframe")),
    *(f"mlxpy.data_structures.contrib.{name}" for name in ("artifacts", "aggregation_maps")),
]


def modules() -> list[Any]:
    """Import all our modules, wherever they are."""
    found = pkgutil.walk_packages(mlxjobs.__path__, "mlxjobs.")
    return [importlib.import_module(one.name) for one in found if not one.name.endswith("__main__")]


def by_name() -> dict[str, Any]:
    """Return all our classes and functions by their names, wherever they are."""
    return {
        name: one
        for module in modules()
        for name, one in vars(module).items()
        if getattr(one, "__module__", "") == module.__name__ and name[0] != "_"
    }


def public() -> dict[str, Any]:
    """Return what users import, by the module they import it from and its name."""
    found: dict[str, Any] = {}
    for module in map(importlib.import_module, PUBLIC):
        names = getattr(module, "__all__", vars(mlxpy.errors))
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in names if name[0] != "_"}
    return {name: one for name, one in found.items() if isinstance(one, type) or callable(one)}


def pickled() -> dict[str, Any]:
    """Make one object of each type that a user can reach, by the name of the file it belongs in."""
    ours, run = by_name(), HOME / "project" / "runs" / "1"
    named = {name.rpartition(".")[2]: one for name, one in public().items()}
    data = named["DataDict"]
    frame = mlxpy.DataFrame([data({"seed": 1, "loss": [0.5, 0.25]}), data({"seed": 2, "loss": [0.5, 0.75]})])
    config = mlxpy.ConfigDict({"lr": 0.1, "layers": [{"units": 3}, {"units": 5}], "data": {"path": "a b"}})
    facts = mlxpy.ConfigDict(rank=0, log_dir=str(run))
    logger, result = mlxpy.DefaultLogger(run), mlxpy.Reader(run.parent).filter("")
    pending, when = named["JobState"].PENDING, datetime(2026, 1, 2)
    return {
        "public": public(),
        "ConfigDict": config,
        "RunStatus": list(mlxpy.RunStatus),
        "Context": mlxpy.Context(config, mlxpy.ConfigDict(use_logger=True), facts, logger),
        "DefaultLogger": {"logger": logger},
        "log_metrics": logger.log_metrics,
        # in folders of their own, as there is one logger for each in a process
        "SilentLogger": ours["SilentLogger"](HOME / "silent"),
        "HeldLogger": ours["HeldLogger"](HOME / "held"),
        "result of the Reader": result,
        "row of the Reader": result[0],
        "groups of the Reader": result.groupby("config.seed"),
        "selected": result.select(["config.seed", "info.status"]),
        "StoredArtifact": result[0]["artifact.json."],
        "DataFrame": frame,
        "DataDict": frame[0],
        "GroupedDataFrame": frame.groupby("seed"),
        "aggregated": frame.groupby("seed").aggregate([named["Min"]("loss"), named["Max"]("loss")]),
        "DefaultParser": named["DefaultParser"](),
        "Query": named["DefaultParser"]().parse("config.lr == 0.1 & info.status in ['COMPLETE']"),
        "AggregationMap": named["AggregationMap"](["loss"], map_name="mean"),
        "JobState": list(named["JobState"]),
        "Fate": list(named["Fate"]),
        "JobStatus": named["JobStatus"](pending, "PD", "Resources", submitted=when, memory=(1, 2)),
        "Here": named["Here"]("7", restarts=1, rank=2, world_size=4),
        "Job": named["Job"]("main-1", run / "script.sh", run / "out", run / "err", HOME, ["true"], tasks=2),
        "Launch": named["Launch"](HOME, Path("main.py"), Path(".workdir"), link=("data",)),
        "Frozen": named["Frozen"](HOME, HOME, None, {"commit_hash": "c0ffee"}, ("dirty",)),
        "GitVM": mlxpy.GitVM(),
        **{name: named[name]("loss") for name in ("AvgStd", "Last", "Max", "Min", "MinLast")},
        **{name: named[name]([1.0]) for name in ("Checkpoint", "NumpyArray", "PNGImage", "TorchModel")},
        **{name: one() for name, one in ours.items() if name.endswith("Scheduler") and name != "Scheduler"},
        **errors(ours),
    }


def errors(ours: Mapping[str, Any]) -> dict[str, BaseException]:
    """Make one of each of our exceptions and warnings that may reach a program of a user."""
    found = {n: one for n, one in ours.items() if isinstance(one, type) and issubclass(one, BaseException)}
    caught = [one for one in found.values() if issubclass(one, Exception)]
    inner = {one for one in caught if not issubclass(one, (mlxpy.MLXJobsError, Warning))}
    inner |= {
        one for one in caught if issubclass(one, mlxpy.MLXJobsError) and one.__module__ != "mlxjobs.errors"
    }
    special = {  # whose constructors take more than a message
        "Preempted": (mlxpy.RunStatus.PREEMPTED, "stopped"),
    }
    return {name: one(*special.get(name, ("why",))) for name, one in found.items() if one not in inner}


def describe(one: Any) -> Any:
    """Say in JSON's types what an object is: the name of its type, and its values."""
    name = type(one).__name__
    if isinstance(one, Enum):
        return [name, one.name, one.value]
    if one is None or isinstance(one, (str, int, float)):
        return one
    if callable(one):
        return ["callable", one.__qualname__]
    if isinstance(one, mlxpy.Logger):
        return [name, one.log_dir]
    if isinstance(one, (list, tuple)):
        return [name, [describe(item) for item in one]]
    if isinstance(one, Mapping) or name == "GroupedDataFrame":
        return [name, [[describe(key), describe(item)] for key, item in one.items()]]
    if isinstance(one, (datetime, Path)):
        return [name, str(one)]
    more = [str(one), describe(one.args)] if isinstance(one, BaseException) else []
    return [name, *more, {key: describe(item) for key, item in sorted(vars(one).items()) if key[0] != "_"}]
