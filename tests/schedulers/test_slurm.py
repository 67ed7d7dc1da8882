"""SLURMScheduler on what a Slurm 22.05.8 printed."""

import subprocess
import sys
from pathlib import Path

import pytest

from mlxjobs.errors import InvalidConfigFileError
from mlxjobs.scheduler import Fate, Here, JobState, JobStatus
from mlxjobs.schedulers.slurm import SLURMScheduler
from tests.schedulers.example import job
from tests.schedulers.recordings import recordings

slurm = SLURMScheduler()
S = "\x1f"


@pytest.mark.parametrize("output", ["57\n", "57;cluster\n", "Welcome! Charged to lab.\n57\n"])
def test_the_job_id_is_read_whatever_a_site_prints_before(output: str) -> None:
    assert slurm.parse_submission(output) == "57"


@pytest.mark.parametrize("output", ["", "\n", "sbatch: slow today\n", "57 jobs\n"])
def test_an_output_without_id_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        slurm.parse_submission(output)


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("-J x", "--job-name"),
        ("-Jx", "--job-name"),
        ("--job-name x", "--job-name"),
        ("--job-name=x", "--job-name"),
        ("-o /x", "--output"),
        ("--no-requeue", "--requeue"),
        ("--signal=USR1", "--signal"),
    ],
)
def test_the_users_line_wins_over_ours_of_the_same_option(line: str, option: str) -> None:
    lines = slurm.directives(job(option_lines=[line]))
    assert lines[-1] == f"#SBATCH {line}"
    assert not [other for other in lines[:-1] if slurm.option_name(other.removeprefix("#SBATCH ")) == option]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--time=1 --mem=2G", "['--time=1', '--mem=2G']"),
        ("-p low -N 2", "['-p low', '-N 2']"),
        ("time=1", "is not an option"),
        ("--comment='x", "No closing quotation"),
    ],
)
def test_an_option_that_is_none_or_several_is_an_error(line: str, words: str) -> None:
    with pytest.raises(InvalidConfigFileError) as caught:
        slurm.directives(job(option_lines=[line]))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "line", ["-p low", "--comment='-x -y'", "--nice=-5", "--begin now", "--array=0-3", "-N 2"]
)
def test_one_option_is_taken_as_it_is(line: str) -> None:
    assert f"#SBATCH {line}" in slurm.directives(job(option_lines=[line]))


def test_a_percent_sign_in_a_path_is_no_pattern() -> None:
    assert "#SBATCH --output='/x/100%%j/a b'" in slurm.directives(job(stdout=Path("/x/100%j/a b")))


def test_a_path_that_no_directive_can_hold_is_left_to_the_script() -> None:
    assert "#SBATCH --output=/dev/null" in slurm.directives(job(stdout=Path("/x/a\nb")))
    assert not slurm.can_name(Path("/x/a\\b"))


def test_status_of_many_jobs() -> None:
    output = (
        f"57_3  {S}RUNNING {S}None {S}1 {S}2026-11-23T08:27:22 {S}0 {S}\n"
        f"58 {S}PENDING {S}ReqNodeNotAvail, UnavailableNodes:n1 {S}0 {S}N/A {S}0 {S}\n"
        f"59 {S}COMPLETING {S}TimeLimit {S}0 {S}2026-11-23T08:27:22 {S}0 {S}\n"
        f"60 {S}DANCING {S}None {S}x {S}N/A {S}0 {S}\n"
        f"61 {S}FAILED {S}NonZeroExitCode {S}0 {S}N/A {S}768 {S}\n"
        f"62 {S}FAILED {S}JobLaunchFailure {S}0 {S}N/A {S}9 {S}\n"
        f"63 {S}FAILED {S}NonZeroExitCode {S}0 {S}N/A {S}35072 {S}\n"
        "slurm_load_jobs: a notice\n"
    )
    found = slurm.parse_status(output)
    assert list(found) == ["57_3", "58", "59", "60", "61", "62", "63"]
    assert found["57_3"].state is JobState.RUNNING
    assert found["57_3"].restarts == 1
    assert found["58"].reason == "ReqNodeNotAvail, UnavailableNodes:n1"
    assert found["59"].state is JobState.ENDING
    assert (found["60"].state, found["60"].word, found["60"].restarts) == (JobState.UNKNOWN, "DANCING", None)
    assert found["61"].reason == "exit code 3"
    assert found["62"].reason == found["63"].reason == "killed by SIGKILL"


def test_history_of_jobs_that_squeue_forgot() -> None:
    found = slurm.parse_history(recordings("SLURMScheduler", "history")["history"])
    assert {job_id: status.state for job_id, status in found.items()} == {
        "12": JobState.CANCELLED,
        "13": JobState.NODE_FAIL,
        "15": JobState.OUT_OF_MEMORY,
        "16": JobState.FAILED,
    }
    assert found["13"].ended is not None
    assert found["15"].memory == (16567500 << 10, 16 << 30)
    assert found["16"].reason == "killed by SIGKILL"
    assert found["16"].memory is None


def test_tasks_of_an_array_that_never_ran_share_a_line_of_the_history() -> None:
    def row(job_id: str, word: str = "CANCELLED by 1001") -> str:
        return S.join((job_id, word, "2026-11-23T05:21:21", "2026-11-23T05:21:29", "0:0", "", "4G"))

    lines = [
        row("7_1", "COMPLETED"),
        row("7_[2-4,9%2]"),
        row("8_[1-9:2]"),
        row("9"),
        row("10_[7]"),
        row("11+0"),
    ]
    jobs = slurm.parse_history("\n".join(lines))
    assert list(jobs) == ["7_1", "7_2", "7_3", "7_4", "7_9", "9", "10_7", "11+0"]
    assert jobs["7_1"].state is JobState.COMPLETED
    assert {jobs[job_id].state for job_id in list(jobs)[1:]} == {JobState.CANCELLED}
    assert jobs["7_3"].is_of("2026-11-23T05:21:00.000+00:00")


def test_submitit_is_imported_only_for_a_line_that_it_has_to_read() -> None:
    line = S.join(("ID", "CANCELLED", "2026-11-23T05:21:21", "2026-11-23T05:21:29", "0:0", "", "4G"))
    script = (
        "import sys; from mlxpy import SLURMScheduler\n"
        f"for job_id in ('7_1', '7_[1-2]'): SLURMScheduler().parse_history({line!r}.replace('ID', job_id)); "
        "print('submitit' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_how_the_runs_of_a_job_ended_that_was_started_again() -> None:
    ends = ("2026-11-23T05:21:21", "2026-11-23T05:21:29")
    rows = (("28", word, *ends, "0:0", "", "4G") for word in ("PREEMPTED", "REQUEUED", "RUNNING"))
    runs = slurm.parse_earlier("\n".join(S.join(row) for row in rows) + "\n")
    assert [status.word for status in runs] == ["PREEMPTED", "REQUEUED", "RUNNING"]


def test_an_older_job_of_the_same_id_is_another_job() -> None:
    row = ("12", "COMPLETED", "2026-11-20T05:21:21", "2026-11-20T05:21:29", "0:0", "", "4G")
    status = slurm.parse_history(S.join(row))["12"]
    assert status.is_of("2026-11-20T05:21:00.000+00:00")
    assert not status.is_of("2026-11-23T05:21:21.000+00:00")
    assert status.is_of(None)


def test_a_job_is_found_by_its_script() -> None:
    script = Path("/home/ada/a b/5/script.sh")
    output = f"9{S}{script}\n10{S}/other/script.sh\n101{S}{script}\n"
    assert slurm.parse_found(output, script) == ["9", "101"]


@pytest.mark.parametrize(
    ("env", "here"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "57", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, Here("57", 0, 0, 1)),
        ({"SLURM_JOB_ID": "57", "SLURM_RESTART_COUNT": "2"}, Here("57", 2)),
        (
            {"SLURM_JOB_ID": "57", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"},
            Here("57", 0, 3, 4),
        ),
        # the last task of an array has the array's own id
        ({"SLURM_JOB_ID": "57", "SLURM_ARRAY_JOB_ID": "57", "SLURM_ARRAY_TASK_ID": "9"}, Here("57_9")),
    ],
)
def test_where_a_process_is(env: dict[str, str], here: Here | None) -> None:
    assert slurm.here(env) == here


@pytest.mark.parametrize(
    ("state", "reason", "restarts", "fate"),
    [
        (JobState.ENDING, "", 0, Fate.CANCELLED),
        (JobState.ENDING, "", 1, Fate.REQUEUED),
        (JobState.ENDING, "TimeLimit", 0, Fate.TIME_LIMIT),
        (JobState.RUNNING, "", 0, Fate.RUNS_ON),
        (JobState.PENDING, "BeginTime", 1, Fate.REQUEUED),
        (JobState.UNKNOWN, "", None, Fate.UNKNOWN),
    ],
)
def test_what_a_signal_meant(state: JobState, reason: str, restarts: int | None, fate: Fate) -> None:
    assert slurm.fate(JobStatus(state, "", reason, restarts), Here("57", 0)) is fate


def test_only_a_time_out_may_have_submitted() -> None:
    hung = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    down = "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)"
    assert slurm.may_have_submitted(hung)
    assert not slurm.may_have_submitted(down)
