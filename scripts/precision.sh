# Sourced by pipeline.sh and benchmark.sh. They name recipes, and a named recipe stays as it is; but where this computer has a CPU alone and
# that has no instructions for bfloat16 (AVX-512), float32 is 10 to 40 times as fast. emulated: then "yes", else empty.
#
# float32_here RECIPE: the flag for float32, for a recipe in bfloat16 on such a CPU; else nothing.
emulated=yes
python -c 'import sys, torch; from tokcli.device import emulated_bfloat16 as slow; sys.exit(torch.cuda.is_available() or not slow(torch.device("cpu")))' || emulated=''
[ -z "$emulated" ] || echo "this CPU has no instructions for bfloat16: networks are trained in float32" >&2
float32_here() {
    local section
    [ -n "$emulated" ] || return 0
    section=$(awk '/^[a-z_]+:/ {section = $1} /^  precision: bfloat16/ {print section; exit}' "recipes/$1.yaml")
    [ -z "$section" ] || echo "--set=${section%:}.precision=float32"
}
