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
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlxjobs.command_line import ACTIONS, is_question, quote_value
from mlxjobs.config_dict import ConfigDict
from mlxjobs.errors import InvalidConfigFileError, MissingFieldError
from mlxjobs.frozen import Composed


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
    multirun = [] if any(argument in ACTIONS for argument in arguments) or not _sweeps(arguments) else ["-m"]
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
