#!/usr/bin/env bash
# Damaged and forged files of every kind, for as long as wanted: scripts/fuzz.sh --minutes 60 [--seed 1] [arguments of pytest]
# The tests run the same examples each time; here each round has a seed of its own. At the end: cases run, and the seeds that failed.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=10 seed=1
while [ $# -gt 0 ]; do
    case "$1" in
        --minutes) minutes="$2"; shift 2 ;;
        --seed) seed="$2"; shift 2 ;;
        *) break ;;
    esac
done
[ -d .venv ] && PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOK_FUZZ_EXAMPLES="${TOK_FUZZ_EXAMPLES:-150}" TOK_FUZZ_SEED
said="$(mktemp)" end=$(awk -v minutes="$minutes" 'BEGIN { print int(minutes * 60) }') cases=0 rounds=0 failed=""
trap 'rm -f "$said"' EXIT
while left=$((end - SECONDS)); [ "$left" -gt 0 ]; do
    TOK_FUZZ_SEED="$seed"
    code=0
    timeout --signal=INT --kill-after=60 "$left" python -m pytest -q tests/test_fuzz*.py --hypothesis-show-statistics -p no:cacheprovider "$@" >"$said" 2>&1 || code=$?
    if [ "$code" = 1 ]; then # 124: the time is over
        failed="$failed $seed"
        cat "$said"
    fi
    # none of a round that the end of the time cut short
    ran=$({ grep -oE "[0-9]+ (passing|failing)" "$said" || true; } | awk '{ sum += $1 } END { print sum + 0 }')
    cases=$((cases + ran)) rounds=$((rounds + 1))
    echo "seed $seed: $ran cases" >&2
    seed=$((seed + 1))
done
echo "$cases cases in $rounds rounds, seeds that failed:${failed:- none}"
[ -z "$failed" ]
