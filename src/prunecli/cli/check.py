"""`prunecli check`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import options
from prunecli.cli.options import option
from prunecli.errors import CheckFailed


@options.takes(options.TALK, options.CONFIG)
def check(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="IN...", help="model folders or artefacts, or -")
    ],
    deep: Annotated[
        bool, option("deep", "read every byte: digests, no NaN, and zeros as told")
    ] = False,
) -> None:
    """Tell whether folders and files are what they say they are; exit 3 if one is not.

    Headers, index, names and shapes, sidecar and id; cheap unless --deep.
    """
    report = options.settings(context)
    from prunecli.measuring.check import check as verb

    paths = options.read_paths() if paths == ["-"] else paths
    problems = {path: verb(path, deep=deep, report=report) for path in paths}
    if context.params["json"]:
        rows = [{"path": path, "results": {"problems": p}} for path, p in problems.items()]
        print(jsonlib.dumps({"results": rows}))
    else:
        for path, messages in problems.items():
            print("\n".join(f"{path}: {message}" for message in messages or ["ok"]))
    failed = [path for path, messages in problems.items() if messages]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(problems)} paths failed the check")


EXAMPLES = (
    ("Is a download complete?", "check in/"),
    ("Every byte", "check --deep out/"),
)
