"""Times of stock transformers models, taken in turns in one process.

In each round every model runs once, in an order that rotates, so that a machine that slows down for
a while slows all of them; speedups are ratios within a round. The CUDA paths (events are waited
for, 2:4 kernels) follow torch's documentation and have not been run on a GPU.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from inspect import signature
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunecli.errors import InputError
from prunecli.interruption import safe_point
from prunecli.model import stock
from prunecli.model.device import device_of, dtype_of
from prunecli.report import Report
from prunecli.settings import Compute, Timing

if TYPE_CHECKING:
    from prunecli.measuring.costs import SizedModel

AMPERE = (8, 0)
USED = "used"


class TimedModel:
    """One model on the device, with its optimizer and what its passes read."""

    def __init__(self, model: "SizedModel", timing: Timing, length: int, compute: Compute) -> None:
        assert model.checkpoint is not None
        self.device, self.timing = device_of(compute), timing
        dtype = dtype_of(compute, model.checkpoint)
        self.model: Any = stock.loaded(model.checkpoint, dtype, self.device)
        self.bytes = sum(p.numel() * p.element_size() for p in self.model.parameters())
        if timing.compile:
            self.model.compile()
        draw = torch.Generator().manual_seed(timing.seed)
        shape = (timing.batch_size, length)
        self.ids = torch.randint(model.arch.vocab, shape, generator=draw).to(self.device)
        self.peak = 0
        self._optimizer: Any = None
        self._compressed = False

    def seconds(self, quantity: str) -> float:
        """Return the seconds of one pass of a quantity; what goes before it is not counted."""
        safe_point()
        passes: dict[str, Callable[[Any], None]] = {
            "prefill": self._prefill,
            "decode": self._decode,
            "train": self._train,
        }
        one_pass = passes[quantity]
        self.model.train(quantity == "train")
        prompt = self._prompt() if quantity == "decode" else None
        before = _memory(self.device)
        self._wait()
        start = time.perf_counter()
        one_pass(prompt)
        self._wait()
        seconds = time.perf_counter() - start
        self.peak = max(self.peak, _peak(self.device) - before)
        return seconds

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)

    @torch.no_grad()
    def _prefill(self, _: None) -> None:
        self.model(self.ids, use_cache=False, logits_to_keep=1)

    @torch.no_grad()
    def _prompt(self) -> Any:
        return self.model(self.ids, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def _decode(self, result: Any) -> None:
        # what the cache is called differs between versions of transformers
        parameters = signature(self.model.forward).parameters
        cache = "cache" if "cache" in parameters else "past_key_values"
        for _ in range(self.timing.decode_tokens):
            token: Tensor = result.logits[:, -1:].argmax(-1)  # [B, 1]
            result = self.model(token, use_cache=True, **{cache: result[cache]})

    def _train(self, _: None) -> None:
        if self._optimizer is None:
            # a rate of zero does the work and leaves the weights, and their zeros, as they are
            self._optimizer = torch.optim.AdamW(
                self.model.parameters(), lr=0.0, weight_decay=0.0, fused=True
            )
        self.model(self.ids, labels=self.ids, use_cache=False).loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def finish_training(self) -> None:
        """Give back the memory of the optimizer."""
        self._optimizer = None

    def compress(self, names: Sequence[str]) -> None:
        """Replace 2:4 weights by torch's compressed ones, once, for inference only."""
        from torch.sparse import to_sparse_semi_structured

        if self._compressed:
            return
        self._compressed = True
        for name in names:
            module = self.model.get_submodule(name.removesuffix(".weight"))
            weight = to_sparse_semi_structured(module.weight.detach())
            module.weight = nn.Parameter(weight, requires_grad=False)


def measure(
    models: "Sequence[SizedModel]", length: int, timing: Timing, compute: Compute, report: Report
) -> dict[str, Any]:
    """Return what the last of one or two models takes on `length` tokens; a first is its base."""
    length = _decodable(models, length, timing)
    device = device_of(compute)
    seconds: dict[str, list[list[float]]] = {
        name: [[] for _ in models] for name in timing.quantities
    }
    peaks = [0 for _ in models]
    # where weights come to lie in memory makes one of two equal models faster, by some percent: so
    # with a base they are loaded twice, the other one first, and the spread shows that too
    loads = [list(range(len(models)))] + [[1, 0]] * (len(models) > 1)
    for order in loads:
        timed = {index: TimedModel(models[index], timing, length, compute) for index in order}
        # training first: it reads the weights as they are stored
        for quantity in sorted(timing.quantities, key=lambda name: name != "train"):
            if quantity != "train":
                for index, model in timed.items():
                    model.finish_training()
                    if _kernels(models[index], device) == USED:
                        model.compress(_linears(models[index]))
            for index, values in _rounds(timed, quantity, timing, report).items():
                seconds[quantity][index] += values
        for index, model in timed.items():
            peaks[index] = max(peaks[index], model.bytes + model.peak)
        # freed before the next are loaded
        del timed, model
    measured: dict[str, Any] = {"device": name_of(compute), "seq_len": length}
    measured["semi_structured"] = _kernels(models[-1], device)
    for quantity, values_by_model in seconds.items():
        tokens = timing.decode_tokens if quantity == "decode" else length
        measured[quantity] = _summarise(values_by_model, timing.batch_size * tokens)
    measured["peak_bytes"] = peaks[-1]
    if len(models) > 1:
        measured["base_peak_bytes"] = peaks[0]
    return measured


def _decodable(models: "Sequence[SizedModel]", length: int, timing: Timing) -> int:
    """Return the length of a prompt that leaves every model positions for the tokens it decodes.

    Raises InputError if there is none.
    """
    if "decode" not in timing.quantities:
        return length
    positions = min(model.arch.max_positions for model in models)
    if length + timing.decode_tokens <= positions:
        return length
    length = positions - timing.decode_tokens
    if length < 1:
        raise InputError(
            f"--decode-tokens {timing.decode_tokens} is more than the model has positions",
            "lower it",
        )
    return length


def _rounds(
    timed: dict[int, TimedModel], quantity: str, timing: Timing, report: Report
) -> dict[int, list[float]]:
    """Return the seconds of each model in each round."""
    for model in timed.values():
        for _ in range(timing.warmup):
            model.seconds(quantity)
    seconds: dict[int, list[float]] = {index: [] for index in timed}
    for turn in report.progress(range(timing.rounds), quantity, unit="round"):
        order = list(timed)
        for index in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds[index].append(timed[index].seconds(quantity))
    return seconds


def _summarise(seconds: list[list[float]], tokens: int) -> dict[str, Any]:
    """Return the results of one quantity, from the seconds of each model in each round."""
    result = _median("seconds", seconds[-1])
    result["tokens_per_second"] = tokens / result["seconds"]
    if len(seconds) > 1:
        ratios = [base / own for base, own in zip(*seconds, strict=True)]
        result |= _median("speedup", ratios)
        result["base_seconds"] = median(seconds[0])
    return result


def _median(name: str, values: list[float]) -> dict[str, Any]:
    return {name: median(values), f"{name}_spread": [min(values), max(values)]}


def _kernels(model: "SizedModel", device: torch.device) -> str:
    """Return whether zeros are made use of, and why they are not."""
    pattern = model.pattern
    if pattern is None:
        return "not used: the model is dense"
    if pattern != "2:4":
        return f"not used: zeros of pattern '{pattern}' are multiplied by dense kernels"
    if device.type != "cuda":
        return "not used: 2:4 kernels need a CUDA device"
    if torch.cuda.get_device_capability(device) < AMPERE:
        return "not used: 2:4 kernels need compute capability 8.0"
    return USED


def _linears(model: "SizedModel") -> list[str]:
    # transformers keeps the weights of experts in one tensor, for which it has no such kernel
    templates = {name for name in model.arch.block_linears() if "{e}" not in name}
    return [name for name, t in model.arch.tensors().items() if t.template in templates]


def name_of(compute: Compute) -> str:
    """Return what the device is called: times of one are not those of another."""
    device = device_of(compute)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def threads(compute: Compute) -> int | None:
    """Return how many threads compute on a CPU, None on other devices."""
    return torch.get_num_threads() if device_of(compute).type == "cpu" else None


def _memory(device: torch.device) -> int:
    """Return the bytes in use, and begin to watch for their peak."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        return int(module.memory_allocated(device))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    """Return the peak of the bytes in use since `_memory`."""
    if device.type != "cpu":
        return int(torch.get_device_module(device).max_memory_allocated(device))
    return _status("VmHWM")


def _status(field: str) -> int:
    """Return a figure of this process in bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)
