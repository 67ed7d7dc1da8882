"""Requests to the server that were done and are told as failed, that fail, or that it does not know.

A client that gets no answer sends its request again; the server, which may have forgotten that it did it,
says that the name exists already, or exists no more.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.netfs.nodes import TwoNodes
from tests.netfs.project import (
    STEERED,
    SharedProject,
    assert_complete,
    start_and_kill,
)
from tests.project import runs

pytestmark = pytest.mark.netfs

ONCE = {
    "link-event-1": {"link_retrans": 1, "match": "0001.json"},
    "link-event-2": {"link_retrans": 1, "match": "0002.json"},
    "link-event-3": {"link_retrans": 1, "match": "0003.json"},
    "link-checkpoint-before": {"link_retrans": 1, "match": "*ckpt*"},
    "mkdir-run": {"mkdir_retrans": 1, "match": "1"},
    "mkdir-metadata": {"mkdir_retrans": 1, "match": "metadata"},
    "mkdir-history": {"mkdir_retrans": 1, "match": ".history"},
    "mkdir-metrics": {"mkdir_retrans": 1, "match": "metrics"},
    "mkdir-artifacts": {"mkdir_retrans": 1, "match": "artifacts"},
    "mkdir-attempt": {"mkdir_retrans": 1, "match": ".attempt-*"},
    "rename-info": {"rename_retrans": 1, "match": "info.yaml"},
    "rename-config": {"rename_retrans": 1, "match": "config.yaml"},
    "rename-configuration": {"rename_retrans": 1, "match": ".frozen.yaml"},
    "rename-copy-for-the-reader": {"rename_retrans": 1, "match": ".info.json"},
    "rename-keys": {"rename_retrans": 1, "match": "metrics.yaml"},
    "rename-checkpoint": {"rename_retrans": 1, "match": "last_ckpt.pkl"},
    "rename-checkpoint-before": {"rename_retrans": 1, "match": "last_ckpt.pkl.*"},
    "rename-artifact": {"rename_retrans": 1, "match": "progress.json"},
    "unlink-event-aside": {"unlink_retrans": 1, "match": ".000[123].json.*"},
    "unlink-checkpoint": {"unlink_retrans": 1, "match": "*ckpt*"},
    "unlink-artifact": {"unlink_retrans": 1, "match": "*progress*"},
}
SHORT = ("link-event-1", "rename-checkpoint", "mkdir-run")


@pytest.mark.parametrize(
    "knobs",
    [pytest.param(ONCE[n], id=n, marks=[pytest.mark.short] * (n in SHORT)) for n in ONCE],
)
def test_a_run_whose_request_was_sent_twice_completes_as_any_other(
    nodes: TwoNodes, knobs: dict[str, Any]
) -> None:
    nodes.up()
    a = SharedProject(nodes, main=STEERED)
    nodes.a.set(**knobs, times=1)

    done = a.run("num_epoch=4")

    assert len(nodes.a.disturbed()) == 1
    assert_complete(a, 4)
    assert done.stderr == ""
    assert runs(a) == [1]
    assert "COMPLETE" in a.on(nodes.b).mlxjobs("ls").stdout


EVERY = {
    "link": {"link_retrans": 1},
    # no number of a run: if all were told to be taken, the next one would be looked for without end
    "mkdir": {"mkdir_retrans": 1, "match": "*[!0-9]*"},
    "rename": {"rename_retrans": 1},
    "unlink": {"unlink_retrans": 1},
    "every-other": {
        "link_retrans": 2,
        "mkdir_retrans": 2,
        "rename_retrans": 2,
        "unlink_retrans": 2,
        "match": "*[!0-9]*",
    },
}


@pytest.mark.parametrize("knobs", [pytest.param(EVERY[name], id=name) for name in EVERY])
def test_a_run_that_is_killed_and_goes_on_is_exact_where_requests_are_sent_twice_all_the_time(
    nodes: TwoNodes, knobs: dict[str, Any]
) -> None:
    nodes.up()
    a = SharedProject(nodes, main=STEERED)
    nodes.a.set(**knobs)
    start_and_kill(a, 3, "num_epoch=6")

    a.let_pass(6)
    a.run(*a.again(), "num_epoch=6")

    assert nodes.a.disturbed()
    nodes.a.set()
    assert_complete(a, 6)
