"""Tiny random models of every family, made by stock transformers, and tokens to go with them."""

import json
import os
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file

from prunecli.errors import InputError
from prunecli.files.tensorfile import Inside
from prunecli.model import configs
from prunecli.model.arch import Arch
from prunecli.model.families import registry
from prunecli.model.stock import InDouble
from prunecli.report import Report

EXACT = 1e-9  # see `exact_logits`
# the transformers whose classes all families describe: no test is skipped there for other tensors
DESCRIBED = Version("5.24")
of_today = pytest.mark.skipif(
    Version(version("transformers")) < DESCRIBED, reason=f"is so since transformers {DESCRIBED}"
)
# per test; `tests/portable.sh` asks for others
THREADS = int(os.environ.get("PRUNECLI_TEST_THREADS", "1"))

SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 259,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


# families whose whole product of axes and ties is in the fast tests, one of each mechanism at
# least; that of all others is in `make soak`
QUICK = (
    "apertus", "cohere", "deepseek-v3", "exaone", "gemma2", "gemma3", "gemma4", "glm4-moe",
    "gpt-neox", "gpt-oss", "granite", "granite-swa", "lfm2", "llama", "mistral", "mixtral",
    "nemotron-h", "nemotron-h-moe", "olmo2", "olmo3", "opt", "phi", "phi3", "qwen2", "qwen3",
    "qwen3-5", "qwen3-moe", "seed-oss", "smollm3",
)  # fmt: skip


class Told(Report):
    """Keeps what it is told."""

    def __init__(self):
        self.notes = []

    def info(self, message):
        self.notes.append(message)


def families(names: Iterable[str] = registry.names()) -> list[Any]:
    """Return families to parametrize a test with; those that are not quick are slow."""
    return [
        pytest.param(name, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name in names
    ]


def need(family: str) -> None:
    """Skip the test where the installed transformers has no class for a family, or an older one."""
    from transformers import CONFIG_MAPPING, __version__

    kind = registry.get(family).model_types[0]
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers {__version__} has no '{kind}'")
    if not _named_as_files_are(family):
        pytest.skip(f"transformers {__version__} has no '{registry.get(family).head}' in '{kind}'")
    if Version(__version__) < DESCRIBED and not _described(family):
        pytest.skip(f"transformers {__version__} makes other tensors of '{kind}'")


@cache
def _named_as_files_are(family: str) -> bool:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(family)))
    return registry.get(family).head in dict(model.named_modules())


@cache
def _described(family: str) -> bool:
    """Return whether an older class has the tensors of the family's table, and takes its config."""
    config = config_of(family)
    try:
        made = {registry.get(family).own_name(name) for name in configs.shapes(config)}
        return made >= Arch(config).tensors().keys()
    except InputError:
        return False


def config_of(family: str, **overrides: Any) -> dict[str, Any]:
    """Return the config.json of a tiny model."""
    record = registry.get(family)
    return {"model_type": record.model_types[0], **SIZES, **record.test_config, **overrides}


def make(folder: Path, family: str = "llama", dtype=torch.float32, shard=None, **overrides) -> Path:
    """Write a tiny model of `family` with random weights, gains and biases included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    need(family)
    torch.manual_seed(0)
    config = AutoConfig.for_model(**config_of(family, **overrides))
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.copy_(torch.randn_like(parameter) * 0.2 + 1)
    model = model.to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    return folder


def subject(llama: Path | str, method: str) -> Path:
    """Return a model that a method can prune: this one, or beside it one of experts."""
    from prunecli.methods import registry as methods

    if "experts" not in methods.get(method).axes:
        return Path(llama)
    folder = Path(llama).with_name("mixtral")
    return folder if folder.exists() else make(folder, "mixtral")


def tokens(path: Path, rows: int = 8, length: int = 32, vocab: int = 259, seed: int = 0) -> str:
    """Write random token windows and return them as a D: `FILE.safetensors:ids`."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab, (rows, length), generator=generator, dtype=torch.int32)
    save_file({"ids": ids}, path)
    return f"{path}:ids"


def stock(folder: Path | str, dtype=torch.float32):
    """Return a folder's model as stock transformers loads it, which has to say nothing to it."""
    from transformers import AutoModelForCausalLM

    # the product that transformers takes for experts knows no float64
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, **experts
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def logits(folder: Path | str, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a folder as stock transformers loads it, in float32."""
    with torch.no_grad():
        return stock(folder)(ids.long()).logits


def exact_logits(folder: Path | str) -> torch.Tensor:
    """Return the logits of a few rows as stock transformers computes them, all of it in float64.

    Float32 rounds at 1e-7, which deep random models raise to 1e-3 of a logit; float64 rounds at
    1e-16, so that what remains below `EXACT` is rounding, and what is above it is not.
    """
    ids = torch.randint(259, (2, 32), generator=torch.Generator().manual_seed(5))
    model = stock(folder, torch.float64)
    with torch.no_grad(), InDouble():
        return model(ids).logits


def computes_as(folder: Path | str, other: Path | str) -> bool:
    """Return whether two models compute the same, but for the rounding of float64."""
    return torch.allclose(exact_logits(folder), exact_logits(other), atol=EXACT, rtol=0)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a folder with one file, to be edited, by the names used here."""
    record = json.loads((folder / "config.json").read_text())
    family, places = registry.of_config(record), stacks(record)
    stored = load_file(folder / "model.safetensors")
    named = {family.own_name(name): tensor.clone() for name, tensor in stored.items()}
    apart = {
        name: place.view(named[place.name][place.block]).contiguous().clone()
        for name, place in places.items()
    }
    together = {place.name for place in places.values()}
    return {**{name: t for name, t in named.items() if name not in together}, **apart}


def stacks(record: dict[str, Any]) -> dict[str, Inside]:
    """Return where tensors of experts lie in files of a model that has them together."""
    arch = Arch(configs.of_language_model(record, counted=True).values)
    experts = arch.family.experts
    return arch.stacked() if experts is not None and experts.stacked else {}


def save(named: dict[str, torch.Tensor], folder: Path, record: dict[str, Any]) -> None:
    """Write a folder of one file of tensors, by the names used here, as its class has them."""
    folder.mkdir(exist_ok=True)
    places = stacks(record)
    stored = {name: t.contiguous() for name, t in named.items() if name not in places}
    for name, place in places.items():
        if place.name not in stored:
            stored[place.name] = named[name].new_empty(place.whole(named[name].shape))
        place.view(stored[place.name][place.block]).copy_(named[name])
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(record))


def sidecar(folder: Path | str) -> dict[str, Any]:
    """Return a folder's sidecar as plain JSON."""
    return json.loads((Path(folder) / "prunecli.json").read_text())


def same(one: Path | str, other: Path | str) -> bool:
    """Return whether two folders hold the same bytes of weights."""
    files = [Path(folder, "model.safetensors").read_bytes() for folder in (one, other)]
    return files[0] == files[1]


def stop_after(steps: int) -> Callable[[], bool]:
    """Return a `stop` that says so when it is asked for the time `steps`, and from then on."""
    asked = iter(range(steps + 1))
    return lambda: next(asked, steps) >= steps - 1
