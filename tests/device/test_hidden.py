"""Hidden states on a device, in memory beside it and in a file: one result, no needless copy."""

from dataclasses import replace

import pytest
import simulated
import torch
from safetensors.torch import load_file
from work import ROWS

import tiny
from prunecli.errors import InputError, Stopped
from prunecli.files import keeping
from prunecli.methods import registry
from prunecli.model import memory
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import DeviceMemory
from prunecli.model.hidden import HiddenStates
from prunecli.model.memory import MemoryNeed
from prunecli.model.stream import LayerStream
from prunecli.pruning.calibrate import required_statistics
from prunecli.pruning.calibration import Calibration
from prunecli.pruning.masks import WeightMasker
from prunecli.pruning.stats._hooks import LayerRun
from prunecli.settings import Compute, RunContext

PLACES = ("device", "ram", "disk")


def needed(method: str):
    return required_statistics([registry.get(method)], False)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("counted")
def test_a_layer_copies_its_weights_and_what_the_buffer_needs(place, work, device):
    """Counted layer by layer: observed, and run once more for the next, as a method that edits."""
    dense = Checkpoint(work.model)
    stream = LayerStream(dense, Compute(device, "float32", place))
    ids = load_file(work.ids.rpartition(":")[0])["ids"]
    hidden = stream.embed(ids)
    stream.context(0, hidden)  # positions and a mask, once for all
    of_states = 0 if place == "device" else hidden.nbytes
    for i in range(dense.arch.layers):
        of_layer = [n for n in dense.specs if n.startswith(dense.arch.prefix(i))]
        with simulated.traffic() as seen:
            run = LayerRun(stream, i, stream.layer(i), hidden, ids)
            run.statistics(needed("sparsegpt"))
            run.run(onward=True)
        weights = sum(dense.specs[name].bytes for name in of_layer)
        assert seen.to_device_bytes == weights + 2 * of_states
        assert seen.to_host_bytes == of_states


METHODS = ("shortgpt", "wanda", "llm-pruner", "slicegpt-global", "minitron-depth")


@pytest.mark.parametrize("method", METHODS)
def test_where_they_are_is_no_matter(method, work, device, tmp_path):
    """Copies that run beside the products are those that are waited for, to the bit."""
    for place in PLACES:
        work.prune(method, str(tmp_path / place), Compute(device, "float32", place))
        assert tiny.same(tmp_path / place, tmp_path / PLACES[0])


@pytest.mark.parametrize(("begun", "ended"), [("device", "device"), ("ram", "device")])
def test_gone_on_elsewhere(begun, ended, work, device, tmp_path, monkeypatch):
    """Statistics of a stopped run are in memory again, wherever hidden states are."""
    monkeypatch.setattr(keeping, "LARGE", 1 << 12)
    compute = Compute(device, "float32", begun)
    work.prune("llm-pruner", str(tmp_path / "whole"), compute)
    with pytest.raises(Stopped):
        # four layers forward, the loss, and some of those backward
        work.prune("llm-pruner", str(tmp_path / "o"), compute, stop=tiny.stop_after(7))
    work.prune("llm-pruner", str(tmp_path / "o"), replace(compute, buffer=ended))
    assert tiny.same(tmp_path / "o", tmp_path / "whole")


@pytest.mark.usefixtures("counted")
def test_a_copy_that_nobody_waits_for_is_seen(work, device, tmp_path, monkeypatch):
    """The control of the test above."""
    monkeypatch.setattr(simulated._Stream, "wait_stream", lambda self, other: None)
    compute = Compute(device, "float32", "ram")
    ids = load_file(work.ids.rpartition(":")[0])["ids"]
    stream = LayerStream(Checkpoint(work.model), compute)
    hidden, seen = stream.embed(ids), []
    stream.each(stream.batches(ids), lambda here: seen.append(bool(here.isnan().any())), hidden)
    assert any(seen)


def placed(compute: Compute) -> str:
    """Return where the hidden states of a run go, a megabyte of them."""

    def need(run: RunContext) -> MemoryNeed:
        on_device = run.compute.buffer == "device"
        in_memory = run.compute.buffer == "ram"
        return MemoryNeed(
            {"hidden states": 1_000_000 * in_memory},
            {"a batch": 1_000_000, "states": 1_000_000 * on_device},
        )

    return memory.within(RunContext(compute=compute), need).compute.buffer


@pytest.mark.usefixtures("counted")
def test_the_first_place_where_they_fit(device):
    there = Compute(device, "float32")
    assert placed(there) == placed(replace(there, buffer="device")) == "device"
    assert placed(replace(there, buffer="ram")) == "ram"
    limit = f"{(memory.PROGRAM + 500_000) / 1000:.3f}kB"
    # a limit is on the machine's memory, which the device's is beside
    assert placed(replace(there, memory=limit)) == "device"
    with simulated.full():
        assert placed(there) == "ram"
        assert placed(replace(there, memory=limit)) == "disk"
        with pytest.raises(InputError, match=r"too little free memory on 'sim.*\(states"):
            placed(replace(there, buffer="device"))


def test_the_memory_of_a_cpu_is_the_machines():
    for buffer in ("auto", "device", "ram"):
        assert placed(Compute("cpu", "float32", buffer)) == "ram"


@pytest.mark.usefixtures("counted")
def test_batches_are_sized_to_the_device(work, device, tmp_path, monkeypatch):
    """By all of its memory, so that what else runs there changes no result."""
    arch = Checkpoint(work.model).arch
    there = Compute(device, "float32")
    token = memory._token_bytes(arch, there)
    for tokens in (1 << 14, 1 << 12, 1 << 10):
        known = DeviceMemory(0, memory.DEVICE_SHARE * tokens * token)
        monkeypatch.setattr(memory, "memory_of", lambda device, known=known: known)
        assert memory.batch_tokens(arch, there) == tokens
    assert memory.batch_tokens(arch, Compute("cpu", "float32")) == 1 << 10
    for known in (None, DeviceMemory(0, 1)):
        monkeypatch.setattr(memory, "memory_of", lambda device, known=known: known)
        assert memory.batch_tokens(arch, there) == 1 << 10
    monkeypatch.setattr(memory, "memory_of", lambda device: DeviceMemory(1 << 40, 1 << 40))
    work.prune("shortgpt", str(tmp_path / "o"), there)
    assert tiny.sidecar(tmp_path / "o")["run"]["batch"] == 1 << 14
    (batch,) = LayerStream(Checkpoint(work.model), there).batches(torch.zeros(ROWS, 64))
    assert batch == slice(0, ROWS)


def test_memory_is_pinned_beside_an_accelerator_alone(device, monkeypatch):
    """Where it cannot be pinned, it is memory all the same."""
    asked, empty = [], torch.empty

    def recorded(*shape, **how):
        asked.append(how.get("pin_memory", False))
        return empty(*shape, **how)

    monkeypatch.setattr(torch, "empty", recorded)
    for name, expected in (("cpu", [False]), (device, [True])):
        asked.clear()
        room = HiddenStates(torch.device(name), "ram").room((2, 3), torch.float32)
        assert room.device.type == "cpu" and room.shape == (2, 3)
        assert asked[:1] == expected


@pytest.mark.parametrize("word", ["highest", "high", "medium", None])
def test_products_are_in_whole_float32(word, work, device):
    """Whatever this process allows elsewhere, which holds again afterwards."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    try:
        if word is None:
            matmul.fp32_precision = "tf32"  # as the newer interface says it
        else:
            torch.set_float32_matmul_precision(word)
        said = matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        stream = LayerStream(Checkpoint(work.model), Compute(device, "float32"))
        for _ in stream.walk(range(2), "calibrating", "layers", {}):
            assert torch.get_float32_matmul_precision() == "highest"
            assert matmul.fp32_precision == "ieee"
        # methods that set weights to zero also read statistics from a file, without a walk
        of_file = WeightMasker(registry.get("wanda"), {}, None, stream.checkpoint, None, None)
        for _ in of_file._layers(Calibration([], tensors={})):
            assert matmul.fp32_precision == "ieee"
        assert (matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == said
        if word is not None:
            assert torch.get_float32_matmul_precision() == word
    finally:
        torch.set_float32_matmul_precision(before)
