"""Two nodes over sshfs with its default options, which keeps names and attributes for 20 s."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.fixtures import unavailable
from tests.clusters.machine import ClusterError
from tests.netfs import scenarios
from tests.netfs.nodes import TwoNodes
from tests.netfs.sshfs import Sshfs

pytestmark = pytest.mark.netfs


@pytest.fixture
def sshfs_nodes(tmp_path: Path) -> Iterator[TwoNodes]:
    """Two nodes that are up."""
    folder = tmp_path / "sshd"
    folder.mkdir()
    try:
        client = Sshfs(folder)
    except ClusterError as error:
        unavailable(str(error))
    nodes = TwoNodes(tmp_path, client)
    try:
        nodes.up()
        yield nodes
    finally:
        nodes.down()
        client.down()


def test_a_run_that_was_looked_at_elsewhere_goes_on_there_and_has_each_epoch_once(
    sshfs_nodes: TwoNodes,
) -> None:
    scenarios.goes_on_where_it_was_looked_at(sshfs_nodes)


@pytest.mark.parametrize("what", scenarios.WRITERS.values(), ids=scenarios.WRITERS)
def test_an_attempt_that_was_given_up_but_lives_on_replaces_nothing_of_its_successor(
    sshfs_nodes: TwoNodes, what: tuple[str, ...]
) -> None:
    scenarios.is_given_up_and_lives_on(sshfs_nodes, what)
