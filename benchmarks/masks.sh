#!/usr/bin/env bash
# Learned masks compared with random ones of the same architecture, with and without training:
#
#     benchmarks/masks.sh MODEL WORK
#
# 300 steps of one window of 512 tokens, one epoch of the built-in text; block ratio 0.25.
# Losses are those of the built-in evaluation text. A second run makes only what is missing.
set -euo pipefail
model=$(realpath "$1") work=$2
mkdir -p "$work"
cd "$work"
export PYTHONWARNINGS=ignore

run() { # NAME COMMAND...: makes NAME unless it exists
    if [[ ! -e $1 ]]; then
        echo "== ${*:2}" >&2
        prunecli "${@:2}" "$1"
    fi
}

measure() { # NAME WHAT: a row of the table
    local name
    name=$(basename "$1").eval.json
    [[ -e $name ]] || prunecli eval --allow-overlap --out "$name" "$1" >&2
    python - "$name" "$2" <<'PY'
import json, sys
found = json.load(open(sys.argv[1]))["results"]
print(f"| {sys.argv[2]} | {found['loss']:.4f} | {found['perplexity']:.2f} |")
PY
}

# the windows as rows, so that prune and train read the same
[[ -e t.safetensors ]] || python - "$model" <<'PY'
import sys
from safetensors.torch import save_file
from prunecli.data import windows as tokens
from prunecli.settings import Data
found = tokens.load(
    Data("builtin:calibration", nsamples=300), folder=sys.argv[1], vocab_size=49152,
    max_positions=2048,
)
save_file({"ids": found.ids}, "t.safetensors")
PY
rows="--data t.safetensors:ids --batch-size 1"
sheared="prune --method sheared-llama --ratio 0.25 --multiple 1 $rows"
train="train $rows --steps 300 --lr 1e-4 --warmup 0.1 --weight-decay 0"

# shellcheck disable=SC2086
{
    run learned $sheared --keep learned-kept "$model"
    run frozen $sheared --freeze-weights "$model"
    run slow $sheared --freeze-weights --mask-lr 0.1 "$model"
    run learned-cut prune --plan learned-kept/plan.json "$model"
    run flap-cut prune --method flap --bias drop --ratio 0.25 --multiple 1 --data t.safetensors:ids "$model"
    for seed in 1 2 3; do
        [[ -e random-$seed.json ]] || python - learned-kept/plan.json $seed random-$seed.json <<'PY'
import json, random, sys
source, seed, out = sys.argv[1:]
keep, draw = json.load(open(source))["results"]["keep"], random.Random(int(seed))
keep["ffn"] = [sorted(draw.sample(range(1536), len(kept))) for kept in keep["ffn"]]
json.dump({"keep": keep}, open(out, "w"))
PY
        run random-$seed-cut prune --plan random-$seed.json "$model"
    done
    for name in learned random-1 flap; do
        run $name-trained $train $name-cut
    done
}
echo "| model | loss | perplexity |"
echo "|---|---|---|"
measure "$model" "the parent"
measure learned "masks and weights trained together"
measure frozen "only masks trained (\`--freeze-weights\`)"
measure slow "only masks trained, \`--mask-lr 0.1\` (a tenth of the default)"
measure learned-cut "the parent's weights, pruned by the masks of row 2"
for seed in 1 2 3; do
    measure random-$seed-cut "the parent's weights, random masks"
done
measure flap-cut "the parent's weights, pruned by FLAP without biases"
measure random-1-trained "random masks, weights then trained on the same rows"
measure learned-trained "masks of row 2, the parent's weights then trained on the same rows"
measure flap-trained "FLAP without biases, weights then trained on the same rows"
