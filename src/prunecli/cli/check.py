"""`prunecli check`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import options, records
from prunecli.cli.options import option
from prunecli.errors import CheckFailed


@options.with_options(options.VERBOSITY, options.CONFIG)
def check(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="IN...", help="model folders or files, or - for stdin")
    ],
    deep: Annotated[
        bool, option("deep", "also read all data: digests, NaN, and the recorded zeros", "Check")
    ] = False,
) -> None:
    """Verify models and files against headers and sidecars.

    Checks headers, index, names, shapes, sidecar and id; fast unless --deep. The exit status is 3
    if one has a problem.
    """
    report = records.setup(context)
    from prunecli.measuring.check import check as problems_of

    given = records.read_paths() if paths == ["-"] else paths
    found = {path: problems_of(path, deep=deep, report=report) for path in given}
    if context.params["json"]:
        rows = [{"path": path, "results": {"problems": p}} for path, p in found.items()]
        print(jsonlib.dumps({"results": rows}))
    else:
        for path, problems in found.items():
            print("\n".join(f"{path}: {problem}" for problem in problems or ["ok"]))
    wrong = [path for path, problems in found.items() if problems]
    if wrong:
        raise CheckFailed(f"{len(wrong)} of {len(found)} paths failed the check")


EXAMPLES = (
    ("is a download complete?", "check in/"),
    ("all data", "check --deep out/"),
)
