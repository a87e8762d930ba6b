"""What stderr says to machines and to people: progress as JSON lines, and what to run next."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer

import prunecli
from prunecli.cli import app, console, streams
from prunecli.cli.console import StderrReport
from prunecli.settings import Result

GROUP = typer.main.get_command(app.app)
KEYS = {"phase", "done", "total", "unit", "rate", "eta", "status"}


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves only as told."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_progress_is_an_object_a_line(capsys, clock) -> None:
    report = StderrReport(quiet=True, verbose=False, progress="json")
    for _ in report.progress(range(4), "pruning", unit="layers"):
        report.status("loss 2.5")
        clock[0] += 0.5
    told = lines(capsys)
    # the first, one a second, the last
    assert [line["done"] for line in told] == [0, 2, 4]
    assert all(set(line) == KEYS for line in told)
    assert told[0] == {
        "phase": "pruning", "done": 0, "total": 4, "unit": "layers", "rate": None, "eta": None,
        "status": "",
    }  # fmt: skip
    assert told[1] | {"rate": 2.0, "eta": 1.0, "status": "loss 2.5"} == told[1]
    assert told[2]["eta"] == 0.0


def test_progress_without_a_total(capsys, clock) -> None:
    report = StderrReport(quiet=False, verbose=False, progress="json")
    for _ in report.progress(iter(range(2)), "tokenizing", unit="batches"):
        clock[0] += 2
    told = lines(capsys)
    assert [(line["done"], line["total"], line["eta"]) for line in told] == [
        (0, None, None), (1, None, None), (2, None, None), (2, None, None),
    ]  # fmt: skip


@pytest.mark.parametrize("progress", ["auto", "none"])
def test_no_progress_where_nobody_sees_it(capsys, progress) -> None:
    report = StderrReport(quiet=False, verbose=False, progress=progress)
    assert list(report.progress(range(3), "pruning")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_none_shows_no_bar_in_a_terminal(monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    shown = {form: StderrReport(False, False, form).interactive for form in console.PROGRESS}
    assert shown == {"auto": True, "json": False, "none": False}


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("JPY_PARENT_PID", "1")])
def test_no_bar_where_every_drawing_stays(monkeypatch, name, value) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-color")
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert streams.Talk().isatty()
    monkeypatch.setenv(name, value)
    assert not StderrReport(False, False).interactive
    assert not streams.Talk().isatty()


def test_a_command_writes_them_among_its_lines(run, llama, calibration, tmp_path) -> None:
    given = ("--method", "wanda", "--ratio", "0.5", "--data", calibration, str(llama))
    ended = run("prune", *given, str(tmp_path / "o"), "--progress", "json", "--quiet")
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'o'}\n")
    told = [json.loads(line) for line in ended.err.splitlines()]
    assert {"checking weights", "pruning"} <= {line["phase"] for line in told}
    last = {line["phase"]: line for line in told}
    assert last["pruning"]["done"] == last["pruning"]["total"] == 4
    ended = run("prune", *given, str(tmp_path / "p"), "--progress", "html")
    assert ended.code == 2 and "--progress: unknown value 'html'" in ended.err


VALUES = {"json": False, "dry_run": False, "quiet": False}


@pytest.mark.parametrize(
    ("changed", "stdout", "stderr", "told"),
    [
        ({}, True, True, True),
        ({"quiet": True}, True, True, False),
        ({"json": True}, True, True, False),
        ({"dry_run": True}, True, True, False),
        ({}, False, True, False),  # in a pipe the next command is there already
        ({}, True, False, False),
    ],
)
def test_the_next_command_is_named_in_a_terminal(
    capsys, monkeypatch, changed, stdout, stderr, told
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: stdout, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: stderr, raising=False)
    console.print_made(Result("my out"), VALUES | changed, "eval {out}")
    expected = "prunecli: next: prunecli eval 'my out'\n" if told else ""
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("given", "amount"),
    [
        ("--method wanda-sp --ratio 0.4", "--ratio 0.4"),
        ("--method flap --bias drop --params 4e4", "--params 40000"),
        ("--method flap --ratio 0.4 --structure AL-AM", None),  # no layer has the size of another
        ("--method llm-pruner --ratio 0.4 --protect 1,0", None),
        ("--method flap --ffn 8", None),
        ("--method wanda --ratio 0.4", None),
        ("--method shortgpt --ratio 0.4", None),
    ],
)
def test_a_search_is_named_where_a_bare_amount_left_sizes_open(
    run, llama, calibration, tmp_path, monkeypatch, given, amount
) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")  # no bar
    arguments = [*given.split(), "--data", calibration, str(llama), str(tmp_path / "o")]
    ended = run("prune", *arguments)
    assert ended.code == 0, ended.err
    before = "prunecli: other sizes of that amount may lose less: prunecli "
    found = [line for line in ended.err.splitlines() if line.startswith(before)]
    assert len(found) == (amount is not None)
    for line in found:
        command = line.removeprefix(before)
        assert command == f"search-arch --method {arguments[1]} {amount} {llama} arch.json"
        name, *rest = shlex.split(command)
        GROUP.commands[name].make_context(name, rest)


def hints() -> list[str]:
    """Return every text in the commands' files that names the path of what was made."""
    texts = [path.read_text() for path in Path(console.__file__).parent.glob("*.py")]
    found = [one for text in texts for one in re.findall(r'"([a-z][^"\n]*{out}[^"\n]*)"', text)]
    return [one.replace("{{out}}", "{out}").replace("{method}", "flap") for one in found]


def test_what_is_named_next_can_be_typed() -> None:
    found = [text for text in hints() if text.split()[0] in app.COMMANDS]
    assert len(found) >= 7
    for text in found:
        command, *arguments = shlex.split(text.replace("{out}", "o").replace(" R ", " 0.5 "))
        GROUP.commands[command].make_context(command, arguments)


def test_what_errors_name_exists() -> None:
    """Each `prunecli COMMAND --option` in a message is one that there is."""
    found = set()
    for path in Path(prunecli.__file__).parent.rglob("*.py"):
        found |= set(re.findall(r"`prunecli ([a-z][a-z-]*)((?: [^`{}\n]*)?)`", path.read_text()))
    assert len(found) >= 8
    for name, rest in found:
        if name == "help":
            continue
        flags = {flag for parameter in GROUP.commands[name].params for flag in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= flags | {"--help"}, (name, rest)
