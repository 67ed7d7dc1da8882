#!/usr/bin/env python3
"""Commands of PBS, Torque, LSF and Moab as stand-ins: one small queue that runs scripts for real.

Each command is a link to this file, and its name says which it is. The queue is the folder
`$STANDIN_DIR`: a file for each job, and one process for each that is not over. What the commands
take and print is in the form of the manuals; what they do is the least that a job's life needs.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

HOME = Path(os.environ.get("STANDIN_DIR", "."))
TORQUE = os.environ.get("STANDIN_TORQUE") == "1"
GRACE_S = 1.0  # between SIGTERM and SIGKILL
Job = dict[str, Any]
command = Path(sys.argv[0]).name

# -- the queue ----------------------------------------------------------------------------------


@contextmanager
def locked() -> Iterator[None]:
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read(job_id: str) -> Job | None:
    path = HOME / "jobs" / job_id
    return dict(json.loads(path.read_text())) if path.exists() else None


def write(job: Job) -> None:
    aside = HOME / "jobs" / f".{job['id']}.{os.getpid()}"
    aside.write_text(json.dumps(job))
    aside.replace(HOME / "jobs" / job["id"])


def change(job_id: str, **news: Any) -> Job:
    with locked():
        job = {**(read(job_id) or {}), **news}
        write(job)
    return job


def look(job_id: str) -> Job | None:
    """What the commands see of a job: nothing, if the file `forgotten` names it."""
    forgotten = HOME / "forgotten"
    return None if forgotten.exists() and forgotten.read_text() == job_id else read(job_id)


def all_jobs() -> list[Job]:
    names = [path.name for path in (HOME / "jobs").iterdir() if not path.name.startswith(".")]
    found = [look(name) for name in names]
    return sorted((job for job in found if job), key=lambda job: (job["number"], job["index"]))


def fail(words: str, code: int = 1) -> None:
    print(words, file=sys.stderr)
    raise SystemExit(code)


def options_of(script: str, directive: str) -> dict[str, str]:
    """The options of a script; of one that is given twice the last counts, but -l adds up."""
    found: dict[str, str] = {}
    for line in script.splitlines()[1:]:
        if not line.startswith(f"{directive} "):
            break
        name, _, value = line.removeprefix(f"{directive} ").strip().partition(" ")
        value = value.strip().strip("\"'")
        found[name] = f"{found[name]},{value}" if name == "-l" and name in found else value
    return found


def seconds(text: str) -> int:
    return sum(int(part) * unit for part, unit in zip(reversed(text.split(":")), (1, 60, 3600), strict=False))


def add(script: str, given: str, options: dict[str, str], name: str, after: str = "") -> int:
    """Take a script into the queue as a job, or as a job for each task of an array."""
    range_ = re.search(r"\[?1-(\d+)\]?$", options.get("-J", ""))
    limit = re.search(r"walltime=([\d:]+)", options.get("-l", ""))
    with locked():
        number = max((job["number"] for job in all_jobs()), default=0) + 1
        spool = HOME / "spool" / f"{number}.sh"
        spool.write_text(script)
        indices = range(1, int(range_.group(1)) + 1) if range_ else [0]
        for index in indices:
            job_id = f"{number}[{index}]" if index else str(number)
            write({
                "id": job_id, "number": number, "index": index, "name": name, "given": given,
                "options": options,
                "state": "Q", "code": None, "runs": 0, "made": time.time(), "start": 0.0, "used": 0.0,
                "limit": seconds(limit.group(1)) if limit else 0, "after": after, "pid": 0, "end": "",
                "requeue": False,
            })  # fmt: skip
    for index in indices:
        start(f"{number}[{index}]" if index else str(number))
    return number


def start(job_id: str) -> None:
    """Let a process of its own run a job."""
    null = subprocess.DEVNULL
    command = [sys.executable, str(Path(__file__).resolve()), "run", job_id]
    subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)


def run(job_id: str) -> None:
    """Run a job until it is over, however often it is requeued."""
    while True:
        job = read(job_id) or {}
        before = read(job["after"]) if job["after"] else None
        if job["end"]:
            change(job_id, state="F")
            return
        if (before and before["state"] != "F") or (HOME / "hold").exists():
            time.sleep(0.05)
            continue
        code = run_once(job)
        again = str(code) in job["options"].get("-Q", "").split()
        with locked():
            job = read(job_id) or {}
            again = (again or job["requeue"]) and not job["end"]
            write({**job, "state": "Q" if again else "F", "code": code, "requeue": False, "pid": 0})
        if not again:
            return


def run_once(job: Job) -> int:
    text = (HOME / "spool" / f"{job['number']}.sh").read_text()
    shell = text.splitlines()[0].removeprefix("#!").split()
    null = subprocess.DEVNULL
    process = subprocess.Popen(
        [*shell, str(HOME / "spool" / f"{job['number']}.sh")],
        stdin=null, stdout=null, stderr=null, start_new_session=True, env={**os.environ, **variables(job)},
    )  # fmt: skip
    begun, kill_at = time.time(), 0.0
    change(job["id"], state="R", pid=process.pid, start=begun, runs=job["runs"] + 1)
    while process.poll() is None:
        time.sleep(0.02)
        now = read(job["id"]) or {}
        if job["limit"] and time.time() > begun + job["limit"] and not now["end"]:
            now = change(job["id"], end="limit")
        if (now["end"] or now["requeue"]) and not kill_at:
            # a requeued job is killed, an ended one is asked first
            send(process.pid, signal.SIGKILL if now["requeue"] else signal.SIGTERM)
            kill_at = time.time() + GRACE_S
        if kill_at and time.time() > kill_at:
            send(process.pid, signal.SIGKILL)
    send(process.pid, signal.SIGKILL)  # what it left behind
    change(job["id"], used=time.time() - begun)
    return process.returncode if process.returncode >= 0 else 256 - process.returncode


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def variables(job: Job) -> dict[str, str]:
    """What the system of this queue sets in its jobs."""
    if job["options"]["system"] == "LSF":
        return {"LSB_JOBID": str(job["number"]), "LSB_JOBINDEX": str(job["index"])}
    found = {"PBS_JOBID": pbs_id(job)}
    if job["index"]:
        found["PBS_ARRAY_INDEX"] = str(job["index"])
    if job["limit"] and (TORQUE or job["options"]["system"] == "MWM"):
        found["PBS_WALLTIME"] = str(job["limit"])
    return found | ({"MOAB_JOBID": job["id"]} if job["options"]["system"] == "MWM" else {})


def end(job_id: str) -> None:
    """Delete a job."""
    job = read(job_id)
    if job is None or job["state"] == "F":
        fail(f"{command}: Unknown Job Id {job_id}", 153)
    change(job_id, end="deleted")


def warn(job_id: str, number: int) -> None:
    job = read(job_id)
    if job is None or job["state"] != "R":
        fail(f"{command}: Request invalid for state of job {job_id}")
    else:
        os.kill(job["pid"], number)


def submit(system: str, directive: str, script: str, given: str, after: str = "") -> tuple[int, bool]:
    """Take a script, as `$STANDIN_DIR/mode` says; return its number, and whether it is an array."""
    mode = (HOME / "mode").read_text().strip() if (HOME / "mode").exists() else ""
    (HOME / "mode").unlink(missing_ok=True)
    options = options_of(script, directive)
    if mode == "refuse" or options.get("-q") == "nosuch":
        fail({"PBS": "qsub: Unknown queue", "LSF": "nosuch: No such queue. Job not submitted."}.get(
            system, "ERROR:    cannot submit job - class nosuch not available"), 170)  # fmt: skip
    options["system"] = system
    name = options.get("-J" if system == "LSF" else "-N", "STDIN")
    number = add(script, given, options, name, after)
    if mode == "lost":
        fail(
            {"PBS": "qsub: End of File", "MWM": "ERROR:  client timed out after 30 seconds"}.get(system, "?")
        )
    if mode == "mute":
        raise SystemExit(0)
    return number, (HOME / "jobs" / f"{number}[1]").exists()


# -- PBS and Torque -------------------------------------------------------------------------------


def pbs_id(job: Job) -> str:
    return f"{job['id']}.server"


def plain(job_id: str) -> str:
    return job_id.partition(".")[0]


def qsub(words: list[str]) -> None:
    script = Path(words[-1]).read_text()
    after = next((word.rpartition(":")[2] for word in words if word.startswith("depend=")), "")
    number, array = submit("PBS", "#PBS", script, " ".join(words), plain(after))
    print(f"{number}[].server" if array else f"{number}.server")


def qstat(words: list[str]) -> None:
    if "-B" in words:
        print(
            "Server: server\n    server_state = Active" + ("" if TORQUE else "\n    max_array_size = 10000")
        )
        return
    ids = [plain(word) for word in words if not word.startswith("-")]
    jobs = [look(job_id) for job_id in ids] if ids else [*all_jobs()]
    known = [job for job in jobs if job is not None]
    if TORQUE and "-x" in words:
        print(f"<Data>{''.join(torque(job) for job in known)}</Data>" if known else "")
    else:
        print("".join(openpbs(job) for job in known), end="")
    for job_id in [job_id for job_id, job in zip(ids, jobs, strict=False) if job is None]:
        print(f"qstat: Unknown Job Id {job_id}.server", file=sys.stderr)
    raise SystemExit(153 if None in jobs else 0)


def clock(duration: float) -> str:
    whole = int(duration)
    return f"{whole // 3600:02}:{whole % 3600 // 60:02}:{whole % 60:02}"


def attributes(job: Job) -> dict[str, str]:
    ended = job["state"] == "F"
    return {
        "Job_Name": job["name"],
        **({"resources_used.walltime": clock(job["used"])} if ended else {}),
        "job_state": "C" if ended and TORQUE else job["state"],
        **({"Resource_List.walltime": clock(job["limit"])} if job["limit"] else {}),
    }


def openpbs(job: Job) -> str:
    lines = attributes(job) | {"ctime": time.ctime(job["made"])}
    if job["runs"]:
        lines |= {"stime": time.ctime(job["start"]), "run_count": str(job["runs"])}
    if job["state"] == "F":
        lines["substate"] = "91" if job["end"] == "deleted" else "92"
    if job["code"] is not None and job["state"] == "F":
        lines["Exit_status"] = str(-29 if job["end"] == "limit" else job["code"])
    lines["Submit_arguments"] = job["given"]
    text = "\n".join(f"    {name} = {value}" for name, value in lines.items())
    folded = re.sub(r"^(.{78})(?=.)", "\\1\n\t", text, flags=re.MULTILINE)
    return f"Job Id: {pbs_id(job)}\n{folded}\n\n"


def torque(job: Job) -> str:
    lines = attributes(job) | {"ctime": str(int(job["made"])), "submit_args": job["given"]}
    if job["runs"]:
        lines |= {"start_time": str(int(job["start"])), "start_count": str(job["runs"])}
    if job["code"] is not None and job["state"] == "F":
        lines["exit_status"] = str(job["code"])
    text = ""
    for name, value in lines.items():
        group, _, leaf = name.rpartition(".")
        safe = value.replace("&", "&amp;").replace("<", "&lt;")
        text += f"<{group}><{leaf}>{safe}</{leaf}></{group}>" if group else f"<{leaf}>{safe}</{leaf}>"
    return f"<Job><Job_Id>{pbs_id(job)}</Job_Id>{text}</Job>"


# -- LSF ------------------------------------------------------------------------------------------


def bsub(words: list[str]) -> None:
    number, _ = submit("LSF", "#BSUB", sys.stdin.read(), "")
    print(f"Job <{number}> is submitted to default queue <normal>.")


def bjobs(words: list[str]) -> None:
    ids = words[words.index("-o") + 2 :]
    records: list[dict[str, str]] = []
    for job_id in ids or [job["id"] for job in all_jobs()]:
        job = look(job_id)
        if job is None:
            records.append({"JOBID": job_id, "ERROR": f"Job <{job_id}> is not found"})
            continue
        ended = "DONE" if job["code"] == 0 and not job["end"] else "EXIT"
        reasons = {"deleted": "TERM_OWNER: job killed by owner", "limit": "TERM_RUNLIMIT: job killed"}
        records.append({
            "JOBID": str(job["number"]), "JOBINDEX": str(job["index"]),
            "STAT": {"Q": "PEND", "R": "RUN"}.get(job["state"], ended),
            "EXIT_CODE": str(job["code"] or ""), "EXIT_REASON": reasons.get(job["end"], ""),
            "TIME_LEFT": "", "JOB_DESCRIPTION": job["options"].get("-Jd", ""),
        })  # fmt: skip
    print(json.dumps({"COMMAND": "bjobs", "JOBS": len(records), "RECORDS": records}, indent=2))
    raise SystemExit(255 if any("ERROR" in record for record in records) else 0)


def bkill(words: list[str]) -> None:
    if words[0] == "-s":
        warn(words[2], signal.Signals[f"SIG{words[1]}"])
        return
    for job_id in words:
        end(job_id)


def brequeue(words: list[str]) -> None:
    job = read(words[-1])
    if job is None:
        fail(f"Job <{words[-1]}>: No matching job found")
    elif job["state"] == "F":
        change(job["id"], state="Q", end="", requeue=False)
        start(job["id"])
    else:
        change(job["id"], requeue=True)


# -- Moab -----------------------------------------------------------------------------------------


def msub(words: list[str]) -> None:
    after = next((word.rpartition(":")[2] for word in words if word.startswith("depend=")), "")
    number, _ = submit("MWM", "#MSUB", Path(words[-1]).read_text(), words[-1], after)
    print(f"\n{number}")


def moab(job: Job) -> str:
    state = {"Q": "Idle", "R": "Running"}.get(job["state"], "Completed")
    shown = {
        "JobID": job["id"], "State": state, "SubmissionTime": int(job["made"]), "CmdFile": job["given"],
        "StartTime": int(job["start"]), "ReqAWDuration": job["limit"] or 360000,
        "AWDuration": int(job["used"]),
    }  # fmt: skip
    if state == "Completed":
        shown["CompletionCode"] = "CNCLD" if job["end"] == "deleted" else job["code"]
    return f"<job {' '.join(f'{name}={quoteattr(str(value))}' for name, value in shown.items())}/>"


def showq(words: list[str]) -> None:
    jobs = [job for job in all_jobs() if (job["state"] == "F") == ("-c" in words)]
    print(f"<Data><Object>queue</Object><queue>{''.join(map(moab, jobs))}</queue></Data>")


def mjobctl(words: list[str]) -> None:
    if words[0] == "-N":
        warn(words[2], int(words[1]))
    else:
        print(f"<Data>{''.join(map(moab, all_jobs()))}</Data>")


def checkjob(words: list[str]) -> None:
    job = look(words[-1])
    if job is None:
        fail(f"ERROR:  invalid job specified ({words[-1]})")
    else:
        print(f"<Data>{moab(job)}</Data>")


def each(act: Callable[[str], None]) -> Callable[[list[str]], None]:
    def act_on_each(words: list[str]) -> None:
        for word in words:
            act(plain(word))

    return act_on_each


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "qsub": qsub, "qstat": qstat, "qdel": each(end),
    "qsig": lambda words: warn(plain(words[2]), int(words[1])),
    "bsub": bsub, "bjobs": bjobs, "bkill": bkill, "brequeue": brequeue, "bhist": lambda words: None,
    "bparams": lambda words: print("        MAX_JOB_ARRAY_SIZE = 1000"),
    "msub": msub, "showq": showq, "checkjob": checkjob, "canceljob": each(end), "mjobctl": mjobctl,
}  # fmt: skip

if __name__ == "__main__":
    if command == "standin.py":
        run(sys.argv[2])
    else:
        COMMANDS[command](sys.argv[1:])
