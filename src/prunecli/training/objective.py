"""The model in training: built by stock transformers, weights from the streamed checkpoint.

Weights are float32 whatever the checkpoint's storage type. With several processes they are
sharded by FSDP2, layer by layer; each process reads its own part of the memory-mapped files.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from prunecli.files.tensorfile import Spec, torch_dtype
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.stock import LogitSoftcap, meta_model
from prunecli.training.distributed import Ranks
from prunecli.training.fixed_masks import local
from prunecli.training.losses import Distillation, next_token_loss


class Objective(nn.Module):
    """A model, perhaps with a teacher, as a function from token rows to a loss.

    `caps` are those of the model's head and of the teacher's.

    The loss is computed in `forward` so that FSDP has gathered the output heads by then.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        dtype: torch.dtype,
        weight: float,
        temperature: float,
        caps: tuple[LogitSoftcap, LogitSoftcap],
    ) -> None:
        super().__init__()
        self.cap, self.teacher_cap = caps
        self.model, self.teacher, self.dtype = model, teacher, dtype
        self.weight, self.temperature = weight, temperature

    @property
    def trained(self) -> nn.Module:
        """Everything that is trained, and that a state must hold."""
        return self.model

    @property
    def beside(self) -> list[nn.Module]:
        """What is trained beside the model: small, and float32 whatever the compute type."""
        return []

    @property
    def clipped(self) -> list[nn.Parameter]:
        """All whose gradients are clipped by one norm."""
        return list(self.model.parameters())

    def groups(self) -> list[dict[str, Any]]:
        """Return parameters for the optimiser; `share` is a group's learning rate beside the peak.

        A group may have settings of its own.
        """
        return [{"params": [p for p in self.model.parameters() if p.requires_grad], "share": 1.0}]

    def begin(self, step: int, steps: int) -> None:
        """Take note that a step begins: all its forwards come after this."""

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `next_token_loss` does for rows of ids [B, T]: sums over B (T - 1) tokens."""
        hidden = self._hidden(self.model, ids)
        distillation = None
        if self.teacher is not None:
            with torch.no_grad():
                theirs = self._hidden(self.teacher, ids)
            head = _head(self.teacher)
            distillation = Distillation(
                theirs, head, self.weight, self.temperature, self.teacher_cap
            )
        labels = ids[:, 1:].flatten()
        return next_token_loss(hidden, _head(self.model), labels, distillation, self.cap)

    def _hidden(self, model: nn.Module, ids: Tensor) -> Tensor:
        made = model.model(input_ids=ids, use_cache=False)  # type: ignore[operator]
        # autocast leaves the residual stream in float32
        states: Tensor = made.last_hidden_state.to(self.dtype)
        return states[:, :-1].flatten(0, 1)


def _head(model: nn.Module) -> Tensor:
    weight: Tensor = model.lm_head.weight  # type: ignore[union-attr,assignment]
    return weight


def build(
    checkpoint: Checkpoint,
    teacher: Checkpoint | None,
    ranks: Ranks,
    *,
    dtype: torch.dtype,
    kd_weight: float = 0.0,
    temperature: float = 1.0,
    recompute: bool = False,
    compile: bool = False,
) -> Objective:
    """Return the objective of `train` on this process's device, with the checkpoint's weights."""
    caps = LogitSoftcap.of(checkpoint.arch), LogitSoftcap.of((teacher or checkpoint).arch)

    def make(model: nn.Module, theirs: nn.Module | None) -> Objective:
        return Objective(model, theirs, dtype, kd_weight, temperature, caps)

    return assemble(checkpoint, teacher, ranks, make, recompute=recompute, compile=compile)


def assemble(
    checkpoint: Checkpoint,
    teacher: Checkpoint | None,
    ranks: Ranks,
    make: Callable[[nn.Module, nn.Module | None], Objective],
    *,
    recompute: bool = False,
    compile: bool = False,
    frozen: bool = False,
) -> Objective:
    """Return the objective that `make` makes of the model and its teacher, weights filled in."""
    made = meta_model(checkpoint.arch, ranks.device).requires_grad_(not frozen)
    if recompute:
        _recompute(made)
    theirs = (
        None if teacher is None else meta_model(teacher.arch, ranks.device).requires_grad_(False)
    )
    objective = make(made, theirs)
    dtype = objective.dtype
    for part in objective.beside:
        part.to(ranks.device)
        if ranks.mesh is not None:
            _shard(part, ranks, torch.float32)
    pairs = [(made, checkpoint)]
    if theirs is not None and teacher is not None:
        pairs.append((theirs, teacher))
    for model, source in pairs:
        # layer by layer, so that a process never holds more than its shards and one layer
        for layer in model.model.layers:
            materialise(layer, ranks.device)
            if compile:
                layer.compile()
            if ranks.mesh is not None:
                _shard(layer, ranks, dtype)
        # everything outside the layers, and what is tied
        for part in (model.model.embed_tokens, model.model.norm, model.lm_head):
            materialise(part, ranks.device)
        if source.arch.tied:
            model.lm_head.weight = model.model.embed_tokens.weight
    if ranks.mesh is not None:
        _shard(objective, ranks, dtype)
    for model, source in pairs:
        fill(model, source, ranks)
    made.train()
    if theirs is not None:
        theirs.eval()
    return objective


def _recompute(model: Any) -> None:
    """Have the layers compute their activations again in the backward pass."""
    # the second name is that of older transformers
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def materialise(module: Any, device: torch.device) -> None:
    """Give memory to the weights of a module; its buffers have it."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            empty = torch.empty_like(parameter, device=device)
            setattr(part, name, nn.Parameter(empty, parameter.requires_grad))


def _shard(module: nn.Module, ranks: Ranks, dtype: torch.dtype) -> None:
    settings: dict[str, Any] = {"mesh": ranks.mesh}
    if dtype != torch.float32:
        # inputs are ids or hidden states that have the type already
        settings["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    fully_shard(module, **settings)


@torch.no_grad()
def fill(model: nn.Module, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Copy the checkpoint's weights in, one tensor at a time."""
    for name, parameter in model.named_parameters():
        stored = checkpoint.tensor(name)
        if isinstance(parameter, DTensor):
            # every process reads the files, so nothing has to be sent
            part = distribute_tensor(
                stored.to(ranks.device, torch.float32),
                parameter.device_mesh,
                parameter.placements,
                src_data_rank=None,
            )
            parameter.copy_(part)
        else:
            parameter.copy_(stored)


@torch.no_grad()
def round_to(specs: Mapping[str, Spec], model: nn.Module) -> None:
    """Round every weight to the type that it will be stored in; it stays float32."""
    for name, parameter in model.named_parameters():
        own = local(parameter)
        own.copy_(own.to(torch_dtype(specs[name].dtype)))


@torch.no_grad()
def whole_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight in full, one at a time; all processes must take part."""
    for name, parameter in model.named_parameters():
        yield name, whole(parameter.detach())


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor in full, gathered from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
