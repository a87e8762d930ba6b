"""Three commands in a shell pipe give the bytes of one."""

import os
import subprocess
import sys
from pathlib import Path

import tiny

PIPE = """
set -euo pipefail
prunecli calibrate --for flap --data {data} in/ s.safetensors |
  prunecli score --method flap --stats - in/ c.safetensors |
  prunecli prune --method flap --scores - --ratio 0.5 in/ three/ |
  prunecli eval --data {data} --allow-overlap --json - > eval.json
prunecli prune --method flap --ratio 0.5 --data {data} in/ one/
cmp one/model.safetensors three/model.safetensors
"""


def test_pipe(tmp_path):
    tiny.make(tmp_path / "in", "llama")
    tiny.tokens(tmp_path / "t.safetensors")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", PIPE.format(data="t.safetensors:ids")],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "one/\n"
    assert '"perplexity"' in (tmp_path / "eval.json").read_text()


def test_a_failure_stops_the_pipe(tmp_path):
    tiny.make(tmp_path / "in", "llama")
    pipe = (
        "set -o pipefail; prunecli calibrate --for flap nowhere/ s.safetensors | "
        "prunecli score --method flap --stats - in/ c.safetensors"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", pipe],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "stdin is empty" in ended.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in"]
