"""Where imports come from: the snapshot of a run, or the folder that its user goes on editing.

An editable install (`pip install -e .`) leads every interpreter of its environment to the user's folder: by a
line in a .pth file, or by a finder that has a map of packages. Both come after $PYTHONPATH, so naming the
snapshot there puts them right; a finder that asks to come first cannot be overtaken, and is only found out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_INSTALLED = ("site-packages", "dist-packages")


def tops(facts: Any) -> tuple[str, str] | None:
    """Return the tops of repository and snapshot, without links; None if the facts do not name them."""
    if isinstance(facts, Mapping):
        repo, snapshot = facts.get("repo_path"), facts.get("snapshot")
        if isinstance(repo, str) and isinstance(snapshot, str):
            return os.path.realpath(repo), os.path.realpath(snapshot)
    return None


def python_path(facts: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Return the folders of a snapshot that have to come before those of the live repository.

    Args:
        facts: what `info.yaml` says under `version_manager`.
        folder: the folder of the program, whose counterpart Python puts first by itself.

    Returns:
        For each folder of the repository that this interpreter imports from, its counterpart.
    """
    found_tops = tops(facts)
    if found_tops is None:
        return ()
    repo, snapshot = found_tops
    first = None if getattr(sys.flags, "safe_path", False) else os.path.realpath(folder)
    found: dict[str, None] = {}
    for entry in (*sys.path, *_roots_of_finders()):
        if not isinstance(entry, str):  # python passes over it, too
            continue
        place = os.path.realpath(entry)
        if place == first or not _is_live(place, repo, snapshot):
            continue
        copy = os.path.normpath(os.path.join(snapshot, os.path.relpath(place, repo)))  # noqa: PTH118
        if os.path.exists(copy):  # noqa: PTH110 - what is not committed is missing, and found out later
            found[copy] = None
    return tuple(found)


def with_python_path(folders: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Python looks into these folders first."""
    whole = [*folders, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(whole)} if whole else dict(environment)


def live_files(facts: Any) -> list[str]:
    """Return the files of the modules that were imported from a repository and not from its snapshot.

    Args:
        facts: what `info.yaml` says under `version_manager`; without a snapshot there is nothing to find.
    """
    found_tops = tops(facts)
    if found_tops is None:
        return []
    repo, snapshot = found_tops
    spared = tuple(f"{repo}/{inside}/" for inside in facts.get("link") or ())  # shown there on purpose
    live: dict[str, str] = {}  # folder -> what it is without links, or "" if all is well there
    found = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__")  # not asked for: some would import then
        if not (isinstance(file, str) and isinstance(name, str)):
            continue
        if "/site-packages/" in file or "/dist-packages/" in file:
            if "." in name:
                continue  # it is where its package is
            file = os.path.realpath(file)  # installed as a link, perhaps
        folder, _, base = file.rpartition("/")
        if folder not in live:
            place = os.path.realpath(folder)
            is_live = _is_live(place, repo, snapshot) and not f"{place}/".startswith(spared)
            live[folder] = place if is_live else ""
        if live[folder]:
            found.add(f"{live[folder]}/{base}")
    return sorted(found)


def _is_live(place: str, repo: str, snapshot: str) -> bool:
    """Whether a folder is of a repository, or of another snapshot of it, but not of its environments."""
    for top in (os.path.dirname(snapshot), repo):  # noqa: PTH120 - thousands of them in milliseconds
        if _is_in(place, top):
            break
    else:
        return False
    if _is_in(place, snapshot):
        return False
    if any(one in place[len(top) :].split("/") for one in _INSTALLED):
        return False
    return not any(_is_in(prefix, top) and _is_in(place, prefix) for prefix in {sys.prefix, sys.base_prefix})


def _is_in(place: str, top: str) -> bool:
    return place == top or place.startswith(f"{top}/")


def _roots_of_finders() -> Iterator[str]:
    """Return the folders that would be on the path, did the finders of editable installs not exist."""
    for finder in sys.meta_path:
        kind = finder if isinstance(finder, type) else type(finder)
        module: Any = sys.modules.get(kind.__module__)
        # setuptools: package -> folder; `editables` (hatchling, pdm): package -> file
        for packages in (getattr(module, "MAPPING", None), getattr(finder, "_redirections", None)):
            if isinstance(packages, Mapping):
                yield from filter(None, (_root(str(name), str(at)) for name, at in packages.items()))


def _root(package: str, place: str) -> str | None:
    """Return the folder below which a package has its name; None if it is called otherwise there."""
    path = Path(place)
    path = path.parent if path.name == "__init__.py" else path
    path = path.with_suffix("") if path.suffix == ".py" else path
    parts = package.split(".")
    return str(path.parents[len(parts) - 1]) if list(path.parts[-len(parts) :]) == parts else None
