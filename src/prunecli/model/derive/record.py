"""A family's record out of what its class shows."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prunecli.errors import InputError
from prunecli.model import companions, configs
from prunecli.model.derive import kinds, mixtures
from prunecli.model.derive.defaults import EPSILON, defaults, lists, to_test
from prunecli.model.derive.draft import EXPERTS, Draft, usual_key
from prunecli.model.derive.forward import Seen
from prunecli.model.derive.shrunk import builds, shrunk
from prunecli.model.derive.tables import Tables
from prunecli.model.families._base import MEAN

UNEVEN = 50  # a hidden size that no number of heads divides
SPREADS = ("initializer_range", "init_std")  # the usual key, and another


def drafted(values: Mapping[str, Any]) -> Draft:
    """Return a draft for the language model that a config.json describes.

    Raises InputError for a `model_type` that transformers does not know, and for what no record
    describes.
    """
    kind = values["model_type"]
    with quietly():
        _check_renamed(kind, values)
        with configs.bounded("transformers rejects config.json"):
            full = configs.transformers_config(values)
        tiny = shrunk(kind, full)
        made = Draft(kind, tiny.config, tiny.keys, tiny.wide)
        made.fields = {
            "name": kind.replace("_", "-"),
            "model_types": (kind,),
            "classes": _classes(made),
        }
        if tiny.stacked is not None:
            made.experts = mixtures.named(made, tiny.stacked)
        seen = Seen(made)
        made.layers = seen.list
        made.fields |= seen.places()
        tables = Tables(made, seen)
        made.fields |= tables.fields()
        made.fields |= seen.computed(tables.written, tables.narrows)
        made.fields["fixed"] |= tables.fixed()
        made.fields["experts"] = made.experts
        made.fields["initial"] = tables.initial()
        changed = {axis: key for axis, key in made.keys.items() if key != usual_key(axis)}
        changed.pop("positions", None)
        if SPREADS[0] not in made.config and SPREADS[1] in made.config:
            changed[SPREADS[0]] = SPREADS[1]
        epsilons = [key for key in made.config if key.endswith(("eps", "epsilon"))]
        centred = made.fields["fixed"].get("hidden") == MEAN
        if EPSILON not in made.config and len(epsilons) == 1 and not centred:
            changed[EPSILON] = epsilons[0]
        made.fields |= {"keys": changed, "layer_lists": lists(made)}
        # what older files call these
        renamed = {made.keys[axis] for axis in EXPERTS if axis in made.keys}
        others = type(full).attribute_map.items()
        made.fields["aliases"] = {old: key for old, key in others if key in renamed}
        made.fields |= kinds.fields(made, made.fields["layer_lists"])
        made.fields["hidden_divides"] = not builds(
            {**made.config, **made.changed("hidden", UNEVEN)}
        )
        made.fields |= {
            "defaults": defaults(made, tables.own.keys),
            "test_config": to_test(made, tables.own.keys),
        }
    return made


def _check_renamed(kind: str, values: Mapping[str, Any]) -> None:
    """Raise InputError for numbers out of bounds by the names that a class has for the usual keys.

    A list of layers is as long as it is told, before anybody sees it.
    """
    from transformers import CONFIG_MAPPING

    renamed = getattr(CONFIG_MAPPING[kind], "attribute_map", {}) if kind in CONFIG_MAPPING else {}
    own = {usual: values[own] for usual, own in renamed.items() if own in values}
    configs.check_numbers({**values, **own})


def language_model(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of a language model, which can be a part of another's.

    Raises InputError for code that it names, and where it says of no `model_type`.
    """
    text = values.get("text_config")
    text = text if isinstance(text, dict) else {}
    if companions.CODE in values or companions.CODE in text:
        raise InputError(
            f"config.json has {companions.CODE}: it names code of its own, which is never run",
            "remove the key, if transformers has a class for the model_type",
        )
    values = text if isinstance(text.get("model_type"), str) else values
    if not isinstance(values.get("model_type"), str):
        raise InputError("config.json has no model_type", "is this a Hugging Face model folder?")
    configs.check_numbers(values)
    return values


@contextmanager
def quietly() -> Iterator[None]:
    """Keep transformers from telling what is odd about tiny models."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _classes(made: Draft) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(made.kind)
    if not isinstance(name, str) or not name.endswith("ForCausalLM"):
        raise made.refused("transformers has no class for it that ends in ForCausalLM")
    return name.removesuffix("ForCausalLM")
