from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlxjobs.config.settings import read_settings
from mlxjobs.errors import InvalidConfigFileError, RunError
from mlxjobs.record.facts import read_plain
from mlxjobs.record.run import Run
from mlxjobs.system.plain_yaml import NotYAMLError, dump_yaml, load_yaml

NOT_YAML = [
    b"a: [1",
    b"a: !!bool maybe",
    b"a: !!int ''",
    b"a: !!timestamp soon",
    b"a: 2024-02-31",
    b"a: !!python/name:os.system",
    b"a: \xff",
    b"{[a]: b}",
    b"[" * 100_000,
]


@pytest.mark.parametrize("text", NOT_YAML)
def test_what_is_not_yaml_is_one_error(text: bytes) -> None:
    with pytest.raises(NotYAMLError):
        load_yaml(text)


@pytest.mark.parametrize("text", NOT_YAML[:3])
def test_whoever_reads_a_file_says_which_one_is_not_yaml(text: bytes, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "logs")
    path = run.metadata / "mlxpy.yaml"
    path.write_bytes(text)
    with pytest.raises(InvalidConfigFileError, match=r"mlxpy\.yaml: is not valid YAML"):
        read_settings(path)
    with pytest.raises(RunError, match=r"mlxpy\.yaml is not YAML"):
        read_plain(str(path))
    with pytest.raises(RunError, match=r"mlxpy\.yaml cannot be read"):
        run.read_yaml("mlxpy")


@pytest.mark.parametrize("content", [{"b": 1, "a": [1.5, None, True]}, ["é", "12", ""], "yes", {1: {}}, None])
def test_what_is_written_is_read_again(content: Any) -> None:
    assert load_yaml(dump_yaml(content)) == content
