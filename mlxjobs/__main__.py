"""`python -m mlxjobs`: the command, where its script is not on the PATH."""

from mlxjobs.cli.app import main

main()
