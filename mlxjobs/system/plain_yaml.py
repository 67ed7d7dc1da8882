"""The one door to YAML: nested dictionaries, lists and scalars; nothing in a file builds other objects.

PyYAML's parser in C is ten times faster than the one in Python, and is not in every build of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from mlxjobs.system.atomic import read_again


class NotYAMLError(ValueError):
    """What was read is not YAML, or its tags do not fit its values."""


def dump_yaml(content: Any, dumper: Any = None) -> str:
    """Return nested dictionaries, lists and scalars as YAML, keys in their order.

    Args:
        content: what to write.
        dumper: one of `new_dumper`, for values of other types.
    """
    import yaml

    return str(
        yaml.dump(
            content,
            Dumper=dumper or _fastest("SafeDumper"),
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=False,
        )
    )


def load_yaml(source: str | bytes | IO[Any], loader: Any = None) -> Any:
    """Return what a YAML document holds; None if it is empty.

    Args:
        source: the document, or a file, whose name the errors tell.
        loader: one of `new_loader`, for other tags.

    Raises:
        NotYAMLError: it is not YAML.
        OSError: the file cannot be read.
    """
    import yaml

    try:
        return yaml.load(source, Loader=loader or _fastest("SafeLoader"))  # noqa: S506 - a safe loader
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # `2024-02-31`, bytes that are not UTF-8
        raise NotYAMLError(str(error)) from error
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:  # `!!bool maybe`, `!!int ''`
        raise NotYAMLError(f"a value does not fit its tag: {error!r}") from error


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds. Raises as `load_yaml`."""

    def read() -> Any:
        with path.open("rb") as stream:
            return load_yaml(stream)

    return read_again(read)


def parse_yaml(text: str) -> Any:
    """Return the root of PyYAML's nodes, which know their places in the text; None if it is empty.

    Raises:
        NotYAMLError: it is not YAML.
    """
    import yaml

    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)  # in C, places are counted in another way
    except (yaml.YAMLError, RecursionError) as error:
        raise NotYAMLError(str(error)) from error


def new_loader() -> Any:
    """Return a safe loader of the caller's own, which may add constructors for other tags."""
    return type("Loader", (_fastest("SafeLoader"),), {})


def new_dumper() -> Any:
    """Return a safe dumper of the caller's own, which may add representers for other types."""
    return type("Dumper", (_fastest("SafeDumper"),), {})


def _fastest(name: str) -> Any:
    import yaml

    return getattr(yaml, f"C{name}", None) or getattr(yaml, name)
