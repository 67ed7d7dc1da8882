"""A version manager of the user's own: that of docs/version_manager.md, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlxjobs.code.own_manager import guard_manager
from mlxjobs.code.run_code import bring_back
from mlxjobs.errors import SnapshotError
from mlxjobs.version_manager import Launch
from tests.project import Project, assert_one_message, runs
from tests.terminal import closing, terminal

PAGE = Path(__file__).resolve().parents[2] / "docs" / "version_manager.md"
OWN = ("+mlxpy.use_version_manager=true", "+mlxpy.version_manager.name=my_app.PlainCopy")
SHOW = """
import mlxpy
import part

@mlxpy.launch(config_path="./configs")
def main(ctx: mlxpy.Context) -> None:
    print("RAN", part.WORD, __file__, ctx.info.launch_dir, flush=True)

if __name__ == "__main__":
    main()
"""


def on_the_page(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(block)


@pytest.fixture
def plain(project: Project) -> Project:
    """A folder that is not a repository, with the page's manager."""
    for name, text in {
        "main.py": SHOW,
        "part.py": "WORD = 'first'\n",
        "my_app.py": on_the_page("python"),
    }.items():
        (project.folder / name).write_text(text)
    project.run("--cfg", "job")
    return project


def snapshots(project: Project) -> list[str]:
    return os.listdir(project.folder / ".workdir" / "project")


def test_it_runs_here_and_in_jobs_what_was_there_when_they_were_launched(plain: Project) -> None:
    path = plain.folder / "configs" / "mlxpy.yaml"
    given = {**yaml.safe_load(path.read_text()), **yaml.safe_load(on_the_page("yaml"))}
    path.write_text(yaml.safe_dump(given))
    code, out = closing(terminal(plain, "+x=1,2"))  # and nothing is asked
    assert code == 0, out
    out = out.replace("\r\n", "\n")
    (first,) = snapshots(plain)
    root = plain.folder / ".workdir" / "project" / first
    assert out.count(f"RAN first {root}/main.py {plain.folder}\n") == 2
    assert {"configs", "main.py", "my_app.py", "part.py"} >= {*os.listdir(root)} - {"__pycache__"}
    (plain.folder / "part.py").write_text("WORD = 'second'\n")
    plain.env["MLXJOBS_LOCAL_SLOTS"] = "1"
    plain.submit("+x=1,2")
    (plain.folder / "part.py").write_text("WORD = 'third'\n")
    for log_id in (3, 4):
        plain.await_status("COMPLETE", log_id=log_id)
        assert "RAN second" in plain.stdout(log_id)
    assert len(snapshots(plain)) == 2
    facts = plain.info(4)["version_manager"]
    assert facts["name"] == "PlainCopy"
    assert facts["snapshot"] == str(root.parent / facts["commit_hash"])
    assert "-WORD = 'first'\n+WORD = 'second'\n" in plain.mlxjobs("diff", "1", "4").stdout
    bring_back(plain.at(3))  # as a requeue does; no mark of it may have the copy pruned while others use it
    pruned = plain.mlxjobs("snapshots", "prune", "--older-than", "0s").stdout
    assert "no launch has noted that it uses it" in pruned
    assert len(snapshots(plain)) == 2
    assert plain.mlxjobs("fsck").stdout == "nothing found\n"


def test_simultaneous_launches_make_one_copy_and_leave_nothing(plain: Project) -> None:
    command = [plain.python, "main.py", *OWN]
    started = [
        subprocess.Popen(command, cwd=plain.folder, env=plain.env, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outs = [process.communicate(timeout=120)[0] for process in started]
    (name,) = snapshots(plain)
    assert [out.count(f"{name}/main.py") for out in outs] == [1] * 3


def own(project: Project, body: str) -> str:
    """Write a manager of the user's with this body; return its text."""
    text = (
        "from pathlib import Path\nfrom mlxpy.version_manager import Frozen, VersionManager\n\n"
        "class Own(VersionManager):\n    def freeze(self, launch):\n        top = launch.work_dir\n"
        f"        {body}\n"
    )
    (project.folder / "my_app.py").write_text(text)
    return text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('no disk')", "my_app.Own.freeze failed: .*my_app.py, line 7: ValueError: no disk"),
        ("from mlxpy.errors import SnapshotError; raise SnapshotError('not today')", "error: not today"),
        ("return Frozen(top, top, launch.program, {'a': top}, ())", r"returned facts\.a=PosixPath"),
    ],
)
def test_a_wrong_one_ends_with_one_message(project: Project, body: str, words: str) -> None:
    own(project, body)
    done = project.run(OWN[0], "+mlxpy.version_manager.name=my_app.Own", code=2)
    assert re.search(words, done.stderr)
    assert_one_message(done, "mlxjobs: error: ")
    assert runs(project) == []


ASKS = """

    def freeze_asking(self, launch, find_mistake):
        if find_mistake() is not None:
            raise find_mistake().error
        self.word = input("Which word? ")
        if self.word == "wrong":
            return None
        return self.freeze(launch)
"""


@pytest.mark.parametrize(
    ("typed", "arguments", "code", "words"),
    [
        ("blue", (), 0, "mlxjobs: the word is blue"),
        ("wrong", (), 2, "my_app.Own.freeze_asking returned None"),
        ("\x04", (), 2, "my_app.Own.freeze_asking failed: .*EOFError"),
        ("", ("nothing=1",), 2, "Could not override 'nothing'"),
        ("", ("+mlxpy.interactive_mode=false",), 0, "mlxjobs: the word is none"),
    ],
)
def test_it_may_ask_at_a_terminal(
    project: Project, typed: str, arguments: tuple[str, ...], code: int, words: str
) -> None:
    warn = "['the word is ' + getattr(self, 'word', 'none')]"
    own(project, f"return Frozen(top, top, launch.program, {{}}, {warn})")
    with (project.folder / "my_app.py").open("a") as file:
        file.write(ASKS)
    child = terminal(project, OWN[0], "+mlxpy.version_manager.name=my_app.Own", "num_epoch=0", *arguments)
    if typed:
        child.expect("Which word")
        child.send(typed if typed == "\x04" else f"{typed}\n")
    ended, out = closing(child)
    assert ended == code, out
    assert re.search(words, out)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("None", "returned None, which is not a Frozen"),
        ("dict(root='/x')", "returned root='/x', which is not an absolute Path"),
        ("dict(work_dir=Path('x'))", r"work_dir=PosixPath\('x'\), which is not an absolute Path"),
        ("dict(work_dir=top / 'x')", "work_dir=.*there is no .*project/x"),
        ("dict(program=top / 'x.py')", r"program=.*there is no .*x\.py"),
        ("dict(program=top / 'main.py')", r"returned a program, where a module is run"),
        ("dict(warnings='one')", "warnings='one', which is not a tuple of strings"),
        ("dict(facts=['a'])", r"facts=\['a'\], which is not a dictionary"),
        ("dict(facts={'a': {1: 2}})", "facts.a with the key 1, which is not a string"),
        ("dict(facts={'a': [top]})", r"facts\.a\.0=PosixPath.*cannot be stored: only strings, numbers"),
        ("dict(facts={'a': 2**70})", r"facts\.a=\d+, which cannot be stored"),
        ("dict(facts={'a': '\\udcff'})", r"facts\.a='.udcff', which cannot be stored"),
    ],
)
def test_what_cannot_be_run_or_stored_is_told(project: Project, given: str, words: str) -> None:
    whole = "dict(root=top, work_dir=top, program=None, facts={}, warnings=())"
    names: dict[str, Any] = {}
    exec(own(project, f"return {given} and Frozen(**{{**{whole}, **{given}}})"), names)
    manager = names["Own"]()
    guard_manager(manager, "my_app.Own")
    with pytest.raises(SnapshotError, match=f"^my_app.Own.freeze .*{words}.*docs/version_manager.md shows"):
        manager.freeze(Launch(project.folder, None, Path(".workdir")))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_copy_of_another_user_is_not_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = project.folder.parent / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    names: dict[str, Any] = {}
    exec(own(project, f"return Frozen(Path({str(theirs)!r}), Path({str(theirs)!r}), None, {{}}, ())"), names)
    manager = names["Own"]()
    guard_manager(manager, "my_app.Own")
    launch = Launch(project.folder, None, Path(".workdir"))
    with pytest.raises(SnapshotError, match=r"another user's is not run as you: .*theirs belongs to 12345"):
        manager.freeze(launch)
    monkeypatch.setenv("MLXJOBS_TRUST", "12345")
    assert manager.freeze(launch).root == theirs


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("my_app.Other", "", "has no class Other"),
        (
            "my_app.Own",
            "class Own: pass",
            "is not a subclass of mlxpy.VersionManager; docs/version_manager.md shows",
        ),
        ("my_app.Own", "import mlxpy\nclass Own(mlxpy.VersionManager): pass", "lacks the methods freeze"),
        ("nowhere.Own", "", "No module named 'nowhere'"),
        ("Own", "", "unknown version manager 'Own'"),
    ],
)
def test_what_is_no_version_manager_is_told(project: Project, name: str, text: str, words: str) -> None:
    (project.folder / "my_app.py").write_text(text)
    assert_one_message(project.run(OWN[0], f"+mlxpy.version_manager.name={name}", code=2), words)


def test_facts_are_stored_as_they_are(project: Project) -> None:
    facts: dict[str, Any] = {
        "b": [1, -0.5, None, True],
        "c": {"é\n": "x: y"},
        "n": float("nan"),
        "big": 2**63,
    }
    own(project, f"nan = float('nan'); return Frozen(top, top, launch.program, {facts!r}, ['look'])")
    arguments = (OWN[0], "+mlxpy.version_manager.name=my_app.Own", "num_epoch=0")
    assert project.run(*arguments).stderr.count("mlxjobs: look\n") == 1
    project.submit(*arguments)
    project.await_status("COMPLETE", log_id=2)
    for log_id in (1, 2):
        found = project.info(log_id)["version_manager"]
        assert repr(found) == repr(facts)
