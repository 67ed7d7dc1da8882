"""Dictionaries with attribute access, as users know them from `ctx.config`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from mlxjobs.errors import MissingFieldError

_MANDATORY = "???"  # OmegaConf's mark of a mandatory value that nobody has given


def _convert(value: Any) -> Any:
    """Make every dictionary inside `value` a `ConfigDict`; everything else is kept as it is."""
    if isinstance(value, ConfigDict):
        return value
    if isinstance(value, dict):
        return ConfigDict(value)
    if type(value) in (list, tuple):
        return type(value)(_convert(item) for item in value)
    return value


class ConfigDict(dict[Any, Any]):
    """A real `dict` whose items are attributes too, at every depth.

    >>> config = ConfigDict({"model": {"lr": 0.1}})
    >>> config.model.lr
    0.1
    >>> config.model.layers = [{"units": 3}]
    >>> config["model"]["layers"][0].units
    3

    An item named like a method of `dict` (`items`, `keys`, `copy`, ...) is reached as
    `config["items"]`; the methods stay what they are, so that `**config.model` works.

    To read a mandatory value that nobody has given (`???`) is a `MissingFieldError`, as with Hydra.
    """

    def __init__(self, *args: Mapping[Any, Any] | Iterable[tuple[Any, Any]], **kwargs: Any) -> None:
        super().__init__()
        self.update(*args, **kwargs)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, _convert(value))

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        if type(value) is str and value == _MANDATORY:
            raise MissingFieldError(f"the mandatory value {key!r} is missing: give it, as {key}=... does")
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        """Return `self[key]`, or `default` if there is none or it is a missing mandatory value."""
        value = super().get(key, default)
        return default if type(value) is str and value == _MANDATORY else value

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        from difflib import get_close_matches  # no job that goes well pays for it

        near = get_close_matches(name, [key for key in self if isinstance(key, str)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it has {sorted(map(str, self))}"
        raise AttributeError(f"no key {name!r} here{hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"no key {name!r} here") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self if isinstance(key, str))]

    def __copy__(self) -> ConfigDict:
        return ConfigDict(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> ConfigDict:
        result = ConfigDict()
        memo[id(self)] = result
        for key, value in self.items():
            result[copy.deepcopy(key, memo)] = copy.deepcopy(value, memo)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return (ConfigDict, (), None, None, iter(self.items()))

    def __or__(self, other: Any) -> ConfigDict:
        return ConfigDict({**self, **other})

    def __ior__(self, other: Any) -> ConfigDict:
        self.update(other)
        return self

    def copy(self) -> ConfigDict:
        """Return a shallow copy, attribute access included."""
        return ConfigDict(self)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return `self[key]`, which is set to `default` first if it is missing."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set several items, as `dict.update`."""
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def to_dict(self) -> dict[Any, Any]:
        """Return the same values as plain dictionaries, at every depth."""

        def plain(value: Any) -> Any:
            if isinstance(value, ConfigDict):
                return {key: plain(item) for key, item in value.items()}
            if type(value) in (list, tuple):
                return type(value)(plain(item) for item in value)
            return value

        result: dict[Any, Any] = plain(self)
        return result


def missing_values(config: Any, prefix: str = "") -> list[str]:
    """Return the keys of mandatory values (`???`) that nobody gave."""
    if isinstance(config, dict):
        items: Iterable[tuple[Any, Any]] = config.items()
    elif isinstance(config, list):
        items = enumerate(config)
    else:
        return [prefix] if config == _MANDATORY else []
    return [key for name, value in items for key in missing_values(value, f"{prefix}.{name}".lstrip("."))]


def seed_of(config: Mapping[str, Any]) -> Any:
    """Return the seed for the seeding function.

    Raises:
        MissingFieldError: the configuration has no key `seed`.
    """
    if "seed" not in config or config.get("seed") == _MANDATORY:
        raise MissingFieldError(
            "a seeding_function is given but the configuration has no key 'seed': "
            "add `seed: 0` to the configuration file, or +seed=0 to the command line"
        )
    return config["seed"]
