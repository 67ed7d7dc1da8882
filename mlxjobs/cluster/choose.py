"""Choosing a scheduler in a terminal, and keeping the choice in the project's settings file."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlxjobs.cluster import registry
from mlxjobs.cluster.cluster import Cluster
from mlxjobs.errors import InvalidConfigFileError, MLXJobsError
from mlxjobs.system import shell
from mlxjobs.system.console import ask_choice, note
from mlxjobs.system.files import replace_file
from mlxjobs.system.plain_yaml import load_yaml, parse_yaml

_KEYS = ("scheduler", "name")


def choose_scheduler(path: Path) -> str:
    """Ask which scheduler to use, and write the answer to a settings file.

    Args:
        path: `configs/mlxpy.yaml`; all but the one value stays as it is.

    Returns:
        The scheduler's name.

    Raises:
        EOFError: the terminal was closed.
    """
    offers = sorted(_offers())
    words = [f"{name:<18}{about}" for *_, name, about in offers]
    names = [name for *_, name, _about in offers]
    question = "use_scheduler is true, and no scheduler is set. Which one?"
    for name in ask_choice(question, words, names, "the import path of your own"):
        wrong = _wrong(name)
        if not wrong:
            _keep(path, name)
            return name
        note(wrong)
    raise EOFError


def _wrong(name: str) -> str:
    """Say why a scheduler cannot be used here, or nothing."""
    try:
        cluster = Cluster(registry.find(name))
        cluster.check()
    except MLXJobsError as error:
        return str(error)
    return ""


def _keep(path: Path, name: str) -> None:
    """Write the choice into the settings' file; where that cannot be, it holds for this command."""
    try:
        text = path.read_bytes().decode()
        if not os.access(path, os.W_OK):  # it could be replaced all the same, and is not meant to be
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        replace_file(path.resolve(), set_value(text, _KEYS, name), mode=path.stat().st_mode & 0o777)
        note(f"{name} is set in {path}")
    except OSError as error:
        note(f"{name} is used this time; it could not be kept in {path}: {error.strerror}")
    except MLXJobsError as error:
        note(f"{name} is used this time; it could not be kept in {path}: {error}")


def _offers() -> list[tuple[int, bool, str, str]]:
    """The schedulers in the order in which they are offered: those first whose commands are here."""
    offers = []
    for name, path in registry.known().items():
        try:
            commands = registry.load(path).commands
        except MLXJobsError:  # somebody else's package, and broken
            continue
        lacking = shell.missing(commands)
        about = (
            f"not here: no {', '.join(lacking)}" if lacking else ", ".join(commands) or "this machine alone"
        )
        offers.append((len(lacking), not commands, name, about))
    return offers


def set_value(text: str, keys: Sequence[str], value: str) -> str:
    """Return YAML with one value set, and every other character as it was.

    Args:
        text: the YAML: nested mappings, or nothing.
        keys: the way to the value; what is missing of it is added.
        value: a plain word.

    Raises:
        InvalidConfigFileError: it cannot be done without changing other values too.
    """
    new = _edited(text, parse_yaml(text), keys, value)
    if new is not None and load_yaml(new) == _with(load_yaml(text), keys, value):
        return new
    raise InvalidConfigFileError(f"its form is an unusual one; set {'.'.join(keys)}: {value} by hand")


def _with(content: Any, keys: Sequence[str], value: str) -> Any:
    """Return nested dictionaries with one value set."""
    return (
        {**(content or {}), keys[0]: _with((content or {}).get(keys[0]), keys[1:], value)} if keys else value
    )


def _edited(text: str, node: Any, keys: Sequence[str], value: str) -> str | None:
    """Edit at the place where the nodes of the text say that the value is."""
    line = "\r\n" if "\r\n" in text else "\n"
    if node is None:
        lines = [f"{'  ' * depth}{key}:" for depth, key in enumerate(keys)]
        return text + ("" if text.endswith("\n") or not text else line) + line.join(lines) + f" {value}{line}"
    if node.id != "mapping":
        return None
    for key, child in node.value:
        if key.value != keys[0]:
            continue
        start, end = child.start_mark.index, child.end_mark.index
        if start < key.end_mark.index:  # an alias: what it stands for is elsewhere
            return None
        if len(keys) > 1 and child.id == "mapping":
            return _edited(text, child, keys[1:], value)
        if child.id != "scalar":
            return None
        if start < end:  # the value's anchor and tag stay
            start += len(re.match(r"(?:[&!]\S*\s+)*", text[start:end]).group())  # type: ignore[union-attr]  # it may be empty
        gap = " " if start == end else ""  # nothing stands there
        place = key.end_mark.index + 1 if start == end else start
        return text[:place] + gap + _flow(keys[1:], value) + text[max(place, end) :]
    return _added(text, node, keys, value, line)


def _added(text: str, node: Any, keys: Sequence[str], value: str, line: str) -> str:
    """Add a key as the first one of a mapping."""
    start: int = node.start_mark.index
    new = f"{keys[0]}: {_flow(keys[1:], value)}"
    if node.flow_style:
        return f"{text[: start + 1]}{new}{', ' if node.value else ''}{text[start + 1 :]}"
    return f"{text[:start]}{new}{line}{' ' * node.start_mark.column}{text[start:]}"


def _flow(keys: Sequence[str], value: str) -> str:
    return f"{{{keys[0]}: {_flow(keys[1:], value)}}}" if keys else value
