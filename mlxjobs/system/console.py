"""The only module that prints and asks: what the program tells its user, all on one of two streams."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from string import ascii_lowercase

from mlxjobs.errors import MLXJobsError


def say(message: str) -> None:
    """Print what was asked for, on standard output."""
    with named_output():
        try:
            print(message, flush=True)  # noqa: T201
        except UnicodeEncodeError:  # a terminal that has no sign for it
            encoding = sys.stdout.encoding
            print(message.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201


@contextmanager
def named_output() -> Iterator[None]:
    """Name standard output in the error where it cannot be written: a file on a full disk, say."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or "standard output"
        raise


def flush() -> None:
    """Write what was printed, if there is a standard output, and room in it: what follows matters more."""
    with suppress(OSError):
        print(end="", flush=True)  # noqa: T201


def note(message: str) -> None:
    """Print what the user should know beside that, on standard error."""
    with suppress(OSError):  # a job's stderr is a file, and its disk may be full: the run matters more
        print(f"mlxjobs: {message}", file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def errors_told() -> Iterator[None]:
    """End the program with a message and an exit code for an error of ours; the only place that does."""
    try:
        yield
    except MLXJobsError as error:
        flush()
        note(f"error: {error}")
        raise SystemExit(error.exit_code) from error
    except OSError as error:
        if error.filename is None:
            raise
        # what is wrong with a disk is no fault of the program; a task's own errors never come here
        flush()
        note(f"error: {error.filename}: {error.strerror}")
        raise SystemExit(MLXJobsError.exit_code) from error
    except KeyboardInterrupt as error:
        note("interrupted")
        raise SystemExit(130) from error


def shorten(words: Sequence[str], limit: int) -> list[str]:
    """Return the first of some words for a message, and `and 3 more` if there are others."""
    others = len(words) - limit
    return [*words[:limit], f"and {others} more"] if others > 0 else list(words)


def name_some(words: Sequence[str], limit: int) -> str:
    """Return the first of some words for a message: `a, b and 3 more`."""
    others = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {others} more" if others > 0 else "")


def counted(count: int, noun: str) -> str:
    """Return `1 run`, or `2 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def is_terminal() -> bool:
    """Whether somebody is there to answer a question."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def ask_choice(question: str, choices: Sequence[str], names: Sequence[str], other: str = "") -> Iterator[str]:
    """Ask, and yield each answer until the caller is content with one.

    Args:
        question: one line.
        choices: what is offered, a line each; they are numbered from 1.
        names: what may be answered instead of a number, one for each choice.
        other: what else may be answered, in words; "": nothing.

    Yields:
        One of `names`; or, if there is something else to answer, whatever was typed.

    Raises:
        EOFError: the terminal was closed.
        KeyboardInterrupt: Ctrl-C.
    """
    note(question)
    for number, choice in enumerate(choices, 1):
        print(f"  {number}  {choice}".rstrip(), file=sys.stderr)  # noqa: T201
    numbers = [str(number) for number in range(1, len(choices) + 1)]
    prompt = f"1 to {len(choices)}, a name, or {other}: " if other else f"1 to {len(choices)}, or a name: "
    while True:
        answer = read_line(prompt)
        if answer in numbers:
            yield names[numbers.index(answer)]
        elif answer in names or (answer and other and not answer.isdecimal()):
            yield answer


def ask_letter(question: str, choices: Sequence[str]) -> str:
    """Ask until one of the choices' letters is answered, in either case.

    Args:
        question: one line, or more.
        choices: what is offered, a line each; the first one's letter is a.

    Returns:
        The letter.

    Raises:
        EOFError: the terminal was closed.
        KeyboardInterrupt: Ctrl-C.
    """
    note(question)
    letters = ascii_lowercase[: len(choices)]
    for letter, choice in zip(letters, choices, strict=True):
        print(f"  {letter}  {choice}", file=sys.stderr)  # noqa: T201
    while True:
        answer = read_line(f"{', '.join(letters[:-1])} or {letters[-1]}: ").lower()
        if answer and answer in list(letters):
            return answer


def read_line(prompt: str) -> str:
    """Return the line that is typed, without the spaces around it. Raises as `ask_letter`."""
    print(prompt, end="", file=sys.stderr, flush=True)  # noqa: T201
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()
