#!/bin/sh
# Make the virtual environment that the Makefile's targets use: setup.sh FOLDER
set -eu
venv=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "mlxjobs needs Python 3.10 or newer; $python is $("$python" --version 2>&1)." >&2
    echo "Name another one: make PYTHON=python3.11 ..." >&2
    exit 2
}
# Debian has the module that makes environments in a package of its own
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing python3-venv, which $python lacks" >&2
        apt-get install -y --no-install-recommends python3-venv >/dev/null ||
            { apt-get update >/dev/null && apt-get install -y --no-install-recommends python3-venv >/dev/null; }
    elif "$python" -m virtualenv --version >/dev/null 2>&1; then
        maker=virtualenv
    else
        echo "$python cannot make virtual environments: install python3-venv (Debian, Ubuntu)" >&2
        echo "or virtualenv (pip install --user virtualenv), then try again." >&2
        exit 2
    fi
fi
echo "setting up $venv (once, a minute or so)" >&2
"$python" -m "${maker:-venv}" "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
