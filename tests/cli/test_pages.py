"""README and docs: the quickstart runs; commands, links, names and versions in them exist."""

import dataclasses
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import prunecli
from prunecli.methods import registry as methods
from prunecli.methods._base import Method
from prunecli.model.families import registry as families
from prunecli.model.families._base import Family

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PATTERNS = ("*.md", "docs/*.md", "docs/methods/*.md", "docs/commands/*.md", "examples/*/*.md")
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
EXAMPLE_MODEL = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"


def page(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str) -> list[str]:
    """Return the contents of all fenced blocks of shell: those without a language, and `sh`."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [content for language, content in fenced if language in ("", "sh")]


def commands(text: str) -> list[list[str]]:
    """Return the arguments of every `prunecli` command in these blocks, without redirections."""
    found: list[list[str]] = []
    for line in "".join(blocks(text)).replace("\\\n", " ").splitlines():
        if "prunecli " not in line:
            continue
        lexer = shlex.shlex(re.sub(r"\d?>+ *\S+", "", line), posix=True, punctuation_chars="|;&")
        lexer.whitespace_split = True
        inside = False
        for word in lexer:
            if word in ("prunecli", "prunecli)"):  # as in: torchrun $(which prunecli) train
                found.append([])
                inside = True
            elif set(word) <= set("|;&"):
                inside = False
            elif inside:
                found[-1].append(word)
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


def test_more_examples(run, tmp_path, monkeypatch):
    """Every command in the order of the page, in one folder; sizes are those of a tiny model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRUNECLI_NSAMPLES", "4")
    assert run("init", "--config", str(ROOT / "examples/ci/tiny.json"), "in/").code == 0
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(README.read_bytes())
    tiny = {
        "3072": "48", "9216": "96", "2048": "64", "rows:0:50000": "rows:0:16",
        "rows:50000:50500": "rows:16:20",
    }  # fmt: skip
    text = README.read_text("utf-8")
    (block,) = blocks(text[text.index("## More examples") : text.index("## Methods")])
    for words in commands(f"```\n{block}```\n"):
        ended = run(*[tiny.get(word, word) for word in words])
        assert ended.code == 0, (words, ended.err)
        if words[:2] == ["table", "--layout"]:
            assert "scratch - pruned" in ended.out


def test_first_steps(run, tmp_path, monkeypatch):
    """Every command of the page, in its order, on a tiny model and on text of two other pages."""
    monkeypatch.chdir(tmp_path)
    assert run("init", "--config", str(ROOT / "examples/ci/tiny.json"), "in/").code == 0
    for name, text in (("calibration", "docs/training.md"), ("held-out", "docs/methods.md")):
        (tmp_path / f"{name}.txt").write_bytes((ROOT / text).read_bytes())
    for words in commands((ROOT / "docs/first-steps.md").read_text("utf-8")):
        ended = run(*words)
        assert ended.code == 0, (words, ended.err)
        if words[:2] == ["table", "in.json"]:
            table = ended.out.splitlines()
            names = [name.removesuffix(".json") for name in words[1:]]
            assert [line.split()[0] for line in table[2:]] == names


@pytest.mark.parametrize("path", [path for path in PAGES if path.parts[-2] != "commands"], ids=page)
def test_commands_are_understood(path, run, tmp_path, monkeypatch):
    """In an empty folder each one works, or misses its input: none is wrong usage (status 2).

    Those of docs/commands are in the skill, too.
    """
    monkeypatch.chdir(tmp_path)
    for words in commands(path.read_text("utf-8")):
        if "[OPTIONS]" not in words:
            ended = run(*words, stdin="nowhere/")
            assert ended.code != 2, (words, ended.err)


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_named_files_exist(path):
    """But for the examples of docs/adding-a-*.md, and what is of other projects."""
    text = path.read_text("utf-8").split("\n## Evidence\n")[0]
    new = set(re.findall(r"complete one, `([^`]+)`", text))
    for name in set(re.findall(r"`([\w/.-]+/[\w.-]+\.(?:py|sh))`", text)) - new:
        places = [ROOT, ROOT / "src" / "prunecli"]
        if any((place / name.split("/")[0]).exists() for place in places):
            assert any((place / name).exists() for place in places), name


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


def test_features_name_their_tests():
    """Each row with a Y of prunecli's has tests, and these exist."""
    text = (ROOT / "docs" / "features.md").read_text("utf-8")
    marks, tests = (
        {row[0]: row[1] for row in re.findall(r"^\| ([^|]+?) \| ([^|]*?) \|", part, re.M)}
        for part in (
            text[text.index("## Table") : text.index("## Notes")],
            text[text.index("## Tests") : text.index("## Evidence")],
        )
    )
    assert {name for name, mark in marks.items() if "Y" in mark} <= set(tests) <= set(marks)
    for named in tests.values():
        for path, name in re.findall(r"`(tests/[^:`]+)::(\w+)`", named) or [("", "")]:
            if path:
                source = (ROOT / path).read_text("utf-8")
                assert re.search(rf"^def {name}\(", source, re.M), (path, name)
            else:
                assert named == "tests"


@pytest.fixture(scope="module")
def gatherer():
    spec = importlib.util.spec_from_file_location("gather", ROOT / "docs" / "gather.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_site_shows_every_page(gatherer):
    """What the README leads to is what the navigation lists, and holds every page of docs."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *parts: None)
    tree = yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)["nav"]

    def listed(entry):
        if isinstance(entry, str):
            return [entry]
        return [
            name
            for part in (entry.values() if isinstance(entry, dict) else entry)
            for name in listed(part)
        ]

    led_to = {page(path) for path in gatherer.gather(README) if path.suffix == ".md"}
    assert sorted(listed(tree)) == sorted(led_to)
    written = {page(path) for path in PAGES if path.parts[-2] in ("docs", "methods", "commands")}
    assert written <= led_to


def test_a_dead_link_ends_the_gathering(gatherer, tmp_path):
    (tmp_path / "a.md").write_text("[b](b.md#part) [c](https://example.org/c)", "utf-8")
    with pytest.raises(SystemExit, match=r"b\.md, which is no file"):
        gatherer.gather(tmp_path / "a.md")
    (tmp_path / "b.md").write_text("[a](a.md)", "utf-8")
    assert gatherer.gather(tmp_path / "a.md") == {tmp_path / "a.md", tmp_path / "b.md"}


def test_the_readme_counts_the_families() -> None:
    text = " ".join(README.read_text("utf-8").split())
    named, more = re.search(r"## Families (.*?), and (\d+) more", text).groups()
    # "OLMo 2 and 3" is two, "Gemma 2 and 3 (text)" as well
    count = len(named.split(", ")) + len(re.findall(r"\d and \d", named)) + int(more)
    assert f"on {len(families.names())} model families" in text
    assert count == len(families.names())


def test_counts_are_those_of_the_registries() -> None:
    pages = (ROOT / name for name in ("README.md", "docs/features.md", "docs/methods.md"))
    text = " ".join(" ".join(page.read_text("utf-8").split()) for page in pages)
    assert {*re.findall(r"(\d+) (?:model )?families", text)} == {str(len(families.names()))}
    assert {*re.findall(r"(\d+) methods", text)} == {str(len(methods.names()))}
