"""A class of somebody else's: imported from where it was found, checked, kept from breaking the engine."""

from __future__ import annotations

import importlib
import inspect
import os
import stat
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mlxjobs.errors import MLXJobsError
from mlxjobs.system import trust

_T = TypeVar("_T")

_INSTALLED = ("site-packages", "dist-packages")
PACKAGES = ("", "mlxpy", "mlxp", "mlxjobs")  # what may stand before the name of something of ours


def make_instance(
    path: str, base: type[_T], error_type: type[MLXJobsError], folder: str = "", *, advice: str
) -> tuple[_T, str]:
    """Import a class, check it, and make its object.

    Args:
        path: `module:Class`.
        base: what it has to be a subclass of.
        error_type: what to raise.
        folder: where to look for the module first.
        advice: where one is shown, for the messages.

    Returns:
        The object, and the folder to import its module from another time; "" if it is installed.

    Raises:
        MLXJobsError: of `error_type`; the message says what is wrong with the class.
    """
    module_name, _, class_name = path.partition(":")
    module = _import(module_name, folder, path, error_type)
    found = getattr(module, class_name, None)
    if found is None:
        raise error_type(f"{_file(module)} has no class {class_name}{_hint(module, base, class_name)}")
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise error_type(f"{path} is not a subclass of mlxpy.{base.__name__}; {advice}")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise error_type(f"{path} ({_file(module)}) lacks the methods {lacking}; {advice}")
    try:
        return found(), _home(module)
    except Exception as error:
        raise error_type(f"{path} cannot be made: {words_of(error)}") from error


def _hint(module: types.ModuleType, base: type, name: str) -> str:
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    own = [
        key
        for key, value in classes.items()
        if issubclass(value, base) and not value.__module__.startswith("mlxjobs.")
    ]
    from difflib import get_close_matches

    near = get_close_matches(name, own, n=1, cutoff=0.0)
    return f"; did you mean {module.__name__}.{near[0]}?" if near else ""


# -- where a module is ----------------------------------------------------------------------------


def _import(module_name: str, folder: str, path: str, error_type: type[MLXJobsError]) -> types.ModuleType:
    _see_project()
    there = bool(folder) and has_module(folder, module_name)
    whose = _stranger(folder, module_name.partition(".")[0]) if there else None
    if whose is not None:
        raise error_type(f"{path} is not run: {whose}")
    try:
        if there:
            with _from(folder, module_name.partition(".")[0]):
                return importlib.import_module(module_name)
        return importlib.import_module(module_name)
    except SystemExit as error:
        raise error_type(
            f"{path} cannot be imported: its module ends the program (SystemExit: {error}); "
            "what it runs belongs under: if __name__ == '__main__':"
        ) from error
    except Exception as error:
        also, folders = "", [folder, *_project()] if folder else _project()
        if isinstance(error, ModuleNotFoundError) and module_name.startswith(str(error.name)):
            also = f"; it was looked for in {', '.join(dict.fromkeys(folders))}"
        raise error_type(f"{path} cannot be imported: {words_of(error)}{also}") from error


def _program() -> list[str]:
    """The folder of the program's own modules, whose code runs in any case; none for `mlxjobs`."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:  # python -m
        ours = spec.name.partition(".")[0] == "mlxjobs"
        return [] if ours else [os.getcwd()]  # noqa: PTH109 - a str, for sys.path
    return [str(Path(file).absolute().parent)] if file else []


def _project() -> list[str]:
    """The folders of a user's own modules: that of the program, and the current one if it is ours."""
    here = os.getcwd()  # noqa: PTH109 - a str, for sys.path
    return [*_program(), *([] if trust.stranger(Path(here)) else [here])]


def _see_project() -> None:
    # python does so itself, but not with -P or PYTHONSAFEPATH, and not for the command `mlxjobs`
    for folder in _project():
        if folder not in sys.path:
            sys.path.append(folder)


def has_module(folder: str, module_name: str) -> bool:
    """Whether a folder has a module."""
    path = Path(folder, *module_name.split("."))
    return path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def _stranger(folder: str, top: str) -> str | None:
    """Say whose code it is that a run directory names, which anybody may have written; None if it is ours.

    Who may write to the folder chooses what the module imports.
    """
    if any(Path(ours).samefile(folder) for ours in _program()):
        return None
    if Path(folder).stat().st_mode & stat.S_IWOTH:
        return f"anybody may write to {folder}"
    place = Path(folder, top)
    return trust.stranger(Path(folder), place if place.is_dir() else place.with_name(f"{top}.py"))


@contextmanager
def _from(folder: str, top: str) -> Iterator[None]:
    """Import from this folder, also if the name was imported from elsewhere: that stays what it was."""

    def names() -> list[str]:
        return [name for name in sys.modules if name == top or name.startswith(f"{top}.")]

    loaded = sys.modules.get(top)
    elsewhere = loaded is not None and Path(_home(loaded)).resolve() != Path(folder).resolve()
    aside = {name: sys.modules.pop(name) for name in names()} if elsewhere else {}
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(folder)
        if aside:
            for name in names():
                del sys.modules[name]
            sys.modules.update(aside)


def _home(module: types.ModuleType) -> str:
    """The folder that has to be on the path to import a module; "" if it is there in any case."""
    file = getattr(module, "__file__", None)
    depth = module.__name__.count(".")
    if file is None:  # a namespace package, or built in
        file = next(iter(getattr(module, "__path__", ())), None)
    elif Path(file).name.startswith("__init__."):
        depth += 1
    if file is None or module.__name__.partition(".")[0] == "mlxjobs":
        return ""
    home = Path(file).absolute().parents[depth]
    return "" if any(part in _INSTALLED for part in home.parts) else str(home)


def _file(module: types.ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__


def words_of(error: BaseException) -> str:
    """What was raised, and where."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: SyntaxError: {error.msg}"
    what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    frames = [frame for frame in frames if not frame.filename.startswith("<")]
    last = frames[-1] if frames else None
    inside = last is None or str(Path(importlib.__file__).parent) == str(Path(last.filename).parent)
    return what if inside or last is None else f"{last.filename}, line {last.lineno}: {what}"
