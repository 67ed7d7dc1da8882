"""A request to the server that fails once, in the middle of a run."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from tests.netfs.nodes import TwoNodes
from tests.netfs.project import STEERED, LogsApart, SharedProject, assert_complete, end_of, start_and_kill
from tests.project import runs

pytestmark = pytest.mark.netfs


def fails(op: str, name: str, number: int, at: int = 1) -> Any:
    knobs = {"fail_op": op, "match": name, "fail_errno": number, "fail_at": at}
    return pytest.param(knobs, id=f"{op}-{name}-{at}-{errno.errorcode[number]}")


@pytest.mark.parametrize(
    "knobs",
    [
        fails("mkdir", "metrics", errno.EDQUOT),
        fails("mkdir", ".attempt-1", errno.EDQUOT),
        fails("write", ".0001.json*", errno.EIO),
        fails("link", "0002.json", errno.EIO),
        fails("open", "0001.json", errno.ESTALE),
        fails("fsyncdir", ".history", errno.EIO, at=2),
        fails("rename", "info.yaml", errno.EIO),
        fails("create", "train.json", errno.EDQUOT),
        fails("write", "train.json", errno.EIO, at=3),
        fails("write", "train.json", errno.ESTALE, at=3),
        fails("fsync", "train.json", errno.EDQUOT, at=3),
        fails("create", "*last_ckpt*", errno.EDQUOT, at=3),
        fails("write", "*last_ckpt*", errno.EDQUOT, at=3),
        fails("flush", "*last_ckpt*", errno.EDQUOT, at=3),
        fails("rename", "last_ckpt.pkl", errno.EIO, at=3),
        fails("link", "*last_ckpt*", errno.EIO, at=2),
        fails("unlink", "*last_ckpt*", errno.EIO, at=1),
        fails("opendir", "Checkpoint", errno.ESTALE),
        fails("write", "progress.json", errno.EDQUOT, at=3),
        fails("rename", "progress.json", errno.EIO, at=3),
    ],
)
def test_a_run_with_an_error_goes_on_or_says_so_and_is_exact_when_it_is_started_again(
    nodes: TwoNodes, knobs: dict[str, Any]
) -> None:
    nodes.up()
    project = LogsApart(nodes, main=STEERED)
    nodes.a.set(**knobs)
    program = project.start("num_epoch=6")
    said = end_of(program)
    nodes.a.set()

    assert len(nodes.a.disturbed()) == 1
    finish(project, program.returncode, said, knobs["fail_errno"])


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize("op", ["open", "read", "create", "write", "rename", "mkdir", "opendir", "fsync"])
def test_a_second_attempt_with_an_error_goes_on_or_says_so_and_the_next_is_exact(
    nodes: TwoNodes, op: str, at: int
) -> None:
    nodes.up()
    a = LogsApart(nodes, main=STEERED)
    b = a.on(nodes.b)
    start_and_kill(a, 3, "num_epoch=6")
    b.mlxjobs("cancel", "1")

    nodes.b.set(fail_op=op, fail_errno=errno.EIO, fail_at=at)
    second = b.start(*b.again(), "num_epoch=6")
    said = end_of(second)
    nodes.b.set()

    assert len(nodes.b.disturbed()) == 1
    finish(b, second.returncode, said, errno.EIO)


def finish(project: SharedProject, code: int, said: str, number: int) -> None:
    """The run is complete if its program said so, and else after it is started again."""
    if code != 0:
        assert os.strerror(number) in said, f"{code}: {said}"
        assert_no_traceback_of_ours(said)
        begun = [log_id for log_id in runs(project) if project.events(log_id)]
        project.run(*(project.again(begun[-1]) if begun else ()), "num_epoch=6")
    assert_complete(project, 6, runs(project)[-1])


def assert_no_traceback_of_ours(said: str) -> None:
    """A sentence, or the traceback of the task: it begins in the user's program."""
    if "Traceback" in said:
        first_file = said.rpartition("Traceback (most recent call last):")[2].split('"')[1]
        assert first_file.endswith("/main.py"), said
    else:
        assert said.count("mlxjobs: error: ") == 1, said
