"""Nothing that came in a checkpoint decides what runs."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file

import tiny
from prunecli import evaluate, prune, speed
from prunecli.data import tokenizer
from prunecli.errors import InputError
from prunecli.measuring.costs import SizedModel
from prunecli.model import configs, stock
from prunecli.model.checkpoint import Checkpoint, check_buildable
from prunecli.model.families import registry
from prunecli.settings import Amount, Data, Timing

# of a config.json: what chooses code, or how it runs
CHOICES = {
    "attn_implementation": "flash_attention_2",
    "_attn_implementation": "flash_attention_3",
    "_attn_implementation_internal": "flash_attention_2",
    "experts_implementation": "grouped_mm",
    "_experts_implementation": "grouped_mm",
    "_experts_implementation_internal": "grouped_mm",
    "use_kernels": True,
    "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    "distributed_config": {"tp_size": 2},
    "fusion_config": {"patch_embeddings": True},
    "base_model_tp_plan": {"layers.*": "colwise"},
    "name_or_path": "someone/other",
    "_name_or_path": "someone/other",
    "trust_remote_code": True,
    "return_dict": False,
    "output_attentions": True,
}
# modules that transformers loads only where it is asked for code from elsewhere
FOREIGN = ("kernels", "flash_attn", "flash_attn_interface", "evil", "peft", "transformers_modules")


class NoForeignImport:
    """An import hook that fails on modules which only a config.json can have asked for."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in FOREIGN and "transformers" in caller():
            pytest.fail(f"'{name}' was imported")


def caller():
    """Return the names of the modules on the stack, so that searches by others do not count."""
    frame, names = sys._getframe(), []
    while frame is not None:
        names.append(frame.f_globals.get("__name__", "").partition(".")[0])
        frame = frame.f_back
    return names


@pytest.fixture
def passed_on(monkeypatch):
    """Return the arguments of every config that transformers builds from here on."""
    from transformers import AutoConfig

    seen, real = [], AutoConfig.for_model

    def noted(*args, **words):
        seen.append(words)
        return real(*args, **words)

    monkeypatch.setattr(AutoConfig, "for_model", noted)
    return seen


@pytest.fixture
def hostile(llama, tmp_path, monkeypatch):
    """Return a checkpoint whose files ask for code in every way."""
    folder = shutil.copytree(llama, tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **CHOICES}))
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "someone/other", "r": 1}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    monkeypatch.setattr(sys, "meta_path", [NoForeignImport(), *sys.meta_path])
    return folder


def test_no_key_that_chooses_code_reaches_transformers(hostile, passed_on, calibration, tmp_path):
    data, half = Data(calibration), Amount(ratio=0.5)
    check_buildable(Checkpoint(str(hostile)).arch)
    evaluate(str(hostile), data=[data])
    speed(str(hostile), timing=Timing(("prefill",), warmup=0, rounds=1))
    prune(str(hostile), str(tmp_path / "out"), method="shortgpt", data=data, amount=half)
    assert passed_on
    for words in passed_on:
        assert not words.keys() & CHOICES.keys(), words.keys()
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not written.keys() & {*configs.PREFERENCES}


@pytest.mark.parametrize("family", registry.names())
def test_what_is_loaded_is_what_transformers_loads(family, models, calibration):
    """Dropping keys changes no model: logits are equal to those of its own loader."""
    checkpoint = Checkpoint(str(models(family)))
    ids = torch.arange(32).reshape(2, 16)
    own = stock.loaded(checkpoint, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(own(ids).logits, tiny.logits(checkpoint.folder, ids))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_model_in_another_type(dtype, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny.make(tmp_path / "in", "gemma2", tie_word_embeddings=True)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7, "custom_generate": "x"}')
    wanted = getattr(torch, dtype)
    own = stock.loaded(Checkpoint(str(folder)), wanted, torch.device("cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=wanted).eval()
    ids = torch.arange(32).reshape(2, 16)
    with torch.no_grad():
        assert torch.equal(own(ids).logits, theirs(ids).logits)
    assert own.lm_head.weight is own.model.embed_tokens.weight
    assert own.generation_config.eos_token_id == 7
    assert not hasattr(own.generation_config, "custom_generate")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("per_layer_config", {"0": {"intermediate_size": 8}}),
        ("transformers_weights", "../other.safetensors"),
        ("is_causal", False),
        ("is_encoder_decoder", True),
        ("quantization_config", {"quant_method": "awq"}),
        ("attn_implementation", "someone/kernel"),
    ],
)
def test_what_would_change_the_model_is_refused(key, value, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(InputError, match=key):
        Checkpoint(str(folder))
    if key != "quantization_config":  # which leaves sizes as they are
        with pytest.raises(InputError, match=key):
            SizedModel.open(str(folder), counted=True)


def test_a_tokenizer_that_needs_code_is_refused(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        )
    )
    (tmp_path / "vocab.txt").write_text("a\n")
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(InputError, match="cannot read the tokenizer"):
        tokenizer.stock(str(tmp_path))
