"""Fixtures for tests that need a real cluster; tests/conftest.py offers them to all tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

from tests.clusters.machine import USER, ClusterError, account, install_packages
from tests.clusters.oar import OarCluster
from tests.clusters.sge import SgeCluster
from tests.clusters.slurm import SlurmCluster

__all__ = ["cluster_python", "oar", "oar_dir", "sge", "sge_dir", "slurm", "torch_python", "user_dir"]

Cluster = TypeVar("Cluster", SlurmCluster, OarCluster, SgeCluster)

_CHECKOUT = Path(__file__).resolve().parents[2]


def unavailable(reason: str) -> NoReturn:
    """Skip, but never in CI: there a cluster that is missing must not look like tests that passed."""
    if os.environ.get("CI"):
        pytest.fail(f"FAILED: {reason}", pytrace=False)
    pytest.skip(f"SKIPPED: {reason}")


@contextmanager
def _running(cluster: Cluster) -> Iterator[Cluster]:
    try:
        cluster.install()
    except ClusterError as error:
        unavailable(str(error))
    cluster.up()
    try:
        yield cluster
    finally:
        cluster.down()


@contextmanager
def small_slurm(*, nodes: int, accounting: bool = True) -> Iterator[SlurmCluster]:
    """A Slurm of a test's own, as accounting is decided when a cluster starts."""
    folder = Path(tempfile.mkdtemp(prefix="mlxjobs-small-", dir="/tmp"))
    folder.rmdir()  # the cluster makes it, when it can be installed
    cluster = SlurmCluster(folder)
    try:
        cluster.install(accounting=accounting)
    except ClusterError as error:
        unavailable(str(error))
    cluster.up(nodes=nodes, accounting=accounting)
    try:
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


@contextmanager
def _folder_on(cluster: SlurmCluster | OarCluster | SgeCluster) -> Iterator[Path]:
    """A new folder of the ordinary user, on all nodes and readable by everybody.

    Afterwards it is removed, and the cluster is whole and without jobs again, whatever the test did.
    """
    who = account(USER)
    folder = Path(tempfile.mkdtemp(prefix="mlxjobs-", dir="/tmp"))
    os.chown(folder, who.pw_uid, who.pw_gid)
    folder.chmod(0o755)
    yield folder
    cluster.restore()  # first: a job that still writes would bring files back
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running Slurm of three nodes, for the whole test run."""
    with _running(SlurmCluster()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def oar() -> Iterator[OarCluster]:
    """A running OAR of two nodes, for the whole test run."""
    with _running(OarCluster()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def sge() -> Iterator[SgeCluster]:
    """A running Grid Engine of two nodes, for the whole test run."""
    with _running(SgeCluster()) as cluster:
        yield cluster


@pytest.fixture
def user_dir(slurm: SlurmCluster) -> Iterator[Path]:
    """A new folder of the ordinary user on Slurm's nodes."""
    with _folder_on(slurm) as folder:
        yield folder


@pytest.fixture
def oar_dir(oar: OarCluster) -> Iterator[Path]:
    """A new folder of the ordinary user on OAR's nodes."""
    with _folder_on(oar) as folder:
        yield folder


@pytest.fixture
def sge_dir(sge: SgeCluster) -> Iterator[Path]:
    """A new folder of the ordinary user on Grid Engine's nodes."""
    with _folder_on(sge) as folder:
        yield folder


@pytest.fixture(scope="session")
def cluster_python() -> Path:
    """A Python with this project and numpy, that the ordinary user can run: not root's, not editable."""
    try:
        return install_python()
    except ClusterError as error:
        unavailable(str(error))


def install_python() -> Path:
    """Install this project for the ordinary user, and return the interpreter.

    It is kept for the next test run, which installs only the project again unless its dependencies changed.

    Raises:
        ClusterError: it could not be installed.
    """
    base = SlurmCluster().base
    folder = base.with_name(f"{base.name}-python")
    python = folder / "bin" / "python"
    stamp = folder / "dependencies"
    wanted = _dependencies()
    if not stamp.exists() or stamp.stat().st_uid != os.geteuid() or stamp.read_text() != wanted:
        _make_environment(folder)
        _pip(python, "install", str(_CHECKOUT), "numpy")
        stamp.write_text(wanted)
    else:
        _pip(python, "install", "--force-reinstall", "--no-deps", str(_CHECKOUT))
    return python


@pytest.fixture(scope="session")
def torch_python(cluster_python: Path) -> Path:
    """The same Python, with torch if the tests' own Python has it: torch is large and no dependency."""
    try:
        wanted = version("torch").partition("+")[0]
    except PackageNotFoundError:
        pytest.skip("SKIPPED: torch is not installed; .venv/bin/pip install torch==2.13.0, then again")
    probe = [str(cluster_python), "-c", f"import torch; assert torch.__version__.startswith('{wanted}')"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        try:
            _pip(cluster_python, "install", f"torch=={wanted}")
        except ClusterError as error:
            pytest.skip(f"SKIPPED: torch {wanted} cannot be installed for the cluster: {error}")
    return cluster_python


def _dependencies() -> str:
    found = re.search(r"^dependencies = \[.*?^\]", (_CHECKOUT / "pyproject.toml").read_text(), re.M | re.S)
    if found is None:
        raise ValueError("pyproject.toml has no dependencies")
    return found.group()


def _make_environment(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    # /usr/bin/python3: an interpreter under /root cannot be read by others
    make = ["/usr/bin/python3", "-m", "venv", str(folder)]
    if subprocess.run(make, capture_output=True, check=False).returncode != 0:
        install_packages(["python3-venv"])
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(make, check=True)


def _pip(python: Path, *args: str) -> None:
    done = subprocess.run(
        [python, "-m", "pip", *args], capture_output=True, text=True, umask=0o022, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"pip {args[0]} failed:\n{done.stderr[-2000:]}")
