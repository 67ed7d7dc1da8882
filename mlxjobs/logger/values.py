"""What a metrics line may hold, and how it is written: JSON that every reader takes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mlxjobs.errors import InvalidMetricError

_NON_FINITE = {float("inf"): "Infinity", float("-inf"): "-Infinity"}


def unwrap(value: Any) -> Any:
    """Return a numpy or torch scalar or array, or a mapping, as numbers, lists and dictionaries.

    Raises:
        TypeError: it is none of them.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if not hasattr(value, "item") or not hasattr(value, "tolist"):
        raise TypeError(type(value).__name__)
    try:
        # item() of a number that numpy has masked is 0
        plain = value.tolist() if getattr(value, "ndim", None) == 0 else value.item()
    except (ValueError, RuntimeError):  # more than one element
        plain = value.tolist()
    if type(plain) is type(value) or isinstance(plain, complex):
        raise TypeError(type(value).__name__)
    return plain


def as_plain(value: Any) -> Any:
    """Return a numpy or torch scalar as a number, and an array as a list; all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def json_object(metrics: Mapping[Any, Any], inside: str = "") -> dict[str, Any]:
    """Return `metrics` with only what JSON has, NaN and infinities as strings.

    Args:
        metrics: any mapping.
        inside: what to put before a key in messages.

    Raises:
        InvalidMetricError: a key or a value cannot be written.
    """
    plain = {key_text(key): _json_value(value, f"{inside}{key}") for key, value in metrics.items()}
    if len(plain) != len(metrics):
        raise InvalidMetricError(f"two keys of {sorted(map(str, metrics))} are the same in JSON")
    return plain


def key_text(key: Any) -> str:
    """Return a key as a JSON string; numbers and the like as the json module writes them.

    Raises:
        InvalidMetricError: it is neither a string nor a scalar.
    """
    if isinstance(key, str):
        return _text(key)
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, (int, float)):
        value = _scalar(key)
        return value if isinstance(value, str) else repr(value)
    with suppress(TypeError):
        plain = unwrap(key)
        if isinstance(plain, (str, int, float)):
            return key_text(plain)
    raise InvalidMetricError(f"the key {key!r} is of type {type(key).__name__}; keys are strings")


def type_name(value: Any) -> str:
    """Return the name of the Python type that a value has when it is read back."""
    for kind in (bool, int, float, str, list):
        if isinstance(value, kind):
            return kind.__name__
    if isinstance(value, tuple):
        return "list"
    if isinstance(value, Mapping):
        return "dict"
    try:
        return type_name(unwrap(value))
    except TypeError:
        return type(value).__name__


def _text(value: str) -> str:
    try:
        return str.encode(value).decode()
    except UnicodeEncodeError:  # half of a surrogate pair, which no strict reader of JSON takes
        return str.encode(value, errors="backslashreplace").decode()


def _scalar(value: Any) -> Any:
    """A string, truth value or number as a plain one."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return value if isinstance(value, bool) else int(value)
    number = float(value)
    return "NaN" if number != number else _NON_FINITE.get(number, number)


def _json_value(value: Any, key: str) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return None if value is None else _scalar(value)
    if isinstance(value, Mapping):
        return json_object(value, f"{key}.")
    if isinstance(value, (list, tuple)):
        return [_json_value(item, key) for item in value]
    return _json_leaf(value, key)


def _json_leaf(value: Any, key: str) -> Any:
    import orjson

    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        return json_object({name: getattr(value, name) for name in fields}, f"{key}.")
    with suppress(TypeError):  # dates and whatever else orjson knows; null may have been NaN
        line = orjson.dumps(value, unwrap, option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" not in line:
            return orjson.loads(line)
    try:
        plain = unwrap(value)
    except TypeError as error:
        raise InvalidMetricError(
            f"the metric {key!r} is of type {type(value).__name__}, which cannot be written as JSON: "
            "log numbers, strings, or lists and dictionaries of them"
        ) from error
    return _json_value(plain, key)
