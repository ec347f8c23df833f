#!/usr/bin/env bash
# The models that ship, taught on by one GPU, then scored; each part by itself. No network.
#
#     bash benchmarks/gpu_train.sh dit student scores   # the DiT, the student of it, 64 prompts of each
#     bash benchmarks/gpu_train.sh variant              # on windows of one level alone, as Wan was taught
#     PYTHON=python3 STEPS=2 CLIPS=8 LATENTS=24 COMPILED=false bash benchmarks/gpu_train.sh dit  # a look
#
# Models are in runs/gpu-*/model, scores in runs/gpu-scores. A step of 3,072 latents took 46 ms on an
# H200, and 79 s went to compiling. Whatever is interrupted goes on with the same command.
set -euo pipefail
cd "$(dirname "$0")/.."
. benchmarks/here.sh
STEPS="${STEPS:-6000}" CLIPS="${CLIPS:-6144}" LATENTS="${LATENTS:-3072}" WORKERS="${WORKERS:-14}"
COMPILED="${COMPILED:-true}" PROMPTS="${PROMPTS:-64}" ROWS="${ROWS:-48}"
shipped=models/shipped/shapes
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

longreel() {
    echo "--- longreel $*"
    "$PYTHON" -P -c "from longreel.jobs.cli import main; main()" "$@"
}

learn() { # name, further settings: a DiT on the world's clips
    local name="$1"
    shift
    longreel train shapes dit.vae="$shipped" dit.cache=runs/gpu-clips dit.clips="$CLIPS" \
        dit.latents="$LATENTS" dit.grow=0 dit.compiled="$COMPILED" steps="$STEPS" \
        optimizer.final=0.01 run.workers="$WORKERS" run.output="runs/gpu-$name" "$@"
}

score() { # what, frames, further settings
    local name="$1" frames="$2"
    shift 2
    longreel evaluate --prompts "$PROMPTS" --frames "$frames" -o "runs/gpu-scores/$name" "$@"
}

for part in "$@"; do
    case "$part" in
    dit) learn dit dit.start="$shipped" dit.first=0.75 optimizer.learning_rate=0.0015 ;;
    variant) learn variant dit.pattern=equal optimizer.learning_rate=0.003 ;;
    student)
        longreel train shapes-live live.start=runs/gpu-dit/model live.cache=runs/gpu-clips \
            live.clips="$CLIPS" live.rows="$ROWS" live.compiled="$COMPILED" steps="$((STEPS / 2))" \
            optimizer.learning_rate=0.0015 optimizer.warmup=50 optimizer.ema=0.995 \
            run.output=runs/gpu-live
        ;;
    scores)
        score before 81 --preset shapes --policy whole
        score whole 81 --preset shapes --policy whole model.checkpoint=runs/gpu-dit/model
        score live 257 --preset shapes-live --policy causal model.checkpoint=runs/gpu-live/model
        ;;
    *)
        echo "benchmarks/gpu_train.sh: $part is none of dit, student, variant, scores" >&2
        exit 2
        ;;
    esac
done
