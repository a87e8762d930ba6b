"""Carry out a plan: index every dimension of every tensor by its axis, one tensor at a time."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prunecli.files.tensorfile import Spec, torch_dtype
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Reader
from prunecli.model.layout import Tensor, named
from prunecli.pruning.plan import Plan

if TYPE_CHECKING:
    import torch


def source_name(name: str, tensor: Tensor, plan: Plan, arch: Arch) -> str:
    """Return the parent's name of the pruned model's tensor `name`."""
    if tensor.layer is None:
        return name
    layer = plan.kept_layers(arch)[tensor.layer]
    expert = tensor.expert
    if expert is not None:
        expert = plan.kept_experts(arch, tensor.layer)[expert]
    return named(tensor.template, layer, expert)


def slice_tensor(
    parent: "torch.Tensor", tensor: Tensor, plan: Plan, arch: Arch, child: Arch, first: int = 0
) -> "torch.Tensor":
    """Return the pruned model's tensor out of the parent's; dimensions before `first` stay.

    Layers narrower than the pruned model (ragged plans) are filled up with zeros, which changes
    nothing:
    an FFN channel of zeros adds zero, and so does a head whose values are zero.
    """
    import torch

    layer = None if tensor.layer is None else plan.kept_layers(arch)[tensor.layer]  # the parent's
    for dim, axis in enumerate(tensor.axes[first:], first):
        pieces = []
        for part, place in zip(axis.split("+"), arch.axis_slices(axis, layer), strict=True):
            piece = parent.narrow(dim, place.start, place.stop - place.start)
            kept = _kept(part, tensor.layer, plan, arch)
            if kept is not None:
                piece = piece.index_select(dim, torch.tensor(kept, device=parent.device))
            missing = child.axis_size(part, tensor.layer) - piece.shape[dim]
            if missing:
                shape = [*piece.shape[:dim], missing, *piece.shape[dim + 1 :]]
                piece = torch.cat([piece, piece.new_zeros(shape)], dim)
            pieces.append(piece)
        parent = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
    return parent


def _kept(axis: str, layer: int | None, plan: Plan, arch: Arch) -> list[int] | None:
    """Return the kept rows of an axis, or None for all of them."""
    if axis == "hidden":
        return None if plan.hidden is None else list(plan.hidden)
    if axis == "ffn":
        return None if plan.ffn is None or layer is None else list(plan.ffn[layer])
    if axis == "experts":
        return None if plan.experts is None or layer is None else list(plan.experts[layer])
    source = None if layer is None else plan.kept_layers(arch)[layer]
    unit = arch.unit_rows(axis, source)
    if unit is None:
        return None
    kind, rows = unit
    if kind == "layers":
        kept = plan.kept_layers(arch)
    elif layer is None:
        return None
    else:
        kept = {"heads": plan.kept_heads, "kv_heads": plan.kept_kv_heads}[kind](arch, layer)
    if len(kept) * rows == arch.axis_size(axis, source):
        return None
    return [one * rows + j for one in kept for j in range(rows)]


class PrunedModel(Reader):
    """The pruned model, every tensor made when it is asked for; reads like a checkpoint.

    `means` holds what compensation needs; `biased` says whether there is any.
    """

    def __init__(
        self,
        checkpoint: Reader,
        plan: Plan,
        arch: Arch,
        means: "Mapping[str, torch.Tensor] | None" = None,
        biased: bool = False,
    ) -> None:
        self.checkpoint, self.plan, self.arch, self.means = checkpoint, plan, arch, means or {}
        self._tensors = arch.tensors()
        self._biases = tuple(f".{module}.bias" for module in arch.compensated) if biased else ()
        self.specs = {
            name: Spec(checkpoint.specs[dtype_source(name, checkpoint)].dtype, tensor.shape)
            for name, tensor in self._tensors.items()
        }

    def tensor(self, name: str) -> "torch.Tensor":
        """Return the pruned model's tensor `name`."""
        tensor, parent = self._tensors[name], self.checkpoint.arch
        source = source_name(name, tensor, self.plan, parent)
        if source not in self.checkpoint.specs or name.endswith(self._biases):
            bias = compensation(name, self.checkpoint, self.plan, self.arch, self.means)
            return bias.to(torch_dtype(self.specs[name].dtype))
        made = slice_tensor(self.checkpoint.tensor(source), tensor, self.plan, parent, self.arch)
        if tensor.layer is not None and tensor.template.endswith(f".{parent.family.scalar}"):
            return (made.double() * self._scalars(tensor.layer)).to(made.dtype)
        return _rescaled(name, made, parent, self.arch)

    def parts(self, name: str) -> "Iterator[torch.Tensor]":
        """Yield the pruned model's tensor `name` in parts; of tokens' rows all stay."""
        tensor, parent = self._tensors[name], self.checkpoint.arch
        if tensor.axes[:1] != ("vocab",):
            yield self.tensor(name)
            return
        for rows in self.checkpoint.parts(name):
            made = slice_tensor(rows, tensor, self.plan, parent, self.arch, first=1)
            yield _rescaled(name, made, parent, self.arch)

    def _scalars(self, i: int) -> float:
        """Return the product of the scalars of the layers that went behind the i-th kept one."""
        kept = (*self.plan.kept_layers(self.checkpoint.arch), self.checkpoint.arch.layers)
        return self.checkpoint.scalars(range(kept[i] + 1, kept[i + 1]))


def dtype_source(name: str, checkpoint: Reader) -> str:
    """Return the parent's tensor whose type and file a child's gets: new biases their weights'."""
    names = (name, name.removesuffix("bias") + "weight")
    embedding = f"{checkpoint.arch.family.embedding}.weight"
    return next((n for n in names if n in checkpoint.specs), embedding)


def _rescaled(name: str, values: "torch.Tensor", arch: Arch, child: Arch) -> "torch.Tensor":
    """Return embeddings as the pruned model must hold them, where its width is a factor of them.

    Where they are the output head too, the gains before it take the factor back.
    """
    factor = (arch.hidden / child.hidden) ** 0.5
    if not arch.family.scales_embedding or factor == 1:
        return values
    if name == f"{arch.family.embedding}.weight":
        return values.float().mul(factor).to(values.dtype)
    if name == f"{arch.family.final_norm}.weight" and arch.tied:
        offset = arch.family.norm_weight_offset
        return values.double().add(offset).div(factor).sub(offset).to(values.dtype)
    return values


def compensation(
    name: str,
    checkpoint: Reader,
    plan: Plan,
    child: Arch,
    means: "Mapping[str, torch.Tensor]",
) -> "torch.Tensor":
    """Return the pruned model's bias `name`, in fp64: compensated, or zeros where nothing went.

    `means` holds `model.layers.i.MODULE:in.mean` of the parent's layers, [I].
    """
    import torch

    arch, tensor = checkpoint.arch, child.tensors()[name]
    layer = tensor.layer
    assert layer is not None, "only layers have compensated biases"
    module = next((m for m in child.compensated if f".{m}." in name), None)
    if module is None:
        return torch.zeros(tensor.shape, dtype=torch.float64)
    source = f"{arch.prefix(plan.kept_layers(arch)[layer])}{module}"
    weight_OI = checkpoint.tensor(f"{source}.weight")
    removed = torch.ones(weight_OI.shape[1], dtype=torch.bool)
    removed[_kept_inputs(module, layer, plan, arch)] = False
    bias_O = weight_OI[:, removed].double() @ means[f"{source}:in.mean"].double()[removed]
    if f"{source}.bias" in checkpoint.specs:
        bias_O += checkpoint.tensor(f"{source}.bias").double()
    return bias_O


def _kept_inputs(module: str, layer: int, plan: Plan, arch: Arch) -> list[int]:
    if module == arch.module("down"):
        return list(plan.kept_ffn(arch, layer))
    size = arch.size("head_dim", plan.kept_layers(arch)[layer])
    return [head * size + j for head in plan.kept_heads(arch, layer) for j in range(size)]
