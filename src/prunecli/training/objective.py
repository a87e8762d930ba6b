"""The model in training: built by transformers, with weights streamed from the checkpoint.

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
from prunecli.model.stock import LogitSoftcap, Parts, meta_model, stored_tensors, with_ones
from prunecli.training.balance import RouterBalance
from prunecli.training.distributed import Ranks
from prunecli.training.fixed_masks import local
from prunecli.training.losses import Distillation, next_token_loss


class Objective(nn.Module):
    """A model, perhaps with a teacher, as a function from token rows to a loss.

    `weight` and `temperature` are those of distillation, `caps` the softcaps of the model's logits
    and of the teacher's; `balance` is the loss of its routers, if it has any. The loss is computed
    in `forward`, where FSDP has gathered the heads.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        dtype: torch.dtype,
        weight: float,
        temperature: float,
        caps: tuple[LogitSoftcap, LogitSoftcap],
        balance: RouterBalance | None = None,
    ) -> None:
        super().__init__()
        self.balance = balance
        self.cap, self.teacher_cap = caps
        self.model, self.teacher, self.dtype = model, teacher, dtype
        self.weight, self.temperature = weight, temperature

    @property
    def trainable(self) -> nn.Module:
        """All that is trained, which is what a state holds."""
        return self.model

    @property
    def auxiliary_modules(self) -> list[nn.Module]:
        """Small modules that are trained with the model, float32 whatever the compute type."""
        return []

    @property
    def clipped(self) -> list[nn.Parameter]:
        """The parameters whose gradients are clipped by their global norm."""
        return list(self.model.parameters())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for the optimizer.

        `share` is a factor on the learning rate; a group may have other settings of its own.
        """
        return [{"params": [p for p in self.model.parameters() if p.requires_grad], "share": 1.0}]

    def on_step_begin(self, step: int, steps: int) -> None:
        """Prepare for the forwards of a step."""

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, CE and KL of rows of ids [B, T], each summed over B (T - 1) tokens.

        The routers' loss is a mean over tokens, here times as many as are predicted.
        """
        balance = self.balance if torch.is_grad_enabled() else None
        if balance is not None:
            balance.begin()
        hidden = self._hidden(self.model, ids)
        routers = 0.0 if balance is None else balance.take()
        distillation = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher_hidden = self._hidden(self.teacher, ids)
            distillation = Distillation(
                teacher_hidden, _head(self.teacher), self.weight, self.temperature,
                self.teacher_cap,
            )  # fmt: skip
        labels = ids[:, 1:].flatten()
        total, ce, kl = next_token_loss(hidden, _head(self.model), labels, distillation, self.cap)
        return total + routers * len(labels), ce, kl

    def _hidden(self, model: nn.Module, ids: Tensor) -> Tensor:
        output = model.base_model(input_ids=ids, use_cache=False)  # type: ignore[operator]
        # autocast leaves the residual stream in float32
        states: Tensor = output.last_hidden_state.to(self.dtype)  # [B, T, D]
        states = states[:, :-1].flatten(0, 1)
        return states if _output(model).bias is None else with_ones(states)


def _output(model: nn.Module) -> nn.Linear:
    """Return the output head."""
    head: nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
    return head


def _head(model: nn.Module) -> Tensor:
    """Return the matrix of the output head, a bias as its last column, which reads ones."""
    head = _output(model)
    return head.weight if head.bias is None else torch.cat([head.weight, head.bias[:, None]], 1)


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

    def objective(model: nn.Module, teacher_model: nn.Module | None) -> Objective:
        balance = RouterBalance(model, checkpoint.arch) if checkpoint.arch.experts else None
        return Objective(model, teacher_model, dtype, kd_weight, temperature, caps, balance)

    return assemble(checkpoint, teacher, ranks, objective, recompute=recompute, compile=compile)


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
    """Return `make(model, teacher)` with all weights loaded; `recompute` activations if asked."""
    student = meta_model(checkpoint.arch, ranks.device).requires_grad_(not frozen)
    if recompute:
        _recompute(student)
    teacher_model = None
    if teacher is not None:
        teacher_model = meta_model(teacher.arch, ranks.device).requires_grad_(False)
    objective = make(student, teacher_model)
    dtype = objective.dtype
    for part in objective.auxiliary_modules:
        part.to(ranks.device)
        if ranks.mesh is not None:
            _shard(part, ranks, torch.float32)
    pairs = [(student, checkpoint)]
    if teacher_model is not None and teacher is not None:
        pairs.append((teacher_model, teacher))
    for model, source in pairs:
        # layer by layer, so that a process never holds more than its shards and one layer
        parts = Parts.of(model, source.arch.family)
        for layer in parts.layers:
            allocate_weights(layer, ranks.device)
            if compile:
                layer.compile()
            if ranks.mesh is not None:
                _shard(layer, ranks, dtype)
        # everything outside the layers, and what is tied
        outside = (name for name, own in source.arch.tensors().items() if own.layer is None)
        for name in {one.rpartition(".")[0] for one in outside}:
            allocate_weights(model.get_submodule(name), ranks.device)
        if source.arch.tied:
            parts.head.weight = parts.embedding.weight
    if ranks.mesh is not None:
        _shard(objective, ranks, dtype)
    for model, source in pairs:
        load_weights(model, source, ranks)
    student.train()
    if teacher_model is not None:
        teacher_model.eval()
    return objective


def _recompute(model: Any) -> None:
    """Recompute the activations of the layers in the backward pass."""
    # the second name is that of older transformers
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def allocate_weights(module: Any, device: torch.device) -> None:
    """Allocate memory for the weights of a module, whose buffers are allocated already."""
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
def load_weights(model: nn.Module, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Copy the checkpoint's weights into the model, one tensor at a time."""
    for name, parameter in stored_tensors(model):
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
    """Round every weight to the type that it will be stored in; the parameters stay float32."""
    for name, parameter in stored_tensors(model):
        part = local(parameter)
        part.copy_(part.to(torch_dtype(specs[name].dtype)))


@torch.no_grad()
def full_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight in full, one at a time; all processes must take part."""
    for name, parameter in stored_tensors(model):
        yield name, full_tensor(parameter.detach())


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor in full, gathered from all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
