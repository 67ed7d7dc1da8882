"""Real git repositories, and what snapshots of them hold."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.code.gitvm import GitVM
from mlxjobs.version_manager import Frozen, Launch

AS_A_PROGRAM = """
import sys
from pathlib import Path
from mlxjobs.code.gitvm import GitVM
from mlxjobs.version_manager import Launch
sys.stdin.readline()
frozen = GitVM().freeze(Launch(Path(sys.argv[1]), Path("main.py"), Path(".workdir")))
print(frozen.root.stat().st_ino, len([path for path in frozen.root.rglob("*") if path.is_file()]))
"""


def git(place: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(place), *arguments], check=True, capture_output=True)
    return os.fsdecode(done.stdout).removesuffix("\n")


def write(top: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())


def commit(top: Path, files: dict[str, str]) -> str:
    write(top, files)
    git(top, "add", "-A")
    git(top, "commit", "-q", "--allow-empty", "-m", "one more")
    return git(top, "rev-parse", "HEAD")


def new_repo(top: Path, files: dict[str, str] | None = None) -> Path:
    top.mkdir(parents=True)
    git(top, "init", "-q", "-b", "main")
    commit(top, files or {"main.py": "print(1)\n", "pkg/part.py": "x = 1\n"})
    return top


def freeze(work_dir: Path, program: str | None = "main.py", parent: str = ".workdir", **more: Any) -> Frozen:
    program_path = None if program is None else Path(program)
    return GitVM().freeze(Launch(work_dir, program_path, Path(parent), **more))


def contents(top: Path) -> dict[str, tuple[str, bytes]]:
    """What a work tree holds: the kind of each path (with x, if executable), and its bytes."""
    found: dict[str, tuple[str, bytes]] = {}
    for directory, folders, names in os.walk(top):
        folders[:] = [name for name in folders if name not in (".git", ".workdir")]
        for name in names + folders:
            path = Path(directory, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                found[str(path.relative_to(top))] = ("link", os.fsencode(os.readlink(path)))
            elif stat.S_ISREG(mode):
                kind = "file x" if mode & stat.S_IXUSR else "file"
                found[str(path.relative_to(top))] = (kind, path.read_bytes())
    return found


def leftovers(parent: Path) -> list[str]:
    """What is below `parent_work_dir` besides snapshots and the files about them."""
    known = re.compile(r"(?P<root>[0-9a-f]{40})|\.(?P<of>[0-9a-f]{40})\.(made|unflushed|\d+\.index)")
    left = []
    for path in parent.glob("*/*"):
        name = known.fullmatch(path.name)
        if not name or not (path.parent / (name["root"] or name["of"])).is_dir():
            left.append(path.name)
    return left


def fake_git(repo: Path, monkeypatch: pytest.MonkeyPatch, shell_lines: str) -> None:
    """Put a git on the PATH that runs these lines before the real one."""
    real = subprocess.run(["/bin/sh", "-c", "command -v git"], capture_output=True, text=True, check=True)
    shim = repo.parent / "shim" / "git"
    write(shim.parent, {"git": f'#!/bin/sh\n{shell_lines}\nexec {real.stdout.strip()} "$@"\n'})
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{os.environ['PATH']}")


def shared(first: Path, second: Path) -> set[str]:
    """Return the files that are the same ones on the disk."""
    inodes = {path.lstat().st_ino for path in first.rglob("*") if not path.is_dir() or path.is_symlink()}
    return {str(path.relative_to(second)) for path in second.rglob("*") if path.lstat().st_ino in inodes}


def add_submodule(top: Path, source: Path, path: str) -> None:
    git(top, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(source), path)
    git(top, "commit", "-qm", "submodule")
