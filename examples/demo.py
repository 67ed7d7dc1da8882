"""The main job, on this machine: submit a sweep, preempt a run while it works, see it come back.

`make demo` runs this. Nothing is left running, and nothing is left behind but the logs it names.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parent / "tutorial"
MLXJOBS = [str(Path(sys.executable).with_name("mlxjobs"))]
GIT = ["git", "-c", "user.name=demo", "-c", "user.email=demo@example.org"]


def show(command: list[str], words: str) -> None:
    """Print a command as one would type it, and run it."""
    print(f"\n$ {words}", flush=True)
    subprocess.run(command, check=True)


def runs() -> dict[int, dict]:
    lines = subprocess.run([*MLXJOBS, "ls", "--json"], check=True, capture_output=True, text=True).stdout
    return {run["id"]: run for run in map(json.loads, lines.splitlines())}


def epochs_in(metrics: Path) -> list[int]:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(line)["epoch"] for line in lines]


def wait_until(condition, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"the demo waited a minute for: {what}")
        time.sleep(0.1)


def main() -> None:
    if shutil.which("git") is None:
        sys.exit("the demo freezes code with git, which is not installed")
    home = Path(tempfile.mkdtemp(prefix="mlxjobs-demo-"))
    project = home / "tutorial"
    ours = shutil.ignore_patterns("logs", ".workdir", "__pycache__", "mlxpy.yaml")
    shutil.copytree(PROJECT, project, ignore=ours)
    os.chdir(project)
    # a queue of the demo's own, so that it meets nobody's jobs
    os.environ.update(MLXJOBS_LOCAL_DIR=str(home / "queue"), MLXJOBS_LOCAL_JOBS="3")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message=The tutorial"]):
        subprocess.run([*GIT, *command], check=True)

    print("The tutorial's program, in a git repository of its own. A sweep of 3 runs is submitted:")
    arguments = [
        "optimizer.lr=0.1,0.01,0.001", "num_epoch=30", "seconds_per_epoch=0.2", "+mlxpy.use_scheduler=true",
        "+mlxpy.scheduler.name=LocalScheduler", "+mlxpy.use_version_manager=true",
    ]  # fmt: skip
    began = time.monotonic()
    show([sys.executable, "main.py", *arguments], f"python main.py {' '.join(arguments)}")
    print(f"(the prompt is back after {time.monotonic() - began:.1f} s)")

    snapshot = next(Path(".workdir/tutorial").glob("[!.]*"))
    print(f"\nThe code they run is frozen in {snapshot}. So this edit changes nothing for them:")
    print("$ echo 'raise SystemExit(1)' >> core.py")
    with Path("core.py").open("a") as stream:
        stream.write("raise SystemExit(1)\n")

    print("\nRun 2 is preempted once it has a few epochs behind it:")
    metrics = Path("logs/2/metrics/train.json")
    wait_until(lambda: len(epochs_in(metrics)) > 5, "five epochs of run 2")
    show([*MLXJOBS, "preempt", "2"], "mlxjobs preempt 2")
    wait_until(lambda: runs()[2]["attempts"] == 2, "the second attempt of run 2")
    show([*MLXJOBS, "ls"], "mlxjobs ls")

    wait_until(lambda: {run["status"] for run in runs().values()} <= {"COMPLETE", "FAILED"}, "the end")
    print("\nWhat run 2 printed, over both attempts, and the end of the story:")
    show(["cat", "logs/2/log.stdout"], "cat logs/2/log.stdout")
    show([*MLXJOBS, "ls"], "mlxjobs ls")
    once = epochs_in(metrics) == list(range(30))
    print(f"\nEach epoch of run 2 is recorded once: {once}")
    print(f"The logs: {project / 'logs'}")
    if not once or any(run["status"] != "COMPLETE" for run in runs().values()):
        sys.exit("the demo did not end as it should")


if __name__ == "__main__":
    try:
        main()
    finally:  # nothing is left running, however it ended
        subprocess.run([*MLXJOBS, "cancel", "1-3"], capture_output=True, check=False)
