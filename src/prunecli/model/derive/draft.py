"""A record in the making, and the text of a family's file that it becomes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunecli.errors import InputError
from prunecli.model import configs
from prunecli.model.families._base import CONFIG_KEYS, EXPERT_KEYS, Experts, Family, windows
from prunecli.model.families._kinds import sized

LONGEST = 200  # characters of what failed
BY_HAND = "describe it by hand, as docs/adding-a-family.md shows"
# sizes of the tiny model by axis, of which no two make the same product, and others
SIZES = {
    "hidden": 48, "ffn": 80, "heads": 6, "kv_heads": 2, "head_dim": 8, "vocab": 259,
    "positions": 64,
}  # fmt: skip
OTHERS = {
    "hidden": 96, "ffn": 88, "heads": 12, "kv_heads": 3, "head_dim": 16, "vocab": 260,
    "positions": 72, "experts": 6,
}  # fmt: skip
# how many experts there are in it, of which each token takes some
EXPERTS = {"experts": 4, "experts_per_token": 2}
LAYERS, WINDOW = 4, 8
WIDTH = 100  # of a line of a file
POSITIONS = "max_position_embeddings"


class Indescribable(InputError):
    """A model that no record describes, and what of it is beyond one (exit status 4)."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(f"no record describes '{kind}': {why}", BY_HAND)


@dataclass(frozen=True)
class Rule:
    """A rule of a record: of an entry of a list that is absent, of kinds of layers, or of a size.

    `text` is how a file says it, but for the arguments, where it is made by a call.
    """

    text: str
    rule: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def __call__(self, *told: Any) -> Any:
        """Return what the rule makes of what it is told."""
        return self.rule(*told)

    def __repr__(self) -> str:
        told = ", ".join(map(repr, self.arguments))
        return f"{self.text}({told})" if told else self.text

    @classmethod
    def windows(cls, period: int) -> "Rule":
        """Return that of windows in all layers but every so many-th."""
        return cls("windows", windows(period), (period,))

    @classmethod
    def always(cls, value: Any) -> "Rule":
        """Return that of one value."""
        return cls(f"lambda config, i: {value!r}", lambda config, i: value)

    @classmethod
    def every(cls, period: int, usual: Any, last: Any) -> "Rule":
        """Return that of one value in all layers but every so many-th, which has another."""
        text = f"lambda config, i: {usual!r} if (i + 1) % {period} else {last!r}"
        return cls(text, lambda config, i: usual if (i + 1) % period else last)

    @classmethod
    def cycle(cls, values: list[Any]) -> "Rule":
        """Return that of values which come again and again."""
        again, count = tuple(values), len(values)
        return cls(f"lambda config, i: {again!r}[i % {count}]", lambda config, i: again[i % count])

    @classmethod
    def led(cls, count: int, first: Any, other: Any) -> "Rule":
        """Return that of one value in so many layers, and another one in those that follow."""
        text = f"lambda config, i: {first!r} if i < {count} else {other!r}"
        return cls(text, lambda config, i: first if i < count else other)


USED = ("Experts", "each_of", "of_types", "sized", "windows")  # what a file takes from families
USUAL_LISTS: Mapping[str, Rule | None] = {"layer_types": None}


@dataclass
class Draft:
    """A record in the making: its fields by name, and the config.json of a tiny model of its kind.

    `keys` are the config keys of sizes by axis, `wide` those of sizes that are hidden's too.
    `lists` are those of lists that tell of which kinds layers are: entry -> modules. `layers` is
    the list of layers in its class, once it is known, `experts` are those of a layer.
    """

    kind: str
    config: dict[str, Any]
    keys: dict[str, str]
    wide: tuple[str, ...]
    lists: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    layers: str | None = None
    experts: Experts | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a model of this kind, experts as files have them."""
        return configs.shapes(config, self.layers, self.experts)

    def changed(self, axis: str, size: int) -> dict[str, int]:
        """Return the keys of a size with another one."""
        more = self.wide if axis == "hidden" else ()
        return dict.fromkeys((self.keys[axis], *more), size)

    def family(self) -> Family:
        """Return the record."""
        return Family(**{**self.fields, "axes": sized(**self.fields.get("axes", {}))})

    def refused(self, why: str) -> Indescribable:
        """Return the error for what is beyond a record."""
        return Indescribable(self.kind, why)

    def text(self) -> str:
        """Return the record as the text of a family's file."""
        usual = {**vars(Family), "layer_lists": USUAL_LISTS}
        body = _shown({k: v for k, v in self.fields.items() if v != usual.get(k)})
        title = self.fields["classes"]
        used = sorted(["Family", *(name for name in USED if f"{name}(" in body)])
        return (
            f'"""{title}, derived from transformers\' class of `{self.kind}`."""\n\n'
            f"from prunecli.model.families import {', '.join(used)}\n\n"
            f"FAMILY = Family(\n{body})\n"
        )


def usual_key(axis: str) -> str:
    """Return the key of config.json by which most classes call an axis."""
    return {**CONFIG_KEYS, **EXPERT_KEYS}.get(axis, POSITIONS)


def _shown(fields: Mapping[str, Any]) -> str:
    """Return keyword arguments, as they stand in a file."""
    lines = []
    for name, value in fields.items():
        if value in ({}, (), None, False, 0, 0.0) and name != "inputs":
            continue
        if isinstance(value, Experts):
            told = {k: v for k, v in vars(value).items() if v != vars(Experts).get(k, ())}
            rows = "".join(_row(f"{key}=", entry, 8) for key, entry in told.items())
            lines.append(f"    {name}=Experts(\n{rows}    ),\n")
        elif name == "axes":
            rows = "".join(_row(f"{axis}=", size, 8) for axis, size in value.items())
            lines.append(f"    axes=sized(\n{rows}    ),\n")
        else:
            lines.append(_row(f"{name}=", value, 4, opened=name == "inputs"))
    return "".join(lines).replace("'", '"')


def _row(before: str, value: Any, indent: int, opened: bool = False) -> str:
    """Return a value with what stands before it, in lines of its own where it is long.

    A table is `opened` at any length.
    """
    line = f"{' ' * indent}{before}{value!r},\n"
    inner, closed = indent + 4, f"{' ' * indent}"
    if isinstance(value, Mapping) and value:
        rows = [_row(f"{key!r}: ", entry, inner) for key, entry in value.items()]
        start, end = "{", "}"
    elif not opened and len(line) <= WIDTH:
        return line
    elif isinstance(value, list | tuple):
        rows = [_row("", entry, inner) for entry in value]
        start, end = "[]" if isinstance(value, list) else "()"
    elif isinstance(value, Rule) and value.arguments:
        rows = [_row("", entry, inner) for entry in value.arguments]
        start, end = f"{value.text}(", ")"
    elif " + " in (text := repr(value)):  # a sum
        head, _, terms = text.partition(": ")
        rows = [f"{' ' * inner}{term}\n" for term in terms.replace(" + ", "\n+ ").split("\n")]
        start, end = f"{head}: (", ")"
    else:
        return line
    return f"{closed}{before}{start}\n{''.join(rows)}{closed}{end},\n"
