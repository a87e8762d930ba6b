"""Several processes under torchrun, on CPUs with gloo: the same run, and states of either resume.

Sums over two shares of a batch are rounded in another order than one sum over all of it, no more.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from prunecli import prune
from prunecli.pruning.sheared import MASK_WARMUP
from prunecli.settings import Amount
from prunecli.training.schedule import warmup_steps

BIN = Path(sys.executable).parent
ALONE = [str(BIN / "prunecli")]
TWO = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node=2", *ALONE]
STEPS = 40
# of a loss in float32 whose sums were taken in another order: 2^-24 for each of a hundred terms
ROUNDING = 1e-5


def command(launcher: list[str], model: Path, data: str, out: Path, *more: str) -> list[str]:
    line = f"train --data {data} --steps {STEPS} --batch-size 4 --lr 1e-3 --save-every 4"
    return [*launcher, *line.split(), *more, str(model), str(out)]


def learning(launcher: list[str], model: Path, data: str, out: Path, *more: str) -> list[str]:
    line = f"prune --method sheared-llama --layers 3 --hidden 36 --heads 3 --ffn 40 --data {data}"
    line += f" --tokens {STEPS * 4 * 16} --batch-size 4 --lr 1e-3"
    return [*launcher, *line.split(), *more, str(model), str(out)]


def start(line: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": str(tiny.THREADS)}
    return subprocess.Popen(
        line,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(line: list[str], seconds: float = 240) -> subprocess.CompletedProcess:
    process = start(line)
    out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(line, process.returncode, out, err)


def kill_after_a_save(line: list[str], out: Path) -> None:
    """SIGKILL to all processes as soon as a state is there."""
    process = start(line)
    partial, deadline = out.with_name(f"{out.name}.partial"), time.time() + 120
    while not list(partial.glob("step-*")):
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.01)
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not out.exists()


def descendants(pid: int) -> list[int]:
    """Return all processes below one; torchrun puts its workers into sessions of their own."""
    found = [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(x for child in found for x in descendants(child))]


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sparse model with tied embeddings, and rows."""
    root = tmp_path_factory.mktemp("processes")
    tiny.make(root / "dense", tie_word_embeddings=True)
    prune(str(root / "dense"), str(root / "p"), method="magnitude", amount=Amount(ratio=0.5))
    return root / "p", tiny.tokens(root / "t.safetensors", rows=200, length=16)


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "o"
    ended = finish(command(ALONE, *files, out))
    assert ended.returncode == 0, ended.stderr
    return out


def check_same(alone: Path, other: Path, sparse: Path) -> None:
    ours, theirs = log(alone), log(other)
    assert [line["step"] for line in theirs] == list(range(1, STEPS + 1))
    for one, two in zip(ours, theirs, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=ROUNDING)
    one, two = (load_file(out / "model.safetensors") for out in (alone, other))
    mask = load_file(sparse / "model.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).abs().max() < 1e-4, name
        if ".layers." in name and one[name].dim() == 2:
            assert torch.equal(two[name] == 0, mask[name] == 0), name


def test_two_processes_are_one_run(files, alone, tmp_path) -> None:
    ended = finish(command(TWO, *files, tmp_path / "o", "--eval-data", files[1] + ":180:187"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{tmp_path / 'o'}\n"
    assert ended.stderr.count("prunecli: keeping") == 1
    check_same(alone, tmp_path / "o", files[0])
    assert tiny.sidecar(tmp_path / "o")["run"]["ranks"] == 2
    model = ["--data", files[1] + ":180:187", "--json", str(tmp_path / "o")]
    measured = finish([*ALONE, "eval", *model])
    loss = json.loads(measured.stdout)["results"]["loss"]
    assert log(tmp_path / "o")[-1]["eval_loss"] == pytest.approx(loss, rel=ROUNDING)


def test_validation_changes_nothing(files, tmp_path) -> None:
    """Weights gathered for a forward in bfloat16 are not those that are written."""
    few = ["--steps", "8", "--dtype", "bfloat16"]
    for name, options in (("with", [*few, "--eval-data", files[1] + ":180:187"]), ("without", few)):
        ended = finish(command(TWO, *files, tmp_path / name, *options))
        assert ended.returncode == 0, ended.stderr
    one, two = (tmp_path / name / "model.safetensors" for name in ("with", "without"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(("first", "then"), [(TWO, ALONE), (ALONE, TWO)], ids=["2to1", "1to2"])
def test_states_resume_on_other_numbers(files, alone, tmp_path, first, then) -> None:
    kill_after_a_save(command(first, *files, tmp_path / "o"), tmp_path / "o")
    ended = finish(command(then, *files, tmp_path / "o"))
    assert ended.returncode == 0, ended.stderr
    assert "resuming" in ended.stderr
    check_same(alone, tmp_path / "o", files[0])


def test_masks_are_learned_by_two_processes_as_by_one(files, tmp_path) -> None:
    """Gates are drawn and multipliers updated alike, killed and resumed by another number too.

    Masks at the end are no function that is continuous: a gate that opens or not for a rounding
    changes every step after it. So whatever comes before any gate is at zero is compared, and the
    one step after a resumption, which begins from the same state to the bit.
    """
    dense, resumed = files[0].parent / "dense", 0
    for launcher, name in ((ALONE, "one"), (TWO, "two"), (TWO, "cut")):
        if name == "cut":
            kill_after_a_save(learning(TWO, dense, files[1], tmp_path / name), tmp_path / name)
            launcher = ALONE
        ended = finish(learning(launcher, dense, files[1], tmp_path / name))
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == f"{tmp_path / name}\n"
        assert ended.stderr.count("random masks of the same sizes") == 1
        if name == "cut":
            resumed = int(re.search(r"resuming .* at step (\d+) of", ended.stderr)[1])
    records = [tiny.sidecar(tmp_path / name) for name in ("one", "two", "cut")]
    assert [record["run"]["ranks"] for record in records] == [1, 2, 1]
    assert len({record["id"] for record in records}) == 1
    # every run ends at the shape that was asked for, whichever units that took
    assert len({json.dumps(record["results"]["sizes"]) for record in records}) == 1
    one, two, cut = (record["results"]["learned"]["curve"]["loss"] for record in records)
    rising = warmup_steps(MASK_WARMUP, STEPS)  # steps until the targets are reached
    assert len(one) == STEPS and two[:rising] == pytest.approx(one[:rising], rel=ROUNDING)
    assert 0 < resumed < STEPS and cut[:resumed] == two[:resumed]
    assert cut[resumed] == pytest.approx(two[resumed], rel=ROUNDING)


def test_signals_save_the_state(files, alone, tmp_path) -> None:
    """Ctrl-C: saved and told how to go on, exit status 75."""
    out = tmp_path / "o"
    process = start(command(ALONE, *files, out))
    partial = tmp_path / "o.partial"
    while not (partial / "log.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "rerun the same command to resume" in err
    assert not out.exists() and list(partial.glob("step-*"))
    ended = finish(command(ALONE, *files, out))
    assert ended.returncode == 0, ended.stderr
    assert (out / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()


def test_errors_are_told_once(files, tmp_path) -> None:
    ended = finish([*TWO, "train", "--data", "nowhere", str(files[0]), str(tmp_path / "o")])
    assert ended.returncode != 0
    assert ended.stderr.count("no such rows") == 1
    odd = finish(command(TWO, *files, tmp_path / "o", "--batch-size", "3"))
    assert "cannot be divided among 2" in odd.stderr


@pytest.mark.slow
def test_killed_twenty_times(files, tmp_path) -> None:
    """SIGKILL at twenty random moments after the first save; the bytes are those of a whole run."""
    import random

    draw = random.Random(0)
    more = ["--steps", "1500", "--save-every", "10", "--repeat"]
    assert finish(command(ALONE, *files, tmp_path / "whole", *more)).returncode == 0
    out, kills = tmp_path / "cut", 0
    partial = tmp_path / "cut.partial"
    while kills < 20:
        process = start(command(ALONE, *files, out, *more))
        before = {path.name for path in partial.glob("step-*")}
        while {path.name for path in partial.glob("step-*")} <= before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        assert not out.exists(), f"done after {kills} kills"
    assert finish(command(ALONE, *files, out, *more)).returncode == 0
    assert (out / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    ours, theirs = log(tmp_path / "whole"), log(out)
    assert [(x["loss"], x["grad_norm"]) for x in ours] == [
        (x["loss"], x["grad_norm"]) for x in theirs
    ]
