"""The library verb `init`: a checkpoint with random weights, such as a tiny Llama for CI.

Weights are drawn as transformers draws them: matrices from N(0, initializer_range), gains 1,
biases 0; tensor by tensor, each from its own seed, so that nothing else changes a tensor's draw.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.arch import Arch
from prunecli.errors import InputError, UsageError
from prunecli.io import output as place
from prunecli.io import sidecar
from prunecli.io.checkpoint import TAG_ALONG, CheckpointWriter, check_loads
from prunecli.io.sidecar import Input, Recorder
from prunecli.io.tensorfile import Spec, spec_of
from prunecli.report import SILENT, Report
from prunecli.settings import Made, Output

if TYPE_CHECKING:
    import torch

DTYPES = {"float32": "F32", "bfloat16": "BF16"}
BYTES = 256


def init(
    config: str,
    out: str,
    *,
    seed: int = 0,
    dtype: str = "auto",
    tokenizer: str = "auto",
    output: Output | None = None,
    report: Report = SILENT,
) -> Made:
    """Write a random-weight checkpoint of the shape of a config.json.

    `dtype` `auto` is the config's own, else float32. `tokenizer` is a folder to copy it from,
    `bytes` (one token a byte), `none`, or `auto`: bytes where the vocabulary has room for them.
    Raises InputError for configs that no model can have, OutputExists.
    """
    output = output or Output()
    recorder = Recorder("init", output.argv)
    path = Path(config)
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read the config in '{config}': {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"'{config}' is not a JSON object")
    record.pop("prunecli", None)
    arch = Arch(record)
    record |= {
        "head_dim": arch.head_dim,
        "architectures": [f"{arch.family.classes}ForCausalLM"],
        "dtype": _dtype(dtype, record),
    }
    arch = Arch(record)
    place.check_place(out, output, [path])
    files = _tokenizer_files(tokenizer, arch, report)
    specs = {
        name: Spec(DTYPES[record["dtype"]], tensor.shape) for name, tensor in arch.tensors().items()
    }
    results = {"params": arch.total_params, "params_by_group": arch.params(), "sizes": arch.sizes}
    if output.dry_run:
        return Made(out, results=results)
    place.check_disk(out, sum(spec.bytes for spec in specs.values()))
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    inputs = [Input(role="config", digest=digest)]
    options = {"seed": seed, "dtype": record["dtype"], "tokenizer": _digest(files)}
    if same := place.same_already(out, output, sidecar.key("checkpoint", options, inputs)):
        return same
    with place.staged(out) as temporary:
        with CheckpointWriter(temporary, arch.config, specs, [0] * len(specs)) as writer:
            for name, spec in report.track(specs.items(), "drawing", len(specs), "tensors"):
                writer.write(name, _draw(name, spec, arch, seed))
        made = recorder.sidecar(
            "checkpoint",
            options,
            inputs,
            outputs={"digest": writer.digest(), "params": arch.total_params},
            results=results,
        )
        writer.finish(made.id, [])
        for name, text in files.items():
            (temporary / name).write_bytes(text)
        check_loads(temporary)
        place.write_text(temporary / sidecar.FOLDER_SIDECAR, made.text())
    return Made(out, made.dump(), made.results)


def _dtype(asked: str, config: dict[str, Any]) -> str:
    name = asked if asked != "auto" else config.get("dtype") or config.get("torch_dtype")
    name = name or "float32"
    if name not in DTYPES:
        raise UsageError(f"dtype '{name}' is not one of {', '.join(DTYPES)}", "use --dtype")
    return str(name)


def _draw(name: str, spec: Spec, arch: Arch, seed: int) -> "torch.Tensor":
    """Return one tensor, drawn in fp32 and rounded to its storage type."""
    import torch

    from prunecli.io.tensorfile import torch_dtype

    dtype = torch_dtype(spec.dtype)
    if len(spec.shape) == 1:
        fill = 0.0 if name.endswith(".bias") else 1.0
        return torch.full(spec.shape, fill, dtype=dtype)
    own = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(own[:8], "little") >> 1)
    values = torch.empty(spec.shape).normal_(
        0, float(arch.get("initializer_range")), generator=generator
    )
    drawn = values.to(dtype)
    assert spec_of(drawn) == spec
    return drawn


def _tokenizer_files(tokenizer: str, arch: Arch, report: Report) -> dict[str, bytes]:
    """Return the tokenizer's files by name."""
    if tokenizer == "auto":
        tokenizer = "bytes" if arch.vocab >= BYTES else "none"
        what = "of bytes" if tokenizer == "bytes" else f"left out, {arch.vocab} ids are too few"
        report.note(f"tokenizer: {what} (--tokenizer DIR copies another one)")
    if tokenizer == "none":
        return {}
    if tokenizer == "bytes":
        if arch.vocab < BYTES:
            raise InputError(f"a vocabulary of {arch.vocab} is too small for {BYTES} bytes")
        return _byte_tokenizer()
    folder = Path(tokenizer)
    found = {path for pattern in TAG_ALONG for path in folder.glob(pattern) if path.is_file()}
    if not found:
        raise InputError(f"no tokenizer in '{tokenizer}'", "give its folder, `bytes` or `none`")
    return {path.name: path.read_bytes() for path in sorted(found)}


def _byte_tokenizer() -> dict[str, bytes]:
    """Return a tokenizer that makes every byte of UTF-8 text a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": model.to_str().encode(),
        "tokenizer_config.json": (json.dumps(settings, indent=2) + "\n").encode(),
    }


def _digest(files: dict[str, bytes]) -> str | None:
    sha = hashlib.sha256()
    for name in sorted(files):
        sha.update(name.encode() + b"\0" + files[name])
    return sha.hexdigest() if files else None
