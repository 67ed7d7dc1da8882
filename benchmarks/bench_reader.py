"""The Reader against loops that do only what cannot be left out, and MLXP's Reader if it is there.

python benchmarks/bench_reader.py [--runs 10000] [--rows 100] [--rounds 3] [--mlxp PYTHON --mlxp-runs 200]

`--mlxp` names the python of an environment with mlxp 1.0.5 and pandas; its Reader grows with the
square of the runs, so it gets fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import yaml
from interleaved import HEADER, interleave, row

import mlxjobs
from mlxjobs.reader.index import INDEX_NAME
from mlxjobs.system.plain_yaml import dump_yaml

QUERY = "config.lr <= 0.01 & info.status == 'COMPLETE'"
_NAMES = ("info", "config")
_MLXP = """
import contextlib, io, sys, time
import mlxp
begin = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    found = mlxp.Reader(sys.argv[1]).filter(sys.argv[2])
first = time.perf_counter() - begin
begin = time.perf_counter()
found[:]["train.loss"]
print(first, time.perf_counter() - begin)
"""


def make(logs: Path, runs: range, rows: int, *, ours: bool) -> None:
    """Write finished runs of 30 configuration keys, a minute old."""
    then = time.time() - 60
    for log_id in runs:
        rng = random.Random(log_id)
        run = logs / str(log_id)
        for folder in ("metadata", "metrics/.keys", "artifacts"):
            (run / folder).mkdir(parents=True)
        config: dict[str, Any] = {f"group{i}": {f"key{j}": rng.random() for j in range(5)} for i in range(5)}
        config |= {
            "seed": log_id,
            "lr": rng.choice([0.1, 0.01, 0.001]),
            "name": "adam",
            "on": True,
            "layers": [1, 2],
        }
        where = {"log_id": log_id, "log_dir": str(run)}
        info = {
            "executable": "/usr/bin/python", "cmd": f"main.py seed={log_id}", "work_dir": "/home/u",
            "current_file_path": "/home/u/main.py", "process_id": log_id, "hostname": "node1", "user": "u",
            **(where if ours else {"logger": where}),
            "start_date": "23/11/2026", "start_time": "09:22:39",
            "end_date": "23/11/2026", "end_time": "09:30:39",
            "status": "COMPLETE" if log_id % 4 else "FAILED",
        }  # fmt: skip
        for name, content in (("config", config), ("info", info)):
            text = dump_yaml(content)
            path = run / "metadata" / f"{name}.yaml"
            path.write_text(text)
            os.utime(path, (then, then))
            if ours:
                copy = {"size": len(text.encode()), "content": content}
                (run / "metadata" / f".{name}.json").write_bytes(orjson.dumps(copy))
        registry = (
            ("metrics", "train:\n  loss: float\n  epoch: int\n")
            if ours
            else ("train", "loss: ''\nepoch: ''\n")
        )
        (run / "metrics" / ".keys" / f"{registry[0]}.yaml").write_text(registry[1])
        lines = [json.dumps({"loss": rng.random(), "epoch": epoch}) for epoch in range(rows)]
        (run / "metrics" / "train.json").write_text("\n".join(lines) + "\n")


def stat_all(logs: Path, runs: int) -> None:
    for log_id in range(1, runs + 1):
        for name in _NAMES:
            os.stat(f"{logs}/{log_id}/metadata/{name}.yaml")


def load_json(logs: Path, runs: int) -> None:
    for log_id in range(1, runs + 1):
        for name in _NAMES:
            with open(f"{logs}/{log_id}/metadata/.{name}.json", "rb") as stream:
                orjson.loads(stream.read())
        with open(f"{logs}/{log_id}/metrics/.keys/metrics.yaml", "rb") as stream:
            stream.read()


def load_yaml(logs: Path, runs: int) -> None:
    for log_id in range(1, runs + 1):
        for name in _NAMES:
            with open(f"{logs}/{log_id}/metadata/{name}.yaml", "rb") as stream:
                yaml.load(stream.read(), Loader=yaml.CSafeLoader)


def load_series(logs: Path, log_ids: list[int]) -> Any:
    """Half of the runs' train.loss to pandas: a line at a time, as one would."""
    import pandas as pd

    ids: list[int] = []
    steps: list[int] = []
    values: list[float] = []
    for log_id in log_ids:
        with open(f"{logs}/{log_id}/metrics/train.json", "rb") as stream:
            found = [orjson.loads(line)["loss"] for line in stream]
        ids += [log_id] * len(found)
        steps += range(len(found))
        values += found
    return pd.DataFrame({"log_id": ids, "step": steps, "value": values})


def first_index(logs: Path) -> Callable[[], object]:
    return lambda: mlxjobs.Reader(logs, reload=True)


def change_one(logs: Path) -> None:
    path = logs / "1" / "metadata" / "info.yaml"
    path.write_text(path.read_text())
    mlxjobs.Reader(logs).filter(QUERY)
    os.utime(path, (time.time() - 60,) * 2)


def measure(folder: Path, runs: int, rows: int, rounds: int) -> None:
    ours, theirs = folder / "ours", folder / "mlxp"
    make(ours, range(1, runs + 1), rows, ours=True)
    few = max(1, runs // 10)
    make(theirs, range(1, few + 1), 1, ours=False)
    print(HEADER)
    timing = interleave({"limit": lambda: load_json(ours, runs), "ours": first_index(ours)}, rounds)
    print(row(f"first index, {runs} runs", timing, "ours", 4.0))
    timing = interleave({"limit": lambda: load_yaml(theirs, few), "ours": first_index(theirs)}, rounds)
    print(row(f"first index, {few} runs of MLXP", timing, "ours", 1.3))
    reader = mlxjobs.Reader(ours)
    ways = {
        "limit": lambda: stat_all(ours, runs),
        "ours": lambda: mlxjobs.Reader(ours).filter(QUERY),
        "changed": lambda: change_one(ours),
    }
    timing = interleave(ways, rounds + 4)
    print(row("first answer, index up to date", timing, "ours", 2.5))
    print(row("first answer, one run changed", timing, "changed", 2.5))
    half = reader.filter("info.log_id > 0")[:]["info.log_id"][: runs // 2]
    text = f"info.log_id <= {half[-1]}"
    ways = {"limit": lambda: load_series(ours, half), "ours": lambda: reader.metrics(text, "train.loss")}
    print(row("train.loss of half the runs to pandas", interleave(ways, rounds), "ours", 1.5))
    singles: dict[str, Callable[[], object]] = {
        "a further query": lambda: reader.filter(QUERY),
        "a further query with `in`, like, dates": lambda: reader.filter(
            "config.seed in [1, 2, 3] | config.name like 'ad%' & info.start_date > 2026-11-01"
        ),
        "a further query on a metric": lambda: reader.filter("train.loss.last < 0.1"),
        "groupby and mean of a column": lambda: (
            reader.filter(QUERY).groupby("config.lr").aggregate((max, "config.seed"))
        ),
        "results to pandas, lazy": lambda: reader.filter(QUERY).toPandas(),
    }
    for name, seconds in interleave(singles, rounds + 4).seconds.items():
        print(f"{name}: {seconds * 1e3:.1f} ms")
    size = (ours / INDEX_NAME).stat().st_size / 1e6
    # not ru_maxrss, which a child takes over from its parent
    program = (
        f"import mlxjobs\nr = mlxjobs.Reader({str(ours)!r})\nr.filter({QUERY!r})\n"
        f"r.metrics({text!r}, 'train.loss')\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    peak = int(subprocess.check_output([sys.executable, "-c", program], text=True)) / 1024
    print(f"index {size:.1f} MB; memory of a process that asks and reads half the metrics: {peak:.0f} MB")


def against_mlxp(folder: Path, python: str, runs: int, rows: int, rounds: int) -> None:
    """The same runs, in turn, each time without an index."""
    logs = folder / "both"
    make(logs, range(1, runs + 1), rows, ours=False)
    times: dict[str, list[tuple[float, float]]] = {"mlxp": [], "ours": []}
    for _ in range(rounds):
        for name in ("database.json", INDEX_NAME):
            (logs / name).unlink(missing_ok=True)
        command = [python, "-c", _MLXP, str(logs), QUERY.replace("0.01", "0.010")]
        first, loading = map(float, subprocess.check_output(command, text=True).split())
        times["mlxp"].append((first, loading))
        begin = time.perf_counter()
        found = mlxjobs.Reader(logs).filter(QUERY)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        found[:]["train.loss"]
        times["ours"].append((first, time.perf_counter() - begin))
    best = {name: tuple(map(min, zip(*values, strict=True))) for name, values in times.items()}
    for place, what in enumerate(("first answer, no index", "column train.loss")):
        a, b = best["mlxp"][place], best["ours"][place]
        print(f"{what}, {runs} runs of MLXP: mlxp {a:.3f} s, ours {b:.3f} s, {a / b:.0f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mlxp", default="", help="python of an environment with mlxp")
    parser.add_argument("--mlxp-runs", type=int, default=200)
    parser.add_argument("--directory", type=Path, default=None)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.directory))
    try:
        measure(folder, given.runs, given.rows, given.rounds)
        if given.mlxp:
            against_mlxp(folder, given.mlxp, given.mlxp_runs, given.rows, given.rounds)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
