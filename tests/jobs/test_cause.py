"""One line says why an attempt ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxjobs.jobs.cause import cause_of_job, with_progress
from mlxjobs.record.history import Attempt
from mlxjobs.record.run import Run
from mlxjobs.scheduler import JobState, JobStatus, exit_words


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "logs")


def log(run: Run, name: str, *lines: str) -> None:
    (run.metrics / f"{name}.json").write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (JobStatus(JobState.OUT_OF_MEMORY, "OUT_OF_MEMORY", memory=(16_970_000_000, 16 << 30)),
         "OUT_OF_MEMORY at epoch 41, 15.8 of 16 GB"),
        (JobStatus(JobState.OUT_OF_MEMORY, "OUT_OF_MEMORY"), "OUT_OF_MEMORY at epoch 41"),
        (JobStatus(JobState.NODE_FAIL, "NODE_FAIL", "NodeDown"), "NODE_FAIL n3 at epoch 41 (NodeDown)"),
        (JobStatus(JobState.TIME_LIMIT, "TIMEOUT", "TimeLimit"),
         "TIME_LIMIT at epoch 41 (TIMEOUT: TimeLimit)"),
        (JobStatus(JobState.CANCELLED, "CANCELLED by 1001"), "CANCELLED at epoch 41 (CANCELLED by 1001)"),
        (JobStatus(JobState.FAILED, "FAILED", "killed by SIGKILL"), "killed by SIGKILL at epoch 41"),
        (JobStatus(JobState.PENDING, "REQUEUED"), "REQUEUED at epoch 41"),
        (JobStatus(JobState.COMPLETED, "COMPLETED"),
         "exit code 0, but the task never said that it ended, at epoch 41"),
    ],
)  # fmt: skip
def test_what_a_scheduler_says_of_the_end_of_a_job(run: Run, status: JobStatus, words: str) -> None:
    log(run, "train", '{"loss": 0.1, "epoch": 40}', '{"loss": 0.1, "epoch": 41}')
    assert cause_of_job(run, Attempt(1, "2026-11-23T05:21:21.000+00:00", "n3"), status) == words


def test_a_job_in_which_nothing_began_has_no_progress(run: Run) -> None:
    status = JobStatus(JobState.NODE_FAIL, "NODE_FAIL")
    assert cause_of_job(run, None, status) == "NODE_FAIL"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({}, "killed"),
        ({"train": ['{"loss": 0.1}']}, "killed"),
        ({"train": ['{"step": 900}'], "val": ['{"epoch": 3}']}, "killed at epoch 3"),
        ({"train": ['{"global_step": 900}']}, "killed at step 900"),
        ({"train": ['{"epoch": 7}', '{"epo'], "val": ['{"epoch": 6}']}, "killed at epoch 7"),
        ({"train": ['{"epoch": "seven"}']}, "killed"),
        ({"train": ["[]", "nonsense"]}, "killed"),
    ],
)
def test_how_far_a_run_has_come(run: Run, lines: dict[str, list[str]], words: str) -> None:
    for name, rows in lines.items():
        (run.metrics / f"{name}.json").write_text("\n".join(rows) + ("" if rows[-1] == '{"epo' else "\n"))
    assert with_progress(run, "killed") == words


@pytest.mark.parametrize(
    ("code", "words"),
    [(3, "exit code 3"), (137, "killed by SIGKILL"), (143, "killed by SIGTERM"), (255, "exit code 255")],
)
def test_what_an_exit_code_means(code: int, words: str) -> None:
    assert exit_words(code) == words
