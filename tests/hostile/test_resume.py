"""Long runs go on where they were stopped, and end with the bytes of a run that was not.

Every verb that walks layers is killed as it begins a layer, or asked to stop, with a state kept
after every step. The runs that follow compute what is left: no layer twice but the one under way.
"""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forks import in_child
from test_publish import contents, names

import prunecli
import tiny
from prunecli.errors import OutputExists, PruneError, Stopped
from prunecli.files import keeping, output, seal
from prunecli.methods import registry
from prunecli.model.stream import LayerStream
from prunecli.pruning.calibrate import depends_on_amount
from prunecli.report import Report

KILLED = 9
# four layers are fewer than are protected by default
ON_TINY = {"shortened-llama": {"protect": "0,0"}}
METHODS = [
    method
    for method in map(registry.get, registry.names())
    if method.needs and not method.trains_masks
]
SCORED = [method for method in METHODS if method.unit != "weights" and not method.sequential]
CASES = [
    *(("prune", method.name) for method in METHODS),
    *(("calibrate", method.name) for method in METHODS),
    *(("score", method.name) for method in SCORED),
]


class Listener(Report):
    """Remembers what it was told."""

    def __init__(self):
        self.told = []

    def info(self, message):
        self.told.append(message)


def run_of(case, model, data):
    """Return a function of OUT that does what a case says."""
    verb, method = case
    model = tiny.subject(model, method)
    how = {"data": data, "nsamples": 3}
    if verb == "prune":
        how |= {"ratio": 0.5, "options": ON_TINY.get(method, {})}
    elif depends_on_amount(registry.get(method)):
        how |= {"layers": 3}
    how |= {"methods": [method]} if verb == "calibrate" else {"method": method}
    return lambda out, **more: getattr(prunecli, verb)(str(model), str(out), **{**how, **more})


def out_of(case, folder: Path) -> Path:
    return folder / ("o" if case[0] == "prune" else "o.safetensors")


@pytest.fixture
def always(monkeypatch):
    """Keep a state after every step; of these small tensors some are large."""
    monkeypatch.setattr(keeping, "LEAST", 0.0)
    monkeypatch.setattr(keeping, "SHARE", float("inf"))
    monkeypatch.setattr(keeping, "LARGE", 1 << 12)


@pytest.fixture
def layers(monkeypatch):
    """Count the layers that are loaded to be computed; at the number `last` the process ends."""

    class Layers:
        count, last = 0, None

        def of(self, work):
            self.count = 0
            work()
            return self.count

        def killed(self, number, work):
            """Do the work in a process that is killed as it begins the layer of this number."""

            def dying():
                self.count, self.last = 0, number
                work()

            assert in_child(dying) == KILLED

    real, seen = LayerStream.layer, Layers()

    def layer(self, i, **how):
        seen.count += 1
        if seen.count == seen.last:
            os._exit(KILLED)
        return real(self, i, **how)

    monkeypatch.setattr(LayerStream, "layer", layer)
    return seen


def undisturbed(case, run, folder, layers):
    """Return what a run that is not stopped makes, and how many layers it computes."""
    out = out_of(case, folder / "expected")
    count = layers.of(lambda: run(out))
    return contents(out), count


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_killed_then_stopped(case, llama, calibration, tmp_path, layers, always):
    """A run is killed, the next one asked to stop: the third ends as if nothing had been."""
    run, out = run_of(case, llama, calibration), out_of(case, tmp_path)
    expected, total = undisturbed(case, run, tmp_path, layers)
    first = 1 + total // 2
    layers.killed(first, lambda: run(out))
    assert not out.exists() and (tmp_path / f"{out.name}.partial" / keeping.STATE).exists()

    def asked():
        with pytest.raises(Stopped, match=r"stopped .*; rerun the same command to resume"):
            run(out, stop=lambda: True)  # after one step

    second = layers.of(asked)
    third = layers.of(lambda: run(out))
    assert contents(out) == expected
    assert names(tmp_path) == {"expected", *names(tmp_path / "expected")}
    # the kill came as a layer began, so it had none under way
    assert first - 1 + second + third == total


LATE = [("prune", "flap"), ("prune", "wanda-sp"), ("prune", "sparsegpt"), ("calibrate", "flap")]


@pytest.mark.parametrize("case", LATE, ids="-".join)
def test_stopped_after_all_layers(case, llama, calibration, tmp_path, layers, always):
    """What is left are tensors to write, or steps of another walk: no layer is run again."""
    run, out = run_of(case, llama, calibration), out_of(case, tmp_path)
    methods = {"methods": ["flap", "shortened-llama"]} if case[0] == "calibrate" else {}
    expected = tmp_path / "whole" / out.name
    total = layers.of(lambda: run(expected, **methods))
    done = 4 if methods else total
    with pytest.raises(Stopped):
        layers.of(lambda: run(out, stop=lambda: layers.count == done, **methods))
    for _ in range(2):  # the state after one more step, of what comes after the layers
        with pytest.raises(Stopped):
            layers.of(lambda: run(out, stop=lambda: True, **methods))
        done += layers.count
    assert done + layers.of(lambda: run(out, **methods)) == total
    assert contents(out) == contents(expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_killed_anywhere(case, llama, calibration, tmp_path, layers, always, monkeypatch):
    """As above, at every layer; and as a state is about to be kept, which is then done again."""
    run = run_of(case, llama, calibration)
    expected, total = undisturbed(case, run, tmp_path, layers)
    points = 0
    for number in range(1, total + 1):
        for unkept in (False, True):
            out = out_of(case, tmp_path / f"{number}{unkept}")
            with monkeypatch.context() as patch:
                if unkept:
                    real = keeping.Keeper._save
                    patch.setattr(
                        keeping.Keeper,
                        "_save",
                        lambda self, real=real, n=number: (
                            os._exit(KILLED) if layers.count == n else real(self)
                        ),
                    )
                layers.killed(None if unkept else number, lambda o=out: run(o))
            again = layers.of(lambda o=out: run(o))
            assert number - 1 + again == total
            assert contents(out) == expected and names(out.parent) == names(tmp_path / "expected")
            points += 1
    print(f"\n{'-'.join(case)}: {points} kills, 0 bad, at most one layer twice")


SHORT = [("prune", "sparsegpt"), ("prune", "flap"), ("calibrate", "flap"), ("score", "sleb")]


@pytest.mark.parametrize("case", SHORT, ids="-".join)
def test_quick_runs_keep_nothing(case, llama, calibration, tmp_path, monkeypatch):
    monkeypatch.setattr(keeping.Keeper, "_save", None)
    run_of(case, llama, calibration)(out_of(case, tmp_path))
    # one that is killed leaves no state, and what it leaves goes with the next
    out = out_of(case, tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(LayerStream, "layer", lambda self, i: os._exit(KILLED))
        assert in_child(lambda: run_of(case, llama, calibration)(out)) == KILLED
    # whatever it is: the state of nothing is in nobody's way
    run_of(case, llama, calibration)(out, nsamples=2)
    assert names(out.parent) == names(tmp_path) - {"killed"}


@pytest.mark.parametrize("case", SHORT, ids="-".join)
def test_states_of_other_runs(case, llama, calibration, tmp_path, layers, always):
    run, out = run_of(case, llama, calibration), out_of(case, tmp_path)
    expected, total = undisturbed(case, run, tmp_path, layers)
    layers.killed(total, lambda: run(out))
    partial = out.with_name(f"{out.name}.partial")
    kept = {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()}
    with pytest.raises(OutputExists, match=r"other inputs or options; use --restart"):
        run(out, nsamples=2)
    assert kept == {path: path.read_bytes() for path in partial.rglob("*") if path.is_file()}
    assert layers.of(lambda: run(out, restart=True)) == total
    assert contents(out) == expected


def damages(state: Path):
    """Yield functions that damage a state, each in another way."""
    record = keeping.kept(state / keeping.STATE, dict[str, Any])
    (of_written,) = {*record["written"]} or {""}
    files = [state / name for name in record["files"]]
    files += [state / ".new" / of_written] if of_written else []

    def told(**changed):
        # sealed as it is, so that more than the seal is asked
        return lambda: keeping.keep(state / keeping.STATE, {**record, **changed})

    yield lambda: (state / keeping.STATE).write_text('{"version": ')
    yield lambda: (state / keeping.STATE).write_text("[" * 5000)
    yield told(version="0.0.1")
    yield told(walks=[1])
    yield told(walks={".0": {"what": "x", "total": 1, "done": 7, "tensors": {}}})
    yield told(files={})
    yield told(files={"../../etc.safetensors": "0"})
    yield told(written={"../o": {"layout": "0", "tensors": {"a": "0"}}})
    yield told(written={"missing.safetensors": {"layout": "0", "tensors": {"a": "0"}}})
    for file in files:
        content = file.read_bytes()
        yield lambda file=file, content=content: file.write_bytes(content[: len(content) // 2])
        # a bit of the first number that was written: what was not is zero
        start = 8 + int.from_bytes(content[:8], "little")
        place = next(i for i in range(start, len(content)) if content[i])
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        yield lambda file=file, flipped=flipped: file.write_bytes(flipped)
        renamed = content.replace(b'"model.layers.3.', b'"model.layers.4.', 1)
        if renamed != content:  # of a tensor that is still to come
            yield lambda file=file, renamed=renamed: file.write_bytes(renamed)
        yield lambda file=file: file.unlink()


@pytest.mark.parametrize("case", [("prune", "sparsegpt"), ("calibrate", "flap")], ids="-".join)
def test_damaged_states(case, llama, calibration, tmp_path, layers, always):
    """A state that is not as it was written is told, and the run begins anew."""
    run = run_of(case, llama, calibration)
    expected, total = undisturbed(case, run, tmp_path, layers)
    out = out_of(case, tmp_path / "state")
    layers.killed(total, lambda: run(out))
    kept = out.with_name(f"{out.name}.partial")
    damaged = 0
    for number, _ in enumerate(damages(kept)):
        copy = out_of(case, tmp_path / str(number))
        shutil.copytree(kept.parent, copy.parent)
        [*damages(copy.with_name(kept.name))][number]()
        listener = Listener()
        count = layers.of(lambda o=copy, r=listener: run(o, report=r))
        assert [line for line in listener.told if "beginning anew: no state" in line], number
        assert count == total and contents(copy) == expected, number
        assert names(copy.parent) == names(tmp_path / "expected")
        damaged += 1
    assert damaged > 10


def test_no_room_for_a_state(llama, calibration, tmp_path, layers, always, monkeypatch):
    """A run ends well without its state; one that is asked to stop says that it keeps none."""
    case = ("prune", "sparsegpt")
    run, out = run_of(case, llama, calibration), out_of(case, tmp_path)
    expected, _ = undisturbed(case, run, tmp_path, layers)

    def full(self, tensors):
        raise OSError(28, "No space left on device")

    def fuller(path):
        return SimpleNamespace(free=10**10 if "partial" not in str(path) else 100)

    for fault in ((keeping.Keeper, "_written", full), (shutil, "disk_usage", fuller)):
        with monkeypatch.context() as faulty:
            faulty.setattr(*fault)
            listener = Listener()
            with pytest.raises(PruneError, match="no state could be kept"):
                run(out, stop=lambda: True)
            run(out, report=listener)
        assert contents(out) == expected and names(tmp_path) == {"expected", "o"}
        assert len([line for line in listener.told if "No space left" in line]) == 1
        output.remove(out)


def test_kept_statistics_resume_too(llama, calibration, tmp_path, layers, always):
    """A file of --keep is made as `calibrate` makes it, and goes on as that does."""
    case, keep = ("prune", "flap"), str(tmp_path / "kept")
    run = run_of(case, llama, calibration)
    expected, total = undisturbed(case, run, tmp_path, layers)
    layers.killed(total, lambda: run(tmp_path / "o", keep=keep))
    assert layers.of(lambda: run(tmp_path / "o", keep=keep)) == 1
    assert contents(tmp_path / "o") == expected
    assert not list(tmp_path.rglob("*.partial"))


def test_the_share_of_keeping(monkeypatch, tmp_path):
    """A state is kept when what was done since the last one is worth it."""
    import torch

    from prunecli.settings import RunContext

    now = [0.0]
    monkeypatch.setattr(keeping, "monotonic", lambda: now[0])
    monkeypatch.setattr(keeping, "LARGE", 0)
    keeper = keeping.Keeper(RunContext(), tmp_path)
    keeper._speed = 1e6
    state = {"large": torch.zeros(1_000_000)}  # 4 MB: 4 seconds at this speed
    saves = []

    def save():
        saves.append(now[0])
        now[0] += 4
        keeper._since = now[0]

    monkeypatch.setattr(keeper, "_save", save)
    for _ in keeper.steps(range(600), "walking", "steps", state):
        now[0] += 1
    assert saves and len(saves) * 4 / now[0] < keeping.SHARE
    assert saves[0] >= keeping.LEAST


def test_what_did_not_change_is_not_written_again(tmp_path, always):
    import torch

    from prunecli.settings import RunContext

    keeper = keeping.Keeper(RunContext(), tmp_path)
    state = {"fixed": torch.arange(4096.0), "changed": torch.zeros(4096)}
    files = []
    for _ in keeper.steps(range(3), "walking", "steps", state):
        files.append(names(tmp_path))
        state["changed"] += 1
    files.append(names(tmp_path))
    assert files[1] & files[2] & files[3] == {"1.safetensors", "state.json"} or (
        files[1] & files[2] & files[3] == {"2.safetensors", "state.json"}
    )
    again = keeping.Keeper(RunContext(), tmp_path)
    found = {name: torch.zeros(4096) for name in state}
    assert [*again.steps(range(3), "walking", "steps", found)] == []
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_evaluations_are_killed_and_stopped(llama, tmp_path, layers, always):
    """Each turn of each data set goes on within its layers, and finished ones are not repeated."""
    sources = [tiny.tokens(tmp_path / f"{n}.safetensors", rows=4, seed=n) for n in range(2)]
    expected, out = tmp_path / "expected" / "e.json", tmp_path / "out" / "e.json"

    def run(path, **more):
        return prunecli.evaluate(str(llama), data=sources, repeat=2, out=str(path), **more)

    total = layers.of(lambda: run(expected))
    assert total == 2 * 2 * 4
    done = 0
    for number in (3, 4, 5):
        layers.killed(number, lambda: run(out))
        done += number - 1

    def asked():
        with pytest.raises(Stopped, match="rerun the same command to resume"):
            run(out, stop=lambda: True)

    done += layers.of(asked)
    with pytest.raises(OutputExists, match="use --restart"):
        prunecli.evaluate(str(llama), data=sources, out=str(out))
    assert done + layers.of(lambda: run(out)) == total
    assert contents(out) == contents(expected) and names(out.parent) == {"e.json"}


def sealed(result):
    """Return a damage that puts something else in the place of a result, as prunecli would."""
    return lambda _: json.dumps({"result": result, "digest": seal.of_value(result)})


def test_results_that_were_damaged_are_made_again(llama, tmp_path, layers, always):
    sources = [tiny.tokens(tmp_path / f"{n}.safetensors", rows=4, seed=n) for n in range(2)]
    expected = tmp_path / "expected" / "e.json"
    prunecli.evaluate(str(llama), data=sources, out=str(expected))
    for number, damage in enumerate(
        (
            lambda text: text[: len(text) // 2],
            lambda text: text.replace('"loss": ', '"loss": 1'),
            lambda text: "[]",
            lambda text: "[" * 9999,
            sealed({}),
            sealed({"source": 1}),
        )
    ):
        out, listener = tmp_path / str(number) / "e.json", Listener()
        layers.killed(6, lambda o=out: prunecli.evaluate(str(llama), data=sources, out=str(o)))
        (file,) = out.with_name(f"{out.name}.partial").glob("data-0-0.json")
        file.write_text(damage(file.read_text()))
        prunecli.evaluate(str(llama), data=sources, out=str(out), report=listener)
        assert [line for line in listener.told if "making 'data-0-0.json' anew" in line]
        assert contents(out) == contents(expected)


def test_without_an_out_nothing_is_kept(llama, calibration, tmp_path, always, monkeypatch):
    monkeypatch.setattr(keeping.Keeper, "_save", None)
    monkeypatch.chdir(tmp_path)
    prunecli.evaluate(str(llama), data=[calibration], stop=lambda: pytest.fail("was asked"))
    assert not names(tmp_path)


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.skipif("PRUNECLI_SMOLLM2" not in os.environ, reason="PRUNECLI_SMOLLM2 is not set")
def test_sparsegpt_on_a_real_model(tmp_path, layers, monkeypatch):
    """SparseGPT on SmolLM2, killed in each third of its run; what keeping costs it is printed."""
    model, depth = os.environ["PRUNECLI_SMOLLM2"], 30
    sparse = {"method": "sparsegpt", "ratio": 0.5, "nsamples": 8, "seq_len": 128}
    spent, real = [], keeping.Keeper._save

    def timed(self):
        began = time.monotonic()
        real(self)
        spent.append(time.monotonic() - began)

    def run(out):
        began = time.monotonic()
        prunecli.prune(model, str(out), **sparse)
        return time.monotonic() - began

    monkeypatch.setattr(keeping.Keeper, "_save", timed)
    seconds = run(tmp_path / "plain")
    by_rule, saves = sum(spent) / seconds, len(spent)
    monkeypatch.setattr(keeping, "LEAST", 0.0)
    monkeypatch.setattr(keeping, "SHARE", float("inf"))
    spent.clear()
    out = tmp_path / "o"
    # layers of this process: the second and the third run begin where the one before was killed
    layers.killed(depth // 6, lambda: run(out))
    layers.killed(depth // 3, lambda: run(out))
    layers.killed(depth // 3, lambda: run(out))
    done = depth // 6 - 1 + 2 * (depth // 3 - 1)
    assert layers.of(lambda: run(out)) == depth - done
    assert contents(out) == contents(tmp_path / "plain")
    assert names(tmp_path) == {"plain", "o"}
    print(
        f"\nSparseGPT, {depth} layers, {seconds:.0f} s: 3 kills, equal bytes, no layer twice; "
        f"keeping took {by_rule:.2%} ({saves} states), and {sum(spent) / len(spent):.2f} s a "
        "state where every layer has one"
    )
    assert by_rule < 0.05
