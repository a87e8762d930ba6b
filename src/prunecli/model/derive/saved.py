"""By what names a class saves its tensors."""

from collections.abc import Mapping
from pathlib import Path

from prunecli.model.derive import mixtures
from prunecli.model.derive.draft import Draft
from prunecli.model.derive.forward import equal, random_model


def save(made: Draft, folder: Path) -> None:
    """Write a tiny random model, and learn by what names a class saves its tensors.

    Raises InputError if there is none, or its tensors are saved in another form.
    """
    model = random_model(made.config)
    kept = mixtures.stored(model, folder)
    own = model.state_dict()
    if made.experts is not None and not made.experts.stacked:
        own = mixtures.unstacked(made, own)
    found: dict[str, str] = {}
    for stored, tensor in kept.items():
        same = [stored] if stored in own else [n for n, t in own.items() if equal(t, tensor)]
        if len(same) != 1:
            raise made.refused(f"it is saved with a '{stored}', which its class has not")
        found[stored] = same[0]
    made.fields["stored_names"] = _renaming(found, made.fields["layer"].removesuffix("{i}."))
    family = made.family()
    for stored, name in found.items():
        if family.own_name(stored) != name:
            raise made.refused(
                f"no replacing of parts makes '{name}' of '{stored}', as it is saved"
            )


def _renaming(found: Mapping[str, str], layers: str) -> tuple[tuple[str, str], ...]:
    """Return parts of stored names, and what they are in a class; longer ones first.

    `found` is what each stored name is there; `layers` is what those of layers begin with there.
    """
    pairs: dict[str, str] = {}
    for stored, own in found.items():
        if stored == own:
            continue
        before, name = "", own
        if own.startswith(layers):
            number, _, name = own.removeprefix(layers).partition(".")
            outside, _, stored = stored.partition(f"{number}.")
            pairs[outside] = layers
            before = "."
        parts, ours = stored.split("."), name.split(".")
        same = 0
        while same < min(len(parts), len(ours)) and parts[-1 - same] == ours[-1 - same]:
            same += 1
        if same < len(parts):
            # as short as can be without being a part of other names, which stay
            for end in range(same, -1, -1):
                old, new = (
                    f"{before}{'.'.join(some[: len(some) - end])}{'.' if end else ''}"
                    for some in (parts, ours)
                )
                if all(new in f".{n}" for s, n in found.items() if old in f".{s}"):
                    break
            pairs[old] = new
    pairs = {old: new for old, new in pairs.items() if old != new}
    return tuple(sorted(pairs.items(), key=lambda pair: -len(pair[0])))
