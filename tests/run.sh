#!/usr/bin/env bash
# Lint, types, import contracts and all tests; sets up .venv first. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
# Modules that no test imports need not be compiled.
export PIP_NO_COMPILE=1
# shellcheck source=deploy/setup.sh
source deploy/setup.sh test
ruff check .
mypy
lint-imports
exec pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
