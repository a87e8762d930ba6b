"""Signals at any moment: a documented status, one line at most, and nothing lost or left behind."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import lines
import pytest
import torch
from forks import begun, ended
from lines import LINES, as_program, line, made, names

from prunecli import interruption
from prunecli.cli import app, signals
from prunecli.files import output

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HANGS = 120.0  # seconds from a signal to the end, on a machine however busy
PROGRAM = [sys.executable, "-m", "prunecli"]


@pytest.fixture(scope="module")
def undisturbed(words, tmp_path_factory):
    """Return a function from a command to the folder of an undisturbed run, and its seconds."""
    known: dict[str, tuple[Path, float]] = {}

    def of(name: str) -> tuple[Path, float]:
        if name not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            start = time.monotonic()
            assert lines.run(line(name, words, folder, 3), folder.parent / "talk") == 0
            known[name] = folder, time.monotonic() - start
        return known[name]

    return of


def listens(process: int) -> bool:
    """Return whether a process has begun to note signals."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True
    caught = next((row for row in status.splitlines() if row.startswith("SigCgt")), "SigCgt: -1")
    return bool(int(caught.split()[1], 16) & 1 << signal.SIGTERM - 1)


def signalled(process: int, number: int, wait: float) -> float:
    """Send a signal so long after a process began to listen; return when."""
    while not listens(process):
        time.sleep(0.001)
    time.sleep(wait)
    with suppress(ProcessLookupError):
        os.kill(process, number)
    return time.monotonic()


def judge(name: str, status: int, number: int, talk: str, folder: Path, expected: Path) -> str:
    """Check how a command ended and what it left; return its status as a shell sees it."""
    status = 128 - status if status < 0 else status
    said = talk.splitlines()
    assert status in (0, 75, 128 + number), (status, said)
    assert len(said) <= 1 and "internal error" not in talk, said
    if not LINES[name][0]:
        return str(status)
    whole = names(folder) == names(expected)
    if status == 75:
        assert names(folder) - {"kept"} == {LINES[name][0] + ".partial"}, names(folder)
    elif status == 0:
        assert whole, names(folder)
    else:
        # it may have come when all was done
        assert whole or not names(folder) - {"kept"}, names(folder)
    return str(status)


def finish(name: str, words: dict[str, str], folder: Path, expected: Path) -> None:
    """Run the command again: it makes the bytes of an undisturbed run and leaves nothing else."""
    if not LINES[name][0]:
        return
    there = names(folder) == names(expected)
    again = lines.run(line(name, words, folder, 3), folder.parent / "again")
    assert again == (5 if there else 0), (folder.parent / "again").read_text()
    assert names(folder) == names(expected)
    assert made(folder, name) == made(expected, name)


@pytest.mark.parametrize("name", ["score", "prune", "train", "tokenize", "eval of tasks"])
def test_at_some_moments(name, words, undisturbed, tmp_path):
    expected, seconds = undisturbed(name)
    draw = random.Random(name)
    for number in draw.sample(NUMBERS, 2):
        folder, talk = tmp_path / str(number) / "at", tmp_path / "talk"
        folder.mkdir(parents=True)
        child = begun(partial(as_program, line(name, words, folder, 3), talk))
        signalled(child, number, draw.uniform(0, seconds))
        status = ended(child)
        judge(name, status, number, talk.read_text(), folder, expected)
        finish(name, words, folder, expected)


OVER = [("prune", "--force"), ("prune --keep", "--force"), ("prune by data", "--restart"),
        ("train", "--restart"), ("train", "--force")]  # fmt: skip


def over(name: str, option: str, words: dict[str, str], whole: dict[int, Path], folder: Path,
         number: int, waits: tuple[float, float]) -> str:  # fmt: skip
    """Stop a run that takes the place of another's result, or state; return how it ended."""
    talk, work = folder / "talk", folder / "at"
    if option == "--force":
        shutil.copytree(whole[1], work)
    else:  # the state of another run, if it left one
        work.mkdir()
        child = begun(partial(as_program, line(name, words, work, 1), talk))
        signalled(child, number, waits[0])
        ended(child)
        for path in work.iterdir() if not names(work) & {f"{LINES[name][0]}.partial"} else ():
            output.remove(path)
    again = line(name, words, work, 3, option)
    child = begun(partial(as_program, again, talk))
    signalled(child, number, waits[1])
    status = ended(child)
    said = talk.read_text().splitlines()
    assert status in (0, 75, 128 + number), (status, said)
    assert len(said) <= 1 and "internal error" not in "".join(said), said
    there = made(work, name)
    assert there in [made(whole[3], name), made(whole[1], name) if option == "--force" else {}]
    # without --force, a run that was done when the signal came has made all there is to make
    if option == "--force" or not there:
        assert lines.run(again, talk) == 0, talk.read_text()
    assert made(work, name) == made(whole[3], name)
    assert names(work) == names(whole[3])
    return str(status)


@pytest.mark.parametrize(
    "trials", [pytest.param(1, id="once"), pytest.param(20, id="often", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("name", "option"), OVER)
def test_in_the_place_of_another(name, option, trials, words, tmp_path):
    """The old result, or the new one; the same command makes the new one then."""
    whole, counts, draw = {}, Counter[str](), random.Random(name)
    for way in (1, 3):
        whole[way] = tmp_path / f"whole{way}"
        whole[way].mkdir()
        start = time.monotonic()
        assert lines.run(line(name, words, whole[way], way), tmp_path / "talk") == 0
        seconds = time.monotonic() - start
    for trial in range(trials):
        folder = tmp_path / str(trial)
        folder.mkdir()
        waits = (draw.uniform(0.3, 1) * seconds, draw.uniform(0, 1) * seconds)
        counts[over(name, option, words, whole, folder, draw.choice(NUMBERS), waits)] += 1
    print(f"\n{name} {option}: {sum(counts.values())} signals, ends {dict(counts)}, 0 bad")


def program(name: str, words: dict[str, str], folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [*PROGRAM, *line(name, words, folder, 3)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_in_an_import(words, undisturbed, tmp_path):
    """It comes while torch is imported, and is acted on when that is done."""
    process = program("prune", words, tmp_path)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.001)
    signalled(process.pid, signal.SIGTERM, 0)
    said = process.communicate()[1]
    assert (process.returncode, said) == (143, "prunecli: error: interrupted\n")
    assert not names(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_at_random_moments(words, undisturbed, tmp_path):
    """200 signals over all commands, from the first moment of the program to its last."""
    draw, counts, slowest = random.Random(0), Counter[str](), 0.0
    seconds = {}
    for name in LINES:
        folder = tmp_path / "timed" / name
        folder.mkdir(parents=True)
        start = time.monotonic()
        assert program(name, words, folder).communicate()[1] == ""
        seconds[name] = time.monotonic() - start
    for i in range(200):
        name = list(LINES)[i % len(LINES)]
        folder, number = tmp_path / str(i) / "at", draw.choice(NUMBERS)
        folder.mkdir(parents=True)
        process = program(name, words, folder)
        sent = signalled(process.pid, number, draw.uniform(0, seconds[name]))
        said = process.communicate(timeout=HANGS)[1]
        slowest = max(slowest, time.monotonic() - sent)
        expected = undisturbed(name)[0]
        counts[judge(name, process.returncode, number, said, folder, expected)] += 1
        finish(name, words, folder, expected)
    print(f"\n200 signals over {len(LINES)} commands: {dict(counts)}; slowest {slowest:.1f} s")


def test_a_handler_that_raises_is_found(words, undisturbed, tmp_path):
    """The control: what libraries make of an exception that comes from nowhere."""

    def plant() -> None:
        def raises(number, frame):
            raise RuntimeError("planted")

        def signalled_within(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **kwargs)

        signals._note, real = raises, torch.Tensor.backward
        torch.Tensor.backward = signalled_within

    expected, _ = undisturbed("train")
    status = lines.run(line("train", words, tmp_path, 3), tmp_path.parent / "t", plant)
    talk = (tmp_path.parent / "t").read_text()
    with pytest.raises(AssertionError):
        judge("train", status, signal.SIGTERM, talk, tmp_path, expected)


@pytest.fixture
def noted():
    """Note a signal, and forget it afterwards."""
    yield interruption.note
    interruption.note(None)


def test_what_swallows_it_meets_it_again(noted):
    noted(signal.SIGINT)
    for _ in range(2):
        with pytest.raises(interruption.Interrupted):
            interruption.safe_point()
    with interruption.held():
        interruption.safe_point()
    with pytest.raises(interruption.Interrupted):
        interruption.safe_point()


def endless(seconds_between: list[float], talk: Path) -> int:
    """Return the status of a command that passes no safe point, sent signals at these times."""

    def stuck() -> None:
        app._run = lambda: time.sleep(20)

    child = begun(lambda: as_program(["methods"], talk, stuck))
    for seconds in seconds_between:
        signalled(child, signal.SIGINT, seconds)
    return ended(child)


def test_the_second_acts_at_once(tmp_path):
    start = time.monotonic()
    assert endless([0.1, signals.SAME + 0.1], tmp_path / "talk") == 130
    assert time.monotonic() - start < 10
    assert (tmp_path / "talk").read_text() == "prunecli: error: interrupted\n"


def test_a_signal_passed_on_twice_is_one(words, undisturbed, tmp_path):
    """A launcher that got Ctrl-C too sends it again: the state is saved all the same."""
    expected, _ = undisturbed("train")
    folder, talk = tmp_path / "f", tmp_path / "talk"
    folder.mkdir()
    child = begun(lambda: as_program(line("train", words, folder, 3, "--save-every", "1"), talk))
    while not list(folder.glob("o.partial/step-*")):
        time.sleep(0.001)
    for _ in range(2):
        signalled(child, signal.SIGINT, 0)
    status = ended(child)
    judge("train", status, signal.SIGINT, talk.read_text(), folder, expected)
    assert status in (0, 75)


def test_waiting_for_stdin_is_left_at_once():
    process = subprocess.Popen(
        [*PROGRAM, "eval", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signalled(process.pid, signal.SIGINT, 0)
    assert process.wait(timeout=60) == 130
    assert process.stderr.read() == "prunecli: error: interrupted\n"
    process.stdin.close()
    process.stderr.close()


def test_ignored_signals_stay_ignored(words, tmp_path):
    """As nohup and a shell's `&` set them."""
    talk = tmp_path / "talk"

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    folder = tmp_path / "f"
    folder.mkdir()
    child = begun(lambda: as_program(line("prune", words, folder, 3), talk, ignore))
    signalled(child, signal.SIGHUP, 0.01)
    assert ended(child) == 0 and names(folder) == {"o"}
