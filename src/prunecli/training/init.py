"""The library verb `init`: a checkpoint with random weights, such as a scratch twin.

Weights are initialized tensor by tensor, each from a seed of its own, so that no other tensor
changes them: norm weights 1, biases 0, matrices from a normal distribution whose standard deviation
is that of the scheme.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice, product
from math import prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.data.tokenizer import AUTO, BYTES, END, alphabet, byte_level, files_of
from prunecli.errors import InputError, UsageError, suggest
from prunecli.files import output, strict
from prunecli.files.artefact import Artefact
from prunecli.files.claim import exclusive
from prunecli.files.keeping import Keeper
from prunecli.files.sidecar import Input, SidecarBuilder
from prunecli.files.tensorfile import STORAGE, Spec, spans, torch_dtype
from prunecli.model import companions, configs
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint, check_buildable, home
from prunecli.model.families._base import CONFIG_KEYS
from prunecli.model.layout import Tensor, named
from prunecli.model.sparsity import claims, pattern_of, results_of, sparse_tensors
from prunecli.model.write import WriteSummary, size_results, write_tensors
from prunecli.report import Report
from prunecli.settings import InitRequest, Result, RunContext

if TYPE_CHECKING:
    import torch

    from prunecli.model.checkpoint import Stream

BASE_WIDTH = 256  # the hidden size at which mup is hf
OFFICIAL = "official"  # in place of a scheme: the paper's script for sparse twins
OFFICIAL_STD = 0.02


def _hf(name: str, arch: Arch) -> float:
    return 1.0


def _depth_scaled(name: str, arch: Arch) -> float:
    residual = arch.is_output(arch.tensors()[name])
    return 1 / sqrt(2 * arch.layers) if residual else 1.0


def _mup(name: str, arch: Arch) -> float:
    narrower = BASE_WIDTH / arch.hidden
    if name == f"{arch.family.head}.weight":
        return narrower
    return sqrt(narrower) if ".layers." in name else 1.0


# the standard deviation of each matrix, as multiples of the config's initializer_range:
# hf: 1, as transformers initializes them all;
# depth-scaled: 1/sqrt(2 layers) for matrices that write into the residual stream
#     (Radford et al. 2019, GPT-2, section 2.3);
# mup: variances of Yang et al. 2022 (arXiv 2203.03466, Table 8): 1/width inside the blocks,
#     1/width^2 in the output head, constant in the embedding. Its learning rates are not part of
#     this.
SCHEMES: dict[str, Callable[[str, Arch], float]] = {
    "hf": _hf,
    "depth-scaled": _depth_scaled,
    "mup": _mup,
}
MASKS = ("keep", "drop")


@dataclass(frozen=True)
class Target:
    """What will be initialized.

    Attributes:
        arch, specs, shards: its architecture, and how it is stored.
        reference: the checkpoint that it is a scratch twin of, None for a config's.
        warm_start: the smaller checkpoint whose weights it begins with, if any.
        masked: the reference if its zeros are kept.
        companions: files beside the weights, by name.
    """

    arch: Arch
    specs: dict[str, Spec]
    shards: list[int]
    reference: Checkpoint | None = None
    warm_start: Checkpoint | None = None
    masked: Checkpoint | None = None
    companions: dict[str, bytes] = field(default_factory=dict)

    def inputs(self, report: Report) -> list[Input]:
        """Return all inputs with their digests; reads every weight once."""
        reference, warm_start = self.reference, self.warm_start
        if reference is None:
            inputs = [_config_input(self.arch)]
        else:
            inputs = [reference.as_input(reference.digest(report), "like")]
        if warm_start is not None:
            inputs.append(warm_start.as_input(warm_start.digest(report), "from"))
        return inputs


@exclusive
def init(request: InitRequest, run: RunContext = RunContext()) -> Result:
    """Write a checkpoint with random weights to OUT, and a tokenizer with it.

    Raises UsageError, InputError for a config that no model can have, OutputExists.
    """
    builder = SidecarBuilder("init", run.output.argv)
    target = _resolve(request, run)
    arch, warm_start = target.arch, target.warm_start
    output.check_disk(run.output.path, sum(spec.bytes for spec in target.specs.values()))
    inputs = target.inputs(run.report)
    artefact = Artefact(
        builder, "checkpoint", _options(request, target), inputs, run,
        parent=warm_start.sidecar if warm_start is not None else None,
    )  # fmt: skip
    if existing := artefact.existing():
        return existing
    masked = target.masked
    masked_names = () if masked is None else sparse_tensors(masked, run.report).names
    sizes = {"params_by_group": arch.params(), "sizes": arch.sizes}
    if dry_run := artefact.settled({"params": arch.total_params, **sizes}):
        return dry_run
    # a twin must differ from the parent of its reference, which `init` may have made too: with
    # the mask kept it would be a rewound parent, not a model from scratch
    seed_key = f"{request.seed}"
    if target.reference is not None:
        seed_key += f" {inputs[0].digest}"
    scheme = OFFICIAL if request.compat else request.scheme
    initializer = Initializer(target, seed_key, scheme, set(masked_names))
    return _write(target, initializer.tensors(), artefact)


def _write(target: Target, tensors: "Stream", artefact: Artefact) -> Result:
    """Write OUT, one tensor at a time."""
    arch, specs = target.arch, target.specs
    pattern = pattern_of(results_of(target.masked))
    with output.staged(artefact.path) as temporary:
        written = write_tensors(
            temporary, arch, specs, target.shards, tensors, Keeper(artefact.run), pattern
        )
        record = artefact.sidecar(
            {"digest": written.digest, "params": arch.total_params},
            {
                "method": "scratch",
                **_reference_results(target, written),
                **size_results(arch, written),
            },
        )
        parent = None if target.warm_start is None else target.warm_start.folder
        written.finish(record, target.companions, artefact.path, parent)
    return artefact.result(record)


def _resolve(request: InitRequest, run: RunContext) -> Target:
    """Open and check everything that is read, and OUT."""
    _check(request)
    report = run.report
    folders = [home(model) for model in (request.like, request.warm) if model is not None]
    config = [Path(request.config)] if request.config else []
    output.check_path(run.output.path, run.output, [*folders, *config])
    if request.like is None:
        target = _of_config(str(request.config), request.dtype, report)
    else:
        target = _like(request.like, request.dtype, report)
        target = replace(target, masked=target.reference if request.masks == "keep" else None)
    if request.warm is not None:
        target = replace(target, warm_start=Checkpoint(request.warm, report))
        assert target.warm_start is not None
        _check_smaller(target.warm_start.arch, target.arch)
    target = _with_tokenizer(target, request.tokenizer, report)
    check_buildable(target.arch)
    return target


def _options(request: InitRequest, target: Target) -> dict[str, Any]:
    """Return what decides the weights beside the inputs, for the sidecar."""
    of_config = target.reference is None
    return {
        "seed": request.seed,
        "scheme": request.scheme,
        "masks": None if of_config else request.masks,
        "compat": "official" if request.compat else None,
        "dtype": target.arch.config["dtype"] if of_config else request.dtype,
        "tokenizer": _digest(target.companions),
    }


def _check(request: InitRequest) -> None:
    scheme, masks = request.scheme, request.masks
    if (request.config is None) == (request.like is None):
        raise UsageError("give exactly one of --like DIR and --config FILE.json")
    if scheme not in SCHEMES:
        raise UsageError(f"unknown scheme '{scheme}'{suggest(scheme, list(SCHEMES))}")
    if masks not in MASKS:
        raise UsageError(f"--masks '{masks}': expected keep or drop")
    if request.compat and (request.like is None or scheme != "hf" or request.warm is not None):
        raise UsageError(
            "--compat official is for twins of a checkpoint",
            "use it with --like, without --scheme and --from",
        )


def _of_config(config: str, dtype: str, report: Report) -> Target:
    try:
        record = strict.read_object(Path(config))
    except FileNotFoundError:
        raise InputError(f"no such file: '{config}'", "check --config") from None
    record.pop("prunecli", None)
    record, multimodal = configs.of_language_model(record)
    if multimodal is not None:
        report.info(f"'{config}' is of the multimodal '{multimodal}': using its language model")
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
    return Target(arch, specs, [0] * len(specs))


def _like(like: str, dtype: str, report: Report) -> Target:
    reference = Checkpoint(like, report)
    arch, specs = reference.stored(dtype if dtype == "auto" else _dtype(dtype))
    # how the reference was made is not how its twin is
    arch = Arch({key: value for key, value in arch.config.items() if key != "prunecli"})
    return Target(arch, specs, [reference.shard(name) for name in specs], reference)


def _dtype(dtype: Any) -> str:
    name = "float32" if dtype is None else dtype
    if not isinstance(name, str) or name not in STORAGE:
        raise UsageError(
            f"weights cannot be stored as {strict.told(name)}, only as {', '.join(STORAGE)}",
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
    for what in ("layers", "hidden", "ffn", "kv_heads", "experts"):
        if getattr(small, what) > getattr(large, what):
            raise InputError(
                f"--from has {what} {getattr(small, what)}, more than the new model's "
                f"{getattr(large, what)}",
                "start from a smaller checkpoint",
            )
    own = {*small.family.axes} & {*large.family.axes} - {*CONFIG_KEYS}
    # a rank of latent queries is none where queries are not latent
    used = ("+".join(tensor.axes).split("+") for tensor in large.tensors().values())
    for axis in sorted(own.intersection(chain(*used))):
        if small.axis_size(axis) != large.axis_size(axis):
            raise InputError(
                f"--from has {axis} {small.axis_size(axis)}, the new model {large.axis_size(axis)}",
                "they must be equal",
            )
    for i, kinds in enumerate(large.kinds):
        source = _source(i, small, large)
        if small.kinds[source] != kinds:
            raise InputError(
                f"layer {i} of the new model would start as layer {source} of --from, which is of "
                "another kind",
                "give layers of both in the same order",
            )
        sizes = small.size("head_dim", source), large.size("head_dim", i)
        if sizes[0] != sizes[1]:
            raise InputError(
                f"--from has head_dim {sizes[0]} in layer {source}, the new model {sizes[1]} in "
                f"layer {i}, which would start as that",
                "they must be equal",
            )


def _blocks(axis: str, i: int | None, small: Arch, large: Arch) -> list[tuple[slice, slice]]:
    """Return, for each part of an axis of layer `i`, its rows in a smaller model and in a larger.

    A part of the larger one starts as that of the smaller.
    """
    source = None if i is None else _source(i, small, large)
    if axis not in large.family.by_layer:
        parts = small.axis_slices(axis, source), large.axis_slices(axis, i)
        return list(zip(*parts, strict=True))
    size = large.axis_size(axis) // large.layers
    starts = [(_source(n, small, large) * size, n * size) for n in range(large.layers)]
    return [(slice(old, old + size), slice(new, new + size)) for old, new in starts]


def _source(layer: int, small: Arch, large: Arch) -> int:
    """Return as which layer of a smaller model a layer starts."""
    return layer * small.layers // large.layers


@dataclass(frozen=True)
class Initializer:
    """Initializes the tensors of one checkpoint; those of `masked_names` get the reference's zeros.

    `seed_key` is the text from which, with a tensor's name, its seed is made.
    """

    target: Target
    seed_key: str
    scheme: str
    masked_names: set[str]

    def tensors(self) -> "Stream":
        """Yield every tensor, initialized in float32 and rounded to its storage type."""
        return ((name, self._parts(name, spec)) for name, spec in self.target.specs.items())

    def _parts(self, name: str, spec: Spec) -> "Iterator[torch.Tensor]":
        """Yield one tensor in parts, each some more of its rows."""
        import torch

        tensor, reference = self.target.arch.tensors()[name], self.target.reference
        kept = self._official(name, spec) if self.scheme == OFFICIAL else None
        drawn = self._random(name, spec)
        if not spec.shape:
            yield (drawn(()) if kept is None else kept).to(torch_dtype(spec.dtype))
            return
        for rows in spans(spec.shape[0], 4 * prod(spec.shape[1:])):
            shape = (rows.stop - rows.start, *spec.shape[1:])
            values = drawn(shape) if kept is None else kept[rows].to(torch.float32, copy=True)
            if self.target.warm_start is not None:
                self._overlay(values, rows, tensor, name, self.target.warm_start)
            if name in self.masked_names and reference is not None:
                values.mul_(reference.tensor(name)[rows] != 0)
            yield values.to(torch_dtype(spec.dtype))

    def _random(self, name: str, spec: Spec) -> "Callable[[tuple[int, ...]], torch.Tensor]":
        """Return what draws the next rows of a tensor, of the shape that it is called with."""
        import torch

        arch = self.target.arch
        if len(spec.shape) < 2:
            norm_weight = 1.0 - arch.family.norm_weight_offset
            usual = 0.0 if name.endswith(".bias") else norm_weight
            others = (value for end, value in arch.family.initial.items() if name.endswith(end))
            first = next(others, usual)
            if not callable(first):
                return lambda shape: torch.full(shape, first)
            rows = iter(torch.tensor(first(spec.shape[0])))
            return lambda shape: torch.stack([*islice(rows, *shape)])
        if self.scheme == OFFICIAL:
            std = OFFICIAL_STD
        else:
            std = float(arch.get(arch.family.key("initializer_range"))) * SCHEMES[self.scheme](
                name, arch
            )
        seed = hashlib.sha256(f"{self.seed_key} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "little") >> 1)
        return lambda shape: torch.empty(shape).normal_(0, std, generator=generator)

    def _official(self, name: str, spec: Spec) -> "torch.Tensor | None":
        """Return what the official script keeps: all but the weights of linear layers."""
        kept = len(spec.shape) < 2 or ".embed" in name
        assert self.target.reference is not None
        return self.target.reference.tensor(name) if kept else None

    def _overlay(
        self,
        values: "torch.Tensor",
        rows: slice,
        tensor: Tensor,
        name: str,
        warm_start: Checkpoint,
    ) -> None:
        """Copy the smaller checkpoint's tensor into the leading block of `values`, some rows."""
        small, large = warm_start.arch, self.target.arch
        if tensor.layer is not None:
            name = named(tensor.template, _source(tensor.layer, small, large), tensor.expert)
        if name == f"{large.family.head}.weight" and small.tied:
            name = f"{small.family.embedding}.weight"
        if name in warm_start.specs:
            part = warm_start.tensor(name)
            axes = [_blocks(axis, tensor.layer, small, large) for axis in tensor.axes]
            for (old, new), *others in product(*axes):
                # of the first axis what these rows have of it
                start = max(new.start, rows.start)
                stop = max(start, min(new.start + old.stop - old.start, rows.stop))
                moved = old.start - new.start
                block = tuple(slice(to.start, to.start + of.stop - of.start) for of, to in others)
                values[slice(start - rows.start, stop - rows.start), *block] = part[
                    slice(start + moved, stop + moved), *(of for of, _ in others)
                ].float()


def _reference_results(target: Target, written: WriteSummary) -> dict[str, Any]:
    """Return how small a twin is, compared with what its reference was pruned from."""
    if target.reference is None:
        return {}
    results = results_of(target.reference)
    names = ("granularity", "ratio", "ratio_total", "ratio_embedding")
    inherited = {name: results[name] for name in names if name in results}
    masked, arch = results_of(target.masked), target.reference.arch
    return {**inherited, **claims(results, masked, arch, written.census)}


def _config_input(arch: Arch) -> Input:
    digest = hashlib.sha256(json.dumps(arch.config, sort_keys=True).encode()).hexdigest()
    return Input(role="config", digest=digest)


def _with_tokenizer(target: Target, tokenizer: str, report: Report) -> Target:
    """Return the target with the files of its tokenizer, which its config then names."""
    if tokenizer == AUTO and target.reference is not None:
        return replace(target, companions=target.reference.companion_files())
    arch = target.arch
    tokenizer = _default_tokenizer(arch, report) if tokenizer == AUTO else tokenizer
    files = _tokenizer_files(tokenizer, arch)
    if tokenizer == "bytes":
        # ids that a config names of another tokenizer would be bytes here
        ids = {"bos_token_id": None, "pad_token_id": None, "eos_token_id": _end(arch)}
        arch = Arch({**arch.config, **ids})
    return replace(target, arch=arch, companions=files)


def _default_tokenizer(arch: Arch, report: Report) -> str:
    """Return `bytes` where the vocabulary has room for them, else `none`, and report it."""
    choose = "choose another with --tokenizer DIR"
    if arch.vocab < BYTES:
        report.info(f"no tokenizer: vocab_size {arch.vocab} is too small for bytes; {choose}")
        return "none"
    end = f", without an end of sequence: vocab_size is {arch.vocab}" if _end(arch) is None else ""
    report.info(f"using a byte tokenizer{end}; {choose}")
    return "bytes"


def _tokenizer_files(tokenizer: str, arch: Arch) -> dict[str, bytes]:
    """Return the tokenizer's files by name."""
    if tokenizer == "none":
        return {}
    if tokenizer == "bytes":
        if arch.vocab < BYTES:
            raise InputError(
                f"vocab_size {arch.vocab} is too small for the {BYTES} tokens of a byte tokenizer",
                "use --tokenizer none, or a folder",
            )
        return _byte_tokenizer(_end(arch) is not None)
    if not companions.vocabulary(tokenizer):
        raise InputError(f"no tokenizer in '{tokenizer}'", "give its folder, `bytes` or `none`")
    return companions.contents(tokenizer)


def _end(arch: Arch) -> int | None:
    """Return the end of sequence of a byte tokenizer: the id after the bytes, if there is one."""
    return BYTES if arch.vocab > BYTES else None


def _byte_tokenizer(with_end: bool) -> dict[str, bytes]:
    """Return a tokenizer that makes every byte of UTF-8 text a token; END has the id after them.

    Without an end of sequence, generation does not stop and documents in a row are not separated.
    """
    from tokenizers import models

    vocabulary = {byte: i for i, byte in enumerate(alphabet())}
    tokenizer = byte_level(models.BPE(vocabulary, []))
    if not with_end:
        return files_of(tokenizer)
    tokenizer.add_special_tokens([END])
    return files_of(tokenizer, eos_token=END)


def _digest(files: dict[str, bytes]) -> str | None:
    sha = hashlib.sha256()
    for name in sorted(files):
        sha.update(name.encode() + b"\0" + files[name])
    return sha.hexdigest() if files else None
