"""A scheduler of the user's own: that of docs/schedulers.md, run as it stands on a real task spooler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxjobs.record.history import RunStatus
from tests.clusters.fixtures import unavailable
from tests.clusters.machine import ClusterError, install_packages
from tests.project import Project, assert_whole, await_value
from tests.schedulers.example import WHOLE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "schedulers.md"
OWN = ("+mlxpy.use_scheduler=true", "+mlxpy.scheduler.name=spooler.Spooler")


def on_the_page(language: str, first_line: str = "") -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [str(text) for text in blocks if text.startswith(first_line)]
    return block


SPOOLER = on_the_page("python")


class Spooled(Project):
    """A project with the page's scheduler, and a queue of its own."""

    def submit(self, *arguments: str, code: int = 0, **more: object) -> subprocess.CompletedProcess[str]:
        return self.run(*OWN, *arguments, code=code, **more)

    def tsp(self, *arguments: str) -> str:
        return self.command("tsp", *arguments).stdout

    def jobs(self) -> dict[str, str]:
        """The spooler's own list: id -> state."""
        return {row.split()[0]: row.split()[1] for row in self.tsp().splitlines()[1:]}


@pytest.fixture
def spooled(tmp_path: Path) -> Iterator[Spooled]:
    if shutil.which("tsp") is None:
        try:
            install_packages(["task-spooler"])
        except ClusterError as error:
            unavailable(str(error))
    short = tempfile.mkdtemp(prefix="tsp-", dir="/tmp")  # a socket's path has at most 107 bytes: unix(7)
    project = Spooled(tmp_path / "project")
    project.env.update(TS_SOCKET=f"{short}/socket", TS_SLOTS="2", TMPDIR=short)
    (project.folder / "spooler.py").write_text(SPOOLER)
    yield project
    for job, state in project.jobs().items():
        subprocess.run(
            ["tsp", "-k" if state == "running" else "-r", job],
            env=project.env, capture_output=True, check=False,
        )  # fmt: skip
    subprocess.run(["tsp", "-K"], env=project.env, capture_output=True, check=False)
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Another project's folder, whose module of the same name is none of ours."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "spooler.py").write_text("raise RuntimeError('the wrong one')\n")
    return folder


def mlxjobs(project: Project, cwd: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Type `mlxjobs` in some folder."""
    command = [project.python, "-m", "mlxjobs", *arguments, "--logs", str(project.logs)]
    return project.command(*command, cwd=cwd, code=code)


def test_the_page_shows_a_whole_one_in_under_40_lines() -> None:
    assert len(SPOOLER.splitlines()) < 40


def test_a_sweep_is_cancelled_requeued_and_resumed(spooled: Spooled, elsewhere: Path) -> None:
    spooled.let_pass(2)
    done = spooled.submit("optimizer.lr=0.1,0.2,0.3,0.4")
    assert "run 1: job 0  optimizer.lr=0.1" in done.stdout
    assert "4 submitted to Spooler" in done.stdout
    for log_id in (1, 2):
        spooled.await_epoch(2, log_id)
    assert spooled.state(3).status is RunStatus.SUBMITTED  # there are two slots
    assert spooled.state(1).scheduler["class"] == f"spooler:Spooler@{spooled.folder}"

    assert "run 4 is cancelled (job 3)" in mlxjobs(spooled, elsewhere, "cancel", "4").stdout
    assert "run 2 is cancelled (job 1)" in mlxjobs(spooled, elsewhere, "cancel", "2").stdout
    spooled.await_epoch(2, 3)
    done = mlxjobs(spooled, elsewhere, "requeue", "3")
    assert "run 3 is submitted again (job 4), and job 2 is stopped" in done.stdout
    assert (
        "Spooler has no command that preempts" in mlxjobs(spooled, elsewhere, "preempt", "1", code=3).stderr
    )
    spooled.let_pass(10)

    spooled.await_status("COMPLETE", log_id=1)
    third = spooled.await_status("COMPLETE", log_id=3, attempts=2)
    assert_whole(spooled)
    assert spooled.epochs(3) == [0, 1, 2, 3, 4]
    assert [attempt.job_id for attempt in third.attempts] == ["2", "4"]
    assert third.attempts[0].reason == "requeued by mlxjobs requeue"
    assert third.attempts[1].resumed_from == "artifacts/Checkpoint/last_ckpt.pkl"
    for log_id in (2, 4):
        assert spooled.state(log_id).status is RunStatus.CANCELLED
    await_value(lambda: "running" not in spooled.jobs().values(), "the end of all jobs")
    listed = mlxjobs(spooled, elsewhere, "ls")
    assert listed.stdout.count("COMPLETE") == listed.stdout.count("CANCELLED") == 2
    assert listed.stderr == ""
    # and once more, by hand
    again = mlxjobs(spooled, elsewhere, "requeue", "2").stdout
    assert "run 2 is submitted again" in again
    spooled.await_status("COMPLETE", log_id=2)
    assert spooled.epochs(2) == [0, 1, 2, 3, 4]


def test_a_job_that_is_killed_is_told_and_comes_back(spooled: Spooled, elsewhere: Path) -> None:
    spooled.let_pass(2)
    spooled.submit()
    spooled.await_epoch(2)
    spooled.tsp("-k", "0")
    await_value(lambda: spooled.jobs()["0"] == "finished", "the end of the job")
    assert "FAILED at epoch 2 (finished)" in mlxjobs(spooled, elsewhere, "ls").stdout
    assert spooled.state().status is RunStatus.FAILED
    mlxjobs(spooled, elsewhere, "requeue", "1")
    spooled.let_pass(10)
    spooled.await_status("COMPLETE", attempts=2)
    assert_whole(spooled)


@pytest.mark.parametrize("tracked", [True, False])
def test_it_is_found_from_a_snapshot_and_from_any_folder(
    spooled: Spooled, elsewhere: Path, tracked: bool
) -> None:
    if not tracked:
        aside = elsewhere / "aside.py"
        (spooled.folder / "spooler.py").rename(aside)
        commit = spooled.commit()
        aside.rename(spooled.folder / "spooler.py")
    else:
        commit = spooled.commit()
    spooled.let_pass(2)
    spooled.command(
        spooled.python, str(spooled.folder / "main.py"), *OWN, "mlxpy.use_version_manager=true",
        f"mlxpy.logger.parent_log_dir={spooled.logs}",
        f"mlxpy.version_manager.parent_work_dir={spooled.folder / '.workdir'}", cwd=elsewhere,
    )  # fmt: skip
    spooled.await_epoch(2)
    where = spooled.folder / ".workdir" / "project" / commit if tracked else spooled.folder
    assert spooled.state().scheduler["class"] == f"spooler:Spooler@{where}"
    if tracked:
        (spooled.folder / "spooler.py").write_text("raise SystemExit('edited')\n")
    mlxjobs(spooled, elsewhere, "requeue", "1")
    spooled.let_pass(10)
    spooled.await_status("COMPLETE", attempts=2)
    assert_whole(spooled)


# -- without a cluster: what is found, and what is said ---------------------------------------------

LOCAL = """
from mlxpy import LocalScheduler
class Mine(LocalScheduler):
    '''Ours, with something changed.'''
"""


@pytest.mark.parametrize("place", ["module", "package", "namespace", "program", "path"])
def test_where_a_class_may_be(project: Project, tmp_path: Path, place: str) -> None:
    name, file = {
        "module": ("mine.Mine", project.folder / "mine.py"),
        "package": ("app.sched.mine.Mine", project.folder / "app" / "sched" / "mine.py"),
        "namespace": ("app.mine:Mine", project.folder / "app" / "mine.py"),
        "program": ("main.Mine", project.folder / "main.py"),
        "path": ("mine.Mine", tmp_path / "lib" / "mine.py"),
    }[place]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(LOCAL + (file.read_text() if file.exists() else ""))
    if place == "package":
        for folder in (file.parent, file.parent.parent):
            (folder / "__init__.py").touch()
    project.run("--cfg", "job")
    env = {"PYTHONPATH": str(tmp_path / "lib")} if place == "path" else {}
    project.submit(f"mlxpy.scheduler.name={name}", env=env)
    root = tmp_path / "lib" if place == "path" else project.folder
    assert project.state().scheduler["class"] == f"{name.replace(':', '.').replace('.Mine', ':Mine')}@{root}"
    assert mlxjobs(project, tmp_path, "ls").stderr == ""
    project.await_status("COMPLETE")


def test_two_projects_may_share_a_log_directory_and_a_name(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "other")
    other.env, other.logs = project.env, project.logs
    project.let_pass(0)
    for number, each in enumerate((project, other)):
        word = "RUNNING" if number else "PENDING"
        (each.folder / "mine.py").write_text(
            f"{LOCAL}    def parse_status(self, output):\n"
            f"        from mlxpy.scheduler import JobState, JobStatus\n"
            f"        return {{job: JobStatus(JobState.UNKNOWN, '{word} of {each.folder.name}')\n"
            f"                for job in ('1', '2')}}\n"
        )
        each.submit("mlxpy.scheduler.name=mine.Mine", f"mlxpy.logger.parent_log_dir={project.logs}")
    words = mlxjobs(project, tmp_path, "ls").stderr
    assert "run 1: unknown: the scheduler says PENDING of project" in words
    assert "run 2: unknown: the scheduler says RUNNING of other" in words


def test_a_class_that_was_moved_is_found_where_the_command_is_typed(project: Project, tmp_path: Path) -> None:
    (project.folder / "mine.py").write_text(LOCAL)
    project.let_pass(0)
    project.submit("mlxpy.scheduler.name=mine.Mine")
    moved = tmp_path / "moved"
    moved.mkdir()
    (project.folder / "mine.py").rename(moved / "mine.py")
    words = mlxjobs(project, tmp_path, "ls").stderr
    assert (
        f"mine:Mine cannot be imported: No module named 'mine'; it was looked for in {project.folder}"
        in words
    )
    assert mlxjobs(project, moved, "ls").stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED: only root can give a file away")
def test_code_of_another_user_is_run_only_by_the_program_beside_it(project: Project, tmp_path: Path) -> None:
    (project.folder / "mine.py").write_text(LOCAL)
    project.let_pass(0)
    project.submit("mlxpy.scheduler.name=mine.Mine")
    os.chown(project.folder / "mine.py", 12345, 12345)
    words = mlxjobs(project, tmp_path, "ls").stderr
    assert f"mine:Mine is not run: {project.folder}/mine.py belongs to 12345; if you trust 12345" in words
    assert mlxjobs(project, project.folder, "ls").stderr == words
    project.env["MLXJOBS_TRUST"] = "12345"
    assert mlxjobs(project, tmp_path, "ls").stderr == ""
    del project.env["MLXJOBS_TRUST"]
    project.let_pass(10)
    project.await_status("COMPLETE")  # a job of the user's own


def test_a_template_of_its_own_beside_it(project: Project, tmp_path: Path) -> None:
    (project.folder / "mine.py").write_text(f"{LOCAL}    template = 'mine.sh'\n")
    done = project.submit("mlxpy.scheduler.name=mine.Mine", code=2)
    assert "mine:Mine: its template 'mine.sh' is neither in" in done.stderr
    assert "job.sh" in done.stderr
    template = project.folder / "mine.sh"
    template.write_text("#!/bin/bash\n{{ nonsense }\n")
    done = project.submit("mlxpy.scheduler.name=mine.Mine", code=2)
    assert f"error: {template}, line 2: unexpected '}}'" in done.stderr
    template.write_text("#!/bin/bash\n{{ nonsense }}\n")
    done = project.submit("mlxpy.scheduler.name=mine.Mine", code=2)
    assert f"error: {template}: 'nonsense' is undefined" in done.stderr
    template.write_text(
        "#!{{ shell_path }}\n{% for line in directives %}\n{{ line }}\n{% endfor %}\necho it is mine\n"
        "cd {{ work_dir | quote }}\nexec {{ command | map('quote') | join(' ') }}\n"
    )
    project.submit("mlxpy.scheduler.name=mine.Mine")
    project.await_status("COMPLETE")
    assert project.stdout().startswith("it is mine\nStarting from")


def test_the_other_templates_are_ours_or_absolute(project: Project, tmp_path: Path) -> None:
    other = tmp_path / "absolute.sh"
    other.write_text("#!/bin/bash\necho absolute\n")
    for number, (template, words) in enumerate({"slurm.sh": "srun", str(other): "echo absolute"}.items(), 1):
        # a file of that name in the project is not taken: the class that names it lies elsewhere
        (project.folder / "job.sh").write_text("#!/bin/bash\nexit 9\n")
        (project.folder / "mine.py").write_text(f"{LOCAL}    template = {template!r}\n")
        project.submit("mlxpy.scheduler.name=mine.Mine")
        assert words in project.at(number).script.read_text()
    (project.folder / "mine.py").write_text(LOCAL)
    project.submit("mlxpy.scheduler.name=mine.Mine")
    project.await_status("COMPLETE", log_id=3)


OLD = """
import mlxpy
class Mine(mlxpy.Scheduler):
    def __init__(self, directive, submission_cmd, shell_path): pass
    def option_command(self, job_log_dir): return ""
    def get_process_id(self, output): return {}
"""


WRONG = [
    (None, ["mine:Mine cannot be imported: No module named 'mine'; it was looked for in {folder}"]),
    ("import nowhere_at_all\n", ["mine:Mine cannot be imported: {file}, line 1: No module named"]),
    ("\n1 / 0\n", ["cannot be imported: {file}, line 2: ZeroDivisionError: division by zero"]),
    ("def f(:\n", ["cannot be imported: {file}, line 1: SyntaxError: "]),
    ("raise SystemExit(3)\n", ["its module ends the program", "if __name__ == '__main__':"]),
    (WHOLE.replace("class Mine", "class Mien"), ["{file} has no class Mine; did you mean mine.Mien?"]),
    ("", ["{file} has no class Mine\n"]),
    ("class Mine: pass\n", ["mine:Mine is not a subclass of mlxpy.Scheduler; docs/schedulers.md"]),
    ("Mine = 3\n", ["mine:Mine is not a subclass of mlxpy.Scheduler"]),
    (
        OLD,
        [
            "mine:Mine ({file}) lacks the methods cancel_command, here, parse_status, "
            "parse_submission, status_command, submit_command; docs/schedulers.md"
        ],
    ),
    (WHOLE + "    def __init__(self, x): pass\n", ["mine:Mine cannot be made: TypeError: "]),
    (WHOLE.replace('= "#"', "= 3"), ["attribute 'directive' of type str, and this one says 3"]),
    (WHOLE.replace("= ()", "= 'tsp'"), ["'commands' of type tuple[str, ...], and this one says 'tsp'"]),
    (
        WHOLE.replace('["echo", "7"]', "f'echo {script}'"),
        ["Mine.submit_command returned 'echo /", "list[str]"],
    ),
    (WHOLE.replace('["echo", "7"]', "['echo', script]"), ["submit_command returned ['echo', PosixPath("]),
    (WHOLE.replace('job_ids): return ["true"]', "job_ids): pass"), ["Mine.status_command returned None"]),
    (
        WHOLE.replace("return []", "return ''"),
        ["mine:Mine.options returned '', which is not of type list[str]"],
    ),
    (
        WHOLE.replace("return []", "return job.x"),
        ["mine:Mine.options failed: {file}, line 6: AttributeError: "],
    ),
    (WHOLE.replace("return None", "return env['X']"), ["Mine.here failed: {file}, line 12: KeyError: 'X'"]),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_what_is_wrong_with_a_class_is_said_before_anything_is_made(
    project: Project, text: str | None, words: list[str]
) -> None:
    file = project.folder / "mine.py"
    if text is not None:
        file.write_text(text)
    done = project.submit("mlxpy.scheduler.name=mine.Mine", code=2)
    assert done.stderr.startswith("mlxjobs: error: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word.replace("{file}", str(file)).replace("{folder}", str(project.folder)) in done.stderr
    assert not project.logs.exists()


def test_options_that_nobody_reads_are_refused(project: Project) -> None:
    (project.folder / "mine.py").write_text(WHOLE.replace('= "#"', '= ""'))
    done = project.submit("mlxpy.scheduler.name=mine.Mine", "mlxpy.scheduler.option_cmd=['--time=1']", code=2)
    assert "scheduler.option_cmd: Mine reads no options from a script" in done.stderr


def test_a_job_id_that_is_no_text_leaves_no_run_in_doubt(project: Project) -> None:
    (project.folder / "mine.py").write_text(WHOLE.replace("output.strip()", "int(output)"))
    done = project.submit("mlxpy.scheduler.name=mine.Mine", code=3)
    assert (
        "nobody knows whether the job was taken: echo said '7'; mine:Mine.parse_submission returned 7"
        in done.stderr
    )
    assert project.state().status is RunStatus.FAILED


def test_an_answer_that_is_not_understood_is_a_doubt(project: Project) -> None:
    (project.folder / "mine.py").write_text(WHOLE.replace("return {}", "return {'7': 'running'}"))
    project.submit("mlxpy.scheduler.name=mine.Mine")
    done = project.mlxjobs("ls")
    assert "SUBMITTED?" in done.stdout
    assert (
        "mine:Mine.parse_status returned {'7': 'running'}, which is not of type dict[str, JobStatus]"
        in done.stderr
    )


def test_an_installed_package_offers_one_by_an_entry_point(project: Project, tmp_path: Path) -> None:
    package = tmp_path / "acme"
    (package / "acme_queue").mkdir(parents=True)
    (package / "acme_queue" / "__init__.py").touch()
    (package / "acme_queue" / "spooler.py").write_text(SPOOLER)
    (package / "acme_queue" / "local.py").write_text(LOCAL)
    (package / "acme_queue" / "broken.py").write_text("1 / 0\n")
    points = on_the_page("toml").partition("\n")[2]
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "acme-queue"\nversion = "1"\n'
        f'{points}AcmeScheduler = "acme_queue.local:Mine"\nBroken = "acme_queue.broken:Mine"\n'
        'SLURMScheduler = "acme_queue.broken:Mine"\n'
    )
    site = tmp_path / "site-packages"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(package),
    ]
    subprocess.run(install, check=True, capture_output=True)
    project.env["PYTHONPATH"] = str(site)
    project.submit("mlxpy.scheduler.name=AcmeScheduler")
    project.await_status("COMPLETE")
    assert project.state().scheduler["class"] == "acme_queue.local:Mine"
    assert mlxjobs(project, tmp_path, "ls").stderr == ""
    done = project.submit("mlxpy.scheduler.name=AcmeSheduler", code=2)
    assert "did you mean AcmeScheduler?" in done.stderr
    assert "Known ones: AcmeScheduler, Broken, LSFScheduler, LocalScheduler, " in done.stderr
    assert "acme_queue.broken:Mine" not in done.stderr
    done = project.submit("mlxpy.scheduler.name=Broken", code=2)
    assert "acme_queue.broken:Mine cannot be imported" in done.stderr
    done = project.submit(
        "mlxpy.scheduler.name=SLURMScheduler", "mlxpy.scheduler.option_cmd=[x]", env={"PATH": "/"}, code=3
    )
    assert "SLURMScheduler needs sbatch" in done.stderr  # ours
