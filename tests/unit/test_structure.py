"""Rules between folders: levels of imports, names that only data may know, a light start."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prunecli
from prunecli.families import registry as families
from prunecli.methods import registry as methods

ROOT = Path(prunecli.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
# what a folder may import of ours, beside itself
ALLOWED = {
    "methods": {"errors", "registry"},
    "families": {"errors", "registry"},
    "stats": {
        "errors",
        "registry",
        "report",
        "settings",
        "memory",
        "io",
        "arch",
        "methods",
        "stock",
    },
    "io": {"errors", "report", "settings", "arch", "configs", "families", "strict"},
}  # fmt: skip
LOW = {"errors", "report", "settings", "registry", "memory"}


def imports(path: Path) -> set[str]:
    """Return the first names below `prunecli` that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "prunecli":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunecli."):
            names = [node.module.split(".")[1]]
        found.update(names)
    return found - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    folder = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if folder in ALLOWED:
        assert imports(path) <= ALLOWED[folder] | {folder}
    elif folder in LOW:
        assert imports(path) <= {"errors", "settings"}
    elif folder != "cli" and folder != "__init__":
        assert "cli" not in imports(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_data_knows_methods_and_families(path):
    """No code compares with the name of a method or a family: they are found by their records."""
    folder = path.relative_to(ROOT).parts[0]
    if folder in ("methods", "families"):
        return
    names = set(methods.names()) | set(families.names())
    compared = {
        constant.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    }
    assert not compared & names


def test_importing_is_light():
    code = (
        "import sys, prunecli, prunecli.cli.app, prunecli.arch; "
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_names_its_verbs():
    for name in prunecli.__all__:
        assert getattr(prunecli, name)
    with pytest.raises(AttributeError):
        _ = prunecli.nothing
