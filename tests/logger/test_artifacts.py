from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxjobs.errors import ArtifactNotFoundError, InvalidArtifactError, InvalidKeyError
from mlxjobs.logger import artifacts
from mlxjobs.logger.artifacts import Artifact, Checkpoint, NumpyArray, PNGImage, TorchModel


@dataclass
class Words(Artifact):
    """As a program of 0.1 has it: a dataclass without a constructor of its own."""

    ext = ".txt"

    def _save(self, fname: str) -> None:
        Path(f"{fname}{self.ext}").write_text(" ".join(self.obj))

    @classmethod
    def load(cls, fname: str) -> Any:
        return Path(fname).read_text().split()


class Report(Artifact):
    """A class with a constructor that never calls ours, and no `ext`."""

    def __init__(self, title: str) -> None:
        self.title = title

    def _save(self, fname: str) -> None:
        Path(fname).write_text(self.title)


class Old(Artifact):
    """As the first programs had it: `save` is the abstract method."""

    def __init__(self, obj: Any) -> None:
        self.obj, self.ext = obj, ".old"

    def save(self, fname: str) -> None:
        Path(f"{fname}{self.ext}").write_text(self.obj)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- classes


def test_an_artifact_is_written_to_the_folder_of_its_class(tmp_path: Path) -> None:
    artifacts.write_artifact(Words(["a", "b"], ".txt"), tmp_path, "words")
    artifacts.write_artifact(Report("title"), tmp_path, "report.md")
    artifacts.write_artifact(Old("text"), tmp_path, "old")  # type: ignore[abstract]  # `_save` is made
    assert files(tmp_path) == ["Old/old.old", "Report/report.md", "Words/words.txt"]
    assert (tmp_path / "Words" / "words.txt").read_text() == "a b"


def test_an_artifact_can_be_saved_without_a_run(tmp_path: Path) -> None:
    Words(["a"], ".txt").save(str(tmp_path / "folder" / "words"))
    Checkpoint({"epoch": 1}).save(str(tmp_path / "folder" / "last"))
    assert files(tmp_path) == ["folder/last.pkl", "folder/words.txt"]


def test_an_artifact_that_says_not_how_to_save_cannot_be_made() -> None:
    class Nothing(Artifact):
        pass

    with pytest.raises(TypeError, match="_save"):
        Nothing(1, ".x")  # type: ignore[abstract]


def test_artifacts_of_a_class_are_read_by_class_and_by_name(tmp_path: Path) -> None:
    artifacts.write_artifact(Words(["a", "b"], ".txt"), tmp_path, "words")
    for kind in (Words, "Words", None):
        for name in ("words", "words.txt"):
            assert artifacts.read_artifact(tmp_path, name, kind) == ["a", "b"]


def test_a_class_without_load_says_so(tmp_path: Path) -> None:
    artifacts.write_artifact(Report("title"), tmp_path, "report")
    with pytest.raises(InvalidArtifactError, match=r"Report cannot be read.*load"):
        artifacts.read_artifact(tmp_path, "report", "Report")


def test_the_ready_classes_round_trip(tmp_path: Path) -> None:
    arrays = {"a": np.arange(3), "b": np.eye(2)}
    artifacts.write_artifact(NumpyArray(arrays), tmp_path, "arrays")
    artifacts.write_artifact(NumpyArray(arrays, ".npz"), tmp_path, "arrays")
    artifacts.write_artifact(Checkpoint({"epoch": 1}, ".pkl"), tmp_path, "last")
    assert files(tmp_path) == ["Checkpoint/last.pkl", "NumpyArray/arrays.npz"]
    loaded = artifacts.read_artifact(tmp_path, "arrays")
    assert loaded.keys() == arrays.keys()
    assert all((loaded[key] == arrays[key]).all() for key in arrays)
    assert artifacts.read_artifact(tmp_path, "last") == {"epoch": 1}


def test_torch_artifacts_round_trip(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    artifacts.write_artifact(TorchModel({"w": torch.arange(3)}), tmp_path, "model")
    artifacts.write_typed({"w": torch.arange(3), "odd": Path("x")}, tmp_path, "model", "torch")
    assert artifacts.read_artifact(tmp_path, "model", "TorchModel")["w"].tolist() == [0, 1, 2]
    assert artifacts.read_artifact(tmp_path, "model", "torch")["odd"] == Path("x")


def test_figures_round_trip(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    artifacts.write_artifact(PNGImage(Figure()), tmp_path, "figure")
    artifacts.write_typed(Figure(), tmp_path, "figure", "image")
    artifacts.write_typed(Figure(), tmp_path, "figure.pdf", "image")
    assert artifacts.read_artifact(tmp_path, "figure", "PNGImage").ndim == 3
    assert artifacts.read_artifact(tmp_path, "figure", "image").ndim == 3
    assert (tmp_path / "image" / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_a_dot_in_the_name_of_an_image_begins_no_format(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure
    from PIL import Image

    for image in (Figure(), Image.new("RGB", (3, 2))):
        artifacts.write_typed(image, tmp_path, "lr_0.01", "image")
        assert artifacts.read_artifact(tmp_path, "lr_0.01", "image").dtype == np.float32
    artifacts.write_typed(Image.new("RGB", (3, 2)), tmp_path, "scan.tif", "image")
    assert artifacts.read_artifact(tmp_path, "scan.tif", "image").shape == (2, 3, 3)


@pytest.mark.parametrize("thing", [{"no": "artifact"}, None, Words])
def test_what_is_no_artifact_is_refused(tmp_path: Path, thing: Any) -> None:
    with pytest.raises(InvalidArtifactError, match=r"is not an artifact.*pickle, numpy"):
        artifacts.write_artifact(thing, tmp_path, "name")


def test_an_artifact_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    class Lazy(Report):
        def _save(self, fname: str) -> None:
            pass

    with pytest.raises(InvalidArtifactError, match=r"'x' was not written"):
        artifacts.write_artifact(Lazy(""), tmp_path, "x")
    assert list((tmp_path / "Lazy").iterdir()) == []


def test_an_artifact_may_be_several_files_or_a_folder(tmp_path: Path) -> None:
    class Model(Report):
        def _save(self, fname: str) -> None:
            Path(fname + ".json").write_text(self.title)
            Path(fname).mkdir()
            (Path(fname) / "weights").write_text(self.title)

    for title in ("first", "second"):
        artifacts.write_artifact(Model(title), tmp_path, "m")
        assert files(tmp_path) == ["Model/m.json", "Model/m/weights"]
        assert (tmp_path / "Model" / "m" / "weights").read_text() == title


# --- registered types


@pytest.mark.parametrize(
    ("obj", "kind"),
    [
        ({"epoch": 1}, "pickle"),
        ("größe\r\n\x85", "text"),
        ({"a": [1, None, "ü"]}, "json"),
    ],
)
def test_registered_types_keep_the_name_and_round_trip(tmp_path: Path, obj: Any, kind: str) -> None:
    for name in ("thing", "thing.ext"):
        artifacts.write_typed(obj, tmp_path, name, kind)
        assert (tmp_path / kind / name).is_file()
        assert artifacts.read_artifact(tmp_path, name, kind) == obj
        assert artifacts.read_artifact(tmp_path, name) == obj


def test_numpy_takes_arrays_and_dictionaries(tmp_path: Path) -> None:
    artifacts.write_typed(np.arange(3), tmp_path, "one", "numpy")
    artifacts.write_typed({"a": np.arange(3)}, tmp_path, "many", "numpy")
    assert files(tmp_path) == ["numpy/many", "numpy/one"]
    assert artifacts.read_artifact(tmp_path, "one").tolist() == [0, 1, 2]
    assert artifacts.read_artifact(tmp_path, "many")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("obj", [{0: np.arange(3)}, {"file": np.arange(3)}, [[1], [1, 2]]])
def test_what_numpy_does_not_take_is_refused(tmp_path: Path, obj: Any) -> None:
    with pytest.raises(InvalidArtifactError, match="cannot be written by numpy"):
        artifacts.write_typed(obj, tmp_path, "bad", "numpy")
    assert files(tmp_path) == []


def test_a_numpy_file_with_objects_runs_nothing(tmp_path: Path) -> None:
    class Exploit:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploited"),)

    artifacts.write_typed(np.array([Exploit()]), tmp_path, "bad", "numpy")
    artifacts.write_typed({"a": np.array([Exploit()])}, tmp_path, "bads", "numpy")
    for name in ("bad", "bads"):
        with pytest.raises(InvalidArtifactError, match="allow_pickle"):
            artifacts.read_artifact(tmp_path, name)
    assert not (tmp_path / "exploited").exists()


def test_a_registered_type_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_TYPES", dict(artifacts._TYPES))
    artifacts.register_artifact_type(
        "csv",
        lambda rows, path: Path(path).write_text("\n".join(",".join(row) for row in rows)),
        lambda path: [line.split(",") for line in Path(path).read_text().split("\n")],
    )
    artifacts.write_typed([["a", "b"]], tmp_path, "table.csv", "csv")
    assert artifacts.read_artifact(tmp_path, "table") == [["a", "b"]]
    with pytest.raises(InvalidArtifactError, match="functions"):
        artifacts.register_artifact_type("bad", None, json.loads)  # type: ignore[arg-type]
    with pytest.raises(InvalidKeyError):
        artifacts.register_artifact_type("a/b", lambda obj, path: None, json.loads)


def test_an_unknown_type_is_named_with_the_known_ones(tmp_path: Path) -> None:
    known = r"'pikle' is not an artifact type: use one of pickle, numpy"
    with pytest.raises(InvalidArtifactError, match=known):
        artifacts.write_typed(1, tmp_path, "a", "pikle")
    (tmp_path / "Unknown").mkdir()
    (tmp_path / "Unknown" / "a").write_bytes(pickle.dumps(1))
    with pytest.raises(InvalidArtifactError, match="'Unknown' is not an artifact type"):
        artifacts.read_artifact(tmp_path, "a")
    with pytest.raises(InvalidArtifactError, match="log_artifact"):
        artifacts.write_typed(1, tmp_path, "a", "Words")


@pytest.mark.parametrize(
    ("obj", "kind"), [(3, "text"), ({"a": float("nan")}, "json"), ({1, 2}, "json"), (3, "image")]
)
def test_an_object_that_its_type_does_not_take_is_refused(tmp_path: Path, obj: Any, kind: str) -> None:
    with pytest.raises(InvalidArtifactError):
        artifacts.write_typed(obj, tmp_path, "a", kind)
    assert files(tmp_path) == []


def test_a_pickle_artifact_may_hold_lambdas(tmp_path: Path) -> None:
    artifacts.write_typed({"f": lambda x: x + 1}, tmp_path, "f", "pickle")
    assert artifacts.read_artifact(tmp_path, "f")["f"](1) == 2


# --- names


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/", "a//b", "a/.b", "/a", "../a", "a\0", None, 3]
)
def test_names_that_no_artifact_can_have_are_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InvalidKeyError, match="cannot name an artifact"):
        artifacts.write_typed(1, tmp_path, name, "pickle")
    with pytest.raises(InvalidKeyError):
        artifacts.write_artifact(Report("a"), tmp_path, name)
    with pytest.raises(InvalidKeyError):
        artifacts.read_artifact(tmp_path, name)
    assert files(tmp_path) == []


def test_a_name_may_have_folders_as_in_mlxp(tmp_path: Path) -> None:
    artifacts.write_typed([1], tmp_path, "best/of/model", "json")
    assert files(tmp_path) == ["json/best/of/model"]
    assert artifacts.read_artifact(tmp_path, "best/of/model") == [1]


def test_a_missing_artifact_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"'a' in .*/json"):
        artifacts.read_artifact(tmp_path, "a", "json")
    with pytest.raises(FileNotFoundError):
        artifacts.read_artifact(tmp_path / "nowhere", "a")


def test_a_name_that_several_have_needs_its_type(tmp_path: Path) -> None:
    for kind in ("json", "text"):
        artifacts.write_typed("x", tmp_path, "a", kind)
    with pytest.raises(InvalidArtifactError, match="give artifact_type, one of json, text"):
        artifacts.read_artifact(tmp_path, "a")
    artifacts.write_typed("x", tmp_path, "b.1", "text")
    artifacts.write_typed("x", tmp_path, "b.2", "text")
    with pytest.raises(InvalidArtifactError, match=r"which of .*b\.1, .*b\.2"):
        artifacts.read_artifact(tmp_path, "b", "text")


# --- never half of one


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    class Breaking(Report):
        def _save(self, fname: str) -> None:
            Path(fname).write_text("half")
            if self.title == "bad":
                raise RuntimeError("broken")
            Path(fname).write_text(self.title)

    artifacts.write_artifact(Breaking("good"), tmp_path, "a")
    with pytest.raises(RuntimeError, match="broken"):
        artifacts.write_artifact(Breaking("bad"), tmp_path, "a")
    assert files(tmp_path) == ["Breaking/a"]
    assert (tmp_path / "Breaking" / "a").read_text() == "good"
    assert [path.name for path in (tmp_path / "Breaking").iterdir()] == ["a"]


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path) -> None:
    script = f"""
import resource
from pathlib import Path
import numpy as np
from mlxjobs.logger import artifacts
folder = Path({str(tmp_path)!r})
for kind, small, large in (
    ("pickle", 1, b"x" * 9000), ("numpy", np.zeros(2), np.zeros(9000)),
    ("text", "a", "x" * 9000), ("json", "a", "x" * 9000),
):
    artifacts.write_typed(small, folder, "a", kind)
    before = (folder / kind / "a").read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    try:
        artifacts.write_typed(large, folder, "a", kind)
    except OSError as error:
        assert str(folder / kind) in str(error), error
    else:
        raise SystemExit(kind + " was written")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (folder / kind / "a").read_bytes() == before
    assert [path.name for path in (folder / kind).iterdir()] == ["a"]
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    rename = Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))

    def move(source: Path, target: Any) -> Path:
        calls.append("replace")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", move)
    artifacts.write_typed("x", tmp_path, "a", "text")
    assert calls == ["a", "replace", "text"]


def test_a_reader_sees_whole_files_only(tmp_path: Path) -> None:
    text = "x" * 500_000
    artifacts.write_typed(text, tmp_path, "a", "text")
    seen = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(len(artifacts.read_artifact(tmp_path, "a", "text")))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        artifacts.write_typed(text, tmp_path, "a", "text")
    done.set()
    reader.join()
    assert set(seen) == {500_000}
