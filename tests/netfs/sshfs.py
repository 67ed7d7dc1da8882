"""sshfs, a real network file system, over an sshd of the tests' own on this machine."""

from __future__ import annotations

import shlex
import socket
import subprocess
from pathlib import Path

from tests.clusters.machine import ClusterError, free_ports, wait_for
from tests.netfs.nodes import require_nodes, require_program

_SSHD = "/usr/sbin/sshd"
_CONFIG = """\
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


class Sshfs:
    """sshfs with its default options, and the server that it talks to.

    Args:
        folder: for the server's configuration and keys.

    Raises:
        ClusterError: it cannot be had here.
    """

    def __init__(self, folder: Path) -> None:
        require_nodes()
        for program, package in (("sshfs", "sshfs"), ("ssh", "openssh-client"), (_SSHD, "openssh-server")):
            require_program(program, package)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it; made at boot elsewhere
        for name in ("host", "key"):
            subprocess.run(
                ["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", str(folder / name)], check=True
            )
        (folder / "config").write_text(_CONFIG.format(folder=folder))
        self._folder = folder
        self._port = free_ports(1, folder)
        self._log = folder / "sshd.log"
        server = [_SSHD, "-D", "-e", "-f", str(folder / "config"), "-p", str(self._port)]
        with self._log.open("wb") as out:
            self._sshd = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *server],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            wait_for(self._answers, 20)
        except TimeoutError:
            self.down()
            raise ClusterError(f"sshd does not start:\n{self._log.read_text()[-2000:]}") from None

    def _answers(self) -> bool:
        if self._sshd.poll() is not None:
            raise ClusterError(f"sshd does not start:\n{self._log.read_text()[-2000:]}")
        try:
            with socket.create_connection(("127.0.0.1", self._port), 5):
                return True
        except OSError:
            return False

    def command(self, server: Path, mount: Path, folder: Path) -> list[str]:
        ssh = ["ssh", "-F", "none", "-p", str(self._port), "-i", str(self._folder / "key")]
        for option in ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"):
            ssh += ["-o", option]
        return ["sshfs", "-f", "-o", f"ssh_command={shlex.join(ssh)}", f"root@127.0.0.1:{server}", str(mount)]

    def down(self) -> None:
        """End the server."""
        self._sshd.kill()
        self._sshd.wait(20)
