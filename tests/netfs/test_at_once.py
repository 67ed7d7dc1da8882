"""What both nodes do at the same time, in one log directory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.netfs.nodes import TwoNodes
from tests.netfs.project import (
    SharedProject,
    assert_exact,
    assert_no_leftovers,
    assert_nothing_found,
    end_of,
    reach,
    views,
)
from tests.project import await_value, names, runs

pytestmark = pytest.mark.netfs

# Many processes make a run each; all begin when the file `start` is there, and print number and owner.
MAKE_RUNS = """
import os, sys, time
from pathlib import Path
from mlxjobs.record.run import Run

logs, count, start = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
for _ in range(count):
    if os.fork() == 0:
        while not start.exists():
            time.sleep(0.001)
        run = Run.create(logs)
        me = f"{os.uname().nodename}/{os.getpid()}"
        run.record(lambda state: {"event": "created", "facts": {"me": me}})
        os.write(1, f"{run.log_id} {me}\\n".encode())
        os._exit(0)
print("ready", flush=True)
for _ in range(count):
    os.wait()
"""


@pytest.mark.parametrize("knobs", views())
def test_processes_of_both_nodes_take_numbers_without_a_gap_and_each_once(
    nodes: TwoNodes, tmp_path: Path, knobs: dict[str, int]
) -> None:
    nodes.up(**knobs)
    project, count = SharedProject(nodes), 24
    start = tmp_path / "start"
    command = [project.python, "-c", MAKE_RUNS, str(project.seen / "logs"), str(count), str(start)]
    makers = [node.start(*command) for node in (nodes.a, nodes.b)]
    for maker in makers:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "ready\n"
    start.touch()

    lines = [line for maker in makers for line in end_of(maker).splitlines()]

    owners = {int(number): me for number, me in (line.split() for line in lines)}
    assert sorted(owners) == runs(project) == list(range(1, 2 * count + 1)), lines
    for number, me in owners.items():
        assert [event["facts"] for event in project.events(number)] == [{"me": me}]


@pytest.mark.parametrize("knobs", views())
def test_of_two_nodes_that_make_the_same_run_at_once_one_is_refused(
    nodes: TwoNodes, knobs: dict[str, int]
) -> None:
    nodes.up(**knobs)
    a = SharedProject(nodes)
    a.run("num_epoch=1")
    assert_one_is_refused(a, a.on(nodes.b))


@pytest.mark.parametrize("knobs", views("defaults"))
def test_of_two_nodes_that_start_the_same_run_again_at_once_one_is_refused(
    nodes: TwoNodes, knobs: dict[str, int]
) -> None:
    nodes.up(**knobs)
    a = SharedProject(nodes)
    b = a.on(nodes.b)
    a.run("num_epoch=1")
    a.let_pass(2)
    first = a.start("num_epoch=5")
    reach(first, a, 1, log_id=2)
    nodes.a.kill(a.pid(attempt=1, log_id=2))
    end_of(first)
    assert " 2 " in b.mlxjobs("ls").stdout
    b.mlxjobs("cancel", "2")
    a.mlxjobs("ls")  # both have seen it as it was
    assert_one_is_refused(a, b)


def assert_one_is_refused(a: SharedProject, b: SharedProject) -> None:
    """Start run 2 on both: one says in a sentence that it cannot, the other has each epoch once."""
    a.let_pass(3)
    b.let_pass(3)
    started = [project.start(*project.again(2), "num_epoch=5") for project in (a, b)]

    ended = await_value(lambda: [one for one in started if one.poll() is not None], "one to be refused", 30)
    a.let_pass(5)
    b.let_pass(5)
    said = {one: end_of(one) for one in started}

    (loser,) = ended
    (winner,) = (one for one in started if one is not loser)
    assert (winner.returncode, loser.returncode) == (0, 2), said
    assert said[loser].count("mlxjobs: error: ") == 1
    assert "Traceback" not in said[loser]
    assert_exact(a, 5, log_id=2)
    assert a.state(2).status == "COMPLETE"
    assert runs(a) == [1, 2]
    assert_nothing_found(a if winner is started[0] else b)  # the other one may see for a minute what was


FROZEN = "+mlxpy.use_version_manager=true"


@pytest.mark.parametrize("knobs", views())
def test_code_that_both_nodes_freeze_at_once_is_frozen_once_and_whole(
    nodes: TwoNodes, knobs: dict[str, int]
) -> None:
    nodes.up(**knobs)
    a = SharedProject(nodes)
    b = a.on(nodes.b)
    commit = a.commit()
    started = [project.start(FROZEN, "num_epoch=3") for project in (a, b, a, b)]

    said = [end_of(one) for one in started]

    assert [one.returncode for one in started] == [0] * 4, said
    assert runs(a) == [1, 2, 3, 4]
    for number in runs(a):
        assert_exact(a, 3, number)
    frozen = a.folder / ".workdir" / a.folder.name
    assert [name for name in names(frozen) if not name.startswith(".")] == [commit]
    assert_no_leftovers(a, frozen)
    assert_nothing_found(b)


@pytest.mark.parametrize("knobs", views())
def test_a_launch_beside_a_prune_on_the_other_node_has_its_code(
    nodes: TwoNodes, knobs: dict[str, int]
) -> None:
    nodes.up(**knobs)
    a = SharedProject(nodes)
    b = a.on(nodes.b)
    a.commit()
    a.run(FROZEN, "num_epoch=3")
    for _ in range(2):
        make_old(a.folder)
        prune = b.node.start(
            b.python, "-m", "mlxjobs", "snapshots", "prune", "--older-than", "1h", cwd=b.seen, env=b.env
        )
        launch = a.start(FROZEN, "num_epoch=3")
        pruned, said = end_of(prune), end_of(launch)
        assert prune.returncode == 0, pruned
        assert launch.returncode == 0, said
    make_old(a.folder)
    b.mlxjobs("snapshots", "prune", "--older-than", "1h")  # a knows the folder that goes
    a.run(FROZEN, "num_epoch=3")

    for number in (1, 2, 3, 4):
        assert_exact(a, 3, number)
    assert_no_leftovers(a, a.folder / ".workdir")


def make_old(project: Path) -> None:
    """Let all runs and frozen code be of three days ago, so that nothing is kept for being new."""
    then = time.time() - 3 * 86400
    for top in (project / ".workdir", project / "logs"):
        for parent, folders, files in os.walk(top, topdown=False):
            for name in (*folders, *files):
                os.utime(Path(parent, name), (then, then), follow_symlinks=False)
