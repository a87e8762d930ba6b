"""The command line's frame: the commands, and the one place where errors become exit statuses."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

from prunecli import __version__, interruption, native
from prunecli.cli import (
    calibrate,
    check,
    eval,
    families,
    help,
    init,
    log,
    methods,
    options,
    prune,
    score,
    search_arch,
    signals,
    speed,
    streams,
    table,
    tokenize,
    train,
)
from prunecli.errors import PruneError, Stopped, UsageError, of_memory, of_system, suggest
from prunecli.files import world
from prunecli.report import cut, printable

PATIENCE = 20.0  # seconds


class Entry(NamedTuple):
    """A command, its examples, and the heading under which help lists it."""

    run: Callable[..., None]
    examples: tuple[tuple[str, str], ...]
    panel: str
    several: bool = True  # whether processes of torchrun can run it together, or the first for all


COMMANDS = {
    "prune": Entry(prune.prune, prune.EXAMPLES, "Prune"),
    "search-arch": Entry(search_arch.search_arch, search_arch.EXAMPLES, "Prune"),
    "calibrate": Entry(calibrate.calibrate, calibrate.EXAMPLES, "Prune"),
    "score": Entry(score.score, score.EXAMPLES, "Prune"),
    "init": Entry(init.init, init.EXAMPLES, "Train", several=False),
    "tokenize": Entry(tokenize.tokenize, tokenize.EXAMPLES, "Train", several=False),
    "train": Entry(train.train, train.EXAMPLES, "Train"),
    "eval": Entry(eval.evaluate, eval.EXAMPLES, "Measure"),
    "speed": Entry(speed.speed, speed.EXAMPLES, "Measure", several=False),
    "table": Entry(table.table, table.EXAMPLES, "Measure", several=False),
    "check": Entry(check.check, check.EXAMPLES, "Inspect", several=False),
    "log": Entry(log.log, log.EXAMPLES, "Inspect"),
    "methods": Entry(methods.methods, methods.EXAMPLES, "Inspect"),
    "families": Entry(families.families, families.EXAMPLES, "Inspect"),
}


app = typer.Typer(
    name="prunecli",
    cls=help.Group,
    help="Prune large language models from the shell.\n\n"
    "Results go to stdout, messages and progress to stderr. Every output has a JSON sidecar that "
    "records how it was made.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

for _name, _entry in COMMANDS.items():
    app.command(
        _name,
        cls=help.Command,
        epilog=help.examples(_entry.examples),
        rich_help_panel=_entry.panel,
    )(_entry.run)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"prunecli {__version__}")
        raise typer.Exit(0)


@app.callback()
def frame(
    version: Annotated[
        bool, typer.Option("--version", help="show the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line; errors become one line on stderr and the documented exit status."""
    signals.listen()
    _replace_closed_streams()
    with streams.guarded():
        _guarded()


def _guarded() -> None:
    try:
        _run()
    except (Exception, interruption.Interrupted) as error:
        number = interruption.noted()
        signals.leave()
        streams.rejoin()
        if number is not None and not isinstance(error, Stopped):
            # whatever it became on its way through libraries
            _interrupted(number)
        _refuse(error)
    finally:
        signals.leave()
        streams.rejoin()


def _run() -> None:
    interruption.safe_point()
    arguments = sys.argv[1:]
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        _fail(f"unknown command '{arguments[0]}'{suggest(arguments[0], list(COMMANDS))}", 2)
    entry = COMMANDS.get(arguments[0]) if arguments else None
    if entry is not None and world.size() > 1 and not entry.several:
        raise UsageError(f"'{arguments[0]}' runs in one process", "run it without torchrun")
    if arguments and arguments[0] in COMMANDS:
        options.take_others(COMMANDS[arguments[0]].run)
    status = app(arguments or ["--help"], standalone_mode=False)
    # a reader that has left is met here, not when the interpreter ends
    sys.stdout.flush()
    _leave(status or (0 if arguments else 2))


def _leave(status: int) -> NoReturn:
    if world.is_job():
        # threads that torch's process groups leave can abort a process that ends in the usual way,
        # and torchrun then stops the others
        streams.rejoin()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _refuse(error: BaseException) -> None:
    """End with the line and the status that an error stands for."""
    if isinstance(error, PruneError):
        if not world.is_first():
            # most errors are found by all processes of torchrun, or told to the first; torchrun
            # ends them all when one has ended, and the first must have spoken by then
            time.sleep(PATIENCE)
        _fail(str(error), error.exit_code)
    if isinstance(error, typer.Abort):
        _interrupted(signal.SIGINT)
    if isinstance(error, BrokenPipeError):
        # whoever read our results has left; do not complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if memory := of_memory(error):
        _unexpected(str(memory))
    if isinstance(error, OSError):
        _unexpected(str(of_system(error)))
    if hasattr(error, "format_message"):  # a usage error of the parser
        _fail(_parsing(error), 2)
    _unexpected(f"internal error: {type(error).__name__}: {error}")


def _interrupted(number: int) -> None:
    if not world.is_first():
        _leave(128 + number)  # a signal reaches all processes of torchrun
    try:
        _fail("interrupted", 128 + number)
    finally:
        if native.is_left():
            # it would meet the end of the interpreter with a crash
            os._exit(128 + number)


def _replace_closed_streams() -> None:
    """Put the null device in the place of standard streams that are closed.

    Nothing else may get their numbers: what is printed would go into the next file opened.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _parsing(error: Any) -> str:
    """Return what the parser refuses and where to read on; for a bad value, where it is from."""
    parameter: Any = getattr(error, "param", None)
    cause: Any = error.__cause__
    if hasattr(cause, "errors"):
        (first, *_), flag = cause.errors(), parameter.opts[0]
        value, variable = first["input"], getattr(parameter, "envvar", None)
        explicit = any(argument.split("=")[0] in parameter.opts for argument in sys.argv)
        source = (
            f" (from {variable})" if variable and variable in os.environ and not explicit else ""
        )
        return f"{flag} '{value}'{source} {first['msg'].removeprefix('Input ')}"
    message, kind = str(error.format_message()).rstrip("."), type(error).__name__
    if kind == "MissingParameter":
        name = parameter.metavar if parameter.param_type_name == "argument" else parameter.opts[0]
        message = f"missing {parameter.param_type_name} {name}"
    elif kind == "NoSuchOption":
        message = f"unknown option {error.option_name}"
        for near in error.possibilities or ():
            return f"{message}: did you mean '{near}'?"
    command = sys.argv[1] + " " if sys.argv[1] in COMMANDS else ""
    return f"{message[:1].lower()}{message[1:]}; see `prunecli {command}--help`"


def _unexpected(what: str) -> None:
    if "--verbose" in sys.argv or os.environ.get("PRUNECLI_VERBOSE"):
        import traceback

        for line in traceback.format_exc().splitlines():
            print(printable(line), file=sys.stderr)
        sys.exit(1)
    _fail(f"{what} (--verbose shows where)", 1)


def _fail(message: Any, status: int) -> None:
    print(cut(f"prunecli: error: {' '.join(str(message).split())}"), file=sys.stderr)
    _leave(status)
