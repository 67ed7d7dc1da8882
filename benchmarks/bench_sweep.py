"""A local sweep: 20 empty runs against `hydra -m` of the same.

python benchmarks/bench_sweep.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from bench_launch import CONFIG, HYDRA, OURS, run
from interleaved import HEADER, interleave, row

RUNS = 20


def local(rounds: int) -> None:
    """Runs that do nothing, in this process, one after the other; start-up and records included."""
    sweep = f"seed=range({RUNS})"
    timing = interleave(
        {
            "hydra": lambda: run(sys.executable, "plain.py", "-m", sweep),
            "ours": lambda: run(sys.executable, "ours.py", sweep),
        },
        rounds,
    )
    print(row(f"a local sweep of {RUNS} empty runs, each", timing, "ours", 0.5, RUNS / 1000, "ms"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print(HEADER)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "configs").mkdir()
        (folder / "configs" / "config.yaml").write_text(CONFIG)
        (folder / "plain.py").write_text(HYDRA)
        (folder / "ours.py").write_text(OURS)
        os.chdir(folder)
        local(given.rounds)


if __name__ == "__main__":
    main()
