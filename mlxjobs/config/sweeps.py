"""Runs of a sweep that differ in plain values only: composed once by Hydra, the others made from that.

Composing takes Hydra 50 ms, and it composes each run of a sweep twice. Where two runs have the same
overrides but for plain values (`lr=0.1` and `lr=0.2`) of keys that are untyped leaves, the second
configuration is the first with those values, and with what Hydra's own node says of the overrides.
Anything else is composed by Hydra, once for each choice of groups: typed or read-only nodes,
interpolations, keys that overlap, `~`, settings of Hydra's. A property test holds the two ways against
each other.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlxjobs.config.stored import Composed

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
# a sweep whose runs differ in more than plain values must not fill the memory
_MOST_MODELS = 64

Signature = tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A configuration that Hydra composed, of which others are made.

    Attributes:
        config: it, the Hydra node included.
        pickled: the same, as a copy of it is made seven times faster from that; b"": it cannot be.
        plain: the same as `compose` keeps it, once somebody asked for that.
    """

    config: Any
    pickled: bytes
    plain: list[Composed]


class Shortcut:
    """Composes the configurations of a sweep as `ConfigLoaderImpl.load_sweep_config` does, but for the time.

    Args:
        loader: Hydra's own.
        load: its method, unchanged.
    """

    def __init__(self, loader: Any, load: Any) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self._loader = loader
        self._load = load
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Any] = {}
        self._keys: dict[str, str | None] = {}
        self._models: dict[Signature, Model] = {}

    def load(self, master: Any, overrides: list[str]) -> Any:
        """Return the configuration of one run, its own copy."""
        from omegaconf import OmegaConf

        model = self.model(overrides)
        if model is None:
            config = self._load(self._loader, master, overrides)
            if self._may_learn(master, config, overrides):
                model = Model(copy.deepcopy(config), _pickled(config), [])
                self._models[self._signature(overrides)] = model
            return config
        config = pickle.loads(model.pickled) if model.pickled else copy.deepcopy(model.config)  # noqa: S301
        for key, value in self._values(overrides):
            OmegaConf.update(config, key, value)
        lines, dirname = self._about(config, overrides)
        config.hydra.overrides.task = lines
        config.hydra.job.override_dirname = dirname
        config.hydra.runtime.cwd = os.getcwd()  # noqa: PTH109 - a task may have moved away
        OmegaConf.copy_cache(from_config=master, to_config=config)
        return config

    def derive(self, model: Model, overrides: Sequence[str], number: int) -> Composed:
        """Return what `compose` would keep of a run, from what it keeps of the model."""
        base = model.plain[0]
        config = base.config
        for key, value in self._values(overrides):
            config = _with(config, key.split("."), value)
        lines, dirname = self._about(model.config, overrides)
        job = {**base.hydra["job"], "override_dirname": dirname, "id": str(number), "num": number}
        hydra = {**base.hydra, "job": job, "overrides": {**base.hydra["overrides"], "task": lines}}
        return Composed(config, hydra, lines)

    def model(self, overrides: Sequence[str]) -> Model | None:
        """Return a configuration that differs from that of these overrides in plain values only."""
        return self._models.get(self._signature(overrides))

    # -- what may be done so ------------------------------------------------------------------

    def _parse(self, line: str) -> Any:
        found = self._parsed.get(line)
        if found is None:
            found = self._parsed[line] = self._parser.parse_override(line)
        return found

    def _signature(self, overrides: Sequence[str]) -> Signature:
        """What a configuration depends on beside its plain values."""
        return tuple(f"{key}=" if (key := self._plain_key(line)) else line for line in overrides)

    def _plain_key(self, line: str) -> str | None:
        """The key of an override that sets a plain value; None: it is something else."""
        if line not in self._keys:  # whether there is a group of that name is a question to the disk
            self._keys[line] = self._find_plain_key(line)
        return self._keys[line]

    def _find_plain_key(self, line: str) -> str | None:
        override = self._parse(line)
        key = override.key_or_group
        if override.type.name != "CHANGE" or override.package is not None or not _KEY.fullmatch(key):
            return None
        if override.is_sweep_override() or key.partition(".")[0] == "hydra":
            return None
        if self._loader.repository.group_exists(key):
            return None
        value = override.value()
        if isinstance(value, str):
            return None if "${" in value or value == "???" else str(key)
        return str(key) if value is None or type(value) in (bool, int, float) else None

    def _values(self, overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
        for line in overrides:
            if (key := self._plain_key(line)) is not None:
                yield key, self._parse(line).value()

    def _about(self, config: Any, overrides: Sequence[str]) -> tuple[list[str], str]:
        """What Hydra's node says of the overrides: their lines, and the name of a folder made of them."""
        from hydra._internal.config_loader_impl import get_overrides_dirname

        given = config.hydra.job.config.override_dirname
        ours = [one for one in map(self._parse, overrides) if not one.is_hydra_override()]
        dirname = get_overrides_dirname(
            overrides=ours, kv_sep=given.kv_sep, item_sep=given.item_sep, exclude_keys=given.exclude_keys
        )
        return [str(one.input_line) for one in ours], dirname

    def _may_learn(self, master: Any, config: Any, overrides: Sequence[str]) -> bool:
        """Whether others can be made of a configuration: nothing of it hangs on the plain values but they."""
        keys = [self._parse(line).key_or_group for line in overrides]
        plain = [key for key, _ in self._values(overrides)]
        if not plain or len(self._models) >= _MOST_MODELS or len(set(keys)) < len(keys):
            return False
        if any(key in config.hydra.runtime.choices for key in plain):  # a group of another search path
            return False
        if any(_overlap(key, other) for key in plain for other in keys if other is not key):
            return False
        return (
            all(_is_plain_leaf(config, key.split(".")) for key in plain)
            and not config.hydra.job.env_copy
            and not _has_interpolation(config.hydra.job.config.override_dirname)
            and self._rest_is_fixed(master, config, overrides)
        )

    def _rest_is_fixed(self, master: Any, config: Any, overrides: Sequence[str]) -> bool:
        """Whether the other overrides do the same whatever the plain values are."""
        others = [line for line in overrides if self._plain_key(line) is None]
        added = []
        for line in others:
            override = self._parse(line)
            if override.package is not None or self._loader.repository.group_exists(override.key_or_group):
                continue
            # `~a=1` compares with a value; a path through an interpolation leads where a value says
            if override.is_delete() or _node(config, override.key_or_group.split(".")[:-1]) is None:
                return False
            if override.is_add():
                added.append(line)
        if not added:
            return True
        # `+a=1` asks whether there is an `a`, which may be an interpolation
        without = self._load(self._loader, master, [line for line in overrides if line not in added])
        return all(_is_absent(without, self._parse(line).key_or_group.split(".")) for line in added)


def _has_interpolation(node: Any) -> bool:
    from omegaconf import OmegaConf

    return "${" in repr(OmegaConf.to_container(node, resolve=False))


def _pickled(config: Any) -> bytes:
    try:
        return pickle.dumps(config)
    except Exception:  # noqa: BLE001 - a value of the user's own kind, which may raise anything
        return b""


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _is_plain_leaf(config: Any, keys: Sequence[str]) -> bool:
    """Whether a value can be put there as it is: no type converts it, no flag forbids it."""
    from omegaconf import AnyNode

    parent = _node(config, keys[:-1])
    if parent is None or parent._metadata.object_type not in (dict, None) or parent._get_flag("readonly"):
        return False
    node = parent._get_node(keys[-1])
    return type(node) is AnyNode and not node._get_flag("readonly")


def _node(config: Any, keys: Sequence[str]) -> Any:
    """Return the section of these keys; None if there is none, or an interpolation on the way."""
    from omegaconf import DictConfig

    node = config
    for key in (*keys, None):
        if type(node) is not DictConfig or node._is_none() or node._is_missing() or node._is_interpolation():
            return None
        if key is not None:
            node = node._get_node(key)
    return node


def _is_absent(config: Any, keys: Sequence[str]) -> bool:
    """Whether the first section on the way that lacks the next key is a section, and no interpolation."""
    for number in range(len(keys)):
        parent = _node(config, keys[:number])
        if parent is None:
            return False
        if keys[number] not in parent._content:
            return True
    return False


def _with(config: Any, keys: Sequence[str], value: Any) -> Any:
    return {**config, keys[0]: _with(config[keys[0]], keys[1:], value)} if keys else value


@contextmanager
def taken(execute: Callable[[Composed], Any] | None = None, seen: Sequence[Composed] = ()) -> Iterator[None]:
    """Let Hydra compose the runs of its sweeps the short way inside the block, and each only once.

    Args:
        execute: given what is kept of a run, does all that is to be done: so a run that needs no
            composition is not even shown to Hydra. None: each is run by Hydra.
        seen: with it, what was kept of the run that Hydra ran last.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.plugins.sweeper import Sweeper

    load = ConfigLoaderImpl.load_sweep_config
    shortcuts: dict[int, Shortcut] = {}

    def of(loader: Any) -> Shortcut:
        if id(loader) not in shortcuts:
            shortcuts[id(loader)] = Shortcut(loader, load)
        return shortcuts[id(loader)]

    def load_short(self: Any, master_config: Any, sweep_overrides: list[str]) -> Any:
        return of(self).load(master_config, sweep_overrides)

    def validate_short(self: Any, batch: Sequence[Sequence[str]]) -> None:
        """What Hydra calls for each batch, before it launches that."""
        loader = self.hydra_context.config_loader
        for overrides in batch:
            if of(loader).model(overrides) is None:
                loader.load_sweep_config(self.config, list(overrides))
        # Hydra makes the classes of its plug-ins anew for each program: only the object can be changed
        launcher = getattr(self, "launcher", None)
        if execute is not None and type(launcher).__name__ == "BasicLauncher":
            launch = _Launch(of(loader), launcher, execute, seen)
            launcher.launch = launch  # type: ignore[union-attr]

    with (
        _replaced(ConfigLoaderImpl, "load_sweep_config", load_short),
        _replaced(Sweeper, "validate_batch_is_legal", validate_short),
    ):
        yield


class _Launch:
    """Takes the place of `BasicLauncher.launch`."""

    def __init__(
        self,
        shortcut: Shortcut,
        launcher: Any,
        execute: Callable[[Composed], Any],
        seen: Sequence[Composed],
    ) -> None:
        self._shortcut = shortcut
        self._launcher = launcher
        self._execute = execute
        self._seen = seen

    def __call__(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        returned: list[Any] = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            model = self._shortcut.model(overrides)
            if model is not None and model.plain:
                composed = self._shortcut.derive(model, overrides, number)
                returned.append(_returned(self._execute(composed)))
                continue
            returned += type(self._launcher).launch(self._launcher, [overrides], number)
            if model is not None and _has_one_folder(self._launcher.config):
                model.plain.extend(self._seen)
        return returned


@contextmanager
def _replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _has_one_folder(config: Any) -> bool:
    """Whether all runs have the same Hydra folder, so that what Hydra notes of it is the same too."""
    from omegaconf import OmegaConf

    return not any(
        OmegaConf.is_interpolation(config.hydra.sweep, key) or OmegaConf.is_missing(config.hydra.sweep, key)
        for key in ("dir", "subdir")
    )


def _returned(value: Any) -> Any:
    from hydra.core.utils import JobReturn, JobStatus

    result = JobReturn()
    result.status, result.return_value = JobStatus.COMPLETED, value
    return result
