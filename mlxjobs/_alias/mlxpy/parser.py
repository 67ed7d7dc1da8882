"""The parsers of `mlxjobs.reader`."""

from mlxjobs.reader import DefaultParser, Parser

__all__ = ["DefaultParser", "Parser"]
