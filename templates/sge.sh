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
# Grid Engine signals this process and its group: it has to be python.
exec {{ command | map("quote") | join(" ") }}
