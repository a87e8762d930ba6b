#!/usr/bin/env python3
"""Write completions, man pages, pages of commands and more from the program itself: `make docs`.

`files()` returns them all; a test compares them with what is committed. Pages of methods are
written by hand but for their marked parts, which come from the method's record, its formula's file
and the tables of `docs/methods.md` and `docs/cost.md`.
"""

import json
import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, NamedTuple

import typer

from prunecli import __version__
from prunecli.cli import help, options
from prunecli.cli.app import COMMANDS, app
from prunecli.errors import InputError
from prunecli.files import sidecar
from prunecli.methods import registry
from prunecli.methods._base import Method
from prunecli.model.arch import Arch
from prunecli.model.families import registry as families
from prunecli.model.families._base import Family
from prunecli.model.families._wrappers import WRAPPERS

ROOT = Path(__file__).resolve().parent.parent


class Option(NamedTuple):
    """One option: its flags, what it takes (empty for a switch), the choices, help, and panel."""

    flags: tuple[str, ...]
    takes: str
    choices: tuple[str, ...]
    help: str
    panel: str


class Command(NamedTuple):
    """One command as its users see it."""

    name: str
    panel: str
    usage: str
    summary: str
    text: tuple[str, ...]
    arguments: tuple[tuple[str, str], ...]
    options: tuple[Option, ...]
    examples: tuple[tuple[str, str], ...]


def commands() -> list[Command]:
    """Return every command of the app."""
    group: Any = typer.main.get_command(app)
    return [_command(group, name) for name in COMMANDS]


def _command(group: Any, name: str) -> Command:
    command, entry = group.commands[name], COMMANDS[name]
    context = command.make_context(name, [], resilient_parsing=True)
    return Command(
        name,
        entry.panel,
        " ".join([f"prunecli {name}", *help.usage(command)]),
        help.summary(command),
        tuple(" ".join(part.split()) for part in command.help.split("\n\n")),
        tuple((p.metavar, p.help) for p in command.params if p.param_type_name == "argument"),
        tuple(
            _option(parameter, panel)
            for panel, parameters in help.panels(command, context).items()
            for parameter in parameters
        ),
        entry.examples,
    )


def _option(parameter: Any, panel: str) -> Option:
    _, text = help.described(parameter)
    takes = "" if parameter.is_flag else parameter.metavar
    listed = options.CHOICES.get(parameter.opts[0].lstrip("-"))
    parts = takes.split("|")
    if listed is None and len(parts) > 1 and not {"DIR", "N", "R"} & set(parts):
        listed = tuple(parts)
    return Option(tuple(parameter.opts), takes, listed or (), text, panel)


def by_panel(found: Any) -> dict[str, list[Any]]:
    """Return commands or options by the heading under which help lists them."""
    groups: dict[str, list[Any]] = {}
    for one in found:
        groups.setdefault(one.panel, []).append(one)
    return groups


# ---------------------------------------------------------------- man pages


def roff(text: str) -> str:
    """Return text escaped for roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def page(name: str, short: str, sections: list[tuple[str, list[str]]]) -> str:
    """Return one man page; no date, so that equal programs give equal pages."""
    lines = [f'.TH "{name.upper()}" "1" "" "prunecli {__version__}" "prunecli"', ".SH NAME"]
    lines.append(f"{roff(name)} \\- {roff(short)}")
    for heading, body in sections:
        lines += [f".SH {heading}", *body]
    return "\n".join(lines) + "\n"


def status_section() -> tuple[str, list[str]]:
    """Return the exit statuses, which all pages share."""
    body: list[str] = []
    for code, what in help.EXIT_STATUS.items():
        body += [".TP", f".B {code}", roff(what)]
    return "EXIT STATUS", body


ENVIRONMENT = (
    "ENVIRONMENT",
    [
        roff(
            "An environment variable can set any option: PRUNECLI_DEVICE for --device, and so on. "
            "Flags take precedence over variables, then --config FILE, then the defaults. "
            "With HF_HUB_OFFLINE=1 no hub is contacted."
        )
    ],
)


def command_page(command: Command) -> str:
    """Return the page of one command."""
    body: list[str] = []
    for paragraph in command.text:
        body += [".PP", roff(paragraph)]
    arguments: list[str] = []
    for metavar, text in command.arguments:
        arguments += [".TP", f".I {roff(metavar)}", roff(text)]
    found: list[str] = []
    for panel, group in by_panel(command.options).items():
        found.append(f".SS {roff(panel)}")
        for option in group:
            flags = ", ".join(f"\\fB{roff(flag)}\\fR" for flag in option.flags)
            takes = f" \\fI{roff(option.takes)}\\fR" if option.takes else ""
            found += [".TP", flags + takes, roff(option.help)]
    examples: list[str] = []
    for what, line in command.examples:
        examples += [
            ".TP",
            f"{roff(what[:1].upper() + what[1:])}:",
            f".B {roff('prunecli ' + line)}",
        ]
    others = ", ".join(f"\\fBprunecli\\-{n}\\fR(1)" for n in COMMANDS if n != command.name)
    sections = [
        ("SYNOPSIS", [f".B {roff(command.usage)}"]),
        ("DESCRIPTION", body),
        ("ARGUMENTS", arguments),
        ("OPTIONS", found),
        ("EXAMPLES", examples),
        ENVIRONMENT,
        status_section(),
        ("SEE ALSO", [f"\\fBprunecli\\fR(1), {others}"]),
    ]
    return page(f"prunecli-{command.name}", command.summary, [s for s in sections if s[1]])


def main_page(found: list[Command]) -> str:
    """Return the page of the program."""
    listed: list[str] = []
    for panel, group in by_panel(found).items():
        listed.append(f".SS {roff(panel)}")
        for command in group:
            name = f"prunecli-{command.name}"
            listed += [".TP", f"\\fB{roff(name)}\\fR(1)", roff(command.summary)]
    text = (app.info.help or "").split("\n\n")
    sections = [
        ("SYNOPSIS", [".B prunecli", ".I COMMAND", "[OPTIONS] ..."]),
        ("DESCRIPTION", [line for part in text for line in (".PP", roff(" ".join(part.split())))]),
        ("COMMANDS", listed),
        ENVIRONMENT,
        status_section(),
    ]
    return page("prunecli", "prune large language models from the shell", sections)


# ---------------------------------------------------------------- completions


def bash(found: list[Command]) -> str:
    """Return the completion script for bash."""
    cases: list[str] = []
    values: dict[tuple[str, ...], list[str]] = {}
    for command in found:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        cases.append(f"        {command.name}) flags='{flags}' ;;")
        for flag, words in choices_of(command).items():
            values.setdefault(words, []).append(f"{command.name}:{flag}")
    choices = [f"        {'|'.join(w)}) words='{' '.join(v)}' ;;" for v, w in values.items()]
    names = " ".join(command.name for command in found)
    return f"""# bash completion for prunecli, generated by `make docs`
_prunecli() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local command=${{COMP_WORDS[1]:-}} words= flags=
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W '{names} help --help --version' -- "$current"))
        return
    fi
    if ((COMP_CWORD == 2)) && [[ $command == help ]]; then
        COMPREPLY=($(compgen -W '{names}' -- "$current"))
        return
    fi
    case $command:$previous in
{chr(10).join(choices)}
    esac
    if [[ -n $words ]]; then
        COMPREPLY=($(compgen -W "$words" -- "$current"))
        return
    fi
    case $command in
{chr(10).join(cases)}
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$current"))
    else
        COMPREPLY=($(compgen -f -- "$current"))
    fi
}}
complete -o filenames -F _prunecli prunecli
"""


def choices_of(command: Command) -> dict[str, tuple[str, ...]]:
    """Return what the options of a command choose from; methods come from their registry."""
    found = {o.flags[0]: o.choices for o in command.options if o.choices}
    names = tuple(registry.names())
    return found | {
        o.flags[0]: names for o in command.options if o.flags[0] in ("--method", "--for")
    }


def zsh(found: list[Command]) -> str:
    """Return the completion script for zsh."""

    def quoted(text: str) -> str:
        return (
            text.replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
        )

    cases = []
    for command in found:
        values = choices_of(command)
        lines = []
        for option in command.options:
            for flag in option.flags:
                action = ""
                if option.takes:
                    given = values.get(option.flags[0])
                    action = f":value:({' '.join(given)})" if given else ":value:_files"
                text = quoted(f"{option.panel}: {option.help}")
                lines.append(f"            '{flag}[{text}]{action}'")
        lines.append("            '*:file:_files'")
        cases.append(f"        {command.name})\n          _arguments \\\n" + " \\\n".join(lines))
        cases.append("          ;;")
    groups = by_panel(found)
    listed = "\n".join(
        f"  {panel.lower()}=(\n"
        + "".join(f"    '{c.name}:{quoted(c.summary)}'\n" for c in group)
        + "  )"
        for panel, group in groups.items()
    )
    described = "\n".join(
        f"      _describe -t {panel.lower()} {panel} {panel.lower()}" for panel in groups
    )
    return f"""#compdef prunecli
# zsh completion for prunecli, generated by `make docs`
_prunecli() {{
  local -a {" ".join(panel.lower() for panel in groups)} help
{listed}
  help=('help:Explain a command')
  _arguments -C '--help[show help]' '--version[print the version]' \\
    '1:command:->command' '*::argument:->argument'
  case $state in
    command)
{described}
      _describe -t help Help help
      ;;
    argument)
      case $words[1] in
        help)
          _arguments '*:command:({" ".join(c.name for c in found)})'
          ;;
{chr(10).join(cases)}
      esac
      ;;
  esac
}}
if [[ $funcstack[1] == _prunecli ]]; then _prunecli "$@"; else compdef _prunecli prunecli; fi
"""


def fish(found: list[Command]) -> str:
    """Return the completion script for fish."""

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    names = " ".join(command.name for command in found)
    lines = [
        "# fish completion for prunecli, generated by `make docs`",
        f"set -l commands {names} help",
        'complete -c prunecli -n "not __fish_seen_subcommand_from $commands" -f -l version',
        'complete -c prunecli -n "not __fish_seen_subcommand_from $commands" -f -k -a help '
        "-d 'Help: Explain a command'",
        f"complete -c prunecli -n '__fish_seen_subcommand_from help' -f -a '{names}'",
    ]
    for command in found:
        lines.append(
            'complete -c prunecli -n "not __fish_seen_subcommand_from $commands" -f '
            f"-k -a {command.name} -d {quoted(command.panel + ': ' + command.summary)}"
        )
        values = choices_of(command)
        for option in command.options:
            given = values.get(option.flags[0])
            takes = f" -x -a {quoted(' '.join(given))}" if given else " -r" if option.takes else ""
            names_ = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                for flag in option.flags
            )
            lines.append(
                f'complete -c prunecli -n "__fish_seen_subcommand_from {command.name}" {names_}'
                f"{takes} -k -d {quoted(option.panel + ': ' + option.help)}"
            )
    return "\n".join(lines) + "\n"


def variables(found: list[Command]) -> str:
    """Return the page of all variables, with the options and the commands that they are of."""
    group: Any = typer.main.get_command(app)
    rows: dict[str, tuple[str, list[str]]] = {}
    for command in found:
        for parameter in group.commands[command.name].params:
            if parameter.envvar:
                row = rows.setdefault(parameter.envvar, (parameter.opts[0], []))
                row[1].append(command.name)
    lines = [
        f"| `{name}` | `{flag}` | {', '.join(users) if len(users) < len(found) - 2 else 'all'} |"
        for name, (flag, users) in sorted(rows.items())
    ]
    return "\n".join(
        [
            "# Variables",
            "Every option's variable, and the commands that read it. [Which one wins]"
            "(automation.md#variables). Generated by `make docs`.",
            "",
            "| variable | option | commands |",
            "|---|---|---|",
            *lines,
            "",
        ]
    )


# ---------------------------------------------------------------- families

FAMILIES = """\
# Families
Which models are read, what each can lose, and by which methods. Generated by `make docs` from the
records in [model/families](../src/prunecli/model/families/registry.py).

`+`: removing these units is exact, which `tests/model/test_families.py` compares with setting them
to zero in transformers' own class. `no`: refused before any work, [with the reason](#refused).
Every method runs on every family or is refused on it: `make soak` tries all pairs. Methods for
experts (reap, expert-frequency, expert-random) are for families that have some. A method that
cuts several axes takes sizes of those that a family can lose (`--ffn`, `--layers`). A family is
saved as itself, or as one of the other classes where its own cannot hold a shape.

Where layers are of [several kinds](#layers-of-several-kinds), heads, FFN channels and experts are
removed from the layers that have them. Convolutions and mixers with a state keep their width; their
weights can be pruned, and layers of each kind removed. Of a kind that must stay, methods that
remove layers leave the best one. What a layer gets of an embedding of its own (Gemma 4) goes with
the layer; the linears that read it keep their weights, and ratios do not count them.
"""
LOSES = {
    "layers": "layers", "hidden": "hidden channels", "heads": "heads", "ffn": "FFN channels",
    "experts": "experts",
}  # fmt: skip


def allowed(method: Method, family: Family) -> set[str]:
    """Return the axes that a method can shorten in a family; of no axis, its weights."""
    if method.rotates and family.post_norms:
        return set()
    if family.experts is not None and "ffn" in method.axes:
        return set()
    if family.experts is None and "experts" in method.axes:
        return set()
    return {*(method.axes or ("weights",))} - {*family.fixed}


def _meant_for(method: Method, family: Family) -> bool:
    """Return whether a family has the units that a method removes, exactly or not."""
    return family.experts is not None or "experts" not in method.axes


def _methods(family: Family) -> str:
    """Return which methods take a family."""
    found = [one for one in map(registry.get, registry.names()) if _meant_for(one, family)]
    refused = [one.name for one in found if not allowed(one, family)]
    return " ".join(["all but", ", ".join(refused)]) if refused else "all"


def _biased(family: Family) -> str | None:
    """Return the model type that holds a family with biases behind attention and FFN, if any."""
    sizes = {"layers": 2, "hidden": 64, "ffn": 128, "heads": 4, "kv_heads": 4, "vocab": 256}
    config = {"model_type": family.model_types[0], **dict.fromkeys(family.not_convertible_if)}
    try:
        arch = Arch({**config, **{family.key(axis): size for axis, size in sizes.items()}})
        return str(arch.child(biased=True).config["model_type"])
    except InputError:
        return None


def _refusals(family: Family) -> Iterator[str]:
    """Yield what is refused of a family, each with the reason."""
    for axis, why in family.fixed.items():
        yield f"{LOSES[axis]}: {why}"
    for kind, why in family.needed.items():
        yield f"all layers of {kind}: {why}"
    if family.post_norms:
        rotating = ", ".join(name for name in registry.names() if registry.get(name).rotates)
        yield f"{rotating}: a rotation cannot pass the gains of post-sublayer norms"
    if family.experts is not None:
        of_ffn = ", ".join(name for name in registry.names() if "ffn" in registry.get(name).axes)
        yield f"{of_ffn}: channels of one FFN in a layer are compared, and every expert is one"
    for key, values in family.only.items():
        told = " or ".join(f"`{json.dumps(value)}`" for value in values)
        yield f"models whose config.json has `{key}` other than {told}"
    if _biased(family) is None:
        yield "flap's biases: no class holds them, use `--bias drop`"


def families_page() -> str:
    """Return the page of all families."""
    found = [families.get(name) for name in families.names()]
    heads = ["family", "`model_type`", *LOSES.values(), "weights", "methods", "other classes"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for one in found:
        marks = ["no" if axis in one.fixed else "+" for axis in LOSES]
        if one.experts is None:
            marks[-1] = ""
        kinds = " ".join(f"`{kind}`" for kind in one.model_types)
        row = [one.name, kinds, *marks, "+", _methods(one), ", ".join(one.containers)]
        lines.append(f"| {' | '.join(row)} |")
    reasons: dict[str, list[str]] = {}
    for one in found:
        for why in _refusals(one):
            reasons.setdefault(why, []).append(one.name)
    refused = [f"- {why} ({', '.join(names)})." for why, names in sorted(reasons.items())]
    return "\n".join(
        [
            FAMILIES,
            *lines,
            "",
            "## Layers of several kinds",
            *(f"- {one.name}: {', '.join(one.kinds)}." for one in found if one.kinds),
            "",
            "## Refused",
            *refused,
            "",
            "## Parts of other models",
            "The language model of these is read, where it is one of the families: "
            f"{', '.join(f'`{kind}`' for kind in WRAPPERS)}. `prune --keep-wrapper` writes the "
            "other parts too ([checkpoints](checkpoints.md#multimodal-models)).",
            "",
            "## Families that are not here",
            "`prunecli families --probe DIR` derives the record of a model that transformers has a "
            "class for, tries it on a tiny random model, and prints it, or says what no record "
            "describes. A package of your own can have it "
            "([examples/plugin](../examples/plugin/README.md)).",
            "",
        ]
    )


# ---------------------------------------------------------------- a skill for agents

SKILL = """\
---
name: prunecli
description: Prune large language models from the shell (structured, 2:4, unstructured), retrain and
  evaluate them, and compare them with models trained from scratch.
---
# prunecli
Generated by `make docs`.

- stdout is the result: one path, or with `--json` one object. stderr is everything else.
- Nothing is ever asked. `--dry-run` validates without writing, with the exit status of the run.
- `--skip-existing` makes a command repeatable, `--force` overwrites what prunecli made.
- A stopped command (status 75) goes on when the same command is run again.
- `--quiet --progress json` leaves JSON lines and errors on stderr.
- An error is one line, and ends with what to do about it. Status: {status}.
- `prunecli help COMMAND` has every option, `prunecli methods NAME` those of a method.
- IN is a folder or `hf:org/name`; OUT is a folder that unmodified transformers loads.
"""


def skill(found: list[Command]) -> str:
    """Return the command reference as agents read it: usage, examples, flags."""
    status = ", ".join(f"{code} {what}" for code, what in help.EXIT_STATUS.items())
    parts = [SKILL.format(status=status)]
    for command in found:
        flags = [
            f"`{option.flags[0]}{' ' + option.takes if option.takes else ''}`"
            for option in command.options
            if option.panel != options.OUTPUT_PANEL or option.flags[0] == "--out"
        ]
        examples = "\n".join(f"prunecli {line}  # {what}" for what, line in command.examples)
        parts.append(
            f"## {command.name}\n{command.text[0]}\n\n```\n{command.usage}\n{examples}\n```\n"
            + (f"\nOptions: {', '.join(flags)}.\n" if flags else "")
        )
    return "\n".join(parts)


# ---------------------------------------------------------------- pages of commands


def command_text(command: Command) -> str:
    """Return the page of one command in Markdown."""
    lines = [f"# prunecli {command.name}", *(f"{part}\n" for part in command.text)]
    lines += ["```", command.usage, "", *_typed(command.examples), "```", ""]
    lines += [f"- `{metavar}`: {text}" for metavar, text in command.arguments]
    for panel, group in by_panel(command.options).items():
        lines += ["", f"## {panel}"]
        for option in group:
            flags = ", ".join(option.flags) + (f" {option.takes}" if option.takes else "")
            lines.append(f"- `{flags}`: {markdown(option.help)}")
    lines += ["", "Exit statuses and variables are those of [all commands](README.md).", ""]
    return "\n".join(lines)


def command_index(found: list[Command]) -> str:
    """Return the page that lists all commands, with what they share."""
    lines = [
        "# Commands",
        "`prunecli help COMMAND` shows the same in a terminal, and `man prunecli` in a manual.",
        "Generated by `make docs`.",
    ]
    for panel, group in by_panel(found).items():
        lines += ["", f"## {panel}", "| command | what it does |", "|---|---|"]
        lines += [f"| [{one.name}]({one.name}.md) | {one.summary} |" for one in group]
    lines += ["", "## Exit status", "| status | meaning |", "|---|---|"]
    lines += [f"| {code} | {what} |" for code, what in help.EXIT_STATUS.items()]
    lines += ["", "Every option can also be [a variable](../variables.md).", ""]
    return "\n".join(lines)


def markdown(text: str) -> str:
    """Return text escaped for Markdown."""
    return re.sub(r"([*_])", r"\\\1", text).replace("<", "&lt;")


def _typed(examples: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"prunecli {line}  # {what}" for what, line in examples]


# ---------------------------------------------------------------- pages of methods


def method_text(method: Method) -> str:
    """Return the page of a method, with what stands between its marks made anew."""
    path = ROOT / "docs" / "methods" / f"{method.name}.md"
    if not path.exists():
        raise SystemExit(f"no {path}: write one, from a copy of another, and list it in mkdocs.yml")
    text = path.read_text("utf-8")
    for mark, part in {
        "formula": _formula(method),
        "cost": _cost(method.name),
        "options": _options(method),
    }.items():
        begin, end = f"<!-- {mark}: generated -->", "<!-- end -->"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.S)
        whole = f"{begin}\n\n{part}\n\n{end}"
        text, count = pattern.subn(lambda match, whole=whole: whole, text)
        if count != 1:
            raise SystemExit(f"{path.name}: expected the mark {begin} once, followed by {end}")
    return text


def _formula(method: Method) -> str:
    """Return what the file of a method says first of it, with the first block of its formula."""
    source = sys.modules[f"prunecli.methods.{method.name.replace('-', '_')}"]
    said, *rest = cleandoc(source.__doc__ or "").split("\n\n")
    formula = [part for part in rest if part.startswith("    ")][:1]
    kind, _, number = method.reference.partition(" ")
    paper = f" Paper: [arXiv {number}](https://arxiv.org/abs/{number})." if kind == "arXiv" else ""
    return "\n\n".join([" ".join(said.split()), *formula, f"Removes: {method.granularity}.{paper}"])


def _cost(name: str) -> str:
    """Return what docs/methods.md and docs/cost.md measured of a method."""
    first, columns, rows = "method", ["ratio", "perplexity", "seconds", "peak MB"], []
    for row in _table("methods.md", first):
        if row[first] in ("none", name):
            rows.append([row[first], *(row[column] for column in columns)])
    lines = [_row(["", *columns]), _row(["---"] * 5), *map(_row, rows)]
    for row in _table("cost.md", first):
        if row[first].lower() == name and "x forward" in row:
            lines += [
                "",
                f"Pruning takes {row['x forward']} times as long as a forward pass on the text.",
            ]
    memory = [row for row in _table("cost.md", "run") if row["run"].startswith(f"`{name}`")]
    if memory:
        lines += ["", "| run | estimate, MB | peak, MB |", "|---|---|---|"]
        lines += [_row([row["run"], row["estimate"], row["peak"]]) for row in memory]
    return "\n".join(lines)


def _table(page: str, first: str) -> list[dict[str, str]]:
    """Return the rows of the first table in a page whose first heading is that."""
    found: list[list[str]] = []
    for line in (ROOT / "docs" / page).read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if found and not line.startswith("|"):
            break
        if found or (line.startswith("|") and cells[0] == first):
            found.append(cells)
    return [dict(zip(found[0], cells, strict=True)) for cells in found[2:]]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _options(method: Method) -> str:
    """Return the options of a method, and its recipes."""
    lines = [f"- `{flags}`: {markdown(text)}" for flags, text in options.explained(method)]
    lines = lines or ["It has no options of its own."]
    recipes = [f"- `{flag}`: the same as `{flags}`" for flag, flags in help.recipes(method)]
    return "\n".join([*lines, *(["", "Recipes:", "", *recipes] if recipes else [])])


def scaling_page() -> str:
    """Return the page that docs/scaling.py makes."""
    sys.path.insert(0, str(ROOT / "docs"))
    import scaling

    return scaling.page()


def files() -> dict[str, str]:
    """Return every generated file by its path from the root of the project."""
    found = commands()
    pages = {f"man/prunecli-{command.name}.1": command_page(command) for command in found}
    return {
        "man/prunecli.1": main_page(found),
        **pages,
        "completions/prunecli.bash": bash(found),
        "completions/_prunecli": zsh(found),
        "completions/prunecli.fish": fish(found),
        "docs/variables.md": variables(found),
        "docs/families.md": families_page(),
        "docs/scaling.md": scaling_page(),
        "docs/commands/README.md": command_index(found),
        **{f"docs/commands/{command.name}.md": command_text(command) for command in found},
        **{f"docs/methods/{name}.md": method_text(registry.get(name)) for name in registry.names()},
        "examples/agents/SKILL.md": skill(found),
        "docs/sidecar.schema.json": json.dumps(sidecar.json_schema(), indent=1) + "\n",
    }


def main() -> None:
    """Write them all; delete pages of commands that no longer exist."""
    found = files()
    for path in (*ROOT.glob("man/*.1"), *ROOT.glob("docs/commands/*.md")):
        if str(path.relative_to(ROOT)) not in found:
            path.unlink()
    for name, text in found.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
