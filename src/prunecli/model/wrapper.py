"""`Wrapper`: a multimodal model around a language model, to be written around another one.

Its other parts (towers, projectors) are copied tensor by tensor, and its config.json stays as it is
but for `text_config`. They fit as long as the language model's hidden channels are the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli import limits
from prunecli.errors import InputError
from prunecli.files.tensorfile import (
    TORCH_NAMES,
    Spec,
    combined_digest,
    read_tensor,
    rows_of,
    tensor_digest,
)
from prunecli.model import configs
from prunecli.model.families._wrappers import Prefixes

if TYPE_CHECKING:
    import torch

    from prunecli.model.arch import Arch

MARK = "prunecli"  # the key of config.json with the sidecar's id
TIES = "tie_word_embeddings"


class Wrapper:
    """What is around a language model.

    Args:
        kind: its `model_type`. values: its config.json.
        prefixes: what names of the language model's tensors can begin with, stored and by
            themselves.
        names: the stored name of each tensor of the language model.
        others: the file and the spec of each other tensor, by its stored name.
        shards: the number of that file.
    """

    def __init__(
        self,
        kind: str,
        values: Mapping[str, Any],
        prefixes: Prefixes,
        names: Mapping[str, str],
        others: Mapping[str, tuple[Path, Spec]],
        shards: Mapping[str, int],
    ) -> None:
        self.kind, self._values, self._others, self.shards = kind, values, others, shards
        used = [
            (old, new)
            for old, new in prefixes
            if any(
                stored == old + own.removeprefix(new) and own.startswith(new)
                for own, stored in names.items()
            )
        ]
        self._prefixes = [*used, *prefixes]
        self.specs = {name: spec for name, (_, spec) in sorted(others.items())}
        for name, spec in self.specs.items():
            if spec.dtype not in TORCH_NAMES:
                raise InputError(
                    f"'{name}' is stored as {spec.dtype}, which cannot be copied",
                    "leave --keep-wrapper out",
                )

    @property
    def num_bytes(self) -> int:
        """How many bytes the other parts take in a file."""
        return sum(spec.bytes for spec in self.specs.values())

    @property
    def params(self) -> int:
        """How many numbers the other parts have."""
        return sum(prod(spec.shape) for spec in self.specs.values())

    def stored(self, name: str) -> str:
        """Return under which name a tensor of the language model is stored here."""
        return next(
            old + name.removeprefix(new) for old, new in self._prefixes if name.startswith(new)
        )

    def stream(self) -> "Iterator[tuple[str, Iterable[torch.Tensor]]]":
        """Yield the name of each tensor of the other parts, and its rows in parts."""
        for name in self.specs:
            yield name, rows_of(read_tensor(self._others[name][0], name))

    def digest(self) -> str:
        """Read the other parts and return their digest."""
        return combined_digest(
            {name: tensor_digest(read_tensor(self._others[name][0], name)) for name in self.specs}
        )

    def config(self, language: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config.json around a language model with this one."""
        kept = configs.without_preferences(self._values)
        mark = {key: language[key] for key in (MARK,) if key in language}
        text = {key: value for key, value in language.items() if key != "architectures"}
        return {**kept, "text_config": text, TIES: bool(language.get(TIES)), **mark}

    def check(self, arch: "Arch") -> None:
        """Raise InputError unless transformers builds this model around a language model of `arch`.

        Takes no memory for weights.
        """
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        values = self.config(arch.config)
        told = f"transformers cannot build '{self.kind}' around this language model"
        with configs.bounded(told), limits.memory(configs.MEMORY):
            config = AutoConfig.for_model(**_passed_on(values))
            with torch.device("meta"):
                built = AutoModelForImageTextToText.from_config(config).state_dict()
        found = {name: tuple(tensor.shape) for name, tensor in built.items()}
        stacked = arch.stacked()  # as transformers has experts, whatever their files are like
        for name, tensor in arch.tensors().items():
            within, shape = stacked.get(name), tensor.shape
            if within is not None:
                name, shape = within.name, within.whole(shape)
            places = {old + name.removeprefix(new) for old, new in self._prefixes}
            if shape not in [found.get(place) for place in places]:
                raise InputError(f"{told}: it has no '{name}' of {list(shape)}")


def _passed_on(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what transformers is told of a config and of those in it: no keys that choose code.

    Raises InputError for numbers in them that are none, or out of bounds.
    """
    configs.check_numbers(values)
    is_config = "model_type" in values
    known = configs.passed_on(values) if is_config else configs.without_preferences(values)
    return {
        key: _passed_on(value) if isinstance(value, dict) else value for key, value in known.items()
    }
