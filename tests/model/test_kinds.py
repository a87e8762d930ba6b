"""Models whose layers are of several kinds: what is counted, cut, refused, and told of the rest."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import evaluate, init, prune
from prunecli.errors import InputError
from prunecli.methods import registry as methods
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.families import registry
from prunecli.pruning import gates
from prunecli.pruning.allocate import allocate
from prunecli.pruning.sizes import Sizes, resolve_sizes
from prunecli.settings import Amount, Data

HYBRIDS = ("lfm2", "qwen3-5", "nemotron-h")
MIXED = {"mlp_only_layers": [1], "decoder_sparse_step": 1, "intermediate_size": 112}


def planned(model, out, tmp_path, **keep):
    (tmp_path / "plan.json").write_text(json.dumps({"keep": keep}))
    return prune(str(model), str(out), plan=str(tmp_path / "plan.json"))


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_parameters_and_flops_of_each_kind():
    """LFM2 1.2B: ten layers of convolutions, six of attention; 8192 FFN channels of 12288 given."""
    arch = Arch(
        {
            "model_type": "lfm2", "num_hidden_layers": 16, "hidden_size": 2048,
            "block_ff_dim": 12288, "num_attention_heads": 32, "num_key_value_heads": 8,
            "vocab_size": 65536, "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        }
    )  # fmt: skip
    assert (arch.ffn, arch.total_params) == (8192, 1_170_340_608)
    params = arch.params()
    assert params["mixers"] == 10 * (2048 * 6144 + 2048 * 2048)
    assert params["convolutions"] == 10 * 2048 * 3
    assert params["attention"] == 6 * (2 * 2048 * 2048 + 2 * 2048 * 512)
    assert arch.block_params == params["mixers"] + params["attention"] + params["ffn"]
    # the embedding is the output head, too
    assert arch.flops(100) == 2 * 100 * arch.total_params + 6 * 4 * 100**2 * 2048
    assert arch.kv_bytes_per_token(2) == 6 * 2 * 2 * 512
    halved = arch.flops(1) - arch.flops(1, 0.5)
    assert halved == arch.block_params


@pytest.mark.parametrize(
    ("family", "change", "ffn"),
    [("lfm2", {"intermediate_size": 72}, 48), ("granitemoehybrid", {}, 64)],
)
def test_a_config_as_a_shape(family, change, ffn, models, tmp_path):
    """`--arch` takes FFN channels for what the class makes of the key, and not the usual one."""
    arch, config = Arch.read(models(family)), config_of(models(family))
    config |= change or {"shared_intermediate_size": ffn}
    (tmp_path / "arch.json").write_text(json.dumps(config))
    method = methods.get("flap")
    amount = Amount(arch=str(tmp_path / "arch.json"))
    assert resolve_sizes(method, method.resolve({}), amount, arch).ffn == ffn


def test_a_state_is_counted():
    """Of a gated delta net 4 multiply-adds for each number of the state, of Mamba 2 three."""
    for family, numbers, each in (("qwen3-5", 4 * 8 * 16, 4), ("nemotron-h", 4 * 8 * 4, 3)):
        arch = Arch(tiny.config_of(family))
        params, layers = arch.params(), sum("linear_attention" in own for own in arch.kinds)
        weights = arch.total_params - params["embedding"]
        attention = 4 * len(arch.with_units("heads")) * arch.heads * arch.head_dim
        assert arch.flops(1) == 2 * (weights + layers * each * numbers) + attention


@pytest.mark.parametrize(
    ("family", "overrides", "kept", "told"),
    [
        ("lfm2", {}, [1, 2], {"full_attn_idxs": [0], "layer_types": ["full_attention", "conv"]}),
        (
            "nemotron-h", {}, [1, 2, 3],
            {"layers_block_type": ["full_attention", "mlp", "full_attention"]},
        ),
        ("glm4-moe", {"first_k_dense_replace": 2}, [0, 2, 3], {"first_k_dense_replace": 1}),
        (
            "ernie4-5-moe", {"moe_layer_end_index": 2}, [0, 2, 3],
            {"moe_layer_start_index": 1, "moe_layer_end_index": 1},
        ),
        ("ernie4-5-moe", {}, [0], {"moe_layer_start_index": 1, "moe_layer_end_index": -1}),
        ("qwen3-moe", MIXED, [1, 3], {"mlp_only_layers": [0], "decoder_sparse_step": 1}),
        (
            "qwen3-moe", {**MIXED, "decoder_sparse_step": 2}, [0, 1, 3],
            {"mlp_only_layers": [0, 1], "decoder_sparse_step": 1},
        ),
        ("qwen3-next", {}, [0, 1, 3], {"mlp_only_layers": [1]}),
    ],
)  # fmt: skip
def test_what_config_json_says_of_the_layers_that_stay(family, overrides, kept, told):
    arch = Arch(tiny.config_of(family, **overrides))
    child = arch.child(layers=kept)
    assert {key: child.config[key] for key in told} == told
    assert child.kinds == tuple(arch.kinds[i] for i in kept)


def test_letters_of_layers(tmp_path):
    """Other programs read the letters of Nemotron-H, so these are those of the kept layers too."""
    arch = Arch(tiny.config_of("nemotron-h", hybrid_override_pattern="M*-*"))
    child = arch.child(layers=[0, 2, 3])
    assert child.config["hybrid_override_pattern"] == "M-*"
    assert child.config["layers_block_type"] == ["linear_attention", "mlp", "full_attention"]
    with pytest.raises(InputError, match="layer_types has 'X', expected full_attention or"):
        Arch(tiny.config_of("nemotron-h", hybrid_override_pattern="MX-*"))


def losses_as_stock(model, folder):
    """Assert that a model's loss is transformers'; return the tokens as a source, and their ids."""
    source = tiny.tokens(folder / "t.safetensors", rows=5)
    ids = load_file(folder / "t.safetensors")["ids"].long()
    logits = tiny.logits(model, ids)[:, :-1].flatten(0, 1)
    expected = float(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    found = evaluate(str(model), data=[Data(source)]).results
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    return source, ids


@pytest.mark.parametrize("flag", ["use_attention_gate", "use_sandwich_norm"])
def test_lfm3_without_its_gates_or_its_norms(flag, tmp_path):
    """Its norms behind attention and FFN, and the gates on its heads, are there unless refused."""
    model = tiny.make(tmp_path / "m", "lfm3", **{flag: False})
    source, ids = losses_as_stock(model, tmp_path)
    arch = Arch.read(model)
    assert bool(arch.post_norms(0)) == (flag != "use_sandwich_norm")
    assert ("g_proj" in "".join(arch.tensors())) == (flag != "use_attention_gate")
    prune(str(model), str(tmp_path / "o"), method="wanda-sp", ratio=0.3, data=Data(source))
    assert tiny.logits(tmp_path / "o", ids).isfinite().all()


def test_lfm3_with_one_kind_of_attention(tmp_path):
    model = tiny.make(tmp_path / "m", "lfm3", layer_types=["conv", "full_attention"] * 2)
    source, ids = losses_as_stock(model, tmp_path)
    prune(str(model), str(tmp_path / "o"), method="shortgpt", amount=Amount(layers=2),
          data=Data(source))  # fmt: skip
    assert tiny.logits(tmp_path / "o", ids).isfinite().all()


CONVOLUTIONS = [f"model.layers.0.linear_attn.{one}_conv1d.weight" for one in "qkv"]


def in_parts(folder, *rows):
    """Store the first convolution of an OLMo Hybrid in parts of so many rows."""
    tensors = load_file(folder / "model.safetensors")
    whole = torch.cat([tensors.pop(name) for name in CONVOLUTIONS])
    parts = zip(CONVOLUTIONS, whole[: sum(rows)].split(rows), strict=True)
    save_file({**tensors, **dict(parts)}, folder / "model.safetensors", {"format": "pt"})


def test_a_convolution_in_three_parts(tmp_path):
    """OLMo's files have those of q, k and v, of their own sizes; transformers writes thirds."""
    thirds, own = (tiny.make(tmp_path / name, "olmo-hybrid") for name in ("thirds", "own"))
    in_parts(own, 16, 16, 64)
    source, ids = losses_as_stock(own, tmp_path)
    for model in (thirds, own):
        prune(str(model), str(tmp_path / f"of-{model.name}"), method="wanda-sp", ratio=0.3,
              data=Data(source))  # fmt: skip
    logits = [tiny.logits(tmp_path / f"of-{model.name}", ids) for model in (thirds, own)]
    assert torch.equal(*logits)


def test_parts_that_are_not_of_one_tensor(tmp_path):
    model = tiny.make(tmp_path / "m", "olmo-hybrid")
    in_parts(model, 16, 16, 60)
    with pytest.raises(InputError, match=r"shape \[92, 1, 4\], expected \[96, 1, 4\]"):
        Checkpoint(str(model))
    tensors = load_file(model / "model.safetensors")
    halved = {**tensors, CONVOLUTIONS[1]: tensors[CONVOLUTIONS[1]].half()}
    save_file(halved, model / "model.safetensors")
    with pytest.raises(InputError, match=r"is F16 \[16, 1, 4\], which cannot follow"):
        Checkpoint(str(model))
    del tensors[CONVOLUTIONS[2]]
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match=r"linear_attn\.conv1d\.weight' is missing"):
        Checkpoint(str(model))


def test_the_sizes_of_a_delta_net_that_follow_others(tmp_path):
    """They stay as they were where hidden channels and heads are fewer, and config.json says so."""
    absent = dict.fromkeys(
        f"linear_{name}" for name in
        ("key_head_dim", "value_head_dim", "num_key_heads", "num_value_heads")
    )  # fmt: skip
    model = tiny.make(tmp_path / "m", "olmo-hybrid", **absent)
    config = {key: value for key, value in config_of(model).items() if key not in absent}
    (model / "config.json").write_text(json.dumps(config))
    source, ids = losses_as_stock(model, tmp_path)
    prune(str(model), str(tmp_path / "o"), method="minitron-width",
          amount=Amount(hidden=32, ffn=64), data=Data(source))  # fmt: skip
    child = config_of(tmp_path / "o")
    heads, hidden = Arch(config).heads, Arch(config).hidden
    assert child["hidden_size"] == 32 < hidden
    assert child["linear_num_key_heads"] == child["linear_num_value_heads"] == heads
    assert child["linear_value_head_dim"] == 2 * child["linear_key_head_dim"]
    assert child["linear_key_head_dim"] == int(0.75 * hidden / heads)
    assert tiny.logits(tmp_path / "o", ids).isfinite().all()


def test_experts_in_one_of_four_kinds(tmp_path):
    """Of Nemotron 3, which must keep such a layer: without, its class has other tensors."""
    model = tiny.make(tmp_path / "m", "nemotron-h-moe", hybrid_override_pattern="ME-*")
    source, ids = losses_as_stock(model, tmp_path)
    arch = Arch.read(model)
    assert (arch.family.name, arch.with_units("experts"), arch.ffn) == ("nemotron-h-moe", [1], 80)
    with pytest.raises(InputError, match="cannot lose all of its moe layers: without experts"):
        planned(model, tmp_path / "o", tmp_path, layers=[0, 2, 3])
    made = prune(str(model), str(tmp_path / "o"), method="shortgpt", amount=Amount(layers=2),
                 data=Data(source))  # fmt: skip
    assert {1, 3} == {*range(4)} - {*made.results["removed_layers"]}
    assert tiny.logits(tmp_path / "o", ids).isfinite().all()


@pytest.mark.parametrize("step", [1, 2])
def test_experts_in_some_layers(step, tmp_path):
    """Losses are those of transformers; experts go where there are some, and dense layers stay."""
    settings = {**MIXED, "decoder_sparse_step": step}
    model = tiny.make(tmp_path / "m", "qwen3-moe", **settings)
    source, ids = losses_as_stock(model, tmp_path)
    sparse = Arch.read(model).with_units("experts")
    assert sparse == ([0, 2, 3] if step == 1 else [3])
    made = prune(str(model), str(tmp_path / "o"), method="reap", experts=3, data=Data(source))
    assert made.results["kept"]["experts"] == 3
    assert config_of(tmp_path / "o")["intermediate_size"] == 112
    assert tiny.stock(tmp_path / "o").generate(ids[:1, :4], max_new_tokens=3).shape == (1, 7)


@pytest.mark.parametrize("family", HYBRIDS)
def test_zeros_in_every_kind_of_layer(family, models, calibration, tmp_path):
    """Half of every block linear, mixers' among them, by the inputs that each of them reads."""
    model = models(family)
    made = prune(str(model), str(tmp_path / "o"), method="wanda", ratio=0.5, data=Data(calibration))
    arch, weights = Arch.read(model), tiny.tensors(tmp_path / "o")
    linears = [
        weights[f"{arch.prefix(i)}{module}.weight"]
        for i in range(arch.layers)
        for modules in arch.inputs(i)
        for module in modules
    ]
    assert sum(weight.numel() for weight in linears) == arch.block_params
    assert all((weight == 0).sum(1).eq(weight.shape[1] // 2).all() for weight in linears)
    assert made.results["ratio"] == 0.5


@pytest.mark.parametrize("family", HYBRIDS)
@pytest.mark.parametrize("structure", ["UL-UM", "AL-MM", "AL-AM"])
def test_heads_and_channels_where_they_are(family, structure, models, calibration, tmp_path):
    """Structures that choose across layers choose among those that have such units."""
    made = prune(str(models(family)), str(tmp_path / "o"), method="flap", ratio=0.1,
                 options={"structure": structure, "bias": "drop"}, data=Data(calibration),
                 keep=str(tmp_path / "kept"))  # fmt: skip
    arch = Arch.read(models(family))
    keep = json.loads((tmp_path / "kept" / "plan.json").read_text())["results"]["keep"]
    for axis in ("kv_heads", "ffn"):
        having = [i for i, own in enumerate(keep[axis]) if own]
        assert having == arch.with_units(axis)
    child = Arch.read(tmp_path / "o")
    if structure == "UL-UM":
        assert made.results["ratio"] == 1 - child.block_params / arch.block_params
    ids = torch.arange(4)[None]
    assert tiny.stock(tmp_path / "o").generate(ids, max_new_tokens=3).shape == (1, 7)


@pytest.mark.parametrize(
    ("family", "keep", "words"),
    [
        ("lfm2", {"kv_heads": [[0]] * 4}, "keeps kv_heads of layer 0, which has none"),
        ("lfm2", {"layers": [0, 2]}, "cannot lose all of its full_attention layers: transformers"),
        ("lfm2", {"hidden": [*range(24)]}, "cannot lose hidden channels: .* its convolution"),
        ("nemotron-h", {"ffn": [[], [], [], [1]]}, "keeps no ffn of layer 2"),
        ("granitemoehybrid", {"hidden": [0]}, "cannot lose hidden channels: .* its Mamba mixer"),
    ],
)
def test_refused_by_name(family, keep, words, models, tmp_path):
    with pytest.raises(InputError, match=words):
        planned(models(family), tmp_path / "o", tmp_path, **keep)
    assert not (tmp_path / "o").exists()


def test_tensors_that_predict_further_tokens_are_left_out(models, tmp_path):
    """Named, not read, and not in what is written."""
    model, folder, told = models("glm4-moe"), tmp_path / "m", tiny.Told()
    folder.mkdir()
    weights = {**tiny.tensors(model), "model.layers.4.eh_proj.weight": torch.ones(48, 96)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
    found = Checkpoint(str(folder), told)
    assert found.specs.keys() == Checkpoint(str(model)).specs.keys()
    (note,) = told.notes
    assert "1 tensors that only predict further tokens ('model.layers.4.eh_proj.weight'" in note


@pytest.mark.parametrize("family", HYBRIDS)
def test_a_new_model(family, tmp_path):
    """Mixers begin as transformers begins them, and the model has a finite loss in stock."""
    (tmp_path / "c.json").write_text(json.dumps(tiny.config_of(family)))
    init(str(tmp_path / "m"), config=str(tmp_path / "c.json"), tokenizer="none")
    weights = tiny.tensors(tmp_path / "m")
    by_end = {name.rpartition(".")[2]: tensor for name, tensor in weights.items()}
    if family == "qwen3-5":
        assert by_end["A_log"].exp().tolist() == pytest.approx([0.01, 5.34, 10.67, 16])
        assert weights["model.layers.0.linear_attn.norm.weight"].eq(1).all()
        assert weights["model.norm.weight"].eq(0).all()
    if family == "nemotron-h":
        assert by_end["A_log"].exp().tolist() == pytest.approx([1, 2, 3, 4])
        assert by_end["D"].eq(1).all() and by_end["dt_bias"].eq(1).all()
    assert tiny.logits(tmp_path / "m", torch.arange(20)[None]).isfinite().all()


def test_layers_begin_as_layers_of_their_kind(models, tmp_path):
    """A warm start copies layers by their place, which must be of one kind."""
    config = tiny.config_of("lfm2", num_hidden_layers=8, full_attn_idxs=[2, 3, 6, 7])
    (tmp_path / "c.json").write_text(json.dumps(config))
    init(str(tmp_path / "m"), config=str(tmp_path / "c.json"), warm=str(models("lfm2")))
    large, small = tiny.tensors(tmp_path / "m"), tiny.tensors(models("lfm2"))
    for i in (0, 1):
        name = "model.layers.{}.conv.conv.weight"
        assert large[name.format(i)].equal(small[name.format(0)])
    (tmp_path / "d.json").write_text(json.dumps({**config, "full_attn_idxs": [1, 2, 3]}))
    with pytest.raises(InputError, match=r"layer 1 of .* as layer 0 of --from, which is of"):
        init(str(tmp_path / "n"), config=str(tmp_path / "d.json"), warm=str(models("lfm2")))
    (tmp_path / "e.json").write_text(json.dumps({**config, "conv_L_cache": 4}))
    with pytest.raises(InputError, match="--from has kernel 3, the new model 4"):
        init(str(tmp_path / "n"), config=str(tmp_path / "e.json"), warm=str(models("lfm2")))


def test_a_formula_that_wants_heads_in_every_layer(models, calibration, tmp_path, monkeypatch):
    """That of a package, which knows no layers of several kinds."""
    record = methods.get("wanda-sp")
    naive = replace(record, score=lambda layer, options: {"ffn": layer.weights["o"].abs().sum(0)})
    monkeypatch.setattr(methods, "get", lambda name: naive)
    with pytest.raises(InputError, match="'wanda-sp' reads 'o', which layer 0 of this 'lfm2' has"):
        prune(str(models("lfm2")), str(tmp_path / "o"), method="wanda-sp", ratio=0.1,
              data=Data(calibration))  # fmt: skip


def test_of_each_kind_that_must_stay_the_best_stays():
    """In the order of scores, and of masks; elsewhere nothing changes."""
    arch, plain = Arch(tiny.config_of("lfm2")), Arch(tiny.config_of("llama"))
    order = [0, 2, 3, 1]  # the best first; 1 and 3 attend
    assert arch.first_of(order, 2) == [0, 3] and arch.first_of(order, 1) == [3]
    assert plain.first_of(order, 2) == [0, 2]
    log_alpha = torch.tensor([4.0, 1.0, 3.0, 2.0])
    for model, kept in ((arch, [0, 3]), (plain, [0, 2])):
        masks = gates.final_masks(log_alpha, 2, model, "layers")
        assert masks.nonzero()[:, 0].tolist() == kept
        assert masks[kept].equal(gates.final_masks(log_alpha, 4)[kept])
    sizes = Sizes(2, arch.hidden, arch.kv_heads, arch.ffn)
    for method in ("minitron-depth", "shortgpt"):
        scores = {"layers": log_alpha, "blocks.2": torch.tensor([3.0, 2.0, 1.0])}
        plan = allocate(methods.get(method), sizes, scores, arch)
        # without layers 2 and 3 layer 1 attends
        assert plan.layers == ((0, 1) if method == "minitron-depth" else (0, 3))
    lone = Arch(tiny.config_of("lfm2", full_attn_idxs=[3]))
    scores = {"blocks.2": torch.tensor([3.0, 2.0, 1.0])}
    assert allocate(methods.get("minitron-depth"), sizes, scores, lone).layers == (0, 3)


@pytest.mark.parametrize("name", [n for n in registry.names() if registry.get(n).kinds])
def test_kinds_have_modules_of_their_own(name):
    """Every module of a kind is in the table, and every layer is of a kind that is."""
    family, arch = registry.get(name), Arch(tiny.config_of(name))
    templates = family.templates(arch.config)
    parts = [template.removeprefix(family.layer) for template in templates]
    for modules in family.kinds.values():
        for module in modules:
            assert any(f"{part}.".startswith(f"{module}.") for part in parts), module
    assert all(arch.kinds)
    assert len(arch.sorts) > 1 or name == "qwen3-moe"  # whose layers usually are of one kind


def test_the_layers_that_a_number_of_parameters_leaves(models, tmp_path):
    """A model of at most so many parameters, whichever of its unequal layers go."""
    model = models("nemotron-h")
    most = Arch.read(model).total_params * 0.9
    source = tiny.tokens(tmp_path / "t.safetensors")
    made = prune(str(model), str(tmp_path / "o"), method="shortgpt", amount=Amount(params=most),
                 data=Data(source))  # fmt: skip
    assert made.results["params"] <= most
