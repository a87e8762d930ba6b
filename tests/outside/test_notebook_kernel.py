"""The example notebook in a kernel, and commands in a cell. Run by `make outside`."""

import os
import sys
from pathlib import Path

import pytest

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRUNE = "prunecli prune --method magnitude --ratio 0.5 tiny out"
pytestmark = pytest.mark.outside


def shown(notebook, folder: Path, monkeypatch) -> list[list[dict]]:
    """Run a notebook in a kernel of its own; return what every cell of code shows."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def test_the_example_shows_tables_and_figures_only(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("CONFIG", str(EXAMPLES / "ci" / "tiny.json"))
    notebook = nbformat.read(EXAMPLES / "notebook" / "first-look.ipynb", 4)
    start, dense, loop, *more = shown(notebook, tmp_path, monkeypatch)
    assert start == loop == []  # nine prunings and evaluations: no bar, no line
    for outputs in (dense, *more):
        (output,) = outputs
        assert output.output_type == "execute_result"
        assert output.data["text/html"].startswith("<")


def test_a_command_in_a_cell_draws_no_bar(tmp_path, monkeypatch):
    cells = [
        f"!prunecli init --config {EXAMPLES / 'ci' / 'tiny.json'} tiny",
        f"!{PRUNE}",
        f"!env -u JPY_PARENT_PID {PRUNE} --force",  # as a terminal, which the cell claims to be
    ]
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    outputs = shown(nbformat.v4.new_notebook(cells=code), tmp_path, monkeypatch)
    init, pruned, drawn = ("".join(one.text for one in of_cell) for of_cell in outputs)
    assert "\nout\r\n" in pruned and "prunecli: pruned 50.00%" in pruned
    for text in (init, pruned):
        assert "\x1b" not in text and "\r" not in text.replace("\r\n", "\n")
    assert "\x1b[2K" in drawn
