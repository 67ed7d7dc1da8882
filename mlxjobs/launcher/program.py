"""The user's program: how it was started, and the same program inside a frozen copy of its code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxjobs.code.provenance import python_path
from mlxjobs.config import command_line
from mlxjobs.config.settings import Settings, as_folder, as_lines
from mlxjobs.errors import RunError
from mlxjobs.system.console import is_terminal, note

if TYPE_CHECKING:
    from mlxjobs.config.rehearsal import Mistake


@dataclass(frozen=True)
class Program:
    """How the user's program was started, so that a job can start it the same way.

    Attributes:
        interpreter: python and its options: `["/usr/bin/python3", "-u"]`, `[..., "-m"]`.
        target: the absolute path of the script, or of the folder of a `__main__.py`; or the module's name
            after `-m`.
        work_dir: where it runs.
        python_path: folders that python has to look into first.
    """

    interpreter: Sequence[str]
    target: str
    work_dir: Path
    python_path: Sequence[str] = ()

    @property
    def script(self) -> Path | None:
        """The program's file; None when it was started as a module."""
        return None if self.interpreter[-1] == "-m" else Path(self.target)

    @property
    def folder(self) -> Path:
        """The folder of the modules that it imports: that of its file, itself, or with `-m` where it runs."""
        if self.script is None:
            return self.work_dir
        return self.script if self.script.is_dir() else self.script.parent


def this_program() -> Program:
    """Return how this process was started.

    Raises:
        RunError: it was not started from a file or a module, so that no job could start it again.
    """
    main = sys.modules["__main__"]
    interpreter = [sys.executable, *_interpreter_options(sys.orig_argv[1:])]
    spec = getattr(main, "__spec__", None)
    is_folder = spec is not None and spec.name == "__main__"  # `python FOLDER`, or an archive
    if spec is not None and not is_folder:
        return Program([*interpreter, "-m"], spec.name.removesuffix(".__main__"), Path.cwd())
    file = getattr(main, "__file__", None)
    if file is not None and is_folder:
        file = Path(file).parent
    if file is None or not Path(file).exists():
        raise RunError("only a program in a file can be started again: save it as main.py and start that")
    return Program(interpreter, str(Path(file).absolute()), Path.cwd())


def _interpreter_options(arguments: Sequence[str]) -> list[str]:
    """Return Python's own options, which stand before the script or `-m` (python(1))."""
    options: list[str] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        option = rest.pop(0)
        if option.startswith("--"):
            takes_value = option == "--check-hash-based-pycs"
        else:
            flags = re.fullmatch(r"-([^mcWX]*)(?:([mcWX])(.*))?", option, re.DOTALL)
            letters, last, value = flags.groups() if flags else ("", None, "")
            if last in ("m", "c"):
                return [*options, f"-{letters}"] if letters else options
            takes_value = last is not None and not value
        options += [option, rest.pop(0)] if takes_value and rest else [option]
    return options


def freeze_code(
    settings: Settings, program: Program, find_mistake: Callable[[], Mistake | None] = lambda: None
) -> tuple[Program, dict[str, Any]]:
    """Freeze the code that a program runs; who is at a terminal is asked before, and may want no copy.

    Args:
        settings: those in force.
        program: what is to run.
        find_mistake: tells what is wrong with the command line; called only if there is something to ask.

    Returns:
        The same program inside the snapshot, and what `info.yaml` says about it.

    Raises:
        SnapshotError: the code cannot be frozen.
        MLXJobsError: the mistake.
    """
    from mlxjobs.code.own_manager import load_version_manager
    from mlxjobs.version_manager import Launch

    manager = load_version_manager(settings.version_manager.name)
    launch = Launch(
        work_dir=program.work_dir,
        program=program.script,
        parent_work_dir=as_folder(settings.version_manager.parent_work_dir),
        compute_requirements=settings.version_manager.compute_requirements,
        ignore=(settings.log_dir,),
        include=settings.version_manager.include,
        max_untracked_mb=settings.version_manager.max_untracked_mb,
        link=tuple(map(os.path.expanduser, as_lines(settings.version_manager.link))),
        log_dir=settings.log_dir,
    )
    asking = settings.interactive_mode and is_terminal()
    copy = manager.freeze_asking(launch, find_mistake) if asking else manager.freeze(launch)
    for warning in copy.warnings:
        note(warning)
    target = program.target if copy.program is None else str(copy.program)
    facts = dict(copy.facts)
    command_line.check_utf8([fact for fact in facts.values() if isinstance(fact, str)])  # as behind a link
    # a version manager of the user's own may have left it to us
    if settings.version_manager.compute_requirements and not facts.get("requirements"):
        from mlxjobs.code.environment import record_environment

        facts |= record_environment()
    first = python_path(facts, program.folder)
    return Program(program.interpreter, target, copy.work_dir, first), facts
