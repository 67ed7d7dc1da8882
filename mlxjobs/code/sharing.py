"""What a snapshot has in common with the one before it is the same file on the disk: a hard link.

Git decides what is in common, not we. The new folder gets links to all files of the snapshot before that have
their names in the new commit, and a copy of the index that git had written for it. `git read-tree --reset -u`
then looks at every file: one that is missing, changed, or not what the index knows is unlinked and written
anew, so never through a link. Safe as files of snapshots are read-only, and as a run that changes one all
the same changes its time or size.

How the files were written must be the same too: `Recipe` has a digest of the attributes and settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mlxjobs.code import git as repository
from mlxjobs.code.flushing import is_doubtful
from mlxjobs.code.submodules import Part
from mlxjobs.system.trust import stranger

# ctime changes with each link. Times, sizes, inodes and executable bits of files must be what git wrote.
LOOK = ("core.trustctime=false", "core.checkStat=default", "core.fileMode=true", "core.ignoreStat=false")
_THREADS = 4  # to make a link or a folder is a wait for the file system
_SETTINGS = r"^(core\.(autocrlf|eol|symlinks|safecrlf|filemode|attributesfile)|filter\..*)$"


@dataclass(frozen=True)
class Made:
    """How a snapshot was made, kept beside it as `.<hash>.made`.

    Attributes:
        recipes: folder of each part -> the digest of what decided how its files are written, in the order of
            the index files.
        empty: the submodules that are empty folders, as the user wants them.
    """

    recipes: dict[str, str]
    empty: list[str]


@dataclass(frozen=True)
class Recipe:
    """All but the contents that decides how git writes the files of a commit.

    Attributes:
        digest: the same for the same.
        is_plain: no attributes are given at all, so no filter of the user's runs.
    """

    digest: str
    is_plain: bool


def beside(root: Path, what: str) -> Path:
    """Return the name of a file about a snapshot, which lies beside it."""
    return root.with_name(f".{root.name}.{what}")


def encode_made(made: Made) -> bytes:
    """Return the content of `.<hash>.made`; any file name survives."""
    return json.dumps(asdict(made)).encode()


def read_made(root: Path) -> Made | None:
    """Return how a snapshot was made; None: it is not known, as of one that was copied here."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        known = json.loads(beside(root, "made").read_bytes())
        return Made(dict(known["recipes"]), list(known["empty"]))
    return None


def find_recipe(part: Part, settings: tuple[str, ...]) -> Recipe:
    """Find out how git will write the files of a commit.

    Args:
        part: the commit.
        settings: of git, which are given on the command line.
    """
    top, tree = part.commit.top, repository.read_tree(part.commit)
    attributes = sorted(item for item in tree.items() if item[0].rpartition("/")[2] == ".gitattributes")
    said = repository.run(top, "config", "-z", "--get-regexp", _SETTINGS).stdout
    info = top / ".git" / "info" / "attributes"
    if not info.parent.is_dir():  # a linked work tree, or a submodule
        info = top / repository.ask(top, "rev-parse", "--git-path", "info/attributes")[:-1]
    config = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))  # noqa: PTH111
    files = [info, config / "git" / "attributes", Path("/etc/gitattributes")]
    for entry in os.fsdecode(said).split("\0"):
        if entry.startswith("core.attributesfile\n"):
            files.append(Path(entry.partition("\n")[2]).expanduser())
    digest = hashlib.sha256(repr((attributes, said, settings)).encode(errors="surrogateescape"))
    given = [path.read_bytes() if path.is_file() else b"" for path in files]
    for content in given:
        digest.update(b"\0" + content)
    return Recipe(digest.hexdigest(), not attributes and not any(given))


def newest_other(root: Path) -> Path | None:
    """Return the snapshot that was made last beside this one; None if there is none that is ours."""
    found = []
    for note in root.parent.glob(".*.made"):
        with suppress(OSError, ValueError):  # it is pruned at this moment, or no name of ours
            other = root.with_name(note.name[1 : -len(".made")])
            if other != root and other.is_dir() and not is_doubtful(other):
                found.append((note.stat().st_mtime_ns, other))
    for _, other in sorted(found, reverse=True):
        return None if stranger(other, beside(other, "made")) else other
    return None


def make_folders(part: Part, folder: Path) -> None:
    """Make all folders of a commit: with the usual rights, which git may be told not to give to files."""
    levels: dict[int, list[str]] = {}
    for path, what in repository.read_tree(part.commit).items():
        if what.startswith(("040000 ", "160000 ")):
            levels.setdefault(path.count("/"), []).append(path)
    for _, paths in sorted(levels.items()):  # folders before what is in them
        _for_each(lambda path: os.mkdir(f"{folder}/{path}"), paths)  # noqa: PTH102 - as below


def share(part: Part, how: Recipe, source: Path | None, folder: Path, index: Path) -> None:
    """Fill new folders with links to what an older snapshot has, if it was written in the same way.

    Args:
        part: what the folder will be.
        how: its recipe.
        source: the older snapshot.
        folder: it has only the folders of the commit yet, all empty, and it belongs to nobody else yet.
        index: where the copy of the older snapshot's index goes.
    """
    made = read_made(source) if source else None
    if source is None or made is None or made.recipes.get(part.path) != how.digest:
        return
    old_index = beside(source, f"{list(made.recipes).index(part.path)}.index")
    if stranger(old_index) or not old_index.is_file():
        return
    tree = repository.read_tree(part.commit)
    names = sorted(path for path, what in tree.items() if " blob " in what)
    with suppress(FileNotFoundError):  # it was pruned meanwhile: without an index git writes everything
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(_written_since, beside(source, "made"), source / part.path)
            _link(names, source / part.path, folder)
        for name in written.result().intersection(names):
            (folder / name).unlink(missing_ok=True)
        # A copy, whose time is now: else git looks into all files that are of the second of its index.
        shutil.copyfile(old_index, index)


def _written_since(made: Path, folder: Path) -> set[str]:
    """List the files that were written after another one: git itself compares no more than the seconds."""
    with suppress(OSError):  # there is no `find`
        argv = ["find", ".", "-type", "f", "-newer", str(made), "-print0"]
        said = subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
        return {path.removeprefix("./") for path in os.fsdecode(said.stdout).split("\0")}
    return set()


def _link(names: list[str], source: Path, folder: Path) -> None:
    olds, news = os.open(source, os.O_RDONLY), os.open(folder, os.O_RDONLY)

    def link(name: str) -> None:
        # What is not there, or has too many links, or may not have another, is written by git.
        with suppress(OSError):
            os.link(name, name, src_dir_fd=olds, dst_dir_fd=news, follow_symlinks=False)

    try:
        _for_each(link, names)
    finally:
        os.close(olds)
        os.close(news)


def _for_each(work: Callable[[str], None], paths: list[str]) -> None:
    """Do the same with many paths, in a few threads."""

    def work_all(some: list[str]) -> None:
        for path in some:
            work(path)

    size = max(1, -(-len(paths) // _THREADS))
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(work_all, (paths[start : start + size] for start in range(0, len(paths), size))))
