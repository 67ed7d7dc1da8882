"""Attempts of one run on several nodes, in any order of calls and with any view: nothing is lost.

MLXJOBS_VIEWS=20000 has pytest try as many interleavings in each test, and others each time. A plan that
failed can be played again: `play(folder, Plan(...), NFS)`.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlxjobs.errors import CheckpointNotFoundError, MLXJobsError
from mlxjobs.jobs import attempt as attempts
from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.record import fence
from mlxjobs.record.fence import Superseded
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system.seals import open_json
from tests.record.two_views import Plan, Process, Server, Turn, World, install

EPOCHS = 4
SAVED = (0, 2)  # after these epochs there is a checkpoint
LOCAL = Server(caches=False)
NFS = Server()
SSHFS = Server(handles=False, remembered_s=20)
NO_LINKS = Server(links=False)

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="pathlib kept functions of os of its own")


def curve(epochs: int) -> float:
    """The loss after so many epochs."""
    state = 1.0
    for epoch in range(epochs):
        state = 0.75 * state + 0.01 * epoch
    return state


class Fault(AssertionError):
    """What an interleaving must not come to."""


class Task:
    """The attempts of one run, and what they were told is on the disk.

    Attributes:
        run: the run.
        owed: marks of the metrics lines that must be found at the end.
        epoch: the epoch of the newest checkpoint that a later attempt must find; -1: none.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.run = Run(Path(world.root) / "1")
        self.owed: set[str] = set()
        self.epoch = -1
        self._begun = 0  # attempts that are about to be recorded: what older ones write then may be lost
        self._lines: dict[Process, set[str]] = {}
        self._saved: dict[Process, int] = {}

    def attempt(self, process: Process) -> None:
        """What one process does: the next attempt, as `jobs/attempt.py` goes about it."""
        self._lines[process], self._saved[process] = set(), -1
        before, after = self._begin(process)
        if before.status is RunStatus.COMPLETE:
            return
        number = process.attempt = len(after.attempts)
        process.superseded = number < self.world.newest
        with process.op("takes over"):
            own = attempts._fence(self.run, after)
        self.world.took_over(process)

        def resumed(checkpoint: Path) -> None:
            name = os.path.relpath(checkpoint, self.run.path)
            self.run.record(
                lambda state: {"event": "resumed", "attempt": number, "checkpoint": name}, paint=False
            )

        with process.op("makes its logger"):
            logger = DefaultLogger(
                self.run.path, fence=own, unfinished=bool(before.attempts), resumed=resumed
            )
        try:
            self.run.record(lambda state: {"event": "running", "attempt": number}, paint=False)
            self._train(process, logger)
            with process.op("finish"):
                logger.finish()
            with process.op("records its end"):
                attempts._completed(self.run, number, logger)
        finally:
            with process.op("closes its logger"):
                logger.close()

    def _begin(self, process: Process) -> tuple[RunState, RunState]:
        before = RunState()

        def started(state: RunState) -> dict[str, Any] | None:
            nonlocal before
            before = state
            if state.status is RunStatus.COMPLETE:
                return None
            if any(old.pid == process.pid for old in state.attempts):
                raise Fault(f"{process.name} is told that the run is running already: in itself")
            for other in self._lines.keys() - {process}:
                self.owed |= self._lines[other]
                self.epoch = max(self.epoch, self._saved[other])
            self._begun = len(state.attempts) + 1
            return {
                "event": "started", "attempt": len(state.attempts) + 1, "host": process.node.name,
                "pid": process.pid, "facts": {},
            }  # fmt: skip

        with process.op("records started"):
            after = self.run.record(started, paint=False)
        return before, after

    def _train(self, process: Process, logger: DefaultLogger) -> None:
        last, state, least = -1, curve(0), self.epoch
        with process.op("load_checkpoint"):
            try:
                loaded = logger.load_checkpoint()
                last, state = loaded["epoch"], loaded["state"]
            except CheckpointNotFoundError:
                pass
        if not process.superseded and last < least:
            raise Fault(f"attempt {process.attempt} goes on from epoch {last}; {least} was saved before")
        if state != curve(last + 1):
            raise Fault(f"attempt {process.attempt} loaded {loaded}")
        for epoch in range(last + 1, EPOCHS):
            state = 0.75 * state + 0.01 * epoch
            self._log(process, logger, epoch, state, "train")
            if epoch % 2:
                self._log(process, logger, epoch, state, "val")
            with process.op(f"log_artifacts of epoch {epoch}"):
                logger.log_artifacts(f"{epoch} {state}", "notes", "text")
            if epoch in SAVED:
                with process.op(f"log_checkpoint of epoch {epoch}"):
                    logger.log_checkpoint({"epoch": epoch, "state": state})
                if process.attempt == self._begun:
                    self._saved[process] = epoch

    def _log(self, process: Process, logger: DefaultLogger, epoch: int, state: float, name: str) -> None:
        mark = f"{process.attempt}.{epoch}.{name}"
        with process.op(f"log_metrics {mark}"):
            logger.log_metrics({"epoch": epoch, "loss": state, "by": mark}, name)
        if process.attempt == self._begun:
            self._lines[process].add(mark)

    # -- what must be true at the end

    def check(self) -> None:
        """Raise unless all is there, once."""
        if self.world.faults:
            raise Fault(self.world.faults[0])
        for process in self.world.processes:
            if isinstance(process.error, Fault):
                raise process.error
            newest = process.attempt == max(process.attempt for process in self.world.processes)
            allowed = (Superseded,) if newest else (Superseded, OSError, MLXJobsError)
            if process.error is not None and not isinstance(process.error, allowed):
                what = f"{process.error!r} {process.where}".rstrip()
                raise Fault(f"{process.name}, attempt {process.attempt}, failed: {what}")
        self._check_events()
        for name, epochs in (("train", range(EPOCHS)), ("val", range(1, EPOCHS, 2))):
            found = [(row["epoch"], row["loss"]) for row in rows(self.run.metrics / f"{name}.json")]
            if found != [(epoch, curve(epoch + 1)) for epoch in epochs]:
                shown = [f"{row['epoch']} by {row['by']}" for row in rows(self.run.metrics / f"{name}.json")]
                raise Fault(f"metrics/{name}.json has the epochs {shown}")
        kept = {row["by"] for path in self.run.metrics.rglob("*.json") for row in rows(path)}
        if lost := self.owed - kept:
            raise Fault(f"metrics lines are lost: {sorted(lost)}")
        self._check_artifacts()

    def _check_events(self) -> None:
        names = sorted(name for name in os.listdir(self.run.history_dir) if name[0] != ".")
        if names != [f"{number:04d}.json" for number in range(1, len(names) + 1)]:
            raise Fault(f"the events are {names}")
        for name in names:
            path = self.run.history_dir / name
            open_json(path.read_bytes())
            if name in self.world.events and path.stat().st_ino != self.world.events[name][1]:
                raise Fault(f"the event {name} is another one than was recorded")
        state = self.run.state()
        pids = [attempt.pid for attempt in state.attempts]
        if len(set(pids)) < len(pids):
            raise Fault(f"a process is two attempts: {pids}")
        if state.status is not RunStatus.COMPLETE:
            raise Fault(f"the run is {state.status} {state.reason or ''}")

    def _check_artifacts(self) -> None:
        path = self.run.artifacts / "Checkpoint" / "checkpoint.pkl"
        loaded = pickle.loads(path.read_bytes())
        if loaded != {"epoch": SAVED[-1], "state": curve(SAVED[-1] + 1)}:
            raise Fault(f"the last checkpoint is {loaded}")
        notes = (self.run.artifacts / "text" / "notes").read_text()
        if notes != f"{EPOCHS - 1} {curve(EPOCHS)}":
            raise Fault(f"the artifact is {notes!r}")


def rows(path: Path) -> list[Any]:
    if not path.exists() or path.name.startswith("."):
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # of a process that was killed while it wrote
            continue
        if "by" in row:
            found.append(row)
    return found


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A folder in memory, if there is one."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="views", dir=parent))
    yield folder
    shutil.rmtree(folder)


def play(root: Path, plan: Plan, server: Server, act: Callable[[World], None] | None = None) -> World:
    """Play one interleaving, and check what it came to.

    Raises:
        Fault: it did not come well; its notes show how.
    """
    world = World(root, plan, server)
    task = Task(world)
    Run.create(root, 1).record(lambda state: {"event": "created", "facts": {}, "status": None}, paint=False)
    for node in plan.nodes:
        world.begin(task.attempt, node)
    try:
        world.play()
        if task.run.state().status is not RunStatus.COMPLETE and not any(
            process.error for process in world.processes if process.attempt == len(task.run.state().attempts)
        ):
            world.begin(task.attempt, 8).turn(None)  # nobody is left: it is started once more
        task.check()
    except Fault as fault:
        fault.add_note(f"{plan}\n{world.text()}")
        raise
    finally:
        world.close()
        shutil.rmtree(root / "1", ignore_errors=True)
    return world


_MORE = int(os.environ.get("MLXJOBS_VIEWS", "0"))


def trying(count: int) -> settings:
    """How many interleavings a test tries, always the same ones, unless more are asked for."""
    return settings(
        max_examples=_MORE or count,
        derandomize=not _MORE,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def turns(who: int) -> st.SearchStrategy[Turn]:
    most = 60 if who == 0 else 40
    return st.builds(
        Turn,
        who=st.just(who) if who < 2 else st.sampled_from([1, 2, 0]),
        requests=st.one_of(st.integers(0, most), st.integers(0, 5)),
        calls=st.one_of(st.just(0), st.integers(0, 8)),
        what=st.sampled_from(["run", "run", "run", "run", "look", "kill"]),
    )


def plans(*, old: bool = False, retold: bool = False) -> st.SearchStrategy[Plan]:
    first = st.builds(Turn, who=st.just(0), requests=st.integers(0, 110), calls=st.integers(0, 8))
    second = st.builds(Turn, who=st.just(1), requests=st.integers(0, 40), calls=st.integers(0, 8))
    look = st.just(Turn(1, what="look"))
    begin = st.one_of(st.tuples(first, second), st.tuples(turns(0), look, turns(0), second))
    more = st.one_of(st.lists(turns(2), max_size=6), st.tuples(turns(0), turns(1), turns(0), turns(2)))
    none: st.SearchStrategy[frozenset[int]] = st.just(frozenset())
    return st.builds(
        Plan,
        turns=st.builds(lambda one, two: (*one, *two), begin, more),
        nodes=st.sampled_from([(0, 1, 2), (0, 1, 0), (0, 0, 1)]),
        old=st.sampled_from([False, True, True, True]) if old else st.just(False),
        except_at=st.frozensets(st.integers(0, 30), max_size=4) if old else none,
        retold=st.frozensets(st.integers(0, 120), min_size=1, max_size=2) if retold else none,
    )


@pytest.fixture(autouse=True)
def _views(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch)


@given(plan=plans())
@trying(50)
def test_on_a_disk_of_this_machine(disk: Path, plan: Plan) -> None:
    play(disk, plan, LOCAL)


@given(plan=plans(old=True))
@trying(110)
def test_where_nodes_remember_names_and_sizes(disk: Path, plan: Plan) -> None:
    play(disk, plan, NFS)


@given(plan=plans(old=True))
@trying(50)
def test_where_open_gives_old_sizes_too(disk: Path, plan: Plan) -> None:
    with mock.patch.object(fence, "remembers_s", return_value=21.0):  # which it reads off the mounts
        play(disk, plan, SSHFS)


@given(plan=plans(retold=True))
@trying(80)
def test_where_requests_are_done_but_told_as_failed(disk: Path, plan: Plan) -> None:
    play(disk, plan, LOCAL)


@given(plan=plans(old=True))
@trying(50)
def test_without_hard_links(disk: Path, plan: Plan) -> None:
    play(disk, plan, NO_LINKS)


def test_an_attempt_removes_what_was_kept_for_it_while_a_newer_one_looks_at_that(disk: Path) -> None:
    turns = (Turn(0), Turn(1, what="look"), Turn(0, 47), Turn(1, 34, 1), Turn(1), Turn(1), Turn(1, 32))
    play(disk, Plan((*turns, Turn(2, 25, 2), Turn(1, 5)), nodes=(0, 1, 2)), NFS)


# -- the model itself


@pytest.mark.parametrize(("server", "opened"), [(NFS, b"one two"), (SSHFS, b"one"), (LOCAL, b"one two")])
def test_model_remembers_sizes(disk: Path, server: Server, opened: bytes) -> None:
    path = disk / "1" / "file"
    seen: list[Any] = []

    def write(process: Process) -> None:
        with open(path, "ab", buffering=0) as file:
            file.write(b"one")
            file.write(b" two")

    def look(process: Process) -> None:
        seen.append(path.stat().st_size)
        seen.append(path.stat().st_size)
        seen.append(path.read_bytes())

    watch(disk, Plan((Turn(0, 2), Turn(1, 0, 1), Turn(0, 1), Turn(1, 0, 9)), old=True), server, write, look)
    assert seen == [3, 3 if server.caches else 7, opened]


def test_model_remembers_what_is_missing_until_the_folder_is_opened(disk: Path) -> None:
    path = disk / "1" / "file"
    seen: list[Any] = []

    def create(process: Process) -> None:
        path.touch()

    def look(process: Process) -> None:
        seen.extend([path.exists(), path.exists(), os.listdir(path.parent), path.exists()])

    watch(disk, Plan((Turn(1, 0, 1), Turn(0, 2), Turn(1, 0, 9)), old=True), NFS, create, look)
    assert seen == [False, False, ["file"], True]


def test_model_follows_a_handle_to_a_folder_that_was_renamed_but_not_to_one_that_is_gone(disk: Path) -> None:
    folder = disk / "1" / "folder"

    def put(process: Process) -> None:
        folder.mkdir()
        (folder / "file").touch()
        with pytest.raises(FileNotFoundError):
            (folder / "another").touch()

    def take(process: Process) -> None:
        folder.rename(folder.with_name("gone"))
        os.unlink(folder.with_name("gone") / "file")
        os.rmdir(folder.with_name("gone"))

    world = watch(disk, Plan((Turn(0, 1), Turn(1, 1), Turn(0, 2), Turn(1, 9)), old=True), NFS, put, take)
    assert [process.error for process in world.processes] == [None, None]


def test_model_loses_the_buffers_of_who_is_killed_and_tells_requests_as_failed(disk: Path) -> None:
    path = disk / "1" / "file"

    def write(process: Process) -> None:
        with open(path, "wb") as file:
            file.write(b"lost")
            os.stat(path)

    def move(process: Process) -> None:
        with pytest.raises(FileNotFoundError):
            path.rename(path.with_name("moved"))

    plan = Plan((Turn(0, 1, 1, "kill"), Turn(1, 9)), retold=frozenset({0}))
    watch(disk, plan, LOCAL, write, move, after=lambda: os.listdir(path.parent) == ["moved"])


def watch(
    root: Path,
    plan: Plan,
    server: Server,
    *acts: Callable[[Process], None],
    after: Callable[[], bool] = lambda: True,
) -> World:
    """Let processes do something in a folder that is empty, each on its node."""
    (root / "1").mkdir()
    world = World(root, plan, server)
    for node, act in enumerate(acts):
        world.begin(act, node)
    try:
        world.play()
        assert after()
        assert [process.error for process in world.processes] == [None] * len(acts)
    finally:
        world.close()
        shutil.rmtree(root / "1")
    return world
