#!{{ shell_path }}
{% for line in directives %}
{{ line }}
{% endfor %}

# Each task of the array becomes the script of its own run: its number is a link to the folder of that run.
trap '' USR1 USR2
run={{ folder | quote }}/"${{ variable }}"
{% if redirect %}
exec >>"$run/log.stdout" 2>>"$run/log.stderr"
{% endif %}
exec {{ shell_path }} "$run/script.sh"
