#!/usr/bin/env bash
# README command 2: install, lint, check types and import layers, run the seven commands at toy size, then the tests; arguments go to
# pytest. Without any, the paper's tables at mini size come last and by themselves: each uses all cores, and prints what it made.
set -euo pipefail
. "$(dirname "$0")/setup.sh" demo,dev
if [ "${CI:-}" = true ] && ! { command -v chromium && command -v chromedriver; } >/dev/null; then
    # elsewhere the tests of pages are skipped where there is no browser: nobody's system is changed
    echo "CI: installing chromium for the tests of pages ..." >&2
    log="$(mktemp)"
    if ! { apt-get update -q && apt-get install -y -q --no-install-recommends chromium chromium-driver; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "scripts/test.sh: apt-get could not install chromium and chromium-driver. Install them in CI's image, or unset CI." >&2
        exit 1
    fi
fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
# each of the two has one core
(ruff check . && ruff format --check . && mypy && lint-imports && tok recipes --check) >"$scratch/checks" 2>&1 &
TOK_WORKSPACE="$scratch/artifacts" scripts/pipeline.sh toy openmoji
wait $! && checked=0 || checked=$?
cat "$scratch/checks"
[ "$checked" = 0 ] || exit "$checked"
if [ $# -gt 0 ]; then
    python -m pytest -q "$@"
    exit
fi
python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 40 --ignore tests/test_suites.py tests
python -m pytest -q tests/test_suites.py
