"""A soak: hundreds of runs on the real Slurm while everything that can happen to a job happens at random.

    python -m tests.soak [--runs 200] [--seconds 600] [--seed N]        (as root; `make soak`)

The runs are those of an ordinary user, handed in by one command line. While they run, jobs are preempted,
requeued, killed and stopped, nodes are powered off and cut off, and the controller is killed. Afterwards
every run has to be COMPLETE with the metrics, checkpoints and artifacts of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxjobs.logger import checkpoints
from mlxjobs.record.history import RunState, RunStatus
from mlxjobs.record.run import Run
from tests.clusters.fixtures import install_python
from tests.clusters.machine import USER, ClusterError, account, say, wait_for
from tests.clusters.project import UserProject
from tests.clusters.slurm import SlurmCluster
from tests.clusters.torment import Carers, Torment, pids_of

# What a run logs, and when it saves, follow from its seed. All that it goes on from is in its checkpoint.
MAIN = """
import os, pathlib, random, time
import mlxpy

@mlxpy.launch(config_path="./configs")
def train(ctx):
    seed, steps, logger = ctx.config.seed, ctx.config.steps, ctx.logger
    every, logs, saves_first = 1 + seed % 4, ["train", "val", "test"][: 1 + seed % 3], seed % 2 == 0
    options = [{}, {}, {"keep": 3}, {"blocking": False}, {"monitor": "train.value", "keep": 2}][seed % 5]
    draw = random.Random(seed)
    state = {"step": 0, "value": 0.0, "random": draw.getstate()}
    try:
        state = logger.load_checkpoint("last")
    except FileNotFoundError:
        pass
    print("from step", state["step"], flush=True)
    value = state["value"]
    draw.setstate(state["random"])

    def save(step):
        if step % every == 0:
            if "monitor" in options and step == 0:
                return  # nothing to monitor yet
            state = {"step": step, "value": value, "random": draw.getstate()}
            logger.log_checkpoint(state, "last", **options)

    for step in range(state["step"], steps):
        if saves_first:
            save(step)
        value += draw.gauss(0, 1)
        for number, name in enumerate(logs):
            if step % (number + 1) == 0:
                logger.log_metrics({"step": step, "value": value, "noise": draw.random()}, log_name=name)
        if seed % 3 == 0 and step % 10 == 9:
            logger.log_artifacts({"step": step, "value": value}, f"at-{step}", "pickle")
        time.sleep(float(pathlib.Path(os.environ["PACE"]).read_text()))
        if not saves_first:
            save(step + 1)

if __name__ == "__main__":
    train()
"""
CONFIG = "seed: 0\nsteps: 100\n"
_AFTER_S = 420.0


class SoakProject(UserProject[SlurmCluster]):
    """The project whose runs are disturbed."""

    settings = """
scheduler:
  name: SLURMScheduler
  option_cmd: ['--partition=low', '--time=60', '--mem=200']
use_scheduler: true
"""

    def __init__(self, cluster: SlurmCluster, python: Path, home: Path) -> None:
        super().__init__(cluster, python, home)
        self._pace = home / "pace"
        self.env["PACE"] = str(self._pace)
        (self.folder / "main.py").write_text(MAIN)
        (self.folder / "configs" / "config.yaml").write_text(CONFIG)
        self.own()

    def take(self, seconds: float) -> None:
        """Let each step take so long from now on."""
        aside = self._pace.with_suffix(".new")
        aside.write_text(str(seconds))
        aside.replace(self._pace)

    def main(self, *arguments: str) -> str:
        """Run `python main.py ...` as the user."""
        done = self.cluster.run(
            [self.python, "main.py", *arguments], cwd=self.folder, env=self.env, timeout=900
        )
        if done.returncode != 0:
            raise SystemExit(f"main.py {' '.join(arguments)} gave {done.returncode}:\n{done.stderr}")
        return done.stdout


@dataclass
class Report:
    """What the soak found.

    Attributes:
        wrong: what should not be, one line each.
        figures: what to tell, in its order.
    """

    wrong: list[str] = field(default_factory=list)
    figures: dict[str, object] = field(default_factory=dict)

    def print(self) -> None:
        """Tell everything on standard output."""
        for name, value in self.figures.items():
            print(f"{name:60} {value}")
        for line in self.wrong:
            print(f"WRONG: {line}")
        print("the soak failed" if self.wrong else "the soak passed")


def soak(cluster: SlurmCluster, python: Path, home: Path, runs: int, seconds: float, seed: int) -> Report:
    """Run it on a cluster that is up.

    Args:
        cluster: it.
        python: the user's interpreter, with this project.
        home: a folder of the user's.
        runs: how many.
        seconds: how long they are disturbed.
        seed: of what is drawn.
    """
    report, project = Report(), SoakProject(cluster, python, home)
    quiet = home / "undisturbed"
    project.take(0)
    project.main(f"seed=range({runs})", "+mlxpy.use_scheduler=false", f"+mlxpy.logger.parent_log_dir={quiet}")
    say("soak: the undisturbed runs are done")
    # the runs would fill two thirds of the time if nobody disturbed them
    slots = min(runs, 4 * len(cluster.nodes))
    project.take(seconds * 0.67 * slots / runs / 100)
    began = time.monotonic()
    project.main(f"seed=range({runs})")
    torment, carers, done = Torment(project, random.Random(seed)), Carers(project), threading.Event()
    thread = threading.Thread(target=carers.look_after, args=(done,))
    thread.start()
    try:
        torment.go_on(seconds)
    finally:
        done.set()
        thread.join()
    at_the_end = _statuses(project)
    say(f"soak: the torment is over; {dict(at_the_end)}")
    project.take(0)
    with suppress(TimeoutError):
        wait_for(lambda: _next_round(carers), _AFTER_S, until=lambda left: not left)
    report.figures = {
        "runs": runs,
        "torment (s)": f"{seconds:g}",
        "from the submission to the last end (s)": f"{time.monotonic() - began:.0f}",
        "COMPLETE when the torment ended": at_the_end["COMPLETE"],
        **{f"disturbance: {kind}": count for kind, count in sorted(torment.counts.items())},
        "disturbances in all": sum(
            n for kind, n in torment.counts.items() if kind[0] != "(" and "refused" not in kind
        ),
    }
    _compare(project, quiet, runs, carers, report)
    _look_for_leftovers(project, report)
    report.wrong += [f"a traceback for the user: {text}" for text in torment.errors if "Traceback" in text]
    report.wrong += [f"a command of the user: {text}" for text in carers.errors]
    for text in torment.errors:
        say(f"soak: {text}")
    return report


def _next_round(carers: Carers) -> dict[int, str]:
    carers.go_round()
    time.sleep(2)
    return carers.left


def _states(project: SoakProject) -> dict[int, RunState]:
    return {int(path.name): Run(path).state() for path in project.logs.iterdir() if path.name.isdecimal()}


def _statuses(project: SoakProject) -> Counter[str]:
    return Counter(str(state.status) for state in _states(project).values())


def _compare(project: SoakProject, quiet: Path, runs: int, carers: Carers, report: Report) -> None:
    states, lost, more, wrong = _states(project), 0, 0, report.wrong
    if sorted(states) != list(range(1, runs + 1)):
        wrong.append(f"there are runs {sorted(states)}")
    for log_id, state in sorted(states.items()):
        run, other = Run(project.logs / str(log_id)), Run(quiet / str(log_id))
        if state.status is not RunStatus.COMPLETE:
            wrong.append(f"run {log_id} is {state.status} ({state.reason}): {carers.left.get(log_id)}")
            continue
        if run.read_yaml("config") != other.read_yaml("config"):
            wrong.append(f"run {log_id} has another configuration")
        here, there = _lines(run), _lines(other)
        if here != there:
            names = [name for name in there if here.get(name) != there[name]]
            wrong.append(f"run {log_id} has other metrics than the undisturbed one: {names}")
        flat_here, flat_there = (
            Counter((name, line) for name, lines in found.items() for line in lines)
            for found in (here, there)
        )
        lost += (flat_there - flat_here).total()
        more += (flat_here - flat_there).total()
        wrong += _compare_artifacts(run, other)
        if [attempt.number for attempt in state.attempts if attempt.status is RunStatus.COMPLETE] != [
            len(state.attempts)
        ]:
            wrong.append(f"run {log_id}: not its last attempt alone is COMPLETE")
        if "Traceback" in (text := run.stderr.read_text(errors="replace")):
            wrong.append(
                f"run {log_id} has a traceback in log.stderr: {text[text.index('Traceback') :][-1500:]}"
            )
    attempts = [len(state.attempts) for state in states.values()] or [0]
    report.figures |= {
        "COMPLETE in the end": sum(state.status is RunStatus.COMPLETE for state in states.values()),
        "attempts in all": sum(attempts),
        "attempts of a run: smallest, median, largest": (
            f"{min(attempts)}, {sorted(attempts)[len(attempts) // 2]}, {max(attempts)}"
        ),
        "lines of metrics lost": lost,
        "lines of metrics that are too many": more,
        "lines of metrics moved to .superseded": sum(
            len(path.read_bytes().splitlines())
            for path in project.logs.glob("*/metrics/.superseded/*/*.json")
        ),
        "processes that were given up and said so": sum(
            "may not write to it any more"
            in Run(project.logs / str(log_id)).stderr.read_text(errors="replace")
            for log_id in states
        ),
        "runs started again by hand (mlxjobs requeue)": len(carers.by_hand),
        **{f"by hand: {reason}": count for reason, count in sorted(carers.reasons.items())},
        **{f"released by the administrator: {reason}": n for reason, n in sorted(carers.released.items())},
    }


def _lines(run: Run) -> dict[str, list[bytes]]:
    return {
        path.name: path.read_bytes().splitlines(keepends=True) for path in sorted(run.metrics.glob("*.json"))
    }


def _compare_artifacts(run: Run, other: Run) -> list[str]:
    here, there = (_artifacts(one) for one in (run, other))
    wrong = []
    if here != there:
        differ = [name for name in {**here, **there} if here.get(name) != there.get(name)]
        wrong.append(f"run {run.log_id} has other artifacts than the undisturbed one: {differ}")
    for name in ("last.pkl", "last_best.pkl"):
        path, same = (one.path / "artifacts" / "Checkpoint" / name for one in (run, other))
        if same.exists() != path.exists() or (
            same.exists() and checkpoints.load(path) != checkpoints.load(same)
        ):
            wrong.append(f"run {run.log_id} has another {name} than the undisturbed one")
    return wrong


def _artifacts(run: Run) -> dict[str, Any]:
    """All but checkpoints, whose trailers tell of attempts, and what was taken back."""
    folder, others = run.path / "artifacts", {"Checkpoint", ".superseded"}
    files = [path for path in folder.rglob("*") if path.is_file() and others.isdisjoint(path.parts)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _look_for_leftovers(project: SoakProject, report: Report) -> None:
    with suppress(TimeoutError):
        wait_for(lambda: _jobs(project), 60, until=lambda jobs: not jobs)
    waiting, findings = list(project.logs.glob(".waiting/*")), _findings(project)
    # what a process was about to give its name when it was killed
    left = ("was left by a process that was killed", "is an empty folder that an attempt left")
    halves = [text for text in findings if text.endswith(")") and any(words in text for words in left)]
    report.figures["files left by killed processes, as fsck says"] = len(halves)
    others = [text for text in findings if text not in halves]
    for what, found in (
        ("jobs", _jobs(project)), ("processes", list(pids_of(project))), ("waiting runs", waiting),
        ("findings of mlxjobs fsck", others),
    ):  # fmt: skip
        if found:
            report.wrong.append(f"{len(found)} {what} are left: {found}")


def _findings(project: SoakProject) -> list[str]:
    done = project.cluster.run(
        [project.python, "-m", "mlxjobs", "fsck"], cwd=project.folder, env=project.env, timeout=300
    )
    if done.returncode not in (0, 1):
        return [f"fsck itself failed: {done.stderr}"]
    return [line for line in done.stdout.splitlines() if done.returncode and ": " in line]


def _jobs(project: SoakProject) -> list[str]:
    return project.cluster.root("squeue", "--noheader", "--array", "--format=%i %T %r").splitlines()


def main() -> int:
    """Start Slurm, soak, and say what was found."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--keep", action="store_true", help="keep the runs for a look")
    asked = parser.parse_args()
    print(f"{asked.runs} runs, {asked.seconds:g} s, --seed {asked.seed}", flush=True)
    cluster = SlurmCluster()
    cluster.install()
    python = install_python()
    cluster.up(nodes=asked.nodes)
    home = Path(tempfile.mkdtemp(prefix="mlxjobs-soak-", dir="/tmp"))
    try:
        who = account(USER)
        os.chown(home, who.pw_uid, who.pw_gid)
        home.chmod(0o755)
        report = soak(cluster, python, home, asked.runs, asked.seconds, asked.seed)
        report.print()
    finally:
        cluster.down()
        if asked.keep:
            print(f"the runs are in {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClusterError as error:
        sys.exit(f"error: {error}")
