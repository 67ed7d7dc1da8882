#!{{ shell_path }}
{% for line in directives %}
{{ line }}
{% endfor %}

# A warning that comes before python listens must not end the job.
trap '' USR1 USR2
{% if redirect %}
exec >>{{ stdout | quote }} 2>>{{ stderr | quote }}
{% endif %}
{% for line in shell_config_lines + cleanup_lines + env_lines %}
{{ line }}
{% endfor %}

export PYTHONUNBUFFERED="${PYTHONUNBUFFERED-1}"
cd {{ work_dir | quote }} || exit
if [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
    # One python for each task; one that fails ends all. This shell outlives the signals that Slurm sends to it and hands
    # the warnings on; what sends them to the tasks itself is Slurm.
    trap : TERM CONT
    trap 'kill -USR1 "$step"' USR1
    trap 'kill -USR2 "$step"' USR2
    srun --kill-on-bad-exit=1 {{ command | map("quote") | join(" ") }} &
    step=$!
    while :; do
        wait "$step"
        code=$?
        kill -0 "$step" 2>/dev/null || exit "$code"
    done
fi
# Slurm signals the batch step's own process only: it has to be python.
exec {{ command | map("quote") | join(" ") }}
