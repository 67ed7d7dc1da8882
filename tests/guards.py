"""Keeps tests from the scheduler of the machine they run on, as login nodes have one.

Commands of all schedulers stand first on the PATH; each says that a test called it, and fails. What a test
may ask, a stand-in or a cluster that the tests started, stands before them.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

SLURM = (
    "sacct sacctmgr salloc sattach sbatch sbcast scancel scontrol sdiag seff sinfo sprio squeue sreport srun "
    "sshare sstat strigger"
)
OAR = "oarcp oardel oarhold oarnodes oarproperty oarresume oarsh oarstat oarsub oarwalltime"
GRID_ENGINE_AND_PBS = (
    "pbs_tmrsh pbsdsh pbsnodes qacct qalter qconf qdel qhold qhost qlogin qmgr qmod qmove qmsg qorder qquota "
    "qrerun qresub qrls qrsh qrun qselect qsh qsig qstart qstat qstop qsub tracejob"
)
LSF = (
    "bacct bhist bhosts bjobs bkill blaunch bmod bparams bpeek bqueues brequeue brestart bresume bstop bsub "
    "bswitch lsid lsload"
)
MOAB = (
    "canceljob checkjob checknode mdiag mjobctl mjstat mnodectl msub releasehold sethold showbf showq "
    "showres showstart showstate"
)
COMMANDS = " ".join((SLURM, OAR, GRID_ENGINE_AND_PBS, LSF, MOAB)).split()

_GUARD = """#!/bin/sh
words="a test called ${0##*/} of the machine: ${0##*/} $*"
echo "$words" >&2
echo "${PYTEST_CURRENT_TEST:-no test}: $words" >>"${0%/*}/../called"
exit 127
"""

# What a scheduler, a launcher of ranks or this project tells the processes of a job: tests may run in one.
_JOB = (
    "LSB_", "LSF_", "MLXJOBS_", "MOAB_", "OAR_", "OMPI_", "PALS_", "PBS_", "PMIX_", "PMI_", "SACCT_",
    "SALLOC_", "SBATCH_", "SCANCEL_", "SCONTROL_", "SGE_", "SINFO_", "SLURMD_", "SLURM_", "SQUEUE_", "SRUN_",
    "SUBMITIT_", "TORCHELASTIC_",
)  # fmt: skip
_JOB_NAMES = (
    "HYDRA_FULL_ERROR", "JOB_DESCRIPTION", "JOB_ID", "JOB_NAME", "JOB_SCRIPT", "LOCAL_RANK",
    "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NHOSTS", "NODE_RANK", "NQUEUES", "NSLOTS",
    "PE_HOSTFILE", "QUEUE", "RANK", "RESTARTED", "TASK_ID", "WORLD_SIZE",
)  # fmt: skip
# What the developer asks of the tests themselves.
_ASKED = (
    "MLXJOBS_DAMAGE",
    "MLXJOBS_VIEWS",
    "MLXJOBS_WRITE_GOLDEN",
    "MLXJOBS_SLURM_DIR",
    "MLXJOBS_OAR_DIR",
    "MLXJOBS_SGE_DIR",
)


class Guards:
    """The folder of the guards, first on this process's PATH until they are taken away."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mlxjobs-guards-"))
        self._called = self._folder / "called"
        binaries = self._folder / "bin"
        binaries.mkdir()
        self._folder.chmod(0o755)
        guard = self._folder / "guard"
        guard.write_text(_GUARD)
        guard.chmod(0o755)
        for command in COMMANDS:
            (binaries / command).symlink_to(guard)
        os.environ["PATH"] = f"{binaries}:{os.environ['PATH']}"

    def calls(self) -> list[str]:
        """Return what was called since the last time, a line for each call."""
        try:
            text = self._called.read_text()
        except FileNotFoundError:
            return []
        self._called.unlink()
        return text.splitlines()

    def remove(self) -> None:
        """Take them away."""
        before = f"{self._folder / 'bin'}:"
        os.environ["PATH"] = os.environ["PATH"].removeprefix(before)
        shutil.rmtree(self._folder)


GUARDS = Guards()


def leave_job() -> None:
    """Forget what the job that the tests run in, if they do, has told its processes."""
    for name in list(os.environ):
        if (name.startswith(_JOB) or name in _JOB_NAMES) and name not in _ASKED:
            del os.environ[name]


def heed_signals() -> None:
    """Let the programs that tests start have the signals that were ignored for the tests themselves.

    A shell starts what is in its background with SIGINT and SIGQUIT ignored, nohup with SIGHUP ignored, and
    all programs below inherit that; a handler they do not inherit.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
