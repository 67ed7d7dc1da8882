"""The Grid Engine harness itself: what the other tests on a real Grid Engine rely on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters.machine import USER, ClusterError, processes_of
from tests.clusters.sge import SgeCluster
from tests.project import await_value

HOSTS = Path("/etc/hosts").read_bytes()  # before any cluster is up

pytestmark = [pytest.mark.sge, pytest.mark.timeout(300)]  # the first one may install Grid Engine

CHECKOUT = Path(__file__).resolve().parents[2]


def submit(sge: SgeCluster, folder: Path, *options: str, script: str) -> str:
    (folder / "job.sh").write_text(f"#!/bin/bash\n{script}\n")
    command: list[str | Path] = [
        "qsub",
        "-terse",
        "-S",
        "/bin/bash",
        "-o",
        folder / "out",
        "-e",
        folder / "err",
        *options,
    ]
    done = sge.run([*command, folder / "job.sh"])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for_state(sge: SgeCluster, job: str, state: str) -> None:
    sge.wait_for(lambda: sge.job_states([job]), 60, until=lambda states: states.get(job) == state)


def test_a_job_of_an_ordinary_user_runs_on_a_node(sge: SgeCluster, sge_dir: Path) -> None:
    job = submit(sge, sge_dir, "-l", "h=node2", script="id -un; hostname")
    wait_for_state(sge, job, "ended")
    assert (sge_dir / "out").read_text().split() == [USER, "node2"]
    assert (sge_dir / "out").owner() == USER
    assert [record["exit_status"] for record in sge.records(job)] == ["0"]


def test_tasks_of_an_array_are_jobs(sge: SgeCluster, sge_dir: Path) -> None:
    submit(sge, sge_dir, "-t", "1-2", script="[ $SGE_TASK_ID = 1 ] || exec sleep 600")
    array = sge.run(["qstat"]).stdout.splitlines()[2].split()[0]
    wait_for_state(sge, f"{array}.2", "r")
    wait_for_state(sge, f"{array}.1", "ended")


def test_a_job_of_several_slots(sge: SgeCluster, sge_dir: Path) -> None:
    job = submit(sge, sge_dir, "-pe", "smp", "4", script="echo $NSLOTS")
    wait_for_state(sge, job, "ended")
    assert (sge_dir / "out").read_text() == "4\n"


def test_a_node_dies_and_comes_back(sge: SgeCluster, sge_dir: Path) -> None:
    job = submit(sge, sge_dir, "-r", "y", "-q", "all.q@node2", script="echo here; exec sleep 600")
    sge.wait_for(lambda: (sge_dir / "out").exists() and (sge_dir / "out").read_text(), 20)
    sge.node_down("node2")
    assert not subprocess.run(["pgrep", "-u", USER, "sleep"], check=False, capture_output=True).stdout
    wait_for_state(sge, job, "Rq")
    states = sge.node_states()
    assert states["node1"] == "up"
    assert "u" in states["node2"]  # unknown
    sge.restore()
    assert sge.node_states() == {"node1": "up", "node2": "up"}


def test_the_server_comes_back_and_knows_its_jobs(sge: SgeCluster, sge_dir: Path) -> None:
    job = submit(sge, sge_dir, script="exec sleep 600")
    wait_for_state(sge, job, "r")
    sge.stop_server()
    assert sge.status() == {"server": "down"}
    sge.start_server()
    assert sge.job_states([job]) == {job: "r"}


def test_nothing_of_the_machine_is_changed(sge: SgeCluster) -> None:
    assert Path("/etc/hosts").read_bytes() == HOSTS
    assert Path("/var/lib/gridengine/default/common/act_qmaster").read_text().strip() != "sge-server"
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    assert "node1" not in links


def test_another_process_cannot_take_the_cluster_over(sge: SgeCluster) -> None:
    with pytest.raises(ClusterError, match="in use by another process"):
        SgeCluster().up()
    assert set(sge.status().values()) == {"up"}


def test_what_a_killed_run_left_is_ended(sge: SgeCluster) -> None:
    base = sge.base.with_name(f"{sge.base.name}-second")
    start = "import os, sys, pathlib; from tests.clusters.sge import SgeCluster"
    code = f"{start}; SgeCluster(pathlib.Path(sys.argv[1])).up(nodes=1); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(base)], cwd=CHECKOUT).returncode == 9
    second = SgeCluster(base)
    left = processes_of(base)
    try:
        assert len(left) >= 2
        second.up(nodes=1)
        assert not left.keys() & processes_of(base).keys()
    finally:
        second.down()
    await_value(lambda: not processes_of(base), "the end of its processes")
    shutil.rmtree(base)
    assert set(sge.status().values()) == {"up"}
