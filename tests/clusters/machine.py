"""What a harness needs of the machine: packages, accounts, programs that it can end again."""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

T = TypeVar("T")

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where Debian keeps daemons and commands: a test's own PATH must not decide which Slurm runs."""

USER = "mlxalice"
"""The ordinary account that submits jobs."""

_POLICY = Path("/usr/sbin/policy-rc.d")


class ClusterError(RuntimeError):
    """The cluster cannot be installed, started or asked."""


def say(message: str) -> None:
    """Tell the developer what happens to the machine; stdout belongs to commands."""
    print(f"clusters: {message}", file=sys.stderr, flush=True)


def require_root(purpose: str) -> None:
    """Refuse at once what would fail halfway without root.

    Raises:
        ClusterError: the process is not root's.
    """
    if os.geteuid() != 0:
        raise ClusterError(f"needs root to {purpose}")


def wait_for(read: Callable[[], T], timeout: float = 30.0, until: Callable[[T], object] = bool) -> T:
    """Return the first value of `read` that `until` accepts.

    Give `until` rather than a `read` that says only yes or no: the error shows the value that was read last.

    Raises:
        TimeoutError: no such value within `timeout` seconds.
    """
    end = time.monotonic() + timeout
    while not until(value := read()):
        if time.monotonic() > end:
            raise TimeoutError(f"after {timeout:g} s still {value!r}")
        time.sleep(0.05)
    return value


def install_packages(packages: Sequence[str]) -> None:
    """Install Debian packages without letting them start a service.

    Raises:
        ClusterError: not root, no apt-get, or it failed; with its last words.
    """
    require_root(f"install {' '.join(packages)}")
    if shutil.which("apt-get", path=SYSTEM_PATH) is None:
        raise ClusterError(f"no apt-get here to install {' '.join(packages)}")
    say(f"installing {' '.join(packages)}")
    with _no_services():
        if _apt_get("install", *packages).returncode == 0:
            return
        say("apt-get update")  # a fresh machine has no package lists; elsewhere it would only cost time
        _apt_get("update")
        done = _apt_get("install", *packages)
    if done.returncode != 0:
        raise ClusterError(f"apt-get install {' '.join(packages)} failed:\n{done.stdout[-2000:]}")


def _apt_get(command: str, *packages: str) -> subprocess.CompletedProcess[str]:
    options = ["--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    return subprocess.run(
        ["apt-get", *options, "-o", "Dpkg::Options::=--force-confold", command, *packages],
        env={**os.environ, "PATH": SYSTEM_PATH, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@contextmanager
def _no_services() -> Iterator[None]:
    # Debian's way to keep a package's installation from starting its daemons
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)


def account(user: str) -> pwd.struct_passwd:
    """Return the ordinary account `user`, which is created where it is missing."""
    with suppress(KeyError):
        return pwd.getpwnam(user)
    say(f"creating the account {user}")
    command = ["useradd", "--create-home", "--shell", "/bin/bash", user]
    subprocess.run(command, env={"PATH": SYSTEM_PATH}, check=True)
    return pwd.getpwnam(user)


def default_base(variable: str) -> Path:
    """Return the folder of a cluster: what `variable`, MLXJOBS_<NAME>_DIR, says, or this checkout's own."""
    name = variable.split("_")[1].lower()
    checkout = Path(__file__).resolve().parents[2]
    return Path(os.environ.get(variable) or f"/tmp/mlxjobs-{name}-{checksum(checkout):08x}")


def lock_folder(folder: Path, variable: str) -> int:
    """Own a folder, which is made, while the descriptor that is returned is open.

    Args:
        folder: the folder.
        variable: the environment variable that can name another one.

    Raises:
        ClusterError: another process owns it, or another user made it.
    """
    advice = f"set {variable} to another folder"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise ClusterError(f"{folder} belongs to somebody else; {advice}")
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ClusterError(f"{folder} is in use by another process; {advice}") from None
    return lock


def wipe(folder: Path, variable: str) -> None:
    """Remove what a cluster has left in its folder.

    Raises:
        ClusterError: what is in it is no cluster's.
    """
    mine = (folder / "pids").is_dir()
    # the sign that the folder is a cluster's goes last: this may be killed
    for path in sorted(folder.iterdir(), key=lambda path: path.name == "pids"):
        if not mine:
            raise ClusterError(f"{folder} holds other things; set {variable} to a folder of its own")
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def checksum(path: Path) -> int:
    """Return a number that differs from checkout to checkout, for names and ports that all of them need."""
    return zlib.crc32(os.fsencode(path))


def free_ports(count: int, base: Path) -> int:
    """Return the first of `count` ports in a row that nobody uses, below those that the kernel gives out."""
    start = checksum(base) % 500  # so that two clusters that start at once seldom try the same
    for number in range(500):
        first = 17000 + (start + number) % 500 * 20
        if all(_is_free(first + offset) for offset in range(count)):
            return first
    raise ClusterError("no free ports from 17000 to 27000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


class Processes:
    """The programs of one harness, each known by a pid file, so that a later run can end them too.

    A pid is believed only while its command line holds `mark`: the kernel gives numbers out again.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self._folder = folder
        self._mark = mark.encode()

    def names(self) -> list[str]:
        """Return the names of all programs that were spawned and not yet ended."""
        return sorted(file.stem for file in self._folder.glob("*.pid"))

    def pid(self, name: str) -> int | None:
        """Return the process id of a program, or None when it does not run (a zombie does not)."""
        try:
            pid = int((self._folder / f"{name}.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()  # empty for a zombie
        except (OSError, ValueError):
            return None
        return pid if self._mark in command else None

    def spawn(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> None:
        """Start a program that outlives this process; `argv` must hold the mark."""
        file = self._folder / f"{name}.pid"
        file.unlink(missing_ok=True)
        # Not `&`: a shell starts those with SIGINT ignored, and the jobs would inherit that.
        # The file is written by the process itself, so that one killed here leaves no unknown daemon.
        command = ["setsid", "--fork", "sh", "-c", 'echo $$ >"$0"; exec "$@"', str(file), *argv]
        with log.open("ab") as out:
            subprocess.run(
                command,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                umask=0o022,
                check=True,
            )
        wait_for(lambda: file.exists() and file.read_text().endswith("\n"), 10)

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a program, if it runs."""
        if (pid := self.pid(name)) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> None:
        """End a program and forget it: by `number`, and by SIGKILL when that takes too long."""
        self.send(name, number)
        with suppress(TimeoutError):
            wait_for(lambda: self.pid(name) is None, timeout)
        self.send(name, signal.SIGKILL)
        wait_for(lambda: self.pid(name) is None, 10)
        (self._folder / f"{name}.pid").unlink(missing_ok=True)


def children(pid: int, program: str) -> list[int]:
    """Return the ids of the children of `pid` that run `program`."""
    with suppress(OSError):
        ids = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [child for child in ids if _program(child) == program]
    return []


def _program(pid: int) -> str | None:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return None


def processes_of(base: Path) -> dict[int, str]:
    """Return the commands that have a cluster's folder in them, by their process ids."""
    found = {}
    for entry in os.scandir("/proc"):
        try:
            command = Path(entry.path, "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if entry.name.isdecimal() and str(base) in command and int(entry.name) != os.getpid():
            found[int(entry.name)] = command
    return found


class Harness(Protocol):
    """What a developer can do to any cluster."""

    def install(self) -> None:
        """Install it."""

    def up(self) -> None:
        """Start it."""

    def down(self) -> None:
        """End it."""

    def status(self) -> dict[str, str]:
        """Tell what is up."""

    def run(self, argv: Sequence[str | Path], *, user: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a command."""


def main(cluster: Harness, argv: Sequence[str], usage: str, well: Collection[str]) -> NoReturn:
    """Do what a developer asks for on the command line, and exit.

    Args:
        cluster: to what.
        argv: up, down, status, or run USER COMMAND...
        usage: said if it is none of these.
        well: the states of a cluster that is up.
    """
    try:
        sys.exit(_do(cluster, argv, usage, well))
    except ClusterError as error:
        sys.exit(f"error: {error}")


def _do(cluster: Harness, argv: Sequence[str], usage: str, well: Collection[str]) -> int:
    match list(argv):
        case ["up"]:
            cluster.install()
            cluster.up()
        case ["down"]:
            require_root("end a cluster")
            cluster.down()
        case ["status"]:
            states = cluster.status()
            print("\n".join(f"{name:10} {state}" for name, state in states.items()))
            return 0 if set(states.values()) <= set(well) else 3
        case ["run", user, *command] if command:
            done = cluster.run(command, user=user, cwd=Path.cwd())
            sys.stdout.write(done.stdout)
            sys.stderr.write(done.stderr)
            return done.returncode
        case _:
            print(usage.splitlines()[-1].strip(), file=sys.stderr)
            return 2
    return 0
