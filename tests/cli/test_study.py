"""The study: its Makefile with every command run here, and the page made of its sidecars."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = ROOT / "examples" / "experiment" / "Makefile"
STUDY = ROOT / "docs" / "study"
# the smoke setting with less of everything, and a parent whose rows are no whole batches
LESS = {
    "PARENT_ROWS": "66", "BUDGETS": "32", "BUDGETS.minitron-depth-0.5": "16 32", "SEQ_LEN": "32",
    "EVAL_FROM": "200", "EVAL_ROWS": "8", "TOTAL_BUDGETS": "32",
    "TRAIN": "--batch-size 4 --lr 1e-3,3e-3 --sweep-steps 2",
    "CALIBRATION": "builtin:calibration --sampler concat-random --nsamples 4 --seq-len 32",
}  # fmt: skip

# stands in for the program, which would take seconds to start: the test itself runs what it is told
CLIENT = """#!{python} -S
import json, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    code, out = json.loads(server.makefile().readline())
sys.stdout.write(out)
sys.exit(code)
"""


def outside_make() -> dict[str, str]:
    """Return the environment without what a make around the tests has put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}


class Shell:
    """Runs make, and every `prunecli` in it in this process; `commands` are what was run."""

    def __init__(self, run, folder: Path) -> None:
        self.run, self.folder, self.address = run, folder, str(folder / "s")
        program = folder / "bin" / "prunecli"
        program.parent.mkdir()
        program.write_text(CLIENT.format(python=sys.executable, address=self.address))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.commands: list[list[str]] = []

    def make(self, *words: str, **variables: str) -> str:
        """Return what `make` of the smoke setting prints; assert that it succeeds."""
        given = {"WORK": str(self.folder / "work"), "SETTING": "smoke", **LESS, **variables}
        line = ["make", "-f", str(MAKEFILE), *words, *(f"{k}={v}" for k, v in given.items())]
        self.commands = []
        with socket.socket(socket.AF_UNIX) as server, (self.folder / "log").open("w+") as log:
            server.bind(self.address)
            server.listen()
            server.settimeout(0.05)
            shell = subprocess.Popen(
                line, env={**outside_make(), "PATH": self.path}, stdout=log, stderr=log
            )
            while shell.poll() is None:
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    self.serve(connection)
            log.seek(0)
            text = log.read()
        os.remove(self.address)
        assert shell.returncode == 0, text
        return text

    def serve(self, connection: socket.socket) -> None:
        """Run one command."""
        words = json.loads(connection.makefile().readline())
        self.commands.append(words)
        ended = self.run(*words)
        assert ended.code == 0, (words, ended.err)
        connection.sendall(json.dumps([ended.code, ended.out]).encode() + b"\n")

    def times(self, command: str) -> int:
        """Return how often a command was run."""
        return sum(words[0] == command for words in self.commands)


@pytest.mark.slow
def test_the_study(run, tmp_path) -> None:
    """All of it; a second run does nothing; runs that are kept are not made again."""
    shell, work = Shell(run, tmp_path), tmp_path / "work"
    shell.make()
    # a parent, two methods with two seeds and three budgets in all, S_{M+N}, equal compute, taught,
    # other weights, another order
    trained = 1 + 2 * 2 * 3 + 2 * 2 + 1 + 2 + 1 + 1
    assert shell.times("train") == trained
    table = (work / "table.md").read_text()
    assert "scratch.minitron-depth-0.5.32.0 - pruned.minitron-depth-0.5.32.0" in table
    assert "Nothing to be done" in shell.make()

    text = page(work / "sidecars")
    assert text == page(work / "sidecars")
    assert {"minitron-depth 0.5", "wanda-unstructured 0.5"} <= {
        line.split(" | ")[0].strip("| ") for line in text.splitlines()
    }
    for part in ("512 to 1,024", "weights against layers", "Of 3 comparisons", "Of 2 comparisons"):
        assert part in text
    assert str(tmp_path) not in text
    beyond = text.split("## Taught")[1].split("## Tables")[0]
    assert "| minitron-depth-0.5.32 | " in beyond
    for source in ("initial weights alone", "order of rows alone", "both"):
        assert f"| minitron-depth-0.5.32 | {source} | " in beyond

    # on another machine there are the sidecars alone
    tables = {name: (work / name).read_text() for name in ("table.csv", "table.md")}
    shutil.copytree(work / "sidecars", tmp_path / "kept")
    shutil.copytree(work / "beyond", tmp_path / "beyond")
    shutil.rmtree(work)
    shell.make(STORE=str(tmp_path / "kept"))
    assert {words[0] for words in shell.commands} == {"table"}
    assert tables == {name: (work / name).read_text() for name in tables}

    # one run lost: it is made again, and what leads to it, but no other
    shutil.rmtree(tmp_path / "kept" / "scratch.wanda-0.5.32.1")
    shell.make(STORE=str(tmp_path / "kept"))
    assert [shell.times(name) for name in ("train", "prune", "init", "eval")] == [2, 1, 2, 1]
    assert tables == {name: (work / name).read_text() for name in tables}

    # what is measured in another way has other keys, though two models are still there
    told = shell.make("--dry-run", STORE=str(tmp_path / "kept"), EVAL="--bos never")
    assert told.count("prunecli train --force") == trained - 2
    assert told.count("prunecli eval") == 2 * 2 + trained


def page(folder: Path) -> str:
    made = subprocess.run(
        [sys.executable, str(STUDY / "generate.py"), str(folder)], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_the_page_is_that_of_its_sidecars(tmp_path) -> None:
    """What is in docs/study follows from the sidecars there, and so do README's sentences."""
    front = Path(shutil.copy(ROOT / "README.md", tmp_path))
    made = [STUDY / "sidecars", tmp_path / "page.md", front]
    subprocess.run([sys.executable, str(STUDY / "generate.py"), *map(str, made)], check=True)
    assert (STUDY / "README.md").read_text() == (tmp_path / "page.md").read_text()
    assert (ROOT / "README.md").read_text() == front.read_text()
    assert "sentences -->\nTrained on the same rows, pruned models" in front.read_text()


@pytest.fixture
def effect(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDY))
    import generate

    return generate.Effect


def test_intervals_are_those_of_the_paired_test(effect) -> None:
    better, worse = {"0": 1.0, "1": 1.2, "2": 0.9}, {"0": 1.5, "1": 1.6, "2": 1.5, "3": 9.0}
    found = effect.of(better, worse)
    test = ttest_rel([1.5, 1.6, 1.5], [1.0, 1.2, 0.9]).confidence_interval(0.95)
    assert found.interval == pytest.approx((test.low, test.high))
    assert found.verdict == "holds"
    assert effect.of(worse, better).verdict == "the reverse"
    assert effect.of({"0": 1.0, "1": 1.0}, {"0": 0.9, "1": 1.2}).verdict == "undecided"
    assert effect.of({"0": 1.0}, {"0": 0.9}).cells()[-2:] == ["one seed", ""]
    assert found.chance == pytest.approx(ttest_rel([1.5, 1.6, 1.5], [1.0, 1.2, 0.9]).pvalue)
    assert effect((-0.2, -0.3, -0.25)).told(-1) == "0.25 (0.13 to 0.37)"


def test_findings_are_corrected_for_their_number(monkeypatch) -> None:
    """By Holm's procedure: the least chance counts as often as there are comparisons, and so on."""
    monkeypatch.syspath_prepend(str(STUDY))
    import generate

    def at(chance, sign=1.0):
        """Return an effect of this p-value: of two seeds that is a Cauchy distribution's."""
        from math import pi, tan

        error = 1 / tan(pi / 2 * (1 - chance))
        return generate.Effect((sign * (1 - error), sign * (1 + error)))

    assert at(0.03).chance == pytest.approx(0.03)
    for chances, sure in (
        ((0.02, 0.02), 2),
        ((0.02, 0.04), 2),
        ((0.03, 0.03), 0),
        ((0.01,) * 6, 0),
    ):
        told = generate.tally([at(chance) for chance in chances])
        assert told.endswith(f"procedure, {sure} of them hold."), told
    assert generate.tally([at(0.001, -1.0)]) == "Of 1 comparisons: 1 the reverse."


def test_power_is_the_share_of_tests_that_find_it(effect) -> None:
    """With no difference 5 %; else what drawn experiments of three seeds show."""
    import numpy as np
    from scipy.stats import ttest_1samp

    found = effect((0.1, 0.2, 0.4))
    assert found.power(0.0) == pytest.approx(0.05)
    draws = np.random.default_rng(0).normal(4 / 3**0.5, 1.0, (20_000, 3))
    share = float((ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean())
    assert found.power(4.0) == pytest.approx(share, abs=5 * (0.25 / len(draws)) ** 0.5)


def test_held_out_text_is_in_rows_as_training_has_them() -> None:
    """Windows that `eval` cuts join documents otherwise, and a model of rows pays for that."""
    line = ["make", "--dry-run", "-f", str(MAKEFILE), "SETTING=mini", "WORK=none", "STORE=none/s"]
    told = subprocess.run(
        [*line, "parent"], cwd=ROOT, env=outside_make(), capture_output=True, text=True, check=True
    ).stdout
    made = [words for words in told.splitlines() if words.startswith("prunecli tokenize")]
    assert {words.split()[-1] for words in made} == {
        "none/rows", *(f"none/held/{name}" for name in
        ("definitions-validation", "definitions-test", "prose-test"))
    }  # fmt: skip
    assert all("--tokenizer none/rows" in words for words in made[1:])
    measured = [words for words in told.splitlines() if words.startswith("prunecli eval")]
    assert measured and all(words.count("--data none/held/") == 2 for words in measured)


def test_questions_have_one_end_that_belongs_there(tmp_path) -> None:
    texts = [" ".join(f"{word}{n}" for word in range(10 + n % 5)) for n in range(40)]
    held = tmp_path / "test.jsonl"
    held.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    script = ROOT / "examples" / "study" / "tasks.py"
    subprocess.run([sys.executable, str(script), str(held), str(tmp_path / "t")], check=True)
    items = [json.loads(one) for one in (tmp_path / "t" / "halves4.jsonl").read_text().splitlines()]
    assert len(items) == 40 and {item["gold"] for item in items} == {0, 1, 2, 3}
    for item in items:
        whole = [f"{item['query']} {choice}" in texts for choice in item["choices"]]
        assert [n for n, found in enumerate(whole) if found] == [item["gold"]]
