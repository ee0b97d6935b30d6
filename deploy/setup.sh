# Sourced by the scripts that need the project installed: a .venv in the checkout, pinned versions.
# Usage: source deploy/setup.sh [extra]
# Torch comes first and pinned, so that nothing else pulls another build of it.
if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
# shellcheck disable=SC1091
source .venv/bin/activate
export PIP_DISABLE_PIP_VERSION_CHECK=1
stamp=".venv/installed-${1:-base}"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ deploy/constraints.txt -nt "$stamp" ]; then
    echo "installing into .venv (once; a few minutes)"
    python -m pip install --quiet -c deploy/constraints.txt torch
    python -m pip install --quiet -c deploy/constraints.txt -e ".${1:+[$1]}"
    touch "$stamp"
fi
