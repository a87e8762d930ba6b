"""The example notebook: every cell runs, shows a table or a figure, and prints nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebook"
NOTEBOOK = FOLDER / "first-look.ipynb"
# what a kernel does with a cell: runs it, and shows the value of its last line as HTML
RUNNER = """
import ast, json, sys
shown, names = [], {}
for source in json.load(sys.stdin):
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    value = last and eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    shown.append(value._repr_html_() if value is not None else "")
print(json.dumps(shown))
"""


def test_the_notebook_runs(tmp_path):
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # what it shows is for whoever runs it, not for git
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    environment = {**os.environ, "OUT": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment["CONFIG"] = str(FOLDER.parent / "ci" / "tiny.json")
    ended = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(["".join(cell["source"]) for cell in code]),
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""  # no bar of progress, no warning
    (line,) = ended.stdout.splitlines()
    start, dense, loop, table, sweep, plan, log = json.loads(line)
    assert start == loop == ""
    assert "perplexity" in dense and dense.startswith("<table>")
    assert table.count("<tr>") == 1 + 10 and "granularity" in table
    assert "of 3 methods" in sweep and sweep.count("<svg") == 6
    assert "flap-0.5 keeps" in plan and plan.count("<svg") == 2
    assert "minitron" not in log and "prune" in log
    assert (tmp_path / "sweep.svg").read_text().startswith("<?xml")
