"""What is installed where a run is launched."""

from __future__ import annotations

import re


def requirements() -> list[str]:
    """List the installed distributions as sorted `name==version`, each name once: the one `import` finds.

    What comes from a folder, an archive or a repository (with its commit) is `name @ url`.
    """
    from importlib import metadata  # imports the e-mail parser, which a launch without this never needs

    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if "Name" not in distribution.metadata:  # what an interrupted pip leaves behind
            continue
        name = distribution.metadata["Name"]
        url = _parse_direct_url(distribution.read_text("direct_url.json"))
        key = re.sub(r"[-_.]+", "-", name).lower()
        found.setdefault(key, f"{name} @ {url}" if url else f"{name}=={distribution.version}")
    return [found[key] for key in sorted(found)]


def _parse_direct_url(text: str | None) -> str | None:
    """The origin, as https://packaging.python.org/en/latest/specifications/direct-url/ records it."""
    import json

    record = json.loads(text) if text else {}
    vcs = record.get("vcs_info")
    url = f"{vcs['vcs']}+{record['url']}@{vcs['commit_id']}" if vcs else record.get("url")
    return f"{url}#subdirectory={record['subdirectory']}" if record.get("subdirectory") else url
