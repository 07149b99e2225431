#!/usr/bin/env bash
# The whole pipeline: seven commands, each reading the artifacts of those before it. stdout is their paths, one a line.
#
#   scripts/pipeline.sh [RECIPES] [DATA]     RECIPES: openmoji (default) or toy, a folder of recipes; DATA: its data set
#
# Repeating it resumes whatever was interrupted and skips what is complete.
set -euo pipefail
R="${1:-openmoji}" DATA="${2:-openmoji}"

say() { printf '\n== %s (%s s so far)\n' "$1" "$SECONDS" >&2; }

say "1 tokenizer: a student learns the teacher's features through a codebook"
T=$(tok train-tokenizer --recipe "$R/tokenizer-vqkd" --data "$DATA/train"); echo "$T"
say "2 pixel decoder: codes to pixels"
D=$(tok train-decoder --recipe "$R/decoder-conv" --tokenizer "$T"); echo "$D"
say "3 token shards"
K=$(tok tokenize --recipe "$R/tokens" --tokenizer "$T"); echo "$K"
say "4 proposal networks, autoregressive and masked"
A=$(tok train-proposal --mode ar --recipe "$R/proposal-ar" --tokens "$K"); echo "$A"
N=$(tok train-proposal --mode nar --recipe "$R/proposal-nar" --tokens "$K"); echo "$N"
say "5 samples"
SA=$(tok sample --recipe "$R/sample-ar" --proposal "$A" --decoder "$D"); echo "$SA"
SN=$(tok sample --recipe "$R/sample-nar" --proposal "$N" --decoder "$D"); echo "$SN"
say "6 evaluation"
E=$(tok eval --recipe "$R/eval" "$T" "$D" "$A" "$N" "$SA" "$SN"); echo "$E"
say "7 pictures of the codebook"
V=$(tok viz-codebook --recipe "$R/viz" --tokenizer "$T"); echo "$V"
say "done"
