"""Whether untracked files may be taken into a snapshot: not if they are many gigabytes, or credentials.

A snapshot's objects stay in the repository, from where they may be pushed or copied. The patterns are
tight: of a name alone only what hardly is anything else, of a content only what has a token's form. What
`git add` was run on is tracked, and no concern of this module.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from fnmatch import translate
from pathlib import Path

from mlxjobs.code.git import show
from mlxjobs.errors import SnapshotError
from mlxjobs.system.console import shorten

_NAMED = 10  # files that a message names
_SCANNED = 1 << 20  # bytes of each file
_BINARY = 8192  # a NUL in so many bytes: no text, as for git
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


def check(top: Path, paths: Sequence[str], max_mb: int) -> None:
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
