#!/usr/bin/env bash
# The paper's comparison: tokenizers x proposal networks, one table. Repeating it goes on where it was interrupted.
#
#   scripts/benchmark.sh                             Fashion-MNIST on two CPU cores
#   scripts/benchmark.sh --suite imagenet|coco       the paper's tables, on GPUs, with the recipes' own numbers of steps
#   scripts/benchmark.sh --suite imagenet --dry-run  every command of it, its parameters, samples and memory; runs none
#   scripts/benchmark.sh --toy                       the same script in minutes, to see that it works
#
# TOK_BUDGET_MINUTES (4): of training for each network of fashion-mnist, the same for all. A step of each is timed once and
#   the number of steps that fit is kept in the workspace (steps/NETWORK, where it may also be written beforehand), so that a
#   repetition trains the same networks. Pixel decoders, and proposal networks of one mode, are equally large: equally many steps.
# TOK_BENCHMARK_SAMPLES (2048; imagenet 50000, coco 30000): images sampled from each proposal network.
# TOK_BENCHMARK_IMAGES (20000; imagenet, coco all): images whose tokens the proposal networks learn, evenly spread.
# TOK_WORKSPACE (artifacts/benchmark-SUITE): where everything goes.
# TOK_JOBS (1): tokenizers worked on side by side, each on its share of the CPU cores.
# TOK_LAUNCH (tok): what trains, such as "torchrun --nproc-per-node 8 -m tokcli".
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2; }

suite=fashion-mnist dry='' toy='' only='' again=("$@")
while [ $# -gt 0 ]; do
    case "$1" in
        --suite) suite="${2:-}"; shift 2 || usage ;;
        --dry-run) dry=1; shift ;;
        --toy) toy=1; shift ;;
        --row) only="${2:-}"; shift 2 || usage ;; # of this script to itself
        *) usage ;;
    esac
done
methods=(vqgan fsq vqkd:clip vqkd:vit vqkd:dino vqkd:mae) train=train references=(val) budget='' images=0
case "$suite" in
    fashion-mnist) methods=(vqgan fsq vqkd:efflite0 vqkd:vits14 cluster:efflite0) proposals=(ar nar) samples=2048 images=20000 budget=1 ;;
    imagenet) proposals=(ar:ar-medium nar) samples=50000 references=(val train) ;;
    coco) proposals=(ar:ar-medium nar:nar-t2i) samples=30000 train=train2017 references=(val2017) ;;
    *) usage ;;
esac
data="$suite" recipes="$suite" minutes="${TOK_BUDGET_MINUTES:-4}"
[ -z "$toy" ] || { data=openmoji recipes=toy methods=(vqgan vqkd:efflite0) minutes=0.02 samples=24 budget=1; }
N="${TOK_BENCHMARK_SAMPLES:-$samples}"
export TOK_WORKSPACE="${TOK_WORKSPACE:-artifacts/benchmark-${toy:+toy-}$suite}"
read -ra launch <<< "${TOK_LAUNCH:-tok}"
# own NAME: the flag of the suite's own recipe; nothing where it has none and that of folders is taken
own() { [ ! -f "recipes/$recipes/$1.yaml" ] || echo "--recipe=$recipes/$1"; }
say() { printf '\n== %s (%s s so far)\n' "$1" "$SECONDS" >&2; }

# steps NAME COMMAND...: how many steps of this training fit the budget
steps() {
    local file="$TOK_WORKSPACE/steps/$1" ms
    if [ ! -s "$file" ]; then
        ms=$("${@:2}" --dry-run | sed -n 's/^# time  *\([0-9,]*\) ms a step.*/\1/p' | tr -d ,)
        [ -n "$ms" ] || { echo "$1: its step could not be timed" >&2; return 1; }
        mkdir -p "$TOK_WORKSPACE/steps"
        awk -v ms="$ms" -v m="$minutes" 'BEGIN {n = int(m * 60000 / (ms > 0 ? ms : 1)); print (n < 8 ? 8 : n)}' > "$file.$$"
        mv -n "$file.$$" "$file" # the first to time it says for all
        rm -f "$file.$$"
    fi
    cat "$file"
}

# train NAME COMMAND...: run a training, for as many steps as the budget holds; what a recipe times by steps is kept in proportion
train() {
    local sets=() n
    if [ -n "$budget" ]; then
        n=$(steps "$@")
        sets=(--set "train.steps=$n" --set "optim.warmup_steps=$((n / 12))")
        case "$1" in
            *tokenizer-vqgan | *tokenizer-fsq) sets+=(--set "gan.start=$((n / 2))" --set "gan.warmup=$((n / 6))" --set "gan.ramp=$((n / 6))") ;;
            *tokenizer-vqkd*) sets+=(--set "quantizer.init_after=$((n / 4))") ;;
        esac
    fi
    "${@:2}" "${sets[@]}"
}

# prompts: a file of one held-out caption an image, for text-to-image
prompts() {
    local file="$TOK_WORKSPACE/prompts.txt"
    if [ ! -s "$file" ]; then
        python - "$data" "${references[0]}" "$N" > "$file.$$" <<'EOF'
import json, sys
folder, split, count = sys.argv[1:]
found = {}
for one in json.load(open(f"{folder}/annotations/captions_{split}.json"))["annotations"]:
    found.setdefault(one["image_id"], " ".join(one["caption"].split()))
print("\n".join([found[key] for key in sorted(found)][: int(count)]))
EOF
        mv "$file.$$" "$file" # at once: another row may look for it
    fi
    echo "$file"
}

# planned COMMAND...: what a training would take
planned() {
    echo "$*"
    "$@" --dry-run 2> >(sed '/^data: /d' >&2) | sed -n -e '/^# \(reads\|writes\|module\) /d' -e 's/^# \([a-z]\)/    \1/p'
}

if [ -n "$dry" ]; then
    for method in "${methods[@]}"; do
        name="${method%%:*}" teacher="${method#*:}"
        [ "$teacher" != "$name" ] || teacher=
        planned tok train-tokenizer --recipe "$recipes/tokenizer-$name" ${teacher:+--teacher "$teacher"}
    done
    planned tok train-decoder --recipe "$recipes/decoder-conv"
    for proposal in "${proposals[@]}"; do
        planned tok train-proposal --mode "${proposal%%:*}" --recipe "$recipes/proposal-${proposal#*:}"
    done
    pixel=0
    for method in "${methods[@]}"; do case "$method" in vqgan | fsq) pixel=$((pixel + 1)) ;; esac; done
    cat <<EOF
${#methods[@]} tokenizers, $((${#methods[@]} - pixel)) pixel decoders, $((${#methods[@]} * ${#proposals[@]})) proposal networks, each as above;
then $((${#methods[@]} * ${#proposals[@]})) x $N samples, and one evaluation of all against ${references[*]}.
EOF
    exit
fi

# row METHOD: all networks of one tokenizer; writes down the artifacts that it made
row() {
    local name="${1%%:*}" teacher="${1#*:}" row="${1/:/-}" made=() captions proposal mode T D K P S
    [ "$teacher" != "$name" ] || teacher=
    say "$row: tokenizer"
    T=$(train "$row-tokenizer-$name" "${launch[@]}" train-tokenizer --recipe "$recipes/tokenizer-$name" --data "$data/$train" ${teacher:+--teacher "$teacher"})
    made+=("$T") D="$T"
    case "$name" in
        vqgan | fsq) ;; # hold their own
        *)
            say "$row: pixel decoder"
            D=$(train decoder "${launch[@]}" train-decoder --recipe "$recipes/decoder-conv" --tokenizer "$T")
            made+=("$D")
            ;;
    esac
    say "$row: tokens"
    K=$(tok tokenize $(own tokens) --tokenizer "$T" --set "tokens.images=${TOK_BENCHMARK_IMAGES:-$images}")
    for proposal in "${proposals[@]}"; do
        mode="${proposal%%:*}"
        say "$row: proposal network $proposal and its samples"
        P=$(train "$mode" "${launch[@]}" train-proposal --mode "$mode" --recipe "$recipes/proposal-${proposal#*:}" --tokens "$K")
        captions=()
        [[ "$proposal" != *t2i ]] || captions=(--prompts "$(prompts)")
        S=$(tok sample --mode "$mode" $(own "sample-$mode") "${captions[@]}" -n "$N" --proposal "$P" --decoder "$D")
        made+=("$P" "$S")
    done
    mkdir -p "$TOK_WORKSPACE/rows"
    printf '%s\n' "${made[@]}" > "$TOK_WORKSPACE/rows/$row"
}

if [ -n "$only" ]; then
    row "$only"
    exit
fi
[ "$suite$toy" != fashion-mnist ] || python scripts/fetch_embedded.py squeezenet vits14 fashion-mnist >&2
jobs="${TOK_JOBS:-1}"
threads=() # of each row; the evaluation has them all
[ "$jobs" = 1 ] || threads=("OMP_NUM_THREADS=$(($(nproc) > jobs ? $(nproc) / jobs : 1))")
printf '%s\n' "${methods[@]}" | env "${threads[@]}" xargs -P "$jobs" -I{} bash scripts/benchmark.sh "${again[@]}" --row {}
made=()
for method in "${methods[@]}"; do
    mapfile -t -O "${#made[@]}" made < "$TOK_WORKSPACE/rows/${method/:/-}"
done
say "evaluation"
tok eval "${made[@]}" --recipe "$recipes/eval" "${references[@]/#/--reference=$data/}"
say "seconds of training, steps, network"
python - "${made[@]}" >&2 <<'EOF'
import json, sys
for folder in sys.argv[1:]:
    found = json.load(open(f"{folder}/manifest.json"))
    train, spent = found["recipe"].get("train"), found["provenance"].get("seconds")
    if train and spent is not None:
        print(f"{spent:8.0f} s  {train['steps']:6d} steps  {folder.rsplit('/', 1)[-1]}")
EOF
