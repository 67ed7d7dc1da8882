"""log_metrics against orjson.dumps and os.write on an open descriptor.

python benchmarks/bench_metrics.py [--rows 50000] [--rounds 9] [--directory DIR] [--constant 1000000]
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import orjson
from interleaved import HEADER, interleave, row

from mlxjobs.logger.logger import DefaultLogger


def compare(floats: int, target: float, rows: int, rounds: int, directory: Path) -> None:
    metrics = {f"metric_{i}": 0.123456789 * (i + 1) for i in range(floats)}
    descriptor = os.open(directory / f"limit{floats}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    logger = DefaultLogger(directory / str(floats))

    def limit() -> None:
        dumps, write, option = orjson.dumps, os.write, orjson.OPT_APPEND_NEWLINE
        for _ in range(rows):
            write(descriptor, dumps(metrics, option=option))

    def ours() -> None:
        log_metrics = logger.log_metrics
        for _ in range(rows):
            log_metrics(metrics, "train")

    timing = interleave({"limit": limit, "ours": ours}, rounds)
    print(row(f"{floats} floats", timing, "ours", target, rows * 1e-6, "us"))
    os.close(descriptor)
    logger.close()


def constant(rows: int, directory: Path) -> None:
    """The first tenth of many rows should take as long as the last, and the memory stay."""
    logger = DefaultLogger(directory / "constant")
    logger.log_metrics({"loss": 0.0, "epoch": 0}, "train")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tenths = []
    for tenth in range(10):
        begin = time.perf_counter()
        for i in range(rows // 10):
            logger.log_metrics({"loss": 1.0 / (i + 1), "epoch": tenth}, "train")
        tenths.append((time.perf_counter() - begin) / (rows // 10) * 1e6)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{rows} rows: us per row in each tenth {[round(t, 2) for t in tenths]}; memory +{grown} KiB")
    logger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--constant", type=int, default=1_000_000, help="rows; 0 skips this part")
    parser.add_argument("--directory", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as name:
        print(HEADER)
        compare(2, 2.2, given.rows, given.rounds, Path(name))
        compare(20, 1.6, given.rows, given.rounds, Path(name))
        if given.constant:
            constant(given.constant, Path(name))


if __name__ == "__main__":
    main()
