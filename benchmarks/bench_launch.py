"""What a user waits for: the import, an empty task, an attempt inside a job; against Hydra alone.

python benchmarks/bench_launch.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

from interleaved import HEADER, interleave, row

HYDRA = """
import hydra
@hydra.main(version_base=None, config_path="configs", config_name="config")
def main(cfg):
    pass
if __name__ == "__main__":
    main()
"""
OURS = """
import mlxpy
@mlxpy.launch(config_path="configs")
def main(ctx):
    pass
if __name__ == "__main__":
    main()
"""
CONFIG = "seed: 0\nmodel:\n  units: 100\noptimizer:\n  lr: 0.1\n"


def run(*argv: str, **env: str) -> None:
    # bytecode is kept, as it is for users
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(argv, env={**clean, **env}, check=True, capture_output=True)


def imports(rounds: int) -> None:
    """The import's own time: what a bare interpreter takes is taken off."""
    timing = interleave(
        {
            "bare": lambda: run(sys.executable, "-c", "pass"),
            "mlxpy": lambda: run(sys.executable, "-c", "import mlxpy"),
            "with the decorator": lambda: run(sys.executable, "-c", "import mlxpy; mlxpy.launch"),
        },
        rounds,
    )
    bare = timing.seconds["bare"]
    for name in ("mlxpy", "with the decorator"):
        extra = (timing.seconds[name] - bare) * 1000
        verdict = "ok" if extra <= 60 else "MISSED"
        print(f"| import {name} | {bare * 1000:.3g} ms bare | +{extra:.3g} ms | | 60 ms | {verdict} |")


def programs(rounds: int, folder: Path) -> None:
    (folder / "configs").mkdir()
    (folder / "configs" / "config.yaml").write_text(CONFIG)
    (folder / "plain.py").write_text(HYDRA)
    (folder / "ours.py").write_text(OURS)
    os.chdir(folder)
    os.environ.update(MLXJOBS_LOCAL_DIR=str(folder / "queue"), MLXJOBS_LOCAL_JOBS="0")
    seeds = ",".join(map(str, range(rounds + 1)))
    # runs that wait in a queue which starts nothing: each is executed once, as its job would
    run(sys.executable, "ours.py", f"seed={seeds}", "mlxpy.use_scheduler=true",
        "mlxpy.scheduler.name=LocalScheduler", "mlxpy.logger.parent_log_dir=queued")  # fmt: skip
    numbers = count(1)

    def attempt() -> None:
        number = str(next(numbers))
        last = Path("queued", number, "script.sh").read_text().splitlines()[-1]
        run(*shlex.split(last.removeprefix("exec ")), MLXJOBS_LOCAL_JOB_ID=number)

    timing = interleave(
        {
            "hydra": lambda: run(sys.executable, "plain.py"),
            "ours": lambda: run(sys.executable, "ours.py"),
            "attempt": attempt,
        },
        rounds,
    )
    print(row("an empty task", timing, "ours", 1.15, 0.001, "ms"))
    print(row("an attempt inside a job", timing, "attempt", 0.6, 0.001, "ms"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(HEADER)
    imports(given.rounds)
    with tempfile.TemporaryDirectory() as name:
        programs(given.rounds, Path(name))


if __name__ == "__main__":
    main()
