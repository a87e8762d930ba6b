"""Random weights: twins, their masks, the schemes, and a warm start."""

import json
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from prunecli import check, init, prune
from prunecli.errors import InputError, UsageError
from prunecli.model import configs
from prunecli.model.arch import Arch
from prunecli.settings import Amount
from prunecli.training.init import BASE_WIDTH, SCHEMES

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SHAPES = [path for path in sorted(EXAMPLES.glob("*/*.json")) if '"model_type"' in path.read_text()]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.fixture(scope="module")
def sparse(models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "p"
    prune(str(models("llama")), str(out), method="magnitude", amount=Amount(ratio=0.6))
    return out


def test_masks_are_kept_and_the_whole_model_redrawn(sparse, tmp_path) -> None:
    init(str(tmp_path / "kept"), like=str(sparse))
    init(str(tmp_path / "dropped"), like=str(sparse), masks="drop")
    old, kept, dropped = (weights(f) for f in (sparse, tmp_path / "kept", tmp_path / "dropped"))
    for name, tensor in old.items():
        if tensor.dim() == 1:
            assert (kept[name] == 1).all()
            continue
        assert torch.equal(kept[name] == 0, tensor == 0), name
        assert (dropped[name] != 0).all()
        live = tensor != 0
        assert torch.equal(kept[name][live], dropped[name][live])
        assert (kept[name][live] != tensor[live]).all()
    assert tiny.sidecar(tmp_path / "kept")["results"]["ratio"] == pytest.approx(0.6, abs=0.001)


def test_official_keeps_embeddings_and_norms(sparse, tmp_path) -> None:
    init(str(tmp_path / "o"), like=str(sparse), compat=True)
    old, new = weights(sparse), weights(tmp_path / "o")
    for name, tensor in old.items():
        linear = tensor.dim() == 2 and "embed_tokens" not in name
        assert torch.equal(new[name], tensor) != linear, name
        if ".layers." in name and linear:
            assert torch.equal(new[name] == 0, tensor == 0)
    assert new["lm_head.weight"].std() == pytest.approx(0.02, rel=0.05)


def test_seeds_and_determinism(sparse, tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        init(str(tmp_path / name), like=str(sparse), seed=seed)
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def test_a_twin_is_not_its_rewound_parent(tmp_path) -> None:
    """The same seed draws other weights for a twin than for the parent that `init` made."""
    (tmp_path / "c.json").write_text(json.dumps(tiny.config_of("llama")))
    init(str(tmp_path / "parent"), config=str(tmp_path / "c.json"))
    prune(
        str(tmp_path / "parent"),
        str(tmp_path / "p"),
        method="magnitude",
        amount=Amount(ratio=0.5),
    )
    init(str(tmp_path / "twin"), like=str(tmp_path / "p"))
    parent, twin = weights(tmp_path / "parent"), weights(tmp_path / "twin")
    assert not any((parent[n] == twin[n])[twin[n] != 0].any() for n in twin if twin[n].dim() == 2)


@pytest.mark.parametrize(("vocab", "end"), [(256, None), (257, 256), (300, 256)])
def test_the_tokenizer_of_bytes_has_an_end_where_there_is_room(tmp_path, vocab, end) -> None:
    """Ids that the config names of another tokenizer are bytes here."""
    from transformers import AutoConfig, AutoTokenizer

    named = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = tiny.config_of("llama", vocab_size=vocab, **named)
    (tmp_path / "c.json").write_text(json.dumps(config))
    init(str(tmp_path / "m"), config=str(tmp_path / "c.json"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (end, None)
    assert tokenizer.decode(tokenizer("aé🙂")["input_ids"]) == "aé🙂"
    written = AutoConfig.from_pretrained(tmp_path / "m")
    assert [written.bos_token_id, written.eos_token_id, written.pad_token_id] == [None, end, None]
    assert not check(str(tmp_path / "m"))
    init(str(tmp_path / "none"), config=str(tmp_path / "c.json"), tokenizer="none")
    kept = json.loads((tmp_path / "none" / "config.json").read_text())
    assert {name: kept[name] for name in named} == named


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes(tmp_path, scheme) -> None:
    sizes = {"hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 8}
    config = tiny.config_of("llama", initializer_range=0.02, **sizes)
    (tmp_path / "c.json").write_text(json.dumps(config))
    init(str(tmp_path / "o"), config=str(tmp_path / "c.json"), scheme=scheme)
    found = weights(tmp_path / "o")
    narrow = BASE_WIDTH / 192
    expected = {
        "hf": {"embed": 1, "up": 1, "down": 1, "head": 1},
        "depth-scaled": {"embed": 1, "up": 1, "down": 1 / sqrt(16), "head": 1},
        "mup": {"embed": 1, "up": sqrt(narrow), "down": sqrt(narrow), "head": narrow},
    }[scheme]
    names = {
        "embed": "model.embed_tokens.weight",
        "up": "model.layers.3.mlp.up_proj.weight",
        "down": "model.layers.3.mlp.down_proj.weight",
        "head": "lm_head.weight",
    }
    for short, name in names.items():
        assert found[name].std() == pytest.approx(0.02 * expected[short], rel=0.02), name


def test_warm_start(llama, tmp_path) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4}
    (tmp_path / "c.json").write_text(json.dumps(tiny.config_of("llama", **sizes, **heads)))
    init(str(tmp_path / "o"), config=str(tmp_path / "c.json"), warm=str(llama))
    small, large = weights(llama), weights(tmp_path / "o")
    for layer, source in enumerate((0, 0, 1, 2, 2, 3)):
        name = "model.layers.{}.mlp.up_proj.weight"
        assert torch.equal(large[name.format(layer)][:80, :48], small[name.format(source)])
        name = "model.layers.{}.self_attn.k_proj.weight"
        assert torch.equal(large[name.format(layer)][:16, :48], small[name.format(source)])
    assert torch.equal(large["lm_head.weight"][:, :48], small["lm_head.weight"])
    assert (large["model.norm.weight"][48:] == 1).all()
    (tmp_path / "d.json").write_text(json.dumps(tiny.config_of("llama", hidden_size=24)))
    with pytest.raises(InputError, match="more than the new model"):
        init(str(tmp_path / "no"), config=str(tmp_path / "d.json"), warm=str(llama))
    (tmp_path / "e.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    with pytest.raises(InputError, match="must be equal"):
        init(str(tmp_path / "no"), config=str(tmp_path / "e.json"), warm=str(llama))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"config": "a", "like": "b"},
        {"config": "a", "compat": True},
        {"config": "a", "scheme": "xavier"},
        {"config": "a", "masks": "some"},
    ],
)
def test_bad_requests(tmp_path, options) -> None:
    with pytest.raises(UsageError):
        init(str(tmp_path / "o"), **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", SHAPES, ids=lambda path: path.stem)
def test_shapes_of_the_examples_can_be_built(shape) -> None:
    """The study's was once one that transformers refuses; none is written, some are too large."""
    values = json.loads(shape.read_text())
    built = configs.shapes(values)
    described = Arch(values).tensors()
    assert {name: built[name] for name in described} == {
        name: tensor.shape for name, tensor in described.items()
    }
