"""Two nodes for a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clusters.fixtures import unavailable
from tests.clusters.machine import ClusterError
from tests.netfs.nodes import Nfsish, TwoNodes


@pytest.fixture(scope="session")
def nfsish(tmp_path_factory: pytest.TempPathFactory) -> Nfsish:
    """The imitated NFS client, built once."""
    try:
        return Nfsish(tmp_path_factory.mktemp("nfsish"))
    except ClusterError as error:
        unavailable(str(error))


@pytest.fixture
def nodes(nfsish: Nfsish, tmp_path: Path) -> Iterator[TwoNodes]:
    """Two nodes over the imitated NFS; the test switches them on, with the knobs that it wants."""
    nodes = TwoNodes(tmp_path, nfsish)
    yield nodes
    nodes.down()
