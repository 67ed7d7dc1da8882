"""The configuration of a run as it was composed, and its form on the disk: plain YAML and two tags."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path, PosixPath
from typing import Any

from mlxjobs.errors import InvalidConfigFileError
from mlxjobs.system.plain_yaml import NotYAMLError, dump_yaml, load_yaml, new_dumper, new_loader


@dataclass(frozen=True)
class Composed:
    """The configuration of one run, as Hydra composed it, before anything is resolved.

    Attributes:
        config: the user's options; interpolations are still strings (`${...}`).
        hydra: Hydra's own node, the same way.
        overrides: what was typed, as Hydra lists it: `["lr=0.1", "+seed=2"]`.
        secrets: key -> value of what `secrets` has taken out of the others, which have `***` there.
    """

    config: Any
    hydra: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    secrets: dict[str, Any] = field(default_factory=dict)


def to_yaml(composed: Composed) -> str:
    """Return YAML from which `from_yaml` makes an equal configuration; of secrets it has the keys."""
    content = {
        "schema": 1,
        "config": composed.config,
        "overrides": list(composed.overrides),
        "hydra": composed.hydra,
    }
    if composed.secrets:
        content["secrets"] = list(composed.secrets)
    return dump_yaml(content, _dumper())


@cache
def _dumper() -> Any:
    dumper = new_dumper()
    dumper.ignore_aliases = lambda self, data: True
    dumper.add_multi_representer(Enum, lambda d, v: d.represent_scalar("!enum", _enum_name(v)))
    dumper.add_multi_representer(Path, lambda d, v: d.represent_scalar("!path", str(v)))
    return dumper


@cache
def _loader() -> Any:
    loader = new_loader()
    loader.add_constructor("!path", lambda loader, node: PosixPath(node.value))
    loader.add_constructor("!enum", lambda loader, node: _enum_value(node.value))
    return loader


def from_yaml(text: bytes, source: Path) -> Composed:
    """Read what `to_yaml` wrote.

    Raises:
        InvalidConfigFileError: it is something else.
    """
    try:
        content = load_yaml(text, _loader())
        secrets = dict.fromkeys(content.get("secrets", ()), "***")
        return Composed(content["config"], content["hydra"], content["overrides"], secrets)
    except (NotYAMLError, KeyError, TypeError, AttributeError) as error:
        raise InvalidConfigFileError(f"{source}: is not a stored configuration: {error!r}") from error


def _enum_name(value: Enum) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}:{value.name}"


def _enum_value(name: str) -> Any:
    """Find an enumeration's member in the modules of the program; nothing is imported for it."""
    module, qualname, member = name.split(":")
    kind: Any = sys.modules[module]
    for part in qualname.split("."):
        kind = getattr(kind, part)
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise ValueError(f"{name} is not an enumeration")
    return kind[member]


def plain_config(value: Any) -> Any:
    """Return a configuration as plain YAML types: what `config.yaml` shows."""
    if isinstance(value, dict):
        return {key.name if isinstance(key, Enum) else key: plain_config(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_config(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    return str(value)


def flatten(value: Any, prefix: str = "", *, keep_empty: bool = False) -> dict[str, Any]:
    """Return nested dictionaries as one: `optimizer.lr` -> 0.1.

    Args:
        value: nested dictionaries.
        prefix: what each key begins with.
        keep_empty: whether a section without keys is a value; else it leaves no trace.
    """
    if not isinstance(value, dict) or (keep_empty and not value):
        return {prefix.rstrip("."): value}
    result: dict[str, Any] = {}
    for key, item in value.items():
        result.update(flatten(item, f"{prefix}{key}.", keep_empty=keep_empty))
    return result


def check_encodable(value: Any, key: str = "") -> None:
    """Check that all strings of a configuration can be written to a file.

    Args:
        value: the configuration, or what is below `key` in it.
        key: for the message.

    Raises:
        InvalidConfigFileError: one cannot be: half a surrogate pair (`"\\ud83d"`), or a variable of bytes.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            below = f"{key}.{name}" if key else str(name)
            check_encodable(name, below)
            check_encodable(item, below)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            check_encodable(item, f"{key}.{number}")
    elif isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # the value itself is not told: it may be a secret
            character = value[error.start]
            words = (
                f"the value of {key!a} holds {character!a}, which UTF-8 does not have, so no file can hold it"
            )
            raise InvalidConfigFileError(words) from error
