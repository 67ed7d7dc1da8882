"""A file system without hard links: CIFS, some Lustre, BeeGFS, FUSE."""

from __future__ import annotations

import errno

import pytest

from tests.netfs.nodes import TwoNodes
from tests.netfs.project import (
    STEERED,
    SharedProject,
    assert_complete,
    assert_exact,
    start_and_kill,
)
from tests.project import runs

pytestmark = pytest.mark.netfs

ERRORS = [
    pytest.param(errno.EPERM, id="EPERM", marks=pytest.mark.short),
    pytest.param(errno.ENOTSUP, id="ENOTSUP"),
]


@pytest.mark.parametrize("number", ERRORS)
def test_a_run_that_is_killed_and_goes_on_elsewhere_is_exact_without_hard_links(
    nodes: TwoNodes, number: int
) -> None:
    nodes.up(link_errno=number)
    a = SharedProject(nodes, main=STEERED)
    b = a.on(nodes.b)
    start_and_kill(a, 3, "num_epoch=6")
    b.mlxjobs("cancel", "1")

    b.run(*b.again(), "num_epoch=6")

    assert_complete(b, 6)
    assert runs(b) == [1]


def test_jobs_of_a_sweep_are_queued_and_complete_without_hard_links(nodes: TwoNodes) -> None:
    nodes.up(link_errno=errno.EPERM)
    a = SharedProject(nodes)
    a.submit("seed=1,2", "num_epoch=3")
    for log_id in (1, 2):
        a.await_status("COMPLETE", "FAILED", log_id=log_id)
        assert_exact(a, 3, log_id)
    assert runs(a) == [1, 2]
