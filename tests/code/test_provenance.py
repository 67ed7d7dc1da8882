"""A run says whether it executed what was submitted; tried with real editable installs of the project."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlxpy import Reader

from mlxjobs.code import provenance
from mlxjobs.record.fence import Superseded
from mlxjobs.record.history import Preempted, RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system import seals
from tests.project import Project, await_value

# The user's modules are imported before ours, as most programs have it.
MAIN = """
import importlib, os
import model, extra
import mlxpy

if os.environ.get("EARLY"):
    importlib.import_module(os.environ["EARLY"])

@mlxpy.launch(config_path="./configs")
def train(ctx):
    print("code", model.VALUE, extra.VALUE, "lr", ctx.config.lr)
    if os.environ.get("LATE"):
        importlib.import_module(os.environ["LATE"])
    if os.environ.get("FAIL"):
        raise ValueError("as asked")

if __name__ == "__main__":
    train()
"""
SETUP = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
FILES = {
    # installed by a path in a .pth file
    "pyproject.toml": SETUP + '[project]\nname = "model"\nversion = "1"\n'
    '[tool.setuptools]\npy-modules = ["model"]\npackage-dir = {"" = "src"}\n',
    "src/model.py": "VALUE = 'committed'\n",
    # installed by a finder, which has the one package under its own name, and the other under another
    "tools/pyproject.toml": SETUP + '[project]\nname = "extra"\nversion = "1"\n'
    '[tool.setuptools]\npackages = ["extra", "odd"]\npackage-dir = {odd = "lib_odd"}\n',
    "tools/extra/__init__.py": "VALUE = 'committed'\n",
    "tools/lib_odd/__init__.py": "",
}
VM = "+mlxpy.use_version_manager=true"
STRICT = "+mlxpy.version_manager.strict=true"
LOCAL = ("+mlxpy.use_scheduler=true", "+mlxpy.scheduler.name=LocalScheduler")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose packages are installed as editable, and edited after the last commit."""
    top = tmp_path_factory.mktemp("editable")
    project = Project(top / "proj", MAIN, "lr: 1\n")
    for name, text in FILES.items():
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / name).write_text(text)
    venv = project.folder / ".venv"  # as many have it: what is there is no code of the project
    seed = ("--no-download", "--no-periodic-update", "--setuptools=bundle", f"--app-data={top / 'data'}")
    _check(sys.executable, "-m", "virtualenv", "--quiet", *seed, str(venv))
    site = next(venv.glob("lib/python*/site-packages"))
    (site / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (site / "fakelib-1.0.dist-info").mkdir()
    project.python = str(venv / "bin" / "python")
    pip = (project.python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    _check(*pip, "--no-build-isolation", "-e", str(project.folder), "-e", str(project.folder / "tools"))
    assert list(site.glob("__editable___extra*finder.py"))  # the other kind is there too
    project.commit()
    for name in ("src/model.py", "tools/extra/__init__.py"):
        (project.folder / name).write_text("VALUE = 'edited'\n")
    return project


def _check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def project(installed: Project) -> Iterator[Project]:
    """That project without runs."""
    (installed.folder / "configs" / "mlxpy.yaml").unlink(missing_ok=True)
    yield installed
    shutil.rmtree(installed.logs, ignore_errors=True)


def info_at_end(project: Project, attempts: int = 1) -> dict[str, Any]:
    """What `info.yaml` says of run 1 once it has ended; it is painted after its last event is there."""
    project.await_status("COMPLETE", "FAILED", attempts=attempts)

    def painted() -> dict[str, Any] | None:
        info: dict[str, Any] = project.info()
        ended = info["status"] in ("COMPLETE", "FAILED") and len(info["attempts"]) >= attempts
        return info if ended else None

    info = await_value(painted, "info.yaml to say the end")
    assert info is not None
    return info


def code_of(project: Project) -> str:
    """What the newest attempt of a job said of the code that it imported."""
    return project.stdout().splitlines()[-1].removeprefix("code ").partition(" lr")[0]


def in_queue(project: Project, *arguments: str) -> Path:
    """Submit a run whose job does not begin before a file is there, and return that."""
    go = project.folder.parent / "begin"
    go.unlink(missing_ok=True)
    wait = f"+mlxpy.scheduler.env_cmd='while [ ! -e {go} ]; do sleep 0.02; done'"
    project.run(*LOCAL, wait, *arguments)
    return go


# ---- the code ----


def test_a_job_imports_its_snapshot_though_the_project_is_installed_as_editable(project: Project) -> None:
    project.run(*LOCAL, VM)

    info = info_at_end(project)
    assert code_of(project) == "committed committed"
    assert info["tainted"] == []
    snapshot = info["version_manager"]["snapshot"]
    line = f"export PYTHONPATH={snapshot}/src:{snapshot}/tools"
    assert line in project.at().script.read_text()


def test_so_does_a_local_run(project: Project) -> None:
    assert "code committed committed" in project.run(VM).stdout
    assert project.info()["tainted"] == []


def test_a_module_of_the_live_folder_taints_the_run(project: Project) -> None:
    done = project.run(VM, env={"EARLY": "odd"})

    live = str(project.folder / "tools" / "lib_odd" / "__init__.py")
    assert (project.info()["status"], project.info()["tainted"]) == ("COMPLETE", [live])
    assert done.stderr.count("run 1 is tainted") == 1
    assert live in done.stderr
    assert f"tainted: {live}" in project.mlxjobs("ls").stdout
    project.run()
    assert [row["info.log_id"] for row in Reader(str(project.logs)).filter("info.tainted")] == [1]
    assert [row["info.log_id"] for row in Reader(str(project.logs)).filter("~info.tainted")] == [2]


def test_what_is_linked_into_the_snapshot_is_no_taint(project: Project) -> None:
    (project.folder / "data").mkdir(exist_ok=True)
    (project.folder / "data" / "shapes.py").write_text("")

    project.run(VM, "+mlxpy.version_manager.link=data", env={"LATE": "data.shapes"})

    assert project.info()["tainted"] == []


def test_a_strict_run_is_refused_before_the_task_is_called(project: Project) -> None:
    project.run(*LOCAL, VM, STRICT, env={"EARLY": "odd"})

    info = info_at_end(project)
    assert info["status"] == "FAILED"
    assert "is not started" in info["reason"]
    assert "lib_odd" in info["reason"]
    assert "version_manager.strict" in info["reason"]
    assert "code" not in project.stdout()
    assert "Traceback" not in project.stderr()


def test_what_the_task_imports_is_found_at_its_end(project: Project) -> None:
    live = str(project.folder / "tools" / "lib_odd" / "__init__.py")

    project.run(VM, env={"LATE": "odd"})
    project.run(VM, code=1, env={"LATE": "odd", "FAIL": "1"})
    done = project.run(VM, STRICT, code=2, env={"LATE": "odd"})

    again = project.run(VM, STRICT, "+mlxpy.logger.forced_log_id=2", code=2)  # its results are what they are

    assert "run 2 is not started" in again.stderr
    assert [project.info(n)["status"] for n in (1, 2, 3)] == ["COMPLETE", "FAILED", "FAILED"]
    assert [project.info(n)["tainted"] for n in (1, 2, 3)] == [[live]] * 3
    assert "ValueError" in project.info(2)["attempts"][0]["reason"]
    assert "does not count as complete" in project.info(3)["reason"]
    assert "Traceback" not in done.stderr


def test_a_run_of_a_snapshot_that_is_started_by_hand_from_the_live_folder_is_tainted(
    project: Project,
) -> None:
    project.run(VM)

    project.run("+mlxpy.logger.forced_log_id=1")

    assert str(project.folder / "main.py") in project.info()["tainted"]


# ---- the configuration ----


def edit(path: Path, before: str, after: str) -> None:
    """Change a file of a run as somebody does who mends its checksum too."""
    text = path.read_text().rpartition("# crc32")[0]
    assert before in text
    path.write_text(seals.seal_yaml(text.replace(before, after)))


@pytest.mark.parametrize("strict", [False, True])
def test_a_configuration_that_was_edited_in_the_queue(project: Project, *, strict: bool) -> None:
    go = in_queue(project, f"+mlxpy.version_manager.strict={strict}")
    frozen = project.at().stored
    edit(frozen, "lr: 1", "lr: 9")
    go.touch()

    info = info_at_end(project)

    if strict:
        assert info["status"] == "FAILED"
        assert f"{frozen} was changed" in info["reason"]
        assert "code" not in project.stdout()
    else:
        assert info["status"] == "COMPLETE"
        assert info["tainted"] == [f"{frozen} was changed"]


def test_settings_that_were_edited_while_the_task_ran(project: Project) -> None:
    path = project.logs / "1" / "metadata" / "mlxpy.yaml"
    (project.folder / "meddle.py").write_text(f"open({str(path)!r}, 'a').write('# hm')\n")

    project.run(env={"LATE": "meddle", "PYTHONPATH": str(project.folder)})

    assert project.info()["tainted"] == [f"{path} was changed"]


def test_what_is_changed_on_purpose_is_no_taint(project: Project) -> None:
    project.run()
    project.run("+mlxpy.logger.forced_log_id=1", "lr=3", STRICT)
    project.run(*LOCAL, "+mlxpy.logger.forced_log_id=1", "lr=4")

    info = info_at_end(project, attempts=3)
    assert "lr 4" in project.stdout()
    assert (info["status"], info["tainted"]) == ("COMPLETE", [])


def test_a_run_that_is_submitted_again_says_what_it_runs_now(project: Project) -> None:
    project.run(VM)
    assert project.info()["version_manager"]["commit_hash"]

    project.run(*LOCAL, "+mlxpy.logger.forced_log_id=1", "+mlxpy.use_version_manager=false")

    info = info_at_end(project, attempts=2)
    assert code_of(project) == "edited edited"
    assert (info["version_manager"], info["tainted"]) == (None, [])


# ---- the environment ----


def test_what_was_installed_while_the_job_was_in_the_queue(project: Project) -> None:
    go = in_queue(project)
    site = next(Path(project.python).parents[1].glob("lib/python*/site-packages"))
    (site / "fakelib-1.0.dist-info").rename(site / "fakelib-2.0.dist-info")
    go.touch()

    info = info_at_end(project)

    (site / "fakelib-2.0.dist-info").rename(site / "fakelib-1.0.dist-info")
    assert info["tainted"] == ["fakelib 1.0 -> 2.0"]


def test_another_interpreter(project: Project) -> None:
    project.run()

    project.command(
        sys.executable, "-c", RUN, "+mlxpy.logger.forced_log_id=1", env={"PYTHONPATH": "src:tools"}
    )

    assert f"prefix {Path(project.python).parents[1]} -> {sys.prefix}" in project.info()["tainted"]


RUN = "import runpy, sys; sys.argv[0] = 'main.py'; runpy.run_path('main.py', run_name='__main__')"


def test_what_cannot_be_checked_is_said_and_no_failure(project: Project) -> None:
    too_long = "/" + 300 * "x"  # listing it is an error for root too

    done = project.run(VM, STRICT, env={"PYTHONPATH": too_long})

    assert "distributions are not noted" in done.stderr
    assert too_long in done.stderr
    assert (project.info()["status"], project.info()["tainted"]) == ("COMPLETE", [])


ODD = """
import os, sys, types
import mlxpy

os.makedirs(b"site/od\\xffd-1.dist-info", exist_ok=True)
sys.path += [None, b"bytes", os.path.abspath("site")]  # of which python passes over the first two

@mlxpy.launch(config_path="./configs")
def train(ctx):
    for name, file in {(5, "/site-packages/x.py"), ("odd", "a\\0b/c.py")}:
        sys.modules[name] = types.ModuleType("odd")
        sys.modules[name].__file__ = file

train()
"""


def test_whatever_a_program_does_to_its_imports_it_completes(tmp_path: Path) -> None:
    project = Project(tmp_path / "proj", ODD, "lr: 1\n")
    project.commit()
    done = project.run(VM, "+mlxpy.interactive_mode=false")
    assert "run 1: where it imports from is not checked: ValueError: embedded null byte" in done.stderr
    assert (project.info()["status"], project.info()["tainted"]) == ("COMPLETE", [])


# ---- how an attempt leaves ----


@pytest.mark.parametrize(("left", "told"), [(Preempted(RunStatus.PREEMPTED, "x"), 1), (Superseded("x"), 0)])
def test_an_attempt_that_is_to_come_back_looks_too(tmp_path: Path, left: BaseException, told: int) -> None:
    run = Run.create(tmp_path)
    run.store_configuration("a: 1\n", {"version_manager": {"strict": True}})
    run.record(lambda state: {"event": "started", "attempt": 1, "frozen": provenance.note_all(run)})
    proof = provenance.Proof(run, run.state(), strict=True)
    proof.begin()

    def attempt() -> None:
        with proof:
            run.stored.write_text("a: 2\n")
            raise left

    with pytest.raises(type(left)):
        attempt()

    assert len(run.state().tainted) == told
    with pytest.raises(provenance.Refused):
        provenance.Proof(run, run.state(), strict=True).begin()
