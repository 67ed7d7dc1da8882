"""A project's folder of configuration files: made if they are missing, its settings read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxjobs.config import compose, settings
from mlxjobs.errors import InvalidConfigFileError
from mlxjobs.system.files import create_file
from mlxjobs.system.plain_yaml import dump_yaml

_CONFIG = "# The options of this project: `python main.py seed=1` overrides them.\nseed: null\n"


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
        return self.config_dir / settings.FILE_NAME

    def read_settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the settings in force; make the project's folder and files if they are missing.

        Args:
            given: settings from the command line, which win.

        Raises:
            InvalidConfigFileError: the file or those given are wrong, or no configuration can be made.
        """
        self.prepare()
        options = settings.defaults()
        if self.settings_file.exists():
            settings.merge(options, settings.read_file(self.settings_file), str(self.settings_file))
        settings.merge(options, given, "the command line")
        return options

    def prepare(self) -> None:
        """Make the folder and its files if they are missing. Raises as `read_settings`."""
        try:
            self.config_dir.mkdir(parents=True, exist_ok=True)
            if not self.settings_file.exists():
                create_file(self.settings_file, dump_yaml(settings.defaults()))
            path = self.config_dir / "config.yaml"
            if self.config_name == "config" and not path.exists() and not compose.is_registered("config"):
                create_file(path, _CONFIG)
        except OSError as error:
            # a project that cannot be written works with the defaults, if it has a configuration
            registered = self.config_dir.is_dir() and compose.is_registered(self.config_name)
            if not registered and not (self.config_dir / f"{self.config_name}.yaml").exists():
                raise InvalidConfigFileError(f"{self.config_dir} cannot be created: {error}") from error
