#!/bin/bash
#BSUB -J main-5
#BSUB -Jd mlxjobs-312fe034984a5596ed015712b66c5c86
#BSUB -o /dev/null
#BSUB -e /dev/null
#BSUB -r
#BSUB -Q 99
#BSUB -wa USR2
#BSUB -wt 1

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2
exec >>'/data/new
line/logs/5/log.stdout' 2>>'/data/new
line/logs/5/log.stderr'

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd '/data/new
line' || exit
# What the scheduler signals has to be python.
exec /opt/python/bin/python3 -u '/data/new
line/main.py' +mlxpy.logger.forced_log_id=5 '+mlxpy.logger.parent_log_dir='"'"'/data/new
line/logs'"'"'' +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
