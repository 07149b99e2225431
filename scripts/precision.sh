# Sourced by pipeline.sh and benchmark.sh. They name recipes, and a named recipe stays as it is; but a CPU without AVX-512 and a GPU before
# Ampere have no instructions for bfloat16, and float32 is up to 40 times as fast there. emulated: then why, else empty.
#
# float32_here RECIPE: the flag for float32, for a recipe in bfloat16 on such a device; else nothing.
emulated=$(python -c 'from tokcli import device; print(device.emulated_bfloat16(device.usual_device()))')
[ -z "$emulated" ] || echo "$emulated: networks are trained in float32" >&2
float32_here() {
    local section
    [ -n "$emulated" ] || return 0
    section=$(awk '/^[a-z_]+:/ {section = $1} /^  precision: bfloat16/ {print section; exit}' "recipes/$1.yaml")
    [ -z "$section" ] || echo "--set=${section%:}.precision=float32"
}
