"""SGEScheduler on what a Grid Engine 8.1.9 printed; data/SGEScheduler/ names the commands."""

from pathlib import Path

import pytest

from mlxjobs.cluster.script import render_script
from mlxjobs.scheduler import TASK, Fate, Here, JobState, JobStatus
from mlxjobs.schedulers.sge import SGEScheduler
from tests.schedulers.example import job
from tests.schedulers.recordings import recordings

sge = SGEScheduler()
RECORDED = recordings("SGEScheduler")
QSTAT, QACCT, QSTAT_J = (RECORDED[kind] for kind in ("status", "history", "found"))


@pytest.mark.parametrize("output", ["57\n", "57.1-9:1\n", "Welcome! Charged to lab.\n57\n"])
def test_the_job_id_is_read_whatever_a_site_prints_before(output: str) -> None:
    assert sge.parse_submission(output) == "57"


@pytest.mark.parametrize("output", ["", "\n", "Your job 57 has been submitted\n", "57 jobs\n"])
def test_an_output_without_id_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        sge.parse_submission(output)


def test_the_ids_of_an_arrays_tasks() -> None:
    assert sge.parse_array("57.1-2:1\n", 2) == ["57.1", "57.2"]


# -- directives -------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["-N mine", "-r n", "-S /bin/zsh", "-o /dev/null"])
def test_the_users_line_wins_over_ours_of_the_same_option(line: str) -> None:
    lines = sge.directives(job(option_lines=[line]))
    assert [option for option in lines if option.split()[1] == line.split()[0]] == [f"#$ {line}"]


def test_options_of_one_dash_and_several_letters_are_whole_words() -> None:
    lines = sge.directives(job(option_lines=["-now y", "-l h_rt=1:0:0", "-l gpu=1", "-pe smp 4"]))
    assert "#$ -notify" in lines
    assert lines[-4:] == ["#$ -now y", "#$ -l h_rt=1:0:0", "#$ -l gpu=1", "#$ -pe smp 4"]


@pytest.mark.parametrize(("name", "written"), [("3d-5", "_3d-5"), ("é x-5", "--x-5"), ("main-5", "main-5")])
def test_a_name_that_would_be_refused_is_changed(name: str, written: str) -> None:
    assert sge.directives(job(name=name))[0] == f"#$ -N {written}"


@pytest.mark.parametrize("path", ["/a:b/o", "/a,b/o", "/a b/o", "/it's/o", "/$HOME/o", "/a\nb/o"])
def test_a_path_that_qsub_would_read_otherwise_is_left_to_the_script(path: str) -> None:
    assert not sge.can_name(Path(path))
    assert "#$ -o /dev/null" in sge.directives(job(stdout=Path(path)))


def test_the_script_of_an_array() -> None:
    out = Path("/home/ada/array") / TASK
    script, stdout, stderr = out.parent / "script.sh", out / "log.stdout", out / "log.stderr"
    array = job(script=script, stdout=stdout, stderr=stderr, tasks=3)
    lines = render_script(array, sge).splitlines()
    assert "#$ -o /home/ada/array/$TASK_ID/log.stdout" in lines
    assert "#$ -t 1-3" in lines
    assert 'run=/home/ada/array/"$SGE_TASK_ID"' in lines


def test_a_script_is_handed_in_by_its_path_if_that_can_be() -> None:
    plain, odd = Path("/home/it's $x/script.sh"), Path("/new\nline/script.sh")
    assert sge.submit_command(plain) == ["qsub", "-terse", str(plain)]
    assert sge.submit_command(odd)[:2] == ["sh", "-c"]
    assert sge.resubmit_command(plain, "7") == ["qsub", "-terse", "-hold_jid", "7", str(plain)]
    assert sge.resubmit_command(plain, "7.3") == ["qsub", "-terse", "-hold_jid", "7", str(plain)]


# -- states -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job_id", "word", "state", "reason"),
    [
        ("4", "Rr", JobState.RUNNING, ""),
        ("5.1", "s", JobState.RUNNING, "suspended"),
        ("5.2", "dr", JobState.ENDING, ""),
        ("8.1", "hqw", JobState.PENDING, ""),
        ("8.2", "hqw", JobState.PENDING, ""),
        ("9", "hqw", JobState.PENDING, ""),
        ("10", "Eqw", JobState.PENDING, "in error, see qstat -j 10, then qmod -cj 10"),
    ],
)
def test_jobs_that_have_not_ended(job_id: str, word: str, state: JobState, reason: str) -> None:
    status = sge.parse_status(QSTAT)[job_id]
    assert (status.word, status.state, status.reason) == (word, state, reason)
    assert status.job_id == job_id
    assert status.restarts == (1 if word == "Rr" else 0)


@pytest.mark.parametrize(
    ("job_id", "state", "reason"),
    [
        ("1", JobState.COMPLETED, ""),
        ("2", JobState.FAILED, "exit code 3"),
        ("3", JobState.TIME_LIMIT, "qmaster enforced h_rt, h_cpu, or h_vmem limit"),
        ("5.2", JobState.FAILED, "killed by SIGKILL"),
        ("6", JobState.FAILED, "killed by SIGKILL"),
        ("7", JobState.CANCELLED, "deleted while it waited to be started again"),
    ],
)
def test_how_a_job_ended(job_id: str, state: JobState, reason: str) -> None:
    status = sge.parse_history(QACCT)[job_id]
    assert (status.state, status.reason) == (state, reason)
    assert status.submitted is not None


def test_many_jobs_are_one_question() -> None:
    assert sge.status_command(["7", "8.1"]) == sge.status_command(["9"])
    assert sge.history_command(["7", "8.1", "8.2"])[3:] == ["sh", "7", "8"]
    assert sge.parse_history("") == {}


@pytest.mark.parametrize(
    ("letters", "state"),
    [
        ("Rt", "RUNNING"),
        ("t", "RUNNING"),
        ("qw", "PENDING"),
        ("Rq", "PENDING"),
        ("r", "RUNNING"),
        ("S", "RUNNING"),
        ("Ts", "RUNNING"),
        ("dRr", "ENDING"),
        ("Z?", "UNKNOWN"),
    ],
)
def test_letters(letters: str, state: str) -> None:
    said = (
        f"<job_info><queue_info><job_list><JB_job_number>7</JB_job_number><state>{letters}</state></job_list>"
    )
    status = sge.parse_status(f"{said}</queue_info></job_info>")["7"]
    assert status.state.name == state


def test_jobs_are_found_by_their_script() -> None:
    assert sge.parse_found(QSTAT_J, Path("j.sh")) == ["5", "8", "9", "10"]
    assert sge.parse_found_array(QSTAT_J, Path("/home/ada/logs/5/script.sh"), 2) == ["4.1", "4.2"]
    assert sge.parse_found("", Path("j.sh")) == []


def test_how_large_an_array_may_be() -> None:
    assert sge.parse_max_array("max_aj_instances  2000\nmax_aj_tasks   75000\n") == 75000
    assert sge.parse_max_array("max_aj_tasks   0\n") is None


# -- inside a job -----------------------------------------------------------------------------

ENV = {"JOB_ID": "57", "SGE_O_HOST": "login", "SGE_TASK_ID": "undefined", "RESTARTED": "0"}


def test_the_job_that_a_process_is_in() -> None:
    assert sge.here({}) is None
    assert sge.here({"JOB_ID": "57"}) is None  # others have such a variable too
    assert sge.here(ENV) == Here("57", 0)
    assert sge.here({**ENV, "RESTARTED": "1", "SGE_TASK_ID": "3"}) == Here("57.3", 1)


@pytest.mark.parametrize(
    ("letters", "restarts", "fate", "exits"),
    [
        ("r", 0, Fate.TIME_LIMIT, None),
        ("Rr", 1, Fate.TIME_LIMIT, None),
        ("s", 0, Fate.RUNS_ON, 0.0),
        ("S", 0, Fate.RUNS_ON, 0.0),
        ("Rs", 1, Fate.RUNS_ON, 0.0),
        ("dr", 0, Fate.CANCELLED, None),
        ("ds", 0, Fate.CANCELLED, None),
        ("Rq", 0, Fate.REQUEUED, None),
        ("Rr", 0, Fate.REQUEUED, None),
    ],
)
def test_what_a_signal_meant(letters: str, restarts: int, fate: Fate, exits: float | None) -> None:
    said = f"<a><job_list><JB_job_number>7</JB_job_number><state>{letters}</state></job_list></a>"
    status = sge.parse_status(said)["7"]
    assert sge.fate(status, Here("7", restarts)) is fate
    assert sge.requeues_exit_after_s(status) == exits


def test_what_brings_a_job_back() -> None:
    assert sge.requeue_exit_code() == 99
    assert sge.requeues_exit_after_s(None) == 0.0
    assert sge.requeue_command("7") is None
    assert sge.fate(JobStatus(JobState.UNKNOWN, "?"), Here("7")) is Fate.UNKNOWN


def test_a_full_queue_is_told_from_a_refusal() -> None:
    said = (
        "Unable to run job: job rejected: only 2 jobs are allowed per user (current job count: 2)\nExiting."
    )
    assert sge.is_full(said)
    assert not sge.is_full("Unable to run job: unknown queue nosuch.\nExiting.")
