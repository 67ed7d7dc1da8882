"""The files that the OAR of the tests differs in from Debian's, as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = "oar-server"
"""The host of the server, the database and the commands. Not `localhost`: jobs call back by this name."""

_SETTINGS = {
    "DB_TYPE": "Pg",
    "DB_HOSTNAME": "127.0.0.1",
    "DB_BASE_PASSWD": "oar",
    "DB_BASE_PASSWD_RO": "oar",
    "SERVER_HOSTNAME": SERVER,
    # schedule at every piece of news, and let no time pass between jobs
    "SCHEDULER_MIN_TIME_BETWEEN_2_CALLS": "0",
    "SCHEDULER_JOB_SECURITY_TIME": "1",
    "SCHEDULER_GANTT_HOLE_MINIMUM_TIME": "1",
    "SCHEDULER_FAIRSHARING_MAX_JOB_PER_USER": "1000",
    "JOBDEL_SOFTWALLTIME": "2",
    "JOBDEL_WALLTIME": "5",
    "FINAUD_FREQUENCY": "4",
    "OAR_SSH_CONNECTION_TIMEOUT": "10",
}
# Without a path jobs are not confined by a cpuset, and are ended by walking through /proc. The cpuset's field
# stays: without it oarstat does not tell the cpuset's name, by which oarsh knows whose job it is.
_UNSET = ("CPUSET_PATH", "PINGCHECKER_SENTINELLE_SCRIPT_COMMAND")

# waits in seconds that are written in OAR's server; nothing else of it is changed
_WAITS = {"read_commands_timeout": (10, 1), "villainstimeout": (10, 2), "schedulertimeout": (60, 5)}

BASHRC = """# Every bash of a job reads this; the user's file once is enough.
if [ -z "$OAR_BATCH_JOB_BASHRC" ]; then
    export OAR_BATCH_JOB_BASHRC=1
    source ~/.bashrc
fi
"""


def render_conf(packaged: str, ping: Path) -> str:
    """Return oar.conf: the packaged one with the settings that the tests need.

    Args:
        packaged: the text of the one in the package.
        ping: a program that names those of the hosts given to it that do not answer.
    """
    changed: Mapping[str, str] = {**_SETTINGS, "PINGCHECKER_GENERIC_COMMAND": str(ping)}
    names = "|".join([*changed, *_UNSET])
    kept = [line for line in packaged.splitlines() if not re.match(rf"\s*({names})\s*=", line)]
    return "\n".join([*kept, *(f'{name}="{value}"' for name, value in changed.items())]) + "\n"


def hurry_server(program: str) -> str:
    """Return the program of OAR's server with shorter waits.

    Raises:
        ValueError: it is not the program that is known.
    """
    for name, (packaged, ours) in _WAITS.items():
        program, count = re.subn(rf"(?m)^(my \${name} = ){packaged};", rf"\g<1>{ours};", program)
        if count != 1:
            raise ValueError(f"OAR's server does not set ${name} to {packaged}: is it another version?")
    return program


def render_ping(addresses: Mapping[str, str]) -> str:
    """Return a program that says on stderr which of the nodes given to it have no ssh daemon."""
    cases = "\n".join(f"        {node}) address={address} ;;" for node, address in addresses.items())
    return (
        "#!/bin/bash\nfor node; do\n    case $node in\n"
        f"{cases}\n        *) address=$node ;;\n    esac\n"
        '    (exec 3<>"/dev/tcp/$address/6667") 2>/dev/null || echo "$node" >&2\ndone\n'
    )


def render_hosts(addresses: Mapping[str, str]) -> str:
    """Return /etc/hosts."""
    lines = {"127.0.0.1": f"localhost {SERVER}", **{address: node for node, address in addresses.items()}}
    return "".join(f"{address} {names}\n" for address, names in lines.items())


def resources(nodes: Sequence[str], cores: int) -> str:
    """Return SQL that copies OAR's first resource, the first core of the first node, to all others.

    By OAR's own commands each core takes half a second.
    """
    statements = ["BEGIN;"]
    for number in range(1, len(nodes) * cores):
        node = nodes[number // cores]
        statements.append(
            "CREATE TEMP TABLE one ON COMMIT DROP AS SELECT * FROM resources WHERE resource_id = 1;"
            "UPDATE one SET resource_id = nextval('resources_resource_id_seq'), state = 'Alive',"
            f" network_address = '{node}', host = '{node}', cpu = {number // cores + 1},"
            f" core = {number + 1}, cpuset = '{number % cores}';"
            "INSERT INTO resources SELECT * FROM one;"
            "INSERT INTO resource_logs (resource_id, attribute, value, date_start)"
            " SELECT resource_id, 'state', state, extract(epoch FROM now())::int FROM one;"
            "DROP TABLE one;"
        )
    return "\n".join([*statements, "COMMIT;"])
