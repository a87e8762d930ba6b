"""`Method`: what the pipeline must know of a pruning method beside its formula.

Methods see tensors only. Three kinds of formula, told apart by `unit`:

- `weights`:  `sparsify(weight_OI, factor, pattern, options) -> weight_OI`, zeros where pruned;
  `factor` is what `prepare(stats, options)` made once per distinct input of a layer.
- `channels`: `score(layer, options) -> {"ffn": s_F, "kv_heads": s_K, "hidden": s_D}`, higher =
  keep; `hidden` is summed over the layers by the pipeline. Or `{"experts": s_E}`.
- `layers`:   `score_layers(stats, options) -> {"layers": s_L}` or `{"blocks.k": s}`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from prunecli.model.pattern import SparsityPattern

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Option:
    """An option that belongs to a method; the command line shows it under the method's name.

    `metavar` is what help shows for its value, where type and choices do not say it.
    `stage` is the first step that reads it: what `score` has used, `prune --scores` must agree to.
    `idle` tells why it changes nothing beside the other settings, "" where it does.
    """

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    metavar: str = ""
    stage: str = "score"
    idle: "Callable[[Setting], str]" = lambda beside: ""

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class RequiredStatistic:
    """A statistic that a method reads: its name, and at which points of a layer.

    Points: `q`, `o`, `gate`, `down` (the inputs of these projections, of every expert's where there
    are experts), `experts` (what they give, by expert), `block` (a layer as a whole: its input and
    output, or its weights and their gradients), `model` (the model as a whole: its losses, its
    residual stream). `compat` needs are only met for `--compat official`, the others only without
    it, `None` always.
    """

    name: str
    points: tuple[str, ...]
    compat: bool | None = None


@dataclass(frozen=True)
class Setting:
    """What an option stands beside: the other options, and what is known of amount and model.

    Attributes:
        options: all of the method's, with their values.
        compat: whether the official code is followed.
        pattern: where zeros go, None where nothing is set to zero.
        cut: axes that get smaller, None where that is not known yet.
        of_ratio: whether sizes are made from a ratio, or a number of parameters.
        group: query heads per KV head.
        rounded: whether later layers see what a storage type has made of the weights.
    """

    options: Mapping[str, Any]
    compat: bool
    pattern: SparsityPattern | None = None
    cut: frozenset[str] | None = None
    of_ratio: bool = True
    group: int = 0
    rounded: bool = True

    @property
    def grouped(self) -> bool:
        """Whether the pattern is N:M."""
        return self.pattern is not None and self.pattern.group > 0

    def keeps(self, axis: str) -> bool:
        """Return whether an axis is known to stay as it is."""
        return self.cut is not None and axis not in self.cut


@dataclass(frozen=True)
class LayerView:
    """One layer as a channel formula sees it.

    Attributes:
        weights: `"o"` and `"down"`: the projection out of the heads and out of the FFN, [D, I], of
            those that this layer has.
        stats: `point.statistic` -> vector over the channels of that point.
        kv_heads: number of KV groups; channels of `o` are ordered by group, then query head.
        experts: number of experts, 0 where there are none.
        index: which layer it is, from 0.
    """

    weights: "Mapping[str, torch.Tensor]"
    stats: "Mapping[str, torch.Tensor]"
    kv_heads: int
    experts: int = 0
    index: int = 0


def layers_of(protect: str) -> tuple[int, int]:
    """Return the two numbers of FIRST,LAST; raise UsageError for anything else."""
    from prunecli.errors import UsageError

    first, comma, last = protect.partition(",")
    if not (comma and first.strip().isdecimal() and last.strip().isdecimal()):
        raise UsageError(f"--protect '{protect}': expected FIRST,LAST, two numbers of layers")
    return int(first), int(last)


def domains_of(options: Mapping[str, Any]) -> list[str]:
    """Return every D that options name beside `--data`."""
    names = (name.strip() for name in options.get("domains", "").split(","))
    return [name for name in names if name]


def shares_of(options: Mapping[str, Any], domains: int) -> list[float] | None:
    """Return the shares that so many domains begin with, None where options do not say.

    Raises UsageError for anything but a positive number each.
    """
    from prunecli.errors import UsageError

    text = options.get("domain_weights", "")
    if not text:
        return None
    try:
        shares = [float(share) for share in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != domains or not all(0 < share < inf for share in shares):
        raise UsageError(
            f"--domain-weights '{text}': expected {domains} numbers above 0, separated by commas",
            "one for --data, then one for each of --domains",
        )
    return shares


Formula = Callable[..., Any]


@dataclass(frozen=True)
class Method:
    """The record of one method; `name` is its file's name with `-` for `_`.

    methods with `trains_masks` train masks for given sizes, instead of scoring units.
    `rotates`: the scores hold a `rotation` [D, D] of the residual stream to carry out first.
    `protects` tells from the options how many of the first and of the last layers always stay.
    `check` raises UsageError for options that contradict a pattern of zeros.
    `quirks` tells why `--compat official` changes nothing, "" where it does; None: it never does.
    """

    name: str
    title: str
    reference: str
    unit: str
    granularity: str
    axes: tuple[str, ...] = ()
    needs: tuple[RequiredStatistic, ...] = ()
    sequential: bool = False
    selection: str = "uniform"
    options: tuple[Option, ...] = ()
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prepare: Formula | None = None
    sparsify: Formula | None = None
    score: Formula | None = None
    score_layers: Formula | None = None
    compensates: bool = False
    trains_masks: bool = False
    rotates: bool = False
    protects: Callable[[Mapping[str, Any]], tuple[int, int]] | None = None
    check: Callable[[Mapping[str, Any], SparsityPattern], None] | None = None
    quirks: Callable[[Setting], str] | None = None

    def resolve(self, explicit: Mapping[str, Any]) -> dict[str, Any]:
        """Return every option with its value, defaults filled in.

        Raises UsageError for an option that the method does not have, or a value that the option
        does not take.
        """
        from prunecli.errors import UsageError, suggest
        from prunecli.record import as_float

        known = {option.name: option for option in self.options}
        values = {name: option.default for name, option in known.items()}
        for name, value in explicit.items():
            if name not in known:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"method '{self.name}' has no option {flag}{suggest(name, [*known])}"
                )
            kind, choices = known[name].type, known[name].choices
            numeric = kind is float and isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (isinstance(value, kind) or numeric):
                raise UsageError(f"{known[name].flag}: expected {kind.__name__}, got {value!r:.60}")
            if choices and value not in choices:
                raise UsageError(
                    f"{known[name].flag}: unknown value '{value}'"
                    f"{suggest(str(value), list(choices))}"
                )
            values[name] = as_float(known[name].flag, value) if numeric else value
        return values

    def refuse_idle(self, explicit: Mapping[str, Any], beside: Setting) -> None:
        """Raise UsageError for what is explicit, unlike its default, and changes nothing."""
        from prunecli.errors import UsageError

        if beside.compat:
            if self.quirks is None:
                raise UsageError(
                    f"--compat official changes nothing: '{self.name}' has no quirk to follow",
                    "leave it out",
                )
            if why := self.quirks(beside):
                raise UsageError(f"--compat official changes nothing: {why}", "leave it out")
        for option in self.options:
            value = explicit.get(option.name, option.default)
            if value != option.default and (why := option.idle(beside)):
                flag = option.flag if value is True else f"{option.flag} {value}"
                raise UsageError(f"{flag} changes nothing: {why}", "leave it out")

    def biased(self, options: Mapping[str, Any]) -> bool:
        """Return whether removed channels leave a bias."""
        return self.compensates and options["bias"] == "keep"

    def needed(self, compat: bool) -> tuple[RequiredStatistic, ...]:
        """Return the statistics to collect, for the paper's formula or for the official code's."""
        return tuple(need for need in self.needs if need.compat in (None, compat))
