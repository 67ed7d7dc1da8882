"""What the documentation says is there: links, tests, settings and their defaults, modules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mlxjobs.config import settings

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "schedulers" / "README.md", *DOCS.glob("*.md")]


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
        for name in re.findall(r"`(?:tests/)?((?:\w+/)?test_\w+\.py)(?:::(\w+))?`", page.read_text())
    }
    assert len(named) > 40
    missing = []
    for file, test in named:
        path = ROOT / "tests" / file
        if not path.exists() or (test and f"def {test}(" not in path.read_text()):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_every_setting_is_explained_and_its_default_is_right() -> None:
    sections = {"scheduler": "schedulers.md", "version_manager": "version_manager.md"}
    defaults: dict[str, dict[str, str]] = {"settings.md": {}}
    for name, value in flat(settings.defaults()):
        section, _, key = name.rpartition(".")
        page, key = (sections[section], key) if section in sections else ("settings.md", name)
        defaults.setdefault(page, {})[key] = str(value)
    for page, expected in defaults.items():
        rows = re.findall(r"^\| `([a-z_.]+)` \| (?:`(.*?)`)? ?\|", (DOCS / page).read_text(), re.MULTILINE)
        assert dict(rows) == expected, page


def flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_every_module_stands_once_in_the_list() -> None:
    (table,) = re.findall(
        r"^## The parts\n\n```text\n(.*?)```", (DOCS / "design.md").read_text(), re.M | re.S
    )
    named = [name for line in table.splitlines() for name in re.findall(r"[\w/*]+", line[:41])]
    modules = {path.stem for path in (ROOT / "mlxjobs").glob("[!_]*.py")}
    assert {name for name in named if not re.search(r"[*/]", name)} <= modules
    counts = {module: sum(fnmatch(module, name) for name in named) for module in modules}
    assert {module: count for module, count in counts.items() if count != 1} == {}
