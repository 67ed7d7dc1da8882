"""A scheduler that was written for 0.1 and says all that could be said then: it still works, unchanged."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mlxjobs.cluster import registry
from mlxjobs.cluster.cluster import Cluster
from mlxjobs.scheduler import Fate, Here, JobState, JobStatus, Scheduler
from tests.project import Project

# as the contract was in 0.1: 15 attributes and 33 methods, in the order in which it had them
WRITTEN_FOR_0_1 = """
import signal, sys
from mlxpy.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler

QUEUE = [sys.executable, "-m", "mlxjobs.localqueue"]

class Mine(Scheduler):
    directive = "#MINE"
    commands = ("sh",)
    template = "job.sh"
    environment = ("MLXJOBS_LOCAL_JOB_ID", "MLXJOBS_LOCAL_RESTART_COUNT")
    warning_signals = (signal.SIGTERM, signal.SIGUSR2)
    aliases = {"-J": "--job-name"}
    array_variable = ""
    array_index = ""
    launches_ranks = False
    remote_shell = ("ssh",)
    node_file = ""
    submitit = "mlxjobs"
    own_queues = True
    preempt_once_s = 3.0
    reserved_exit_codes = (3,)

    def options(self, job): return [f"--job-name={job.name}"]
    def can_name(self, path): return False
    def names(self, path): return super().names(path)
    def option_name(self, line): return super().option_name(line)
    def directives(self, job): return super().directives(job)
    def array_option(self, tasks): return f"--array={tasks}"
    def submit_command(self, script): return [*QUEUE, "submit", str(script)]
    def resubmit_command(self, script, after): return None
    def parse_submission(self, output): return str(int(output.split()[-1]))
    def parse_array(self, output, tasks): return super().parse_array(output, tasks)
    def task_ids(self, array_id, tasks): return super().task_ids(array_id, tasks)
    def may_have_submitted(self, words): return "hung" in words
    def is_full(self, words): return "full" in words
    def find_command(self): return [*QUEUE, "status"]
    def parse_found(self, output, script): return []
    def parse_found_array(self, output, script, tasks): return []
    def max_array_command(self): return None
    def parse_max_array(self, output): return 10
    def status_command(self, job_ids): return [*QUEUE, "status", *job_ids]
    def parse_status(self, output):
        rows = [line.split("|") for line in output.splitlines()]
        return {row[0]: JobStatus(JobState[row[1]], row[1], row[2], int(row[3])) for row in rows}
    def history_command(self, job_ids): return ["sh", "-c", ":"]
    def parse_history(self, output): return super().parse_history(output)
    def earlier_command(self, job_id): return ["sh", "-c", ":"]
    def parse_earlier(self, output): return []
    def cancel_command(self, job_ids): return [*QUEUE, "cancel", *job_ids]
    def requeue_command(self, job_id): return [*QUEUE, "requeue", job_id]
    def preempt_command(self, job_id): return [*QUEUE, "preempt", job_id]
    def time_limit_option(self, seconds): return f"--time={seconds // 60}"
    def here(self, env):
        job_id = env.get("MLXJOBS_LOCAL_JOB_ID")
        return Here(job_id, int(env.get("MLXJOBS_LOCAL_RESTART_COUNT", "0"))) if job_id else None
    def hosts(self, env, read): return ["n1", "n1", "n2"]
    def fate(self, status, here): return Fate.REQUEUED if "preempt" in status.reason else Fate.RUNS_ON
    def requeue_exit_code(self): return 85
    def requeues_exit_after_s(self, status): return None
"""


def test_what_could_be_said_then_can_be_said_now() -> None:
    said = re.findall(r"^    (?:def )?(\w+)(?:\(| = )", WRITTEN_FOR_0_1, re.MULTILINE)
    assert len(said) == 15 + 33
    assert {*said} - {*vars(Scheduler), *inspect.get_annotations(Scheduler)} == {"preempt_once_s"}


def test_each_of_its_methods_is_asked(project: Project, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WRITTEN_FOR_0_1)
    cluster = Cluster(f"mine:Mine@{tmp_path}")
    cluster.check()
    mine = cluster.scheduler
    assert mine.hosts({}, Path.read_text) == ["n1", "n1", "n2"]  # type: ignore[arg-type]  # it reads nothing
    assert mine.parse_history("7|FAILED|exit code 3|0|") == {
        "7": JobStatus(JobState.FAILED, "FAILED", "exit code 3", 0)
    }
    assert mine.parse_array("Submitted local job 7", 2) == ["7_1", "7_2"]
    assert mine.fate(JobStatus(JobState.RUNNING, "RUNNING", "preempted"), Here("7")) is Fate.REQUEUED
    assert mine.requeue_exit_code() == 85
    assert registry.clean_environment({"MLXJOBS_LOCAL_JOB_ID": "7"}, mine.environment) == {}


def test_a_run_is_submitted_preempted_and_completed_by_it(project: Project) -> None:
    (project.folder / "mine.py").write_text(WRITTEN_FOR_0_1)
    project.let_pass(2)
    project.submit("mlxpy.scheduler.name=mine.Mine", "mlxpy.scheduler.option_cmd=['-J hers']")
    assert "#MINE -J hers\n" in project.at().script.read_text()
    assert "--job-name" not in project.at().script.read_text()
    project.await_epoch(2)
    project.mlxjobs("preempt", "1")
    project.let_pass(10)
    project.await_status("COMPLETE", attempts=2)
    assert project.epochs() == [0, 1, 2, 3, 4]
    assert "COMPLETE" in project.mlxjobs("ls").stdout
