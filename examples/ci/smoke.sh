#!/usr/bin/env bash
# Does pruning work on this machine? A random tiny Llama, pruned by half, measured: smoke.sh [WORK]
# No network and no GPU are needed; everything is in WORK, a new temporary folder if not given.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${1:-$(mktemp -d)}
mkdir -p "$work"
cd "$work"

# stdout of each command is the path of what it made, which the next reads as `-`
prunecli init --force --config "$here/tiny.json" tiny |
    prunecli prune --force --method flap --ratio 0.5 --nsamples 8 - flap |
    prunecli eval --force --nsamples 8 --out flap.json -
prunecli eval --force --quiet --nsamples 8 --out tiny.json tiny
prunecli check --deep tiny flap
prunecli table .
