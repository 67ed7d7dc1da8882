"""The metrics of two runs of the same command, compared line by line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxjobs.jobs.cause import PROGRESS, progress
from mlxjobs.logger.rewind import log_names

_Line = Mapping[str, Any]
Curves = dict[str, list[_Line]]

# keys that tell when, how fast or how large, and so differ from run to run
_OF_THE_RUN = re.compile(
    r"(^|_|/|\b)(time|times|timestamp|date|clock|wall|walltime|elapsed|duration|runtime|eta|speed|throughput|"
    r"fps|sec|secs|seconds|minutes|hours|memory|mem|ram|gpu_util|pid|host|hostname)($|_|/|\b)|per_(s|sec|second)$",
    re.IGNORECASE,
)
_NOTHING = object()


def read(directory: Path) -> Curves:
    """Return the lines of a run's metrics files, log name -> lines; one that is being written is left out."""
    curves: Curves = {}
    for name in log_names(directory):
        with suppress(OSError):
            lines = (directory / f"{name}.json").read_bytes().split(b"\n")[:-1]
            with suppress(ValueError):
                curves[name] = [json.loads(line) for line in lines]
    return curves


def reach(directory: Path, expected: Curves) -> bool:
    """Whether a run has logged at least as much as another one."""
    return all(_count(directory / f"{name}.json") >= len(lines) for name, lines in expected.items())


def _count(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


@dataclass(frozen=True)
class Deviation:
    """Where a key of a log first differs.

    Attributes:
        log: the log's name.
        key: the key; "" if the line is missing.
        index: of the line.
        expected: the value of the undisturbed run; None if it has none.
        found: the other's.
        where: how far the undisturbed run was, in words.
        over: whether the other has gone back to its first step.
    """

    log: str
    key: str
    index: int
    expected: Any
    found: Any
    where: str
    over: bool = False

    @property
    def of_progress(self) -> bool:
        """Whether steps are missing or repeated."""
        return self.key in ("", *PROGRESS)

    def __str__(self) -> str:
        if not self.key:
            return f"`{self.log}` ends before {self.where}"
        if self.of_progress:
            return f"`{self.key}` is {self._values}, on line {self.index + 1} of `{self.log}`"
        return f"`{self.key}` differs from {self.where} ({self._values})"

    @property
    def _values(self) -> str:
        return ", not ".join(
            "missing" if value is None else json.dumps(value) for value in (self.found, self.expected)
        )


def deviations(expected: Curves, found: Curves, *, ended: bool) -> list[Deviation]:
    """Return the first difference of each key, the first of all first.

    Args:
        expected: of the undisturbed run.
        found: of another one.
        ended: whether the other has come to its end, so that what it lacks will not come any more.
    """
    first: dict[tuple[str, str], Deviation] = {}
    for name, lines in expected.items():
        others = found.get(name, [])
        for index, line in enumerate(lines):
            if index >= len(others):
                if ended:
                    first[name, ""] = Deviation(name, "", index, None, None, _where(name, index, line))
                break
            for deviation in _differ(name, index, line, others):
                key = deviation.key
                over = deviation.of_progress and index > 0 and deviation.found == lines[0].get(key)
                first.setdefault((name, key), replace(deviation, over=over))
    return sorted(first.values(), key=lambda deviation: (deviation.index, not deviation.of_progress))


def spread(expected: Curves, found: Curves, log: str, key: str) -> float | None:
    """Return how far the values of a key are apart at most; None if they are not numbers."""
    apart = [
        abs(line[key] - other[key])
        for line, other in zip(expected.get(log, []), found.get(log, []), strict=False)
        if all(type(values.get(key)) in (int, float) for values in (line, other))
    ]
    return max(apart, default=None)


def _differ(name: str, index: int, line: _Line, others: Sequence[_Line]) -> list[Deviation]:
    other, where = others[index], _where(name, index, line)
    return [
        Deviation(name, key, index, line.get(key), other.get(key), where)
        for key in dict.fromkeys([*line, *other])
        if line.get(key, _NOTHING) != other.get(key, _NOTHING) and not _OF_THE_RUN.search(key)
    ]


def _where(name: str, index: int, line: _Line) -> str:
    return progress([line]) or f"line {index + 1} of `{name}`"
