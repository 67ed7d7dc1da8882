#!/bin/bash -l
#BSUB -J main-5
#BSUB -Jd mlxjobs-caae6dab416dae8fad1e3eb91d2de5d4
#BSUB -o /dev/null
#BSUB -e /dev/null
#BSUB -r
#BSUB -Q 99
#BSUB -wa USR2
#BSUB -wt 1
#BSUB --time=1:00:00

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2
exec >>/home/ada/project/logs/5/log.stdout 2>>/home/ada/project/logs/5/log.stderr
source /etc/profile
set -o pipefail
module purge
unset PYTHONPATH
module load cuda/12
export NAME="a b"
source ~/venv/bin/activate

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd /home/ada/project || exit
# What the scheduler signals has to be python.
exec /opt/python/bin/python3 -u /home/ada/project/main.py +mlxpy.logger.forced_log_id=5 +mlxpy.logger.parent_log_dir=/home/ada/project/logs +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
