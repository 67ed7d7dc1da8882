"""The OAR harness itself: what the other tests on a real OAR rely on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clusters.machine import USER, ClusterError, processes_of
from tests.clusters.oar import OarCluster
from tests.project import await_value

HOSTS = Path("/etc/hosts").read_bytes()  # before any cluster is up

pytestmark = [pytest.mark.oar, pytest.mark.timeout(300)]  # the first one may install OAR

CHECKOUT = Path(__file__).resolve().parents[2]


def submit(oar: OarCluster, folder: Path, *options: str, script: str) -> str:
    (folder / "job.sh").write_text(f"#!/bin/bash\n{script}\n")
    (folder / "job.sh").chmod(0o755)
    command = ["oarsub", "-d", str(folder), "-O", "out", "-E", "err", *options, "./job.sh"]
    done = oar.run(command)
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("OAR_JOB_ID=")[2].strip()


def wait_for_state(oar: OarCluster, job: str, state: str) -> None:
    oar.wait_for(lambda: oar.job_states([job]), 40, until=lambda states: states.get(job) == state)


def test_a_job_of_an_ordinary_user_runs_on_a_node(oar: OarCluster, oar_dir: Path) -> None:
    job = submit(oar, oar_dir, script="id -un; hostname")
    wait_for_state(oar, job, "Terminated")
    assert (oar_dir / "out").read_text().split() == [USER, "node1"]
    assert (oar_dir / "out").owner() == USER
    assert oar.job(job)["exit_code"] == 0


def test_a_normal_job_takes_the_place_of_a_besteffort_one(oar: OarCluster, oar_dir: Path) -> None:
    low = submit(oar, oar_dir, "-t", "besteffort", "-l", "nodes=2", script="exec sleep 600")
    wait_for_state(oar, low, "Running")
    high = submit(oar, oar_dir, script="true")
    wait_for_state(oar, high, "Terminated")
    # killed: OAR calls that Error, or Terminated if it saw the job end before its own order came back
    assert oar.job_states([low])[low] in ("Error", "Terminated")


def test_a_node_dies_and_comes_back(oar: OarCluster, oar_dir: Path) -> None:
    job = submit(oar, oar_dir, "-p", "host='node2'", script="echo here; exec sleep 600")
    oar.wait_for(lambda: (oar_dir / "out").exists() and (oar_dir / "out").read_text(), 20)
    oar.node_down("node2")
    assert not subprocess.run(["pgrep", "-u", USER, "sleep"], check=False, capture_output=True).stdout
    assert oar.job_states([job]) == {job: "Running"}  # OAR asks no node that has a job
    oar.run(["oardel", job])
    wait_for_state(oar, job, "Error")
    oar.wait_for(oar.node_states, 10, until=lambda states: states == {"node1": "Alive", "node2": "Suspected"})
    oar.restore()
    assert oar.node_states() == {"node1": "Alive", "node2": "Alive"}


def test_commands_answer_while_the_server_is_down(oar: OarCluster, oar_dir: Path) -> None:
    oar.stop_server()
    assert oar.run(["oarstat"]).returncode == 0
    (oar_dir / "late.sh").write_text("#!/bin/bash\n")
    done = oar.run(["oarsub", "-d", oar_dir, "true"])
    assert done.returncode == 9
    assert "Job is killed" in done.stderr
    oar.start_server()
    wait_for_state(oar, done.stdout.rpartition("OAR_JOB_ID=")[2].strip(), "Terminated")  # it was not


def test_nothing_of_the_machine_is_changed(oar: OarCluster) -> None:
    assert Path("/etc/hosts").read_bytes() == HOSTS
    assert oar.root("cat", "/etc/oar/oar.conf") != Path("/etc/oar/oar.conf").read_text()
    sizes = [(path / "Almighty").stat().st_size for path in (Path("/usr/lib/oar"), oar.base)]
    assert sizes[0] != sizes[1]


def test_another_process_cannot_take_the_cluster_over(oar: OarCluster) -> None:
    with pytest.raises(ClusterError, match="in use by another process"):
        OarCluster().up()
    assert set(oar.status().values()) == {"up", "Alive"}


def test_what_a_killed_run_left_is_ended(oar: OarCluster) -> None:
    base = oar.base.with_name(f"{oar.base.name}-second")
    start = "import os, sys, pathlib; from tests.clusters.oar import OarCluster"
    code = f"{start}; OarCluster(pathlib.Path(sys.argv[1])).up(nodes=1); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(base)], cwd=CHECKOUT).returncode == 9
    second = OarCluster(base)
    left = processes_of(base)
    try:
        assert any("postgres" in command for command in left.values())
        second.up(nodes=1)
        assert not left.keys() & processes_of(base).keys()
    finally:
        second.down()
    await_value(lambda: not processes_of(base), "the end of its processes")
    shutil.rmtree(base)
    assert set(oar.status().values()) == {"up", "Alive"}
