"""What schedulers printed: `data/<name>/<kind>[-<more>].txt`, whose first line says of what."""

from pathlib import Path

_DATA = Path(__file__).with_name("data")


def recordings(name: str, kind: str = "") -> dict[str, str]:
    """Return the outputs that are recorded for a scheduler, by the names of their files."""
    paths = sorted((_DATA / name).glob(f"{kind}*.txt"))
    return {path.stem: path.read_text().partition("\n")[2] for path in paths}


def folders() -> set[str]:
    """Return the names of the schedulers that have recordings."""
    return {path.name for path in _DATA.iterdir()}
