"""`Arch`: a config.json read through its family: sizes, tensors, parameters, FLOPs. No torch.

Counts follow the paper's Table 1, FLOPs its Table 9: two per multiply-add, attention over the full
T x T square, output head included, embedding look-up not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.model import configs
from prunecli.model.families import registry
from prunecli.model.families._base import CONFIG_KEYS, EXPERT_KEYS, Axes, Family

GROUPS = ("embedding", "attention", "ffn", "norms", "biases", "head")
EXPLICIT = ("heads", "kv_heads", "head_dim")
ATTENTION = {"full_attention", "sliding_attention"}
POINTS = ("q", "o", "gate", "down")
UNITS = {"hidden": "hidden channels", "ffn": "FFN channels"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a model: its axes, its shape, its layer, its template's name, its expert."""

    axes: Axes
    shape: tuple[int, ...]
    layer: int | None
    template: str
    expert: int | None = None


class Arch:
    """The shape of one model. `config` is its config.json; sizes are per layer and uniform.

    `ffn` is the size of one FFN; of these a layer has as many as `experts`, where that is not 0.

    Raises InputError when config.json is not that of a known family, or its sizes cannot be.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.family: Family = registry.of_model_type(config["model_type"])
        self.config = self.family.renamed(config)
        configs.check_numbers(self.config)
        self.layers = self._size("layers")
        self.hidden = self._size("hidden")
        self.ffn = self._size("ffn")
        self.heads = self._size("heads")
        self.kv_heads = self._size("kv_heads", self.heads)
        self.vocab = self._size("vocab")
        self.head_dim = self._size("head_dim", self.hidden // self.heads)
        if self.heads % self.kv_heads:
            raise InputError(
                f"config.json has {self.heads} heads, not a multiple of {self.kv_heads} KV heads"
            )

        mixture = self.family.experts is not None
        self.experts, self.experts_per_token = (
            self._size(axis) if mixture else 0 for axis in EXPERT_KEYS
        )
        if self.experts_per_token > self.experts:
            raise InputError(
                f"config.json has {self.experts} experts, and sends every token to "
                f"{self.experts_per_token}"
            )
        self._check_lists()

    @classmethod
    def read(cls, folder: str | Path) -> "Arch":
        """Read FOLDER/config.json, to be counted; raise InputError if it is missing or unknown."""
        return cls(configs.read(folder, counted=True).values)

    def get(self, key: str) -> Any:
        """Return a value of config.json, or what its absence means in this family."""
        return self.config[key] if key in self.config else self.family.defaults.get(key)

    def _check_lists(self) -> None:
        for key in self.family.layer_lists:
            entries = self.config.get(key)
            if not isinstance(entries, list):
                continue
            if len(entries) != self.layers:
                raise InputError(
                    f"config.json: {key} has {len(entries)} entries, expected one for each of "
                    f"{self.layers} layers"
                )
            if key == "layer_types" and (odd := set(map(str, entries)) - ATTENTION):
                raise InputError(
                    f"config.json: layer_types has '{min(odd)}', expected "
                    f"{' or '.join(sorted(ATTENTION))}"
                )

    def _size(self, axis: str, otherwise: int | None = None) -> int:
        key = self.family.key(axis)
        value = self.get(key)
        if value is None:
            value = otherwise
        if value is None:
            raise InputError(f"config.json lacks {key}")
        return int(value)

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return bool(self.get("tie_word_embeddings"))

    def norms(self) -> list[str]:
        """Return the modules of a layer that norm the residual stream, or what is added to it."""
        inside = self.family.layer
        return [
            name.removeprefix(inside).removesuffix(".weight")
            for name, axes in self.family.templates(self.config).items()
            if name.startswith(inside) and axes == ("hidden",) and not name.endswith(".bias")
        ]

    @property
    def post_norms(self) -> tuple[str, ...]:
        """The post-sublayer norms that a model with this config has."""
        return tuple(name for name in self.family.post_norms if name in self.norms())

    @property
    def head_bias(self) -> bool:
        """Whether the output head has a bias."""
        return f"{self.family.head}.bias" in self.family.tensors

    @property
    def outputs(self) -> tuple[str, ...]:
        """The projections of a layer out of the heads and out of the FFN channels."""
        return (*self.modules("o"), *self.modules("down"))

    @property
    def writers(self) -> tuple[str, ...]:
        """The modules of a layer whose outputs are added to the residual stream."""
        return self.post_norms or self.outputs

    @property
    def ffn_matrices(self) -> int:
        """How many matrices have a row or a column of an FFN channel: 3, or 2 without a gate.

        Where there are experts, those of one of them.
        """
        return sum("+".join(axes).split("+").count("ffn") for axes in self._matrices())

    @property
    def ffns(self) -> int:
        """How many FFNs a layer has: one, or its experts."""
        return max(1, self.experts)

    def _matrices(self) -> list[Axes]:
        tensors = self.family.tensors
        return [tensors[name] for name in self.block_linears()]

    @property
    def norm_spans_heads(self) -> bool:
        """Whether a norm runs over all heads together, so that removing one changes the others."""
        return any(
            axes in (("heads",), ("kv_heads",)) and not name.endswith(".bias")
            for name, axes in self.family.tensors.items()
        )

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model was made for, in tokens."""
        return int(self.get("max_position_embeddings"))

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that `--layers --hidden --heads --ffn` speak of, and what goes with them."""
        axes = (*CONFIG_KEYS, *(EXPERT_KEYS if self.experts else ()))
        return {axis: getattr(self, axis) for axis in axes}

    def axis_size(self, axis: str) -> int:
        """Return how long a dimension of this axis is (fused axes: the sum of the segments)."""
        return sum(place.stop - place.start for place in self.axis_slices(axis))

    def axis_slices(self, axis: str) -> list[slice]:
        """Return where the parts of a fused axis lie, of any other axis the whole."""
        found, start = [], 0
        for part in axis.split("+"):
            stop = start + self._length(part)
            found.append(slice(start, stop))
            start = stop
        return found

    def unit_rows(self, axis: str) -> tuple[str, int] | None:
        """Return the heads that an axis is made of, and its rows of each; None if of none."""
        return {
            "heads": ("heads", self.head_dim),
            "kv_heads": ("kv_heads", self.head_dim),
            "each_head": ("heads", 1),
            "qkv_by_head": ("heads", 3 * self.head_dim),
        }.get(axis)

    def _length(self, axis: str) -> int:
        unit = self.unit_rows(axis)
        if unit is not None:
            return int(getattr(self, unit[0])) * unit[1]
        others = {"one": 1, "positions": self.max_positions + self.family.position_offset}
        return others[axis] if axis in others else int(getattr(self, axis))

    def _templates(self) -> dict[str, Axes]:
        templates = self.family.templates(self.config)
        if self.tied:
            templates.pop(f"{self.family.head}.weight")
        return templates

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name: embedding first, then layer by layer, then the rest."""
        templates = self._templates()
        root = {name: axes for name, axes in templates.items() if "{i}" not in name}
        inside = {name: axes for name, axes in templates.items() if "{i}" in name}
        first = next(iter(root))
        order: list[tuple[str, int | None, int | None]] = [(first, None, None)]
        for i in range(self.layers):
            order += [(name, i, e) for name in inside for e in self._experts_of(name)]
        order += [(name, None, None) for name in root if name != first]
        shapes = {name: tuple(map(self.axis_size, axes)) for name, axes in templates.items()}
        return {
            name.replace("{i}", str(i)).replace("{e}", str(e)): Tensor(
                templates[name], shapes[name], i, name, e
            )
            for name, i, e in order
        }

    def _experts_of(self, template: str) -> Sequence[int | None]:
        """Return the experts that have a tensor or a module each; None for one of no expert."""
        return range(self.experts) if "{e}" in template else (None,)

    def inputs(self) -> Iterator[tuple[str, ...]]:
        """Yield the linears of a layer by distinct input, those of every expert."""
        for modules in self.family.inputs:
            for e in self._experts_of(modules[0]):
                yield tuple(module.replace("{e}", str(e)) for module in modules)

    def block_linears(self) -> Iterator[str]:
        """Yield the templates of the block linears: what ratios are fractions of."""
        for modules in self.family.inputs:
            for module in modules:
                yield f"{self.family.layer}{module}.weight"

    def prefix(self, i: int) -> str:
        """Return what the names of the tensors of layer `i` begin with."""
        return self.family.layer.replace("{i}", str(i))

    def module(self, point: str) -> str:
        """Return the module of a layer that reads the input called `q`, `o`, `gate` or `down`.

        Experts have one each: those of all are `modules`.
        """
        return self.family.inputs[POINTS.index(point)][0]

    def modules(self, point: str) -> tuple[str, ...]:
        """Return the modules of a layer that read an input of this name: one, or every expert's."""
        module = self.module(point)
        return tuple(module.replace("{e}", str(e)) for e in self._experts_of(module))

    def point(self, i: int, point: str) -> str:
        """Return the full name of a point of layer `i`, under which its statistics are kept."""
        layer, experts = self.prefix(i), self.family.experts
        if point == "experts" and experts is not None:
            return f"{layer}{experts.module}:out"
        return f"{layer[:-1]}:out" if point == "block" else f"{layer}{self.module(point)}:in"

    def of_experts(self, point: str) -> bool:
        """Return whether a layer has a point of this name in every expert."""
        return point in POINTS and "{e}" in self.module(point)

    def has_point(self, point: str) -> bool:
        """Return whether a layer has one point of this name: `experts` only where it has some."""
        return not self.of_experts(point) and (point != "experts" or self.experts > 0)

    def points(self, i: int, point: str) -> tuple[str, ...]:
        """Return these names of all points that are called so: one, or every expert's."""
        if self.of_experts(point):
            return tuple(f"{self.prefix(i)}{module}:in" for module in self.modules(point))
        return (self.point(i, point),)

    def point_width(self, point: str) -> int:
        """Return how many channels a point has."""
        widths = {"o": self.heads * self.head_dim, "down": self.ffn, "experts": self.experts}
        return widths.get(point, self.hidden)

    def params(self, active: bool = False) -> dict[str, int]:
        """Return parameter counts by group; tied weights count once.

        With `active`, of experts only as many as a token is sent to.
        """
        experts = self.experts_per_token if active else self.experts
        groups = dict.fromkeys((*GROUPS, *(("router",) if experts else ())), 0)
        for name, axes in self._templates().items():
            times = self.layers if "{i}" in name else 1
            times *= experts if "{e}" in name else 1
            groups[_group(name, axes, self.family)] += times * prod(map(self.axis_size, axes))
        return groups

    @property
    def total_params(self) -> int:
        """All parameters; tied weights count once."""
        return sum(self.params().values())

    @property
    def active_params(self) -> int:
        """The parameters that a token's logits are computed with; all of them without experts."""
        return sum(self.params(active=True).values())

    def active_counts(self) -> dict[str, int]:
        """Return what results say of the active parameters: nothing where all are."""
        return {"active_params": self.active_params} if self.experts else {}

    @property
    def routers(self) -> tuple[str, ...]:
        """The routers of all layers: what tells which experts a token is sent to."""
        return tuple(
            name.removesuffix(".weight")
            for name, tensor in self.tensors().items()
            if tensor.axes == ("experts", "hidden")
        )

    @property
    def block_params(self) -> int:
        """Parameters of the block linears of all layers."""
        params = self.params()
        return params["attention"] + params["ffn"]

    def flops(self, seq_len: int = 2048, density: float = 1.0) -> int:
        """Return FLOPs of one forward over `seq_len` tokens, each through its own experts only.

        `density` is the share of block-linear weights that are not zero. Vectors (norms, biases)
        count as if multiplied, as Table 9 does.
        """
        params = self.params(active=True)
        dense = params["norms"] + params["biases"] + self.vocab * self.hidden
        dense += params.get("router", 0)
        weights = dense + round(density * (params["attention"] + params["ffn"]))
        attention = 4 * seq_len**2 * self.heads * self.head_dim * self.layers
        return 2 * weights * seq_len + attention

    def kv_bytes_per_token(self, bytes_per_value: int) -> int:
        """Return the bytes that keys and values of one token take in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_value

    def child(
        self,
        *,
        hidden: int | None = None,
        ffn: int | None = None,
        kv_heads: int | None = None,
        heads: int | None = None,
        experts: int | None = None,
        layers: list[int] | None = None,
        biased: bool = False,
    ) -> "Arch":
        """Return the shape of a pruned model, in a container that stock transformers loads.

        `layers` are the indices kept; `biased` asks for biases on the projections out of the heads
        and out of the FFN. The parent's own family is kept where its config class allows the
        shape, else the first of its `containers` that computes the same.
        Raises InputError when none does, or the family cannot lose an axis exactly.
        """
        self._check_fixed(hidden=hidden, ffn=ffn, heads=heads, kv_heads=kv_heads)
        # absent, these would mean something else in a pruned model or in another container
        key = self.family.key
        config = {**self.config, **{key(axis): getattr(self, axis) for axis in EXPLICIT}}
        if kv_heads is not None:
            group = (heads or self.group * kv_heads) // kv_heads
            config[key("kv_heads")] = kv_heads
            config[key("heads")] = group * kv_heads
        for axis, size in (("hidden", hidden), ("ffn", ffn), ("experts", experts)):
            if size is not None:
                config[key(axis)] = size
        if layers is not None:
            config[key("layers")] = len(layers)
            for name, entry in self.family.layer_lists.items():
                if isinstance(config.get(name), list):
                    config[name] = [config[name][i] for i in layers]
                elif entry is not None:
                    config[name] = [entry(self.config, i) for i in layers]
            if isinstance(config.get("max_window_layers"), int):
                full = config["max_window_layers"]
                config["max_window_layers"] = sum(i < full for i in layers)
        return Arch(self._contained(config, biased))

    def _check_fixed(self, **sizes: int | None) -> None:
        """Raise InputError for sizes below this model's on axes that its family cannot lose."""
        for axis, size in sizes.items():
            why = self.family.fixed.get("heads" if axis == "kv_heads" else axis)
            if why is not None and size is not None and size < getattr(self, axis):
                what = "heads" if axis == "kv_heads" else UNITS.get(axis, axis)
                raise InputError(
                    f"'{self.family.name}' cannot lose {what}: {why}", "keep all of them"
                )

    def _active(self, key: str) -> bool:
        """Return whether a config key is on; a window that holds every position is not."""
        value = self.get(key)
        return bool(value) and (isinstance(value, bool) or value < self.max_positions)

    def _contained(self, config: dict[str, Any], biased: bool) -> dict[str, Any]:
        has = self.family.templates(self.config)
        wanted = {name for name in has if name.endswith(".bias")}
        if biased:
            wanted |= {f"{self.family.layer}{module}.bias" for module in self.outputs}
        flags = _bias_flags(self.family, wanted)
        if flags is not None and _takes(self.family, config):
            return {**config, **flags} if biased else config
        if not any(self._active(key) for key in self.family.not_convertible_if):
            filled = {**self.family.defaults, **config}
            if "rope_theta" not in filled and "rope_parameters" not in filled:
                filled["rope_theta"] = 10000.0
            for name in self.family.containers:
                family = registry.get(name)
                flags = _bias_flags(family, wanted)
                if flags is not None and _takes(family, config):
                    return {
                        **filled,
                        **family.as_container,
                        **flags,
                        "model_type": family.model_types[0],
                        "architectures": [f"{family.classes}ForCausalLM"],
                    }
        what = "biases on o_proj and down_proj" if biased else "this shape"
        remedy = "use --bias drop" if biased else "choose a hidden size that the heads divide"
        raise InputError(f"no stock container holds a {self.family.name} with {what}", remedy)


def _takes(family: Family, config: Mapping[str, Any]) -> bool:
    hidden, heads = config[family.key("hidden")], config[family.key("heads")]
    return not family.hidden_divides or hidden % heads == 0


def _bias_flags(family: Family, wanted: set[str]) -> dict[str, bool] | None:
    """Return the flags that make `family` hold all `wanted` biases, or None if it cannot."""
    always = {name for name in family.tensors if name.endswith(".bias")}
    flags = {flag: bool(wanted & set(table)) for flag, table in family.biases.items()}
    held = always.union(*(family.biases[flag] for flag, on in flags.items() if on))
    return flags if wanted <= held else None


def _group(name: str, axes: Axes, family: Family) -> str:
    if "{i}" not in name and len(axes) == 2:
        return "head" if name.startswith(family.head) else "embedding"
    if len(axes) < 2:
        return "biases" if name.endswith(".bias") else "norms"
    if "experts" in axes:
        return "router"
    return "ffn" if "ffn" in "+".join(axes) else "attention"


FLOPS_TOKENS = 2048
