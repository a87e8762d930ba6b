"""`check --deep`: sound artefacts of every command pass, and no damage goes unseen."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import (
    calibrate,
    check,
    evaluate,
    init,
    prune,
    score,
    search_arch,
    speed,
    tokenize,
    train,
)
from prunecli.files import output, seal
from prunecli.files.sidecar import CARD
from prunecli.measuring import agreement, intact
from prunecli.model.families import registry
from prunecli.settings import Amount, Data

Artefacts = dict[str, Path]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory) -> Artefacts:
    """Return what every command makes, by name."""
    root = tmp_path_factory.mktemp("artefacts")
    dense = tiny.make(root / "dense", shard="60KB")
    ids = tiny.tokens(root / "ids.safetensors")
    held = Data(tiny.tokens(root / "held.safetensors", seed=9))
    text, config = root / "text.txt", root / "config.json"
    text.write_text("No byte is lost, and none is added. " * 40)
    config.write_text(json.dumps(tiny.config_of("llama")))

    def out(name: str) -> str:
        return str(root / name)

    init(out("scratch"), config=str(config))
    prune(str(dense), out("sparse"), method="wanda", amount=Amount(sparsity="2:4"), data=Data(ids))
    prune(out("sparse"), out("small"), method="flap", amount=Amount(ratio=0.4), data=Data(ids))
    train(out("small"), out("trained"), data=ids, steps=2, batch_size=4, lr="1e-3")
    prune(str(dense), out("plan.json"), method="flap", amount=Amount(ratio=0.4), data=Data(ids),
          plan_only=True)  # fmt: skip
    tokenize(str(text), out("rows"), seq_len=16, train_tokenizer=260, shard_tokens=320, workers=1)
    calibrate(str(dense), out("stats.safetensors"), "flap", data=Data(ids))
    score(str(dense), out("scores.safetensors"), "shortgpt", data=Data(ids))
    evaluate(out("trained"), data=[held], out=out("eval.json"))
    speed(out("small"), flops_only=True, seq_len=32, out=out("speed.json"))
    search_arch(str(dense), out("arch.json"), method="flap", ratio=0.4, multiple=4,
                options={"bias": "drop"}, data=Data(ids), eval_data=held)  # fmt: skip
    made = ("scratch", "sparse", "small", "trained", "rows", "plan.json", "arch.json", "eval.json",
            "speed.json", "stats.safetensors", "scores.safetensors")  # fmt: skip
    return {name: root / name for name in made}


def copied(source: Path, folder: Path) -> Path:
    """Return a copy of an artefact with its sidecar."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if source.is_dir():
        shutil.copytree(source, folder / source.name)
        return folder / source.name
    for file in (source, source.with_name(source.name + ".json")):
        if file.exists():
            shutil.copy(file, folder)
    return folder / source.name


def files_of(artefact: Path) -> list[Path]:
    """Return all files of an artefact."""
    return sorted(path for path in artefact.parent.rglob("*") if path.is_file())


def test_sound_artefacts_pass(artefacts, tmp_path) -> None:
    for name, path in artefacts.items():
        assert check(str(path)) == [], name
        assert check(str(path), deep=True) == [], name
        # wherever it lies, and whatever its modification times are
        assert check(str(copied(path, tmp_path / "copy")), deep=True) == [], name


def test_a_sidecar_stands_for_its_artefact(artefacts, tmp_path) -> None:
    for name, beside in (("small", "small/prunecli.json"), ("stats.safetensors",) * 2):
        artefact = copied(artefacts[name], tmp_path / "copy")
        named = artefact.parent / (beside if artefact.is_dir() else f"{beside}.json")
        assert check(str(named), deep=True) == []
        tensors = artefact / "model-00001-of-00003.safetensors" if artefact.is_dir() else artefact
        flip(sorted(artefact.glob("*.safetensors"))[0] if artefact.is_dir() else tensors, -1, 0)
        assert "digest differs" in check(str(named), deep=True)[0]


def flip(path: Path, offset: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


NAMES = ("scratch", "sparse", "small", "trained", "rows", "plan.json", "arch.json", "eval.json",
         "speed.json", "stats.safetensors", "scores.safetensors")  # fmt: skip


def sealed(artefact: Path) -> list[Path]:
    """Return an artefact's files but for the model card, which is its user's to edit."""
    return [file for file in files_of(artefact) if file.name != CARD]


def flips(artefact: Path, draw: random.Random, each: int) -> Iterator[str]:
    """Flip bits of every file, one at a time, and put them back; yield what was done."""
    for file in sealed(artefact):
        whole = file.read_bytes()
        # tensors are long: their headers get as many as they do
        ends = [len(whole), min(len(whole), 512)]
        for number in range(each):
            offset, bit = draw.randrange(ends[number % 2]), draw.randrange(8)
            flip(file, offset, bit)
            if file.suffix != ".json" or not same_json(file.read_bytes(), whole):  # 1e-5 and 1E-5
                yield f"{file.name}: bit {bit} of byte {offset}"
            file.write_bytes(whole)


def same_json(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def cuts(artefact: Path, draw: random.Random, each: int) -> Iterator[str]:
    """Truncate, lengthen and remove every file, and put it back; yield what was done."""
    for file in sealed(artefact):
        whole = file.read_bytes()
        for length in (0, 1, 8, len(whole) - 2, *(draw.randrange(len(whole)) for _ in range(each))):
            file.write_bytes(whole[: max(0, length)])
            yield f"{file.name}: cut to {length}"
        file.write_bytes(whole + b"\0")
        yield f"{file.name}: a byte more"
        file.unlink()
        yield f"{file.name}: removed"
        file.write_bytes(whole)


def edits(artefact: Path, draw: random.Random, most: int) -> Iterator[str]:
    """Replace values of the sidecar, wherever they stand, by others of their types."""
    path = artefact / "prunecli.json" if artefact.is_dir() else files_of(artefact)[-1]
    whole = path.read_text()
    places = [place for place in leaves(json.loads(whole)) if place[0] != "run"]
    for place in draw.sample(places, min(len(places), most)):
        record = json.loads(whole)
        *above, last = place
        holder = record
        for key in above:
            holder = holder[key]
        holder[last] = other(holder[last])
        path.write_text(json.dumps(record, indent=1) + "\n")
        yield f"{path.name}: {place}"
    path.write_text(whole)


def swaps(artefact: Path) -> Iterator[str]:
    """Exchange every two shards, and put them back; yield what was done."""
    for one, two in combinations(sorted(artefact.glob("*.safetensors")), 2):
        first, second = one.read_bytes(), two.read_bytes()
        if first != second:
            one.write_bytes(second), two.write_bytes(first)
            yield f"{one.name} and {two.name} swapped"
            one.write_bytes(first), two.write_bytes(second)


def damages(artefact: Path, seed: str, each: int, most: int) -> Iterator[str]:
    """Damage an artefact in every way in turn; yield what was done, while it is."""
    draw = random.Random(seed)
    yield from flips(artefact, draw, each)
    yield from cuts(artefact, draw, each // 3)
    yield from edits(artefact, draw, most)
    yield from swaps(artefact)


def missed(artefact: Path, seed: str, each: int, most: int) -> tuple[int, list[str]]:
    """Return how many damages `check --deep` was shown, and those that it did not find."""
    tried, unseen = 0, []
    for done in damages(artefact, seed, each, most):
        tried += 1
        if not check(str(artefact), deep=True):
            unseen.append(done)
    return tried, unseen


@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_found(artefacts, tmp_path, name) -> None:
    artefact = copied(artefacts[name], tmp_path / "copy")
    tried, unseen = missed(artefact, name, each=6, most=12)
    assert tried > 10 and not unseen
    assert check(str(artefact), deep=True) == []


@pytest.mark.slow
def test_no_damage_of_thousands_is_missed(artefacts, tmp_path, monkeypatch) -> None:
    """What the published trial of checksums for checkpoints found 99.8 % of (arXiv 2511.18323)."""
    counts = {}
    for name, path in artefacts.items():
        tried, unseen = missed(copied(path, tmp_path / "copy"), f"long {name}", each=30, most=10**6)
        counts[name] = tried, len(unseen)
        assert not unseen, unseen
    print(f"damages, missed: {counts}, {sum(tried for tried, _ in counts.values())} in all")
    assert sum(tried for tried, _ in counts.values()) >= 1600
    # a check that left out the seals would be seen to
    monkeypatch.setattr(intact, "record_faults", lambda *_: iter(()))
    assert missed(copied(artefacts["small"], tmp_path / "copy"), "control", 30, 0)[1]


def sound(model: str, ids: str, out: str) -> Iterator[str]:
    """Make artefacts of a model, one after the other in OUT; yield their paths."""
    data = Data(ids)

    def pruned(method: str, amount: Amount, **more) -> str:
        return prune(model, out, method=method, amount=amount, **more).path

    for seed in range(3):
        yield init(out, like=model, seed=seed).path
    for amount in (Amount(ratio=0.25), Amount(ratio=0.5), Amount(ratio=0.7),
                   Amount(sparsity="2:4"), Amount(sparsity="4:8")):  # fmt: skip
        yield pruned("magnitude", amount)
    for method in ("wanda", "sparsegpt"):
        yield pruned(method, Amount(sparsity="2:4"), data=data)
    for method in ("shortgpt", "wanda-sp", "minitron-width"):
        yield pruned(method, Amount(ratio=0.4), data=data)
    yield train(model, out, data=ids, steps=1, batch_size=4, lr="1e-3").path
    yield evaluate(model, data=[data], out=f"{out}.json").path
    yield calibrate(model, f"{out}.safetensors", "wanda", data=data).path
    yield score(model, f"{out}.safetensors", "shortgpt", data=data).path


@pytest.mark.slow
def test_two_hundred_sound_artefacts_pass(models, tmp_path) -> None:
    ids, count = tiny.tokens(tmp_path / "ids.safetensors"), 0
    for family in registry.names():
        out = str(tmp_path / "o")
        for path in sound(str(models(family)), ids, out):
            assert check(path, deep=True) == [], path
            count += 1
            for left in tmp_path.glob("o*"):
                output.remove(left)
    print(f"{count} sound artefacts, none of which `check --deep` complains of")
    assert count >= 200


def leaves(value: object, *place: str | int) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else None  # fmt: skip
    if items is None:
        return [place]
    return [leaf for key, one in items for leaf in leaves(one, *place, key)]


def other(value: object) -> object:
    if isinstance(value, bool) or value is None:
        return not value
    return value + "x" if isinstance(value, str) else value + 1  # type: ignore[operator]


def resealed(folder: Path, change: Callable[[dict], None]) -> None:
    """Change a sidecar as somebody would who knows how it is sealed."""
    path = folder / "prunecli.json"
    record = json.loads(path.read_text())
    change(record)
    record["run"]["files"] = seal.of_folder(folder, apart=("prunecli.json",))
    record["run"]["digest"] = seal.of_record(record)
    path.write_text(json.dumps(record, indent=1))


def test_an_index_that_is_not_its_shards(artefacts, tmp_path) -> None:
    index = copied(artefacts["sparse"], tmp_path / "copy") / "model.safetensors.index.json"
    record = json.loads(index.read_text())
    shards = record["weight_map"]
    names = sorted(shards)
    one, other = next((n, m) for n in names for m in names if shards[n] != shards[m])
    shards[one], shards[other] = shards[other], shards[one]
    index.write_text(json.dumps(record))
    (fault,) = check(str(index.parent))  # without --deep
    assert f"index.json is not what the shards hold: of '{one}' and" in fault


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda r: r["results"].update(nonzero=1), "records 1 non-zero weights"),
        (lambda r: r["results"].update(granularity="weights, 1:4"), "breaks 1:4"),
        (lambda r: r["results"].update(ratio=0.9), "a ratio of 0.9"),
        (lambda r: r["results"]["sizes"].update(ffn=1), "the sidecar's sizes"),
        (lambda r: r["outputs"].update(params=1), "records 1 parameters"),
        (lambda r: r["outputs"].update(digest="0"), "not those of the sidecar (digest"),
        (lambda r: r["options"].update(seed=7), "contradicts itself"),
        (lambda r: r["history"].pop(), "has no history"),
        (lambda r: r["history"].clear(), "has no history"),
    ],
)
def test_what_no_seal_protects(artefacts, tmp_path, change, fault) -> None:
    artefact = copied(artefacts["sparse"], tmp_path / "copy")
    resealed(artefact, change)
    assert any(fault in problem for problem in check(str(artefact), deep=True))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda keep: keep["ffn"][0].pop(), "ffn, and records"),
        (lambda keep: keep["ffn"][0].reverse(), "its ffn are not ascending"),
        (lambda keep: keep.update(layers=[0, 0]), "its layers are not ascending"),
        (lambda keep: keep.update(layers=[-1]), "its layers are not ascending"),
        (lambda keep: keep.update(layers=[{}]), "its layers are no indices"),
    ],
)
def test_plans(artefacts, tmp_path, change, fault) -> None:
    path = copied(artefacts["plan.json"], tmp_path / "copy")
    record = json.loads(path.read_text())
    change(record["results"]["keep"])
    path.write_text(json.dumps(record))
    assert any(fault in problem for problem in check(str(path)))


def test_nan(artefacts, tmp_path) -> None:
    path = copied(artefacts["stats.safetensors"], tmp_path / "copy")
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    assert f"'{name}' has NaN" in check(str(path), deep=True)


def test_a_seal_names_no_file_outside(artefacts, tmp_path) -> None:
    artefact = copied(artefacts["small"], tmp_path / "copy")
    path = artefact / "prunecli.json"
    record = json.loads(path.read_text())
    record["run"]["files"]["../../ids.safetensors"] = "0"
    record["run"]["digest"] = seal.of_record(record)
    path.write_text(json.dumps(record))
    assert check(str(artefact), deep=True) == [
        "the sidecar names a file outside the folder: '../../ids.safetensors'"
    ]


def test_logits_are_compared(llama, monkeypatch) -> None:
    """A walk that left out a layer would be seen; a model that does not fit is left out."""
    walked = agreement._streamed_logits
    assert check(str(llama), deep=True) == []
    monkeypatch.setattr(agreement, "_streamed_logits", lambda *given: walked(*given) * 1.1)
    (fault,) = check(str(llama), deep=True)
    assert fault.startswith("its logits are not those of transformers")
    monkeypatch.setattr(agreement, "_fits", lambda _: False)
    assert check(str(llama), deep=True) == []


def test_every_family_agrees(models, family) -> None:
    assert check(str(models(family)), deep=True) == []


@pytest.mark.parametrize("name", ["nothing", "null\0byte", "x" * 300, "", "rows:0:x", "a.json"])
def test_what_cannot_be_read_is_a_problem_of_its_path(tmp_path, monkeypatch, name) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.json").mkdir()
    assert len(check(name, deep=True)) == 1


def test_all_paths_are_reported(artefacts, tmp_path, monkeypatch) -> None:
    """Whatever a library raises on one of them."""
    from prunecli.model.checkpoint import Checkpoint

    def fails(*_: object) -> str:
        raise RuntimeError("deep inside")

    monkeypatch.setattr(Checkpoint, "digest", fails)
    assert check(str(artefacts["small"]), deep=True) == [
        "cannot be checked: RuntimeError: deep inside"
    ]
    os.mkfifo(tmp_path / "pipe")
    assert check(str(tmp_path / "pipe"))
