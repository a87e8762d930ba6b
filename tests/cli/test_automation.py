"""What stands beside the program for those that run it unseen: variables, action, container."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from prunecli.cli import app

ROOT = Path(__file__).resolve().parents[2]
GROUP = typer.main.get_command(app.app)
# of tests and benchmarks, which the pages about them name
OF_TESTS = re.compile(r"PRUNECLI_(TEST_[A-Z]+|GOLDEN|SMOLLM2)")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Return what `make docs` writes."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.files()


def test_every_variable_is_documented_and_every_documented_one_is_read(pages) -> None:
    read = {
        parameter.envvar
        for command in GROUP.commands.values()
        for parameter in command.params
        if parameter.envvar
    }
    for path in (ROOT / "src").rglob("*.py"):
        read |= set(re.findall(r"PRUNECLI_[A-Z_]*[A-Z]", path.read_text("utf-8")))
    assert set(re.findall(r"`(PRUNECLI_[A-Z0-9_]+)`", pages["docs/variables.md"])) == read
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]:
        named = set(re.findall(r"PRUNECLI_[A-Z0-9_]*[A-Z0-9]", page.read_text("utf-8")))
        assert all(name in read or OF_TESTS.fullmatch(name) for name in named), page


def test_variables_are_named_like_their_options() -> None:
    for command in GROUP.commands.values():
        for parameter in command.params:
            if parameter.envvar:
                flag = parameter.opts[0].lstrip("-").upper().replace("-", "_")
                assert parameter.envvar == f"PRUNECLI_{flag}"


def test_the_skill_knows_every_command(pages) -> None:
    text = pages["examples/agents/SKILL.md"]
    _, front, body = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"name", "description"}
    for name, entry in app.COMMANDS.items():
        assert f"\n## {name}\n" in body
        assert all(f"prunecli {line}  # " in body for _, line in entry.examples)


def test_the_action_prunes(llama, calibration, tmp_path) -> None:
    """Its script, run as the runner does: inputs in variables, outputs in a file."""
    action = yaml.safe_load((ROOT / "examples" / "ci" / "action.yml").read_text("utf-8"))
    assert action["runs"]["using"] == "composite"
    [step] = action["runs"]["steps"]
    # an input inside a script would be run as code
    assert "${{" not in step["run"]
    values = {"model": str(llama), "options": f"--method wanda --ratio 0.5 --data {calibration}",
              "evaluate": f"--allow-overlap --data {calibration}"}  # fmt: skip
    inputs = {name: values.get(name, one.get("default")) for name, one in action["inputs"].items()}
    assert {n for n, one in action["inputs"].items() if one.get("required")} <= values.keys()
    env = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: inputs[match[1]], text)
        for name, text in step["env"].items()
    }
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    made = tmp_path / "outputs"
    ended = subprocess.run(
        ["bash", "-c", step["run"]], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, **env, "PATH": binaries, "GITHUB_OUTPUT": str(made)},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    outputs = dict(line.split("=") for line in made.read_text().splitlines())
    assert outputs["path"] == "pruned" and float(outputs["perplexity"]) > 1
    assert (tmp_path / "pruned" / "prunecli.json").exists()
    for one in action["outputs"].values():
        assert re.fullmatch(r"\$\{\{ steps\.prune\.outputs\.(\w+) \}\}", one["value"])[1] in outputs


CONTAINERFILE = ROOT / "examples" / "container" / "Containerfile"


def test_the_container_recipe() -> None:
    """What a linter of such files finds most: see hadolint's DL3006, DL3042, DL3002, DL3025."""
    lines = [
        line.split(maxsplit=1)
        for line in CONTAINERFILE.read_text("utf-8").replace("\\\n", " ").splitlines()
        if line and not line.startswith("#")
    ]
    known = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in lines} <= known and lines[0][0] == "FROM"
    assert re.fullmatch(r"[a-z.]+/[a-z/]+:[\w.-]+", lines[0][1])
    assert [value for name, value in lines if name == "USER"][-1] != "root"
    for name, value in lines:
        if name == "RUN" and "pip install" in value:
            assert "--no-cache-dir" in value
        if name == "COPY":
            assert all((ROOT / source).exists() for source in value.split()[:-1])
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(yaml.safe_load(value), list)
        if name == "WORKDIR":
            assert value.startswith("/")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_a_linter_accepts_the_container_recipe() -> None:
    subprocess.run(["hadolint", str(CONTAINERFILE)], check=True)
