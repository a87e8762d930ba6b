"""The config.json of a tiny model of a kind, with those keys alone that its class reads."""

import re
from collections.abc import Collection, Mapping
from inspect import signature
from math import prod
from typing import Any, NamedTuple

from prunecli.errors import InputError
from prunecli.model import configs
from prunecli.model.derive import mixtures
from prunecli.model.derive.draft import (
    EXPERTS,
    LAYERS,
    OTHERS,
    SIZES,
    WINDOW,
    Indescribable,
    usual_key,
)
from prunecli.model.families._base import CONFIG_KEYS

OPTIONAL = ("ffn", "kv_heads", "head_dim")  # axes whose usual key a class may not read
FFN = re.compile(r"intermediate|ffn|mlp")  # in keys of how many channels an FFN has
FEW = 4  # of what a class counts by a key of its own
LARGEST = 1 << 27  # weights of a tiny model
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


class Shrunk(NamedTuple):
    """The config.json of a tiny model, what a draft knows of its keys, and a tensor of experts."""

    config: dict[str, Any]
    keys: dict[str, str]
    wide: tuple[str, ...]
    stacked: str | None


def shrunk(kind: str, full: Any) -> Shrunk:
    """Return a tiny model of a kind; raise InputError where its config does not tell its sizes."""
    renamed = getattr(type(full), "attribute_map", {})
    usual = {axis: usual_key(axis) for axis in (*CONFIG_KEYS, "positions")}
    keys = {axis: renamed.get(key, key) for axis, key in usual.items()}
    known = full.to_dict()
    if keys["layers"] not in known:  # some classes count them by a list
        known[keys["layers"]] = getattr(full, keys["layers"], None)
    layers, hidden = (known.get(keys[axis]) for axis in ("layers", "hidden"))
    for axis in ("layers", "hidden", "heads", "vocab"):
        if not isinstance(known.get(keys[axis]), int):
            raise Indescribable(kind, f"its config has no {usual[axis]}")
    tiny: dict[str, Any] = {}
    wide = []
    for key, value in configs.passed_on({**known, "model_type": kind}).items():
        if isinstance(value, list) and len(value) == layers:
            tiny[key] = _some(value)
        elif type(value) is int and value == hidden and key not in keys.values():
            tiny[key] = SIZES["hidden"]  # as wide as the residual stream, whatever it is
            wide.append(key)
        else:
            tiny[key] = value
    rope = tiny.get("rope_parameters")
    if isinstance(rope, dict) and any(isinstance(value, list) for value in rope.values()):
        tiny["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    tiny |= {keys[axis]: size for axis, size in SIZES.items()}
    tiny |= {keys["layers"]: LAYERS, "tie_word_embeddings": False}
    tiny |= {key: 0.0 for key in tiny if key.endswith(("dropout", "pdrop"))}
    if tiny.get("sliding_window") is not None:
        tiny["sliding_window"] = WINDOW
    tiny = _accepted(kind, tiny, {*keys.values(), *wide})
    for key in TOKENS:
        tiny[key] = None
        if not builds(tiny):
            tiny[key] = 0  # a class that takes a number alone
    for axis in EXPERTS:
        key = renamed.get(usual_key(axis), usual_key(axis))
        if isinstance(tiny.get(key), int):
            keys[axis] = key
    stacked = mixtures.shrunk(kind, tiny, keys)
    if stacked is None:
        keys = {axis: key for axis, key in keys.items() if axis not in EXPERTS}
    count = sum(map(prod, configs.shapes(tiny).values()))
    if count > LARGEST:
        raise Indescribable(kind, f"a tiny model of it has {count} weights, for sizes of its own")
    # numbers of one hide what they scale
    for n, key in enumerate([key for key, value in tiny.items() if value == 1.0]):
        if isinstance(tiny[key], float) and builds({**tiny, key: 0.5 ** (n + 1)}):
            tiny[key] = 0.5 ** (n + 1)
    return Shrunk(tiny, _read_keys(tiny, keys), tuple(wide), stacked)


def _accepted(kind: str, tiny: dict[str, Any], usual: Collection[str]) -> dict[str, Any]:
    """Return a tiny config that its class takes, which can bind sizes of its own to the usual ones.

    What it computes where it is told a word, or nothing, it computes again, and one of the others
    is small, too. As it is, where that does not help.
    """
    from transformers import CONFIG_MAPPING

    if builds(tiny):
        return tiny
    own = [key for key, value in tiny.items() if type(value) is int and key not in usual]
    told = signature(CONFIG_MAPPING[kind]).parameters
    computed = {
        key: told[key].default
        for key in own
        if key in told and isinstance(told[key].default, str | None)
    }
    tries = ({**tiny, **computed, **few} for few in ({}, *({key: FEW} for key in own)))
    return next(filter(builds, tries), tiny)


def _read_keys(tiny: dict[str, Any], keys: dict[str, str]) -> dict[str, str]:
    """Return those keys that the class reads; others are taken out of `tiny`."""
    base = configs.shapes(tiny)

    def changes(key: str, size: int) -> bool:
        try:
            other = configs.shapes({**tiny, key: size})
        except configs.Endless:
            raise
        except InputError:
            return False
        return other != base and other.keys() == base.keys()

    unread = [axis for axis in OPTIONAL if not changes(keys[axis], OTHERS[axis])]
    read = {axis: key for axis, key in keys.items() if axis not in unread}
    if "ffn" not in read:
        sizes = [k for k, v in tiny.items() if type(v) is int and k not in keys.values()]
        named = [key for key in sizes if changes(key, OTHERS["ffn"])]
        # beside sizes of mixers
        named = [key for key in named if len(named) == 1 or FFN.search(key)]
        if len(named) == 1:
            read["ffn"] = named[0]
            tiny[named[0]] = SIZES["ffn"]
    for axis in unread:
        del tiny[keys[axis]]
    return read


def builds(config: Mapping[str, Any]) -> bool:
    """Return whether transformers builds a model of a config.json."""
    try:
        configs.shapes(config)
    except configs.Endless:
        raise
    except InputError:
        return False
    return True


def _some(entries: list[Any]) -> list[Any]:
    """Return the first entries, and in the place of the last ones the kinds that these lack."""
    some, kinds = (entries * LAYERS)[:LAYERS], []
    for entry in entries[LAYERS:]:
        if entry not in some and entry not in kinds:
            kinds.append(entry)
    return (some[: LAYERS - len(kinds)] + kinds)[:LAYERS]
