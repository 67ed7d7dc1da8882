"""Slurm's accounting for the harness: slurmdbd before a MariaDB, so that sacct answers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.clusters.machine import SYSTEM_PATH, wait_for

PROGRAMS = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server"}
"""What is needed beside Slurm itself, and the packages that have it."""

_SMALL = ["--innodb-log-file-size=16M", "--innodb-buffer-pool-size=64M"]
_FAST = [
    "--skip-log-bin",
    "--performance-schema=OFF",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
]


def start_accounting(base: Path, port: int, spawn: Callable[..., None]) -> dict[str, object]:
    """Start a new database and slurmdbd, and return the lines that slurm.conf needs for them."""
    folder = base / "db"
    folder.mkdir(mode=0o700)  # the only guard of a database without passwords
    make = [
        "mariadb-install-db",
        "--no-defaults",
        "--user=root",
        f"--datadir={folder}/data",
        "--skip-test-db",
    ]
    env = {"PATH": SYSTEM_PATH}
    subprocess.run([*make, "--innodb-log-file-size=16M"], env=env, check=True, capture_output=True)
    options = [
        f"--datadir={folder}/data",
        f"--socket={folder}/socket",
        "--skip-networking",
        "--skip-grant-tables",
    ]
    spawn("mariadbd", "mariadbd", "--no-defaults", "--user=root", *options, *_SMALL, *_FAST)
    wait_for((folder / "socket").exists, 30)

    settings = {
        "DbdHost": "localhost",
        "DbdPort": port,
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={base}/munge/socket",
        "PidFile": folder / "slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageUser": "root",
        "StorageLoc": "slurm",
    }
    conf = base / "slurmdbd.conf"
    conf.touch(mode=0o600)  # slurmdbd refuses one that others can read
    conf.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    # slurmdbd has no argument that could name this cluster in the process list, so its path does
    (base / "slurmdbd").symlink_to(shutil.which("slurmdbd", path=SYSTEM_PATH) or "slurmdbd")
    spawn("slurmdbd", "env", f"MYSQL_UNIX_PORT={folder}/socket", f"{base}/slurmdbd", "-D")
    return {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": "localhost",
        "AccountingStoragePort": port,
        "AccountingStoragePass": f"{base}/munge/socket",  # for slurmdbd AuthInfo does not count
        "AccountingStorageTRES": "gres/gpu",
    }
