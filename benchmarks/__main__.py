"""`make bench`: every benchmark in turn, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

for script in sorted(Path(__file__).parent.glob("bench_*.py")):
    print(f"\n## {script.stem.removeprefix('bench_')}\n", flush=True)
    subprocess.run([sys.executable, str(script)], check=True)
