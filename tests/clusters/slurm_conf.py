"""The slurm.conf of the harness."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

CLUSTER = "mlxjobs"
"""The name by which accounting knows the cluster."""

# Short timers. Slurm 22.05 looks every 30 s at time limits and warning signals; that cannot be set.
_SETTINGS = {
    "ClusterName": CLUSTER,
    "SlurmUser": "root",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "MpiDefault": "none",
    "MailProg": "/bin/true",
    "AccountingStorageType": "accounting_storage/none",
    "SlurmdParameters": "config_overrides",  # believe CPUs= and RealMemory= below
    "ReturnToService": "2",  # a node that is back needs nobody to resume it
    "SlurmdTimeout": "6",  # shorter, a busy machine loses nodes that are well
    "SlurmctldTimeout": "60",
    # The end of a grace time is looked at KillWait + MessageTimeout after the preempting job's first look.
    "MessageTimeout": "4",
    "KillWait": "1",
    "MinJobAge": "300",
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU_Memory",
    "DefMemPerCPU": "1024",
    "PriorityType": "priority/basic",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "GresTypes": "gpu",
}
_PARTITIONS = {
    "low": {"Default": "YES", "PriorityTier": "1", "PreemptMode": "REQUEUE", "GraceTime": "1"},
    "high": {"Default": "NO", "PriorityTier": "10", "PreemptMode": "OFF"},
}
_LIMITS = {"Nodes": "ALL", "State": "UP", "DefaultTime": "00:10:00", "MaxTime": "1-00:00:00"}


def render_slurm_conf(
    base: Path,
    nodes: Sequence[str],
    port: int,
    lines: Mapping[str, object],
    partitions: Mapping[str, Mapping[str, object]],
) -> str:
    """Return a slurm.conf for a cluster in `base`: slurmctld at `port`, the nodes at the ports after it.

    `lines` replace or add lines, and `partitions` keys of the partitions' lines.
    """
    own = {
        "SlurmctldHost": f"{socket.gethostname().split('.')[0]}(127.0.0.1)",
        "SlurmctldPort": port,
        # A requeued job may start again after cred_expire + 1 s; under 5 Slurm takes its default, 120.
        "AuthInfo": f"socket={base}/munge/socket,cred_expire=5",
        "StateSaveLocation": base / "state",
        "SlurmdSpoolDir": base / "spool" / "%n",
        "SlurmctldPidFile": base / "state" / "slurmctld.pid",
        "SlurmdPidFile": base / "spool" / "%n.pid",
        "SlurmctldLogFile": base / "log" / "slurmctld.log",
        "SlurmdLogFile": base / "log" / "slurmd.%n.log",
    }
    text = "".join(f"{key}={value}\n" for key, value in {**_SETTINGS, **own, **lines}.items())
    for number, node in enumerate(nodes, 1):
        where = f"NodeHostname={node} NodeAddr=127.0.0.1 Port={port + number}"
        text += f"NodeName={node} {where} CPUs=4 RealMemory=65536 Gres=gpu:2 State=UNKNOWN\n"
    for name, keys in _PARTITIONS.items():
        pairs = {"PartitionName": name, **_LIMITS, **keys, **partitions.get(name, {})}
        text += " ".join(f"{key}={value}" for key, value in pairs.items()) + "\n"
    return text
