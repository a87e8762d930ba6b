#!/usr/bin/env bash
# Learned masks against random ones of the same shape, with and without training of the weights:
#
#     benchmarks/masks.sh MODEL WORK
#
# 300 steps of one window of 512 tokens, each window of the built-in text once; block ratio 0.25.
# Everything is measured on the built-in evaluation text. A second run does only what is missing.
set -euo pipefail
model=$(realpath "$1") work=$2
mkdir -p "$work"
cd "$work"
export PYTHONWARNINGS=ignore

run() { # NAME COMMAND...: makes NAME unless it is there
    if [[ ! -e $1 ]]; then
        echo "== ${*:2}" >&2
        prunecli "${@:2}" "$1"
    fi
}

measure() { # NAME WHAT: a row of the table
    [[ -e $1.json ]] || prunecli eval --allow-overlap --out "$1.json" "$1" >&2
    python - "$1.json" "$2" <<'PY'
import json, sys
found = json.load(open(sys.argv[1]))["results"]
print(f"| {sys.argv[2]} | {found['loss']:.4f} | {found['perplexity']:.2f} |")
PY
}

# the windows as rows, so that prune and train read the same
[[ -e t.safetensors ]] || python - "$model" <<'PY'
import sys
from safetensors.torch import save_file
from prunecli.io import tokens
from prunecli.settings import Data
found = tokens.load(
    Data("builtin:calibration", nsamples=300), folder=sys.argv[1], vocab_size=49152,
    max_positions=2048,
)
save_file({"ids": found.ids}, "t.safetensors")
PY
rows="--data t.safetensors:ids --batch-size 1"
sheared="prune --method sheared-llama --ratio 0.25 $rows"
train="train $rows --steps 300 --lr 1e-4 --warmup 0.1 --weight-decay 0"

# shellcheck disable=SC2086
{
    run learned $sheared "$model"
    run frozen $sheared --freeze-weights "$model"
    run learned.json $sheared --plan-only "$model"
    run frozen-plan.json $sheared --freeze-weights --plan-only "$model"
}
