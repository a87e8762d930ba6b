"""Nothing that came in a name or a sidecar is markup, a formula, or a command to a terminal."""

import csv
import io
import json
import unicodedata
from pathlib import Path

import pytest

import tiny
from cli.conftest import run as run
from prunecli import evaluate, prune, table
from prunecli.cli.console import StderrReport
from prunecli.report import BIDI, printable
from prunecli.settings import Amount, Data
from prunecli.tables import table as verb
from prunecli.tables.panels import Drawing, Panel, Series, shown
from prunecli.tables.render import FORMATS, Cell, Column, Table
from prunecli.tables.sketch import as_text

# a title of a terminal, a line of its own, a turned direction, HTML, Markdown, LaTeX
HOSTILE = (
    "\x1b]0;x\x07\x9b2J\r\nprunecli: ok\u2028\u202etxt<img src=x onerror=a()>[x](javascript:a)"
    "|`*_b_*$x^2$\\input{x}~&%#"
)
NAME = HOSTILE.replace("/", "")
FORMULA = "=HYPERLINK(1)"


def controls(text: str) -> set[str]:
    """Return the characters of a text that are none for people, ends of lines apart."""
    return {
        sign
        for sign in text
        if sign != "\n" and (sign in BIDI or unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp"))
    }


def test_printable() -> None:
    every = "".join(map(chr, range(0x110000)))
    assert controls(printable(every)) == set() and "\n" not in printable(every)
    assert len(printable(every)) == len(every)
    for kept in ("plain", "naïve Ω 中文", "👩\u200d💻", "a\u00adb", ""):
        assert printable(kept) == kept
    assert printable("a\nb\tc\u2028d") == "a b c d"
    assert printable("\x1b[31mred\u202e") == "\ufffd[31mred\ufffd"


@pytest.fixture(scope="module")
def runs(llama, calibration, tmp_path_factory) -> Path:
    """Return a folder with a model and its evaluation, every text of theirs a stranger's."""
    root = tmp_path_factory.mktemp("runs") / NAME
    held = Data(tiny.tokens(tmp_path_factory.mktemp("held") / "h.safetensors", seed=7))
    prune(str(llama), str(root / NAME), method="magnitude", amount=Amount(ratio=0.5))
    evaluate(str(root / NAME), data=[held], out=str(root / "e.json"))
    path = root / NAME / "prunecli.json"
    record = json.loads(path.read_text())
    record["results"] |= {"method": HOSTILE, "granularity": FORMULA}
    record["run"]["argv"] = [HOSTILE]
    path.write_text(json.dumps(record))
    record = json.loads((root / "e.json").read_text())
    record["results"]["data"][0]["source"] = HOSTILE
    (root / "e.json").write_text(json.dumps(record))
    return root


@pytest.mark.parametrize("format", FORMATS)
def test_tables(runs, format) -> None:
    text = table([str(runs)]).render(format)
    assert (controls(text) == set() and "txt<img" in text) or "txt\\<img" in text
    if format == "csv":
        for row in csv.reader(io.StringIO(text)):
            assert not any(cell.startswith(("=", "@")) for cell in row)
        assert f"'{FORMULA}" in text
    if format == "md":
        assert r"\<img" in text and r"\[x\](" in text and r"\`\*\_b\_\*\$x" in text
    if format == "tex":
        assert r"\input" not in text and r"\textbackslash{}input\{x\}" in text
        assert r"\$x\textasciicircum{}2\$" in text


def test_terminal_figures_and_errors_of_tables(runs, run, monkeypatch) -> None:
    for words in (["table", str(runs)], ["table", "--layout", "table16", str(runs)],
                  ["table", "--advise", str(runs)], ["check", str(runs / NAME)],
                  ["check", "--deep", str(runs / NAME), str(runs / "e.json")],
                  ["speed", "--flops-only", "--seq-len", "8", str(runs / NAME)],
                  ["eval", "--data", "nothing", str(runs / NAME)]):  # fmt: skip
        ended = run(*words)
        assert controls(ended.out) == set(), words
        assert controls(ended.err) == set() and len(ended.err) <= 501, words
    line = Series("pruned", [NAME], [1.0], group=NAME, part=NAME)
    drawing = shown(Drawing(NAME, [Panel(NAME, NAME, NAME, [line])]))
    assert controls(as_text(drawing, 80)) == set()


def test_the_report(runs, tmp_path) -> None:
    path = tmp_path / "r.html"
    verb.table(verb.TableRequest((str(runs),), html=str(path)))
    page = path.read_text("utf-8")
    assert controls(page) == set()
    assert "<img" not in page and page.count("<script") == 1
    assert "http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src" in page
    # figures of matplotlib: a name is no formula there
    from prunecli.tables import draw

    line = Series("$\\frac{$", ["$x^$"], [1.0])
    (picture,) = draw.svgs(Drawing("", [Panel("$", "", "", [line])]), "one")
    assert "$x^$" in picture


@pytest.mark.parametrize("text", ["=1", "+cmd|' /C calc'!A0", "-cmd", "@SUM(1)", " =1", "\t=1"])
def test_formulas(text) -> None:
    cells = {"a": text, "b": -1.5, "c": Cell("-1.5"), "d": "-"}
    made = Table([cells], tuple(map(column, "abcd")))
    _, row = csv.reader(io.StringIO(made.render("csv")))
    assert row == ["'" + text.replace("\t", " "), "-1.5", "-1.5", "'-"]


def column(key: str) -> Column:
    return Column(key, key)


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "a\r\nb", "\u202egnp", "x" * 5000, "é" * 900])
def test_errors_are_one_short_line(run, tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["eval", name], ["prune", name, "out"], [name], ["--" + name], ["table", name],
                  ["score", "--method", name, "in", "out"], ["check", name]):  # fmt: skip
        ended = run(*words)
        assert ended.code in (1, 2, 3, 4), words
        (error,) = ended.err.splitlines()
        assert controls(error) == set() and len(error) <= 500, words
        assert controls(ended.out) == set()


def test_notes(capsys) -> None:
    report = StderrReport(quiet=False, verbose=True)
    report.info(f"read {NAME}")
    report.debug(NAME)
    shown = capsys.readouterr().err
    assert controls(shown) == set() and shown.count("\n") == 2


def test_a_pipe_gets_the_very_name(run, llama, tmp_path, monkeypatch) -> None:
    """What the next command reads is no terminal's line."""
    monkeypatch.chdir(tmp_path)
    made = run("prune", "--quiet", "--method", "magnitude", "--ratio", "0.5", str(llama), "a\x1bb")
    assert made.out == "a\x1bb\n"
