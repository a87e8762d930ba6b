"""What a run needs in memory: the estimate by hand, and the refusal where it cannot be had."""

import subprocess
import sys
from functools import partial
from math import prod

import pytest

import tiny
from prunecli import evaluate, prune, train
from prunecli.errors import InputError
from prunecli.methods import registry
from prunecli.model import memory
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.memory import MemoryNeed
from prunecli.pruning.calibrate import WORKING_COPIES, required_statistics, statistics_bytes
from prunecli.settings import Compute

CPU = Compute("cpu", "float32")


def test_of_a_walk(llama):
    checkpoint = Checkpoint(str(llama))
    arch = checkpoint.arch
    need = memory.of_walk(checkpoint, CPU, rows=10, length=32, statistics=7)
    assert need.host["hidden states"] == 10 * 32 * arch.hidden * 4
    tables = 1 if arch.tied else 2
    assert need.host["embeddings"] == tables * arch.vocab * arch.hidden * 4
    layer = [tensor.shape for tensor in arch.tensors().values() if tensor.layer == 0]
    assert need.device["one layer"] == sum(map(prod, layer)) * 4
    assert need.device["a matrix"] == 0  # none is cast
    assert need.total == sum((*need.host.values(), *need.device.values()))
    halved = memory.of_walk(checkpoint, Compute("cpu", "bfloat16", "disk"), 10, 32)
    assert halved.host["hidden states"] == 0
    assert halved.device["one layer"] == need.device["one layer"]  # as it is stored
    assert halved.device["a matrix"] == max(map(prod, layer)) * 2


def test_of_statistics(llama):
    """Of SparseGPT: a Gram matrix in float32 for each distinct input of a layer."""
    arch = Checkpoint(str(llama)).arch
    widths = (arch.hidden, arch.heads * arch.head_dim, arch.hidden, arch.ffn)
    required = required_statistics([registry.get("sparsegpt")], False)
    expected = sum(4 * width**2 for width in widths) + WORKING_COPIES * 4 * max(widths) ** 2
    assert statistics_bytes(required, arch) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own figures of a process")
def test_of_a_factor():
    """SparseGPT holds a Gram matrix and, in one more of its size, all that it makes of it."""
    told = """
import torch
from prunecli.methods import sparsegpt

def peak():  # of this process alone; rusage has that of its parent too
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

for inputs in (256, 4096):  # what the libraries take at first is none of it
    gram = torch.full((inputs, inputs), 0.5)
    gram.diagonal().add_(1)
    before = peak()
    sparsegpt.prepare({"gram": gram}, {"block_size": 128, "damping": 0.01})
print((peak() - before) / gram.nbytes)
"""
    line = [sys.executable, "-c", told]
    copies = float(subprocess.run(line, check=True, stdout=subprocess.PIPE).stdout)
    # and buffers of the libraries, but not one matrix more
    assert WORKING_COPIES - 0.5 < copies < WORKING_COPIES + 1


@pytest.mark.parametrize("method", registry.names())
def test_every_method_has_an_estimate(method, llama):
    required = required_statistics([registry.get(method)], False)
    assert statistics_bytes(required, Arch.read(tiny.subject(llama, method))) >= 0


def test_what_cannot_be_had_is_refused():
    MemoryNeed({"hidden states": 1 << 20}).attempt(CPU)
    with pytest.raises(InputError, match=r"needs about .* GB \(hidden states 4\.61e\+09, one"):
        MemoryNeed({"hidden states": 1 << 62}, {"one layer": 1 << 20}).attempt(CPU)


def test_the_memory_is_touched():
    """A mapping alone costs nothing: one larger than a limit on what is held must fail."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 29,) * 2)\n"
    for size, status in ((1 << 27, 0), (1 << 30, 1)):
        line = [sys.executable, "-S", "-c", limit + memory.TOUCH, str(size)]
        assert subprocess.run(line, capture_output=True).returncode == status
    held = "import resource\n" + memory.TOUCH + (
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )  # fmt: skip
    line = [sys.executable, "-S", "-c", held, str(1 << 27)]
    assert int(subprocess.run(line, capture_output=True).stdout) >= 1 << 17  # KiB


def test_what_can_be_had_is_no_hindrance(llama, calibration, tmp_path):
    """Whatever the device is called: --probe tries it for real, and the run goes on."""
    rows = tiny.tokens(tmp_path / "rows.safetensors", rows=32)
    for device in ("auto", "cpu"):
        how = {"probe": True, "device": device}
        training = {"steps": 1, "batch_size": 2, "lr": "1e-3"}
        train(str(llama), str(tmp_path / device), data=rows, **training, **how)
        evaluate(str(llama), data=[calibration], **how)
        prune(str(llama), str(tmp_path / f"{device}-p"), method="flap", ratio=0.5,
              data=calibration, **how)  # fmt: skip


def test_before_any_work(llama, calibration, tmp_path, monkeypatch):
    tried = []

    def attempt(self, compute):
        tried.append(self)
        raise InputError("too little memory")

    monkeypatch.setattr(MemoryNeed, "attempt", attempt)
    model = str(llama)
    rows = tiny.tokens(tmp_path / "rows.safetensors", rows=32)
    runs = (
        lambda out, **how: prune(model, out, method="flap", ratio=0.5, data=calibration, **how),
        lambda out, **how: evaluate(model, data=[calibration], out=out + ".json", **how),
        lambda out, **how: train(model, out, data=rows, steps=1, batch_size=2, lr="1e-3", **how),
    )
    for number, begin in enumerate(runs):
        run = partial(begin, str(tmp_path / f"o{number}"))
        for more in ({}, {"dry_run": True}):
            with pytest.raises(InputError, match="too little memory"):
                run(probe=True, **more)
        assert not list(tmp_path.glob(f"*o{number}*"))
        done = len(tried)
        assert run(dry_run=True).results["memory_bytes"] == tried[-1].total
        run()  # a short run is not held up
        assert len(tried) == done
        monkeypatch.setattr(memory, "LONG_FLOPS", 1)
        with pytest.raises(InputError, match="too little memory"):
            run(force=True)
        monkeypatch.setattr(memory, "LONG_FLOPS", 1e14)
