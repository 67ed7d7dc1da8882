"""The runs of a sweep, composed by Hydra once and made from that.

Composing takes Hydra 50 ms, and it composes each run of a sweep twice. Nearly all of that is reading and
merging files, which depends on the choices of groups and on Hydra's own settings alone. So Hydra composes
one configuration for each set of choices, without the user's other overrides; that is kept, and for each run
Hydra's own function applies the run's overrides to a copy.

What an override does may depend on what else is there: through interpolations, which may lead into Hydra's
node. Where one is on the way to the key of an override, and wherever else there is doubt, Hydra composes
the run. A property test holds the two ways against each other.
"""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mlxjobs.config import hydra_door
from mlxjobs.config.stored import Composed, check_encodable

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*", re.ASCII)
# a sweep whose runs all choose other groups must not fill the memory
_MOST_STARTS = 64

# what the runs made from one configuration have in common: "model=big" of a group, ("+", "lr") of a key
_Shape = tuple[Any, ...]


@dataclass(frozen=True)
class _Start:
    """What Hydra composed for one shape of overrides, before the user's were applied.

    Attributes:
        whole: a copier of it, with Hydra's node finished.
        bare: a copier of it without Hydra's node.
        hydra: Hydra's node as it is kept of the first run; empty as long as none is.
    """

    whole: Callable[[], Any]
    bare: Callable[[], Any]
    hydra: dict[str, Any] = field(default_factory=dict)


class _Composer:
    """Composes the configurations of a sweep as `ConfigLoaderImpl.load_sweep_config` does, but for the time.

    Args:
        loader: Hydra's own.
        load: its method, unchanged.
        master: the configuration of the sweep itself.
    """

    def __init__(self, loader: Any, load: Callable[..., Any], master: Any) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self._loader = loader
        self._load = load
        self.master = master
        self._parser = OverridesParser.create()
        self._parsed: dict[str, Any] = {}
        self._apply = hydra_door.override_applier()
        self._dirname = hydra_door.dirname_maker()
        # keys of which Hydra said that they are no groups; with a dictionary as value, groups are keys too
        self._settings: set[tuple[str, bool]] = set()
        self._starts: dict[_Shape, _Start | None] = {}

    def load(self, overrides: list[str]) -> Any:
        """Return the configuration of one run, its own copy."""
        from omegaconf import OmegaConf

        config = self._made(overrides, lambda start: start.whole())
        if config is None:
            return self._load(self._loader, self.master, overrides)
        lines, dirname = self._about(config.hydra["job"], overrides)
        config.hydra.overrides.task = lines
        if dirname is not None:
            config.hydra.job.override_dirname = dirname
        config.hydra.runtime.cwd = os.getcwd()  # noqa: PTH109 - a task may have moved away
        OmegaConf.copy_cache(from_config=self.master, to_config=config)
        return config

    def is_legal(self, overrides: Sequence[str]) -> bool:
        """Whether a run can be composed here; if not, Hydra may still be able to, or says what is wrong."""
        return self._made(overrides, lambda start: start.bare()) is not None

    def capture(self, overrides: Sequence[str], number: int) -> Composed | None:
        """Return what is kept of a run, if Hydra's node was kept of another of that shape."""
        from omegaconf import OmegaConf

        start = self.start(overrides)
        if start is None or not start.hydra:
            return None
        config = self._made(overrides, lambda start: start.bare())
        if config is None:
            return None
        plain = OmegaConf.to_container(config, resolve=False)
        check_encodable(plain)
        node = start.hydra
        lines, dirname = self._about(node["job"], overrides)
        job = {**node["job"], "id": str(number), "num": number}
        if dirname is not None:
            job["override_dirname"] = dirname
        hydra = {**node, "job": job, "overrides": {**node["overrides"], "task": lines}}
        return Composed(plain, hydra, lines)

    def start(self, overrides: Sequence[str]) -> _Start | None:
        """Return what a run is made from; None: Hydra must compose it."""
        from hydra.errors import HydraException

        try:
            parsed = [self._parse(line) for line in overrides]
        except HydraException:
            return None
        shape = self._shape(parsed)
        if shape not in self._starts and len(self._starts) < _MOST_STARTS:
            start = self._find_start(overrides, parsed)
            shape = self._shape(parsed)  # Hydra has told which are groups
            self._starts[shape] = start
        return self._starts.get(shape)

    # -- a copy, with the overrides of a run ------------------------------------------------------

    def _made(self, overrides: Sequence[str], copied: Callable[[_Start], Any]) -> Any:
        start = self.start(overrides)
        if start is None:
            return None
        assert self._apply is not None  # noqa: S101 - without it there is no start
        config = copied(start)
        parsed = [self._parse(line) for line in overrides]
        try:
            self._apply([item for item in parsed if self._is_setting(item)], config)
        except Exception:  # noqa: BLE001 - Hydra meets it again, and its words are what users know
            return None
        return config

    def _about(self, job: Any, overrides: Sequence[str]) -> tuple[list[str], str | None]:
        """What Hydra's node says of the overrides: their lines, and the name of a folder made of them."""
        parsed = [self._parse(line) for line in overrides]
        lines = [str(item.input_line) for item in parsed]
        if self._dirname is None or "override_dirname" not in job["config"]:
            return lines, None
        how = job["config"]["override_dirname"]
        return lines, self._dirname(
            overrides=parsed,
            kv_sep=how["kv_sep"],
            item_sep=how["item_sep"],
            exclude_keys=how["exclude_keys"],
        )

    # -- what may be done so ----------------------------------------------------------------------

    def _parse(self, line: str) -> Any:
        if line not in self._parsed:
            self._parsed[line] = self._parser.parse_override(line)
        return self._parsed[line]

    def _is_setting(self, override: Any) -> bool:
        return (override.key_or_group, isinstance(override.value(), dict)) in self._settings

    def _shape(self, parsed: Sequence[Any]) -> _Shape:
        return tuple(_kind(item) if self._is_setting(item) else item.input_line for item in parsed)

    def _find_start(self, overrides: Sequence[str], parsed: Sequence[Any]) -> _Start | None:
        if self._apply is None or any(_is_hydras(item) or item.is_sweep_override() for item in parsed):
            return None
        held_back: list[Any] = []
        before: list[Any] = []
        apply = self._apply

        def apply_hydras(items: list[Any], config: Any) -> None:
            from omegaconf import OmegaConf

            number = next((n for n, item in enumerate(items) if not _is_hydras(item)), len(items))
            held_back.extend(items[number:])
            apply(items[:number], config)
            before.append(OmegaConf.to_container(config, resolve=False, enum_to_str=True))

        try:
            with hydra_door.replaced_applier(apply_hydras):
                config = self._load(self._loader, self.master, list(overrides))
        except Exception:  # noqa: BLE001 - Hydra meets it again, without us
            return None
        if len(before) != 1 or any(_is_hydras(item) for item in held_back):  # another Hydra than we know
            return None
        self._settings.update((item.key_or_group, isinstance(item.value(), dict)) for item in held_back)
        if not (_is_fixed(before[0]["hydra"], self._dirname) and _are_independent(held_back, before[0])):
            return None
        return _Start(_copier(config), _copier(_without_hydra(config)))


def _kind(override: Any) -> tuple[Any, ...]:
    """What of an override decides whether it may be applied here."""
    value = override.value()
    looks = isinstance(value, (dict, list))
    return override.type, override.key_or_group, looks, _links(value) and repr(value)


def _is_hydras(override: Any) -> bool:
    return re.split("[./[]", override.key_or_group)[0] == "hydra"


def _links(value: Any) -> bool:
    return "${" in repr(value)


def _is_fixed(hydra: Any, makes_dirname: Any) -> bool:
    """Whether nothing that Hydra writes into its node at last depends on the user's part."""
    if not all(isinstance(hydra.get(section), dict) for section in ("job", "runtime", "overrides")):
        return False
    job = hydra["job"]
    if job.get("env_copy") or ("override_dirname" in job and makes_dirname is None):
        return False
    return not _links([job.get("name"), job.get("config"), hydra["runtime"], hydra["overrides"]])


def _are_independent(overrides: Sequence[Any], config: Any) -> bool:
    """Whether no override is applied by way of an interpolation."""
    keys = [item.key_or_group for item in overrides]
    for item in overrides:
        key, value = item.key_or_group, item.value()
        if item.package is not None or not _KEY.fullmatch(key):
            return False
        if _links(value) and sum(_overlap(key, other) for other in keys) > 1:
            return False
        # these look at what is there; the others replace it
        looks = item.is_add() or item.is_delete() or isinstance(value, (dict, list))
        if _passes_link(config, key.split("."), looks=looks):
            return False
    return True


def _overlap(key: str, other: str) -> bool:
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _passes_link(node: Any, keys: Sequence[str], *, looks: bool) -> bool:
    """Whether there is an interpolation on the way to a key; if one looks at its value, in that too."""
    for key in keys:
        if not isinstance(node, dict):
            return _links(node)
        if any(_links(value) for name, value in node.items() if not isinstance(name, str)):
            return True  # what `1.a` means depends on the type of the keys
        if key not in node:
            return False
        node = node[key]
    return looks and _links(node)


def _without_hydra(config: Any) -> Any:
    from omegaconf import open_dict, read_write

    bare = copy.deepcopy(config)
    with read_write(bare), open_dict(bare):
        del bare["hydra"]
    return bare


def _copier(config: Any) -> Callable[[], Any]:
    """Return what makes copies, by pickle, which is seven times faster, if the values let it."""
    try:
        pickled = pickle.dumps(config)
        pickle.loads(pickled)  # noqa: S301 - made above
    except Exception:  # noqa: BLE001 - a value of the user's own kind, which may raise anything
        kept = copy.deepcopy(config)
        return lambda: copy.deepcopy(kept)
    return lambda: pickle.loads(pickled)  # noqa: S301


# -- in Hydra's place -----------------------------------------------------------------------------


@contextmanager
def composing_once(
    execute: Callable[[Composed], Any] | None = None, seen: Sequence[Composed] = ()
) -> Iterator[None]:
    """Let Hydra compose once for all runs of a sweep inside the block that choose the same groups.

    Args:
        execute: does all that is to be done with what is kept of a run: so a run that needs no
            composition is not even shown to Hydra. None: each is run by Hydra.
        seen: with it, what was kept of the run that Hydra ran last.
    """
    from hydra.plugins.sweeper import Sweeper

    loader_class = hydra_door.loader_class()
    load = getattr(loader_class, "load_sweep_config", None)
    validate = getattr(Sweeper, "validate_batch_is_legal", None)
    if load is None or validate is None:
        yield
        return
    composers: dict[Any, _Composer] = {}

    def composer_of(loader: Any, master: Any) -> _Composer:
        if loader not in composers or composers[loader].master is not master:
            composers[loader] = _Composer(loader, load, master)
        return composers[loader]

    def load_sweep_config(self: Any, master_config: Any, sweep_overrides: list[str]) -> Any:
        return composer_of(self, master_config).load(sweep_overrides)

    def validate_batch_is_legal(self: Any, batch: Sequence[Sequence[str]]) -> None:
        """What Hydra calls for each batch, before it launches that."""
        composer = composer_of(self.hydra_context.config_loader, self.config)
        validate(self, [overrides for overrides in batch if not composer.is_legal(overrides)])
        # Hydra makes the classes of its plug-ins anew for each program: only the object can be changed
        launcher = getattr(self, "launcher", None)
        if execute is not None and type(launcher).__name__ == "BasicLauncher":
            launcher.launch = _Launch(composer, launcher, execute, seen)  # type: ignore[union-attr]

    with (
        hydra_door.replaced(loader_class, "load_sweep_config", load_sweep_config),
        hydra_door.replaced(Sweeper, "validate_batch_is_legal", validate_batch_is_legal),
    ):
        yield


class _Launch:
    """Takes the place of `BasicLauncher.launch`, which copies Hydra's node six times for a run."""

    def __init__(
        self,
        composer: _Composer,
        launcher: Any,
        execute: Callable[[Composed], Any],
        seen: Sequence[Composed],
    ) -> None:
        self._composer = composer
        self._launcher = launcher
        self._execute = execute
        self._seen = seen

    def __call__(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        returned: list[Any] = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            composed = self._composer.capture(overrides, number)
            if composed is not None:
                returned.append(_returned(self._execute(composed)))
                continue
            returned += type(self._launcher).launch(self._launcher, [overrides], number)
            start = self._composer.start(overrides)
            if start is not None and _has_one_folder(self._launcher.config):
                start.hydra.update(self._seen[0].hydra)
        return returned


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
