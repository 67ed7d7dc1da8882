"""What the Grid Engine of the tests differs in from Debian's, as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

SERVER = "sge-server"
"""The host of the qmaster and of the users' commands."""

ADDRESS = "10.99.0.1"

CONFIGURATION = {  # sge_conf(5)
    "load_report_time": "00:00:02",
    # a node is lost after this time without a word, and its jobs are started elsewhere right after
    "max_unheard": "00:00:06",
    "reschedule_unknown": "00:00:01",
    "reporting_params": "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 "
    "joblog=false sharelog=00:00:00",
}
SCHEDULER = {  # sched_conf(5)
    "schedule_interval": "0:0:1",
    "flush_submit_sec": "1",
    "flush_finish_sec": "1",
    "load_adjustment_decay_time": "0:0:0",
    "job_load_adjustments": "NONE",
}
QUEUE = {  # queue_conf(5)
    "hostlist": "@allhosts",
    "slots": "4",
    "load_thresholds": "NONE",  # this machine has other work than its jobs
    "pe_list": "smp",
    "notify": "00:00:10",
}
QUEUES: dict[str, dict[str, str]] = {
    "all.q": {},
    # by `-pe high 1` alone; one job here suspends all those of all.q on its node
    "high.q": {"subordinate_list": "all.q=1", "qtype": "NONE", "pe_list": "high"},
}
PARALLEL = """pe_name {name}
slots 99
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""


def change(text: str, settings: Mapping[str, str]) -> str:
    """Return a configuration as `qconf -s...` prints it, with other values.

    Raises:
        ValueError: it has no such setting.
    """
    text = text.replace("\\\n", " ")  # a long line goes on below
    for name, value in settings.items():
        text, found = re.subn(rf"(?m)^({name})[ \t].*$", lambda match: f"{match.group(1)} {value}", text)  # noqa: B023 - used at once
        if not found:
            raise ValueError(f"Grid Engine has no setting {name}")
    return text


def render_host(node: str) -> str:
    """Return an execution host: host_conf(5)."""
    lists = ("complex_values", "user_lists", "xuser_lists", "projects", "xprojects", "usage_scaling")
    lines = [f"hostname {node}", "load_scaling NONE", *(f"{name} NONE" for name in lists)]
    return "\n".join([*lines, "report_variables NONE", ""])


def render_hosts(addresses: Mapping[str, str]) -> str:
    """Return /etc/hosts."""
    lines = {
        "127.0.0.1": "localhost",
        ADDRESS: SERVER,
        **{address: node for node, address in addresses.items()},
    }
    return "".join(f"{address} {names}\n" for address, names in lines.items())


def render_group(nodes: Sequence[str]) -> str:
    """Return the host group of all nodes."""
    return f"group_name @allhosts\nhostlist {' '.join(nodes)}\n"
