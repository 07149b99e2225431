#!/usr/bin/env bash
# The paper's comparison: tokenizers x proposal networks, one table. Repeating it goes on where it was interrupted.
#
#   scripts/benchmark.sh                             Fashion-MNIST on two CPU cores
#   scripts/benchmark.sh --suite imagenet|coco       the paper's tables, on GPUs, with the recipes' own numbers of steps
#   scripts/benchmark.sh --suite imagenet --dry-run  checks every command against those before it and adds up their cost; runs none
#   scripts/benchmark.sh --suite imagenet --mini     the same commands to the same table in minutes on two CPU cores, on made images
#                                                    and random weights: only sizes differ (see scripts/mini.py), and numbers mean nothing
#   scripts/benchmark.sh --toy                       Fashion-MNIST's comparison in minutes, to see that it works
#   scripts/benchmark.sh --suite claims              the paper's claim as an experiment, with seeds and intervals, in hours of one
#                                                    core; also with --dry-run and --toy. Its variables: scripts/claims.py
#
# Which networks stand behind the paper's tables is not known; these choose, and their defaults are assumed to be the likelier:
# TOK_AR (gpt2): the autoregressive network, gpt2 or medium (Llama-medium): recipes/SUITE/proposal-ar-NAME.
# TOK_DECODER (llamagen): the pixel decoder, llamagen or conv (VQGAN's losses): recipes/SUITE/decoder-NAME.
# TOK_COCO (2014): the year of MS-COCO's split, 2014 or 2017.
#
# TOK_SUITE_DATA (imagenet, coco): the folder that holds train and val, or COCO's folders and annotations.
# TOK_WEIGHTS: a folder of published weights, handed over by their flags: clip, vit, dino, mae (teachers; clip also reads captions),
#   vgg16, inception, gpt2-medium, each with any suffix. What is not there is looked for in the caches and on the hubs.
# TOK_BENCHMARK_SAMPLES (2048; imagenet 50000; coco 30000, 5000 with 2017): images drawn from each proposal network. On MS-COCO each
#   is drawn for a caption of another held-out image.
# TOK_BENCHMARK_IMAGES (20000; imagenet, coco all): images whose tokens the proposal networks learn, evenly spread.
# TOK_BUDGET_MINUTES (4): of training for each network of fashion-mnist, the same for all. A step of each is timed once and
#   the number of steps that fit is kept in the workspace (steps/NETWORK, where it may also be written beforehand), so that a
#   repetition trains the same networks. Pixel decoders, and proposal networks of one mode, are equally large: equally many steps.
# TOK_ROWS (all): the tokenizers that are compared, as METHOD or METHOD:TEACHER, separated by spaces.
# TOK_SEED (that of the recipes): of proposal networks and their samples.
# TOK_SET_AR, TOK_SET_NAR (none): overrides of the proposal networks' recipes, as KEY=VALUE separated by spaces.
# TOK_WORKSPACE (artifacts/benchmark-SUITE): where everything goes; TOK_PLANS: where a dry run leaves its plans (default: nowhere).
# TOK_JOBS (1): tokenizers worked on side by side, each on its share of the CPU cores.
# TOK_LAUNCH (tok): what trains, such as "torchrun --nproc-per-node 8 -m tokcli".
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "${BASH_SOURCE[0]}")/.."
usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
stop() { echo "scripts/benchmark.sh: $1" >&2; exit 1; }

suite=fashion-mnist dry='' toy='' mini='' only='' again=("$@")
while [ $# -gt 0 ]; do
    case "$1" in
        --suite) suite="${2:-}"; shift 2 || usage ;;
        --dry-run) dry=1; shift ;;
        --mini) mini=1; shift ;;
        --toy) toy=1; shift ;;
        --row) only="${2:-}"; shift 2 || usage ;; # of this script to itself
        *) usage ;;
    esac
done
decoder="${TOK_DECODER:-llamagen}" ar="ar-${TOK_AR:-gpt2}" budget='' images=0 references=(val) scales='' held_out=() year="${TOK_COCO:-2014}"
methods=(vqgan fsq vqkd:clip vqkd:vit vqkd:dino vqkd:mae cluster:clip cluster:vit cluster:dino cluster:mae)
train=train val=val data="${TOK_SUITE_DATA:-$suite}"
case "$ar" in ar-gpt2 | ar-medium) ;; *) stop "TOK_AR=${TOK_AR:-}: gpt2 or medium" ;; esac
case "$decoder" in llamagen | conv) ;; *) stop "TOK_DECODER=$decoder: llamagen or conv" ;; esac
if [ "$suite" = claims ]; then
    [ -z "$mini$only" ] || usage
    exec python scripts/claims.py ${dry:+--dry-run} ${toy:+--toy}
fi
case "$suite" in
    fashion-mnist)
        methods=(vqgan fsq vqkd:efflite0 vqkd:vits14 cluster:efflite0) decoder=conv ar=ar proposals=(ar nar) samples=2048 images=20000 budget=1
        data=fashion-mnist
        [ -z "$mini" ] || usage
        ;;
    imagenet) proposals=("$ar" nar) samples=50000 references=(val train) scales=1,1.75 known=(1281167 50000) ;;
    coco)
        case "$year" in
            2014) samples=30000 known=(82783 40504) ;;
            2017) samples=5000 known=(118287 5000) ;;
            *) usage ;;
        esac
        proposals=("$ar" nar-t2i) train="train$year" val="val$year" references=("val$year")
        ;;
    *) usage ;;
esac
recipes="$suite" minutes="${TOK_BUDGET_MINUTES:-4}"
[ -z "$toy" ] || { data=openmoji recipes=toy methods=(vqgan vqkd:efflite0) minutes=0.02 samples=24; }
[ -z "$mini" ] || samples=10 # the inception score has ten splits
if [ -n "${TOK_ROWS:-}" ]; then
    read -ra wanted <<< "$TOK_ROWS"
    for method in "${wanted[@]}"; do
        [[ " ${methods[*]} " == *" $method "* ]] || stop "TOK_ROWS: $method is none of ${methods[*]}"
    done
    methods=("${wanted[@]}")
fi
seed=(${TOK_SEED:+"--seed=$TOK_SEED"}) # of what is drawn over the same tokens
N="${TOK_BENCHMARK_SAMPLES:-$samples}"
export TOK_WORKSPACE="${TOK_WORKSPACE:-artifacts/benchmark-${toy:+toy-}${mini:+mini-}$suite}"
if [ -n "$dry" ]; then # leaves nothing behind
    TOK_WORKSPACE="${TOK_PLANS:-$(mktemp -d)}"
    mkdir -p "$TOK_WORKSPACE"
    [ -n "${TOK_PLANS:-}" ] || trap 'rm -rf "$TOK_WORKSPACE"' EXIT
    export TOK_PLANS="$TOK_WORKSPACE" # for the rows
fi
[ -z "$mini" ] || export TOK_CACHE="$TOK_WORKSPACE/cache" # never the user's: its weights are random
[ -z "$mini" ] || data="$TOK_WORKSPACE/data/$suite" TOK_WEIGHTS="$TOK_CACHE"
# known: how many images the data set has for training and held out, where a dry run does not find it
if [ -n "$dry" ] && [ ! -d "$data/$train" ] && [ -n "${known:-}" ]; then
    images="${known[0]}" held_out=(--set "eval.images=${known[1]}")
fi
[ "$suite$toy" != fashion-mnist ] || . scripts/precision.sh # the others are for GPUs, and toys in float32
launch=(tok)
[ -n "$dry" ] || read -ra launch <<< "${TOK_LAUNCH:-tok}"
say() { printf '\n== %s (%s s so far)\n' "$1" "$SECONDS" >&2; }

# sampler PROPOSAL: the recipe that its samples are drawn by
sampler() {
    case "$1" in
        ar-gpt2) echo sample-ar-gpt2 ;;
        *) echo "sample-${1%%-*}" ;;
    esac
}

# Every recipe is the suite's own, never another data set's.
needed=(tokens eval "decoder-$decoder")
for method in "${methods[@]}"; do needed+=("tokenizer-${method%%:*}"); done
for proposal in "${proposals[@]}"; do needed+=("proposal-$proposal" "$(sampler "$proposal")"); done
for name in "${needed[@]}"; do
    [ -f "recipes/$recipes/$name.yaml" ] || stop "recipes/$recipes/$name.yaml: no such recipe, and another data set's would not be the suite's"
done

# given NAME FLAG: the flag with a file of TOK_WEIGHTS, nothing where it is not there
given() {
    local file
    for file in ${TOK_WEIGHTS:+"$TOK_WEIGHTS/$1".*}; do
        [ ! -f "$file" ] || { echo "--$2-weights=$file"; return; }
    done
}

# stage RECIPE COMMAND...: run a command by a recipe of the suite, at mini size with the sizes of scripts/mini.py. It prints the
# artifact's path, or a sweep's paths; in a dry run those of plans, which later commands read in their place
stage() {
    local recipe="$recipes/$1" small=() found plan
    if [ -n "$mini" ]; then
        found=$(python scripts/mini.py sets "$recipe")
        mapfile -t small <<< "$found"
        small=("${small[@]/#/--set=}")
    fi
    # the user's own choice stays
    [ "$suite$toy" != fashion-mnist ] || [[ " $* " == *.precision=* ]] || small+=($(float32_here "$recipe"))
    set -- "${@:2}" --recipe "$recipe" "${small[@]}"
    [ -n "$dry" ] || { "$@"; return; }
    plan=$(mktemp "$TOK_WORKSPACE/XXXXXX.json")
    "$@" --dry-run --json > "$plan"
    python - "$plan" <<'PYTHON'
import json, sys
from pathlib import Path
file = Path(sys.argv[1])
plans = json.loads(file.read_text())
if isinstance(plans, dict):
    sys.exit(print(file))
for number, plan in enumerate(plans):  # a sweep's
    one = file.with_name(f"{file.stem}-{number}.json")
    one.write_text(json.dumps(plan))
    print(one)
file.unlink()
PYTHON
}

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

# train NAME RECIPE COMMAND...: run a training, for as many steps as the budget holds; what a recipe times by steps is kept in proportion
train() {
    local sets=() n
    if [ -n "$budget" ] && [ -z "$dry" ]; then
        n=$(steps "$1" stage "${@:2}")
        sets=(--set "train.steps=$n" --set "optim.warmup_steps=$((n / 12))")
        case "$1" in
            *tokenizer-vqgan | *tokenizer-fsq) sets+=(--set "gan.start=$((n / 2))" --set "gan.warmup=$((n / 6))" --set "gan.ramp=$((n / 6))") ;;
            *tokenizer-vqkd*) sets+=(--set "quantizer.init_after=$((n / 4))") ;;
        esac
    fi
    stage "${@:2}" "${sets[@]}"
}

# prompts: a file of N captions, each of another held-out image, evenly spread over them
prompts() {
    local file="$TOK_WORKSPACE/prompts-$year-$N.txt"
    if [ ! -s "$file" ]; then
        python - "$data/annotations/captions_$val.json" "$N" "$dry" > "$file.$$" <<'PYTHON'
import json, os, sys
file, count, dry = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if dry and not os.path.exists(file):
    sys.exit(print("a caption"))  # the data need not be there
found = {}
for one in json.load(open(file))["annotations"]:
    found.setdefault(one["image_id"], " ".join(one["caption"].split()))
if count > len(found):
    sys.exit(f"{file}: {len(found):,} images have a caption, and {count:,} were asked for. Repeated captions would add to the distance: lower TOK_BENCHMARK_SAMPLES")
keys = sorted(found)
print("\n".join(found[keys[i * len(keys) // count]] for i in range(count)))
PYTHON
        mv "$file.$$" "$file" # at once: another row may look for it
    fi
    echo "$file"
}

# decodes METHOD: whether its tokenizer has a pixel decoder of its own
decodes() { [ "$1" = vqgan ] || [ "$1" = fsq ]; }

# weights_of METHOD TEACHER: the flags of a tokenizer's published weights
weights_of() {
    if [ "$suite" = fashion-mnist ]; then return; fi
    if decodes "$1"; then given vgg16 vgg; else given "$2" teacher; fi
}

# row METHOD: all networks of one tokenizer; writes down the artifacts that it made
row() {
    local name="${1%%:*}" teacher="${1#*:}" row="${1/:/-}" made=() flags captions drawn sweep proposal mode key sets found T D K P
    [ "$teacher" != "$name" ] || teacher=
    say "$row: tokenizer"
    flags=$(weights_of "$name" "$teacher")
    T=$(train "$row-tokenizer-$name" "tokenizer-$name" "${launch[@]}" train-tokenizer --data "$data/$train" ${teacher:+--teacher "$teacher"} ${flags:+"$flags"})
    made+=("$T") D="$T"
    if ! decodes "$name"; then
        say "$row: pixel decoder"
        flags=$([ "$suite" = fashion-mnist ] || given vgg16 vgg)
        D=$(train decoder "decoder-$decoder" "${launch[@]}" train-decoder --tokenizer "$T" ${flags:+"$flags"})
        made+=("$D")
    fi
    say "$row: tokens"
    K=$(stage tokens tok tokenize --tokenizer "$T" --set "tokens.images=${TOK_BENCHMARK_IMAGES:-$images}")
    for proposal in "${proposals[@]}"; do
        mode="${proposal%%-*}" captions=()
        say "$row: proposal network $proposal and its samples"
        flags=$(case "$proposal" in ar-gpt2) given gpt2-medium language ;; *t2i) given clip text ;; esac)
        key="TOK_SET_${mode^^}"
        read -ra sets <<< "${!key:-}"
        key="$mode${sets:+ ${sets[*]}}" # networks of other overrides have other steps
        P=$(train "${key//[^[:alnum:]]/-}" "proposal-$proposal" "${launch[@]}" train-proposal --mode "$mode" --tokens "$K" \
            ${flags:+"$flags"} "${seed[@]}" "${sets[@]/#/--set=}")
        [[ "$proposal" != *t2i ]] || captions=(--prompts "$(prompts)")
        flags=$([ "${#captions[@]}" = 0 ] || given clip text)
        made+=("$P")
        drawn=("${seed[@]}" "${captions[@]}" -n "$N" --proposal "$P" --decoder "$D" ${flags:+"$flags"})
        sweep=()
        [ "$mode" != ar ] || [ -z "$scales" ] || sweep=(--sweep "cfg_scale=$scales") # the network is loaded once for all scales
        found=$(stage "$(sampler "$proposal")" tok sample --mode "$mode" "${drawn[@]}" "${sweep[@]}")
        mapfile -t -O "${#made[@]}" made <<< "$found"
    done
    mkdir -p "$TOK_WORKSPACE/rows" "$TOK_WORKSPACE/tokens"
    printf '%s\n' "${made[@]}" > "$TOK_WORKSPACE/rows/$row"
    echo "$K" > "$TOK_WORKSPACE/tokens/$row" # not evaluated
}

if [ -n "$only" ]; then
    row "$only"
    exit
fi
[ "$suite$toy$dry" != fashion-mnist ] || python scripts/fetch_embedded.py squeezenet vits14 fashion-mnist >&2
if [ -n "$mini" ] && [ -z "$dry" ]; then
    say "made images, and random weights of the true architectures"
    python scripts/mini.py "$suite" "$data" "$year"
    python scripts/mini.py weights "$TOK_CACHE" clip vit dino mae vgg16 inception gpt2-medium dinov2-s
fi
jobs="${TOK_JOBS:-1}"
threads=() # of each row; the evaluation has them all
[ "$jobs" = 1 ] || threads=("OMP_NUM_THREADS=$(($(nproc) > jobs ? $(nproc) / jobs : 1))")
printf '%s\n' "${methods[@]}" | env "${threads[@]}" xargs -P "$jobs" -I{} bash scripts/benchmark.sh "${again[@]}" --row {}
made=()
for method in "${methods[@]}"; do
    mapfile -t -O "${#made[@]}" made < "$TOK_WORKSPACE/rows/${method/:/-}"
done
say "evaluation"
flags=()
if [ "$suite" != fashion-mnist ]; then
    mapfile -t flags < <(given inception inception; given vgg16 vgg; [ "$suite" != coco ] || given clip text
        for teacher in clip vit dino mae; do # of a row's; a file that nothing reads is refused
            [[ " ${methods[*]} " != *":$teacher "* ]] || given "$teacher" teacher | sed "s/=/=$teacher=/"
        done)
fi
E=$(stage eval tok eval "${made[@]}" "${references[@]/#/--reference=$data/}" "${flags[@]}" "${held_out[@]}")
if [ -n "$dry" ]; then
    mapfile -t tokens < <(cat "$TOK_WORKSPACE"/tokens/*)
    python scripts/costs.py "${made[@]}" "${tokens[@]}" "$E"
    exit
fi
echo "$E"
say "seconds of training, steps, network"
python - "${made[@]}" >&2 <<'PYTHON'
import json, sys
for folder in sys.argv[1:]:
    found = json.load(open(f"{folder}/manifest.json"))
    train, spent = found["recipe"].get("train"), found["provenance"].get("seconds")
    if train and spent is not None:
        print(f"{spent:8.0f} s  {train['steps']:6d} steps  {folder.rsplit('/', 1)[-1]}")
PYTHON
