"""The working tree as it is, uncommitted edits and all, becomes a commit that only we refer to.

git collects the files, into a private copy of the user's index: that one knows which files are unchanged,
so only the others are read, and it is right in linked worktrees, sparse checkouts and amid a conflict.
The commit's parent is HEAD, and its author, date and text follow from HEAD, so the same tree gives the
same hash wherever it is launched. Whoever takes it keeps it from `git gc` (`users`). Chosen over
`git stash create`, which takes no untracked files, drops what is hidden by bits of the index, and has the
user's name and the time in its hash.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import translate
from pathlib import Path

from mlxjobs.code import git
from mlxjobs.code.git import Commit, Taken, show
from mlxjobs.errors import SnapshotError
from mlxjobs.system.console import shorten

# The private index is whole and by itself, and no setting of the user's makes git skip or refuse a file.
_SETTINGS = ("core.splitIndex=false", "core.sparseCheckout=false", "core.untrackedCache=false",
             "core.ignoreStat=false", "core.safecrlf=false", "add.ignoreErrors=false",
             "advice.addEmbeddedRepo=false", "i18n.commitEncoding=UTF-8")  # fmt: skip
_TAKE_S = 3600  # large files through a filter, on a slow network file system
_WHO = "mlxjobs"
# git says so, takes the file for unchanged or the folder for empty, and exits with 0; what it ignores has a
# name that might be another one of .git, as `git~1` and `.git ` are on some file systems
_FAILED = (rb"^(?!warning: ).*: (Permission denied|Input/output error|Stale file handle|Too many levels .*)$"
           rb"|^Ignoring path ")  # fmt: skip
_GAP = re.compile(_FAILED, re.MULTILINE)
_GAP_IN_FOLDER = re.compile(_FAILED + rb"|^warning: could not open directory ", re.MULTILINE)
# a line of `ls-files` that is not a plain file: each but "H 100644 <hash> 0<tab><path>" and the like
_ODD = re.compile(r"(?<![^\0])(?!H 1[02])(.) (\d+) [0-9a-f]+ \d\t([^\0]+)")
_UNWRITABLE = ("repository database", "unable to write", "unable to create temporary")


@dataclass
class _Tree:
    """A repository whose files are being collected, with those inside of it (submodules) by their path."""

    head: Commit
    index: Path
    head_tree: str
    dirty: bool = False
    untracked: list[str] = field(default_factory=list)
    inner: dict[str, _Tree] = field(default_factory=dict)

    def leave_untracked(self) -> list[str]:
        """Take no untracked files, and return them; but for attributes by which git read the tracked."""
        listed, self.untracked = self.untracked, []
        left: list[str] = []
        for path in listed:
            (self.untracked if path.rpartition("/")[2] == ".gitattributes" else left).append(path)
        return left

    def walk(self, prefix: str = "") -> Iterator[tuple[str, _Tree]]:
        yield prefix, self
        for path, tree in self.inner.items():
            yield from tree.walk(f"{prefix}{path}/")


def take(head: Commit, include: str, max_untracked_mb: int, ignore: Sequence[Path]) -> Taken:
    """Make the working tree a commit, without touching the user's branch, index, stash or files.

    Args:
        head: the user's latest commit.
        include: "tracked", or "all" for untracked files too that git does not ignore.
        max_untracked_mb: how much of untracked files is taken at most, in all.
        ignore: folders whose untracked files are not taken.

    Raises:
        SnapshotError: a file or a submodule cannot be taken, the untracked ones are too large or look like
            credentials, or the repository cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="mlxjobs-") as folder:
            whole = _stage(head, Path(folder), include == "all", ignore)
            trees = list(whole.walk())
            if include == "tracked":
                left_out = [prefix + path for prefix, tree in trees for path in tree.leave_untracked()]
            else:
                left_out = []
                added = [prefix + path for prefix, tree in trees for path in tree.untracked]
                _check_untracked(head.top, added, max_untracked_mb)
            own: list[Commit] = []
            made = _commit(whole, own)
            return Taken(made, any(tree.dirty for _, tree in trees), left_out, tuple(reversed(own)))
    except OSError as error:
        hint = "Make it readable, or ignore it if it is untracked; if it was removed meanwhile, try again."
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = f"Make room in {tempfile.gettempdir()}, or set TMPDIR to another folder."
        raise SnapshotError(
            f"The files of {show(head.top)} cannot be taken as they are: {error}\n{hint}"
        ) from error


def _stage(head: Commit, folder: Path, whole: bool, ignore: Sequence[Path]) -> _Tree:
    """Put the tracked files as they are into a private index, and list the untracked ones."""
    asked = git.ask(head.top, "rev-parse", "HEAD^{tree}", "--git-path", "index")
    head_tree, place = asked.split("\n", 1)
    tree = _Tree(head, Path(tempfile.mkdtemp(dir=folder), "index"), head_tree)
    _copy_index(head.top / place[:-1], tree.index)
    links, unseen = _list_links(tree, ignore)
    found = _compare(tree, whole, ignore)
    edited = [path for path, tracked in found + (_compare(tree, False, ()) if unseen else []) if tracked]
    if edited:
        tree.dirty = True
        _git(tree, "add", "--update", "--", *git.all_but(head.top))
        if any((head.top / path).is_dir() for path in edited):  # what is in there has become untracked
            links, found = _list_links(tree, ignore)[0], _compare(tree, whole, ignore)
    others = [path for path, tracked in found if not tracked]
    if whole:
        links += [path.rstrip("/") for path in others if path.endswith("/")]
        others = [path for path in others if not path.endswith("/")]
    tree.untracked = others
    for path in links:
        if _is_repository(head.top / path):
            tree.inner[path] = _stage(_find_inner(head.top / path), folder, whole, ignore)
    return tree


def _compare(tree: _Tree, whole: bool, ignore: Sequence[Path]) -> list[tuple[str, bool]]:
    def asking(_: Path, *arguments: str) -> str:
        return _git(tree, *arguments, gap=_GAP_IN_FOLDER if whole else _GAP)

    return git.list_left_out(tree.head.top, *ignore, each=whole, inner=False, asking=asking)


def _copy_index(source: Path, target: Path) -> None:
    """Copy an index with its time: by that git knows which files may have changed since unnoticed."""
    with suppress(FileNotFoundError), source.open("rb") as stream:
        target.write_bytes(stream.read())
        times = os.fstat(stream.fileno())
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def _list_links(tree: _Tree, ignore: Sequence[Path]) -> tuple[list[str], bool]:
    """List the submodules of the index, and clear the bits by which git overlooks edits.

    Where a file is not on the disk, skip-worktree stays: in a sparse checkout it is that of the commit.

    Returns:
        The submodules' paths; and whether files in ignored folders are tracked.
    """
    top = tree.head.top
    lines = _git(tree, "ls-files", "-v", "--stage", "-z")
    odd = [entry.groups() for entry in _ODD.finditer(lines)]
    hidden = [path for tag, _, path in odd if tag == "h" or (tag in "sS" and _exists(top / path))]
    for bit in ("assume-unchanged", "skip-worktree") if hidden else ():
        _git(tree, "update-index", f"--no-{bit}", "-z", "--stdin", stdin="\0".join(hidden))
    unseen = any(f"\t{git.relative(path.resolve(), top)}/" in lines for path in ignore)
    return sorted({path for _, mode, path in odd if mode == "160000"}), unseen  # once, though amid a conflict


def _exists(path: Path) -> bool:
    """Whether it is there; raises OSError where that cannot be known, for which `os.path.lexists` says no."""
    try:
        path.lstat()
        return True
    except (FileNotFoundError, NotADirectoryError):
        return False


def _is_repository(top: Path) -> bool:
    """Whether a submodule is checked out. Raises SnapshotError if it is not, and yet has files."""
    if _exists(top / ".git"):
        return True
    if top.is_dir() and any(path.name != "__pycache__" for path in top.iterdir()):
        raise SnapshotError(
            f"{show(top)} is a submodule without its .git, so git sees none of the files in there.\n"
            "Move them away and run `git submodule update --init`; or, if they belong to the repository\n"
            "around it, `git rm --cached` and `git add` the folder."
        )
    return False


def _find_inner(top: Path) -> Commit:
    """Find the latest commit of a repository inside of another."""
    inner = git.find_commit(top)
    if inner.top != top.resolve():
        raise SnapshotError(
            f"The repository in {show(top)} cannot be used: its .git leads to that of {show(inner.top)}.\n"
            "Run `git submodule update --init` for it, or move it away."
        )
    return inner


def _commit(tree: _Tree, own: list[Commit]) -> str:
    """Return the commit that holds the tree: HEAD if nothing differs, else one of ours, added to `own`."""
    links = "".join(f"160000 {_commit(inner, own)}\t{path}\0" for path, inner in tree.inner.items())
    if links:
        _git(tree, "update-index", "-z", "--index-info", stdin=links)
    if tree.untracked:
        paths = "\0".join(tree.untracked)
        _git(tree, "update-index", "--add", "--replace", "-z", "--stdin", stdin=paths)
    head = tree.head.hash
    if not (tree.dirty or links or tree.untracked):
        return head
    written = _git(tree, "write-tree")[:-1]
    if written == tree.head_tree:
        return head
    date = _git(tree, "rev-list", "-1", "--format=%ct", head).split("\n")[1]
    env = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in
           (("NAME", _WHO), ("EMAIL", f"{_WHO}@localhost"), ("DATE", f"@{date} +0000"))}  # fmt: skip
    message = f"The working tree of {head}"
    made = _git(tree, "commit-tree", "--no-gpg-sign", "-p", head, "-m", message, written, env=env)[:-1]
    own.append(replace(tree.head, hash=made))
    return made


def _git(
    tree: _Tree,
    *arguments: str,
    stdin: str = "",
    gap: re.Pattern[bytes] = _GAP,
    env: dict[str, str] | None = None,
) -> str:
    """Run git on the private index. Raises SnapshotError if it fails, or says what makes a gap."""
    command = (*(word for setting in _SETTINGS for word in ("-c", setting)), *arguments)
    own = {"GIT_INDEX_FILE": str(tree.index), **(env or {})}
    result = git.run(tree.head.top, *command, wait_s=_TAKE_S, stdin=os.fsencode(stdin), umask=-1, **own)
    if result.returncode or gap.search(result.stderr):
        raise _explain(tree, git.quote(result))
    return os.fsdecode(result.stdout)


def _explain(tree: _Tree, said: str) -> SnapshotError:
    top = show(tree.head.top)
    what = f"The files of {top} cannot be taken as they are"
    hint = "Mend or remove what git names (or ignore it if it is untracked)"
    if any(words in said for words in _UNWRITABLE):
        what = f"The repository of {top} cannot be written, so it cannot keep the files as they are"
        hint = "Get the right, and the space, to write there, or launch from a clone of your own"
    elif f"{tree.index}: " in said:
        hint = "The index, of which that is a copy, may be damaged: run `git status` there"
    return SnapshotError(f"{what}.\n{hint}, or set version_manager.include=commit.\n{said}")


# -- untracked files -----------------------------------------------------------------------------
#
# They are not taken if they are many gigabytes, or credentials: a snapshot's objects stay in the
# repository, from where they may be pushed or copied. The patterns are tight: of a name alone only what
# hardly is anything else, of a content only what has a token's form. What `git add` was run on is
# tracked, and not looked at.

_NAMED = 10  # files that a message names
_SCANNED = 1 << 20  # bytes of each file
_BINARY = 8192  # a NUL in so many bytes: not text, as for git
_MB = 10**6
# A folder is a part of the pattern where the name alone says too little.
_NAMES = (".env", ".env.*", ".netrc", "_netrc", ".pgpass", ".git-credentials", ".htpasswd",
          "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.p12", "*.pfx", "*.keystore", "*.jks", "*.kdbx",
          "kubeconfig", ".kube/config", "credentials", "credentials.json", "credentials.yaml",
          "credentials.yml", "credentials.toml", "credentials.ini", "credentials.csv",
          "client_secret*.json", ".docker/config.json", "huggingface/token", ".huggingface/token",
          "kaggle.json")  # fmt: skip
_NAME = re.compile("|".join(f"(?:.*/)?{translate(pattern)}" for pattern in _NAMES))
_TEMPLATES = (".example", ".sample", ".template", ".dist", ".defaults")
_EDGE = rb"(?<![\w-])"  # not in the middle of a word
_EDGE_64 = rb"(?<![\w/+-])"  # nor of base64, in which what has no `_` or `-` happens by chance
# what each begins with, which is looked for first: a search for plain bytes is a hundred times as fast
_CONTENTS = [
    ("a private key", (b"-----BEGIN ",),
     rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----(?:\\n|\s|[\w-]+: [^\n]*\n)+"
     rb"[A-Za-z0-9+/=\s\\]{40}"),
    ("an AWS access key", (b"AKIA", b"ASIA"), _EDGE_64 + rb"(?:AKIA|ASIA)[0-9A-Z]{16}(?![\w/+])"),
    ("a GitHub token", (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"), _EDGE + rb"gh[pousr]_[A-Za-z0-9]{36,}"),
    ("a GitHub token", (b"github_pat_",), _EDGE + rb"github_pat_\w{50,}"),
    ("a GitLab token", (b"glpat-",), _EDGE + rb"glpat-[\w-]{20,}"),
    ("a Hugging Face token", (b"hf_",), _EDGE + rb"hf_[A-Za-z0-9]{30,}(?!\w)"),
    ("a Weights & Biases key", (b"WANDB_API_KEY",),
     rb"WANDB_API_KEY[\"']?\s*[:=]\s*[\"']?(?:[0-9a-f]{40}|\w{60,})(?!\w)"),
    ("an API key (sk-...)", (b"sk-",),
     _EDGE + rb"sk-(?:[A-Za-z0-9]{32,}|(?:proj|ant|svcacct|or)-[\w-]{40,})"),
    ("a Slack token", (b"xox",), _EDGE + rb"xox[abeoprs]-[0-9A-Za-z-]{20,}"),
    ("a Google API key", (b"AIza",), _EDGE_64 + rb"AIza[\w-]{35}(?![\w-])"),
]  # fmt: skip
_VARIED = 9  # different characters: `sk-xxxx...` and `ghp_1234...` of a manual have fewer, or say EXAMPLE


def _check_untracked(top: Path, paths: Sequence[str], max_mb: int) -> None:
    """Raise if untracked files are too large in all, or one looks like a credential.

    Args:
        top: the folder that the paths are below.
        paths: regular files and symbolic links.
        max_mb: how large they may be, in all; megabytes.

    Raises:
        SnapshotError: naming the files, and never what is in them.
    """
    found = [(path, os.lstat(top / path)) for path in paths]
    _check_size(top, {path: about.st_size for path, about in found}, max_mb)
    reasons = {path: _suspect(top, path, stat.S_ISREG(about.st_mode)) for path, about in found}
    suspects = [f"{show(path)}: {reason}" for path, reason in reasons.items() if reason]
    if suspects:
        raise SnapshotError(
            f"Untracked files of {show(top)} that look like credentials are not taken into a snapshot:\n"
            + _listed(suspects)
            + "\nPut them into .gitignore or move them elsewhere; if one belongs to the code, `git add` it."
        )


def _check_size(top: Path, sizes: dict[str, int], max_mb: int) -> None:
    total = sum(sizes.values())
    if not sizes or total <= max_mb * _MB:
        return
    largest = sorted(sizes, key=lambda path: -sizes[path])
    lines = [f"{sizes[path] / _MB:,.1f} MB  {show(path)}" for path in largest]
    raise SnapshotError(
        f"The untracked files of {show(top)} are {total / _MB:,.1f} MB, more than a snapshot takes "
        f"(version_manager.max_untracked_mb={max_mb}). The largest:\n"
        + _listed(lines)
        + "\nPut data and results into .gitignore (version_manager.link has a run see them all the same),\n"
        "commit what is code, or raise version_manager.max_untracked_mb."
    )


def _suspect(top: Path, path: str, is_regular: bool) -> str | None:
    """Say why a file looks like a credential, or None."""
    if _NAME.match(path.lower()) and not path.lower().endswith(_TEMPLATES):
        return "by its name"
    return _find_secret(_read_start(top / path)) if is_regular else None


def _read_start(path: Path) -> bytes:
    # O_NONBLOCK: should it be a pipe by now, nobody waits for its writer
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        return stream.read(_SCANNED)


def _find_secret(content: bytes) -> str | None:
    if b"\0" in content[:_BINARY]:
        return None
    for what, beginnings, pattern in _CONTENTS:
        if any(beginning in content for beginning in beginnings):
            for match in re.finditer(pattern, content):
                if len(set(match[0])) > _VARIED and b"EXAMPLE" not in match[0]:
                    line = content.count(b"\n", 0, match.start()) + 1
                    return f"{what} in line {line}"
    return None


def _listed(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in shorten(lines, _NAMED))
