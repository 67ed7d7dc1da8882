"""Mistakes and bad luck: one clear message, the right exit code, and nothing half done."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxjobs.record.history import RunStatus
from tests.project import MAIN, Project, assert_one_message, finish, names, runs, write
from tests.slurm_stub import IMPATIENT, Slurm

# -- the scheduler's commands ---------------------------------------------------------------------


def test_sbatch_is_missing(project: Project) -> None:
    project.env["PATH"] = str(project.folder)
    done = project.run("mlxpy.use_scheduler=true", "mlxpy.scheduler.name=SLURMScheduler", code=3)
    assert_one_message(done, "SLURMScheduler needs sbatch, squeue, scontrol, scancel", "login node")
    assert names(project.folder) == ["configs", "main.py"]


def test_sbatch_refuses(slurm_stub: Slurm) -> None:
    done = slurm_stub.submit("refuse", code=3)
    assert_one_message(done, "run 1 (", "sbatch: error: invalid partition specified: nosuch")
    state = slurm_stub.project.state()
    assert state.status is RunStatus.FAILED
    assert "invalid partition" in str(state.reason)
    # the same run can be handed in again, once that is put right
    assert "run 1: job 1" in slurm_stub.submit("ok", "mlxpy.logger.forced_log_id=1").stdout
    assert slurm_stub.project.state().status is RunStatus.SUBMITTED
    assert slurm_stub.project.state().reason is None


@pytest.mark.parametrize("mode", ["hang", "timeout", "killed", "mute"])
def test_nobody_heard_the_answer(slurm_stub: Slurm, mode: str) -> None:
    write(slurm_stub.project, {"main.py": IMPATIENT + MAIN})
    # it went through: submitted once, and the id is found by the script's path
    assert "run 1: job 1" in slurm_stub.submit(f"{mode}-taken").stdout
    assert slurm_stub.project.state().job_id == "1"
    # it did not
    done = slurm_stub.submit(f"{mode}-lost", code=3)
    assert_one_message(done, "the scheduler did not take the job")
    assert slurm_stub.project.state(2).status is RunStatus.FAILED
    # nobody knows, and that is said
    (slurm_stub.folder / "down").touch()
    done = slurm_stub.submit(f"{mode}-taken", code=3)
    assert_one_message(done, "nobody knows whether the job was taken", "mlxjobs ls")
    assert len(slurm_stub.scripts()) == 2  # never twice


# -- what was typed or written in a settings file ---------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["mlxpy.scheduler.option_cmd='--time=1 --mem=2G'"],
            ["holds several options", "['--time=1', '--mem=2G']"],
        ),
        (
            ["mlxpy.scheduler.option_cmd=['']", "mlxpy.scheduler.shell_path=/no/bash"],
            ["'/no/bash' is not a program"],
        ),
        (["mlxpy.scheduler.option_cmd=[time]"], ["'time' is not an option"]),
        (["mlxpy.scheduler.shell_path=/tmp"], ["shell_path", "set it in configs/mlxpy.yaml"]),
        (["mlxpy.scheduler.name=LocalSheduler"], ["unknown scheduler", "did you mean LocalScheduler?"]),
        (["mlxpy.scheduler.name=mlxpy.SLURMSchedular"], ["did you mean SLURMScheduler?"]),
        (
            ["mlxpy.scheduler.name=my_app.Mine"],
            ["my_app:Mine cannot be imported", "No module named 'my_app'"],
        ),
        (["mlxpy.scheduler.name=pathlib.Path"], ["pathlib:Path is not a subclass of mlxpy.Scheduler"]),
        (
            ["mlxpy.scheduler.name=NoScheduler"],
            ["no scheduler is set", "configs/mlxpy.yaml", "LocalScheduler"],
        ),
        (["+mlxp.scheduler.nam=x"], ["the command line: unknown key 'scheduler.nam'", "'scheduler.name'"]),
        (["mlxpy.use_logger=3"], ["'use_logger' must be true or false, not 3"]),
        (["mlxpy.logger.parent_log_dir='~nobody.here/x'"], ["'~nobody.here/x' is in no home folder"]),
        (
            ["mlxpy.use_version_manager=true", "mlxpy.version_manager.parent_work_dir='~nobody.here/x'"],
            ["'~nobody.here/x' is in no home folder"],
        ),
        (["no_such_key=1"], ["Could not override 'no_such_key'", "+no_such_key=1"]),
        (["optimizer.lr=[1"], ["optimizer.lr=[1: no viable alternative at input '[1'"]),
        (["--config-name=nowhere"], ["Cannot find primary config 'nowhere'"]),
    ],
)
def test_a_wrong_command_line(project: Project, arguments: list[str], words: list[str]) -> None:
    project.run("--cfg", "job")
    before = names(project.folder)
    done = project.submit(*arguments, code=2)
    assert_one_message(done, *words)
    assert names(project.folder) == before == ["configs", "main.py"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"configs/mlxpy.yaml": "logger: [\n"}, ["configs/mlxpy.yaml: is not valid YAML"]),
        ({"configs/mlxpy.yaml": "use_sheduler: true\n"}, ["configs/mlxpy.yaml: unknown key 'use_sheduler'"]),
        ({"configs/mlxpy.yaml": "- 1\n"}, ["the whole must be a section"]),
        (
            {"configs/mlxpy.yaml": "logger: {parent_log_dir: 3}\n"},
            ["'logger.parent_log_dir' must be a string"],
        ),
        (
            {"configs/mlxpy.yaml": "secrets: 2023-99-99\n"},
            ["configs/mlxpy.yaml: is not valid YAML: month must"],
        ),
        ({"configs/config.yaml": "a: [1\nb: 2\n"}, ["configs/config.yaml", "line 2"]),
        ({"configs/config.yaml": 'a: ["\\ud83d\\ude00"]\n'}, ["the value of 'a.0' holds '\\ud83d'"]),
        ({"configs/config.yaml": "a: ${oc.env:BYTES}\n"}, ["the value of 'a' holds '\\udcff'"]),
        ({"configs/config.yaml": "defaults: [model: big]\n"}, ["Could not find 'model/big'"]),
        ({"configs/config.yaml": "a: ${nowhere}\n"}, ["Interpolation key 'nowhere' not found", "a"]),
    ],
)
def test_a_broken_file(project: Project, files: dict[str, str], words: list[str]) -> None:
    write(project, files)
    assert_one_message(project.run(code=2, env={"BYTES": os.fsdecode(b"\xff")}), *words)
    assert runs(project) == []


def test_there_is_no_standard_output(project: Project) -> None:
    command = f"exec {project.python} main.py nothing=1 >&-"
    assert_one_message(project.command("sh", "-c", command, code=2), "Could not override 'nothing'")


def test_the_current_folder_is_gone(project: Project) -> None:
    command = f"mkdir gone && cd gone && rmdir ../gone && exec {project.python} {project.folder / 'main.py'}"
    assert_one_message(project.command("sh", "-c", command, code=2), "the current folder was removed")


def test_a_configuration_that_only_the_job_cannot_resolve(project: Project) -> None:
    write(project, {"configs/config.yaml": "seed: ${oc.env:ONLY_HERE}\n"})
    project.submit("mlxpy.scheduler.env_cmd='unset ONLY_HERE'", env={"ONLY_HERE": "1"})
    finish(project, 1, "FAILED")
    assert "Environment variable 'ONLY_HERE' not found" in str(project.state().reason)
    project.queue("wait", "--timeout", "120")
    assert project.stderr().count("mlxjobs: error: the configuration cannot be resolved") == 1
    assert "Traceback" not in project.stderr()


def test_a_refused_start_leaves_a_running_run_alone(project: Project) -> None:
    project.let_pass(1)
    project.submit()
    project.await_epoch(1)
    before = {path: path.read_bytes() for path in project.at().metadata.glob(".frozen.yaml")}
    for start in (project.run, project.submit):
        done = start("mlxpy.logger.forced_log_id=1", "num_epoch=9", code=2)
        assert "run 1 is running on" in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    project.let_pass(10**6)
    finish(project)
    assert project.epochs() == [0, 1, 2, 3, 4]


# -- the code that should be frozen -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["no repository", "no commit", "bare"])
def test_there_is_no_version_to_freeze(project: Project, how: str) -> None:
    words = {
        "no repository": "is in no git repository",
        "no commit": "has no commit",
        "bare": "is bare",
    }[how]
    if how != "no repository":
        project.git("init", "--quiet", *(["--bare"] if how == "bare" else []))
    before = [*names(project.folder), *names(project.folder / "configs"), "mlxpy.yaml"]
    for start in (project.run, project.submit):
        assert_one_message(start("mlxpy.use_version_manager=true", code=2), words)
    assert [*names(project.folder), *names(project.folder / "configs")] == before


# -- places -----------------------------------------------------------------------------------------

ODD = [
    "a b 'c' \"d\" $HOME `id` %j %% #x;y&z (é日本) [w]*?~ {v} =u, @t !s",
    "new\nline",
    "-back\\slash ",
]


def test_names_that_are_no_text_are_told_and_a_branch_may_have_one(project: Project, tmp_path: Path) -> None:
    project.commit()
    project.git("checkout", "-q", "-b", os.fsdecode(b"odd\xff"))
    project.run("mlxpy.use_version_manager=true", "num_epoch=1")
    assert project.info()["version_manager"]["branch"] == "odd\N{REPLACEMENT CHARACTER}"
    odd = project.folder.rename(tmp_path / os.fsdecode(b"odd\xff"))
    (tmp_path / "link").symlink_to(odd)
    project.folder = tmp_path
    for path, words in (
        (odd, r"odd\xff/main.py' is not valid UTF-8"),
        (tmp_path / "link", r"odd\xff' is not valid UTF-8"),
    ):
        command = (project.python, str(path / "main.py"), "+mlxpy.use_version_manager=true")
        assert_one_message(project.command(*command, code=2), words)


@pytest.mark.parametrize("name", ODD)
def test_a_work_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    project = Project(tmp_path / name)
    project.commit()
    project.submit("mlxpy.use_version_manager=true", "num_epoch=1")
    finish(project)
    assert "Completed training" in project.stdout()
    assert str(project.folder) in project.info()["work_dir"]
    slurm_stub = Slurm(project)
    slurm_stub.submit("ok", "num_epoch=2")
    script = project.logs / "2" / "script.sh"
    project.command("bash", "-n", str(script))
    slurm_stub.end("1")
    done = project.command("bash", str(script))
    out = done.stdout or project.stdout(2)  # what Slurm cannot name, the script opens itself
    assert "Completed training" in out
    assert project.epochs(2) == [0, 1]
    project.run("num_epoch=1", "mlxpy.use_version_manager=true")
    assert project.epochs(3) == [0]


@pytest.fixture
def nobody() -> Iterator[Project]:
    """A project that belongs to somebody who is not root, as root may write everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        project = Project(Path(folder) / "project")
        if os.getuid() == 0:
            drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            if not shutil.which("setpriv") or subprocess.run([*drop, project.python, "-c", ""]).returncode:
                pytest.skip("root cannot start this python as somebody else")
            for path in (Path(folder), *Path(folder).rglob("*")):
                os.chown(path, 65534, 65534)
            launcher = Path(folder) / "python"
            launcher.write_text(f'#!/bin/sh\nexec {" ".join(drop)} {project.python} "$@"\n')
            launcher.chmod(0o755)
            project.python = str(launcher)
        yield project
        for path in Path(folder).rglob("*"):
            if path.is_dir():
                path.chmod(0o755)


def test_a_project_that_cannot_be_written_runs_with_the_defaults(nobody: Project) -> None:
    (nobody.folder / "configs").chmod(0o555)
    assert "Completed" in nobody.run("num_epoch=1").stdout
    assert names(nobody.folder / "configs") == ["config.yaml"]
    # without a configuration there is nothing to run
    (nobody.folder / "configs").chmod(0o755)
    (nobody.folder / "configs" / "config.yaml").unlink()
    (nobody.folder / "configs").chmod(0o555)
    assert_one_message(nobody.run(code=2), "configs cannot be created", "Permission denied")


def test_a_folder_that_may_not_be_looked_into_is_one_message(nobody: Project) -> None:
    closed = nobody.folder / ".workdir"
    write(nobody, {".workdir/file": "x"})
    closed.chmod(0o444)
    assert_one_message(nobody.mlxjobs("snapshots", code=2), ".workdir/file: Permission denied")


def test_the_log_directory_cannot_be_written(nobody: Project) -> None:
    nobody.run("--cfg", "job")
    nobody.folder.chmod(0o555)
    for start in (nobody.run, nobody.submit):
        for arguments in ([], ["seed=1,2"]):
            done = start(*arguments, code=2)
            assert_one_message(done, str(nobody.logs), "Permission denied", "+mlxpy.logger.parent_log_dir")
    nobody.folder.chmod(0o755)
    (nobody.folder / "logs").write_text("a file")
    assert_one_message(nobody.run(code=2), "is a file: set mlxpy.logger.parent_log_dir to a folder")
    assert names(nobody.folder) == ["configs", "logs", "main.py"]
    assert nobody.queue("status") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
@pytest.mark.parametrize("scheduler", [False, True], ids=["here", "submitted"])
def test_a_full_disk_is_one_message(project: Project, scheduler: bool) -> None:
    disk = project.folder.parent / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        (disk / "filler").write_bytes(b"x" * 56 * 1024)  # a file or two fit, then no more
        start = project.submit if scheduler else project.run
        done = start(f"+mlxpy.logger.parent_log_dir={disk}/logs", code=2)
        assert_one_message(done, str(disk), "No space left on device")
        assert "no runs" in project.mlxjobs("ls", str(disk / "logs")).stdout
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert project.queue("status") == ""
