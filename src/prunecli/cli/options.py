"""Options that several commands share, each written once; and where their values come from.

Flags win over the environment (PRUNECLI_DEVICE for --device), that over --config FILE, that over
the defaults.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from prunecli.cli.console import StderrReport
from prunecli.data import tokenizer
from prunecli.errors import UsageError, suggest
from prunecli.files.strict import told
from prunecli.methods import registry
from prunecli.report import Report
from prunecli.settings import Amount, Compute, Data, Output, RunContext

CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16"),
    "save-dtype": ("auto", "float32", "bfloat16", "float16"),
    "buffer": ("ram", "disk"),
    "compat": ("official",),
    "bos": tokenizer.BOS,
    "special-tokens": tokenizer.SPELLED_OUT,
    "sampler": ("docs", "concat-random", "concat-contiguous"),
    "recipe": ("paper", "official"),
    "layout": (
        *("models", "pairs", "table1", "table2", "table5", "table6", "table7", "table5-7"),
        *("table9", "table10", "table11", "table12", "table13", "table14", "table15", "scaling"),
        "table16",
    ),
    "suite": ("paper",),
    "reference": ("paper",),
    "figure": ("1", "3", "4", "5"),
    "format": ("rich", "md", "csv", "tex", "json"),
}


# options whose choices are only the usual ones
OPEN = ("device",)
EXIT_STATUS = {
    0: "success",
    1: "failed",
    2: "usage, configuration, or an unknown name",
    3: "check found something wrong",
    4: "input not usable, or the request impossible for it",
    5: "output exists",
    75: "stopped, and can go on",
    130: "interrupted (143: terminated)",
}


def option(name: str, help: str, **settings: Any) -> Any:
    """Return a Typer option that is also read from the environment."""
    variable = "PRUNECLI_" + name.upper().replace("-", "_")
    choices = CHOICES.get(name)
    if choices:
        settings["metavar"] = "|".join((*choices, "NAME") if name in OPEN else choices)
        settings["autocompletion"] = lambda: list(choices)
        if name not in OPEN:
            settings["callback"] = _one_of(name, choices)
    return typer.Option(f"--{name}", help=help, envvar=variable, show_envvar=False, **settings)


def _one_of(name: str, choices: tuple[str, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value is not None and value not in choices:
            raise UsageError(f"--{name}: unknown value '{value}'{suggest(value, list(choices))}")
        return value

    return check


def load_config(context: typer.Context, path: str | None) -> str | None:
    """Make the values of a TOML, YAML or JSON file the defaults of this command.

    Keys are option names; they stand at the top level or in a table named like the command.
    """
    if path is None:
        return None
    record = _read_config(path)
    name = context.info_name or ""
    commands = getattr(context.parent.command, "commands", {}) if context.parent else {}
    own = record.get(name, {})
    if not isinstance(own, dict):
        raise UsageError(f"--config '{path}': '{name}' is not a table of options")
    values = {key: value for key, value in record.items() if key not in commands} | own
    known = {
        param.name: param for param in context.command.params if param.param_type_name == "option"
    }
    known = {n: p for n, p in known.items() if n not in ("config", "print_config", "help")}
    defaults = {}
    for key, value in values.items():
        field = key.replace("-", "_").lstrip("_")
        by_flag = {p.opts[0].lstrip("-").replace("-", "_"): n for n, p in known.items()}
        field = by_flag.get(field, field)
        if field not in known:
            flags = sorted(p.opts[0].lstrip("-") for p in known.values())
            raise UsageError(f"--config '{path}': unknown key '{key}'{suggest(key, flags)}")
        defaults[field] = _checked(context, path, known[field], key, value)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _checked(context: typer.Context, path: str, parameter: Any, key: str, value: Any) -> Any:
    text = parameter.display_type(context) == "<str>" and not parameter.multiple
    if text and not isinstance(value, str):
        # YAML reads 2:4 as a number of base 60
        raise UsageError(f"--config '{path}': {key} is {told(value)}, expected text in quotes")
    return value


def _read_config(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text("utf-8")
        if path.endswith(".toml"):
            import tomllib

            record = tomllib.loads(text)
        elif path.endswith((".yaml", ".yml")):
            import yaml  # type: ignore[import-untyped]

            record = yaml.safe_load(text)
        else:
            record = json.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read --config '{path}': {error}") from None
    except Exception as error:
        # each format has an error class of its own
        why = str(error).splitlines()[0]
        raise UsageError(f"--config '{path}' is not valid: {why}") from None
    if not isinstance(record, dict):
        raise UsageError(f"--config '{path}' is not a table of options")
    return record


def show_config(context: typer.Context, wanted: bool) -> None:
    """Remember that --print-config was given; `settings` prints and leaves."""
    context.obj = {"print_config": wanted}


def resolved(context: typer.Context) -> None:
    """With --print-config, print every option with its value as JSON and exit."""
    if not (context.obj or {}).get("print_config"):
        return
    skip = {"config", "print_config", "help"}
    values = {
        param.opts[0].lstrip("-"): context.params.get(param.name or "")
        for param in context.command.params
        if param.param_type_name == "option" and param.name not in skip
    }
    shown = {k: v for k, v in values.items() if v is not None and v != []}
    print(json.dumps(shown, indent=1))
    raise typer.Exit(0)


Json = Annotated[bool, option("json", "print one JSON object instead of a path")]


Quiet = Annotated[bool, option("quiet", "no notes and no progress on stderr")]


Verbose = Annotated[bool, option("verbose", "more notes on stderr, and tracebacks of failures")]


Force = Annotated[bool, option("force", "replace OUT if prunecli made it")]


SkipExisting = Annotated[
    bool, option("skip-existing", "accept an OUT made from the same inputs and options")
]


Restart = Annotated[bool, option("restart", "begin anew instead of resuming OUT.partial")]


DryRun = Annotated[bool, option("dry-run", "check everything cheap, tell what would be done")]


# what every library's generator takes
Seed = Annotated[int, option("seed", "seed of every random draw", min=0, max=2**32 - 1)]


Device = Annotated[
    str, option("device", "where to compute, as torch names it; auto takes a GPU if any")
]


Dtype = Annotated[
    str,
    option("dtype", "compute type; auto is float32 on a CPU, the checkpoint's on a GPU"),
]


Threads = Annotated[
    int | None, option("threads", "CPU threads to compute with [default: all cores]", min=1)
]


Buffer = Annotated[str, option("buffer", "where hidden states live while layers run")]


CompatOption = Annotated[
    str | None, option("compat", "follow the quirks of the method's official code")
]


Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="read options from a TOML, YAML or JSON file",
        metavar="FILE",
        callback=load_config,
        is_eager=True,
    ),
]


PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="print the resolved options as --config reads them, and exit",
        callback=show_config,
        is_eager=True,
    ),
]


DataOption = Annotated[
    str,
    option(
        "data",
        "D: builtin[:part], a .txt/.jsonl/.json/.parquet[.gz/.zst] file or folder, "
        "FILE.safetensors:NAME, a named set (c4, wikitext2, ...), or hf:org/name[:split[:column]]",
        metavar="D",
    ),
]


Sampler = Annotated[str | None, option("sampler", "how windows are drawn [concat-contiguous]")]


Nsamples = Annotated[
    int | None,
    option("nsamples", "windows to read [builtin: 32, other text: 128]", min=1),
]


SeqLen = Annotated[
    int | None, option("seq-len", "tokens per window [builtin: 512, other text: 2048]", min=2)
]


Tokenizer = Annotated[
    str | None, option("tokenizer", "folder with the tokenizer [default: IN]", metavar="DIR")
]


TextColumn = Annotated[
    str | None,
    option("text-column", "column of D to read [text, or else the only one of strings]"),
]


SkipBad = Annotated[
    int, option("skip-bad", "lines of D without text to pass over; one more stops the run", min=0)
]


Bos = Annotated[
    str | None,
    option(
        "bos",
        "whether windows begin with beginning of sequence: auto is as the tokenizer begins a text "
        "[auto]",
    ),
]


SpecialTokens = Annotated[
    str | None,
    option(
        "special-tokens",
        "what those spelled out in a text become: text like any other, or their ids [text]",
    ),
]


Ratio = Annotated[
    float | None,
    option("ratio", "fraction of the decoder-block linear parameters to remove or zero, in (0,1)"),
]


Sparsity = Annotated[
    str | None,
    option("sparsity", "pattern of zeros: unstructured, or N:M to keep N of every M weights"),
]


Layers = Annotated[int | None, option("layers", "layers to keep", min=1)]


Hidden = Annotated[int | None, option("hidden", "hidden size to keep, in channels", min=1)]


Heads = Annotated[int | None, option("heads", "query heads to keep, in whole KV groups", min=1)]


Ffn = Annotated[int | None, option("ffn", "FFN channels to keep in every layer", min=1)]


Params = Annotated[float | None, option("params", "keep at most this many parameters")]


ArchFile = Annotated[
    str | None, option("arch", "JSON file with the sizes to reach", metavar="FILE.json")
]


Stats = Annotated[
    str | None,
    option("stats", "statistics made by calibrate (for sequential methods: the one-pass variant)"),
]


Group = Mapping[str, tuple[Any, Any]]  # parameters by name: annotation and default


Command = Callable[..., None]


AMOUNT: Group = {
    "ratio": (Ratio, None),
    "sparsity": (Sparsity, None),
    "layers": (Layers, None),
    "hidden": (Hidden, None),
    "heads": (Heads, None),
    "ffn": (Ffn, None),
    "params": (Params, None),
    "arch": (ArchFile, None),
}


READING: Group = {
    "text_column": (TextColumn, Data.text_column),
    "skip_bad": (SkipBad, Data.skip_bad),
}


WINDOWS: Group = {
    "sampler": (Sampler, None),
    "nsamples": (Nsamples, None),
    "seq_len": (SeqLen, None),
    "tokenizer": (Tokenizer, None),
    **READING,
    "bos": (Bos, None),
    "special_tokens": (SpecialTokens, None),
}


DATA: Group = {"data": (DataOption, Data.source), **WINDOWS}


COMPUTE: Group = {
    "seed": (Seed, Data.seed),
    "device": (Device, Compute.device),
    "dtype": (Dtype, Compute.dtype),
    "threads": (Threads, None),
}


STREAM: Group = {**COMPUTE, "buffer": (Buffer, Compute.buffer)}


OUTPUT: Group = {
    "force": (Force, False),
    "skip_existing": (SkipExisting, False),
    "dry_run": (DryRun, False),
}


TALK: Group = {"json": (Json, False), "quiet": (Quiet, False), "verbose": (Verbose, False)}


CONFIG: Group = {"config": (Config, None), "print_config": (PrintConfig, False)}


def of_record(record: type, entries: Mapping[str, Any]) -> Group:
    """Return a group of these options, with the types and defaults of the record's fields.

    A field without a default is a required option.
    """
    types, known = get_type_hints(record), {field.name: field for field in fields(record)}
    defaults = {
        name: inspect.Parameter.empty if known[name].default is MISSING else known[name].default
        for name in entries
    }
    return {name: (Annotated[types[name], entries[name]], defaults[name]) for name in entries}


def takes(*groups: Group) -> Callable[[Command], Command]:
    """Give a command the options of these groups beside its own.

    It finds their values in `context.params`. Of two parameters with one name its own counts.
    """

    def with_options(command: Command) -> Command:
        signature = inspect.signature(command)
        own = signature.parameters
        more = {name: entry for group in groups for name, entry in group.items()}
        parameters = list(own.values()) + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
            for name, (kind, value) in more.items()
            if name not in own
        ]

        def wrapped(**values: Any) -> None:
            command(**{name: values[name] for name in own})

        wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
        return wrapped

    return with_options


def settings(context: typer.Context, *, silent: bool = False) -> StderrReport:
    """Print the configuration if asked; set up what is global; return the listener."""
    resolved(context)
    values = context.params
    if values.get("threads"):
        os.environ["OMP_NUM_THREADS"] = str(values["threads"])
    return StderrReport(values["quiet"] or silent, values["verbose"] and not silent)


def output(values: Mapping[str, Any]) -> Output:
    """Return what may happen to OUT."""
    flags = {name: values.get(name, False) for name in OUTPUT}
    return Output(**flags, argv=tuple(sys.argv))


def run_context(values: Mapping[str, Any], out: str | None, report: Report) -> RunContext:
    """Return what every verb is handed beside its request; `out` is None where nothing is kept."""
    where = replace(output(values), path=out or "", restart=values.get("restart", False))
    return RunContext(where, compute_of(values), report)


def read_paths() -> list[str]:
    """Return the paths on stdin, one a line, or that of a --json object.

    Raises UsageError where there are none: the command before has failed.
    """
    text = sys.stdin.read().strip()
    if not text:
        raise UsageError("stdin is empty, expected a path", "did the command before fail?")
    if text.startswith("{"):
        try:
            record = json.loads(text)
            found = [record["path"]] if "path" in record else [r["path"] for r in record["results"]]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise UsageError("stdin is neither a path nor an object of --json") from None
        return [str(path) for path in found]
    return [line.strip() for line in text.splitlines() if line.strip()]


def models_of(given: list[str], out: str | None) -> list[str]:
    """Return the models of a command that takes several, or stdin; --out is for one of them."""
    found = read_paths() if given == ["-"] else given
    if "-" in found:
        raise UsageError("stdin ('-') must be the only IN")
    if out is not None and (len(found) > 1 or not out.endswith(".json")):
        raise UsageError(f"--out takes one IN and a .json file, got {len(found)} and '{out}'")
    return found


def from_stdin(*values: str | None) -> list[str | None]:
    """Return path arguments with one `-` replaced by the path on stdin."""
    if values.count("-") > 1:
        raise UsageError("stdin ('-') can stand for one path only")
    if "-" not in values:
        return list(values)
    paths = read_paths()
    if len(paths) != 1:
        raise UsageError(f"stdin has {len(paths)} paths, expected one")
    return [paths[0] if value == "-" else value for value in values]


def method_options() -> dict[str, list[str]]:
    """Return every method option with the methods that have it."""
    found: dict[str, list[str]] = {}
    for name in registry.names():
        for entry in registry.get(name).options:
            found.setdefault(entry.name, []).append(name)
    return found


def _method_group() -> Group:
    """Return the options that the methods' records declare; None means that it was not given."""
    owners = method_options()
    return {name: (_method_option(name, methods), None) for name, methods in owners.items()}


def _method_option(name: str, methods: list[str]) -> Any:
    options = {m: next(o for o in registry.get(m).options if o.name == name) for m in methods}
    entry = options[methods[0]]
    defaults = {method: str(option.default) for method, option in options.items()}
    told = "" if entry.default in (None, False, "") else f" [{entry.default}]"
    if len(set(defaults.values())) > 1:
        told = " [" + "; ".join(f"{m}: {default}" for m, default in defaults.items()) + "]"
    return Annotated[
        entry.type | None,
        typer.Option(
            f"--{name.replace('_', '-')}",
            help=f"{', '.join(methods)}: {entry.help}{told}",
            metavar="|".join(entry.choices) or None,
            autocompletion=_completer(entry.choices),
            envvar=f"PRUNECLI_{name.upper()}",
            show_envvar=False,
        ),
    ]


def _completer(choices: tuple[str, ...]) -> Callable[[], list[str]] | None:
    return (lambda: list(choices)) if choices else None


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
    return given and (has_quirks or typed(context, "compat"))


def typed(context: typer.Context, name: str) -> bool:
    """Return whether an option stands on the command line, unlike one of the environment."""
    return _source(context, name) == "COMMANDLINE"


def refuse(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Raise UsageError if one of these options, which nothing would read, was typed.

    Those of the environment and of --config may be meant for other commands.
    """
    for name in names:
        if typed(context, name):
            flags = {p.name: p.opts[0] for p in context.command.params}
            raise UsageError(f"{flags[name]} {why}", "leave it out")


def refuse_tokenizer(context: typer.Context, *sources: str) -> None:
    """Raise UsageError for a --tokenizer that was typed where every D is token ids."""
    from prunecli.data.rows import is_rows

    if all(map(is_rows, sources)):
        refuse(context, ["tokenizer"], "is not read: D is token ids already")


def _source(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return source.name if source is not None else ""


def amount_of(values: Mapping[str, Any]) -> Amount:
    """Return the amount among a command's arguments."""
    return Amount(**{name: values.get(name) for name in Amount.__dataclass_fields__})


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
    """Return device, compute type and buffer among a command's arguments."""
    fields = ("device", "dtype", "buffer")
    return Compute(**{name: values[name] for name in fields if name in values})


METHOD: Group = _method_group()
