"""The parsers of `mlxjobs.reader.reader`."""

from mlxjobs.reader.reader import DefaultParser, Parser

__all__ = ["DefaultParser", "Parser"]
