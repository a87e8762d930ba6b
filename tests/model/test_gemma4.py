"""Gemma 4: layers of two types, embeddings of every layer, keys and values of earlier layers."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import check, evaluate, init, prune, train
from prunecli.errors import InputError
from prunecli.model import configs
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.stream import LayerStream
from prunecli.settings import Amount, Compute, Data

FULL, SLIDING = "full_attention", "sliding_attention"
SIX = [SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL]
# six layers, of which the last three take keys and values: of layer 2 and of layer 1
SHARING = {"num_hidden_layers": 6, "layer_types": SIX, "num_kv_shared_layers": 3}
PLAIN = {
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
}  # fmt: skip


def of_size(hidden, ffn, layers, heads, kv_heads, every, **more):
    types = [FULL if i % every == every - 1 else SLIDING for i in range(layers)]
    return {
        "model_type": "gemma4_text", "hidden_size": hidden, "intermediate_size": ffn,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "vocab_size": 262144, "layer_types": types, "global_head_dim": 512, **more,
    }  # fmt: skip


RELEASED = {
    "E2B": of_size(1536, 6144, 35, 8, 1, 5, num_kv_shared_layers=20, use_double_wide_mlp=True),
    "E4B": of_size(2560, 10240, 42, 8, 2, 6, num_kv_shared_layers=18),
    "31B": of_size(
        5376, 21504, 60, 32, 16, 6, hidden_size_per_layer_input=0, attention_k_eq_v=True,
        num_global_key_value_heads=4,
    ),
}  # fmt: skip


def planned(model, out, tmp_path, **keep):
    (tmp_path / "plan.json").write_text(json.dumps({"keep": keep}))
    return prune(str(model), str(out), plan=str(tmp_path / "plan.json"))


def edited(folder, out, edit):
    tensors = {name: tensor.double() for name, tensor in tiny.tensors(folder).items()}
    edit(tensors)
    tiny.save(tensors, out, json.loads((folder / "config.json").read_text()))
    return out


def scaled(folder):
    """Give the layers of a model scalars other than 1; return the folder."""
    tensors = load_file(folder / "model.safetensors")
    for i, name in enumerate(sorted(name for name in tensors if "layer_scalar" in name)):
        tensors[name].fill_(0.5 + 0.25 * i)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_models_are_counted(name):
    """Parameters, FLOPs and the cache, as the shapes of the stock model tell them."""
    tiny.need("gemma4")
    config = RELEASED[name]
    arch, shapes = Arch(config), configs.shapes(config)
    shapes.pop("lm_head.weight")  # the embedding
    own = {name: torch.Size(tensor.shape) for name, tensor in arch.tensors().items()}
    assert own == {name: torch.Size(shape) for name, shape in shapes.items()}
    counts = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    assert arch.total_params == sum(arch.params().values()) == sum(counts.values())

    used = sum(counts.values()) - counts.get("model.embed_tokens_per_layer.weight", 0)
    linears = [f"model.layers.{i}.self_attn." for i in range(arch.layers)]
    queries = sum(shapes[f"{layer}q_proj.weight"][0] for layer in linears)
    assert arch.flops(100) == 2 * 100 * used + 4 * 100**2 * queries
    # values that are keys are cached as well as these
    keys = sum(shapes.get(f"{layer}k_proj.weight", (0,))[0] for layer in linears)
    assert arch.kv_bytes_per_token(2) == 2 * 2 * keys
    blocks = (r"self_attn\.[qkvo]_proj", r"mlp\.\w+_proj")
    assert arch.block_params == sum(
        n for name, n in counts.items() if any(re.search(part, name) for part in blocks)
    )


@pytest.mark.parametrize("name", RELEASED)
def test_hidden_and_ffn_of_a_ratio_leave_that_ratio(name):
    from prunecli.methods import registry as methods
    from prunecli.pruning.sizes import block_params, resolve_sizes

    arch, method = Arch(RELEASED[name]), methods.get("minitron-width")
    sizes = resolve_sizes(method, method.resolve({}), Amount(ratio=0.4), arch)
    child = arch.child(hidden=sizes.hidden, ffn=sizes.ffn)
    assert child.block_params == block_params(sizes, arch)
    assert child.block_params / arch.block_params == pytest.approx(0.6, abs=1e-2)


@pytest.mark.parametrize("overrides", [SHARING, PLAIN, {"attention_k_eq_v": False}, {
    "attention_bias": True, "use_double_wide_mlp": False, "final_logit_softcapping": 5.0,
}])  # fmt: skip
def test_streamed_losses_of_every_kind(overrides, tmp_path):
    model = tiny.make(tmp_path / "m", "gemma4", **overrides)
    scaled(model)
    source = tiny.tokens(tmp_path / "t.safetensors", rows=5)
    ids = load_file(tmp_path / "t.safetensors")["ids"].long()
    logits = tiny.logits(model, ids)
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    for compute in (Compute(), Compute(buffer="disk")):
        found = evaluate(str(model), data=[Data(source)], compute=compute).results
        assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert check(str(model), deep=True) == []


@pytest.mark.parametrize("kept", [[0, 1, 2, 3, 5], [0, 1, 2, 5], [0, 1, 2, 4, 5]])
def test_layers_go_beside_those_that_others_take_keys_of(kept, tmp_path):
    """The scalar of a layer that goes is a factor of that of the layer before it."""
    model = scaled(tiny.make(tmp_path / "m", "gemma4", **SHARING))
    planned(model, tmp_path / "out", tmp_path, layers=kept)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["num_kv_shared_layers"] == sum(i > 2 for i in kept)
    assert told["layer_types"] == [SIX[i] for i in kept]
    arch = Arch.read(model)

    def silence(tensors):
        for name, tensor in arch.tensors().items():
            if tensor.layer not in {None, *kept} and arch.is_output(tensor):
                tensors[name].zero_()

    assert tiny.computes_as(tmp_path / "out", edited(model, tmp_path / "silent", silence))


@pytest.mark.parametrize(
    ("alive", "skip", "starts", "kept"),
    [
        ([0, 1, 2, 3, 4, 5], 1, range(3, 5), [[0, 1, 2, 4, 5], [0, 1, 2, 3, 5]]),
        ([0, 1, 2, 3, 4, 5], 2, range(3, 4), [[0, 1, 2, 5]]),
        ([0, 1, 2, 4, 5], 1, range(3, 4), [[0, 1, 2, 5]]),
        ([0, 1, 2, 3, 5], 1, range(3, 5), [[0, 1, 2, 5]]),
    ],
)
def test_losses_without_layers_are_those_of_models_without_them(
    alive, skip, starts, kept, tmp_path
):
    """What goes is missing there as it is in a pruned model, scalars and all."""
    from prunecli.pruning.stats.skip_loss import skip_losses

    model = scaled(tiny.make(tmp_path / "m", "gemma4", **SHARING))
    source = tiny.tokens(tmp_path / "t.safetensors", rows=3)
    ids = load_file(tmp_path / "t.safetensors")["ids"].long()
    stream = LayerStream(Checkpoint(str(model)), Compute())
    found = skip_losses(stream, ids, skip, alive, starts)
    for n, layers in enumerate(kept):
        planned(model, tmp_path / f"out{n}", tmp_path, layers=layers)
        told = evaluate(str(tmp_path / f"out{n}"), data=[Data(source)]).results
        assert float(found[n]) == pytest.approx(told["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ([0, 2, 3, 4, 5], "all of its key-giving full_attention layers: layers without keys"),
        ([0, 1, 3, 4, 5], "all of its key-giving sliding_attention layers: layers without keys"),
        ([1, 2, 3, 4, 5], "all of its first layers: a layer that goes leaves"),
        ([0, 1, 2, 3, 4], "all of its last layers: transformers gives full attention"),
    ],
)
def test_layers_that_others_need_stay(kept, told, tmp_path):
    model = tiny.make(tmp_path / "m", "gemma4", **SHARING)
    with pytest.raises(InputError, match=told):
        planned(model, tmp_path / "out", tmp_path, layers=kept)
    assert not (tmp_path / "out").exists()


def test_a_layer_that_is_needed_twice_stays_once():
    arch = Arch(tiny.config_of("gemma4"))  # its first layer gives keys, too
    assert arch.must_stay([3, 2, 1, 0]) == [0, 3] and arch.first_of([3, 2, 1, 0], 3) == [0, 2, 3]


def test_a_method_leaves_the_layers_that_others_need(tmp_path):
    model = tiny.make(tmp_path / "m", "gemma4", **SHARING)
    source = tiny.tokens(tmp_path / "t.safetensors")
    for method in ("shortgpt", "shortened-llama", "sleb", "minitron-depth"):
        options = {"protect": "0,0"} if method == "shortened-llama" else {}
        layers = 5 if method == "minitron-depth" else 4
        made = prune(
            str(model), str(tmp_path / method), method=method, amount=Amount(layers=layers),
            data=Data(source), options=options,
        )  # fmt: skip
        assert not {0, 1, 2, 5} & {*made.results["removed_layers"]}
        assert tiny.logits(tmp_path / method, torch.arange(20)[None]).isfinite().all()


def test_ids_are_exact_in_every_compute_type(tmp_path):
    model = tiny.make(
        tmp_path / "m", "gemma4", vocab_size=70_000, vocab_size_per_layer_input=70_000
    )
    ids = torch.tensor([[0, 255, 256, 257, 65_535, 65_537, 69_999]])
    for dtype in ("float32", "bfloat16"):
        stream = LayerStream(Checkpoint(str(model)), Compute(dtype=dtype))
        states = stream.embed(ids)
        assert states.shape[-1] == stream.arch.states_width > stream.arch.hidden
        assert stream._carried.ids(states).equal(ids)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"enable_moe_block": True}, "enable_moe_block is true"),
        ({"use_bidirectional_attention": "all"}, 'use_bidirectional_attention is "all"'),
        ({"per_layer_config": {"0": {"head_dim": 24, "num_key_value_heads": 1}}}, "per_layer_conf"),
        ({"per_layer_config": {"1": {"head_dim": 16}}}, "per_layer_config"),
        ({"per_layer_config": {"x": {}}}, "per_layer_config"),
        ({"per_layer_config": {"9" * 5000: {}}}, "per_layer_config"),
        ({"per_layer_config": {}, "num_hidden_layers": 10**12}, "num_hidden_layers is 1000"),
        ({"per_layer_config": {}, "layer_types": [FULL]}, "per_layer_config"),
        ({"per_layer_config": [1]}, "per_layer_config"),
        ({"global_head_dim": 0}, "global_head_dim is 0"),
        ({"num_kv_shared_layers": -1}, "num_kv_shared_layers is -1"),
        ({"layer_types": ["foo"] * 4}, "layer_types"),
    ],
)
def test_other_models_are_refused_by_name(change, told, models, tmp_path):
    folder = shutil.copytree(models("gemma4"), tmp_path / "in")
    config = Arch.read(folder).config
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InputError, match=re.escape(told)):
        Checkpoint(str(folder))


@tiny.of_today
def test_sizes_of_all_layers_of_a_type_or_of_each(models, tmp_path):
    """The released files say the one, those that transformers 5.24 writes the other."""
    config = json.loads((models("gemma4") / "config.json").read_text())
    arch = Arch.read(models("gemma4"))
    assert "per_layer_config" in config and "per_layer_config" not in arch.config
    assert (arch.config["global_head_dim"], arch.config["num_global_key_value_heads"]) == (16, 1)
    folder = shutil.copytree(models("gemma4"), tmp_path / "in")
    (folder / "config.json").write_text(json.dumps(arch.config))
    ids = torch.arange(30)[None]
    assert tiny.logits(folder, ids).equal(tiny.logits(models("gemma4"), ids))


def test_the_types_that_config_json_leaves_out(tmp_path):
    """Every sixth layer has full attention, and the last."""
    arch = Arch(
        tiny.config_of("gemma4", num_hidden_layers=8, layer_types=None, sliding_window_pattern=2)
    )
    types = [SLIDING] * 5 + [FULL, SLIDING, FULL]
    assert [kinds[0] for kinds in arch.kinds] == types
    child = arch.child(layers=[0, 5, 6, 7])
    assert child.config["layer_types"] == [SLIDING, FULL, SLIDING, FULL]
    assert child.kinds == tuple(arch.kinds[i] for i in (0, 5, 6, 7))


def test_keys_that_no_layer_reads_are_left_out(models, tmp_path):
    """Released files have keys and values of layers that take those of others."""
    folder = shutil.copytree(models("gemma4"), tmp_path / "in")
    tensors = load_file(folder / "model.safetensors")
    for part, shape in (("k_proj", (16, 48)), ("v_proj", (16, 48)), ("k_norm", (16,))):
        tensors[f"model.layers.3.self_attn.{part}.weight"] = torch.randn(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    report = tiny.Told()
    assert Checkpoint(str(folder), report).digest() == Checkpoint(str(models("gemma4"))).digest()
    assert ["has 3 tensors that no layer reads" in note for note in report.notes] == [True]


@pytest.mark.parametrize("axis", ["kv_heads", "heads"])
def test_heads_stay(axis, models, tmp_path):
    keep = [[0], [0], [0], [0]] if axis == "kv_heads" else [[0, 1, 2, 3]] * 4
    with pytest.raises(InputError, match="'gemma4' cannot lose heads"):
        planned(models("gemma4"), tmp_path / "out", tmp_path, **{axis: keep})
    whole = [[0], [0, 1], [0, 1], [0]] if axis == "kv_heads" else [[*range(6)]] * 4
    planned(models("gemma4"), tmp_path / "out", tmp_path, **{axis: whole})
    assert tiny.computes_as(tmp_path / "out", models("gemma4"))


def test_channels_of_both_widths(models, tmp_path):
    """The last layer has twice as many: it keeps twice as many, and all of those are filled."""
    source = tiny.tokens(tmp_path / "t.safetensors")
    for structure in ("UL-MM", "AL-AM"):
        out = tmp_path / structure
        made = prune(
            str(models("gemma4")), str(out), method="flap", amount=Amount(ffn=40),
            options={"structure": structure, "bias": "drop"}, data=Data(source),
        )  # fmt: skip
        arch = Arch.read(out)
        if structure == "UL-MM":
            assert made.results["kept"]["ffn"] == arch.ffn == 40
        assert arch.size("ffn", 3) == 2 * arch.ffn
        assert tiny.logits(out, torch.arange(20)[None]).isfinite().all()


def test_a_new_model_starts_as_a_smaller_one(tmp_path):
    """What all layers get lies side by side: each layer's part starts as that of its own."""
    small = tiny.make(tmp_path / "small", "gemma4", **SHARING)
    large = {**json.loads((small / "config.json").read_text()), "intermediate_size": 96}
    (tmp_path / "large.json").write_text(json.dumps(large))
    init(str(tmp_path / "out"), config=str(tmp_path / "large.json"), warm=str(small))
    before, after = (load_file(one / "model.safetensors") for one in (small, tmp_path / "out"))
    name = "model.embed_tokens_per_layer.weight"
    assert after[name].equal(before[name])
    assert after["model.layers.5.mlp.down_proj.weight"][:, :160].equal(
        before["model.layers.5.mlp.down_proj.weight"]
    )


def test_training_holds_layer_scalars(models, tmp_path):
    source = tiny.tokens(tmp_path / "t.safetensors", rows=16)
    train(
        str(models("gemma4")), str(tmp_path / "out"), source, steps=2, batch_size=4,
        lr=1e-3,
    )  # fmt: skip
    before, after = (
        load_file(f / "model.safetensors") for f in (models("gemma4"), tmp_path / "out")
    )
    scalars = [name for name in before if name.endswith("layer_scalar")]
    assert len(scalars) == 4 and all(after[name].equal(before[name]) for name in scalars)
    name = "model.embed_tokens_per_layer.weight"
    assert not after[name].equal(before[name])
