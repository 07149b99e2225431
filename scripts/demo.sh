#!/usr/bin/env bash
# README command 1: install, then the seven commands on real images with a real teacher, in minutes on two cores.
set -euo pipefail
. "$(dirname "$0")/setup.sh" demo
python scripts/fetch_embedded.py squeezenet vits14 >&2
started=$SECONDS
mapfile -t made < <(scripts/pipeline.sh openmoji openmoji)
[ "${#made[@]}" -eq 9 ] || { echo "the pipeline stopped; repeat the command to resume it" >&2; exit 1; }
report="${made[7]}" viz="${made[8]}"
echo
sed -n '/^|/p' "$report/report.md"
cat <<EOF

The pipeline took $((SECONDS - started)) s. Look at:
  $report/report.html    the table with the origin of every number, samples, curves
  $viz/index.html        a page to explore the codebook
  $report/sheet.png      original / reconstruction / AR sample / NAR sample, a column per class
  ${made[5]}/sheet.png   AR samples by class   (${made[6]}/sheet.png: NAR)
  ${made[0]}/preview.png   the teacher's features and what 512 codes keep of them
  $viz/ranking.png   most and least used codes   ($viz/codes/: every code's patches)
  $viz/map.png   features and codes in one plane, coloured by class
OpenMoji pictures: CC BY-SA 4.0, openmoji.org
EOF
