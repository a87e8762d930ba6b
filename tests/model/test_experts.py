"""Mixtures of experts: statistics and masks of each expert, and what too few tokens do."""

import json
from contextlib import nullcontext
from math import prod

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import calibrate, prune, score
from prunecli.errors import InputError
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.families import registry
from prunecli.model.stock import InDouble
from prunecli.model.stream import LayerStream, put
from prunecli.settings import Amount, Compute, Data

MIXTURES = [name for name in registry.names() if registry.get(name).experts is not None]
CLOSE = 1e-4  # relative: float32 statistics, whose scores may change places with their like


@pytest.fixture(params=tiny.families(MIXTURES))
def mixture(request, models):
    return models(request.param)


def sparse(folder):
    """Return the layers that have experts."""
    return Arch.read(folder).with_units("experts")


def edit(folder, out, change):
    """Copy a model with its tensors changed in place."""
    tensors = tiny.tensors(folder)
    change(tensors)
    tiny.save(tensors, out, json.loads((folder / "config.json").read_text()))
    return out


def starve(tensors):
    """Route by one number a: (2a, -2a, a, -a, 0) never has the last among its two greatest."""
    for name, router in tensors.items():
        if name.endswith("mlp.gate.weight"):
            router[:] = router[0] * torch.tensor([2.0, -2.0, 1.0, -1.0, 0.0])[:, None]


def block_of(layer):
    """Return what transformers has around the experts of a layer."""
    names = ("mlp", "block_sparse_moe", "mixer", "feed_forward")
    return next(getattr(layer, name) for name in names if hasattr(layer, name))


def routed(folder, ids, layer):
    """Return in float64 what the stock class hands one layer's experts.

    All tokens [N, D], the experts chosen for each, and their weights [N, experts per token].
    """
    model, seen = tiny.stock(folder, torch.float64), []
    block = block_of(model.model.layers[layer])
    if weigh_inputs(folder):

        def hear(router, args, made):
            values, chosen = made[1].topk(router.top_k)
            seen.extend([args[0], chosen, values.sigmoid()])

        block.router.register_forward_hook(hear)
    else:
        block.experts.register_forward_pre_hook(lambda module, args: seen.extend(args))
    with torch.no_grad(), InDouble():
        model(ids.long())
    return seen


def weigh_inputs(folder):
    """Return whether weights multiply what experts read, not what they give."""
    return Arch.read(folder).family.name == "llama4"


def inputs_of_experts(folder, ids, layer=None):
    """Return in float64 the tokens [N, D] as every expert of a layer reads them, and its own."""
    layer = sparse(folder)[0] if layer is None else layer
    states, chosen, weights = routed(folder, ids, layer)
    owned = [(chosen == e).any(1) for e in range(len(expert_weights(folder, layer)))]
    if not weigh_inputs(folder):
        return [states] * len(owned), owned
    shares = [(weights * (chosen == e)).sum(1) for e in range(len(owned))]
    # who has too few of them is shown all, as those read them that they are sent to
    few = [own.sum() < states.shape[1] for own in owned]
    shares = [weights.sum(1) if one else own for one, own in zip(few, shares, strict=True)]
    return [states * share[:, None] for share in shares], owned


def shown(states, own):
    """Return the tokens whose statistics an expert has: its own, or all where these are too few."""
    return states[own] if own.sum() >= states.shape[1] else states


def as_walked(folder, pruned, out):
    """Return a model as its first experts see it in a walk: the layers before them are pruned."""
    before = tuple(Arch.read(folder).prefix(i) for i in range(sparse(folder)[0]))
    cut = {name: t for name, t in tiny.tensors(pruned).items() if name.startswith(before)}
    return edit(folder, out, lambda tensors: tensors.update(cut))


class Expert(list):
    """The matrices of an expert in float64: gate, up, down, or no gate; and biases of some."""

    def __init__(self, matrices, biases):
        super().__init__(matrices)
        self.biases = biases

    def inner(self, states):
        """Return what the last reads; with biases, by the formula of gpt-oss, without a gate, by
        that of Nemotron.
        """
        gate, up = states @ self[0].T, states @ self[-2].T
        if len(self) == 2:
            return up.relu() ** 2
        if not self.biases:
            return torch.nn.functional.silu(gate) * up
        gate, up = (gate + self.biases[0]).clamp(max=7), (up + self.biases[1]).clamp(-7, 7)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)

    def output(self, states):
        made = self.inner(states) @ self[-1].T
        return made + self.biases[-1] if self.biases else made


def expert_weights(folder, layer=None):
    """Return every expert of a layer."""
    layer = sparse(folder)[0] if layer is None else layer
    arch, stored = Checkpoint(str(folder)).arch, tiny.tensors(folder)
    names = arch.family.experts
    linears = [
        [f"{arch.prefix(layer)}{names.module}.{e}.{linear}" for linear in names.linears]
        for e in range(arch.experts)
    ]
    return [
        Expert(
            [stored[f"{name}.weight"].double() for name in own],
            [stored[f"{name}.bias"].double() for name in own] if names.biased else [],
        )
        for own in linears
    ]


def norms_of(states, expert):
    """Return the norms of what an expert's matrices read, of these tokens."""
    outer = states.norm(dim=0)
    return (*[outer] * (len(expert) - 1), expert.inner(states).norm(dim=0))


def check_wanda(before, after, states):
    """Assert that of each row the half of lowest scores went, by these tokens."""
    for dense, sparse, norm in zip(before, after, norms_of(states, before), strict=True):
        score, gone = dense.abs() * norm, sparse == 0
        assert gone.sum(1).eq(dense.shape[1] // 2).all()
        highest = score.masked_fill(~gone, 0).amax(1)
        lowest = score.masked_fill(gone, torch.inf).amin(1)
        assert (highest <= lowest * (1 + CLOSE)).all()


def test_wanda_sees_the_tokens_of_each_expert(mixture, calibration, tmp_path):
    """Masks of a first layer with experts, by the formula and the tokens that are sent there."""
    made = prune(
        str(mixture), str(tmp_path / "o"), method="wanda", ratio=0.5, data=Data(calibration)
    )
    assert made.results["ratio"] == pytest.approx(0.5, abs=0.01)
    ids = load_file(calibration.removesuffix(":ids"))["ids"]
    walked = as_walked(mixture, tmp_path / "o", tmp_path / "walked")
    states, owned = inputs_of_experts(walked, ids)
    for e, (before, after) in enumerate(
        zip(expert_weights(mixture), expert_weights(tmp_path / "o"), strict=True)
    ):
        check_wanda(before, after, shown(states[e], owned[e]))
    model = tiny.stock(tmp_path / "o")
    assert model.generate(torch.arange(4)[None], max_new_tokens=3).shape == (1, 7)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_expert_without_tokens_is_named_and_shown_all(method, calibration, tmp_path):
    folder = tiny.make(tmp_path / "in", "qwen3-moe", num_experts=5)
    model = edit(folder, tmp_path / "m", starve)
    told = tiny.Told()
    prune(str(model), str(tmp_path / "o"), method=method, ratio=0.5, data=Data(calibration),
          report=told)  # fmt: skip
    starved = [note for note in told.notes if "fewer tokens" in note]
    assert [note.split(":")[0] for note in starved] == [f"layer {i}" for i in range(4)]
    assert "1 of 5 experts" in starved[0] and "(4)" in starved[0]
    assert "those of all tokens" in starved[0]
    if method == "wanda":
        ids = load_file(calibration.removesuffix(":ids"))["ids"]
        states, owned = inputs_of_experts(model, ids)
        assert not owned[4].any()
        after = expert_weights(tmp_path / "o")
        for e, before in enumerate(expert_weights(model)):
            check_wanda(before, after[e], states[e] if e == 4 else states[e][owned[e]])


def test_statistics_in_a_file_are_those_of_experts(mixture, calibration, tmp_path):
    """What `calibrate` writes, `prune --stats` reads; also of an expert without tokens."""
    stats = tmp_path / "s.safetensors"
    calibrate(str(mixture), str(stats), methods=["wanda"], data=Data(calibration))
    ids = load_file(calibration.removesuffix(":ids"))["ids"]
    last = sparse(mixture)[-1]
    states, owned = inputs_of_experts(mixture, ids, layer=last)
    arch, written = Checkpoint(str(mixture)).arch, load_file(stats)
    for e, matrices in enumerate(expert_weights(mixture, last)):
        expected = norms_of(shown(states[e], owned[e]), matrices)
        for point, norm in zip(("gate", "down"), expected[-2:], strict=True):
            found = written[f"{arch.places(last, point)[e].name}.feature_norm"].double().sqrt()
            # a factor common to all features changes no mask
            assert torch.allclose(found / found.norm(), norm / norm.norm(), rtol=CLOSE)
    prune(str(mixture), str(tmp_path / "o"), method="wanda", ratio=0.5, stats=str(stats))
    assert not tiny.tensors(tmp_path / "o").keys() - arch.tensors().keys()


def test_statistics_of_starved_experts_leave_the_walk_as_it_is(calibration, tmp_path):
    """They cost a pass over the layer, whose output is that of the dense model all the same."""
    folder = tiny.make(tmp_path / "in", "qwen3-moe", num_experts=5)
    model = edit(folder, tmp_path / "m", starve)
    told = tiny.Told()
    calibrate(str(model), str(tmp_path / "s.safetensors"), methods=["wanda"],
              data=Data(calibration), report=told)  # fmt: skip
    assert sum("fewer tokens" in note for note in told.notes) == 4
    ids = load_file(calibration.removesuffix(":ids"))["ids"]
    states, owned = inputs_of_experts(model, ids, layer=3)
    found = load_file(tmp_path / "s.safetensors")
    for e in range(5):
        norm = (states[e] if e == 4 else states[e][owned[e]]).norm(dim=0)
        seen = found[f"model.layers.3.mlp.experts.{e}.gate_proj:in.feature_norm"].double().sqrt()
        assert torch.allclose(seen / seen.norm(), norm / norm.norm(), rtol=CLOSE)


@pytest.mark.parametrize("call", [calibrate, prune])
@pytest.mark.parametrize("method", ["flap", "minitron-width", "llm-pruner"])
def test_methods_of_one_ffn_are_refused_by_name(call, method, models, calibration, tmp_path):
    settings = {"methods": [method]} if call is calibrate else {"method": method, "ratio": 0.5}
    with pytest.raises(InputError, match=f"'{method}' does not support qwen3-moe: .* expert"):
        call(str(models("qwen3-moe")), str(tmp_path / "o.safetensors"), data=Data(calibration),
             **settings)  # fmt: skip
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts": 8}, "num_experts is 8, but the weights are of 4 experts"),
        ({"num_experts": 10**9}, "num_experts is 1000000000, expected an integer from 1 to 10000"),
        ({"num_experts_per_tok": 5}, "4 experts, and sends every token to 5"),
        ({"mlp_only_layers": [0]}, "unexpected tensor 'model.layers.0.mlp.experts.0"),
        ({"num_experts": 3}, "unexpected tensor 'model.layers.0.mlp.experts.3"),
    ],
)
def test_configs_of_other_experts_are_refused(change, words, models, tmp_path):
    folder = edit(models("qwen3-moe"), tmp_path / "m", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config.pop("num_local_experts", None)
    (folder / "config.json").write_text(json.dumps({**config, "num_experts": 4, **change}))
    with pytest.raises(InputError, match=words):
        Checkpoint(str(folder))


def test_experts_of_one_layer_are_not_those_of_many(models, tmp_path):
    """A few names of tensors must not stand for as many lists as two numbers make together."""
    folder = tmp_path / "m"
    folder.mkdir()
    names = [f"model.layers.{i}.x.weight" for i in range(2000)]
    names += [f"model.layers.0.mlp.experts.{e}.up_proj.weight" for e in range(2000)]
    save_file({name: torch.ones(1) for name in names}, folder / "model.safetensors")
    config = json.loads((models("qwen3-moe") / "config.json").read_text())
    config.pop("num_local_experts")
    config |= {"num_hidden_layers": 2000, "num_experts": 2000}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="num_experts is 2000, but the weights are of 1 experts"):
        Checkpoint(str(folder))


@pytest.mark.parametrize("shape", [[2000, 1, 1], [2000, 0, 1]])
def test_stacks_of_one_layer_are_not_those_of_many(shape, tmp_path):
    """Nor are there experts in a stack without numbers, of whatever length it says that it is."""
    layers = 1 if 0 not in shape else 2000
    tensors = {f"model.layers.{i}.x.weight": torch.ones(1) for i in range(2000)}
    for i in range(layers):
        tensors[f"model.layers.{i}.mlp.experts.down_proj"] = torch.ones(shape)
    save_file(tensors, tmp_path / "model.safetensors")
    config = {**tiny.config_of("gpt-oss"), "num_hidden_layers": 2000, "num_local_experts": 2000}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = r"num_local_experts is 2000, but the weights are of [01] experts"
    with pytest.raises(InputError, match=found):
        Checkpoint(str(tmp_path))


def test_active_parameters():
    """Qwen3-30B-A3B: 30.5 billion parameters, of which a token meets 3.3."""
    arch = Arch(
        {
            "model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048,
            "intermediate_size": 6144, "moe_intermediate_size": 768, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128,
            "num_experts_per_tok": 8,
        }
    )  # fmt: skip
    assert arch.total_params == 30_532_122_624
    left_out = 48 * 120 * 3 * 2048 * 768
    assert arch.active_params == arch.total_params - left_out == 3_353_032_704
    per_token = arch.active_params - 151936 * 2048  # the embedding is looked up
    assert arch.flops(1) == 2 * per_token + 4 * 48 * 32 * 128
    half = arch.active_params - 151936 * 2048 - (arch.params(active=True)["ffn"]
                                                 + arch.params()["attention"]) // 2  # fmt: skip
    assert arch.flops(1, 0.5) == 2 * half + 4 * 48 * 32 * 128
    assert arch.sizes["experts"] == 128 and arch.sizes["experts_per_token"] == 8


def test_experts_that_lie_together(models, calibration, tmp_path):
    """Files on the hub have a tensor of all experts of Qwen 3.5, which transformers saves apart."""
    model, record = models("qwen3-5-moe"), tiny.config_of("qwen3-5-moe")
    stored, together = tiny.tensors(model), tmp_path / "m"
    together.mkdir()
    for i in range(4):
        name = f"model.layers.{i}.mlp.experts.{{}}"
        apart = [
            [stored.pop(f"{name.format(e)}.{part}_proj.weight") for part in ("gate", "up", "down")]
            for e in range(4)
        ]
        stored[name.format("gate_up_proj")] = torch.stack([torch.cat(own[:2]) for own in apart])
        stored[name.format("down_proj")] = torch.stack([own[2] for own in apart])
    save_file(stored, together / "model.safetensors", metadata={"format": "pt"})
    (together / "config.json").write_text(json.dumps(record))
    ids = torch.arange(40)[None]
    assert tiny.logits(together, ids).equal(tiny.logits(model, ids))
    for folder in (model, together):
        prune(str(folder), str(tmp_path / f"{folder.name}-o"), method="reap", experts=3,
              data=Data(calibration))  # fmt: skip
    assert tiny.same(tmp_path / "m-o", tmp_path / f"{model.name}-o")


def test_experts_are_written_as_the_class_of_gpt_oss_has_them(models, calibration, tmp_path):
    """Turned, gate and up by turns, in one file or in several; what is kept is the parent's."""
    model = tiny.make(tmp_path / "m", "gpt-oss", shard="60KB", dtype=torch.bfloat16)
    prune(str(model), str(tmp_path / "o"), method="expert-random", experts=3,
          keep=str(tmp_path / "kept"))  # fmt: skip
    index = json.loads((tmp_path / "o" / "model.safetensors.index.json").read_text())["weight_map"]
    kept = json.loads((tmp_path / "kept" / "plan.json").read_text())["results"]["keep"]["experts"]

    def tensor(folder, name):
        weights = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        return load_file(folder / weights[name])[name]

    for i, own in enumerate(kept):
        for part in ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"):
            name = f"model.layers.{i}.mlp.experts.{part}"
            assert tensor(tmp_path / "o", name).equal(tensor(model, name)[list(own)])
    assert len({*index.values()}) > 4 and not any(".experts.0." in name for name in index)


def test_zeros_in_experts_that_are_stored_turned(models, calibration, tmp_path):
    """Of every four inputs of a row two stay, where files have matrices as [in, out]."""
    prune(str(models("gpt-oss")), str(tmp_path / "o"), method="sparsegpt", data=Data(calibration),
          amount=Amount(sparsity="2:4"))  # fmt: skip
    down = load_file(tmp_path / "o" / "model.safetensors")["model.layers.0.mlp.experts.down_proj"]
    kept = (down.transpose(1, 2).reshape(-1, 4) != 0).sum(1)  # [E, F, D] -> groups of F
    assert kept.eq(2).all()


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("experts.0.down_proj.weight", torch.ones(48, 80), "twice: .* '.*experts.down_proj'"),
        ("experts.down_proj", torch.ones(4, 48, 80), r"has shape \[4, 48, 80\], expected \[4, 80"),
        ("experts.down_proj", torch.ones(3, 80, 48), "num_local_experts is 4, but .* of 3 experts"),
        ("experts.down_proj_blocks", torch.ones(4), "quantised to MXFP4; load it with .* Mxfp4"),
    ],
)
def test_stacks_that_are_refused(name, tensor, words, models, tmp_path):
    model = models("gpt-oss")
    stored = load_file(model / "model.safetensors")
    if "3 experts" in words:
        stored = {n: t[:3] if ".experts." in n else t for n, t in stored.items()}
    stored[f"model.layers.0.mlp.{name}"] = tensor
    save_file({n: t.contiguous() for n, t in stored.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(InputError, match=words):
        Checkpoint(str(tmp_path))


def test_experts_apart_are_refused_where_the_class_has_them_together(models, tmp_path):
    model = models("gpt-oss")
    save_file(tiny.tensors(model), tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"unexpected tensor '.*experts\.0\.gate_proj"):
        Checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        (
            {
                "model_type": "gpt_oss", "num_hidden_layers": 24, "hidden_size": 2880,
                "intermediate_size": 2880, "num_attention_heads": 64, "vocab_size": 201088,
                "num_local_experts": 32,
            },
            20_914_757_184, 3.61,
        ),
        (
            {
                "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168,
                "intermediate_size": 18432, "num_attention_heads": 128, "vocab_size": 129280,
            },
            671_026_419_200, 37,
        ),
        (
            {
                "model_type": "nemotron_h", "num_hidden_layers": 52, "hidden_size": 2688,
                "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
                "intermediate_size": 1856, "moe_intermediate_size": 1856, "vocab_size": 131072,
                "moe_shared_expert_intermediate_size": 3712, "num_attention_heads": 32,
                "num_key_value_heads": 2, "n_routed_experts": 128, "num_experts_per_tok": 6,
                "mamba_num_heads": 64,
            },
            31_577_940_288, 3.2,
        ),
    ],
)  # fmt: skip
def test_parameters_of_large_mixtures(config, total, active):
    """gpt-oss 20B, DeepSeek V3, Nemotron 3 Nano: in billions as their makers count them.

    They leave the embedding out of those that are active.
    """
    arch = Arch(config)
    assert arch.total_params == total
    inside = arch.active_params - arch.vocab * arch.hidden
    assert inside / 1e9 == pytest.approx(active, rel=0.02)


def test_latent_attention_is_counted():
    """DeepSeek V3 keeps 576 numbers of a token in each layer; scores take 192, values 128."""
    arch = Arch(
        {
            "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168,
            "intermediate_size": 18432, "num_attention_heads": 128, "vocab_size": 129280,
        }
    )  # fmt: skip
    assert arch.kv_bytes_per_token(2) == 61 * 2 * (512 + 64)
    squares = arch.flops(20) - 2 * arch.flops(10)
    assert squares == 2 * 128 * (192 + 128) * 61 * (20**2 - 2 * 10**2)
    squeezed = 1536 * 7168 + 576 * 7168
    unfolded = 128 * (192 * 1536 + 256 * 512 + 128 * 7168)
    assert arch.params()["attention"] == 61 * (squeezed + unfolded)
    half = arch.child(kv_heads=64, heads=64)
    assert half.params()["attention"] == 61 * (squeezed + unfolded // 2)
    assert (half.config["num_attention_heads"], half.config["v_head_dim"]) == (64, 128)
    assert arch.heads_params(7168, 64, 64) == unfolded // 2


def test_layers_go_with_their_experts(mixture, calibration, tmp_path):
    made = prune(str(mixture), str(tmp_path / "o"), method="shortgpt", amount=Amount(layers=3),
                 data=Data(calibration))  # fmt: skip
    arch = Checkpoint(str(tmp_path / "o")).arch
    assert (arch.layers, arch.experts) == (3, 4)
    routers = [t for t in arch.tensors().values() if t.axes[0] == "experts"]
    counted = sum(prod(tensor.shape) for tensor in routers)
    assert made.results["params_by_group"]["router"] >= counted
    assert counted >= sum(len(tensor.axes) == 2 for tensor in routers) * 4 * 48 > 0


# -- experts as an axis ----------------------------------------------------------------------------


def naive_scores(folder, ids, layer):
    """Return, token by token in float64, each expert's mean of weight times norm, and tokens."""
    experts = expert_weights(folder, layer)
    added, tokens = [0.0] * len(experts), [0] * len(experts)
    for x, chosen, weights in zip(*routed(folder, ids, layer), strict=True):
        for e, weight in zip(chosen.tolist(), weights, strict=True):
            read, share = (weight * x, 1) if weigh_inputs(folder) else (x, weight)
            added[e] += float(share * experts[e].output(read).norm())
            tokens[e] += 1
    return [total / max(1, n) for total, n in zip(added, tokens, strict=True)], tokens


SCORES = {"reap": 0, "expert-frequency": 1}


@pytest.mark.parametrize("method", SCORES)
def test_scores_of_experts_are_those_of_a_naive_loop(method, mixture, calibration, tmp_path):
    """Of a whole stock model; then those that stay are the best of each layer."""
    path = tmp_path / "s.safetensors"
    score(str(mixture), str(path), method=method, data=Data(calibration))
    found, ids = load_file(path), load_file(calibration.removesuffix(":ids"))["ids"]
    prune(str(mixture), str(tmp_path / "o"), method=method, experts=3, data=Data(calibration),
          keep=str(tmp_path / "kept"))  # fmt: skip
    kept = json.loads((tmp_path / "kept" / "plan.json").read_text())["results"]["keep"]["experts"]
    for i in sparse(mixture):
        naive = naive_scores(mixture, ids, i)[SCORES[method]]
        assert found[f"experts.{i}"].tolist() == pytest.approx(naive, rel=CLOSE)
        order = sorted(range(4), key=lambda e: naive[e])
        lowest, next_lowest = (naive[e] for e in order[:2])
        gone = ({0, 1, 2, 3} - {*kept[i]}).pop()
        assert gone == order[0] or lowest == pytest.approx(next_lowest, rel=CLOSE)


@pytest.mark.parametrize("name", tiny.families(MIXTURES))
def test_experts_are_cut_as_if_never_chosen(name, models, tmp_path):
    """The child computes the parent whose router gives the removed ones no weight at all."""
    model, keep = models(name), [[0, 1, 3], [1, 2, 3], [0, 2, 3], [0, 1, 2]]
    keep = [own if i in sparse(model) else [] for i, own in enumerate(keep)]
    (tmp_path / "plan.json").write_text(json.dumps({"keep": {"experts": keep}}))
    made = prune(str(model), str(tmp_path / "o"), plan=str(tmp_path / "plan.json"))
    assert made.results["kept"]["experts"] == 3
    assert made.results["sizes"]["experts"] == 3
    child, parent = tiny.stock(tmp_path / "o", torch.float64), tiny.stock(model, torch.float64)
    for i, layer in ((i, parent.model.layers[i]) for i in sparse(model)):
        gone = ({0, 1, 2, 3} - {*keep[i]}).pop()
        mask_router(router_of(layer), gone)
    ids = torch.arange(40)[None] % 259
    with torch.no_grad(), InDouble():
        assert torch.allclose(child(ids).logits, parent(ids).logits, atol=tiny.EXACT, rtol=0)
    loaded = tiny.stock(tmp_path / "o")
    assert loaded.generate(torch.arange(4)[None], max_new_tokens=3).shape == (1, 7)


GROUPED = {"n_routed_experts": 8, "n_group": 2, "topk_group": 1}


@pytest.mark.parametrize("family", ["deepseek-v3", "glm4-moe", "glm4-moe-lite"])
def test_experts_in_groups_go_from_each_alike(family, calibration, tmp_path):
    """As many of every group, the best of each; the child is the parent without the others."""
    model = tiny.make(tmp_path / "m", family, **GROUPED)
    prune(str(model), str(tmp_path / "o"), method="reap", experts=6, data=Data(calibration),
          keep=str(tmp_path / "kept"))  # fmt: skip
    kept = json.loads((tmp_path / "kept" / "plan.json").read_text())["results"]["keep"]["experts"]
    child, parent = tiny.stock(tmp_path / "o", torch.float64), tiny.stock(model, torch.float64)
    for i in sparse(model):
        scores = naive_scores(model, load_file(calibration.removesuffix(":ids"))["ids"], i)[0]
        for group in (range(4), range(4, 8)):
            (gone,) = {*group} - {*kept[i]}
            assert scores[gone] == pytest.approx(min(scores[e] for e in group), rel=CLOSE)
            mask_router(router_of(parent.model.layers[i]), gone)
    ids = torch.arange(40)[None] % 259
    with torch.no_grad(), InDouble():
        assert torch.allclose(child(ids).logits, parent(ids).logits, atol=tiny.EXACT, rtol=0)
    made = prune(str(model), str(tmp_path / "r"), method="expert-random", ratio=0.15)
    assert made.results["sizes"]["experts"] == 6


@pytest.mark.parametrize("count", [2, 5])
def test_groups_that_would_not_be_equal_are_refused(count, tmp_path):
    model = tiny.make(tmp_path / "m", "deepseek-v3", **GROUPED)
    words = "sent to 2 out of 1 of 2 equal groups; keep a multiple of 2, 4 at least"
    with pytest.raises(InputError, match=f"--experts {count}: every token is {words}"):
        prune(str(model), str(tmp_path / "o"), method="expert-random", experts=count)
    for keep, told in (([*range(count)], words), ([0, 1, 2, 4], "one group than of another")):
        (tmp_path / "plan.json").write_text(json.dumps({"keep": {"experts": [[], *[keep] * 3]}}))
        with pytest.raises(InputError, match=told):
            prune(str(model), str(tmp_path / "o"), plan=str(tmp_path / "plan.json"))
    assert not (tmp_path / "o").exists()


def router_of(layer):
    block = block_of(layer)
    return block.router if hasattr(block, "router") else block.gate


def mask_router(gate, gone):
    """Let a router know one expert less, by the formulas of the classes."""
    if hasattr(gate, "e_score_correction_bias"):
        gate.e_score_correction_bias[gone] = -torch.inf
        return
    statics = getattr(gate, "moe_statics", None)  # of ERNIE, where these only choose
    choosing = 0 if statics is None else statics.e_score_correction_bias[0].clone()
    if statics is not None:
        choosing[gone] = -torch.inf

    def of_llama4(states):
        logits = states @ gate.weight.T
        logits[:, gone] = -torch.inf
        values, chosen = torch.topk(logits, gate.top_k)
        return torch.zeros_like(logits).scatter(1, chosen, values.sigmoid()), logits

    def forward(states):
        states = states.reshape(-1, states.shape[-1])
        # some classes hold it in float32
        logits = states @ gate.weight.T.to(states.dtype) + getattr(gate, "bias", 0)
        logits[:, gone] = -torch.inf
        probabilities = torch.softmax(logits, -1)
        chosen = torch.topk(probabilities + choosing, gate.top_k).indices
        values = probabilities.gather(-1, chosen)
        if getattr(gate, "norm_topk_prob", True):  # Mixtral always does, gpt-oss by its softmax
            values = values / values.sum(-1, keepdim=True)
        return logits, values, chosen

    gate.forward = of_llama4 if type(gate).__name__ == "Llama4Router" else forward


def test_a_ratio_of_experts(models, calibration, tmp_path):
    """Counts are the nearest, down to as many as a token is sent to; sidecars say what stays."""
    model = models("qwen3-moe")
    attention, expert = 48 * 8 * (6 + 2 + 2 + 6), 3 * 48 * 80
    for ratio, stay in ((0.2, 3), (0.4, 2)):
        made = prune(str(model), str(tmp_path / f"{stay}"), method="expert-random", ratio=ratio)
        assert made.results["sizes"]["experts"] == stay
        whole = attention + 4 * expert
        assert made.results["ratio"] == pytest.approx((4 - stay) * expert / whole)
    with pytest.raises(InputError, match=r"nearest reachable ratio is 0\.4"):
        prune(str(model), str(tmp_path / "x"), method="expert-random", ratio=0.8)
    params = Arch.read(model).total_params
    made = prune(str(model), str(tmp_path / "p"), method="expert-random", params=params * 0.9)
    assert made.results["sizes"]["experts"] == 3
    again = prune(str(model), str(tmp_path / "q"), method="expert-random", ratio=0.2,
                  options={"draw": 1})  # fmt: skip
    assert again.results["sizes"]["experts"] == 3
    assert not tiny.same(tmp_path / "q", tmp_path / "3")


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("qwen3-moe", {"experts": 1}, "--experts 1: every token is sent to 2; keep 2 at least"),
        ("qwen3-moe", {"experts": 4}, "--experts 4: the model has this size already"),
        ("qwen3-moe", {"experts": 5}, "--experts 5: the model has 4"),
        ("llama", {"ratio": 0.3}, "'expert-random' does not support llama: .* have no experts"),
    ],
)
def test_amounts_of_experts_that_are_refused(family, settings, words, models, tmp_path):
    with pytest.raises(InputError, match=words):
        prune(str(models(family)), str(tmp_path / "o"), method="expert-random", **settings)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("family", "keep", "words"),
    [
        ("mixtral", [[0, 1], [0, 1], [0, 1], [0, 1, 2]], "2 experts of one layer and 3 of another"),
        ("mixtral", [[0]] * 4, "keeps 1 experts of a layer, and every token is sent to 2"),
        ("mixtral", [[0, 4]] * 4, "reach 4, the model has 4"),
        ("llama", [[0]] * 4, "keeps experts of layer 0, which has none"),
    ],
)
def test_plans_of_experts_that_are_refused(family, keep, words, models, tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"keep": {"experts": keep}}))
    with pytest.raises(InputError, match=words):
        prune(str(models(family)), str(tmp_path / "o"), plan=str(tmp_path / "plan.json"))


# -- training, and what is counted -----------------------------------------------------------------


def gradients(model, ids, recompute, double):
    """Return the gradients of the mean loss that `train` differentiates."""
    from prunecli.training.distributed import Ranks
    from prunecli.training.objective import build

    ranks = Ranks(0, 1, torch.device("cpu"), None)
    dtype = torch.float64 if double else torch.float32
    objective = build(Checkpoint(str(model)), None, ranks, dtype=dtype, recompute=recompute)
    objective = objective.double() if double else objective
    with InDouble() if double else nullcontext():
        (objective(ids)[0] / ids[:, 1:].numel()).backward()
    return {key: parameter.grad for key, parameter in objective.model.named_parameters()}


@pytest.fixture(scope="module")
def rows():
    return torch.randint(259, (3, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name",
    tiny.families(n for n in MIXTURES if "router_aux_loss_coef" in registry.get(n).defaults),
)
def test_gradients_are_those_of_transformers_with_the_routers_loss(name, rows, tmp_path):
    """One batch through the whole stock model under `output_router_logits`, in float64."""
    model = tiny.make(tmp_path / "m", name, router_aux_loss_coef=0.5)
    whole = tiny.stock(model, torch.float64).train()
    with InDouble():
        whole(rows, labels=rows, output_router_logits=True).loss.backward()
    found = gradients(model, rows, recompute=False, double=True)
    arch = Checkpoint(str(model)).arch
    for i, router in zip(sparse(model), arch.routers, strict=True):
        gradient = router_of(whole.model.layers[i]).weight.grad
        # beside the largest: what both hold in float32, as rotary frequencies, is rounded
        assert (found[f"{router}.weight"] - gradient).abs().max() < 1e-6 * gradient.abs().max()
        matrices = [found[f"{arch.prefix(i)}{m}.weight"] for m in arch.modules("down", i)]
        down = torch.stack(matrices[:4])  # not that of an expert that all tokens take
        stacked = block_of(whole.model.layers[i]).experts.down_proj.grad
        stacked = stacked.mT if arch.family.experts.transposed else stacked
        assert (down - stacked).abs().max() < 1e-6 * stacked.abs().max()


def test_recomputed_activations_are_heard_once(rows, tmp_path):
    model = tiny.make(tmp_path / "m", "mixtral", router_aux_loss_coef=0.5)
    kept, again = (gradients(model, rows, recompute, double=False) for recompute in (False, True))
    assert all(torch.allclose(kept[name], again[name], rtol=1e-5, atol=1e-7) for name in kept)


def test_experts_are_held_as_they_are_stored(tmp_path):
    """In a walk, a matrix at a time is cast to the compute type; the router is, once."""
    model = Checkpoint(str(tiny.make(tmp_path / "m", "mixtral", dtype=torch.bfloat16)))
    layer = LayerStream(model, Compute(dtype="float32")).layer(0)
    held = {name: weight.dtype for name, weight in layer.named_parameters()}
    experts = [name for name in held if ".experts." in name]
    assert len(experts) == 12 and all(held[name] == torch.bfloat16 for name in experts)
    assert held["block_sparse_moe.gate.weight"] == torch.float32


def test_a_layer_that_is_edited_takes_no_memory_where_that_is_asked(mixture, calibration, tmp_path):
    """Pruned weights are then those of a file as dense ones are, and OUT is the same."""
    weight = torch.randn(2, 3)
    for buffer, in_file in (("ram", False), ("disk", True)):
        put(linear := torch.nn.Linear(3, 2), weight, Compute("cpu", "float32", buffer))
        assert linear.weight.equal(weight)
        assert (linear.weight.untyped_storage().filename is not None) == in_file
        prune(str(mixture), str(tmp_path / buffer), method="wanda", ratio=0.5,
              data=Data(calibration), buffer=buffer)  # fmt: skip
    assert tiny.same(tmp_path / "ram", tmp_path / "disk")
