"""Every family against stock transformers: coverage, streamed losses, and surgery's parity."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

import tiny
from prunecli import evaluate, prune
from prunecli.errors import InputError
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.families import registry
from prunecli.model.families._base import CONFIG_KEYS
from prunecli.report import Report
from prunecli.settings import Amount, Data

NO_EPS = 1e-30  # what a norm adds to a mean square, which must not depend on how many it is over
IDS = torch.randint(259, (2, 32), generator=torch.Generator().manual_seed(5))


def loss(logits, ids):
    return float(
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    )


def edited(folder, out, edit, config=None, dtype=torch.float64):
    """Copy a one-file model with its tensors (and its config) changed."""
    tensors = {name: tensor.to(dtype) for name, tensor in tiny.tensors(folder).items()}
    edit(tensors)
    record = json.loads((folder / "config.json").read_text())
    tiny.save(tensors, out, {**record, **(config or {})})
    return out


def listed(record):
    """Return whether models of the tests have lists that no rule makes."""
    return bool({*record.layer_lists} & {*record.test_config})


def norm_spans_heads(family):
    return Arch(tiny.config_of(family)).norm_spans_heads


def silence_heads(tensors, family, i, gone):
    """Zero what heads of one layer give; `gone` are query heads of 6, of 2 KV groups or of 6.

    Where a norm runs over all heads (OLMo), the removed ones must be zero before it too, and its
    gains bring the rest to the scale of a norm over fewer: what is cut is not the parent with these
    heads silenced, but this.
    """
    layer, arch = Arch(tiny.config_of(family)).prefix(i), Arch(tiny.config_of(family))
    attention = f"{layer}self_attn."
    rows = [8 * head + j for head in gone for j in range(8)]
    tensors[f"{layer}{arch.module('o')}.weight"][:, rows] = 0
    if norm_spans_heads(family):
        silence_rows(tensors, attention + "q_proj", rows)
        tensors[attention + "q_norm.weight"] *= (1 - len(gone) / 6) ** 0.5
        for group in {
            head // 3 for head in gone if {3 * (head // 3) + j for j in range(3)} <= set(gone)
        }:
            silence_rows(tensors, attention + "k_proj", slice(8 * group, 8 * group + 8))
            tensors[attention + "k_norm.weight"] *= 0.5**0.5


def silence_rows(tensors, linear, rows):
    """Zero rows of a linear, and of its bias if it has one."""
    for name in {f"{linear}.weight", f"{linear}.bias"} & {*tensors}:
        tensors[name][rows] = 0


def of_layers(arch, axis, lists):
    """Return a list for every layer: an empty one where it has no units of an axis."""
    return [own if arch.has(axis, i) else [] for i, own in enumerate(lists)]


def run_plan(model, out, tmp_path, **keep):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"keep": keep}))
    return prune(str(model), str(out), plan=str(plan))


def without_eps(folder, family, **overrides):
    """Return a model whose norms add nothing to a mean square."""
    eps = {registry.get(family).key("rms_norm_eps"): NO_EPS}
    return tiny.make(folder, family, **eps, **overrides)


def refused(family, axis, model, out, tmp_path, **keep):
    """Return whether a family cannot lose an axis; then, that it says so and writes nothing."""
    why = registry.get(family).fixed.get(axis)
    if why is not None:
        with pytest.raises(InputError, match=f"'{family}' cannot lose .*: {re.escape(why)}"):
            run_plan(model, out, tmp_path, **keep)
        assert not out.exists()
    return why is not None


def test_defaults_are_those_of_transformers(family):
    """What a key means when config.json lacks it, biases' flags included."""
    from transformers import AutoConfig

    record = registry.get(family)
    config = AutoConfig.for_model(record.model_types[0])
    config.allow_global_per_layer_attribute_access = True  # where kinds of layers have others
    assert {key: getattr(config, key) for key in record.defaults} == dict(record.defaults)
    flags = {flag: record.flag({}, flag) for flag in record.biases}
    assert {flag: bool(getattr(config, flag)) for flag in flags} == flags
    heads = config.num_attention_heads
    usual_axes = ("kv_heads", "head_dim")
    usual = {"num_key_value_heads": heads, "head_dim": config.hidden_size // heads}
    for key, size in usual.items():
        assert (getattr(config, key, None) or size) == record.defaults.get(key, size)
    assert all(hasattr(config, record.key(axis)) for axis in CONFIG_KEYS if axis not in usual_axes)


def test_every_tensor_is_described(family, models):
    checkpoint = Checkpoint(str(models(family)))
    described = {name: tensor.shape for name, tensor in checkpoint.arch.tensors().items()}
    assert described == {name: spec.shape for name, spec in checkpoint.specs.items()}


@pytest.mark.parametrize("tied", [False, True])
def test_streamed_losses_are_those_of_transformers(family, tied, tmp_path):
    model = tiny.make(tmp_path / "m", family, tie_word_embeddings=tied)
    source = tiny.tokens(tmp_path / "t.safetensors", rows=5)
    ids = load_file(tmp_path / "t.safetensors")["ids"].long()
    found = evaluate(str(model), data=[Data(source)]).results
    assert found["tokens"] == 5 * 31
    assert found["loss"] == pytest.approx(loss(tiny.logits(model, ids), ids), rel=1e-5)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5000.0},
        {
            "rope_theta": 5000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ],
)
def test_old_rope_settings_survive_a_change_of_container(llama, tmp_path, rope):
    """Heads that do not divide hidden: a Llama goes into a Mistral, with biases a Seed-OSS."""
    model = tiny.make(tmp_path / "wide", "llama", num_attention_heads=12, num_key_value_heads=6)
    config = json.loads((model / "config.json").read_text())
    config.pop("rope_parameters")
    (model / "config.json").write_text(json.dumps({**config, **rope}))
    kept = [[0, 1, 2, 3, 5]] * 4
    made = run_plan(model, tmp_path / "out", tmp_path, kv_heads=kept)
    assert made.results["container"] == "mistral"

    def silence(tensors):
        for i in range(4):
            tensors[f"model.layers.{i}.self_attn.o_proj.weight"][:, 4 * 16 : 5 * 16] = 0

    parent = edited(model, tmp_path / "silent", silence)
    assert tiny.computes_as(tmp_path / "out", parent)

    source = tiny.tokens(tmp_path / "t.safetensors")
    made = prune(
        str(model),
        str(tmp_path / "biased"),
        method="flap",
        amount=Amount(heads=10, ffn=60),
        data=Data(source),
    )
    assert made.results["container"] == "seed_oss"
    plain = prune(
        str(model),
        str(tmp_path / "plain"),
        method="flap",
        amount=Amount(heads=10, ffn=60),
        options={"bias": "drop"},
        data=Data(source),
    )
    assert plain.results["container"] == "mistral"
    unbiased = edited(
        tmp_path / "biased",
        tmp_path / "unbiased",
        lambda tensors: [t.zero_() for name, t in tensors.items() if name.endswith(".bias")],
    )
    assert tiny.computes_as(unbiased, tmp_path / "plain")


@pytest.mark.parametrize("family", tiny.families())
def test_ffn_channels_are_cut_as_if_zero(family, models, tmp_path):
    keep = [sorted({(7 * j + i) % 80 for j in range(50)}) for i in range(4)]
    width = min(map(len, keep))
    arch = Arch(tiny.config_of(family))
    keep = of_layers(arch, "ffn", [channels[:width] for channels in keep])
    if refused(family, "ffn", models(family), tmp_path / "out", tmp_path, ffn=keep):
        return
    run_plan(models(family), tmp_path / "out", tmp_path, ffn=keep)

    def silence(tensors):
        for i, channels in ((i, keep[i]) for i in arch.with_units("ffn")):
            gone = [j for j in range(arch.size("ffn", i)) if j not in channels]
            tensors[f"{arch.prefix(i)}{arch.module('down')}.weight"][:, gone] = 0

    parent = edited(models(family), tmp_path / "silent", silence)
    assert tiny.computes_as(tmp_path / "out", parent)


@pytest.mark.parametrize("family", tiny.families())
def test_kv_groups_are_cut_as_if_zero(family, tmp_path):
    model, arch = without_eps(tmp_path / "m", family), Arch(tiny.config_of(family))
    keep = of_layers(arch, "kv_heads", [[0], [1], [1], [0]])
    if refused(family, "heads", model, tmp_path / "out", tmp_path, kv_heads=keep):
        return
    run_plan(model, tmp_path / "out", tmp_path, kv_heads=keep)

    def silence(tensors):
        for i, (group,) in ((i, keep[i]) for i in arch.with_units("heads")):
            gone = [head for head in range(6) if head // arch.group != group]
            silence_heads(tensors, family, i, gone)

    parent = edited(model, tmp_path / "silent", silence)
    assert tiny.computes_as(tmp_path / "out", parent)


@pytest.mark.parametrize("family", tiny.families())
def test_query_heads_are_cut_within_their_groups(family, tmp_path):
    model, arch = without_eps(tmp_path / "m", family), Arch(tiny.config_of(family))
    keep = of_layers(arch, "heads", [[0, 2, 3, 5]] * 4)
    # without groups, heads go with their keys
    groups = {"kv_heads": keep} if Arch.read(model).group == 1 else {}
    if refused(family, "heads", model, tmp_path / "out", tmp_path, heads=keep, **groups):
        return
    run_plan(model, tmp_path / "out", tmp_path, heads=keep, **groups)

    def silence(tensors):
        for i in arch.with_units("heads"):
            silence_heads(tensors, family, i, [1, 4])

    parent = edited(model, tmp_path / "silent", silence)
    assert tiny.computes_as(tmp_path / "out", parent)


@pytest.mark.parametrize("family", tiny.families())
def test_layers_are_cut_as_if_they_added_nothing(family, models, tmp_path):
    arch = Arch(tiny.config_of(family))
    made = run_plan(models(family), tmp_path / "out", tmp_path, layers=[0, 3])
    assert made.results["removed_layers"] == [1, 2]

    def silence(tensors):
        for name, tensor in arch.tensors().items():
            if tensor.layer in (1, 2) and arch.is_output(tensor):
                tensors[name].zero_()

    parent = edited(models(family), tmp_path / "silent", silence)
    assert tiny.computes_as(tmp_path / "out", parent)


@pytest.mark.parametrize("family", tiny.families())
@pytest.mark.parametrize("tied", [False, True])
def test_hidden_channels_are_cut_as_if_zero(family, tied, tmp_path):
    """A norm over fewer channels is exact once the parent's gains are scaled by sqrt(d / d').

    A quarter stays, so that embeddings times sqrt(hidden) are halved, which rounds nothing.
    """
    model = without_eps(tmp_path / "m", family, tie_word_embeddings=tied)
    offset, arch = registry.get(family).norm_weight_offset, Arch.read(model)
    keep = [j for j in range(48) if j % 8 < 2]  # 12 channels, which the 6 heads divide
    if refused(family, "hidden", model, tmp_path / "out", tmp_path, hidden=keep):
        return
    run_plan(model, tmp_path / "out", tmp_path, hidden=keep)
    gone = [j for j in range(48) if j not in keep]

    def silence(tensors):
        for name, tensor in tensors.items():
            if name == f"{arch.family.embedding}.weight":
                tensor[:, gone] = 0
            elif name not in arch.tensors():
                continue  # a head that is stored although it is tied
            elif arch.is_output(arch.tensors()[name]):
                tensor[gone] = 0
            elif arch.tensors()[name].axes == ("hidden",):
                tensor += offset
                tensor *= (len(keep) / 48) ** 0.5
                tensor -= offset

    parent = edited(model, tmp_path / "silent", silence)
    assert tiny.computes_as(tmp_path / "out", parent)


def test_smollm2_keeps_its_own_container():
    arch = Arch(
        {
            "model_type": "llama",
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
        }
    )
    assert arch.total_params == 134_515_008
    child = arch.child(kv_heads=2, ffn=700, biased=True)
    assert (child.heads, child.kv_heads, child.config["model_type"]) == (6, 2, "llama")


@pytest.mark.parametrize(
    "name",
    tiny.families(
        name
        for name in registry.names()
        if any(registry.get(name).layer_lists.values()) and not listed(registry.get(name))
    ),
)
def test_lists_that_config_json_leaves_out_are_thinned_too(name, tmp_path):
    """What transformers fills in depends on the layer's number, which pruning changes."""
    record = registry.get(name)
    model = tiny.make(tmp_path / "m", name, sliding_window=4)
    told = {**record.test_config, "sliding_window": 4}
    short = edited(model, tmp_path / "short", lambda tensors: None, told, torch.float32)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in record.layer_lists})
    )
    assert tiny.logits(short, IDS).equal(tiny.logits(model, IDS))
    run_plan(model, tmp_path / "whole", tmp_path, layers=[1, 2])
    run_plan(short, tmp_path / "out", tmp_path, layers=[1, 2])
    assert tiny.logits(tmp_path / "out", IDS).equal(tiny.logits(tmp_path / "whole", IDS))
    lists = json.loads((tmp_path / "out" / "config.json").read_text())
    assert all(len(lists[key]) == 2 for key in record.layer_lists)


def test_windows_in_letters(tmp_path):
    """EXAONE 4's config.json says LLLG, of which transformers makes no list of layers."""
    pattern = {"sliding_window": 4, "sliding_window_pattern": "LGL"}
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = tiny.make(tmp_path / "m", "exaone4", layer_types=kinds, **pattern)
    short = edited(model, tmp_path / "short", lambda tensors: None, pattern, torch.float32)
    config = json.loads((short / "config.json").read_text())
    config.pop("layer_types")
    (short / "config.json").write_text(json.dumps(config))
    assert Arch.read(short).config["layer_types"] == kinds
    source = tiny.tokens(tmp_path / "t.safetensors")
    losses = [evaluate(str(one), data=[Data(source)]).results["loss"] for one in (model, short)]
    assert losses[0] == losses[1]
    run_plan(short, tmp_path / "out", tmp_path, layers=[1, 2])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["layer_types"] == kinds[1:3]
    run_plan(model, tmp_path / "whole", tmp_path, layers=[1, 2])
    assert tiny.same(tmp_path / "out", tmp_path / "whole")


def test_coupled_heads_are_warned_of(models, tmp_path):
    notes: list[str] = []

    class Told(Report):
        def info(self, message: str) -> None:
            notes.append(message)

    plan = tmp_path / "plan.json"
    for name, keep, warned in (
        ("olmo2", {"kv_heads": [[0]] * 4}, True),
        ("olmo3", {"ffn": [[0, 1]] * 4}, False),
        ("llama", {"kv_heads": [[0]] * 4}, False),
    ):
        notes.clear()
        plan.write_text(json.dumps({"keep": keep}))
        prune(str(models(name)), str(tmp_path / name), plan=str(plan), report=Told())
        assert any("runs over all heads" in note for note in notes) is warned
