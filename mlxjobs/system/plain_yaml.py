"""YAML of plain values: nested dictionaries, lists and scalars; nothing in it builds other objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def dump_yaml(content: Any) -> str:
    """Return plain YAML text for nested dictionaries, lists and scalars, keys in their order."""
    import yaml

    return str(
        yaml.dump(
            content,
            Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=False,
        )
    )


def load_yaml(path: Path) -> Any:
    """Read a YAML file of a run; tags that would build objects are refused."""
    import yaml

    with path.open("rb") as stream:
        return yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
