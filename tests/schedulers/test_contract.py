"""What every scheduler has to keep: those that are installed, and the one that the documentation shows."""

from __future__ import annotations

import builtins
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxjobs.cluster import registry
from mlxjobs.cluster.script import render_script
from mlxjobs.scheduler import TASK, Fate, Here, Job, JobState, JobStatus, Scheduler, in_zone
from tests.schedulers.example import RUN, job
from tests.schedulers.recordings import folders, recordings

_GUIDE = Path(__file__).resolve().parents[2] / "docs" / "schedulers.md"


def schedulers() -> dict[str, Scheduler]:
    """All that have to keep the contract, by name."""
    found = {name: registry.load(path) for name, path in registry.known().items()}
    text = _GUIDE.read_text() if _GUIDE.exists() else ""
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        shown = re.search(r"^class (\w+)\(.*\bScheduler\):", block, re.MULTILINE)
        if shown is not None:
            module = types.ModuleType("shown")
            sys.modules["shown"] = module
            exec(compile(block, str(_GUIDE), "exec"), module.__dict__)
            found.setdefault(shown.group(1), getattr(module, shown.group(1))())
            break
    return found


SCHEDULERS = schedulers()
each = pytest.mark.parametrize("name", SCHEDULERS)


def array(tasks: int) -> Job:
    folder = RUN.parent / ".arrays" / "1"
    return job(
        script=folder / "script.sh", stdout=folder / TASK / "log.stdout", stderr=folder / TASK / "log.stderr",
        tasks=tasks, command=(),
    )  # fmt: skip


# -- the script ---------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("tasks", [0, 3])
def test_a_script_is_one_that_bash_reads_and_its_options_come_first(name: str, tasks: int) -> None:
    scheduler = SCHEDULERS[name]
    if tasks and not scheduler.array_variable:
        return
    described = array(tasks) if tasks else job()
    script = render_script(described, scheduler)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    options = scheduler.directives(described)
    assert script.splitlines()[1 : 1 + len(options)] == options
    assert all(line.startswith(f"{scheduler.directive} -") and "\n" not in line for line in options)
    if scheduler.directive:
        assert scheduler.directive not in "\n".join(script.splitlines()[1 + len(options) :])


@each
def test_each_line_of_the_users_replaces_ours_of_that_option(name: str) -> None:
    scheduler = SCHEDULERS[name]
    for line in scheduler.options(job()):
        option = scheduler.option_name(line)
        lines = scheduler.directives(job(option_lines=[line]))
        names = [scheduler.option_name(line.removeprefix(f"{scheduler.directive} ")) for line in lines]
        assert names.count(option) == 1
        assert names[-1] == option


ODD = [
    "a b",
    "it's",
    'C"D',
    "$HOME",
    "`id`",
    "back\\slash",
    "100%j",
    "é日本",
    "new\nline",
    "#x",
    "a:b",
    "[1]",
]


@each
@pytest.mark.parametrize("folder", ODD)
def test_a_folder_of_any_name_is_named_right_or_not_at_all(name: str, folder: str) -> None:
    scheduler = SCHEDULERS[name]
    run = Path("/data") / folder
    described = job(stdout=run / "log.stdout", stderr=run / "log.stderr", script=run / "script.sh")
    lines = scheduler.directives(described)
    assert not any("\n" in line for line in lines)
    if not scheduler.names(described.stdout):
        assert not any("log.stdout" in line for line in lines)
        assert "exec >>" in render_script(described, scheduler)
    subprocess.run(["bash", "-n"], input=render_script(described, scheduler), text=True, check=True)
    for command in (
        scheduler.submit_command(described.script),
        scheduler.resubmit_command(described.script, "7"),
    ):
        if command is None or command[:2] != ["/bin/sh", "-c"]:
            continue
        assert str(described.script) not in command[2]  # a shell is given it as an argument
        assert command[-1] == str(described.script)


@each
def test_an_array_has_a_job_for_each_task(name: str) -> None:
    scheduler = SCHEDULERS[name]
    if not scheduler.array_variable:
        return
    with_array, without = scheduler.directives(array(3)), scheduler.directives(job())
    assert set(with_array) - set(without)
    assert any("3" in line for line in set(with_array) - set(without))
    ids = scheduler.parse_array(recordings(name)["submission-array"], 3)
    assert len(set(ids)) == 3
    with pytest.raises(ValueError, match=r".*"):
        scheduler.parse_array("", 3)


# -- commands and what they answer ----------------------------------------------------------------


def test_every_scheduler_of_ours_has_recordings_and_no_recording_is_left_over() -> None:
    assert folders() == set(registry.known())
    for name in registry.known():
        assert {"submission", "status", "status-unknown"} <= set(recordings(name))
        assert bool(SCHEDULERS[name].array_variable) == ("submission-array" in recordings(name))


@each
def test_a_job_can_be_followed_from_its_submission(name: str) -> None:
    scheduler = SCHEDULERS[name]
    for output in recordings(name, "submission").values():
        if output != recordings(name).get("submission-array"):
            job_id = scheduler.parse_submission(output)
            assert job_id in scheduler.parse_status(recordings(name)["status"])
    for kind in ("status", "history"):
        for output in recordings(name, kind).values():
            parse = scheduler.parse_status if kind == "status" else scheduler.parse_history
            answers = parse(output)
            assert answers
            assert "no-such-job" not in answers
            for job_id, status in answers.items():
                assert isinstance(status, JobStatus)
                # asked for again, or all are asked for in any case
                command = scheduler.status_command([job_id])
                assert any(job_id in word for word in command) or command == scheduler.status_command(["0"])


@each
def test_many_jobs_are_one_command(name: str) -> None:
    scheduler = SCHEDULERS[name]
    ids = list(scheduler.parse_status(recordings(name).get("status", "")))
    if not ids:
        return
    for command in (scheduler.status_command(ids), scheduler.cancel_command(ids)):
        assert all(isinstance(word, str) and word for word in command)
    assert all(any(job_id in word for word in scheduler.cancel_command(ids)) for job_id in ids)


@each
def test_a_word_that_is_not_known_is_said_and_not_guessed(name: str) -> None:
    for output in recordings(name, "status-unknown").values():
        answers = SCHEDULERS[name].parse_status(output)
        assert [(status.state, status.word) for status in answers.values()] == [(JobState.UNKNOWN, "DANCING")]


@each
def test_a_job_is_found_by_its_script(name: str) -> None:
    scheduler = SCHEDULERS[name]
    if scheduler.find_command() is None:
        return
    output = recordings(name)["found"]
    if "MARK" in output:  # a mark that our own options leave
        mark = next(line for line in scheduler.options(job()) if "mlxjobs-" in line).split()[-1]
        output = output.replace("MARK", mark)
    assert scheduler.parse_found(output, RUN / "script.sh")
    assert scheduler.parse_found(output, Path("/nobody/script.sh")) == []


def _parsers(scheduler: Scheduler) -> dict[str, Callable[[str], object]]:
    return {
        "submission": scheduler.parse_submission,
        "status": scheduler.parse_status,
        "history": scheduler.parse_history,
        "found": lambda output: scheduler.parse_found(output, RUN / "script.sh"),
        "max_array": scheduler.parse_max_array,
    }


@each
@settings(max_examples=50)
@given(data=st.data())
def test_whatever_a_command_prints_is_an_answer_or_a_value_error(name: str, data: st.DataObject) -> None:
    scheduler = SCHEDULERS[name]
    for kind, parse in _parsers(scheduler).items():
        texts = [*recordings(name, kind).values(), ""]
        text = data.draw(st.sampled_from(texts))
        begin, end = (data.draw(st.integers(0, len(text))) for _ in range(2))
        junk = data.draw(st.text(max_size=20))
        for output in (text[:end], text[begin:], text[:begin] + junk + text[end:], junk):
            # of somebody's own any mistake is told, with its file and line
            with suppress(ValueError if name in registry.known() else Exception):
                parse(output)


@each
@pytest.mark.parametrize("output", ["", "\n", "command not found\n", "{", "<Data>", "[]", "null\n"])
def test_no_id_in_an_output_is_a_value_error(name: str, output: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        SCHEDULERS[name].parse_submission(output)


# -- inside a job -------------------------------------------------------------------------------


class Asked(Mapping[str, str]):
    """An environment that has everything, and remembers what was asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, key: str) -> str:
        self.names.add(key)
        return "1"

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@each
def test_the_environment_of_a_job_does_not_leak_into_the_next_one(name: str) -> None:
    scheduler = SCHEDULERS[name]
    assert scheduler.here({}) is None
    asked = Asked()
    here = scheduler.here(asked)
    assert here is not None
    assert here.job_id
    assert asked.names
    if scheduler.array_variable:
        asked.names.add(scheduler.array_variable)
    for variable in asked.names:
        assert any(re.fullmatch(pattern.replace("*", ".*"), variable) for pattern in scheduler.environment)
    if name in registry.known():
        assert not registry.clean_environment(dict.fromkeys(asked.names, "1"))
        assert registry.clean_environment({"PATH": "/bin", "HOME": "/h"}) == {"PATH": "/bin", "HOME": "/h"}


@each
@pytest.mark.parametrize("state", JobState)
def test_a_signal_means_something_in_every_state(name: str, state: JobState) -> None:
    scheduler = SCHEDULERS[name]
    fate = scheduler.fate(JobStatus(state, state.value), Here("7"))
    assert isinstance(fate, Fate)
    if state is JobState.RUNNING and scheduler.warning_signals:
        # or nothing but its time's end makes the scheduler warn a job, as in Grid Engine
        assert fate in (Fate.RUNS_ON, Fate.TIME_LIMIT)
    if state is JobState.UNKNOWN:
        assert fate is not Fate.RUNS_ON


@each
def test_leaving_to_come_back_is_no_success_and_there_is_a_way_back(name: str) -> None:
    scheduler = SCHEDULERS[name]
    assert 0 < scheduler.requeue_exit_code() < 128
    ways = (
        scheduler.requeue_command("7"),
        scheduler.resubmit_command(RUN / "script.sh", "7"),
        scheduler.requeues_exit_after_s(None),
    )
    if name in registry.known():
        assert any(way is not None for way in ways)


# -- purity ---------------------------------------------------------------------------------------


class Forbidden(Mapping[str, str]):
    """An environment that nobody may look at."""

    def __getitem__(self, key: str) -> str:
        raise AssertionError(f"it reads the environment: {key}")

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("it reads the environment")

    def __len__(self) -> int:
        raise AssertionError("it reads the environment")


def _everything(name: str) -> None:
    scheduler = SCHEDULERS[name]
    for described in (job(), *([array(3)] if scheduler.array_variable else [])):
        scheduler.directives(described)
    for kind, parse in _parsers(scheduler).items():
        for output in recordings(name, kind).values():
            parse(output)
    for ids in (["7"], ["7", "8"]):
        scheduler.status_command(ids)
        scheduler.history_command(ids)
        scheduler.cancel_command(ids)
    scheduler.submit_command(RUN / "script.sh")
    scheduler.resubmit_command(RUN / "script.sh", "7")
    for command in (scheduler.requeue_command, scheduler.preempt_command):
        command("7")
    scheduler.find_command()
    scheduler.max_array_command()
    scheduler.may_have_submitted("words")
    scheduler.is_full("words")
    scheduler.here({})
    scheduler.here(Asked())


@each
def test_it_touches_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _everything(name)  # what is imported late is imported now
    texts = recordings(name)

    def refuse(*args: object, **more: object) -> None:
        raise AssertionError(f"it touches the machine: {args}")

    def recorded(_name: str, kind: str = "") -> dict[str, str]:
        return {stem: text for stem, text in texts.items() if stem.startswith(kind)}

    monkeypatch.setattr(f"{__name__}.recordings", recorded)
    with monkeypatch.context() as guarded:
        guarded.setattr(builtins, "open", refuse)
        for owner, names in ((os, ("open", "stat", "listdir", "system")), (subprocess, ("Popen", "run"))):
            for forbidden in names:
                guarded.setattr(owner, forbidden, refuse)
        guarded.setattr(os, "environ", Forbidden())
        _everything(name)


@pytest.fixture
def paris(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("summer", ["+02:00", "+01:00"])
def test_a_job_of_the_hour_that_comes_twice_is_its_run_s(paris: None, summer: str) -> None:
    submitted = in_zone(datetime(2026, 10, 25, 2, 30, 1))  # as the scheduler says it, without its zone
    assert JobStatus(JobState.RUNNING, "R", submitted=submitted).is_of(f"2026-10-25T02:30:00.000{summer}")
