"""A sweep goes out in as few submissions as the site allows: nothing is lost, nothing goes out twice."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mlxjobs.jobs.look import look_at_runs
from mlxjobs.record.history import RunStatus
from tests.project import MAIN, Project, assert_one_message, names, runs, write
from tests.slurm_stub import IMPATIENT, Slurm, run_task


def statuses(project: Project) -> list[str]:
    return [project.state(log_id).status.value for log_id in runs(project)]


def jobs(project: Project) -> list[str | None]:
    return [project.state(log_id).job_id for log_id in runs(project)]


def only_these(project: Project, *commands: str) -> Path:
    """A folder with these commands and no others."""
    folder = project.folder.parent / "few"
    folder.mkdir()
    for command in commands:
        (folder / command).symlink_to(shutil.which(command) or command)
    return folder


def test_a_sweep_is_one_array_of_whole_runs(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    done = slurm_stub.submit("", "seed=1,2,3")
    assert done.stdout.splitlines()[:3] == [f"run {n}: job 1_{n}  seed={n}" for n in (1, 2, 3)]
    assert slurm_stub.tasks() == {"1": 3}
    assert jobs(project) == ["1_1", "1_2", "1_3"]
    # each run has a script of its own, as if it had been submitted alone
    assert "#SBATCH --job-name=main-2\n" in project.at(2).script.read_text()
    text = project.at(1).path.parent.joinpath(".arrays", "1", "script.sh").read_text()
    assert "#SBATCH --job-name=main-1-3\n" in text
    assert f"#SBATCH --output={project.logs}/.arrays/1/%a/log.stdout\n" in text
    # a task becomes its run, and writes where that is
    run_task(slurm_stub, "1", 2)
    assert statuses(project) == ["SUBMITTED", "COMPLETE", "SUBMITTED"]
    assert project.info(2)["attempts"][0]["job_id"] == "1_2"
    assert os.path.samefile(project.logs / ".arrays" / "1" / "2", project.logs / "2")


def test_one_run_is_no_array(slurm_stub: Slurm) -> None:
    slurm_stub.submit("", "seed=1")
    assert jobs(slurm_stub.project) == ["1"]
    assert slurm_stub.scripts() == [str(slurm_stub.project.at().script)]


def test_the_sites_largest_array_is_not_exceeded(slurm_stub: Slurm) -> None:
    slurm_stub.limit(max_array=3)  # numbers up to 2
    slurm_stub.submit("", "seed=1,2,3,4,5")
    assert slurm_stub.tasks() == {"1": 2, "2": 2, "3": 1}
    assert jobs(slurm_stub.project) == ["1_1", "1_2", "2_1", "2_2", "3"]


def test_the_second_array_is_refused(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(max_array=3)
    done = slurm_stub.submit("ok refuse ok", "seed=1,2,3,4,5", code=3)
    assert "nosuch" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"3 refused, submit again: mlxjobs requeue 3-5 --logs {project.logs}"
    )
    assert "Traceback" not in done.stderr
    assert statuses(project) == ["SUBMITTED", "SUBMITTED", "FAILED", "FAILED", "FAILED"]
    assert "invalid partition" in str(project.state(5).reason)
    assert sorted(os.listdir(project.logs / ".arrays")) == ["1"]
    # nothing is lost: they go out again, as arrays
    done = project.mlxjobs("requeue", "3-5")
    assert done.stdout.splitlines() == [
        f"run {log_id} is submitted again (job {job})" for log_id, job in [(3, "2_1"), (4, "2_2"), (5, "3")]
    ]
    assert statuses(project) == ["SUBMITTED"] * 5


@pytest.mark.parametrize("mode", ["hang", "timeout", "killed", "mute"])
def test_nobody_heard_the_answer(slurm_stub: Slurm, mode: str) -> None:
    project = slurm_stub.project
    write(project, {"main.py": IMPATIENT + MAIN})
    # it went through: submitted once, and found by the path of the array's script
    slurm_stub.submit(f"{mode}-taken", "seed=1,2")
    assert jobs(project) == ["1_1", "1_2"]
    # it did not
    done = slurm_stub.submit(f"{mode}-lost", "seed=1,2", code=3)
    assert "the scheduler did not take the job" in done.stderr
    assert statuses(project) == ["SUBMITTED", "SUBMITTED", "FAILED", "FAILED"]
    # nobody knows: it is said, not tried again, and its jobs would find all they need
    (slurm_stub.folder / "down").touch()
    done = slurm_stub.submit(f"{mode}-taken", "seed=1,2", code=3)
    assert "nobody knows whether the job was taken" in done.stderr
    assert slurm_stub.tasks() == {"1": 2, "2": 2}
    run_task(slurm_stub, "2", 1)
    assert project.state(5).status is RunStatus.COMPLETE


def test_a_submission_is_interrupted(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(max_array=2)
    done = slurm_stub.submit("ok interrupt ok", "seed=1,2,3", code=130)
    assert done.stderr.splitlines()[-1] == "mlxjobs: interrupted"
    assert "Traceback" not in done.stderr
    assert statuses(project) == ["SUBMITTED", "FAILED", "FAILED"]
    assert project.state(2).reason == "interrupted while it was submitted"
    slurm_stub.submit("ok", "mlxpy.logger.forced_log_id=2")  # and it can be submitted again
    assert project.state(2).status is RunStatus.SUBMITTED


def test_a_submission_is_killed(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(max_array=3)
    slurm_stub.submit("ok kill", "seed=1,2,3", code=-9)
    assert [row.split()[:2] for row in project.mlxjobs("ls").stdout.splitlines()[1:]] == [
        ["1", "SUBMITTED"],
        ["2", "SUBMITTED"],
        ["3", "FAILED"],
    ]
    assert project.state(3).reason == "its submission was interrupted: the process is gone"
    assert "job 2" in project.mlxjobs("requeue", "3").stdout


@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGKILL", -9)])
def test_a_sweep_is_interrupted_while_its_runs_are_made(slurm_stub: Slurm, how: str, code: int) -> None:
    project = slurm_stub.project
    patch = (
        "import os, signal, mlxjobs.code.provenance as p\n"
        "configuration = p.configuration\n"
        "def stopped(run):\n"
        f"    run.log_id == 3 and os.kill(os.getpid(), signal.{how})\n"
        "    return configuration(run)\n"
        "p.configuration = stopped\n"
    )
    write(project, {"main.py": patch + MAIN})
    slurm_stub.submit("", "seed=range(4)", code=code)
    assert project.at(3).path.exists() is (how == "SIGKILL")
    listed = project.mlxjobs("ls").stdout
    assert listed.count("its submission was interrupted: the process is gone") == 2, listed
    project.mlxjobs("requeue", "1-2")
    assert statuses(project)[:2] == ["SUBMITTED"] * 2


def test_the_users_share_of_the_queue_is_filled_and_the_rest_waits(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(room=5)
    write(project, {"main.py": IMPATIENT + MAIN})
    done = slurm_stub.submit("", "seed=range(8)")
    assert "5 submitted to SLURMScheduler" in done.stdout
    assert "runs 6-8 wait" in done.stderr
    assert slurm_stub.tasks() == {"1": 4, "2": 1}
    assert statuses(project) == ["SUBMITTED"] * 5 + ["WAITING"] * 3
    assert "AssocMaxSubmitJobLimit" in str(project.state(6).reason)
    assert "WAITING" in project.mlxjobs("ls").stdout
    # a run that ends finds no room, as its own job is still there
    run_task(slurm_stub, "1", 1)
    assert statuses(project)[5:] == ["WAITING"] * 3
    # one that ends after another has left
    slurm_stub.end("1")
    done = run_task(slurm_stub, "2")
    assert statuses(project)[5:] == ["SUBMITTED"] * 3
    assert jobs(project)[5:] == ["3_1", "3_2", "3_3"]
    assert "mlxjobs: run 6, which waited, is job 3_1" in done.stderr
    assert os.listdir(project.logs / ".waiting") == [".lock"]


def test_what_waits_can_be_handed_in_and_cancelled_by_hand(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(room=2)
    slurm_stub.submit("", "seed=range(5)")
    out = project.mlxjobs("requeue", "3").stdout
    assert out.startswith("run 3 waits: the scheduler refused the job: sbatch: sbatch: error: AssocMaxSubmit")
    assert project.mlxjobs("cancel", "4").stdout == "run 4 is cancelled\n"
    slurm_stub.limit()
    done = project.mlxjobs("requeue", "3-5")
    assert jobs(project) == ["1_1", "1_2", "2_1", "2_2", "2_3"], done.stdout
    assert statuses(project) == ["SUBMITTED"] * 5  # the cancelled one too, as its user says so


def test_a_cancelled_run_is_not_fed(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(room=2)
    slurm_stub.submit("", "seed=range(4)")
    project.mlxjobs("cancel", "3")
    slurm_stub.limit()
    run_task(slurm_stub, "1", 1)
    assert statuses(project) == ["COMPLETE", "SUBMITTED", "CANCELLED", "SUBMITTED"]
    assert slurm_stub.tasks() == {"1": 2, "2": 1}


def test_waiting_runs_that_are_gone_or_damaged_do_not_keep_the_others(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(room=2)
    slurm_stub.submit("", "seed=range(8)")
    gone, damaged, incomplete = (project.at(log_id) for log_id in (3, 4, 5))
    shutil.rmtree(gone.path)
    (damaged.history_dir / "0002.json").write_text("{}")
    (incomplete.metadata / "mlxpy.yaml").unlink()
    slurm_stub.limit()
    out = project.mlxjobs("requeue", "5", "6", code=2)
    assert "logs/5/metadata/mlxpy.yaml is missing" in out.stderr
    done = run_task(slurm_stub, "1", 1)
    assert [project.state(log_id).status.value for log_id in (1, 6, 7, 8)] == ["COMPLETE"] + ["SUBMITTED"] * 3
    assert names(project.logs / ".waiting") == [".lock", "4", "5"]
    for lost in (damaged, incomplete):
        assert f"run {lost.log_id}, which waits, cannot be handed in: {lost.metadata}" in done.stderr


def test_a_run_that_is_refused_for_what_it_would_run_hands_in_others(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(room=2)
    slurm_stub.submit("", "seed=range(4)", "+mlxpy.version_manager.strict=true")
    frozen = project.at(1).stored
    frozen.write_text(frozen.read_text().replace("seed: 0", "seed: 9"))
    slurm_stub.limit()
    run_task(slurm_stub, "1", 1, code=2)
    assert statuses(project) == ["FAILED", "SUBMITTED", "SUBMITTED", "SUBMITTED"]


def test_where_nothing_can_be_submitted_what_waits_goes_on_waiting(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.limit(room=2)
    slurm_stub.submit("", "seed=range(4)")
    slurm_stub.limit()
    (slurm_stub.folder / "sbatch").rename(slurm_stub.folder / "hidden")  # as on many a compute node
    project.env["PATH"] = f"{slurm_stub.folder}:{only_these(project, 'bash', 'cat', 'dirname', 'wc')}"
    run_task(slurm_stub, "1", 1)
    assert statuses(project) == ["COMPLETE", "SUBMITTED", "WAITING", "WAITING"]
    assert "'sbatch' was not found on the PATH" in str(project.state(3).reason)
    slurm_stub.answer("refuse")
    (slurm_stub.folder / "hidden").rename(slurm_stub.folder / "sbatch")
    project.env["PATH"] = f"{slurm_stub.folder}:{os.environ['PATH']}"
    run_task(slurm_stub, "1", 2)
    assert statuses(project) == ["COMPLETE", "COMPLETE", "WAITING", "WAITING"]
    assert "invalid partition" in str(project.state(4).reason)


def test_ctrl_c_waits_until_what_was_taken_is_on_record(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    # sbatch is done, and Ctrl-C comes while the first of its jobs is recorded
    patch = (
        "import os, signal, mlxjobs.jobs.arrays as a\n"
        "accept = a.record_submitted\n"
        "def slowly(run, *more):\n"
        "    run.log_id == 1 and os.kill(os.getpid(), signal.SIGINT)\n"
        "    accept(run, *more)\n"
        "a.record_submitted = slowly\n"
    )
    write(project, {"main.py": patch + MAIN})
    slurm_stub.limit(max_array=3)
    slurm_stub.submit("", "seed=1,2,3", code=130)
    assert statuses(project) == ["SUBMITTED", "SUBMITTED", "FAILED"]
    assert jobs(project) == ["1_1", "1_2", None]


def test_no_room_for_a_single_one_is_an_error(slurm_stub: Slurm) -> None:
    slurm_stub.limit(room=0)
    done = slurm_stub.submit("", "seed=1,2", code=3)
    assert "AssocMaxSubmitJobLimit" in done.stderr  # nothing of it runs, so nothing would hand the rest in
    assert statuses(slurm_stub.project) == ["FAILED", "FAILED"]


def test_many_are_cancelled_by_one_command(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.submit("", "seed=1,2,3")
    done = project.mlxjobs("cancel", "1-3")
    assert done.stdout.splitlines() == [f"run {n} is cancelled (job 1_{n})" for n in (1, 2, 3)]
    assert (slurm_stub.folder / "cancelled").read_text() == "1_1 1_2 1_3\n"
    assert statuses(project) == ["CANCELLED"] * 3


def test_sweeps_submitted_at_once_do_not_meet(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    slurm_stub.answer("")
    command = [project.python, "main.py", "mlxpy.use_scheduler=true", "mlxpy.scheduler.name=SLURMScheduler"]
    processes = [
        subprocess.Popen(
            [*command, "seed=range(20)"], cwd=project.folder, env=project.env, stdout=subprocess.DEVNULL
        )
        for _ in range(3)
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert statuses(project) == ["SUBMITTED"] * 60
    arrays = project.logs / ".arrays"
    linked = [os.readlink(path) for path in arrays.glob("*/*") if path.is_symlink()]
    assert sorted(linked) == sorted(f"../../{n}" for n in range(1, 61))


def test_a_sweep_beside_runs_that_were_there_before(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    project.run("num_epoch=1")
    (project.logs / "3").mkdir()
    slurm_stub.submit("", "seed=1,2,3")
    assert runs(project) == [1, 3, 4, 5, 6]
    assert jobs(project)[2:] == ["1_1", "1_2", "1_3"]


def test_what_is_wrong_is_found_before_anything_is_made(slurm_stub: Slurm) -> None:
    done = slurm_stub.submit("", "seed=1,2", "mlxpy.scheduler.option_cmd='--time=1 --mem=2G'", code=2)
    assert_one_message(done, "holds several options")
    assert not slurm_stub.project.logs.exists()


def test_an_answer_that_cannot_be_read_is_a_doubt_and_no_traceback(
    slurm_stub: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = slurm_stub.project
    slurm_stub.submit("", "seed=1")

    def fail(self: object, output: str) -> dict[str, object]:
        raise ValueError("no JSON")

    monkeypatch.setenv("PATH", project.env["PATH"])
    monkeypatch.setattr("mlxjobs.schedulers.slurm.SLURMScheduler.parse_status", fail)
    (seen,) = look_at_runs(project.logs)
    assert "SLURMScheduler does not understand the answer of squeue: no JSON" in str(seen.doubt)
