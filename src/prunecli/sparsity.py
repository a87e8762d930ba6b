"""Which zeros of a checkpoint are a mask: those of its sparse block matrices."""

from dataclasses import dataclass

from prunecli.errors import InputError
from prunecli.io.checkpoint import Checkpoint

# a dense matrix may hold a zero or two by chance
LEAST = 0.001


@dataclass(frozen=True)
class Held:
    """Which matrices are sparse, before the model is built: their names, and how many zeros."""

    names: tuple[str, ...]
    zeros: int
    weights: int


def sparse_tensors(checkpoint: Checkpoint) -> Held:
    """Return the block matrices of a checkpoint whose zeros are a mask.

    Raises InputError if their number is not what the checkpoint's sidecar tells.
    """
    templates = set(checkpoint.arch.linears())
    names, zeros, weights, nonzero = [], 0, 0, 0
    for name, tensor in checkpoint.arch.tensors().items():
        values = checkpoint.tensor(name)
        live = int(values.count_nonzero())
        nonzero += live
        gone = values.numel() - live
        if tensor.template in templates and gone > LEAST * values.numel():
            names.append(name)
            zeros, weights = zeros + gone, weights + values.numel()
    told = checkpoint.sidecar.results.get("nonzero") if checkpoint.sidecar else None
    if told is not None and told != nonzero:
        raise InputError(
            f"masks do not fit: '{checkpoint.folder.name}' has {nonzero} non-zero weights, "
            f"its sidecar tells {told}",
            "was it changed after it was made?",
        )
    return Held(tuple(names), zeros, weights)


def check_masks(masked: Checkpoint, checkpoint: Checkpoint, held: Held) -> None:
    """Raise InputError unless the zeros of `masked` are zeros of `checkpoint` too."""
    for name in held.names:
        spec = checkpoint.specs.get(name)
        if spec is None or spec.shape != masked.specs[name].shape:
            got = "missing" if spec is None else list(spec.shape)
            raise InputError(
                f"masks do not fit: '{name}' is {list(masked.specs[name].shape)} in "
                f"'{masked.folder.name}' and {got} in '{checkpoint.folder.name}'"
            )
        if bool(checkpoint.tensor(name)[masked.tensor(name) == 0].any()):
            raise InputError(
                f"masks do not fit: '{name}' has weights where '{masked.folder.name}' has zeros",
                "make a twin with `prunecli init --like ... --masks keep`",
            )
