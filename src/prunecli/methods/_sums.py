"""What the weights that read an input sum to, in float64: a matrix is not cast whole."""

from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING

from prunecli.files.tensorfile import rows_of

if TYPE_CHECKING:
    import torch


def of_inputs(
    weight_OI: "torch.Tensor", term: "Callable[[torch.Tensor], torch.Tensor]"
) -> "torch.Tensor":
    """Return the sum over the outputs of `term` of every weight, [I] in float64."""
    import torch

    return reduce(torch.add, (term(rows.double()).sum(0) for rows in rows_of(weight_OI)))
