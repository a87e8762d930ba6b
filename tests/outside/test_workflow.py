"""The Snakemake workflow beside the experiment's Makefile: the same commands, the same digests.

Run by `make outside`, where `snakemake` is in the PATH or PRUNECLI_TEST_SNAKEMAKE names it: it is
installed in an environment of its own.
"""

import json
import os
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
pytestmark = [
    pytest.mark.outside,
    pytest.mark.skipif(SNAKEMAKE is None, reason="snakemake is not installed"),
]


def snakemake(work: Path, *more: str) -> str:
    given = [f"{name}={value}" for name, value in {**SMALL, "WORK": str(work)}.items()]
    ended = subprocess.run(
        [str(SNAKEMAKE), "-j2", "-s", str(HERE / "Snakefile"), *more, "--config", *given],
        cwd=work.parent, env=environment(), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


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
