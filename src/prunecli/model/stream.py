"""One decoder layer in memory at a time.

Layers are transformers' own classes, built on meta and given the streamed weights; hidden states
of all sequences live in one buffer that each layer overwrites in place.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prunecli.files.keeping import Holds, Keeper
from prunecli.files.tensorfile import spans
from prunecli.interruption import safe_point
from prunecli.model import experts, memory
from prunecli.model.carried import Carried
from prunecli.model.checkpoint import Reader
from prunecli.model.device import device_of, dtype_of, settled, whole_float32
from prunecli.model.hidden import HiddenStates, in_file
from prunecli.model.layout import LAYER_INPUT
from prunecli.model.stock import LogitSoftcap, Parts, in_float32, meta_model, with_ones
from prunecli.report import SILENT, Report
from prunecli.settings import Compute, RunContext

VOCAB_CHUNK = 8192

T = TypeVar("T")


class LayerStream:
    """Runs the layers of one checkpoint.

    Args:
        checkpoint: the model, read as it is needed.
        compute: device, compute type, and where hidden states are kept (`memory.within` settles
            that; `auto` is in memory).
        report: hears about progress.
        keeper: keeps the states of walks; without one nothing is kept. Its run's `ranks` are the
            processes that walk, each with its own rows.
    """

    def __init__(
        self,
        checkpoint: Reader,
        compute: Compute,
        report: Report = SILENT,
        keeper: Keeper | None = None,
    ) -> None:
        self.checkpoint, self.arch = checkpoint, checkpoint.arch
        self.keeper = keeper or Keeper(RunContext(report=report))
        self.ranks = self.keeper.run.ranks
        compute = settled(compute, checkpoint)
        self.device, self.dtype = device_of(compute), dtype_of(compute, checkpoint)
        self.batch_tokens = memory.batch_tokens(self.arch, compute)
        self.streams_bytes = memory.streams_bytes(compute)
        memory.heap()  # as it is to be before the first batch
        self._states = HiddenStates(self.device, compute.buffer)
        self._stock = meta_model(checkpoint.arch, self.device)
        self._exact, self._cap = in_float32(self._stock), LogitSoftcap.of(checkpoint.arch)
        self._parts = Parts.of(self._stock, self.arch.family)
        self._stock.set_submodule(self.arch.family.final_norm, nn.Identity())
        # transformers' model runs without its layers, to capture the inputs of each
        for stub in self._parts.layers:
            stub.forward = self._capture
        # what a layer takes behind itself and hidden states
        forward = type(self._parts.layers[0]).forward
        self._arguments = [*signature(forward).parameters][2:]
        self._captured: list[tuple[Tensor, dict[str, Any]]] = []
        self._roots: dict[str, Tensor] = {}
        self._head: Tensor | None = None
        self._room = Room()
        self._last: int | None = None
        self._given: nn.Module | None = None
        self._context: tuple[int, list[dict[str, Any]]] | None = None
        self._carried = Carried(self.arch)

    def walk(
        self,
        items: Sequence[T],
        what: str,
        unit: str,
        state: dict[str, Tensor],
        holds: Holds | None = None,
        spent: Collection[str] = (),
    ) -> Iterator[T]:
        """Yield items, showing progress; `state` is all that a run that goes on after some needs.

        Every loop over layers is one of these (files/keeping.py says what that asks of it).
        """
        with whole_float32():
            yield from self.keeper.steps(items, what, unit, state, self._placed, holds, spent)

    def _placed(self, tensor: Tensor, on_device: bool) -> Tensor:
        """Return a tensor of a state, where it was: on the device, or in memory.

        Hidden states [N, T, D] that were not on the device go where this run keeps them.
        """
        if on_device:
            return tensor.to(self.device)
        if tensor.dim() < 3:
            return tensor.clone()
        return self.buffer(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def _capture(self, hidden_states: Tensor, *given: Any, **context: Any) -> Tensor:
        context |= zip(self._arguments, given, strict=False)
        self._captured.append((hidden_states, context))
        return hidden_states

    @torch.no_grad()
    def _layer_inputs(
        self, ids: Tensor, only: int | None = None
    ) -> list[tuple[Tensor, dict[str, Any]]]:
        """Return each layer's inputs for ids [B, T]: embedded states [B, T, D], and the rest.

        Only rows of the embedding that these ids need are read: the whole table in float32 would
        be the peak of memory. So it would be of what all layers get of embeddings of their own:
        with `only` they are the inputs of one layer, as those of a first one.
        """
        used, local = torch.unique(ids, return_inverse=True)  # [U], [B, T] into it
        family, body = self.arch.family, self._parts.body
        table = self._root(f"{family.embedding}.weight")[used.long().cpu()]  # [U, D]
        self._give(self._parts.embedding, table)
        if family.positions is not None:
            self._load(self._stock.get_submodule(family.positions), f"{family.positions}.")
        whole, own = body.config, self.arch.layer_inputs
        if own is not None:
            rows = slice(None)
            if only is not None:
                size = self.arch.axis_size(LAYER_INPUT)
                rows = slice(only * size, (only + 1) * size)
                body.config = copy.copy(whole)
                body.config.num_hidden_layers = 1
            embedding, projection = map(self._stock.get_submodule, (own.embedding, own.projection))
            self._give(embedding, self._root(f"{own.embedding}.weight")[:, rows][used.long().cpu()])
            self._give(projection, self._root(f"{own.projection}.weight")[rows])
            self._load(self._stock.get_submodule(own.norm), f"{own.norm}.")
        self._captured = []
        try:
            body(input_ids=local.to(self.device), use_cache=False)
        finally:
            body.config = whole
        return self._captured

    def _give(self, module: nn.Module, weight: Tensor) -> None:
        """Give a module a weight, on the device and in the compute type."""
        weight = weight.to(self.device, self.dtype)
        module.weight = nn.Parameter(weight, requires_grad=False)

    def _load(self, module: nn.Module, prefix: str) -> None:
        """Give a module its weights, unless it has them: on the device, all but those of
        StoredLinears in the compute type, or in float32 where its class asks for that.
        """
        if any(parameter.is_meta for parameter in module.parameters()):
            stored = {
                f"{name}.weight"
                for name, part in module.named_modules()
                if isinstance(part, StoredLinear)
            }
            wide = torch.promote_types(self.dtype, torch.float32)
            state = {
                name: self.checkpoint.tensor(prefix + name).to(
                    self.device,
                    None if name in stored else wide if self._exact(prefix + name) else self.dtype,
                )
                for name in module.state_dict()
            }
            module.load_state_dict(state, strict=True, assign=True)
            module.requires_grad_(False)

    def _root(self, name: str) -> Tensor:
        """Return a matrix outside the layers as it is stored; read once, for many batches."""
        if name not in self._roots:
            self._roots[name] = self.checkpoint.tensor(name)
        return self._roots[name]

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Return the states [N, T, W] that enter the first layer: the buffer.

        W is the number of hidden channels D, and what tokens take along (model/carried.py).
        """
        buffer = self.buffer((*ids.shape, self.arch.states_width))
        for rows in self.batches(ids):
            hidden = self._layer_inputs(ids[rows], only=0)[0][0]
            buffer[rows] = self._carried.begun(hidden, ids[rows]).to(buffer.device)
        return buffer

    def hidden(self, states: Tensor) -> Tensor:
        """Return the hidden channels [.., D] of states [.., W]."""
        return self._carried.hidden(states)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        """Return room for hidden states [N, T, D], where they are kept."""
        return self._states.room(shape, dtype or self.dtype)

    def batches(self, ids: Tensor) -> Iterator[slice]:
        """Yield slices of rows [N, T] of as many tokens as go through a layer at once."""
        step = max(1, self.batch_tokens // ids.shape[1])
        for start in range(0, len(ids), step):
            safe_point()
            memory.release()
            yield slice(start, min(start + step, len(ids)))

    def each(
        self,
        steps: Iterable[slice],
        compute: Callable[..., Tensor | None],
        *read: Tensor,
        into: Tensor | None = None,
    ) -> None:
        """Do as `HiddenStates.each`, on this stream's device."""
        self._states.each(steps, compute, *read, into=into)

    def layer(self, i: int, cast: bool = False) -> nn.Module:
        """Return decoder layer `i` with its weights, on the device.

        Its linears hold them as they are stored, on a CPU as views of the mapped file: do not write
        into them. With `cast` they are in the compute type, as whatever trains or asks for their
        gradients needs them. While this layer computes, the next is read: the one on its other side
        from the last. That one has no weights any more: whoever still names it, holds no memory.
        """
        if self._given is not None:
            self._given.to("meta")
        self.rest()
        with torch.device("meta"):
            kind = type(self._parts.layers[i])
            layer: nn.Module = kind(self._stock.config, i)
            experts.unstack(layer, self.arch.family.experts)
            for name, part in [*layer.named_modules()]:
                if type(part) is nn.Linear and not cast:
                    layer.set_submodule(name, StoredLinear(part, self._room))
        self._load(layer, self.arch.prefix(i))
        forwards = self._last is None or i > self._last
        self._last, following = i, self.arch.prefix(i + 1 if forwards else i - 1)
        self.checkpoint.ahead(name for name in self.checkpoint.specs if name.startswith(following))
        self._given = layer.eval()
        return self._given

    def skip(self, layers: Iterable[int], states: Tensor) -> None:
        """Change states [N, T, W] as layers do that add nothing: those multiply by their scalars.

        These are in one place: nothing of the states is copied.
        """
        factor = self.checkpoint.scalars(layers)
        if factor != 1:
            self._carried.hidden(states).mul_(factor)

    def rest(self) -> None:
        """Give back the memory that the next product will take again."""
        self._room.leave()
        memory.release()

    def context(self, i: int, hidden: Tensor) -> dict[str, Any]:
        """Return what layer `i` takes beside hidden states [B, T, D]: positions and a mask."""
        length, made = hidden.shape[1], self._carried.arguments
        if self._context is None or self._context[0] != length:
            anything = torch.zeros(1, length, dtype=torch.long)
            self._context = (
                length,
                [
                    {key: value for key, value in context.items() if key not in made}
                    for _, context in self._layer_inputs(anything)
                ],
            )
        return self._context[1][i]

    def forward(self, layer: nn.Module, i: int, states: Tensor) -> Tensor:
        """Return the states [B, T, W] that leave layer `i`, which these enter."""
        hidden, keys = self._carried.hidden(states), self._carried.keys(i, states)
        ids, own = self._carried.ids(states), self.arch.layer_inputs
        given = {**self.context(i, hidden), **keys}
        if ids is not None and own is not None:
            ((_, context),) = self._layer_inputs(ids, only=i)
            given[own.argument] = context[own.argument]
        return self._carried.onward(i, layer(hidden, **given), states, keys)

    @torch.no_grad()
    def losses(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the summed loss [B] in nats of predicting tokens 1.. of every sequence.

        `hidden` [B, T, D] left the last layer, `ids` is [B, T]. Logits are fp32, computed for a
        chunk of the vocabulary at a time, so that no [T, V] matrix is ever held.
        """
        states = self._normed(hidden.to(self.device)).float().flatten(0, 1)  # [B (T - 1), D]
        targets = ids[:, 1:].to(self.device).long().flatten()  # [B (T - 1)]
        total, target = self._scored(states, targets)
        return (total - target).double().view(len(ids), -1).sum(1).cpu()

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the fp32 logits [B, T - 1, V] of all tokens but the last; of few tokens only.

        `hidden` [B, T, D] left the last layer.
        """
        states = self._normed(hidden.to(self.device)).float()
        anything = torch.zeros(1, dtype=torch.long, device=self.device)
        chunks = (chunk for chunk, _, _ in self._head_chunks(anything))
        return self._cap(torch.cat([_products(states, chunk) for chunk in chunks], -1)).cpu()

    def loss_gradient(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the gradient [B, T, D] of these sequences' summed loss in the compute type.

        Of the sum, not the mean, which is too small for a type of sixteen bits.
        """
        before = hidden.detach().to(self.device).requires_grad_(True)
        normed = self._normed(before)  # [B, T - 1, D]
        states = normed.detach().float().flatten(0, 1)  # [B (T - 1), D]
        targets = ids[:, 1:].to(self.device).long().flatten()  # [B (T - 1)]
        with torch.no_grad():
            total, _ = self._scored(states, targets)
            gradient = torch.zeros_like(states)
            for chunk, inside, local in self._head_chunks(targets):
                logits = self._cap(_products(states, chunk))  # [B (T - 1), V']
                # of cross-entropy by its logits: probabilities less one at the target
                by_logits = (logits - total[:, None]).exp()
                by_logits.scatter_add_(1, local[:, None], -inside.float()[:, None])
                by_logits = by_logits * self._cap.slope(logits)
                for columns in spans(chunk.shape[1], 4 * len(chunk)):
                    gradient[:, columns] += by_logits @ chunk[:, columns].float()
        gradient = gradient.view(normed.shape).to(normed.dtype)
        torch.autograd.backward(normed, gradient)
        assert before.grad is not None
        return before.grad

    def _normed(self, hidden: Tensor) -> Tensor:
        """Return the states [B, T - 1, D] that the head reads, of all tokens but the last.

        A bias of the head is one more column of it here, which reads a one.
        """
        norm = self._parts.final_norm
        self._load(norm, f"{self.arch.family.final_norm}.")
        normed: Tensor = norm(self._carried.hidden(hidden[:, :-1]))
        return with_ones(normed) if self.arch.head_bias else normed

    def _scored(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for states [R, D], logsumexp over all logits [R] and the targets' logits [R]."""
        total = torch.full((len(states),), -torch.inf, device=self.device)
        target = torch.zeros(len(states), device=self.device)
        for chunk, inside, local in self._head_chunks(targets):
            logits = self._cap(_products(states, chunk))  # [R, V']
            total = torch.logaddexp(total, logits.logsumexp(1))
            target = torch.where(inside, logits.gather(1, local[:, None])[:, 0], target)
        return total, target

    def _head_chunks(self, targets: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield chunks [V', D] of the head as stored, which targets [R] are inside, and where."""
        if self._head is None:
            family = self.arch.family
            name = family.embedding if self.arch.tied else family.head
            self._head = self._root(f"{name}.weight").to(self.device)
            if self.arch.head_bias:
                bias = self.checkpoint.tensor(f"{family.head}.bias").to(self._head)
                self._head = torch.cat([self._head, bias[:, None]], 1)
        head = self._head
        for start in range(0, self.arch.vocab, VOCAB_CHUNK):
            chunk = head[start : start + VOCAB_CHUNK]
            inside = (targets >= start) & (targets < start + len(chunk))
            yield chunk, inside, (targets - start).clamp(0, len(chunk) - 1)


def put(linear: nn.Module, weight: Tensor, compute: Compute) -> None:
    """Give a linear of a layer another weight, on a CPU where hidden states are.

    In a file, a layer that is edited takes no more memory than one that is read: of many experts,
    one at a time.
    """
    if compute.buffer == "disk" and weight.device.type == "cpu":
        weight = in_file(tuple(weight.shape), weight.dtype).copy_(weight)
    linear.weight = nn.Parameter(weight, requires_grad=False)


class Room:
    """Room for one matrix, taken when it is first needed and used again and again.

    New memory for each would cost a tenth of a product of 1024 tokens, all of it the system's.
    """

    def __init__(self) -> None:
        self._held = torch.empty(0)

    def cast(self, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a matrix in another type, to be read before the next one is asked for."""
        if matrix.dtype == dtype:
            return matrix
        held = self._held
        if (held.dtype, held.device) != (dtype, matrix.device) or held.numel() < matrix.numel():
            self._held = held = matrix.new_empty(matrix.numel(), dtype=dtype)
        return held[: matrix.numel()].view(matrix.shape).copy_(matrix)

    def leave(self) -> None:
        """Give the room back."""
        self._held = torch.empty(0)


class StoredLinear(nn.Linear):
    """A linear whose weight is in whichever type; products are in that of what enters, [.., I].

    The weight is cast for each product, which takes about 1 % of it for 1024 tokens. A layer in
    float32 would take twice what is stored of it in bfloat16, and never be used as a whole.
    """

    def __init__(self, linear: nn.Linear, room: Room) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self._room = room

    def forward(self, states: Tensor) -> Tensor:
        """Return the products [.., O]."""
        return nn.functional.linear(states, self._room.cast(self.weight, states.dtype), self.bias)


def _products(states: Tensor, chunk: Tensor) -> Tensor:
    """Return states [.., D] times a chunk [V', D] of the head, fp32 [.., V']."""
    products = states.new_empty(*states.shape[:-1], len(chunk))
    flat, rows_of_states = products.flatten(0, -2), states.flatten(0, -2)
    for rows in spans(len(chunk), 4 * chunk.shape[1]):
        flat[:, rows] = rows_of_states @ chunk[rows].float().T
    return products


@torch.no_grad()
def sequence_losses(stream: LayerStream, ids: Tensor, without: range = range(0)) -> Tensor:
    """Return the summed loss [N] in nats of every sequence of ids [N, T].

    `without` are layers that are left out. Batches go to the device together and through a layer
    one sequence at a time: how products are rounded depends on what else is in a batch, and a loss
    must not. Several processes take some of the sequences each, and get all losses.
    """
    share = stream.ranks.share(len(ids))
    return stream.ranks.gathered(_own_losses(stream, ids[share], without))


def _own_losses(stream: LayerStream, ids: Tensor, without: range) -> Tensor:
    """Return what `sequence_losses` does, of this process's sequences [N, T]."""
    state = {"hidden": stream.embed(ids)}  # [N, T, D]
    layers = [i for i in range(stream.arch.layers) if i not in without]
    for i in stream.walk(layers, "evaluating", "layers", state):
        before = max((n for n in layers if n < i), default=-1)
        stream.skip(range(before + 1, i), state["hidden"])
        through = partial(_one_by_one, stream, stream.layer(i), i)
        stream.each(stream.batches(ids), through, state["hidden"], into=state["hidden"])
    stream.skip(range(max(layers, default=-1) + 1, stream.arch.layers), state["hidden"])
    of_windows = {"losses": torch.zeros(len(ids), dtype=torch.float64)}
    for n in stream.walk(range(len(ids)), "predicting", "windows", of_windows):
        alone = slice(n, n + 1)
        of_windows["losses"][alone] = stream.losses(state["hidden"][alone], ids[alone])
    return of_windows["losses"]


def _one_by_one(stream: LayerStream, layer: nn.Module, i: int, before: Tensor) -> Tensor:
    """Return what leaves layer `i`, which these sequences [B, T, D] enter."""
    return torch.cat([stream.forward(layer, i, alone) for alone in torch.split(before, 1)])
