"""The local queue, by its command line, with real processes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxjobs.local import queue as localqueue

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def until(true: Callable[[], object], seconds: float = 100.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.02)


def processes_with(text: str) -> list[int]:
    """Tell which live processes have this in their environment or command line."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                told = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in told:
                found.append(int(path.name))
    return found


def kill(*pids: int) -> None:
    """Kill processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Cluster:
    """A queue in a directory of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.state = tmp_path / "state of 'q'"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("MLXJOBS_")}
        self.env |= {
            "MLXJOBS_LOCAL_DIR": str(self.state),
            "MLXJOBS_LOCAL_GRACE": "20",
            "MLXJOBS_LOCAL_JOBS": "4",
            "PYTHONPATH": str(Path(localqueue.__file__).parents[2]),
            "Q": f"{sys.executable} -m mlxjobs.localqueue",
        }

    def command(self, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mlxjobs.localqueue", *map(str, words)],
            capture_output=True, text=True, env=self.env | env, cwd=self.path, check=False,
        )  # fmt: skip

    def __call__(self, *words: object, **env: str) -> str:
        done = self.command(*words, **env)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def submit(self, text: str, *options: str, name: str = "job.sh", **env: str) -> int:
        """Submit a bash script whose output is `log`."""
        (self.path / name).write_text(f"#!/bin/bash\n#LOCAL --output=log --error=log\n{text}\n")
        return int(self("submit", *options, name, **env).split()[-1])

    def job(self, number: int) -> list[str]:
        return self("status", number).strip().split("|")

    def state_of(self, number: int) -> str:
        return "|".join(self.job(number)[1:4])

    def log(self) -> str:
        return (self.path / "log").read_text() if (self.path / "log").exists() else ""

    def pid(self, name: str = "pid") -> int:
        """Wait for a pid that a job wrote."""
        until(lambda: (self.path / name).exists() and (self.path / name).read_text().endswith("\n"))
        return int((self.path / name).read_text())

    def processes(self) -> list[int]:
        return processes_with(str(self.state))

    def workers(self) -> list[int]:
        return sorted({*self.processes()} & {*processes_with("mlxjobs.local.worker")})

    def finish(self, *numbers: int) -> None:
        self("wait", *numbers, "--timeout", "120")


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    kill(*cluster.processes())
    log = cluster.state / "log"
    assert not log.exists() or log.read_text() == ""


READY = "trap 'echo term; exit 7' TERM; echo $$ > pid; echo ready"
# bash runs a trap only between commands; `wait` is interrupted
SLEEP = "sleep 1000 & while :; do wait; done"


def alive(pid: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False


def test_a_job_runs_where_and_as_it_was_submitted(queue: Cluster) -> None:
    code = "import os,sys,signal; print(sorted(signal.pthread_sigmask(0, [])), os.fstat(0).st_rdev, sys.argv)"
    job = queue.submit(
        "pwd; echo $COLOUR ${MLXJOBS_LOCAL_RESTART_COUNT-unset} $MLXJOBS_LOCAL_JOB_ID; "
        f'{sys.executable} -c "{code}"; ls /proc/self/fd | wc -l; umask; '
        "grep SigIgn /proc/self/status; exit 3",
        COLOUR="blue  \udcff", MLXJOBS_LOCAL_RESTART_COUNT="9", MLXJOBS_LOCAL_JOB_ID="99",
    )  # fmt: skip
    assert job == 1
    queue.finish()
    assert queue.job(1) == ["1", "FAILED", "exit code 3", "0", ""]
    lines = (queue.path / "log").read_bytes().decode(errors="surrogateescape").splitlines()
    umask = os.umask(0o022)
    os.umask(umask)
    null = os.stat(os.devnull).st_rdev
    assert lines[:-1] == [str(queue.path), "blue \udcff unset 1", f"[] {null} ['-c']", "4", f"{umask:04o}"]
    # 32 and 33 are the C library's own: whoever started the tests may have them ignored
    ignored = int(lines[-1].removeprefix("SigIgn:"), 16) & ~(0b11 << 31)
    assert ignored == 0


def test_endings_are_told(queue: Cluster) -> None:
    jobs = [queue.submit(text) for text in ("exit 0", "kill -9 $$", "exit 200")]
    (queue.path / "bad.sh").write_text("#!/no/such shell\n")
    jobs.append(int(queue("submit", "bad.sh").split()[-1]))
    jobs.append(queue.submit("true", "--output", "no such folder/log"))
    queue.finish(*jobs)
    told = [queue.state_of(job) for job in jobs]
    assert told[:3] == ["COMPLETED|exit code 0|0", "FAILED|killed by SIGKILL|0", "FAILED|exit code 200|0"]
    assert all(line.startswith("FAILED|cannot start: ") for line in told[3:])
    assert queue("status", 1, 77).count("\n") == 1
    assert queue("status").count("\n") == len(jobs)


def test_the_script_is_copied_and_its_directives_are_read(queue: Cluster) -> None:
    strange = queue.path / 'it\'s a "job"\n.sh'
    strange.write_text(
        "#!/usr/bin/env python3\n\n# comment\n#LOCAL --output='a b' --job-name=x\n#LOCAL --time 1-0\n"
        "print('copied')\n#LOCAL --error=no\n"
    )
    job = int(queue("submit", strange, MLXJOBS_LOCAL_JOBS="0").split()[-1])
    assert queue("status", job, MLXJOBS_LOCAL_JOBS="0") == f"{job}|PENDING||0|\n"
    strange.write_text("#!/bin/false\n")
    queue.finish(job)
    assert (queue.path / "a b").read_text() == "copied\n"
    record = json.loads((queue.state / "jobs" / str(job) / "job.json").read_text())
    assert (record["name"], record["limit_s"], record["error"]) == ("x", 86400, os.devnull)
    other = int(queue("submit", "--output", "c", "--job-name", "a\nb", strange).split()[-1])
    queue.finish(other)
    assert not (queue.path / "no").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#!/bin/sh\n#LOCAL --colour=blue\n", "--colour=blue"),
        ("#!/bin/sh\n#LOCAL --time=abc\n", "'abc'"),
        ("#!/bin/sh\n#LOCAL --output='a\n", "No closing quotation"),
        ("#!/bin/sh\n#LOCAL --out=a\n", "--out=a"),
        ("echo\n", "#!"),
    ],
)
def test_a_bad_script_is_refused_and_nothing_submitted(queue: Cluster, text: str, words: str) -> None:
    (queue.path / "good.sh").write_text("#!/bin/sh\n")
    (queue.path / "bad.sh").write_text(text)
    done = queue.command("submit", "good.sh", "bad.sh")
    assert done.returncode == 1
    assert done.stderr.startswith("mlxjobs.localqueue: bad.sh")
    assert words in done.stderr
    assert queue("status") == done.stdout == ""


def test_usage_errors_exit_2_and_settings_errors_1(queue: Cluster) -> None:
    for words in (
        ["submit"],
        ["nonsense"],
        ["cancel", "x"],
        ["signal", "NOPE", "1"],
        ["submit", "--time", "x", "y"],
    ):
        assert queue.command(*words).returncode == 2
    assert queue.command("submit", "missing").returncode == 1
    assert "MLXJOBS_LOCAL_JOBS=x" in queue.command("status", MLXJOBS_LOCAL_JOBS="x").stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("1:30", 90), ("2:00:01", 7201), ("1-2", 93600), ("1-2:3", 93780), ("0-0:0:4", 4), ("0", 0)],
)
def test_time_limits_are_slurms(text: str, seconds: float) -> None:
    assert localqueue.parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "-5", "1-", "1.5"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        localqueue.parse_time_limit(text)


def test_simultaneous_submits_get_ids_of_their_own_and_n_run_at_once(queue: Cluster) -> None:
    text = (
        'mkdir running/$$; ls running | wc -l; echo x >> seen; until [ -e go ]; do sleep 0.02; done; '
        "rmdir running/$$"
    )  # fmt: skip
    (queue.path / "running").mkdir()
    (queue.path / "s").write_text(f"#!/bin/bash\n#LOCAL --output=log --error=log\n{text}\n")
    queue.env["MLXJOBS_LOCAL_JOBS"] = "3"
    submits = [
        subprocess.Popen(
            [sys.executable, "-m", "mlxjobs.localqueue", "submit", *["s"] * 4],
            env=queue.env, cwd=queue.path, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(8)
    ]  # fmt: skip
    told = "".join(submit.communicate()[0] for submit in submits)
    assert sorted(int(number) for number in re.findall(r"Submitted local job (\d+)", told)) == [*range(1, 33)]
    until(lambda: (queue.path / "seen").exists() and (queue.path / "seen").read_text().count("x") == 3)
    assert queue("status").count("RUNNING") == 3
    assert len(queue.workers()) == 3
    (queue.path / "go").touch()
    queue.finish()
    assert queue("status").count("COMPLETED|exit code 0|0") == 32
    counts = [int(line) for line in queue.log().split()]
    assert len(counts) == 32
    assert max(counts) == 3
    until(lambda: not queue.processes())


def test_jobs_run_in_the_order_of_their_submission(queue: Cluster) -> None:
    queue.env["MLXJOBS_LOCAL_JOBS"] = "1"
    (queue.path / "s").write_text("#!/bin/bash\n#LOCAL --output=log\necho $MLXJOBS_LOCAL_JOB_ID\n")
    queue("submit", *["s"] * 12)
    queue.finish()
    assert queue.log().split() == [str(number) for number in range(1, 13)]


def test_cancel(queue: Cluster) -> None:
    queue.env["MLXJOBS_LOCAL_JOBS"] = "1"
    running = queue.submit(f"{READY}; {SLEEP}")
    waiting = queue.submit("echo never")
    pid = queue.pid()
    queue("cancel", waiting)
    assert queue.state_of(waiting) == "CANCELLED|cancelled|0"
    queue("cancel", running)
    queue.finish(running)
    assert queue.state_of(running) == "CANCELLED|cancelled|0"
    assert not alive(pid)
    assert queue.log() == "ready\nterm\n"
    done = queue.command("cancel", running, 55)
    assert done.returncode == 0
    assert f"job {running} has ended already (CANCELLED)" in done.stderr
    assert "job 55 is unknown" in done.stderr
    until(lambda: not queue.processes())


def test_cancel_signals_the_main_process_only_and_kills_all_after_the_grace(queue: Cluster) -> None:
    child = "trap 'echo child got it' TERM; echo ready; while :; do sleep 0.05; done"
    job = queue.submit(
        f"trap '' TERM; echo $$ > pid; setsid bash -c \"{child}\" & (setsid sleep 1000 &); "
        "trap 'echo term >> got' TERM; while :; do wait; done",
        MLXJOBS_LOCAL_GRACE="6",
    )
    pid = queue.pid()
    until(lambda: "ready" in queue.log())
    os.kill(pid, signal.SIGSTOP)
    before = time.time()
    queue("cancel", job)
    number, state, reason, restarts, deadline = queue.job(job)
    assert (number, state, reason, restarts) == (str(job), "RUNNING", "cancelled", "0")
    assert before + 5 <= int(deadline) <= time.time() + 7
    until(lambda: (queue.path / "got").exists())
    queue.finish(job)
    assert queue.state_of(job) == "CANCELLED|cancelled|0"
    assert queue.log() == "ready\n"
    until(lambda: not queue.processes())


def test_a_preempted_job_is_queued_last_and_resumes_appending(queue: Cluster) -> None:
    queue.env["MLXJOBS_LOCAL_JOBS"] = "1"
    first = queue.submit(f'trap "echo term; exit 0" TERM; echo "run ${{MLXJOBS_LOCAL_RESTART_COUNT-0}}"; '
                         f'[ -n "$MLXJOBS_LOCAL_RESTART_COUNT" ] && exit 0; {SLEEP}')  # fmt: skip
    second = queue.submit("echo second")
    until(lambda: "run 0" in queue.log())
    queue("preempt", first)
    queue.finish(first, second)
    assert queue.log() == "run 0\nterm\nsecond\nrun 1\n"
    assert queue.state_of(first) == "COMPLETED|exit code 0|1"
    done = queue.command("preempt", first)
    assert (done.returncode, done.stderr) == (
        1,
        f"mlxjobs.localqueue: job {first} is not running (COMPLETED)\n",
    )


def test_requeue(queue: Cluster) -> None:
    job = queue.submit("echo run ${MLXJOBS_LOCAL_RESTART_COUNT-0}; exit 4")
    queue.finish(job)
    queue("requeue", job, MLXJOBS_LOCAL_JOBS="0")
    assert queue("status", job, MLXJOBS_LOCAL_JOBS="0") == f"{job}|PENDING|requeued|1|\n"
    done = queue.command("requeue", job, MLXJOBS_LOCAL_JOBS="0")
    assert (done.returncode, done.stderr) == (1, f"mlxjobs.localqueue: job {job} is pending already\n")
    queue.finish(job)
    assert queue.log() == "run 0\nrun 1\n"
    assert queue.command("requeue", 99).returncode == 1


def test_a_job_can_requeue_itself(queue: Cluster) -> None:
    job = queue.submit(
        'trap "echo term; $Q status $MLXJOBS_LOCAL_JOB_ID; exit 0" TERM; '
        '[ -n "$MLXJOBS_LOCAL_RESTART_COUNT" ] && exit 0; $Q requeue $MLXJOBS_LOCAL_JOB_ID; echo asked $?;'
        + SLEEP
    )
    queue.finish(job)
    lines = queue.log().splitlines()
    assert "term" in lines
    assert any(line.startswith(f"{job}|RUNNING|requeued|0|") for line in lines)
    assert queue.state_of(job) == "COMPLETED|exit code 0|1"


def test_cancel_is_stronger_than_a_requeue_by_the_dying_job(queue: Cluster) -> None:
    job = queue.submit('trap "echo term" TERM; echo ready; until [ -e go ]; do sleep 0.02; done; '
                       "$Q requeue $MLXJOBS_LOCAL_JOB_ID; echo $?")  # fmt: skip
    until(lambda: "ready" in queue.log())
    queue("preempt", job)
    queue("cancel", job)
    (queue.path / "go").touch()
    queue.finish(job)
    assert queue.log() == f"ready\nterm\nmlxjobs.localqueue: job {job} is being cancelled\n1\n"
    assert queue.state_of(job) == "CANCELLED|cancelled|0"


def test_a_job_submitted_by_a_job_outlives_it(queue: Cluster) -> None:
    (queue.path / "inner").write_text(
        "#!/bin/bash\n#LOCAL --output=inner.log\necho $MLXJOBS_LOCAL_JOB_ID\n"
        "until [ -e go ]; do sleep 0.02; done\n"
    )
    outer = queue.submit("$Q submit inner; until [ -e inner.log ]; do sleep 0.02; done")
    queue.finish(outer)
    assert queue.state_of(outer) == "COMPLETED|exit code 0|0"
    assert queue.state_of(outer + 1) == "RUNNING||0"
    (queue.path / "go").touch()
    queue.finish()
    assert queue.state_of(outer + 1) == "COMPLETED|exit code 0|0"
    assert (queue.path / "inner.log").read_text() == f"{outer + 1}\n"
    until(lambda: not queue.processes())


def test_the_time_limit_warns_then_stops_then_kills(queue: Cluster) -> None:
    job = queue.submit(
        f"trap 'echo warned' USR2; trap 'echo term' TERM; {SLEEP}",
        "--time", "0:06", "--signal", "USR2@3", MLXJOBS_LOCAL_GRACE="3",
    )  # fmt: skip
    until(lambda: queue.job(job)[1] == "RUNNING")
    assert int(queue.job(job)[4]) <= time.time() + 7
    queue.finish(job)
    assert queue.state_of(job) == "TIMEOUT|time limit|0"
    assert queue.log() == "warned\nterm\n"


def test_a_signal_goes_to_the_main_process(queue: Cluster) -> None:
    job = queue.submit(f"trap 'echo usr1' USR1; {READY}; {SLEEP}")
    queue.pid()
    queue("signal", "USR1", job)
    until(lambda: "usr1" in queue.log())
    assert queue.state_of(job) == "RUNNING||0"
    queue("signal", "9", job)
    queue.finish(job)
    assert queue.state_of(job) == "FAILED|killed by SIGKILL|0"
    assert queue.command("signal", "USR1", job).returncode == 1


def test_wait_gives_up_at_its_timeout(queue: Cluster) -> None:
    job = queue.submit("sleep 1000")
    assert queue.command("wait", job, "--timeout", "0.1").returncode == 1
    queue("wait", 12345)


def test_background_children_end_with_the_job(queue: Cluster) -> None:
    job = queue.submit("(setsid env -i sleep 1000 > /dev/null & echo $! > pid); exit 0")
    queue.finish(job)
    assert queue.state_of(job) == "COMPLETED|exit code 0|0"
    assert not alive(queue.pid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_worker_lives_on_where_it_may_not_signal_what_its_job_became(queue: Cluster) -> None:
    """As `sudo something &` does, and `exec sudo something`."""

    def submit(text: str) -> None:
        (queue.path / "job.sh").write_text(f"#!/bin/bash\n#LOCAL --output=log\necho begun\n{text}\n")
        words = [sys.executable, "-m", "mlxjobs.localqueue", "submit", "job.sh"]
        subprocess.run(["setpriv", "--bounding-set=-kill", *words], env=queue.env, cwd=queue.path, check=True)

    become = "setpriv --reuid=65534 --clear-groups sleep 1000"
    submit(f"{become} & until [ $(ps -o uid= -p $!) = 65534 ]; do sleep 0.02; done")
    queue.finish()
    assert queue.state_of(1) == "COMPLETED|exit code 0|0"
    submit(f"echo $$ > pid; exec {become}")
    pid = queue.pid()
    until(lambda: Path(f"/proc/{pid}").stat().st_uid == 65534)
    assert "runs as another user" in queue.command("cancel", 2).stderr
    kill(pid)
    queue.finish()
    assert queue.state_of(2) == "CANCELLED|cancelled|0"
    assert queue.log() == "begun\n" * 2


LOST = (
    'echo "run ${MLXJOBS_LOCAL_RESTART_COUNT-0}"; [ -n "$MLXJOBS_LOCAL_RESTART_COUNT" ] && exit 0; '
    "setsid sleep 1000 & echo $! > child; echo $$ > pid; wait"
)


@pytest.mark.parametrize("command", [["status"], ["wait"], ["submit", "other"]])
def test_a_job_comes_back_once_when_its_worker_is_killed(queue: Cluster, command: list[str]) -> None:
    (queue.path / "other").write_text("#!/bin/sh\n")
    job = queue.submit(LOST)
    main, child = queue.pid(), queue.pid("child")
    [worker] = queue.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: not alive(main))
    queue(*command)
    assert not alive(child)
    queue.finish()
    assert queue.state_of(job) == "COMPLETED|exit code 0|1"
    assert queue.log() == "run 0\nrun 1\n"
    until(lambda: not queue.processes())


def test_all_jobs_come_back_when_everything_is_killed(queue: Cluster) -> None:
    queue.env["MLXJOBS_LOCAL_JOBS"] = "2"
    for _ in range(4):
        queue.submit(LOST)
    until(lambda: queue.log().count("run 0") == 2)
    kill(*queue.processes())
    until(lambda: not queue.processes())
    told = queue("status", MLXJOBS_LOCAL_JOBS="0")
    assert told == "1|PENDING|worker lost|1|\n2|PENDING|worker lost|1|\n3|PENDING||0|\n4|PENDING||0|\n"
    queue("status")
    until(lambda: queue.log().count("run 0") == 4)
    assert queue.log().count("run 1") == 2


def test_a_lost_job_can_be_cancelled(queue: Cluster) -> None:
    job = queue.submit(LOST)
    child = queue.pid("child")
    queue.pid()
    os.kill(queue.workers()[0], signal.SIGKILL)
    queue("cancel", job, MLXJOBS_LOCAL_JOBS="0")
    assert queue.state_of(job) == "CANCELLED|cancelled|1"
    assert not alive(child)


def test_a_worker_that_is_told_to_end_preempts_its_job(queue: Cluster) -> None:
    job = queue.submit(f"{READY}; {SLEEP}")
    queue.pid()
    os.kill(queue.workers()[0], signal.SIGTERM)
    until(lambda: not queue.processes())
    assert queue("status", job, MLXJOBS_LOCAL_JOBS="0") == f"{job}|PENDING|preempted|1|\n"
    assert queue.log() == "ready\nterm\n"


def test_killed_submits_and_workers_lose_no_job_and_run_none_twice(queue: Cluster) -> None:
    """Kill at many moments; in the end all that was told to be submitted has run, and none two at once."""
    (queue.path / "s").write_text(
        "#!/bin/bash\nexec 9> on.$MLXJOBS_LOCAL_JOB_ID; flock -n 9 || echo twice >> bad\n"
        "sleep 0.05; echo $MLXJOBS_LOCAL_JOB_ID >> ran\n"
    )
    began = time.monotonic()
    told = set(re.findall(r"job (\d+)", queue("submit", "s", "s")))
    took = time.monotonic() - began
    for step in range(12):
        submit = subprocess.Popen(
            [sys.executable, "-m", "mlxjobs.localqueue", "submit", "s", "s"],
            env=queue.env, cwd=queue.path, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        time.sleep(took * (step + 2) / 8)  # before, in and after its work
        kill(submit.pid, *queue.workers())
        told |= set(re.findall(r"job (\d+)", submit.communicate()[0]))
    queue.finish()
    rows = [line.split("|") for line in queue("status").splitlines()]
    assert told <= {row[0] for row in rows}
    assert {row[1] for row in rows} <= {"COMPLETED"}
    ran = (queue.path / "ran").read_text().split()
    assert set(ran) == {row[0] for row in rows}
    assert not (queue.path / "bad").exists()
    # a job ran twice only if it was lost, and then it was told so
    assert all(ran.count(row[0]) <= 1 + int(row[3]) for row in rows)
    until(lambda: not queue.processes())


def test_forget_and_never_reuse_an_id(queue: Cluster) -> None:
    done, running = queue.submit("true"), queue.submit("sleep 1000")
    queue.finish(done)
    queue("forget")
    assert queue("status").startswith(f"{running}|")
    queue("cancel", running)
    queue.finish(running)
    queue("forget")
    assert queue("status") == ""
    assert queue.submit("true") == running + 1
    queue.finish()
    week = time.time() - 8 * 24 * 3600
    for path in (queue.state / "jobs" / "3" / "job.json", queue.state / "jobs" / ".new-1-1"):
        path.mkdir(exist_ok=True) if path.name[0] == "." else None
        os.utime(path, (week, week))
    assert queue.submit("true") == running + 2
    assert {path.name for path in (queue.state / "jobs").iterdir()} == {str(running + 2)}


def test_a_half_created_job_is_never_run(queue: Cluster) -> None:
    queue("status")
    (queue.state / "jobs" / ".new-1-1").mkdir()
    assert queue.submit("true") == 1
    queue.finish()
    assert queue("status") == "1|COMPLETED|exit code 0|0|\n"


def test_nothing_is_readable_by_others(queue: Cluster) -> None:
    umask = os.umask(0)
    try:
        queue.submit("true", SECRET="x")
    finally:
        os.umask(umask)
    queue.finish()
    for path in [queue.state, *queue.state.rglob("*")]:
        if not path.is_socket():  # in a directory that is closed
            assert path.stat().st_mode & 0o077 == 0, path


def test_a_planted_directory_is_refused(queue: Cluster) -> None:
    queue.state.mkdir()
    for mode in (0o770, 0o707):
        queue.state.chmod(mode)
        done = queue.command("status")
        assert done.returncode == 1
        assert "others may write" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("link", [False, True])
def test_a_directory_of_another_user_is_refused(queue: Cluster, link: bool) -> None:
    if link:
        (queue.path / "mine").mkdir()
        queue.state.symlink_to(queue.path / "mine")
    else:
        queue.state.mkdir()
    os.chown(queue.state, 65534, 65534, follow_symlinks=False)
    assert "belongs to another user" in queue.command("status").stderr


def test_a_directory_that_cannot_be_used_is_one_message(
    queue: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer() -> str:
        localqueue.main(["status"])
        return capsys.readouterr().err

    monkeypatch.setenv("MLXJOBS_LOCAL_DIR", "/proc/none")
    assert "/proc/none cannot be made: No such file or directory; set MLXJOBS_LOCAL_DIR" in answer()
    monkeypatch.setenv("MLXJOBS_LOCAL_DIR", str(queue.state))

    def no_locks(fd: int, operation: int) -> None:  # as on Lustre without -o flock
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert f"{queue.state}/staff cannot be locked: Function not implemented; set" in answer()


def test_the_default_directory_is_private(queue: Cluster) -> None:
    queue("status", MLXJOBS_LOCAL_DIR="", XDG_STATE_HOME=str(queue.path / "xdg"))
    state = queue.path / "xdg" / "mlxjobs" / "local" / os.uname().nodename
    assert state.stat().st_mode & 0o777 == 0o700


def test_jobs_outlive_the_terminal(queue: Cluster) -> None:
    (queue.path / "s").write_text(
        "#!/bin/bash\n#LOCAL --output=log\nuntil [ -e go ]; do sleep 0.02; done; echo done\n"
    )
    code = (
        "import pty,os,sys\npid, fd = pty.fork()\n"
        "if pid == 0: os.execvp('bash', ['bash', '-c', '$Q submit s > told; exec sleep 1000'])\n"
        "while not (os.path.exists('told') and os.path.getsize('told')): pass\n"
        "os.close(fd)\nos.waitpid(pid, 0)"  # the hang-up kills the shell
    )
    subprocess.run([sys.executable, "-c", code], env=queue.env, cwd=queue.path, check=True, timeout=120)
    until(lambda: queue.job(1)[1] == "RUNNING")
    [worker] = queue.workers()
    os.kill(worker, signal.SIGHUP)
    (queue.path / "go").touch()
    queue.finish()
    assert queue.log() == "done\n"
    assert queue.state_of(1) == "COMPLETED|exit code 0|0"


def test_a_submit_lets_go_of_its_caller(queue: Cluster) -> None:
    """A worker that kept the pipe of `$(submit)` open would make its caller wait for the job."""
    job = queue.submit("echo $$ > pid; sleep 1000")  # capture_output reads to the end of the pipe
    queue.pid()
    worker = Path(f"/proc/{queue.workers()[0]}/fd")
    assert all(
        str(os.readlink(fd)).startswith((str(queue.state), "/dev/null", "socket:")) for fd in worker.iterdir()
    )
    assert queue.job(job)[1] == "RUNNING"
