"""Slurm's accounting for the harness: slurmdbd before a MariaDB, so that sacct answers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.clusters.machine import SYSTEM_PATH, wait_for

PROGRAMS = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
"""What is needed beside Slurm itself, and the packages that have it."""


def start_accounting(base: Path, port: int, spawn: Callable[..., None]) -> dict[str, object]:
    """Start a new database and slurmdbd, and return the lines that slurm.conf needs for them."""
    folder = base / "db"
    folder.mkdir(mode=0o700)  # the only guard of a database without passwords
    common = ["--no-defaults", "--user=root", f"--datadir={folder}/data", "--innodb-log-file-size=16M"]
    make = ["mariadb-install-db", *common, "--skip-test-db"]
    subprocess.run(make, env={"PATH": SYSTEM_PATH}, check=True, capture_output=True)
    options = [
        f"--socket={folder}/socket",
        "--skip-networking",
        "--skip-grant-tables",
        "--performance-schema=OFF",
    ]
    spawn("mariadbd", "mariadbd", *common, *options, "--innodb-flush-log-at-trx-commit=0")
    wait_for((folder / "socket").exists, 30)

    conf = base / "slurmdbd.conf"
    conf.touch(mode=0o600)  # slurmdbd refuses one that others can read
    conf.write_text(
        f"DbdHost=localhost\nDbdPort={port}\nSlurmUser=root\nPidFile={folder}/slurmdbd.pid\n"
        f"AuthType=auth/munge\nAuthInfo=socket={base}/munge/socket\n"
        "StorageType=accounting_storage/mysql\nStorageUser=root\nStorageLoc=slurm\n"
    )
    # slurmdbd has no argument that could name this cluster in the process list, so its path does
    (base / "slurmdbd").symlink_to(shutil.which("slurmdbd", path=SYSTEM_PATH) or "/usr/sbin/slurmdbd")
    spawn("slurmdbd", "env", f"MYSQL_UNIX_PORT={folder}/socket", f"{base}/slurmdbd", "-D")
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "localhost",
        "AccountingStoragePort": port,
        "AccountingStoragePass": f"{base}/munge/socket",  # for slurmdbd AuthInfo does not count
        "AccountingStorageTRES": "gres/gpu",
    }
