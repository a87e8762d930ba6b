"""Layers that hold weights as they are stored compute what layers in the compute type do."""

import pytest
import torch

import tiny
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
        stream = LayerStream(checkpoint, Compute("cpu", dtype))
        hidden = stream.embed(ids)
        for i in range(stream.arch.layers):
            held, cast = stream.layer(i), stream.layer(i, cast=True)
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
