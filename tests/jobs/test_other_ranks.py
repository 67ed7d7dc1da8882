"""The ranks of a job beside rank 0 record nothing but a failure."""

from __future__ import annotations

import pytest

from mlxjobs.record.history import RunStatus
from tests.launcher.test_launch import ENDS
from tests.project import write
from tests.slurm_stub import Slurm

RANK_1 = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [("raise", 1, "ValueError: of the task"), ("exit", 3, "SystemExit: 3"), ("nothing", 0, None)],
)
def test_what_another_rank_says_and_what_is_recorded_of_it(
    slurm_stub: Slurm, how: str, code: int, words: str | None
) -> None:
    project = slurm_stub.project
    write(project, {"main.py": ENDS, "configs/config.yaml": f"how: {how}\ncode: {code}\n"})
    slurm_stub.submit("")
    slurm_stub.say("RUNNING None 0")
    run = project.at()
    run.record(lambda state: {"event": "started", "attempt": 1, "job_id": "1", "host": "node1"})
    # as srun starts it
    done = project.run("+mlxpy.logger.forced_log_id=1", env=RANK_1, code=code)
    assert done.stdout == ""
    assert done.stderr == ""
    errors = run.output_of(1, 2).read_text()
    state = run.state()
    if words is None:
        assert run.output_of(1, 1).read_text() == f"done {how}\n"
        assert state.status is RunStatus.STARTING
        assert errors == ""
    else:
        assert state.status is RunStatus.FAILED
        assert state.reason is not None
        assert state.reason.startswith("rank 1 on ")
        assert state.reason.endswith(f": {words} (more in log.1.stderr)")
    if how == "raise":  # from the task's own function on
        in_task = f'File "{project.folder}/main.py", line '
        assert errors.startswith(f"Traceback (most recent call last):\n  {in_task}")
        assert "mlxjobs/jobs/" not in errors
