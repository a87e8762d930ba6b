"""Faults at every write point of every command that writes: what is left, and what comes next.

After each, the old result is whole or the new one is. The next equal run makes the bytes of an
undisturbed one and leaves nothing else. What the system refuses is told in one line, with the path
and what to do, and leaves nothing half-written.
"""

import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from faults import ERRORS, KILL, KILLED, REMOVAL, TORN, Ended, Layer, can, ended

import prunecli
import tiny
from prunecli import errors
from prunecli.files import output

OLD, NEW = "1", "3"  # what WAY stands for in the command that made the old result, and the new one
# command -> OUT, and the options; a new command is one line
COMMANDS = {
    "calibrate": ("o.safetensors", "calibrate --for flap --data TOKENS --nsamples WAY MODEL OUT"),
    "score": ("o.safetensors", "score --method flap --data TOKENS --nsamples WAY MODEL OUT"),
    "prune": ("o", "prune --method magnitude --ratio 0.WAY MODEL OUT"),
    "prune by data": (
        "o", "prune --method wanda --ratio 0.5 --data TOKENS --nsamples WAY MODEL OUT"),
    "prune --keep": (
        "o", "prune --method flap --ratio 0.2 --data TOKENS --nsamples WAY --keep KEPT MODEL OUT"),
    "prune --plan-only": ("o.json", "prune --method shortgpt --layers 3 --data TOKENS "
                          "--nsamples WAY --plan-only MODEL OUT"),
    "prune by training": ("o", "prune --method sheared-llama --layers 3 --hidden 36 --heads 3 "
                          "--ffn 40 --data TOKENS --tokens 64 --batch-size 2 --lr 1e-3 "
                          "--seed WAY MODEL OUT"),
    "search-arch": ("o.json", "search-arch --method minitron-width --ratio 0.WAY --data TOKENS "
                    "--eval-data HELD --nsamples 2 --multiple 4 MODEL OUT"),
    "init": ("o", "init --like MODEL --seed WAY OUT"),
    "tokenize": ("o", "tokenize --seq-len 16 --tokenizer READER --shard-tokens 64 --workers 1 "
                 "--tokens WAY00 TEXT OUT"),
    "tokenize, trained": ("o", "tokenize --seq-len 16 --train-tokenizer 262 --workers 1 "
                          "--tokenizer KEPT --tokens WAY00 TEXT OUT"),
    "train": ("o", "train --data TOKENS --steps 2 --batch-size 2 --lr 1e-3 --save-every 1 "
              "--seed WAY MODEL OUT"),
    "eval": ("o.json", "eval --data TOKENS --nsamples WAY --out OUT MODEL"),
    "speed": ("o.json", "speed --flops-only --seq-len WAY0 --out OUT MODEL"),
    "table --html": ("o.html", "table --html OUT RUNS/WAY"),
    "table --plot": ("o.png", "table --reference paper --figure WAY --plot OUT"),
}  # fmt: skip
SAID = {"ENOSPC": "free some space", "EIO": "check that disk", "EACCES": "change the permissions"}
COUNTS = ("bad", "lost", "refused", "left", "mute")
TIMES = re.compile(rb'"tokens_per_second": [\d.]+')


# what children would otherwise import again and again
HEAVY = ("pruning.mask_training", "training.trainer", "training.state", "measuring.timing")


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> dict[str, str]:
    """What the words in capitals of the commands stand for."""
    pytest.importorskip("matplotlib.pyplot")
    for module in HEAVY:
        import_module(f"prunecli.{module}")
    root = tmp_path_factory.mktemp("inputs")
    model = tiny.make(root / "model", num_hidden_layers=4)
    (root / "config.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    prunecli.init(str(root / "reader"), config=str(root / "config.json"), tokenizer="bytes")
    (root / "t.txt").write_text("the cat sat on the mat and looked at the sea. " * 20)
    for way in (OLD, NEW):
        out = str(root / "runs" / way / "e.json")
        prunecli.evaluate(
            str(model), data=[tiny.tokens(root / "w.safetensors", rows=int(way))], out=out
        )
    return {
        "MODEL": str(model), "READER": str(root / "reader"), "TEXT": str(root / "t.txt"),
        "TOKENS": tiny.tokens(root / "t.safetensors", rows=16, length=16, seed=1),
        "HELD": tiny.tokens(root / "h.safetensors", rows=4, length=16, seed=2),
        "RUNS": str(root / "runs"),
    }  # fmt: skip


@dataclass
class Case:
    """A command in a folder of its own, and what it makes there when nothing disturbs it."""

    name: str
    words: dict[str, str]
    root: Path
    force: bool
    exchange: bool = True

    def __post_init__(self) -> None:
        self.old = self.root / "old"
        self.old.mkdir(parents=True)
        if self.force:
            self.done(self.old, OLD)
        new = self.begun("new")
        self.points = self.done(new, NEW)
        self.before, self.after = contents(self.old), contents(new)
        assert self.before != self.after and len(self.points) > 5

    def line(self, folder: Path, way: str) -> list[str]:
        out, options = COMMANDS[self.name]
        own = {**self.words, "OUT": str(folder / out), "KEPT": str(folder / "kept"), "WAY": way}
        pattern = re.compile("|".join(own))
        words = [pattern.sub(lambda found: own[found[0]], word) for word in options.split()]
        return [*words, "--quiet", *["--force"][: self.force]]

    def run(self, folder: Path, way: str = NEW, at: int = -1, kind: str = KILL, **how) -> Ended:
        layer = Layer(folder, at, kind, self.exchange)
        return ended(self.line(folder, way), layer, self.root / "said", **how)

    def done(self, folder: Path, way: str) -> list[str]:
        """Run the command, which must succeed; return the write points."""
        ended = self.run(folder, way)
        assert ended.status == 0, (self.name, ended.lines)
        return ended.points

    def begun(self, name: str) -> Path:
        """Return a new folder, with the old result under --force."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(self.old, folder, dirs_exist_ok=True)
        return folder

    def tried(self, at: int, kind: str) -> list[str]:
        """Return what is wrong after a fault at a write point, and after the next run."""
        folder = self.begun("tried")
        first = self.run(folder, at=at, kind=kind)
        wrong = [*self.half_way(folder, first, at, kind)]
        again = self.run(folder)
        published = again.status == 5 and not self.force
        if again.status != 0 and not published:
            wrong.append(f"refused: {again.lines}")
        found = contents(folder)
        if extra := found.keys() - self.after.keys():
            wrong.append(f"left: {sorted(extra)}")
        if any(found.get(name) != self.after[name] for name in self.after):
            wrong.append("bad: the next run does not make what an undisturbed one does")
        return [f"{one} ({self.name}, {kind} at {at} {self.points[at]})" for one in wrong]

    def half_way(self, folder: Path, first: Ended, at: int, kind: str):
        """Yield what is wrong between a fault and the next run."""
        found = contents(folder)
        for unit in {unit_of(name) for name in self.after}:
            state, old, new = (of_unit(all, unit) for all in (found, self.before, self.after))
            # one step before its end a result is whole beside its place, not in it
            beside = folder / Path(unit).parent / f".{Path(unit).name}.prunecli-"
            moving = any(Path(f"{beside}{kind}").exists() for kind in ("new", "old"))
            if state and state not in (old, new) and not moving:
                yield f"bad: '{unit}' is a mixture"
            if self.force and not state and not moving:
                yield f"lost: '{unit}'"
        if kind in (KILL, TORN):
            if first.status != KILLED:
                yield f"mute: it was not killed but ended with {first.status}: {first.lines}"
            return
        if first.status == 0:
            return  # what is there was judged; a fault that changes nothing need not be told
        said = " ".join(first.lines)
        right = [str(folder) in said, SAID[kind] in said, "internal error" not in said]
        if first.status not in (1, 4) or len(first.lines) != 1 or not all(right):
            yield f"mute: status {first.status}: {first.lines}"
        known = {*self.before, *self.after}
        # a state, or what is finished and on its way: the next run goes on from there
        kept = re.compile(r"\.partial/|\.prunecli-new/")
        half = [name for name in found if name not in known and not kept.search(name)]
        if half and self.points[at] not in REMOVAL:
            yield f"left: {sorted(half)} after an error"


def contents(folder: Path) -> dict[str, object]:
    """Return all files in a folder, but for what differs between equal runs."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            name, content = str(file.relative_to(folder)), TIMES.sub(b"", file.read_bytes())
            found[name] = without_run(content) if file.suffix == ".json" else content
    return found


def without_run(content: bytes) -> object:
    """Return a sidecar without the part that differs between equal runs; torn text as it is."""
    try:
        record = json.loads(content)
    except ValueError:
        return content
    return {k: v for k, v in record.items() if k != "run"} if isinstance(record, dict) else record


def unit_of(name: str) -> str:
    """Return the artefact that a file belongs to: a folder, or a file with its sidecar."""
    if name.startswith("kept/tok") or name.startswith("kept/spec"):
        return name  # a tokenizer for the user, which consists of files
    if name.startswith("o/"):
        return "o"
    return name.replace(".safetensors.json", ".safetensors")


def of_unit(found: dict[str, object], unit: str) -> dict[str, object]:
    return {name: content for name, content in found.items() if unit_of(name) == unit}


def judged(tried: list[list[str]], what: str) -> None:
    """Print the counts of what is wrong, and fail unless all are 0."""
    wrong = [one for trial in tried for one in trial]
    counts = Counter(one.split(":")[0] for one in wrong)
    print(f"\n{what}: {len(tried)} faults, " + ", ".join(f"{counts[c]} {c}" for c in COUNTS))
    assert not wrong, "\n".join(wrong[:20])


def walked(case: Case, kinds: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield what is wrong after a fault at every write point, from the last to the first.

    Each point gets one of `kinds`, by turns, of those that it can have.
    """
    for at, point in reversed(list(enumerate(case.points))):
        if possible := [kind for kind in kinds if can(kind, point)]:
            yield case.tried(at, possible[at % len(possible)])


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_kills_at_every_point_of_every_command(name, words, tmp_path):
    tried = []
    for force, exchange in ((False, True), (True, True), (True, False)):
        case = Case(name, words, tmp_path / f"{force}{exchange}", force, exchange)
        tried += walked(case, (KILL,))
    judged(tried, f"killed: {name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_refusals_at_every_point_of_every_command(name, words, tmp_path):
    tried = []
    for force in (False, True):
        case = Case(name, words, tmp_path / str(force), force)
        tried += [*walked(case, (TORN,)), *walked(case, tuple(ERRORS))]
    judged(tried, f"torn or refused: {name}")


def copied(temporary: Path, path: Path) -> None:
    output.remove(path)
    shutil.copytree(temporary, path)


def numbered(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


PLANTED = {
    "copied, not renamed": (output, "publish", copied, KILL, {"lost", "bad"}),
    "leftovers nobody knows": (output, "sibling", numbered, KILL, {"left"}),
    "errors without a remedy": (errors, "REMEDIES", {}, "EIO", {"mute"}),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault, words, tmp_path, monkeypatch):
    module, name, planted, kind, expected = PLANTED[fault]
    monkeypatch.setattr(module, name, planted)
    case = Case("init", words, tmp_path, force=True)
    assert any({one.split(":")[0] for one in wrong} & expected for wrong in walked(case, (kind,)))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_few_faults_of_every_command(name, words, tmp_path):
    """At points that the name draws: the same each time, others for each command."""
    draw, tried = random.Random(name), []
    for force, kinds in ((False, [KILL]), (True, [KILL, draw.choice([TORN, *ERRORS])])):
        case = Case(name, words, tmp_path / str(force), force)
        for kind in kinds:
            at = draw.choice([i for i, point in enumerate(case.points) if can(kind, point)])
            tried.append(case.tried(at, kind))
    judged(tried, name)
