"""Rules between folders: levels of imports, names that only data may know, a light start."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_tables import Runs

import prunecli
import tiny
from prunecli.methods import registry as methods
from prunecli.model.families import registry as families

ROOT = Path(prunecli.__file__).parent
FILES = sorted(path for path in ROOT.rglob("*.py"))
# rooms from top to bottom: a file imports from its own room and from those below
ROOMS = (
    "cli", "tables", "pruning", "measuring", "training", "methods", "data", "model", "files", "top",
)  # fmt: skip
# what lies flat beside the rooms, each using those before it
TOP = (
    "__init__",
    "errors",
    "interruption",
    "limits",
    "native",
    "record",
    "report",
    "ranks",
    "settings",
    "registry",
)
# the front doors of the library and of the program, above the rooms as the command line is
DOORS = ("api", "__main__")


def room(parts: tuple[str, ...]) -> str:
    """Return the room of a path or a module below `prunecli`."""
    if parts[0] in DOORS:
        return "cli"
    return parts[0] if parts[0] in ROOMS else "top"


def imports(path: Path) -> set[tuple[str, ...]]:
    """Return the modules below `prunecli` that a file imports, `TYPE_CHECKING` too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "prunecli":
            found.update((alias.name,) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunecli."):
            parts = tuple(node.module.split(".")[1:])
            found.update(
                (*parts, alias.name) if is_module((*parts, alias.name)) else parts
                for alias in node.names
            )
    return found - {("__version__",)}


def is_module(parts: tuple[str, ...]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").is_file() or path.is_dir()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    own = ROOMS.index(room(path.relative_to(ROOT).with_suffix("").parts))
    if path == ROOT / "__init__.py":
        return  # it shows what the front door offers
    for module in imports(path):
        assert is_module(module), module
        assert ROOMS.index(room(module)) >= own, f"{module} is in a room above"


def test_files_at_the_top_use_those_before_them():
    assert {path.stem for path in ROOT.glob("*.py")} == {*TOP, *DOORS}
    for name in TOP[1:]:  # the first shows what is behind the front door
        used = {module[0] for module in imports(ROOT / f"{name}.py")} - {*DOORS}
        assert used <= set(TOP[: TOP.index(name)])


def test_the_architecture_page_shows_this_order():
    page = (ROOT.parent.parent / "docs" / "architecture.md").read_text("utf-8")
    block = page.split("```rooms\n")[1].split("```")[0]
    assert [line.split()[0] for line in block.splitlines()] == [*ROOMS[:-1]]
    assert {path.name for path in ROOT.iterdir() if path.is_dir()} - {"__pycache__"} == {
        *ROOMS[:-1]
    }


def test_no_circles():
    """No chain of imports inside a room, or between them, comes back to where it began."""
    graph = {
        path.relative_to(ROOT).with_suffix("").parts: {
            module for module in imports(path) if not ROOT.joinpath(*module).is_dir()
        }
        for path in FILES
    }
    done: set[tuple[str, ...]] = set()

    def visit(module, above):
        assert module not in above, " > ".join(".".join(one) for one in (*above, module))
        if module not in done:
            for used in sorted(graph[module]):
                visit(used, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_a_command_leads_to_its_module():
    """The library verb of `prunecli X-Y` stands in X_Y.py, in the room of its work."""
    for path in (ROOT / "cli").glob("*.py"):
        source = path.read_text()
        if "EXAMPLES" not in source or path.stem in ("app", "methods", "families"):
            continue
        (home,) = [one for one in ROOT.glob(f"*/{path.stem}.py") if one.parent.name != "cli"]
        assert prunecli.__file__ and home.is_file()


# what a function may have, unless its docstring says why it has more ("Long because", "Many
# parameters because")
LINES, PARAMETERS = 60, 8


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        reason = ast.get_docstring(node) or ""
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([one for one in parameters if one.arg not in ("self", "cls")])
        lines = node.end_lineno - node.lineno + 1
        assert lines <= LINES or "Long because" in reason, f"{node.name} has {lines} lines"
        assert count <= PARAMETERS or "Many parameters because" in reason, (
            f"{node.name} has {count} parameters"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_data_knows_methods_and_families(path):
    """No code compares with the name of a method or a family: they are found by their records."""
    if {"methods", "families"} & set(path.relative_to(ROOT).parts):
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
        "import sys, prunecli, prunecli.cli.app, prunecli.model.arch; "
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_computes_no_tensor_loads_no_torch(tmp_path):
    """Help, lists, histories, tables and counts are ready at once."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny.config_of("llama")))
    runs = Runs(tmp_path / "runs")
    made = runs.trained("made", runs.made("random", "init"), 0, 10)
    runs.eval("eval", made, 2.5)
    model = tiny.make(tmp_path / "model")
    lines = [
        ["--help"], ["prune", "--help"], ["methods"], ["families"],
        ["log", str(runs.folder / "made")],
        ["table", str(runs.folder)], ["table", "--reference", "paper"],
        ["speed", "--flops-only", str(tmp_path)],
        ["check", str(model), str(runs.folder / "eval.json")],
    ]  # fmt: skip
    code = (
        "import json, sys\n"
        "from prunecli.cli import app\n"
        "for line in json.loads(sys.argv.pop()):\n"
        "    sys.argv[1:] = line\n"
        "    try:\n"
        "        app.main()\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, line\n"
        "    heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, (line, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_package_names_its_verbs():
    for name in prunecli.__all__:
        assert getattr(prunecli, name)
    with pytest.raises(AttributeError):
        _ = prunecli.nothing
