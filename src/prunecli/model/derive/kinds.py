"""Layers of several kinds: which list of config.json tells them, and the sizes of their mixers."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from math import prod
from typing import Any

from prunecli.errors import InputError
from prunecli.model import configs
from prunecli.model.derive.draft import LAYERS, OTHERS, Draft, Rule
from prunecli.model.derive.forward import random_model
from prunecli.model.derive.shrunk import TOKENS
from prunecli.model.families._kinds import LEGACY, each_of, of_types

Shapes = Mapping[str, tuple[int, ...]]
WITHIN = ("hidden", "ffn")  # axes that sizes of a family's own can be computed from
MOST_KEYS = 5  # that one size is computed from
COUNTED = "config.json would count experts that no layer has"
TOLD = "transformers does not generate without such a layer"


def told_apart(made: Draft, layers: Sequence[Collection[str]]) -> dict[str, dict[str, Any]]:
    """Return the lists of config.json that tell what layers have: entry -> modules.

    `layers` are the names of the tensors of each layer. Raises InputError where layers are unlike
    each other, and no list tells why.
    """
    lists = {
        key: value
        for key, value in made.config.items()
        if isinstance(value, list) and len(value) == LAYERS and {*map(type, value)} == {str}
    }
    found: dict[str, dict[str, Any]] = {}
    for module, having in _modules(layers).items():
        telling = [
            key
            for key, value in lists.items()
            if not {value[i] for i in having} & {value[i] for i in range(LAYERS) if i not in having}
        ]
        if not telling:
            has, lacks = having[0], next(i for i in range(LAYERS) if i not in having)
            odd = next(name for name in sorted(layers[has]) if f"{name}.".startswith(f"{module}."))
            raise made.refused(
                f"layers {min(has, lacks)} and {max(has, lacks)} are unlike each other, and no "
                f"list of config.json tells why: '{odd}'"
            )
        key = telling[0]
        table = found.setdefault(key, dict.fromkeys(lists[key], ()))
        for kind in dict.fromkeys(lists[key][i] for i in having):
            table[kind] = (*table[kind], module)
    return found


def _modules(layers: Sequence[Collection[str]]) -> dict[str, tuple[int, ...]]:
    """Return the modules that only some layers have, each with these layers."""
    having: dict[str, tuple[int, ...]] = {}
    for name in dict.fromkeys(name for names in layers for name in names):
        having[name] = tuple(i for i, names in enumerate(layers) if name in names)
    found = {}
    for name, own in having.items():
        if len(own) == len(layers):
            continue
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            module = ".".join(parts[:count])
            inside = {own for other, own in having.items() if f"{other}.".startswith(f"{module}.")}
            if inside == {own}:
                found[module.removesuffix(".weight")] = own
                break
    return found


def fields(made: Draft, rules: Mapping[str, Rule | None]) -> dict[str, Any]:
    """Return what a record says of the kinds; `rules` are those of lists that are absent."""
    if not made.lists:
        return {}
    kinds: dict[str, tuple[str, ...]] = {}
    for table in made.lists.values():
        for entry, modules in table.items():
            kind = LEGACY.get(entry, entry)
            if kinds.setdefault(kind, modules) != modules:
                raise made.refused(f"two kinds of layers are both called '{kind}'")
    by_list = [_of_types(key, rules[key]) for key in made.lists]
    all_told = Rule("each_of", each_of(*by_list), tuple(by_list))
    return {
        "kinds": kinds,
        "kinds_of": by_list[0] if len(by_list) == 1 else all_told,
        "needed": {**dict.fromkeys(_needed(made), TOLD), **_mixed(made, kinds)},
    }


def _of_types(key: str, rule: Rule | None) -> Rule:
    entry = rule or Rule.always(None)
    return Rule("of_types", of_types(entry, key), (entry, key))


def _mixed(made: Draft, kinds: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return that layers with experts are needed, where others have none."""
    own = None if made.experts is None else made.experts.module
    return {kind: COUNTED for kind, modules in kinds.items() if own in modules}


def _needed(made: Draft) -> Iterator[str]:
    """Yield the kinds without a layer of which the class does not generate.

    Of kinds with the same modules, which differ in what they attend to, the first is one of all.
    """
    if not _generates(made.config):
        return
    for key, table in made.lists.items():
        for modules in dict.fromkeys(table.values()):
            alike = [kind for kind in table if table[kind] == modules]
            other = next(kind for kind in table if kind not in alike)
            entries = [other if entry in alike else entry for entry in made.config[key]]
            if not _generates({**made.config, key: entries}):
                yield LEGACY.get(alike[0], alike[0])


def _generates(config: Mapping[str, Any]) -> bool:
    """Return whether a model reads tokens, and one after others, with its cache."""
    import torch

    try:
        model = random_model(config)
        with torch.no_grad(), configs.bounded("transformers' model cannot be run"):
            ids = torch.ones(1, 4, dtype=torch.long)
            model(ids, use_cache=True)
            model.generate(ids, max_new_tokens=2, min_new_tokens=2, pad_token_id=0)
    except configs.Endless:
        raise
    except InputError:
        return False
    return True


class Sizes:
    """The sizes of a family's own: of what no axis of all families is as long as.

    `changes` are the keys of config.json that they depend on, each with another value.
    """

    def __init__(self, made: Draft) -> None:
        self.made = made
        self.axes: dict[str, Rule] = {}
        self.keys: dict[str, None] = {}  # of config.json, that these axes are computed from
        self.following: set[str] = set()  # axes that are as long as hidden channels tell
        self._lengths: dict[str, tuple[int, ...]] = {}
        self._built: dict[tuple[Any, ...], Shapes] = {}
        base = self._shapes({}, ())
        self.changes: dict[str, int] = {}
        usual = (*made.keys.values(), *made.wide, *TOKENS)
        for key, value in made.config.items():
            if type(value) is not int or value < 1 or key in usual:
                continue
            for other in (2 * value, 3 * value, value + 1):
                try:
                    shapes = made.shapes({**made.config, key: other})
                except configs.Endless:
                    raise
                except InputError:  # a size that others bind
                    continue
                if shapes.keys() == base.keys() and shapes != base:
                    self.changes[key] = other
                break

    def _shapes(self, flags: Mapping[str, Any], changed: Sequence[str]) -> Shapes:
        which = (*sorted(flags), *sorted(changed))
        if which not in self._built:
            config = {**self.made.config, **flags}
            for key in changed:
                config |= self._changed(key)
            self._built[which] = self.made.shapes(config)
        return self._built[which]

    def _changed(self, key: str) -> dict[str, int]:
        """Return the keys that another value of a size changes, with theirs."""
        for axis in WITHIN:
            if key == self.made.keys.get(axis):
                return self.made.changed(axis, OTHERS[axis])
        return {key: self.changes[key]}

    def axis(
        self,
        name: str,
        dimension: int,
        lengths: tuple[int, ...],
        flags: Mapping[str, Any],
        ffn: str | None = None,
    ) -> str:
        """Return the axis of a dimension of a tensor, "" if no formula tells its size.

        `lengths` are its lengths as sizes change; those of one axis are the same. It is called
        `ffn` where it is of an FFN, whose axes are told by their names. `flags` are those with
        which there is such a tensor.
        """
        for axis, known in self._lengths.items():
            if known == lengths and axis.endswith("_ffn") == bool(ffn):
                return axis
        hidden = self.made.keys["hidden"]
        # the channels of experts stay, and those of an FFN do not
        within = [hidden] if self.made.experts is None else [self.made.keys[a] for a in WITHIN]

        def size(changed: Sequence[str]) -> int:
            return self._shapes(flags, changed)[name][dimension]

        keys = [key for key in (*within, *self.changes) if size((key,)) != size(())]
        terms = self._terms(keys, size) if len(keys) <= MOST_KEYS else None
        if not terms:
            return ""
        module, _, own = name.rpartition(".")
        last = module.rpartition(".")[2]
        whole = len(terms) == 1 and next(iter(terms.items()))
        if ffn is not None:
            axis = ffn
        elif whole and whole[1] == 1 and len(whole[0]) == 1:
            (axis,) = whole[0]
        else:
            part = last if own in ("weight", "bias") else own
            axis = f"{part}_{('rows', 'columns', 'width')[dimension]}"
        axis = axis.lower()
        while axis in self._lengths or not axis.isidentifier():
            axis = f"_{axis}"
        self._lengths[axis] = lengths
        self.axes[axis] = _formula(terms)
        self.keys |= dict.fromkeys(key for key in keys if key in self.changes)
        if hidden in keys:
            self.following.add(axis)
        return axis

    def _terms(
        self, keys: Sequence[str], size: Callable[[Sequence[str]], int]
    ) -> dict[tuple[str, ...], int] | None:
        """Return a size as a sum of products of keys: keys -> factor; None if it is none.

        Such a sum is linear in every key, so it is known by its values at two of each. `size` is
        what it is where these keys have their other value.
        """
        before = {key: self.made.config[key] for key in keys}
        after = {key: self._changed(key)[key] for key in keys}
        subsets = [some for n in range(len(keys) + 1) for some in combinations(keys, n)]
        terms: dict[tuple[str, ...], int] = {}
        try:
            for some in reversed(subsets):
                # what changes with all of these together, less what larger products change
                told = Fraction(0)
                for n in range(len(some) + 1):
                    for part in combinations(some, n):
                        told += (-1) ** (len(some) - n) * size(part)
                told /= prod(after[key] - before[key] for key in some)
                for other, factor in terms.items():
                    if {*some} < {*other}:
                        told -= factor * prod(before[key] for key in other if key not in some)
                if told.denominator != 1:
                    return None
                if told:
                    terms[some] = int(told)
        except configs.Endless:
            raise
        except (InputError, KeyError):  # sizes that do not change together, or change what there is
            return None
        return dict(reversed(terms.items()))


def _formula(terms: Mapping[tuple[str, ...], int]) -> Rule:
    """Return the rule of a sum of products."""
    parts = []
    for keys, factor in terms.items():
        factors = [f'get("{key}")' for key in keys]
        parts.append(" * ".join([*([str(factor)] if factor != 1 or not keys else []), *factors]))

    def size(get: Callable[[str], Any]) -> Any:
        return sum(factor * prod(get(key) for key in keys) for keys, factor in terms.items())

    return Rule(f"lambda get: {' + '.join(parts)}", size)
