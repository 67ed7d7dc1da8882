from __future__ import annotations

import pytest

from mlxjobs.errors import MLXJobsError, SchedulerError
from mlxjobs.system.console import errors_told, name_some, shorten


def test_of_many_words_the_first_are_shown() -> None:
    assert shorten(["a", "b"], 2) == ["a", "b"]
    assert shorten(["a", "b", "c"], 2) == ["a", "b", "and 1 more"]
    assert name_some(["a", "b"], 2) == "a, b"
    assert name_some(["a", "b", "c", "d"], 2) == "a, b and 2 more"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MLXJobsError("set it"), 2, "mlxjobs: error: set it\n"),
        (SchedulerError("no answer"), 3, "mlxjobs: error: no answer\n"),
        (PermissionError(13, "Permission denied", "logs"), 2, "mlxjobs: error: logs: Permission denied\n"),
        (KeyboardInterrupt(), 130, "mlxjobs: interrupted\n"),
    ],
)
def test_an_error_of_ours_is_a_message_and_an_exit_code(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, errors_told():
        raise error
    assert left.value.code == code
    assert capsys.readouterr().err == words


@pytest.mark.parametrize("error", [ValueError("a fault of the program"), OSError("numpy's, of no file")])
def test_a_fault_of_the_program_shows_where_it_is(error: Exception) -> None:
    with pytest.raises(type(error)), errors_told():
        raise error
