#!/bin/sh
# Compiles every CUDA kernel file for sm_80, sm_90 and PTX, without PyTorch, and reports registers and spills.
# Fails on a compiler error or a spill. Usage: csrc/check_cuda.sh [output folder]
set -eu
cd "$(dirname "$0")"
out=${1:-../build/cuda-check}
nvcc=${NVCC:-nvcc}
if ! command -v "$nvcc" > /dev/null; then
    echo "cuda-check: skipped, there is no nvcc (set NVCC to name one)"
    exit 0
fi
mkdir -p "$out"
for source in $(find . -name '*.cu' | sort); do
    log="$out/$(echo "$source" | tr '/' '_' | sed 's,^\._,,').log"
    if ! "$nvcc" -std=c++20 -O3 -lineinfo -Xptxas -v \
        -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 \
        -gencode arch=compute_90,code=compute_90 -c "$source" -o "$out/kernels.o" > "$log" 2>&1; then
        cat "$log"
        exit 1
    fi
    awk -v source="$source" '
        / Compiling entry function / { kernels++ }
        /spill stores/ { for (i = 1; i < NF; i++) if ($i == "bytes" && $(i + 1) == "spill" && $(i - 1) > 0) spills++ }
        / Used [0-9]+ registers/ { for (i = 1; i < NF; i++) if ($i == "Used" && $(i + 1) > most) most = $(i + 1) }
        END {
            printf "%s: %d kernels, at most %d registers, %d with spills\n", source, kernels, most, spills
            exit spills > 0
        }' "$log"
done
