#!/usr/bin/env bash
# What a machine's GPUs compute and reach, in less than 8 minutes on one GPU: the tests marked `gpu` (the same numbers as on a CPU, bfloat16, compiled code,
# CUDA graphs, FSDP on all GPUs, no waiting), then a table of speeds at published sizes, as text and in gpu-check.json (or $1).
# Two machines: python scripts/gpu_table.py --compare a.json b.json. Without a GPU both run at toy size on the CPU and say so.
set -euo pipefail
. "$(dirname "$0")/setup.sh" demo,dev
out="${1:-gpu-check.json}"
gpus="$(python -c 'import torch; print(torch.cuda.device_count())')"
if [ "$gpus" = 0 ]; then
    echo "There is no CUDA device here. The checks run against the CPU itself, the table at toy size: its figures say nothing." >&2
    TOK_GPU_CHECK=cpu python -m pytest -q -m gpu tests/test_gpu.py
    python scripts/gpu_table.py --toy --seconds 0.2 --out "$out"
else
    echo "$gpus CUDA device(s)" >&2
    python -m pytest -q -m gpu tests/test_gpu.py || failed=1
    python scripts/gpu_table.py --out "$out"
    exit "${failed:-0}"
fi
