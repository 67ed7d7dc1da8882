"""What the documentation says is there: links, tests, commands, settings and their defaults, rooms."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command

from mlxjobs.cli.app import app
from mlxjobs.config.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), ROOT / "schedulers" / "README.md", *DOCS.glob("*.md")]


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_to_files_and_headings_that_are_there() -> None:
    wrong = []
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
            name, _, heading = link.partition("#")
            target = page.parent / name if name else page
            if not target.exists() or (heading and heading not in anchors(target)):
                wrong.append(f"{page.name}: {link}")
    assert wrong == []


def test_the_tests_that_are_named_exist() -> None:
    named = {
        name
        for page in PAGES
        for name in re.findall(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(\w+))?`", page.read_text())
    }
    assert len(named) > 40
    missing = []
    for file, test in named:
        path = ROOT / "tests" / file
        if not path.exists() or (test and f"def {test}(" not in path.read_text()):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_the_commands_that_are_named_exist_and_all_are_named() -> None:
    # `mlxjobs ls`, or a line of a block that begins with it
    named = {
        word
        for page in PAGES
        for word in re.findall(r"(?:`|^ *|\$ )mlxjobs ([a-z-]+)", page.read_text(), re.M)
    }
    command = get_command(app)
    assert isinstance(command, TyperGroup)
    assert named == set(command.commands)


def test_every_setting_is_explained_and_its_default_is_right() -> None:
    sections = {"scheduler": "schedulers.md", "version_manager": "version_manager.md"}
    defaults: dict[str, dict[str, str]] = {"settings.md": {}}
    for name, value in flat(Settings().to_dict()):
        section, _, key = name.rpartition(".")
        page, key = (sections[section], key) if section in sections else ("settings.md", name)
        defaults.setdefault(page, {})[key] = str(value)
    for page, expected in defaults.items():
        rows = re.findall(r"^\| `([a-z_.]+)` \| (?:`(.*?)`)? ?\|", (DOCS / page).read_text(), re.MULTILINE)
        assert dict(rows) == expected, page


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_files_that_are_named_exist() -> None:
    named = {
        (page.name, name)
        for page in (ROOT / "CONTRIBUTING.md", DOCS / "design.md")
        for name in re.findall(r"`(\w+/[\w/]+\.(?:py|sh|md))`", page.read_text())
        if "NAME" not in name
    }
    assert len(named) > 40
    assert [
        (page, name)
        for page, name in sorted(named)
        if not ((ROOT / name).is_file() or (ROOT / "mlxjobs" / name).is_file())
    ] == []


def test_every_room_is_told_of() -> None:
    told = re.findall(r"^\*\*`(\w+)/`\*\*", (DOCS / "design.md").read_text(), re.M)
    rooms = {path.parent.name for path in (ROOT / "mlxjobs").glob("[!_]*/__init__.py")}
    assert sorted(told) == sorted(rooms - {"schedulers"})
