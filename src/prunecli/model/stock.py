"""Transformers' own models without memory for their weights, and what follows the output head.

Parameters are on the meta device; buffers, which are computed from the config and not stored, are
real.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunecli.model import configs
from prunecli.model.arch import Arch


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
        cap = arch.get("final_logit_softcapping")
        return cls(float(arch.get("logits_scaling") or 1.0), None if cap is None else float(cap))

    def __call__(self, products: Tensor) -> Tensor:
        """Return the logits of products `z`; both of any shape."""
        if self.scaling != 1:
            products = products / self.scaling
        return products if self.cap is None else self.cap * torch.tanh(products / self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return d logits / dz from the logits."""
        of_cap = 1.0 if self.cap is None else 1 - (logits / self.cap) ** 2
        return of_cap / self.scaling


def meta_model(arch: Arch, device: torch.device) -> Any:
    """Return transformers' model of an architecture in evaluation mode, its parameters on meta.

    It has the attention implementation that transformers chooses; buffers are on `device`. No id is
    padding: rows have none, and the id that pads elsewhere may end every document here, so its
    embedding is trained as any other.
    Raises InputError for a config.json that transformers refuses.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    config = configs.transformers_config(arch.config)
    with configs.refusals(configs.CANNOT_BUILD), init_empty_weights(include_buffers=False):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return model.eval()
