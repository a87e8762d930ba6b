"""Layers that hold weights as they are stored compute what layers in the compute type do."""

import os
import weakref

import pytest
import torch

import tiny
from prunecli.files.tensorfile import bytes_of
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.stream import LayerStream, Room, StoredLinear
from prunecli.settings import Compute

FAMILIES = ("llama", "gpt-neox", "opt", "phi3", "gemma2")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_bit_is_that_of_a_layer_in_the_compute_type(kind, stored, tmp_path):
    checkpoint = Checkpoint(str(tiny.make(tmp_path / "model", kind, stored)))
    ids = torch.arange(2 * 12).view(2, 12) % checkpoint.arch.vocab
    for dtype in ("float32", "bfloat16"):
        stream, other = (LayerStream(checkpoint, Compute("cpu", dtype)) for _ in range(2))
        hidden = stream.embed(ids)
        for i in range(stream.arch.layers):
            held, cast = stream.layer(i), other.layer(i, cast=True)
            linears = [part for part in held.modules() if isinstance(part, StoredLinear)]
            assert linears and {one.weight.dtype for one in linears} == {stored}
            assert {one.dtype for one in cast.parameters()} == {stream.dtype}
            with torch.no_grad():
                left, right = (stream.forward(layer, i, hidden) for layer in (held, cast))
            assert left.dtype == stream.dtype and torch.equal(left, right)
            hidden = left


def test_room_is_taken_once_and_given_back():
    room, large, small = Room(), torch.randn(6, 4).bfloat16(), torch.randn(3, 2).bfloat16()
    first = room.cast(large, torch.float32)
    assert torch.equal(first, large.float())
    where = first.data_ptr()
    second = room.cast(small, torch.float32)
    assert torch.equal(second, small.float()) and second.data_ptr() == where
    assert room.cast(small, torch.bfloat16) is small  # nothing to cast
    room.leave()
    assert room._held.numel() == 0
    assert torch.equal(room.cast(large, torch.float32), large.float())


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no such call")
def test_the_next_layer_is_read_while_one_computes(tmp_path, monkeypatch):
    """Forwards and backwards: the bytes asked for are those of the layer that comes next."""
    folder = tiny.make(tmp_path / "model", "llama", torch.bfloat16, shard="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    checkpoint, asked = Checkpoint(str(folder)), []

    def advise(descriptor, start, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append(os.pread(descriptor, length, start))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    stream, depth = LayerStream(checkpoint, Compute("cpu", "float32")), checkpoint.arch.layers
    forwards, backwards = list(range(depth)), list(range(depth))[::-1]
    pairs = [*zip(forwards, [*forwards[1:], None], strict=True),
             *zip(backwards, [*backwards[1:], None], strict=True)]  # fmt: skip
    for i, following in pairs:
        asked.clear()
        stream.layer(i)
        checkpoint.ahead([])  # waits for what was begun
        names = (
            []
            if following is None
            else [
                name for name in checkpoint.specs if name.startswith(f"model.layers.{following}.")
            ]
        )
        expected = [bytes(bytes_of(checkpoint.tensor(name).flatten())) for name in names]
        assert sorted(asked) == sorted(expected), i


@pytest.mark.parametrize("cast", [False, True])
def test_one_layer_has_weights_at_a_time(cast, tmp_path):
    """Whoever still names the last one: of an edited or cast layer these are no mapped file's."""
    folder = tiny.make(tmp_path / "model", "llama", torch.bfloat16)
    stream = LayerStream(Checkpoint(str(folder)), Compute("cpu", "float32"))
    first = stream.layer(0, cast=cast)
    weight = first.get_submodule("mlp.up_proj").weight
    edited = first.get_submodule("mlp.up_proj").weight = torch.nn.Parameter(weight.detach() * 2)
    before = weakref.ref(edited)
    del weight, edited
    second = stream.layer(1, cast=cast)
    assert before() is None
    assert all(one.is_meta for one in first.parameters())
    assert not any(one.is_meta for one in second.parameters())
