"""What the options of a command came to: records for the verbs, paths from stdin, the listener."""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import typer

from prunecli import interruption
from prunecli.cli import console, signals, streams
from prunecli.cli.config import resolved
from prunecli.cli.options import (
    CONFIG,
    OUTPUT,
    PROBE,
    RESTART,
    VERBOSITY,
    WINDOWS,
    method_options,
)
from prunecli.errors import UsageError
from prunecli.files import regular, strict, world
from prunecli.methods import registry
from prunecli.methods._base import Method
from prunecli.report import Report
from prunecli.settings import Amount, Compute, Data, Output, RunContext

# options that decide nothing of what is written
INCIDENTAL = frozenset({
    *OUTPUT, *RESTART, *PROBE, *VERBOSITY, *CONFIG, "help", "device", "threads", "buffer", "memory",
    "keep", "save_every", "keep_states", "track",
})  # fmt: skip


def setup(context: typer.Context) -> Report:
    """Print the configuration if asked; set up what is global; return the listener.

    Of several processes the first one talks.
    """
    resolved(context)
    values, silent = context.params, not world.is_first()
    if values.get("threads"):
        os.environ["OMP_NUM_THREADS"] = str(values["threads"])
    progress = "none" if silent else values["progress"]
    quiet = values["quiet"] or silent
    streams.keep_apart(quiet)
    return console.StderrReport(quiet, values["verbose"] and not silent, progress)


def output(values: Mapping[str, Any]) -> Output:
    """Return what may happen to OUT."""
    flags = {name: values.get(name, False) for name in (*OUTPUT, *RESTART, *PROBE)}
    return Output(**flags, argv=(Path(sys.argv[0]).name, *sys.argv[1:]))


def run_context(
    values: Mapping[str, Any], out: str | None, report: Report, command: str = ""
) -> RunContext:
    """Return what every verb is handed beside its request; `out` is None where nothing is kept.

    `command` is for those that write model cards.
    """
    interruption.safe_point()  # what the verb needs has been imported
    return RunContext(
        replace(output(values), path=out or "", command=command),
        compute_of(values),
        report,
        interruption.asked,
    )


def command_line(context: typer.Context) -> str:
    """Return the command line in one form, whoever typed it where.

    Paths of models are IN and OUT, those of files are without their folders, and what is at its
    default or decides nothing of the result is left out.
    """
    flags, arguments = [], []
    method = context.params.get("method")
    own = {entry.name for entry in registry.get(method).options} if method else set()
    foreign = method_options().keys() - own
    for parameter in context.command.params:
        value, name = context.params.get(parameter.name or ""), parameter.name
        if parameter.param_type_name == "argument":
            is_hub = isinstance(value, str) and value.startswith("hf:")
            arguments.append(shlex.quote(str(value)) if is_hub else str(parameter.metavar))
        elif name in INCIDENTAL or name in foreign or value in (None, False, parameter.default):
            continue
        elif value is True:
            flags.append(parameter.opts[0])
        else:
            flags += [parameter.opts[0], shlex.quote(_without_folder(str(value)))]
    return " ".join(["prunecli", context.info_name or "", *flags, *arguments])


def _without_folder(value: str) -> str:
    return value if value.startswith("hf:") else PurePath(value).name or value


def read_paths() -> list[str]:
    """Return the paths on stdin, one a line, or that of a --json object.

    Raises UsageError where there are none: the command before has failed.
    """
    if world.size() > 1:
        raise UsageError("several processes cannot all read stdin", "name the path instead of '-'")
    with signals.waiting():
        try:
            text = sys.stdin.read(regular.MAX_BYTES + 1).strip()
        except UnicodeDecodeError:
            raise UsageError("stdin is not text in UTF-8, expected a path") from None
    if len(text) > regular.MAX_BYTES:
        raise UsageError(f"stdin has more than {regular.MAX_BYTES} characters, expected paths")
    if not text:
        raise UsageError(
            "stdin is empty, expected a path", "see whether the command before it failed"
        )
    if text.startswith("{"):
        try:
            record = strict.parsed(text)
            found = [record["path"]] if "path" in record else [r["path"] for r in record["results"]]
        except (ValueError, KeyError, TypeError):
            raise UsageError("stdin holds neither paths nor the JSON object of --json") from None
        return [str(path) for path in found]
    return [line.strip() for line in text.splitlines() if line.strip()]


def models_of(given: list[str], out: str | None) -> list[str]:
    """Return the models of a command that takes several, or stdin; --out is for one of them."""
    paths = read_paths() if given == ["-"] else given
    if "-" in paths:
        raise UsageError("'-' (stdin) must be the only IN")
    if out is not None and (len(paths) > 1 or not out.endswith(".json")):
        raise UsageError(f"--out needs one IN and a .json file, got {len(paths)} and '{out}'")
    return paths


def from_stdin(*values: str | None) -> list[str | None]:
    """Return path arguments with one `-` replaced by the path on stdin."""
    if values.count("-") > 1:
        raise UsageError("only one path can be '-' (stdin)")
    if "-" not in values:
        return list(values)
    paths = read_paths()
    if len(paths) != 1:
        raise UsageError(f"stdin holds {len(paths)} paths, expected one")
    return [paths[0] if value == "-" else value for value in values]


def chosen_options(
    method: str | None, context: typer.Context, stages: tuple[str, ...] = ("score", "prune")
) -> dict[str, Any]:
    """Return the method options that were given; raise UsageError for those it does not have.

    Variables of the environment may be meant for other methods and commands: those that it does not
    have, or that none of these stages reads, are ignored.
    """
    owners, values = method_options(), context.params
    given = {name: values[name] for name in owners if values.get(name) is not None}
    known = {entry.name: entry.stage for entry in registry.get(method).options} if method else {}
    for name in [name for name in given if known.get(name) not in stages]:
        if _source(context, name) == "ENVIRONMENT":
            del given[name]
        elif method and name not in known:
            raise UsageError(
                f"method '{method}' has no option --{name.replace('_', '-')}",
                f"it belongs to {', '.join(owners[name])}",
            )
    return given


def follows_official(context: typer.Context, has_quirks: bool) -> bool:
    """Return whether the official code is to be followed, quirks included.

    Where it has none, what a variable or a file says for all runs has no say.
    """
    given = context.params.get("compat") is not None
    return given and (has_quirks or is_explicit(context, "compat"))


def is_explicit(context: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line, unlike one of the environment."""
    return _source(context, name) == "COMMANDLINE"


def refuse(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Raise UsageError if one of these options, which nothing would read, was typed.

    Those of the environment and of --config may be meant for other commands.
    """
    for name in names:
        if is_explicit(context, name):
            flags = {p.name: p.opts[0] for p in context.command.params}
            raise UsageError(f"{flags[name]} {why}", "remove it")


def refuse_tokenizer(context: typer.Context, *sources: str) -> None:
    """Raise UsageError for a --tokenizer that was typed where all DATA are token ids."""
    from prunecli.data.rows import is_rows

    if all(map(is_rows, sources)):
        refuse(context, ["tokenizer"], "has no effect: DATA holds token ids already")


def _source(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return source.name if source is not None else ""


def amount_of(values: Mapping[str, Any]) -> Amount:
    """Return the amount among a command's arguments."""
    return Amount(**{name: values.get(name) for name in Amount.__dataclass_fields__})


def multiple_of(context: typer.Context, method: Method | None) -> int | None:
    """Return what sizes are to be multiples of.

    Where none are made, what a variable or a file says for all runs has no say.
    """
    values = context.params
    makes = method is not None and {"hidden", "ffn"} & set(method.axes) and values["plan"] is None
    makes = makes and (values["ratio"] is not None or values["params"] is not None)
    return values["multiple"] if makes or is_explicit(context, "multiple") else None


def data_of(values: Mapping[str, Any], source: str | None = None) -> Data:
    """Return the tokens to read among a command's arguments; `source` takes the place of --data."""
    fields = (*WINDOWS, "seed")
    return Data(source or values["data"], **{name: values[name] for name in fields})


def asked(context: typer.Context) -> frozenset[str]:
    """Return which of --data and the options of its windows were given, wherever."""
    known = {"source": "data", **{name: name for name in (*WINDOWS, "seed")}}
    return frozenset(
        field for field, name in known.items() if _source(context, name) not in ("", "DEFAULT")
    )


def compute_of(values: Mapping[str, Any]) -> Compute:
    """Return device, compute type, buffer and memory among a command's arguments."""
    fields = ("device", "dtype", "buffer", "memory")
    return Compute(**{name: values[name] for name in fields if name in values})
