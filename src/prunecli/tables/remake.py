"""The script that makes a history again: each step as a command, built from its recorded options.

What ran is not what was typed: options come from files and variables too, and Python calls have no
command line. Sidecars may come from anybody, and the script is to be run: flags are those that are
named here or that a method has, and every recorded value is quoted.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from prunecli.data import hub
from prunecli.errors import InputError
from prunecli.files.sidecar import Input
from prunecli.methods import registry
from prunecli.methods._base import Method, domains_of
from prunecli.report import cut, printable
from prunecli.settings import InitRequest, Training
from prunecli.tables.history import PLANNED, SHORT, History, Step

WIDTH = 96
SUFFIXES = {"stats": ".safetensors", "scores": ".safetensors"}
FOLDERS = ("checkpoint", "rows")
MOST = 2000  # steps: each that trained is compared with all before it
INPUTS = 10 * MOST
FREE = "unstructured"  # zeros anywhere
TOKENIZER = "tokenizer.json"

# commands that no script runs again, with why
UNRECORDED = {
    "search-arch": "its sidecar has the budget that came of its options, not the options",
    "speed": "times are another machine's",
}

START = """\
set -eu
OUT=${OUT:-again}
mkdir -p -- "$OUT"
differs=0
same() { # FILE TEXT: is what was recorded in the new sidecar?
    grep -qF -- "$2" "$1" || { printf '%s: not as recorded: %s\\n' "$1" "$2" >&2; differs=1; }
}"""
END = 'exit "$differs"'


class Unknown(Exception):
    """A step that cannot be made again from its record, and why."""


@dataclass(frozen=True)
class Script:
    """A shell script, the variables that must be set, and the steps that it lacks, with why."""

    text: str
    variables: list[str]
    missing: list[str]


@dataclass
class _Writer:
    """Where things are, in words of the script.

    Attributes:
        number: of the step that is written.
        places: by the ids and digests of what the steps made, and of what variables stand for.
        variables: what each is to be set to, by name.
        defaults: variables of texts by those of texts of the same name, of which other parts were
            read: it may be one text.
    """

    history: History
    number: int = 0
    defaults: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def place(self, role: str, key: str, what: str, id: str | None = None) -> str:
        """Return where an input is: what a step made, or else a variable called like its role."""
        known = [self.places[one] for one in (id, key) if one in self.places]
        if not known:
            name, number = role.upper(), 1
            while name in self.variables:
                number += 1
                name = f"{role.upper()}{number}"
            self.variables[name] = cut(f"the {role} that step {self.number} read ({what})")
            self.places[key] = f'"${name}"'
        return known[0] if known else self.places[key]

    def input(self, entry: Input) -> str:
        """Return where an input of a step is."""
        return self.place(entry.role, entry.digest, f"digest {entry.digest[:SHORT]}", entry.id)

    def tokenizer(self, digest: str) -> str:
        """Return a folder with a tokenizer: the first model whose descendant has its file."""
        for record in self.history.records.values():
            if record.run.files.get(TOKENIZER) == digest and record.kind == "checkpoint":
                root = record.history[0]
                for entry in root.inputs:
                    if entry.role == "model":
                        return self.input(entry)
                if root.id in self.places:
                    return self.places[root.id]
        return self.place("tokenizer", digest, f"a folder, digest {digest[:SHORT]}")


def remake(history: History) -> Script:
    """Return the script that makes every step of a history, in order, and compares the digests.

    Raises InputError for more than MOST steps, or INPUTS inputs of theirs.
    """
    inputs = sum(len(step.made.inputs) for step in history.steps)
    if inputs > INPUTS:
        raise InputError(
            f"the steps of the history have {inputs} inputs, a script has at most {INPUTS}",
            "leave out --commands, or give fewer paths",
        )
    if len(history.steps) > MOST:
        raise InputError(
            f"the history has {len(history.steps)} steps, a script has at most {MOST}",
            "leave out --commands, or give fewer paths",
        )
    writer = _Writer(history)
    body: list[str] = []
    missing: list[str] = []
    for number, step in enumerate(history.steps, 1):
        writer.number = number
        title = f"step {number}: {step.made.command}, {step.made.id[:SHORT]}"
        try:
            lines = _of_step(writer, step)
        except Unknown as error:
            missing.append(cut(f"step {number}, {step.made.command}: {error}"))
            lines = [f"# cannot be made again from its record: {cut(str(error))}"]
        body += ["", f"# {cut(title)}", *lines]
    text = "\n".join([*_head(history, writer), *body, "", END])
    return Script(text, [n for n in writer.variables if n not in writer.defaults], missing)


def _head(history: History, writer: _Writer) -> list[str]:
    """Return the first lines: what this is, and what must be set before it runs."""
    versions = {
        f"{name} {version}"
        for record in history.records.values()
        for name, version in {**record.run.libraries, "prunecli": record.made_by.version}.items()
    }
    told = [
        f"{len(history.steps)} steps, recorded by {', '.join(sorted(versions))}.",
        "Other versions, processors and numbers of threads may round otherwise.",
        "Results go to the folder OUT; finished steps are kept when it is run again.",
    ]
    if writer.variables:
        told.append("Set these to paths that are not recorded:")
    asked = []
    for name, what in writer.variables.items():
        default = writer.defaults.get(name)
        told.append(f"  {name}  {what}" + (f", {default} if not set" if default else ""))
        value = f"=${default}" if default else "?is not set: see the top"
        asked.append(f': "${{{name}:{value}}}"')
    start, *rest = START.splitlines()
    return ["#!/bin/sh", *(f"# {cut(line)}" for line in told), start, *asked, *rest]


def _of_step(writer: _Writer, step: Step) -> list[str]:
    """Return the lines of one step; raise Unknown if its record does not say how it was made."""
    command, kind = step.made.command, step.kind
    if kind is None:
        raise Unknown("its options or inputs were changed after it was made")
    if command not in WORDS:
        raise Unknown(UNRECORDED.get(command, "this version has no such command"))
    try:
        words = WORDS[command](writer, step)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Unknown(f"its record lacks what '{command}' records ({error})") from None
    suffix = "" if kind in FOLDERS else SUFFIXES.get(kind, ".json")
    path = f"$OUT/{writer.number}-{command}{suffix}"
    beside = "/prunecli.json" if kind in FOLDERS else ".json" if kind in SUFFIXES else ""
    model = [writer.input(entry)] if (entry := step.input("model")) else []
    out = ["--out", f'"{path}"', *model] if command == "eval" else [*model, f'"{path}"']
    for key in filter(None, (step.made.id, step.digest)):
        writer.places[key] = f'"{path}"'
    expected = f'"digest": "{step.digest}"' if step.digest else f'"id": "{step.made.id}"'
    return [
        _folded(["prunecli", command, *words, "--skip-existing", *out]),
        f'same "{path}{beside}" {_quoted(expected)}',
    ]


def _folded(words: Iterable[str]) -> str:
    """Return a command over as many lines as it takes; a flag and its value stay together."""
    parts: list[str] = []
    for word in words:
        if word.startswith("--") or not parts:
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    lines = parts[:1]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) < WIDTH:
            lines[-1] += f" {part}"
        else:
            lines.append(f"    {part}")
    return " \\\n".join(lines)


def _quoted(value: Any) -> str:
    """Return a recorded value as one word of a shell; raise Unknown if it cannot be printed."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise Unknown(f"a value is {type(value).__name__}, expected text or a number")
    text = str(value)
    if printable(text) != text:
        raise Unknown("a value in it has characters that cannot be printed")
    return shlex.quote(text)


def _flags(**values: Any) -> list[str]:
    """Return flags with their values; none for None and False, a flag alone for True."""
    words = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, _quoted(value)]
    return words


def _changed(record: type, options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return those of `options` that are not the defaults of a record of settings."""
    defaults = {one.name: one.default for one in fields(record)}
    return {name: options[name] for name in names if options[name] != defaults[name]}


def _group(history: History) -> int:
    """Return the query heads per KV head, which no command changes; raise Unknown if none tells."""
    for record in history.records.values():
        sizes = record.results.get("sizes")
        if isinstance(sizes, dict):
            heads, groups = sizes.get("heads"), sizes.get("kv_heads")
            if isinstance(heads, int) and isinstance(groups, int) and groups > 0:
                return heads // groups
    raise Unknown("its number of query heads is not recorded")


# -- data -----------------------------------------------------------------------------------------


def _source(writer: _Writer, name: str, key: str) -> str:
    """Return text by its name; a file's path is not recorded."""
    kind = name.partition(":")[0]
    if kind in ("builtin", "hf", *hub.SETS):
        return _quoted(name)
    place = writer.place("text", f"text {name} {key}", f"'{name}'")
    first = writer.places.setdefault(f"text {name}", place)
    if first != place:
        writer.defaults[place.strip('"$')] = first.strip('"$')
    return place


def _rows(writer: _Writer, digest: str, span: list[int], id: str | None = None) -> str:
    """Return a range of rows."""
    first, stop = map(int, span)
    place = writer.place("rows", digest, f"digest {digest[:SHORT]}", id)
    return f"{place}:{first}:{stop}"


def _data(writer: _Writer, entry: Input) -> list[str]:
    """Return --data, and how windows are drawn from it."""
    meta = entry.model_extra or {}
    if "rows" in meta:
        return ["--data", _rows(writer, meta["rows"], meta["range"])]
    bos = meta["bos"]
    if bos and bos["before"] == "text":
        raise Unknown("its windows begin as only a recipe makes them")
    names = ("sampler", "nsamples", "seq_len", "seed", "text_column", "special_tokens")
    return [
        "--data",
        _source(writer, meta["source"], meta["text"]),
        *_flags(**{name: meta[name] for name in names}, skip_bad=meta["skipped"] or None),
        *_flags(bos="always" if bos else "never"),
        *_other_tokenizer(writer, meta["tokenizer"]),
    ]


def _other_tokenizer(writer: _Writer, digest: str) -> list[str]:
    """Return --tokenizer, if text was read with another one than the model's, which OUT has too."""
    made = writer.history.steps[writer.number - 1].made.id
    known = [
        record.run.files.get(TOKENIZER)
        for record in writer.history.records.values()
        if record.kind == "checkpoint" and record.run.files
        if made in (step.id for step in record.history)
    ]
    return ["--tokenizer", writer.tokenizer(digest)] if known and digest not in known else []


def _calibrated(writer: _Writer, step: Step, from_text: bool = True) -> list[str]:
    """Return where a step has its statistics from: a file, or data if it reads any."""
    for role in ("scores", "stats"):
        if entry := step.input(role):
            return [f"--{role}", writer.input(entry)]
    entries = [entry for entry in step.made.inputs if entry.role == "calibration"]
    return _data(writer, entries[-1]) if entries and from_text else []


# -- commands -------------------------------------------------------------------------------------


def _method(name: Any) -> Method:
    if name not in registry.names():
        raise Unknown(f"this version has no method '{name}'")
    return registry.get(name)


def _method_words(method: Method, options: Mapping[str, Any]) -> list[str]:
    """Return a method and those of its options that are not its defaults."""
    declared = {option.name: option for option in method.options}
    if unknown := options.keys() - declared.keys():
        raise Unknown(f"'{method.name}' has no option '{min(unknown)}' in this version")
    own = {name: value for name, value in options.items() if value != declared[name].default}
    return ["--method", method.name, *_flags(**own)]


def _prune(writer: _Writer, step: Step) -> list[str]:
    options = step.made.options
    plan = step.input(PLANNED)
    words = _flags(plan_only=step.kind == PLANNED)
    reads_text = plan is None
    if plan is not None:
        words += ["--plan", writer.input(plan)]
    if options["method"] is not None:
        method, own = _method(options["method"]), options["options"]
        if domains_of(own):
            raise Unknown("it read several texts, and each is recorded in two parts")
        if plan is not None:  # which has the others
            own = {name: value for name, value in own.items() if name == "bias"}
        words += _method_words(method, own)
        reads_text = reads_text or method.biased(options["options"])
    if plan is None:
        words += _amount(writer, _method(options["method"]), options)
    words += _calibrated(writer, step, reads_text)
    if "--seed" not in words:  # of training masks on rows, which are drawn without one
        words += _flags(seed=options.get("seed"))
    return [*words, *_flags(compat=options["compat"], dtype=options["dtype"])]


def _amount(writer: _Writer, method: Method, options: Mapping[str, Any]) -> list[str]:
    """Return how much was asked for: a ratio or a pattern, or else the sizes that came of it."""
    if "sparsity" in options:
        pattern = options["sparsity"]
        return _flags(**{"ratio": options["ratio"]} if pattern == FREE else {"sparsity": pattern})
    sizes = dict(options["sizes"])
    if sizes["ratio"] is not None:
        exact = 1 if {"hidden", "ffn"} & set(method.axes) else None
        return _flags(ratio=sizes["ratio"], multiple=sizes.get("multiple", exact))
    if "heads" in method.axes:
        sizes["heads"] = sizes["kv_heads"] * _group(writer.history)
    return _flags(**{axis: sizes[axis] for axis in method.axes})


def _calibrate(writer: _Writer, step: Step) -> list[str]:
    options = step.made.options
    if options["skip"] is not None:
        raise Unknown("how many layers its method tried to remove depends on the model")
    for compat in (False, True):
        if names := _methods_of(options["statistics"], compat):
            words = ["--for", _quoted(",".join(names)), *_calibrated(writer, step)]
            return [*words, *_flags(compat="official" if compat else None, dtype=options["dtype"])]
    raise Unknown("no methods of this version read just these statistics")


def _methods_of(statistics: Mapping[str, list[str]], compat: bool) -> list[str]:
    """Return methods that together read these statistics and no others; none if there are none."""
    wanted = {(name, point) for name, points in statistics.items() for point in points}
    pairs = {
        name: {(need.name, p) for need in registry.get(name).needed(compat) for p in need.points}
        for name in registry.names()
    }
    chosen = {name: own for name, own in pairs.items() if own and own <= wanted}
    return sorted(chosen) if set().union(*chosen.values()) == wanted else []


def _score(writer: _Writer, step: Step) -> list[str]:
    options = step.made.options
    own = dict(options["options"])
    compat = "official" if own.pop("compat") else None
    method = _method(options["method"])
    return [*_method_words(method, own), *_calibrated(writer, step), *_flags(compat=compat)]


def _init(writer: _Writer, step: Step) -> list[str]:
    options, words = step.made.options, []
    for role in ("config", "like", "from"):
        if entry := step.input(role):
            words += [f"--{role}", writer.input(entry)]
    own = dict(options) if options["masks"] else {**options, "masks": InitRequest.masks}
    changed = _changed(InitRequest, own, ("seed", "scheme", "masks", "dtype"))
    return [*words, *_flags(**changed, compat=options["compat"])]


def _tokenize(writer: _Writer, step: Step) -> list[str]:
    options = step.made.options
    text = step.input("text")
    if text is None:
        raise Unknown("it names no text")
    words = _flags(train_tokenizer=options["train_tokenizer"])
    if digest := options["tokenizer"]:
        words += ["--tokenizer", writer.tokenizer(digest)]
    names = ("seq_len", "special_tokens", "tokens", "text_column")
    separator = "none" if options["separator"] is None else options["separator"]
    words += _flags(
        **{name: options[name] for name in names},
        skip_bad=options["skip_bad"] or None,
        separator=separator,
        bos="always" if options["bos"] else "never",
    )
    return [*words, _source(writer, options["source"], text.digest)]


def _train(writer: _Writer, step: Step) -> list[str]:
    options = step.made.options
    rows = step.input("rows")
    if rows is None:
        raise Unknown("it names no rows")
    meta = rows.model_extra or {}
    names = (
        "beta1", "beta2", "eps", "weight_decay", "clip", "warmup", "floor", "seed", "micro_batch",
        "activation_checkpointing", "compile", "save_dtype", "masks", "kd_weight", "temperature",
        "eval_every", "sweep_steps",
    )  # fmt: skip
    own = _changed(Training, options, names)
    words = ["--data", _rows(writer, rows.digest, meta["range"], rows.id)]
    words += _flags(steps=options["steps"], batch_size=options["batch_size"])
    lrs = options["lr"]
    words += _flags(lr=",".join(map(str, lrs)) if isinstance(lrs, list) else lrs)
    words += _flags(repeat=meta["passes"] > meta["range"][1] - meta["range"][0])
    words += _flags(allow_overlap=_read_before(writer, step, rows))
    for role in ("teacher", "masks"):
        if entry := step.input(role):
            words += [f"--{role}", writer.input(entry)]
            own.pop(role, None)
    if held_out := step.input("evaluation"):
        of_text = _data(writer, held_out)
        words += ["--eval-data", of_text[1]]
        seen = held_out.model_extra or {}
        if "rows" not in seen:
            words += _flags(text_column=seen["text_column"], skip_bad=seen["skipped"] or None)
    return [*words, *_flags(**own, dtype=options["dtype"])]


def _read_before(writer: _Writer, step: Step, rows: Input) -> bool:
    """Return whether an ancestor was trained on some of these rows."""
    first, stop = (rows.model_extra or {})["range"]
    steps = {one.made.id: one.made for one in writer.history.steps}
    spans = []
    parent = steps.pop(step.made.parent or "", None)
    while parent is not None:
        spans += [
            (entry.model_extra or {}).get("range", (0, 0))
            for entry in parent.inputs
            if rows.digest in (entry.digest, (entry.model_extra or {}).get("rows"))
        ]
        parent = steps.pop(parent.parent or "", None)  # each once, in a circle too
    return any(start < stop and first < end for start, end in spans)


def _eval(writer: _Writer, step: Step) -> list[str]:
    read = [entry for entry in step.made.inputs if entry.role != "model"]
    data = [_data(writer, entry) for entry in read if entry.role == "evaluation"]
    if len(data) != len(read) or any(words[2:] != data[0][2:] for words in data):
        raise Unknown("it ran tasks, or read several texts each in its own way")
    options = step.made.options
    sources = [word for words in data for word in words[:2]]
    flags = _flags(allow_overlap=options["allow_overlap"], dtype=options["dtype"])
    return [*sources, *data[0][2:], *flags]


WORDS: dict[str, Callable[[_Writer, Step], list[str]]] = {
    "prune": _prune,
    "calibrate": _calibrate,
    "score": _score,
    "init": _init,
    "tokenize": _tokenize,
    "train": _train,
    "eval": _eval,
}
