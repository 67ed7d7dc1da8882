"""Whole job scripts, compared with those in `tests/golden`: `make golden` writes them anew."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlxjobs.cluster import registry
from mlxjobs.cluster.script import place_in, render_script
from mlxjobs.config.command_line import quote_value
from mlxjobs.config.settings import Settings
from mlxjobs.errors import InvalidConfigFileError
from mlxjobs.launcher import submit
from mlxjobs.launcher.program import Program
from mlxjobs.launcher.submit import check_submission, job_script
from mlxjobs.record.run import Run
from mlxjobs.scheduler import Job

GOLDEN = Path(__file__).with_name("golden")
HOME = Path("/home/ada")
ODD = Path('/data/a b/it\'s "$HOME" `id` %j/é;日本&')
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "commands": {
        "shell_path": "/bin/bash -l",
        "shell_config_cmd": ["source /etc/profile", "set -o pipefail"],
        "cleanup_cmd": ["module purge", "unset PYTHONPATH"],
        "env_cmd": ["module load cuda/12", 'export NAME="a b"', "source ~/venv/bin/activate"],
        "option_cmd": ["--time=1:00:00"],
    },
    "one_string": {"env_cmd": "module load cuda\nexport A=1\n", "option_cmd": "--time=1:00:00\n"},
    "odd": {},
    "newline": {},
    "theirs": {"option_cmd": ["--job-name=mine", "--output=/dev/null", "--time=0:10"]},
}


@pytest.fixture
def on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All schedulers' commands, so that a script can be made anywhere."""
    for path in registry.known().values():
        for command in registry.load(path).commands:
            (tmp_path / command).write_text("#!/bin/sh\n")
            (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    # of the tests themselves there may be none: pytest-xdist starts them from a pipe
    monkeypatch.setattr(
        submit, "this_program", lambda: Program(["python"], str(tmp_path / "main.py"), tmp_path)
    )


def make(name: str, case: str) -> str:
    work_dir = {"odd": ODD, "newline": Path("/data/new\nline")}.get(case, HOME / "project")
    logger = {"parent_log_dir": str(work_dir / "logs")}
    settings = Settings().updated({"scheduler": {**CASES[case], "name": name}, "logger": logger}, "this test")
    program = Program(["/opt/python/bin/python3", "-u"], str(work_dir / "main.py"), work_dir)
    return job_script(Run(work_dir / "logs" / "5"), settings, program, check_submission(settings, program))


@pytest.mark.usefixtures("on_the_path")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", registry.known())
def test_a_script_is_as_it_was(name: str, case: str) -> None:
    script, path = make(name, case), GOLDEN / name / f"{case}.sh"
    if os.environ.get("MLXJOBS_WRITE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(script)
    assert path.exists(), f"{path} is missing: look at what `make golden` writes, and commit it"
    assert script == path.read_text()
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        # SC1091: a file of the site's that is sourced; SC2034: the case sets a variable for nobody
        subprocess.run(["shellcheck", "--shell=bash", "--exclude=SC1091,SC1090,SC2034", path], check=True)


@pytest.mark.usefixtures("on_the_path")
@pytest.mark.parametrize("name", registry.known())
def test_the_parts_stand_in_the_order_that_is_promised(name: str) -> None:
    lines = make(name, "commands").splitlines()
    directive = registry.load(registry.known()[name]).directive
    order = [
        "#!/bin/bash -l",
        f"{directive} --time=1:00:00",
        "source /etc/profile",
        "set -o pipefail",
        "module purge",
        "unset PYTHONPATH",
        "module load cuda/12",
        'export NAME="a b"',
        "source ~/venv/bin/activate",
        "cd /home/ada/project || exit",
    ]
    places = [lines.index(line) for line in order]
    assert places == sorted(places)
    assert places[0] == 0
    # directives end at the first other line (sbatch(1)), so none may stand after it
    given = [number for number, line in enumerate(lines) if line.startswith(f"{directive} ")]
    assert given == list(range(1, 1 + len(given)))
    assert lines[-1] == (
        "exec /opt/python/bin/python3 -u /home/ada/project/main.py +mlxpy.logger.forced_log_id=5 "
        "+mlxpy.logger.parent_log_dir=/home/ada/project/logs +mlxpy.use_scheduler=false "
        "+mlxpy.use_version_manager=false +mlxpy.interactive_mode=false"
    )


def test_no_golden_script_is_left_over() -> None:
    there = {path.relative_to(GOLDEN) for path in GOLDEN.rglob("*.sh")}
    assert there == {Path(name) / f"{case}.sh" for name in registry.known() for case in CASES}


@pytest.mark.parametrize("name", registry.known())
def test_the_command_gets_its_arguments_whatever_they_are(name: str, tmp_path: Path) -> None:
    words = [
        "",
        " ",
        "a b",
        "it's",
        '"',
        "$HOME",
        "`id`",
        "\\",
        "new\nline",
        "*",
        "é",
        "-n",
        "!x",
        "%s",
        "#",
        "~",
    ]
    script = tmp_path / "script.sh"
    job = Job(
        name="x-1",
        script=script,
        stdout=tmp_path / "out",
        stderr=tmp_path / "err",
        work_dir=tmp_path,
        command=["printf", "%s\\0", *words],
    )
    script.write_text(render_script(job, registry.load(registry.known()[name])))
    done = subprocess.run(["bash", str(script)], check=True, capture_output=True, text=True)
    said = done.stdout or job.stdout.read_text()  # where the script opens its files itself
    assert said.split("\0")[:-1] == words


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["--time=1 --mem=2G"], r"holds several options.*\['--time=1', '--mem=2G'\]"),
        (["-n 4 -t 5"], r"\['-n 4', '-t 5'\]"),
        (["time=1"], "does not begin with '-'"),
        (["--comment='a"], "No closing quotation"),
    ],
)
def test_an_option_that_cannot_be_meant_is_an_error(lines: list[str], words: str) -> None:
    run = Path("/r")
    job = Job("x-1", run / "s", run / "o", run / "e", run, ["true"], option_lines=lines)
    with pytest.raises(InvalidConfigFileError, match=words):
        render_script(job, registry.load(registry.known()["SLURMScheduler"]))


@pytest.mark.parametrize("folder", ["/a/b", "/it's $HOME #1 `id`\n/logs", "/a 'b\nc' d"])
def test_a_script_says_whose_run_it_starts(folder: str) -> None:
    command = ["+mlxpy.logger.forced_log_id=1", f"+mlxpy.logger.parent_log_dir={quote_value(folder)}"]
    assert place_in(f"#!/bin/sh\nexec python main.py {shlex.join(command)}\n") == Path(folder, "1")
    assert place_in("echo '+mlxpy.logger.parent_log_dir=/a'") is None


def test_all_our_scripts_say_whose_run_they_start() -> None:
    for script in GOLDEN.glob("*/plain.sh"):
        assert place_in(script.read_text()) == HOME / "project" / "logs" / "5", script
