"""Grid Engine: qsub(1), qstat(1), qacct(1), queue_conf(5). What is measured was measured on 8.1.9."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from mlxjobs.scheduler import Fate, Here, Job, JobState, JobStatus, Scheduler, exit_words, in_zone

# `-o` takes `host:path,host:path`, drops quotes, and replaces $ (qsub(1)): neither can be escaped
_PLAIN = re.compile(r"[A-Za-z0-9_./+@=-]+")
# qdel fails if one of many jobs has just ended; that is not a failure
_QDEL = """said=$(qdel "$@" 2>&1) && exit
! printf '%s\\n' "$said" | grep -vE 'does not exist|has registered|has deleted' >&2"""
# qacct takes one job only, and fails for one that it does not know, as while that waits
_QACCT = 'for job; do qacct -j "$job" 2>/dev/null; done; :'
# accounting(5), `failed`: what Grid Engine itself had to do with the end
_RESCHEDULED, _LIMIT, _AFTER = 25, 37, 100


class SGEScheduler(Scheduler):
    """Sun's Grid Engine and its heirs. A task of an array is written `<job>.<task>`."""

    directive = "#$"
    commands = ("qsub", "qstat", "qdel")
    environment = (
        "SGE_STDIN_PATH", "SGE_STDOUT_PATH", "SGE_STDERR_PATH", "SGE_CWD_PATH", "SGE_JOB_SPOOL_DIR",
        "SGE_TASK_*", "SGE_O_*", "SGE_ACCOUNT", "SGE_CKPT_*", "SGE_BINDING", "SGE_RERUN_*",
        "JOB_ID", "JOB_NAME", "JOB_SCRIPT", "RESTARTED", "NSLOTS", "NHOSTS", "NQUEUES", "QUEUE",
        "PE", "PE_HOSTFILE", "REQUEST", "REQNAME", "ENVIRONMENT", "ARC",
    )  # fmt: skip
    array_variable = "SGE_TASK_ID"
    array_index = "$TASK_ID"
    remote_shell = ("qrsh", "-inherit")
    node_file = "PE_HOSTFILE"  # sge_pe(5)
    reserved_exit_codes = (100,)  # the job stays in the queue, in error: sge_conf(5), FORBID_APPERROR

    def options(self, job: Job) -> list[str]:
        """Name, output, error, shell, and what lets a job come back."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", job.name)  # a name with other letters is refused (measured)
        return [
            f"-N {name if not name[:1].isdigit() else f'_{name}'}",
            f"-o {job.stdout if self.names(job.stdout) else '/dev/null'}",
            f"-e {job.stderr if self.names(job.stderr) else '/dev/null'}",
            # most queues ignore the script's first line: queue_conf(5), shell_start_mode
            f"-S {job.shell_path.split()[0]}",
            "-r y",
            # else jobs are stopped and killed without a word: queue_conf(5), notify
            "-notify",
        ]

    def can_name(self, path: Path) -> bool:
        """Colons, commas, quotes and dollars mean something in an output file's path."""
        return _PLAIN.fullmatch(str(path).replace("@TASK@", "")) is not None

    def option_name(self, line: str) -> str:
        """Return the first word: `-notify` and `-now` are whole words."""
        return line.split()[0]

    def array_option(self, tasks: int) -> str:
        """qsub(1)."""
        return f"-t 1-{tasks}"

    # -- commands and what they answer -----------------------------------------------------

    def submit_command(self, script: Path) -> list[str]:
        """-terse: the id alone."""
        return self._submit([], script)

    def resubmit_command(self, script: Path, after: str) -> list[str]:
        """-hold_jid takes no task of an array (measured): one waits for the whole array."""
        return self._submit(["-hold_jid", after.partition(".")[0]], script)

    def _submit(self, more: Sequence[str], script: Path) -> list[str]:
        if "\n" not in str(script):
            return ["qsub", "-terse", *more, str(script)]
        # a script's path with a line break is refused (measured); from its input qsub takes any
        return ["sh", "-c", 'script=$1; shift; exec qsub "$@" <"$script"', "sh", str(script), "-terse", *more]

    def parse_submission(self, output: str) -> str:
        """`7`, of an array `7.1-3:1`; what a site's job verifier says comes before."""
        job_ids = re.findall(r"^(\d+)(?:\.\d+-\d+:\d+)?$", output, re.MULTILINE)
        if not job_ids:
            raise ValueError(output)
        return str(job_ids[-1])

    def task_ids(self, array_id: str, tasks: int) -> list[str]:
        """`7.1`, as qdel and qmod take them."""
        return [f"{array_id}.{number}" for number in range(1, tasks + 1)]

    def may_have_submitted(self, words: str) -> bool:
        """qsub sent the job, and no answer came; a qmaster that is down refuses the connection."""
        return "failed receiving gdi request" in words

    def is_full(self, words: str) -> bool:
        """max_u_jobs and max_jobs (sge_conf(5)); an array counts as one job (measured)."""
        return re.search(r"only \d+ jobs are allowed", words) is not None

    def find_command(self) -> list[str]:
        """All jobs that have not ended."""
        return ["qstat", "-j", "*"]

    def parse_found(self, output: str, script: Path) -> list[str]:
        """Jobs whose script_file is this script."""
        found, job_id = set(), ""
        for line in output.splitlines():
            name, _, value = line.partition(":")
            if name == "job_number":
                job_id = value.strip()
            elif name == "script_file" and value.strip() == str(script):
                found.add(job_id)
        return sorted(found, key=int)

    def max_array_command(self) -> list[str]:
        """sge_conf(5)."""
        return ["qconf", "-sconf", "global"]

    def parse_max_array(self, output: str) -> int | None:
        """max_aj_tasks; 0 is no limit."""
        found = re.search(r"^max_aj_tasks\s+(\d+)", output, re.MULTILINE)
        return int(found.group(1)) or None if found else None

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """All jobs of this user: `qstat -j` takes many, but has no states. -g d: each task is a line."""
        return ["qstat", "-xml", "-g", "d"]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """Jobs that have ended are not there."""
        answers = {}
        try:
            jobs = ElementTree.fromstring(output).iter("job_list")  # noqa: S314 - qstat's own words
        except ElementTree.ParseError as error:
            raise ValueError(f"no XML: {output[:80]!r}") from error
        for job in jobs:
            task = job.findtext("tasks")
            job_id = job.findtext("JB_job_number", "") + (f".{task}" if task else "")
            answers[job_id] = _status(
                job_id, job.findtext("state", ""), job.findtext("JB_submission_time", "")
            )
        return answers

    def history_command(self, job_ids: Sequence[str]) -> list[str]:
        """qacct(1); without a task it tells of all those of an array."""
        return ["sh", "-c", _QACCT, "sh", *dict.fromkeys(job_id.partition(".")[0] for job_id in job_ids)]

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """A job has a record for each time that it ran: the last one counts."""
        answers = {}
        for part in re.split(r"^=+$", output, flags=re.MULTILINE)[1:]:
            pairs = (line.split(None, 1) for line in part.splitlines())
            record = {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}
            task = record.get("taskid", "undefined")
            job_id = record.get("jobnumber", "") + ("" if task == "undefined" else f".{task}")
            answers[job_id] = _ended(job_id, record)
        return answers

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """qdel(1)."""
        return ["sh", "-c", _QDEL, "sh", *job_ids]

    def preempt_command(self, job_id: str) -> list[str]:
        """Suspending warns by USR1 and stops the job only after the queue's `notify`, a minute by default.

        A job that leaves until then with 99 is started again (measured). `qmod -rj` will not do: the new
        start does not wait for the old one, which still has its notice (measured).
        """
        return ["qmod", "-sj", job_id]

    # -- inside a job -----------------------------------------------------------------------

    def here(self, env: Mapping[str, str]) -> Here | None:
        """qsub(1), ENVIRONMENTAL VARIABLES. RESTARTED is 0 or 1, and no count."""
        if not env.get("JOB_ID", "").isdecimal() or "SGE_O_HOST" not in env:
            return None
        task = env.get("SGE_TASK_ID", "undefined")
        job_id = env["JOB_ID"] + ("" if task == "undefined" else f".{task}")
        return Here(job_id, 1 if env.get("RESTARTED") == "1" else 0)

    def fate(self, status: JobStatus, here: Here) -> Fate:
        """Read off qstat's letters, as the signals say less: USR1 and USR2 both may be a time limit.

        Nothing but a limit signals a job that runs, neither suspended nor deleted nor rescheduled.
        """
        if status.state is JobState.UNKNOWN:
            return Fate.UNKNOWN
        if status.state is JobState.ENDING:
            return Fate.CANCELLED
        if status.state is JobState.PENDING or (status.restarts or 0) > here.restarts:
            return Fate.REQUEUED
        return Fate.RUNS_ON if status.requeues_exit else Fate.TIME_LIMIT

    def requeue_exit_code(self) -> int:
        """qsub(1): a job that ends with 99 is started again, under its own id."""
        return 99

    def requeues_exit_after_s(self, status: JobStatus | None) -> float | None:
        """Not at a time limit: after h_rt, or after s_rt of a restarted job, 99 is ignored (measured)."""
        return 0.0 if status is None or status.requeues_exit else None


def _status(job_id: str, letters: str, submitted: str) -> JobStatus:
    """qstat(1), column state: letters add up, `dr` is a running job that is being deleted."""
    suspended = bool(re.search("[sST]", letters))
    if "d" in letters:
        state = JobState.ENDING
    elif re.fullmatch(r"R?[hE]*(qw|[qw])[hE]*", letters):
        state = JobState.PENDING
    elif suspended or re.search("[rt]", letters):  # `t`: sent to its node, where it runs already (measured)
        state = JobState.RUNNING
    else:
        state = JobState.UNKNOWN
    reason = "suspended" if suspended else ""
    if "E" in letters:
        reason = f"in error, see qstat -j {job_id}, then qmod -cj {job_id}"
    restarts = 1 if "R" in letters else 0
    return JobStatus(
        state,
        letters,
        reason,
        restarts,
        _time(submitted),
        job_id=job_id,
        requeues_exit=suspended and state is JobState.RUNNING,
    )


def _ended(job_id: str, record: Mapping[str, str]) -> JobStatus:
    failed, _, words = record.get("failed", "0").partition(":")
    code = int(record.get("exit_status", "0").split()[0])
    number = int(failed)
    if number == _RESCHEDULED:
        state, words = JobState.CANCELLED, "deleted while it waited to be started again"
    elif number == _LIMIT:
        state = JobState.TIME_LIMIT
    elif number in (0, _AFTER):
        state = JobState.FAILED if code or number else JobState.COMPLETED
        # the same for qdel without -notify, a lack of memory and kill -9 (measured)
        words = exit_words(code) if code else ""
    else:
        state = JobState.FAILED
    time = record.get("qsub_time", "")
    return JobStatus(state, state.value, words.strip(), submitted=_time(time), job_id=job_id)


def _time(text: str) -> datetime | None:
    for form in ("%Y-%m-%dT%H:%M:%S", "%a %b %d %H:%M:%S %Y"):
        try:
            return in_zone(datetime.strptime(text, form))
        except ValueError:
            continue
    return None
