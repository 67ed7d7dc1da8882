"""What earlier versions wrote goes on working: their pickles, runs, scripts, queues and commands.

Each folder beside this file was written by `make.py` with the version that it is named after, and is never
written again: what fails here fails for whoever wrote such files.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import mlxpy
import pytest

import mlxjobs
from tests.project import Project
from tests.slurm_stub import Slurm
from tests.stored.make import COUNT, PYTHON, packages
from tests.stored.objects import HOME, describe, public

VERSIONS = sorted(path.parent for path in Path(__file__).parent.glob("*/promises.json"))
PICKLES = [path for version in VERSIONS for path in sorted(version.glob("pickles/*.pkl"))]
POINTS = [(version, *point) for version in VERSIONS for point in json.loads(
    (version / "promises.json").read_text())["entry_points"]]  # fmt: skip
PLACE = str(Path(str(mlxjobs.__file__)).parents[1])


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def version(request: pytest.FixtureRequest) -> Path:
    """The folder of a version."""
    path: Path = request.param
    return path


@pytest.fixture
def promises(version: Path) -> dict[str, Any]:
    """What its processes and commands know by heart."""
    content: dict[str, Any] = json.loads((version / "promises.json").read_text())
    return content


def settle(path: Path, folder: Path) -> None:
    """Put this interpreter and a folder of here in the place of those that were stored."""
    text = path.read_text().replace(str(PYTHON), sys.executable)
    path.write_text(text.replace(str(HOME), str(folder)))


@pytest.fixture
def stored(version: Path, project: Project) -> Project:
    """Its project with its runs, as if they had been made here."""
    shutil.copytree(version / "project", project.folder, symlinks=True, dirs_exist_ok=True)
    for path in project.folder.glob("*.py.txt"):
        path.replace(path.with_suffix(""))
    for path in project.folder.rglob("script.sh"):
        settle(path, project.folder.parent)
    # what is made of what, by their times, which git does not keep
    for moment, made in enumerate((".history", "*.yaml", ".*.json")):
        for path in project.folder.rglob(f"metadata/{made}"):
            os.utime(path, (moment, moment))
    project.logs = project.folder / "runs"
    return project


@pytest.fixture
def queue(version: Path, stored: Project) -> Path:
    """Its state directory of the local queue, where the project looks for it."""
    folder = stored.folder.parent / "queue"
    shutil.copytree(version / "queue", folder)
    folder.chmod(0o700)
    for path in folder.glob("jobs/*/*"):
        settle(path, folder.parent)
    return folder


@pytest.fixture
def trainer(stored: Project, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of its program that pickles name."""
    spec = importlib.util.spec_from_file_location("trainer", stored.folder / "trainer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "trainer", module)
    return module


# -- pickles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PICKLES, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_a_pickle_is_what_it_was(path: Path) -> None:
    found = pickle.loads(path.read_bytes())
    said = json.loads(path.parent.with_suffix(".json").read_text())
    assert describe(found) == said[path.stem]
    imported = {one.__name__: one for one in public().values()}
    assert imported.get(type(found).__name__, type(found)) is type(found)


def test_a_name_that_was_pickled_is_what_users_import(version: Path) -> None:
    for name, one in pickle.loads((version / "pickles" / "public.pkl").read_bytes()).items():
        module, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(module), last) is one, name


# -- runs ---------------------------------------------------------------------------------------


def check_state(state: dict[str, Any], trainer: Any) -> None:
    """Check all that the program has put into its checkpoint."""
    context = state["context"]
    assert type(context) is mlxpy.Context
    assert type(context.config) is mlxpy.ConfigDict
    assert context.config.layers[1].units == 5
    assert context.logger is state["logger"] is state["trainer"].logger
    assert type(state["trainer"]) is trainer.Trainer
    assert state["trainer"].epoch == 3
    assert state["status"] is mlxpy.RunStatus.RUNNING
    assert type(state["error"]) is mlxpy.errors.InvalidKeyError
    assert str(state["error"]) == "lr"


def test_a_checkpoint_is_loaded_and_its_logger_goes_on(stored: Project, trainer: Any) -> None:
    gc.collect()  # else a logger of another test, which was of the same run, may still be there
    logger = mlxpy.DefaultLogger(stored.logs / "1")
    state = logger.load_checkpoint()
    check_state(state, trainer)
    assert state["logger"] is logger  # though the run is elsewhere now
    state["trainer"].logger.log_metrics({"loss": 0.2, "epoch": 4}, log_name="train")
    state["trainer"].save(more=1)
    assert logger.load_checkpoint()["more"] == 1
    logger.close()
    assert stored.epochs() == [0, 1, 2, 3, 4]


class Moved(pickle.Unpickler):
    """That of pickle, but that a run is where it was copied to."""

    def __init__(self, content: bytes, place: Path) -> None:
        super().__init__(io.BytesIO(content))
        self._place = str(place)

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if name != "_restore":
            return found
        return lambda cls, log_dir: found(cls, log_dir.replace(str(HOME), self._place))


def test_plain_pickle_loads_a_checkpoint_and_its_logger_goes_on(stored: Project, trainer: Any) -> None:
    path = stored.logs / "1" / "artifacts" / "Checkpoint" / "last_ckpt.pkl"
    state = Moved(path.read_bytes(), stored.folder.parent).load()
    check_state(state, trainer)
    assert type(state["logger"]) is mlxpy.DefaultLogger
    assert state["logger"].log_dir == str(stored.logs / "1")
    state["logger"].log_metrics({"loss": 0.2, "epoch": 4}, log_name="train")
    state["logger"].close()
    assert stored.epochs() == [0, 1, 2, 3, 4]


def test_a_run_that_failed_goes_on_with_each_step_once(stored: Project) -> None:
    assert stored.state(2).status is mlxpy.RunStatus.FAILED
    assert stored.epochs(2) == [0, 1, 2]  # the last one came after the checkpoint
    stored.run("+mlxpy.logger.forced_log_id=2", "+mlxpy.logger.parent_log_dir=./runs")
    state = stored.state(2)
    assert state.status is mlxpy.RunStatus.COMPLETE
    assert state.attempts[1].resumed_from == "artifacts/Checkpoint/last_ckpt.pkl"
    assert stored.epochs(2) == [0, 1, 2, 3]
    assert [path.name for path in (stored.logs / "2" / "metrics" / ".superseded").rglob("*.json")]


def test_the_reader_reads_the_runs(stored: Project, trainer: Any) -> None:
    # by the index as it was stored; by what is there; and by that alone
    for refresh, reload in ((False, False), (True, False), (True, True)):
        rows = mlxpy.Reader(stored.logs, refresh=refresh, reload=reload).filter("")
        assert [row["info.status"] for row in rows] == ["COMPLETE", "FAILED"]
        assert [row["config.layers"] for row in rows] == [[{"units": 3}, {"units": 5}]] * 2
        assert [row["train.epoch"] for row in rows] == [[0, 1, 2, 3], [0, 1, 2]]
    row = rows[0]
    check_state(row.load_checkpoint(), trainer)
    config, status = row.load_artifact("state.pkl", "pickle")
    assert (type(config), status) == (mlxpy.ConfigDict, mlxpy.RunStatus.COMPLETE)
    assert row.load_artifact("state.json", "json") == {"epoch": 3}
    assert row.load_artifact("weights", "NumpyArray")["weights"].tolist() == [1.0, 2.0]
    assert (stored.logs / "1" / "artifacts" / "Words" / "words.txt").read_text() == "a b"


# not in jobs, whose queue was that of another machine
@pytest.mark.parametrize("logs", ["runs", "arrays"])
def test_fsck_finds_nothing(stored: Project, slurm_stub: Slurm, logs: str) -> None:
    in_queue(slurm_stub, stored)
    done = stored.command(stored.python, "-m", "mlxjobs", "fsck", "--logs", str(stored.folder / logs))
    assert done.stdout == "nothing found\n"


# -- jobs ---------------------------------------------------------------------------------------


def in_queue(slurm: Slurm, stored: Project) -> str:
    """Have the stand-ins know the job of the stored array; return its script."""
    script = str(stored.folder / "arrays" / ".arrays" / "1" / "script.sh")
    (slurm.folder / "queue" / "7").write_text(f"{script}\n" * 2)
    return script


@pytest.mark.usefixtures("queue")
def test_a_queue_goes_on_with_the_jobs_that_waited(stored: Project) -> None:
    assert stored.command(
        stored.python, "-m", "mlxjobs.localqueue", "status", env={"MLXJOBS_LOCAL_JOBS": "0"}
    ).stdout == "1|PENDING||0|\n2|PENDING||0|\n"  # fmt: skip
    check_jobs_end(stored)


def check_jobs_end(stored: Project) -> None:
    """Wait for the jobs of the stored queue, and look at what their runs have become."""
    stored.logs = stored.folder / "jobs"
    stored.queue("wait", "--timeout", "120")
    assert stored.queue("status") == "1|COMPLETED|exit code 0|0|\n2|COMPLETED|exit code 0|0|\n"
    assert stored.stdout(1) == "rank 0 of 1\n"
    assert stored.stdout(2) == "rank 0 of 2\n"
    assert stored.at(2).output_of(1, 1).read_text() == "rank 1 of 2\n"
    for log_id in (1, 2):
        assert stored.state(log_id).status is mlxpy.RunStatus.COMPLETE
        assert stored.epochs(log_id) == [0, 1, 2, 3]


def test_a_worker_of_that_version_starts_one_of_this(
    stored: Project, queue: Path, promises: dict[str, Any]
) -> None:
    (queue / "slots").mkdir(exist_ok=True)
    slot = os.open(queue / "slots" / "0", os.O_RDWR | os.O_CREAT)
    fcntl.flock(slot, fcntl.LOCK_EX)
    command = [sys.executable, "-c", promises["worker"], PLACE, str(queue), str(slot)]
    subprocess.run(command, pass_fds=[slot], cwd=queue, env=stored.env, check=True, timeout=100)
    os.close(slot)
    check_jobs_end(stored)


@pytest.mark.usefixtures("queue")
def test_a_process_of_that_version_asks_the_queue(stored: Project, promises: dict[str, Any]) -> None:
    said = stored.command(stored.python, "-c", promises["queue"], PLACE, "status", "2").stdout
    assert said.startswith("2|")


@pytest.mark.parametrize("number", [1, 2])
def test_the_script_of_a_job_runs(stored: Project, number: int) -> None:
    stored.logs = stored.folder / "jobs"
    job = {"MLXJOBS_LOCAL_JOB_ID": str(number), "MLXJOBS_LOCAL_JOBS": "0"}
    done = stored.command("bash", str(stored.at(number).script), env=job)
    assert done.stdout == f"rank 0 of {number}\n"
    assert stored.state(number).status is mlxpy.RunStatus.COMPLETE
    assert stored.epochs(number) == [0, 1, 2, 3]


def test_the_tasks_of_an_array_run_and_hand_in_the_run_that_waited(
    stored: Project, slurm_stub: Slurm
) -> None:
    stored.logs = stored.folder / "arrays"
    assert stored.state(3).status is mlxpy.RunStatus.WAITING
    script = in_queue(slurm_stub, stored)
    for task in ("1", "2"):
        names = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": task}
        stored.command("bash", script, env=names)
    assert [stored.state(log_id).status.value for log_id in (1, 2, 3)] == ["COMPLETE"] * 2 + ["SUBMITTED"]
    job = str(stored.state(3).job_id)
    stored.command("bash", str(stored.at(3).script), env={"SLURM_JOB_ID": job})
    lr = [row["config.optimizer.lr"] for row in mlxpy.Reader(stored.logs).filter("info.status == 'COMPLETE'")]
    assert lr == [0.1, 0.2, 0.3]


# -- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "group", "name", "value"), POINTS)
def test_an_entry_point_of_an_older_installation_loads(
    version: Path, group: str, name: str, value: str
) -> None:
    assert callable(EntryPoint(name, value, group).load())


def test_importing_costs_no_more_than_it_did(promises: dict[str, Any]) -> None:
    """Every job pays for it. A package costs one module more, which is to hold nothing."""
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    ours, *others = done.stdout.split()
    before = promises["imports"]
    assert set(others) <= set(before["others"])
    assert int(ours) <= before["ours"] + max(0, len(packages()) - before["packages"])
