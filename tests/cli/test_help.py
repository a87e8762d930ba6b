"""Help: quick, complete, plain text; and examples that can be typed."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from prunecli.cli import app, help, options
from prunecli.data.samplers import SAMPLERS
from prunecli.errors import suggest
from prunecli.methods import registry

PROGRAM = Path(sys.executable).with_name("prunecli")
GROUP = typer.main.get_command(app.app)
HEAVY = ["torch", "transformers", "datasets", "numpy", "rich.progress", "lm_eval"]
COMPUTING = {"device", "dtype", "buffer", "memory", "threads", "seed"}
TOKENS = {"data", "sampler", "nsamples", "seq-len", "tokenizer"}
COMMON = {"json", "quiet", "verbose", "progress", "config", "print-config"}
WRITES = {"force", "skip-existing", "dry-run"}
AMOUNT = {"ratio", "sparsity", "layers", "hidden", "heads", "ffn", "params", "arch", "multiple"}
EXPECTED = {
    "calibrate": {"for", "compat", "probe"} | TOKENS | COMPUTING | COMMON | WRITES,
    "score": {"method", "stats", "compat", "probe"} | TOKENS | COMPUTING | COMMON | WRITES,
    "prune": {"method", "stats", "scores", "plan", "plan-only", "keep", "recipe", "compat", "probe"}
    | {"keep-wrapper"}
    | AMOUNT
    | TOKENS
    | COMPUTING
    | COMMON
    | WRITES,
    "search-arch": {"method", "params", "flops", "ratio", "paper", "eval-data", "restart", "compat"}
    | {"probe"}
    | TOKENS
    | COMPUTING
    | COMMON
    | WRITES,
    "init": {"like", "config", "masks", "scheme", "from", "compat", "seed", "dtype", "tokenizer"}
    | {"json", "quiet", "verbose"}
    | WRITES,
    "tokenize": {"tokenizer", "seq-len", "train-tokenizer", "separator", "tokens", "workers"}
    | {"restart"}
    | COMMON
    | WRITES,
    "train": {"data", "tokens", "steps", "batch-size", "lr", "recipe", "teacher", "kd-weight"}
    | {"temperature", "save-every", "probe", "repeat", "restart", "masks", "eval-data", "compile"}
    | (COMPUTING - {"buffer", "memory"})
    | COMMON
    | WRITES,
    "eval": {"out", "allow-overlap", "tasks", "suite", "include-path", "allow-code", "limit"}
    | {"batch-size", "compat", "restart", "probe"}
    | TOKENS
    | COMPUTING
    | COMMON
    | WRITES,
    "table": {"format", "layout", "reference", "figure", "plot", "html", "advise", "budget"}
    | COMMON,
    "speed": {"base", "flops-only", "seq-len", "sparsity", "compat", "measure", "batch-size", "out"}
    | {"decode-tokens", "warmup", "rounds", "compile"}
    | (COMPUTING - {"buffer", "memory"})
    | COMMON
    | WRITES,
    "check": {"deep"} | COMMON,
    "log": {"commands"} | COMMON,
    "methods": {"json"},
    "families": {"json", "probe"},
}


def flags(command: str) -> set[str]:
    return {
        flag.lstrip("-")
        for parameter in GROUP.commands[command].params
        if parameter.param_type_name == "option"
        for flag in parameter.opts
    }


def test_importing_nothing_heavy() -> None:
    code = f"""
import sys
from typer.testing import CliRunner
from prunecli.cli import app
for command in ["", *app.COMMANDS]:
    ended = CliRunner().invoke(app.app, [*command.split(), "--help"])
    assert ended.exit_code == 0, (command, ended.output)
    assert ended.stdout.startswith("Usage: ")
print([name for name in {HEAVY} if name in sys.modules])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.stdout.strip(), ended.returncode) == ("[]", 0), ended.stderr


@pytest.mark.parametrize("command", app.COMMANDS)
def test_every_command(run, command: str) -> None:
    ended = run(command, "--help")
    assert ended.code == 0
    assert ended.err == ""
    for heading in ("Usage: ", "Examples:", "Output:", "Exit status:"):
        assert f"\n{heading}" in f"\n{ended.out}"
    assert not set(ended.out) & set("╭╮╰╯│─")
    assert flags(command) >= EXPECTED[command]
    for parameter in GROUP.commands[command].params:
        assert parameter.help or parameter.name in ("help", "context"), parameter.name


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", app.COMMANDS)
def test_it_fits(run, monkeypatch, command: str, columns: int) -> None:
    """No line is too long, no word with a hyphen is broken, and examples can be copied."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run(command, "--help").out.splitlines()
    assert max(map(len, lines)) < columns
    assert not [line for line in lines if line.endswith("-") and not line.endswith(" -")]
    assert {f"  prunecli {line}" for _, line in app.COMMANDS[command].examples} <= set(lines)


def test_every_value_has_a_name_and_every_default_looks_alike() -> None:
    for command in GROUP.commands.values():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.is_flag or parameter.metavar, parameter.name
                assert parameter.rich_help_panel, parameter.name
                # brackets in help are forms of a value, or its default
                told = re.findall(r"\[[^]]* [^]]*\]", parameter.help)
                assert all(one.startswith("[default: ") for one in told), parameter.help


def test_the_program_lists_commands_by_panel(run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("--help").out.splitlines()
    assert max(map(len, lines)) < 80
    for name, entry in app.COMMANDS.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        summary = help.summary(GROUP.commands[name])
        assert line.endswith(f" {summary}") and len(summary) < 60
        above = lines[: lines.index(line)]
        assert [one for one in above if one.endswith(":")][-1] == f"{entry.panel}:"
    assert next(iter(app.COMMANDS)) == "prune"
    assert run("help").out.splitlines() == lines


def test_panels_of_prune(run) -> None:
    lines = run("help", "prune").out.splitlines()
    assert [line for line in lines if line and line[0] not in " `U"] == [
        *("Examples:", "Arguments:", "What to prune:", "Calibration data:", "Step by step:"),
        *("Method options (explained by `prunecli methods NAME`):", "Compute:", "Output:"),
        "Exit status:",
    ]
    assert "  flap                --structure --metric --bias" in lines
    assert "  0                   success" in lines


@pytest.mark.parametrize("command", ["prune", "score", "search-arch"])
@pytest.mark.parametrize("first", [True, False])
def test_options_of_one_method(run, command: str, first: bool) -> None:
    words = ("--method", "flap", "--help") if first else ("--help", "--method=flap")
    ended = run(command, *words)
    assert "Options of flap:\n  --structure UL-UM|UL-MM|AL-MM|AL-AM\n" in ended.out
    assert "[default: WIFV]" in ended.out
    assert "--damping" not in ended.out
    assert ended.out == run("help", command, "--method", "flap").out
    ended = run(command, "--method", "flop", "--help")
    assert (ended.code, ended.err) == (
        2,
        "prunecli: error: unknown method 'flop': did you mean 'flap'?\n",
    )


def test_a_method_is_explained(run) -> None:
    for name in registry.names():
        method = registry.get(name)
        ended = run("methods", name)
        assert ended.out.startswith(f"{name}: {method.title}, {method.reference}\n")
        for option in method.options:
            assert f"\n  {option.flag}" in ended.out
        (record,) = json.loads(run("methods", name, "--json").out)["results"]
        assert record["name"] == name
    assert "did you mean 'wanda'?" in run("methods", "wnda").err


@pytest.mark.parametrize(
    "line", [line for entry in app.COMMANDS.values() for _, line in entry.examples]
)
def test_examples_can_be_typed(line: str) -> None:
    for part in f"prunecli {line}".split(" | "):
        program, command, *arguments = shlex.split(part)
        assert program == "prunecli"
        GROUP.commands[command].make_context(command, arguments)


def test_options_of_methods() -> None:
    """Every method's options are there, with who has them and what they are without."""
    found = {parameter.name: parameter for parameter in GROUP.commands["prune"].params}
    for name in registry.names():
        for option in registry.get(name).options:
            assert name in found[option.name].help
            told = "" if option.default in (None, False, "") else str(option.default)
            assert told in found[option.name].help


def test_choices_are_those_of_the_library() -> None:
    from prunecli.tables.figures import FIGURES
    from prunecli.tables.render import FORMATS
    from prunecli.tables.table import LAYOUT_NAMES

    assert set(options.CHOICES["sampler"]) == set(SAMPLERS)
    assert options.CHOICES["format"] == FORMATS
    assert options.CHOICES["layout"] == LAYOUT_NAMES
    assert options.CHOICES["figure"] == tuple(FIGURES)
    recipes = {recipe for name in registry.names() for recipe in registry.get(name).recipes}
    assert set(options.CHOICES["recipe"]) == recipes
    assert set(options.CHOICES["buffer"]) == {"auto", "device", "ram", "disk"}


def test_names_to_choose_from() -> None:
    assert suggest("flop", ["flap", "wanda"]) == ": did you mean 'flap'?"
    assert suggest("x", ["flap", "wanda"]) == "; choose from flap, wanda"
    assert suggest("?", [f"task{i}" for i in range(9999)]) == ""


def test_version(run) -> None:
    from prunecli import __version__

    assert run("--version").out == f"prunecli {__version__}\n"
