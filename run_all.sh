#!/usr/bin/env bash
# Makes the runs of a study and its report:  ./run_all.sh [STUDY] [--list] [--jobs N] [--compile] [--graph] [--fastest];  no argument: the demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python || command -v python3)
fi
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'; then
    echo "$PYTHON has no torch. To set up: python3 -m venv .venv && .venv/bin/pip install -r requirements.txt" >&2
    exit 2
fi
exec "$PYTHON" -m common.study "$@"
