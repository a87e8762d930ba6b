"""A record in the making, and the text of a family's file that it becomes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prunecli.errors import InputError
from prunecli.model.families._base import CONFIG_KEYS, Family, windows

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
LAYERS, WINDOW = 4, 8
POSITIONS = "max_position_embeddings"


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


def usual_key(axis: str) -> str:
    """Return the key of config.json by which most classes call an axis."""
    return CONFIG_KEYS.get(axis, POSITIONS)


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
