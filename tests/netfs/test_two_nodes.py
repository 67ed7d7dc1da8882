"""A run that moves from one node to another, where each node's view of the shared folder may be old."""

from __future__ import annotations

from typing import Any

import pytest

from tests.netfs import scenarios
from tests.netfs.nodes import TwoNodes
from tests.netfs.project import views

pytestmark = pytest.mark.netfs


@pytest.mark.parametrize("knobs", views("defaults", "write-behind"))
def test_a_run_that_was_looked_at_elsewhere_goes_on_there_and_has_each_epoch_once(
    nodes: TwoNodes, knobs: dict[str, int]
) -> None:
    nodes.up(**knobs)
    scenarios.goes_on_where_it_was_looked_at(nodes)


def writers(*short: str) -> list[Any]:
    """What a task writes; what is named belongs to `make test`."""
    found = []
    for name, words in scenarios.WRITERS.items():
        marks = [pytest.mark.short] if name in short else []
        found += [
            pytest.param(words, {}, id=name, marks=marks),
            pytest.param(words, {"delay": 1}, id=f"{name}-write-behind"),
        ]
    return found


@pytest.mark.parametrize(("what", "knobs"), writers("metrics-and-checkpoints", "checkpoints"))
def test_an_attempt_that_was_given_up_but_lives_on_replaces_nothing_of_its_successor(
    nodes: TwoNodes, what: tuple[str, ...], knobs: dict[str, int]
) -> None:
    nodes.up(**knobs)
    scenarios.is_given_up_and_lives_on(nodes, what)


@pytest.mark.parametrize("knobs", views("defaults"))
def test_a_stopped_attempt_that_continues_after_its_successor_began_ends_and_writes_nothing(
    nodes: TwoNodes, knobs: dict[str, int]
) -> None:
    nodes.up(**knobs)
    scenarios.is_stopped_and_continues(nodes)
