"""Two runs side by side, and the code of one as a folder."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from mlxjobs.code.compare import diff_code
from mlxjobs.code.run_code import Code
from tests.code.repos import commit, git, new_repo
from tests.project import Project

MAIN = """import mlxpy
@mlxpy.launch(config_path='./configs')
def main(ctx): print('first', ctx.config.lr)
main()
"""
FROZEN = ("+mlxpy.use_version_manager=true", "+mlxpy.interactive_mode=false")
RECORD = "+mlxpy.version_manager.compute_requirements=true"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "proj", main=MAIN, config="lr: 0.1\napi_key: k\n")


def edit(project: Project) -> str:
    (project.folder / "main.py").write_text(MAIN.replace("first", "second"))
    return project.commit()


def site(folder: Path, version: str) -> dict[str, str]:
    info = folder / version / f"thing-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n")
    return {"PYTHONPATH": str(info.parent)}


def test_a_difference_is_that_of_code_configuration_and_environment(project: Project, tmp_path: Path) -> None:
    project.commit()
    project.run(*FROZEN, RECORD, "api_key=first_secret", env=site(tmp_path, "1.0"))
    edit(project)
    project.run(*FROZEN, RECORD, "api_key=other_secret", "lr=0.5", env=site(tmp_path, "2.0"))
    said = project.mlxjobs("diff", "1", "2").stdout
    assert "\n-def main(ctx): print('first', ctx.config.lr)\n+def main(ctx): print('second'" in said
    assert (
        "\nconfiguration:\n  lr: 0.1 -> 0.5\n  api_key: *** -> ***\nenvironment:\n  thing: 1.0 -> 2.0\n"
        in said
    )
    assert "_secret" not in said

    shutil.rmtree(project.folder / ".workdir")  # the repository has it
    assert project.mlxjobs("diff", "1", "2").stdout == said
    assert " 2 files changed, " in project.mlxjobs("diff", "1", "2", "--stat").stdout
    one = json.loads(project.mlxjobs("diff", "1", "2", "--json").stdout)
    assert one["config"] == {"lr": [0.1, 0.5], "api_key": ["***", "***"]}
    assert one["environment"]["thing"] == ["1.0", "2.0"]

    same = project.mlxjobs("diff", "2", "2").stdout
    assert same == "code: the same\nconfiguration: the same\nenvironment: the same\n"


def test_values_differ_as_they_are_written(project: Project) -> None:
    for log_id, text in (
        (1, "a: .nan\nb: .nan\nc: 1\nd: 1\ne: 1"),
        (2, "a: .nan\nb: 2\nc: true\nd: 1.0\ne: 1"),
    ):
        folder = project.logs / str(log_id) / "metadata"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(text)
        (folder / "info.yaml").write_text("{}")
    said = json.loads(project.mlxjobs("diff", "1", "2", "--json").stdout, parse_constant=pytest.fail)
    assert said["config"] == {"b": ["NaN", 2], "c": [1, True], "d": [1, 1.0]}


def test_snapshots_are_compared_where_the_repository_is_gone(project: Project) -> None:
    first = project.commit()
    project.run(*FROZEN)
    second = edit(project)
    project.run(*FROZEN)
    shutil.rmtree(project.folder / ".git")
    said = project.mlxjobs("diff", "1", "2").stdout
    assert f"diff --git a/{first}/main.py b/{second}/main.py\n" in said
    assert "environment: not recorded for run 1 and 2\n" in said

    shutil.rmtree(project.folder / ".workdir")
    assert "code: the code is gone: " in project.mlxjobs("diff", "1", "2").stdout
    gone = project.mlxjobs("checkout", "1", "out", code=2).stderr
    assert f"does not have commit {first[:12]} any more" in gone
    assert not [path.name for path in project.folder.iterdir() if "out" in path.name]


def test_a_run_without_a_snapshot_says_so(project: Project) -> None:
    project.commit()
    project.run()
    project.run(*FROZEN)
    assert "code: not recorded for run 1\n" in project.mlxjobs("diff", "1", "2").stdout
    assert "use_version_manager=true" in project.mlxjobs("checkout", "1", "out", code=2).stderr


@pytest.mark.parametrize("kept", [True, False], ids=["snapshot", "commit"])
def test_the_code_of_a_run_is_checked_out_to_be_edited_and_run(project: Project, kept: bool) -> None:
    (project.folder / "link").symlink_to("main.py")
    project.commit()
    project.run(*FROZEN, "lr=0.25")
    edit(project)
    root = Path(project.info()["version_manager"]["snapshot"])
    if kept:
        (root / "main.py").chmod(0o6777)  # by another user, perhaps
        os.mkfifo(root / "pipe")  # left there by a run
    else:
        shutil.rmtree(root)

    said = project.mlxjobs("checkout", "1", "../out/of 1").stdout

    out = project.folder.parent / "out" / "of 1"
    assert sorted(os.listdir(out)) == [".gitignore", "configs", "link", "main.py"]
    assert os.listdir(out.parent) == ["of 1"]
    assert (out / "link").is_symlink()
    assert (out / "main.py").stat().st_nlink == 1
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE((out / "main.py").stat().st_mode) == (0o777 if kept else 0o666) & ~umask
    assert root.exists() == kept
    assert f"is in {out}\nto run it again: cd '{out}' && " in said
    command = said.partition("to run it again: ")[2].strip()
    assert "first 0.25" in project.command("bash", "-c", command).stdout
    assert (out / "logs" / "1").is_dir()

    again = project.mlxjobs("checkout", "1", str(out), code=2)
    assert "not an empty folder" in again.stderr


def test_a_run_that_was_not_frozen_is_compared_by_its_commit(project: Project) -> None:
    first = project.commit()
    second = edit(project)
    about = {"executable": sys.executable, "cmd": "main.py lr=0.3"}
    said = "main.py note=it's"  # MLXP quotes nothing
    for log_id, commit_hash in enumerate((first, second), 1):  # as MLXP records it, and as `b here` does
        facts = {"commit_hash": commit_hash, "repo_path": str(project.folder), "dirty": log_id == 2}
        folder = project.logs / str(log_id) / "metadata"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("lr: 0.1\n")
        (folder / "info.yaml").write_text(
            json.dumps({"version_manager": facts, **about, **({"cmd": said} if log_id == 1 else {})})
        )
    done = project.mlxjobs("diff", "1", "2")
    assert "\n+def main(ctx): print('second'" in done.stdout
    assert f"run 2 ran from {project.folder} itself, with edits that no commit holds" in done.stderr
    assert """ main.py 'note=it'"'"'s' """ in project.mlxjobs("checkout", "1", "before").stdout
    done = project.mlxjobs("checkout", "2", "out")
    assert "they are not there" in done.stderr
    assert "second 0.3" in project.command("bash", "-c", done.stdout.partition("again: ")[2]).stdout


def test_edits_of_a_submodule_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "A")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "a@example.org")
    inner, top = new_repo(tmp_path / "inner"), new_repo(tmp_path / "proj")
    git(top, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(inner), "sub")
    first = commit(top, {})
    commit(top / "sub", {"main.py": "print(2)\n"})
    second = commit(top, {})
    for setting, value in (("diff.ignoreSubmodules", "all"), ("color.ui", "always")):
        git(top, "config", setting, value)
    said = diff_code(Code(first, tmp_path / "gone", top), Code(second, tmp_path / "gone", top))
    assert "--- a/sub/main.py\n+++ b/sub/main.py\n@@ -1 +1 @@\n-print(1)\n+print(2)\n" in said
