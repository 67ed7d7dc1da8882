"""What is typed is what the task gets: here, in a job, and when it is started again."""

import json
import os
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlxjobs.config import stored
from mlxjobs.config.command_line import quote_value
from mlxjobs.config.stored import Composed
from tests.project import Project

MAIN = """
import json, pathlib
import mlxpy

@mlxpy.launch(config_path="./configs")
def train(ctx):
    target = pathlib.Path(__file__).with_name("seen")
    target.write_text(json.dumps([ctx.config, ctx.info.get("log_id")]))

if __name__ == "__main__":
    train()
"""
# what stands after `key=` on the command line, as a user would type it in Hydra's grammar
TYPED = [
    "",
    "''",
    "' '",
    "'  two  spaces  '",
    "'a b'",
    '"a b"',
    "'it\\'s'",
    "'\"'",
    "'$HOME'",
    "$HOME",
    "${base}",
    "\\${HOME}",
    "'`id`'",
    "'$(id)'",
    "%",
    "'%j %% %A'",
    "a@b",
    "'a;b'",
    "'a|b&c>d<e'",
    "'!x'",
    "'#x'",
    "~",
    "*",
    "'*?[a]'",
    "/a/b-c_d.e",
    "'-x'",
    "--x",
    "'a\nb'",
    "'\n'",
    "'tab\there'",
    "'carriage\rreturn'",
    "\\\\",
    "'\\'",
    "'a\\nb'",
    "'\\\\server'",
    "é",
    "'日本 語'",
    "'😀'",
    "'\u2028\u0085\ufeff'",
    "'\x01\x7f'",
    "null",
    "'null'",
    "~x",
    "true",
    "'true'",
    "yes",
    "1",
    "'1'",
    "01",
    "1e-3",
    "1e3",
    "'1e3'",
    "1_000",
    "0x10",
    "-0.0",
    "inf",
    "-inf",
    "1:30",
    "12:30:45",
    "2024-01-01",
    "=",
    "<<",
    "'???x'",
    "'[1,2]'",
    "[1,2]",
    "[]",
    "{}",
    "['a b',\"c'd\",[1,{x:2}]]",
    "{a:1,b:{c:'d e'}}",
    "{1:2,true:3}",
    "'epoch=999-step=1.ckpt'",
    "'a,b'",
    "'{a}'",
    "{{x}}",
    "'{{ jinja }} {% x %}'",
    "'!!python/name:os.system'",
    "'!enum os:x:y'",
    "'- a'",
    "'a: b'",
    "'mlxpy.use_scheduler=true'",
    "123456789012345678901234567890",
    "1.7976931348623157e308",
    "a-b.c",
]


def overrides() -> list[str]:
    """The table as a command line; what Hydra's grammar does not take is left out by `usable`."""
    return [f"+k{number}={text}" for number, text in enumerate(TYPED)]


def usable(arguments: list[str]) -> list[str]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, taken = OverridesParser.create(), []
    for argument in arguments:
        try:
            parser.parse_override(argument)
        except HydraException:
            continue
        taken.append(argument)
    return taken


def seen(project: Project) -> Any:
    return json.loads((project.folder / "seen").read_text())


def test_every_character_reaches_the_job_and_a_second_start(project: Project) -> None:
    (project.folder / "main.py").write_text(MAIN)
    (project.folder / "configs" / "config.yaml").write_text("base: 1\n")
    arguments = usable(overrides())
    assert len(arguments) > len(TYPED) - 8
    project.run(*arguments)
    here, _ = seen(project)
    assert len(here) == len(arguments) + 1
    project.submit(*arguments)
    project.await_status("COMPLETE", log_id=2)
    assert seen(project) == [here, 2]
    project.run("+mlxpy.logger.forced_log_id=2")
    assert seen(project) == [here, 2]
    # the same, given to a run that exists
    project.run("base=1")
    project.submit("+mlxpy.logger.forced_log_id=3", *arguments)
    project.await_status("COMPLETE", log_id=3, attempts=2)
    assert seen(project) == [here, 3]
    # and values as they were meant
    by_text = {text: here[f"k{number}"] for number, text in enumerate(TYPED) if f"k{number}" in here}
    assert by_text["'$HOME'"] == by_text["$HOME"] == "$HOME"
    assert by_text["'a\nb'"] == "a\nb"
    assert by_text["'😀'"] == "😀"
    assert by_text["'1e3'"] == "1e3"
    assert by_text["1e3"] == 1000.0
    assert by_text["'epoch=999-step=1.ckpt'"] == "epoch=999-step=1.ckpt"
    assert by_text["['a b',\"c'd\",[1,{x:2}]]"] == ["a b", "c'd", [1, {"x": 2}]]
    assert by_text["\\${HOME}"] == "${HOME}"  # an interpolation that is none


def test_a_sweep_over_odd_values_gives_each_job_its_own(project: Project) -> None:
    main = MAIN.replace('with_name("seen")', 'with_name(f"seen{ctx.info.log_id}")')
    (project.folder / "main.py").write_text(main)
    (project.folder / "configs" / "config.yaml").write_text("a: 1\n")
    values = ["x y", "it's", "$HOME;id", "a\nb", "1,2", "é"]
    project.submit(f"a={','.join(map(quote_value, values))}")
    for number, value in enumerate(values, 1):
        project.await_status("COMPLETE", log_id=number)
        assert json.loads((project.folder / f"seen{number}").read_text()) == [{"a": value}, number]


def test_bytes_that_are_no_text_are_refused(project: Project) -> None:
    (project.folder / "main.py").write_text(MAIN)
    for start in (project.run, project.submit):
        done = start("+a='" + os.fsdecode(b"\xff") + "'", code=2)
        assert done.stderr.count("mlxjobs: error: ") == 1
        assert "Traceback" not in done.stderr
    assert not (project.logs / "1").exists()


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary(max_size=5)
    | st.builds(Path, st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
)
configurations = st.dictionaries(
    st.text(st.characters(codec="utf-8")) | st.integers() | st.booleans(),
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


@given(configurations)
def test_any_configuration_survives_being_stored(config: dict[Any, Any]) -> None:
    composed = Composed(config, {"job": config}, ["a=1"])
    text = stored.to_yaml(composed)
    again = stored.from_yaml(text.encode(), Path("x"))
    assert repr(again) == repr(composed)  # -0.0, True and 1 are told apart
