"""No test asks a scheduler that the tests did not start, whatever the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxjobs.cluster import registry
from tests.guards import COMMANDS, GUARDS, leave_job

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("command", ["sacct", "oarstat", "qstat", "bjobs", "checkjob"])
def test_a_command_of_the_machines_scheduler_is_refused_and_recorded(command: str) -> None:
    done = subprocess.run([command, "-x", "1"], capture_output=True, text=True, check=False)
    words = f"a test called {command} of the machine: {command} -x 1"
    assert (done.returncode, done.stderr) == (127, f"{words}\n")
    (call,) = GUARDS.calls()  # else this test would fail, as every other that calls one
    assert call == f"{os.environ['PYTEST_CURRENT_TEST']}: {words}"


def test_the_commands_of_all_schedulers_are_guarded() -> None:
    called = {command for path in registry.known().values() for command in registry.load(path).commands}
    assert called <= set(COMMANDS)


def test_the_job_that_the_tests_run_in_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    told = (
        "SLURM_JOB_ID",
        "SLURM_PROCID",
        "PBS_JOBID",
        "OAR_JOB_ID",
        "JOB_ID",
        "LSB_JOBID",
        "MLXJOBS_LOCAL_JOB_ID",
    )
    for name in told:
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("MLXJOBS_DAMAGE", "1")
    leave_job()
    assert not os.environ.keys() & set(told)
    assert os.environ["MLXJOBS_DAMAGE"] == "1"


IGNORES = """
import signal, subprocess, sys
for name in ("SIGINT", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
from tests.guards import GUARDS, heed_signals
GUARDS.remove()
heed_signals()
tell = "from signal import *; print(getsignal(SIGINT) is default_int_handler, getsignal(SIGHUP) is SIG_DFL)"
subprocess.run([sys.executable, "-c", tell], check=True)
"""


def test_a_program_has_the_signals_that_nohup_took_from_the_tests() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IGNORES], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "True True\n"
