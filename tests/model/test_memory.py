"""What a run needs in memory: the estimate by hand, and the refusal where it cannot be had."""

import subprocess
import sys
from functools import partial
from math import prod

import pytest
from safetensors.torch import load_file

import tiny
from prunecli import evaluate, prune, train
from prunecli.errors import InputError, UsageError
from prunecli.methods import registry
from prunecli.model import memory
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.memory import MemoryNeed
from prunecli.model.stream import LayerStream
from prunecli.pruning.calibrate import (
    WORKING_COPIES,
    required_statistics,
    solving_bytes,
    statistics_bytes,
)
from prunecli.pruning.stats import registry as statistics
from prunecli.settings import Compute, RunContext

CPU = Compute("cpu", "float32")


def test_of_a_walk(llama):
    checkpoint = Checkpoint(str(llama))
    arch = checkpoint.arch
    need = memory.of_walk(checkpoint, CPU, rows=10, length=32, statistics=7)
    assert need.host["hidden states"] == 10 * 32 * arch.hidden * 4
    layer = [tensor.shape for tensor in arch.tensors().values() if tensor.layer == 0]
    assert need.device["one layer"] == 0  # the file's own pages
    assert need.device["a matrix"] == 0  # none is cast
    edited = memory.of_walk(checkpoint, CPU, rows=10, length=32, statistics=7, edited=True)
    assert edited.total - need.total == sum(map(prod, layer)) * 4
    on_disk = memory.of_walk(checkpoint, Compute("cpu", "float32", "disk"), 10, 32, edited=True)
    assert on_disk.device["one layer"] == 0  # the pages of another file
    assert need.total == sum((*need.host.values(), *need.device.values()))
    halved = memory.of_walk(checkpoint, Compute("cpu", "bfloat16", "disk"), 10, 32)
    assert halved.host["hidden states"] == 0
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


def test_of_a_solve(llama):
    """Of SparseGPT: Gram matrices that are yet to be read, and the factor of one more."""
    arch = Checkpoint(str(llama)).arch
    widths = (arch.hidden, arch.heads * arch.head_dim, arch.hidden, arch.ffn)
    grams = [4 * width**2 for width in widths]
    weights = 2 * 4 * arch.hidden * arch.ffn  # of the largest matrix
    required = required_statistics([registry.get("sparsegpt")], False)
    expected = max(
        sum(grams[i:]) + max(WORKING_COPIES * grams[i], weights) for i in range(len(grams))
    )
    assert solving_bytes(required, arch) == expected


def test_within_a_limit(llama):
    """Hidden states go to a file where they must; what does not fit even so is refused."""
    told = tiny.Told()
    need = {
        "ram": MemoryNeed({"hidden states": 300_000_000}, {"a batch": 100_000_000}),
        "disk": MemoryNeed({"hidden states": 0}, {"a batch": 100_000_000}),
    }

    def within(limit, buffer="ram"):
        run = RunContext(compute=Compute("cpu", "float32", buffer, limit), report=told)
        return memory.within(run, lambda run: need[run.compute.buffer]).compute.buffer

    assert within(None) == "ram" and within("0.88 GB") == "ram"
    assert not told.notes
    assert within("879MB") == "disk" and within("580MB") == "disk"
    assert told.notes == [f"hidden states are kept in a file: --memory {n}MB" for n in (879, 580)]
    assert within("580000kB", "disk") == "disk"
    for buffer in ("ram", "disk"):
        with pytest.raises(
            InputError, match=r"at least 0\.58 GB \(the program 0\.48, a batch 0\.1\)"
        ):
            within("579MB", buffer)


def test_streams_of_candidates_keep_to_a_limit(llama):
    for limit, expected in ((None, 1 << 30), ("8GB", 1 << 30), ("2GB", 500_000_000)):
        compute = Compute("cpu", "float32", memory=limit)
        assert LayerStream(Checkpoint(str(llama)), compute).streams_bytes == expected


def test_how_often_layers_run(llama, calibration, monkeypatch):
    """What is told of candidates is what runs: each of these is a layer on all windows."""
    checkpoint, seen = Checkpoint(str(llama)), []
    ids = load_file(calibration.rsplit(":", 1)[0])["ids"]
    forward = LayerStream.forward

    def counted(self, layer, i, hidden):
        seen.append(len(hidden))
        return forward(self, layer, i, hidden)

    monkeypatch.setattr(LayerStream, "forward", counted)
    for name, most in (("skip_loss", 3), ("greedy_skip", 2)):
        record = statistics.get(name)
        for count in range(1, most + 1):
            seen.clear()
            record.make(LayerStream(checkpoint, CPU), ids, count)
            told = record.passes(checkpoint.arch, count) * checkpoint.arch.layers * len(ids)
            assert sum(seen) == pytest.approx(told), (name, count)


@pytest.mark.parametrize("size", ["4", "GB", "-1GB", "0GB", "4gb", "1e3GB", "4GiB", "nanGB", ""])
def test_what_is_no_size(size, llama, tmp_path):
    with pytest.raises(UsageError, match=r"--memory is '.*': expected a size"):
        prune(str(llama), str(tmp_path / "o"), method="magnitude", ratio=0.5, memory=size)


@pytest.mark.parametrize("method", ["wanda", "shortgpt"])
def test_a_limit_changes_no_result(method, llama, calibration, tmp_path, monkeypatch):
    """Whatever it decides of where hidden states are."""
    monkeypatch.setattr(memory, "PROGRAM", 0)
    request = {"method": method, "ratio": 0.5, "data": calibration}
    dense = prune(str(llama), str(tmp_path / "all"), **request)
    need = prune(str(llama), str(tmp_path / "no"), **request, dry_run=True).results["memory_bytes"]
    told = tiny.Told()
    limit = f"{(need - 1) / 1000:.3f}kB"
    limited = prune(str(llama), str(tmp_path / "some"), **request, memory=limit, report=told)
    assert any("kept in a file" in note for note in told.notes)
    assert tiny.same(tmp_path / "all", tmp_path / "some")
    assert limited.sidecar["id"] == dense.sidecar["id"]
    with pytest.raises(InputError, match="is too little: the run takes at least"):
        prune(str(llama), str(tmp_path / "none"), **request, memory="1kB")
    assert not (tmp_path / "none").exists()


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
