"""Checkpoints in every layout that stock transformers loads, and those that it or we refuse.

The rows of the table in docs/checkpoints.md, in its order: each is held by a case here.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import check, evaluate, prune
from prunecli.errors import InputError, Stopped, UsageError
from prunecli.model.checkpoint import Checkpoint
from prunecli.settings import Amount, Data

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEXT = {
    "vocab_size": 259, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
    "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
CLIP = {"vision_config": {**VISION, "model_type": "clip_vision_model"}, "image_token_index": 258}
LLAMA4 = {
    "vision_config": {
        **VISION, "intermediate_size": 64, "projector_input_dim": 24, "projector_output_dim": 24,
        "vision_output_dim": 24,
    },
    "image_token_index": 258,
}  # fmt: skip
PIXTRAL = {"vision_config": {**VISION, "model_type": "pixtral"}}
QWEN = {
    "vision_config": {
        "depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 14,
        "out_hidden_size": 48, "num_position_embeddings": 16,
    },
    **dict.fromkeys(("image_token_id", "video_token_id"), 258),
    **dict.fromkeys(("vision_start_token_id", "vision_end_token_id"), 257),
}  # fmt: skip
GEMMA4 = {
    "vision_config": {
        **VISION, "patch_size": 9, "num_key_value_heads": 2, "head_dim": 8,
        "pooling_kernel_size": 3, "position_embedding_size": 16,
    },
    "audio_config": None,
}  # fmt: skip
# kind, and more where it has several texts -> what its config.json says beside the text, the text
WRAPPED = {
    "gemma3": ({"vision_config": VISION, "mm_tokens_per_image": 4}, "gemma3_text"),
    "gemma4": (GEMMA4, "gemma4_text"),
    "gemma4 without layer inputs": (GEMMA4, "gemma4_text"),
    "idefics3": ({"vision_config": VISION, "image_token_id": 258}, "llama"),
    "internvl": (
        {"vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]}},
        "qwen2",
    ),
    "llama4": (LLAMA4, "llama4_text"),
    "llava": (CLIP, "llama"),
    "llava_next": (CLIP, "mistral"),
    "llava_onevision": (CLIP, "qwen2"),
    "mistral3": (PIXTRAL, "mistral"),
    "mistral3 of 2026": (PIXTRAL, "ministral3"),
    "qwen3_5": (QWEN, "qwen3_5_text"),
    "qwen3_5_moe": (QWEN, "qwen3_5_moe_text"),
    "smolvlm": ({"vision_config": VISION, "image_token_id": 258}, "llama"),
    "vipllava": ({**CLIP, "vision_feature_layers": [-1]}, "llama"),
}


# what the text of a kind has beside TEXT
DELTA = {
    "full_attention_interval": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
OF_TYPES = {
    "layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 8,
    "global_head_dim": 16, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    "pad_token_id": 0,
}  # fmt: skip
OWN_TEXT = {
    "gemma4": {
        **OF_TYPES, "hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 259,
        "num_kv_shared_layers": 1,
    },
    "gemma4 without layer inputs": {**OF_TYPES, "hidden_size_per_layer_input": 0},
    "llama4_text": {
        "intermediate_size_mlp": 112, "interleave_moe_layer_step": 2, "num_local_experts": 4,
    },
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": {
        **DELTA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
        "shared_expert_intermediate_size": 24,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    source = tiny.tokens(tmp_path_factory.mktemp("ids") / "t.safetensors", rows=4)
    return source, load_file(source.removesuffix(":ids"))["ids"].long()


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    root = tmp_path_factory.mktemp("parents")
    return {
        tied: tiny.make(root / str(tied), "llama", tie_word_embeddings=tied)
        for tied in (True, False)
    }


def speaker(model):
    """Return what computes logits of text: Llama 4's wrapper fails where it is given no image."""
    return model.language_model if type(model).__name__.startswith("Llama4ForCond") else model


def stock_loss(folder, ids, automatic="AutoModelForCausalLM"):
    """Return the loss of what stock transformers loads, in float32."""
    import transformers

    loaded, info = getattr(transformers, automatic).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"], info
    with torch.no_grad():
        logits = speaker(loaded.eval())(input_ids=ids).logits
    return float(
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    )


def laid_out(parent, folder, change, *, index=None, config=None):
    """Copy a one-file model with its tensors changed; `index` are the names that an index tells."""
    folder.mkdir()
    tensors = {name: t.clone() for name, t in load_file(parent / "model.safetensors").items()}
    tensors = change(tensors) or tensors
    file = "model.safetensors" if index is None else "model-00001-of-00001.safetensors"
    save_file(tensors, folder / file, metadata={"format": "pt"})
    if index is not None:
        told = {"metadata": {}, "weight_map": dict.fromkeys(index(tensors), file)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(told))
    record = json.loads((parent / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, **(config or {})}))
    return folder


def renamed(tensors, of):
    return {of(name): tensor for name, tensor in tensors.items()}


def with_head(make):
    return lambda tensors: {**tensors, HEAD: make(tensors[EMBEDDING])}


def without(name):
    return lambda tensors: {other: t for other, t in tensors.items() if other != name}


def narrow(tensors):
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


# row of the table -> parent tied, change of tensors, names in an index, OUT tied, part of a note
LOADED = {
    "as transformers saves it, tied": (True, lambda t: t, None, True, None),
    "as transformers saves it, not tied": (False, lambda t: t, None, False, None),
    "tied, only the head stored": (
        True, lambda t: renamed(t, lambda n: HEAD if n == EMBEDDING else n), None, True, None,
    ),
    "tied, the head stored too, equal": (True, with_head(torch.clone), None, True, None),
    "tied, the head stored too, equal in another dtype": (
        True, lambda t: with_head(torch.Tensor.float)(narrow(t)), None, True, None,
    ),
    "tied, the head stored too, rounded to another dtype": (
        True, with_head(torch.Tensor.bfloat16), None, False, "F32 and BF16",
    ),
    "tied, the head stored too, different": (
        True, with_head(lambda e: e + 0.5), None, False, "F32 and F32",
    ),
    "an index that names a head that is not there": (
        True, lambda t: t, lambda t: [*t, HEAD], True, None,
    ),
    "an index that leaves tensors out": (True, lambda t: t, lambda t: [EMBEDDING], True, None),
    "rotary_emb.inv_freq, once": (
        False, lambda t: {**t, "model.rotary_emb.inv_freq": torch.ones(4)}, None, False, None,
    ),
    "rotary_emb.inv_freq, in every layer": (
        False,
        lambda t: {
            **t,
            **{f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(4)},
        },
        None, False, None,
    ),
    "only the body, tied": (
        True, lambda t: renamed(t, lambda n: n.removeprefix("model.")), None, True, None,
    ),
    "names of the body, with a head": (
        False, lambda t: renamed(t, lambda n: n.removeprefix("model.")), None, False, None,
    ),
}  # fmt: skip


def same_as_stock(folder, ids, out, tied, automatic="AutoModelForCausalLM"):
    """Evaluate and prune a folder: the loss is stock's, and OUT loads without a remark."""
    source, tokens = ids
    told = tiny.Told()
    found = evaluate(str(folder), data=[Data(source)], report=told).results["loss"]
    assert found == pytest.approx(stock_loss(folder, tokens, automatic), rel=1e-5)
    prune(str(folder), str(out), method="magnitude", amount=Amount(ratio=0.25))
    tiny.logits(out, tokens)
    assert (HEAD not in load_file(out / "model.safetensors")) is tied
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is tied
    return told.notes


@pytest.mark.parametrize("row", LOADED)
def test_layouts_that_load(row, parents, ids, tmp_path):
    tied, change, index, out_tied, noted = LOADED[row]
    folder = laid_out(parents[tied], tmp_path / "in", change, index=index)
    notes = same_as_stock(folder, ids, tmp_path / "out", out_tied)
    assert [noted in note for note in notes] == ([True] if noted else [])


def test_one_digest_for_one_model(parents, tmp_path):
    """What a layout calls a tensor is no part of the model."""
    digests = {Checkpoint(str(parents[True])).digest()}
    for row in ("tied, only the head stored", "tied, the head stored too, equal"):
        folder = laid_out(parents[True], tmp_path / str(len(digests) + len(row)), LOADED[row][1])
        digests.add(Checkpoint(str(folder)).digest())
    assert len(digests) == 1


@pytest.fixture(scope="module")
def wrapper(tmp_path_factory):
    """Return a function from a kind of wrapper to a tiny one that stock transformers saved."""
    root = tmp_path_factory.mktemp("wrappers")

    def make(row, **text):
        from transformers import AutoConfig, AutoModelForImageTextToText

        beside, of = WRAPPED[row]
        own = OWN_TEXT.get(row, OWN_TEXT.get(of, {}))
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            row.split()[0],
            text_config={**TEXT, **own, "model_type": of, **text},
            **beside,
        )
        model = AutoModelForImageTextToText.from_config(config).float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1))
        model.save_pretrained(root / row)
        return root / row

    return lambda row, **text: root / row if (root / row).exists() else make(row, **text)


def other_layout(name):
    """Return the name of a LLaVA-like wrapper's tensor in the layout that it is not saved in."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return "model." + name


@pytest.mark.parametrize("row", WRAPPED)
def test_language_models_of_wrappers(row, wrapper, ids, tmp_path):
    folder, kind = wrapper(row), row.split()[0]
    tied = HEAD not in Checkpoint(str(folder)).specs
    notes = same_as_stock(folder, ids, tmp_path / "out", tied, "AutoModelForImageTextToText")
    assert [f"is a multimodal '{kind}': its language model" in note for note in notes] == [True]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == WRAPPED[row][1]
    assert [name.endswith("ForCausalLM") for name in config["architectures"]] == [True]
    assert not {"text_config", "vision_config"} & set(config)
    assert tiny.sidecar(tmp_path / "out")["inputs"][0]["part_of"] == kind


def whole(folder):
    """Return a wrapper as stock transformers loads it, which has to say nothing to it."""
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return aligned(model.eval())


def aligned(model):
    """Return a model whose weights lie in memory of their own: where they are in a file, which
    other names and sizes move, decides how some kernels round."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@torch.no_grad()
def image_features(model, row):
    """Return what a wrapper makes of an image, in all its tensors."""
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(7))
    if row.startswith("qwen3_5"):  # of four patches in two frames, which become one token
        patches = torch.stack([pixels, pixels]).view(2, 3, 2, 14, 2, 14).permute(2, 4, 1, 0, 3, 5)
        return model.model.visual(patches.reshape(4, -1), torch.tensor([[1, 2, 2]])).pooler_output
    if row.startswith("gemma4"):  # of nine patches
        patches = pixels[..., :27, :27].reshape(1, 3, 3, 9, 3, 9).permute(0, 2, 4, 1, 3, 5)
        places = torch.cartesian_prod(torch.arange(3), torch.arange(3))[None]
        return model.model.get_image_features(patches.reshape(1, 9, -1), places).pooler_output[0]
    if row == "internvl":  # four patches become one token before they are projected
        return model.model.get_image_features(pixels).pooler_output
    if row == "llama4":
        return model.multi_modal_projector(model.vision_model(pixels).last_hidden_state)
    tower = getattr(model.model, "vision_tower", None) or model.model.vision_model
    if row.startswith("mistral3"):
        found = tower(pixels, image_sizes=torch.tensor([[28, 28]])).last_hidden_state
        return model.model.multi_modal_projector(found[0], torch.tensor([[28, 28]]))
    found = tower(pixels).last_hidden_state
    connector = getattr(model.model, "multi_modal_projector", None) or model.model.connector
    drop = row in ("llava", "llava_next")
    return connector(found[:, 1:] if drop else found)


# kinds, and whether their files had another layout in transformers 4
KEPT = {
    "gemma3": True, "gemma4": False, "gemma4 without layer inputs": False, "llama4": False,
    "llava": True,
    "mistral3": False, "mistral3 of 2026": True, "qwen3_5": False, "qwen3_5_moe": False,
    "idefics3": False, "internvl": False, "llava_next": False, "llava_onevision": False,
    "smolvlm": False, "vipllava": False,
}  # fmt: skip
# what is kept of the layers of a mixture's language model, and of those of others
KEPT_EXPERTS, KEPT_CHANNELS = {"experts": [[1, 3], [0, 2]]}, {"ffn": [[*range(3, 40)]] * 2}
OF_ONE = {"experts": [[], [0, 2]]}  # of Llama 4, whose first layer is dense


@pytest.mark.parametrize(
    ("row", "layout"),
    [
        *((row, "as saved") for row in KEPT),
        *((row, "the other") for row, had in KEPT.items() if had),
    ],
)
def test_wrappers_are_kept_around_a_pruned_language_model(row, layout, wrapper, ids, tmp_path):
    """OUT loads as IN does: other parts have equal bytes, images give equal features."""
    saved = wrapper(row)
    other = lambda tensors: renamed(tensors, other_layout)  # noqa: E731
    folder = saved if layout == "as saved" else laid_out(saved, tmp_path / "in", other)
    (folder / "preprocessor_config.json").write_text('{"size": 28}')
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    units = {"qwen3_5_moe": KEPT_EXPERTS, "llama4": OF_ONE}.get(row, KEPT_CHANNELS)
    layers = [0, 1 if row.startswith(("qwen3_5", "llama4")) else 2]  # one of each kind
    plan.write_text(json.dumps({"keep": {"layers": layers, **units}}))
    made = prune(str(folder), str(out), plan=str(plan), keep_wrapper=True)
    prune(str(folder), str(tmp_path / "alone"), plan=str(plan))

    before, after = (load_file(one / "model.safetensors") for one in (folder, out))
    language = Checkpoint(str(folder))
    others = set(before) - {stored for _, stored in language._stored.values()}
    assert (
        others
        and set(after) - {stored for _, stored in Checkpoint(str(out))._stored.values()} == others
    )
    assert all(before[name].equal(after[name]) for name in others)
    config = [json.loads((one / "config.json").read_text()) for one in (folder, out)]
    assert config[1]["text_config"]["num_hidden_layers"] == 2
    same = config[0].keys() - {"text_config", "tie_word_embeddings"}
    assert {key: config[1][key] for key in same} == {key: config[0][key] for key in same}
    assert (out / "preprocessor_config.json").read_text() == '{"size": 28}'

    models = [whole(one) for one in (folder, out)]
    assert image_features(models[1], row).equal(image_features(models[0], row))
    with torch.no_grad():
        alone = aligned(tiny.stock(tmp_path / "alone"))(ids[1]).logits
        assert speaker(models[1])(input_ids=ids[1]).logits.equal(alone)

    record = tiny.sidecar(out)
    kind = row.split()[0]
    assert record["options"]["wrapper"] == record["outputs"]["wrapper"]["model_type"] == kind
    assert record["outputs"]["wrapper"]["params"] == sum(before[name].numel() for name in others)
    assert record["outputs"]["digest"] == tiny.sidecar(tmp_path / "alone")["outputs"]["digest"]
    assert record["id"] != tiny.sidecar(tmp_path / "alone")["id"]
    assert check(str(out), deep=True) == []
    assert made.results["container"] == WRAPPED[row][1]


def test_a_kept_wrapper_of_many_files(wrapper, tmp_path):
    """Its parts stay in the files that they are in, whether or not the language model is too."""
    from transformers import AutoModelForImageTextToText

    folder, out = tmp_path / "in", tmp_path / "out"
    model = AutoModelForImageTextToText.from_pretrained(wrapper("gemma3"), dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size="40KB")
    prune(str(folder), str(out), method="magnitude", ratio=0.5, keep_wrapper=True)
    index = [json.loads((f / "model.safetensors.index.json").read_text()) for f in (folder, out)]
    assert index[0]["weight_map"] == index[1]["weight_map"] and len(set(index[0]["weight_map"])) > 3
    for name, file in index[0]["weight_map"].items():
        if "language_model" not in name:
            before, after = (load_file(one / file)[name] for one in (folder, out))
            assert before.equal(after)
    whole(out)
    assert check(str(out), deep=True) == []


def test_a_kept_wrapper_that_was_stopped_while_it_was_copied(wrapper, ids, tmp_path):
    words = {"method": "wanda", "ratio": 0.5, "data": ids[0], "keep_wrapper": True}
    asked = []
    prune(
        str(wrapper("gemma3")),
        str(tmp_path / "whole"),
        **words,
        stop=lambda: bool(asked.append(0)),
    )
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        prune(str(wrapper("gemma3")), str(out), **words, stop=tiny.stop_after(len(asked) - 3))
    assert not out.exists()
    prune(str(wrapper("gemma3")), str(out), **words)
    assert tiny.same(out, tmp_path / "whole")
    assert tiny.sidecar(out)["outputs"] == tiny.sidecar(tmp_path / "whole")["outputs"]


def test_a_kept_wrapper_is_checked(wrapper, tmp_path):
    out = tmp_path / "out"
    prune(str(wrapper("gemma3")), str(out), method="magnitude", ratio=0.5, keep_wrapper=True)
    tensors = load_file(out / "model.safetensors")
    name = next(name for name in tensors if "vision" in name and tensors[name].dim() > 1)
    tensors[name][0, 0] += 1
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    problems = check(str(out), deep=True)
    assert any("parts around the language model" in problem for problem in problems), problems


def test_other_parts_choose_no_code_and_are_bounded(wrapper, tmp_path):
    """What config.json says of a tower is a stranger's as well."""
    folder = shutil.copytree(wrapper("llava"), tmp_path / "in")
    config = json.loads((folder / "config.json").read_text())
    choices = {"auto_map": {"AutoModel": "x.Y"}, "_attn_implementation": "flash_attention_2"}
    tower = dict(config["vision_config"])
    words = {"method": "magnitude", "ratio": 0.5, "keep_wrapper": True}
    of_processor = {"image_processor": choices, "size": 28}
    text = json.dumps(of_processor).replace("auto_map", "auto\\u005fmap")
    (folder / "processor_config.json").write_text(text)
    config["vision_config"] = {**tower, **choices}
    (folder / "config.json").write_text(json.dumps(config))
    prune(str(folder), str(tmp_path / "out"), **words)
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert made["vision_config"] == tower
    made = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert made["size"] == 28 and "auto_map" not in made["image_processor"]
    whole(tmp_path / "out")
    for more in ({"num_hidden_layers": 10**9}, {"model_type": None, "hidden_size": [1] * 9}):
        config["vision_config"] = {key: v for key, v in (tower | more).items() if v is not None}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=f"config.json: {list(more)[-1]} is .*, expected an"):
            prune(str(folder), str(tmp_path / "none"), **words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            {"method": "minitron-width", "hidden": 24},
            "hidden would be 24, and other parts of 'gemma3' write 48 channels; keep them",
        ),
        ({"method": "flap", "ratio": 0.5, "plan_only": True}, "changes nothing of a plan"),
    ],
)
def test_wrappers_that_cannot_be_kept(words, told, wrapper, ids, tmp_path):
    out = tmp_path / ("out.json" if "plan_only" in words else "out")
    with pytest.raises(UsageError, match=re.escape(told)):
        prune(str(wrapper("gemma3")), str(out), data=ids[0], keep_wrapper=True, **words)
    assert not out.exists()


def test_a_rotation_leaves_no_wrapper_around_it(wrapper, parents, tmp_path):
    for folder, told in (
        (wrapper("llava"), "'slicegpt-global' rotates the hidden channels"),
        (parents[True], "is no multimodal model"),
    ):
        with pytest.raises(UsageError, match=told):
            prune(
                str(folder), str(tmp_path / "out"), method="slicegpt-global", ratio=0.25,
                keep_wrapper=True,
            )  # fmt: skip


@pytest.mark.parametrize("row", ["gemma3", "mistral3 of 2026"])
def test_both_layouts_of_wrappers(row, wrapper, ids, tmp_path):
    saved = wrapper(row)
    other = laid_out(saved, tmp_path / "other", lambda t: renamed(t, other_layout))
    names = set(load_file(other / "model.safetensors")) & set(
        load_file(saved / "model.safetensors")
    )
    assert not names
    same_as_stock(other, ids, tmp_path / "out", True, "AutoModelForImageTextToText")
    assert Checkpoint(str(other)).digest() == Checkpoint(str(saved)).digest()


def test_sizes_that_a_wrapper_leaves_out(tmp_path):
    """Gemma 3 4B names neither its heads nor its vocabulary: its class does."""
    from prunecli.model.arch import Arch

    text = {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }  # fmt: skip
    record = {"model_type": "gemma3", "text_config": text, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(record))
    arch = Arch.read(tmp_path)
    assert (arch.heads, arch.kv_heads, arch.head_dim, arch.vocab) == (8, 4, 256, 262208)
    assert arch.tied
    assert arch.config["torch_dtype"] == "bfloat16"


# row of the table -> parent tied, change of tensors, config.json, words of the refusal
REFUSED = {
    "not tied, no head stored": (
        False, without(HEAD), {}, ("output head", "tie_word_embeddings to true"),
    ),
    "neither head nor embedding": (
        True, without(EMBEDDING), {}, (EMBEDDING, "missing"),
    ),
    "one tensor under two names": (
        False, lambda t: {**t, "norm.weight": t["model.norm.weight"].clone()}, {},
        ("'model.norm.weight' is stored twice", "'norm.weight'"),
    ),
    "saved around torch.compile": (
        False, lambda t: renamed(t, lambda n: "_orig_mod." + n), {},
        ("'_orig_mod.", "torch.compile", "save model._orig_mod"),
    ),
    "saved around DistributedDataParallel": (
        False, lambda t: renamed(t, lambda n: "module." + n), {},
        ("'module.", "DistributedDataParallel", "save model.module"),
    ),
    "an adapter's tensors": (
        False,
        lambda t: {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 48)},
        {}, ("adapter", "merge_and_unload"),
    ),
    "quantized tensors": (
        False, lambda t: {**t, "model.layers.0.mlp.up_proj.qweight": torch.ones(2)}, {},
        ("quantised", "dequantise"),
    ),
    "tensors of another shape": (
        False, lambda t: {**t, HEAD: torch.ones(260, 48)}, {}, ("[260, 48]", "[259, 48]"),
    ),
    "a wrapper that no table describes": (
        False, lambda t: t, {"model_type": "qwen9_vl", "text_config": {}},
        ("not a supported multimodal model", "qwen9_vl"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED)
def test_layouts_that_are_refused(row, parents, tmp_path):
    tied, change, config, words = REFUSED[row]
    folder = laid_out(parents[tied], tmp_path / "in", change, config=config)
    with pytest.raises(InputError) as caught:
        Checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


# row of the table -> files in the folder, words of the refusal
FOREIGN = {
    "a PEFT adapter": (
        ["adapter_config.json", "adapter_model.safetensors"], ("PEFT adapter", "merge_and_unload"),
    ),
    "a GGUF file": (["model-Q4_K_M.gguf"], ("GGUF", "safetensors checkpoint")),
    "pickle files": (["config.json", "pytorch_model.bin"], ("pickled", "safetensors")),
    "a diffusers pipeline": (["model_index.json"], ("diffusers",)),
    "the maker's own format": (["params.json", "consolidated.00.pth"], ("own format",)),
    "a distributed checkpoint": ([".metadata", "__0_0.distcp"], ("distributed checkpoint",)),
    "no weights at all": (["README.md"], ("not a checkpoint", "config.json")),
}  # fmt: skip


@pytest.mark.parametrize("row", FOREIGN)
def test_folders_of_something_else(row, tmp_path):
    files, words = FOREIGN[row]
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError) as caught:
        Checkpoint(str(tmp_path))
    for word in words:
        assert word in str(caught.value)


def test_an_adapter_beside_weights_is_said_to_be_left_out(parents, ids, tmp_path):
    """What is read is the model of these weights; peft would put the adapter onto it."""
    folder = laid_out(parents[False], tmp_path / "in", lambda t: t)
    assert same_as_stock(folder, ids, tmp_path / "out", False) == []
    before, told = Checkpoint(str(folder)).digest(), tiny.Told()
    (folder / "adapter_config.json").write_text("{}")
    assert Checkpoint(str(folder), told).digest() == before
    assert ["adapter beside its weights" in note for note in told.notes] == [True]


def test_a_file_where_a_folder_belongs(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="is a GGUF model"):
        Checkpoint(str(tmp_path / "m.gguf"))


def test_the_table_in_docs_has_these_rows():
    page = Path(__file__).parents[2] / "docs" / "checkpoints.md"
    rows = re.findall(r"^\| ([^|]+?) \|", page.read_text("utf-8"), re.M)
    told = [row for row in rows if not row.startswith(("layout", "---"))]
    assert told == [*LOADED, *(f"`{kind}`" for kind in WRAPPED), *REFUSED, *FOREIGN]


def test_code_is_not_named_without_its_files(parents, tmp_path):
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}}
    folder = laid_out(parents[False], tmp_path / "in", lambda t: t, config=code)
    settings = {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": ["t.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    prune(str(folder), str(tmp_path / "out"), method="magnitude", amount=Amount(ratio=0.5))
    for file in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "out" / file).read_text())
    checkpoint = Checkpoint(str(tmp_path / "out"))
    assert tiny.sidecar(tmp_path / "out")["outputs"]["digest"] == checkpoint.digest()
