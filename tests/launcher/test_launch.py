"""What a user sees who starts a program: by command lines, in processes of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.project import NEW_FILE, Project, assert_one_message, finish, names, runs, write

# prints what the task was given, one JSON line a run
SHOW = """
import json
import mlxpy

@mlxpy.launch(config_path="./configs")
def train(ctx):
    print("SEEN", json.dumps(ctx.config, default=str), flush=True)

if __name__ == "__main__":
    train()
"""


def seen(text: str) -> list[Any]:
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("SEEN ")]


# -- the first start ----------------------------------------------------------------------------


def test_the_first_start_makes_the_configuration_and_nothing_else(project: Project) -> None:
    write(project, {"main.py": SHOW})
    (project.folder / "configs" / "config.yaml").unlink()
    (project.folder / "configs").rmdir()
    done = project.run("+lr=1")
    assert seen(done.stdout) == [{"seed": None, "lr": 1}]
    assert names(project.folder) == ["configs", "logs", "main.py"]
    assert names(project.folder / "configs") == ["config.yaml", "mlxpy.yaml"]
    assert yaml.safe_load((project.folder / "configs" / "config.yaml").read_text()) == {"seed": None}
    assert (project.folder / "configs" / "mlxpy.yaml").read_text() == NEW_FILE
    mine = "use_logger: false  # mine\n"
    write(project, {"configs/mlxpy.yaml": mine})
    project.run("seed=3")
    assert (project.folder / "configs" / "mlxpy.yaml").read_text() == mine
    assert runs(project) == [1]  # use_logger: false was obeyed
    assert project.at(1).read_yaml("config") == {"seed": None, "lr": 1}


def test_a_program_may_be_started_from_anywhere(project: Project) -> None:
    elsewhere = project.folder.parent / "elsewhere"
    elsewhere.mkdir()
    write(project, {"main.py": SHOW.replace("./configs", "./my/conf")})
    done = project.command(project.python, "../project/main.py", "+a=1", cwd=elsewhere)
    assert seen(done.stdout) == [{"seed": None, "a": 1}]
    # the configuration lies by the file, the logs by the user
    assert names(project.folder / "my" / "conf") == ["config.yaml", "mlxpy.yaml"]
    assert names(elsewhere) == ["logs"]


def test_a_task_that_another_decorator_wraps_is_found_in_its_own_file(project: Project) -> None:
    write(
        project,
        {
            "lib/deco.py": "import functools\n\ndef deco(f):\n    @functools.wraps(f)\n    def g(*a):\n"
            "        return f(*a)\n    return g\n",
            "lib/__init__.py": "",
            "main.py": SHOW.replace("def train", "@__import__('lib.deco').deco.deco\ndef train"),
        },
    )
    assert seen(project.run().stdout)[0]["num_epoch"] == 5
    assert "configs" not in names(project.folder / "lib")


def test_modules_and_options_of_python_reach_the_job(project: Project) -> None:
    body = SHOW.replace('"./configs"', '"../configs"').replace(
        "    print(",
        "    import sys; print(__name__, __package__, sys.flags.utf8_mode, sys.argv[0][-7:]);    print(",
    )
    write(
        project,
        {
            "package/main.py": "from . import other\n" + body,
            "package/other.py": "",
            "package/__init__.py": "",
        },
    )
    python = [project.python, "-X", "utf8", "-um", "package.main"]
    done = project.command(*python, "seed=1")
    assert "__main__ package 1 main.py" in done.stdout
    project.command(*python, "seed=2", "mlxpy.use_scheduler=true", "mlxpy.scheduler.name=LocalScheduler")
    finish(project, 2)
    assert "__main__ package 1 main.py" in project.stdout(2)
    assert "-X utf8 -u -m package.main" in (project.logs / "2" / "script.sh").read_text()
    # a program that looks at its command line first, as with parse_known_args, is started the same way
    write(project, {"main.py": "import sys\nsys.argv.remove('--mine')\n" + SHOW})
    project.submit("--mine", "seed=3")
    project.queue("wait", "--timeout", "120")
    # in the job there is no --mine to remove: it did start main.py
    assert "list.remove(x)" in project.stderr(3)


# -- sweeps and Hydra's command line ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a=1,2"], [1, 2]),
        (["-m", "a=1,2"], [1, 2]),
        (["--multirun", "a=range(1,4)"], [1, 2, 3]),
        (["a=choice(1,x)"], [1, "x"]),
        (["a=[1,2]"], [[1, 2]]),
        (["a='1,2'"], ["1,2"]),
        (["-r", "a=7"], [7]),
    ],
)
def test_a_sweep_needs_no_flag(project: Project, arguments: list[str], expected: list[Any]) -> None:
    write(project, {"main.py": SHOW, "configs/config.yaml": "a: 0\n"})
    done = project.run(*arguments)
    assert [run["a"] for run in seen(done.stdout)] == expected
    assert runs(project) == list(range(1, len(expected) + 1))
    assert [project.at(log_id).read_yaml("config")["a"] for log_id in runs(project)] == expected
    assert names(project.folder) == ["configs", "logs", "main.py"]


GROUPS = {
    "main.py": SHOW,
    "configs/config.yaml": "defaults:\n  - model: small\n  - _self_\nlr: 0.1\nname: ${model.name}-${lr}\n",
    "configs/model/small.yaml": "name: small\nunits: 3\n",
    "configs/model/big.yaml": "name: big\nunits: 30\n",
    "configs/other.yaml": "other: true\n",
    "more/model/huge.yaml": "name: huge\n",
}


def test_config_groups_and_hydras_options(project: Project) -> None:
    write(project, GROUPS)
    done = project.run("model=glob(*)", "+model.new=1", "++lr=0.5", "~model.units")
    assert [run["model"] for run in seen(done.stdout)] == [
        {"name": "big", "new": 1},
        {"name": "small", "new": 1},
    ]
    assert [run["name"] for run in seen(done.stdout)] == ["big-0.5", "small-0.5"]
    assert seen(project.run("--config-name", "other").stdout) == [{"other": True}]
    assert seen(project.run("--config-n", "other").stdout) == [{"other": True}]  # as argparse takes it
    assert seen(project.run("--config-name=other", "+x=1").stdout) == [{"other": True, "x": 1}]
    assert seen(project.run("--config-dir", "more", "model=huge").stdout)[0]["model"] == {"name": "huge"}
    # a submission composes the same
    project.submit("model=glob(*)", "++lr=0.5")
    for log_id, name in ((7, "big"), (8, "small")):
        finish(project, log_id)
        (config,) = seen(project.stdout(log_id))
        assert config["name"] == f"{name}-0.5"


def test_questions_are_answered_and_run_nothing(project: Project) -> None:
    write(project, GROUPS)
    settings = ("+mlxpy.use_scheduler=true", "+mlxpy.logger.forced_log_id=1")  # are no part of the question
    assert yaml.safe_load(project.run("--cfg", "job", "lr=9", *settings).stdout)["lr"] == 9
    assert "model: big, small" in project.run("--help").stdout
    assert "Provider" in project.run("--info", "searchpath").stdout
    assert "name: small-0.1" in project.run("--cfg=job", "--resolve").stdout
    assert_one_message(project.run("--cfg", "job", "-m", code=2), "Only one of --run, --multirun")
    assert not project.logs.exists()


@pytest.mark.parametrize("submit", [False, True])
def test_hydras_own_view_is_the_same_here_and_in_a_job(project: Project, submit: bool) -> None:
    main = """
import json, logging, os, sys
import mlxpy
from omegaconf import OmegaConf
OmegaConf.register_new_resolver("double", lambda x: 2 * x)
log = logging.getLogger("mine")

@mlxpy.launch(config_path="./configs")
def train(ctx):
    assert "IMPORT" == "LATE" or "hydra" in sys.modules
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import get_original_cwd, instantiate
    from hydra.types import RunMode
    hydra = HydraConfig.get()
    print("SEEN", json.dumps({
        "config": ctx.config, "num": hydra.job.num, "name": hydra.job.name, "cwd": get_original_cwd(),
        "overrides": list(hydra.overrides.task), "multirun": hydra.mode is RunMode.MULTIRUN,
        "output": hydra.runtime.output_dir, "choice": hydra.runtime.choices["model"],
        "built": str(instantiate(ctx.config.model)), "set": os.environ["SET"],
        "same": ctx.config.when == OmegaConf.create({"x": "${now:%Y}"}).x,
    }))
    log.info("logged")
    log.debug("hidden")

if __name__ == "__main__":
    train()
"""
    config = """
defaults:
  - model: path
  - _self_
x: ${oc.env:X}
twice: ${double:${n}}
n: 1
when: ${now:%Y}
num: ${hydra:job.num}
hydra:
  job:
    env_set: {SET: "${oc.env:X}-set"}
"""
    model = "_target_: pathlib.PurePosixPath\n_args_: [a, b]\n"
    write(project, {"main.py": main, "configs/config.yaml": config, "configs/model/path.yaml": model})
    options = ["mlxpy.scheduler.env_cmd='export X=job'"] if submit else []
    (project.submit if submit else project.run)("n=1,2", *options, env={"X": "here"})
    x = "job" if submit else "here"  # resolved where the task runs
    for number, log_id in enumerate((1, 2)):
        if submit:
            finish(project, log_id)
            assert project.stdout(log_id).count("[INFO] - logged") == 1
            (view,) = seen(project.stdout(log_id))
        else:
            again = project.run(f"+mlxpy.logger.forced_log_id={log_id}", env={"X": "here"})
            assert again.stdout.count("[mine][INFO] - logged") == 1
            (view,) = seen(again.stdout)
        assert view == {
            "config": {
                "model": {"_target_": "pathlib.PurePosixPath", "_args_": ["a", "b"]},
                "x": x,
                "twice": 2 * (number + 1),
                "n": number + 1,
                "when": view["config"]["when"],
                "num": number,
            },
            "num": number,
            "name": "main",
            "cwd": str(project.folder),
            "overrides": [f"n={number + 1}"],
            "multirun": True,
            "output": str(project.logs / str(log_id)),
            "choice": "path",
            "built": "a/b",
            "set": f"{x}-set",
            "same": True,
        }
        assert project.at(log_id).read_yaml("config") == view["config"]  # what the task saw
        assert "logged" in (project.logs / str(log_id) / "main.log").read_text()
        assert "hidden" not in (project.logs / str(log_id) / "main.log").read_text()
    assert names(project.folder) == ["configs", "logs", "main.py"]


def test_structured_configs_keep_their_types_and_their_missing_values(project: Project) -> None:
    main = """
import enum, json
from dataclasses import dataclass, field
from pathlib import Path
import mlxpy
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import MISSING

class Colour(enum.Enum):
    RED = 1
    BLUE = 2

class Net:
    def __init__(self, inputs, units):
        self.shape = inputs, units

@dataclass
class Model:
    _target_: str = "__main__.Net"
    inputs: int = MISSING
    units: int = 3

@dataclass
class Config:
    seed: int = MISSING
    colour: Colour = Colour.RED
    root: Path = Path("/a b")
    model: Model = field(default_factory=Model)

ConfigStore.instance().store(name="config", node=Config)

@mlxpy.launch(config_path="./configs")
def train(ctx):
    c = ctx.config
    net = instantiate(c.model, inputs=7)  # a missing value may be given later
    print("SEEN", json.dumps([c.seed, repr(c.colour), repr(c.root), net.shape, c.model.get("inputs")]))
    c.model.inputs

if __name__ == "__main__":
    train()
"""
    write(project, {"main.py": main})
    (project.folder / "configs" / "config.yaml").unlink()
    done = project.run("seed=1", "colour=BLUE", "model.units=4", code=1)
    assert seen(done.stdout) == [[1, "<Colour.BLUE: 2>", "PosixPath('/a b')", [7, 4], None]]
    assert "MissingFieldError: the mandatory value 'inputs' is missing" in done.stderr
    assert names(project.folder / "configs") == ["mlxpy.yaml"]  # no file hides the structure
    assert "could not be converted to Integer" in project.run("seed=x", code=2).stderr
    done = project.submit("colour=BLUE", "seed=1,2")
    assert "mandatory values are not given, and reading them is an error: model.inputs\n" in done.stderr
    finish(project, 3, "FAILED")
    assert seen(project.stdout(3)) == [[2, "<Colour.BLUE: 2>", "PosixPath('/a b')", [7, 3], None]]
    # the types stay when it is started again with something else
    again = ("+mlxpy.logger.forced_log_id=1", "root=/c", "seed=5")
    done = project.run(*again, "colour=RED", code=1)
    assert seen(done.stdout) == [[5, "<Colour.RED: 1>", "PosixPath('/c')", [7, 4], None]]
    assert "mlxjobs: run 1: root: /a b -> /c\n" in done.stderr
    assert_one_message(project.run(*again, "colour=GREEN", code=2), "colour=GREEN: it is one of RED, BLUE")


CALLBACK = """
import os
from hydra.experimental.callback import Callback

class Tell(Callback):
    def __init__(self, word):
        self.word = word
    def on_run_start(self, config, **kwargs):
        print(self.word, "run start", config.a, flush=True)
    def on_job_start(self, config, task_function, **kwargs):
        print(self.word, "job start", config.hydra.job.name, task_function.__name__, flush=True)
    def on_job_end(self, config, job_return, **kwargs):
        value = job_return._return_value
        print(self.word, "job end", job_return.status.name, repr(value), flush=True)
    def on_run_end(self, config, job_return, **kwargs):
        print(self.word, "run end", flush=True)
"""


def test_callbacks_are_called_where_the_task_runs(project: Project) -> None:
    write(
        project,
        {
            "main.py": SHOW.replace("flush=True)", "flush=True)\n    return 1 / ctx.config.a"),
            "callback.py": CALLBACK,
            "configs/config.yaml": "a: 1\nhydra: {callbacks: {tell: {_target_: callback.Tell, word: W}}}\n",
        },
    )
    good = [
        "W run start 1",
        "W job start main train",
        'SEEN {"a": 1}',
        "W job end COMPLETED 1.0",
        "W run end",
    ]
    bad = ["W run start 0", "W job start main train", 'SEEN {"a": 0}']
    bad += ["W job end FAILED ZeroDivisionError('division by zero')", "W run end"]
    assert project.run().stdout.splitlines() == good
    assert project.run("a=0", code=1).stdout.splitlines() == bad
    assert "W " not in project.submit().stdout
    assert "W " not in project.submit("a=0").stdout
    finish(project, 3)
    finish(project, 4, "FAILED")
    project.queue("wait", "--timeout", "120")
    assert project.stdout(3).splitlines() == good
    assert project.stdout(4).splitlines() == bad


def test_the_users_own_logging_is_obeyed(project: Project) -> None:
    logging = """
version: 1
formatters: {short: {format: "<%(levelname)s %(message)s>"}}
handlers: {console: {class: logging.StreamHandler, formatter: short, stream: ext://sys.stdout}}
root: {level: INFO, handlers: [console]}
disable_existing_loggers: false
"""
    main = SHOW.replace("    print(", "    import logging; logging.getLogger().info('told'); print(")
    config = "defaults:\n  - override hydra/job_logging: mine\n  - _self_\n"
    write(
        project,
        {"main.py": main, "configs/config.yaml": config, "configs/hydra/job_logging/mine.yaml": logging},
    )
    assert "<INFO told>" in project.run("+mlxpy.logger.log_streams_to_file=true").stdout
    assert "<INFO told>" in project.stdout(1)  # with what the task prints
    assert "SEEN" in project.stdout(1)
    project.submit()
    finish(project, 2)
    assert "<INFO told>" in project.stdout(2)
    assert not (project.logs / "2" / "main.log").exists()


def test_a_real_sweeper_gets_what_the_task_returns(project: Project) -> None:
    main = SHOW.replace("flush=True)", "flush=True)\n    return (ctx.config.x - 2) ** 2")
    write(project, {"main.py": main, "configs/config.yaml": "x: 0.0\n"})
    optuna = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.sampler.seed=1")
    project.commit()
    # from a snapshot: the program starts anew there, and the sweeper with it
    project.run(*optuna, "x=interval(-5,5)", "+mlxpy.use_version_manager=true")
    xs = [project.at(log_id).read_yaml("config")["x"] for log_id in (1, 2, 3, 4)]
    (results,) = project.logs.glob(".sweeps/*/optimization_results.yaml")
    best = yaml.safe_load(results.read_text())
    assert best["best_value"] == pytest.approx(min((x - 2) ** 2 for x in xs))
    assert names(project.folder) == [".git", ".gitignore", ".workdir", "configs", "logs", "main.py"]
    done = project.submit(*optuna, "x=interval(-5,5)", code=2)
    assert_one_message(done, "cannot be used with use_scheduler=true")
    assert runs(project) == [1, 2, 3, 4]


# -- how it ends --------------------------------------------------------------------------------

ENDS = """
import sys
import mlxpy

@mlxpy.launch(config_path="./configs")
def train(ctx):
    how = ctx.config.how
    if how == "raise":
        raise ValueError("of the task")
    if how == "exit":
        sys.exit(ctx.config.code)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "ours":
        ctx.logger.log_metrics({"a": 1}, log_name="info")
    if how == "hydra":
        from hydra.utils import instantiate
        instantiate({"_target_": "no.such.thing"})
    print("done", how)

if __name__ == "__main__":
    train()
"""


@pytest.mark.parametrize(
    ("how", "code", "status", "last_line"),
    [
        ("nothing", 0, "COMPLETE", None),
        ("raise", 1, "FAILED", "ValueError: of the task"),
        ("ours", 1, "FAILED", "mlxjobs.errors.InvalidKeyError"),
        ("hydra", 1, "FAILED", "hydra.errors.InstantiationException"),
        ("exit code=0", 0, "COMPLETE", None),
        ("exit code=3", 3, "FAILED", None),
        ("exit code=told", 1, "FAILED", None),
        ("interrupt", 130, "CANCELLED", None),
    ],
)
def test_exit_codes_and_tracebacks(
    project: Project, how: str, code: int, status: str, last_line: str | None
) -> None:
    write(project, {"main.py": ENDS, "configs/config.yaml": "how: nothing\ncode: null\n"})
    arguments = f"how={how}".split()
    for more, log_id in (
        ((), 1),
        (("+mlxpy.use_logger=false",), None),
        (("+mlxpy.logger.forced_log_id=1",), 1),
    ):
        if how == "ours" and log_id is None:
            continue  # there is no logger to misuse
        done = project.run(*arguments, *more, code=code)
        assert ("Traceback" in done.stderr) == (last_line is not None), done.stderr
        assert "mlxjobs/launcher/" not in done.stderr
        assert "mlxjobs/jobs/" not in done.stderr
        if last_line is not None:
            assert f"\n{last_line}" in done.stderr
            # once, and from the task's own function on
            in_task = f'File "{project.folder}/main.py", line '
            assert done.stderr.count(in_task) == 1
            assert f"Traceback (most recent call last):\n  {in_task}" in done.stderr
        assert ("told" in done.stderr) == ("told" in how)
        if log_id is not None:
            assert project.state(log_id).status == status
    assert runs(project) == [1]


def test_a_failing_run_does_not_stop_the_others(project: Project) -> None:
    write(project, {"main.py": ENDS, "configs/config.yaml": "how: nothing\ncode: 4\n"})
    done = project.run("how=raise,exit,x,ours", code=1)
    statuses = [project.state(log_id).status.value for log_id in runs(project)]
    assert statuses == ["FAILED", "FAILED", "COMPLETE", "FAILED"]
    assert "done x" in done.stdout
    assert done.stderr.count("in train") == 2  # the two tracebacks
    assert project.run("how=exit,x", code=4).stdout.count("done") == 1
    # but what is wrong for all of them stops it at once
    done = project.run("how=${no.such},x", code=2)
    assert_one_message(done, "Interpolation key 'no.such' not found")
    assert len(runs(project)) == 6


def test_importing_touches_no_signal_handler(project: Project) -> None:
    check = (
        "import signal; before = [signal.getsignal(s) for s in signal.valid_signals()]; import mlxpy; "
        "mlxpy.launch, mlxpy.GitVM, mlxpy.Logger, mlxpy.Preempted; "
        "assert before == [signal.getsignal(s) for s in signal.valid_signals()]"
    )
    project.command(project.python, "-c", check)


def test_seeding_comes_first_and_needs_a_seed(project: Project) -> None:
    main = SHOW.replace('"./configs"', '"./configs", seeding_function=lambda seed: print("SEEDED", seed)')
    write(project, {"main.py": main, "configs/config.yaml": "seed: 3\n"})
    lines = project.run("seed=3,4").stdout.splitlines()
    told = [line for line in lines if line.startswith("SE")]
    assert told == ["SEEDED 3", 'SEEN {"seed": 3}', "SEEDED 4", 'SEEN {"seed": 4}']
    for start in (project.run, project.submit):
        for arguments in (["~seed"], ["~seed", "+a=1,2"], ["seed=???"]):
            done = start(*arguments, code=2)
            assert_one_message(done, "the configuration has no key 'seed'", "+seed=0")
    assert runs(project) == [1, 2]
    assert not (project.folder.parent / "queue").exists()
    project.submit()
    finish(project, 3)
    assert project.stdout(3).splitlines() == ["SEEDED 3", 'SEEN {"seed": 3}']


def test_without_a_logger_nothing_is_written(project: Project) -> None:
    main = SHOW.replace("    print(", "    assert ctx.logger is None; print(ctx.info.work_dir); print(")
    write(project, {"main.py": main, "configs/mlxpy.yaml": "use_logger: false\n"})
    done = project.run("seed=1,2")
    assert [run["seed"] for run in seen(done.stdout)] == [1, 2]
    assert str(project.folder) in done.stdout
    assert names(project.folder) == ["configs", "main.py"]
    assert_one_message(project.submit(code=2), "use_scheduler=true needs use_logger=true")


PRINTING = """
import logging, sys
import mlxpy

LOG = logging.getLogger("mine")

@mlxpy.launch(config_path="./configs")
def train(ctx):
    if not LOG.handlers:
        LOG.addHandler(logging.StreamHandler(sys.stderr))
    LOG.warning("logged by run %s", ctx.config.seed)
    print("to err: \\udc80", file=sys.stderr)
    sys.stdout.writelines(["printed\\n"])

if __name__ == "__main__":
    train()
"""


def test_streams_are_kept_on_request(project: Project) -> None:
    write(project, {"main.py": PRINTING})
    done = project.run("+mlxpy.logger.log_streams_to_file=true", "seed=1,2")
    for log_id in (1, 2):  # what the first run has made to log with is used by the second
        assert "printed" in project.stdout(log_id)
        assert project.stderr(log_id) == f"logged by run {log_id}\nto err: \\udc80\n"
    assert done.stdout.count("printed") == 2
    assert done.stderr.count("to err") == 2
    kept = "+mlxpy.logger.log_streams_to_file=true"
    project.command("sh", "-c", '"$0" main.py "$1" >&-', project.python, kept)
    assert "printed" in project.stdout(3)


def test_with_chdir_the_task_works_in_its_run_directory(project: Project) -> None:
    main = SHOW.replace("    print(", "    open('made', 'w'); print(")
    write(project, {"main.py": main})
    project.run("hydra.job.chdir=true", "seed=1,2")
    project.submit("hydra.job.chdir=true")
    finish(project, 3)
    assert [(project.logs / str(n) / "made").exists() for n in (1, 2, 3)] == [True] * 3
    assert names(project.folder) == ["configs", "logs", "main.py"]


# -- an existing run ----------------------------------------------------------------------------


def test_an_existing_run_starts_from_what_it_stored(project: Project) -> None:
    forced = "+mlxpy.logger.forced_log_id"
    project.run("optimizer.lr=0.5", f"{forced}=7")
    assert runs(project) == [7]
    write(project, {"configs/config.yaml": "broken: [\n"})
    done = project.run(f"{forced}=7")
    assert done.stdout == "Starting from epoch: 5 \nCompleted training with learning rate: 0.5\n"
    # what is given now is applied, told, and kept
    done = project.run(f"{forced}=7", "num_epoch=7", "+new.key=1", "~seed")
    assert done.stderr.splitlines() == [
        "mlxjobs: run 7: seed: 0 -> (none)",
        "mlxjobs: run 7: num_epoch: 5 -> 7",
        "mlxjobs: run 7: new.key: (none) -> 1",
    ]
    assert project.epochs(7) == [0, 1, 2, 3, 4, 5, 6]
    assert project.run(f"{forced}=7").stdout.splitlines()[0] == "Starting from epoch: 7 "
    config = {"num_epoch": 7, "optimizer": {"lr": 0.5}, "new": {"key": 1}}
    assert project.at(7).read_yaml("config") == config
    for wrong in ("lr=1", "--multirun", "num_epoch=1,2", "optimizer=big"):
        assert_one_message(project.run(f"{forced}=7", wrong, code=2))
    # a run that is refused changes nothing, and neither does one that a sweep would share
    assert project.at(7).read_yaml("config") == config
    write(project, {"configs/config.yaml": "num_epoch: 1\noptimizer: {lr: 1}\n"})
    for start in (project.run, project.submit):
        assert_one_message(start(f"{forced}=9", "num_epoch=1,2", code=2), "cannot share one forced_log_id")
    assert runs(project) == [7]
    # the project's settings say where it goes on
    write(project, {"configs/mlxpy.yaml": "use_scheduler: true\nscheduler: {name: LocalScheduler}\n"})
    later = ("num_epoch=8", "hydra.verbose=true", "+hydra.job.env_set.A_NUMBER=4")
    assert "run 7: job 1" in project.run(f"{forced}=7", *later).stdout
    finish(project, 7)
    assert project.epochs(7) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_job_whose_run_was_removed_makes_no_new_one(project: Project) -> None:
    project.run()
    script = [
        "mlxpy.use_scheduler=false",
        "mlxpy.use_version_manager=false",
        f"mlxpy.logger.parent_log_dir={project.logs}",
    ]
    done = project.run("mlxpy.logger.forced_log_id=2", *script, code=2)
    assert_one_message(done, "there is no run 2 in")
    assert runs(project) == [1]


def test_a_run_of_mlxp_goes_on(project: Project) -> None:
    info = {
        "executable": "/opt/bin/python", "cmd": "", "end_date": "20/04/2023", "end_time": "16:01:13",
        "current_file_path": "/old/main.py", "log_dir": "/old/logs/1", "log_id": 1, "process_id": 7100,
        "start_date": "20/04/2023", "start_time": "16:01:13", "status": "COMPLETE", "user": "marbel",
        "work_dir": "/old",
    }  # fmt: skip
    metadata = "logs/1/metadata"
    write(
        project,
        {
            f"{metadata}/info.yaml": yaml.dump(info),
            f"{metadata}/config.yaml": "num_epoch: 3\noptimizer:\n  lr: 10.\n",
            f"{metadata}/mlxpy.yaml": "use_logger: true\nlogger: {parent_log_dir: ./logs}\n",
            "logs/1/metrics/train.json": '{"loss": 0.5, "epoch": 0}\n',
        },
    )
    done = project.run("+mlxpy.logger.forced_log_id=1")
    assert done.stdout.splitlines()[-1] == "Completed training with learning rate: 10.0"
    assert project.epochs() == [0, 0, 1, 2]  # a run that was complete is never rewound
    assert project.info()["status"] == "COMPLETE"
    assert project.info()["user"]
    project.submit("+mlxpy.logger.forced_log_id=1", "optimizer.lr=2")
    finish(project)
    assert "rate: 2" in project.stdout()


# -- from a snapshot, on this machine -------------------------------------------------------------


@pytest.mark.parametrize("program", ["main.py", "sub/../main.py", "-m package.main"])
def test_a_local_run_from_a_snapshot(tmp_path: Path, program: str) -> None:
    project = Project(tmp_path / "my project's")
    main = SHOW.replace("    print(", "    import os; print('AT', os.getcwd(), __file__); print(")
    write(
        project,
        {
            "main.py": main,
            "sub/x": "",
            "package/__init__.py": "",
            "package/main.py": main.replace("./configs", "../configs"),
        },
    )
    commit = project.commit()
    write(
        project,
        {
            "main.py": main.replace("'AT'", "'EDITED'"),
            "configs/mlxpy.yaml": "use_version_manager: true\n",
        },
    )
    command = (
        project.python,
        "-X",
        "utf8",
        *program.split(" "),
        "seed=1,'a b'",
        "mlxpy.logger.parent_log_dir=new",
    )
    done = project.command(*command)
    snapshot = project.folder / ".workdir" / "my project's" / commit
    assert [run["seed"] for run in seen(done.stdout)] == [1, "a b"]
    file = "package/main.py" if "package" in program else "main.py"
    assert done.stdout.count(f"AT {snapshot} {snapshot}/{file}\n") == 2
    project.logs = project.folder / "new"
    assert runs(project) == [1, 2]
    info = project.info(2)
    assert info["version_manager"]["commit_hash"] == commit
    assert info["work_dir"] == str(snapshot)
    assert info["current_file_path"] == str(snapshot / file)
    assert "mlxpy=" not in info["cmd"]  # what was typed, not what it became
    assert info["cmd"].endswith("seed=1,'\"'\"'a b'\"'\"'' mlxpy.logger.parent_log_dir=new")
    assert not list(snapshot.rglob("mlxpy.yaml"))  # nothing is written into the snapshot
    # an existing run goes on from a snapshot too
    done = project.command(
        *command[:-2], "mlxpy.logger.parent_log_dir=new", "mlxpy.logger.forced_log_id=1", "seed=5"
    )
    assert seen(done.stdout)[0]["seed"] == 5
    assert str(snapshot) in done.stdout
    assert done.stderr.count("run 1: seed: 1 -> 5") == 1


def test_a_program_without_a_file_cannot_be_started_again(project: Project) -> None:
    source = SHOW.replace('"./configs"', f'"{project.folder}/configs"')
    for option in ("use_version_manager", "use_scheduler"):
        more = (f"mlxpy.{option}=true", "mlxpy.scheduler.name=LocalScheduler")
        done = project.command(project.python, "-c", source, *more, code=2)
        assert_one_message(done, "only a program in a file can be started again")
    assert runs(project) == []
