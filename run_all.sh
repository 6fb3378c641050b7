#!/usr/bin/env bash
# Makes the runs of a study and its report:  ./run_all.sh [STUDY] [--list] [--jobs N] [--compile] [--graph] [--fastest];  no argument: the demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python || command -v python3)
fi
exec "$PYTHON" -m common.study "$@"
