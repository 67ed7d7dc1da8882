"""What a terminal is asked before code is frozen, and that nothing is done before all is answered."""

from __future__ import annotations

from collections.abc import Callable

import pexpect
import pytest

from mlxjobs.config.settings import Settings
from mlxjobs.system.plain_yaml import dump_yaml
from tests.project import Project, runs
from tests.terminal import closing, terminal

VM = "+mlxpy.use_version_manager=true"
LETTERS = "a, b or c: "
COPY = "a or b: "
WHICH = "Which\\? all, or names and patterns: "
MESSAGE = "Message \\[Commit before a launch\\]: "
SHOW = """
import mlxpy

import helper

@mlxpy.launch(config_path="./configs")
def main(ctx: mlxpy.Context) -> None:
    print("RAN", helper.WORD, __file__, flush=True)
    assert ctx.config.get("x") != 2

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def edited(project: Project) -> Project:
    """A repository with an edited file, an untracked one and an untracked folder."""
    (project.folder / "main.py").write_text(SHOW)
    (project.folder / "helper.py").write_text("WORD = 'committed'\n")
    (project.folder / "configs" / "mlxpy.yaml").write_text(dump_yaml(Settings().to_dict()))
    project.commit()
    (project.folder / "helper.py").write_text("WORD = 'edited'\n")
    (project.folder / "notes").mkdir()
    for name in ("new file.py", "notes/a.txt", "notes/b.txt"):
        (project.folder / name).write_text("x\n")
    return project


def state(project: Project) -> dict[str, bytes]:
    """Every byte of the project and its repository, but for the logs."""
    return {
        str(path): path.read_bytes()
        for path in project.folder.rglob("*")
        if path.is_file() and project.logs not in path.parents and "__pycache__" not in path.parts
    }


def drive(child: pexpect.spawn[str], *steps: tuple[str, str]) -> str:
    """Await a text, and answer; return all that was shown until then."""
    shown = ""
    for text, line in steps:
        child.expect(text)
        shown += f"{child.before}{child.after}"
        child.sendline(line)
    return shown


def names(project: Project) -> list[str]:
    """What the latest commit changed."""
    return project.git("show", "--name-only", "--format=", "HEAD").splitlines()


def test_what_is_added_and_committed_is_what_runs(edited: Project) -> None:
    child = terminal(edited, VM)
    shown = drive(
        child,
        (LETTERS, "d"),  # what is no answer is asked again
        (LETTERS, ""),
        (LETTERS, " A "),
        (WHICH, ""),
        (WHICH, "noetes"),
        ("no untracked file is named noetes\r\n" + WHICH, "'new"),
        ("No closing quotation\r\n" + WHICH, "notes nothing"),
        ("no untracked file is named nothing\r\n" + WHICH, "'new file.py', notes/*.txt"),
        (LETTERS, "a"),
        (MESSAGE, "What I ran"),
        (COPY, "a"),
    )
    assert f"Files of {edited.folder} that git does not track:\r\n    new file.py\r\n    notes/\r\n" in shown
    listed = ["helper.py", "new file.py", "notes/a.txt", "notes/b.txt"]
    assert "are not committed:\r\n" + "".join(f"    {name}\r\n" for name in listed) in shown
    assert "  a  commit them on main\r\n" in shown
    code, out = closing(child)
    assert code == 0, out
    head = edited.git("rev-parse", "HEAD").strip()
    assert f"committed as {head[:12]} on main" in out
    assert f"RAN edited {edited.folder}/.workdir/project/{head}/main.py" in out
    assert "Not committed" not in out
    assert names(edited) == listed
    assert edited.git("log", "-1", "--format=%an %s").strip() == "t What I ran"
    assert edited.git("status", "--porcelain") == ""


def test_what_is_ignored_stays_as_it_is_and_is_told(edited: Project) -> None:
    before = state(edited)
    child = terminal(edited, VM)
    drive(child, (LETTERS, "c"), (LETTERS, "C"), (COPY, "A"))
    code, out = closing(child)
    assert code == 0, out
    assert "RAN committed" in out
    assert "Not committed, so not in the snapshot" in out
    assert {path: text for path, text in state(edited).items() if "/.workdir/" not in path} == before


def test_what_is_done_meanwhile_is_seen_when_it_checks_again(edited: Project) -> None:
    child = terminal(edited, VM)
    drive(child, (LETTERS, "a"), (WHICH, "notes"))
    child.expect("notes/b.txt\r\n")
    child.expect(LETTERS)
    edited.git("add", "notes")
    edited.git("commit", "--quiet", "--message=by hand")
    child.sendline("b")
    shown = drive(child, (LETTERS, "b"))
    assert "notes" not in shown
    child.expect(LETTERS)
    edited.git("commit", "--quiet", "--all", "--message=and the rest")
    child.sendline("b")
    drive(child, (COPY, "a"))
    code, out = closing(child)
    assert code == 0, out
    assert "RAN edited" in out
    assert edited.git("log", "--format=%s").split("\n")[:2] == ["and the rest", "by hand"]


def test_here_is_no_copy_and_the_facts_say_so(edited: Project) -> None:
    child = terminal(edited, VM, "+x=1,3")
    drive(child, (LETTERS, "c"), (LETTERS, "c"), (COPY, "b"))
    code, out = closing(child)
    assert code == 0, out
    assert out.count(f"RAN edited {edited.folder}/main.py") == 2
    assert not (edited.folder / ".workdir").exists()
    facts = edited.info(2)["version_manager"]
    assert facts["snapshot"] is None
    assert facts["dirty"] is True
    assert facts["commit_hash"] == edited.git("rev-parse", "HEAD").strip()
    assert edited.info(2)["work_dir"] == str(edited.folder)


STEPS = [(LETTERS, "a"), (WHICH, "all"), (LETTERS, "a"), (MESSAGE, "x"), (COPY, "")]


@pytest.mark.parametrize(
    ("count", "key"), [*((count, "\x03") for count in range(len(STEPS))), (3, "\x04")], ids=str
)
def test_leaving_at_any_question_leaves_every_byte_as_it_was(edited: Project, count: int, key: str) -> None:
    edited.git("stash", "push", "--quiet", "helper.py")
    (edited.folder / "helper.py").write_text("WORD = 'edited'\n")
    before = state(edited)
    child = terminal(edited, VM)
    drive(child, *STEPS[:count])
    child.expect(STEPS[count][0])
    child.send(key)
    code, out = closing(child)
    assert code == (130 if key == "\x03" else 2), out
    assert ("interrupted" if key == "\x03" else "nothing was done") in out
    assert "Traceback" not in out
    assert state(edited) == before
    assert runs(edited) == []


def write_hook(project: Project, lines: str) -> None:
    hook = project.folder / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{lines}")
    hook.chmod(0o755)


def refuse_by_hook(project: Project) -> None:
    write_hook(project, "echo 'lint: line too long'\nexit 1\n")


def refuse_by_identity(project: Project) -> None:
    for name in [name for name in project.env if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))]:
        del project.env[name]
    project.git("config", "user.useConfigOnly", "true")


def refuse_by_lock(project: Project) -> None:
    (project.folder / ".git" / "index.lock").touch()


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        (refuse_by_hook, "git: lint: line too long"),
        (refuse_by_identity, "Please tell me who you are"),
        (refuse_by_lock, "index.lock': File exists"),
    ],
)
def test_what_git_refuses_is_told_and_undone(
    edited: Project, refuse: Callable[[Project], None], words: str
) -> None:
    refuse(edited)
    before = state(edited)
    child = terminal(edited, VM)
    drive(child, (LETTERS, "a"), (WHICH, "all"), (LETTERS, "a"), (MESSAGE, ""), (COPY, "a"))
    code, out = closing(child)
    assert code == 2, out
    assert "git did not do what was answered, and all is as it was." in out
    assert words in out
    assert "Traceback" not in out
    after = state(edited)
    assert {path for path in after.keys() - before.keys() if "/.git/objects/" not in path} == set()
    assert {path: after[path] for path in before} == before
    assert runs(edited) == []


def test_an_interrupted_hook_leaves_all_as_it_was(edited: Project) -> None:
    write_hook(edited, "echo begun >/dev/tty\nexec sleep 60\n")
    before = state(edited)
    child = terminal(edited, VM)
    drive(child, (LETTERS, "a"), (WHICH, "all"), (LETTERS, "a"), (MESSAGE, ""), (COPY, "a"))
    child.expect("begun")
    child.sendcontrol("c")
    code, out = closing(child)
    assert code == 130, out
    after = state(edited)
    assert {path for path in after.keys() - before.keys() if "/.git/objects/" not in path} == set()
    assert {path: after[path] for path in before} == before


def test_the_users_hooks_run(edited: Project) -> None:
    (edited.folder / ".git" / "hooks").mkdir(exist_ok=True)
    hook = edited.folder / ".git" / "hooks" / "commit-msg"
    hook.write_text('#!/bin/sh\necho "Signed-off-by: me" >> "$1"\n')
    hook.chmod(0o755)
    allow = ("-c", "protocol.file.allow=always")  # a submodule, in which something is edited
    edited.git(*allow, "submodule", "--quiet", "add", str(edited.folder), "lib")
    edited.git("commit", "--quiet", "--message=lib")
    (edited.folder / "lib" / "main.py").write_text("edited")
    child = terminal(edited, VM)
    shown = drive(child, (LETTERS, "c"), (LETTERS, "a"), (MESSAGE, ""), (COPY, "a"))
    assert " lib" not in shown
    code, out = closing(child)
    assert code == 0, out
    assert edited.git("log", "-1", "--format=%B").split("\n")[:2] == [
        "Commit before a launch",
        "Signed-off-by: me",
    ]
    assert names(edited) == ["helper.py"]


def test_what_is_in_progress_is_said_and_conflicts_are_not_committed(edited: Project) -> None:
    text = edited.folder / ".gitignore"
    text.write_text(text.read_text() + "ours\n")
    edited.git("commit", "--quiet", "--all", "--message=ours")
    edited.git("checkout", "--quiet", "-b", "other", "HEAD~")
    text.write_text(text.read_text() + "theirs\n")
    edited.git("commit", "--quiet", "--all", "--message=theirs")
    edited.git("checkout", "--quiet", "--detach", "main")
    edited.command("git", "merge", "other", code=1)
    child = terminal(edited, VM)
    shown = drive(child, (LETTERS, "c"), (LETTERS, "a"))
    assert "commit them on no branch, as HEAD is detached. A merge is in progress, which this" in shown
    shown = drive(child, (LETTERS, "a"))
    assert "conflicts have to be resolved before: .gitignore" in shown
    child.expect(LETTERS)
    child.sendcontrol("c")
    assert closing(child)[0] == 130


def test_a_submitted_sweep_is_asked_once_and_its_jobs_nothing(edited: Project) -> None:
    child = terminal(
        edited, VM, "+mlxpy.use_scheduler=true", "+mlxpy.scheduler.name=LocalScheduler", "+x=1,2"
    )
    drive(child, (LETTERS, "c"), (LETTERS, "a"), (MESSAGE, ""), (COPY, "a"))
    code, out = closing(child)
    assert code == 0, out
    assert "2 submitted to LocalScheduler" in out
    head = edited.git("rev-parse", "HEAD").strip()
    for log_id in (1, 2):
        edited.await_status("COMPLETE", "FAILED", log_id=log_id)
        assert f"RAN edited {edited.folder}/.workdir/project/{head}/" in edited.stdout(log_id)
    # an existing run: nothing is left to ask about but the untracked files
    child = terminal(edited, VM, "+mlxpy.logger.forced_log_id=2", "x=3")
    drive(child, (LETTERS, "c"), (COPY, "b"))
    code, out = closing(child)
    assert code == 0, out
    assert f"RAN edited {edited.folder}/main.py" in out
    assert edited.info(2)["version_manager"]["snapshot"] is None


@pytest.mark.parametrize("arguments", [("mlxpy.interactive_mode=false",), ()], ids=["said so", "no terminal"])
def test_nobody_is_asked(edited: Project, arguments: tuple[str, ...]) -> None:
    before = state(edited)
    if arguments:
        code, out = closing(terminal(edited, VM, *arguments))
    else:
        done = edited.run(VM)
        code, out = 0, done.stdout + done.stderr
    assert code == 0, out
    assert "RAN committed" in out
    assert out.count("Not committed, so not in the snapshot") == 1
    assert {path: text for path, text in state(edited).items() if "/.workdir/" not in path} == before


def test_what_is_taken_as_it_is_is_not_asked_about(edited: Project) -> None:
    child = terminal(edited, VM, "+mlxpy.version_manager.include=all")
    assert "a, b or c" not in drive(child, (COPY, "a"))
    code, out = closing(child)
    assert code == 0, out
    assert "RAN edited" in out


def test_without_a_repository_nothing_is_asked(project: Project) -> None:
    code, out = closing(terminal(project, VM))
    assert code == 2
    assert "is in no git repository" in out


LOCAL = ("+mlxpy.use_scheduler=true", "+mlxpy.scheduler.name=LocalScheduler")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("lrr=3", "num_epoch=1,2"), "Could not override 'lrr'"),
        (("lrr=1,2",), "Could not override 'lrr'"),
        (("model=small,bigg",), "Could not find 'model/bigg'"),
        (("num_epoch=]",), "num_epoch=]"),
        (("num_epoch=1,2", "mlxpy.logger.forced_log_id=7"), "cannot share one forced_log_id"),
        (("mlxpy.version_manager.link=[dta]",), "dta: there is no"),
        (("mlxpy.version_manager.includ=all",), "unknown key 'version_manager.includ'"),
        (("lrr=3", *LOCAL), "Could not override 'lrr'"),
        (("lrr=3", "mlxpy.use_scheduler=true"), "Could not override 'lrr'"),  # none is set: it would ask
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_found_before_anything_is_asked(
    edited: Project, arguments: tuple[str, ...], words: str
) -> None:
    folder = edited.folder / "configs"
    (folder / "model").mkdir()
    for name in ("small", "big"):
        (folder / "model" / f"{name}.yaml").write_text("width: 1\n")
    (folder / "config.yaml").write_text("defaults: [model: small, _self_]\nnum_epoch: 1\n")
    edited.git("add", "configs")
    edited.git("commit", "--quiet", "--message=models")
    before = state(edited)
    code, out = closing(terminal(edited, VM, *arguments))
    assert code == 2, out
    assert f"mlxjobs: error: {words}" in out or words in out.partition("mlxjobs: error: ")[2]
    assert out.count("mlxjobs: ") == 1
    assert "a, b" not in out
    assert state(edited) == before
    assert runs(edited) == []


def test_a_mistake_in_overrides_of_an_existing_run_is_found_before_anything_is_asked(edited: Project) -> None:
    edited.run("+x=1")
    code, out = closing(terminal(edited, VM, "mlxpy.logger.forced_log_id=1", "lrr=3"))
    assert code == 2, out
    assert "Could not override 'lrr'" in out
    assert "a or b" not in out


def test_what_only_the_latest_commit_takes_is_told_and_runs_if_that_is_what_runs(edited: Project) -> None:
    config = edited.folder / "configs" / "config.yaml"
    committed = config.read_text()
    config.write_text(committed.replace("num_epoch", "epochs"))
    before = state(edited)
    told = "as the files are, this command line is wrong: Could not override 'num_epoch'"
    # a commit would take the edit, and here is where it is
    for answers in ([(LETTERS, "a"), (MESSAGE, ""), (COPY, "a")], [(LETTERS, "c"), (COPY, "b")]):
        child = terminal(edited, VM, "num_epoch=3")
        child.expect(told)
        drive(child, (LETTERS, "c"), *answers)
        code, out = closing(child)
        assert code == 2, out
        assert "mlxjobs: error: Could not override 'num_epoch'" in out
        assert state(edited) == before
    child = terminal(edited, VM, "num_epoch=3")
    child.expect(told)
    drive(child, (LETTERS, "c"), (LETTERS, "c"), (COPY, "a"))
    code, out = closing(child)
    assert code == 0, out
    assert "RAN committed" in out
    # it is put right while the question stands
    child = terminal(edited, VM, "num_epoch=3")
    child.expect(told)
    drive(child, (LETTERS, "c"))
    child.expect(LETTERS)
    config.write_text(f"{committed}new: 1\n")
    child.sendline("b")
    drive(child, (LETTERS, "a"), (MESSAGE, ""), (COPY, "a"))
    code, out = closing(child)
    assert code == 0, out
    assert "RAN edited" in out


def test_what_only_the_files_here_take_is_asked_about_and_runs_once_committed(edited: Project) -> None:
    config = edited.folder / "configs" / "config.yaml"
    config.write_text(f"{config.read_text()}lrr: 1\n")
    child = terminal(edited, VM, "lrr=3,4")
    assert "wrong" not in drive(child, (LETTERS, "c"), (LETTERS, "a"), (MESSAGE, ""), (COPY, "a"))
    code, out = closing(child)
    assert code == 0, out
    assert out.count("RAN edited") == 2


STRUCTURED = """
from dataclasses import dataclass

import mlxpy
from hydra.core.config_store import ConfigStore

@dataclass
class Config:
    num_epoch: int = 1

ConfigStore.instance().store(name="config", node=Config)

@mlxpy.launch(config_path="./configs")
def main(ctx: mlxpy.Context) -> None:
    print("RAN", ctx.config)

if __name__ == "__main__":
    main()
"""


def test_where_the_configuration_is_code_edited_code_may_be_the_reason(edited: Project) -> None:
    main = edited.folder / "main.py"
    (edited.folder / "configs" / "config.yaml").unlink()
    main.write_text(STRUCTURED)
    edited.git("add", "main.py", "configs")
    edited.git("commit", "--quiet", "--message=structured", "main.py", "configs")
    main.write_text(STRUCTURED.replace("num_epoch", "epochs"))
    child = terminal(edited, VM, "num_epoch=3")
    child.expect("as the files are, this command line is wrong: ")
    drive(child, (LETTERS, "c"), (LETTERS, "c"), (COPY, "a"))
    code, out = closing(child)
    assert code == 0, out
    assert "RAN {'num_epoch': 3}" in out
