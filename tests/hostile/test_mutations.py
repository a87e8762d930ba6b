"""Thousands of mutated files: each command says what is wrong in a line, or does its work."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mutations
import pytest
from mutations import COMMANDS, Count, Trial, installed, run, trial, untouched, world

from prunecli.files import strict
from prunecli.model.memory import HOLES

SHORT, LONG, INSTALLED = 200, 20_000, 500
NOTHING = ("advice",)  # there is none to give of so few runs
LONG_NAMES = ("n" * 300, "d/" * 3000 + "x", f"a/{'b' * 300}/c", "a\0b")
PLACES = (
    "prune --method magnitude --ratio 0.5 {} OUT",
    "prune --method magnitude --ratio 0.5 IN/in {}",
    "prune --method flap --ratio 0.5 --stats {} IN/in OUT",
    "prune --method flap --ratio 0.5 --scores {} IN/in OUT",
    "prune --plan {} IN/in OUT",
    "prune --method flap --arch {} IN/in OUT",
    "prune --method flap --ratio 0.5 --data IN/ids.safetensors:ids --keep {} IN/in OUT",
    "prune --method flap --ratio 0.5 --data IN/a.txt --tokenizer {} IN/in OUT",
    "check {}",
    "check --config {} IN/in",
    "speed --flops-only --base {} IN/in",
    "eval --data IN/held.safetensors:ids {}",
    "eval --data {} IN/in",
    "eval --data {}.safetensors:ids IN/in",
    "eval --data {}.txt IN/in",
    "eval --data IN/held.safetensors:ids --out {}.json IN/in",
    "eval --tasks x --include-path {} IN/in",
    "init --like {} OUT",
    "init --config {} OUT",
    "train --data {} --steps 1 IN/in OUT",
    "train --data IN/rows --steps 1 --batch-size 2 --teacher {} IN/in OUT",
    "train --data IN/rows --steps 1 --batch-size 2 --masks {} IN/in OUT",
    "train --data IN/rows --steps 1 --batch-size 2 --eval-data {} IN/in OUT",
    "tokenize --tokenizer {} --seq-len 8 IN/a.txt OUT",
    "tokenize --tokenizer IN/in --seq-len 8 {}.txt OUT",
    "tokenize --tokenizer IN/in --seq-len 8 IN/a.txt {}",
    "table {}",
    "table --html {}.html IN/pruned",
    "score --method flap --stats {} IN/in OUT.safetensors",
    "calibrate --for flap {} OUT.safetensors",
    "calibrate --for flap --data IN/ids.safetensors:ids IN/in {}.safetensors",
    "search-arch --method minitron-width --ratio 0.3 --eval-data {} IN/in OUT.json",
    "search-arch --method minitron-width --ratio 0.3 IN/in {}.json",
)


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """Return a folder of artefacts on which every command, untouched, has done its work."""
    root = world(tmp_path_factory.mktemp("artefacts"))
    work = tmp_path_factory.mktemp("untouched") / "work"
    for command in COMMANDS:
        outcome = run(untouched(root, work, command))
        expected = 4 if command in NOTHING else 0
        assert (outcome.status, outcome.faults()) == (expected, []), (command, outcome.stderr)
    return root


def tried(artefacts: Path, work: Path, seeds: range) -> Count:
    """Try the mutations of these seeds; return what they came to."""
    count = Count()
    for seed in seeds:
        one = trial(artefacts, work, seed)
        count.add(one, run(one))
    return count


def test_a_few_hundred(artefacts, tmp_path):
    count = tried(artefacts, tmp_path / "work", range(SHORT))
    print("\n".join([count.told(), *count.bad]))
    assert not count.bad, "\n".join(count.bad)
    assert count.weights > SHORT / 5


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_twenty_thousand(artefacts, tmp_path):
    count = tried(artefacts, tmp_path / "work", range(1_000_000, 1_000_000 + LONG))
    print("\n".join([count.told(), *count.bad]))
    assert not count.bad, "\n".join(count.bad)
    assert count.weights > LONG / 5
    assert set(count.by_command) == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_hundred_by_the_installed_command(artefacts, tmp_path):
    count = Count()
    # not these: the installed command has larger batches, and so no state of so little text
    seeds = range(2_000_000, 2_000_000 + INSTALLED)
    trials = [trial(artefacts, tmp_path / str(seed), seed) for seed in seeds]
    with ThreadPoolExecutor(2) as pool:
        for one, outcome in zip(trials, pool.map(installed, trials), strict=True):
            count.add(one, outcome)
            shutil.rmtree(tmp_path / str(one.seed))
    print("\n".join([count.told(), *count.bad]))
    assert not count.bad, "\n".join(count.bad)


def planted_error(*args, **kwargs):
    raise KeyError("planted")


def planted_hang(*args, **kwargs):
    time.sleep(5)


def planted_lines(*args, **kwargs):
    raise SystemExit("one\ntwo")


def planted_panic(*args, **kwargs):
    raise BaseException("a library panicked")


def planted_memory(*args, **kwargs):
    # twice, of which the heap may have HOLES free, or give as much back meanwhile
    return bytearray(b"x" * 2 * HOLES)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (planted_error, "internal error"),
        (planted_hang, "Hang"),
        (planted_lines, "error lines"),
        (planted_panic, "Traceback"),
        (planted_memory, "MB"),
    ],
)
def test_a_planted_fault_is_found(plant, words, artefacts, tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "PATIENCE", 0)
    monkeypatch.setattr(mutations, "MEMORY", 16 << 20)
    monkeypatch.setattr(strict, "read_value", plant)
    one = untouched(artefacts, tmp_path / "work", "prune")
    assert any(words in fault for fault in run(one).faults())


@pytest.mark.parametrize("line", PLACES)
def test_names_that_are_none(line, artefacts, tmp_path):
    for name in LONG_NAMES:
        filled = [
            word.replace("IN/", f"{artefacts}/").replace("OUT", str(tmp_path / "out"))
            for word in line.split()
        ]
        outcome = run(Trial(0, line, [word.format(name) for word in filled], ""))
        assert outcome.status in (2, 3, 4) and not outcome.faults(), (name[:9], outcome.stderr)
        assert not list(tmp_path.iterdir())


def test_the_command_that_is_tried_is_the_installed_one():
    from importlib.metadata import entry_points

    from prunecli import __main__

    (entry,) = entry_points(group="console_scripts", name="prunecli")
    assert entry.load() is __main__.main
