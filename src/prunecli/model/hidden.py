"""Hidden states between layers: where they are kept, and how batches travel to the device."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor

from prunecli.files import scratch


class HiddenStates:
    """Makes room for hidden states, and takes batches of them to a device and back.

    On a device with streams, the next batch comes and the last one goes while this one computes.
    That overlaps where memory is pinned, and is no less right where it is not.

    Args:
        device: where to compute.
        place: `device`, `disk` for a file in the temporary folder, or else the machine's memory.
    """

    def __init__(self, device: torch.device, place: str) -> None:
        self._device, self._place = device, place
        module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._streams = module if hasattr(module, "Stream") else None
        if self._streams is not None:
            self._inward, self._outward = module.Stream(device), module.Stream(device)
        self._leaving: Tensor | None = None

    def room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return room for hidden states [N, T, D]; in memory it is pinned beside an accelerator."""
        if self._place == "disk":
            return in_file(shape, dtype)
        if self._place == "device":
            return torch.empty(shape, dtype=dtype, device=self._device)
        if self._device.type != "cpu":
            try:
                return torch.empty(shape, dtype=dtype, pin_memory=True)
            except RuntimeError:
                pass  # a device that has none, or a system that locks no more: copies take longer
        return torch.empty(shape, dtype=dtype)

    def each(
        self,
        steps: Iterable[slice],
        compute: Callable[..., Tensor | None],
        *read: Tensor,
        into: Tensor | None = None,
    ) -> None:
        """Call `compute` with the rows of what is `read`, slice after slice, on the device.

        What it returns becomes those rows of `into`, which may be one of those that are read. The
        rows of other slices are read before or after that: slices must not overlap.
        """
        for rows, here in self._arriving(steps, read):
            made = compute(*here)
            if into is not None:
                assert made is not None, "there is something to put"
                self._leave(made, into[rows])
        if self._leaving is not None:
            self._outward.synchronize()
            self._leaving = None

    def _arriving(
        self, steps: Iterable[slice], read: tuple[Tensor, ...]
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield slices with their rows on the device, when the next ones are on their way."""
        before: tuple[slice, list[Tensor]] | None = None
        for rows in chain(steps, (None,)):
            if self._streams is not None and before is not None:
                self._current.wait_stream(self._inward)
            coming = None if rows is None else (rows, self._sent([one[rows] for one in read]))
            if before is not None:
                yield before
            before = coming

    def _sent(self, batch: list[Tensor]) -> list[Tensor]:
        """Return tensors on the device, for which the current stream has to wait."""
        if self._streams is None:
            return [one.to(self._device) for one in batch]
        # into memory that whoever computed with the last ones is done with
        self._inward.wait_stream(self._current)
        with self._streams.stream(self._inward):
            return [one.to(self._device, non_blocking=True) for one in batch]

    def _leave(self, made: Tensor, onto: Tensor) -> None:
        """Copy what was made to where it is kept."""
        if self._streams is None or made.device == onto.device:
            onto.copy_(made)
            return
        # what left before is held until then: its memory would be used again
        self._current.wait_stream(self._outward)
        self._outward.wait_stream(self._current)
        with self._streams.stream(self._outward):
            onto.copy_(made, non_blocking=True)
        self._leaving = made

    @property
    def _current(self) -> Any:
        assert self._streams is not None
        return self._streams.current_stream(self._device)


def in_file(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return room of this shape in a file that goes with it."""
    size = prod(shape)
    with scratch.file(size * dtype.itemsize) as file:
        flat = torch.from_file(file.name, shared=True, size=size, dtype=dtype)
    return flat.view(shape)
