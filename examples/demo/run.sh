#!/usr/bin/env bash
# Prune a real Llama with five methods, and compare their results: run.sh MODEL WORK
# MODEL is a checkpoint folder. Results go into WORK. No network is needed.
set -euo pipefail
model=$1 work=$2
rm -rf "$work"
mkdir -p "$work"

run() {
    printf '\n$ %s\n' "$*" >&2
    "$@"
}
evaluate() {
    run prunecli eval --quiet --nsamples 8 --out "$work/$1.json" "$2"
}
prune() {
    local name=$1
    shift
    run prunecli prune "$@" "$model" "$work/$name"
    evaluate "$name" "$work/$name"
}

evaluate dense "$model"
prune flap --method flap --ratio 0.5 --nsamples 16
prune wanda --method wanda --sparsity 2:4 --nsamples 16
prune sparsegpt --method sparsegpt --ratio 0.5 --nsamples 12
prune minitron-depth --method minitron-depth --ratio 0.5 --nsamples 4
prune minitron-width --method minitron-width --ratio 0.5 --nsamples 16

printf '\n$ prunecli table %s\n' "$work" >&2
prunecli table "$work"
