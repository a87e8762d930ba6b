"""What is printed fits a terminal of 80 or 100 columns, and is whole in a pipe."""

import fcntl
import io
import json
import os
import struct
import subprocess
import sys
import termios

import pytest
from test_tables import Runs, task

import tiny
from prunecli.cli import app
from prunecli.tables import own_layouts, sketch
from prunecli.tables.layouts import LAYOUTS
from prunecli.tables.panels import Drawing, Grid, Panel, Series
from prunecli.tables.render import Cell, Column, Table
from prunecli.tables.terminal import shown
from prunecli.tables.text import aligned, filled

LONG = "a-model-whose-name-somebody-has-made-longer-than-any-column-of-a-terminal-would-be"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def show(monkeypatch):
    """Return a function of a width (None: a pipe) and arguments, and of what is printed then."""

    def call(width, *arguments):
        stdout = io.StringIO() if width is None else Terminal()
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "argv", ["prunecli", *arguments])
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
        try:
            app.main()
        except SystemExit as end:
            assert not end.code
        return stdout.getvalue()

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sidecars of a parent, pruned and retrained models and a twin; one has a long name."""
    runs = Runs(tmp_path_factory.mktemp("terminal") / "runs")
    parent = runs.trained("parent", runs.made("random", "init"), 0, 10)
    whole = runs.trained("whole", runs.made("twin3", "init", options={"seed": 3}), 0, 14)
    runs.eval("e-whole", whole, 2.5, [task(value=0.55)])
    scratch = runs.trained("s", runs.made("twin", "init", options={"seed": 1}), 10, 14)
    runs.eval("e-s", scratch, 3.0, [task(value=0.5)])
    other = runs.trained("odd", runs.made("twin2", "init", options={"seed": 2}), 10, 15)
    runs.eval("e-odd", other, 3.1, [task(value=0.5, version=2)])
    for name, ratio in (("p", 0.5), (LONG, 0.25)):
        results = {"method": "flap", "ratio": ratio, "granularity": "KV groups"}
        pruned = runs.made(f"{name}-0", "prune", parent, {"ratio": ratio}, results=results)
        model = runs.trained(name, pruned, 10, 14, options={"lr": ratio})
        runs.eval(f"e-{name}", model, 2.0 + ratio, [task(value=0.6)])
    return str(runs.folder)


PAPER = [
    *(("table", "--reference", "paper", "--layout", layout) for layout in LAYOUTS),
    *(("table", "--reference", "paper", "--figure", number) for number in "1345"),
    ("table", "--reference", "paper", "--advise"),
    ("search-arch", "--paper"),
    ("methods",),
    ("methods", "sheared-llama"),
    ("families",),
]
OWN = [
    *(("--layout", layout) for layout in (*own_layouts.LAYOUTS, "table1", "table16", "scaling")),
    ("--layout", "table16", "--reference", "paper"),
    *(("--figure", number) for number in "1345"),
    ("--advise",),
]


def widest(text):
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("line", PAPER, ids=" ".join)
def test_lines_fit(show, line, width):
    assert 20 < widest(show(width, *line)) <= width


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("line", OWN, ids=" ".join)
def test_own_runs_fit(show, folder, line, width):
    assert 20 < widest(show(width, "table", *line, folder)) <= width


@pytest.mark.parametrize("width", [80, 100])
def test_measurements_fit(show, llama, tmp_path, width):
    model = tmp_path / LONG
    model.symlink_to(llama)
    data = tiny.tokens(tmp_path / "held-out.safetensors", seed=2)
    for line in (
        ("eval", "--quiet", "--data", data),
        (
            "speed",
            "--quiet",
            "--base",
            str(llama),
            *["--rounds", "1", "--warmup", "0", "--seq-len", "8"],
        ),
    ):
        assert widest(show(width, *line, str(model), str(llama))) <= width


def test_pipes_are_whole(show, folder):
    """Every column and every value, whatever the terminal that one sits at has."""
    rows = json.loads(show(None, "table", "--json", folder))["results"]
    heading, rule, *lines = show(None, "table", folder).splitlines()
    assert len(lines) == len(rows) and len(rule.split()) == len(own_layouts.COLUMNS)
    assert all(column.heading in heading for column in own_layouts.COLUMNS)
    assert any(LONG in line for line in lines)
    assert all(word in show(None, "methods") for word in ("sequential", "--activation-checkp"))


def test_what_a_terminal_leaves_out_is_named(show, folder):
    text = show(80, "table", folder)
    table, _, below = text.partition("\n\n")
    used = {"computed in", "peak MB", "trained tokens"}
    left_out = " ".join(below.split())
    assert left_out.startswith("not shown (see --format csv): ")
    assert all(name in left_out and name not in table for name in used)
    text = show(400, "table", folder)
    assert "not shown" not in text and all(name in text for name in used)


def test_empty_columns_are_dropped_in_a_terminal():
    table = Table([{"a": "x", "c": 1.0}], (Column("a", "name"), Column("b", "b"), Column("c", "c")))
    assert shown(table, "rich", 80).splitlines()[0].split() == ["name", "c"]
    assert table.render("rich").splitlines()[0].split() == ["name", "b", "c"]
    assert shown(table, "csv", 80) == table.render("csv") == "a,b,c\nx,,1.0"


def test_many_notes_of_one_kind_are_one_in_a_terminal():
    rows = [{"a": Cell(n, note=f"printed differently: {n}")} for n in range(9)]
    rows.append({"a": Cell(9, note="another")})
    table = Table(rows, (Column("a", "a"),))
    text = shown(table, "rich", 80)
    assert text.count("printed differently") == 1 and "[b] another" in text
    assert table.render("rich").count("printed differently: ") == 9


def test_differences_are_marked_in_a_terminal(show):
    text = show(100, "table", "--reference", "paper", "--layout", "table2")
    assert "- pruned-p200   250 - 50" in text and "compared with" not in text
    assert "pruned-p200: pruned from a parent that was trained on 200 billion tokens" in text
    assert "compared with" in show(None, "table", "--reference", "paper")


@pytest.mark.parametrize("width", range(30, 90, 7))
def test_folded_columns_hold_every_cell(width):
    """Each block leads with the first column; words and numbers are all there, none cut."""
    headings = ["name", *(f"number {n}" for n in range(9)), "why"]
    rows = [
        [f"row {i}", *(str(10**n + i) for n in range(9)), "because of this and of that"]
        for i in range(3)
    ]
    text = aligned(headings, rows, width)
    assert widest(text) <= width
    words = [word for row in [headings, *rows] for cell in row for word in cell.split()]
    assert set(words) <= set(text.split())
    for block in text.split("\n\n"):
        assert block.startswith("name") and all(f"row {i}" in block for i in range(3))


def test_text_without_a_width_is_as_it_is():
    line = "  a sentence " * 20
    assert filled(line, None) == line
    assert widest(filled(line, 40)) <= 40 and filled(line, 40).split() == line.split()
    assert aligned(["a"], [["x" * 300]]).splitlines()[2] == "x" * 300


def test_dumbbells_stand_for_their_values(show):
    """A row for every method, its marks in order of the values that stand at its end."""
    text = show(80, "table", "--reference", "paper", "--figure", "1")
    panel = text.split("\n\n")[1].splitlines()
    assert panel[0] == "equal retraining tokens (average)" and panel[9].startswith("# pruned; o")
    rows = panel[1:9]
    assert rows[0].split()[-2:] == ["64.4", "60.7"]
    for line in rows:
        marks, (one, other) = line.rpartition("  ")[0], map(float, line.split()[-2:])
        assert (one > other) == (marks.rindex("#") > marks.rindex("o")), line


def test_cells_are_characters():
    cells = [[1.0, 0.55, 0.0, None] * 30, [0.999, 0.1, 0.0, None] * 30]
    names = [str(i) for i in range(120)]
    text = sketch.as_text(Drawing("", [Grid("title", "layer", "", ["a", "bb"], names, cells)]), 80)
    assert widest(text) <= 80
    rows = [line for line in text.splitlines() if line.startswith("a  ")]
    assert "".join(line[4:] for line in rows).replace(" ", "") == "#50." * 30
    assert "layer 0 to 75" in text and "layer 76 to 119" in text


def test_a_real_terminal():
    """The width is the terminal's own, which no variable needs to tell."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    command = [sys.executable, "-c", "from prunecli.cli.app import main; main()", "methods"]
    with subprocess.Popen(command, stdout=slave, env=environment) as process:
        os.close(slave)
        text = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # Linux says so where the other end is closed
                break
            if not part:
                break
            text += part
    os.close(master)
    assert process.returncode == 0
    assert "not shown" in text.decode() and widest(text.decode()) <= 80
    whole = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert widest(whole.stdout) > 80 and "not shown" not in whole.stdout


@pytest.mark.parametrize("x", [[5.0], [1.0, 10.0], ["one"]])
@pytest.mark.parametrize("y", [0.0, 2.0, -1.0])
@pytest.mark.parametrize("zero", [True, False])
def test_a_single_value_can_be_drawn(x, y, zero):
    series = Series("pruned", x, [y] * len(x), part="pruned")
    panel = Panel("title", "tokens", "loss", [series], log=False, zero=zero)
    assert widest(sketch.as_text(Drawing("", [panel]), 80)) <= 80
