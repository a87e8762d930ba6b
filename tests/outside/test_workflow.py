"""The Snakemake workflow beside the experiment's Makefile: the same commands, the same digests.

Run by `make outside`, where `snakemake` is in the PATH or PRUNECLI_TEST_SNAKEMAKE names it: it is
installed in an environment of its own.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_experiment import HERE, environment, make

SNAKEMAKE = os.environ.get("PRUNECLI_TEST_SNAKEMAKE") or shutil.which("snakemake")
SMALL = {
    "PARENT_ROWS": "64", "BUDGETS": "32", "METHODS": "flap", "TOTAL": "",
    "EVAL_FROM": "2600", "EVAL_ROWS": "16",
}  # fmt: skip
GRID = {
    "METHODS": "flap minitron-depth", "SPARSE": "wanda", "BUDGETS": "256 512", "SEEDS": "0 1",
    "TOTAL": "",
}  # fmt: skip
pytestmark = [
    pytest.mark.outside,
    pytest.mark.skipif(SNAKEMAKE is None, reason="snakemake is not installed"),
]


def snakemake(work: Path, *more: str, **changed: str) -> str:
    values = {**(changed or SMALL), "WORK": str(work)}
    given = [f"{name}={value}" for name, value in values.items()]
    ended = subprocess.run(
        [str(SNAKEMAKE), "-j2", "-s", str(HERE / "Snakefile"), *more, "--config", *given],
        cwd=work.parent, env=environment(), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def commands(text: str) -> set[str]:
    """Return the commands in what a dry run prints, with sums worked out."""
    lines = (line.strip().removeprefix("Shell command: ") for line in text.splitlines())
    found = (line.split(" > ")[0] for line in lines if line.startswith("prunecli "))
    return {
        " ".join(re.sub(r"\$\(\((\d+) \+ 1\)\)", lambda sum: str(int(sum[1]) + 1), one).split())
        for one in found
        if "--layout table9" not in one
    }


def test_both_run_the_same_commands(tmp_path):
    work = tmp_path / "work"
    of_make = make(work, "-n", "-o", "cost", *(f"{n}={v}" for n, v in GRID.items()))
    of_snakemake = snakemake(work, "-n", "-p", **GRID)
    assert commands(of_make) == commands(of_snakemake)
    # rows, random and parent; three cuts with two twins each; their runs, measured; three tables
    assert len(commands(of_make)) == 3 + 3 * (1 + 2) + 2 * 3 * 2 * 2 * 2 + 3


def digests(work: Path) -> dict[str, str]:
    """Return the ids and digests of all artefacts by their places."""
    found = {}
    for path in sorted(work.rglob("*.json")):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and "made_by" in record:
            place = path.relative_to(work).as_posix()
            found[place] = f"{record['id']} {record['outputs'].get('digest')}"
    return found


def test_both_make_the_same(tmp_path):
    made, again = tmp_path / "make", tmp_path / "snakemake"
    make(made, *(f"{name}={value}" for name, value in SMALL.items()))
    snakemake(again)
    assert digests(made) == digests(again)
    assert len(digests(made)) == 3 + 1 + 1 + 2 + 2
    for name in ("table.csv", "table.md"):
        assert (made / name).read_text() == (again / name).read_text()
    assert "Nothing to be done" in snakemake(again)
    # what a changed input makes anew takes the place of the old
    shutil.rmtree(again / "cut" / "flap-0.5")
    assert "rule twin" in snakemake(again) and digests(made) == digests(again)
