"""Many processes that take a run's number at once, against as many that try mkdir until it works.

python benchmarks/bench_log_id.py [--processes 64] [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from interleaved import HEADER, interleave, row

from mlxjobs.record.log_dir import take_log_id
from mlxjobs.record.run import Run


def bare(parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    number = 1
    while True:
        try:
            (parent / str(number)).mkdir()
            return parent / str(number)
        except FileExistsError:
            number += 1


def bare_with_folders(parent: Path) -> None:
    run = bare(parent)
    for name in ("metadata", "metadata/.history", "metrics", "artifacts"):
        (run / name).mkdir()


def ours(parent: Path) -> None:
    parent.mkdir(exist_ok=True)
    take_log_id(str(parent))


def at_once(processes: int, parent: Path, take: Callable[[Path], object]) -> None:
    """Fork, and let all children go at the same moment."""
    read, write = os.pipe()
    children = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            os.close(write)
            os.read(read, 1)
            take(parent)
            os._exit(0)
        children.append(pid)
    os.close(read)
    os.close(write)
    failed = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
    numbers = sorted(int(name) for name in os.listdir(parent) if name.isdecimal())
    assert not failed
    assert numbers == list(range(1, processes + 1))
    shutil.rmtree(parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(HEADER)
        for what, limit, call in (
            ("log_ids", bare, ours),
            ("run directories with their folders", bare_with_folders, Run.create),
        ):
            timing = interleave(
                {
                    "limit": partial(at_once, given.processes, Path(name) / "limit", limit),
                    "ours": partial(at_once, given.processes, Path(name) / "ours", call),
                },
                given.rounds,
            )
            print(row(f"{given.processes} {what} at once", timing, "ours", 1.5, 0.001, "ms"))


if __name__ == "__main__":
    main()
