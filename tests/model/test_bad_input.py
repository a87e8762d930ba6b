"""Bad input: one clear line, the documented exit status, and nothing written."""

import json
import shutil
from collections import namedtuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tiny
from prunecli import calibrate, check, evaluate, init, prune, score, table
from prunecli.errors import InputError, PruneError
from prunecli.files import output
from prunecli.files.tensorfile import read_header
from prunecli.model.checkpoint import CheckpointWriter
from prunecli.model.families import registry
from prunecli.settings import Amount, Data, Output


@pytest.fixture
def model(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "in")


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(folder, status, *words, method="magnitude", out="out", **settings):
    """Prune, which must fail with `status` and a line with all `words`, and write nothing."""
    before = listing(folder)
    settings.setdefault("amount", Amount(ratio=0.5))
    with pytest.raises(PruneError) as caught:
        prune(
            str(settings.pop("model", folder / "in")), str(folder / out), method=method, **settings
        )
    message = str(caught.value)
    assert caught.value.exit_code == status, message
    assert "\n" not in message
    for word in words:
        assert word in message
    assert listing(folder) == before


def rewrite(model, edit):
    tensors = {n: t.clone() for n, t in load_file(model / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, model / "model.safetensors")


def configure(model, **values):
    record = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**record, **values}))


def test_missing_folder(model, tmp_path):
    refused(tmp_path, 4, "no such folder", "hf:meta-llama/Llama-3", model="meta-llama/Llama-3")
    refused(tmp_path, 4, "no such folder", model=tmp_path / "nowhere")


def test_hub_offline(model, tmp_path):
    refused(tmp_path, 4, "hub", model="hf:org/name")


def test_not_a_checkpoint(model, tmp_path):
    (model / "config.json").unlink()
    refused(tmp_path, 4, "not a checkpoint", "config.json")


def test_no_weights_and_pickles(model, tmp_path):
    (model / "model.safetensors").unlink()
    refused(tmp_path, 4, "not a checkpoint")
    (model / "pytorch_model.bin").write_bytes(b"x")
    refused(tmp_path, 4, "pickled", "safetensors")


def test_unknown_family_and_tensor(model, tmp_path):
    rewrite(model, lambda t: t.__setitem__("model.layers.0.extra.weight", torch.ones(2)))
    refused(tmp_path, 4, "model.layers.0.extra.weight", "llama")
    configure(model, model_type="lama")
    refused(tmp_path, 4, "'lama'", "did you mean 'llama'")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        # of experts, which transformers stacks
        (
            "qwen2_moe",
            "nearest is 'mixtral', from which it differs: its layer has also "
            "mlp.shared_expert.down_proj, mlp.shared_expert.gate_proj, mlp.shared_expert.up_proj "
            "and 4 more",
        ),
        # only more
        ("bitnet", "its layer has also mlp.ffn_sub_norm, self_attn.attn_sub_norm"),
        # more than a message holds
        ("gpt2", "attn.c_proj.bias and 5 more and lacks"),
        # transformers knows no causal model, or no model at all, of that name
        ("vit", ""),
        ("llamma", "did you mean 'llama'"),
    ],
)
def test_unknown_families_are_told_the_nearest(kind, words, model, tmp_path):
    configure(model, model_type=kind)
    refused(tmp_path, 4, f"unknown family: config.json has model_type '{kind}'", words)


def test_a_layer_of_the_same_tensors_may_compute_something_else(model, tmp_path, monkeypatch):
    known = registry._by_model_type()
    rest = {kind: name for kind, name in known.items() if kind != "mistral"}
    monkeypatch.setattr(registry, "_by_model_type", lambda: rest)
    configure(model, model_type="mistral")
    refused(tmp_path, 4, "has the same tensors, and may compute something else")


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("gemma3", {"layer_types": ["full_attention"] * 3}, ("num_hidden_layers` (4)", "(3)")),
        ("gemma3", {"layer_types": ["foo"] * 4}, ("layer_types", "full_attention")),
        ("smollm3", {"no_rope_layers": [1, 0]}, ("no_rope_layers has 2 entries",)),
        ("qwen2", {"layer_types": ["linear_attention"] * 4}, ("'linear_attention'",)),
        ("llama", {"hidden_act": "fooact"}, ("transformers cannot build", "fooact")),
        ("llama", {"rope_parameters": {"rope_type": "foo"}}, ("transformers cannot build",)),
        ("llama", {"quantization_config": {"bits": 4}}, ("quantization_config", "dequantise")),
        (
            "gpt-oss",
            {"quantization_config": {"quant_method": "mxfp4"}},
            ('quant_method "mxfp4"', "Mxfp4Config(dequantize=True)", "save it in bfloat16"),
        ),
        ("gemma3", {"text_config": {"hidden_size": 8}}, ("not a supported multimodal model",)),
    ],
)
def test_config_that_transformers_refuses(family, change, words, calibration, tmp_path):
    tiny.make(tmp_path / "in", family)
    configure(tmp_path / "in", **change)
    refused(tmp_path, 4, *words, method="shortgpt", data=Data(calibration))


def test_missing_tensor_and_wrong_shape(model, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(model, lambda t: t.__setitem__(name, torch.ones(3, 48)))
    refused(tmp_path, 4, name, "[3, 48]", "[80, 48]")
    rewrite(model, lambda t: t.pop(name))
    refused(tmp_path, 4, name, "missing")


@pytest.mark.parametrize("size", [0, 5, 100, 3000, -1, -1000])
def test_truncated(model, tmp_path, size):
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:size])
    refused(tmp_path, 4, "model.safetensors", "not a valid safetensors file")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_header_is_never_more_than_an_input_error(llama, tmp_path, data):
    content = bytearray((llama / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 3000))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + "]}}", "more than 40 digits"),
        ('{"a": 1, "a": 2}', "a name occurs twice"),
        ('{"a": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}', "dequantise it"),
        ('{"a": {"dtype": "F64X", "shape": [1], "data_offsets": [0, 8]}}', "expected one of"),
    ],
)
def test_headers_that_cannot_be(header, words, model, tmp_path):
    content = len(header).to_bytes(8, "little") + header.encode()
    (model / "model.safetensors").write_bytes(content)
    refused(tmp_path, 4, words)


def test_a_pointer_is_not_the_file(model, tmp_path):
    """What `git clone` leaves without Git LFS."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (model / "model.safetensors").write_text(pointer)
    refused(tmp_path, 4, "model.safetensors' is a pointer of Git LFS", "run git lfs pull")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("gone.safetensors", "missing shard"),
        ("../in/model.safetensors", "beside it"),
        ("/etc/model.safetensors", "beside it"),
        ("pytorch_model.bin", "beside it"),
    ],
)
def test_index(model, tmp_path, file, words):
    names = load_file(model / "model.safetensors")
    (model / "model.safetensors").rename(model / "part.safetensors")
    record = {"metadata": {}, "weight_map": {**dict.fromkeys(names, "part.safetensors"), "x": file}}
    (model / "model.safetensors.index.json").write_text(json.dumps(record))
    refused(tmp_path, 4, words, file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(model, tmp_path, value):
    rewrite(model, lambda t: t["model.norm.weight"].__setitem__(3, value))
    refused(tmp_path, 4, "model.norm.weight", "NaN or infinite")


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_ratio_out_of_range(model, tmp_path, ratio):
    refused(tmp_path, 2, "between 0 and 1", amount=Amount(ratio=ratio))


def test_ratio_out_of_reach_names_the_nearest(model, tmp_path):
    refused(tmp_path, 4, "nearest", "0.25", method="shortgpt", amount=Amount(ratio=0.01))
    refused(tmp_path, 4, "nearest", "0.75", method="shortgpt", amount=Amount(ratio=0.99))


def test_impossible_amounts(model, tmp_path):
    refused(tmp_path, 4, "multiple of 7", amount=Amount(sparsity="2:7"))
    refused(tmp_path, 2, "N:M", amount=Amount(sparsity="4:2"))
    refused(tmp_path, 2, "implies", amount=Amount(sparsity="2:4", ratio=0.5))
    refused(tmp_path, 2, "no amount", amount=Amount())
    refused(tmp_path, 2, "shape", amount=Amount(layers=2))
    refused(tmp_path, 4, "multiple of the 3", method="flap", amount=Amount(heads=4))
    refused(tmp_path, 2, "cannot change hidden", method="flap", amount=Amount(hidden=24))
    refused(tmp_path, 4, "the model has 4", method="shortgpt", amount=Amount(layers=9))


def test_names(model, tmp_path):
    refused(tmp_path, 2, "unknown method 'wnda'", "did you mean 'wanda'", method="wnda")
    refused(tmp_path, 2, "no option --bias", options={"bias": "keep"})
    refused(tmp_path, 2, "did you mean 'UL-UM'", method="flap", options={"structure": "UL-M"})
    (tmp_path / "p.json").write_text('{"keep": {"layers": [0, 1, 2]}}')
    decided = {"plan": str(tmp_path / "p.json"), "amount": None}
    for method, options in (("flap", {"metric": "IFV"}), ("shortened-llama", {"protect": "1,1"})):
        refused(
            tmp_path, 2, "cannot be combined with --plan", *options, *options.values(),
            method=method, options=options, **decided,
        )  # fmt: skip


def test_places(model, tmp_path):
    refused(tmp_path, 4, "the input itself", out="in")
    refused(tmp_path, 4, "inside the input", out="in/out")
    refused(tmp_path, 4, "the input itself", out="in", output=Output(force=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(tmp_path, 5, "exists", out="mine")
    refused(tmp_path, 5, "not made by prunecli", out="mine", output=Output(force=True))
    (tmp_path / "mine.json").write_text('{"kind": "of my own"}')
    foreign = {"out": "mine.json", "output": Output(force=True), "plan_only": True}
    refused(tmp_path, 5, "not made by prunecli", method="shortgpt", **foreign)


def test_too_little_disk(model, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    refused(tmp_path, 4, "too little disk", "free")


def test_what_a_state_takes_counts_as_free(tmp_path, monkeypatch):
    """A run that filled the disk can go on: its state is gone on from, or cleared."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    out = str(tmp_path / "o")
    with pytest.raises(InputError, match="too little disk"):
        output.check_disk(out, 3000)
    (tmp_path / "o.partial" / "step-1").mkdir(parents=True)
    (tmp_path / "o.partial" / "step-1" / "x").write_bytes(bytes(2500))
    output.check_disk(out, 3000)


def test_tokens(model, tmp_path):
    other = tiny.tokens(tmp_path / "other.safetensors", vocab=50000)
    refused(tmp_path, 4, "259", method="wanda", data=Data(other))
    refused(tmp_path, 4, "tokenizer", method="wanda", data=Data("builtin"))
    few = tiny.tokens(tmp_path / "few.safetensors", rows=2)
    refused(tmp_path, 4, "2", method="wanda", data=Data(few, nsamples=5))


def test_a_failure_in_the_middle_leaves_nothing(model, tmp_path, monkeypatch):
    calls = []

    def write(self, name, tensor):
        calls.append(name)
        if len(calls) > 5:
            raise PruneError("the disk went away")

    monkeypatch.setattr(CheckpointWriter, "write", write)
    refused(tmp_path, 1, "went away")
    assert len(calls) > 5


def test_wrong_kinds_and_other_models(model, models, calibration, tmp_path):
    stats, scores = str(tmp_path / "s.safetensors"), str(tmp_path / "c.safetensors")
    calibrate(str(model), stats, methods=["flap"], data=Data(calibration))
    score(str(model), scores, method="flap", stats=stats)
    refused(tmp_path, 4, "'stats'", "'scores'", method="flap", scores=stats)
    refused(tmp_path, 4, "lacks", "calibrate --for wanda", method="wanda", stats=stats)
    refused(tmp_path, 4, "another model", method="flap", stats=stats, model=models("mistral"),
            options={"bias": "drop"})  # fmt: skip
    refused(tmp_path, 4, "no such file", method="flap", stats=str(tmp_path / "x.safetensors"))
    refused(tmp_path, 4, "not AL-AM", method="flap", scores=scores, options={"structure": "AL-AM"})
    with pytest.raises(PruneError, match="inside prune"):
        score(str(model), str(tmp_path / "w.safetensors"), method="wanda")


@pytest.mark.parametrize(
    "keep",
    [
        {"layers": [0, 9]},
        {"layers": []},
        {"ffn": [[1, 0]] * 4},
        {"ffn": [[0]]},
        {"foo": [1]},
        {"hidden": ["a"]},
        {"heads": [[0, 1, 3]] * 4},
    ],
)
def test_plans(model, tmp_path, keep):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"keep": keep}))
    refused(tmp_path, 4, "plan", method=None, amount=Amount(), plan=str(plan))


def test_evaluating_on_calibration_windows(model, calibration, tmp_path):
    prune(
        str(model),
        str(tmp_path / "out"),
        method="wanda",
        amount=Amount(ratio=0.5),
        data=Data(calibration),
    )
    with pytest.raises(InputError, match="calibrated on"):
        evaluate(str(tmp_path / "out"), data=[Data(calibration)])
    assert evaluate(str(tmp_path / "out"), data=[Data(calibration)], allow_overlap=True).results[
        "loss"
    ]


def test_init_check_and_table(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny.config_of("llama")))
    for name in ("a", "b"):
        init(str(tmp_path / name), config=str(config), seed=3)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert float(weights["lm_head.weight"].std()) == pytest.approx(0.3, rel=0.05)
    assert check(str(tmp_path / "a"), deep=True) == []
    data = Data("builtin", nsamples=2, seq_len=32)
    evaluate(str(tmp_path / "a"), data=[data], out=str(tmp_path / "a.json"))
    (row,) = [row for row in table([str(tmp_path)]).objects() if row["perplexity"]]
    assert (row["model"], row["tokens"], row["method"]) == ("a", 62, "scratch")
    for format in ("rich", "md", "csv", "tex", "json"):
        assert "scratch" in table([str(tmp_path)]).render(format)
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "a" / "model.safetensors")
    assert check(str(tmp_path / "a")) == []
    assert "digest" in check(str(tmp_path / "a"), deep=True)[0]
    configure(tmp_path / "b", num_hidden_layers=5)
    assert "num_hidden_layers is 5" in check(str(tmp_path / "b"))[0]
