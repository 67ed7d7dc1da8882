"""Checkpoints against pickle.dump to the same disk.

python benchmarks/bench_checkpoint.py [--mib 1024] [--objects 300000] [--rounds 7] [--directory DIR]
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from interleaved import HEADER, interleave, row

from mlxjobs.logger import checkpoints
from mlxjobs.logger.checkpoint_file import Record
from mlxjobs.logger.pickling import Pickled


def plain(obj: Any, path: Path) -> None:
    with open(path, "wb") as file:
        pickle.dump(obj, file)


def durable(obj: Any, path: Path) -> None:
    aside = path.with_suffix(".tmp")
    with open(aside, "wb") as file:
        pickle.dump(obj, file, protocol=5)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def ours(obj: Any, path: Path) -> None:
    checkpoints.save(obj, path, Record(1, 1, "bench", {}))


def arrays(mib: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {f"layer{i}": random.random((mib << 20) // 8 // 8) for i in range(8)}


def objects(count: int) -> list[Any]:
    return [(i, f"name{i}", {"value": i * 0.5}) for i in range(count // 3)]


def compare(
    what: str,
    limit: Callable[[Any, Path], None],
    obj: Any,
    targets: tuple[float, float],
    rounds: int,
    directory: Path,
) -> None:
    def saving(save: Callable[[Any, Path], None], path: Path) -> Callable[[], None]:
        return lambda: save(obj, path)

    calls = {"limit": saving(limit, directory / "limit.pkl"), "ours": saving(ours, directory / "ours.pkl")}
    print(row(f"{what}: save", interleave(calls, rounds), "ours", targets[0]), flush=True)

    def load(path: Path) -> Any:
        with open(path, "rb") as file:
            return pickle.load(file)

    loads = {
        "limit": lambda: load(directory / "limit.pkl"),
        "ours": lambda: checkpoints.load(directory / "ours.pkl"),
    }
    print(row(f"{what}: load", interleave(loads, rounds), "ours", targets[1]), flush=True)


def copy(what: str, obj: dict[str, Any], rounds: int) -> None:
    """What `log_checkpoint(..., blocking=False)` does before it returns."""
    calls: dict[str, Callable[[], object]] = {
        "limit": lambda: [array.copy() for array in obj.values()],
        "ours": lambda: Pickled(obj),
    }
    print(row(f"{what}: copied for the background", interleave(calls, rounds), "ours", 1.3), flush=True)


def peak(mib: int, directory: Path) -> None:
    """Measured in a process of its own, whose peak is not that of something else."""
    command = [sys.executable, __file__, "--peak", "--mib", str(mib), "--directory", str(directory)]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")


def measure_peak(mib: int, directory: Path) -> None:
    obj = arrays(mib)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours(obj, directory / "peak.pkl")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    verdict = "ok" if grown <= 0.05 * mib else "MISSED"
    print(f"peak memory: {1 + grown / mib:.3f} x the object, target 1.05, {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--objects", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--directory", type=Path, default=None)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        measure_peak(given.mib, given.directory)
        return
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        print(HEADER)
        large, small = arrays(given.mib), objects(given.objects)
        compare(f"{given.mib} MiB of arrays", durable, large, (1.1, 1.6), given.rounds, Path(name))
        copy(f"{given.mib} MiB of arrays", large, given.rounds)
        compare(f"{given.objects} objects", plain, small, (1.2, 1.1), given.rounds, Path(name))
        peak(given.mib, Path(name))


if __name__ == "__main__":
    main()
