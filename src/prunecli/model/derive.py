"""A family's record, derived from transformers' own class of a `model_type`.

What a dimension means shows in how it changes: tiny models are built on the meta device, each with
one size of config.json changed. Which linears read the same, what comes last and what a norm
computes shows in a forward of a tiny random model. The record is a proposal, until it has been
tried (pruning/probe.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import InputError
from prunecli.model import companions, configs
from prunecli.model.families._base import (
    CONFIG_KEYS,
    HEAD_SIZE,
    MEAN,
    SQUARE,
    Axes,
    Family,
    windows,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    Shapes = Mapping[str, tuple[int, ...]]

LONGEST = 200  # characters of what failed
BY_HAND = "describe it by hand, as docs/adding-a-family.md shows"
# sizes of the tiny model by axis, of which no two make the same product, and others
SIZES = {
    "hidden": 48, "ffn": 80, "heads": 6, "kv_heads": 2, "head_dim": 8, "vocab": 259,
    "positions": 64,
}  # fmt: skip
OTHERS = {
    "hidden": 96, "ffn": 88, "heads": 12, "kv_heads": 3, "head_dim": 16, "vocab": 260,
    "positions": 72,
}  # fmt: skip
OPTIONAL = ("ffn", "kv_heads", "head_dim")  # axes whose usual key a class may not read
UNEVEN = 50  # a hidden size that no number of heads above divides
LAYERS, WINDOW, SPREAD = 4, 8, 0.3
LARGEST = 1 << 27  # weights of a tiny model
LONGER, PERIODS = 24, range(2, 9)  # layers to see a rule of lists in, and its periods
POSITIONS = "max_position_embeddings"
# keys of config.json whose defaults belong to a record, where the class has them
DEFAULTS = (
    "hidden_act", "hidden_activation", "initializer_range", "init_std", POSITIONS, "rms_norm_eps",
    "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "num_key_value_heads",
    "head_dim", "sliding_window", "final_logit_softcapping", "logits_scaling", "logit_scale",
)  # fmt: skip
TIMES = "logit"  # in the names of keys of what logits are multiplied by
SPREADS = ("initializer_range", "init_std")  # the usual key, and another
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
IDLE = ("tie_word_embeddings", "use_cache")  # flags that say nothing of the layers


class Indescribable(InputError):
    """A model that no record describes, and what of it is beyond one (exit status 4)."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"no record describes '{kind}': {why}", BY_HAND)


@dataclass(frozen=True)
class Rule:
    """What an entry of a list of layers is where there is no list; `text` is how a file says it."""

    text: str
    entry: Callable[[Mapping[str, Any], int], Any]

    def __repr__(self) -> str:
        return self.text

    @classmethod
    def windows(cls, period: int) -> "Rule":
        """Return that of windows in all layers but every so many-th."""
        return cls(f"windows({period})", windows(period))

    @classmethod
    def always(cls, value: Any) -> "Rule":
        """Return that of one value."""
        return cls(f"lambda config, i: {value!r}", lambda config, i: value)

    @classmethod
    def cycle(cls, values: list[Any]) -> "Rule":
        """Return that of values which come again and again."""
        again, count = tuple(values), len(values)
        return cls(f"lambda config, i: {again!r}[i % {count}]", lambda config, i: again[i % count])


USUAL_LISTS: Mapping[str, Rule | None] = {"layer_types": None}


@dataclass
class Draft:
    """A record in the making: its fields by name, and the config.json of a tiny model of its kind.

    `keys` are the config keys of sizes by axis, `wide` those of sizes that are hidden's too.
    """

    kind: str
    config: dict[str, Any]
    keys: dict[str, str]
    wide: tuple[str, ...]
    fields: dict[str, Any] = field(default_factory=dict)

    def changed(self, axis: str, size: int) -> dict[str, int]:
        """Return the keys of a size with another one."""
        more = self.wide if axis == "hidden" else ()
        return dict.fromkeys((self.keys[axis], *more), size)

    def family(self) -> Family:
        """Return the record."""
        lists = {key: rule and rule.entry for key, rule in self.fields["layer_lists"].items()}
        return Family(**{**self.fields, "layer_lists": lists})

    def refused(self, why: str) -> Indescribable:
        """Return the error for what is beyond a record."""
        return Indescribable(self.kind, why)

    def text(self) -> str:
        """Return the record as the text of a family's file."""
        usual = {**vars(Family), "layer_lists": USUAL_LISTS}
        body = _shown({k: v for k, v in self.fields.items() if v != usual.get(k)})
        title = self.fields["classes"]
        used = ["Family", *(["windows"] if "windows(" in body else [])]
        return (
            f'"""{title}, derived from transformers\' class of `{self.kind}`."""\n\n'
            f"from prunecli.model.families import {', '.join(used)}\n\n"
            f"FAMILY = Family(\n{body})\n"
        )


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
        made = Draft(kind, *_shrunk(kind, full))
        made.fields = {
            "name": kind.replace("_", "-"),
            "model_types": (kind,),
            "classes": _classes(made),
        }
        seen = Seen(made)
        made.fields |= seen.places()
        tables = Tables(made, seen)
        made.fields |= tables.fields()
        made.fields |= seen.computed(tables)
        changed = {axis: key for axis, key in made.keys.items() if key != _usual(axis)}
        changed.pop("positions", None)
        if SPREADS[0] not in made.config and SPREADS[1] in made.config:
            changed[SPREADS[0]] = SPREADS[1]
        made.fields |= {"keys": changed, "layer_lists": _lists(made)}
        made.fields["hidden_divides"] = not _builds(
            {**made.config, **made.changed("hidden", UNEVEN)}
        )
        made.fields |= {"defaults": _defaults(kind, made.keys), "test_config": _to_test(made)}
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


def _usual(axis: str) -> str:
    return CONFIG_KEYS.get(axis, POSITIONS)


def _shrunk(kind: str, full: Any) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """Return the config.json of a tiny model of a kind, and what a draft knows of its keys."""
    renamed = getattr(type(full), "attribute_map", {})
    keys = {axis: renamed.get(_usual(axis), _usual(axis)) for axis in (*CONFIG_KEYS, "positions")}
    known = full.to_dict()
    layers, hidden = (known.get(keys[axis]) for axis in ("layers", "hidden"))
    for axis in ("layers", "hidden", "heads", "vocab"):
        if not isinstance(known.get(keys[axis]), int):
            raise Indescribable(kind, f"its config has no {_usual(axis)}")
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
    for key in TOKENS:
        tiny[key] = None
        if not _builds(tiny):
            tiny[key] = 0  # a class that takes a number alone
    count = sum(map(prod, configs.shapes(tiny).values()))
    if count > LARGEST:
        raise Indescribable(kind, f"a tiny model of it has {count} weights, for sizes of its own")
    # numbers of one hide what they scale
    for n, key in enumerate([key for key, value in tiny.items() if value == 1.0]):
        if isinstance(tiny[key], float) and _builds({**tiny, key: 0.5 ** (n + 1)}):
            tiny[key] = 0.5 ** (n + 1)
    return tiny, _read_keys(tiny, keys), tuple(wide)


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
        if len(named) == 1:
            read["ffn"] = named[0]
            tiny[named[0]] = SIZES["ffn"]
    for axis in unread:
        del tiny[keys[axis]]
    return read


def _builds(config: Mapping[str, Any]) -> bool:
    try:
        configs.shapes(config)
    except configs.Endless:
        raise
    except InputError:
        return False
    return True


def _some(entries: list[Any]) -> list[Any]:
    """Return the first entries, and in the place of the last ones the kinds that these lack."""
    some, kinds = entries[:LAYERS], []
    for entry in entries[LAYERS:]:
        if entry not in some and entry not in kinds:
            kinds.append(entry)
    return (some[: LAYERS - len(kinds)] + kinds)[:LAYERS]


def _classes(made: Draft) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(made.kind)
    if not isinstance(name, str) or not name.endswith("ForCausalLM"):
        raise made.refused("transformers has no class for it that ends in ForCausalLM")
    return name.removesuffix("ForCausalLM")


def random_model(config: Mapping[str, Any], fresh: bool = False) -> Any:
    """Return transformers' model of a tiny config.json, `fresh` or with every weight random."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), configs.refusals(configs.CANNOT_BUILD):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            configs.transformers_config(config), dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in () if fresh else model.parameters():
                noise = torch.randn_like(parameter)
                parameter.copy_(noise * SPREAD if parameter.dim() > 1 else noise * 0.2 + 1)
    return model.eval()


@dataclass
class Call:
    """What a module without parts took and gave, when it was first called."""

    name: str
    module: "nn.Module"
    taken: "Tensor"
    given: "Tensor"

    @property
    def parent(self) -> str:
        """The module that it is a part of."""
        return self.name.rpartition(".")[0]


class Seen:
    """A forward of a tiny random model: what its parts took and gave."""

    def __init__(self, made: Draft) -> None:
        import torch
        from torch import nn

        self.made, self.model = made, random_model(made.config)
        self.calls: dict[str, Call] = {}
        lists = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == LAYERS
        }
        if len(lists) != 1:
            told = ", ".join(f"'{name}'" for name in lists) or "none"
            raise made.refused(f"it has not one list of layers: {told}")
        (self.list,) = lists
        self.layer = f"{self.list}.0."
        for name, module in self.model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(self._note(name))
        self.entered: Any = None
        lists[self.list][0].register_forward_pre_hook(self._enter, with_kwargs=True)
        self.ids = torch.randint(
            SIZES["vocab"], (2, 32), generator=torch.Generator().manual_seed(5)
        )
        with configs.bounded("transformers' model cannot be run"), torch.no_grad():
            self.logits = self.model(self.ids, use_cache=False).logits
        self.groups = self._groups()

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: "nn.Module", taken: Any, given: Any) -> None:
            if taken and hasattr(taken[0], "shape") and hasattr(given, "shape"):
                self.calls.setdefault(name, Call(name, module, taken[0], given))

        return note

    def _enter(self, module: "nn.Module", taken: Any, named: Any) -> None:
        self.entered = taken[0] if taken else named.get("hidden_states")

    def _groups(self) -> list[list[str]]:
        """Return the linears of the first layer by what they read, in the order of computing."""
        from torch import nn

        groups: list[list[Call]] = []
        for call in self.calls.values():
            if not call.name.startswith(self.layer) or not isinstance(call.module, nn.Linear):
                continue
            for group in groups:
                if group[0].parent == call.parent and _equal(group[0].taken, call.taken):
                    group.append(call)
                    break
            else:
                groups.append([call])
        return [[call.name.removeprefix(self.layer) for call in group] for group in groups]

    def places(self) -> dict[str, Any]:
        """Return what is outside the layers: embedding, positions, last norm and head."""
        from torch import nn

        names = {module: name for name, module in self.model.named_modules()}
        embedding = names.get(self.model.get_input_embeddings())
        head = names.get(self.model.get_output_embeddings())
        if embedding is None or head is None:
            raise self.made.refused("its class does not say which are its embedding and its head")
        read = self.calls[head].taken if head in self.calls else None
        last = [call.name for call in self.calls.values() if _equal(call.given, read)]
        if not last:
            raise self.made.refused("what its head reads does not come from a norm")
        others = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Embedding) and name != embedding
        ]
        if len(others) > 1 or any(name.startswith(self.list) for name in others):
            raise self.made.refused(f"it has another embedding, '{others[-1]}'")
        found = {"embedding": embedding, "head": head, "final_norm": last[-1]}
        if others:
            rows = self.model.get_submodule(others[0]).weight.shape[0]
            found |= {"positions": others[0], "position_offset": rows - SIZES["positions"]}
        return found

    def norms(self) -> list[Call]:
        """Return what norms the residual stream, or what is added to it: first layer, and last."""
        last = self.made.fields["final_norm"]
        return [
            call
            for call in self.calls.values()
            if "norm" in type(call.module).__name__.lower()
            and call.given.shape[-1] == SIZES["hidden"]
            and call.given.dim() == 3
            and (call.name == last or call.name.startswith(self.layer))
        ]

    def computed(self, tables: "Tables") -> dict[str, Any]:
        """Return what shows in what is computed: norms, scales, and what cannot be lost."""
        import torch

        norms = self.norms()
        offsets = {offset for call in norms if (offset := _offset(call.module)) is not None}
        if len(offsets) > 1:
            raise self.made.refused("its norms multiply by their weights in different ways")
        fixed = {"hidden": MEAN} if any(_centres(call.module) for call in norms) else {}
        if "head_dim" not in self.made.keys:
            fixed["heads"] = HEAD_SIZE
        elif not tables.narrows:
            fixed = {"hidden": SQUARE, "heads": SQUARE}
        written = [self.calls[self.layer + name] for name in tables.written]
        behind = [
            call.name.removeprefix(self.layer)
            for call in norms
            if any(_equal(call.taken, one.given) for one in written)
        ]
        rows = self.model.get_input_embeddings().weight[self.ids]
        scaled = rows * SIZES["hidden"] ** 0.5
        plain = self.calls[self.made.fields["head"]].given
        times = [
            key
            for key, value in self.made.config.items()
            if TIMES in key
            and isinstance(value, float)
            and value != 1
            and self.logits.allclose(plain * value)
        ]
        return {
            "norm_weight_offset": float(offsets.pop()) if offsets else 0.0,
            "fixed": fixed,
            "post_norms": tuple(behind),
            "scales_embedding": self.entered is not None
            and self.entered.shape == scaled.shape
            and torch.allclose(self.entered, scaled, rtol=1e-2),
            "logits_times": times[0] if times else None,
            "initial": tables.initial(),
        }


def _equal(one: "Tensor | None", other: "Tensor | None") -> bool:
    return one is not None and other is not None and one.shape == other.shape and one.equal(other)


def _centres(norm: "nn.Module") -> bool:
    """Return whether a norm subtracts the mean: then a number added to all changes nothing."""
    import torch

    with torch.no_grad():
        states = torch.linspace(-1, 2, SIZES["hidden"]).sin()[None, None]
        return torch.allclose(norm(states), norm(states + 1), atol=1e-3)


def _offset(norm: "nn.Module") -> int | None:
    """Return what a norm adds to its weight, None if it has no weight."""
    import copy

    import torch

    probe: Any = copy.deepcopy(norm)
    weight = getattr(probe, "weight", None)
    if weight is None:
        return None
    with torch.no_grad():
        if getattr(probe, "bias", None) is not None:
            probe.bias.zero_()
        states = torch.linspace(-1, 2, SIZES["hidden"]).sin()[None, None]
        sums = []
        for value in (0, 1):
            weight.fill_(value)
            sums.append(float(probe(states).abs().sum()))
    share = sums[0] / sums[1]
    return round(share / (1 - share))


LENGTHS: Mapping[str, Callable[[Mapping[str, int]], int]] = {
    "vocab": lambda s: s["vocab"],
    "hidden": lambda s: s["hidden"],
    "ffn": lambda s: s["ffn"],
    "ffn+ffn": lambda s: 2 * s["ffn"],
    "heads": lambda s: s["heads"] * s["head_dim"],
    "kv_heads": lambda s: s["kv_heads"] * s["head_dim"],
    "qkv_by_head": lambda s: 3 * s["heads"] * s["head_dim"],
    "heads+kv_heads+kv_heads": lambda s: (s["heads"] + 2 * s["kv_heads"]) * s["head_dim"],
    "head_dim": lambda s: s["head_dim"],
    "each_head": lambda s: s["heads"],
    "one": lambda s: 1,
}


class Tables:
    """The tensors of a model and their axes."""

    def __init__(self, made: Draft, seen: Seen) -> None:
        self.made, self.seen = made, seen
        axes = [axis for axis in OTHERS if axis in made.keys]
        self.sizes = [self._whole({}), *(self._whole({axis: OTHERS[axis]}) for axis in axes)]
        self.changes = [{}, *(made.changed(axis, OTHERS[axis]) for axis in axes)]
        self.offset = made.fields.get("position_offset", 0)
        self.many = self._built({})
        for name in self._templates(self.many[0]):
            dimensions = len(self.many[0][name.replace("{i}", "0")])
            if dimensions > 2:
                raise made.refused(f"'{name}' has {dimensions} dimensions")
        self._sort_linears()

    def _whole(self, changed: dict[str, int]) -> dict[str, int]:
        """Return all sizes, with those that the class has no key for as it makes them."""
        sizes = {**SIZES, **changed}
        if "kv_heads" not in self.made.keys:
            sizes["kv_heads"] = sizes["heads"]
        if "head_dim" not in self.made.keys:
            sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
        return sizes

    def _built(self, flags: Mapping[str, Any]) -> "list[Shapes]":
        """Return the shapes of all tensors, one size changed at a time."""
        return [configs.shapes({**self.made.config, **flags, **change}) for change in self.changes]

    def _templates(self, shapes: "Shapes") -> list[str]:
        """Return the names of tensors, with `{i}` for the layer; all layers must be alike."""
        inside = f"{self.seen.list}."
        layers: list[set[str]] = [set() for _ in range(LAYERS)]
        for name in shapes:
            if name.startswith(inside):
                number, _, rest = name.removeprefix(inside).partition(".")
                layers[int(number)].add(rest)
        for i, names in enumerate(layers):
            if odd := sorted(names ^ layers[0]):
                raise self.made.refused(f"layers 0 and {i} are unlike each other: '{odd[0]}'")
        root = [name for name in shapes if not name.startswith(inside)]
        first, last = self.made.fields["embedding"], self.made.fields["head"]
        root.sort(key=lambda name: (not name.startswith(f"{first}."), name.startswith(f"{last}.")))
        within = [name for name in shapes if name.startswith(f"{inside}0.")]
        templates = [name.replace(f"{inside}0.", f"{inside}{{i}}.", 1) for name in within]
        return [root[0], *templates, *root[1:]]

    def _candidates(self, template: str, many: "Sequence[Shapes]") -> list[list[str]]:
        """Return for each dimension of a tensor the axes that it changes as."""
        name = template.replace("{i}", "0")
        if any(name not in shapes for shapes in many):
            raise self.made.refused(f"whether it has '{template}' depends on its sizes")
        found = []
        for lengths in zip(*(shapes[name] for shapes in many), strict=True):
            fits = [axis for axis, rule in LENGTHS.items() if (*map(rule, self.sizes),) == lengths]
            if lengths == tuple(sizes["positions"] + self.offset for sizes in self.sizes):
                fits.append("positions")
            found.append(fits)
        return found

    def _sort_linears(self) -> None:
        """Find which linears are those of attention and of the FFN: the inputs of a record."""
        up, down, rest = [], [], []
        for group in self.seen.groups:
            out, read = self._candidates(f"{self.seen.list}.{{i}}.{group[0]}.weight", self.many)
            if "ffn" in read:
                down.append(tuple(group))
            elif {"ffn", "ffn+ffn"} & {*out}:
                up.append(tuple(group))
            else:
                rest.append(tuple(group))
        if len(rest) != 2 or len(up) != 1 or len(down) != 1 or len(down[0]) != 1:
            told = "; ".join(" ".join(group) for group in self.seen.groups) or "none"
            raise self.made.refused(
                "the linears of a layer, by what they read, are not those of attention and of one "
                f"FFN: {told}"
            )
        self.inputs = (rest[0], rest[1], up[0], down[0])
        self.written = (rest[1][0], down[0][0])
        _, read = self._candidates(f"{self.seen.list}.{{i}}.{rest[1][0]}.weight", self.many)
        self.narrows = "heads" in read  # whether it reads the channels of the heads

    def _axes(self, template: str, many: "Sequence[Shapes]") -> Axes:
        """Return the axes of a tensor."""
        found = self._candidates(template, many)
        module = template.removeprefix(f"{self.seen.list}.{{i}}.").rpartition(".")[0]
        chosen = tuple(self._one(module, d, fits) for d, fits in enumerate(found))
        for d, axis in enumerate(chosen):
            if not axis:
                size = many[0][template.replace("{i}", "0")][d]
                raise self.made.refused(
                    f"dimension {d} of '{template}' is no axis of a family ({size} in a tiny model)"
                )
        return chosen

    def _one(self, module: str, dimension: int, fits: list[str]) -> str:
        """Return one of the axes that fit, "" if none does: those of heads where heads are meant.

        Where a class has no key for a size, axes are as long as each other.
        """
        if len(fits) < 2:
            return "".join(fits)
        (first, *_), out, _, _ = self.inputs
        makes_heads = module in self.inputs[0] and dimension == 0
        if makes_heads or (module in out and dimension == 1) or self._norms_heads(module):
            own = "heads" if module == first or module in out else "kv_heads"
            return next(axis for axis in (own, *fits) if axis in fits)
        return "hidden" if "hidden" in fits else fits[0]

    def _norms_heads(self, module: str) -> bool:
        """Return whether a module reads what one of those that make heads has given."""
        calls, layer = self.seen.calls, self.seen.layer
        taken = calls[layer + module].taken if layer + module in calls else None
        return any(_equal(calls[layer + name].given, taken) for name in self.inputs[0])

    def fields(self) -> dict[str, Any]:
        """Return the tables of tensors, and the flags that they depend on."""
        templates, biases, on, only = self._templates(self.many[0]), {}, {}, {}
        for flag, value in self._flags().items():
            toggled, fixed = self._toggled(flag, value)
            if fixed:
                only[flag] = (value,)
            elif toggled:
                many = self.many if value else self._built({flag: True})
                biases[flag] = {name: self._axes(name, many) for name in toggled}
                templates = [name for name in templates if name not in toggled]
                on[flag] = True
        self.made.config |= on
        usual = {flag: True for flag in biases if _default(self.made.kind).get(flag) is True}
        return {
            "layer": f"{self.seen.list}.{{i}}.",
            "tensors": {name: self._axes(name, self.many) for name in templates},
            "biases": biases,
            "flags": usual,
            "only": only,
            "inputs": self.inputs,
        }

    def initial(self) -> dict[str, float]:
        """Return what vectors begin with in a new model that are no norm's and no biases."""
        fresh, norms = random_model(self.made.config, fresh=True), self.seen.norms()
        weights = {f"{call.name}.weight" for call in norms}
        found = {}
        for name, tensor in fresh.state_dict().items():
            own = name.startswith(self.seen.layer) and name not in weights
            if own and tensor.dim() == 1 and not name.endswith((".bias", "norm.weight")):
                found[name.removeprefix(self.seen.layer)] = round(float(tensor.float().mean()), 6)
        return found

    def _flags(self) -> dict[str, bool]:
        """Return the flags that the class of a config has of its own."""
        from transformers import CONFIG_MAPPING, PretrainedConfig

        own = signature(CONFIG_MAPPING[self.made.kind]).parameters
        every, config = {*signature(PretrainedConfig).parameters, *IDLE}, self.made.config
        flags = [key for key in own if key not in every and isinstance(config.get(key), bool)]
        return {key: config[key] for key in flags}

    def _toggled(self, flag: str, value: bool) -> tuple[list[str], bool]:
        """Return the biases that exist when a flag is on, and whether it must stay as it is.

        It must where something else depends on it.
        """
        other = {**self.made.config, flag: not value}
        try:
            shapes = configs.shapes(other)
            names = self._templates(shapes)
        except InputError:
            return [], True
        here = self._templates(self.many[0])
        more, fewer = (names, here) if not value else (here, names)
        found = [name for name in more if name not in fewer]
        if any(name not in more for name in fewer):
            return [], True
        if found:
            return found, not all(name.endswith(".bias") for name in found)
        return [], not self._computes_the_same(other)

    def _computes_the_same(self, config: Mapping[str, Any]) -> bool:
        import torch

        model = random_model(config)
        with torch.no_grad(), configs.bounded("transformers' model cannot be run"):
            return bool(model(self.seen.ids, use_cache=False).logits.equal(self.seen.logits))


def _default(kind: str) -> dict[str, Any]:
    """Return the config.json of a kind without any keys; empty where there is none."""
    try:
        made: dict[str, Any] = configs.transformers_config({"model_type": kind}).to_dict()
    except InputError:
        return {}
    return made


def _defaults(kind: str, keys: Mapping[str, str]) -> dict[str, Any]:
    """Return what keys mean where config.json lacks them, but for what a record assumes anyway."""
    config = _default(kind)
    found = {key: config[key] for key in DEFAULTS if key in config}
    heads, hidden = (config.get(keys[axis]) for axis in ("heads", "hidden"))
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return {}
    assumed = {"num_key_value_heads": (None, heads), "head_dim": (None, hidden // heads)}
    return {key: value for key, value in found.items() if value not in assumed.get(key, ())}


def _lists(made: Draft) -> dict[str, Rule | None]:
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
        if filled is None:
            found[key] = None
            continue
        rules = [Rule.always(filled[0])]
        if key == "layer_types":
            rules += map(Rule.windows, PERIODS)
        rules += [Rule.cycle(filled[:n]) for n in PERIODS]
        fits = [r for r in rules if [r.entry(longer, i) for i in range(LONGER)] == filled]
        if not fits:
            raise made.refused(f"what {key} is where config.json lacks it follows no known rule")
        found[key] = fits[0]
    return found


def _to_test(made: Draft) -> dict[str, Any]:
    """Return what makes a tiny model of the tests one that shows what is special about it."""
    config: dict[str, Any] = dict.fromkeys(made.fields["biases"], True)
    if "kv_heads" not in made.keys:
        config["num_key_value_heads"] = SIZES["heads"]
    if made.config.get("sliding_window") is not None:
        config["sliding_window"] = WINDOW
    sizes = {key: SIZES[axis] for axis, key in made.keys.items() if axis in SIZES}
    sizes |= {key: made.config[key] for key in made.wide}
    usual = {*CONFIG_KEYS.values(), POSITIONS}
    return {**config, **{key: size for key, size in sizes.items() if key not in usual}}


def _shown(fields: Mapping[str, Any]) -> str:
    """Return keyword arguments, as they stand in a file."""
    lines = []
    for name, value in fields.items():
        if value in ({}, (), None, False, 0, 0.0) and name != "inputs":
            continue
        if isinstance(value, Mapping):
            rows = [f"        {key!r}: {_nested(entry)},\n" for key, entry in value.items()]
            lines.append(f"    {name}={{\n{''.join(rows)}    }},\n")
        elif name == "inputs":
            rows = [f"        {entry!r},\n" for entry in value]
            lines.append(f"    {name}=(\n{''.join(rows)}    ),\n")
        else:
            lines.append(f"    {name}={value!r},\n")
    return "".join(lines).replace("'", '"')


def _nested(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return repr(entry)
    rows = [f"            {key!r}: {value!r},\n" for key, value in entry.items()]
    return f"{{\n{''.join(rows)}        }}"


def save(made: Draft, folder: Path) -> None:
    """Write a tiny random model, and learn by what names a class saves its tensors.

    Raises InputError if there is none, or its tensors are saved in another form.
    """
    from safetensors.torch import load_file

    model = random_model(made.config)
    with configs.refusals("transformers cannot save its model"):
        model.save_pretrained(folder)
    kept = load_file(folder / "model.safetensors")
    own = model.state_dict()
    found: dict[str, str] = {}
    for stored, tensor in kept.items():
        same = [stored] if stored in own else [n for n, t in own.items() if _equal(t, tensor)]
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
        if own.startswith(f"{layers}0."):
            outside, _, stored = stored.partition("0.")
            pairs[outside] = layers
            before, name = ".", own.removeprefix(f"{layers}0.")
        elif own.startswith(layers):
            continue  # as in the first layer
        parts, ours = stored.split("."), name.split(".")
        while parts and ours and parts[-1] == ours[-1]:
            del parts[-1], ours[-1]
        if parts:
            pairs[f"{before}{'.'.join(parts)}."] = f"{before}{'.'.join(ours)}."
    pairs = {old: new for old, new in pairs.items() if old != new}
    return tuple(sorted(pairs.items(), key=lambda pair: -len(pair[0])))
