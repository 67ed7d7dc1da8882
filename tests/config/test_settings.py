"""Settings: checked, and never skipped."""

import errno
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from mlxjobs.config.settings import Project, Settings, as_folder, as_lines, read_settings
from mlxjobs.errors import InvalidConfigFileError
from tests.project import NEW_FILE


def of_file(written: object) -> Settings:
    return Settings().updated(written, "configs/mlxpy.yaml")


@pytest.mark.parametrize(
    ("written", "words"),
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
def test_a_wrong_setting_names_file_and_key(written: object, words: str) -> None:
    with pytest.raises(InvalidConfigFileError) as caught:
        of_file(written)
    assert words in str(caught.value)
    assert str(caught.value).startswith("configs/mlxpy.yaml: ")


def test_every_setting_says_what_it_takes() -> None:
    for key, kinds in Settings().to_dict().items():
        for written in [{name: object()} for name in kinds] if isinstance(kinds, dict) else [object()]:
            with pytest.raises(InvalidConfigFileError, match=f"'{key}.*' must be .*, not <object"):
                of_file({key: written})


def test_later_sources_win_and_keep_the_rest() -> None:
    settings = of_file({"scheduler": {"name": "SLURMScheduler", "option_cmd": ["--time=1"]}})
    settings = settings.updated({"scheduler": {"option_cmd": "--time=2"}}, "the command line")
    assert settings.scheduler.name == "SLURMScheduler"
    assert settings.scheduler.option_cmd == "--time=2"


def test_an_empty_value_is_the_empty_string() -> None:
    assert of_file({"scheduler": {"env_cmd": None}}).scheduler.env_cmd == ""


def test_what_a_file_holds_is_written_back_as_it_was() -> None:
    written = {"scheduler": {"option_cmd": ["--time=1", "--mem=2G"], "env_cmd": "a\nb"}, "secrets": []}
    settings = of_file(written).to_dict()
    assert {key: settings["scheduler"][key] for key in written["scheduler"]} == written["scheduler"]
    settings["secrets"].append("x")
    assert Settings().to_dict()["secrets"] == []


def test_a_new_project_has_a_file_of_all_settings_in_their_order(tmp_path: Path) -> None:
    Project(tmp_path, "config").prepare()
    assert (tmp_path / "mlxpy.yaml").read_text() == NEW_FILE


def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "mlxpy.yaml"
    path.write_text("logger: [")
    with pytest.raises(InvalidConfigFileError, match=r"mlxpy\.yaml: is not valid YAML"):
        read_settings(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidConfigFileError, match=r"mlxpy\.yaml"):
        read_settings(path)


def test_a_file_cannot_build_objects(tmp_path: Path) -> None:
    path = tmp_path / "mlxpy.yaml"
    path.write_text("logger: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(InvalidConfigFileError):
        read_settings(path)


def test_commands_may_be_a_string_or_a_list() -> None:
    assert as_lines("module purge\nmodule load x\n") == ["module purge", "module load x"]
    assert as_lines(["a", "", "b\nc"]) == ["a", "b", "c"]


def test_a_folder_that_no_path_can_be_is_told() -> None:
    with pytest.raises(InvalidConfigFileError, match="is not a path"):
        as_folder("a\0b")


def test_a_registered_configuration_needs_no_file_where_none_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> bool:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("mlxjobs.config.settings.create_file", refuse)
    ConfigStore.instance().store(name="registered", node={"lr": 0.1})
    assert Project(tmp_path, "registered").settings({}) == Settings()
    with pytest.raises(InvalidConfigFileError, match="cannot be created"):
        Project(tmp_path, "nowhere").prepare()
