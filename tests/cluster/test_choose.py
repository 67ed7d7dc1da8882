"""use_scheduler=true where no scheduler is set: a terminal is asked, all else is told what to type."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from mlxjobs.cluster import registry
from mlxjobs.cluster.choose import set_value
from mlxjobs.errors import InvalidConfigFileError
from tests.project import Project, assert_one_message, finish, runs
from tests.slurm_stub import Slurm
from tests.terminal import closing, terminal, typed

KEYS = ("scheduler", "name")
USE = "+mlxpy.use_scheduler=true"
PROMPT = "[0-9], a name, or the import path of your own: "


def test_a_choice_is_kept_and_the_command_goes_on(project: Project) -> None:
    project.run("--cfg", "job")
    path = project.folder / "configs" / "mlxpy.yaml"
    text = "# ours\n" + path.read_text().replace("NoScheduler", "NoScheduler  # none yet")
    path.write_text(text)
    child = terminal(project, USE, "optimizer.lr=0.1,0.01")
    child.expect("use_scheduler is true, and no scheduler is set. Which one\\?")
    child.expect("[0-9]  LocalScheduler +this machine alone")
    child.expect(PROMPT)
    child.sendline("Local")
    child.expect(PROMPT)  # what is not an answer is asked again
    child.sendline("LocalScheduler")
    child.expect(f"LocalScheduler is set in {path}")
    code, out = closing(child)
    assert code == 0, out
    assert "2 submitted to LocalScheduler" in out
    assert "Which one?" not in out  # once for the whole sweep
    assert path.read_text() == text.replace("NoScheduler ", "LocalScheduler ")
    finish(project, 2)
    # it is set now: nobody is asked any more
    assert closing(terminal(project, USE))[0] == 0


def test_those_whose_commands_are_here_come_first(slurm_stub: Slurm) -> None:
    child = terminal(slurm_stub.project, USE)
    child.expect(PROMPT)
    offers = re.findall(r"([0-9])  (\w+) +(\S.*)\r\n", str(child.before))
    assert [int(number) for number, *_ in offers] == list(range(1, len(registry.known()) + 1))
    assert {name for _, name, _ in offers} == set(registry.known())
    here = [not about.startswith("not here: no ") for *_, about in offers]
    assert here == sorted(here, reverse=True)
    slurm = next(offer for offer in offers if offer[1] == "SLURMScheduler")
    assert slurm[2] == "sbatch, squeue, scontrol, scancel"
    child.sendline(slurm[0])
    code, out = closing(child)
    assert code == 0, out
    assert "run 1: job 1" in out


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 2)], ids=["Ctrl-C", "Ctrl-D"])
def test_no_answer_leaves_all_as_it_was(project: Project, key: str, code: int) -> None:
    project.run("--cfg", "job")
    path = project.folder / "configs" / "mlxpy.yaml"
    before = path.read_bytes(), sorted(os.listdir(project.folder))
    child = terminal(project, USE)
    child.expect(PROMPT)
    child.send(key)
    ended, out = closing(child)
    assert ended == code
    assert "Traceback" not in out
    assert ("no scheduler is set" in out) == (code == 2)
    assert (path.read_bytes(), sorted(os.listdir(project.folder))) == before


def test_an_answer_that_cannot_be_used_is_asked_again(project: Project, tmp_path: Path) -> None:
    project.env["PATH"] = str(tmp_path)  # no cluster's commands
    (project.folder / "mine.py").write_text(
        "from mlxpy import LocalScheduler\nclass Mine(LocalScheduler): pass\n"
    )
    project.run("--cfg", "job")
    path = project.folder / "configs" / "mlxpy.yaml"
    before = path.read_text()
    child = terminal(project, USE)
    child.expect(PROMPT)
    for answer, words in {
        "": "",
        "0": "",
        "99": "",
        "NoScheduler": "no scheduler is set",
        "SLURMSchedular": "did you mean SLURMScheduler?",
        "SLURMScheduler": "SLURMScheduler needs sbatch",
        "mine.Nobody": "has no class Nobody; did you mean mine.Mine?",
        "os.path": "os:path is not a subclass of mlxpy.Scheduler",
    }.items():
        child.sendline(answer)
        child.expect(PROMPT)
        assert words in str(child.before)
    assert path.read_text() == before
    child.sendline(" mine.Mine ")
    code, out = closing(child)
    assert code == 0, out
    assert "1 submitted to Mine" in out
    assert path.read_text() == before.replace("name: NoScheduler", "name: mine.Mine")
    finish(project)


def test_a_project_that_cannot_be_written(project: Project) -> None:
    project.run("--cfg", "job")
    configs = project.folder / "configs"
    before = (configs / "mlxpy.yaml").read_bytes()
    command = [project.python, "main.py", USE]
    if os.geteuid() == 0:  # who may write everywhere but on a file system that is mounted read-only
        mount = f"mount --bind {configs} {configs} && mount -o remount,bind,ro {configs}"
        command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
        probe = subprocess.run([*command[:6], "true"], capture_output=True, text=True, check=False)
        if probe.returncode != 0:
            pytest.skip(f"SKIPPED: nothing can be mounted here: {probe.stderr}")
    else:
        configs.chmod(0o555)
    child = typed(project, *command)
    child.expect(PROMPT)
    child.sendline("LocalScheduler")
    child.expect("LocalScheduler is used this time; it could not be kept in .*: (Read-only|Permission)")
    assert closing(child)[0] == 0
    configs.chmod(0o755)
    assert (configs / "mlxpy.yaml").read_bytes() == before
    finish(project)


def test_a_file_that_cannot_be_edited_stays_and_the_answer_is_used_once(project: Project) -> None:
    path = project.folder / "configs" / "mlxpy.yaml"
    path.write_text("logger: {name: &n NoScheduler}\nscheduler: {name: *n}\n")
    child = terminal(project, USE)
    child.expect(PROMPT)
    child.sendline("LocalScheduler")
    child.expect("LocalScheduler is used this time; .* set scheduler.name: LocalScheduler by hand")
    assert closing(child)[0] == 0
    assert path.read_text() == "logger: {name: &n NoScheduler}\nscheduler: {name: *n}\n"
    finish(project)


def test_a_link_stays_one_and_the_file_keeps_its_mode(project: Project, tmp_path: Path) -> None:
    path, shared = project.folder / "configs" / "mlxpy.yaml", tmp_path / "shared.yaml"
    shared.write_text("scheduler: {name: NoScheduler} # ours\n")
    shared.chmod(0o600)
    path.symlink_to(shared)
    child = terminal(project, USE)
    child.expect(PROMPT)
    child.sendline("LocalScheduler")
    assert closing(child)[0] == 0
    assert path.is_symlink()
    assert shared.read_text() == "scheduler: {name: LocalScheduler} # ours\n"
    assert shared.stat().st_mode & 0o777 == 0o600
    finish(project)


def test_what_is_printed_may_go_elsewhere(project: Project) -> None:
    child = typed(project, "/bin/sh", "-c", f"{project.python} main.py {USE} >out")
    child.expect(PROMPT)
    child.sendline("LocalScheduler")
    assert closing(child)[0] == 0
    assert "1 submitted to LocalScheduler" in (project.folder / "out").read_text()
    finish(project)


def test_without_an_input_it_is_said_what_to_type(project: Project) -> None:
    code, out = closing(typed(project, "/bin/sh", "-c", f"{project.python} main.py {USE} </dev/null"))
    assert code == 2
    assert "no scheduler is set" in out


def test_without_a_terminal_it_is_said_what_to_type(project: Project) -> None:
    done = project.run(USE, code=2)
    assert_one_message(done, "no scheduler is set", "configs/mlxpy.yaml", "+mlxpy.scheduler.name=")
    assert runs(project) == []


def test_a_terminal_is_not_asked_with_interactive_mode_off(project: Project) -> None:
    code, out = closing(terminal(project, USE, "+mlxpy.interactive_mode=false"))
    assert code == 2
    assert "no scheduler is set" in out


def test_an_existing_run_can_be_submitted_too(project: Project) -> None:
    project.run()
    child = terminal(project, USE, "+mlxpy.logger.forced_log_id=1")
    child.expect(PROMPT)
    child.sendline("LocalScheduler")
    code, out = closing(child)
    assert code == 0, out
    assert "run 1: job 1" in out


# -- the edit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "scheduler:\n  name: X\n"),
        ("# nothing", "# nothing\nscheduler:\n  name: X\n"),
        ("scheduler:\n  name: NoScheduler\n", "scheduler:\n  name: X\n"),
        ("scheduler:\n  name: 'No' # why\n  a: 1\n", "scheduler:\n  name: X # why\n  a: 1\n"),
        ("a: 1\nscheduler:\n  b: 2 # c\n", "a: 1\nscheduler:\n  name: X\n  b: 2 # c\n"),
        ("scheduler:\n  name:\n  b: 2\n", "scheduler:\n  name: X\n  b: 2\n"),
        ("scheduler:\n  name: # none\n", "scheduler:\n  name: X # none\n"),
        ("scheduler:\nuse_logger: true\n", "scheduler: {name: X}\nuse_logger: true\n"),
        ("# c\nuse_logger: true\n", "# c\nscheduler: {name: X}\nuse_logger: true\n"),
        ("{scheduler: {name: a, b: [1]}}", "{scheduler: {name: X, b: [1]}}"),
        ("scheduler: {}", "scheduler: {name: X}"),
        ("scheduler:\n  name: &n !!str NoScheduler # c\n", "scheduler:\n  name: &n !!str X # c\n"),
        ('scheduler: {"name":"No"} # é 日本 😀\n', 'scheduler: {"name":X} # é 日本 😀\n'),
        ("\ufeffscheduler: {name: No}\n", "\ufeffscheduler: {name: X}\n"),
        ("scheduler:\n  ? name\n  : No\n", "scheduler:\n  ? name\n  : X\n"),
        ("scheduler: {b: 1}\n", "scheduler: {name: X, b: 1}\n"),
        ("scheduler:\r\n  name: a\r\n  b: é\r\n", "scheduler:\r\n  name: X\r\n  b: é\r\n"),
        ("a: 1\r\n", "scheduler: {name: X}\r\na: 1\r\n"),
        (
            "a: &n NoScheduler\nscheduler: {name: b}\nc: *n\n",
            "a: &n NoScheduler\nscheduler: {name: X}\nc: *n\n",
        ),
        (
            'scheduler:\n  name: "a\\\n    b"\n  c: |\n    name: d\n',
            "scheduler:\n  name: X\n  c: |\n    name: d\n",
        ),
        ("---\nscheduler:\n    name: a\n...\n", "---\nscheduler:\n    name: X\n...\n"),
    ],
)
def test_one_value_is_set_and_the_rest_stays(before: str, after: str) -> None:
    assert set_value(before, KEYS, "X") == after
    assert yaml.safe_load(after)["scheduler"]["name"] == "X"


@pytest.mark.parametrize(
    "text",
    [
        "a: &n NoScheduler\nscheduler:\n  name: *n\n",
        "a: &s {name: b}\nscheduler: *s\n",
        "scheduler: [1]\n",
        "- 1\n",
        "scheduler: {name: a}\nscheduler: {name: b}\n",
        "a: &s {name: b}\n<<: *s\nscheduler:\n  <<: *s\n  name: &t {x: 1}\n",
    ],
)
def test_what_cannot_be_edited_alone_is_left_to_the_user(text: str) -> None:
    with pytest.raises(InvalidConfigFileError, match=r"set scheduler.name: X by hand"):
        set_value(text, KEYS, "X")


def test_the_file_that_is_made_for_a_new_project(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.run("--cfg", "job")
    text = (project.folder / "configs" / "mlxpy.yaml").read_text()
    assert set_value(text, KEYS, "X") == text.replace("name: NoScheduler", "name: X")
