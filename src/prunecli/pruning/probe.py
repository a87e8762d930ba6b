"""`families --probe`: a record for a model that no family reads, tried before it is shown.

The record is derived from transformers' own class (model/derive), and tried on a tiny random
model of that class as the tests of all families do: every tensor is described, streamed losses are
those of transformers, what is removed is as if it had been zero, and what is written loads.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from prunecli.errors import InputError, PruneError
from prunecli.files import regular, scratch, strict
from prunecli.model import configs, derive
from prunecli.model.families import registry
from prunecli.report import SILENT, Report
from prunecli.settings import Compute, Data, Output, RunContext

EXACT = 1e-9  # of logits in float64, which rounds at 1e-16: what is above it is no rounding
CLOSE = 1e-5  # of a mean loss in float32, relative
ROWS, LENGTH = 2, 32
MOST = 1 << 16  # layers times experts of a model that is looked at as a whole
# of what has been derived, and is wrong
FAILURES = (PruneError, ValueError, RuntimeError, TypeError, LookupError, AttributeError)
PARENT = "parent"  # the folder of the tiny model


class Probed(NamedTuple):
    """A record that has been tried: its name, its model type, and the text of a family's file."""

    name: str
    model_type: str
    text: str


def probe(folder: str, report: Report = SILENT) -> Probed:
    """Return a record for the model in a folder, of which config.json alone is read.

    Raises InputError for a model that a family reads already, one that transformers does not know,
    one with code of its own, and one that no record describes, or none was found to.
    """
    path = Path(folder) / "config.json"
    try:
        values = strict.read_object(regular.inside(Path(folder), path))
    except FileNotFoundError:
        raise InputError(
            f"'{folder}' has no config.json", "give a Hugging Face model folder"
        ) from None
    values = dict(derive.language_model(values))
    if registry.knows(kind := values["model_type"]):
        family = registry.of_model_type(kind)
        raise InputError(f"'{kind}' is read already, by the family '{family.name}'")
    draft = derive.drafted(values)
    with scratch.told():
        place = tempfile.TemporaryDirectory(prefix="prunecli-", dir=scratch.folder())
    with place as made, derive.quietly():
        derive.save(draft, Path(made) / PARENT)
        with registry.trying(draft.family()):
            _check_whole(draft, values)
            _Trial(draft, Path(made)).all(report)
    return Probed(draft.fields["name"], draft.kind, draft.text())


@contextmanager
def _told(draft: derive.Draft, what: str) -> Iterator[None]:
    """Turn what fails into the error that no record was found to describe the model."""
    try:
        yield
    except derive.Indescribable:
        raise
    except FAILURES as error:
        why = " ".join(str(error).split())[: derive.LONGEST]
        raise draft.refused(f"{what}: {why}") from error


def _check_whole(draft: derive.Draft, values: dict[str, Any]) -> None:
    """Raise InputError where the model itself has other tensors than its record says.

    Sizes of a tiny one are others, and it has fewer layers.
    """
    from prunecli.model.arch import Arch

    full, layers = configs.transformers_config(values), draft.keys["layers"]
    # some classes count layers by a list
    told = {**full.to_dict(), layers: getattr(full, layers), "model_type": draft.kind}
    arch = Arch(told)
    if arch.layers * max(1, arch.experts) > MOST:
        return
    try:
        theirs = configs.shapes(values)
    except configs.Endless:
        raise
    except InputError:  # of what config.json lacks, which no record can help
        return
    head = f"{arch.family.head}.weight"
    ours = {name: tensor.shape for name, tensor in arch.tensors().items()}
    for name in sorted((theirs.keys() ^ ours.keys()) - {head if arch.tied else ""}):
        raise draft.refused(f"its record does not tell which layers have '{name}'")
    for name, shape in ours.items():
        if shape != theirs[name]:
            by_record = f"{[*shape]} by its record"
            raise draft.refused(f"'{name}' has shape {[*theirs[name]]}, and {by_record}")


class _Trial:
    """A tiny random model of a draft's kind, and what is tried on it."""

    def __init__(self, draft: derive.Draft, folder: Path) -> None:
        from prunecli.model.arch import Arch

        self.draft, self.folder = draft, folder
        self.parent = folder / PARENT
        self.arch = Arch(draft.config)
        self.family = self.arch.family

    def all(self, report: Report) -> None:
        """Try everything; raise InputError with what does not hold."""
        with self._told("its tensors are not those of its record"):
            from prunecli.model.checkpoint import Checkpoint

            Checkpoint(str(self.parent))
        self._losses()
        tried = ["streamed losses"]
        for axis, trial in self._axes().items():
            if axis in self.family.fixed:
                report.info(f"not tried: {axis}, of which it says: {self.family.fixed[axis]}")
                continue
            if axis in ("ffn", "heads") and not self.arch.with_units(axis):
                raise self.draft.refused(f"no layer of it has {axis}")
            self._cut(axis, *trial())
            tried.append(axis)
        if self.family.experts is not None:
            self._without_experts()
            tried.append("experts")
        report.info(
            f"'{self.draft.kind}' on a tiny random model: {tried[0]} are those of transformers; "
            f"removing {', '.join(tried[1:])} is as setting them to zero; results load"
        )

    def _told(self, what: str) -> AbstractContextManager[None]:
        return _told(self.draft, what)

    def _losses(self) -> None:
        """Compare streamed losses with those of transformers."""
        import torch
        from safetensors.torch import save_file

        from prunecli.measuring.eval import EvalRequest, evaluate

        ids = _ids(self.arch.vocab)
        source = self.folder / "ids.safetensors"
        save_file({"ids": ids.to(torch.int32)}, source)
        request = EvalRequest(model=str(self.parent), data=(Data(f"{source}:ids"),))
        with self._told("its layers cannot be run one by one"):
            found = evaluate(request, _quiet()).results["loss"]
        with torch.no_grad():
            logits = _stock(self.parent, torch.float32)(ids).logits
        own = float(
            torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        )
        if abs(found - own) > CLOSE * abs(own):
            raise self.draft.refused(
                f"its streamed loss is {found:.6f}, and that of transformers {own:.6f}: it "
                "computes something beside its layers that a record has no word for"
            )

    def _axes(self) -> dict[str, Callable[[], tuple[dict[str, Any], "_Edit"]]]:
        return {
            "ffn": self._without_ffn,
            "heads": self._without_heads,
            "layers": self._without_layers,
            "hidden": self._without_hidden,
        }

    def _without_experts(self) -> None:
        """Remove an expert of each layer: those of the parent compute what is then chosen."""
        import torch

        from prunecli.model.stock import InDouble

        experts, count = self.family.experts, self.arch.experts
        assert experts is not None
        kept = [[e for e in range(count) if e != i % count] for i in range(self.arch.layers)]
        out = self._pruned("experts", {"experts": self._of_layers("experts", kept)})
        with self._told("what is left without some experts does not load"):
            child, parent = (_stock(f, torch.float64) for f in (out, self.folder / "experts-in"))
        chosen: list[tuple[Any, Any]] = []

        def note(module: Any, taken: Any) -> None:
            chosen.append(taken[1:])

        def follow(module: Any, taken: Any, own: list[int]) -> Any:
            which, weights = chosen.pop(0)
            return taken[0], torch.tensor(own)[which], weights

        for i in self.arch.with_units("experts"):
            name = f"{self.arch.prefix(i)}{experts.module}"
            child.get_submodule(name).register_forward_pre_hook(note)
            parent.get_submodule(name).register_forward_pre_hook(partial(follow, own=kept[i]))
        ids = _ids(self.arch.vocab)
        with torch.no_grad(), InDouble(), self._told("its experts are not called as others are"):
            self._check("experts", child(ids).logits, parent(ids).logits)

    def _without_ffn(self) -> "tuple[dict[str, Any], _Edit]":
        kept = [j for j in range(self.arch.ffn) if j % 5 < 3]
        gone = [j for j in range(self.arch.ffn) if j not in kept]

        def edit(tensors: "dict[str, Any]") -> None:
            for i in self.arch.with_units("ffn"):
                tensors[f"{self.arch.prefix(i)}{self.arch.module('down')}.weight"][:, gone] = 0

        return {"ffn": self._of_layers("ffn", [kept] * self.arch.layers)}, edit

    def _of_layers(self, axis: str, lists: list[list[int]]) -> list[list[int]]:
        """Return what stays of an axis in each layer: nothing in layers without such units."""
        return [own if self.arch.has(axis, i) else [] for i, own in enumerate(lists)]

    def _without_heads(self) -> "tuple[dict[str, Any], _Edit]":
        """Remove a KV group; a norm over all heads gets the scale of one over those that stay."""
        size, share = self.arch.head_dim, 1 - 1 / self.arch.kv_heads
        groups = [i % self.arch.kv_heads for i in range(self.arch.layers)]  # that go

        def edit(tensors: "dict[str, Any]") -> None:
            for name, tensor in self.arch.tensors().items():
                if tensor.layer is None or not self.arch.has("heads", tensor.layer):
                    continue
                group = groups[tensor.layer]
                own = {"kv_heads": size, "heads": size * self.arch.group}
                rows = {
                    axis: slice(group * width, (group + 1) * width) for axis, width in own.items()
                }
                module = name.removeprefix(self.arch.prefix(tensor.layer)).rpartition(".")[0]
                if module == self.arch.module("o") and len(tensor.axes) == 2:
                    tensors[name][:, rows["heads"]] = 0
                elif self.arch.norm_spans_heads and tensor.axes[0] in own:
                    if len(tensor.axes) == 1 and not name.endswith(".bias"):
                        tensors[name] *= share**0.5
                    else:
                        tensors[name][rows[tensor.axes[0]]] = 0

        kept = [[k for k in range(self.arch.kv_heads) if k != group] for group in groups]
        return {"kv_heads": self._of_layers("kv_heads", kept)}, edit

    def _without_layers(self) -> "tuple[dict[str, Any], _Edit]":
        kept = self.arch.first_of([0, self.arch.layers - 1, *range(1, self.arch.layers - 1)], 2)

        def edit(tensors: "dict[str, Any]") -> None:
            for name, tensor in self.arch.tensors().items():
                if tensor.layer is None or tensor.layer in kept:
                    continue
                own = name.removeprefix(self.arch.prefix(tensor.layer))
                if own.rpartition(".")[0] in self.arch.writers(tensor.layer):
                    gain = name.endswith(".weight") and bool(self.arch.post_norms(tensor.layer))
                    tensors[name].fill_(-self.family.norm_weight_offset if gain else 0)

        return {"layers": kept}, edit

    def _without_hidden(self) -> "tuple[dict[str, Any], _Edit]":
        """Keep a quarter: a norm over fewer is exact once the parent's gains have their scale."""
        hidden, offset = self.arch.hidden, self.family.norm_weight_offset
        kept = [j for j in range(hidden) if j % 8 < 2]
        gone = [j for j in range(hidden) if j not in kept]
        scale = (len(kept) / hidden) ** 0.5

        def edit(tensors: "dict[str, Any]") -> None:
            for name, tensor in self.arch.tensors().items():
                module = name.rpartition(".")[0]
                if self.arch.is_output(tensor):
                    tensors[name][gone] = 0
                elif module in (self.family.embedding, self.family.positions):
                    tensors[name][:, gone] = 0
                elif tensor.axes == ("hidden",) and not name.endswith(".bias"):
                    tensors[name].add_(offset).mul_(scale).sub_(offset)

        return {"hidden": kept}, edit

    def _cut(self, axis: str, keep: dict[str, Any], edit: "_Edit") -> None:
        """Compare a cut with the same units set to zero, both in float64 by transformers."""
        out = self._pruned(axis, keep)
        self._edited(self.folder / f"{axis}-zero", edit)
        with self._told(f"what is left without some {axis} does not load"):
            cut, zeroed = _logits(out), _logits(self.folder / f"{axis}-zero")
        self._check(axis, cut, zeroed)

    def _pruned(self, axis: str, keep: dict[str, Any]) -> Path:
        """Return the folder of what a plan leaves of the parent."""
        from prunecli.pruning.prune import prune
        from prunecli.pruning.request import PruneRequest

        plan, out = self.folder / f"{axis}.json", self.folder / axis
        with self._told(f"it cannot lose {axis}"):
            # whose square no norm is to add to: a mean over fewer would not scale it
            self._edited(self.folder / f"{axis}-in", lambda tensors: None)
            plan.write_text(json.dumps({"keep": keep}))
            request = PruneRequest(model=str(self.folder / f"{axis}-in"), plan=str(plan))
            prune(request, _quiet(str(out)))
        return out

    def _check(self, axis: str, cut: Any, zeroed: Any) -> None:
        """Raise InputError where logits without some units are not those with zeros."""
        if not cut.sub(zeroed).abs().max() < EXACT:
            raise self.draft.refused(f"removing {axis} is not the same as setting them to zero")

    def _edited(self, out: Path, edit: "_Edit") -> None:
        """Write the parent with tensors changed, in float64, and norms that add nothing."""
        from safetensors.torch import load_file, save_file

        out.mkdir()
        tensors = {
            self.family.own_name(name): tensor.double()
            for name, tensor in load_file(self.parent / "model.safetensors").items()
        }
        edit(derive.unstacked(self.draft, tensors))
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((self.parent / "config.json").read_text())
        eps = {key: NO_EPS for key, value in config.items() if key.endswith(EPS) and value}
        (out / "config.json").write_text(json.dumps({**config, **eps, "dtype": "float64"}))


EPS, NO_EPS = ("eps", "epsilon"), 1e-30
_Edit = Callable[[dict[str, Any]], None]


def _quiet(out: str = "") -> RunContext:
    return RunContext(Output(path=out), Compute(device="cpu"))


def _ids(vocab: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(5)
    return torch.randint(vocab, (ROWS, LENGTH), generator=generator)


def _stock(folder: Path, dtype: Any) -> Any:
    """Return the model that transformers loads; raise PruneError if tensors are odd or missing."""
    import torch
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        output_loading_info=True,
        local_files_only=True,
        # that of all experts at once has no float64
        **({"experts_implementation": "eager"} if dtype == torch.float64 else {}),
    )
    odd = [*told["missing_keys"], *told["unexpected_keys"]]
    if odd:
        raise PruneError(f"'{sorted(odd)[0]}' is missing, or is not expected")
    return model.eval()


def _logits(folder: Path) -> Any:
    """Return logits as transformers computes them, all of it in float64."""
    import torch

    from prunecli.model.stock import InDouble

    model = _stock(folder, torch.float64)
    with torch.no_grad(), InDouble():
        return model(_ids(model.config.vocab_size)).logits
