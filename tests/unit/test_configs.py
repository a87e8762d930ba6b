"""config.json is a stranger's: whatever it says, it is read or refused in one line."""

import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from prunecli import init, prune
from prunecli.errors import InputError, PruneError
from prunecli.files.tensorfile import read_header
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.configs import of_language_model, transformers_config
from prunecli.model.families import registry
from prunecli.settings import Amount, Output

ODD = [None, True, -1, 0, 0.5, 10**9, 10**400, 1e300, "", "seven", [], [1, 2], {}, {"a": 1}]
# what prunecli reads of a config.json, and what it hands on
KEYS = [
    "model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "initializer_range", "tie_word_embeddings", "attention_bias", "mlp_bias", "layer_types",
    "sliding_window", "sliding_window_pattern", "no_rope_layers", "no_rope_layer_interval",
    "max_window_layers", "use_sliding_window", "rope_parameters", "rope_scaling", "rope_theta",
    "logits_scaling", "final_logit_softcapping", "hidden_act", "dtype", "torch_dtype",
    "quantization_config", "prunecli", "text_config", "architectures", "pad_token_id",
]  # fmt: skip


def outcome(call):
    """Return what a call returns, or the one line that it is refused by."""
    try:
        return call()
    except PruneError as error:
        assert error.exit_code == 4, error
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return None


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(registry.names()), key=st.sampled_from(KEYS), value=st.sampled_from(ODD)
)
def test_any_value_is_read_or_refused_in_one_line(name, key, value, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**tiny.config_of(name), key: value}))
    outcome(lambda: Arch.read(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**9}, ("num_hidden_layers is 1000000000", "10000")),
        ({"num_hidden_layers": "4"}, ('num_hidden_layers is "4"', "an integer")),
        ({"hidden_size": -48}, ("hidden_size is -48",)),
        ({"max_position_embeddings": 0}, ("max_position_embeddings is 0",)),
        ({"rms_norm_eps": "1e-6"}, ('rms_norm_eps is "1e-6"', "a number")),
        ({"rms_norm_eps": -1.0}, ("rms_norm_eps is -1.0",)),
        ({"initializer_range": True}, ("initializer_range is true",)),
        ({"attn_implementation": "someone/kernel"}, ("attn_implementation", "never run")),
        ({"_attn_implementation": {"text_config": "a/b"}}, ("_attn_implementation", "never run")),
        ({"tie_word_embeddings": "yes"}, ("tie_word_embeddings",)),
        ({"quantization_config": {}}, ("quantization_config", "remove the key")),
        ({"dtype": 7}, ("dtype is 7, expected one of float32",)),
        ({"torch_dtype": "torch.half"}, ('torch_dtype is "torch.half"',)),
        ({"rope_parameters": [1]}, ("rope_parameters", "(RopeParameters, dict, NoneType)")),
        ({"attention_bias": [1]}, ("attention_bias",)),
    ],
)
def test_values_that_cannot_be(change, words, llama, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**tiny.config_of("llama"), **change}))
    (tmp_path / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())
    with pytest.raises(InputError) as caught:
        Checkpoint(str(tmp_path))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "qwen2", "olmo3", "smollm3"])
def test_sliding_layers_need_a_window(family):
    """Config classes take none, also where they make the list of layers; no forward does."""
    config = tiny.config_of(family, sliding_window=None)
    if family in ("qwen2", "smollm3"):
        config["layer_types"] = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(InputError, match="sliding_attention but no sliding_window"):
        transformers_config(config)


def test_a_class_that_is_newer_than_transformers(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "CONFIG_MAPPING", {})
    with pytest.raises(
        InputError, match=r'"llama", which transformers \d.* does not know; install'
    ):
        transformers_config(tiny.config_of("llama"))


def test_values_that_only_the_model_refuses(llama, tmp_path):
    """Config classes take any base of rotary positions; what is built of it is asked as early."""
    model = shutil.copytree(llama, tmp_path / "in")
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": "many"}}
    (model / "config.json").write_text(json.dumps({**tiny.config_of("llama"), **rope}))
    for dry in (True, False):
        with pytest.raises(InputError, match="transformers cannot build a model"):
            prune(
                str(model), str(tmp_path / "out"), method="magnitude", amount=Amount(ratio=0.5),
                output=Output(dry_run=dry),
            )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model_type": "llama", "rms_norm_eps": NaN}', "NaN is no finite number"),
        ('{"model_type": "llama", "rms_norm_eps": 1e999}', "1e999 is no finite number"),
        ('{"model_type": "llama", "vocab_size": 1' + "0" * 5000 + "}", "more than 40 digits$"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "run git lfs pull"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "not a JSON object"),
        ("{", "not readable as JSON"),
        ("{}", "no model_type"),
        ('{"model_type": ["llama"]}', "no model_type"),
    ],
)
def test_json_that_is_none(text, words, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=words):
        Arch.read(tmp_path)
    with pytest.raises(InputError, match=words):
        init(str(tmp_path / "out"), config=str(tmp_path / "config.json"))


def test_configs_are_read_without_being_changed(tmp_path):
    """Config classes fill in nested values in place, which would change the model's digest."""
    config = tiny.config_of("llama", rope_scaling={"type": "linear", "factor": 2.0})
    before = json.dumps(config)
    transformers_config(config)
    assert json.dumps(config) == before


def test_init_stores_as_config_json_says(tmp_path):
    """Llama 2's own config.json says float16."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**tiny.config_of("llama"), "torch_dtype": "float16"}))
    init(str(tmp_path / "out"), config=str(config))
    specs = read_header(tmp_path / "out" / "model.safetensors")
    assert {spec.dtype for spec in specs.values()} == {"F16"}
    config.write_text(json.dumps({**tiny.config_of("llama"), "dtype": "float64"}))
    with pytest.raises(PruneError, match=r'cannot be stored as "float64".*another --dtype'):
        init(str(tmp_path / "no"), config=str(config))
    init(str(tmp_path / "yes"), config=str(config), dtype="bfloat16", output=Output(dry_run=True))


def test_a_header_is_told_in_words(tmp_path):
    import struct

    for entry, words in (
        ({"dtype": "", "shape": [], "data_offsets": [0, 0]}, "of type ''"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, r"has 4 bytes, F32 \[2\] takes 8"),
        ({"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}, "no whole numbers"),
    ):
        header = json.dumps({"x": entry}).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(InputError, match=words) as caught:
            read_header(path)
        assert "Spec(" not in str(caught.value)


@pytest.mark.parametrize("name", registry.names())
def test_junk_in_any_key_is_refused_or_means_something(name) -> None:
    """Whatever a key holds, a model of it and one of its first two layers are there, or refused."""
    config = tiny.config_of(name)
    for key in {*config, *registry.get(name).defaults}:
        for junk in ODD:
            with suppress(InputError):
                values = of_language_model({**config, key: junk}, counted=True).values
                arch = Arch(values)
                assert arch.total_params > 0
                arch.child(layers=[0, 1])
