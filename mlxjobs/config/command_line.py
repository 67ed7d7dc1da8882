"""What was typed: settings (`mlxpy.a.b=v`) taken apart from what is Hydra's, by Hydra's grammar."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlxjobs.errors import InvalidConfigFileError

# `mlxpy` is MLXPy's name for the settings, `mlxp` that of MLXP 1.0; a user may expect ours too
_SETTING = re.compile(r"(?:\+\+|\+|~)?(?:mlxpy|mlxp|mlxjobs)(?=[.=@:]|$)")
# `key=value` whose value means the same to Hydra's grammar and to a reader of eight lines
_PLAIN = re.compile(
    r"(?:\+\+|\+)?(?:mlxpy|mlxp|mlxjobs)\.([\w.]+)=([\w./:-]*|'[^'\\]*'|\"[^\"\\]*\")", re.ASCII
)
_NUMBER = re.compile(r"[+-]?\d[\d_]*|[+-]?[\d.][\d._]*(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan)", re.IGNORECASE)
# options with which Hydra answers something and runs nothing; argparse takes any clear beginning
_QUESTIONS = ("--help", "--hydra-help", "--version", "--cfg", "--info", "--shell-completion")
_SHORT_QUESTIONS = re.compile(r"-h|-sc|-c(job|hydra|all)?|-i\w*")
_VALUED = (
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    *("--cfg", "-c", "--info", "-i", "--package", "-p", "--experimental-rerun"),
)
_MODES = ("--run", "--multirun")


def _is_option(argument: str, long: Sequence[str]) -> bool:
    name = argument.partition("=")[0]
    return name.startswith("--") and len(name) > 2 and any(option.startswith(name) for option in long)


def is_question(arguments: Sequence[str]) -> bool:
    """Whether these arguments ask Hydra something (`--cfg job`, `--help`) and run nothing."""
    return any(
        _is_option(argument, _QUESTIONS) or _SHORT_QUESTIONS.fullmatch(argument) for argument in arguments
    )


def names_action(arguments: Sequence[str]) -> bool:
    """Whether these arguments say themselves what Hydra is to do: answer, run, or sweep."""
    return is_question(arguments) or any(
        _is_option(argument, _MODES) or argument in ("-r", "-m") for argument in arguments
    )


def separate_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate Hydra's options, with their values, from the overrides: Hydra wants no mixture of them."""
    options: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        follows = before in _VALUED or ("=" not in before and _is_option(before, _VALUED))
        is_option = argument.startswith("-") or follows
        (options if is_option else overrides).append(argument)
    return options, overrides


def check_utf8(texts: Sequence[str]) -> None:
    """Raise `InvalidConfigFileError` if one of these is not UTF-8, as all files of a run are."""
    for text in texts:
        if not text.isascii() and text.encode("utf-8", "replace").decode() != text:
            raise InvalidConfigFileError(f"{os.fsencode(text)!r} is not valid UTF-8; rename it")


def names_run(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of a command line say which run they mean and where, as those of a job do."""
    return {"logger", "use_scheduler", "use_version_manager"} <= settings.keys() and {
        "forced_log_id",
        "parent_log_dir",
    } <= settings["logger"].keys()


def split_arguments(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Separate the settings from what is Hydra's.

    `+mlxpy.a.b=v`, `++mlxpy.a.b=v` and `mlxpy.a.b=v` mean the same.

    Args:
        argv: the command line, without the program.

    Returns:
        The settings as nested dictionaries, and the rest in its order.

    Raises:
        InvalidConfigFileError: a settings override that Hydra's grammar does not take, or that
            sweeps over or deletes a setting.
    """
    settings: dict[str, Any] = {}
    rest = []
    for argument in argv:
        if not _SETTING.match(argument):
            rest.append(argument)
            continue
        keys, value = _parse_setting(argument)
        _insert(settings, keys, value)
    return settings, rest


def _insert(settings: dict[str, Any], keys: list[str], value: Any) -> None:
    if not keys:
        if not isinstance(value, dict):
            raise InvalidConfigFileError(
                f"the command line: 'mlxpy' is a section: use mlxpy.KEY=VALUE, not {value!r}"
            )
        settings.update(value)
        return
    for key in keys[:-1]:
        inner = settings.setdefault(key, {})
        if not isinstance(inner, dict):
            inner = settings[key] = {}
        settings = inner
    settings[keys[-1]] = value


def _parse_setting(argument: str) -> tuple[list[str], Any]:
    plain = _PLAIN.fullmatch(argument)
    if plain is not None:  # what a job's script says; saves the import of Hydra
        keys, text = plain.group(1).split("."), plain.group(2)
        if text[:1] in ("'", '"') and text:
            return keys, text[1:-1]
        if text in ("true", "false"):
            return keys, text == "true"
        if re.fullmatch(r"-?\d+", text):
            return keys, int(text)
        if (
            text
            and ":" not in text
            and not _NUMBER.fullmatch(text)
            and text.lower() not in ("null", "true", "false")
        ):
            return keys, text
    return _parse_setting_with_hydra(argument)


def _parse_setting_with_hydra(argument: str) -> tuple[list[str], Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(argument)
    except HydraException as error:
        raise InvalidConfigFileError(f"the command line: {argument}: {error}") from error
    if override.is_delete() or override.is_sweep_override():
        what = "deleted" if override.is_delete() else "swept over"
        raise InvalidConfigFileError(f"the command line: {argument}: a setting cannot be {what}")
    return override.key_or_group.split(".")[1:], override.value()


def quote_value(text: str) -> str:
    """Write a string so that Hydra's grammar reads exactly this string back.

    Source: https://hydra.cc/docs/advanced/override_grammar/basic/#quoted-values
    """
    # backslashes count only in front of a quote (and of other backslashes there)
    escaped = re.sub(r"(\\*)'", lambda match: match.group(1) * 2 + r"\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def quote_dict(value: Any) -> str:
    """Write nested dictionaries and lists of plain values in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{quote_dict(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(quote_dict(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return quote_value(value) if isinstance(value, str) else str(value)
