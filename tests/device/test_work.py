"""Every method and command on another device: the CPU's results, and no more copies than needed."""

import json
from collections import Counter
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import simulated
import torch
from safetensors.torch import load_file
from work import BATCH, LENGTH, REAL, ROWS

import tiny
from prunecli import evaluate, prune, train
from prunecli.errors import Stopped
from prunecli.files import keeping, sidecar
from prunecli.methods import registry
from prunecli.model import device
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.stream import LayerStream
from prunecli.settings import Amount, Compute, Data

CPU = Compute(device="cpu", dtype="float32")


@pytest.fixture
def there(device) -> Compute:
    return Compute(device=device, dtype="float32")


def near(found, expected, rel: float) -> None:
    """Assert that tensors by name are near, for the size of their greatest finite entry."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        scale = tensor[tensor.isfinite()].double().abs().max().item()
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=rel * scale)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def losses(folder, work) -> list[float]:
    """Return a model's loss in nats on every window, computed on the CPU."""
    made = evaluate(str(folder), data=[Data(work.held)], compute=CPU)
    return made.results["data"][0]["window_losses"]


@pytest.mark.parametrize("method", registry.names())
def test_pruned_as_on_the_cpu(method, work, there, rel, tmp_path):
    """Statistics and scores are near, and what they lead to has the same losses."""
    known = registry.get(method)
    staged = known.needs and not known.sequential
    for name, compute in (("cpu", CPU), ("there", there)):
        keep = str(tmp_path / f"{name}-kept") if staged else None
        work.prune(method, str(tmp_path / name), compute, keep=keep)
    for file in ("stats", "scores") if staged else ():
        names = [tmp_path / f"{name}-kept" / f"{file}.safetensors" for name in ("there", "cpu")]
        found, expected = map(load_file, names)
        if known.rotates and file == "scores":
            # the signs of eigenvectors are free
            found, expected = ({n: t.abs() for n, t in x.items()} for x in (found, expected))
        near(found, expected, rel)
    found, expected = weights(tmp_path / "there"), weights(tmp_path / "cpu")
    assert tiny.sidecar(tmp_path / "there")["run"]["device"] == str(device.device_of(there))
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    assert {name: tensor.shape for name, tensor in found.items()} == shapes
    if known.trains_masks:
        # what is learned at a rate of 1 carries rounding on: only the first step is comparable
        curves = [
            tiny.sidecar(tmp_path / n)["results"]["learned"]["curve"] for n in ("there", "cpu")
        ]
        assert curves[0]["loss"][0] == pytest.approx(curves[1]["loss"][0], rel=rel)
    elif not REAL:
        # with other kernels, others may stay where two are worth the same but for rounding
        told = [losses(tmp_path / name, work) for name in ("there", "cpu")]
        assert told[0] == pytest.approx(told[1], rel=rel)


WALKS = [name for name in registry.names() if registry.get(name).needs]


@pytest.mark.parametrize("method", [n for n in WALKS if not registry.get(n).trains_masks])
def test_stopped_between_layers(method, work, there, tmp_path, monkeypatch):
    """What lay on the device is there again: the run ends as an undisturbed one."""
    monkeypatch.setattr(keeping, "LARGE", 1 << 12)
    work.prune(method, str(tmp_path / "whole"), there)
    for _ in range(2):
        with pytest.raises(Stopped):
            work.prune(method, str(tmp_path / "o"), there, stop=tiny.stop_after(2))
    work.prune(method, str(tmp_path / "o"), there)
    assert tiny.same(tmp_path / "o", tmp_path / "whole")


@pytest.mark.parametrize("command", ["calibrate", "score"])
def test_stages(command, work, there, rel, tmp_path):
    for name, compute in (("cpu", CPU), ("there", there)):
        getattr(work, command)(str(tmp_path / name), compute)
    near(*(load_file(tmp_path / f"{name}.safetensors") for name in ("there", "cpu")), rel)
    record = json.loads(sidecar.path_of(str(tmp_path / "there.safetensors")).read_text())
    assert record["run"]["device"] == str(device.device_of(there))


def test_what_tokens_carry(work, there, rel, tmp_path):
    """Layers that read ids, and keys and values of earlier layers, as on the CPU."""
    model = str(tiny.make(tmp_path / "m", "gemma4"))
    found, expected = (
        evaluate(model, data=[Data(work.held)], compute=compute).results["loss"]
        for compute in (there, CPU)
    )
    assert found == pytest.approx(expected, rel=rel)
    for name, compute in (("there", there), ("cpu", CPU)):
        prune(
            model, str(tmp_path / name), method="shortened-llama", amount=Amount(layers=3),
            options={"protect": "0,0"}, data=Data(work.ids), compute=compute,
        )  # fmt: skip
        train(str(tmp_path / name), str(tmp_path / f"{name}-t"), work.ids, compute=compute,
              steps=2, batch_size=2, lr="1e-3")  # fmt: skip
    near(*(weights(tmp_path / f"{name}-t") for name in ("there", "cpu")), rel)


def test_eval_and_search(work, there, rel, tmp_path):
    for command in ("evaluate", "search"):
        found, expected = (
            getattr(work, command)(str(tmp_path / f"{command}-{name}"), compute).results["loss"]
            for name, compute in (("there", there), ("cpu", CPU))
        )
        assert found == pytest.approx(expected, rel=rel)


def test_speed_names_the_device(work, there, tmp_path):
    measured = work.speed(str(tmp_path / "o"), there)
    assert measured.sidecar["run"]["device"] != "cpu"
    told = measured.results["measured"]
    assert all(told[name]["seconds"] > 0 for name in ("prefill", "decode", "train"))


def log(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "train.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("command", ["train", "teach"])
def test_trained_as_on_the_cpu(command, work, there, rel, tmp_path):
    for name, compute in (("cpu", CPU), ("there", there)):
        getattr(work, command)(str(tmp_path / name), compute, eval_data=work.held)
    for found, expected in zip(log(tmp_path / "there"), log(tmp_path / "cpu"), strict=True):
        assert found.keys() == expected.keys()
        for key in {"loss", "grad_norm", "kl", "eval_loss"} & expected.keys():
            assert found[key] == pytest.approx(expected[key], rel=rel), key


@pytest.mark.parametrize("command", ["train", "teach"])
def test_resumed_there_is_the_same(command, work, there, tmp_path):
    run = getattr(work, command)
    run(str(tmp_path / "whole"), there)
    with pytest.raises(Stopped):
        run(str(tmp_path / "halves"), there, stop=tiny.stop_after(3))
    assert [path.name for path in (tmp_path / "halves.partial").glob("step-*")]
    run(str(tmp_path / "halves"), there)
    if REAL:
        # kernels that add in any order are allowed there
        near(weights(tmp_path / "halves"), weights(tmp_path / "whole"), 1e-3)
    else:
        assert tiny.same(tmp_path / "halves", tmp_path / "whole")


def test_zeros_are_held_there(work, there, tmp_path):
    sparse = str(tmp_path / "sparse")
    prune(work.model, sparse, method="magnitude", amount=Amount(sparsity="2:4"))
    training = {"steps": 2, "batch_size": BATCH, "lr": "1e-3", "save_every": 1}
    train(sparse, str(tmp_path / "o"), work.ids, compute=there, **training)
    before, after = weights(sparse), weights(tmp_path / "o")
    assert not any(torch.equal(before[name], after[name]) for name in before)
    for name in (name for name in before if "_proj" in name):
        assert torch.equal(before[name] == 0, after[name] == 0), name


def test_a_state_goes_on_elsewhere(work, there, rel, tmp_path):
    """What was saved on one device is read on another."""
    work.train(str(tmp_path / "whole"), CPU)
    with pytest.raises(Stopped):
        work.train(str(tmp_path / "halves"), there, stop=tiny.stop_after(3))
    work.train(str(tmp_path / "halves"), CPU)
    last = [log(tmp_path / name)[-1]["loss"] for name in ("halves", "whole")]
    assert last[0] == pytest.approx(last[1], rel=rel)


def test_learned_masks_are_resumed(work, there, tmp_path):
    work.prune("sheared-llama", str(tmp_path / "whole"), there)
    with pytest.raises(Stopped):
        work.prune("sheared-llama", str(tmp_path / "halves"), there, stop=tiny.stop_after(3))
    work.prune("sheared-llama", str(tmp_path / "halves"), there)
    if not REAL:
        assert tiny.same(tmp_path / "halves", tmp_path / "whole")


def test_bfloat16_products(work, device, tmp_path):
    """Autocast asks the device: losses move, and by no more than the type's unit, 2^-8."""
    found = []
    for dtype in ("float32", "bfloat16"):
        work.train(str(tmp_path / dtype), Compute(device=device, dtype=dtype))
        found.append([line["loss"] for line in log(tmp_path / dtype)])
    assert found[0][0] != found[1][0]
    assert found[0] == pytest.approx(found[1], rel=2**-8)


def crossed(run, *arguments, **more) -> list[tuple[str, int]]:
    with simulated.traffic() as seen:
        run(*arguments, **more)
    return seen.copies


def between(long: list, short: list) -> dict[tuple[str, int], int]:
    """Return which copies the longer of two runs has more, and how many of each."""
    more = Counter(long)
    more.subtract(Counter(short))
    return {copy: count for copy, count in more.items() if count}


@pytest.mark.parametrize("command", ["train", "teach"])
@pytest.mark.usefixtures("counted")
def test_a_step_copies_its_batch_in_and_its_figures_out(command, work, there, tmp_path):
    """And one byte a forward, with which transformers asks whether positions are packed."""
    run = getattr(work, command)
    found = {
        steps: crossed(run, str(tmp_path / str(steps)), there, steps=steps, save_every=100)
        for steps in (4, 8)
    }
    forwards = 2 if command == "teach" else 1
    more = between(found[8], found[4])
    assert more.pop(("to_host", 1), 0) <= 4 * forwards
    assert more == {("to_device", BATCH * LENGTH * 8): 4, ("to_host", 4 * 4): 4}


def matrices(work) -> list:
    """Return the matrices of all layers, as the family's table has them."""
    tensors = Checkpoint(work.model).arch.tensors().values()
    return [t for t in tensors if t.layer is not None and len(t.shape) == 2]


@pytest.mark.parametrize("place", ["device", "ram"])
@pytest.mark.usefixtures("counted")
def test_a_layer_is_sent_once_and_its_states_there_and_back(place, work, there, tmp_path):
    """A walk sends every matrix of the layers, and hidden states a batch at a time, or never."""
    arch, compute = Checkpoint(work.model).arch, replace(there, buffer=place)
    expected = Counter(("to_device", 4 * prod(tensor.shape)) for tensor in matrices(work))
    ids = torch.zeros(ROWS, LENGTH)
    for rows in LayerStream(Checkpoint(work.model), compute).batches(ids):
        states = 4 * (rows.stop - rows.start) * LENGTH * arch.hidden
        crossings = 0 if place == "device" else arch.layers
        expected += Counter({("to_device", states): crossings})
        # what the embedding gives comes back too
        expected += Counter({("to_host", states): crossings and crossings + 1})
        expected[("to_host", states)] += 0
    copies = Counter(crossed(work.prune, "shortgpt", str(tmp_path / "o"), compute))
    assert {copy: copies[copy] for copy in expected} == expected


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "wanda-sp"])
@pytest.mark.usefixtures("counted")
def test_a_layer_that_is_edited_is_sent_once(method, work, there, tmp_path):
    """Sequential methods run a layer twice, and edit it where it lies."""
    copies = Counter(crossed(work.prune, method, str(tmp_path / "o"), there))
    sent = Counter(("to_device", 4 * prod(tensor.shape)) for tensor in matrices(work))
    assert {copy: copies[copy] for copy in sent} == sent
