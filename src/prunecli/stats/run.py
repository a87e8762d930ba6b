"""Walks over a model, one decoder layer in memory at a time.

Layers are transformers' own classes, built on meta and given the streamed weights; hidden states
of all sequences live in one buffer that each layer overwrites in place.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from prunecli import memory
from prunecli.errors import UsageError
from prunecli.io.checkpoint import Reader
from prunecli.io.tensorfile import torch_dtype
from prunecli.methods._base import Need
from prunecli.report import SILENT, Report
from prunecli.settings import BATCH_TOKENS, Compute
from prunecli.stats import registry
from prunecli.stats._base import Collector
from prunecli.stock import Cap, bare

VOCAB_CHUNK = 8192

Stats = dict[str, Tensor]


def device_of(compute: Compute) -> torch.device:
    """Return the device to compute on; raise UsageError if torch cannot compute there.

    Under `torchrun` a GPU is that of this process's local rank.
    """
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device: torch knows no device '{name}'", "use auto, cpu, cuda or cuda:N"
        ) from None
    rank = os.environ.get("LOCAL_RANK")
    if device.type == "cuda" and rank is not None:
        if device.index is not None:
            raise UsageError(f"--device {name}: each process takes a GPU", "use --device cuda")
        count = torch.cuda.device_count()
        if 0 < count <= int(rank):
            raise UsageError(
                f"local rank {rank} has no GPU: there are {count}", "start one process per GPU"
            )
        device = torch.device("cuda", int(rank))
    return _there(device)


@cache
def _there(device: torch.device) -> torch.device:
    """Return a device, having computed a number on it; in float64, as statistics are."""
    try:
        torch.ones((), dtype=torch.float64, device=device).item()
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:
        # what is not there shows as any of these, often with lines of explanation after the cause
        cause = " ".join(str(error).split()).partition(". ")[0]
        raise UsageError(
            f"--device {device}: torch cannot compute on it here: {cause}", "use --device cpu"
        ) from error
    return device


def dtype_of(compute: Compute, checkpoint: Reader) -> torch.dtype:
    """Return the compute type: on a CPU float32 unless asked, on a GPU the checkpoint's."""
    if compute.dtype != "auto":
        return getattr(torch, compute.dtype)  # type: ignore[no-any-return]
    if device_of(compute).type == "cpu":
        return torch.float32
    return torch_dtype(checkpoint.specs["model.embed_tokens.weight"].dtype)


class Runner:
    """Runs the layers of one checkpoint.

    Args:
        checkpoint: the model, read as it is needed.
        compute: device, compute type, and where hidden states live: `ram`, or `disk` for a
            file-backed buffer in the temporary folder.
        report: told about progress.
    """

    def __init__(self, checkpoint: Reader, compute: Compute, report: Report = SILENT) -> None:
        self.checkpoint, self.arch, self.report = checkpoint, checkpoint.arch, report
        self.device, self.dtype = device_of(compute), dtype_of(compute, checkpoint)
        self.buffer_kind = compute.buffer
        self._stock, self._cap = bare(checkpoint.arch, self.device), Cap.of(checkpoint.arch)
        self._norm = self._stock.model.norm
        self._stock.model.norm = nn.Identity()
        # the stock model is run without its layers, to note down what each would be given
        for stub in self._stock.model.layers:
            stub.forward = self._note
        self._noted: list[tuple[Tensor, dict[str, Any]]] = []
        self._roots: dict[str, Tensor] = {}
        self._head: Tensor | None = None
        self._context: tuple[int, list[dict[str, Any]]] | None = None

    def _note(self, hidden_states: Tensor, **given: Any) -> Tensor:
        self._noted.append((hidden_states, given))
        return hidden_states

    @torch.no_grad()
    def _given(self, ids: Tensor) -> list[tuple[Tensor, dict[str, Any]]]:
        """Return the states [B, T, D] of embedded ids [B, T], and what else every layer is given.

        Only rows of the embedding that these ids need are read: the whole table in float32 would
        be the peak.
        """
        used, local = torch.unique(ids, return_inverse=True)
        table = self._root("model.embed_tokens.weight")[used.long()]
        embedding = self._stock.model.embed_tokens
        embedding.weight = nn.Parameter(table.to(self.device, self.dtype), requires_grad=False)
        self._noted = []
        self._stock.model(input_ids=local.to(self.device), use_cache=False)
        return self._noted

    def _root(self, name: str) -> Tensor:
        """Return a matrix outside the layers as it is stored; made once, as many batches ask."""
        if name not in self._roots:
            self._roots[name] = self.checkpoint.tensor(name)
        return self._roots[name]

    def weight(self, name: str) -> Tensor:
        """Return a weight on the device, in the compute type."""
        return self.checkpoint.tensor(name).to(self.device, self.dtype)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Return the hidden states [N, T, D] that enter the first layer: the buffer."""
        rows, length = ids.shape
        shape = (rows, length, self.arch.hidden)
        buffer = self.buffer(shape)
        for batch in batches(ids):
            buffer[batch] = self._given(ids[batch])[0][0].to(buffer.device)
        return buffer

    def buffer(self, shape: tuple[int, ...]) -> Tensor:
        """Return room for hidden states [N, T, D], in memory or on disk as was asked for."""
        if self.buffer_kind == "ram":
            return torch.empty(shape, dtype=self.dtype)
        with tempfile.NamedTemporaryFile(prefix="prunecli-hidden-") as file:
            size = shape[0] * shape[1] * shape[2]
            flat = torch.from_file(file.name, shared=True, size=size, dtype=self.dtype)
        return flat.view(shape)

    def layer(self, i: int) -> nn.Module:
        """Return decoder layer `i` with its weights, on the device in the compute type."""
        memory.release()
        prefix = f"model.layers.{i}."
        with torch.device("meta"):
            kind = type(self._stock.model.layers[i])
            layer: nn.Module = kind(self._stock.config, i)
        state = {name: self.weight(prefix + name) for name in layer.state_dict()}
        layer.load_state_dict(state, strict=True, assign=True)
        return layer.eval().requires_grad_(False)

    def context(self, i: int, hidden: Tensor) -> dict[str, Any]:
        """Return what layer `i` needs beside hidden states [B, T, D]: positions and a mask."""
        length = hidden.shape[1]
        if self._context is None or self._context[0] != length:
            anything = torch.zeros(1, length, dtype=torch.long)
            self._context = length, [given for _, given in self._given(anything)]
        return self._context[1][i]

    def forward(self, layer: nn.Module, i: int, hidden: Tensor) -> Tensor:
        """Return the output [B, T, D] of layer `i`."""
        out: Tensor = layer(hidden, **self.context(i, hidden))
        return out

    @torch.no_grad()
    def losses(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the summed loss [B] in nats of predicting tokens 1.. of every sequence.

        `hidden` [B, T, D] left the last layer, `ids` is [B, T]. Logits are fp32, made for a piece
        of the vocabulary at a time, so that no [T, V] matrix is ever held.
        """
        states = self._normed(hidden.to(self.device)).float().flatten(0, 1)
        targets = ids[:, 1:].to(self.device).long().flatten()
        total, target = self._scored(states, targets)
        return (total - target).double().view(len(ids), -1).sum(1).cpu()

    def loss_gradient(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the gradient [B, T, D] of these sequences' summed loss in the compute type.

        Of the sum, not the mean, which is too small for a type of sixteen bits.
        """
        before = hidden.detach().to(self.device).requires_grad_(True)
        normed = self._normed(before)
        states = normed.detach().float().flatten(0, 1)
        targets = ids[:, 1:].to(self.device).long().flatten()
        with torch.no_grad():
            total, _ = self._scored(states, targets)
            # of cross-entropy by its logits: probabilities less one at the target
            flow = torch.zeros_like(states)
            for piece, inside, local in self._pieces(targets):
                logits = self._cap(states @ piece.T)
                chance = (logits - total[:, None]).exp()
                chance.scatter_add_(1, local[:, None], -inside.float()[:, None])
                flow += (chance * self._cap.slope(logits)) @ piece
        flow = flow.view(normed.shape).to(normed.dtype)
        torch.autograd.backward(normed, flow)
        assert before.grad is not None
        return before.grad

    def _normed(self, hidden: Tensor) -> Tensor:
        """Return the states [B, T - 1, D] that the head reads, of all tokens but the last."""
        if self._norm.weight.is_meta:
            weight = self.weight("model.norm.weight")
            self._norm.weight = nn.Parameter(weight, requires_grad=False)
        normed: Tensor = self._norm(hidden[:, :-1])
        return normed

    def _scored(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log of the summed exponentials of all logits, and the targets' logits."""
        total = torch.full((len(states),), -torch.inf, device=self.device)
        target = torch.zeros(len(states), device=self.device)
        for piece, inside, local in self._pieces(targets):
            logits = self._cap(states @ piece.T)
            total = torch.logaddexp(total, logits.logsumexp(1))
            target = torch.where(inside, logits.gather(1, local[:, None])[:, 0], target)
        return total, target

    def _pieces(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield pieces [V', D] of the head in fp32, which targets are inside, and where."""
        if self._head is None:
            name = "model.embed_tokens.weight" if self.arch.tied else "lm_head.weight"
            self._head = self._root(name).to(self.device)
        head = self._head
        for start in range(0, self.arch.vocab, VOCAB_CHUNK):
            piece = head[start : start + VOCAB_CHUNK].float()
            inside = (targets >= start) & (targets < start + len(piece))
            yield piece, inside, (targets - start).clamp(0, len(piece) - 1)


def batches(ids: Tensor) -> Iterator[slice]:
    """Yield slices of rows [N, T] of about 1024 tokens: what goes through a layer at once."""
    step = max(1, BATCH_TOKENS // ids.shape[1])
    for start in range(0, len(ids), step):
        yield slice(start, min(start + step, len(ids)))


class _Listening:
    """Collectors of one layer, attached while in use; `stats` is what they found."""

    def __init__(self, runner: Runner, i: int, layer: nn.Module, needs: tuple[Need, ...]) -> None:
        self._collectors: dict[tuple[str, str], Collector] = {}
        self._names = partial(runner.arch.point, i)
        for need in needs:
            for point in need.points:
                self._collectors.setdefault((point, need.collector), registry.make(need.collector))
        self._hooks = []
        for point in {point for point, _ in self._collectors} - {"block"}:
            module = runner.arch.module(point)
            self._hooks.append(
                layer.get_submodule(module).register_forward_pre_hook(self._hook(point))
            )

    def _hook(self, point: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hear(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.hear(point, inputs[0])

        return hear

    def hear(self, point: str, *tensors: Tensor) -> None:
        for (at, _), collector in self._collectors.items():
            if at == point:
                collector.observe(*tensors)

    def stats(self) -> Stats:
        for hook in self._hooks:
            hook.remove()
        found: Stats = {}
        for (point, _), collector in self._collectors.items():
            for name, value in collector.result().items():
                found[f"{self._names(point)}.{name}"] = value
        return found


@torch.no_grad()
def dense(runner: Runner, ids: Tensor, needs: tuple[Need, ...]) -> Iterator[Stats]:
    """Yield every layer's statistics from one pass over the unpruned model; ids are [N, T]."""
    hidden = runner.embed(ids)
    depth = runner.arch.layers
    for i in runner.report.track(range(depth), "calibrating", depth, "layers"):
        layer = runner.layer(i)
        listening = _Listening(runner, i, layer, needs)
        for rows in batches(ids):
            before = hidden[rows].to(runner.device)
            after = runner.forward(layer, i, before)
            listening.hear("block", before, after)
            hidden[rows] = after.to(hidden.device)
        yield {name: value.cpu() for name, value in listening.stats().items()}


@torch.no_grad()
def layerwise(
    runner: Runner, ids: Tensor, needs: tuple[Need, ...]
) -> Iterator[tuple[int, nn.Module, Stats]]:
    """Yield every layer with its statistics, to be edited in place: later layers see the edit.

    The statistics of a layer come from its unpruned weights on inputs out of edited layers: it
    runs once to be observed and, edited, once more to make the next layer's inputs. Statistics stay
    on the device.
    """
    hidden = runner.embed(ids)
    depth = runner.arch.layers
    for i in runner.report.track(range(depth), "pruning", depth, "layers"):
        layer = runner.layer(i)
        listening = _Listening(runner, i, layer, needs)
        for rows in batches(ids):
            before = hidden[rows].to(runner.device)
            listening.hear("block", before, runner.forward(layer, i, before))
        yield i, layer, listening.stats()
        if i + 1 < depth:
            for rows in batches(ids):
                after = runner.forward(layer, i, hidden[rows].to(runner.device))
                hidden[rows] = after.to(hidden.device)
