"""A resumed run has the artifacts of the checkpoint that it goes on from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlxjobs.logger import artifacts
from mlxjobs.logger.logger import DefaultLogger
from tests.attempts import attempt
from tests.crashes import crash_points


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "5"


def kept(run: Path) -> dict[str, str]:
    folder = run / "artifacts" / "text"
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in files.items() if not name.startswith(".")}


def write(logger: DefaultLogger, **texts: str) -> None:
    for name, text in texts.items():
        logger.log_artifacts(text, name.replace("__", "/"), "text")


def test_artifacts_of_after_the_checkpoint_are_taken_back(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = attempt(run, 1)
    write(first, image="before", best__image="before")
    first.log_checkpoint(1)
    write(first, image="after", best__image="after", late="after")
    second = attempt(run, 2)
    second.load_checkpoint()
    assert kept(run) == {"image": "before", "best/image": "before"}
    assert second.load_artifacts("image", "text") == "before"
    superseded = run / "artifacts" / "text" / ".superseded" / "1"
    assert [(superseded / name).read_text() for name in ("image", "best/image", "late")] == ["after"] * 3
    assert "3 artifacts" in capsys.readouterr().err


def test_a_folder_takes_the_place_of_a_file_and_is_taken_back(run: Path) -> None:
    def save(obj: str, path: str) -> None:
        if obj == "folder":
            Path(path).mkdir()
            path += "/inside"
        Path(path).write_text(obj)

    artifacts.register_artifact_type("either", save, os.listdir)
    first = attempt(run, 1)
    first.log_artifacts("file", "model", "either")
    first.log_checkpoint(1)
    first.log_artifacts("folder", "model", "either")
    assert first.load_artifacts("model", "either") == ["inside"]
    attempt(run, 2).load_checkpoint()
    assert (run / "artifacts" / "either" / "model").read_text() == "file"


def test_an_artifact_that_is_a_folder_is_taken_back_whole(run: Path) -> None:
    def save(obj: list[str], path: str) -> None:
        Path(path).mkdir()
        for name in obj:
            Path(path, name).write_text(name)

    artifacts.register_artifact_type("folder", save, lambda path: sorted(os.listdir(path)))
    first = attempt(run, 1)
    first.log_artifacts(["a", "b"], "model", "folder")
    first.log_checkpoint(1)
    first.log_artifacts(["c"], "model", "folder")
    first.log_artifacts(["d"], "model", "folder")
    second = attempt(run, 2)
    second.load_checkpoint()
    assert second.load_artifacts("model", "folder") == ["a", "b"]
    superseded = run / "artifacts" / "folder" / ".superseded" / "1" / "model"
    assert os.listdir(superseded) == ["d"]


def test_artifacts_of_an_attempt_before_the_first_checkpoint_are_taken_back(run: Path) -> None:
    write(attempt(run, 1), image="first", late="first")
    second = attempt(run, 2)
    write(second, image="second")
    second.log_checkpoint(1)
    assert kept(run).keys() >= {"image"}
    assert not (run / "artifacts" / "text" / "late").exists()
    assert (run / "artifacts" / "text" / "image").read_text() == "second"


def test_what_is_needed_to_take_artifacts_back_does_not_pile_up(run: Path) -> None:
    logger = attempt(run, 1)
    for epoch in range(20):
        write(logger, image=str(epoch))
        logger.log_checkpoint(epoch)
    copies = [
        path
        for path in (run / "artifacts" / "text" / ".since").rglob("*")
        if path.is_file() and path.stat().st_size
    ]
    assert len(copies) <= 2
    logger.finish()
    logger.forget()
    logger.close()
    assert [path.name for path in (run / "artifacts" / "text").iterdir()] == ["image"]


def test_artifacts_follow_an_older_checkpoint_that_was_kept(run: Path) -> None:
    first = attempt(run, 1)
    for epoch in range(10):
        write(first, image=str(epoch), **{f"epoch{epoch}": "x"})
        first.log_checkpoint(epoch, keep=4)
    for name in ("checkpoint.pkl", "checkpoint.pkl.9", "checkpoint.pkl.8"):
        (run / "artifacts" / "Checkpoint" / name).unlink()
    second = attempt(run, 2)
    with pytest.warns(UserWarning, match=r"checkpoint\.pkl is missing; going on from"):
        assert second.load_checkpoint() == 6
    assert kept(run) == {"image": "6", **{f"epoch{epoch}": "x" for epoch in range(7)}}


def test_looking_at_an_older_checkpoint_takes_no_artifact_from_the_newest(run: Path) -> None:
    first = attempt(run, 1)
    for epoch in range(3):
        write(first, image=str(epoch), **{f"epoch{epoch}": "x"})
        first.log_checkpoint(epoch, keep=3)
    write(first, image="late")
    second = attempt(run, 2)
    assert second.load_checkpoint("checkpoint.pkl.1") == 0
    assert kept(run) == {"image": "0", "epoch0": "x"}
    assert second.load_checkpoint() == 2
    assert kept(run) == {"image": "2", "epoch0": "x", "epoch1": "x", "epoch2": "x"}


def test_a_checkpoint_of_an_attempt_that_was_given_up_has_its_artifacts(run: Path) -> None:
    first = attempt(run, 1)
    write(first, image="first", first="x")
    first.log_checkpoint(1, "first")
    write(first, image="late")
    second = attempt(run, 2)  # loads nothing, so it begins from scratch
    write(second, second="x")
    second.log_checkpoint(2, "second")
    write(second, image="second")
    third = attempt(run, 3)
    third.load_checkpoint("first")
    assert kept(run) == {"image": "first", "first": "x"}
    write(third, third="x")
    attempt(run, 4).load_checkpoint("second")
    assert kept(run) == {"second": "x"}


def test_a_process_that_dies_anywhere_while_it_takes_back_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = attempt(tmp_path / "run", 1)
    write(first, image="oldest")
    first.log_checkpoint(0, "oldest")
    write(first, image="before", best__image="before")
    first.log_checkpoint(1)
    write(first, image="after", best__image="after", late="after")
    first.close()

    def die(run: Path) -> None:
        logger = attempt(run, 2)
        write(logger, start="second")
        logger.load_checkpoint("oldest")
        logger.load_checkpoint()

    copies = crash_points(tmp_path, monkeypatch, die)
    assert len(copies) > 10
    for run in copies:
        third = attempt(run, 3)
        assert third.load_checkpoint("oldest") == 0
        assert kept(run) == {"image": "oldest"}, run
        assert third.load_checkpoint() == 1
        assert kept(run) == {"image": "before", "best/image": "before"}, run


def test_a_process_that_dies_anywhere_while_it_writes_leaves_what_can_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = attempt(tmp_path / "run", 1)
    write(first, image="before")
    first.log_checkpoint(1)
    first.close()

    def die(run: Path) -> None:
        logger = attempt(run, 1)
        write(logger, image="after", late="after")
        logger.log_checkpoint(2, "other")
        write(logger, image="later", late="later")

    copies = crash_points(tmp_path, monkeypatch, die)
    assert len(copies) > 10
    for run in copies:
        done = attempt(run, 2).load_checkpoint()
        texts = {1: {"image": "before"}, 2: {"image": "after", "late": "after"}}
        assert kept(run) == texts[done], run
