#!/usr/bin/env bash
# What needs a CUDA device: the tests marked gpu, then the benchmarks, then a table. No network.
#
#     bash benchmarks/gpu.sh                          # with .venv, as `make test` leaves it
#     PYTHON=python3 bash benchmarks/gpu.sh tests/gpu # another Python, and only these tests
#
# Exits with 1 when there is no device, a test failed, or a benchmark did.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-.venv/bin/python}"
export HF_HUB_OFFLINE=1 PYTHONSAFEPATH=1 # the root stays off the import path

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
if ! "$PYTHON" -c "import longreel" 2>/dev/null; then
    ln -s "$PWD/longreel" "$scratch/longreel" # not installed here: the checkout itself
    export PYTHONPATH="$scratch${PYTHONPATH:+:$PYTHONPATH}"
fi
if ! "$PYTHON" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
    echo "benchmarks/gpu.sh: $PYTHON finds no torch with a CUDA device, so there is nothing to run" >&2
    exit 1
fi

status=0
"$PYTHON" -m pytest -m gpu -rs -p no:cacheprovider "$@" 2>&1 | tee "$scratch/tests" || status=1
"$PYTHON" benchmarks/dit_forward.py --device cuda --shape 1.3b --dtype bfloat16 2>&1 |
    tee "$scratch/dit" || status=1
"$PYTHON" benchmarks/dit_forward.py --device cuda --shape 1.3b --dtype bfloat16 --runs 3 \
    --builders tile-window radial spatiotemporal pooled local stale 2>&1 |
    tee "$scratch/sparse" || status=1
"$PYTHON" benchmarks/attention.py --device cuda --flex 2>&1 | tee "$scratch/attention" || status=1
"$PYTHON" benchmarks/fused.py --device cuda 2>&1 | tee "$scratch/fused" || status=1
devices="$("$PYTHON" -c "import torch; print(torch.cuda.device_count())")"
if [ "$devices" -ge 2 ]; then
    "$PYTHON" benchmarks/link.py --nccl 2>&1 | tee "$scratch/links" || status=1
else
    echo "links over NCCL: not run, as they join two CUDA devices and here is $devices" | tee "$scratch/links"
fi

"$PYTHON" benchmarks/sequence.py --device cuda 2>&1 | tee "$scratch/shares" || status=1

gpu="$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -1)"
echo
printf '%-22s %s\n' \
    "GPU, driver" "${gpu:-nvidia-smi did not say}" \
    "tests marked gpu" "$(tail -1 "$scratch/tests")" \
    "DiT forward, 1.3B" "$(tail -1 "$scratch/dit")" \
    "  measured with" "$(head -1 "$scratch/dit")" \
    "  promised" "ratio of at most 0.8 in bfloat16" \
    "link over NCCL, 64 MB" "$(tail -1 "$scratch/links")" \
    "a window on two" "$(grep ratio "$scratch/shares" | tail -1)" \
    "attention over lists" "$(grep -m1 'density 0.25.* triton' "$scratch/attention")" \
    "  promised" "at least 430 TFLOP/s on listed tiles; lists under 5% of dense attention"
echo
cat "$scratch/sparse" "$scratch/attention" "$scratch/fused"
exit "$status"
