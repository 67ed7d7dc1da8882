#!/bin/bash
#LOCAL --job-name=main-5
#LOCAL --output='/data/a b/it'"'"'s "$HOME" `id` %j/é;日本&/logs/5/log.stdout'
#LOCAL --error='/data/a b/it'"'"'s "$HOME" `id` %j/é;日本&/logs/5/log.stderr'

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd '/data/a b/it'"'"'s "$HOME" `id` %j/é;日本&' || exit
# What the scheduler signals has to be python.
exec /opt/python/bin/python3 -u '/data/a b/it'"'"'s "$HOME" `id` %j/é;日本&/main.py' +mlxpy.logger.forced_log_id=5 '+mlxpy.logger.parent_log_dir='"'"'/data/a b/it\'"'"'s "$HOME" `id` %j/é;日本&/logs'"'"'' +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
