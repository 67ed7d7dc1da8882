"""`mlxjobs drill` tells whether a program resumes as it should."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from mlxjobs.care.curves import deviations
from mlxjobs.care.drill import Verdict, WayOutcome, is_exact
from tests.project import Project, await_value

MAIN = """
import pickle, random, time
import mlxpy

@mlxpy.launch(config_path='./configs')
def train(ctx):
    logger = ctx.logger
    try:
        state = logger.load_checkpoint()
    except FileNotFoundError:
        state = {'epoch': -1, 'loss': 100.0, 'velocity': 0.0}
    velocity, loss = state['velocity'], state['loss']  # RESTORED
    for epoch in range(state['epoch'] + 1, ctx.config.num_epoch):
        velocity = 0.9 * velocity - 0.01 * loss
        loss = loss + velocity
        metrics = {'loss': loss, 'epoch': epoch, 'epoch_time': time.time()}
        logger.log_metrics(metrics, log_name='train')
        state = {'epoch': epoch, 'loss': loss, 'velocity': velocity}
        logger.log_checkpoint(state)

if __name__ == '__main__':
    train()
"""
RESTORED = "velocity, loss = state['velocity'], state['loss']  # RESTORED"
LOADED = "state = logger.load_checkpoint()"
METRICS = "logger.log_metrics(metrics, log_name='train')"


@pytest.fixture
def drilled(project: Project) -> Project:
    project.env["MLXJOBS_LOCAL_GRACE"] = "5"
    change(project)
    # a week's work: the drill has to end it
    (project.folder / "configs" / "config.yaml").write_text("seed: 0\nnum_epoch: 1000000000\n")
    return project


def change(project: Project, old: str = "", new: str = "") -> None:
    """Give the project the program of this file, with a change."""
    assert old in MAIN
    (project.folder / "main.py").write_text(MAIN.replace(old, new) if old else MAIN)


def drill(project: Project, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return project.mlxjobs("drill", *options, "--", project.python, "main.py", code=code)


def verdicts(project: Project, *options: str) -> dict[str, tuple[str, str]]:
    """What a drill that is not content says of each way."""
    rows = [json.loads(line) for line in drill(project, "--json", *options, code=1).stdout.splitlines()]
    return {row["way"]: (row["verdict"], row["words"]) for row in rows}


def live_jobs(project: Project) -> list[str]:
    return [
        line for line in project.queue("status").splitlines() if line.split("|")[1] in ("PENDING", "RUNNING")
    ]


def test_a_program_that_resumes_exactly(drilled: Project) -> None:
    drilled.run("num_epoch=2")
    before = sorted(path for path in drilled.logs.rglob("*"))
    done = drill(drilled)
    assert [line.split("  ")[-1].strip() for line in done.stdout.splitlines()] == ["resumes exactly"] * 4
    assert sorted(path for path in drilled.logs.rglob("*")) == before
    assert not live_jobs(drilled)


def test_the_runs_of_a_good_drill_can_be_kept(drilled: Project) -> None:
    done = drill(drilled, "--keep", "--way", "kill")
    kept = list((drilled.logs / ".drill").glob("*/*/1"))
    assert sorted(path.parent.name for path in kept) == ["kill", "undisturbed"]
    assert f"kept in {kept[0].parents[1]}" in done.stderr


def test_nothing_is_left_where_nothing_was(drilled: Project) -> None:
    drill(drilled, "--way", "requeue")
    assert sorted(path.name for path in drilled.folder.iterdir()) == ["configs", "main.py"]


def test_a_program_that_forgets_the_state_of_its_optimizer(drilled: Project) -> None:
    change(drilled, RESTORED, "velocity, loss = 0.0, state['loss']")
    done = drill(drilled, code=1)
    lines = done.stdout.splitlines()
    for line, epoch in zip(lines, (2, 2, 1, None), strict=False):
        assert "resumes, but `loss` differs from epoch " in line
        assert epoch is None or f"epoch {epoch} (" in line
    assert lines[5].startswith(
        "resumes, but differs? Save in the checkpoint all that the next step depends on"
    )
    assert "remove it when you have looked" in done.stderr
    assert not live_jobs(drilled)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (LOADED, "raise FileNotFoundError", "starts over"),
        (LOADED, "logger.load_checkpoint(); raise FileNotFoundError",
         "starts over, though it loads a checkpoint: `epoch` is 0, not 1, on line 2 of `train`"),
        (LOADED, "state = pickle.load(open(logger.artifacts_dir + '/Checkpoint/checkpoint.pkl', 'rb'))",
         "goes on without load_checkpoint(), so its earlier metrics are gone"),
    ],
)  # fmt: skip
def test_a_program_that_starts_over(drilled: Project, old: str, new: str, words: str) -> None:
    change(drilled, old, new)
    assert verdicts(drilled, "--way", "kill") == {"kill": ("starts over", words)}


def test_a_wrong_resume_is_told_from_a_program_that_is_never_the_same(drilled: Project) -> None:
    change(drilled, "loss = loss + velocity", "loss = loss + velocity + random.random()")
    ((verdict, words),) = verdicts(drilled, "--way", "kill").values()
    assert verdict == "resumes, exactly or not"
    assert words.startswith(
        "resumes; whether exactly cannot be told, as of two undisturbed runs, too, `loss` "
    )
    assert "differs from epoch 0 (" in words
    assert ", by up to " in words
    assert "; after this by up to " in words


def test_a_program_that_fails_when_it_resumes(drilled: Project) -> None:
    change(drilled, RESTORED, "velocity, loss = state['velocity'], state['loss']; 1 / (state['epoch'] < 0)")
    ((verdict, words),) = verdicts(drilled, "--way", "kill").values()
    assert verdict == "fails"
    assert words.startswith(
        "comes back, but fails: ZeroDivisionError: division by zero (more in logs/.drill/"
    )
    assert "1 / (state['epoch'] < 0)" in (drilled.folder / words.split(" in ")[1].rstrip(")")).read_text()


def test_a_program_that_catches_everything(drilled: Project) -> None:
    change(
        drilled, "logger.log_checkpoint(state)", "\n".join((
            "try: logger.log_checkpoint(state)",
            "        except BaseException: pass",
        )),
    )  # fmt: skip
    words = "goes on as if there had been no warning"
    assert verdicts(drilled, "--way", "warning")["warning"] == (
        "does not leave, or does not come back",
        words,
    )
    assert not live_jobs(drilled)


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        ("logger.log_checkpoint(state)", "pass", ("writes no checkpoint", "writes no checkpoint")),
        (RESTORED, "raise KeyError('lr')", ("fails", "FAILED: KeyError: 'lr' (more in logs/.drill/")),
    ],
)  # fmt: skip
def test_a_program_that_does_not_come_so_far(
    drilled: Project, old: str, new: str, outcome: tuple[str, str]
) -> None:
    (drilled.folder / "configs" / "config.yaml").write_text("seed: 0\nnum_epoch: 5\n")
    change(drilled, old, new)
    ((verdict, words),) = verdicts(drilled).values()
    assert (verdict, words[: len(outcome[1])]) == outcome


def test_a_program_that_goes_on_without_a_checkpoint(drilled: Project) -> None:
    change(drilled, "logger.log_checkpoint(state)", "time.sleep(0.1)")
    words = "no new checkpoint for 0.05 minutes (--timeout)"
    assert verdicts(drilled, "--timeout", "0.05") == {"undisturbed": ("is stuck", words)}
    assert not live_jobs(drilled)


def test_a_program_without_metrics(drilled: Project) -> None:
    change(drilled, METRICS, "pass")
    words = "resumes; it logs no metrics after that, so nothing can be compared"
    assert verdicts(drilled, "--way", "kill") == {"kill": ("resumes, exactly or not", words)}


def test_a_program_that_is_too_short(drilled: Project) -> None:
    (drilled.folder / "configs" / "config.yaml").write_text("seed: 0\nnum_epoch: 1\n")
    words = "ends before it can be disturbed"
    assert verdicts(drilled, "--way", "kill") == {"kill": ("is too short", words)}


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["nosuch"], "cannot start 'nosuch': no such program"),
        (["python", "plain.py"], "the command ended and submitted nothing; a drill needs a program"),
        (["python", "wrong.py"], "ZeroDivisionError"),
        (["python", "main.py", "seed=1,2,3"], "the command makes 3 runs; a drill follows one"),
        (["python", "main.py", "nosuch=1"], "Could not override 'nosuch'"),
        (["python", "main.py", "mlxpy.nosuch=1"], "unknown key 'nosuch'"),
        (["python", "main.py", "mlxpy.logger.forced_log_id=1"], "leave mlxpy.logger.forced_log_id out"),
    ],
)  # fmt: skip
def test_what_cannot_be_drilled_is_an_error(drilled: Project, command: list[str], words: str) -> None:
    (drilled.folder / "plain.py").write_text("print('hello')\n")
    (drilled.folder / "wrong.py").write_text("1 / 0\n")
    command = [drilled.python if word == "python" else word for word in command]
    done = drilled.mlxjobs("drill", "--", *command, code=2)
    assert words in done.stderr
    assert not live_jobs(drilled)
    assert not drilled.logs.exists()


def test_only_the_runs_of_a_drill_are_held(drilled: Project) -> None:
    drilled.logs.mkdir()
    (drilled.logs / ".hold").write_text("kill 1")
    drilled.run("num_epoch=3")
    assert drilled.epochs() == [0, 1, 2]


def test_a_log_directory_that_cannot_be_written(drilled: Project) -> None:
    drilled.logs.write_text("a file")
    assert "--logs names another log directory" in drill(drilled, code=2).stderr


def test_usage(drilled: Project) -> None:
    drilled.mlxjobs("drill", code=2)
    assert "give some of warning, requeue, kill" in drill(drilled, "--way", "nosuch", code=2).stderr
    assert (
        "unknown scheduler 'SlurmScheduler'" in drill(drilled, "--scheduler", "SlurmScheduler", code=2).stderr
    )


def test_the_settings_of_a_cluster_are_not_used_for_the_local_queue(drilled: Project) -> None:
    (drilled.folder / "configs" / "mlxpy.yaml").write_text(
        "scheduler: {name: SLURMScheduler, option_cmd: ['--gres=gpu:1'], env_cmd: 'exit 3'}\n"
        "use_scheduler: true\nuse_version_manager: true\n"
    )
    assert drill(drilled, "--way", "requeue").stdout.endswith("resumes exactly\n")


def test_ctrl_c_ends_all_jobs(drilled: Project) -> None:
    change(drilled, METRICS, f"{METRICS}; time.sleep(0.2)")
    process = subprocess.Popen(
        [drilled.python, "-m", "mlxjobs", "drill", "--checkpoints", "1000", "--", drilled.python, "main.py"],
        cwd=drilled.folder, env=drilled.env, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip

    def metrics() -> list[Path]:
        return list(drilled.logs.glob(".drill/*/undisturbed/1/metrics/train.json"))

    await_value(metrics, "the first line")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, "the jobs of the drill are ended" in said) == (130, True), said
    await_value(lambda: not live_jobs(drilled), "the end of the job")
    assert "|CANCELLED|" in drilled.queue("status")


@pytest.mark.parametrize(
    ("seen", "exact"),
    [
        ([Verdict.EXACT, Verdict.EXACT], True),
        ([Verdict.EXACT, Verdict.UNTRIED], True),
        ([Verdict.UNTRIED], False),
        ([Verdict.EXACT, Verdict.UNSURE], False),
    ],
)
def test_what_is_exact(seen: list[Verdict], exact: bool) -> None:
    assert is_exact([WayOutcome("kill", "killed in a step", verdict, "") for verdict in seen]) is exact


ROWS = [{"epoch": epoch, "loss": 1 / (epoch + 1)} for epoch in range(4)]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (ROWS, []),
        (ROWS[:3], ["`train` ends before epoch 3"]),
        ([*ROWS[:2], {"epoch": 2, "loss": 5.0}, ROWS[3]],
         ["`loss` differs from epoch 2 (5.0, not 0.3333333333333333)"]),
        ([{"epoch": 0}, *ROWS[1:]], ["`loss` differs from epoch 0 (missing, not 1.0)"]),
        ([*ROWS[:2], ROWS[1], ROWS[2]], ["`epoch` is 1, not 2, on line 3 of `train`"]),
        ([*ROWS[:2], ROWS[3]], ["`epoch` is 3, not 2, on line 3 of `train`"]),
        ([{**row, "step_time": 3, "samples_per_second": 7, "memory": 1} for row in ROWS], []),
        ([{**row, "estimate": 3} for row in ROWS], ["`estimate` differs from epoch 0 (3, not missing)"]),
    ],
)  # fmt: skip
def test_what_differs_first(found: list[dict[str, float]], words: list[str]) -> None:
    differences = deviations({"train": list(ROWS)}, {"train": list(found)}, ended=True)
    assert [str(one) for one in differences][: len(words) or None] == words


def test_lines_that_are_yet_to_come_are_no_difference() -> None:
    assert deviations({"train": list(ROWS)}, {"train": list(ROWS[:2])}, ended=False) == []
    assert deviations({"train": list(ROWS)}, {}, ended=False) == []
