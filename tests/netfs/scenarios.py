"""What happens to runs on two nodes over any network file system, and what must be true at the end."""

from __future__ import annotations

import signal

from tests.netfs.nodes import TwoNodes
from tests.netfs.project import (
    OPTIONS,
    PROGRAM,
    Sampler,
    SharedProject,
    artifact_writer,
    assert_exact,
    assert_nothing_found,
    checkpoint_writer,
    end_of,
    has_ended,
    reach,
)

WRITERS = {
    "metrics-and-checkpoints": ("metrics=true", "checkpoints=true"),
    "checkpoints": ("checkpoints=true",),
    "artifacts": ("artifacts=true",),
}
"""What a task may write, as options of `PROGRAM`."""


def goes_on_where_it_was_looked_at(nodes: TwoNodes) -> None:
    """A run is looked at on B, goes on and is killed on A, and goes on on B: each epoch is there once."""
    a = SharedProject(nodes)
    b = a.on(nodes.b)
    a.let_pass(5)
    first = a.start("num_epoch=12")
    reach(first, a, 4)
    assert "RUNNING" in b.mlxjobs("ls").stdout
    a.let_pass(9)
    reach(first, a, 8)
    nodes.a.kill(a.pid(attempt=1))
    end_of(first)

    b.mlxjobs("cancel", "1")
    b.run(*b.again(), "num_epoch=12")

    assert_exact(b, 12)
    assert b.state().status == "COMPLETE"
    assert_nothing_found(b)


def is_given_up_and_lives_on(nodes: TwoNodes, what: tuple[str, ...]) -> None:
    """An attempt on A is given up and lives on while B goes on: it replaces nothing of B's, and ends."""
    a = SharedProject(nodes, main=PROGRAM, config=OPTIONS)
    b = a.on(nodes.b)
    first = a.start(*what)
    with (
        Sampler(a.at().artifacts / "Checkpoint" / "checkpoint.pkl", checkpoint_writer) as checkpoints,
        Sampler(a.at().artifacts / "json" / "progress.json", artifact_writer) as artifacts,
    ):
        written = artifacts if "artifacts=true" in what else checkpoints
        written.await_values(5, 1, first)
        b.mlxjobs("cancel", "1")
        second = b.start(*b.again(), *what)
        written.await_values(20, 2, second)
        first_said = end_of(first) if has_ended(first, 20) else "lives on"
        b.let_pass(0)
        said = end_of(second)

    assert checkpoints.times_an_older_came_back() == 0, checkpoints.values
    assert artifacts.times_an_older_came_back() == 0, artifacts.values
    assert second.returncode == 0, said
    assert first.returncode == 76, first_said
    if "metrics=true" in what:
        assert_exact(b, len(b.epochs()))
    assert b.state().status == "COMPLETE"
    assert_nothing_found(b)


def is_stopped_and_continues(nodes: TwoNodes) -> None:
    """An attempt on A is stopped, and continues when B has gone on: it writes nothing, and ends."""
    a = SharedProject(nodes)
    b = a.on(nodes.b)
    a.let_pass(5)
    first = a.start("num_epoch=12")
    reach(first, a, 4)
    assert "RUNNING" in b.mlxjobs("ls").stdout  # so b has names and sizes in its cache
    nodes.a.kill(a.pid(attempt=1), signal.SIGSTOP)
    b.mlxjobs("cancel", "1")
    b.let_pass(9)
    second = b.start(*b.again(), "num_epoch=12")
    b.await_event("resumed", attempt=2)
    reach(second, b, 8)

    a.let_pass(12)
    nodes.a.kill(a.pid(attempt=1), signal.SIGCONT)
    said = end_of(first, 20) if has_ended(first, 20) else "lives on"
    b.let_pass(12)
    b_said = end_of(second)

    assert first.returncode == 76, said
    assert second.returncode == 0, b_said
    assert_exact(b, 12)
    assert b.state().status == "COMPLETE"
    assert_nothing_found(b)
