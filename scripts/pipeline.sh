#!/usr/bin/env bash
# The whole pipeline: seven commands, each reading the artifacts of those before it. stdout is their paths, one a line.
#
#   scripts/pipeline.sh [RECIPES] [DATA]     RECIPES: openmoji (default) or toy, a folder of recipes; DATA: its data set
#
# Repeating it resumes whatever was interrupted and skips what is complete. The pixel decoder needs the tokenizer alone, so
# it trains on half of the cores while tokens and proposal networks are made on the others: small networks gain little
# from more threads.
set -euo pipefail
R="${1:-openmoji}" DATA="${2:-openmoji}"
half=$((($(nproc) + 1) / 2))
. "$(dirname "$0")/precision.sh"
exact=()
[ -z "$emulated" ] || exact=(--set train.precision=float32)
beside="$(mktemp -d)"
decoder=""
trap '[ -z "$decoder" ] || { kill "$decoder" && wait "$decoder"; } 2>/dev/null || true; rm -rf "$beside"' EXIT

say() { printf '\n== %s (%s s so far)\n' "$1" "$SECONDS" >&2; }

say "1 tokenizer: a student learns the teacher's features through a codebook"
T=$(tok train-tokenizer --recipe "$R/tokenizer-vqkd" --data "$DATA/train" "${exact[@]}")
say "2 pixel decoder: codes to pixels, in the background"
tok train-decoder --recipe "$R/decoder-conv" --tokenizer "$T" --threads "$half" "${exact[@]}" >"$beside/path" 2>"$beside/log" &
decoder=$!
say "3 token shards"
K=$(tok tokenize --recipe "$R/tokens" --tokenizer "$T" --threads "$half")
say "4 proposal networks, autoregressive and masked"
A=$(tok train-proposal --mode ar --recipe "$R/proposal-ar" --tokens "$K" --threads "$half" "${exact[@]}")
N=$(tok train-proposal --mode nar --recipe "$R/proposal-nar" --tokens "$K" --threads "$half" "${exact[@]}")
say "2 pixel decoder: waiting for it"
wait "$decoder" || { code=$?; decoder=""; tail -n 5 "$beside/log" >&2; exit "$code"; }
decoder=""
D=$(cat "$beside/path")
say "5 samples"
SA=$(tok sample --recipe "$R/sample-ar" --proposal "$A" --decoder "$D")
SN=$(tok sample --recipe "$R/sample-nar" --proposal "$N" --decoder "$D")
say "6 evaluation"
E=$(tok eval --recipe "$R/eval" "$T" "$D" "$A" "$N" "$SA" "$SN")
say "7 pictures of the codebook"
V=$(tok viz-codebook --recipe "$R/viz" --tokenizer "$T")
say "done"
printf '%s\n' "$T" "$D" "$K" "$A" "$N" "$SA" "$SN" "$E" "$V"
