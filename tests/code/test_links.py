"""Paths in a snapshot: what is linked into it, where the command was typed, which settings lead nowhere."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from mlxjobs.code.copying import find_missing
from mlxjobs.errors import SnapshotError
from tests.code.repos import commit, contents, freeze, git, leftovers, write
from tests.project import Project, assert_one_message

VM = "+mlxpy.use_version_manager=true"
LINK = "+mlxpy.version_manager.link="
SHOW = """
import os
import mlxpy

@mlxpy.launch(config_path="./configs")
def main(ctx: mlxpy.Context) -> None:
    for path in ("data/x.txt", "sub/base.ckpt"):
        print(path, open(path).read() if os.path.exists(path) else None)
    print("TYPED IN", ctx.info.launch_dir, flush=True)
    assert not ctx.config.get("fail")

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def linked(project: Project) -> Project:
    """A repository beside whose code lie ignored data, in part elsewhere."""
    elsewhere = project.folder.parent / "scratch"
    write(elsewhere, {"x.txt": "1"})
    write(project.folder, {"main.py": SHOW, "sub/part.py": ""})
    project.commit()
    write(project.folder, {".git/info/exclude": "data\n*.ckpt\n", "sub/base.ckpt": "2"})
    (project.folder / "data").symlink_to(elsewhere)
    return project


def test_what_is_linked_is_seen_alive_in_a_snapshot_of_its_own(repo: Path) -> None:
    write(repo, {"data/a/x": "1", "pkg/base.ckpt": "2"})
    plain = freeze(repo)
    both = freeze(repo, link=("data", "./pkg/../pkg/base.ckpt"))
    assert freeze(repo, link=("pkg/base.ckpt", f"{repo}/data")).root == both.root
    head = git(repo, "rev-parse", "HEAD")
    assert plain.root.name == head
    assert re.fullmatch(rf"{head}-[0-9a-f]{{12}}", both.root.name)
    assert freeze(repo, link=("data",)).root not in (plain.root, both.root)
    assert not (plain.root / "data").exists()
    assert (both.root / "data").readlink() == repo / "data"
    links = {name: ("link", os.fsencode(repo / name)) for name in ("data", "pkg/base.ckpt")}
    assert contents(both.root) == {**contents(plain.root), **links}
    write(repo, {"data/a/y": "3"})
    assert (both.root / "data/a/y").read_text() == "3"
    assert both.facts["link"] == ["data", "pkg/base.ckpt"]
    assert both.facts["commit_hash"] == head
    assert "data" in plain.warnings[0]
    assert both.warnings == ()
    assert find_missing(both.root, repo) == []
    alive = freeze(repo, link=("data", "pkg/base.ckpt"), include="all")  # no file of it is taken
    assert (alive.root / "data").readlink() == repo / "data"
    shutil.rmtree(both.root)  # which removes the links alone
    assert (repo / "data/a/y").exists()


def test_paths_are_relative_to_where_the_command_is_typed(repo: Path) -> None:
    write(repo, {"pkg/data/x": "1"})
    frozen = freeze(repo / "pkg", "../main.py", link=("data",))
    assert (frozen.root / "pkg/data/x").read_text() == "1"
    assert frozen.work_dir == frozen.root / "pkg"


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["nothing"], "nothing: there is no .*/proj/nothing.\nPaths are relative"),
        (["dangling"], "there is no "),
        (["../other"], "does not lie in the repository"),
        (["."], "does not lie in the repository"),
        ([".git/hooks"], "does not lie in the repository"),
        (["out/x"], "does not lie in the repository"),
        (["main.py"], "main.py is in the snapshot already"),
        (["pkg"], "pkg is in the snapshot already"),
        (["data", "data/a"], "data/a lies in data: leave it out"),
    ],
)
def test_what_cannot_be_linked_is_told_and_leaves_nothing(repo: Path, paths: list[str], words: str) -> None:
    write(repo.parent, {"other/x": "1"})
    write(repo, {"data/a/x": "1"})
    (repo / "out").symlink_to(repo.parent / "other")
    (repo / "dangling").symlink_to("nowhere")
    with pytest.raises(SnapshotError, match=f"version_manager.link: .*{words}"):
        freeze(repo, link=tuple(paths))
    assert not (repo / ".workdir").exists() or list((repo / ".workdir").glob("*/*[0-9a-f]")) == []


def test_nothing_is_linked_through_a_link_of_the_commit(repo: Path) -> None:
    """In the commit `out` leads elsewhere; by now it is a folder, whose content is to be linked."""
    (repo.parent / "other").mkdir()
    (repo / "out").symlink_to("../other")
    commit(repo, {})
    (repo / "out").unlink()
    write(repo, {"out/new/x": "1"})
    with pytest.raises(SnapshotError, match="leads out of it"):
        freeze(repo, link=("out/new",))
    assert list((repo.parent / "other").iterdir()) == []
    assert leftovers(repo / ".workdir") == []


def test_a_sweep_in_jobs_and_one_here_see_the_data_and_where_it_was_typed(linked: Project) -> None:
    plain = linked.run(VM, "+fail=false")
    assert "data/x.txt None" in plain.stdout
    local = linked.run(VM, f"{LINK}[data,sub/base.ckpt]", "+fail=false")
    linked.submit(VM, f"{LINK}[data,sub/base.ckpt]", "+fail=true")
    linked.await_status("FAILED", log_id=3)
    linked.mlxjobs("requeue", "3")
    linked.await_status("FAILED", log_id=3, attempts=2)
    for text, times in ((local.stdout, 1), (linked.stdout(3), 2)):
        for line in ("data/x.txt 1\n", "sub/base.ckpt 2\n", f"TYPED IN {linked.folder}\n"):
            assert text.count(line) == times
    for log_id in (2, 3):
        info = linked.info(log_id)
        assert info["launch_dir"] == str(linked.folder)
        assert info["work_dir"] == info["version_manager"]["snapshot"]
        assert info["version_manager"]["link"] == ["data", "sub/base.ckpt"]


def test_without_a_snapshot_it_is_the_working_directory(linked: Project) -> None:
    done = linked.command(linked.python, "../main.py", "+fail=false", cwd=linked.folder / "sub")
    assert f"TYPED IN {linked.folder}/sub\n" in done.stdout


def test_settings_that_lead_nowhere_are_named_once(linked: Project) -> None:
    text = (
        "data: {root: ./data, all: [data/x.txt, sub], train: '${data.root}/x.txt'}\ntoken: data\nname: none\n"
    )
    write(linked.folder, {"configs/config.yaml": text})
    linked.commit()
    sweep = ("token=data", "+base=sub/base.ckpt,data")
    start = "these settings look like paths relative to"
    named = "data.all.0=data/x.txt, data.root=./data"
    for submit in (False, True):
        err = (linked.submit if submit else linked.run)(VM, *sweep).stderr
        told = re.findall(rf"{start} {linked.folder}, and are not in the snapshot .* starts: (.*)\.\n", err)
        if submit:  # all are looked at before any is handed in
            assert told == [f"base=data, base=sub/base.ckpt, {named}"]
        else:
            assert told == [f"base=sub/base.ckpt, {named}, data.train=./data/x.txt", "base=data"]
    assert start not in linked.run(VM, *sweep, f"{LINK}[data,sub/base.ckpt]").stderr
    assert start not in linked.run(*sweep).stderr
    done = linked.run(VM, f"{LINK}configs", code=2)
    assert_one_message(done, "configs is in the snapshot already")
