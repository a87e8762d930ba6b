"""Experts of a class: a tiny number of them, and what files call the linears of one."""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.files import scratch
from prunecli.files.tensorfile import Inside
from prunecli.model import configs
from prunecli.model.derive.draft import EXPERTS, SIZES, Draft, Indescribable
from prunecli.model.derive.forward import equal, random_model
from prunecli.model.experts import stacks
from prunecli.model.families._base import Experts

DENSE = 112  # FFN channels of layers without experts, where these have a size of their own
GROUPS = ("n_group", "topk_group")
PER_TOKEN = re.compile(r"top_?k|per_tok")  # in keys of how many experts a token takes
LAYER = re.compile(r".*?\.\d+\.")  # what the names of a layer's modules begin with
EXPERT = re.compile(r"\.\d+\.(\w+)\.weight")  # what follows the experts in the names of files


def shrunk(kind: str, tiny: dict[str, Any], keys: dict[str, str]) -> str | None:
    """Give a tiny config few small experts, and return how a layer's tensor of all is called.

    `keys` are told which tell how many there are, how large they are, and how many a token takes.
    Raises InputError where no key tells; returns None where there are no experts.
    """
    before = configs.shapes(tiny)
    stacked = [
        name
        for name, shape in before.items()
        if len(shape) == 3 and name.endswith(".down_proj") and _gated(before, name) is not None
    ]
    if not stacked:
        return None
    groups = {key: 1 for key in GROUPS if isinstance(tiny.get(key), int)}
    tiny |= groups
    found: dict[int, str] = {}
    for key, value in tiny.items():
        other = {**tiny, key: 2 * value} if type(value) is int and value > 0 else {}
        if not other or key in (keys["hidden"], keys["layers"]):
            continue
        try:
            after = configs.shapes(other).get(stacked[0], ())
        except configs.Endless:
            raise
        except InputError:
            continue
        for d, (size, changed) in enumerate(zip(before[stacked[0]], after, strict=False)):
            if size != changed:
                found.setdefault(d, key)
    per_token = keys.get("experts_per_token", "num_experts_per_tok")
    taking = [key for key in tiny if PER_TOKEN.search(key) and key not in GROUPS]
    if per_token not in tiny and len(taking) == 1:
        (per_token,) = taking
    if 0 not in found or len(found) != 2 or type(tiny.get(per_token)) is not int:
        raise Indescribable(kind, "which keys of its config tell its experts is not clear")
    wide = found[max(found)]
    if wide != keys["ffn"]:
        tiny[keys["ffn"]] = DENSE
    keys |= {"experts": found[0], "ffn": wide, "experts_per_token": per_token}
    tiny |= {keys["ffn"]: SIZES["ffn"], **{keys[axis]: size for axis, size in EXPERTS.items()}}
    return stacked[0]


def _gated(shapes: Mapping[str, Any], down: str) -> bool | None:
    """Return whether experts have a gate, by the other tensor of all of them; None without it."""
    module = down.rpartition(".")[0]
    if f"{module}.gate_up_proj" in shapes:
        return True
    return False if f"{module}.up_proj" in shapes else None


def named(made: Draft, down: str) -> Experts:
    """Return the experts of a layer, with the names that files have for them.

    `down` is the tensor of all experts of a layer that write. Raises InputError where files have
    them in a way that no record describes.
    """
    model = random_model(made.config)
    own = model.state_dict()
    stack = down.rpartition(".")[0]
    module = LAYER.sub("", stack)
    gated = _gated({name: tensor.shape for name, tensor in own.items()}, down)
    groups = all(key in made.config for key in GROUPS)
    whole = model.get_submodule(stack)
    found = Experts(
        module,
        gate="gate_proj" if gated else None,
        biased=f"{down}_bias" in own,
        # a class with a formula of its own takes gate and up by turns
        interleaved=not hasattr(whole, "act_fn"),
        transposed=own[down].shape[1] == SIZES["ffn"],
        groups=(GROUPS[0], GROUPS[1]) if groups else None,
    )
    kept = stored(model)
    if down in kept:
        together = tuple(f"{module}.{stack}" for stack in stacks(found))
        return replace(found, stacks=together, stacked=True)
    linears = {}
    for linear, tensor in _apart(found, own, stack):
        names = [
            match[1]
            for name, one in kept.items()
            if equal(one, tensor) and (match := EXPERT.search(name))
        ]
        if len(names) != 1:
            raise made.refused(f"its files have no tensor of one expert's part of '{down}'")
        linears[linear] = names[0]
    gate = linears[found.gate] if found.gate else None
    return replace(found, gate=gate, up=linears[found.up], down=linears[found.down])


def _apart(names: Experts, own: Mapping[str, Any], module: str) -> "Iterator[tuple[str, Any]]":
    """Yield the linears of the first expert, out of the tensors of all."""
    for stack, parts in names.stacks_of(stacks(names)):
        if stack.endswith("_bias"):
            continue
        block = own[f"{module}.{stack}"][0]
        for part, tensor in _pieces(names, block, parts):
            yield part.removesuffix(".weight"), tensor


def _pieces(names: Experts, block: Any, parts: Sequence[str]) -> "Iterator[tuple[str, Any]]":
    """Yield the tensors of one expert, by name, that a part of a stack is made of."""
    for n, part in enumerate(parts):
        place = Inside(names.module, 1, 0, len(parts), n, names.interleaved, names.transposed)
        yield part, place.view(block)


def unstacked(made: Draft, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors by the names that a record has; those of one expert are views of stacks."""
    names = made.experts
    if names is None:
        return dict(own)
    found = {}
    ends = {f".{names.module}.{stack}": parts for stack, parts in names.stacks_of(stacks(names))}
    for name, tensor in own.items():
        end = next((end for end in ends if name.endswith(end)), None)
        if end is None:
            found[name] = tensor
            continue
        before = name.removesuffix(end)
        for e, block in enumerate(tensor):
            for part, piece in _pieces(names, block, ends[end]):
                found[f"{before}.{names.module}.{e}.{part}"] = piece
    return found


def stored(model: Any, folder: Path | None = None) -> dict[str, Any]:
    """Save a model, and return its tensors by the names of its file.

    Raises InputError if it cannot be saved.
    """
    from safetensors.torch import load_file

    if folder is None:
        with scratch.told():
            place = tempfile.TemporaryDirectory(prefix="prunecli-", dir=scratch.folder())
        with place as made:
            return stored(model, Path(made))
    with configs.refusals("transformers cannot save its model"):
        model.save_pretrained(folder)
    kept: dict[str, Any] = load_file(folder / "model.safetensors")
    return kept
