"""`prunecli log`."""

from typing import Annotated

import typer

from prunecli.cli import console, options, records, streams
from prunecli.cli.options import option
from prunecli.errors import InputError, UsageError
from prunecli.settings import Result


@options.with_options(options.VERBOSITY, options.CONFIG)
def log(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="folders or files with a sidecar, or - for stdin"),
    ],
    commands: Annotated[
        bool, option("commands", "print a shell script that makes it again", "History")
    ] = False,
    card: Annotated[
        bool,
        option("card", "print the model card, with the evaluations among the paths", "History"),
    ] = False,
) -> None:
    """Show how models and files came to be, oldest step first.

    A sidecar holds the results of its own step only: give the models before it, and evaluations,
    too, and theirs are shown. With --commands, what is not among the paths is a variable to set in
    the script; the exit status is 4 if a step cannot be made again from its record.

    With --card, one of the paths is a model, and the others are evaluations of it.
    """
    report = records.setup(context)
    if commands + card + context.params["json"] > 1:
        raise UsageError(
            "--commands prints a script, --card a card, --json an object", "give one of them"
        )
    from prunecli.tables.log import log as verb

    history = verb(records.read_paths() if paths == ["-"] else paths)
    script = history.script() if commands else None
    if context.params["json"]:
        made = []
        for path, record in history.records.items():
            results = {"steps": [step.dump() for step in history.of(path)]}
            made.append(Result(path, record.dump(), results))
        console.print_objects(made)
    elif card:
        streams.result(history.card().rstrip("\n"))
    elif script is not None:
        streams.result(script.text)
        for fault in history.faults:
            report.info(fault)
    else:
        short = console.width() is not None
        console.print_table(history.table(short=short), "rich", as_json=False)
    if script is None:
        return
    if script.variables:
        report.info(f"set {', '.join(script.variables)} before you run the script")
    if script.missing:
        raise InputError(
            f"{len(script.missing)} of {len(history.steps)} steps are not in the script: "
            f"{'; '.join(script.missing)}",
        )


EXAMPLES = (
    ("what was done to a model", "log out/"),
    ("with the results of the steps between", "log in/ pruned/ trained/ trained.json"),
    ("make it again elsewhere", "log --commands rows/ pruned/ trained/ > again.sh"),
    ("a model card with what was measured", "log --card out/ out.json > README.md"),
)
