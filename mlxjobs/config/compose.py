"""The only module that knows Hydra and OmegaConf: a command line in, configurations out.

Composition is Hydra's own, through `hydra.main`: groups, defaults lists, sweepers, `--cfg`,
`--help`, completion and error messages are what its users know. Ours is what surrounds it: settings
(`mlxpy.*`) are taken out of the command line first, `lr=1,2` needs no `-m`, nothing is written into
the current folder, and the configuration of a run can be kept, unresolved, and used again later
without Hydra.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

from mlxjobs.config import hydra_door
from mlxjobs.config.command_line import is_question, names_action, quote_value, separate_options
from mlxjobs.config.stored import Composed, check_encodable, flatten
from mlxjobs.config_dict import ConfigDict
from mlxjobs.errors import InvalidConfigFileError, MLXJobsError, RunError

# what a sweeper writes before the first run: all that was typed, secrets too
_RECORD = "multirun.yaml"


def _sweeps(overrides: Sequence[str]) -> bool:
    """Whether an override holds several values, or a range of them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

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


class _Refused(BaseException):
    """Carries an error of ours out of Hydra, which would take it for the failure of one run of many."""

    def __init__(self, error: MLXJobsError) -> None:
        super().__init__(error)
        self.error = error


def compose_runs(
    task: Callable[..., Any],
    arguments: Sequence[str],
    *,
    config_dir: Path,
    config_name: str,
    scratch: Path,
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
        scratch: an empty folder for what Hydra writes beside; the caller removes it.
        sweep_dir: where Hydra's sweepers may leave their files.
        quiet: nothing runs here, so Hydra is silent and calls no callbacks.
        run: called for each run, in the sweeper's order; what it returns or raises is handed to the
            sweeper, but an error of ours ends it all.

    Raises:
        InvalidConfigFileError: what Hydra says about a wrong configuration or override.
        SystemExit: Hydra answered a question, such as `--help`.
        BaseException: what `run` raised.
    """
    with _garbage_left():
        import hydra
        import hydra._internal.hydra  # which hydra.main imports anyway, later

    raised: list[Exception] = []
    seen: list[Composed] = []
    given = _hydra_arguments(arguments, scratch, sweep_dir, quiet)
    # with HYDRA_FULL_ERROR Hydra raises what went wrong instead of printing it and leaving
    with (
        _arguments([sys.argv[0], *given]),
        _environment("HYDRA_FULL_ERROR", "1"),
        hydra_door.silent_hydra() if quiet else nullcontext(),
        _shortened(run if quiet else None, seen) if "-m" in given else nullcontext(),
        _garbage_left() as collect_again,
    ):
        job = _job(task, run, raised, seen, collect_again, quiet=quiet)
        try:
            hydra.main(version_base=None, config_path=str(config_dir), config_name=config_name)(job)()
        except _Refused as refused:
            raise refused.error from refused.error.__cause__
        except Exception as error:
            if any(error is one for one in raised):
                raise
            _explain(error, quiet=quiet, question=is_question(arguments))
            raise
        finally:
            if not seen:  # whoever sees a run tells whether that may stay
                (sweep_dir / _RECORD).unlink(missing_ok=True)


def _shortened(
    execute: Callable[[Composed], Any] | None, seen: list[Composed]
) -> AbstractContextManager[None]:
    from mlxjobs.config import sweeps  # only a sweep pays for it

    return sweeps.composing_once(execute, seen)


@contextmanager
def _garbage_left() -> Iterator[Callable[[], None]]:
    """Put garbage collection off until the block, or what it gives, is left or called.

    Importing and composing make many objects and little garbage: looking through them takes Python 15 ms.
    """
    collects = gc.isenabled()

    def collect_again() -> None:
        if collects:
            gc.enable()

    gc.disable()
    try:
        yield collect_again
    finally:
        collect_again()


def _job(
    task: Callable[..., Any],
    run: Callable[[Composed], Any],
    raised: list[Exception],
    seen: list[Composed],
    collect_again: Callable[[], None],
    *,
    quiet: bool,
) -> Callable[..., Any]:
    """Return what Hydra calls for each run; the user's code sees the process as it was."""
    argv, full_error = list(sys.argv), os.environ.get("HYDRA_FULL_ERROR")

    @functools.wraps(task)
    def job(config: Any) -> Any:
        collect_again()  # from the first run on: a sweep does leave garbage
        with _arguments(argv), _environment("HYDRA_FULL_ERROR", full_error):
            try:
                if quiet:
                    forget_sweep()
                seen[:] = [_capture(config)]
                return run(seen[0])
            except MLXJobsError as error:
                raise _Refused(error) from error
            except Exception as error:
                raised.append(error)
                raise

    return job


def _explain(error: Exception, *, quiet: bool, question: bool) -> None:
    """Raise `InvalidConfigFileError` if this is an error of the configuration or the command line."""
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, (HydraException, OmegaConfBaseException, YAMLError)):
        cause = error.__cause__
        detail = f"\n{cause}" if isinstance(cause, (OmegaConfBaseException, YAMLError)) else ""
        which = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
        raise InvalidConfigFileError(f"{which}{error}{detail}") from error
    if isinstance(error, OSError):
        raise RunError(f"{error}; set another log directory with +mlxpy.logger.parent_log_dir=...") from error
    if question or isinstance(error, UnicodeError):
        raise InvalidConfigFileError(str(error)) from error
    if quiet:  # nothing of the user's has run yet, so it was the sweeper
        raise InvalidConfigFileError(
            f"the sweeper failed: {error}. One that needs the results of its runs cannot be used with "
            "use_scheduler=true, as the runs are only submitted"
        ) from error


@contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _hydra_arguments(arguments: Sequence[str], scratch: Path, sweep_dir: Path, quiet: bool) -> list[str]:
    options, overrides = separate_options(arguments)
    if is_question(arguments):
        return [*options, *overrides]
    # ours come first: of two overrides of one key Hydra takes the last, the user's
    ours = [
        "hydra.output_subdir=null",
        f"hydra.run.dir={quote_value(str(scratch))}",
        f"hydra.sweep.dir={quote_value(str(sweep_dir))}",
        f"hydra.sweep.subdir={quote_value(str(scratch))}",
    ]
    if quiet and not any(override.lstrip("+").startswith("hydra/hydra_logging=") for override in overrides):
        ours.append("hydra/hydra_logging=none")
    multirun = [] if names_action(options) or not _sweeps(overrides) else ["-m"]
    return [*multirun, *options, *ours, *overrides]


def _capture(config: Any) -> Composed:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    # nothing may be read through OmegaConf, which would resolve it
    node = OmegaConf.to_container(HydraConfig.instance().cfg, resolve=False, enum_to_str=True)
    hydra: Any = node["hydra"] if isinstance(node, dict) else {}
    plain = OmegaConf.to_container(config, resolve=False)
    check_encodable(plain)
    return Composed(config=plain, hydra=hydra, overrides=hydra["overrides"]["task"])


def forget_sweep() -> None:
    """Remove what Hydra's sweeper wrote before the run that Hydra has just composed."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if HydraConfig.get().mode is RunMode.MULTIRUN:
        Path(HydraConfig.get().sweep.dir, _RECORD).unlink(missing_ok=True)


def is_registered(config_name: str) -> bool:
    """Whether the program has registered a structured configuration of this name."""
    if "hydra.core.config_store" not in sys.modules:
        return False
    from hydra.core.config_store import ConfigStore

    return f"{config_name}.yaml" in ConfigStore.instance().repo


def resolve_config(composed: Composed) -> ConfigDict:
    """Resolve interpolations and return the configuration that the task sees.

    OmegaConf is imported only if there is something to resolve.

    Raises:
        InvalidConfigFileError: an interpolation cannot be resolved.
    """
    if not has_interpolation(composed.config):
        return ConfigDict(composed.config)
    from hydra.core.utils import setup_globals  # importing Hydra sets HydraConfig, see hydra_job
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    setup_globals()
    try:
        resolved: Any = OmegaConf.to_container(OmegaConf.create(composed.config), resolve=True)
    except OmegaConfBaseException as error:
        raise InvalidConfigFileError(f"the configuration cannot be resolved: {error}") from error
    check_encodable(resolved)
    return ConfigDict(resolved)


def has_interpolation(value: Any) -> bool:
    """Whether there is something to resolve in a configuration."""
    if isinstance(value, dict):
        return any(has_interpolation(item) for item in value.values())
    if isinstance(value, list):
        return any(has_interpolation(item) for item in value)
    return isinstance(value, str) and "${" in value


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
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    apply = hydra_door.override_applier()
    if apply is None:
        raise InvalidConfigFileError(
            "this version of Hydra cannot override the configuration of an existing run"
        )
    whole = OmegaConf.create({**composed.config, "hydra": composed.hydra})
    OmegaConf.set_struct(whole, True)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        for item in parsed:
            _check_later_override(item, whole)
        apply(parsed, whole)
    except HydraException as error:
        raise InvalidConfigFileError(str(error)) from error
    result = OmegaConf.to_container(whole, resolve=False)
    assert isinstance(result, dict)  # noqa: S101 - for the type checker
    hydra = result.pop("hydra")
    result = _keep_types(composed.config, result, "")
    before, after = (flatten(config, keep_empty=True) for config in (composed.config, result))
    changes = [
        f"{key}: {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
        for key in {**before, **after}
        if before.get(key, before) != after.get(key, before)
    ]
    return Composed(result, hydra, [*composed.overrides, *overrides], composed.secrets), changes


def _check_later_override(item: Any, whole: Any) -> None:
    from omegaconf import OmegaConf

    if item.is_sweep_override():
        raise InvalidConfigFileError(f"{item.input_line}: an existing run cannot be swept over")
    is_group = "/" in item.key_or_group
    node = None if is_group else OmegaConf.select(whole, item.key_or_group, throw_on_resolution_failure=False)
    if is_group or (OmegaConf.is_dict(node) and isinstance(item.value(), str)):
        raise InvalidConfigFileError(
            f"{item.input_line}: an existing run keeps its config groups; "
            f"override single values ({item.key_or_group}.KEY=...), or start a new run"
        )


def _keep_types(before: Any, after: Any, key: str) -> Any:
    """Give values that took the place of an enumeration's member or a path that type again."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {
            name: _keep_types(before.get(name), value, f"{key}.{name}".lstrip("."))
            for name, value in after.items()
        }
    if isinstance(before, Path) and isinstance(after, str):
        return Path(after)
    if isinstance(before, Enum) and isinstance(after, str) and "${" not in after:
        kind = type(before)
        if after not in kind.__members__:
            raise InvalidConfigFileError(f"{key}={after}: it is one of {', '.join(kind.__members__)}")
        return kind[after]
    return after
