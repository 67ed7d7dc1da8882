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


WHOLE = """
from mlxpy.scheduler import Fate, Here, JobState, JobStatus, Scheduler
class Mine(Scheduler):
    directive = "#"
    commands = ()
    def options(self, job): return []
    def submit_command(self, script): return ["echo", "7"]
    def parse_submission(self, output): return output.strip()
    def status_command(self, job_ids): return ["true"]
    def parse_status(self, output): return {}
    def cancel_command(self, job_ids): return ["true"]
    def here(self, env): return None
    def fate(self, status, here): return Fate.UNKNOWN
"""
