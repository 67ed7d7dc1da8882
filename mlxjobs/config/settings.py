"""The settings of `configs/mlxpy.yaml` and `+mlxpy.*`: their schema, defaults and validation.

`SCHEMA` is the one place where a setting is defined: its default and the types it takes. The file
that is created in a new project, the errors and `ctx.mlxpy` all come from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mlxjobs.errors import InvalidConfigFileError

FILE_NAME = "mlxpy.yaml"
NO_SCHEDULER = "NoScheduler"
INCLUDED = "commit, tracked or all"

# A section is a dictionary; a setting is (default, types). Order is the order in the file.
SCHEMA: dict[str, Any] = {
    "logger": {
        "forced_log_id": (-1, "an integer"),
        "log_streams_to_file": (False, "true or false"),
        "name": ("DefaultLogger", "a string"),
        "parent_log_dir": ("./logs", "a string"),
    },
    "scheduler": {
        "cleanup_cmd": ("", "a string or a list of strings"),
        "env_cmd": ("", "a string or a list of strings"),
        "max_requeues": (100, "an integer"),
        "name": (NO_SCHEDULER, "a string"),
        "option_cmd": ([], "a string or a list of strings"),
        "ranks_per_node": (0, "an integer"),
        "shell_config_cmd": ("", "a string or a list of strings"),
        "shell_path": ("/bin/bash", "a string"),
    },
    "version_manager": {
        "name": ("GitVM", "a string"),
        "parent_work_dir": ("./.workdir", "a string"),
        "compute_requirements": (False, "true or false"),
        "include": ("commit", INCLUDED),
        "max_untracked_mb": (100, "an integer"),
        "strict": (False, "true or false"),
        "link": ([], "a string or a list of strings"),
    },
    "secrets": ([], "a string or a list of strings"),
    "use_logger": (True, "true or false"),
    "use_scheduler": (False, "true or false"),
    "use_version_manager": (False, "true or false"),
    "interactive_mode": (True, "true or false"),
}


def _is(value: Any, kind: str) -> bool:
    if kind == "true or false":
        return isinstance(value, bool)
    if kind == "an integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == INCLUDED:
        return value in ("commit", "tracked", "all")
    if kind == "a string":
        return isinstance(value, str)
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def defaults() -> dict[str, Any]:
    """Return all settings with their defaults, as nested plain dictionaries."""

    def build(schema: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: build(entry)
            if isinstance(entry, dict)
            else (list(entry[0]) if isinstance(entry[0], list) else entry[0])
            for key, entry in schema.items()
        }

    return build(SCHEMA)


def _near(key: str, prefix: str) -> str:
    """Name the valid key that is nearest to a wrong one."""
    names = list(_flat_names(SCHEMA, ""))
    full = f"{prefix}{key}"
    near = get_close_matches(full, names, n=1, cutoff=0.5)
    # "mlxpy.use_sheduler" is near a whole name, "mlxpy.parent_log_dir" is only the end of one
    ends = [name for name in names if name.rpartition(".")[2] == key]
    last_parts = [name.rpartition(".")[2] for name in names]
    nearest = next(iter(ends or near or get_close_matches(key, last_parts, n=1)), None)
    return f"did you mean '{nearest}'?" if nearest else f"valid keys: {', '.join(names)}"


def _flat_names(schema: Mapping[str, Any], prefix: str) -> Iterable[str]:
    for key, entry in schema.items():
        if isinstance(entry, dict):
            yield from _flat_names(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def merge(settings: dict[str, Any], given: Any, source: str) -> None:
    """Check `given` against the schema and write it over `settings`, in place.

    Args:
        settings: all settings, as made by `defaults`.
        given: nested settings, of any type: it is what a user wrote.
        source: where they come from, for the errors: a file's path or "the command line".

    Raises:
        InvalidConfigFileError: an unknown key or a value of a wrong type; nothing was changed.
    """
    checked = _check(given, SCHEMA, "", source)
    _overlay(settings, checked)


def _overlay(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict):
            _overlay(below[key], value)
        else:
            below[key] = value


def _check(given: Any, schema: Mapping[str, Any], prefix: str, source: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        where = f"'{prefix.rstrip('.')}'" if prefix else "the whole"
        raise InvalidConfigFileError(
            f"{source}: {where} must be a section with keys ({', '.join(schema)}), not {given!r}"
        )
    result: dict[str, Any] = {}
    for key, value in given.items():
        if key not in schema:
            raise InvalidConfigFileError(f"{source}: unknown key '{prefix}{key}'; {_near(str(key), prefix)}")
        entry = schema[key]
        if isinstance(entry, dict):
            result[key] = _check(value, entry, f"{prefix}{key}.", source)
            continue
        _default, kind = entry
        if value is None and kind not in ("true or false", "an integer", INCLUDED):
            value = ""  # `env_cmd:` with nothing after it
        if not _is(value, kind):
            raise InvalidConfigFileError(f"{source}: '{prefix}{key}' must be {kind}, not {value!r}")
        result[key] = list(value) if isinstance(value, list) else value
    return result


def read_file(path: Path) -> Any:
    """Read a settings file.

    Returns:
        What the file holds, unchecked (see `merge`); an empty file gives an empty dictionary.

    Raises:
        InvalidConfigFileError: it cannot be read, or is no YAML.
    """
    import yaml

    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfigFileError(f"{path}: cannot be read: {error}") from error
    except (yaml.YAMLError, ValueError) as error:  # the latter of dates and numbers that there are not
        raise InvalidConfigFileError(f"{path}: is no valid YAML: {error}") from error
    return {} if content is None else content


def folder(value: str) -> Path:
    """Return the folder that a setting names, which may begin with `~`.

    Raises:
        InvalidConfigFileError: there is no such user, or no path can be that.
    """
    if "\0" in value:
        raise InvalidConfigFileError(f"{value!r} is no path: none holds a NUL character")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise InvalidConfigFileError(
            f"{value!r} is in no home folder that is known: give its whole path"
        ) from error


def log_dir(options: Mapping[str, Any]) -> Path:
    """Return the absolute folder of the runs."""
    return folder(options["logger"]["parent_log_dir"]).absolute()


def as_lines(value: str | list[str]) -> list[str]:
    """Return the lines of a `*_cmd` setting, which may be one string or a list of strings."""
    texts = [value] if isinstance(value, str) else value
    return [line for text in texts for line in text.splitlines() if line.strip()]
