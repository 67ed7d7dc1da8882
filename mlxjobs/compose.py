"""The only module that knows Hydra and OmegaConf: a command line in, configurations out.

Composition is Hydra's own, through `hydra.main`: groups, defaults lists, sweepers, `--cfg`,
`--help`, completion and error messages are what its users know. Ours is what surrounds it: settings
(`mlxpy.*`) are taken out of the command line first, `lr=1,2` needs no `-m`, nothing is written into
the current folder, and the configuration of a run can be kept, unresolved, and used again later
without Hydra.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PosixPath
from typing import Any

from mlxjobs.config_dict import ConfigDict
from mlxjobs.errors import InvalidConfigFileError, MissingFieldError

_SETTING = re.compile(r"(?:\+\+|\+|~)?mlxpy(?=[.=@:]|$)")
# `key=value` whose value means the same to Hydra's grammar and to a reader of eight lines
_PLAIN = re.compile(r"(?:\+\+|\+)?mlxpy\.([\w.]+)=([\w./:-]*|'[^'\\]*'|\"[^\"\\]*\")", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d[\d_]*|[+-]?[\d.][\d._]*(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class Composed:
    """The configuration of one run, as Hydra composed it, before anything is resolved.

    Attributes:
        config: the user's options; interpolations are still text (`${...}`).
        hydra: Hydra's own node, the same way.
        overrides: what was typed, as Hydra lists it: `["lr=0.1", "+seed=2"]`.
    """

    config: Any
    hydra: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


# -- the command line ---------------------------------------------------------------------------


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
        raise InvalidConfigFileError(f"the command line: {error}") from error
    if override.is_delete() or override.is_sweep_override():
        what = "deleted" if override.is_delete() else "swept over"
        raise InvalidConfigFileError(f"the command line: {argument}: a setting cannot be {what}")
    return override.key_or_group.split(".")[1:], override.value()


def quote_value(text: str) -> str:
    """Write a text so that Hydra's grammar reads exactly this text back.

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


# -- composition --------------------------------------------------------------------------------

# options with which Hydra answers something and runs nothing
_QUESTIONS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i")
_QUESTIONS += ("--shell-completion", "-sc")
    "--help",
    "-h",
    "--hydra-help",
    "--version",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
)
_ACTIONS = (*_QUESTIONS, "--run", "-r", "--multirun", "-m")


def is_question(arguments: Sequence[str]) -> bool:
    """Whether these arguments ask Hydra something (`--cfg job`, `--help`) and run nothing."""
    return any(argument.split("=")[0] in _QUESTIONS for argument in arguments)


def _sweeps(arguments: Sequence[str]) -> bool:
    """Whether an override holds several values, or a range of them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    overrides = [argument for argument in arguments if "=" in argument and not argument.startswith("-")]
    if not any(mark in override for override in overrides for mark in ",("):
        return False
    parser = OverridesParser.create()
    try:
        return any(parser.parse_override(override).is_sweep_override() for override in overrides)
    except HydraException:
        return False  # Hydra will say it better


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    before = os.environ.get(name)
    try:
        _set_environment(name, value)
        yield
    finally:
        _set_environment(name, before)


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def compose_runs(
    task: Callable[..., Any],
    arguments: Sequence[str],
    *,
    config_dir: Path,
    config_name: str,
    sweep_dir: Path,
    quiet: bool,
    run: Callable[[Composed], Any],
) -> None:
    """Compose the configuration of each run of a command line, and call `run` with it.

    Args:
        task: the user's function; Hydra names the job after its file.
        arguments: the command line without settings.
        config_dir: the absolute folder of the configuration files.
        config_name: the primary one.
        sweep_dir: where Hydra's sweepers may leave their files.
        quiet: leave Python's logging alone, as nothing is run here.
        run: called for each run, in the sweeper's order; what it returns is handed to the sweeper.

    Raises:
        InvalidConfigFileError: what Hydra says about a wrong configuration or override.
        SystemExit: Hydra answered a question, such as `--help`.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    full_error = os.environ.get("HYDRA_FULL_ERROR")

    @functools.wraps(task)
    def job(config: Any) -> Any:
        with _arguments(argv), _environment("HYDRA_FULL_ERROR", full_error):
            return run(_capture(config))

    argv = list(sys.argv)
    # with HYDRA_FULL_ERROR Hydra raises what went wrong instead of printing it and leaving
    with (
        _arguments([argv[0], *_hydra_arguments(arguments, sweep_dir, quiet)]),
        _environment("HYDRA_FULL_ERROR", "1"),
    ):
        try:
            hydra.main(version_base=None, config_path=str(config_dir), config_name=config_name)(job)()
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            cause = error.__cause__
            detail = f"\n{cause}" if isinstance(cause, (OmegaConfBaseException, YAMLError)) else ""
            raise InvalidConfigFileError(f"{error}{detail}") from error


@contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _hydra_arguments(arguments: Sequence[str], sweep_dir: Path, quiet: bool) -> list[str]:
    if is_question(arguments):
        return list(arguments)
    # ours come first: of two overrides of one key Hydra takes the last, the user's
    ours = [
        "hydra.output_subdir=null",
        "hydra.run.dir=.",
        f"hydra.sweep.dir={quote_value(str(sweep_dir))}",
        "hydra.sweep.subdir=.",
    ]
    logging = "none" if quiet else "stdout"  # "stdout": the console, but no file
    groups = [("hydra/job_logging", logging)] + ([("hydra/hydra_logging", "none")] if quiet else [])
    ours += [
        f"{group}={choice}"
        for group, choice in groups
        if not any(argument.lstrip("+").startswith(f"{group}=") for argument in arguments)
    ]
    multirun = [] if any(argument in _ACTIONS for argument in arguments) or not _sweeps(arguments) else ["-m"]
    return [*multirun, *ours, *arguments]


def _capture(config: Any) -> Composed:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise InvalidConfigFileError(
            f"mandatory values are missing: {', '.join(missing)}; give them: {missing[0]}=..."
        )
    node = OmegaConf.to_container(HydraConfig.instance().cfg, resolve=False, enum_to_str=True)
    assert isinstance(node, dict)  # noqa: S101 - for the type checker
    return Composed(
        config=OmegaConf.to_container(config, resolve=False),
        hydra=node.get("hydra", {}),
        overrides=list(HydraConfig.get().overrides.task),
    )


def resolve(composed: Composed) -> ConfigDict:
    """Resolve interpolations and return the configuration that the task sees.

    OmegaConf is imported only if there is something to resolve, or if the program uses Hydra
    itself; then `hydra.core.hydra_config.HydraConfig` is set as it would be by `hydra.main`.

    Raises:
        InvalidConfigFileError: an interpolation cannot be resolved.
    """
    if "hydra" in sys.modules or _has_interpolation(composed.config):
        return ConfigDict(_resolve_with_omegaconf(composed))
    return ConfigDict(composed.config)


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_interpolation(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_interpolation(item) for item in value)
    return isinstance(value, str) and "${" in value


def _resolve_with_omegaconf(composed: Composed) -> Any:
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    setup_globals()
    if composed.hydra and not HydraConfig.initialized():
        node = OmegaConf.create({"hydra": composed.hydra})
        OmegaConf.update(node, "hydra.runtime.cwd", str(Path.cwd()))
        OmegaConf.set_readonly(node, True)
        HydraConfig.instance().cfg = node  # type: ignore[assignment]
    try:
        return OmegaConf.to_container(OmegaConf.create(composed.config), resolve=True)
    except OmegaConfBaseException as error:
        raise InvalidConfigFileError(f"the configuration cannot be resolved: {error}") from error


def override(composed: Composed, overrides: Sequence[str]) -> tuple[Composed, list[str]]:
    """Apply overrides to a configuration that was composed before.

    Args:
        composed: the stored configuration.
        overrides: in Hydra's grammar.

    Returns:
        The new configuration, and one line for each value that changed: `"lr: 0.1 -> 0.5"`.

    Raises:
        InvalidConfigFileError: the override is wrong, sweeps, or chooses a config group.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    config = OmegaConf.create(composed.config)
    OmegaConf.set_struct(config, True)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        for item in parsed:
            if item.is_sweep_override():
                raise InvalidConfigFileError(f"{item.input_line}: an existing run cannot be swept over")
            node = OmegaConf.select(config, item.key_or_group.replace("/", "."))
            if "/" in item.key_or_group or (OmegaConf.is_dict(node) and isinstance(item.value(), str)):
                raise InvalidConfigFileError(
                    f"{item.input_line}: an existing run keeps its config groups; "
                    f"override single values ({item.key_or_group}.KEY=...), or start a new run"
                )
        ConfigLoaderImpl._apply_overrides_to_config(parsed, config)
    except HydraException as error:
        raise InvalidConfigFileError(str(error)) from error
    result = OmegaConf.to_container(config, resolve=False)
    before, after = _flat(composed.config), _flat(result)
    changes = [
        f"{key}: {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
        for key in sorted({*before, *after})
        if before.get(key, before) != after.get(key, before)
    ]
    return Composed(result, composed.hydra, [*composed.overrides, *overrides]), changes


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            key: item
            for name, inner in value.items()
            for key, item in _flat(inner, f"{prefix}{name}.").items()
        }
    return {prefix.rstrip("."): value}


# -- keeping a configuration --------------------------------------------------------------------
# Plain YAML, and two tags for what Hydra's structured configs hold beside it.


def to_yaml(composed: Composed) -> str:
    """Return a text from which `from_yaml` makes an equal configuration."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_multi_representer(Enum, lambda d, v: d.represent_scalar("!enum", _enum_name(v)))
    Dumper.add_multi_representer(Path, lambda d, v: d.represent_scalar("!path", str(v)))
    content = {
        "schema": 1,
        "config": composed.config,
        "overrides": list(composed.overrides),
        "hydra": composed.hydra,
    }
    return str(yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def from_yaml(text: bytes, source: Path) -> Composed:
    """Read what `to_yaml` wrote.

    Raises:
        InvalidConfigFileError: it is something else.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    Loader.add_constructor("!path", lambda loader, node: PosixPath(node.value))
    Loader.add_constructor("!enum", lambda loader, node: _enum_value(node.value))
    try:
        content = yaml.load(text, Loader=Loader)  # noqa: S506 - a safe loader with two harmless tags
        return Composed(content["config"], content["hydra"], content["overrides"])
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidConfigFileError(f"{source}: is no stored configuration: {error!r}") from error


def _enum_name(value: Enum) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}:{value.name}"


def _enum_value(name: str) -> Any:
    """Find an enumeration's member in the modules of the program; nothing is imported for it."""
    module, qualname, member = name.split(":")
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, Enum)):
        raise ValueError(f"{name} is no enumeration")
    return found[member]


def plain(value: Any) -> Any:
    """Return a configuration as plain YAML types: what `config.yaml` shows."""
    if isinstance(value, dict):
        return {(key.name if isinstance(key, Enum) else key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    return str(value)


def seed_of(config: Mapping[str, Any]) -> Any:
    """Return the seed for the seeding function.

    Raises:
        MissingFieldError: the configuration has no key `seed`.
    """
    if "seed" not in config:
        raise MissingFieldError(
            "a seeding_function is given but the configuration has no key 'seed': "
            "add `seed: 0` to the configuration file, or +seed=0 to the command line"
        )
    return config["seed"]
