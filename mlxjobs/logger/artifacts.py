"""Artifacts: objects kept as files of a run, `artifacts/<type>/<name>`.

There are two ways to say how an object is written. A subclass of `Artifact` writes `obj` to the
file name it is given and `ext`; a registered type is a pair of functions. Either way the file is
written aside and renamed, so a reader never sees half of one.

Reading an artifact runs no code that the file brings along, but for the types that cannot do
without: `pickle`, `Checkpoint`, and a `torch` file that holds more than weights.
"""

from __future__ import annotations

import abc
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxjobs.errors import ArtifactNotFoundError, InvalidArtifactError, InvalidKeyError
from mlxjobs.logger.artifact_history import ArtifactHistory
from mlxjobs.logger.artifact_types import (
    load_image,
    load_json,
    load_numpy,
    load_pickle,
    load_text,
    load_torch,
    save_image,
    save_json,
    save_numpy,
    save_pickle,
    save_text,
    save_torch,
)
from mlxjobs.record.fence import Fence
from mlxjobs.system.atomic import look_anew, move
from mlxjobs.system.files import aside_of, is_file_name, naming, sync_directory

_KEPT = re.compile(r"\.pkl\.[0-9]+$")


@dataclass
class Artifact(abc.ABC):
    """An object and how it becomes a file; subclass it for a type of your own.

    A subclass defines `_save`, or `save` as the first programs did, and `load` if the artifact
    should be read through `load_artifacts`. Its constructor may be its own.

    Attributes:
        obj: the object.
        ext: ends the name of the file, such as ".npz".
    """

    obj: Any
    ext: str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "save" in cls.__dict__ and "_save" not in cls.__dict__:
            cls._save = cls.__dict__["save"]  # type: ignore[method-assign]  # before 0.1 it was called so

    @abc.abstractmethod
    def _save(self, fname: str) -> None:
        """Write `self.obj` to the file `fname + self.ext`."""

    def save(self, fname: str) -> None:
        """Write the object to the file `fname + self.ext`, which is replaced as a whole.

        Raises:
            InvalidArtifactError: nothing was written.
            OSError: the file could not be written.
        """
        target = Path(fname)
        publish_artifact(target.parent, target.name, self._save)

    @classmethod
    def load(cls, fname: str) -> Any:
        """Read what `save` wrote.

        Args:
            fname: the file with its extension.

        Raises:
            InvalidArtifactError: the type does not say how.
        """
        raise InvalidArtifactError(
            f"artifacts of type {cls.__name__} cannot be read: give the class a classmethod load(fname)"
        )


@dataclass
class Checkpoint(Artifact):
    """Any object that can be pickled."""

    ext: str = ".pkl"

    def _save(self, fname: str) -> None:
        save_pickle(self.obj, f"{fname}{self.ext}")

    @classmethod
    def load(cls, fname: str) -> Any:
        """Read the object; this runs what the file says."""
        return load_pickle(fname)


@dataclass
class NumpyArray(Artifact):
    """A dictionary of numpy arrays."""

    ext: str = ".npz"

    def _save(self, fname: str) -> None:
        save_numpy(self.obj, f"{fname}{self.ext}")

    @classmethod
    def load(cls, fname: str) -> Any:
        """Read the arrays; arrays of objects are refused."""
        return load_numpy(fname)


@dataclass
class PNGImage(Artifact):
    """A figure of matplotlib."""

    ext: str = ".png"

    def _save(self, fname: str) -> None:
        save_image(self.obj, f"{fname}{self.ext}")

    @classmethod
    def load(cls, fname: str) -> Any:
        """Read the picture as an array, [height, width, channels]."""
        return load_image(fname)


@dataclass
class TorchModel(Artifact):
    """A tensor, module or state of torch."""

    ext: str = ".pth"

    def _save(self, fname: str) -> None:
        save_torch(self.obj, f"{fname}{self.ext}")

    @classmethod
    def load(cls, fname: str) -> Any:
        """Read it; as weights only if that is enough."""
        return load_torch(fname)


# --- writing


def check_artifact_name(name: object) -> str:
    """Return `name` if an artifact or a type can have it.

    Raises:
        InvalidKeyError: it is not a string, empty, hidden, or has a path separator.
    """
    if not is_file_name(name):
        raise InvalidKeyError(
            f"{name!r} cannot name an artifact: use a string without path separators, not empty, and not "
            "beginning with a dot"
        )
    return str(name)


def _split(folder: Path, name: object) -> tuple[Path, str]:
    """Return the folder and the file name of an artifact; `best/model` is a file in a folder, as in MLXP."""
    *folders, file_name = name.split("/") if isinstance(name, str) else [name]
    return folder.joinpath(*map(check_artifact_name, folders)), check_artifact_name(file_name)


def write_artifact(artifact: Any, folder: Path, name: str, history: ArtifactHistory | None = None) -> None:
    """Write an `Artifact` to `folder/<its class>/<name><ext>`.

    Raises:
        InvalidArtifactError: it is not an `Artifact`, or its `_save` wrote nothing.
        InvalidKeyError: no artifact can have this name.
        OSError: the file could not be written.
    """
    if not isinstance(artifact, Artifact):
        raise InvalidArtifactError(
            f"{type(artifact).__name__} is not an artifact: derive the class from mlxpy.Artifact, or give "
            f"log_artifacts an artifact_type, one of {', '.join(_TYPES)}"
        )
    place, file_name = _split(folder / type(artifact).__name__, name)
    publish_artifact(place, file_name, artifact._save, history)


def write_typed(
    obj: Any, folder: Path, name: str, artifact_type: str, history: ArtifactHistory | None = None
) -> None:
    """Write an object to `folder/<artifact_type>/<name>` with the functions of a registered type.

    Raises:
        InvalidArtifactError: the type is not registered, or does not take the object.
        InvalidKeyError: no artifact can have this name.
        OSError: the file could not be written.
    """
    save, _ = _functions(artifact_type)
    place, file_name = _split(folder / artifact_type, name)
    publish_artifact(place, file_name, lambda path: save(obj, path), history)


def publish_artifact(
    folder: Path, name: str, write: Callable[[str], object], history: ArtifactHistory | None = None
) -> None:
    """Let `write` make files aside, then move them into `folder`, whole and on the disk.

    Args:
        folder: where the files go; made if missing.
        name: how the file is called; `write` may add to it.
        write: called with a path to write to.
        history: of the run's artifacts, if this is one of a run.

    Raises:
        InvalidArtifactError: `write` left no file.
        OSError: a file could not be written.
        Superseded: a newer attempt has begun.
    """
    import shutil

    fence = history.fence if history is not None else Fence()
    fence.check()  # a run directory that was removed is not to be made again
    folder.mkdir(parents=True, exist_ok=True)
    aside = aside_of(folder / name, fence.folder(folder))
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with fence.explaining(), naming(folder / name):
            aside.mkdir(exist_ok=True)  # nobody else has this name
            write(str(aside / name))
            written = sorted(aside.iterdir())
            if not written:
                raise InvalidArtifactError(f"the artifact {name!r} was not written: its save made no file")
            for path in written:
                _sync(path)
            look_anew(folder)
            for path in written:
                target = folder / path.name
                if history is not None:
                    history.before(target)
                if _is_folder(target) or (_is_folder(path) and os.path.lexists(target)):
                    move(target, aside / f".{target.name}.old")  # no rename puts one in the other's place
                move(path, target)
            sync_directory(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _sync(path: Path) -> None:
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    for entry in (entry for entry in paths if not entry.is_symlink()):
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- reading


def read_artifact(folder: Path, name: str, artifact_type: str | type[Artifact] | None = None) -> Any:
    """Read an artifact from a run's `artifacts/`.

    Args:
        folder: the folder with one folder for each type.
        name: the artifact's name, with or without extension.
        artifact_type: a registered type, or an `Artifact` class or its name; None: the only type
            that has an artifact of this name.

    Raises:
        ArtifactNotFoundError: there is none.
        InvalidArtifactError: the type is not known, or several types have the name.
        InvalidKeyError: no artifact can have this name.
    """
    _split(folder, name)
    kind = artifact_type.__name__ if isinstance(artifact_type, type) else artifact_type
    folders = [folder / check_artifact_name(kind)] if kind is not None else list(_type_folders(folder))
    found = [(place.name, path) for place in folders if (path := _find(*_split(place, name))) is not None]
    if not found:
        raise ArtifactNotFoundError(f"there is no artifact {name!r} in {' or '.join(map(str, folders))}")
    if len(found) > 1:
        types = ", ".join(kind for kind, _ in found)
        raise InvalidArtifactError(
            f"{name!r} is the name of several artifacts: give artifact_type, one of {types}"
        )
    if isinstance(artifact_type, type):
        return artifact_type.load(str(found[0][1]))
    _, load = _functions(found[0][0])
    return load(str(found[0][1]))


def _type_folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def _find(folder: Path, name: str) -> Path | None:
    """The file of this name, or the only one that is called so but for its extension."""
    if (folder / name).exists():
        return folder / name
    if not folder.is_dir():
        return None
    like = [path for path in folder.iterdir() if path.name.startswith(f"{name}.")]
    # checkpoints that are kept beside the newest end in their number: they are asked for by their whole name
    like = [path for path in like if not _KEPT.search(path.name)]
    if len(like) > 1:
        raise InvalidArtifactError(f"which of {', '.join(sorted(map(str, like)))}? Give its name in full")
    return like[0] if like else None


# --- the registry

_Save = Callable[[Any, str], object]
_Load = Callable[[str], Any]


def register_artifact_type(name: str, save: _Save, load: _Load) -> None:
    """Say how objects of a type are written and read in this process.

    Args:
        name: names the type, and its folder.
        save: called with the object and the path to write to.
        load: called with the path; returns the object.

    Raises:
        InvalidKeyError: no folder can have this name.
        InvalidArtifactError: `save` or `load` cannot be called.
    """
    if not callable(save) or not callable(load):
        raise InvalidArtifactError(
            f"the artifact type {name!r} needs two functions, save(obj, path), load(path)"
        )
    _TYPES[check_artifact_name(name)] = (save, load)


def _functions(artifact_type: str) -> tuple[_Save, _Load]:
    if artifact_type in _TYPES:
        return _TYPES[artifact_type]
    classes = {cls.__name__: cls for cls in _subclasses(Artifact)}
    if artifact_type in classes:
        cls = classes[artifact_type]
        return _refuse, cls.load
    raise InvalidArtifactError(
        f"{artifact_type!r} is not an artifact type: use one of {', '.join([*_TYPES, *classes])}, or add it "
        "with register_artifact_type(name, save, load)"
    )


def _refuse(obj: Any, path: str) -> None:
    raise InvalidArtifactError("artifacts of a class are written by log_artifact(<class>(obj, ...), name)")


def _subclasses(cls: type[Any]) -> Iterator[type[Artifact]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


_TYPES: dict[str, tuple[_Save, _Load]] = {
    "pickle": (save_pickle, load_pickle),
    "numpy": (save_numpy, load_numpy),
    "torch": (save_torch, load_torch),
    "image": (save_image, load_image),
    "text": (save_text, load_text),
    "json": (save_json, load_json),
}
