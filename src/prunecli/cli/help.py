"""Help as plain text: what a command does, examples to copy, then its options by panel.

`--method NAME --help` explains the options of that method alone; without a name they are listed,
one line per method.
"""

import re
from collections.abc import Iterable
from inspect import cleandoc
from textwrap import TextWrapper
from typing import Any

from typer.core import TyperCommand, TyperGroup

from prunecli.cli import options
from prunecli.methods import registry
from prunecli.methods._base import Method

EXIT_STATUS = {
    0: "success",
    1: "failed",
    2: "wrong usage or configuration, or an unknown name",
    3: "check found a problem",
    4: "unusable input, or a request this model cannot satisfy",
    5: "OUT exists",
    75: "stopped; rerun the same command to resume",
    130: "interrupted (143: terminated, 129: hung up)",
}
COLUMN = 20  # the left one of a list


def usage(command: Any) -> list[str]:
    """Return the words after a command's name; optional arguments are in brackets."""
    names = [p.metavar for p in command.params if p.param_type_name == "argument" and p.required]
    more = [p.metavar for p in command.params if p.param_type_name == "argument" and not p.required]
    return ["[OPTIONS]", *names, *(f"[{name.strip('[]')}]" for name in more)]


def summary(command: Any) -> str:
    """Return the first sentence of a command's text, without its stop."""
    first = (command.help or "").split("\n\n")[0]
    return " ".join(first.split()).split(". ")[0].rstrip(".")


def described(parameter: Any) -> tuple[str, str]:
    """Return an option's flags with what it takes, and its help with the default."""
    flags = ", ".join(sorted(parameter.opts, key=len))
    left = flags if parameter.is_flag else f"{flags} {parameter.metavar}"
    help = "show this help" if parameter.name == "help" else parameter.help
    if parameter.required:
        help += " [required]"
    else:
        help += options.default_text(parameter.default)
    return left, help


def filled(text: str, width: int, indent: str = "") -> str:
    """Return text in lines, none of which ends within a word such as --dry-run, or a default."""
    wrapper = TextWrapper(width, break_on_hyphens=False, break_long_words=False)
    wrapper.initial_indent = wrapper.subsequent_indent = indent
    whole = re.sub(r"\[default: \S+\]", lambda match: match[0].replace(" ", "\0"), text)
    return wrapper.fill(whole).replace("\0", " ")


def write_list(
    formatter: Any, title: str, rows: Iterable[tuple[str, str]], column: int = COLUMN
) -> None:
    """Write a heading, and below it two columns; what is too wide for the left one has a line.

    Without rows there is no heading either.
    """
    rows = list(rows)
    if not rows:
        return
    with formatter.section(title):
        for left, right in rows:
            lines = filled(right, formatter.width - column - 2).splitlines()
            if len(left) > column - 2:
                formatter.write(f"  {left}\n")
                left = ""
            for line in lines:
                formatter.write(f"  {left:<{column}}{line}\n")
                left = ""


def write_text(formatter: Any, text: str) -> None:
    """Write paragraphs, indented."""
    for paragraph in cleandoc(text).split("\n\n"):
        formatter.write("\n" + filled(paragraph, formatter.width, "  ") + "\n")


def panels(command: Any, context: Any) -> dict[str, list[Any]]:
    """Return the options of a command by panel, in the order in which help shows them."""
    groups: dict[str, list[Any]] = {}
    for parameter in command.get_params(context):
        if parameter.param_type_name == "option" and not parameter.hidden:
            panel = parameter.rich_help_panel or options.OUTPUT_PANEL
            groups.setdefault(panel, []).append(parameter)
    last = [panel for panel in options.LAST_PANELS if panel in groups]
    return {panel: groups[panel] for panel in [*(p for p in groups if p not in last), *last]}


class Command(TyperCommand):
    """A command whose help has examples on top, and panels; its epilog is the examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and keep the words for help: it is asked for before any option is read."""
        ctx.meta["prunecli.arguments"] = list(args)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return usage(self)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the whole help."""
        self.format_usage(ctx, formatter)
        write_text(formatter, self.help or "")
        with formatter.section("Examples"):
            for line in (self.epilog or "").splitlines():
                # as it is at any width, so that it can be copied
                formatter.write(f"  {line}\n")
        parameters: list[Any] = self.params
        arguments = [(p.metavar, p.help) for p in parameters if p.param_type_name == "argument"]
        write_list(formatter, "Arguments", arguments)
        for panel, group in panels(self, ctx).items():
            if panel == options.METHOD_PANEL:
                write_list(formatter, *self._of_methods(ctx))
            else:
                write_list(formatter, panel, map(described, group))
        status = [(str(code), what) for code, what in EXIT_STATUS.items()]
        write_list(formatter, "Exit status", status)

    def _of_methods(self, ctx: Any) -> tuple[str, list[tuple[str, str]]]:
        """Return the options of the method that was named, or one line for every method."""
        values, *_ = self.make_parser(ctx).parse_args(list(ctx.meta["prunecli.arguments"]))
        if method := values.get("method"):
            return f"Options of {method}", options.explained(registry.get(method))
        lines = [
            (name, " ".join(option.flag for option in registry.get(name).options))
            for name in registry.names()
        ]
        title = "Method options (explained by `prunecli methods NAME`)"
        return title, [line for line in lines if line[1]]


class Group(TyperGroup):
    """The program, whose help lists the commands by panel."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the whole help."""
        self.format_usage(ctx, formatter)
        write_text(formatter, self.help or "")
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            panel: Any = command.rich_help_panel  # type: ignore[attr-defined]
            groups.setdefault(panel, []).append((name, summary(command)))
        column = max(map(len, self.commands)) + 2
        for panel, rows in groups.items():
            write_list(formatter, panel, rows, column)
        write_list(formatter, "Options", map(described, self.get_params(ctx)), column)
        formatter.write("\n`prunecli help COMMAND` explains a command.\n")


def of_method(method: Method, formatter: Any) -> str:
    """Return what there is to know of a method before it is used: facts, recipes, options."""
    formatter.write(f"{method.name}: {method.title}, {method.reference}\n")
    order = "layer by layer, on the outputs of already pruned layers" if method.sequential else ""
    facts = [("removes", method.granularity), ("prunes", order)]
    write_list(formatter, "Method", [fact for fact in facts if fact[1]])
    write_list(formatter, "Recipes", recipes(method))
    write_list(formatter, "Options", options.explained(method))
    return str(formatter.getvalue()).rstrip()


def recipes(method: Method) -> list[tuple[str, str]]:
    """Return each recipe of a method as its flag, and the flags that it stands for."""
    return [
        (
            f"--recipe {name}",
            " ".join(
                f"--{'data' if key == 'source' else key.replace('_', '-')} {value}"
                for key, value in recipe.items()
            ),
        )
        for name, recipe in method.recipes.items()
    ]


def examples(pairs: Iterable[tuple[str, str]]) -> str:
    """Return examples as lines of a shell: what each is for in a comment, then the command."""
    return "\n".join(f"# {what}\nprunecli {line}" for what, line in pairs)
