"""Chosen files and folders of the live tree that a snapshot shows, by symbolic links to them.

They are part of what is frozen: a snapshot with links is another folder than the one without, as runs share
snapshots.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlxjobs.code.git import relative, show, without_links
from mlxjobs.errors import SnapshotError

_SETTING = "version_manager.link"


def find_links(given: Sequence[str], work_dir: Path, top: Path) -> dict[str, str]:
    """Find what is to be linked.

    Args:
        given: paths, absolute or relative to `work_dir`.
        work_dir: where the command was typed.
        top: the top of the repository, without symbolic links.

    Returns:
        Path below the top -> absolute path, sorted.

    Raises:
        SnapshotError: one does not exist, lies outside the repository, or in another one.
    """
    found: dict[str, str] = {}
    for path in given:
        place = without_links(work_dir / path)
        inside = relative(place, top)
        if inside in (None, ".") or inside.partition("/")[0] == ".git":
            raise SnapshotError(
                f"{_SETTING}: {show(path)} ({show(place)}) does not lie in the repository {show(top)}.\n"
                "Only what lies there has a place in the snapshot; give the program an absolute path instead."
            )
        if not place.exists():
            raise SnapshotError(
                f"{_SETTING}: {show(path)}: there is no {show(place)}.\n"
                f"Paths are relative to where the command is typed, {show(work_dir)}."
            )
        found[inside] = str(place)
    for inside in found:
        outer = next((link for link in found if inside.startswith(f"{link}/")), None)
        if outer is not None:
            raise SnapshotError(f"{_SETTING}: {show(inside)} lies in {show(outer)}: leave it out.")
    return dict(sorted(found.items()))


def suffix(links: Mapping[str, str]) -> str:
    """Return what follows the commit's hash in the name of a snapshot with these links."""
    if not links:
        return ""
    text = "\0".join(f"{inside}\0{target}" for inside, target in links.items())
    return f"-{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"


def make_links(aside: Path, links: Mapping[str, str]) -> None:
    """Make the links in a copy.

    Raises:
        SnapshotError: something of the commit is in the way of one.
    """
    for inside, target in links.items():
        link = aside / inside
        through = link.parent.resolve() != aside.resolve() / Path(inside).parent
        if through or os.path.lexists(link):
            raise SnapshotError(
                f"{_SETTING}: {show(inside)} is in the snapshot already, or leads out of it through a link.\n"
                "Link what git ignores; leave out what is frozen."
            )
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
