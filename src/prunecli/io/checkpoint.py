"""Checkpoints: Hugging Face folders read and written as streams of tensors.

Nothing here holds more than one tensor. A checkpoint of one file stays one file; a sharded one
keeps its sharding: a tensor goes to the shard of the tensor that it came from.
"""

import hashlib
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from prunecli.arch import Arch
from prunecli.errors import InputError, PruneError
from prunecli.io import rows, sidecar
from prunecli.io.output import write_text
from prunecli.io.tensorfile import (
    STORAGE,
    Spec,
    TensorWriter,
    combined_digest,
    read_header,
    read_tensor,
    tensor_digest,
)
from prunecli.report import SILENT, Report

if TYPE_CHECKING:
    import torch

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TAG_ALONG = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "*.model", "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
FLOATS = ("F32", "BF16", "F16", "F64")


def locate(model: str) -> Path:
    """Return the folder of IN: a folder, or `hf:org/name[@revision]` fetched from the hub.

    Raises InputError if it is missing or the hub cannot be reached.
    """
    if model.startswith("hf:"):
        return _from_hub(model[3:])
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"'{model}' is a file, expected a model folder")
    hint = f"for the Hugging Face hub write hf:{model}" if _is_id(model) else "check the path"
    raise InputError(f"no such folder: '{model}'", hint)


def _is_id(model: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model))


def _from_hub(name: str) -> Path:
    repo, _, revision = name.partition("@")
    if not _is_id(repo):
        raise InputError(f"'hf:{name}' is not hf:org/name[@revision]")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=revision or None, allow_patterns=["*.safetensors", "*.json", *TAG_ALONG]
        )
    except Exception as error:
        # the hub client's errors have no common base that is part of its interface
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"cannot fetch 'hf:{name}' from the Hugging Face hub: {why}",
            "download the model elsewhere and give its folder",
        ) from None
    return Path(folder)


class Reader(ABC):
    """What reads like a checkpoint: a shape, and tensors by name.

    Attributes:
        arch: its shape. specs: type and shape of each tensor by name.
    """

    arch: Arch
    specs: dict[str, Spec]

    @abstractmethod
    def tensor(self, name: str) -> "torch.Tensor":
        """Return one tensor."""

    def stream(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield every tensor with its name, each made as it is asked for."""
        return ((name, self.tensor(name)) for name in self.specs)


class Checkpoint(Reader):
    """A model folder, read tensor by tensor.

    Opening it checks everything that headers can tell: that each tensor is one its family knows,
    has the shape that config.json says, and that none is missing. Raises InputError otherwise.

    Attributes:
        folder: where it lies. arch: its shape. specs: type and shape of each tensor by name.
    """

    def __init__(self, model: str) -> None:
        self.folder = locate(model)
        self.arch = Arch.read(self.folder)
        if self.arch.config.get("quantization_config"):
            raise InputError(
                "config.json has a quantization_config",
                "dequantise the model first, or take the key out if its weights are plain",
            )
        self._files = self._locate_tensors()
        headers = {path: read_header(path) for path in sorted(set(self._files.values()))}
        self.specs: dict[str, Spec] = {}
        for name, path in self._files.items():
            if name not in headers[path]:
                raise InputError(
                    f"the index says that '{name}' is in '{path.name}', which does not have it"
                )
            self.specs[name] = headers[path][name]
        self._leave_out()
        self._check_tensors()
        self.sidecar = sidecar.read_if_any(self.folder)
        if self.sidecar is not None and self.sidecar.kind != "checkpoint":
            raise InputError(f"'{model}' is '{self.sidecar.kind}', expected 'checkpoint'")

    def _locate_tensors(self) -> dict[str, Path]:
        one, index = self.folder / ONE_FILE, self.folder / INDEX
        if one.exists():
            return dict.fromkeys(read_header(one), one)
        if not index.exists():
            pickles = sorted(path.name for path in self.folder.glob("*.bin"))
            pickles += sorted(path.name for path in self.folder.glob("*.pth"))
            if pickles:
                raise InputError(
                    f"'{self.folder}' has only pickled weights ({pickles[0]}), which can run code",
                    "save it as safetensors first",
                )
            raise InputError(
                f"'{self.folder}' is not a checkpoint: it has no {ONE_FILE} and no {INDEX}"
            )
        try:
            weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
            entries = {str(name): str(file) for name, file in weight_map.items()}
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"'{index}' is not readable as JSON: {error}") from None
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"'{index}' has no weight_map of names to files") from None
        for file in sorted(set(entries.values())):
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise InputError(f"{INDEX} names '{file}', expected a .safetensors file beside it")
            if not (self.folder / file).is_file():
                raise InputError(f"{INDEX} names a missing shard: '{file}'", "download it again")
        return {name: self.folder / file for name, file in sorted(entries.items())}

    def _leave_out(self) -> None:
        """Forget tensors without parameters, and a tied output head that some tools write."""
        patterns = [
            re.compile(re.escape(template).replace(re.escape("{i}"), r"\d+"))
            for template in self.arch.family.ignored
        ]
        for name in [n for n in self.specs if any(p.fullmatch(n) for p in patterns)]:
            del self.specs[name]
        if self.arch.tied and "lm_head.weight" in self.specs:
            if self._is_copy("lm_head.weight", "model.embed_tokens.weight"):
                del self.specs["lm_head.weight"]
            else:  # stock transformers keeps both, so the model is in fact not tied
                self.arch = Arch({**self.arch.config, "tie_word_embeddings": False})

    def _is_copy(self, one: str, other: str) -> bool:
        return self.specs.get(one) == self.specs.get(other) and bool(
            self.tensor(one).equal(self.tensor(other))
        )

    def _check_tensors(self) -> None:
        expected, family = self.arch.tensors(), self.arch.family.name
        for name, spec in self.specs.items():
            if name not in expected:
                raise InputError(f"unknown tensor '{name}': a {family} of this shape has none such")
            if spec.shape != expected[name].shape:
                raise InputError(
                    f"'{name}' has shape {list(spec.shape)}, expected "
                    f"{list(expected[name].shape)} by config.json"
                )
            if spec.dtype not in FLOATS:
                raise InputError(
                    f"'{name}' is stored as {spec.dtype}, expected one of {', '.join(FLOATS)}",
                    "dequantise the model first",
                )
        for name in expected:
            if name not in self.specs:
                raise InputError(f"tensor '{name}' is missing", "is the download complete?")

    def tensor(self, name: str) -> "torch.Tensor":
        """Return one tensor, a view of the memory-mapped file; do not write into it."""
        return read_tensor(self._files[name], name)

    def shard(self, name: str) -> int:
        """Return the number of the file that holds `name`, counting from 0."""
        return self._shards.index(self._files[name])

    @property
    def _shards(self) -> list[Path]:
        return sorted(set(self._files.values()))

    def digest(self, report: Report = SILENT) -> str:
        """Read all tensors once and return their digest; raise InputError at a NaN or infinity."""
        digests = {}
        for name in report.track(list(self.specs), "checking weights", unit="tensors"):
            tensor = self.tensor(name)
            if not bool(tensor.isfinite().all()):
                raise InputError(f"'{name}' has NaN or infinite weights", "is the file damaged?")
            digests[name] = tensor_digest(tensor)
        config = {k: v for k, v in self.arch.config.items() if k != "prunecli"}
        shape = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        return combined_digest({**digests, "config.json": shape})

    def stored(self, dtype: str) -> tuple[Arch, dict[str, Spec]]:
        """Return shape and specs of this model in `float32`, `bfloat16`, or as it is: `auto`.

        The shape's config says so too, in the key that transformers reads first.
        """
        tensors = self.arch.tensors()
        if dtype == "auto":
            return self.arch, {name: self.specs[name] for name in tensors}
        config = {key: value for key, value in self.arch.config.items() if key != "torch_dtype"}
        specs = {name: Spec(STORAGE[dtype], tensor.shape) for name, tensor in tensors.items()}
        return Arch({**config, "dtype": dtype}), specs

    def as_input(self, digest: str, role: str = "model") -> sidecar.Input:
        """Return this checkpoint as an input of a sidecar."""
        return sidecar.Input(role=role, id=self.sidecar.id if self.sidecar else None, digest=digest)

    def tag_along(self) -> list[Path]:
        """Return the files that go with the model unchanged."""
        return tag_along(self.folder)

    @property
    def trained(self) -> list[sidecar.Trained]:
        """The rows that this model and its ancestors are known to have been trained on."""
        if self.sidecar is None:
            return []
        found = list(self.sidecar.tokens.trained)
        for step in self.sidecar.history:
            told = [(entry.role, entry.model_extra or {}) for entry in step.inputs]
            if any(role == "rows" and "passes" in meta for role, meta in told):
                # what was read as several domains counts as one set of rows: these are its parts
                parts = (rows.trained_on(meta) for role, meta in told if role == "calibration")
                found += filter(None, parts)
        return found


def tag_along(folder: Path) -> list[Path]:
    """Return the files of a folder that go with a model: tokenizer, generation settings."""
    found = {path for pattern in TAG_ALONG for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


class CheckpointWriter:
    """Write a model folder tensor by tensor into `folder`, which must not exist.

    `shards` says which shard each tensor goes to. Use as a context manager: leaving it writes the
    index. `digests` then tells what was written.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, object], specs: dict[str, Spec], shards: list[int]
    ) -> None:
        self.folder, self.specs = folder, specs
        folder.mkdir(parents=True)
        self._config = dict(config)
        used = sorted(set(shards))
        if len(used) == 1:
            names = [ONE_FILE]
        else:
            names = [f"model-{i + 1:05}-of-{len(used):05}.safetensors" for i in range(len(used))]
        self._shard_of = {
            name: used.index(shard) for name, shard in zip(specs, shards, strict=True)
        }
        self._writers = [
            TensorWriter(
                folder / file, {name: specs[name] for name in specs if self._shard_of[name] == i}
            )
            for i, file in enumerate(names)
        ]

    def write(self, name: str, tensor: "torch.Tensor") -> None:
        """Write one tensor, in any order."""
        self._writers[self._shard_of[name]].write(name, tensor)

    @property
    def digests(self) -> dict[str, str]:
        """Digest of every tensor written so far."""
        return {name: text for writer in self._writers for name, text in writer.digests.items()}

    def digest(self) -> str:
        """Return the digest of the checkpoint, equal to what reading it again gives."""
        config = {k: v for k, v in self._config.items() if k != "prunecli"}
        shape = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
        return combined_digest({**self.digests, "config.json": shape})

    def finish(self, identity: str, tag_along: list[Path]) -> None:
        """Write config.json, marked with the sidecar's id, and copy the tag-along files."""
        config = {**self._config, "prunecli": {"id": identity}}
        write_text(self.folder / "config.json", json.dumps(config, indent=2) + "\n")
        for path in tag_along:
            shutil.copyfile(path, self.folder / path.name)

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
            index = {
                "metadata": {"total_size": sum(spec.bytes for spec in self.specs.values())},
                "weight_map": {name: files[self._shard_of[name]] for name in sorted(self.specs)},
            }
            write_text(self.folder / INDEX, json.dumps(index, indent=2) + "\n")


def check_loads(folder: Path) -> None:
    """Have stock transformers build the model of `folder` on meta and compare names and shapes.

    Raises PruneError where it would not load as it is; costs no memory for weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    written = Checkpoint(os.fspath(folder))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        # whatever its config classes raise, it means that users could not load the folder
        raise PruneError(f"stock transformers refuses the result: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if written.arch.tied:
        expected.pop("lm_head.weight", None)
    got = {name: spec.shape for name, spec in written.specs.items()}
    if got != expected:
        odd = sorted(set(got.items()) ^ set(expected.items()))[:3]
        raise PruneError(f"stock transformers expects other tensors than were written: {odd}")
