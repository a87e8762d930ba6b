"""The examples of docs/adding-a-*.md, each as the one new file in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers import CONFIG_MAPPING

import prunecli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "folder", "name", "tests"),
    [
        ("adding-a-method", "methods", "magnitude_sp", "test_methods.py"),
        ("adding-a-family", "model/families", "iquestcoder", "test_families.py"),
    ],
)
def test_one_file_is_enough(page, folder, name, tests, tmp_path):
    """The tests that run over the registries pass for the new entry, with nothing else changed."""
    if folder != "methods" and name not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no '{name}'")
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    assert f"`src/prunecli/{folder}/{name}.py`" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    copy = tmp_path / "prunecli"
    shutil.copytree(Path(prunecli.__file__).parent, copy, ignore=shutil.ignore_patterns("__py*"))
    (copy / folder / f"{name}.py").write_text(code)
    entry = name.replace("_", "-")
    wanted = f"{entry}-llama" if folder == "methods" else entry
    command = f"-m pytest -q -p no:cacheprovider -rA -k {wanted}".split()
    done = subprocess.run(
        [sys.executable, *command, str(ROOT / "tests" / "model" / tests)],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.findall(rf"^PASSED .*\[.*{entry}.*\]$", done.stdout, re.M)
    assert len(passed) >= (1 if folder == "methods" else 8)
