"""A dry run gives the verdict of the run, and the run's is given before anything is computed."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import calibrate, evaluate, init, prune, score, search_arch, speed, tokenize, train
from prunecli.errors import PruneError
from prunecli.methods import registry
from prunecli.model.families import registry as families
from prunecli.settings import Amount, Compute, Data, Output, Timing

# factors of a longrope, for every pair of the 8 channels of a head
LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
}  # fmt: skip
ON_TINY = {"sheared-llama": {"tokens": 64, "batch_size": 2}, "llm-pruner": {"protect": "0,0"}}


def verdict(make):
    """Return the exit status of a call and the line that it ends with."""
    try:
        make()
    except PruneError as error:
        return error.exit_code, str(error)
    return 0, ""


def both(model, out, method, amount, calibration, **settings):
    """Return the verdicts of a dry run and of a run, which must be the same."""
    options = settings.pop("options", ON_TINY.get(method, {}))
    found = [
        verdict(
            lambda dry=dry: prune(
                str(model), str(out), method=method, amount=amount, options=options,
                data=Data(calibration), output=Output(dry_run=dry), **settings,
            )
        )
        for dry in (True, False)
    ]  # fmt: skip
    assert found[0] == found[1]
    assert out.exists() is (found[1][0] == 0)
    shutil.rmtree(out, ignore_errors=True)
    return found[1]


def pairs():
    """Every method on a family and each mechanism of families in the fast tests, all in `soak`."""
    for row, method in enumerate(registry.names()):
        for family in families.names():
            short = family in tiny.QUICK and tiny.QUICK.index(family) % len(registry.names()) == row
            yield pytest.param(
                method, family, id=f"{method}-{family}", marks=[] if short else [pytest.mark.slow]
            )


@pytest.mark.parametrize(("method", "family"), [*pairs()])
def test_a_dry_run_gives_the_verdict_of_the_run(method, family, models, calibration, tmp_path):
    """Amounts that pass, shapes that only some containers hold, and amounts out of reach."""
    amounts = [Amount(ratio=0.4), Amount(ratio=0.999)]
    axes = registry.get(method).axes
    amounts += [Amount(hidden=47)] * ("hidden" in axes) + [Amount(heads=3)] * ("heads" in axes)
    amounts += [Amount(experts=1), Amount(experts=3)] * ("experts" in axes)
    for amount in amounts:
        both(models(family), tmp_path / "out", method, amount, calibration)


@pytest.mark.parametrize(
    ("method", "amount", "options", "status"),
    [
        ("minitron-width", Amount(hidden=40, ffn=48), {}, 4),
        ("slicegpt-global", Amount(hidden=40), {}, 4),
        ("llm-pruner", Amount(ratio=0.6), {"protect": "0,0"}, 4),
        ("flap", Amount(ratio=0.4), {"bias": "drop"}, 4),
        # padded to a width that is taken, as are all layers of unequal sizes
        ("flap", Amount(ratio=0.4), {"bias": "drop", "structure": "AL-AM"}, 0),
        ("flap", Amount(ffn=48), {"bias": "drop"}, 0),
        ("shortgpt", Amount(layers=2), {}, 0),
        ("wanda", Amount(ratio=0.5), {}, 0),
    ],
)
def test_longrope(method, amount, options, status, calibration, tmp_path):
    """Phi 3's config class counts factors by hidden / heads: other quotients are refused."""
    model = tiny.make(
        tmp_path / "in", "phi3", num_attention_heads=6, num_key_value_heads=6, **LONGROPE
    )
    before = json.loads((model / "config.json").read_text())
    found = both(model, tmp_path / "out", method, amount, calibration, options=options)
    assert found[0] == status, found
    if status:
        assert "short_factor field must have length" in found[1]
        assert "ask for other sizes" in found[1]
    assert json.loads((model / "config.json").read_text()) == before


def test_longrope_of_fewer_heads_is_exact(tmp_path):
    """Five heads of six: factors follow the size of a head, which stays, short ones and long."""
    model = tiny.make(
        tmp_path / "in", "phi3", num_attention_heads=6, num_key_value_heads=6, **LONGROPE
    )
    (tmp_path / "plan.json").write_text(json.dumps({"keep": {"kv_heads": [[0, 1, 2, 3, 5]] * 4}}))
    prune(str(model), str(tmp_path / "out"), plan=str(tmp_path / "plan.json"))
    silent = shutil.copytree(model, tmp_path / "silent")
    tensors = {name: t.clone() for name, t in load_file(model / "model.safetensors").items()}
    for i in range(4):
        tensors[f"model.layers.{i}.self_attn.o_proj.weight"][:, 4 * 8 : 5 * 8] = 0
    save_file(tensors, silent / "model.safetensors", metadata={"format": "pt"})
    for length in (20, 48):
        ids = torch.arange(length)[None]
        got, wanted = (tiny.logits(folder, ids) for folder in (tmp_path / "out", silent))
        assert torch.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("step", ["no data", "no such device", "damaged", "another's state"])
def test_what_else_is_seen_before_the_first_step(step, llama, calibration, tmp_path):
    model, data, compute, method = llama, calibration, Compute(), "wanda"
    if step == "no data":
        data = str(tmp_path / "none.txt")
    elif step == "no such device":
        compute = Compute(device="cuda:99")
    elif step == "damaged":
        model = shutil.copytree(llama, tmp_path / "in")
        tensors = load_file(model / "model.safetensors")
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors["model.norm.weight"][0] = float("nan")
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    else:
        method = "sheared-llama"
        (tmp_path / "out.partial" / "step-00000001").mkdir(parents=True)
        (tmp_path / "out.partial" / "key").write_text(f"{0:032}\n")
    found = both(model, tmp_path / "out", method, Amount(ratio=0.5), data, compute=compute)
    assert found[0] in (2, 4, 5)


@pytest.mark.parametrize("verb", [calibrate, score])
def test_statistics_and_scores_likewise(verb, llama, calibration, tmp_path):
    named = {"methods": ["flap"]} if verb is calibrate else {"method": "flap"}
    for data, status in ((calibration, 0), (str(tmp_path / "none.txt"), 4)):
        found = [
            verdict(
                lambda dry=dry, data=data: verb(
                    str(llama), str(tmp_path / "o.safetensors"), **named, data=Data(data),
                    output=Output(dry_run=dry),
                )
            )
            for dry in (True, False)
        ]  # fmt: skip
        assert found[0] == found[1]
        assert found[0][0] == status
        (tmp_path / "o.safetensors").unlink(missing_ok=True)
        (tmp_path / "o.safetensors.json").unlink(missing_ok=True)


def runs(model, rows, held_out, text, words):
    """Every other verb that writes, as a function of where to and of its output settings."""
    return {
        "search-arch": lambda out, output: search_arch(
            model, out, method="flap", ratio=0.3, multiple=16, data=Data(rows),
            eval_data=Data(held_out), output=output,
        ),
        "train": lambda out, output: train(
            model, out, rows, steps=1, batch_size=2, output=output
        ),
        "eval": lambda out, output: evaluate(
            model, data=[Data(held_out)], out=out, output=output
        ),
        "init": lambda out, output: init(out, like=model, output=output),
        "tokenize": lambda out, output: tokenize(
            text, out, seq_len=8, tokenizer=words, output=output
        ),
        "speed": lambda out, output: speed(
            model, timing=Timing(quantities=("prefill",), rounds=1), seq_len=8, out=out,
            output=output,
        ),
    }  # fmt: skip


def damage(model):
    tensors = {name: t.clone() for name, t in load_file(model / "model.safetensors").items()}
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def link_out(model):
    (model.parent / "elsewhere").write_text("terms")
    (model / "LICENSE").symlink_to(model.parent / "elsewhere")


def claim(path, text):
    path.mkdir()
    (path / "key").write_text(f"{text}\n")
    (path / "kept.json").write_text("{}")


STATES = ("search-arch", "train", "eval", "tokenize")  # verbs with an OUT.partial
# what stands in the way -> how it is put there (model, OUT, OUT.partial), verbs, exit status
IN_THE_WAY = {
    "nothing": (lambda model, out, state: None, (), 0),
    "weights that are no numbers": (
        lambda model, out, state: damage(model),
        ("search-arch", "train", "eval", "init", "speed"), 4,
    ),
    "a licence out of the folder": (
        lambda model, out, state: link_out(model), ("train", "init"), 4,
    ),
    "another's state": (lambda model, out, state: claim(state, "0" * 32), STATES, 5),
    "a file for a state": (lambda model, out, state: state.write_text("mine"), STATES, 5),
    "a pipe": (lambda model, out, state: os.mkfifo(out), None, 4),
    "something else": (
        lambda model, out, state: init(str(out), like=str(model), seed=9), None, 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_THE_WAY)
@pytest.mark.parametrize("verb", ["search-arch", "train", "eval", "init", "tokenize", "speed"])
def test_every_verb_that_writes(verb, case, llama, tmp_path):
    put, of, status = IN_THE_WAY[case]
    model = shutil.copytree(llama, tmp_path / "in")
    init(str(tmp_path / "words"), like=str(llama), tokenizer="bytes")
    (tmp_path / "text.txt").write_text("some words of text " * 20)
    make = runs(
        str(model), tiny.tokens(tmp_path / "r.safetensors", rows=2),
        tiny.tokens(tmp_path / "h.safetensors", rows=2, seed=1),
        str(tmp_path / "text.txt"), str(tmp_path / "words"),
    )[verb]  # fmt: skip
    out = tmp_path / ("out.json" if verb in ("search-arch", "eval", "speed") else "out")
    put(model, out, tmp_path / f"{out.name}.partial")
    kept = listing(tmp_path)
    skip = case == "something else"
    dry = verdict(lambda: make(str(out), Output(dry_run=True, skip_existing=skip)))
    assert listing(tmp_path) == kept
    assert dry == verdict(lambda: make(str(out), Output(skip_existing=skip)))
    assert dry[0] == (status if of is None or verb in of else 0), dry
    if dry[0]:
        assert listing(tmp_path) == kept


def listing(folder):
    return {path.relative_to(folder): path.lstat().st_mode for path in folder.rglob("*")}


def test_a_vocabulary_out_of_its_folder_is_refused_first(llama, tmp_path):
    """A tokenizer goes with the rows, and is copied when these are done."""
    init(str(tmp_path / "own"), like=str(llama), tokenizer="bytes")
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer.json").symlink_to(tmp_path / "own" / "tokenizer.json")
    (tmp_path / "t.txt").write_text("some words of text " * 20)
    for dry in (True, False):
        told = verdict(
            lambda dry=dry: tokenize(
                str(tmp_path / "t.txt"), str(tmp_path / "out"), seq_len=8, tokenizer=str(words),
                output=Output(dry_run=dry),
            )
        )  # fmt: skip
        assert told[0] == 4
        assert "is a link to a file outside its folder" in told[1]
    assert not list(tmp_path.glob("out*"))


def test_places_that_cannot_be(llama, tmp_path, monkeypatch):
    """Names too long to be staged, and folders that are not to be written to."""
    most = os.pathconf(tmp_path, "PC_NAME_MAX")
    long = "n" * (most - 10)
    for out in (tmp_path / long, tmp_path / ("n" * (most + 40)) / "out", tmp_path / long / "out"):
        told = verdict(lambda out=out: init(str(out), like=str(llama)))
        assert told[0] == 4
        assert "choose a shorter one" in told[1]
    init(str(tmp_path / ("n" * (most - 24))), like=str(llama))

    def permitted(path, mode, dir_fd):
        return Path(f"/proc/self/fd/{dir_fd}", path).resolve() != tmp_path

    monkeypatch.setattr(os, "access", permitted)
    for dry in (True, False):
        told = verdict(
            lambda dry=dry: init(
                str(tmp_path / "a" / "b"), like=str(llama), output=Output(dry_run=dry)
            )
        )
        assert told[0] == 4
        assert "no permission in" in told[1]
    assert not (tmp_path / "a").exists()
