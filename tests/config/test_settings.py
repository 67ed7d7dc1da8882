"""Settings: checked, and never skipped."""

import errno
from pathlib import Path
from typing import Any

import pytest
from hydra.core.config_store import ConfigStore

from mlxjobs.config import settings
from mlxjobs.config.project import Project
from mlxjobs.errors import InvalidConfigFileError


def merged(given: object) -> dict[str, Any]:
    options = settings.defaults()
    settings.merge(options, given, "configs/mlxpy.yaml")
    return options


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"use_sheduler": True}, "unknown key 'use_sheduler'; did you mean 'use_scheduler'"),
        ({"parent_log_dir": "x"}, "did you mean 'logger.parent_log_dir'"),
        ({"scheduler": {"nam": "x"}}, "unknown key 'scheduler.nam'; did you mean 'scheduler.name'"),
        ({"use_scheduler": "yes"}, "'use_scheduler' must be true or false, not 'yes'"),
        ({"logger": {"forced_log_id": True}}, "'logger.forced_log_id' must be an integer"),
        ({"scheduler": {"option_cmd": [1]}}, "must be a string or a list of strings"),
        ({"logger": "here"}, "'logger' must be a section"),
        ([1], "the whole must be a section"),
        ({"qqq": 1}, "valid keys: "),
    ],
)
def test_a_wrong_setting_names_file_and_key_and_changes_nothing(given: object, words: str) -> None:
    options = settings.defaults()
    with pytest.raises(InvalidConfigFileError) as caught:
        settings.merge(options, given, "configs/mlxpy.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("configs/mlxpy.yaml: ")
    assert options == settings.defaults()


def test_later_sources_win_and_keep_the_rest() -> None:
    options = merged({"scheduler": {"name": "SLURMScheduler", "option_cmd": ["--time=1"]}})
    settings.merge(options, {"scheduler": {"option_cmd": "--time=2"}}, "the command line")
    assert options["scheduler"]["name"] == "SLURMScheduler"
    assert options["scheduler"]["option_cmd"] == "--time=2"


def test_an_empty_value_is_the_empty_string() -> None:
    assert merged({"scheduler": {"env_cmd": None}})["scheduler"]["env_cmd"] == ""


def test_defaults_are_not_shared() -> None:
    settings.defaults()["scheduler"]["option_cmd"].append("x")
    assert settings.defaults()["scheduler"]["option_cmd"] == []


def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mlxpy.yaml"
    path.write_text("logger: [")
    with pytest.raises(InvalidConfigFileError, match=r"mlxpy\.yaml: is no valid YAML"):
        settings.read_file(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfigFileError, match=r"mlxpy\.yaml"):
        settings.read_file(path)


def test_a_file_cannot_build_objects(tmp_path: Path) -> None:
    path = tmp_path / "mlxpy.yaml"
    path.write_text("logger: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(InvalidConfigFileError):
        settings.read_file(path)


def test_commands_may_be_a_string_or_a_list() -> None:
    assert settings.as_lines("module purge\nmodule load x\n") == ["module purge", "module load x"]
    assert settings.as_lines(["a", "", "b\nc"]) == ["a", "b", "c"]


def test_a_folder_that_no_path_can_be_is_told() -> None:
    with pytest.raises(InvalidConfigFileError, match="is no path"):
        settings.folder("a\0b")


def test_a_registered_configuration_needs_no_file_where_none_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> bool:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("mlxjobs.config.project.create_file", refuse)
    ConfigStore.instance().store(name="registered", node={"lr": 0.1})
    assert Project(tmp_path, "registered").read_settings({}) == settings.defaults()
    with pytest.raises(InvalidConfigFileError, match="cannot be created"):
        Project(tmp_path, "nowhere").prepare()
