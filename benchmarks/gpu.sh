#!/usr/bin/env bash
# What needs a CUDA device: tests, then benchmarks, each for a bounded time; then a table. No network.
#
#     bash benchmarks/gpu.sh                  # with .venv, as `make test` leaves it
#     PYTHON=python3 LOGS=logs bash benchmarks/gpu.sh tune attention   # these parts alone
#
# LOGS keeps what each part prints, in a folder. About seven minutes on one H100. A part that fails or
# runs out of time stops no other; the exit status is 1 when one did, or when there is no device.
set -uo pipefail
cd "$(dirname "$0")/.."
. benchmarks/here.sh
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export TRITON_INTERPRET=0 # tests/conftest.py would turn it on

LOGS="${LOGS:-$scratch/logs}"
mkdir -p "$LOGS"
if ! "$PYTHON" -c "import torch; assert torch.cuda.is_available()" 2>/dev/null; then
    echo "benchmarks/gpu.sh: $PYTHON finds no torch with a CUDA device, so there is nothing to run" >&2
    exit 1
fi
devices="$("$PYTHON" -c "import torch; print(torch.cuda.device_count())")"

asked=" $* "
parts=()
status=0
part() { # name, seconds, command: its output in $LOGS/name.log, a line for the table
    local name="$1" limit="$2" start="$SECONDS" code
    shift 2
    [[ "$asked" == "  " || "$asked" == *" $name "* ]] || return 0
    echo "--- $name (at most $limit s): $*"
    timeout -k 10 "$limit" "$@" 2>&1 | tee "$LOGS/$name.log"
    code="${PIPESTATUS[0]}"
    [[ "$code" == 0 ]] || status=1
    parts+=("$name: exit $code after $((SECONDS - start)) s")
}

# warnings are errors where we choose the versions, and here we do not
tests=(tests/gpu)
[[ "$devices" -lt 2 ]] || tests+=(tests/parallel/links)
part tests 120 env PYTHONSAFEPATH=1 "$PYTHON" -m pytest -m gpu -rs -W default -p no:cacheprovider \
    "${tests[@]}"
part tune 90 "$PYTHON" benchmarks/attention.py --device cuda --tune --runs 5
part attention 150 "$PYTHON" benchmarks/attention.py --device cuda --flex --runs 5 --budget 10
part fused 60 "$PYTHON" benchmarks/fused.py --device cuda
part dit 120 "$PYTHON" benchmarks/dit_forward.py --device cuda --shape 1.3b 1.3b-720p --runs 5 \
    --budget 15 --builders tile-window radial spatiotemporal pooled local stale
if [[ "$devices" -ge 2 ]]; then
    part links 60 "$PYTHON" benchmarks/link.py --nccl
    part shares 90 "$PYTHON" benchmarks/sequence.py --device cuda
fi

{
    echo
    nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null
    printf '%s\n' "${parts[@]}"
    [[ "$devices" -ge 2 ]] || echo "links, shares: not run, as they join two GPUs and here is one"
    echo "promised: a DiT forward of at most 0.8 of diffusers' in bfloat16; at least 430 TFLOP/s on"
    echo "listed tiles; lists in less than 5% of dense attention's time"
    for name in tests tune attention fused dit links shares; do
        [[ ! -f "$LOGS/$name.log" ]] || { echo && echo "[$name]" && tail -n 56 "$LOGS/$name.log"; }
    done
} | tee "$LOGS/summary.txt"
exit "$status"
