"""Transformers' own models without memory for their weights, and what follows the output head.

Parameters are on the meta device; buffers, which are computed from the config and not stored, are
real.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from prunecli.errors import InputError
from prunecli.files import strict
from prunecli.model import companions, configs, experts
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.families._base import Family


class LogitSoftcap(NamedTuple):
    """What a family does to the output head's products: divide, then cap by tanh.

        logits = cap * tanh(z / scaling / cap)        no cap: z / scaling

    (Gemma 2: arXiv 2408.00118, section 2; Granite's `logits_scaling`.)
    """

    scaling: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, arch: Arch) -> "LogitSoftcap":
        """Return that of an architecture."""
        cap, times = arch.get("final_logit_softcapping"), arch.family.logits_times
        divided = arch.get("logits_scaling") if times is None else 1 / arch.get(times)
        return cls(float(divided or 1.0), None if cap is None else float(cap))

    def __call__(self, products: Tensor) -> Tensor:
        """Return the logits of products `z`; both of any shape."""
        if self.scaling != 1:
            products = products / self.scaling
        return products if self.cap is None else self.cap * torch.tanh(products / self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return d logits / dz from the logits."""
        of_cap = 1.0 if self.cap is None else 1 - (logits / self.cap) ** 2
        return of_cap / self.scaling


class Parts(NamedTuple):
    """The parts of transformers' model: what turns ids into hidden states, and modules in it."""

    body: Any
    layers: Any
    embedding: Any
    final_norm: Any
    head: Any

    @classmethod
    def of(cls, model: Any, family: Family) -> "Parts":
        """Return those of a causal language model of a family.

        Raises InputError where the installed transformers calls them otherwise.
        """
        names = (
            family.layer.removesuffix(".{i}."), family.embedding, family.final_norm, family.head
        )  # fmt: skip
        known = dict(model.named_modules(remove_duplicate=False))
        for name in names:
            if name not in known:
                from transformers import __version__

                raise InputError(
                    f"transformers {__version__} has no '{name}' in a model of '{family.name}'",
                    "install a newer version of transformers",
                )
        return cls(model.base_model, *map(known.get, names))


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a checkpoint of a model holds: parameters, tied ones once, and some buffers."""
    yield from model.named_parameters()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in parameters:
            yield name, tensor


def in_float32(model: Any) -> Callable[[str], bool]:
    """Return what tells by its name whether a class holds a tensor in float32 at least.

    Routers are so held: a rounded score sends a token elsewhere.
    """
    parts = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    pattern = re.compile(rf"(^|\.)({'|'.join(map(re.escape, parts))})($|\.)")
    return lambda name: bool(parts) and pattern.search(name) is not None


def with_ones(states: Tensor) -> Tensor:
    """Return states [..., D + 1], a one behind each: for heads whose bias is their last column."""
    return torch.cat([states, states.new_ones(*states.shape[:-1], 1)], -1)


class InDouble(TorchFunctionMode):
    """Computes in float64 where transformers' classes ask for float32: norms, softmax, rotation."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function with the wider type in place of the narrower one."""
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args, kwargs = tree_map(
            lambda one: torch.float64 if one is torch.float32 else one, (args, kwargs or {})
        )
        return func(*args, **kwargs)


# what a generation_config.json may say: where texts begin and end, and how tokens are chosen
GENERATION = (
    "bos_token_id", "eos_token_id", "pad_token_id", "max_length", "max_new_tokens", "min_length",
    "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p",
    "epsilon_cutoff", "eta_cutoff", "num_beams", "early_stopping", "length_penalty",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
    "exponential_decay_length_penalty", "remove_invalid_values", "renormalize_logits",
)  # fmt: skip


def meta_model(arch: Arch, device: torch.device) -> Any:
    """Return transformers' model of an architecture in evaluation mode, its parameters on meta.

    It has the attention implementation that transformers chooses, and experts as files have them;
    buffers are on `device`. No id is
    padding: rows have none, and the id that pads elsewhere may end every document here, so its
    embedding is trained as any other.
    Raises InputError for a config.json that transformers refuses.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = configs.transformers_config(arch.config)
    with configs.refusals(configs.CANNOT_BUILD), init_empty_weights(include_buffers=False):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # the class of Llama 4 has that of its wrapper
    model.__dict__["base_model_prefix"] = arch.family.body
    for layer in Parts.of(model, arch.family).layers:
        experts.unstack(layer, arch.family.experts)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.eval()


def loaded(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Return transformers' model with the weights of a checkpoint, in evaluation mode.

    It has transformers' own experts, which are fast.
    Its own loader would follow whatever config.json and an adapter beside it say. Raises InputError
    for a config.json or generation_config.json that transformers refuses.
    """
    from transformers import GenerationConfig

    model = meta_model(checkpoint.arch, device)
    parts = Parts.of(model, checkpoint.arch.family)
    if checkpoint.arch.tied:
        parts.head.weight = parts.embedding.weight
    wide, exact = torch.promote_types(dtype, torch.float32), in_float32(model)
    for name, old in list(stored_tensors(model)):
        module, _, leaf = name.rpartition(".")
        kind = wide if exact(name) else dtype
        weight = checkpoint.tensor(name).to(device, kind, copy=True)
        made = nn.Parameter(weight) if isinstance(old, nn.Parameter) else weight
        setattr(model.get_submodule(module), leaf, made)
    if checkpoint.arch.tied:
        parts.head.weight = parts.embedding.weight
    for layer in parts.layers:
        experts.restack(layer, checkpoint.arch.family.experts)
    model.config.dtype = dtype
    for path in companions.find(checkpoint.folder, ("generation_config.json",)):
        record = strict.read_object(path)
        with configs.refusals("transformers rejects generation_config.json"):
            model.generation_config = GenerationConfig(
                **{key: record[key] for key in GENERATION if key in record}
            )
    return model
