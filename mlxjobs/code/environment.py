"""What is installed where a run is launched: recorded with the run, and written so that pip takes it.

`requirements` are the distributions that `import` finds, a line of a requirements file each:

    numpy==1.26.4                            from an index
    lib @ git+https://host/lib.git@1f2e...   from a repository, and editable installs of one
    tool @ file:///home/ada/tool             from a folder or an archive
    -e /home/ada/mylib                       editable, in no repository
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from mlxjobs.code import git
from mlxjobs.errors import SnapshotError

# what a torn or odd file of an installer leads to
_ODD = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
_DRIVER = Path("/proc/driver/nvidia/version")
# git@host:owner/lib.git, which is not a URL
_SSH = re.compile(r"(?:([\w.-]+)@)?([\w.-]+):(?!/)(.+)")


def record_environment() -> dict[str, Any]:
    """Return `requirements` and, under `environment`, what else tells a run's environment from another's."""
    found = list(_installed())
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "executable": sys.executable,
    }
    if dirty := [name for name, _, _, is_dirty in found if is_dirty]:
        facts["dirty"] = dirty
    if driver := _driver():
        facts["nvidia_driver"] = driver
    if conda := _conda(Path(sys.prefix)):
        pip = [line for _, line, installer, _ in found if installer != "conda"]
        facts["conda"] = {**conda, "pip": pip}
    return {"requirements": [line for _, line, _, _ in found], "environment": facts}


def _installed() -> Iterator[tuple[str, str, str, bool]]:
    """Yield name, requirement, installer, and whether it has edits that no commit holds; sorted by name."""
    found: dict[str, metadata.Distribution] = {}
    for distribution in metadata.distributions():
        place = getattr(distribution, "_path", None)
        if place is not None and place.name.startswith("~"):  # what an interrupted pip leaves behind
            continue
        with suppress(*_ODD):
            if "Name" in distribution.metadata:  # and this
                key = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
                found.setdefault(key, distribution)
    for key in sorted(found):
        distribution = found[key]
        name = distribution.metadata["Name"]
        installer, line, is_dirty = "", f"{name}=={distribution.version}", False
        with suppress(*_ODD):
            installer = (distribution.read_text("INSTALLER") or "").strip()
            # conda leaves the folder of the machine that built the package as its origin
            origin = {} if installer == "conda" else _origin(distribution)
            line, is_dirty = _requirement(name, distribution.version, origin)
        yield name, line, installer, is_dirty


def _origin(distribution: metadata.Distribution) -> dict[str, Any]:
    """Where it came from: https://packaging.python.org/en/latest/specifications/direct-url/ ."""
    with suppress(ValueError):
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
        if found:
            return dict(found)
    # `setup.py develop`, and the .egg-info that an editable install leaves in a folder that python runs in
    place = getattr(distribution, "_path", None)
    if place is not None and place.name.endswith(".egg-info"):
        for folder in (place.parent, place.parent.parent):
            if (folder / "pyproject.toml").exists() or (folder / "setup.py").exists():
                return {"url": folder.absolute().as_uri(), "dir_info": {"editable": True}}
    return {}


def _requirement(name: str, version: str, origin: Mapping[str, Any]) -> tuple[str, bool]:
    url, vcs = origin.get("url"), origin.get("vcs_info")
    if not url:
        return f"{name}=={version}", False
    part = origin.get("subdirectory")
    if (origin.get("dir_info") or {}).get("editable"):
        return _editable(name, Path(unquote(urlsplit(url).path)))
    if vcs:
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return f"{name} @ {url}" + (f"#subdirectory={part}" if part else ""), False


def _editable(name: str, folder: Path) -> tuple[str, bool]:
    """Name an editable install by the commit of its repository; it may be dirty; else by its folder."""
    try:
        commit = git.find_commit(folder)
        part = git.relative(folder.resolve(), commit.top)
        dirty = any(tracked for _, tracked in git.list_left_out(commit.top))
        url = _remote(commit) or commit.top.as_uri()
    except (SnapshotError, OSError):  # in no repository, none that can be read, or gone
        return f"-e {_option(folder)}", False
    where = f"#subdirectory={part}" if part not in (None, ".") else ""
    return f"{name} @ git+{url}@{commit.hash}{where}", dirty


def _remote(commit: git.Commit) -> str | None:
    """Return a URL where others find the commit: that of a remote that is known to have it."""
    options = ("--count=1", f"--contains={commit.hash}", "--format=%(refname:lstrip=2)", "refs/remotes")
    branch = git.ask(commit.top, "for-each-ref", *options).strip()
    if not branch:
        return None
    for remote in git.open_repository(commit.top).remotes:
        if branch.startswith(f"{remote.name}/"):
            return _public(git.ask(commit.top, "remote", "get-url", remote.name).strip())
    return None


def _public(remote: str) -> str | None:
    """Write a remote as a URL without a password; None if it is not a URL that others can use."""
    if "://" not in remote:
        match = _SSH.fullmatch(remote)
        return match and f"ssh://{match[1] or 'git'}@{match[2]}/{match[3]}"
    parts = urlsplit(remote)
    if parts.scheme not in ("https", "http", "ssh", "git"):
        return None
    user, _, host = parts.netloc.rpartition("@")
    keep = f"{user.partition(':')[0]}@" if user and parts.scheme == "ssh" else ""  # else it may be a token
    return urlunsplit((parts.scheme, keep + host, parts.path, "", ""))


def _option(folder: Path) -> str:
    """Write a path as the options of a requirements file take it: odd characters only in a URL."""
    return str(folder) if re.fullmatch(r"[\w./+-]+", str(folder), re.ASCII) else folder.as_uri()


def _driver() -> str | None:
    with suppress(OSError):
        match = re.search(r"Kernel Module\s.*?([\d.]{3,})", _DRIVER.read_text())
        return match and match[1]
    return None


def _conda(prefix: Path) -> dict[str, Any] | None:
    """Return a conda environment's name and packages, `channel::name=version=build`; None: it is none."""
    folder = prefix / "conda-meta"
    if not folder.is_dir():
        return None
    named = os.environ.get("CONDA_DEFAULT_ENV") if os.environ.get("CONDA_PREFIX") == str(prefix) else None
    packages = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # one that is being installed
            about = json.loads(path.read_bytes())
            spec = "=".join((about["name"], about["version"], about["build"]))
            channel = _channel(about.get("channel") or "")
            packages.append(f"{channel}::{spec}" if channel else spec)
    return {"name": named or prefix.name, "packages": packages}


def _channel(url: str) -> str:
    """Return a channel as its users write it, without the token or password of a private one."""
    url = re.sub(r"/t/[^/]+", "", url)
    url = re.sub(r"/(noarch|(linux|osx|win|emscripten|wasi)-\w+)/?$", "", url.rstrip("/"))
    parts = urlsplit(url)
    if parts.hostname in ("conda.anaconda.org", "repo.anaconda.com"):
        return parts.path.strip("/")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


# -- written for pip, uv and conda ---------------------------------------------------------------


def as_requirements(title: str, lines: list[str], facts: Mapping[str, Any]) -> str:
    """Write a requirements file.

    Args:
        title: whose they are, for the first line.
        lines: as `requirements` gave them; what pip would not take becomes a comment.
        facts: what `record` gave as `environment`; may be empty.
    """
    text = [_comment(title), *_comments(facts)]
    text += [_for_pip(line) if _is_accepted(line) else f"# not for pip: {line!r}" for line in lines]
    return "\n".join(text)


def _comments(facts: Mapping[str, Any]) -> Iterator[str]:
    if facts.get("python"):
        words = (facts.get("implementation", "Python"), facts["python"], "on", facts.get("platform", "?"))
        yield _comment(" ".join(map(str, words)))
    if facts.get("nvidia_driver"):
        yield _comment(f"NVIDIA driver {facts['nvidia_driver']}")
    if facts.get("dirty"):
        yield _comment(f"had edits that no commit holds: {', '.join(map(str, facts['dirty']))}")
    conda = facts.get("conda")
    if conda:
        yield _comment(f"conda environment {conda['name']}: --conda writes it, these are its packages:")
        yield from (_comment(str(package)) for package in conda["packages"])


def _comment(text: str) -> str:
    return "# " + " ".join(text.split())  # one line: what follows a line break would be a requirement


def _is_accepted(line: str) -> bool:
    """Whether a line says what pip installs, and nothing else, as another index would be."""
    from packaging.requirements import InvalidRequirement, Requirement

    if "\n" in line or "\r" in line:
        return False
    if line.startswith("-e "):
        return re.fullmatch(r"-e (file://|/)[\w./+%-]+", line, re.ASCII) is not None
    try:
        Requirement(line)
    except InvalidRequirement:
        return False
    return True


def _for_pip(line: str) -> str:
    """Write a repository of this machine in the way that pip before 24 takes, and uv too."""
    local = re.fullmatch(r"(\S+) @ (git\+file:///[^#\s]+)(?:#(\S+))?", line)
    if local is None:
        return line
    return f"{local[2]}#egg={local[1]}" + (f"&{local[3]}" if local[3] else "")


def as_conda(facts: Mapping[str, Any]) -> str | None:
    """Write an environment.yml for conda, mamba and micromamba; None if it was no conda environment."""
    conda = facts.get("conda")
    if not conda:
        return None
    pip = [_for_pip(line) for line in conda.get("pip", []) if _is_accepted(line)]
    channels = dict.fromkeys(package.partition("::")[0] for package in conda["packages"] if "::" in package)
    words = [f"name: {json.dumps(conda['name'])}", f"channels: {json.dumps([*channels, 'nodefaults'])}"]
    words += ["dependencies:"]
    words += [f"  - {json.dumps(package)}" for package in conda["packages"]]
    words += ["  - pip:", *(f"      - {json.dumps(line)}" for line in pip)] if pip else []
    return "\n".join([*_comments({**facts, "conda": None}), *words])
