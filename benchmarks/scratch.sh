#!/usr/bin/env bash
# Pruned against scratch, token for token, on a small parent trained here:
#
#     benchmarks/scratch.sh TEXT WORK
#
# TEXT is a folder of .txt files with 3 million tokens or more. The parent (2.1 million parameters,
# a 4096-id tokenizer trained on TEXT) sees 2 million tokens; it is pruned by four methods to half
# its blocks; the pruned models and a scratch twin of each see the next half million, with the
# paper's choice of learning rate. A second run makes only what is missing.
set -euo pipefail
text=$(realpath "$1") work=$2
mkdir -p "$work"
cd "$work"

cat >shape.json <<'JSON'
{"model_type": "llama", "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 384,
 "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16,
 "max_position_embeddings": 256, "tie_word_embeddings": true, "dtype": "float32"}
JSON

run() { # NAME COMMAND...: makes NAME unless it exists
    if [[ ! -e $1 ]]; then
        echo "== ${*:2}" >&2
        prunecli "${@:2}" "$1"
    fi
}

measure() { # NAME: its loss on rows that nothing was trained on
    [[ -e $1.json ]] || prunecli eval --data rows:11000:11500 --out "$1.json" "$1" >&2
}

parent=8000 retrain=10000 # rows of 256 tokens: 2.05 million, then 0.51 million
run rows tokenize --train-tokenizer 4096 --seq-len 256 --tokens 3e6 "$text"
run random init --config shape.json --tokenizer rows
run parent train --data rows:0:$parent --lr 3e-3 --eval-data rows:11000:11100 random
for method in flap minitron-width minitron-depth wanda; do
    run "p-$method" prune --method "$method" --ratio 0.5 --multiple 1 --data rows:10500:10628 parent
    run "s-$method" init --like "p-$method" --seed 1
    for kind in p s; do
        run "$kind-$method-trained" train --data rows:$parent:$retrain --lr sweep "$kind-$method"
        measure "$kind-$method-trained"
    done
done
# one row more: not token-matched, and the table must say so
run s-flap-unfair train --data rows:$parent:$((retrain + 1)) --batch-size 3 --steps 667 --lr 1e-3 s-flap
measure parent
measure s-flap-unfair
prunecli table --layout pairs p-*-trained s-*-trained s-flap-unfair ./*-trained.json s-flap-unfair.json
