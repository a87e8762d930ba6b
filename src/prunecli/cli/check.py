"""`prunecli check`."""

import json as jsonlib
from typing import Annotated

import typer

from prunecli.cli import options, records, streams
from prunecli.cli.options import option
from prunecli.errors import CheckFailed
from prunecli.report import cut, printable


@options.with_options(options.VERBOSITY, options.CONFIG)
def check(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="IN...", help="model folders or files, or - for stdin")
    ],
    deep: Annotated[
        bool, option("deep", "also read all data: digests, history, NaN, zeros, logits", "Check")
    ] = False,
) -> None:
    """Verify models and files against headers and sidecars.

    Checks headers, index, names, shapes, sidecar and id; fast unless --deep, which finds any byte
    that has changed. All paths are reported. The exit status is 3 if one has a problem.
    """
    report = records.setup(context)
    from prunecli.measuring.check import check as verb

    paths = records.read_paths() if paths == ["-"] else paths
    problems, as_json = {}, context.params["json"]
    for path in paths:
        problems[path] = verb(path, deep=deep, report=report)
        for message in [] if as_json else problems[path] or ["ok"]:
            streams.result(f"{printable(path)}: {cut(message)}")
    if as_json:
        rows = [{"path": path, "results": {"problems": p}} for path, p in problems.items()]
        streams.result(jsonlib.dumps({"results": rows}))
    failed = [path for path, messages in problems.items() if messages]
    if failed:
        raise CheckFailed(f"{len(failed)} of {len(problems)} paths failed the check")


EXAMPLES = (
    ("is a download complete?", "check in/"),
    ("all data", "check --deep out/"),
)
