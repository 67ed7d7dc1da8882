"""Time and weigh a first snapshot and the next against `git worktree add`, and finding one that exists.

    python benchmarks/bench_snapshot.py --files 5000 --megabytes 200 --rounds 7

A repository of that size is generated in a temporary folder (TMPDIR says where). The ways take turns in
each round, and the disk is left to settle before each, so that noise of the machine falls on all of them.
ext4 is slow to make files for half a minute after many were removed: best is a file system of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mlxjobs.code.gitvm import GitVM
from mlxjobs.version_manager import Launch

WORKTREE = "git worktree add"


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


def time_once(action: Callable[[], object]) -> float:
    os.sync()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def edit(top: Path, word: str) -> None:
    """Change ten files, and commit that."""
    for number in range(10):
        (top / f"part{number}" / f"unit{number % 7}" / f"file{number}.py").write_text(f"x = {word!r}\n" * 50)
    git(top, "commit", "-qam", word)


def space(*folders: Path) -> int:
    """Return the bytes that these folders take on the disk; what they share counts once."""
    said = subprocess.run(["du", "-s", "-B1", "-c", *folders], check=True, capture_output=True, text=True)
    return int(said.stdout.splitlines()[-1].split()[0])


def measure(top: Path, rounds: int) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Time each way once a round, in seconds, and weigh what it made, in bytes.

    All that is made stays until the end: on many disks the space of removed files is given back later, which
    would slow what is timed then.
    """
    times: dict[str, list[float]] = {}
    sizes: dict[str, list[int]] = {}
    for number in range(rounds):
        tree, copies = top.parent / f"worktree{number}", top.parent / f"snapshots{number}"
        launch = Launch(top, Path("main.py"), copies)

        def freeze(launch: Launch = launch) -> Path:
            return GitVM().freeze(launch).root

        add = partial(git, top, "worktree", "add", "-q", "--detach", str(tree))
        ways: list[tuple[str, Callable[[], object]]] = [(WORKTREE, add), ("first snapshot", freeze)]
        for name, way in (
            ways if number % 2 else reversed(ways)
        ):  # a disk may be slower after much was written
            times.setdefault(name, []).append(time_once(way))
        first = freeze()
        edit(top, str(number))
        times.setdefault("next snapshot, ten files edited", []).append(time_once(freeze))
        second = freeze()
        times.setdefault("existing snapshot", []).append(time_once(freeze))
        sizes.setdefault(WORKTREE, []).append(space(tree))
        sizes.setdefault("first snapshot", []).append(space(first))
        sizes.setdefault("next snapshot, ten files edited", []).append(
            space(first, second) - sizes["first snapshot"][-1]
        )
    return times, sizes


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
        times, sizes = measure(top, options.rounds)
    load = os.getloadavg()[0]
    print(
        f"{options.files} files, {options.megabytes} MB, {options.rounds} rounds, {os.cpu_count()} cores,"
        f" load {load:.1f}; ms, and times `{WORKTREE}` in the same round"
    )
    for name in (WORKTREE, *(name for name in times if name != WORKTREE)):
        seconds = times[name]
        low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
        ratio = statistics.median(a / b for a, b in zip(seconds, times[WORKTREE], strict=True))
        size = f"   {statistics.median(sizes[name]) / 1e6:7.1f} MB" if name in sizes else ""
        print(f"{name:32} median {middle:8.1f}   min {low:8.1f}   max {high:8.1f}   x {ratio:.3f}{size}")


if __name__ == "__main__":
    main()
