"""Which snapshots there are and who uses them; what nobody needs goes, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.care import pruning
from mlxjobs.care.pruning import Pruning, remove_tree
from mlxjobs.code import flushing, gitvm, sharing
from mlxjobs.code import git as repository
from mlxjobs.code.copying import make_snapshot
from mlxjobs.code.git import Commit
from mlxjobs.code.snapshots import Snapshot, Usage, find_snapshots
from mlxjobs.code.users import leave_mark, marks_of
from mlxjobs.errors import SnapshotError
from tests.code.repos import add_submodule, commit, contents, freeze, git, new_repo, write
from tests.project import Project

QUICK = """import mlxpy, pathlib
@mlxpy.launch(config_path='./configs')
def main(ctx):
    if pathlib.Path(ctx.config.flag).exists(): raise ValueError("broken")
main()
"""
FROZEN = ("+mlxpy.use_version_manager=true", "+mlxpy.interactive_mode=false")
LONG_AGO = time.time() - 40 * 86400


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "proj", main=QUICK, config=f"flag: {tmp_path}/flag\n")


def let_time_pass(project: Project, *more: Path) -> None:
    """Have all that was launched, and has ended, be of 40 days ago."""
    for path in (
        *project.folder.glob(".workdir/*/.*.log-*"),
        *project.logs.glob("*/metadata/.history"),
        *more,
    ):
        os.utime(path, (LONG_AGO, LONG_AGO))


def root_of(project: Project, log_id: int = 1) -> Path:
    return Path(project.info(log_id)["version_manager"]["snapshot"])


def frozen_long_ago(tmp_path: Path) -> Snapshot:
    """A snapshot of a run that is long gone, as `find` gives it."""
    repo, logs = new_repo(tmp_path / "proj"), tmp_path / "logs"
    logs.mkdir(exist_ok=True)
    root = freeze(repo, log_dir=logs).root
    flushing.finish(root)  # nothing happens there any more
    (mark,) = marks_of(root)
    os.utime(mark.path, (LONG_AGO, LONG_AGO))
    (one,) = find_snapshots([root.parent.parent])
    return one


# ---- lists ----


def test_snapshots_are_listed_with_their_runs_of_all_projects(project: Project, tmp_path: Path) -> None:
    assert project.mlxjobs("snapshots").stdout == "no snapshots\n"
    head = project.commit()
    other = f"+mlxpy.logger.parent_log_dir={tmp_path}/elsewhere"
    project.run(*FROZEN)
    project.run(*FROZEN, other)
    project.run(*FROZEN)

    title, line = project.mlxjobs("snapshots").stdout.splitlines()
    assert title.split() == ["snapshot", "size", "shared", "launched", "runs"]
    assert line.split()[0] == f"proj/{head[:12]}"
    assert line.endswith(f"  1-2; 1 in {tmp_path}/elsewhere")
    one = json.loads(project.mlxjobs("snapshots", "--json").stdout)
    assert one["runs"] == {str(project.logs): [1, 2], f"{tmp_path}/elsewhere": [1]}
    assert one["snapshot"] == str(root_of(project))
    assert one["size"] >= (root_of(project) / "main.py").stat().st_blocks * 512


def test_a_file_that_snapshots_share_is_counted_apart(tmp_path: Path) -> None:
    write(tmp_path, {"a/own": "x", "a/both": "y" * 9000, "a/twice": "z" * 9000})
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a/both", tmp_path / "b/both")
    os.link(tmp_path / "a/twice", tmp_path / "a/again")
    blocks = {name: (tmp_path / "a" / name).stat().st_blocks * 512 for name in ("own", "both", "twice", ".")}
    one, two = Usage(), Usage()
    one.add(tmp_path / "a")
    two.add(tmp_path / "b")
    assert (one.own, one.shared) == (blocks["own"] + blocks["twice"] + blocks["."], blocks["both"])
    two.merge(one)
    assert two.shared == 0


def test_snapshots_in_the_home_folder_are_listed_and_what_is_no_record_does_not_hide_them(
    project: Project, tmp_path: Path
) -> None:
    head = project.commit()
    project.env["HOME"] = str(tmp_path / "home")
    write(project.folder, {"configs/mlxpy.yaml": "version_manager:\n  parent_work_dir: ~/snaps\n"})
    for folder in "home", "room":
        (tmp_path / folder).mkdir()
    (tmp_path / "home" / "snaps").symlink_to(tmp_path / "room")
    project.run(*FROZEN)
    assert (tmp_path / "room" / "proj" / head / "main.py").exists()
    for log_id, facts in (("7", {"snapshot": "a\0b"}), ("8", {"snapshot": "/x", "link": 5})):
        about = {"version_manager": {"commit_hash": head, "repo_path": "/x", **facts}}
        write(project.logs, {f"{log_id}/metadata/info.yaml": json.dumps(about)})
    _title, line = project.mlxjobs("snapshots").stdout.splitlines()  # once, though there are two ways to it
    assert line.split()[0] == f"proj/{head[:12]}"


# ---- what is kept ----


def test_the_code_of_a_run_in_the_queue_of_another_project_is_kept(tmp_path: Path) -> None:
    project = Project(tmp_path / "proj")  # its epochs end when they are let
    project.env["MLXJOBS_LOCAL_JOBS"] = "1"
    project.commit()
    project.let_pass(0)
    elsewhere = tmp_path / "elsewhere"
    other = f"+mlxpy.logger.parent_log_dir={elsewhere}"
    for _ in range(2):  # one runs, one waits
        project.submit(*FROZEN, other, "num_epoch=1")
    let_time_pass(project, *elsewhere.glob("*/metadata/.history"))

    said = project.mlxjobs("snapshots", "prune").stdout  # its own logs know of no run
    assert f": kept, run 1 of {elsewhere} is " in said
    project.mlxjobs("cancel", "1", "--logs", str(elsewhere))
    let_time_pass(project, *elsewhere.glob("*/metadata/.history"))
    assert f"run 2 of {elsewhere} is " in project.mlxjobs("snapshots", "prune").stdout

    project.let_pass(10**6)
    project.logs = elsewhere
    project.await_status("COMPLETE", log_id=2)
    assert f" of {elsewhere} ended " in project.mlxjobs("snapshots", "prune").stdout
    let_time_pass(project)
    assert "\n1 removed, 0 kept; " in project.mlxjobs("snapshots", "prune").stdout
    assert [path.name for path in project.folder.glob(".workdir/proj/*") if path.is_dir()] == []


def test_what_cannot_be_known_keeps_a_snapshot(tmp_path: Path) -> None:
    one = frozen_long_ago(tmp_path)
    logs, own = tmp_path / "logs", tmp_path / "own"
    assert Pruning(own, 0).why_kept(one) is None

    def why() -> str:
        (found,) = find_snapshots([one.root.parent.parent])
        return Pruning(own, 86400).why_kept(found) or ""

    (logs / "1" / "metadata" / ".history").mkdir(parents=True)
    assert "run 1 of" in why()  # it is being made
    assert "is being made" in why()
    write(logs, {"1/metadata/.history/0001.json": "{torn"})
    assert "run 1 of" in why()
    assert "cannot be read" in why()
    shutil.rmtree(logs)
    assert why() == ""  # its runs were removed
    mark, here = one.marks[0], os.uname().nodename
    # not mounted, or on a disk of another machine
    for place, host in (("/not/mounted/logs", here), (str(logs), "another")):
        mark.path.write_text(json.dumps({"logs": place, "repo": "/x", "host": host}))
        os.utime(mark.path, (LONG_AGO, LONG_AGO))
        assert f"{place}, whose runs use it, is not there now; it was used on {host}" in why()
    mark.path.write_text("{torn")
    assert "launched from" in why()
    no_folder = json.dumps({"logs": "logs", "repo": "/x", "host": here})
    for content in ("{torn", "[" * 100_000, no_folder):
        mark.path.write_text(content)
        os.utime(mark.path, (LONG_AGO, LONG_AGO))
        assert "who uses it is not known" in why()
    mark.path.write_text(no_folder.replace(': "logs"', ': "/a\\u0000b"'))
    os.utime(mark.path, (LONG_AGO, LONG_AGO))
    why()  # is no traceback
    mark.path.unlink()
    os.mkfifo(mark.path)  # nobody ever writes to it
    os.utime(mark.path, (LONG_AGO, LONG_AGO))
    assert "who uses it is not known" in why()
    mark.path.unlink()
    assert "no launch has noted" in why()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_users_snapshot_is_kept(tmp_path: Path) -> None:
    one = frozen_long_ago(tmp_path)
    os.chown(one.root, 12345, 12345)
    assert "belongs to 12345" in (Pruning(tmp_path / "own", 0).why_kept(one) or "")


# ---- a launch and a removal at the same moment ----


def test_a_launch_wins_over_a_removal_that_has_begun(tmp_path: Path) -> None:
    one = frozen_long_ago(tmp_path)
    beside = one.root.with_name(f".{one.root.name}.index")
    beside.write_text("x")
    pruning = Pruning(tmp_path / "own", 0)
    assert pruning.why_kept(one) is None
    leave_mark(one.root, tmp_path / "logs", tmp_path / "proj")  # the launch has seen the snapshot
    before = sorted(one.root.parent.rglob("*"))

    assert pruning.remove(one) is None

    assert sorted(one.root.parent.rglob("*")) == before


def test_a_launch_makes_a_snapshot_again_that_is_removed_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = frozen_long_ago(tmp_path)
    pruning = Pruning(tmp_path / "own", 0)
    removals: list[Usage | None] = []

    def late(root: Path, logs: Path, repo: Path) -> None:
        if not removals:  # between the look at the snapshot and the mark
            removals.append(pruning.remove(one))
        leave_mark(root, logs, repo)

    monkeypatch.setattr(gitvm, "leave_mark", late)
    assert (freeze(tmp_path / "proj", log_dir=tmp_path / "logs").root / "main.py").is_file()
    assert removals[0] is not None


@pytest.mark.parametrize("moment", ["before it is linked", "after it"])
def test_a_snapshot_is_whole_whose_files_were_shared_with_one_that_is_removed(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = frozen_long_ago(tmp_path)
    repo, removals = tmp_path / "proj", []
    commit(repo, {"new.py": "x\n"})
    link = sharing._link

    def slow(*arguments: Any) -> None:
        if moment == "after it":
            link(*arguments)
        removals.append(Pruning(tmp_path / "own", 0).remove(one))
        if moment != "after it":
            link(*arguments)

    monkeypatch.setattr(sharing, "_link", slow)
    assert contents(freeze(repo).root) == contents(repo)
    assert removals[0] is not None


def test_a_launch_that_cannot_note_its_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr(gitvm, "leave_mark", refuse)
    with pytest.raises(SnapshotError, match="cannot be noted beside it: Permission denied"):
        freeze(new_repo(tmp_path / "proj"), log_dir=tmp_path / "logs")


# ---- what keeps commits of our own ----


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with edits in a submodule."""
    monkeypatch.setattr(flushing, "finish_later", lambda root: None)  # it would write beside what is removed
    repo = new_repo(tmp_path / "proj")
    add_submodule(repo, new_repo(tmp_path / "low"), "sub")
    write(repo, {"sub/main.py": "edited"})
    return repo


def launch(repo: Path) -> Path:
    return freeze(repo, include="tracked", log_dir=repo.parent / "logs").root


def prune(root: Path) -> None:
    """Remove a snapshot that no run names, as if it were of 40 days ago, and forget its commits."""
    known = find_snapshots([root.parent.parent])
    (mark,) = next(one for one in known if one.root == root).marks
    os.utime(mark.path, (LONG_AGO, LONG_AGO))
    known = find_snapshots([root.parent.parent])
    one = next(one for one in known if one.root == root)
    pruner = Pruning(root.parent.parent / "no logs", 0)
    assert pruner.why_kept(one) is None
    assert pruner.remove(one) is not None
    pruner.forget(one, known)


def collect(repo: Path) -> None:
    for place in repo / "sub", repo:
        git(place, "gc", "-q", "--prune=now")


def assert_kept(repo: Path, root: Path) -> None:
    """The code can be made again, whatever git collects."""
    collect(repo)
    folder = repo.parent / "again" / root.name
    make_snapshot(Commit(repo, root.name, None), folder)
    assert (folder / "sub" / "main.py").read_text() == "edited"


def references(repo: Path) -> str:
    return git(repo, "for-each-ref", "refs/mlxjobs") + git(repo / "sub", "for-each-ref", "refs/mlxjobs")


def test_the_edits_of_a_submodule_are_kept_as_long_as_a_snapshot_has_them(edited: Path) -> None:
    one = launch(edited)
    write(edited, {"main.py": "edited too"})
    other = launch(edited)
    prune(one)
    assert one.name not in references(edited)
    assert_kept(edited, other)
    prune(other)
    assert references(edited) == ""
    assert list(other.parent.iterdir()) == []


@pytest.mark.parametrize("is_collected", [False, True])
def test_a_launch_keeps_the_commits_that_are_forgotten_under_it(
    is_collected: bool, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = launch(edited)
    removed: list[Path] = []

    def late(*mark: Path) -> None:
        if not removed:  # it has seen the snapshot and the references, and has left no mark
            removed.append(root)
            prune(root)
            if is_collected:
                collect(edited)
        leave_mark(*mark)

    monkeypatch.setattr(gitvm, "leave_mark", late)
    if is_collected:
        with pytest.raises(SnapshotError, match="Launch again"):
            launch(edited)
    assert launch(edited) == root
    assert removed
    assert_kept(edited, root)


@pytest.mark.parametrize("moment", ["before the references go", "before the marks go"])
def test_what_a_launch_needs_is_not_forgotten_that_comes_meanwhile(
    moment: str, edited: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = launch(edited)
    again: list[Path] = []
    run, remove_marks = repository.run, pruning._remove_marks

    def come(is_now: bool) -> None:
        if is_now and not again:
            again.append(root)
            assert launch(edited) == root

    def slow_run(*arguments: Any, **more: Any) -> Any:
        come("-d" in arguments and moment == "before the references go")
        return run(*arguments, **more)

    def slow_remove(one: Snapshot) -> None:
        come(moment == "before the marks go")
        remove_marks(one)

    monkeypatch.setattr(repository, "run", slow_run)
    monkeypatch.setattr(pruning, "_remove_marks", slow_remove)
    prune(root)
    assert again
    assert len(marks_of(root)) == 1
    assert_kept(edited, root)


# ---- what goes, and comes back ----


def test_a_run_whose_snapshot_was_pruned_has_it_again_when_it_is_requeued(
    project: Project, tmp_path: Path
) -> None:
    project.commit()
    (project.folder / "data").mkdir()
    (tmp_path / "flag").touch()
    project.submit(*FROZEN, "+mlxpy.version_manager.link=[data]")
    project.await_status("FAILED")
    root = root_of(project)
    assert "-" in root.name  # it has links
    (root / "left" / "by").mkdir(parents=True)
    (root / "left").chmod(0o500)
    let_time_pass(project)

    assert "1 to remove, 0 kept" in project.mlxjobs("snapshots", "prune", "--dry-run").stdout
    assert root.is_dir()
    assert "1 kept" in project.mlxjobs("snapshots", "prune", "--older-than", "6w").stdout
    one = json.loads(project.mlxjobs("snapshots", "prune", "--json").stdout)
    assert one["removed"]
    assert one["size"] > 0
    assert not root.exists()
    assert project.mlxjobs("snapshots").stdout.splitlines()[1].split()[1] == "removed"

    (tmp_path / "flag").unlink()
    project.mlxjobs("requeue", "1")
    project.await_status("COMPLETE")
    assert (root / "main.py").is_file()
    assert (root / "data").readlink() == project.folder / "data"
    assert "launched from" in project.mlxjobs("snapshots", "prune", "--older-than", "0s").stdout


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_whose_code_was_tidied_away_has_it_again_when_it_is_requeued(
    project: Project, tmp_path: Path, damaged: bool
) -> None:
    project.commit()
    (tmp_path / "flag").touch()
    project.submit(*FROZEN)
    project.await_status("FAILED")
    root = root_of(project)
    (root / "main.py").unlink()  # by its age, as scratch disks do
    if damaged:
        root.with_name(f".{root.name}.0.index").write_bytes(b"DIRC")
    (tmp_path / "flag").unlink()
    project.mlxjobs("requeue", "1")
    project.await_status("COMPLETE")
    assert (root / "main.py").read_text() == (project.folder / "main.py").read_text()


def test_a_run_whose_code_is_gone_for_good_is_not_requeued(project: Project, tmp_path: Path) -> None:
    project.commit()
    (tmp_path / "flag").touch()
    project.submit(*FROZEN)
    project.await_status("FAILED")
    remove_tree(root_of(project))
    shutil.rmtree(project.folder / ".git")
    said = project.mlxjobs("requeue", "1", code=2).stderr
    assert "run 1 cannot start again: the code is gone" in said
    assert project.state().submissions == 1


def test_a_commit_of_our_own_is_kept_while_a_run_names_it(project: Project) -> None:
    project.commit()
    (project.folder / "main.py").write_text(QUICK + "# edited\n")
    project.run(*FROZEN, "+mlxpy.version_manager.include=tracked")
    root = root_of(project)
    let_time_pass(project)
    project.mlxjobs("snapshots", "prune")
    assert not root.exists()
    assert git(project.folder, "for-each-ref", "refs/mlxjobs/", "--format=%(objectname)") == root.name
    project.mlxjobs("checkout", "1", "out")
    assert (project.folder / "out" / "main.py").read_text().endswith("# edited\n")

    shutil.rmtree(project.logs / "1")
    project.mlxjobs("snapshots", "prune")
    assert git(project.folder, "for-each-ref", "refs/mlxjobs/") == ""
    assert os.listdir(root.parent) == []


def test_a_time_that_is_none_is_a_message(project: Project) -> None:
    assert "as in 30d" in project.mlxjobs("snapshots", "prune", "--older-than", "soon", code=2).stderr
