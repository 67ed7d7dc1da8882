#!/bin/bash
#MSUB -N main-5
#MSUB -o /dev/null
#MSUB -e /dev/null
#MSUB -r y
#MSUB -E

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2
exec >>/home/ada/project/logs/5/log.stdout 2>>/home/ada/project/logs/5/log.stderr
# PBS and Torque end jobs without a warning: this is one, a minute before. Torque tells its jobs the limit.
if [ "${PBS_JOBID-}" ]; then
    limit=${PBS_WALLTIME:-$(qstat -f "$PBS_JOBID" 2>/dev/null |
        awk '/Resource_List.walltime/ { split($3, t, ":"); print t[1] * 3600 + t[2] * 60 + t[3] }')}
    [ "${limit:-0}" -gt 0 ] && sleep $((limit > 120 ? limit - 60 : limit / 2)) && kill -USR2 $$
fi </dev/null >/dev/null 2>&1 &

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd /home/ada/project || exit
# The warning goes to one process, this one: it has to be python.
exec /opt/python/bin/python3 -u /home/ada/project/main.py +mlxpy.logger.forced_log_id=5 +mlxpy.logger.parent_log_dir=/home/ada/project/logs +mlxpy.use_scheduler=false +mlxpy.use_version_manager=false +mlxpy.interactive_mode=false
