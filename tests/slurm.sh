#!/usr/bin/env bash
# Runs over a real SLURM of one node, which this starts: whole segmentations, a training of two ranks, cancelled
# jobs, a walltime of a minute. As root; installs Debian's packages where they are missing. About 8 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/setup.sh
source deploy/setup.sh test
export SLURM_TESTS=all
exec pytest -v tests/test_slurm.py "$@"
