"""Slurm's commands as stand-ins, for what a real one cannot be made to say when a test wants it to."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.project import Project

# `modes` has a line for each call of sbatch; `room` is how many tasks may be in the queue, `queue/ID` are the
# jobs: their script, a line for each task; `state` is what squeue says of each of them.
SBATCH = """#!/bin/bash
cd "$(dirname "$0")" || exit
mode=$(head -n 1 modes)
sed -i 1d modes
script=${!#}
tasks=$(sed -n 's/^#SBATCH --array=1-//p' "$script")
id=$(($(ls queue | wc -l) + 1))
take() { yes "$script" | head -n "${tasks:-1}" > queue/$id; }
if [ $(($(cat queue/* 2>/dev/null | wc -l) + ${tasks:-1})) -gt "$(cat room)" ]; then
    echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy" \\
        "(job submit limit, user's size and/or time limits)" >&2
    exit 1
fi
case ${mode:-ok} in
    ok) take; echo $id ;;
    refuse) echo "sbatch: error: invalid partition specified: nosuch" >&2; exit 1 ;;
    hang-taken) take; exec sleep 60 ;;
    hang-lost) exec sleep 60 ;;
    timeout-taken) take; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1 ;;
    timeout-lost) echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1 ;;
    killed-taken) take; kill -KILL $$ ;;
    killed-lost) kill -KILL $$ ;;
    mute-taken) take; echo "thank you" ;;
    mute-lost) echo "thank you" ;;
    interrupt) kill -INT $PPID; exec sleep 60 ;;
    kill) kill -KILL $PPID ;;
    kill-taken) take; kill -KILL $PPID ;;
esac
"""
SQUEUE = """#!/bin/bash
cd "$(dirname "$0")" || exit
[ -e down ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
for job in queue/*; do
    [ -e "$job" ] || exit 0
    number=0 tasks=$(wc -l < "$job")
    while read -r line; do
        number=$((number + 1)) id=${job#queue/}
        case "$*" in
            *--format=*) printf '%s\\x1f%s\\n' "$id" "$line" ;;
            *)
                [ "$tasks" = 1 ] || id+=_$number
                read -r state reason restarts code < state
                printf '%s\\x1f' "$id" "$state" "$reason" "$restarts" 2096-01-01T00:00:00 "$code"
                echo
                ;;
        esac
    done < "$job"
done
"""
SCONTROL = '#!/bin/bash\ncd "$(dirname "$0")" || exit\necho "MaxArraySize            = $(cat max_array)"\n'
SCANCEL = '#!/bin/bash\ncd "$(dirname "$0")" || exit\necho "$*" >> cancelled\n'
SACCT = "#!/bin/bash\necho 'Slurm accounting storage is disabled' >&2\nexit 1\n"
# The time that is left to a command that hangs, cut short. A stand-in has to do its part before it is over,
# on a busy machine too.
IMPATIENT = (
    "import mlxjobs.cluster.cluster as c, mlxjobs.jobs.arrays as a\n"
    "c._SUBMIT_S, c._SEARCH_S, a._PATIENCE_S = 4.0, 0.5, 0.0\n"
)


class Slurm:
    """The stand-ins, and a project that submits to them."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.folder = project.folder.parent / "slurm"
        (self.folder / "queue").mkdir(parents=True)
        commands = {
            "sbatch": SBATCH, "squeue": SQUEUE, "scontrol": SCONTROL, "scancel": SCANCEL, "sacct": SACCT,
        }  # fmt: skip
        for name, text in commands.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        self.limit()
        self.say("PENDING None 0")
        self.answer("")
        project.env["PATH"] = f"{self.folder}:{os.environ['PATH']}"

    def limit(self, *, max_array: int = 1001, room: int = 10**6) -> None:
        """Set MaxArraySize, and how many tasks may be in the queue."""
        (self.folder / "max_array").write_text(f"{max_array}\n")
        (self.folder / "room").write_text(f"{room}\n")

    def say(self, words: str) -> None:
        """Set what squeue says of each job: its state, reason, count of restarts, and wait status."""
        (self.folder / "state").write_text(f"{words}\n")

    def answer(self, modes: str) -> None:
        """Say what the next calls of sbatch give; `ok` after them."""
        (self.folder / "modes").write_text("".join(f"{mode}\n" for mode in modes.split()))

    def submit(self, modes: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Submit to the stand-ins, which answer so."""
        self.answer(modes)
        scheduler = ("mlxpy.use_scheduler=true", "mlxpy.scheduler.name=SLURMScheduler")
        return self.project.run(*scheduler, *arguments, code=code)

    def end(self, job: str) -> None:
        """Take a job out of the queue; its number is not given again."""
        (self.folder / "queue" / job).write_text("")

    def tasks(self) -> dict[str, int]:
        """How many tasks each job in the queue has."""
        lines = {path.name: len(path.read_text().splitlines()) for path in self.queue}
        return {name: count for name, count in lines.items() if count}

    @property
    def queue(self) -> list[Path]:
        """Files of the jobs that were ever taken, oldest first."""
        return sorted((self.folder / "queue").iterdir(), key=lambda path: int(path.name))

    def scripts(self) -> list[str]:
        """The scripts of all tasks that were ever taken."""
        return [line for path in self.queue for line in path.read_text().splitlines()]


def run_task(
    slurm: Slurm, job: str, task: int | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run what Slurm would run, as the job that it would be."""
    script = (slurm.folder / "queue" / job).read_text().splitlines()[0]
    names = {"SLURM_JOB_ID": job} | (
        {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)} if task else {}
    )
    return slurm.project.command("bash", script, env=names, code=code)
