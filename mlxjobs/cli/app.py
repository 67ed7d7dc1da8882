"""The command `mlxjobs`: a line for each command, whose function is in the file of its group."""

from __future__ import annotations

import sys
import warnings
from io import TextIOWrapper
from typing import Annotated

import typer

from mlxjobs import __version__
from mlxjobs.cli import act, care, code, look, snapshots
from mlxjobs.system.console import errors_told, note, say

app = typer.Typer(
    help="""Look at runs, end them, and make them come back.

    A run is a folder of the log directory: logs/5. Its number is all that these commands need:

        mlxjobs ls              all runs of ./logs, their states checked with the scheduler

        mlxjobs ls QUERY        those that match, as in 'config.lr > 0.01 & train.loss.last < 1'

        mlxjobs cancel 5 7-9    end runs for good

        mlxjobs preempt 5       checkpoint, leave, and come back

        mlxjobs requeue 5       stop the job now and start it again

        mlxjobs drill -- python main.py    does the program resume as it should?

        mlxjobs fsck            what is damaged, torn, stale or left over; --fix mends it

        mlxjobs diff 5 8        what differs: code, configuration, environment

        mlxjobs checkout 5 DIR  the code of a run, as a plain folder

        mlxjobs snapshots       the frozen code: size, age, who uses it; prune removes what nobody needs

        mlxjobs env 5           what was installed where it was launched, as a requirements file
    """,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(look.ls)
app.command()(look.export)
app.command()(act.cancel)
app.command()(act.preempt)
app.command()(act.requeue)
app.command(context_settings={"allow_interspersed_args": False})(care.drill)
app.command()(care.fsck)
app.command()(code.diff)
app.command()(code.checkout)
app.command()(code.env)
app.add_typer(snapshots.group, name="snapshots")


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    if version:
        say(f"mlxjobs {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; errors of ours become one line and an exit code."""
    warnings.showwarning = lambda message, *_: note(f"warning: {message}")
    if isinstance(sys.stdout, TextIOWrapper):  # what the terminal has no sign for is shown all the same
        sys.stdout.reconfigure(errors="backslashreplace")
    with errors_told():
        app()
