"""The run directory under simultaneous and killed processes."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlxjobs.errors import RunError
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.run import Run, runs_in

ALLOCATE = """
import sys
from pathlib import Path
from mlxjobs.record.run import Run
sys.stdin.read()  # all start at once
print(Run.create(Path(sys.argv[1])).log_id)
"""


def started(state: RunState) -> dict[str, Any]:
    return {"event": "started", "attempt": len(state.attempts) + 1, "host": "n1", "pid": 1}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "logs")
    run.record(lambda state: {"event": "created", "facts": {"user": "ada", "log_id": 1}})
    return run


def test_64_processes_at_once_get_64_numbers_without_a_gap(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    read, write = os.pipe()
    command = [sys.executable, "-c", ALLOCATE, str(logs)]
    processes = [subprocess.Popen(command, stdin=read, stdout=subprocess.PIPE, text=True) for _ in range(64)]
    os.close(read)
    os.close(write)
    numbers = sorted(int(process.communicate()[0]) for process in processes)
    assert numbers == list(range(1, 65))


def test_numbers_go_on_after_the_highest_and_other_names_do_not_count(tmp_path: Path) -> None:
    for name in ("7", "09", "notes", "٣"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").write_text("a file")
    assert Run.create(tmp_path).log_id == 9
    assert [run.log_id for run in runs_in(tmp_path)] == [7, 8, 9]


def test_a_forced_number_that_is_taken_is_an_error(tmp_path: Path) -> None:
    assert Run.create(tmp_path, 5).log_id == 5
    with pytest.raises(RunError, match="exists already"):
        Run.create(tmp_path, 5)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_log_directory_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written"):
        Run.create(tmp_path / "logs")


def test_a_file_in_the_place_of_the_log_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "logs")


def test_simultaneous_events_all_count_and_the_picture_shows_them(run: Run) -> None:
    def add(number: int) -> None:
        Run(run.path).record(lambda state: {"event": "created", "facts": {f"k{number}": number}})

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(add, range(64)))
    facts = run.state().facts
    assert {key for key in facts if key.startswith("k")} == {f"k{number}" for number in range(64)}
    assert {key: value for key, value in run.read_yaml("info").items() if key in facts} == facts


def test_of_two_starts_at_the_same_instant_one_wins(run: Run) -> None:
    def start(_: int) -> bool:
        def decide(state: RunState) -> dict[str, Any]:
            if state.attempts:
                raise RunError("taken")
            return started(state)

        try:
            Run(run.path).record(decide)
        except RunError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(start, range(16))) == 1


def test_a_reader_never_sees_half_an_info_file(run: Run) -> None:
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from mlxjobs.record.run import Run\n"
            "run = Run(Path(sys.argv[1]))\n"
            "facts = {'long': 'x' * 20000}\n"
            "for n in range(300): run.record(lambda s: {'event': 'created', 'facts': {**facts, 'n': n}})",
            str(run.path),
        ]
    )
    while writer.poll() is None:
        assert yaml.safe_load((run.metadata / "info.yaml").read_text())["user"] == "ada"
    assert writer.returncode == 0
    assert run.read_yaml("info")["n"] == 299


def test_a_writer_killed_at_any_moment_leaves_a_readable_run(run: Run) -> None:
    code = (
        "import sys; from pathlib import Path; from mlxjobs.record.run import Run\n"
        "run = Run(Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "while True: run.record(lambda s: {'event': 'created', 'facts': {'long': 'x' * 5000}})"
    )
    for _ in range(10):
        before = run.state().sequence
        writer = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        while run.state().sequence < before + 3:
            pass
        writer.kill()
        writer.communicate()
        assert run.state().facts["user"] == "ada"
        assert run.read_yaml("info")["user"] == "ada"
    run.record(started)
    assert run.read_yaml("info")["status"] == "STARTING"


def test_a_run_of_mlxp_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "3"
    (path / "metadata").mkdir(parents=True)
    (path / "metadata" / "info.yaml").write_text("status: COMPLETE\nuser: marbel\nlog_id: 3\n")
    run = Run(path)
    run.adopt()
    run.adopt()
    assert run.state().status is RunStatus.COMPLETE
    assert run.read_yaml("info")["user"] == "marbel"


def test_metadata_cannot_build_objects(run: Run) -> None:
    (run.metadata / "config.yaml").write_text("!!python/object/apply:os.system ['true']\n")
    with pytest.raises(RunError, match=r"config\.yaml cannot be read"):
        run.read_yaml("config")


def test_events_are_files_that_are_never_changed(run: Run) -> None:
    first = run.history_dir / "0001.json"
    before = first.read_bytes()
    run.record(started)
    assert first.read_bytes() == before
    assert json.loads((run.history_dir / "0002.json").read_bytes())["event"] == "started"
    assert not [path for path in run.history_dir.iterdir() if path.suffix == ".tmp"]
