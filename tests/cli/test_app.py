"""The command as a whole: what each start of it pays for."""

from __future__ import annotations

import json
import subprocess
import sys

LOADED = """
import json, sys
import mlxjobs.cli.app
print(json.dumps(sorted(sys.modules)))
"""


def test_a_command_imports_only_what_it_needs() -> None:
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", LOADED], text=True))
    rooms = {name.split(".")[1] for name in loaded if name.startswith("mlxjobs.")}
    assert rooms <= {"cli", "errors", "system"}
    assert {"git", "hydra", "orjson", "pandas", "rich", "sqlite3", "yaml"}.isdisjoint(loaded)
