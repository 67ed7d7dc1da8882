"""A job as the engine describes it, for the tests of all adapters."""

from pathlib import Path
from typing import Any

from mlxjobs.scheduler import Job

RUN = Path("/home/ada/logs/5")


def job(**more: Any) -> Job:
    """Return the job of run 5 of Ada's project, with these parts of it changed or added."""
    parts: dict[str, Any] = {
        "name": "main-5",
        "script": RUN / "script.sh",
        "stdout": RUN / "log.stdout",
        "stderr": RUN / "log.stderr",
        "work_dir": Path("/home/ada"),
        "command": ["python", "main.py"],
        **more,
    }
    return Job(**parts)
