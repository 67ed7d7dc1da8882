"""The names that users' programs import, and what importing them costs."""

import importlib
import subprocess
import sys
from pathlib import Path

import mlxpy
import pytest

import mlxjobs
from tests.project import Project

# what programs written for MLXPy 0.1 and MLXP 1.0 use at top level, as far as it exists
NAMES = [
    *("launch", "Context", "Logger", "DefaultLogger", "ConfigDict", "Artifact", "Checkpoint"),
    *("Scheduler", "SLURMScheduler", "LocalScheduler", "VersionManager", "GitVM"),
    *("MLXJobsError", "Preempted", "RunStatus", "__version__"),
]
ERRORS = [
    *("InvalidKeyError", "InvalidArtifactError", "MissingFieldError", "JobSubmissionError"),
    *("InvalidSchedulerError", "InvalidShellPathError", "InvalidConfigFileError", "InvalidMapError"),
    *("CheckpointNotFoundError", "MLXJobsError"),
]
HEAVY = [
    *("hydra", "omegaconf", "pandas", "git", "submitit", "numpy", "torch", "yaml", "jinja2", "rich"),
    *("typer", "cloudpickle", "orjson", "subprocess", "multiprocessing", "asyncio"),
]


@pytest.mark.parametrize("name", NAMES)
def test_both_packages_have_the_same_object(name: str) -> None:
    assert getattr(mlxpy, name) is getattr(mlxjobs, name)
    assert name in mlxpy.__all__
    assert name in dir(mlxpy)


def test_all_that_is_exported_exists() -> None:
    assert mlxpy.__all__ == mlxjobs.__all__
    assert {*NAMES, "errors"} <= set(mlxjobs.__all__)
    for name in set(mlxjobs.__all__) - {"errors"}:  # a module of each, whose classes are the same
        assert getattr(mlxpy, name) is getattr(mlxjobs, name)


@pytest.mark.parametrize("package", [mlxjobs, mlxpy])
def test_a_name_that_does_not_exist_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_the_modules_of_mlxpy_hold_the_same_classes() -> None:
    for name in ERRORS:
        assert getattr(importlib.import_module("mlxpy.errors"), name) is getattr(mlxjobs.errors, name)
    artifacts = importlib.import_module("mlxpy.data_structures.artifacts")
    assert artifacts.Artifact is mlxjobs.Artifact
    assert artifacts.Checkpoint is mlxjobs.Checkpoint
    manager = importlib.import_module("mlxpy.version_manager")
    assert manager.VersionManager is mlxjobs.VersionManager
    config = importlib.import_module("mlxpy.data_structures.config_dict")
    assert config.ConfigDict is mlxjobs.ConfigDict
    contrib = importlib.import_module("mlxpy.data_structures.contrib.artifacts")
    for name in ("NumpyArray", "PNGImage", "TorchModel"):
        assert issubclass(getattr(contrib, name), mlxjobs.Artifact)


def test_an_error_is_what_a_user_would_catch() -> None:
    errors = mlxjobs.errors
    assert issubclass(errors.CheckpointNotFoundError, FileNotFoundError)
    assert issubclass(errors.MissingFieldError, KeyError)
    for name in ERRORS:
        assert issubclass(getattr(errors, name), errors.MLXJobsError)


def imported(code: str) -> list[str]:
    """The heavy modules that a fresh interpreter has imported after some code."""
    check = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "code", ["import mlxjobs", "import mlxpy; mlxpy.launch; mlxpy.Context; mlxpy.errors"]
)
def test_importing_is_cheap(code: str) -> None:
    assert imported(code) == []


MAIN = """
import sys
import mlxpy

@mlxpy.launch(config_path="./configs")
def train(ctx):
    ctx.logger.log_metrics({"loss": 1.0}, log_name="train")
    heavy = ("hydra", "omegaconf", "numpy", "git", "jinja2", "rich")
    print("HAS", *[name for name in heavy if name in sys.modules])
    FURTHER

if __name__ == "__main__":
    train()
"""


def test_a_job_starts_without_hydra_and_finds_it_when_it_asks(project: Project) -> None:
    further = "from hydra.core.hydra_config import HydraConfig; print(HydraConfig.get().job.name)"
    (project.folder / "main.py").write_text(MAIN.replace("FURTHER", further))
    (project.folder / "configs" / "config.yaml").write_text("a: [1, {b: 2}]\n")
    project.submit()
    project.submit("+c=${a}", "+d=${hydra:job.name}")
    for log_id, has in ((1, "HAS"), (2, "HAS hydra omegaconf")):
        project.await_status("COMPLETE", log_id=log_id)
        assert project.stdout(log_id).splitlines() == [has, "main"]
    assert project.at(2).read_yaml("config") == {"a": [1, {"b": 2}], "c": [1, {"b": 2}], "d": "main"}


def test_the_alias_is_installed_beside_the_package() -> None:
    alias = Path(str(mlxpy.__file__)).parent
    assert (alias / "py.typed").exists()
    assert (Path(str(mlxjobs.__file__)).parent / "py.typed").exists()
