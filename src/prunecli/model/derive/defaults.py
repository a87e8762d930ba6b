"""What config.json of a kind means where it lacks keys, and what a tiny one of the tests has."""

from collections.abc import Iterable, Mapping
from typing import Any

from prunecli.errors import InputError
from prunecli.model import configs
from prunecli.model.derive.draft import (
    EXPERTS,
    LAYERS,
    POSITIONS,
    SIZES,
    USUAL_LISTS,
    WINDOW,
    Draft,
    Rule,
)
from prunecli.model.families._base import CONFIG_KEYS

EPSILON = "rms_norm_eps"
LONGER, PERIODS = 24, range(2, 9)  # layers to see a rule of lists in, and its periods
# keys of config.json whose defaults belong to a record, where the class has them
DEFAULTS = (
    "hidden_act", "hidden_activation", "initializer_range", "init_std", POSITIONS, EPSILON,
    "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "num_key_value_heads",
    "head_dim", "sliding_window", "final_logit_softcapping", "logits_scaling", "logit_scale",
)  # fmt: skip


def default(kind: str) -> dict[str, Any]:
    """Return the config.json of a kind without any keys; empty where there is none."""
    return _filled({"model_type": kind})


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with the keys that it lacks; empty where its class rejects it."""
    try:
        made: dict[str, Any] = configs.transformers_config(config).to_dict()
    except InputError:
        return {}
    return made


def defaults(made: Draft, own: Iterable[str]) -> dict[str, Any]:
    """Return what keys mean where config.json lacks them, but for what a record assumes anyway.

    `own` are the keys of sizes of a family's own; those that follow other sizes have no default.
    """
    config, keys = default(made.kind), made.keys
    epsilon = made.fields["keys"].get(EPSILON)
    sizes = (keys[axis] for axis in ("ffn", *EXPERTS)) if made.experts is not None else ()
    found = {key: config[key] for key in (*DEFAULTS, *sizes) if key in config}
    if epsilon in config:
        found[epsilon] = config[epsilon]
    heads, hidden = (config.get(keys[axis]) for axis in ("heads", "hidden"))
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return {}
    assumed = {"num_key_value_heads": (None, heads), "head_dim": (None, hidden // heads)}
    found = {key: value for key, value in found.items() if value not in assumed.get(key, ())}
    elsewhere = _filled({key: value for key, value in made.config.items() if key not in own})
    same = {key: config[key] for key in own if config.get(key) is not None}
    return found | {key: value for key, value in same.items() if elsewhere.get(key) == value}


def lists(made: Draft) -> dict[str, Rule | None]:
    """Return the config keys with an entry for each layer, and the rules where they are absent."""
    lists = {
        key: value
        for key, value in made.config.items()
        if isinstance(value, list) and len(value) == LAYERS
    }
    found: dict[str, Rule | None] = dict(USUAL_LISTS)
    for key in lists:
        longer = {name: value for name, value in made.config.items() if name not in lists}
        longer[made.keys["layers"]] = LONGER
        filled = configs.transformers_config(longer).to_dict().get(key)
        if filled is None or len(filled) != LONGER:
            found[key] = None
            continue
        rules = [Rule.always(filled[0])]
        if key == "layer_types":
            rules += map(Rule.windows, PERIODS)
        rules += [Rule.every(n, filled[0], filled[n - 1]) for n in PERIODS]
        rules += [Rule.cycle(filled[:n]) for n in PERIODS]
        rules.append(Rule.led(filled.count(filled[0]), filled[0], filled[-1]))
        fits = [r for r in rules if [r(longer, i) for i in range(LONGER)] == filled]
        if not fits and key not in made.lists:
            raise made.refused(f"what {key} is where config.json lacks it follows no known rule")
        found[key] = fits[0] if fits else None  # a list of kinds, then, must be there
    return found


def to_test(made: Draft, own: Iterable[str]) -> dict[str, Any]:
    """Return what makes a tiny model of the tests one that shows what is special about it.

    `own` are the keys of sizes of a family's own.
    """
    config: dict[str, Any] = dict.fromkeys(made.fields["biases"], True)
    if "kv_heads" not in made.keys:
        config["num_key_value_heads"] = SIZES["heads"]
    if made.config.get("sliding_window") is not None:
        config["sliding_window"] = WINDOW
    small = {**SIZES, **EXPERTS}
    sizes = {key: small[axis] for axis, key in made.keys.items() if axis in small}
    sizes |= {key: made.config[key] for key in made.wide}
    usual = {*CONFIG_KEYS.values(), POSITIONS}
    sizes = {key: size for key, size in sizes.items() if key not in usual}
    usually = default(made.kind)
    sizes |= {key: made.config[key] for key in own if usually.get(key) != made.config[key]}
    return {**config, **sizes, **{key: made.config[key] for key in made.lists}}
