#!/bin/bash
#OAR -n main-5
#OAR -O /home/ada/project/logs/5/log.stdout
#OAR -E /home/ada/project/logs/5/log.stderr
#OAR -t idempotent
#OAR --checkpoint 60
#OAR --signal 12

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd /home/ada/project || exit
# What the scheduler signals has to be python.
exec /opt/python/bin/python3 -u /home/ada/project/main.py +mlxpy.logger.forced_log_id=5 +mlxpy.logger.parent_log_dir=/home/ada/project/logs +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
