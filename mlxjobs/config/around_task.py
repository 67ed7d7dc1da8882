"""What Hydra does around a task, done where the task runs.

A job starts from a stored configuration, without Hydra: importing and composing cost more than all
the rest. So what a task may expect of Hydra beside its configuration is done here from the stored
`hydra` node: `hydra.job.env_set`, `hydra.job.chdir`, Python's logging, callbacks, and `HydraConfig`,
which is set when the program imports Hydra, be that before or after this. In a local run Hydra
itself is there; it only learns which folder is the run's.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from mlxjobs.config import hydra_door
from mlxjobs.config.compose import has_interpolation
from mlxjobs.config.stored import Composed
from mlxjobs.errors import InvalidConfigFileError


def _placed(composed: Composed, output_dir: Path) -> Composed:
    """Return the configuration with Hydra's node naming this process' folders.

    Args:
        composed: as it was composed or stored.
        output_dir: the run's directory.
    """
    if not composed.hydra:  # a run of MLXP's
        return composed
    folder = str(output_dir)
    node = dict(composed.hydra)
    node["runtime"] = {**node.get("runtime", {}), "cwd": str(Path.cwd()), "output_dir": folder}
    node["run"] = {**node.get("run", {}), "dir": folder}
    return replace(composed, hydra=node)


def tell_hydra(composed: Composed, output_dir: Path, *, keep_log: bool, follow_streams: bool) -> Composed:
    """Tell the Hydra of this process, which has just composed a run, the folder of that run.

    Args:
        composed: the run.
        output_dir: its directory.
        keep_log: whether Python's logging may have its file there.
        follow_streams: whether `sys.stdout` is going to be replaced, and logging has to follow.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import read_write

    live: Any = HydraConfig.instance().cfg
    with read_write(live.hydra.runtime), read_write(live.hydra.run):
        live.hydra.runtime.output_dir = live.hydra.run.dir = str(output_dir)
    node = dict(composed.hydra)
    node["runtime"] = {**node["runtime"], "output_dir": str(output_dir)}
    if keep_log:
        _configure_logging(node, follow_streams=follow_streams)
    if node.get("job", {}).get("chdir"):
        os.chdir(output_dir)
    return replace(composed, hydra=node)


@contextmanager
def surroundings(
    composed: Composed, output_dir: Path, *, keep_log: bool = True, follow_streams: bool = False
) -> Iterator[Composed]:
    """Give a process that did not compose its run what Hydra would have given it.

    Args:
        composed: the stored configuration.
        output_dir: the run's directory.
        keep_log: whether Python's logging may have files.
        follow_streams: whether `sys.stdout` is going to be replaced, and logging has to follow.

    Yields:
        The configuration, with Hydra's node naming this process' folders.
    """
    placed = _placed(composed, output_dir)
    job = placed.hydra.get("job", {})
    before, cwd = dict(os.environ), Path.cwd()
    try:
        variables = _resolved(job.get("env_set") or {}, placed.hydra)
        # a later override, which Hydra's schema does not see, may have made one a number
        os.environ.update({name: str(value) for name, value in variables.items()})
        if placed.hydra:
            _provide_hydra_config(placed.hydra)
            _configure_logging(placed.hydra, keep_files=keep_log, follow_streams=follow_streams)
        if job.get("chdir"):
            os.chdir(output_dir)
        yield placed
    finally:
        os.chdir(cwd)
        for name in job.get("env_set") or {}:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


# -- HydraConfig --------------------------------------------------------------------------------


def _provide_hydra_config(node: Mapping[str, Any]) -> None:
    if "hydra" in sys.modules:
        _set_hydra_config(node)
    else:
        sys.meta_path.insert(0, _OnImport(lambda: _set_hydra_config(node)))


def _set_hydra_config(node: Mapping[str, Any]) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    setup_globals()
    mode = RunMode[node["mode"]] if node.get("mode") in RunMode.__members__ else None
    config: Any = OmegaConf.create({"hydra": {**node, "mode": mode}})
    OmegaConf.set_readonly(config, True)
    HydraConfig.instance().cfg = config


class _OnImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Calls a function when `hydra` has been imported for the first time."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then
        self._loader: importlib.abc.Loader | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Stand in for the real loader of `hydra`, once."""
        if fullname != "hydra":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("hydra")
        if spec is None or spec.loader is None:
            return spec
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the real loader does."""
        return self._loader.create_module(spec) if self._loader else None

    def exec_module(self, module: ModuleType) -> None:
        """As the real loader does, and then call the function."""
        if self._loader is not None:
            module.__loader__ = self._loader
            self._loader.exec_module(module)
        self._then()


# -- logging ------------------------------------------------------------------------------------


def _configure_logging(
    node: Mapping[str, Any], *, keep_files: bool = True, follow_streams: bool = False
) -> None:
    """Configure Python's logging as `hydra.core.utils.configure_log` does."""
    import logging.config

    config = _resolved(node.get("job_logging") or {}, node)
    if not keep_files:
        _drop_files(config)
    if config.get("root") is not None:
        logging.config.dictConfig(config)
    verbose = node.get("verbose", False)
    loggers = [None] if verbose is True else [verbose] if isinstance(verbose, str) else verbose or []
    for name in loggers:
        logging.getLogger(name).setLevel(logging.DEBUG)
    if follow_streams:
        for reference in logging._handlerList:  # type: ignore[attr-defined]  # has no public name
            handler = reference()
            for name in ("stdout", "stderr"):
                if isinstance(handler, logging.StreamHandler) and handler.stream is getattr(sys, name):
                    handler.setStream(_Stream(name))


def _drop_files(config: dict[str, Any]) -> None:
    """Take the handlers that have files out of a configuration of Python's logging."""
    handlers = config.get("handlers", {})
    files = [name for name, handler in handlers.items() if "filename" in handler]
    for name in files:
        del handlers[name]
    for logger in (config.get("root"), *config.get("loggers", {}).values()):
        if logger:
            logger["handlers"] = [name for name in logger.get("handlers", []) if name not in files]


class _Stream:
    """Whatever `sys.stdout` or `sys.stderr` is at the moment."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(getattr(sys, self._name), attribute)


def _resolved(section: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a section of Hydra's node; what only refers to that node needs no OmegaConf."""
    filled: dict[str, Any] = _fill(section, node)
    if not has_interpolation(filled):
        return filled
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf

    setup_globals()
    config = OmegaConf.create({"hydra": node, "section": filled})
    resolved: dict[str, Any] = OmegaConf.to_container(config.section, resolve=True)  # type: ignore[assignment]
    return resolved


def _fill(value: Any, node: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _fill(item, node) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, node) for item in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        value: Any = node
        for key in match.group(1).split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value if isinstance(value, str) and "${" not in value else match.group(0)

    return re.sub(r"(?<!\\)\$\{hydra\.([\w.]+)\}", look_up, value)


# -- callbacks ----------------------------------------------------------------------------------


def call_with_callbacks(composed: Composed, task: Callable[..., Any], call: Callable[[], Any]) -> Any:
    """Call something between Hydra's callbacks of a job; of a run too, if it is not part of a sweep."""
    if not composed.hydra.get("callbacks"):
        return call()
    callbacks_class = hydra_door.callbacks_class()
    if callbacks_class is None:
        raise InvalidConfigFileError("this version of Hydra calls callbacks in a way that is not known here")
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import JobReturn, JobStatus
    from omegaconf import OmegaConf, open_dict

    whole = OmegaConf.create(composed.config)
    with open_dict(whole):
        whole.hydra = HydraConfig.get()
    live: Any = HydraConfig.instance().cfg
    names = {"config_name": composed.hydra.get("job", {}).get("config_name")}
    callbacks = callbacks_class(whole)
    answer = JobReturn(
        overrides=list(composed.overrides),
        cfg=OmegaConf.create(composed.config),
        hydra_cfg=live,
        working_dir=str(Path.cwd()),
        task_name=composed.hydra.get("job", {}).get("name"),
    )
    single = composed.hydra.get("mode") != "MULTIRUN"
    if single:
        callbacks.on_run_start(config=whole, **names)
    callbacks.on_job_start(config=whole, task_function=task)
    try:
        answer.return_value = call()
        answer.status = JobStatus.COMPLETED
        return answer.return_value
    except Exception as error:
        answer.return_value = error.__cause__ or error
        answer.status = JobStatus.FAILED
        raise
    finally:
        if answer.status is not JobStatus.UNKNOWN:  # a job that leaves to come back has not ended
            callbacks.on_job_end(config=whole, job_return=answer)
            if single:
                callbacks.on_run_end(config=whole, **names, job_return=answer)
