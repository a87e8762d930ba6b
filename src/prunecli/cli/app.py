"""The command line's frame: the commands, and the one place where errors become exit statuses."""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any

import typer

from prunecli import __version__
from prunecli.cli import (
    calibrate,
    check,
    eval,
    families,
    init,
    methods,
    options,
    prune,
    score,
    search_arch,
    speed,
    table,
    tokenize,
    train,
)
from prunecli.errors import PruneError, suggest
from prunecli.training import world

PATIENCE = 20.0  # seconds


COMMANDS: dict[str, tuple[Callable[..., None], tuple[tuple[str, str], ...]]] = {
    "calibrate": (calibrate.calibrate, calibrate.EXAMPLES),
    "score": (score.score, score.EXAMPLES),
    "prune": (prune.prune, prune.EXAMPLES),
    "search-arch": (search_arch.search_arch, search_arch.EXAMPLES),
    "init": (init.init, init.EXAMPLES),
    "tokenize": (tokenize.tokenize, tokenize.EXAMPLES),
    "train": (train.train, train.EXAMPLES),
    "eval": (eval.evaluate, eval.EXAMPLES),
    "speed": (speed.speed, speed.EXAMPLES),
    "table": (table.table, table.EXAMPLES),
    "check": (check.check, check.EXAMPLES),
    "methods": (methods.methods, methods.EXAMPLES),
    "families": (families.families, families.EXAMPLES),
}


app = typer.Typer(
    name="prunecli",
    help="Prune large language models from the shell.\n\n"
    "Each command reads and writes files with a JSON sidecar: stdout is the path of what was made "
    "(or the result), stderr is talk.",
    rich_markup_mode=None,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def epilog(examples: tuple[tuple[str, str], ...]) -> str:
    """Return the end of a command's help: examples and exit statuses."""
    lines = ["EXAMPLES", *(f"{what}: prunecli {line}" for what, line in examples)]
    status = "; ".join(f"{code} {what}" for code, what in options.EXIT_STATUS.items())
    return "\n\n".join([*lines, f"EXIT STATUS: {status}"])


for _name, (_command, _examples) in COMMANDS.items():
    app.command(_name, epilog=epilog(_examples))(_command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"prunecli {__version__}")
        raise typer.Exit(0)


@app.callback()
def frame(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def _terminated(number: int, frame: FrameType | None) -> None:
    # an exception, so that temporary files are cleared on the way out
    raise SystemExit(128 + number)


def main() -> None:
    """Run the command line; errors become one line on stderr and the documented exit status."""
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        _fail(f"unknown command '{arguments[0]}'{suggest(arguments[0], list(COMMANDS))}", 2)
    try:
        status = app(arguments or ["--help"], standalone_mode=False)
        # a reader that has left is met here, not when the interpreter ends
        sys.stdout.flush()
        sys.exit(status or (0 if arguments else 2))
    except PruneError as error:
        if not world.is_first():
            # all processes of torchrun find the same error; it ends them all when one has ended,
            # and the first must have spoken by then
            time.sleep(PATIENCE)
            sys.exit(error.exit_code)
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # whoever read our results has left; do not complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, OSError) as error:
        _unexpected(f"{type(error).__name__}: {error}" if str(error) else "out of memory")
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser
            _fail(_parsing(error), 2)
        _unexpected(f"internal error: {type(error).__name__}: {error}")


def _parsing(error: Any) -> str:
    """Return what the parser refuses; for a value that is of no use, which and where it is from."""
    parameter, cause = getattr(error, "param", None), error.__cause__
    if parameter is None or not hasattr(cause, "errors"):
        return str(error.format_message())
    (first, *_), flag = cause.errors(), parameter.opts[0]
    value, variable = first["input"], getattr(parameter, "envvar", None)
    given = any(argument.split("=")[0] in parameter.opts for argument in sys.argv)
    source = f" (from {variable})" if variable and not given and variable in os.environ else ""
    return f"{flag} '{value}'{source} {first['msg'].removeprefix('Input ')}"


def _unexpected(what: str) -> None:
    if "--verbose" in sys.argv or os.environ.get("PRUNECLI_VERBOSE"):
        import traceback

        traceback.print_exc()
        sys.exit(1)
    _fail(f"{what} (--verbose shows where)", 1)


def _fail(message: Any, status: int) -> None:
    line = " ".join(str(message).split())
    print(f"prunecli: error: {line}", file=sys.stderr)
    sys.exit(status)
