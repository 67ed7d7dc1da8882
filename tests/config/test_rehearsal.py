"""Whether a command line can run is asked of Hydra, one run at a time, and never of a sweeper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.config.rehearsal import Mistake, find_mistake
from mlxjobs.config.stored import Composed
from mlxjobs.errors import InvalidConfigFileError, RunError


def composed(arguments: Sequence[str]) -> list[Sequence[str]]:
    """Return the command lines that are composed for one, where `model` is a group."""
    seen = []

    def compose(given: Sequence[str], run: Callable[[Composed], Any]) -> None:
        seen.append(given)
        run(Composed({}, {"runtime": {"choices": {"model": "a"}}}, []))

    assert find_mistake(compose, arguments, lambda one, several: None) is None
    return seen


@pytest.mark.parametrize(
    ("typed", "lines"),
    [
        ("lr=1 name='a,b'", ["lr=1 name='a,b' hydra.mode=RUN"]),
        ("-m -cn other lr=1,2 +seed=range(3,9)", ["-cn other lr=1 +seed=3 hydra.mode=RUN"]),
        ("--multi n=interval(1,5) x=interval(0.5,1)", ["n=1 x=0.5 hydra.mode=RUN"]),
        ("lr=1,2 model=a,b", ["lr=1 model=a hydra.mode=RUN", "lr=1 model=b hydra.mode=RUN"]),
        ("+model=shuffle(a,b)", ["+model=a hydra.mode=RUN", "+model=b hydra.mode=RUN"]),
        ("model=glob(*) lr=1", []),  # what it gives, the loader knows
    ],
)
def test_one_run_stands_for_a_sweep_and_one_for_each_choice(typed: str, lines: list[str]) -> None:
    assert composed(typed.split(" ")) == [line.split(" ") for line in lines]


def test_only_what_is_wrong_with_the_command_line_is_a_mistake() -> None:
    def failing(error: Exception) -> Any:
        def compose(given: Sequence[str], run: Callable[[Composed], Any]) -> None:
            raise error from OSError("no space left")

        return compose

    for error in (RunError("disk"), InvalidConfigFileError("plug-in")):
        assert find_mistake(failing(error), ["a=1"], lambda one, several: None) is None


def test_what_a_mistake_hangs_on(tmp_path: Path) -> None:
    files = ["a.yaml", "main.py", "mlxpy.yaml", "notes.txt", "."]
    for registers, hanging in ((False, ["a.yaml", "."]), (True, ["a.yaml", "main.py", "."])):
        mistake = Mistake(RunError(""), registers)
        assert [name for name in files if mistake.hangs_on(tmp_path / name)] == hanging
