#!/bin/bash
#SBATCH --job-name=main-1
#SBATCH --output=/var/tmp/mlxjobs-stored/project/arrays/1/log.stdout
#SBATCH --error=/var/tmp/mlxjobs-stored/project/arrays/1/log.stderr
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@60

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd /var/tmp/mlxjobs-stored/project || exit
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
    # One python for each task; one that fails ends all. This shell outlives the signals that Slurm sends to it and hands
    # the warnings on; what sends them to the tasks itself is Slurm.
    trap : TERM CONT
    trap 'kill -USR1 "$step"' USR1
    trap 'kill -USR2 "$step"' USR2
    srun --kill-on-bad-exit=1 /var/tmp/mlxjobs-stored/venv/bin/python /var/tmp/mlxjobs-stored/project/main.py +mlxpy.logger.forced_log_id=1 +mlxpy.logger.parent_log_dir=/var/tmp/mlxjobs-stored/project/arrays +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false &
    step=$!
    while :; do
        wait "$step"
        code=$?
        kill -0 "$step" 2>/dev/null || exit "$code"
    done
fi
# Slurm signals the batch step's own process only: it has to be python.
exec /var/tmp/mlxjobs-stored/venv/bin/python /var/tmp/mlxjobs-stored/project/main.py +mlxpy.logger.forced_log_id=1 +mlxpy.logger.parent_log_dir=/var/tmp/mlxjobs-stored/project/arrays +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
