"""The main job on the local queue: submitted, preempted, killed, resumed, cancelled."""

import os
import signal
import sys
from pathlib import Path

import pytest

from mlxjobs.record.history import RunStatus
from mlxjobs.record.run import Run
from tests.project import MAIN, Project, assert_whole, await_value


def start(project: Project, *arguments: str) -> None:
    """Submit a run and stop it in the middle of epoch 2."""
    project.let_pass(2)
    project.submit(*arguments)
    project.await_epoch(2)


def test_a_sweep_is_submitted_and_the_prompt_is_back(project: Project) -> None:
    project.let_pass(0)  # no epoch can end, so the command cannot have waited for one
    done = project.submit("optimizer.lr=0.1,0.2")
    assert "run 1: job 1  optimizer.lr=0.1" in done.stdout
    assert "run 2: job 2  optimizer.lr=0.2" in done.stdout
    project.let_pass(10)
    for log_id, lr in ((1, 0.1), (2, 0.2)):
        state = project.await_status("COMPLETE", log_id=log_id)
        assert state.job_id == str(log_id)
        assert project.at(log_id).read_yaml("config")["optimizer"]["lr"] == lr
        assert f"Completed training with learning rate: {lr}" in project.stdout(log_id)
    assert sorted(path.name for path in project.folder.iterdir()) == ["configs", "logs", "main.py"]


def test_a_preempted_run_leaves_at_its_next_checkpoint_and_comes_back(project: Project) -> None:
    start(project)
    project.mlxjobs("preempt", "1")
    project.await_warning()
    project.let_pass(10)
    state = project.await_status("COMPLETE")
    assert_whole(project)
    assert [attempt.status for attempt in state.attempts] == [RunStatus.PREEMPTED, RunStatus.COMPLETE]
    assert state.attempts[1].resumed_from == "artifacts/Checkpoint/last_ckpt.pkl"
    # epoch 2 was finished and checkpointed before it left
    assert project.stdout().splitlines()[1].strip() == "Starting from epoch: 3"


def test_a_run_that_never_reaches_a_safe_point_comes_back_all_the_same(project: Project) -> None:
    project.env["MLXJOBS_LOCAL_GRACE"] = "0.5"
    start(project)
    project.mlxjobs("preempt", "1")  # epoch 2 does not end: it is killed
    project.await_status("RUNNING", attempts=2)
    project.let_pass(10)
    state = project.await_status("COMPLETE")
    assert_whole(project)
    assert project.stdout().splitlines()[1].strip() == "Starting from epoch: 2"
    assert state.attempts[0].status is RunStatus.PREEMPTED
    superseded = list((project.at().metrics / ".superseded").rglob("train.json"))
    assert [path.read_text() for path in superseded] == ['{"loss":72.9,"epoch":2}\n']


def test_the_time_limit_requeues_the_run(project: Project) -> None:
    project.env["MLXJOBS_LOCAL_GRACE"] = "30"
    start(project, "mlxpy.scheduler.option_cmd=['--time=0:12']")
    project.await_warning()
    project.let_pass(10)
    state = project.await_status("COMPLETE", attempts=2)
    assert_whole(project)
    assert state.attempts[0].reason == "TIME_LIMIT at epoch 2, requeued 1 of 100"


def test_kill_9_and_a_requeue(project: Project) -> None:
    start(project)
    attempt = project.state().attempt
    assert attempt is not None
    assert attempt.pid is not None
    os.kill(attempt.pid, signal.SIGKILL)
    await_value(lambda: "FAILED" in project.queue("status"), "the end of the job")
    assert "FAILED" in project.mlxjobs("ls").stdout  # not RUNNING for ever
    project.mlxjobs("requeue", "1")
    project.let_pass(10)
    project.await_status("COMPLETE", attempts=2)
    assert_whole(project)


def test_a_cancelled_run_stays_down(project: Project) -> None:
    start(project)
    project.mlxjobs("cancel", "1")
    project.let_pass(10)
    project.queue("wait", "--timeout", "120", "1")
    assert project.state().status is RunStatus.CANCELLED
    assert len(project.state().attempts) == 1
    assert "CANCELLED" in project.mlxjobs("ls").stdout


def test_a_waiting_run_can_be_cancelled(project: Project) -> None:
    project.env["MLXJOBS_LOCAL_JOBS"] = "1"
    start(project, "seed=1,2")
    assert project.state(2).status is RunStatus.SUBMITTED
    project.mlxjobs("cancel", "2")
    project.let_pass(10)
    project.await_status("COMPLETE", log_id=1)
    project.queue("wait", "--timeout", "120")
    assert project.state(2).status is RunStatus.CANCELLED
    assert not project.state(2).attempts


def test_max_requeues_stops_a_run(project: Project) -> None:
    start(project, "+mlxpy.scheduler.max_requeues=1")
    for attempts in (1, 2):
        project.await_status("RUNNING", attempts=attempts)
        project.await_epoch(attempts + 1)
        project.mlxjobs("preempt", "1")
        project.await_warning()
        project.let_pass(attempts + 2)
    state = project.await_status("FAILED", attempts=3)
    assert state.reason == "stopped and requeued 2 times, scheduler.max_requeues is 1"


def test_code_and_configuration_are_frozen_while_the_job_waits(project: Project) -> None:
    commit = project.commit()
    project.env["MLXJOBS_LOCAL_JOBS"] = "0"  # nothing starts
    project.submit("optimizer.lr=0.1", "mlxpy.use_version_manager=true")
    (project.folder / "main.py").write_text("raise SystemExit('edited')\n")
    (project.folder / "configs" / "config.yaml").write_text("num_epoch: 0\n")
    (project.folder / "configs" / "mlxpy.yaml").write_text("nonsense: 1\n")
    project.env["MLXJOBS_LOCAL_JOBS"] = "1"
    project.queue("status")
    project.queue("wait", "--timeout", "120")
    project.await_status("COMPLETE")
    assert_whole(project)
    info = project.info()
    assert info["version_manager"]["commit_hash"] == commit
    assert info["work_dir"] == str(project.folder / ".workdir" / "project" / commit)


NO_CHECKPOINT = MAIN.replace("logger.log_checkpoint", "dict").replace("logger.load_checkpoint()", "[][0]")


def test_a_folder_that_is_a_program_runs_here_and_in_jobs_from_a_snapshot(tmp_path: Path) -> None:
    project = Project(tmp_path / "proj")
    app = project.folder / "app"
    app.mkdir()
    (app / "part.py").write_text("WORD = 'committed'\n")
    (app / "__main__.py").write_text(
        "import mlxpy, part\n@mlxpy.launch(config_path='../configs')\ndef f(ctx): print(part.WORD)\nf()\n"
    )
    project.commit()
    (app / "part.py").write_text("WORD = 'edited'\n")
    frozen = (project.python, "app", "+mlxpy.use_version_manager=true", "+mlxpy.interactive_mode=false")
    assert project.command(*frozen).stdout == "committed\n"
    project.command(*frozen, "+mlxpy.use_scheduler=true", "+mlxpy.scheduler.name=LocalScheduler")
    project.await_status("COMPLETE", log_id=2)
    assert "committed\n" in project.stdout(2)
    assert project.info(1)["tainted"] == project.info(2)["tainted"] == []


def test_a_task_that_never_checkpoints_starts_again_and_says_so(tmp_path: Path, project: Project) -> None:
    (project.folder / "main.py").write_text(NO_CHECKPOINT)
    project.env["MLXJOBS_LOCAL_GRACE"] = "0.2"
    start(project)
    project.mlxjobs("preempt", "1")
    project.await_status("RUNNING", attempts=2)
    project.let_pass(10)
    project.await_status("COMPLETE", attempts=2)
    assert_whole(project)
    assert "from scratch" in project.stderr()


def test_a_logger_says_that_it_is_preempted_and_calls_back(project: Project) -> None:
    main = MAIN.replace(
        "        wait_for_leave(epoch, logger)",
        "        logger.on_preemption(lambda: print('bye', flush=True)) if epoch == 0 else None\n"
        "        wait_for_leave(epoch, logger)\n"
        "        print('preempted', logger.preempted, flush=True)",
    )
    (project.folder / "main.py").write_text(main)
    start(project)
    project.mlxjobs("preempt", "1")
    project.await_warning()
    project.let_pass(10)
    project.await_status("COMPLETE")
    lines = [line.strip() for line in project.stdout().splitlines()]
    first = lines[: lines.index("Starting from epoch: 3")]
    assert first == ["Starting from epoch: 0", "preempted False", "preempted False", "preempted True", "bye"]


LOOKS = """
import signal, sys, time
import mlxpy

@mlxpy.launch(config_path='./configs')
def train(ctx):
    LEAVES
    try:
        epoch = ctx.logger.load_checkpoint()
    except FileNotFoundError:
        epoch = 0
        ctx.logger.log_checkpoint(1)
    ctx.logger.log_metrics({"epoch": epoch}, log_name="train")
    while not epoch and not (HAS_TO_LEAVE):
        time.sleep(0.01)

train()
"""


@pytest.mark.parametrize(
    ("leaves", "has_to_leave"),
    [
        ("", "ctx.logger.preempted"),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))", "False"),
    ],
    ids=["returns", "exits"],
)
def test_a_task_that_ends_because_of_a_warning_is_not_complete(
    project: Project, leaves: str, has_to_leave: str
) -> None:
    text = LOOKS.replace("LEAVES", leaves).replace("HAS_TO_LEAVE", has_to_leave)
    (project.folder / "main.py").write_text(text)
    project.submit()
    project.await_epoch(0)
    project.mlxjobs("preempt", "1")
    state = project.await_status("COMPLETE", attempts=2)
    assert state.attempts[0].status == "PREEMPTED"
    assert project.epochs() == [1]


def test_a_task_that_ends_because_of_a_warning_and_may_not_come_back_has_failed(project: Project) -> None:
    text = LOOKS.replace("LEAVES", "").replace("HAS_TO_LEAVE", "ctx.logger.preempted")
    (project.folder / "main.py").write_text(text)
    project.submit("mlxpy.scheduler.max_requeues=0", "mlxpy.scheduler.option_cmd=['--time=0:0:3']")
    state = project.await_status("FAILED", "CANCELLED", "COMPLETE")
    assert state.status == "CANCELLED"


def test_the_current_folder_is_no_place_for_the_modules_of_the_queue(
    project: Project, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    (here / "mlxjobs").mkdir(parents=True)
    (here / "mlxjobs" / "__init__.py").touch()
    (here / "select.py").write_text("raise SystemExit('a program of the user')\n")
    arguments = ("mlxpy.use_scheduler=true", "mlxpy.scheduler.name=LocalScheduler", "num_epoch=1")
    project.command(project.python, str(project.folder / "main.py"), *arguments, cwd=here)
    project.queue("wait")
    command = str(Path(sys.executable).with_name("mlxjobs"))
    assert "COMPLETE" in project.command(command, "ls", cwd=here).stdout


SUBMITS = """
import pathlib, subprocess, sys, time
import mlxpy

def await_file(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.02)

@mlxpy.launch()
def train(ctx: mlxpy.Context) -> None:
    if ctx.config.seed == 0:
        scheduler = ["mlxpy.use_scheduler=true", "mlxpy.scheduler.name=LocalScheduler"]
        subprocess.run([sys.executable, "main.py", "seed=1", *scheduler], check=True)
        await_file("begun")
    else:
        pathlib.Path("begun").touch()
        await_file("end")

if __name__ == "__main__":
    train()
"""


def test_a_run_that_a_job_submits_outlives_that_job(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", main=SUBMITS)
    project.submit("seed=0")
    project.await_status("COMPLETE")
    project.queue("wait", "1")
    (project.folder / "end").touch()
    project.queue("wait")
    assert len(project.state(2).attempts) == 1


def test_the_script_can_be_run_again_by_hand(project: Project) -> None:
    project.submit()
    project.await_status("COMPLETE")
    project.queue("wait", "--timeout", "120")
    done = project.command(str(project.at().script))
    assert done.stdout.splitlines()[0].strip() == "Starting from epoch: 5"
    assert_whole(project)


@pytest.mark.parametrize("again", ["submit", "run"])
def test_a_run_that_is_running_cannot_be_started_twice(project: Project, again: str) -> None:
    start(project)
    arguments = ["+mlxpy.logger.forced_log_id=1"]
    done = (project.submit if again == "submit" else project.run)(*arguments, code=2)
    assert "run 1 is running on" in done.stderr
    assert len(project.state().attempts) == 1
    project.let_pass(10)
    project.await_status("COMPLETE")
    assert_whole(project)


def test_a_run_that_waits_cannot_be_submitted_twice(project: Project) -> None:
    project.env["MLXJOBS_LOCAL_JOBS"] = "0"
    project.submit()
    done = project.submit("+mlxpy.logger.forced_log_id=1", code=2)
    assert "run 1 waits in the queue as job 1" in done.stderr
    assert len(project.queue("status").splitlines()) == 1


def test_a_job_in_the_queue_of_another_machine_is_not_looked_for_here(project: Project) -> None:
    """A log directory on a shared disk: each machine has a local queue of its own, and each has a job 1."""
    name = "import os, socket\nif 'FAR' in os.environ: socket.gethostname = lambda: 'far'\n"
    (project.folder / "main.py").write_text(name + MAIN)
    far = {"FAR": "1", "MLXJOBS_LOCAL_DIR": str(project.folder / "far"), "MLXJOBS_LOCAL_JOBS": "0"}
    project.submit(env=far)
    project.submit("num_epoch=1")
    project.queue("wait", "1")
    words = "job 1 is in a queue of the machine far, which cannot be asked from here"
    assert words in project.mlxjobs("ls").stderr
    assert project.state(1).status is RunStatus.SUBMITTED
    assert words in project.mlxjobs("requeue", "1", code=2).stderr
    # whoever knows that it is gone says so
    assert words in project.mlxjobs("cancel", "1").stdout
    assert project.state(1).status is RunStatus.CANCELLED
    assert project.state(2).status is RunStatus.COMPLETE
    assert "run 1 is submitted again (job 2)" in project.mlxjobs("requeue", "1").stdout


def test_a_run_that_was_moved_is_not_taken_for_the_one_that_has_its_place(project: Project) -> None:
    project.submit("num_epoch=1", "optimizer.lr=zero")
    project.await_status("FAILED")
    old = project.logs.rename(project.folder / "old-logs")
    project.run("num_epoch=1")
    done = project.mlxjobs("requeue", "1", "--logs", "old-logs", code=2)
    project.queue("wait")
    assert len(project.state(1).attempts) == 1
    assert f"run 1 was moved: its script starts {project.logs / '1'}" in done.stderr
    # the program writes it anew, and then it can be requeued as any other
    project.submit("mlxpy.logger.forced_log_id=1", f"mlxpy.logger.parent_log_dir={old}")
    project.queue("wait")
    assert [len(Run(logs / "1").state().attempts) for logs in (project.logs, old)] == [1, 2]
    assert "submitted again" in project.mlxjobs("requeue", "1", "--logs", "old-logs").stdout


def test_a_failed_run_can_be_submitted_again_and_goes_on(project: Project) -> None:
    broken = MAIN.replace("wait_for_leave(epoch, logger)\n        logger", "1 / (2 - epoch)\n        logger")
    (project.folder / "main.py").write_text(broken)
    project.submit()
    state = project.await_status("FAILED")
    assert state.reason == "ZeroDivisionError: division by zero"
    project.queue("wait", "--timeout", "120")
    assert "Traceback (most recent call last)" in project.stderr()
    (project.folder / "main.py").write_text(MAIN)
    project.submit("+mlxpy.logger.forced_log_id=1")
    project.await_status("COMPLETE", attempts=2)
    assert_whole(project)
