"""What `mlxjobs fsck` finds, what --fix does about it, and that it may be killed while it does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from mlxjobs.care.fsck import check_logs
from mlxjobs.cli.app import app
from mlxjobs.errors import ShortMetricsError
from mlxjobs.jobs.hand_in import end_attempt
from mlxjobs.jobs.look import look_at_runs
from mlxjobs.logger import metrics
from mlxjobs.logger.checkpoints import candidates, load_first
from mlxjobs.logger.logger import DefaultLogger
from mlxjobs.reader.reader import Reader
from mlxjobs.record.history import RunStatus
from mlxjobs.record.run import Run
from mlxjobs.system.processes import this_process
from mlxjobs.system.seals import seal_yaml
from tests.attempts import attempt
from tests.project import Project
from tests.run_trees import write_run
from tests.slurm_stub import Slurm


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = Project(tmp_path_factory.mktemp("fsck") / "project")
    project.run("num_epoch=3")
    return project.logs


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A run that is COMPLETE, and nothing is wrong with it."""
    shutil.copytree(finished, tmp_path / "logs")
    made = Run(tmp_path / "logs" / "1")
    os.utime(made.history_dir, (1.7e9, 1.7e9))  # else looking at it may paint info.yaml again
    return made


def found(logs: Path, *, fix: bool = False) -> dict[str, str]:
    """What is wrong: path below the log directory -> what."""
    return {str(finding.path.relative_to(logs)): finding.what for finding in check_logs(logs, fix=fix)}


def fsck(logs: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["fsck", "--logs", str(logs), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def by_mlxp(logs: Path, generation: str, steps: list[tuple[int, float]]) -> Path:
    run = write_run(logs, 1, {"lr": 0.1}, generation=generation)
    lines = [json.dumps({"loss": loss, "epoch": epoch}) + "\n" for epoch, loss in steps]
    (run / "metrics" / "train.json").write_text("".join(lines))
    make_old(run)
    return run


def make_old(run: Path) -> None:
    for path in [*run.rglob("*"), run]:
        os.utime(path, (1.7e9, 1.7e9))


def test_nothing_is_wrong_with_a_run_that_ended_well(run: Run) -> None:
    assert fsck(run.path.parent) == (0, "nothing found\n")


@pytest.mark.parametrize("generation", ["mlxp-0.1", "mlxp-1.0"])
def test_nothing_is_wrong_with_a_run_of_mlxp(tmp_path: Path, generation: str) -> None:
    by_mlxp(tmp_path, generation, [(0, 1.0), (1, 0.5)])
    assert fsck(tmp_path) == (0, "nothing found\n")


# -- metrics ----------------------------------------------------------------------------------------


def test_a_last_line_that_is_not_finished_is_moved_away(tmp_path: Path) -> None:
    run = by_mlxp(tmp_path, "mlxp-1.0", [(0, 1.0), (1, 0.5)])
    log = run / "metrics" / "train.json"
    whole = log.read_text()
    log.write_text(whole + '{"loss": 0.2')
    make_old(run)
    code, out = fsck(tmp_path)
    assert code == 1
    assert "run 1: 1/metrics/train.json has a last line that is not finished (--fix: move the line" in out
    assert log.read_text() == whole + '{"loss": 0.2'
    code, out = fsck(tmp_path, "--fix")
    assert code == 0
    assert out.endswith("1 found, 1 mended, 0 left\n")
    assert log.read_text() == whole
    assert (run / "metrics" / ".superseded" / "torn" / "train.json").read_text() == '{"loss": 0.2\n'
    assert fsck(tmp_path)[0] == 0


def test_a_whole_last_line_only_gets_its_end(tmp_path: Path) -> None:
    run = by_mlxp(tmp_path, "mlxp-1.0", [(0, 1.0)])
    log = run / "metrics" / "train.json"
    whole = log.read_text()
    log.write_text(whole.rstrip())
    make_old(run)
    assert fsck(tmp_path, "--fix")[0] == 0
    assert log.read_text() == whole


def test_a_changed_number_in_the_metrics_is_told_and_left(run: Run) -> None:
    log = run.metrics / "train.json"
    log.write_bytes(log.read_bytes().replace(b"90.0", b"91.0", 1))
    code, out = fsck(run.path.parent, "--fix")
    assert code == 1
    assert "1/metrics/train.json is edited or damaged" in out
    assert out.endswith("1 found, 0 mended, 1 left\n")


def test_metrics_that_lost_their_end_are_told_though_what_is_left_is_whole(run: Run) -> None:
    log = run.metrics / "train.json"
    log.write_bytes(log.read_bytes().split(b"\n", 1)[0] + b"\n")
    assert "has lost" in found(run.path.parent)["1/metrics/train.json"]


def test_a_run_goes_on_without_lines_that_are_lost_once_that_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_OLD_S", 0.0)
    run = Run.create(tmp_path / "logs")
    run.record(lambda state: {"event": "created", "facts": {}})
    first = attempt(run.path, 1)
    for epoch in range(3):
        first.log_metrics({"epoch": epoch}, "train")
    first.log_checkpoint({"epoch": 2})
    run.record(lambda state: {"event": "started", "attempt": 1})
    run.record(lambda state: {"event": "ended", "attempt": 1, "status": "FAILED", "reason": "x"})
    log = run.metrics / "train.json"
    log.write_bytes(log.read_bytes().split(b"\n", 1)[0] + b"\n")
    second = attempt(run.path, 2)
    second.load_checkpoint()
    with pytest.raises(ShortMetricsError, match=r"has 12 bytes of the 36 .* mlxjobs fsck --fix 1 --logs"):
        second.log_checkpoint({"epoch": 3})
    second.close()
    assert "mended: let the run go on without those lines" in fsck(run.path.parent, "--fix")[1]
    third = attempt(run.path, 3)
    assert third.load_checkpoint() == {"epoch": 2}
    third.log_metrics({"epoch": 3}, "train")
    third.log_checkpoint({"epoch": 3})
    third.finish()
    assert log.read_text() == '{"epoch":0}\n{"epoch":3}\n'


def test_a_folder_of_an_attempt_is_removed_with_its_lease_and_with_nothing_else(run: Run) -> None:
    folder = run.metadata / ".attempt-1"
    folder.mkdir()
    (folder / "lease").touch()
    (finding,) = check_logs(run.path.parent)
    (folder / "late").touch()
    finding.try_fix()
    assert (finding.mended, [path.name for path in folder.iterdir()]) == (False, ["late"])
    (folder / "late").unlink()
    assert fsck(run.path.parent, "--fix")[0] == 0
    assert not folder.exists()


def test_metrics_that_were_added_afterwards_are_no_damage(run: Run) -> None:
    with (run.metrics / "train.json").open("ab") as file:
        file.write(b'{"loss": 1.0, "epoch": 9}\n')
    assert found(run.path.parent) == {}


def test_a_line_that_is_not_json_is_told_with_its_number(run: Run) -> None:
    with (run.metrics / "train.json").open("ab") as file:
        file.write(b'nonsense\n{"loss": 1.0, "epoch": 9}\n')
    assert found(run.path.parent)["1/metrics/train.json"].endswith(
        "1 of its lines is not JSON and not shown: 4"
    )


@pytest.mark.parametrize("generation", ["mlxp-0.1", "mlxp-1.0"])
def test_steps_that_mlxp_wrote_twice_are_kept_once(tmp_path: Path, generation: str) -> None:
    steps = [(0, 1.0), (1, 0.5), (2, 0.25), (1, 0.5), (2, 0.25), (3, 0.125)]
    run = by_mlxp(tmp_path, generation, steps)
    assert len(Reader(tmp_path).filter("train.epoch.count == 6")) == 1  # which the index remembers
    assert fsck(tmp_path, "--fix")[0] == 0
    assert len(Reader(tmp_path).filter("train.epoch.count == 4")) == 1
    table = Reader(tmp_path).metrics("", "train.epoch", superseded=True, result_format="arrays")
    assert list(table["value"]) == [1, 2, 0, 1, 2, 3]
    assert table["attempt"] == ["repeated"] * 2 + [""] * 4
    assert (run / "metrics" / "train.json").read_text().count("\n") == 4


def test_steps_with_other_values_are_told_and_left(tmp_path: Path) -> None:
    run = by_mlxp(
        tmp_path, "mlxp-1.0", [(0, 1.0), (1, 0.5), (1, 0.4), (1, 0.3), (2, 0.25), (1, 0.6), (2, 0.1)]
    )
    before = (run / "metrics" / "train.json").read_bytes()
    code, out = fsck(tmp_path, "--fix")
    assert code == 1
    assert "2 steps are there twice, with other values: 1, 2" in out
    assert (run / "metrics" / "train.json").read_bytes() == before


def test_several_lines_of_a_step_are_no_repetition(tmp_path: Path) -> None:
    by_mlxp(tmp_path, "mlxp-1.0", [(0, 1.0), (0, 1.0), (0, 0.9), (1, 0.5), (1, 0.5)])
    assert found(tmp_path) == {}


@pytest.mark.parametrize("generation", ["ours", "mlxp-1.0"])
def test_a_lost_registry_is_made_again(run: Run, tmp_path: Path, generation: str) -> None:
    logs = run.path.parent
    if generation != "ours":
        logs = tmp_path / "mlxp"
        by_mlxp(logs, generation, [(0, 1.0)])
    keys = logs / "1" / "metrics" / ".keys"
    before = {path.name: yaml.safe_load(path.read_bytes()) for path in keys.iterdir()}
    shutil.rmtree(keys)
    make_old(logs / "1")
    assert found(logs, fix=True)["1/metrics/.keys"] == "is missing"
    after = {path.name: yaml.safe_load(path.read_bytes()) for path in keys.iterdir()}
    assert after == before
    assert found(logs) == {}


def test_a_damaged_registry_is_made_again_and_kept_aside(run: Run) -> None:
    keys = run.metrics / ".keys" / "metrics.yaml"
    before = yaml.safe_load(keys.read_bytes())
    damaged = keys.read_bytes().replace(b"loss", b"lost")
    keys.write_bytes(damaged)
    assert "1/metrics/.keys/metrics.yaml" in found(run.path.parent, fix=True)
    assert yaml.safe_load(keys.read_bytes()) == before
    assert (run.path / ".damaged/metrics/.keys/metrics.yaml").read_bytes() == damaged
    assert found(run.path.parent) == {}


# -- metadata ---------------------------------------------------------------------------------------


def test_a_damaged_event_is_named_and_left(run: Run) -> None:
    event = run.history_dir / "0002.json"
    event.write_bytes(event.read_bytes()[:-9])
    code, out = fsck(run.path.parent, "--fix")
    assert code == 1
    assert "1/metadata/.history/0002.json is damaged" in out


def test_a_missing_event_is_named(run: Run) -> None:
    (run.history_dir / "0002.json").unlink()
    assert list(found(run.path.parent)) == ["1/metadata/.history/0002.json"]
    assert not (run.history_dir / "0002.json").exists()  # nothing was recorded in its place


def test_an_info_that_is_not_what_the_events_say_is_painted_again(run: Run) -> None:
    info = run.metadata / "info.yaml"
    before = info.read_bytes()
    info.write_bytes(before.replace(b"COMPLETE", b"RUNNING"))
    assert "does not say" in found(run.path.parent, fix=True)["1/metadata/info.yaml"]
    assert info.read_bytes() == before
    assert b"RUNNING" in (run.path / ".damaged/metadata/info.yaml").read_bytes()


def test_an_edited_configuration_is_told_and_left(run: Run) -> None:
    config = run.metadata / "config.yaml"
    edited = config.read_bytes().replace(b"seed: 0", b"seed: 1")
    config.write_bytes(edited)
    code, out = fsck(run.path.parent, "--fix")
    assert code == 1
    assert "1/metadata/config.yaml is edited or damaged" in out
    assert config.read_bytes() == edited


@pytest.mark.parametrize(
    "text", ["when: 2026-99-99\n", "a: [1\n", "? [a]: 1\n", "\x80\n", "a: !!int x\n", "5\n"]
)
def test_a_configuration_that_is_no_yaml_stops_nobody(run: Run, text: str) -> None:
    (run.metadata / "config.yaml").write_text(text, "latin-1")
    logs = run.path.parent
    assert "1/metadata/config.yaml" in found(logs)
    assert CliRunner().invoke(app, ["ls", str(logs)]).exit_code == 0


def test_what_a_later_version_adds_to_events_is_ignored(run: Run) -> None:
    run.record(lambda state: {"event": "sang", "song": "la"})
    run.record(
        lambda state: {"event": "ended", "attempt": 1, "status": "COMPLETE", "metrics": {"x": "sha256"}}
    )
    assert found(run.path.parent) == {}


def test_a_copy_that_says_something_else_is_written_anew(run: Run) -> None:
    copy = run.metadata / ".info.json"
    before = copy.read_bytes()
    copy.write_bytes(before.replace(b"COMPLETE", b"COMPLETA"))
    assert found(run.path.parent, fix=True) == {"1/metadata/.info.json": "is not what the YAML file says"}
    assert copy.read_bytes() == before


def test_what_killed_processes_left_is_moved_and_kept(run: Run) -> None:
    left = run.artifacts / "Checkpoint" / ".attempt-1"
    left.mkdir()
    (left / "half").write_text("x")
    (run.metrics / ".attempt-2").mkdir()
    (run.metadata / ".info.yaml.host.1.1.tmp").write_text("y")
    code, out = fsck(run.path.parent, "--fix")
    assert code == 0, out
    assert (run.path / ".damaged/artifacts/Checkpoint/.attempt-1/half").read_text() == "x"
    assert (run.path / ".damaged/metadata/.info.yaml.host.1.1.tmp").read_text() == "y"
    assert not (run.metrics / ".attempt-2").exists()
    assert found(run.path.parent) == {}


def test_artifacts_with_odd_names_are_not_taken_for_leftovers(run: Run) -> None:
    noted = run.artifacts / "image" / ".since" / "1.1" / "old"
    noted.mkdir(parents=True)
    (noted / ".a.host.1.1.tmp").write_text("x")  # of an artifact that is called a.host.1.1.tmp
    (run.artifacts / "image" / "b.tmp").write_text("x")
    (run.artifacts / "image" / ".mine.tmp").write_text("x")
    assert found(run.path.parent) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user")
def test_nothing_is_mended_in_a_run_of_another_user(run: Run) -> None:
    (run.metrics / ".attempt-2").mkdir()
    os.chown(run.metadata / "config.yaml", 12345, -1)
    code, out = fsck(run.path.parent, "--fix")
    assert code == 1
    assert "not mended: " in out
    assert "belongs to 12345" in out
    assert (run.metrics / ".attempt-2").exists()


def test_a_stale_state_is_put_right(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.record(lambda state: {"event": "created", "facts": {}})
    me = {"host": os.uname().nodename, "pid": 2**22 + 1, "process_key": "gone"}
    run.record(lambda state: {"event": "started", "attempt": 1, **me})
    assert "was STARTING, and is FAILED" in found(tmp_path)["1/metadata"]
    assert run.state().status is RunStatus.FAILED


def test_a_folder_that_never_became_a_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "1" / "metadata").mkdir(parents=True)
    assert found(tmp_path) == {}  # it may be being made
    make_old(tmp_path / "1")
    assert "never became a run" in found(tmp_path)["1"]


def test_a_run_that_is_running_or_being_made_is_left_alone(tmp_path: Path) -> None:
    Run.create(tmp_path).write_yaml("mlxpy", {})
    run = Run.create(tmp_path)
    run.write_yaml("config", {"lr": 0.1})
    run.write_yaml("mlxpy", {})
    run.stored.write_text(seal_yaml("config: {}\n"))
    run.record(lambda state: {"event": "created", "facts": {}})
    run.record(lambda state: {"event": "started", "attempt": 1, **this_process()})
    (run.metrics / ".attempt-1").mkdir()
    (run.metrics / "train.json").write_text('{"loss": 0.')
    assert found(tmp_path, fix=True) == {}
    assert (run.metrics / ".attempt-1").exists()


def test_a_run_that_was_killed_has_checksums_too(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.record(lambda state: {"event": "created", "facts": {}})
    run.record(lambda state: {"event": "started", "attempt": 1, **this_process(), "process_key": "gone"})
    logger = DefaultLogger(run.path)
    logger.log_metrics({"loss": 1.0}, "train")
    logger.close()
    assert look_at_runs(tmp_path)[0].state.status is RunStatus.FAILED
    log = run.metrics / "train.json"
    assert "1/metrics/train.json" not in found(tmp_path)
    log.write_bytes(log.read_bytes().replace(b"1.0", b"1.5"))
    assert "is edited or damaged" in found(tmp_path)["1/metrics/train.json"]


def test_what_a_cancelled_attempt_takes_back_before_it_is_gone_is_not_missed(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.record(lambda state: {"event": "created", "facts": {}})
    run.record(lambda state: {"event": "started", "attempt": 1})
    first = attempt(run.path, 1)
    first.log_checkpoint(1)
    first.log_metrics({"loss": 1.0}, "train")
    run.record(lambda state: {"event": "started", "attempt": 2})
    second = attempt(run.path, 2)
    end_attempt(
        run, 2, RunStatus.CANCELLED, "scancel"
    )  # told by a signal, before the task gets to its checkpoint
    second.load_checkpoint()
    second.log_metrics({"loss": 2.0}, "train")
    assert "1/metrics/train.json" not in found(tmp_path)


def test_a_line_that_a_killed_run_left_unfinished_is_not_missed_afterwards(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.record(lambda state: {"event": "created", "facts": {}})
    run.record(lambda state: {"event": "started", "attempt": 1, **this_process(), "process_key": "gone"})
    (run.metrics / "train.json").write_text('{"loss":1.0}\n{"lo')
    look_at_runs(tmp_path)
    assert found(tmp_path, fix=True)["1/metrics/train.json"] == "has a last line that is not finished"
    assert "1/metrics/train.json" not in found(tmp_path)


# -- checkpoints ------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_moved_if_another_is_whole(run: Run) -> None:
    folder = run.artifacts / "Checkpoint"
    last = folder / "last_ckpt.pkl"
    damaged = bytearray(last.read_bytes())
    damaged[20] ^= 4
    last.write_bytes(damaged)
    assert found(run.path.parent, fix=True)["1/artifacts/Checkpoint/last_ckpt.pkl"].startswith("is damaged")
    assert (run.path / ".damaged/artifacts/Checkpoint/last_ckpt.pkl").read_bytes() == damaged
    with pytest.warns(UserWarning, match="going on from the one before it"):
        assert load_first(candidates(folder, "last_ckpt")).checkpoint["epoch"] == 1
    assert found(run.path.parent) == {}


def test_the_only_checkpoint_is_left_though_damaged(run: Run) -> None:
    folder = run.artifacts / "Checkpoint"
    (folder / ".last_ckpt.pkl.previous").unlink()
    last = folder / "last_ckpt.pkl"
    last.write_bytes(last.read_bytes()[:-1])
    code, out = fsck(run.path.parent, "--fix")
    assert code == 1
    assert "no other can be loaded" in out
    assert last.exists()


# -- the log directory ------------------------------------------------------------------------------


def test_links_and_marks_of_runs_that_are_gone_are_removed(run: Run) -> None:
    logs = run.path.parent
    (logs / ".arrays" / "1").mkdir(parents=True)
    (logs / ".arrays" / "1" / "1").symlink_to("../../1")
    (logs / ".arrays" / "1" / "2").symlink_to("../../2")
    Run(logs / "1").mark_waiting(True)
    Run(logs / "7").mark_waiting(True)
    assert sorted(found(logs, fix=True)) == [".arrays/1/2", ".waiting/1", ".waiting/7"]
    assert found(logs) == {}


def test_a_job_without_a_run_is_found(slurm_stub: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = slurm_stub.project.logs
    slurm_stub.submit("", "seed=1")
    slurm_stub.submit("", "seed=2")
    monkeypatch.setenv("PATH", slurm_stub.project.env["PATH"])
    assert found(logs) == {}
    shutil.rmtree(logs / "1")
    assert found(logs) == {"1/script.sh": "is of job 1 of SLURMScheduler, whose run is gone: cancel it"}


def test_a_half_snapshot_is_removed_and_a_missing_one_told(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    project.commit()
    project.run("+mlxpy.use_version_manager=true", "num_epoch=1")
    run = Run(project.logs / "1")
    root = Path(run.state().facts["version_manager"]["snapshot"])
    half = root.with_name(f".{root.name}.{os.uname().nodename}.{2**22 + 1}.0123abcd.tmp")
    half.mkdir()
    (root / "main.py").unlink()
    findings = list(check_logs(project.logs, fix=True))
    assert [(one.path, one.mended) for one in findings] == [(root, False), (half, True)]
    assert "lacks files of its commit: main.py" in findings[0].what
    assert not half.exists()


# -- the command ------------------------------------------------------------------------------------


def test_it_looks_at_the_runs_that_are_named(run: Run) -> None:
    logs = run.path.parent
    shutil.copytree(logs / "1", logs / "2")
    (logs / "1" / "metadata" / "config.yaml").unlink()
    assert fsck(logs, "2")[0] == 0
    assert fsck(logs, "1-2")[0] == 1
    assert fsck(logs, "x")[0] == 2


def test_json_has_one_object_a_finding(run: Run) -> None:
    (run.metadata / "config.yaml").unlink()
    code, out = fsck(run.path.parent, "--json")
    assert code == 1
    (one,) = map(json.loads, out.splitlines())
    assert (one["run"], one["path"], one["mended"]) == (1, str(run.metadata / "config.yaml"), False)


def test_a_wrong_directory_is_wrong_usage(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    assert "no log directory" in project.mlxjobs("fsck", "--logs", "nowhere", code=2).stderr


class Killed(BaseException):
    """The process is killed before a system call."""


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    calls = {"left": 10**9}
    for name in ("rename", "replace", "link", "unlink", "open", "truncate", "rmdir", "mkdir"):
        real = getattr(os, name)

        def call(*arguments: Any, _real: Any = real, **more: Any) -> Any:
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Killed
            return _real(*arguments, **more)

        monkeypatch.setattr(os, name, call)
    yield calls
    calls["left"] = 10**9


def test_killed_at_any_moment_it_goes_on_when_it_is_started_again(
    run: Run, tmp_path: Path, killing: dict[str, int]
) -> None:
    logs = run.path.parent
    info, keys = run.metadata / "info.yaml", run.metrics / ".keys" / "metrics.yaml"
    last = run.artifacts / "Checkpoint" / "last_ckpt.pkl"
    texts = {info: info.read_bytes(), keys: yaml.safe_load(keys.read_bytes())}
    info.write_bytes(texts[info].replace(b"COMPLETE", b"RUNNING"))
    keys.write_bytes(keys.read_bytes().replace(b"loss", b"lost"))
    last.write_bytes(last.read_bytes()[:-3] + b"xyz")
    mlxp = write_run(logs, 2, {"lr": 0.1}, generation="mlxp-1.0")
    line = '{"loss": 1.0, "epoch": %d}\n'
    (mlxp / "metrics" / "train.json").write_text("".join(line % step for step in (0, 1, 0, 1, 2)) + "{")
    make_old(mlxp)
    damaged = tmp_path / "damaged"
    logs.rename(damaged)
    count = 0
    while True:
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(damaged, logs)
        killing["left"] = count
        try:
            list(check_logs(logs, fix=True))
        except Killed:
            killing["left"] = 10**9
            make_old(mlxp)
            list(check_logs(logs, fix=True))
            finished = False
        else:
            finished = True
        killing["left"] = 10**9
        assert info.read_bytes() == texts[info], count
        assert yaml.safe_load(keys.read_bytes()) == texts[keys], count
        assert (mlxp / "metrics" / "train.json").read_text() == "".join(line % step for step in (0, 1, 2)), (
            count
        )
        assert (mlxp / "metrics/.superseded/repeated/train.json").read_text() == line % 0 + line % 1, count
        make_old(mlxp)
        assert [one.what for one in check_logs(logs) if ".tmp" not in one.path.name] == [], count
        kept = (run.path / ".damaged/artifacts/Checkpoint/last_ckpt.pkl").read_bytes()
        assert kept.endswith(b"xyz"), count
        if finished:
            break
        count += 1
    assert count > 20
    assert look_at_runs(logs, [1])[0].state.status is RunStatus.COMPLETE
