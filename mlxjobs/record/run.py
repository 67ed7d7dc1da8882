"""The run directory: the only module that knows its file names.

    logs/5/
      metadata/ config.yaml info.yaml mlxpy.yaml   what a user reads
      metadata/ .config.json .info.json            the same for the Reader, which reads them 15 times faster
      metadata/.frozen.yaml                        the configuration as it was composed, unresolved
      metadata/.secrets.json                       its secrets, for the owner only
      metadata/.history/0001.json ...              the events that info.yaml is made from
      metrics/ artifacts/ script.sh log.stdout log.stderr

Events are files that are created once and never changed; the number is taken by an exclusive
create, so events have one order for every process on every machine, without a lock. `info.yaml` is
a picture of them: whoever adds an event paints it again, and looks afterwards whether another event
came meanwhile. So whoever paints last has seen all events, and a stale picture cannot stay.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from mlxjobs.errors import DamagedHistoryError, RunError
from mlxjobs.record.history import Event, RunState, fold, render_info, timestamp
from mlxjobs.record.log_dir import make_run_folder, no_links_mark, take_log_id, waiting_folder
from mlxjobs.system.atomic import look_anew
from mlxjobs.system.console import note
from mlxjobs.system.files import create_file, numbers_in, replace_file
from mlxjobs.system.plain_yaml import NotYAMLError, dump_yaml, read_yaml
from mlxjobs.system.seals import open_json, seal_json, seal_yaml
from mlxjobs.system.trust import stranger

COPIED = ("config", "info")


class NotRecordedError(OSError):
    """An event could not be written: the disk is full, read-only, or somebody else's.

    Attributes:
        state: what the run's state is, though it is not recorded.
    """

    def __init__(self, error: OSError, state: RunState) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        self.state = state


class Run:
    """One run, by its directory; making the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = path / "metadata"
        self.history_dir = self.metadata / ".history"
        self.metrics = path / "metrics"
        self.artifacts = path / "artifacts"
        self.script = path / "script.sh"
        self.stdout = path / "log.stdout"
        self.stderr = path / "log.stderr"

    @property
    def log_id(self) -> int:
        """The run's number."""
        return int(self.path.name)

    def output_of(self, rank: int, descriptor: int) -> Path:
        """Return the file of what a rank but the first prints; its descriptor is 1 or 2."""
        return self.path / f"log.{rank}.{'stdout' if descriptor == 1 else 'stderr'}"

    def written(self) -> list[Path]:
        """Return the files that a running attempt writes to, by which one sees when it last did."""
        folders = (self.history_dir, self.metrics, self.artifacts / "Checkpoint")
        files = [path for folder in folders if folder.is_dir() for path in folder.iterdir()]
        return [path for path in (*files, self.stdout, self.stderr) if path.is_file()]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # -- creation ---------------------------------------------------------------------------

    @classmethod
    def create(cls, parent: Path, log_id: int = -1, *, after: Run | None = None) -> Run:
        """Create a run directory, which nobody else can get.

        Args:
            parent: the log directory; it is created if it is missing.
            log_id: the number to take; negative: the next free one.
            after: a run that was created just before, which saves looking for the next number.

        Returns:
            The run; its folders exist, it has no files and no events yet.

        Raises:
            RunError: the directory cannot be created, or the number is taken.
        """
        try:
            parent.mkdir(parents=True, exist_ok=True)
            if log_id < 0:
                return cls(Path(take_log_id(str(parent), after.log_id if after else None)))
            run = cls(parent / str(log_id))
            if make_run_folder(str(run.path)):
                return run
            raise RunError(f"{run.path} exists already")
        except FileExistsError as error:
            raise RunError(f"{parent} is a file: set mlxpy.logger.parent_log_dir to a folder") from error
        except OSError as error:
            raise RunError(
                f"the log directory {parent} cannot be written: {os.strerror(error.errno or errno.EIO)}; "
                "set another one with +mlxpy.logger.parent_log_dir=..."
            ) from error

    def adopt(self) -> None:
        """Take over a run directory that MLXP made: from now on it has a history."""
        if self.history_dir.is_dir():
            return
        info = self.read_yaml("info") if (self.metadata / "info.yaml").exists() else {}
        if not isinstance(info, dict):
            raise RunError(f"{self.metadata / 'info.yaml'} is not an info file of a run")
        for folder in (self.history_dir, self.metrics, self.artifacts):
            folder.mkdir(exist_ok=True)
        status = info.pop("status", None)
        facts = {**info, "log_dir": str(self.path), "log_id": self.log_id}
        self.record(
            lambda state: None if state.sequence else {"event": "created", "facts": facts, "status": status}
        )

    @property
    def stranger(self) -> str | None:
        """Which file of this run, of those whose content is run, is another user's; None: all are ours."""
        metadata = [self.metadata / name for name in (".frozen.yaml", "config.yaml", "mlxpy.yaml")]
        folders = [self.metadata, self.history_dir, self.artifacts, self.artifacts / "Checkpoint"]
        return stranger(self.path, *folders, *metadata, self.script)

    def check_owner(self) -> None:
        """Raise unless this run is ours: its script, configuration and checkpoints are code that would run.

        Raises:
            RunError: it may be another user's doing.
        """
        whose = self.stranger
        if whose is not None:
            raise RunError(f"run {self.log_id} is not started as you: {whose}")

    # -- events -----------------------------------------------------------------------------

    def events(self, known: list[Event] | None = None, *, anew: bool = True) -> list[Event]:
        """Return the events, oldest first.

        Args:
            known: those that are not read again.
            anew: ask the server for those that this node remembers not to have found.

        Raises:
            DamagedHistoryError: one is not what was written.
        """
        events = list(known or ())
        if anew:
            look_anew(self.history_dir)
        # numbers are tried, not listed: a listing may be old on a network file system
        while (event := self._event(len(events) + 1)) is not None:
            events.append(event)
        return events

    def _event(self, number: int) -> Event | None:
        path = self.history_dir / f"{number:04d}.json"
        try:
            event, sealed = open_json(path.read_bytes())
            if not sealed:  # of an older version: at least it has to look like an event
                event["event"].strip(), datetime.fromisoformat(event["time"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedHistoryError(f"{path} is damaged: {error}; look with: mlxjobs fsck") from error
        return event

    def state(self) -> RunState:
        """Return what is known of this run.

        Raises:
            DamagedHistoryError: its history cannot be read.
        """
        return self._fold(self.events())

    def _fold(self, events: list[Event]) -> RunState:
        try:
            return fold(events)
        except DamagedHistoryError as error:
            raise DamagedHistoryError(f"{self.history_dir}: {error}") from error

    def record(
        self, decide: Callable[[RunState], Mapping[str, Any] | None], *, paint: bool = True
    ) -> RunState:
        """Add the event that `decide` makes of the present state, and paint `info.yaml` again.

        If another process adds an event in between, `decide` is asked again with the newer state:
        so what it checks still holds when its event is taken.

        Args:
            decide: given the state, returns the event (without its time), or None to add nothing;
                what it raises is passed on.
            paint: False where the next event follows at once.

        Returns:
            The state after that.

        Raises:
            NotRecordedError: the event could not be written. If only `info.yaml` could not, that is told:
                whoever looks at the run next paints it.
        """
        events = self.events()
        while True:
            event = decide(self._fold(events))
            if event is None:
                return self._fold(events)
            stamped = {"event": event["event"], "time": timestamp(), **event}
            path = self.history_dir / f"{len(events) + 1:04d}.json"
            try:
                created = create_file(path, seal_json(stamped), no_links=no_links_mark(self.path.parent))
            except OSError as error:
                raise NotRecordedError(error, self._fold([*events, stamped])) from error
            if created:
                events = [*events, stamped]
                return self._paint(events) if paint else self._fold(events)
            events = self.events(events)

    def repaint(self) -> None:
        """Paint `info.yaml` again if whoever added the last event could not: killed, or the disk was full."""
        if self.picture_is_stale() and (events := self.events()):
            self._paint(events)

    def picture_is_stale(self) -> bool:
        """Whether `info.yaml` may lack the last event."""
        try:
            return self.history_dir.stat().st_mtime_ns >= (self.metadata / "info.yaml").stat().st_mtime_ns
        except FileNotFoundError:
            return self.history_dir.is_dir()

    def paint(self) -> RunState:
        """Write `info.yaml` from the events."""
        return self._paint(self.events())

    def _paint(self, events: list[Event]) -> RunState:
        while True:
            state = self._fold(events)
            try:
                self.write_yaml("info", render_info(state))
            except OSError as error:
                note(f"info.yaml does not say the latest of run {self.log_id}, until `mlxjobs ls`: {error}")
                return state
            newer = self.events(events, anew=False)  # whoever adds one paints it
            if len(newer) == len(events):
                return state
            events = newer

    # -- metadata ---------------------------------------------------------------------------

    def mark_waiting(self, waits: bool) -> None:
        """Mark the run as one that waits for room in the queue, so that it is found without a search."""
        mark = waiting_folder(self.path.parent) / self.path.name
        if waits:
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

    @property
    def stored(self) -> Path:
        """The configuration as it was composed: what every attempt starts from."""
        return self.metadata / ".frozen.yaml"

    def store_configuration(
        self,
        composed: str,
        settings: Mapping[str, Any] | None = None,
        secrets: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the composed configuration, its secrets, and settings if given; an event has to follow."""
        path = self.metadata / ".secrets.json"
        if secrets:
            replace_file(path, json.dumps(secrets), mode=0o600, sync_folder=False)
        else:
            path.unlink(missing_ok=True)
        replace_file(self.stored, seal_yaml(composed), sync_folder=False)
        if settings is not None:
            self.write_yaml("mlxpy", settings)

    def read_secrets(self) -> dict[str, Any]:
        """Return what is known of this run's secrets; nothing if they are gone, or somebody else's."""
        try:
            found = json.loads((self.metadata / ".secrets.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_yaml(self, name: str, content: Any, aside: Path | None = None) -> None:
        """Replace `metadata/<name>.yaml`, atomically; an event has to follow, unless it is `info`.

        Args:
            name: `config`, `info` or `mlxpy`.
            content: what it is to hold.
            aside: the folder to write it in first; by default `metadata/`.
        """
        text = dump_yaml(content)
        text = text if name == "info" else seal_yaml(text)  # that one is made from the events
        replace_file(self.metadata / f"{name}.yaml", text, sync_folder=name == "info", aside=aside)
        if name in COPIED:
            self.copy_json(name, content, len(text.encode()))

    def copy_json(self, name: str, content: Any, size: int) -> None:
        """Write `metadata/.<name>.json`: after the YAML, so that one that is older is known to be stale."""
        path = self.metadata / f".{name}.json"
        try:
            copy = json.dumps(
                {"size": size, "content": content}, ensure_ascii=False, allow_nan=False
            ).encode()
            # integers of more than 64 bits would come back as floats
            if json.loads(copy)["content"] == content and not re.search(rb"\d{19}", copy):
                replace_file(path, copy, durable=False)
                return
        except (TypeError, ValueError):  # what JSON has no form for: NaN, dates, keys that are not strings
            pass
        path.unlink(missing_ok=True)

    def read_yaml(self, name: str) -> Any:
        """Read `metadata/<name>.yaml`.

        Raises:
            RunError: it is missing, or is not YAML.
        """
        path = self.metadata / f"{name}.yaml"
        try:
            return read_yaml(path)
        except FileNotFoundError as error:
            raise RunError(f"{path} is missing: is {self.path} a run directory?") from error
        except (OSError, NotYAMLError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error


def runs_in(parent: Path) -> list[Run]:
    """Return all runs of a log directory, in the order of their numbers.

    Raises:
        RunError: there is no such directory, or it cannot be read.
    """
    try:
        return [Run(parent / str(number)) for number in numbers_in(parent)]
    except OSError as error:
        raise RunError(f"no log directory at {parent}: {os.strerror(error.errno or errno.EIO)}") from error
