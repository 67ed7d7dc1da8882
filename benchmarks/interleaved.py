"""Time several ways to do the same thing in turn, so that a noisy machine is unfair to none."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """What `interleave` found.

    Attributes:
        seconds: name -> median time of one call.
        ratios: name -> median over the rounds of its time divided by the first one's in that round.
    """

    seconds: dict[str, float]
    ratios: dict[str, float]


def interleave(callables: Mapping[str, Callable[[], object]], rounds: int = 7) -> Timing:
    """Call A B A B ..., the first being the limit the others are measured against.

    Args:
        callables: name -> what to time.
        rounds: calls of each, after one that does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in callables}
    for call in callables.values():
        call()
    for _ in range(rounds):
        for name, call in callables.items():
            gc.collect()
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    first = next(iter(times.values()))
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, first, strict=True))
        for name, values in times.items()
    }
    return Timing({name: statistics.median(values) for name, values in times.items()}, ratios)


def row(what: str, timing: Timing, name: str, target: float, unit: float = 1.0, suffix: str = "s") -> str:
    """Return one row of a Markdown table: what, limit, ours, ratio, target, verdict."""
    limit = next(iter(timing.seconds.values())) / unit
    ratio = timing.ratios[name]
    verdict = "ok" if ratio <= target else "MISSED"
    ours = timing.seconds[name] / unit
    return f"| {what} | {limit:.4g} {suffix} | {ours:.4g} {suffix} | {ratio:.2f} | {target} | {verdict} |"


HEADER = "| what | limit | ours | x limit | target | |\n|---|---|---|---|---|---|"
