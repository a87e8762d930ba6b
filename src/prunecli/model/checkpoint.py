"""Checkpoints: Hugging Face model folders, read and written as streams of tensors.

Nothing here holds more than one tensor. A checkpoint of one file stays one file; a sharded one
keeps its sharding: a tensor goes to the shard of the tensor that it was made from.
"""

import glob
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from prunecli.errors import InputError, PruneError, refused
from prunecli.files import provenance, regular, sidecar, strict
from prunecli.files.output import write_bytes, write_text
from prunecli.files.tensorfile import (
    MAX_TENSORS,
    STORAGE,
    Inside,
    ReadingAhead,
    Spec,
    TensorWriter,
    combined_digest,
    pieces,
    read_header,
    read_tensor,
    rows_of,
    spans,
    tensor_digest,
)
from prunecli.model import companions, configs, foreign
from prunecli.model.arch import Arch
from prunecli.model.families._wrappers import WRAPPERS, Prefixes, plain
from prunecli.model.wrapper import Wrapper
from prunecli.report import SILENT, Report

if TYPE_CHECKING:
    import torch

    # names of tensors, and each in parts that are some more of its rows
    Stream = Iterator[tuple[str, Iterable[torch.Tensor]]]

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F32", "BF16", "F16", "F64")


# computed by transformers from the config, but stored by older versions of it
LAYER = re.compile(r"\blayers\.(\d{1,9})\.")
EXPERT = re.compile(r"\blayers\.(\d{1,9})\.[\w.]{0,99}?\bexperts\.(\d{1,9})\.")
BUFFER = "rotary_emb.inv_freq"
SHOWN = ("layers", "hidden", "heads", "kv_heads", "ffn")
HUB = "hf:"  # what a name on the hub begins with


def locate(model: str) -> Path:
    """Return the folder of IN: a folder, or `hf:org/name[@revision]` fetched from the hub.

    Raises InputError if it is missing or the hub cannot be reached.
    """
    if model.startswith(HUB):
        return _from_hub(model.removeprefix(HUB))
    path = Path(model)
    if regular.is_dir(path):
        return path
    if regular.exists(path):
        foreign.refuse_file(path)
        raise InputError(f"'{model}' is a file, expected a model folder")
    hint = f"for the Hugging Face hub write hf:{model}" if _is_id(model) else "check the path"
    raise InputError(f"no such folder: '{model}'", hint)


def home(model: str) -> Path:
    """Return where the folder of IN is; of one on the hub, the folder that holds it once fetched.

    Nothing is opened or fetched, so that OUT can be looked at first.
    """
    if not model.startswith(HUB):
        return Path(model)
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _is_id(model: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model))


def _from_hub(name: str) -> Path:
    repo, _, revision = name.partition("@")
    if not _is_id(repo):
        raise InputError(f"'hf:{name}' is not hf:org/name[@revision]")
    from huggingface_hub import snapshot_download

    def fetch(revision: str | None, *patterns: str) -> Path:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))

    try:
        folder = fetch(
            revision or None, "config.json", sidecar.FOLDER_SIDECAR, INDEX, sidecar.CARD,
            *companions.ALL,
        )  # fmt: skip
        # of all formats in a repository only what will be read, and of the same commit
        files = [glob.escape(name) for name in _indexed(folder / INDEX)] or [ONE_FILE]
        return fetch(folder.name, *files, *_beside_wrapper(folder / "config.json"))
    except InputError:
        raise
    except Exception as error:
        # the hub client's errors have no common base that is part of its interface
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise refused(error) or InputError(
            f"cannot fetch 'hf:{name}' from the Hugging Face hub: {why}",
            f"fetch it elsewhere, with `hf download {repo} --local-dir DIR`, and give that folder",
        ) from None


def _beside_wrapper(config: Path) -> tuple[str, ...]:
    """Return the patterns of files that a multimodal model has beside those of a language model."""
    kind = strict.read_object(config).get("model_type") if config.exists() else None
    return companions.PROCESSOR if str(kind) in WRAPPERS else ()


def _indexed(index: Path) -> list[str]:
    """Return the files that an index names, each once; none if there is no index.

    Raises InputError if it cannot be read, or names anything but .safetensors files beside it.
    """
    if not index.exists():
        return []
    weight_map = strict.read_object(regular.inside(index.parent, index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"'{index}' has no weight_map of names to files")
    files = sorted(set(map(str, weight_map.values())))
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(f"{INDEX} names '{file}', expected a .safetensors file beside it")
    return files


class Reader(ABC):
    """What reads like a checkpoint: an architecture, and tensors by name.

    Attributes:
        arch: its architecture. specs: type and shape of each tensor by name.
    """

    arch: Arch
    specs: dict[str, Spec]

    @abstractmethod
    def tensor(self, name: str) -> "torch.Tensor":
        """Return one tensor."""

    def ahead(self, names: "Iterable[str]") -> None:  # noqa: B027 - where there are no files
        """Let tensors be read from their files, which will be asked for next; returns at once."""

    def scalars(self, layers: "Iterable[int]") -> float:
        """Return the product of the numbers by which these layers multiply what leaves them."""
        name = self.arch.family.scalar
        if name is None:
            return 1.0
        return prod(float(self.tensor(f"{self.arch.prefix(i)}{name}")) for i in layers)

    @property
    def num_bytes(self) -> int:
        """How many bytes all tensors take in a file."""
        return sum(spec.bytes for spec in self.specs.values())

    def parts(self, name: str) -> "Iterator[torch.Tensor]":
        """Yield one tensor in parts, each some more of its rows; never all of a large one."""
        return rows_of(self.tensor(name))

    def stream(self) -> "Stream":
        """Yield every tensor's name and its parts, which are made as they are asked for."""
        return ((name, self.parts(name)) for name in self.specs)


class Checkpoint(Reader):
    """A model folder, read tensor by tensor.

    Opening it checks everything that headers show: that each tensor is one of its family and has
    the shape that follows from config.json, and that none is missing. What transformers loads in
    another layout (docs/checkpoints.md) has the same names here. Raises InputError otherwise.
    Unless `asked` is true, transformers, which is slow to load, has no say in config.json.

    Attributes:
        folder: the model folder. arch: its architecture. specs: type and shape of each tensor.
        hub: `org/name@commit` where it came from a hub, else None.
        part_of: the `model_type` of the multimodal model that it is the language model of, or None.
        sidecar: its record, None if prunecli did not make it.
    """

    def __init__(self, model: str, report: Report = SILENT, asked: bool = True) -> None:
        self.folder = locate(model)
        self.hub = None
        if model.startswith(HUB):
            # a snapshot's folder is called like its commit
            self.hub = f"{model.removeprefix(HUB).partition('@')[0]}@{self.folder.name}"
        if not any((self.folder / name).exists() for name in (ONE_FILE, INDEX)):
            foreign.refuse_folder(self.folder)
        elif (self.folder / foreign.ADAPTER).exists():
            report.info(f"'{model}' has an adapter beside its weights, which is ignored")
        config, self.part_of = configs.read(self.folder, asked=asked)
        self.arch = Arch(config)
        family = self.arch.family
        self._head, self._embedding = f"{family.head}.weight", f"{family.embedding}.weight"
        # by the name used here: the file, the tensor's name in it, and where it lies in a stack
        self._stored: dict[str, tuple[Path, str]] = {}
        self._inside: dict[str, Inside] = {}
        self._joined: dict[str, list[tuple[Path, str]]] = {}  # the parts of those stored so
        self._ahead = ReadingAhead()
        self.specs: dict[str, Spec] = {}
        self._others: dict[str, tuple[Path, Spec]] = {}  # those of other parts, by stored name
        self._find_tensors(report)
        self._tie(report)
        self._check_tensors()
        self.sidecar = sidecar.read_if_any(self.folder)
        if self.sidecar is not None and self.sidecar.kind != "checkpoint":
            raise InputError(f"'{model}' is '{self.sidecar.kind}', expected 'checkpoint'")

    def _files(self) -> list[Path]:
        """Return the files with weights."""
        files = _indexed(self.folder / INDEX)
        if (self.folder / ONE_FILE).exists():
            if files not in ([], [ONE_FILE]):
                # transformers would read the one file, other programs the others
                raise InputError(
                    f"'{self.folder}' has {ONE_FILE}, and an {INDEX} of other files",
                    "remove the one that is out of date",
                )
            files = [ONE_FILE]
        if not files:
            raise InputError(
                f"'{self.folder}' is not a checkpoint: it has no {ONE_FILE} and no {INDEX}"
            )
        for file in files:
            if not (self.folder / file).exists():
                raise InputError(f"{INDEX} names a missing shard: '{file}'", "download it again")
        return [regular.inside(self.folder, self.folder / file) for file in files]

    def _find_tensors(self, report: Report) -> None:
        """Find each tensor in the files; these count, not what an index says of them."""
        headers = {path: read_header(path) for path in self._files()}
        family = self.arch.family
        self._check_layers(headers)
        own, inside = self.arch.tensors(), self.arch.stacked()
        of_stack: dict[str, list[str]] = {}
        for part, place in inside.items():
            of_stack.setdefault(place.name, []).append(part)
        joined = self.arch.joined()
        apart = {part for parts in joined.values() for part in parts}
        in_parts: dict[str, tuple[Path, str, Spec]] = {}
        expected = {*own, *of_stack, *apart, self._head}
        prefixes = plain(family) if self.part_of is None else WRAPPERS[self.part_of]
        left_out, without = self._left_out(), dict[str, str]()
        for path, header in headers.items():
            for stored, spec in header.items():
                name = _own_name(family.own_name(stored), prefixes, expected)
                why = [why for why, names in left_out.items() if (name or "").startswith(names)]
                if why:
                    without[stored] = why[0]
                    continue
                if name is None:
                    self._others[stored] = path, spec
                    continue
                if BUFFER in stored or stored.endswith(family.buffers):
                    continue
                if name in apart:
                    in_parts[name] = path, stored, spec
                elif name not in of_stack:
                    self._add(name, path, stored, spec)
                for part in of_stack.get(name, ()):
                    if spec.shape != inside[part].whole(own[part].shape):
                        raise _misshapen(stored, spec, inside[part].whole(own[part].shape))
                    self._add(part, path, stored, Spec(spec.dtype, own[part].shape))
                    self._inside[part] = inside[part]
        self._join(joined, in_parts)
        self.specs = {name: self.specs[name] for name in sorted(self.specs)}
        self._tell(without, report)
        found = self._stored.get(self._embedding)
        headless = found is not None and family.own_name(found[1]) != self._embedding
        if self.part_of is not None or headless:
            classes = {"architectures": [f"{self.arch.family.classes}ForCausalLM"]}
            self.arch = Arch({**self.arch.config, **classes})

    def _left_out(self) -> dict[str, tuple[str, ...]]:
        """Return what the names of unread tensors begin with, by what is said of them."""
        family, layers = self.arch.family, str(self.arch.layers)
        return {
            "only predict further tokens": tuple(
                name.replace("{layers}", layers) for name in family.left_out
            ),
            "no layer reads": tuple(
                f"{self.arch.prefix(i)}{module}."
                for i, kinds in enumerate(self.arch.kinds)
                for kind in kinds
                for module in family.unused.get(kind, ())
            ),
        }

    def _tell(self, without: Mapping[str, str], report: Report) -> None:
        """Tell which tensors are left out, and why, and which parts of a wrapper."""
        for why, count in Counter(without.values()).items():
            report.info(
                f"'{self.folder.name}' has {count} tensors that {why} "
                f"('{min(name for name in without if without[name] == why)}' is one), which are "
                "left out"
            )
        if self.part_of is not None:
            parts = ", ".join(sorted({_part(name) for name in self._others})) or "none"
            report.info(
                f"'{self.folder.name}' is a multimodal '{self.part_of}': its language model is "
                f"read, a '{self.arch.config['model_type']}'; parts left out: {parts}"
            )

    def _add(self, name: str, path: Path, stored: str, spec: Spec) -> None:
        """Note where a tensor is stored; raise InputError if it is elsewhere, too."""
        if name in self.specs:
            before, also = self._stored[name]
            raise InputError(
                f"'{name}' is stored twice: as '{also}' in '{before.name}' and as "
                f"'{stored}' in '{path.name}'",
                "remove one of them",
            )
        self._stored[name], self.specs[name] = (path, stored), spec

    def _join(
        self, joined: Mapping[str, list[str]], found: Mapping[str, tuple[Path, str, Spec]]
    ) -> None:
        """Note tensors that are stored in parts; those that lack one are missing."""
        for name, parts in joined.items():
            if not all(part in found for part in parts):
                continue
            path, stored, spec = found[parts[0]]
            rows = 0
            for _, other, its in map(found.__getitem__, parts):
                if not its.shape or (its.dtype, its.shape[1:]) != (spec.dtype, spec.shape[1:]):
                    raise InputError(
                        f"'{other}' is {its.dtype} {list(its.shape)}, which cannot follow "
                        f"'{stored}', {spec.dtype} {list(spec.shape)}",
                        "check that the download is complete",
                    )
                rows += its.shape[0]
            self._add(name, path, stored, Spec(spec.dtype, (rows, *spec.shape[1:])))
            self._joined[name] = [found[part][:2] for part in parts]

    def _check_layers(self, headers: Mapping[Path, Mapping[str, Spec]]) -> None:
        """Raise InputError for more layers or experts in config.json than in weights so named.

        It is asked before any list of them is made.
        """
        names = [self.arch.family.own_name(name) for file in headers.values() for name in file]
        layers = {match[1] for match in map(LAYER.search, names) if match}
        experts = {match.groups() for match in map(EXPERT.search, names) if match}
        # of a layer, so that there are as many names as both numbers make together
        mixtures = max(1, len(self.arch.with_units("experts")))
        count = len(experts) + self._stacked_experts(headers)
        found = {"layers": len(layers), "experts": count // mixtures}
        for what, stored in found.items():
            if getattr(self.arch, what) > stored:
                foreign.refuse_names(names)
                raise InputError(
                    f"config.json: {self.arch.family.key(what)} is {getattr(self.arch, what)}, but "
                    f"the weights are of {stored} {what}",
                    "check that the download is complete",
                )

    def _stacked_experts(self, headers: Mapping[Path, Mapping[str, Spec]]) -> int:
        """Return how many experts of all layers there are in stacks; raise InputError for too many.

        Those without numbers do not count.
        """
        counts: dict[str, int] = {}
        stacks = self.arch.stacks
        for file in headers.values():
            for name, spec in file.items():
                match = LAYER.search(name)
                if match and spec.shape and name[match.end() :] in stacks:
                    counts[match[1]] = min(spec.shape[0], spec.bytes)
        count = sum(counts.values())
        if count > MAX_TENSORS:
            raise InputError(f"the weights are of {count} experts, more than {MAX_TENSORS}")
        return count

    def _tie(self, report: Report) -> None:
        """Decide what the output head is where config.json says that it is the embedding."""
        head, embedding = self._head, self._embedding
        if not self.arch.tied or head not in self.specs:
            return
        if embedding not in self.specs:
            # whichever is stored serves as both
            self._stored[embedding] = self._stored[head]
            self.specs[embedding] = self.specs[head]
        elif not self._equal(head, embedding):
            # transformers then loads both, so the model is not tied
            self.arch = Arch({**self.arch.config, "tie_word_embeddings": False})
            types = " and ".join(self.specs[name].dtype for name in (embedding, head))
            report.info(
                f"config.json ties the output head to the embedding, but both are stored ({types}) "
                "and differ; they are read as untied, as transformers does in float32"
            )
            return
        del self._stored[head], self.specs[head]

    def _equal(self, one: str, other: str) -> bool:
        """Return whether two matrices hold equal numbers, whatever their types."""
        if self.specs[one].shape != self.specs[other].shape:
            return False
        left, right = self.tensor(one), self.tensor(other)
        return all(
            bool(left[rows].double().equal(right[rows].double()))
            for rows in spans(len(left), 8 * left.shape[1])
        )

    def _check_tensors(self) -> None:
        expected, family = self.arch.tensors(), self.arch.family.name
        unknown = [name for name in self.specs if name not in expected]
        experts = self.arch.family.experts
        if experts is not None and experts.stacked:  # transformers would not find them
            apart = (name for name, tensor in expected.items() if tensor.expert is not None)
            unknown += [name for name in apart if name in self.specs and name not in self._inside]
        missing = [name for name in expected if name not in self.specs]
        foreign.refuse_names(self._stored[name][1] for name in unknown)
        for name in unknown:
            raise InputError(f"unexpected tensor '{name}': not part of a {family} with this config")
        for name, spec in self.specs.items():
            if spec.shape != expected[name].shape:
                raise _misshapen(name, spec, expected[name].shape)
            if spec.dtype not in FLOATS:
                raise InputError(
                    f"'{name}' is stored as {spec.dtype}, expected one of {', '.join(FLOATS)}",
                    "dequantise the model first",
                )
        if missing == [self._head]:
            raise InputError(
                f"the output head '{self._head}' is missing, and config.json does not tie it to "
                "the embedding",
                "if it is the embedding, set tie_word_embeddings to true; else download it again",
            )
        for name in missing:
            raise InputError(f"tensor '{name}' is missing", "check that the download is complete")

    def tensor(self, name: str) -> "torch.Tensor":
        """Return one tensor as a view of the memory-mapped file; do not write into it.

        One that is stored in parts is a copy.
        """
        if name in self._joined:
            import torch

            return torch.cat([read_tensor(*part) for part in self._joined[name]])
        return read_tensor(*self._stored[name], self._inside.get(name))

    def ahead(self, names: "Iterable[str]") -> None:
        """Let tensors be read from their files, which will be asked for next; returns at once."""
        self._ahead.begin(
            part for name in names for part in self._joined.get(name, [self._stored[name]])
        )

    def shard(self, name: str) -> int:
        """Return the number of the file that holds `name`, counting from 0."""
        return self._shards.index(self._stored[name][0])

    @property
    def _shards(self) -> list[Path]:
        files = (*self._stored.values(), *self._others.values())
        return sorted({path for path, _ in files})

    def wrapper(self) -> Wrapper | None:
        """Return the multimodal model that this is the language model of, to be kept around it."""
        if self.part_of is None:
            return None
        values = strict.read_object(regular.inside(self.folder, self.folder / "config.json"))
        names = {own: stored for own, (_, stored) in self._stored.items()}
        shards = {name: self._shards.index(path) for name, (path, _) in self._others.items()}
        return Wrapper(self.part_of, values, WRAPPERS[self.part_of], names, self._others, shards)

    def digest(self, report: Report = SILENT) -> str:
        """Read all tensors once and return their digest; raise InputError at a NaN or infinity.

        They are hashed by as many threads as compute, beside the one that looks at the numbers:
        most of the time is the hash's.
        """
        import torch

        digests, pool = {}, ThreadPoolExecutor(torch.get_num_threads())
        try:
            hashed = {name: pool.submit(self._digest_of, name) for name in self.specs}
            with report.reading("checking weights", self.num_bytes) as passed:
                for name in self.specs:
                    for piece in pieces(self.tensor(name)):
                        if not all_finite(piece):
                            raise InputError(
                                f"'{name}' has NaN or infinite weights", "is the file damaged?"
                            )
                        passed(piece.nbytes)
                    digests[name] = hashed[name].result()
        finally:
            pool.shutdown(cancel_futures=True)
        config = {k: v for k, v in self.arch.config.items() if k != "prunecli"}
        shape = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        return combined_digest({**digests, "config.json": shape})

    def _digest_of(self, name: str) -> str:
        return tensor_digest(self.tensor(name))

    def stored(self, dtype: str) -> tuple[Arch, dict[str, Spec]]:
        """Return architecture and specs of this model stored as `dtype`; `auto` is as it is.

        The architecture's config names the type too, in the key that transformers reads first.
        """
        tensors = self.arch.tensors()
        if dtype == "auto":
            return self.arch, {name: self.specs[name] for name in tensors}
        config = {key: value for key, value in self.arch.config.items() if key != "torch_dtype"}
        specs = {name: Spec(STORAGE[dtype], tensor.shape) for name, tensor in tensors.items()}
        return Arch({**config, "dtype": dtype}), specs

    def as_input(self, digest: str, role: str = "model") -> sidecar.Input:
        """Return this checkpoint as an input of a sidecar; `digest` is that of its content."""
        known = {"id": self.sidecar.id if self.sidecar else None, "digest": digest}
        optional = {"part_of": self.part_of, "hub": self.hub}
        given = {name: value for name, value in optional.items() if value is not None}
        return sidecar.Input.model_validate({"role": role, **known, **given})

    def companion_files(self, wrapped: bool = False) -> dict[str, bytes]:
        """Return the files that belong to the model, by name: tokenizer, generation settings.

        With those of what prepares other parts' inputs where it stays `wrapped`.
        """
        patterns = (*companions.PROCESSOR, *companions.ALL) if wrapped else companions.ALL
        return companions.contents(self.folder, patterns)

    @property
    def trained(self) -> list[sidecar.Trained]:
        """The rows that this model and its ancestors are known to have been trained on."""
        if self.sidecar is None:
            return []
        rows = list(self.sidecar.tokens.trained)
        for step in self.sidecar.history:
            inputs = [(entry.role, entry.model_extra or {}) for entry in step.inputs]
            if any(role == "rows" and "passes" in meta for role, meta in inputs):
                # what was read as several domains counts as one set of rows: these are its parts
                parts = (
                    provenance.trained_on(meta) for role, meta in inputs if role == "calibration"
                )
                rows += filter(None, parts)
        return rows


def all_finite(piece: "torch.Tensor") -> bool:
    """Return whether a piece of a tensor has no NaN and no infinity: least and greatest tell."""
    return all(bool(bound.isfinite()) for bound in piece.aminmax())


def _misshapen(name: str, spec: Spec, expected: tuple[int, ...]) -> InputError:
    """Return the error for a tensor that is not of the shape that config.json tells."""
    return InputError(
        f"'{name}' has shape {list(spec.shape)}, expected {list(expected)} from config.json"
    )


def _own_name(stored: str, prefixes: Prefixes, expected: set[str]) -> str | None:
    """Return the name used here for a stored tensor, None if it belongs to another part."""
    names = [new + stored.removeprefix(old) for old, new in prefixes if stored.startswith(old)]
    return next((name for name in names if name in expected), names[0] if names else None)


def _part(stored: str) -> str:
    return next(part for part in stored.split(".") if part != "model")


class CheckpointWriter:
    """Writes a model folder tensor by tensor into `folder`.

    `shards` numbers the shard of each tensor, `opened` makes the writer of a shard. Names, config
    and digest are those of the language model; what is written is the model `around` it, if any.
    Use as a context manager: leaving it writes the index.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, object],
        specs: dict[str, Spec],
        shards: list[int],
        opened: Callable[[Path, Mapping[str, Spec]], TensorWriter] = TensorWriter,
        around: Wrapper | None = None,
    ) -> None:
        self.folder, self.around = folder, around
        folder.mkdir(parents=True, exist_ok=True)
        self._config = {
            key: value for key, value in config.items() if key not in configs.PREFERENCES
        }
        arch = Arch(config)

        def saved(name: str) -> str:
            stored = around.stored(name) if around else name
            return arch.family.saved_name(stored)

        self._stored = {name: saved(name) for name in specs}
        places = {name: one._replace(name=saved(one.name)) for name, one in _together(arch).items()}
        self.specs = {
            self._stored[name]: spec._replace(inside=places.get(name))
            for name, spec in specs.items()
        }
        numbers = dict(zip(self.specs, shards, strict=True))
        if around is not None:
            self.specs |= around.specs
            numbers |= around.shards
        used = sorted(set(numbers.values()))
        if len(used) == 1:
            names = [ONE_FILE]
        else:
            names = [f"model-{i + 1:05}-of-{len(used):05}.safetensors" for i in range(len(used))]
        self._shard_of = {name: used.index(shard) for name, shard in numbers.items()}
        self._writers = [
            opened(
                folder / file,
                {name: spec for name, spec in self.specs.items() if self._shard_of[name] == i},
            )
            for i, file in enumerate(names)
        ]

    def write(self, name: str, parts: "Iterable[torch.Tensor]") -> None:
        """Write one tensor that comes as parts, each some more of its rows; in any order."""
        stored = self._stored[name]
        self._writers[self._shard_of[stored]].write_rows(stored, parts)

    def written(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield the tensors of the language model that are written already."""
        for name in self.digests:
            stored = self._stored[name]
            spec, path = self.specs[stored], self._writers[self._shard_of[stored]].path
            yield name, read_tensor(path, spec.stored(stored)[0], spec.inside)

    def copy_around(self) -> "Iterator[str]":
        """Copy the other parts' tensors, those that are not written yet, and yield each name."""
        for name, parts in self.around.stream() if self.around else ():
            writer = self._writers[self._shard_of[name]]
            if name not in writer.digests:
                writer.write_rows(name, parts)
            yield name

    @property
    def digests(self) -> dict[str, str]:
        """Digest of every tensor of the language model written so far."""
        found = self._all_digests()
        return {name: found[stored] for name, stored in self._stored.items() if stored in found}

    def _all_digests(self) -> dict[str, str]:
        return {name: text for writer in self._writers for name, text in writer.digests.items()}

    def around_digest(self) -> str | None:
        """Return the digest of the other parts, None where there are none."""
        if self.around is None:
            return None
        found = self._all_digests()
        return combined_digest({name: found[name] for name in self.around.specs})

    def digest(self) -> str:
        """Return the digest of the checkpoint, equal to what reading it again gives."""
        config = {k: v for k, v in self._config.items() if k != "prunecli"}
        shape = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        return combined_digest({**self.digests, "config.json": shape})

    def finish(self, identity: str, companion_files: Mapping[str, bytes]) -> None:
        """Write config.json, marked with the sidecar's id, and the model's other files."""
        config = {**self._config, "prunecli": {"id": identity}}
        config = self.around.config(config) if self.around else config
        write_text(self.folder / "config.json", json.dumps(config, indent=2) + "\n")
        for name, content in companion_files.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            write_bytes(self.folder / name, content)

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for writer in self._writers:
            writer.__exit__(kind, error, trace)
        if kind is None and len(self._writers) > 1:
            files = [writer.path.name for writer in self._writers]
            where = {
                spec.stored(name)[0]: files[self._shard_of[name]]
                for name, spec in self.specs.items()
            }
            index = {
                "metadata": {"total_size": sum(spec.bytes for spec in self.specs.values())},
                "weight_map": dict(sorted(where.items())),
            }
            write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")


def _together(arch: Arch) -> dict[str, Inside]:
    """Return where in stacks tensors are written: those of experts, if files always have these."""
    experts = arch.family.experts
    return arch.stacked() if experts is not None and experts.stacked else {}


def check_loads(folder: Path) -> None:
    """Raise PruneError unless unmodified transformers loads what was written, as it is.

    Takes no memory for weights.
    """
    try:
        check_buildable(Checkpoint(str(folder)).arch)
    except InputError as error:
        raise PruneError(f"the result would not load: {error}") from error


def check_buildable(arch: Arch, remedy: str = "is config.json as it came with the model?") -> None:
    """Raise InputError unless unmodified transformers builds a model of exactly this architecture.

    Takes no memory for weights, so it can be checked before there are any.
    """
    try:
        expected = configs.shapes(arch.config)
    except InputError as error:
        sizes = ", ".join(f"{axis} {arch.sizes[axis]}" for axis in SHOWN)
        raise InputError(
            f"no '{arch.config['model_type']}' of {sizes}: {error.what}", remedy
        ) from None
    if arch.tied:
        expected.pop(f"{arch.family.head}.weight", None)
    ours = {name: tensor.shape for name, tensor in arch.tensors().items()}
    for name in [*ours, *expected]:
        if ours.get(name) != expected.get(name):
            built, wanted = (list(table.get(name, ())) or "none" for table in (expected, ours))
            raise InputError(
                f"transformers builds another model from this config.json: '{name}' is {built}, "
                f"expected {wanted}",
                remedy,
            )
