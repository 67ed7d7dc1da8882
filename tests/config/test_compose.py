"""The command line and the configuration that follows from it."""

import enum
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlxjobs.config import command_line, compose, stored
from mlxjobs.config.stored import Composed
from mlxjobs.errors import InvalidConfigFileError


class Colour(enum.Enum):
    RED = 1


def test_three_spellings_of_a_setting_mean_the_same() -> None:
    for prefix in ("", "+", "++"):
        found, rest = command_line.split_arguments([f"{prefix}mlxpy.logger.forced_log_id=5", "lr=0.1", "-m"])
        assert found == {"logger": {"forced_log_id": 5}}
        assert rest == ["lr=0.1", "-m"]


def test_what_only_looks_like_a_setting_is_hydras() -> None:
    arguments = ["mlxpy_x=1", "+mlxpyx.a=2", "lr=mlxpy.x", "~model"]
    assert command_line.split_arguments(arguments) == ({}, arguments)


@pytest.mark.parametrize(
    "text",
    [
        "true",
        "false",
        "null",
        "3",
        "-3",
        "+3",
        "1_000",
        "0.5",
        ".5",
        "5.",
        "1e3",
        "1e-3",
        "inf",
        "nan",
        "-inf",
        "abc",
        "./logs",
        "/a/b-c_d.e",
        "'a b'",
        '"a b"',
        "''",
        "TRUE",
        "Null",
        "NaN",
        "1:2",
        "a:b",
        "-",
        "--x",
        "_1",
        "[a,b]",
        "['--time=1','--mem=2']",
        "{a:1}",
        "",
        "0x10",
        "1.2.3",
        "..",
        "'it\\'s'",
        "a b",
        "1-2",
        "infx",
        "${oc.env:HOME}",
        "1__0",
        "1.0e",
        "e5",
        "+x",
    ],
)
def test_a_setting_means_what_hydras_grammar_says(text: str) -> None:
    argument = f"+mlxpy.a.b={text}"
    try:
        expected = command_line._parse_setting_with_hydra(argument)
    except InvalidConfigFileError:
        with pytest.raises(InvalidConfigFileError):
            command_line._parse_setting(argument)
    else:
        found = command_line._parse_setting(argument)
        assert repr(found) == repr(expected)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_a_quoted_value_is_read_back_as_it_was(text: str) -> None:
    found, _ = command_line.split_arguments([f"+mlxpy.a={command_line.quote_value(text)}"])
    assert found == {"a": text}


plain_values = st.recursive(
    st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from("abc"), plain_values, min_size=1, max_size=3))
def test_quoted_dictionaries_are_read_back(settings: dict[str, object]) -> None:
    found, _ = command_line.split_arguments([f"mlxpy={command_line.quote_dict(settings)}"])
    assert found == settings


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("mlxpy.use_logger=true,false", "cannot be swept over"),
        ("~mlxpy.use_logger", "cannot be deleted"),
        ("mlxpy=3", "'mlxpy' is a section"),
        ("mlxpy.a=[1", "the command line: "),
    ],
)
def test_a_wrong_setting_is_an_error(argument: str, words: str) -> None:
    with pytest.raises(InvalidConfigFileError) as caught:
        command_line.split_arguments([argument])
    assert words in str(caught.value)


def test_a_kept_configuration_comes_back_as_it_was(tmp_path: Path) -> None:
    composed = Composed(
        {
            "a": 1.5,
            3: [None, "${a}", b"\0"],
            "p": Path("/x y"),
            "e": Colour.RED,
            "inf": float("inf"),
            "é": "\n",
        },
        {"job": {"num": 1}},
        ["a=1.5"],
    )
    text = stored.to_yaml(composed)
    assert stored.from_yaml(text.encode(), tmp_path) == composed


@pytest.mark.parametrize(
    "text", ["", "a: [", "config: 1", "[1]", "!!python/name:os.system ''", "!enum os:system:x"]
)
def test_a_damaged_kept_configuration_is_an_error_that_names_it(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfigFileError, match=str(tmp_path)):
        stored.from_yaml(text.encode(), tmp_path)


def test_overrides_of_a_stored_configuration_tell_what_changed() -> None:
    stored = Composed({"lr": 0.1, "model": {"name": "mlp", "units": 3}}, {}, ["lr=0.1"])
    changed, lines = compose.override(stored, ["lr=0.5", "+new=1", "model.units=3", "~model.name"])
    assert changed.config == {"lr": 0.5, "model": {"units": 3}, "new": 1}
    assert lines == ["lr: 0.1 -> 0.5", "model.name: mlp -> (none)", "new: (none) -> 1"]
    assert stored.config["lr"] == 0.1


@pytest.mark.parametrize(
    ("argument", "words"),
    [("model=big", "keeps its config groups"), ("lr=1,2", "cannot be swept over"), ("lrr=1", "lrr")],
)
def test_what_cannot_be_overridden_later_says_so(argument: str, words: str) -> None:
    with pytest.raises(InvalidConfigFileError) as caught:
        compose.override(Composed({"lr": 0.1, "model": {"units": 3}}), [argument])
    assert words in str(caught.value)


def test_plain_yaml_holds_no_tags() -> None:
    text = yaml.safe_dump(stored.plain_config({"p": Path("/x"), "e": Colour.RED, Colour.RED: (1, 2)}))
    assert yaml.safe_load(text) == {"p": "/x", "e": "RED", "RED": [1, 2]}


def test_a_section_without_keys_is_a_value_where_that_is_asked_for() -> None:
    config = {"model": {"lr": 0.1, "layers": {}}, "seed": None}
    assert stored.flatten(config) == {"model.lr": 0.1, "seed": None}
    assert stored.flatten(config, keep_empty=True) == {"model.lr": 0.1, "model.layers": {}, "seed": None}
