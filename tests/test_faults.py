"""Whatever fails at whatever moment, a run goes on from its last checkpoint, and its files say what is so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from datetime import datetime, timedelta
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mlxjobs.cluster.cluster import Cluster
from mlxjobs.config.secrets import Shown
from mlxjobs.config.settings import Settings
from mlxjobs.config_dict import ConfigDict
from mlxjobs.jobs import hand_in
from mlxjobs.jobs.attempt import Execution
from mlxjobs.jobs.context import Context
from mlxjobs.jobs.failure import TaskFailed
from mlxjobs.jobs.look import look_at_runs
from mlxjobs.local import queue as localqueue
from mlxjobs.local.state import open_queue
from mlxjobs.reader.reader import Reader
from mlxjobs.record.history import RunState, RunStatus, iso
from mlxjobs.record.run import Run
from mlxjobs.schedulers import local
from mlxjobs.system import shell
from mlxjobs.system.console import errors_told
from mlxjobs.system.seals import open_json, seal_json
from tests.faulty import NEED_ROOM, Calls, full_at, killed_at, vanishing_at
from tests.project import Project, await_value
from tests.run_trees import write_run

EPOCHS = 3
CURVE = [{"epoch": epoch, "loss": 0.5 ** (epoch + 1)} for epoch in range(EPOCHS)]


# thousands of calls are flushed to the disk, so better in memory where that can be
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def task(context: Context) -> None:
    """The document's program, with an artifact."""
    logger = context.logger
    assert logger is not None
    try:
        checkpoint = logger.load_checkpoint()
        first, loss = checkpoint["epoch"] + 1, checkpoint["loss"]
    except Exception:
        first, loss = 0, 1.0
    for epoch in range(first, EPOCHS):
        loss = loss / 2
        logger.log_metrics({"epoch": epoch, "loss": loss}, "train")
        if epoch == context.config.dies_in:
            os._exit(9)
        logger.log_artifacts(f"epoch {epoch}", "notes.txt", "text")
        logger.log_checkpoint({"epoch": epoch, "loss": loss}, "last")


def attempt(run: Run, *, dies_in: int = -1) -> None:
    """Make the next attempt of a run, as a program that was started again does."""
    config = ConfigDict({"dies_in": dies_in})
    Execution(task, config, Settings(), Shown(config.to_dict()), facts={}).execute(run)


def in_child(act: Callable[[], None], calls: Calls | None, words: Path) -> int:
    """Do something in a process of its own, with these faults; return its exit code, negative if killed."""
    pid = os.fork()
    if pid == 0:
        code = 0
        os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            if calls is not None:
                calls.install(pytest.MonkeyPatch())
            with errors_told():
                act()
        except TaskFailed:
            code = 1
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 99
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def half_done(logs: Path) -> Run:
    """A run that was killed between the metrics and the checkpoint of its second epoch."""
    run = Run.create(logs)
    run.store_configuration("dies_in: -1\n", Settings().to_dict())
    run.record(lambda state: {"event": "created", "facts": {}})
    assert in_child(lambda: attempt(run, dies_in=1), None, logs / "words") == 9
    assert len(lines(run)) == 2
    return run


def lines(run: Run) -> list[Any]:
    return [json.loads(line) for line in (run.metrics / "train.json").read_bytes().splitlines()]


def assert_truthful(run: Run) -> RunState:
    """Whoever looks is told the same by everybody, and COMPLETE only where it is; returns the state."""
    told = Reader(run.path.parent).filter("")[0]["info.status"]
    assert told == run.state().status, "the Reader, before anybody has looked"
    (seen,) = look_at_runs(run.path.parent)
    assert seen.doubt is None
    assert seen.state.status in (RunStatus.COMPLETE, RunStatus.FAILED)
    assert run.read_yaml("info")["status"] == seen.state.status
    if seen.state.status is RunStatus.COMPLETE:
        assert_whole(run)
    return seen.state


def assert_whole(run: Run) -> None:
    assert run.state().status is RunStatus.COMPLETE
    assert lines(run) == CURVE
    assert (run.artifacts / "text" / "notes.txt").read_text() == f"epoch {EPOCHS - 1}"
    assert Reader(run.path.parent).filter("")[0]["train.loss"] == [line["loss"] for line in CURVE]


def each_point(folder: Path) -> Iterator[tuple[int, str, Run]]:
    """Each call of the attempt that follows, by its number and name, with a half done run for it."""
    before = half_done(folder / "before")
    for point, name in enumerate(undisturbed(lambda: attempt(before), folder), 1):
        logs = folder / str(point)
        shutil.copytree(before.path, logs / "1")
        yield point, name, Run(logs / "1")
        shutil.rmtree(logs)


def undisturbed(act: Callable[[], None], folder: Path) -> list[str]:
    """The names of the calls of something, which is undone."""
    calls, names = full_at(0), folder / "names"
    shutil.copytree(folder / "before", folder / "aside")

    def record() -> None:
        act()
        names.write_text("\n".join(calls.done))

    assert in_child(record, calls, folder / "words") == 0
    shutil.rmtree(folder / "before")
    (folder / "aside").rename(folder / "before")
    return names.read_text().split()


def kill_everywhere(folder: Path) -> None:
    for point, name, run in each_point(folder):
        assert in_child(partial(attempt, run), killed_at(point), folder / "words") == -signal.SIGKILL
        try:
            if assert_truthful(run).status is not RunStatus.COMPLETE:
                attempt(run)
            assert_whole(run)
        except BaseException as error:
            raise AssertionError(f"killed at call {point}, {name}") from error


def fill_everywhere(folder: Path, until: int) -> None:
    for point, name, run in each_point(folder):
        if name not in NEED_ROOM:
            continue
        code = in_child(partial(attempt, run), full_at(point, until=until), folder / "words")
        words = (folder / "words").read_text()
        try:
            state = assert_truthful(run)
            if code:
                assert code in (1, 2)
                assert "No space left on device" in words or "the disk is full" in words
                assert str(run.path) in words
            else:
                assert state.status is RunStatus.COMPLETE
            if state.status is not RunStatus.COMPLETE:
                attempt(run)
            assert_whole(run)
        except BaseException as error:
            raise AssertionError(f"full at call {point}, {name}: {words}") from error


def by_itself(function: str, *arguments: object) -> None:
    """Call `function(folder, *arguments)` in a process without threads, so that it can fork."""
    words = ", ".join(map(repr, arguments))
    code = f"from tests.test_faults import *; {function}(Path(sys.argv[1]), {words})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with TemporaryDirectory(dir=MEMORY) as folder:
        command = [sys.executable, "-W", "error", "-c", code, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_run_that_is_killed_at_any_call_goes_on_and_is_exact() -> None:
    by_itself("kill_everywhere")


@pytest.mark.parametrize("until", [1, 10**9], ids=["for a moment", "until somebody makes room"])
def test_a_run_whose_disk_is_full_at_any_call_says_so_and_goes_on_and_is_exact(until: int) -> None:
    by_itself("fill_everywhere", until)


# --- while it is submitted


def queue_in_here(argv: Sequence[str], **options: object) -> shell.Result:
    """Run a command of the local queue in this process, whose calls so are those that fail."""
    start = len(local.QUEUE)
    assert list(argv[:start]) == local.QUEUE
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = localqueue.main(list(argv[start:]))
    return shell.Result(code, out.getvalue(), err.getvalue())


def submit(run: Run) -> None:
    hand_in.hand_in(run, Cluster("mlxjobs.schedulers.local:LocalScheduler"))


def not_submitted(folder: Path) -> Run:
    """A run with a script, and an empty queue that starts nothing."""
    os.environ.update(MLXJOBS_LOCAL_DIR=str(folder / "queue"), MLXJOBS_LOCAL_JOBS="0")
    shell.run = queue_in_here
    shutil.rmtree(folder / "queue", ignore_errors=True)
    run = Run.create(folder / "logs")
    run.store_configuration("{}", Settings().to_dict())
    run.script.write_text("#!/bin/sh\nexit\n")
    run.record(lambda state: {"event": "created", "facts": {}})
    return run


def jobs() -> dict[int, bytes]:
    """The jobs in the queue, and their scripts."""
    queue = open_queue(os.environ)
    return {number: (queue.directory(number) / "script").read_bytes() for number in queue.scan()}


def assert_submitted_or_not(run: Run) -> None:
    """The run says what became of its submission, and can be submitted again if it is not in the queue."""
    (seen,) = look_at_runs(run.path.parent, [run.log_id])
    assert seen.doubt is None
    queued = jobs()
    assert set(queued.values()) <= {run.script.read_bytes()}
    assert len(queued) <= 1
    if seen.state.status is RunStatus.SUBMITTED:
        assert [str(job) for job in queued] == [seen.state.job_id]
        return
    assert seen.state.sequence == 1 or seen.state.status is RunStatus.FAILED
    submit(run)
    (seen,) = look_at_runs(run.path.parent, [run.log_id])
    assert seen.state.status is RunStatus.SUBMITTED
    assert int(seen.state.job_id or 0) == max(jobs())


def break_submissions(folder: Path, how: str) -> None:
    run, calls, names = not_submitted(folder), full_at(0), folder / "names"

    def record() -> None:
        submit(run)
        names.write_text("\n".join(calls.done))

    assert in_child(record, calls, folder / "words") == 0
    for point, name in enumerate(names.read_text().split(), 1):
        run = not_submitted(folder)
        broken = killed_at(point) if how == "kill" else full_at(point, until=1 if how == "once" else 10**9)
        code = in_child(partial(submit, run), broken, folder / "words")
        try:
            assert how != "kill" or code == -signal.SIGKILL
            assert code != 99
            assert_submitted_or_not(run)
        except BaseException as error:
            words = (folder / "words").read_text()
            raise AssertionError(f"{how} at call {point}, {name}: {code} {words}") from error


@pytest.mark.parametrize("how", ["kill", "once", "full"])
def test_a_submission_that_is_broken_at_any_call_is_seen_and_can_be_made_again(how: str) -> None:
    by_itself("break_submissions", how)


# --- a disk that is really full


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Fill a disk to its last byte; return the file that does."""
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@needs_root
def test_a_job_whose_disk_is_full_goes_on_when_there_is_room(project: Project, disk: Path) -> None:
    project.logs = disk / "logs"
    project.let_pass(2)
    project.submit(f"+mlxpy.logger.parent_log_dir={project.logs}")
    project.await_epoch(2)
    filler = fill(disk)
    project.let_pass(10)
    await_value(lambda: "|FAILED|" in project.queue("status"), "the end of the job")
    shown = project.mlxjobs("ls", str(project.logs))
    assert "FAILED" in shown.stdout
    assert "that it is FAILED cannot be recorded" in shown.stderr
    assert "No space left on device" in shown.stderr
    filler.unlink()
    assert "FAILED" in project.mlxjobs("ls", str(project.logs)).stdout
    project.mlxjobs("requeue", "1", "--logs", str(project.logs))
    project.await_status("COMPLETE")
    assert project.epochs() == [0, 1, 2, 3, 4]
    assert project.losses() == pytest.approx([100 * 0.9 ** (epoch + 1) for epoch in range(5)])


@needs_root
def test_a_local_queue_whose_disk_is_full_loses_no_job(project: Project, disk: Path) -> None:
    project.env["MLXJOBS_LOCAL_DIR"] = str(disk / "queue")
    project.logs = disk / "logs"
    project.let_pass(2)
    project.submit(f"+mlxpy.logger.parent_log_dir={project.logs}")
    project.await_epoch(2)
    filler = fill(disk)
    process = project.state().attempts[0].pid
    project.let_pass(10)
    await_value(lambda: not Path(f"/proc/{process}").exists(), "the end of the job")
    refused = project.submit(f"+mlxpy.logger.parent_log_dir={project.folder / 'other'}", code=3)
    assert "No space left on device" in refused.stderr
    filler.unlink()
    project.mlxjobs("ls", str(project.logs))
    if project.state().status is RunStatus.FAILED:  # else its worker could not record that, and it came back
        project.mlxjobs("requeue", "1", "--logs", str(project.logs))
    project.await_status("COMPLETE")
    assert project.epochs() == [0, 1, 2, 3, 4]


@needs_root
def test_a_snapshot_that_does_not_fit_is_one_message_and_is_made_later(project: Project, disk: Path) -> None:
    (project.folder / "data.txt").write_text("x" * 100_000)
    project.commit()
    snapshots = disk / "snapshots"
    arguments = ("+mlxpy.use_version_manager=true", f"+mlxpy.version_manager.parent_work_dir={snapshots}")
    filler = fill(disk)
    words = project.run(*arguments, code=2).stderr
    assert "No space left on device" in words
    assert "Traceback" not in words
    filler.unlink()
    project.run(*arguments)
    assert project.epochs() == [0, 1, 2, 3, 4]
    assert [path.stat().st_size for path in snapshots.rglob("data.txt")] == [100_000]


def test_a_full_disk_keeps_nobody_from_reading(tmp_path: Path) -> None:
    write_run(tmp_path, 1, {"lr": 0.1})
    read = f"""
import resource
from mlxjobs.reader.reader import Reader
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
reader = Reader({str(tmp_path)!r})
print(reader.filter("config.lr == 0.1")[0]["train.loss"])
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    out = subprocess.run([sys.executable, "-c", read], env=environment, stdout=subprocess.PIPE, check=True)
    assert out.stdout == b"[1.0, 0.5, 0.25]\n"
    assert Reader(tmp_path).filter("config.lr == 0.1")[0]["train.loss"] == [1.0, 0.5, 0.25]


# --- the log directory is removed, moved, or somebody else's


def running(project: Project) -> subprocess.Popen[str]:
    """Start run 1 by hand, and stop it in its third epoch."""
    project.let_pass(2)
    started = subprocess.Popen(
        [project.python, "main.py"], cwd=project.folder, env=project.env, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    project.await_epoch(2)
    return started


@pytest.mark.parametrize("how", ["the run is removed", "the run is moved", "all runs are removed"])
def test_a_run_whose_directory_vanishes_ends_and_is_not_made_again(project: Project, how: str) -> None:
    process = running(project)
    gone = project.logs if how == "all runs are removed" else project.logs / "1"
    if how == "the run is moved":
        gone.rename(project.logs / "9")
    else:
        shutil.rmtree(gone)
    project.let_pass(10)
    words = process.communicate(timeout=120)[1]
    assert process.returncode == 72
    assert f"mlxjobs: {project.logs / '1'} is gone, removed or moved: attempt 1 has nothing" in words
    assert "Traceback" not in words
    assert not gone.exists()
    if how == "the run is moved":
        assert "killed at epoch 2: its process is gone" in project.mlxjobs("ls").stdout
        project.run("+mlxpy.logger.forced_log_id=9")
        assert project.epochs(9) == [0, 1, 2, 3, 4]
    elif how == "the run is removed":
        assert "no runs in" in project.mlxjobs("ls").stdout
    else:
        assert "no log directory at" in project.mlxjobs("ls", code=2).stderr


def test_a_job_whose_directory_vanishes_ends_and_leaves_the_others_alone(project: Project) -> None:
    project.let_pass(2)
    project.submit("optimizer.lr=0.1,0.01")
    for log_id in (1, 2):
        project.await_epoch(2, log_id)
    shutil.rmtree(project.logs / "1")
    project.let_pass(10)
    assert project.await_status("COMPLETE", log_id=2)
    assert project.epochs(2) == [0, 1, 2, 3, 4]
    await_value(lambda: "FAILED|exit code 72" in project.queue("status"), "the end of the job")
    assert not (project.logs / "1").exists()
    shown = project.mlxjobs("ls").stdout
    assert "COMPLETE" in shown
    assert "\n1 " not in shown


def shown_by_ls(logs: Path) -> list[str]:
    return [str(one.state.status) for one in look_at_runs(logs) if one.run.log_id == 2]


def shown_by_reader(logs: Path) -> list[str]:
    return [str(run["info.status"]) for run in Reader(logs).filter("") if run["info.log_id"] == 2]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("show", [shown_by_ls, shown_by_reader])
def test_a_run_that_vanishes_while_somebody_looks_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, show: Callable[[Path], list[str]]
) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        let_vanish(Path(folder), monkeypatch, show)


def let_vanish(folder: Path, monkeypatch: pytest.MonkeyPatch, show: Callable[[Path], list[str]]) -> None:
    before = folder / "before"
    half_done(before)
    attempt(half_done(before))
    for point in range(1, 1000):
        logs = folder / str(point)
        shutil.copytree(before, logs)
        with monkeypatch.context() as patch:
            reads = vanishing_at(point, logs / "1")
            reads.install(patch)
            assert show(logs) == ["COMPLETE"], point
        shutil.rmtree(logs)
        if len(reads.done) < point:
            break
    assert point > 20


def test_what_cannot_be_recorded_is_shown_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = half_done(tmp_path)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        full_at(1, until=10**9).install(patch)
        (seen,) = look_at_runs(tmp_path)
    assert seen.state.status is RunStatus.FAILED
    assert seen.state.reason == "killed at epoch 1: its process is gone"
    assert seen.doubt is not None
    assert "that it is FAILED cannot be recorded" in seen.doubt
    assert "No space left on device" in seen.doubt
    assert run.state().status is RunStatus.RUNNING
    assert assert_truthful(run).status is RunStatus.FAILED  # once there is room, it is


# --- the clock goes back


def test_a_clock_that_goes_back_changes_neither_the_order_nor_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = half_done(tmp_path)  # three hours ahead, as its files say too
    ahead = time.time() + 3 * 3600
    for path in [run.path, *run.path.rglob("*")]:
        os.utime(path, (ahead, ahead))
    for path in run.history_dir.iterdir():
        event, _ = open_json(path.read_bytes())
        event["time"] = iso(datetime.fromisoformat(event["time"]) + timedelta(hours=3))
        path.write_text(seal_json(event))
    reader = Reader(tmp_path)
    assert reader.filter("")[0]["info.status"] == "FAILED"
    attempt(run)
    assert_whole(run)
    first, second = run.state().attempts
    assert (first.number, second.number) == (1, 2)
    assert first.start > second.start
    assert second.resumed_from == "artifacts/Checkpoint/last.pkl"
    reader.refresh()
    assert reader.filter("")[0]["info.status"] == "COMPLETE"
    assert reader.filter("")[0]["train.loss.last"] == CURVE[-1]["loss"]
    assert look_at_runs(tmp_path)[0].state.status is RunStatus.COMPLETE
