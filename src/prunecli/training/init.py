"""The library verb `init`: a checkpoint with random weights, such as a pruned model's scratch twin.

Weights are drawn tensor by tensor, each from its own seed, so that nothing else changes a tensor's
draw: gains 1, biases 0, matrices from a normal distribution whose width the scheme tells.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.data.tokenizer import AUTO, BYTES, END, alphabet, byte_level, files_of
from prunecli.errors import InputError, UsageError, suggest
from prunecli.files import output as place
from prunecli.files import sidecar, strict
from prunecli.files.sidecar import Input, SidecarBuilder
from prunecli.files.tensorfile import STORAGE, Spec, spec_of, torch_dtype
from prunecli.model import companions, configs
from prunecli.model.arch import BIASED, Arch, Tensor
from prunecli.model.checkpoint import Checkpoint, check_buildable
from prunecli.model.sparsity import claims, pattern_of, results_of, sparse_tensors
from prunecli.model.write import WriteSummary, size_results, write_tensors
from prunecli.report import SILENT, Report
from prunecli.settings import Output, Result

if TYPE_CHECKING:
    import torch

BASE_WIDTH = 256  # the hidden size at which mup draws as hf does
OFFICIAL_STD = 0.02


def _hf(name: str, arch: Arch) -> float:
    return 1.0


def _depth_scaled(name: str, arch: Arch) -> float:
    residual = name.endswith(tuple(f"{module}.weight" for module in BIASED))
    return 1 / sqrt(2 * arch.layers) if residual else 1.0


def _mup(name: str, arch: Arch) -> float:
    narrower = BASE_WIDTH / arch.hidden
    if name == "lm_head.weight":
        return narrower
    return sqrt(narrower) if ".layers." in name else 1.0


# the width of each matrix's draw, as multiples of the config's initializer_range:
# hf: as transformers draws them all;
# depth-scaled: matrices that write into the residual stream by 1/sqrt(2 layers)
#     (Radford et al. 2019, GPT-2, section 2.3);
# mup: variances of Yang et al. 2022 (arXiv 2203.03466, Table 8): 1/width inside the blocks,
#     1/width^2 in the output head, none in the embedding. Its learning rates are no part of this.
SCHEMES: dict[str, Callable[[str, Arch], float]] = {
    "hf": _hf,
    "depth-scaled": _depth_scaled,
    "mup": _mup,
}


MASKS = ("keep", "drop")


@dataclass(frozen=True)
class Shape:
    """What will be drawn: its shape, how it is stored, and whose twin it is."""

    arch: Arch
    specs: dict[str, Spec]
    shards: list[int]
    like: Checkpoint | None


def init(
    out: str,
    *,
    config: str | None = None,
    like: str | None = None,
    masks: str = "keep",
    scheme: str = "hf",
    warm: str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    tokenizer: str = "auto",
    compat: bool = False,
    output: Output | None = None,
    report: Report = SILENT,
) -> Result:
    """Write a random-weight checkpoint of the shape of a config.json, or `like` a checkpoint.

    With `masks` `keep` a twin of a sparse checkpoint has zeros where that one has. `warm` is a
    smaller checkpoint whose weights go into the leading block of every tensor, its layers repeated
    to the new depth. `compat` keeps embeddings, norms and biases of `like`, as the paper's script
    for sparse scratch does. `dtype` `auto` is the twin's or the config's own, else float32.
    `tokenizer` is a folder to copy it from, `bytes` (one token a byte, and an end of sequence where
    the vocabulary has an id left, which the config then names), `none`, or `auto`: the twin's, or
    bytes where the vocabulary has room for them.
    Raises UsageError, InputError for configs that no model can have, OutputExists.
    """
    output = output or Output()
    recorder = SidecarBuilder("init", output.argv)
    _check(config, like, masks, scheme, warm, compat)
    shape = _of_config(str(config), dtype, report) if like is None else _like(like, dtype, report)
    arch, twin = shape.arch, shape.like
    smaller = Checkpoint(warm, report) if warm is not None else None
    if smaller is not None:
        _check_smaller(smaller.arch, arch)
    folders = [found.folder for found in (twin, smaller) if found is not None]
    place.check_path(out, output, [*folders, *([Path(config)] if config else [])])
    if twin is not None and tokenizer == AUTO:
        files = twin.companion_files()
    else:
        tokenizer = _default_tokenizer(arch, report) if tokenizer == AUTO else tokenizer
        files = _tokenizer_files(tokenizer, arch)
    if tokenizer == "bytes":
        # what a config names of another tokenizer would be bytes here
        arch = Arch(
            {
                **arch.config,
                **{f"{mark}_token_id": None for mark in ("bos", "pad")},
                "eos_token_id": _end(arch),
            }
        )
        shape = replace(shape, arch=arch)
    check_buildable(arch)
    place.check_disk(out, sum(spec.bytes for spec in shape.specs.values()))
    inputs = [_config_input(arch)]
    if twin is not None:
        inputs = [twin.as_input(twin.digest(report), "like")]
    if smaller is not None:
        inputs.append(smaller.as_input(smaller.digest(report), "from"))
    options = {
        "seed": seed,
        "scheme": scheme,
        "masks": masks if twin is not None else None,
        "compat": "official" if compat else None,
        "dtype": dtype if twin is not None else arch.config["dtype"],
        "tokenizer": _digest(files),
    }
    if same := place.existing_result(
        out, output, sidecar.content_id("checkpoint", options, inputs)
    ):
        return same
    masked = twin if masks == "keep" else None
    held = sparse_tensors(masked).names if masked is not None else ()
    if output.dry_run:
        sizes = {"params_by_group": arch.params(), "sizes": arch.sizes}
        return Result(out, results={"params": arch.total_params, **sizes})
    pattern = pattern_of(results_of(masked))
    # a twin's draw must differ from that of its parent, should that have been made by `init` too:
    # with the mask kept it would be a rewound parent, not a model from scratch
    lot = f"{seed}" if twin is None else f"{seed} {inputs[0].digest}"
    draw = _Draw(shape, lot, "official" if compat else scheme, set(held), smaller)
    with place.staged(out) as temporary:
        stream = report.track(draw.tensors(), "drawing", len(shape.specs), "tensors")
        written = write_tensors(temporary, arch, shape.specs, shape.shards, stream, pattern)
        made = recorder.sidecar(
            "checkpoint",
            options,
            inputs,
            outputs={"digest": written.digest, "params": arch.total_params},
            results={
                "method": "scratch",
                **_twin_results(twin, masked, written),
                **size_results(arch, written),
            },
            parent=smaller.sidecar if smaller is not None else None,
        )
        written.finish(made, files)
    return Result(out, made.dump(), made.results)


def _check(
    config: str | None, like: str | None, masks: str, scheme: str, warm: str | None, compat: bool
) -> None:
    if (config is None) == (like is None):
        raise UsageError("init takes a shape", "use --like DIR or --config FILE.json, one of them")
    if scheme not in SCHEMES:
        raise UsageError(f"unknown scheme '{scheme}'{suggest(scheme, list(SCHEMES))}")
    if masks not in MASKS:
        raise UsageError(f"--masks '{masks}': expected keep or drop")
    if compat and (like is None or scheme != "hf" or warm is not None):
        raise UsageError("--compat official redraws a twin", "use it with --like alone")


def _of_config(config: str, dtype: str, report: Report) -> Shape:
    try:
        record = strict.read_object(Path(config))
    except FileNotFoundError:
        raise InputError(f"no such file: '{config}'", "check --config") from None
    record.pop("prunecli", None)
    record, whole = configs.of_language_model(record)
    if whole is not None:
        report.note(f"'{config}' is that of a '{whole}': its language model is drawn")
    arch = Arch(record)
    stated = record.get("dtype", record.get("torch_dtype"))
    record |= {
        "head_dim": arch.head_dim,
        "architectures": [f"{arch.family.classes}ForCausalLM"],
        "dtype": _dtype(stated if dtype == "auto" else dtype),
    }
    arch = Arch(record)
    stored = STORAGE[record["dtype"]]
    specs = {name: Spec(stored, tensor.shape) for name, tensor in arch.tensors().items()}
    return Shape(arch, specs, [0] * len(specs), None)


def _like(like: str, dtype: str, report: Report) -> Shape:
    twin = Checkpoint(like, report)
    arch, specs = twin.stored(dtype if dtype == "auto" else _dtype(dtype))
    # what this config says of its weights' making is not true of the twin's
    arch = Arch({key: value for key, value in arch.config.items() if key != "prunecli"})
    return Shape(arch, specs, [twin.shard(name) for name in specs], twin)


def _dtype(asked: Any) -> str:
    name = "float32" if asked is None else asked
    if not isinstance(name, str) or name not in STORAGE:
        raise UsageError(
            f"weights cannot be drawn as {strict.told(name)}, only as {', '.join(STORAGE)}",
            "give another --dtype",
        )
    return name


def _check_smaller(small: Arch, large: Arch) -> None:
    """Raise InputError unless every tensor of `small` fits into that of `large`."""
    for what in ("vocab", "head_dim", "group"):
        if getattr(small, what) != getattr(large, what):
            raise InputError(
                f"--from has {what} {getattr(small, what)}, the new model {getattr(large, what)}",
                "they must be equal",
            )
    for what in ("layers", "hidden", "ffn", "kv_heads"):
        if getattr(small, what) > getattr(large, what):
            raise InputError(
                f"--from has {what} {getattr(small, what)}, more than the new model's "
                f"{getattr(large, what)}",
                "start from a smaller checkpoint",
            )


@dataclass(frozen=True)
class _Draw:
    """The draws of one checkpoint."""

    shape: Shape
    lot: str
    scheme: str
    held: set[str]
    smaller: Checkpoint | None

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield every tensor, drawn in float32 and rounded to its storage type."""
        shapes = self.shape.arch.tensors()
        for name, spec in self.shape.specs.items():
            values = self._official(name, spec) if self.scheme == "official" else None
            if values is None:
                values = self._drawn(name, spec)
            if self.smaller is not None:
                self._overlay(values, shapes[name], name)
            if name in self.held and self.shape.like is not None:
                values.mul_(self.shape.like.tensor(name) != 0)
            drawn = values.to(torch_dtype(spec.dtype))
            assert spec_of(drawn) == spec
            yield name, drawn

    def _drawn(self, name: str, spec: Spec) -> "torch.Tensor":
        import torch

        arch = self.shape.arch
        if len(spec.shape) == 1:
            gain = 1.0 - arch.family.gain_offset
            return torch.full(spec.shape, 0.0 if name.endswith(".bias") else gain)
        if self.scheme == "official":
            width = OFFICIAL_STD
        else:
            width = float(arch.get("initializer_range")) * SCHEMES[self.scheme](name, arch)
        own = hashlib.sha256(f"{self.lot} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(own[:8], "little") >> 1)
        return torch.empty(spec.shape).normal_(0, width, generator=generator)

    def _official(self, name: str, spec: Spec) -> "torch.Tensor | None":
        """Return what the official script keeps: everything but the linear layers' weights."""
        kept = len(spec.shape) == 1 or "embed_tokens" in name
        assert self.shape.like is not None
        return self.shape.like.tensor(name).float().clone() if kept else None

    def _overlay(self, values: "torch.Tensor", tensor: Tensor, name: str) -> None:
        """Put the smaller checkpoint's tensor into the leading block of `values`."""
        assert self.smaller is not None
        small, large = self.smaller.arch, self.shape.arch
        if tensor.layer is not None:
            source = tensor.layer * small.layers // large.layers
            name = tensor.template.replace("{i}", str(source))
        if name == "lm_head.weight" and small.tied:
            name = "model.embed_tokens.weight"
        if name in self.smaller.specs:
            part = self.smaller.tensor(name).float()
            axes = [
                list(zip(small.segments(axis), large.segments(axis), strict=True))
                for axis in tensor.axes
            ]
            for pieces in product(*axes):
                target = tuple(
                    slice(new.start, new.start + old.stop - old.start) for old, new in pieces
                )
                values[target] = part[tuple(old for old, _ in pieces)]


def _twin_results(
    twin: Checkpoint | None, masked: Checkpoint | None, written: WriteSummary
) -> dict[str, Any]:
    """Return how small a twin is, compared with what its sibling was pruned from.

    `masked` is the twin if its zeros are kept.
    """
    if twin is None:
        return {}
    told = results_of(twin)
    names = ("granularity", "ratio", "ratio_total", "ratio_embedding")
    copied = {name: told[name] for name in names if name in told}
    return {**copied, **claims(told, results_of(masked), twin.arch, written.census)}


def _config_input(arch: Arch) -> Input:
    digest = hashlib.sha256(json.dumps(arch.config, sort_keys=True).encode()).hexdigest()
    return Input(role="config", digest=digest)


def _default_tokenizer(arch: Arch, report: Report) -> str:
    """Return `bytes` where the vocabulary has room for them, else `none`, and say so."""
    tokenizer, what = "bytes", "of bytes"
    if arch.vocab < BYTES:
        tokenizer, what = "none", f"left out, {arch.vocab} ids are too few"
    elif _end(arch) is None:
        what = f"of bytes, without an end of sequence: {arch.vocab} ids leave none for it"
    report.note(f"tokenizer: {what} (--tokenizer DIR copies another one)")
    return tokenizer


def _tokenizer_files(tokenizer: str, arch: Arch) -> dict[str, bytes]:
    """Return the tokenizer's files by name."""
    if tokenizer == "none":
        return {}
    if tokenizer == "bytes":
        if arch.vocab < BYTES:
            raise InputError(f"a vocabulary of {arch.vocab} is too small for {BYTES} bytes")
        return _byte_tokenizer(_end(arch) is not None)
    if not companions.vocabulary(tokenizer):
        raise InputError(f"no tokenizer in '{tokenizer}'", "give its folder, `bytes` or `none`")
    return companions.contents(tokenizer)


def _end(arch: Arch) -> int | None:
    """Return the end of sequence of a tokenizer of bytes: the id behind them, if there is one."""
    return BYTES if arch.vocab > BYTES else None


def _byte_tokenizer(ends: bool) -> dict[str, bytes]:
    """Return a tokenizer that makes every byte of UTF-8 text a token; END has the id behind them.

    Without an end of sequence neither tasks that generate nor documents in a row would know one.
    """
    from tokenizers import models

    vocabulary = {byte: i for i, byte in enumerate(alphabet())}
    bare = byte_level(models.BPE(vocabulary, []))
    if not ends:
        return files_of(bare)
    bare.add_special_tokens([END])
    return files_of(bare, eos_token=END)


def _digest(files: dict[str, bytes]) -> str | None:
    sha = hashlib.sha256()
    for name in sorted(files):
        sha.update(name.encode() + b"\0" + files[name])
    return sha.hexdigest() if files else None
