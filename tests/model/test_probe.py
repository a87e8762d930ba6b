"""`families --probe`: records derived from transformers' classes, tried before they are shown."""

import json

import pytest

import tiny
from prunecli.errors import InputError
from prunecli.model import configs, derive
from prunecli.model.arch import Arch
from prunecli.model.derive import kinds
from prunecli.model.derive.draft import Rule
from prunecli.model.families import each_of, of_types, registry
from prunecli.model.families._base import SQUARE, Family
from prunecli.pruning import probe as probing
from prunecli.pruning.probe import probe

# one of each mechanism that is derived in another way; the others are slow
QUICK = ("cohere", "gemma3", "opt", "phi3")
# what no look at a class can tell: other families that compute the same, and what older files have
KNOWN_BY_HAND = (
    "name", "model_types", "defaults", "containers", "not_convertible_if", "as_container",
    "test_config", "aliases", "stored_names", "buffers", "initial", "layer_lists", "hidden_divides",
)  # fmt: skip
CONVOLUTIONS = {
    "layer_types": ["conv", "full_attention"] * 8,
    "num_hidden_layers": 16,
    "block_auto_adjust_ff_dim": False,
}
FEW = {"num_experts": 8, "num_experts_per_tok": 2}
# the kinds of layers of older files, which no list tells
UNUSUAL = ("full_attn_idxs", "full_attention_interval", "layer_types")
# compared as a whole: flags whose other value is another model may be tables here, and `only` there
TABLES = ("tensors", "only", "biases", "optional", "flags")


def folder_of(tmp_path, kind, **config):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    return str(tmp_path)


def shapes_of(arch):
    return {name: tensor.shape for name, tensor in arch.tensors().items()}


def record_of(text) -> Family:
    """Return the record of a family's file, as a package with this file has it."""
    names: dict = {}
    exec(text, names)
    return names["FAMILY"]


@pytest.fixture
def forgotten(monkeypatch):
    """Return a function that takes a family out of the registry."""

    def forget(name):
        own = [one for one in registry.names() if one != name]
        monkeypatch.setattr(registry._REGISTRY, "own", lambda: own)

    return forget


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in registry.names()
        # experts, and layers of several kinds, are not found by a look at a class
        if registry.get(name).experts is None and not registry.get(name).kinds
    ],
)
def test_a_known_family_is_found_again(family, forgotten, tmp_path):
    ours = registry.get(family)
    forgotten(family)
    made = probe(folder_of(tmp_path, ours.model_types[0]))
    theirs = record_of(made.text)
    assert made.model_type == ours.model_types[0] and theirs.model_types == (made.model_type,)
    for name in Family.__dataclass_fields__:
        if name not in (*KNOWN_BY_HAND, *TABLES):
            assert getattr(theirs, name) == getattr(ours, name), name
    # those of a model that the record is for
    config = {"model_type": made.model_type, **tiny.SIZES, **ours.test_config}
    config |= {key: values[0] for key, values in theirs.only.items()}
    if ours.fixed.get("hidden") != SQUARE:  # where heads and hidden are as wide as each other
        assert theirs.templates(config) == ours.templates(config)
    # which sizes a class takes is idle where they cannot change
    assert ours.hidden_divides or not theirs.hidden_divides or "hidden" in ours.fixed
    for key, value in theirs.defaults.items():
        assert ours.defaults.get(key, value) == value


@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param("lfm2", CONVOLUTIONS, id="lfm2"),
        pytest.param("qwen3-5", {}, id="qwen3-5", marks=pytest.mark.slow),
    ],
)
def test_layers_of_several_kinds_are_found_again(family, config, forgotten, tmp_path):
    """Kinds, mixers and what cannot be lost; axes of its own by their sizes, for want of names."""
    ours, lists = registry.get(family), {"layer_types": [*registry.get(family).kinds] * 2}
    asked = {**tiny.config_of(family), **config, "num_hidden_layers": 4}
    asked = {key: value for key, value in asked.items() if key not in UNUSUAL}
    expected = [Arch({**asked, **told}) for told in (lists, {})]
    shapes = [shapes_of(arch) for arch in expected]
    forgotten(family)
    made = probe(folder_of(tmp_path, ours.model_types[0], **config))
    theirs = record_of(made.text)
    for name in ("kinds", "inputs", "beside", "norm_weight_offset", "logits_times"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert theirs.needed.keys() == ours.needed.keys() and theirs.fixed.keys() == ours.fixed.keys()
    with registry.trying(theirs):
        found = [Arch({**asked, **told}) for told in (lists, {})]
        assert [arch.kinds for arch in found] == [arch.kinds for arch in expected]
        assert [*map(shapes_of, found)] == shapes


@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param("gpt-oss", {}, id="gpt-oss"),
        pytest.param("qwen3-moe", {}, id="qwen3-moe", marks=pytest.mark.slow),
        pytest.param("qwen3-next", FEW, id="qwen3-next", marks=pytest.mark.slow),
    ],
)
def test_mixtures_are_found_again(family, config, forgotten, tmp_path):
    """Where experts are, by what names files have them, and the FFNs that all tokens take."""
    ours = registry.get(family)
    asked = {**tiny.config_of(family), "intermediate_size": 80, "mlp_only_layers": []}
    asked.pop("full_attention_interval", None)  # a list is told in place of it
    expected = shapes_of(Arch(asked))
    forgotten(family)
    made = probe(folder_of(tmp_path, ours.model_types[0], **config))
    theirs = record_of(made.text)
    for name in ("inputs", "fixed", "norm_weight_offset"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert theirs.needed.keys() == ours.needed.keys()
    assert theirs.experts == ours.experts
    with registry.trying(theirs):
        assert shapes_of(Arch(asked)) == expected


def test_a_mixture_whose_first_layers_are_dense(tmp_path):
    """Which layers are, a list tells; one more kind has experts, and one that all tokens take."""
    made = probe(folder_of(tmp_path, "exaone_moe"))
    record = record_of(made.text)
    dense = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert {*record.kinds["dense"]} == {*dense}
    assert {*record.kinds["sparse"]} == {"mlp.experts", "mlp.gate", "mlp.shared_experts"}
    told = {"mlp_layer_types": ["sparse", "dense"]}
    assert [record.kinds_of(told, i) for i in range(2)] == [("sparse",), ("dense",)]
    assert [record.kinds_of({}, i) for i in range(3)] == [("dense",), ("sparse",), ("sparse",)]
    assert record.experts.module == "mlp.experts" and {*record.axes} == {
        "mlp_ffn", "shared_experts_ffn"
    }  # fmt: skip
    sizes = {"num_shared_experts": 2, "moe_intermediate_size": 16, "intermediate_size": 112}
    assert [record.axes[axis](sizes.get) for axis in ("mlp_ffn", "shared_experts_ffn")] == [112, 32]
    # a stranger's text for a number makes no size
    assert record.axes["mlp_ffn"]({"intermediate_size": "9" * 9}.get) is None


def test_two_lists_tell_of_which_kinds_layers_are():
    """One tells mixers, the other one FFNs; what neither tells apart is named."""
    lists = {"layer_types": ["conv", "full_attention"] * 2,
             "mlp_layer_types": ["dense", "dense", "sparse", "sparse"]}  # fmt: skip
    made = derive.Draft("some_kind", {"model_type": "some_kind", **lists}, {}, ())
    mixers = ["conv.in_proj.weight", "self_attn.q_proj.weight"] * 2
    ffns = ["mlp.up_proj.weight", "mlp.up_proj.weight", "mlp.gate.weight", "mlp.gate.weight"]
    layers = [["norm.weight", *names] for names in zip(mixers, ffns, strict=True)]
    made.lists = kinds.told_apart(made, layers)
    assert made.lists == {
        "layer_types": {"conv": ("conv",), "full_attention": ("self_attn",)},
        "mlp_layer_types": {"dense": ("mlp.up_proj",), "sparse": ("mlp.gate",)},
    }
    odd = [[*names, *(["scale"] if i in (0, 3) else [])] for i, names in enumerate(layers)]
    with pytest.raises(InputError, match=r"layers 0 and 1 are unlike .*: 'scale'"):
        kinds.told_apart(made, odd)
    rule = each_of(*(of_types(lambda config, i: "none", key) for key in lists))
    assert rule(lists, 2) == ("conv", "sparse")


def test_what_is_printed_is_all_of_a_family(forgotten, tmp_path):
    """The text is that of a file which a package can have: it imports what it uses, and no more."""
    forgotten("cohere2")
    made = probe(folder_of(tmp_path, "cohere2"))
    assert made.text.startswith('"""Cohere2, derived from')
    assert "from prunecli.model.families import Family" in made.text
    assert max(map(len, made.text.splitlines())) <= 120
    with registry.trying(record_of(made.text)):
        assert registry.of_model_type("cohere2").classes == "Cohere2"
    assert not registry.knows("cohere2")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("recurrent_gemma", "0 and 2 are unlike each other, and no list of config.json tells why"),
        ("bloom", "the linears of a layer, by what they read, are not those of attention and of"),
        pytest.param(
            "beam",
            "its record does not tell which layers have 'model.layers.",
            marks=pytest.mark.slow,
        ),
        ("jetmoe", "mlp.input_linear.weight' has 3 dimensions"),
        ("deepseek_v2", "which keys of its config tell its experts is not clear"),
        pytest.param(
            "aria_text",
            "its files have no tensor of one expert's part of 'model.layers.0.mlp.experts",
            marks=tiny.of_today,
        ),
        ("gpt2", "no class for it that ends in ForCausalLM"),
        ("bert-generation", "no record describes 'bert-generation'"),
    ],
)
def test_what_no_record_describes_is_named(kind, words, tmp_path):
    with pytest.raises(InputError) as refused:
        probe(folder_of(tmp_path, kind))
    assert words in str(refused.value), refused.value
    assert derive.BY_HAND in str(refused.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama"}, "'llama' is read already, by the family 'llama'"),
        ({"model_type": "no_such_kind"}, "does not know"),
        ({"model_type": "deepseek_v3", "auto_map": {"AutoModel": "x--y.Z"}}, "which is never run"),
        ({"hidden_size": 8}, "has no model_type"),
        # a size by another name, parts beyond counting, weights beyond memory
        ({"model_type": "gpt2", "n_layer": 10**9}, "num_hidden_layers is 1000000000, expected an"),
        (
            {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 10**8},
            r"tiny model of it has \d+ weights",
        ),
        ({"model_type": "granitemoehybrid", "num_local_experts": 1.5}, "num_local_experts is 1.5"),
    ],
)
def test_what_is_not_probed(config, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=words):
        probe(str(tmp_path))
    with pytest.raises(InputError, match=r"has no config\.json"):
        probe(str(tmp_path / "nowhere"))


def test_a_model_that_is_never_built_is_given_up(tmp_path, monkeypatch):
    """At the first try: one size after the other is changed in what follows."""
    monkeypatch.setattr(configs, "SECONDS", 0.2)
    tries = []

    def endless(config):
        tries.append(config)
        while True:
            pass

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", endless)
    with pytest.raises(InputError, match=r"cannot build .*: it takes more than 0\.2 seconds"):
        probe(folder_of(tmp_path, "qwen2_moe"))
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("norm_weight_offset", 1.0, "removing hidden is not the same as setting them to zero"),
        ("logits_times", "rms_norm_eps", "its streamed loss is"),
        ("final_norm", "model.layers.0.input_layernorm", "its tensors are not|run one by one"),
    ],
)
def test_a_record_that_is_wrong_is_not_printed(
    field, value, words, forgotten, tmp_path, monkeypatch
):
    """The trials find a planted fault."""
    forgotten("qwen2")
    right = derive.drafted

    def wrong(values):
        draft = right(values)
        draft.fields[field] = value
        return draft

    monkeypatch.setattr(probing.derive, "drafted", wrong)
    with pytest.raises(InputError, match=words):
        probe(folder_of(tmp_path, "qwen2"))
    assert not registry.knows("qwen2")


def test_a_record_of_the_tiny_model_alone_is_not_printed(forgotten, tmp_path, monkeypatch):
    """The model in the folder has sizes of its own, which its record has to tell as well."""
    forgotten("lfm2")
    right = derive.drafted

    def wrong(values):
        draft = right(values)
        draft.fields["axes"]["conv_l_cache"] = Rule("lambda get: 3", lambda get: 3)
        return draft

    monkeypatch.setattr(probing.derive, "drafted", wrong)
    words = r"conv.conv.weight' has shape \[2560, 1, 5\], and \[2560, 1, 3\] by its record"
    with pytest.raises(InputError, match=words):
        probe(folder_of(tmp_path, "lfm2", **CONVOLUTIONS, conv_L_cache=5))


def test_the_text_model_of_a_wrapper_is_probed(forgotten, tmp_path):
    forgotten("qwen2")
    text = {"model_type": "qwen2"}
    made = probe(folder_of(tmp_path, "some_vl", text_config=text))
    assert made.model_type == "qwen2"
