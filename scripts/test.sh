#!/usr/bin/env bash
# README command 2: install, lint, check types and import layers, run the seven commands at toy size, then the tests.
set -euo pipefail
. "$(dirname "$0")/setup.sh" demo,dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
ruff check .
ruff format --check .
mypy
lint-imports
tok recipes --check
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
TOK_WORKSPACE="$scratch/artifacts" scripts/pipeline.sh toy openmoji
python -m pytest -q "$@"
