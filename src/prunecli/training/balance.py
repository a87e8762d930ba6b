"""The loss that keeps routers from sending all tokens to a few experts, as transformers has it.

    L = E sum_e f[e] P[e]

over all tokens of all layers: f[e] is the share of them that is sent to expert e, and P[e] the mean
probability that the router gives it (Fedus et al. 2021, arXiv 2101.03961, equations 4 to 6).
"""

from typing import Any

import torch
from torch import Tensor, nn

from prunecli.model.arch import Arch

COEFFICIENT = "router_aux_loss_coef"


class RouterBalance:
    """The loss of a model's routers, times the `router_aux_loss_coef` of its config.json.

    It listens to the routers while a batch goes through the model: `begin`, then `take`.
    """

    def __init__(self, model: nn.Module, arch: Arch) -> None:
        # some configs have the key, although transformers' class knows no such loss
        known = COEFFICIENT in arch.family.defaults
        self.weight = float(arch.get(COEFFICIENT) or 0.0) if known else 0.0
        self.experts, self.chosen = arch.experts, arch.experts_per_token
        self._logits: list[Tensor] | None = None
        for name in arch.routers if self.weight else ():
            model.get_submodule(name).register_forward_hook(self._listen)

    def _listen(self, router: nn.Module, inputs: Any, outputs: tuple[Tensor, ...]) -> None:
        # nobody listens while a backward pass computes activations again
        if self._logits is not None:
            self._logits.append(outputs[0])

    def begin(self) -> None:
        """Listen from now on."""
        self._logits = []

    def take(self) -> Tensor | float:
        """Return the weighted loss of what was heard since `begin`; 0 where there is no router."""
        logits, self._logits = self._logits or [], None
        if not logits:
            return 0.0
        probability_NE = torch.cat(logits).float().softmax(-1)
        sent_Nk = probability_NE.topk(self.chosen, -1).indices
        share_E = torch.bincount(sent_Nk.flatten(), minlength=self.experts) / len(probability_NE)
        return self.weight * self.experts * (share_E * probability_NE.mean(0)).sum()
