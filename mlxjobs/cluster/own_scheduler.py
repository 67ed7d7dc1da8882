"""What a scheduler of the user's own says: checked, so that no mistake of it is ours to show."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from mlxjobs.errors import InvalidSchedulerError, MLXJobsError, SchedulerError
from mlxjobs.scheduler import Scheduler
from mlxjobs.system.user_class import words_of

HELP = "docs/schedulers.md shows a whole one"
_MAY_RAISE = {"parse_submission": ValueError, "parse_array": ValueError}


def guard(scheduler: Scheduler, path: str) -> None:
    """See to it that a mistake in somebody else's scheduler becomes a message, wherever it shows.

    Its attributes are checked now; what its methods return, at each call.

    Raises:
        InvalidSchedulerError: an attribute is missing, or of a wrong type.
    """
    for name, hint in get_type_hints(Scheduler).items():
        kind = get_args(hint)[0] if get_origin(hint) is ClassVar else hint
        value = getattr(scheduler, name, None)
        if not _fits(value, kind):
            words = "lacks it" if value is None else f"says {value!r}"
            raise InvalidSchedulerError(
                f"{path}: a scheduler has an attribute '{name}' of type {_name(kind)}, and this one "
                f"{words}; {HELP}"
            )
    for name, method in vars(Scheduler).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            setattr(scheduler, name, _guarded(getattr(scheduler, name), method, f"{path}.{name}"))


def _guarded(call: Callable[..., Any], contract: Callable[..., Any], what: str) -> Callable[..., Any]:
    kind = get_type_hints(contract)["return"]
    allowed = (MLXJobsError, _MAY_RAISE.get(contract.__name__, MLXJobsError))

    @functools.wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            value = call(*args, **kwargs)
        except allowed:
            raise
        except Exception as error:
            raise SchedulerError(f"{what} failed: {words_of(error)}") from error
        if not _fits(value, kind):
            raise SchedulerError(f"{what} returned {value!r}, which is not of type {_name(kind)}")
        return value

    return guarded


def _name(kind: Any) -> str:
    return (
        kind.__name__
        if inspect.isclass(kind) and not get_args(kind)
        else str(kind).replace("mlxjobs.scheduler.", "")
    )


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, as far as the contract's types go."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, inner[0]) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0]) and _fits(item, inner[1]) for key, item in value.items()
        )
    return isinstance(value, (int, float) if kind is float else kind)
