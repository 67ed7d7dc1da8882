"""Secrets reach the task, and nothing else that a run writes or prints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlxpy
import pytest

from mlxjobs.config.secrets import Mask, with_secrets
from mlxjobs.config.stored import Composed
from tests.project import Project
from tests.slurm_stub import Slurm

SECRET, LOGIN, FROM_ENV = "hunter2-very-secret", "login-of-mine", "from-the-environment"
# the task proves that it has the values by what it logs, not by printing them
MAIN = """
import hashlib, mlxpy

def digest(text):
    return int(hashlib.sha256(str(text).encode()).hexdigest()[:8], 16)

@mlxpy.launch(config_path='./configs')
def train(ctx):
    cfg = ctx.config
    got = {key: digest(cfg.wandb[key]) for key in ('api_key', 'login', 'url')}
    ctx.logger.log_metrics(got, log_name='got')
    ctx.logger.log_metrics({'env': digest(cfg.data.where)}, log_name='env')
    if cfg.fail:
        raise ValueError(f'403 for {cfg.wandb.url}') from KeyError(cfg.wandb.api_key)

if __name__ == "__main__":
    train()
"""
CONFIG = """
seed: 0
fail: false
pad_token: "<pad>"
wandb: {api_key: "", login: "", url: "https://u:${wandb.api_key}@host"}
data: {where: "${oc.env:STORE_PASSWORD}"}
"""


@pytest.fixture
def keeper(tmp_path: Path) -> Project:
    project = Project(tmp_path / "project", MAIN, CONFIG)
    project.env["STORE_PASSWORD"] = FROM_ENV
    return project


def digest(text: str) -> int:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def check_task(project: Project, log_id: int, secret: str = SECRET, login: str = LOGIN) -> None:
    """The task had the true values, the last time that it ran."""
    metrics = project.logs / str(log_id) / "metrics"
    got = json.loads((metrics / "got.json").read_text().splitlines()[-1])
    assert got == {
        "api_key": digest(secret),
        "login": digest(login),
        "url": digest(f"https://u:{secret}@host"),
    }
    assert json.loads((metrics / "env.json").read_text().splitlines()[-1]) == {"env": digest(FROM_ENV)}


def check_files(project: Project, *values: str) -> None:
    """Nothing below logs has a secret but the owner's own file."""
    seen = 0
    for path in project.logs.rglob("*"):
        if path.is_file() and path.name != ".secrets.json":
            seen += 1
            content = path.read_bytes()
            assert [one for one in (*values, FROM_ENV) if one.encode() in content] == [], path
    assert seen > 5
    for path in project.logs.glob("*/metadata/.secrets.json"):
        assert path.stat().st_mode & 0o777 == 0o600


ARGUMENTS = (f"wandb.api_key={SECRET}", f"wandb.login={LOGIN}", "+mlxpy.secrets=[wandb.login]")


def test_a_local_run(keeper: Project) -> None:
    keeper.run(*ARGUMENTS, "mlxpy.logger.log_streams_to_file=true")
    check_task(keeper, 1)
    check_files(keeper, SECRET, LOGIN)
    config = keeper.at().read_yaml("config")
    assert config["wandb"] == {"api_key": "***", "login": "***", "url": "***"}
    assert config["data"] == {"where": "***"}
    assert config["pad_token"] == "<pad>"
    assert "wandb.api_key=***" in keeper.info()["cmd"]


def test_a_failure_that_tells_secrets(keeper: Project) -> None:
    done = keeper.run(*ARGUMENTS, "fail=true", "mlxpy.logger.log_streams_to_file=true", code=1)
    assert "ValueError: 403 for ***" in done.stderr
    assert "KeyError: '***'" in (keeper.logs / "1/log.stderr").read_text()
    assert keeper.state().reason == "ValueError: 403 for ***"
    check_files(keeper, SECRET, LOGIN)


def test_a_local_sweep(keeper: Project) -> None:
    """Hydra's own record of the sweep is not kept, as it holds what was typed."""
    keeper.run(*ARGUMENTS[1:], f"wandb.api_key={SECRET},other-secret")
    check_task(keeper, 1)
    check_task(keeper, 2, "other-secret")
    check_files(keeper, SECRET, LOGIN, "other-secret")
    # nor of one that is wrong in a run, or before the first, or that is submitted
    arguments = ("seed=1,2", *ARGUMENTS)
    keeper.run(*arguments, "data.where='${nowhere}'", code=2)
    keeper.run(*arguments, "no_such_key=1", code=2)
    keeper.submit(*arguments, f"hydra.sweep.dir={keeper.logs / 'out'}", "seed=1,2")
    assert not list(keeper.logs.rglob("multirun.yaml"))


def test_a_job_and_its_resumption(keeper: Project) -> None:
    done = keeper.submit(*ARGUMENTS)
    assert "wandb.api_key=*** wandb.login=***" in done.stdout
    keeper.await_status("COMPLETE")
    check_task(keeper, 1)
    shown = keeper.run("+mlxpy.logger.forced_log_id=1", "wandb.api_key=the-new-one", "fail=true", code=1)
    assert "run 1: wandb.api_key: *** -> ***" in shown.stderr
    assert "run 1: fail: False -> True" in shown.stderr
    check_task(keeper, 1, "the-new-one")
    keeper.mlxjobs("requeue", "1")
    keeper.await_status("FAILED", attempts=3)
    check_task(keeper, 1, "the-new-one")
    listed = keeper.mlxjobs("ls", "--json").stdout
    assert len(mlxpy.Reader(keeper.logs).filter("config.wandb.api_key == '***'")) == 1
    check_files(keeper, SECRET, LOGIN, "the-new-one")
    assert SECRET not in listed


def test_an_array_over_secrets(slurm_stub: Slurm) -> None:
    project = slurm_stub.project
    (project.folder / "main.py").write_text(MAIN)
    (project.folder / "configs/config.yaml").write_text(CONFIG)
    project.env["STORE_PASSWORD"] = FROM_ENV
    done = slurm_stub.submit("", *ARGUMENTS[1:], f"wandb.api_key={SECRET},other-secret", "seed=1,2")
    assert SECRET not in done.stdout + done.stderr
    assert slurm_stub.tasks() == {"1": 4}
    for log_id, secret in enumerate((SECRET, SECRET, "other-secret", "other-secret"), 1):
        known = json.loads((project.logs / str(log_id) / "metadata/.secrets.json").read_text())
        assert known == {"wandb.api_key": secret, "wandb.login": LOGIN}
    check_files(project, SECRET, LOGIN, "other-secret")


def test_secrets_that_are_gone_have_to_be_given_again(keeper: Project) -> None:
    keeper.run(*ARGUMENTS)
    (keeper.logs / "1/metadata/.secrets.json").unlink()
    words = keeper.run("+mlxpy.logger.forced_log_id=1", f"wandb.login={LOGIN}", code=2).stderr
    assert (
        ".secrets.json lacks what was given for wandb.api_key: give it again, as in wandb.api_key=VALUE"
        in words
    )
    keeper.run("+mlxpy.logger.forced_log_id=1", *ARGUMENTS[:2])
    check_task(keeper, 1)


def test_a_run_without_secrets_has_no_file_of_them(project: Project) -> None:
    project.run("num_epoch=1")
    assert not (project.logs / "1/metadata/.secrets.json").exists()
    assert "***" not in (project.logs / "1/metadata/.frozen.yaml").read_text()


SECRET_NAMES = [
    "password",
    "db.PASSWORD",
    "a.db_password",
    "x.token",
    "x.api_key",
    "hf.access_token",
    "hf_token",
    "trainer.hub_token",
    "apikey",
]


@pytest.mark.parametrize("key", SECRET_NAMES)
def test_names_of_secrets(key: str) -> None:
    assert Mask([]).covers(key)


@pytest.mark.parametrize(
    "key", ["pad_token", "num_tokens", "model.tokens", "passwords_seen", "secretary", "key"]
)
def test_names_that_are_none(key: str) -> None:
    assert not Mask([]).covers(key)


def test_patterns_add_and_take_away() -> None:
    mask = Mask(["wandb.*", "!model.token"])
    assert mask.covers("wandb.x")
    assert mask.covers("wandb.x.y")
    assert not mask.covers("model.token")
    assert mask.covers("other.token")


def test_what_is_hidden_comes_back() -> None:
    config = {
        "password": {"a": 1234567, "b": ["x", "${db}", None, True]},
        "lr": 0.1, "text": "about x", "token": "pre-${name}", 3: {"api_key": "k"},
    }  # fmt: skip
    hydra = {
        "job": {
            "env_set": {"HF_TOKEN": "hf-value", "OMP_NUM_THREADS": "1"},
            "name": "token=pre-${name}",
        },
        "overrides": {"task": ["+token=pre-${name}", "lr=0.1"]},
    }
    composed = Composed(config, hydra, ["+token=pre-${name}", "lr=0.1"])
    hidden = Mask([]).hide(composed)
    assert hidden.config == {
        "password": {"a": "***", "b": ["***", "${db}", None, True]},
        "lr": 0.1, "text": "about x", "token": "***", 3: {"api_key": "***"},
    }  # fmt: skip
    assert hidden.hydra["job"]["env_set"] == {"HF_TOKEN": "***", "OMP_NUM_THREADS": "1"}
    assert hidden.hydra["job"]["name"] == "token=***"
    assert hidden.hydra["overrides"]["task"] == hidden.overrides == ["+token=***", "lr=0.1"]
    assert with_secrets(hidden).config == config
    assert with_secrets(hidden).hydra["job"]["env_set"] == hydra["job"]["env_set"]  # type: ignore[index]
    assert Mask([]).hide(hidden) == hidden


def test_a_command_line_without_secrets() -> None:
    mask = Mask([])
    line = (
        "main.py 'password=a b' ++db.token=x 'db={user: u, password: y}' api_key='${oc.env:KEY}' c=abcdefgh"
    )
    shown = mask.command(line, {"db.password": "y", "other": "abcdefgh"})
    assert shown == "main.py 'password=***' '++db.token=***' 'db=***' 'api_key=${oc.env:KEY}' 'c=***'"


def test_the_file_of_secrets_is_the_owners_whatever_the_umask(keeper: Project) -> None:
    before = os.umask(0)
    try:
        keeper.run(*ARGUMENTS)
    finally:
        os.umask(before)
    check_files(keeper, SECRET, LOGIN)
