"""Options that several commands share, made from the fields of the records that they fill.

Type and default of an option are its field's; here stand the words, and the panel of help.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

from prunecli.cli.config import load_config, show_config
from prunecli.cli.console import PROGRESS
from prunecli.data import tokenizer
from prunecli.errors import UsageError, suggest
from prunecli.methods import registry
from prunecli.methods._base import Method, Option
from prunecli.settings import Amount, Compute, Data, Output

CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "float32", "bfloat16"),
    "save-dtype": ("auto", "float32", "bfloat16", "float16"),
    "buffer": ("auto", "device", "ram", "disk"),
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
    "figure": ("1", "3", "4", "5", "sweep", "plan"),
    "progress": PROGRESS,
    "format": ("rich", "md", "csv", "tex", "json"),
}
# options whose choices are only the usual ones
OPEN = ("device",)

PRUNE_PANEL = "What to prune"
DATA_PANEL = "Calibration data"
STEPS_PANEL = "Step by step"
METHOD_PANEL = "Method options"
COMPUTE_PANEL = "Compute"
OUTPUT_PANEL = "Output"
# below those that a command has of its own
LAST_PANELS = (METHOD_PANEL, COMPUTE_PANEL, OUTPUT_PANEL)

Group = Mapping[str, tuple[Any, Any]]  # parameters by name: annotation and default
Command = Callable[..., None]
REQUIRED = inspect.Parameter.empty


class Text(NamedTuple):
    """The words of an option: its help, what it takes, and the limits of a number."""

    help: str
    metavar: str | None = None
    min: float | None = None
    max: float | None = None


def option(name: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """Return a Typer option that is also read from the environment."""
    choices = CHOICES.get(name)
    if choices:
        listed = "|".join((*choices, "NAME") if name in OPEN else choices)
        settings["metavar"] = settings.get("metavar") or listed
        settings["autocompletion"] = lambda: list(choices)
        if name not in OPEN:
            settings["callback"] = _one_of(name, choices)
    variable = "PRUNECLI_" + name.upper().replace("-", "_")
    return typer.Option(
        f"--{name}",
        help=help,
        rich_help_panel=panel,
        envvar=variable,
        show_envvar=False,
        **settings,
    )


def _one_of(name: str, choices: tuple[str, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value is not None and value not in choices:
            raise UsageError(f"--{name}: unknown value '{value}'{suggest(value, list(choices))}")
        return value

    return check


def of_record(record: type, panel: str, **texts: Text) -> Group:
    """Return an option for each of these fields of a record; one without a default is required."""
    kinds = get_type_hints(record)
    defaults = {
        field.name: REQUIRED if field.default is MISSING else field.default
        for field in fields(record)
    }
    return {
        name: (
            Annotated[kinds[name], option(name.replace("_", "-"), panel=panel, **text._asdict())],
            defaults[name],
        )
        for name, text in texts.items()
    }


def under(panel: str, group: Group) -> Group:
    """Return the same options under another panel of help."""

    def moved(annotation: Any) -> Any:
        kind, info = get_args(annotation)
        info = copy(info)
        info.rich_help_panel = panel
        return Annotated[kind, info]

    return {name: (moved(annotation), default) for name, (annotation, default) in group.items()}


def only(group: Group, *names: str) -> Group:
    """Return some of the options of a group."""
    return {name: group[name] for name in names}


def with_options(*groups: Group) -> Callable[[Command], Command]:
    """Give a command the options of these groups beside its own.

    It finds their values in `context.params`. Of two parameters with one name its own counts.
    """

    def extended(command: Command) -> Command:
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

    return extended


# -- what to prune --------------------------------------------------------------------------------

METHOD_NAME = option(
    "method", "pruning method, see `prunecli methods`", PRUNE_PANEL, metavar="NAME"
)

AMOUNT = of_record(
    Amount,
    PRUNE_PANEL,
    ratio=Text("fraction of decoder-block weights to prune, 0 < R < 1", "R"),
    sparsity=Text("zero weights, keeping N of every M; or `unstructured`", "N:M"),
    layers=Text("layers to keep", "N", 1),
    hidden=Text("hidden size to keep", "N", 1),
    heads=Text("query heads to keep, a multiple of those per KV head", "N", 1),
    ffn=Text("FFN channels to keep in every layer", "N", 1),
    experts=Text("experts to keep in every layer, as many at least as a token is sent to", "N", 1),
    params=Text("keep at most this many parameters", "N"),
    arch=Text("read the sizes to keep from this file, e.g. of search-arch", "FILE.json"),
    multiple=Text(
        "hidden and FFN sizes made from --ratio or --params are multiples of N; 1: exact [default: "
        "256 or 32 where they divide the model's and hardly move the ratio, else 1]",
        "N",
        1,
    ),
)

CompatOption = Annotated[
    str | None,
    option(
        "compat",
        "reproduce the official implementation where it differs from the paper",
        PRUNE_PANEL,
    ),
]
COMPAT: Group = {"compat": (CompatOption, None)}

STATS: Group = {
    "stats": (
        Annotated[
            str | None,
            option(
                "stats",
                "statistics from `prunecli calibrate` (makes sequential methods one-pass, an "
                "approximation)",
                STEPS_PANEL,
                metavar="F",
            ),
        ],
        None,
    )
}

# -- data -----------------------------------------------------------------------------------------

DataOption = Annotated[
    str,
    option(
        "data",
        "builtin[:part], a .txt/.jsonl/.json/.parquet[.gz/.zst] file or folder, "
        "FILE.safetensors:NAME (token ids), a named set (c4, wikitext2, ...), or "
        "hf:org/name[:split[:column]]",
        DATA_PANEL,
        metavar="DATA",
    ),
]

READING = of_record(
    Data,
    DATA_PANEL,
    text_column=Text(
        "column of DATA that holds the text [default: text, or else the only column of strings]",
        "NAME",
    ),
    skip_bad=Text("skip up to this many lines of DATA that hold no text", "N", 0),
)

WINDOWS: Group = {
    **of_record(
        Data,
        DATA_PANEL,
        sampler=Text("how text is cut into windows [default: concat-contiguous]"),
        nsamples=Text("windows to read [default: builtin 32, other text 128]", "N", 1),
        seq_len=Text("tokens per window [default: builtin 512, other text 2048]", "N", 2),
        tokenizer=Text("folder with the tokenizer [default: IN]", "DIR"),
    ),
    **READING,
    **of_record(
        Data,
        DATA_PANEL,
        bos=Text(
            "begin windows with the beginning-of-sequence token; auto: if the tokenizer adds it "
            "[default: auto]"
        ),
        special_tokens=Text(
            "read special tokens spelled out in DATA as plain text, or as their ids [default: text]"
        ),
    ),
}

DATA: Group = {"data": (DataOption, Data.source), **WINDOWS}

# -- compute --------------------------------------------------------------------------------------

# up to what every library's generator takes
Seed = Annotated[
    int, option("seed", "random seed", COMPUTE_PANEL, metavar="N", min=0, max=2**32 - 1)
]

COMPUTE: Group = {
    **of_record(
        Compute,
        COMPUTE_PANEL,
        device=Text("where to compute, as torch names it; auto: a GPU if there is one"),
        dtype=Text("compute type; auto: float32 on a CPU, the checkpoint's on a GPU"),
    ),
    "threads": (
        Annotated[
            int | None,
            option(
                "threads", "CPU threads [default: all cores]", COMPUTE_PANEL, metavar="N", min=1
            ),
        ],
        None,
    ),
    "seed": (Seed, Data.seed),
}

STREAM: Group = {
    **COMPUTE,
    **of_record(
        Compute,
        COMPUTE_PANEL,
        buffer=Text(
            "where hidden states are kept between layers (a layer's pruned weights, too, if in a "
            "file); auto: where they fit first"
        ),
        memory=Text(
            "stay within this much memory, such as 4GB: hidden states go to a file if they must",
            "SIZE",
        ),
    ),
}

# -- output ---------------------------------------------------------------------------------------

Force = Annotated[
    bool, option("force", "overwrite OUT (only if prunecli created it)", OUTPUT_PANEL)
]
Restart = Annotated[
    bool,
    option("restart", "start over instead of resuming from OUT.partial", OUTPUT_PANEL),
]
Json = Annotated[bool, option("json", "print one JSON object instead of a path", OUTPUT_PANEL)]

OUTPUT: Group = {
    "force": (Force, Output.force),
    **of_record(
        Output,
        OUTPUT_PANEL,
        skip_existing=Text("succeed without work if OUT is up to date (same inputs and options)"),
        dry_run=Text("validate the request and print what would be done; write nothing"),
    ),
}
RESTART: Group = {"restart": (Restart, Output.restart)}
PROBE: Group = of_record(
    Output, OUTPUT_PANEL, probe=Text("first try to get the memory that the run needs")
)

VERBOSITY: Group = {
    "json": (Json, False),
    "quiet": (Annotated[bool, option("quiet", "hide messages and progress", OUTPUT_PANEL)], False),
    "progress": (
        Annotated[
            str,
            option(
                "progress",
                "on stderr: a bar in a terminal, one JSON object a line, or nothing",
                OUTPUT_PANEL,
            ),
        ],
        PROGRESS[0],
    ),
    "verbose": (
        Annotated[
            bool, option("verbose", "show details, and a traceback on failure", OUTPUT_PANEL)
        ],
        False,
    ),
}

CONFIG: Group = {
    "config": (
        Annotated[
            str | None,
            typer.Option(
                "--config",
                help="read options from this TOML, YAML or JSON file",
                metavar="FILE",
                rich_help_panel=OUTPUT_PANEL,
                callback=load_config,
                is_eager=True,
            ),
        ],
        None,
    ),
    "print_config": (
        Annotated[
            bool,
            typer.Option(
                "--print-config",
                help="print the options in the form that --config reads, and exit",
                rich_help_panel=OUTPUT_PANEL,
                callback=show_config,
                is_eager=True,
            ),
        ],
        False,
    ),
}

# -- options of methods ---------------------------------------------------------------------------


def method_options() -> dict[str, list[str]]:
    """Return every method option with the methods that have it."""
    owners = _owners([registry.get(name) for name in registry.names()])
    return {option: [method.name for method in methods] for option, methods in owners.items()}


def _owners(methods: Iterable[Method]) -> dict[str, list[Method]]:
    owners: dict[str, list[Method]] = {}
    for method in methods:
        for entry in method.options:
            owners.setdefault(entry.name, []).append(method)
    return owners


def explained(method: Method) -> list[tuple[str, str]]:
    """Return the flag of each option of a method with what it takes, and its help."""
    return [
        (f"{entry.flag} {_metavar(entry) or ''}".rstrip(), entry.help + default_text(entry.default))
        for entry in method.options
    ]


def _metavar(entry: Option) -> str | None:
    named = {int: "N", float: "R", str: "TEXT"}
    return "|".join(entry.choices) or entry.metavar or named.get(entry.type)


def default_text(value: Any) -> str:
    """Return how help tells a default; nothing for an option that is off without it."""
    off = value is None or value is False or value in ("", [])
    return "" if off else f" [default: {value}]"


def _entry(method: Method, name: str) -> Option:
    return next(one for one in method.options if one.name == name)


def _method_option(name: str, methods: list[Method]) -> Any:
    entries = {method.name: _entry(method, name) for method in methods}
    entry = entries[methods[0].name]
    defaults = {method: str(one.default) for method, one in entries.items()}
    default = default_text(entry.default)
    if len(set(defaults.values())) > 1:
        default = default_text("; ".join(f"{m} {value}" for m, value in defaults.items()))
    return Annotated[
        entry.type | None,
        typer.Option(
            entry.flag,
            help=f"{', '.join(entries)}: {entry.help}{default}",
            metavar=_metavar(entry),
            rich_help_panel=METHOD_PANEL,
            autocompletion=_completer(entry.choices),
            envvar=f"PRUNECLI_{name.upper()}",
            show_envvar=False,
        ),
    ]


def _completer(choices: tuple[str, ...]) -> Callable[[], list[str]] | None:
    return (lambda: list(choices)) if choices else None


# None means that it was not given
METHOD: Group = {
    name: (_method_option(name, methods), None)
    for name, methods in _owners(registry.ours()).items()
}


@cache
def _of_others() -> Group:
    """Return the options that only methods of other packages have.

    Raises UsageError where methods have one of the same name and of different types.
    """
    owners = _owners([registry.get(name) for name in registry.names()])
    for name, methods in owners.items():
        kinds = {_entry(method, name).type.__name__: method.name for method in methods}
        if len(kinds) > 1:
            told = " and ".join(f"{kind} of '{method}'" for kind, method in sorted(kinds.items()))
            raise UsageError(
                f"option '{name}' is {told}, expected one type", "uninstall one of their packages"
            )
    return {
        name: (_method_option(name, methods), None)
        for name, methods in owners.items()
        if name not in METHOD
    }


def take_others(command: Command) -> None:
    """Give a command that takes options of methods those of other packages' methods too.

    Raises UsageError for one that is called like an option of the command itself.
    """
    signature = inspect.signature(command)
    parameters = dict(signature.parameters)
    if not parameters.keys() >= METHOD.keys():
        return
    for name, (kind, value) in _of_others().items():
        if name in parameters and parameters[name].annotation is not kind:
            (owner, *_) = method_options()[name]
            raise UsageError(
                f"method '{owner}' of '{registry.source(owner)}' has an option '{name}', and so "
                "has prunecli itself",
                f"uninstall '{registry.source(owner)}', or rename the option",
            )
        parameters[name] = inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind
        )
    changed = signature.replace(parameters=[*parameters.values()])
    command.__signature__ = changed  # type: ignore[attr-defined]
