"""What is wrong with a command line, found before the user is asked anything: it is composed just for that.

The files as they are say so, and a snapshot may hold others: whoever asks decides what it is worth.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mlxjobs.config.command_line import separate_options
from mlxjobs.config.settings import SETTINGS_FILE
from mlxjobs.config.stored import Composed
from mlxjobs.errors import MLXJobsError

_MOST = 20  # choices of a group that are tried: each takes as long as a run's composition
# what Hydra itself has in its store of registered configurations; its plug-ins are in the first
_HYDRAS_OWN = ("hydra", "_dummy_empty_config_.yaml")

Compose = Callable[[Sequence[str], Callable[[Composed], Any]], None]


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a command line, as the files are.

    Attributes:
        error: what to tell the user.
        registers: whether the program registers configurations, which are in its Python files then.
    """

    error: MLXJobsError
    registers: bool

    def hangs_on(self, path: Path) -> bool:
        """Whether the command line may be right with another version of this file, or without it."""
        if path.name == SETTINGS_FILE:  # of which no configuration is composed
            return False
        suffixes = (".yaml", ".yml", *([".py"] if self.registers else []))
        return path.suffix in suffixes or path.is_dir()


def find_mistake(
    compose: Compose, arguments: Sequence[str], check: Callable[[Composed, bool], Any]
) -> Mistake | None:
    """Find out whether the runs of a command line can be composed; call no sweeper, and print nothing.

    The first choices of a group are tried, and of other values one, as it is the key that can be mistyped.

    Args:
        compose: composes one run of the arguments given, and calls the second one with it.
        arguments: the command line without settings.
        check: called with a configuration, and whether it is of a sweep; raises if it cannot be run.

    Returns:
        The mistake; None: there is none, or only composing in earnest can tell.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again in earnest
            _rehearse(compose, arguments, check)
    except MLXJobsError as error:
        return Mistake(error, _registers()) if _is_certain(error) else None
    return None


def _rehearse(compose: Compose, arguments: Sequence[str], check: Callable[[Composed, bool], Any]) -> None:
    from hydra.errors import HydraException

    options, overrides = separate_options(arguments)
    single = [option for option in options if option != "-m" and not _is_multirun(option)]
    try:
        swept = [_each_value(override) for override in overrides]
    except HydraException:
        compose(arguments, lambda composed: None)  # says it better
        return
    if not all(lines for _, lines in swept):
        return
    several = len(single) < len(options) or any(len(lines) > 1 for _, lines in swept)
    seen: list[Composed] = []

    def run(number: int) -> None:
        lines = [lines[min(number, len(lines) - 1)] for _, lines in swept]
        compose([*single, *lines, "hydra.mode=RUN"], seen.append)
        check(seen[-1], several)

    run(0)
    groups = seen[0].hydra["runtime"]["choices"]
    swept = [(key, lines if key in groups else lines[:1]) for key, lines in swept]
    for number in range(1, max((len(lines) for _, lines in swept), default=1)):
        run(number)


def _is_multirun(option: str) -> bool:
    return len(option) > 2 and "--multirun".startswith(option)  # argparse takes any clear beginning


def _each_value(line: str) -> tuple[str, list[str]]:
    """Return the key of an override, and an override for each of its values; none: Hydra alone knows them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(line)
    key = override.get_key_element()
    if not override.is_sweep_override():
        return key, [line]
    sweep: Any = override.value()
    if override.is_interval_sweep():
        start = sweep.start  # 1.0 of interval(1,5), which no integer would take
        values = [str(int(start) if float(start).is_integer() else start)]
    elif hasattr(sweep, "filter"):  # glob(*): the loader knows
        values = []
    else:
        sweep.shuffle = False  # which would draw from the generator that the user seeded
        values = list(islice(override.sweep_string_iterator(), _MOST))
    return key.lstrip("+"), [f"{key}={value}" for value in values]


def _is_certain(error: MLXJobsError) -> bool:
    """Whether it is the command line or a configuration that is wrong, and not a disk or a plug-in."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    cause = error.__cause__
    return cause is None or isinstance(cause, (HydraException, OmegaConfBaseException, YAMLError))


def _registers() -> bool:
    from hydra.core.config_store import ConfigStore

    return any(name not in _HYDRAS_OWN for name in ConfigStore.instance().repo)
