#!/bin/bash -l
#SBATCH --job-name=main-5
#SBATCH --output=/home/ada/project/logs/5/log.stdout
#SBATCH --error=/home/ada/project/logs/5/log.stderr
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@60
#SBATCH --time=1:00:00

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2
source /etc/profile
set -o pipefail
module purge
unset PYTHONPATH
module load cuda/12
export NAME="a b"
source ~/venv/bin/activate

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd /home/ada/project || exit
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
    # One python for each task; one that fails ends all. This shell outlives the signals that Slurm sends to it and hands
    # the warnings on; what sends them to the tasks itself is Slurm.
    trap : TERM CONT
    trap 'kill -USR1 "$step"' USR1
    trap 'kill -USR2 "$step"' USR2
    srun --kill-on-bad-exit=1 /opt/python/bin/python3 -u /home/ada/project/main.py +mlxpy.logger.forced_log_id=5 +mlxpy.logger.parent_log_dir=/home/ada/project/logs +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false &
    step=$!
    while :; do
        wait "$step"
        code=$?
        kill -0 "$step" 2>/dev/null || exit "$code"
    done
fi
# Slurm signals the batch step's own process only: it has to be python.
exec /opt/python/bin/python3 -u /home/ada/project/main.py +mlxpy.logger.forced_log_id=5 +mlxpy.logger.parent_log_dir=/home/ada/project/logs +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
