"""What is secret in a configuration: kept apart, `***` wherever a run shows or stores its configuration.

A job resumes from the stored configuration, so the true values have to be somewhere: they are in
`metadata/.secrets.json`, which only the owner may read, whatever the umask is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from mlxjobs.config.stored import Composed

_MASK = "***"
# the last part of a key; pad_token and num_tokens are not secret, so the tokens of services have to be named
_NAME = re.compile(
    r"(.*[_-])?(password|passwd|passphrase|secret|secret[_-]?key|api[_-]?key|access[_-]?key|private[_-]?key|"
    r"(access|auth|api|refresh|bearer|hf|hub|hugging_?face|github|gitlab|wandb)[_-]?token)|token",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"passw|passphrase|secret|token|credential|(api|access|private)_?key", re.IGNORECASE)
_ENV = re.compile(r"oc\.env:\s*['\"]?(\w+)")
_REFERENCE = re.compile(r"\$\{\s*\.*([\w.]+)\s*\}")
_OVERRIDE = re.compile(r"([+~]*)([^=]+)=(.*)", re.DOTALL)
# a shorter one is not looked for inside of other strings: it would be found in harmless words
_SHORTEST = 6
# what takes the place of a value: called with its key, itself, and whether a key above it is secret
_Take = Callable[[str, Any, bool], Any]


@dataclass(frozen=True)
class Shown:
    """A configuration as it is shown, and the secret values that nothing shown may hold."""

    config: Any = None
    values: frozenset[str] = frozenset()

    def text(self, text: str) -> str:
        """Return a string without the secret values."""
        return _without(text, self.values)


class Mask:
    """Tells what is secret, by its key.

    Args:
        patterns: the setting `secrets`: `wandb.login`, `*.url`; `!model.token` is not, though it is
            named like one.
    """

    def __init__(self, patterns: str | Sequence[str]) -> None:
        words = [patterns] if isinstance(patterns, str) else patterns
        self._secret = [word for word in words if word and not word.startswith("!")]
        self._harmless = [word[1:] for word in words if word.startswith("!")]
        self._is = lru_cache(maxsize=None)(self._match)

    def _match(self, key: str) -> bool:
        if any(fnmatchcase(key, pattern) for pattern in self._harmless):
            return False
        if key.startswith("hydra.job.env_set."):
            return _VARIABLE.search(key.rpartition(".")[2]) is not None
        by_name = _NAME.fullmatch(key.rpartition(".")[2]) is not None
        return by_name or any(fnmatchcase(key, pattern) for pattern in self._secret)

    def covers(self, key: str) -> bool:
        """Whether a key, or one above it, is secret."""
        parts = key.split(".")
        return any(self._is(".".join(parts[: count + 1])) for count in range(len(parts)))

    def hide(self, composed: Composed) -> Composed:
        """Return a configuration with its secrets apart; those that are apart already stay so."""
        secrets: dict[str, Any] = {}

        def take(key: str, value: Any, secret: bool) -> Any:
            if not (secret and _is_value(value)) or (isinstance(value, str) and _is_reference(value)):
                return value
            if value != _MASK or key in composed.secrets:
                secrets[key] = composed.secrets[key] if value == _MASK else value
            return _MASK

        hidden = _replace_values(composed, take, self._is)
        if not secrets:
            return replace(composed, secrets={})
        overrides = [self._override(override, secrets) for override in composed.overrides]
        changed = {a: b for a, b in zip(composed.overrides, overrides, strict=True) if a != b}
        hydra = _replaced(hidden.hydra, changed, frozenset(map(str, secrets.values())))
        return Composed(hidden.config, hydra, overrides, secrets)

    def shown(self, composed: Composed, resolved: Any) -> Shown:
        """Return a configuration that was resolved as it is shown.

        Args:
            composed: as `hide` returns it.
            resolved: the same with all its values: nested dictionaries and lists.
        """
        values = set(map(str, composed.secrets.values()))

        def take(key: str, value: Any, secret: bool) -> Any:
            if not (_is_value(value) and (secret or key in composed.secrets or key in telling)):
                return value
            values.add(str(value))
            return _MASK

        telling = set(self._telling(composed))
        config = _walk(resolved, take, self._is)
        return Shown(_replaced(config, {}, frozenset(values)), frozenset(values))

    def _telling(self, composed: Composed) -> Iterable[str]:
        """The keys whose interpolations bring in a secret, or a variable that looks like one."""
        texts: dict[str, str] = {}

        def take(key: str, value: Any, secret: bool) -> Any:
            if isinstance(value, str) and "${" in value:
                texts[key] = value
            return value

        _walk(composed.config, take, self._is)
        for key, text in texts.items():
            variables, references = _ENV.findall(text), _REFERENCE.findall(text)
            if any(map(_VARIABLE.search, variables)) or any(
                name in composed.secrets or self.covers(name) for name in references
            ):
                yield key

    def command(self, line: str, secrets: Mapping[str, Any]) -> str:
        """Return a command line, as a shell reads it, with its secrets masked."""
        return shlex.join(self._override(word, secrets) for word in shlex.split(line))

    def change(self, line: str) -> str:
        """Return a line `key: old -> new` with secrets masked."""
        key = line.partition(": ")[0]
        return f"{key}: {_MASK} -> {_MASK}" if self.covers(key) else line

    def _override(self, word: str, secrets: Mapping[str, Any]) -> str:
        parts = _OVERRIDE.fullmatch(word)
        if parts is not None:
            signs, key, value = parts.groups()
            holds = value.lstrip()[:1] in ("{", "[") and any(name.startswith(f"{key}.") for name in secrets)
            if key in secrets or holds or self.covers(key):
                return word if _is_reference(value) else f"{signs}{key}={_MASK}"
        return _without(word, map(str, secrets.values()))


def with_secrets(composed: Composed) -> Composed:
    """Return a configuration with its secrets where they belong, for the process that runs the task."""
    if not composed.secrets:
        return composed

    def take(key: str, value: Any, secret: bool) -> Any:
        return composed.secrets.get(key, value)

    return _replace_values(composed, take, lambda key: False)


def lost_secrets(composed: Composed) -> list[str]:
    """Return the keys of secrets whose values are not known any more."""
    return [key for key, value in composed.secrets.items() if value == _MASK]


def without_secrets(text: str, composed: Composed) -> str:
    """Return a string without the secret values of a configuration."""
    return _without(text, map(str, composed.secrets.values()))


def _replace_values(composed: Composed, take: _Take, is_secret: Callable[[str], bool]) -> Composed:
    """Return a configuration with other values; of Hydra's node, the variables of the task are part of it."""
    config, hydra = _walk(composed.config, take, is_secret), composed.hydra
    variables = hydra.get("job", {}).get("env_set")
    if variables:
        variables = _walk(variables, take, is_secret, "hydra.job.env_set")
        hydra = {**hydra, "job": {**hydra["job"], "env_set": variables}}
    return replace(composed, config=config, hydra=hydra)


def _walk(
    value: Any, take: _Take, is_secret: Callable[[str], bool], key: str = "", secret: bool = False
) -> Any:
    def inner(name: object, item: Any) -> Any:
        below = f"{key}.{name}" if key else str(name)
        return _walk(item, take, is_secret, below, secret or is_secret(below))

    if isinstance(value, dict):
        return {name: inner(name, item) for name, item in value.items()}
    if isinstance(value, list):
        return [inner(number, item) for number, item in enumerate(value)]
    return take(key, value, secret)


def _without(text: str, values: Iterable[str]) -> str:
    for value in sorted((word for word in values if len(word) >= _SHORTEST), key=len, reverse=True):
        text = text.replace(value, _MASK)
    return text


def _is_reference(text: str) -> bool:
    """`${oc.env:NAME}` and `${db.password}` say where a secret is, not what."""
    return re.fullmatch(r"\$\{[\w.:]+\}", text) is not None


def _is_value(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number or (isinstance(value, str) and value not in ("", "???"))


def _replaced(value: Any, texts: Mapping[str, str], values: frozenset[str]) -> Any:
    """Replace texts, and mask values, in all strings of a nested structure."""
    if isinstance(value, dict):
        return {key: _replaced(item, texts, values) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, texts, values) for item in value]
    if not isinstance(value, str):
        return value
    for old, new in texts.items():
        value = value.replace(old, new)
    return _without(value, values)
