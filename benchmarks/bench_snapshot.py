"""Time a first snapshot against `git worktree add`, and finding one that exists.

    python benchmarks/bench_snapshot.py --files 5000 --megabytes 200 --rounds 7

A repository of that size is generated in a temporary folder (TMPDIR says where). The ways take turns in
each round, and the disk is left to settle before each, so that noise of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from mlxjobs import copying
from mlxjobs.snapshot import GitVM
from mlxjobs.version_manager import Launch


def git(top: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(top), *arguments], check=True, capture_output=True)


def make_repository(top: Path, files: int, megabytes: int) -> None:
    """Write and commit `files` files of equal size, half of it random, half of it text."""
    half = megabytes * 1_000_000 // files // 2
    source = random.Random(1)
    for number in range(files):
        path = top / f"part{number % 50}" / f"unit{number % 7}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(half) + b"x = 1\n" * (half // 6))
    (top / "main.py").write_text("print(1)\n")
    git(top, "init", "-q")
    git(top, "config", "user.name", "A")
    git(top, "config", "user.email", "a@example.org")
    git(top, "config", "gc.auto", "0")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "all")
    git(top, "repack", "-adq")
    git(top, "status")  # so that the index knows the files' times


def remove(folder: Path) -> None:
    """Remove a folder, its read-only parts too."""
    for directory, _, _ in os.walk(folder):
        Path(directory).chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def time_once(action: Callable[[], object]) -> float:
    os.sync()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(top: Path, rounds: int) -> dict[str, list[float]]:
    """Time each way once a round, in seconds."""
    launch = Launch(top, Path("main.py"), Path("../snapshots"))
    copies, tree = top.parent / "snapshots", top.parent / "worktree"

    def freeze() -> None:
        GitVM().freeze(launch)

    def freeze_unflushed() -> None:
        with mock.patch.object(copying, "_flush"):
            freeze()

    def add_worktree() -> None:
        git(top, "worktree", "add", "-q", "--detach", str(tree))

    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        times.setdefault("git worktree add", []).append(time_once(add_worktree))
        git(top, "worktree", "remove", "--force", str(tree))
        times.setdefault("first snapshot, not flushed to the disk", []).append(time_once(freeze_unflushed))
        remove(copies)
        times.setdefault("first snapshot", []).append(time_once(freeze))
        times.setdefault("existing snapshot", []).append(time_once(freeze))
        remove(copies)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch, "repository")
        make_repository(top, options.files, options.megabytes)
        times = measure(top, options.rounds)
    print(
        f"{options.files} files, {options.megabytes} MB, {options.rounds} rounds, {os.cpu_count()} cores; ms"
    )
    for name, seconds in times.items():
        low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
        print(f"{name:42} median {middle:8.1f}   min {low:8.1f}   max {high:8.1f}")


if __name__ == "__main__":
    main()
