"""The configurations of a sweep are what Hydra alone composes, whatever way they were made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from unittest import mock

import hydra.version
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxjobs.config import compose, hydra_door, sweeps
from mlxjobs.config.stored import Composed
from mlxjobs.errors import InvalidConfigFileError

# a property is tried on many sweeps, each of which Hydra composes run by run
pytestmark = pytest.mark.timeout(600)

CONFIG = """
defaults:
  - model: small
  - _self_
seed: 0
name: run
ratio: 0.5
flag: true
nothing: null
text: "a b"
wanted: ???
linked: ${optimizer.lr}
empty: ${nothing}
link_to_dict: ${optimizer}
made: ${oc.env:HOME}
items: [1, 2, {a: 3}]
optimizer:
  lr: 0.1
  betas: [0.9, 0.99]
  inner: {momentum: 0.9, model: x}
"""
# new keys that interpolations lead to or come from, and sections that are interpolations
LINKED = """
seed: 0
title: ${new}
later: ${deep.er}
section: {a: 1, b: "${hydra.job.num}", c: {d: "${new}"}}
to_section: ${section}
to_hydra: ${hydra.job}
none: null
missing: ???
3: {a: 1}
"""
SMALL = "layers: 2\nwidth: ${..ratio}\n"
BIG = "layers: 9\nextra: 1\nwidth: 3\n"


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Inner:
    count: int = 1
    rate: float = 0.1
    colour: Colour = Colour.RED
    path: Path = Path("/a")
    many: list[int] = field(default_factory=lambda: [1])


@dataclass
class Typed:
    seed: int = 0
    name: str = "n"
    inner: Inner = field(default_factory=Inner)
    free: Any = 1


def task(config: Any) -> None:
    pass


@pytest.fixture(scope="module")
def config_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("configs")
    (folder / "model").mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "model" / "small.yaml").write_text(SMALL)
    (folder / "model" / "big.yaml").write_text(BIG)
    (folder / "choosing.yaml").write_text(
        "defaults:\n  - model: small\n  - other: ${model}\n  - _self_\nseed: 1\n"
    )
    (folder / "linked.yaml").write_text(LINKED)
    (folder / "named.yaml").write_text("seed: 0\nhydra: {job: {name: '${new}'}}\n")
    (folder / "other").mkdir()
    (folder / "other" / "small.yaml").write_text("o: 1\n")
    (folder / "other" / "big.yaml").write_text("o: 2\n")
    ConfigStore.instance().store(name="typed", node=Typed)
    yield folder
    ConfigStore.instance().repo.pop("typed.yaml")


def runs(
    folder: Path, arguments: list[str], *, short: bool, quiet: bool, name: str = "config"
) -> list[Composed]:
    """What is kept of each run of a command line, composed the short way or by Hydra alone."""
    found: list[Composed] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        nullcontext() if short else mock.patch.object(sweeps, "composing_once", return_value=nullcontext()),
    ):
        compose.compose_runs(
            task,
            arguments,
            config_dir=folder,
            config_name=name,
            scratch=Path(scratch),
            sweep_dir=Path(scratch),
            quiet=quiet,
            run=found.append,
        )
        for one in found:  # what differs between two calls, not between two ways
            text = repr(one.hydra).replace(scratch, "SCRATCH")
            one.hydra.clear()
            one.hydra["all"] = text
    return found


def assert_same(
    folder: Path, arguments: list[str], name: str = "config", modes: tuple[bool, ...] = (True, False)
) -> list[Composed]:
    """Both ways give the same, quiet or not: equal configurations of the same types, or the same error."""
    result: list[Composed] = []
    for quiet in modes:
        outcomes = []
        for short in (True, False):
            try:
                result = runs(folder, arguments, short=short, quiet=quiet, name=name)
                outcomes.append([repr(one) for one in result])
            except InvalidConfigFileError as error:
                outcomes.append([f"error: {error}"])
        assert outcomes[0] == outcomes[1]
    return result


def count_compositions(folder: Path, arguments: list[str], name: str = "config") -> int:
    """How many configurations Hydra composed for a submission, the master's aside."""
    with mock.patch.object(
        ConfigLoaderImpl, "load_sweep_config", autospec=True, side_effect=ConfigLoaderImpl.load_sweep_config
    ) as load:
        runs(folder, arguments, short=True, quiet=True, name=name)
    return load.call_count


KEYS = ["seed", "name", "ratio", "flag", "nothing", "text", "wanted", "linked", "optimizer.lr",
        "optimizer.inner.momentum", "optimizer.inner.model", "model.layers", "model.width",
        "made"]  # fmt: skip
SCALARS = st.one_of(
    st.integers(-3, 3).map(str),
    st.sampled_from(["0.5", "1e-3", ".5", "inf", "nan", "true", "false", "null", "Null", "abc", "a-b",
                     "'a b'", '"c d"', "'it\\'s'", "''", "'é,日本'", "1_000", "0x10", "'3'", "'true'",
                     "${seed}", "'${seed}'", "???", "a:b", "1:2", "\\${x}", "/x/y.z", "'null'"]),
)  # fmt: skip
OTHERS = st.sampled_from(
    ["model=big", "model=small,big", "+new=1", "++seed=4", "++new.a=2", "~flag", "items=[3]", "items=[1],[2]",
     "optimizer={lr:1}", "optimizer.betas=[1,2]", "hydra.job.name=x", "seed=range(3)", "seed=choice(1,2)",
     "+list=[1,2],[3]", "optimizer.inner={momentum:1},{momentum:2}", "nowhere=1",
     "model.extra=1", "hydra.sweep.subdir=${hydra.job.num}", "linked=${seed},3", "link_to_dict.lr=3,4",
     "items.0=5,6", "seed=tag(t,1,2)", "+model.deep.er=1,2", "hydra.job.env_copy=[HOME]",
     "name=glob(*)", "model@other=big", "optimizer.lr=float(1),int(2)", "text=str(1),str(2)"]
)  # fmt: skip


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(
    swept=st.lists(
        st.tuples(st.sampled_from(KEYS), st.lists(SCALARS, min_size=1, max_size=3)), min_size=1, max_size=2
    ),
    others=st.lists(OTHERS, max_size=2),
    last=st.booleans(),
    quiet=st.booleans(),
)
def test_both_ways_give_the_same(
    config_dir: Path, swept: list[tuple[str, list[str]]], others: list[str], last: bool, quiet: bool
) -> None:
    plain = [f"{key}={','.join(values)}" for key, values in swept]
    assert_same(config_dir, ["-m", *(others + plain if last else plain + others)], modes=(quiet,))


def describe(node: Any) -> Any:
    """All of a configuration that can be told apart: values, order of keys, types and flags."""
    meta = node._metadata
    kinds = [type(node), meta.ref_type, meta.optional, meta.key, sorted((meta.flags or {}).items())]
    kinds += [getattr(meta, name, None) for name in ("object_type", "key_type", "element_type")]
    content = vars(node).get("_content", node._value())
    if isinstance(content, dict):
        content = [(key, describe(item)) for key, item in content.items()]
    elif isinstance(content, list):
        content = [describe(item) for item in content]
    return [str(kind) for kind in kinds], content if isinstance(content, list) else repr(content)


def composed_or_error(compose_run: Callable[[], Any]) -> Any:
    try:
        return describe(compose_run())
    except Exception as error:
        return type(error), str(error)


NEW_KEYS = ["new", "new.a", "new.a.b", "deep.er", "deep.er.x", "seed", "seed.x", "title", "title.x", "later",
            "section", "section.a", "section.b", "section.c.d", "section.c.e", "section.new", "to_section",
            "to_section.a", "to_section.new", "to_hydra.num", "none", "none.a", "missing", "missing.a", "3.a",
            "new[a]", "model.new", "optimizer.lr", "optimizer.new", "inner.count", "inner.new", "free.a",
            "items.0", "hydra.job.num"]  # fmt: skip
NEW_VALUES = SCALARS | st.sampled_from(
    [
        "{a:1}",
        "{a:{b:2},c:[3]}",
        "{}",
        "[]",
        "[1,{a:2}]",
        "{a:${seed}}",
        "[${new}]",
        "${hydra.job.num}",
        "RED",
    ]
)
HYDRAS = ["hydra.job.env_copy=[HOME]", "hydra.job.config.override_dirname.kv_sep=${seed}",
          "hydra.job.config.override_dirname.exclude_keys=[new]", "hydra.job.name=${new}"]  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(["config", "linked", "linked", "named", "typed"]))
def test_a_run_is_hydras_own_in_every_flag(config_dir: Path, data: st.DataObject, name: str) -> None:
    marks = st.sampled_from(["+", "+", "++", "++", "", "~"])
    shape = data.draw(st.lists(st.tuples(marks, st.sampled_from(NEW_KEYS)), min_size=1, max_size=3))
    values = st.tuples(*[NEW_VALUES for _ in shape])
    sweep = [
        [f"{mark}{key}={value}" for (mark, key), value in zip(shape, drawn, strict=True)]
        for drawn in data.draw(st.lists(values, min_size=2, max_size=3))
    ]
    hydras = data.draw(st.lists(st.sampled_from(HYDRAS), max_size=1))
    hydra.version.setbase("1.3")
    loader = ConfigLoaderImpl(create_config_search_path(str(config_dir)))
    master = loader.load_configuration(name, hydras, RunMode.MULTIRUN)
    expected = [composed_or_error(lambda: loader.load_sweep_config(master, run)) for run in sweep]  # noqa: B023
    with sweeps.composing_once():
        found = [composed_or_error(lambda: loader.load_sweep_config(master, run)) for run in sweep]  # noqa: B023
    assert found == expected


@pytest.mark.parametrize("name", ["override_applier", "dirname_maker", "loader_class"])
def test_a_hydra_that_lacks_a_private_name_goes_its_own_way(config_dir: Path, name: str) -> None:
    with mock.patch.object(hydra_door, name, return_value=None):
        assert_same(config_dir, ["seed=1,2", "+new=3"])


def test_runs_that_differ_in_plain_values_are_composed_once(config_dir: Path) -> None:
    assert count_compositions(config_dir, ["seed=range(50)", "optimizer.lr=0.1,0.2"]) == 1
    found = assert_same(config_dir, ["seed=1,2", "optimizer.lr=0.1,'x y'"])
    assert [(one.config["seed"], one.config["optimizer"]["lr"]) for one in found] == [
        (1, 0.1), (1, "x y"), (2, 0.1), (2, "x y"),
    ]  # fmt: skip
    # overrides may be anything, and set keys that are new
    assert count_compositions(config_dir, ["seed=range(9)", "items=[7]", "optimizer.inner={momentum:1}"]) == 1
    assert count_compositions(config_dir, ["seed=range(9)", "+new.deep=3"]) == 1
    assert count_compositions(config_dir, ["+new=range(9)", "++other.deep.er=1,2", "~flag"]) == 1
    assert count_compositions(config_dir, ["+new={a:1},{b:[2]}", "linked=3,4", "+optimizer={x:1},{y:2}"]) == 1
    assert count_compositions(config_dir, ["+new={a:1},{b:[2]}", "linked=3,4", "++seed=x,[1]"]) == 2
    # a group is another composition, once for each choice
    assert count_compositions(config_dir, ["seed=range(9)", "model=small,big"]) == 2


@pytest.mark.parametrize(
    "unusual",
    [
        "model=small,big",
        "+new=1,2",
        "++seed=1,2",
        "optimizer={lr:1},{lr:2}",
        "items.0=5,6",
        "link_to_dict.lr=3,4",
        "linked=${seed},${ratio}",
        "hydra.job.name=a,b",
        "optimizer.betas=[1],[2]",
        "seed=???,1",
    ],
)
def test_what_is_unusual_is_left_to_hydra(config_dir: Path, unusual: str) -> None:
    assert_same(config_dir, ["-m", unusual])
    assert_same(config_dir, ["-m", unusual, "ratio=1,2"], modes=(True,))


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=1,2", "optimizer={lr:5,seed:1}"],
        ["optimizer.lr=1,2", "optimizer={lr:5}"],
        ["optimizer={lr:5}", "optimizer.lr=1,2"],
        ["model.layers=1,2", "model=big"],
        ["optimizer.inner.momentum=1,2", "~optimizer.inner"],
        ["seed=1,2", "~seed"],
        ["seed=1,2", "hydra.job.env_copy=[HOME]"],
        ["seed=1,2", "hydra.sweep.subdir=${hydra.job.override_dirname}"],
        ["seed=1,2", "hydra.job.config.override_dirname.exclude_keys=[seed]"],
        ["seed=1,2", "hydra.job.config.override_dirname.kv_sep=:"],
        ["seed=1,x,true"],
        ["seed=1,nowhere=2"],
        ["seed=1,2", "no.such=1,2"],
        ["ratio=0.5,2", "~linked=0.1"],
        ["optimizer.lr=0.1,2", "~linked=0.1"],
        ["nothing=null,3", "+empty=1"],
        ["nothing=null,3", "+empty.a=1"],
        ["name=a,b", "hydra.job.config.override_dirname.kv_sep=${name}"],
        ["seed=1,2", "+new.deep=3", "items=[7]", "++optimizer.lr=4"],
    ],
)
def test_overrides_that_meet_each_other(config_dir: Path, arguments: list[str]) -> None:
    assert_same(config_dir, ["-m", *arguments], modes=(True,))


@pytest.mark.parametrize(
    "arguments",
    [
        ["seed=1,2"],
        ["seed=1,x"],
        ["seed=1,1.5"],
        ["name=1,2"],
        ["inner.colour=RED,BLUE"],
        ["inner.rate=1,2"],
        ["inner.path=/x,/y"],
        ["inner.many=[1],[2]"],
        ["free=1,x,null"],
        ["free=1,2", "inner.count=3,4"],
    ],
)
def test_types_convert_and_check_as_hydra_does(config_dir: Path, arguments: list[str]) -> None:
    assert_same(config_dir, ["-m", *arguments], "typed")


def test_groups_that_are_chosen_by_others(config_dir: Path) -> None:
    found = assert_same(config_dir, ["-m", "seed=1,2", "model=small,big"], "choosing")
    assert [(one.config["seed"], one.config["other"]["o"]) for one in found] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]


def test_a_task_that_moves_away_is_seen_by_the_next_run(
    config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra.core.hydra_config import HydraConfig

    monkeypatch.chdir(tmp_path)
    seen = []

    def move(composed: Composed) -> None:
        seen.append(HydraConfig.get().runtime.cwd)
        os.chdir("/")

    compose.compose_runs(
        task, ["seed=1,2,3"], config_dir=config_dir, config_name="config", scratch=tmp_path / "scratch",
        sweep_dir=tmp_path, quiet=False, run=move,
    )  # fmt: skip
    assert seen == [str(tmp_path), "/", "/"]


def test_a_task_sees_its_own_hydra_config(config_dir: Path) -> None:
    from hydra.core.hydra_config import HydraConfig

    seen = []

    def look(composed: Composed) -> None:
        node = HydraConfig.get()
        seen.append(
            (composed.config["seed"], node.job.num, node.job.override_dirname, list(node.overrides.task))
        )
        composed.config["optimizer"]["lr"] = "changed"

    with tempfile.TemporaryDirectory() as scratch:
        compose.compose_runs(
            task, ["seed=1,2,3"], config_dir=config_dir, config_name="config", scratch=Path(scratch),
            sweep_dir=Path(scratch), quiet=False, run=look,
        )  # fmt: skip
    assert seen == [(n + 1, n, f"seed={n + 1}", [f"seed={n + 1}"]) for n in range(3)]
    assert os.environ.get("HYDRA_FULL_ERROR") is None
