"""A byte that changed in a run's own files is seen, and a file without a checksum is read as before."""

import json
import zlib
from pathlib import Path

import pytest
import yaml

from mlxjobs.errors import DamagedHistoryError
from mlxjobs.jobs.look import look_at_runs
from mlxjobs.record.history import RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system.seals import is_sealed, open_json, seal_json, seal_yaml
from tests.project import Project

EVENT = {"event": "created", "time": "2026-11-23T10:00:00.000+01:00", "facts": {"user": "ada", "log_id": 10}}


def test_every_changed_bit_of_an_event_is_an_error_or_changes_nothing() -> None:
    text = seal_json(EVENT).encode()
    for offset in range(len(text)):
        for bit in range(8):
            damaged = bytearray(text)
            damaged[offset] ^= 1 << bit
            try:
                found, _ = open_json(bytes(damaged))
            except ValueError:
                continue
            assert {key: found.get(key) for key in EVENT} == EVENT


def test_events_of_older_and_of_newer_versions_are_read() -> None:
    assert open_json(json.dumps(EVENT).encode()) == (EVENT, False)
    assert open_json(seal_json({**EVENT, "mood": "good"}).encode()) == ({**EVENT, "mood": "good"}, True)


def test_a_sealed_yaml_file_reads_as_before_and_tells_an_edit() -> None:
    text = seal_yaml("seed: 1\nlr: 0.1\n")
    assert yaml.safe_load(text) == {"seed": 1, "lr": 0.1}
    assert is_sealed(text.encode()) is True
    assert is_sealed(text.replace("1", "2", 1).encode()) is False
    assert is_sealed(b"seed: 1\n") is None
    assert is_sealed(text.encode().replace(b"\n#", b"J#")) is False


def test_a_damaged_event_is_told_with_its_file_and_the_other_runs_are_shown(tmp_path: Path) -> None:
    runs = [Run.create(tmp_path) for _ in range(2)]
    for run in runs:
        run.record(lambda state: {"event": "created", "facts": {}, "status": "COMPLETE"})
    event = runs[0].history_dir / "0001.json"
    event.write_bytes(event.read_bytes().replace(b"COMPLETE", b"COMPLETD"))
    with pytest.raises(DamagedHistoryError, match=r"0001\.json is damaged"):
        runs[0].state()
    first, second = look_at_runs(tmp_path)
    assert str(event) in (first.doubt or "")
    assert second.state.status is RunStatus.COMPLETE
    assert second.doubt is None


@pytest.mark.parametrize("field", ["facts", "time", "event"])
def test_an_old_event_that_lacks_something_is_damaged(tmp_path: Path, field: str) -> None:
    run = Run.create(tmp_path)
    text = json.dumps({key: value for key, value in EVENT.items() if key != field})
    (run.history_dir / "0001.json").write_text(text)
    with pytest.raises(DamagedHistoryError, match=str(run.history_dir)):
        run.state()


def test_the_end_of_an_attempt_records_the_checksums_of_its_metrics(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.run()
    run = Run(project.logs / "1")
    text = (run.metrics / "train.json").read_bytes()
    assert run.events()[-1]["metrics"] == {"train": [len(text), zlib.crc32(text)]}
    for path in (run.metadata / "config.yaml", run.metadata / "mlxpy.yaml", run.stored):
        assert is_sealed(path.read_bytes()) is True
    assert is_sealed((run.metrics / ".keys" / "metrics.yaml").read_bytes()) is True


def test_a_start_from_a_configuration_that_was_changed_says_so(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.run("num_epoch=1")
    frozen = Run(project.logs / "1").stored
    frozen.write_bytes(frozen.read_bytes().replace(b"num_epoch: 1", b"num_epoch: 2"))
    words = project.run("+mlxpy.logger.forced_log_id=1").stderr
    assert f"{frozen} is not what was written for this run" in words
