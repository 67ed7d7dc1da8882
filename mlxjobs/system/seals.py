"""Checksums inside text files: a byte that changed in a number gives another number, and no error.

    {"event": "ended", ..., "crc": "5e7a11ad"}      JSON: of all before the last comma
    # crc32: 5e7a11ad                               YAML: of all lines before this one, a comment

A file without one is as good as ever: it is older, or somebody else's. A CRC-32 finds what disks do.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxjobs.system.atomic import read_again

_JSON = re.compile(rb', "crc": "([0-9a-f]{8})"\}\s*\Z')
# also where the line break before it is gone
_YAML = re.compile(rb"# crc32: ([0-9a-f]{8})\n?\Z")
_BLOCK = 1 << 20


def seal_json(content: Mapping[str, Any]) -> str:
    """Return a dictionary that is not empty as one line of JSON that ends with its checksum."""
    import json

    body = json.dumps(content, ensure_ascii=False)[:-1]
    return f'{body}, "crc": "{zlib.crc32(body.encode()):08x}"}}'


def open_json(text: bytes) -> tuple[dict[str, Any], bool]:
    """Return the dictionary in what `seal_json` gave, and whether it has a checksum.

    Raises:
        ValueError: it is not a JSON dictionary, or not what was written.
    """
    import json

    seal = _JSON.search(text)
    if seal is not None and int(seal[1], 16) != zlib.crc32(text[: seal.start()]):
        raise ValueError("its bytes are not those that were written")
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it holds no keys and values")
    content.pop("crc", None)
    return content, seal is not None


def seal_yaml(text: str) -> str:
    """Return a YAML document with its checksum as a comment at its end."""
    return f"{text}# crc32: {zlib.crc32(text.encode()):08x}\n"


def is_sealed(text: bytes) -> bool | None:
    """Whether a YAML document is what was written; None if it has no checksum."""
    seal = _YAML.search(text)
    return None if seal is None else int(seal[1], 16) == zlib.crc32(text[: seal.start()])


def crc32_of(path: Path, size: int) -> int:
    """Return the CRC-32 of the first bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    return read_again(lambda: _read_crc32(path, size)[1])


def _read_crc32(path: Path, size: int | None) -> list[int]:
    found = done = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK if size is None else min(_BLOCK, size - done)):
            found = zlib.crc32(block, found)
            done += len(block)
    return [done, found]


def size_and_crc32(path: Path) -> list[int]:
    """Return size and CRC-32 of a file.

    Raises:
        OSError: it cannot be read.
    """
    return read_again(lambda: _read_crc32(path, None))
