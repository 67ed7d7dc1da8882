#!/bin/bash
#BSUB -J main-5
#BSUB -Jd mlxjobs-4aaf1f1e398bc7dac4846b6b326b6e0a
#BSUB -o /dev/null
#BSUB -e /dev/null
#BSUB -r
#BSUB -Q 99
#BSUB -wa USR2
#BSUB -wt 1

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2
exec >>'/data/a b/it'"'"'s "$HOME" `id` %j/é;日本&/logs/5/log.stdout' 2>>'/data/a b/it'"'"'s "$HOME" `id` %j/é;日本&/logs/5/log.stderr'

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd '/data/a b/it'"'"'s "$HOME" `id` %j/é;日本&' || exit
# What the scheduler signals has to be python.
exec /opt/python/bin/python3 -u '/data/a b/it'"'"'s "$HOME" `id` %j/é;日本&/main.py' +mlxpy.logger.forced_log_id=5 '+mlxpy.logger.parent_log_dir='"'"'/data/a b/it\'"'"'s "$HOME" `id` %j/é;日本&/logs'"'"'' +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
