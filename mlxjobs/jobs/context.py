"""What a task is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxjobs.config_dict import ConfigDict

if TYPE_CHECKING:
    from mlxjobs.logger.logger import DefaultLogger


@dataclass
class Context:
    """What a task is given.

    Attributes:
        config: the user's options, resolved; a real dictionary with attribute access.
        mlxpy: the settings used.
        info: facts of this run: `log_id`, `log_dir`, `work_dir`, `launch_dir`, `rank`, `world_size`, ...
        logger: records metrics, artifacts and checkpoints; None with `use_logger: false`.
    """

    config: ConfigDict
    mlxpy: ConfigDict
    info: ConfigDict
    logger: DefaultLogger | None

    @property
    def mlxp(self) -> ConfigDict:
        """The settings under the name that MLXP 1.0 gives them."""
        return self.mlxpy
