#!/bin/bash
#LOCAL --job-name=main-1
#LOCAL --output=/var/tmp/mlxjobs-stored/project/jobs/1/log.stdout
#LOCAL --error=/var/tmp/mlxjobs-stored/project/jobs/1/log.stderr

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd /var/tmp/mlxjobs-stored/project || exit
# What the scheduler signals has to be python.
exec /var/tmp/mlxjobs-stored/venv/bin/python /var/tmp/mlxjobs-stored/project/main.py +mlxpy.logger.forced_log_id=1 +mlxpy.logger.parent_log_dir=/var/tmp/mlxjobs-stored/project/jobs +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
