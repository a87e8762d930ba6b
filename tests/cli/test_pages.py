"""README and docs: the quickstart runs; commands, links, names and versions in them exist."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

import prunecli
from prunecli.cli import app
from prunecli.methods._base import Method
from prunecli.model.families._base import Family

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = sorted(
    path for pattern in ("*.md", "docs/*.md", "examples/*/*.md") for path in ROOT.glob(pattern)
)
EXAMPLE_MODEL = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"


def page(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str) -> list[str]:
    """Return the contents of all fenced blocks without a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [content for language, content in fenced if not language]


def commands(text: str) -> list[list[str]]:
    """Return the arguments of every `prunecli` command in the fenced blocks."""
    lines = "".join(blocks(text)).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"[|;]", line) if "prunecli " in part]
    found = [shlex.split(part[part.index("prunecli ") :], comments=True)[1:] for part in parts]
    return [words for words in found if words]


def test_quickstart(run, tmp_path, monkeypatch):
    """On a tiny model in the place of the public one, its table has loss and perplexity."""
    monkeypatch.chdir(tmp_path)
    assert run("init", "--config", str(ROOT / "examples/ci/tiny.json"), "in/").code == 0
    text = README.read_text("utf-8")
    (block,) = blocks(text[text.index("## Quickstart") : text.index("## More examples")])
    for words in commands(f"```\n{block}```\n"):
        ended = run(*["in/" if word == EXAMPLE_MODEL else word for word in words])
        assert ended.code == 0, ended.err
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert f"{results['loss']:.4f}"[:5] in ended.out
    assert f"{results['perplexity']:.4f}"[:5] in ended.out


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_commands_have_these_options(path):
    group = typer.main.get_command(app.app)
    for words in commands(path.read_text("utf-8")):
        name, options = words[0], {word.split("=")[0] for word in words if word[:2] == "--"}
        if name.startswith("-"):
            assert name == "--help"
            continue
        known = {flag for parameter in group.commands[name].params for flag in parameter.opts}
        assert options <= known | {"--help"}, words


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_named_files_exist(path):
    """Those of the examples in docs/adding-a-*.md are the ones that are not there."""
    text = path.read_text("utf-8")
    new = set(re.findall(r"complete one, `([^`]+)`", text))
    for name in set(re.findall(r"`([\w/.-]+/[\w.-]+\.(?:py|sh))`", text)) - new:
        assert (ROOT / name).exists() or (ROOT / "src" / "prunecli" / name).exists(), name


def test_targets_of_make_exist():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    for path in (README, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")):
        named = re.findall(r"(?:`|^)make ([a-z]+)", path.read_text("utf-8"), re.M)
        assert set(named) <= set(targets), path


def test_readme_lists_every_page():
    text = README.read_text("utf-8")
    assert [path.name for path in ROOT.glob("docs/*.md") if f"(docs/{path.name})" not in text] == []


@pytest.mark.parametrize("record", [Method, Family])
def test_fields_of_records_exist(record):
    text = (ROOT / "docs" / f"adding-a-{record.__name__.lower()}.md").read_text("utf-8")
    section = text[text.index(f"## Fields of `{record.__name__}`") :]
    named = re.findall(r"^- `([a-z_]+)`:", section, re.M)
    assert named
    assert set(named) <= {field.name for field in dataclasses.fields(record)}


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert citation["version"] == prunecli.__version__
    assert re.findall(r"^## \[([\d.]+)\]", changes, re.M)[0] == prunecli.__version__


def test_hooks_are_what_make_check_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    hooks = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", makefile, re.M)
    assert recipe is not None
    assert hooks == recipe[1].replace("\t", "").splitlines()
