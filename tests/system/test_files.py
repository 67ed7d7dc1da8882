from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlxjobs.system import atomic
from mlxjobs.system.files import aside_of, is_aside, numbers_in, remove_asides

HERE = os.uname().nodename


@pytest.mark.parametrize(
    "name",
    [
        ".config.yaml.node1.cluster.12345.140213.tmp",
        ".node1.cluster.12345.tmp",
        ".last.pkl.node1.12345.140213.best.tmp",
    ],
)
def test_what_a_writer_of_an_older_version_has_left_is_known_by_its_name(name: str) -> None:
    assert is_aside(name)


def test_what_a_writer_has_left_is_known_by_its_name() -> None:
    assert is_aside(aside_of(Path("info.yaml")).name)
    assert is_aside(aside_of(Path("last.pkl"), what="kept").name)


@pytest.mark.parametrize("name", ["x.12.tmp", ".cache.tmp", ".info.json", ".last.pkl.previous"])
def test_what_a_user_has_is_not_taken_for_that(name: str) -> None:
    assert not is_aside(name)


def test_what_a_killed_writer_has_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    path = tmp_path / "last.pkl"
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE)
    dead = tmp_path / f".last.pkl.{HERE}.{int(ended.stdout)}.7.tmp"
    long_ago = tmp_path / ".last.pkl.elsewhere.1.7.tmp"
    lately = tmp_path / ".last.pkl.elsewhere.2.7.tmp"
    others = tmp_path / f".best.pkl.{HERE}.{int(ended.stdout)}.7.tmp"
    mine = aside_of(path)
    for file in (dead, long_ago, lately, others, mine):
        file.touch()
    os.utime(long_ago, (time.time() - 7200,) * 2)
    remove_asides(path)
    assert set(tmp_path.iterdir()) == {lately, others, mine}


def test_numbers_are_written_as_they_are_counted(tmp_path: Path) -> None:
    for name in ("10", "9", "0", "007", "-1", "1.5", "\u00b2", "\u0663", "x"):
        (tmp_path / name).touch()
    assert numbers_in(tmp_path) == [0, 9, 10]


def test_a_file_that_another_node_replaces_while_it_is_read_is_read_again() -> None:
    answers: list[OSError | bytes] = [OSError(errno.ESTALE, "stale"), OSError(errno.ESTALE, "stale"), b"new"]

    def read() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert atomic.read_again(read) == b"new"
    answers.append(OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        atomic.read_again(read)
