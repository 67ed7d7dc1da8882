#!{{ shell_path }}
{% for line in directives %}
{{ line }}
{% endfor %}

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2
{% if redirect %}
exec >>{{ stdout | quote }} 2>>{{ stderr | quote }}
{% endif %}
# PBS and Torque end jobs without a warning: this is one, a minute before. Torque tells its jobs the limit.
if [ "${PBS_JOBID-}" ]; then
    limit=${PBS_WALLTIME:-$(qstat -f "$PBS_JOBID" 2>/dev/null |
        awk '/Resource_List.walltime/ { split($3, t, ":"); print t[1] * 3600 + t[2] * 60 + t[3] }')}
    [ "${limit:-0}" -gt 0 ] && sleep $((limit > 120 ? limit - 60 : limit / 2)) && kill -USR2 $$
fi </dev/null >/dev/null 2>&1 &
{% for line in shell_config_lines + cleanup_lines + env_lines %}
{{ line }}
{% endfor %}

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd {{ work_dir | quote }} || exit
# The warning goes to one process, this one: it has to be python.
exec {{ command | map("quote") | join(" ") }}
