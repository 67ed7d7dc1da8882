"""The settings of `configs/mlxpy.yaml` and `+mlxpy.*`, and the project's folder they are read from.

The fields of the dataclasses are the one place where a setting is defined: its name, type and
default. The file that is created in a new project, the errors and `ctx.mlxpy` all come from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from mlxjobs.config import compose
from mlxjobs.errors import InvalidConfigFileError
from mlxjobs.system.files import create_file
from mlxjobs.system.plain_yaml import NotYAMLError, dump_yaml, load_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Section = TypeVar("Section", bound=DataclassInstance)

SETTINGS_FILE = "mlxpy.yaml"
NO_SCHEDULER = "NoScheduler"
_CONFIG = "# The options of this project: `python main.py seed=1` overrides them.\nseed: null\n"

_Lines: TypeAlias = str | tuple[str, ...]
_Include: TypeAlias = Literal["commit", "tracked", "all"]
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    str: "a string",
    _Lines: "a string or a list of strings",
    _Include: "commit, tracked or all",
}


# Order is the order in the file. What each setting says is in docs/settings.md.
@dataclass(frozen=True)
class LoggerSettings:
    """The section `logger`: where runs are recorded."""

    forced_log_id: int = -1
    log_streams_to_file: bool = False
    name: str = "DefaultLogger"
    parent_log_dir: str = "./logs"


@dataclass(frozen=True)
class SchedulerSettings:
    """The section `scheduler`: how jobs are submitted."""

    cleanup_cmd: _Lines = ""
    env_cmd: _Lines = ""
    max_requeues: int = 100
    name: str = NO_SCHEDULER
    option_cmd: _Lines = ()
    ranks_per_node: int = 0
    shell_config_cmd: _Lines = ""
    shell_path: str = "/bin/bash"


@dataclass(frozen=True)
class VersionManagerSettings:
    """The section `version_manager`: how the code of runs is frozen."""

    name: str = "GitVM"
    parent_work_dir: str = "./.workdir"
    compute_requirements: bool = False
    include: _Include = "commit"
    max_untracked_mb: int = 100
    strict: bool = False
    link: _Lines = ()


@dataclass(frozen=True)
class Settings:
    """All settings in force; `Settings()` are the defaults."""

    logger: LoggerSettings = LoggerSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    version_manager: VersionManagerSettings = VersionManagerSettings()
    secrets: _Lines = ()
    use_logger: bool = True
    use_scheduler: bool = False
    use_version_manager: bool = False
    interactive_mode: bool = True

    @property
    def log_dir(self) -> Path:
        """The absolute folder of the runs.

        Raises:
            InvalidConfigFileError: as `as_folder`.
        """
        return as_folder(self.logger.parent_log_dir).absolute()

    def anchored(self) -> Settings:
        """Return the same settings with an absolute log directory, which any working directory may follow."""
        return replace(self, logger=replace(self.logger, parent_log_dir=str(self.log_dir)))

    def updated(self, written: Any, source: str) -> Settings:
        """Return these settings with others written over them.

        Args:
            written: nested settings, of any type: it is what a user wrote.
            source: where they come from, for the errors: a file's path or "the command line".

        Raises:
            InvalidConfigFileError: an unknown key, or a value of a wrong type.
        """
        return _updated(self, written, source, "")

    def to_dict(self) -> dict[str, Any]:
        """Return nested dictionaries and lists, as a file holds them."""
        return _to_dict(self)


def _to_dict(section: DataclassInstance) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            result[field.name] = _to_dict(value)  # type: ignore[arg-type]  # not a class: an instance
        else:
            result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


@cache
def _types(section: Any) -> dict[str, Any]:
    """Return the type of each key of a section, in the order of the file."""
    return get_type_hints(section)


def _updated(section: Section, written: Any, source: str, prefix: str) -> Section:
    types = _types(type(section))
    if not isinstance(written, Mapping):
        where = f"'{prefix.rstrip('.')}'" if prefix else "the whole"
        raise InvalidConfigFileError(
            f"{source}: {where} must be a section with keys ({', '.join(types)}), not {written!r}"
        )
    changes: dict[str, Any] = {}
    for key, value in written.items():
        if key not in types:
            raise InvalidConfigFileError(f"{source}: unknown key '{prefix}{key}'; {_near(str(key), prefix)}")
        if is_dataclass(types[key]):
            changes[key] = _updated(getattr(section, key), value, source, f"{prefix}{key}.")
        else:
            changes[key] = _checked(value, types[key], f"{source}: '{prefix}{key}'")
    return replace(section, **changes)


def _checked(value: Any, kind: Any, what: str) -> Any:
    """Return a value as a field of this type holds it."""
    if value is None and kind in (str, _Lines):
        return ""  # `env_cmd:` with nothing after it
    if not _fits(value, kind):
        raise InvalidConfigFileError(f"{what} must be {_WORDS[kind]}, not {value!r}")
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    if kind is _Lines:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    # True is an integer to Python, and not to a user
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _near(key: str, prefix: str) -> str:
    """Name the valid key that is nearest to a wrong one."""
    from difflib import get_close_matches

    names = list(_flat_names(Settings, ""))
    full = f"{prefix}{key}"
    near = get_close_matches(full, names, n=1, cutoff=0.5)
    # "mlxpy.use_sheduler" is near a whole name, "mlxpy.parent_log_dir" is only the end of one
    ends = [name for name in names if name.rpartition(".")[2] == key]
    last_parts = [name.rpartition(".")[2] for name in names]
    nearest = next(iter(ends or near or get_close_matches(key, last_parts, n=1)), None)
    return f"did you mean '{nearest}'?" if nearest else f"valid keys: {', '.join(names)}"


def _flat_names(section: Any, prefix: str) -> Iterable[str]:
    for name, kind in _types(section).items():
        if is_dataclass(kind):
            yield from _flat_names(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@dataclass(frozen=True)
class Project:
    """Where a program's configuration is.

    Attributes:
        config_dir: the folder of its configuration files.
        config_name: the primary one, without `.yaml`.
    """

    config_dir: Path
    config_name: str

    @property
    def settings_file(self) -> Path:
        """The file of its settings."""
        return self.config_dir / SETTINGS_FILE

    def settings(self, typed: Mapping[str, Any]) -> Settings:
        """Return the settings in force; make the project's folder and files if they are missing.

        Args:
            typed: settings from the command line, which win.

        Raises:
            InvalidConfigFileError: the file or what was typed is wrong, or no configuration can be made.
        """
        self.prepare()
        return read_settings(self.settings_file).updated(typed, "the command line")

    def prepare(self) -> None:
        """Make the folder and its files if they are missing. Raises as `settings`."""
        try:
            self.config_dir.mkdir(parents=True, exist_ok=True)
            if not self.settings_file.exists():
                create_file(self.settings_file, dump_yaml(Settings().to_dict()))
            path = self.config_dir / "config.yaml"
            if self.config_name == "config" and not path.exists() and not compose.is_registered("config"):
                create_file(path, _CONFIG)
        except OSError as error:
            # a project that cannot be written works with the defaults, if it has a configuration
            registered = self.config_dir.is_dir() and compose.is_registered(self.config_name)
            if not registered and not (self.config_dir / f"{self.config_name}.yaml").exists():
                raise InvalidConfigFileError(f"{self.config_dir} cannot be created: {error}") from error


def read_settings(path: Path) -> Settings:
    """Return the settings of a file over the defaults; a missing or empty file gives the defaults.

    Raises:
        InvalidConfigFileError: it cannot be read, is not YAML, or holds wrong settings.
    """
    if not path.exists():
        return Settings()
    try:
        with path.open(encoding="utf-8") as stream:
            content = load_yaml(stream)
    except OSError as error:
        raise InvalidConfigFileError(f"{path}: cannot be read: {error}") from error
    except NotYAMLError as error:
        raise InvalidConfigFileError(f"{path}: is not valid YAML: {error}") from error
    return Settings().updated({} if content is None else content, str(path))


def as_folder(value: str) -> Path:
    """Return the folder that a setting names, which may begin with `~`.

    Raises:
        InvalidConfigFileError: there is no such user, or it cannot be a path.
    """
    if "\0" in value:
        raise InvalidConfigFileError(f"{value!r} is not a path: no path holds a NUL character")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise InvalidConfigFileError(
            f"{value!r} is in no home folder that is known: give its whole path"
        ) from error


def as_lines(value: str | Sequence[str]) -> list[str]:
    """Return the lines of a `*_cmd` setting, which may be one string or a list of strings."""
    texts = [value] if isinstance(value, str) else value
    return [line for text in texts for line in text.splitlines() if line.strip()]
