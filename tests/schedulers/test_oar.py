"""OARScheduler on what an OAR 2.5.9 printed (data/OARScheduler)."""

import json
import shlex
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import pytest

from mlxjobs.scheduler import EX_TEMPFAIL, Fate, Here, JobState, JobStatus
from mlxjobs.schedulers.oar import OARScheduler
from tests.schedulers.example import job
from tests.schedulers.recordings import recordings

oar = OARScheduler()
RECORDED = recordings("OARScheduler")["status"]


def test_the_job_id_is_not_on_the_first_line() -> None:
    said = "[ADMISSION RULE] Set default walltime to 7200.\n[ADMISSION RULE] Modify resource\nOAR_JOB_ID=57\n"
    assert oar.parse_submission(said) == "57"


@pytest.mark.parametrize("output", ["", "OAR_JOB_ID=\n", "OAR_JOB_ID=-5\n", "57\n"])
def test_an_output_without_id_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        oar.parse_submission(output)


def test_a_job_that_is_said_to_be_killed_may_run() -> None:
    words = "[ERROR] Cannot connect to executor oar-server:6666. Job is killed."
    assert oar.may_have_submitted(words)
    assert not oar.may_have_submitted("There are not enough resources for your request")


# -- directives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("--checkpoint=30", "--checkpoint 30"),
        ("--name=mine", "--name mine"),
        ("-n mine", "-n mine"),
        ("-nmine", "-n mine"),
        ('-l "nodes=1,walltime=2:0:0"', "-l nodes=1,walltime=2:0:0"),
        ("-l nodes=1/core=2,walltime=2:0:0", "-l nodes=1/core=2,walltime=2:0:0"),
        ("-p host='node2'", "-p host='node2'"),
        ("-p 'a'='b'", "-p 'a'='b'"),
        ("-p \"host='node2' and mem > 5\"", "-p host='node2' and mem > 5"),
        ("--property gpu='YES'", "--property gpu='YES'"),
        ("-t besteffort", "-t besteffort"),
        ("--nosuch=1", "--nosuch=1"),
    ],
)
def test_a_line_is_written_as_oarsub_reads_it(line: str, read: str) -> None:
    assert oar.directives(job(option_lines=[line]))[-1] == f"#OAR {read}"


def test_types_add_up_and_other_options_replace_ours() -> None:
    lines = oar.directives(job(option_lines=["-t besteffort", "--checkpoint=5", "-n mine"]))
    assert "#OAR -t idempotent" in lines
    assert "#OAR -t besteffort" in lines
    assert "#OAR --checkpoint 60" not in lines
    assert "#OAR -n main-5" not in lines
    twice = oar.directives(job(option_lines=["--type=idempotent"]))
    assert [line for line in twice if "idempotent" in line] == ["#OAR --type idempotent"]


ODD = ["/data/a b/it's", 'C"$HOME`id`\\', "/data/new\nline/é;日本&", "100%jobid%"]


@pytest.mark.parametrize("folder", ODD)
def test_a_path_that_oar_would_not_quote_is_hidden_from_it(folder: str, tmp_path: Path) -> None:
    script = tmp_path / folder.lstrip("/") / "script.sh"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\necho here\n")
    script.chmod(0o755)
    command = oar.submit_command(script)
    assert command[:4] == ["oarsub", "-d", "/", "-S"]
    (word,) = command[4].split(" ")  # oarsub looks for the script before the first space
    for shell in ("sh", "bash"):
        done = subprocess.run(
            [shell, "-c", f"cat {word}; {word}"], capture_output=True, text=True, check=True
        )
        assert done.stdout == "#!/bin/sh\necho here\nhere\n"
    lines = oar.directives(job(stdout=script.with_name("o"), stderr=script.with_name("e")))
    assert {"#OAR -O /dev/null", "#OAR -E /dev/null"} <= set(lines)


def test_a_plain_path_is_given_as_it_is() -> None:
    assert oar.submit_command(Path("/home/ada/logs/5/script.sh")) == shlex.split(
        "oarsub -d /home/ada/logs/5 -S /home/ada/logs/5/script.sh"
    )
    assert oar.resubmit_command(Path("/l/5/script.sh"), "7") == shlex.split(
        "oarsub -a 7 -d /l/5 -S /l/5/script.sh"
    )


# -- states -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job_id", "state", "reason"),
    [
        ("2", JobState.FAILED, "exit code 3"),
        ("4", JobState.COMPLETED, ""),
        ("6", JobState.PREEMPTED, "BESTEFFORT_KILL"),
        ("8", JobState.CANCELLED, "oardel"),
        ("9", JobState.TIME_LIMIT, "WALLTIME"),
        ("10", JobState.NODE_FAIL, "taken away with its node, or deleted by an administrator"),
        ("14", JobState.CANCELLED, "oardel"),
        ("15", JobState.CANCELLED, "oardel"),
    ],
)
def test_how_a_job_ended(job_id: str, state: JobState, reason: str) -> None:
    status = oar.parse_status(RECORDED)[job_id]
    assert (status.state, status.reason) == (state, reason)
    assert status.job_id == job_id
    assert status.state.ended


def test_what_hindered_a_job_from_starting_is_said() -> None:
    status = oar.parse_status(RECORDED)["11"]
    assert status.state is JobState.FAILED
    assert status.reason.startswith("OUTPUT_FILES: [bipbip 11] Cannot create .stdout and .stderr files in")


@pytest.mark.parametrize(
    ("job_id", "now", "state", "cause"),
    [
        ("3", "5", JobState.CANCELLED, "BESTEFFORT_KILL"),
        ("12", "13", JobState.NODE_FAIL, "PING_CHECKER_NODE_SUSPECTED"),
        ("16", "18", JobState.RUNNING, "exit code 99"),
    ],
)
def test_a_resubmitted_job_is_what_its_successor_is(
    job_id: str, now: str, state: JobState, cause: str
) -> None:
    status = oar.parse_status(RECORDED)[job_id]
    assert (status.job_id, status.state, status.cause) == (now, state, cause)


def test_a_running_job_has_an_end_and_a_waiting_one_none() -> None:
    found = oar.parse_status(RECORDED)
    start = json.loads(RECORDED)["18"]["startTime"]
    assert found["18"].ends == datetime.fromtimestamp(start + 7200, timezone.utc)
    assert found["17"].ends is None
    assert (found["17"].state, found["17"].word) == (JobState.PENDING, "Hold")


def test_unknown_jobs_and_unknown_words() -> None:
    assert oar.parse_status("") == {}
    odd = {"7": {**json.loads(RECORDED)["2"], "state": "Dreaming"}}
    assert oar.parse_status(json.dumps(odd))["7"].state is JobState.UNKNOWN


@pytest.mark.parametrize("links", [{"3": 3}, {"3": 5, "5": 3}, {"3": 5, "5": 6, "6": 5}])
def test_jobs_that_are_each_others_successors_are_an_error(links: dict[str, int]) -> None:
    one = json.loads(RECORDED)["3"]
    damaged = {job_id: {**one, "resubmit_job_id": heir} for job_id, heir in links.items()}
    with pytest.raises(ValueError, match="in a circle"):
        oar.parse_status(json.dumps(damaged))


def test_jobs_are_found_by_their_script() -> None:
    plain, odd = Path("/home/ada/logs/5/script.sh"), Path("/home/it's/script.sh")
    jobs = {
        "12": {"command": oar.submit_command(plain)[-1]},
        "9": {"command": oar.submit_command(plain)[-1]},
        "13": {"command": oar.submit_command(odd)[-1]},
    }
    assert oar.parse_found(json.dumps(jobs), plain) == ["9", "12"]
    assert oar.parse_found(json.dumps(jobs), odd) == ["13"]
    assert oar.parse_found("", plain) == []


def test_many_jobs_are_one_question() -> None:
    command = oar.status_command(["7", "8"])
    assert command[:4] == ["oarstat", "-f", "-J", "--sql"]
    assert command[4].endswith("WHERE job_id IN (7,8))")


# -- inside a job -----------------------------------------------------------------------------


def test_the_job_that_a_process_is_in() -> None:
    assert oar.here({}) is None
    assert oar.here({"OAR_JOB_ID": "58", "OAR_ARRAY_ID": "50", "OAR_ARRAY_INDEX": "1"}) == Here(
        "58", first_job_id="50"
    )
    # which id the third job of an array had at first, its environment does not say
    assert oar.here({"OAR_JOB_ID": "58", "OAR_ARRAY_ID": "50", "OAR_ARRAY_INDEX": "3"}) == Here("58")


def test_what_brings_a_job_back() -> None:
    running = JobStatus(JobState.RUNNING, "Running", requeues_exit=True)
    assert oar.fate(running, Here("7")) is Fate.RUNS_ON
    assert oar.requeue_exit_code() == 99 != EX_TEMPFAIL
    assert oar.requeues_exit_after_s(running) == 70
    assert oar.requeues_exit_after_s(None) == 70
    assert oar.requeues_exit_after_s(JobStatus(JobState.RUNNING, "Running")) is None
    assert oar.requeue_command("7") is None
