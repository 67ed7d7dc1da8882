"""What makes an average wrong without a word: runs in one group that should not be put together.

Each run has `guard.code`, `guard.finished`, `guard.resumed`, `guard.environment` and
`guard.hardware`, which queries and `groupby` take like any other field.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from mlxjobs.reader.columns import ABSENT
from mlxjobs.reader.rows import DataDict
from mlxjobs.reader.table import GUARDS
from mlxjobs.system.console import shorten

_WORDS = {
    "guard.code": "code versions",
    "guard.environment": "environments",
    "guard.hardware": "kinds of machines",
}
_SHOWN = 3


class MixedRunsWarning(UserWarning):
    """Runs were aggregated that differ in more than what they were grouped by."""


def check_group(rows: Iterable[DataDict]) -> dict[str, str]:
    """Return what the runs of a group do not share: guard -> in words; empty if all is well."""
    runs = [row for row in rows if row.source is not None]
    mixed = {}
    for guard in GUARDS:
        values = [row.shown(guard) for row in runs]
        if guard == "guard.finished":
            if count := values.count(False):
                mixed[guard] = f"{count} of {len(runs)} runs not complete"
        elif guard == "guard.resumed":
            if 0 < (count := values.count(True)) < len(values):
                mixed[guard] = f"{count} of {len(runs)} runs resumed"
        elif len(kinds := {str(value) for value in values if value is not ABSENT}) > 1:
            mixed[guard] = f"{len(kinds)} {_WORDS[guard]}"
    return mixed


def warn_of(groups: Sequence[tuple[tuple[Any, ...], dict[str, str]]], group_keys: Sequence[str]) -> None:
    """Warn, once, of the groups that `check_group` found something in."""
    mixed = [(key, {g: words for g, words in found.items() if g not in group_keys}) for key, found in groups]
    mixed = [(key, found) for key, found in mixed if found]
    if not mixed:
        return
    lines = []
    for key, found in mixed:
        name = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in zip(group_keys, key, strict=False))
        lines.append(f"{name or 'all rows'}: {', '.join(found.values())}")
    guards = [guard for guard in GUARDS if any(guard in found for _, found in mixed)]
    split = ", ".join(map(repr, [*group_keys, *(guard for guard in guards if guard != "guard.finished")]))
    hints = [f"split them: groupby([{split}])"] if guards != ["guard.finished"] else []
    hints += ["leave them out: filter('guard.finished')"] if "guard.finished" in guards else []
    message = (
        f"runs that differ are put together; {'; '.join(shorten(lines, _SHOWN))}. To {' or '.join(hints)}"
    )
    warnings.warn(message, MixedRunsWarning, stacklevel=3)
