"""The library verbs `calibrate`, `score` and `prune`. Files in, one artefact out.

`prune` alone takes the steps of the other two with the same functions, so that three commands
and one give the same bytes. Everything that can be checked is checked before the first expensive
step.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli import allocate, memory
from prunecli.arch import Arch
from prunecli.errors import InputError, UsageError
from prunecli.io import output as place
from prunecli.io import sidecar, tokens
from prunecli.io.checkpoint import Checkpoint, Reader
from prunecli.io.sidecar import Input, Kind, Recorder
from prunecli.io.tensorfile import (
    Spec,
    TensorWriter,
    combined_digest,
    read_header,
    read_tensor,
    spec_of,
)
from prunecli.io.tokenizer import IDS, OFFICIAL
from prunecli.methods import registry
from prunecli.methods._base import LayerView, Method, Need, Setting
from prunecli.report import SILENT, Report
from prunecli.settings import BATCH_TOKENS, Amount, Compute, Data, Made, Output

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
MAKERS = {"stats": "calibrate", "scores": "score"}
# how recipes that name a text turn it into tokens: the authors' codes call their tokenizers as for
# a prompt, then cut windows, so that few of them begin with BOS
OFFICIAL_TEXT = {"bos": OFFICIAL, "special_tokens": IDS}


class TensorFile(Mapping[str, "torch.Tensor"]):
    """The tensors of one safetensors file by name, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self._specs = path, read_header(path)

    def __getitem__(self, name: str) -> "torch.Tensor":
        if name not in self._specs:
            raise KeyError(name)
        return read_tensor(self.path, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


@dataclass
class Source:
    """Where a step's statistics or scores come from, known before anything is computed.

    Either `tensors` of a file, or `found`, tokens that are yet to be run through the model.
    `inputs` and `calibration` (a number of tokens) are what sidecars say of it.
    """

    inputs: list[Input]
    calibration: int = 0
    tensors: Tensors | None = None
    found: "tokens.Tokens | None" = None
    options: Mapping[str, Any] | None = None


def open_source(path: str, kind: Kind, digest: str) -> Source:
    """Open a file of statistics or scores made from the model with this digest.

    Raises InputError if it is of another kind, of another model, or damaged.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no such file: '{path}'", f"make it with `prunecli {MAKERS[kind]}`")
    record = sidecar.read(file, (kind,))
    roles = {entry.role: entry for entry in record.inputs}
    if roles["model"].digest != digest:
        raise InputError(f"'{path}' was made from another model", "make it again from this one")
    inputs = [Input(role=kind, id=record.id, digest=record.outputs["digest"])]
    if "calibration" in roles:
        inputs.append(roles["calibration"])
    calibration = record.results.get("calibration_tokens", 0)
    return Source(inputs, calibration, TensorFile(file), options=record.options)


def read_tokens(checkpoint: Checkpoint, data: Data, report: Report) -> Source:
    """Read D, to be run through this model."""
    found = tokens.load(
        data,
        folder=str(checkpoint.folder),
        vocab_size=checkpoint.arch.vocab,
        max_positions=checkpoint.arch.max_positions,
        part="calibration",
        report=report,
    )
    return Source(
        [sidecar.tokens_input("calibration", found.meta, found.windows)],
        found.ids.numel(),
        found=found,
    )


def union(methods: list[Method], compat: bool) -> tuple[Need, ...]:
    """Return every statistic that any of these methods reads, each once."""
    needs = (need for method in methods for need in method.needed(compat))
    pairs = {(need.collector, point) for need in needs for point in need.points}
    return tuple(
        Need(name, tuple(sorted(point for found, point in pairs if found == name)))
        for name in sorted({collector for collector, _ in pairs})
    )


def skipped(methods: list[Method], amount: Amount, checkpoint: Checkpoint) -> int | None:
    """Return how many layers go, where a method must know that before it can calibrate."""
    gone = set()
    for method in methods:
        if of_amount(method):
            if amount == Amount():
                raise UsageError(
                    f"'{method.name}' tries out what it removes",
                    "say how many with --ratio or --layers",
                )
            kept = allocate.sizes(method, method.resolve({}), amount, checkpoint.arch).layers
            gone.add(checkpoint.arch.layers - kept)
    if amount != Amount() and not gone:
        raise UsageError("the statistics of these methods do not depend on an amount")
    # an amount means the same number of layers for all
    return gone.pop() if gone else None


def of_amount(method: Method) -> bool:
    """Return whether what a method reads depends on how many layers go."""
    from prunecli.stats.models import OF_MODELS

    return any(OF_MODELS[name].of_amount for name in _of_models(method.needs))


def collect(
    checkpoint: Checkpoint,
    found: "tokens.Tokens",
    needs: tuple[Need, ...],
    skip: int | None,
    compute: Compute,
    report: Report,
) -> "Iterator[dict[str, torch.Tensor]]":
    """Yield statistics of the dense model, layer by layer, and last those of whole models."""
    from prunecli.stats import gradients, run
    from prunecli.stats.models import OF_MODELS

    runner = run.Runner(checkpoint, compute, report)
    of_gradients = _of_gradients(needs)
    of_layers = tuple(
        need for need in needs if need.points != ("model",) and need.collector not in of_gradients
    )
    if of_layers:
        yield from run.dense(runner, found.ids, of_layers)
    if of_gradients:
        yield gradients.gradients(runner, found.ids, of_gradients)
    for name in _of_models(needs):
        whole = OF_MODELS[name]
        assert skip is not None or not whole.of_amount, "skipped() was asked"
        yield {whole.name(name, skip or 0): whole.of(runner, found.ids, skip or 0)}


def _of_gradients(needs: tuple[Need, ...]) -> list[str]:
    from prunecli.stats.gradients import OF_GRADIENTS

    return [need.collector for need in needs if need.collector in OF_GRADIENTS]


def _of_models(needs: tuple[Need, ...]) -> list[str]:
    return [need.collector for need in needs if need.points == ("model",)]


def write_stats(
    out: str,
    checkpoint: Checkpoint,
    digest: str,
    methods: list[Method],
    source: Source,
    *,
    skip: int | None,
    compat: bool,
    compute: Compute,
    output: Output,
    report: Report,
) -> Made:
    """Collect what `methods` read into a file; memory holds the statistics of one layer."""
    needs = union(methods, compat)
    options = {
        "statistics": {need.collector: list(need.points) for need in needs},
        "skip": skip,
        "dtype": compute.dtype,
    }
    found = source.found
    assert found is not None, "statistics come from tokens"
    extra = {}
    for name in _of_gradients(needs):
        from prunecli.stats.gradients import OF_GRADIENTS

        for part, length in OF_GRADIENTS[name].lengths(checkpoint.arch).items():
            for i in range(checkpoint.arch.layers):
                extra[f"{checkpoint.arch.point(i, 'block')}.{part}"] = Spec("F64", (length,))
    from prunecli.stats.models import OF_MODELS

    for name in _of_models(needs):
        whole, gone = OF_MODELS[name], skip or 0
        extra[whole.name(name, gone)] = Spec("F64", whole.shape(checkpoint.arch, gone))
    return _write(
        out,
        lambda: collect(checkpoint, found, needs, skip, compute, report),
        Recorder("calibrate", output.argv),
        output,
        kind="stats",
        options=options,
        inputs=[checkpoint.as_input(digest), *source.inputs],
        calibration=source.calibration,
        compute=compute,
        depth=checkpoint.arch.layers,
        extra=extra,
    )


def write_scores(
    out: str,
    checkpoint: Checkpoint,
    digest: str,
    method: Method,
    source: Source,
    stats: Callable[[], Tensors],
    *,
    skip: int | None,
    options: dict[str, Any],
    compute: Compute,
    output: Output,
) -> Made:
    """Score a model by its statistics, into a file; they are asked for if it is not there yet.

    What statistics depend on is recorded where they come from tokens; a file of them says so
    itself.
    """
    of_tokens = {"skip": skip, "dtype": compute.dtype} if source.found is not None else {}
    return _write(
        out,
        lambda: iter([scores_of(method, checkpoint, stats(), options)]),
        Recorder("score", output.argv),
        output,
        kind="scores",
        options={"method": method.name, "options": options, **of_tokens},
        inputs=[checkpoint.as_input(digest), *source.inputs],
        calibration=source.calibration,
        compute=compute,
    )


def calibrate(
    model: str,
    out: str,
    *,
    methods: list[str],
    data: Data | None = None,
    amount: Amount | None = None,
    compat: bool = False,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
) -> Made:
    """Collect what `methods` read, of the dense model on D, into OUT.safetensors.

    `amount` is for methods that try what they remove (minitron-depth).
    Raises UsageError, InputError, OutputExists.
    """
    compute, output = compute or Compute(), output or Output()
    check_device(compute)
    chosen = [registry.get(name) for name in methods]
    for method in chosen:
        if not method.needed(compat):
            raise UsageError(f"'{method.name}' reads no statistics, there is nothing to calibrate")
    if compat and union(chosen, True) == union(chosen, False):
        raise UsageError(
            "--compat official changes nothing: the statistics of "
            f"{', '.join(method.name for method in chosen)} are the same",
            "leave it out",
        )
    checkpoint = Checkpoint(model, report)
    check_file(out, output, checkpoint)
    skip = skipped(chosen, amount or Amount(), checkpoint)
    compute = settled(compute, checkpoint)
    source = read_tokens(checkpoint, data or Data(), report)
    return write_stats(
        out,
        checkpoint,
        checkpoint.digest(report),
        chosen,
        source,
        skip=skip,
        compat=compat,
        compute=compute,
        output=output,
        report=report,
    )


def score(
    model: str,
    out: str,
    *,
    method: str,
    options: Mapping[str, Any] | None = None,
    data: Data | None = None,
    amount: Amount | None = None,
    stats: str | None = None,
    compat: bool = False,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
) -> Made:
    """Turn statistics into importances, higher = keep, one vector per axis and layer.

    Without `stats` they are collected from D first. Raises UsageError for methods that score
    inside `prune`, InputError for unusable files, OutputExists.
    """
    compute, output, amount = compute or Compute(), output or Output(), amount or Amount()
    check_device(compute)
    chosen = registry.get(method)
    if chosen.unit == "weights":
        raise UsageError(f"'{method}' scores weights inside prune", "use `prunecli prune`")
    if chosen.learned:
        raise UsageError(f"'{method}' learns what stays inside prune", "use `prunecli prune`")
    if chosen.sequential and stats is None:
        raise UsageError(
            f"'{method}' is sequential: prune scores each layer on pruned predecessors",
            "use `prunecli prune`, or --stats for the knowing one-pass variant",
        )
    resolved = chosen.resolve(options or {})
    _refuse_later(chosen, options or {})
    settings = score_options(chosen, resolved, compat)
    checkpoint = Checkpoint(model, report)
    chosen.refuse_idle(options or {}, Setting(resolved, compat, group=checkpoint.arch.group))
    check_file(out, output, checkpoint)
    if stats is not None and amount != Amount():
        raise UsageError("with --stats the amount is known already", "leave it out")
    skip = None if stats is not None else skipped([chosen], amount, checkpoint)
    compute = settled(compute, checkpoint)
    digest = checkpoint.digest(report)
    if stats is not None:
        source = open_stats(stats, checkpoint, digest, chosen, compat)
    elif not chosen.needs:
        source = Source([], tensors={})
    else:
        source = read_tokens(checkpoint, data or Data(), report)

    def tensors() -> Tensors:
        if source.tensors is not None:
            return source.tensors
        assert source.found is not None
        needs = chosen.needed(compat)
        return merged(collect(checkpoint, source.found, needs, skip, compute, report))

    return write_scores(
        out, checkpoint, digest, chosen, source, tensors,
        skip=skip, options=settings, compute=compute, output=output,
    )  # fmt: skip


def _refuse_later(method: Method, given: Mapping[str, Any]) -> None:
    """Raise UsageError for options that scores do not depend on."""
    for option in method.options:
        value = given.get(option.name, option.default)
        if option.stage != "score" and value != option.default:
            raise UsageError(
                f"{option.flag} {value} has no part in scores", "leave it out, and give it to prune"
            )


def open_stats(
    path: str, checkpoint: Checkpoint, digest: str, method: Method, compat: bool
) -> Source:
    """Open a file of statistics, and make sure that it holds what `method` reads."""
    source = open_source(path, "stats", digest)
    assert source.tensors is not None
    last = checkpoint.arch.layers - 1
    for need in method.needed(compat):
        mark = _mark(need.collector, checkpoint.arch)
        for point in need.points:
            start = "" if point == "model" else checkpoint.arch.point(last, point) + "."
            if not any(name.startswith(start + mark) for name in source.tensors):
                raise InputError(
                    f"'{path}' lacks what '{method.name}' needs: {need.collector} at {point}",
                    f"run `prunecli calibrate --for {method.name}"
                    + (" --compat official`" if need.compat else "`"),
                )
    return source


def _mark(collector: str, arch: Arch) -> str:
    """Return the name of something that a file with this statistic has at each of its points."""
    from prunecli.stats import registry as collectors
    from prunecli.stats.gradients import OF_GRADIENTS
    from prunecli.stats.models import OF_MODELS

    if collector in OF_MODELS:
        return collector
    if collector in OF_GRADIENTS:
        return next(iter(OF_GRADIENTS[collector].lengths(arch)))
    return collectors.make(collector).yields[-1]


def merged(parts: "Iterator[dict[str, torch.Tensor]]") -> "dict[str, torch.Tensor]":
    """Return all parts in one dictionary."""
    return {name: tensor for part in parts for name, tensor in part.items()}


def score_options(method: Method, options: dict[str, Any], compat: bool) -> dict[str, Any]:
    """Return the options that a score depends on."""
    used = {o.name: options[o.name] for o in method.options if o.stage == "score"}
    return {**used, "compat": compat}


def scores_of(
    method: Method, checkpoint: Checkpoint, stats: Tensors, options: Mapping[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return the scores of a whole model, with the means that its compensation needs."""
    arch = checkpoint.arch
    if method.score_layers is not None:
        by_layer = {
            f"{need.collector}.{i}": stats[f"{arch.point(i, point)}.{need.collector}"]
            for need in method.needs
            for point in need.points
            if point != "model"
            for i in range(arch.layers)
        }
        # a file may hold what other methods read too
        wanted = tuple(need.collector for need in method.needs if need.points == ("model",))
        whole = {name: stats[name] for name in stats if wanted and name.startswith(wanted)}
        found: dict[str, torch.Tensor] = method.score_layers({**by_layer, **whole}, options)
        return found
    scores: dict[str, torch.Tensor] = {}
    for i in range(arch.layers):
        memory.release()
        for axis, values in layer_scores(method, checkpoint, i, stats, options).items():
            if axis == "hidden":
                scores[axis] = scores[axis] + values if axis in scores else values
            else:
                scores[f"{axis}.{i}"] = values
        if method.compensates:
            for point in ("o", "down"):
                name = f"{arch.point(i, point)}.mean"
                scores[name] = stats[name]
    return scores


def layer_scores(
    method: Method, checkpoint: Checkpoint, i: int, stats: Tensors, options: Mapping[str, Any]
) -> "dict[str, torch.Tensor]":
    """Return the scores of the units of layer `i`."""
    arch = checkpoint.arch
    view = LayerView(
        weights={
            point: checkpoint.tensor(f"model.layers.{i}.{arch.module(point)}.weight")
            for point in ("o", "down")
        },
        stats={
            f"{point}.{name}": tensor
            for point in ("q", "o", "gate", "down", "block")
            for name, tensor in at_point(stats, arch.point(i, point)).items()
        },
        kv_heads=arch.kv_heads,
    )
    assert method.score is not None
    scores: dict[str, torch.Tensor] = method.score(view, options)
    return scores


def at_point(stats: Tensors, point: str) -> "dict[str, torch.Tensor]":
    """Return the statistics of one point, by their own names."""
    start = point + "."
    return {name[len(start) :]: stats[name] for name in stats if name.startswith(start)}


def check_device(compute: Compute) -> None:
    """Raise UsageError for a device that is not there, before anything is read."""
    if compute.device in ("auto", "cpu"):
        # always there, and torch is slow to load
        return
    from prunecli.stats import run

    run.device_of(compute)


def settled(compute: Compute, checkpoint: Reader) -> Compute:
    """Return `compute` with the device and the type that its `auto` stand for.

    Ids and sidecars are made of these: a result is that of the type that was computed in, not of
    the word that chose it. Raises UsageError for a device that is not there.
    """
    from prunecli.stats import run

    dtype = str(run.dtype_of(compute, checkpoint)).removeprefix("torch.")
    return replace(compute, device=str(run.device_of(compute)), dtype=dtype)


def check_file(out: str, output: Output, checkpoint: Checkpoint) -> None:
    """Check that OUT.safetensors can be written."""
    if not out.endswith(".safetensors"):
        raise UsageError(f"OUT '{out}' must end in .safetensors")
    place.check_place(out, output, [checkpoint.folder])


def _write(
    out: str,
    make: "Callable[[], Iterator[dict[str, torch.Tensor]]]",
    recorder: Recorder,
    output: Output,
    *,
    kind: Kind,
    options: dict[str, Any],
    inputs: list[Input],
    calibration: int,
    compute: Compute,
    depth: int = 1,
    extra: Mapping[str, Spec] | None = None,
) -> Made:
    """Write the tensors that `make()` yields: one part for each of `depth` layers, then `extra`.

    The first part tells the layout of all, so that no more than one is held.
    """
    if same := place.same_already(out, output, sidecar.key(kind, options, inputs)):
        return same
    if output.dry_run:
        return Made(out, results=options)
    parts = make()
    first = next(parts)
    specs = {
        name.replace("model.layers.0", f"model.layers.{i}", 1): spec_of(tensor)
        for i in range(depth)
        for name, tensor in first.items()
    } | dict(extra or {})
    place.check_disk(out, sum(spec.bytes for spec in specs.values()))
    with place.staged(out) as temporary:
        with TensorWriter(temporary, specs) as writer:
            for part in chain([first], parts):
                for name, tensor in part.items():
                    writer.write(name, tensor)
        # with --force: no moment at which an old sidecar describes new tensors
        sidecar.path_of(out).unlink(missing_ok=True)
    record = recorder.sidecar(
        kind,
        options,
        inputs,
        outputs={"digest": combined_digest(writer.digests), "tensors": len(specs)},
        results={"calibration_tokens": calibration},
        calibration=calibration,
        device=compute.device,
        dtype=compute.dtype,
        batch=BATCH_TOKENS,
    )
    place.write_json(str(sidecar.path_of(out)), record.text())
    return Made(out, record.dump(), record.results)


def with_recipe(
    method: Method,
    recipe: str | None,
    data: Data,
    options: Mapping[str, Any],
    decided: bool = False,
    read: bool = True,
) -> tuple[Data, dict[str, Any]]:
    """Return data and options with a recipe's values wherever none were given.

    Where what goes is `decided`, of the options only that of biases is taken. Raises UsageError for
    a recipe that the method does not have, or that says nothing where no text is `read`.
    """
    if recipe is None:
        return data, dict(options)
    if recipe not in method.recipes:
        known = ", ".join(method.recipes) or "none"
        raise UsageError(f"'{method.name}' has no recipe '{recipe}'", f"it has: {known}")
    values = method.recipes[recipe]
    if "source" in values:
        values = {**OFFICIAL_TEXT, **values}
    default = asdict(Data())
    given = {
        name: value
        for name, value in asdict(data).items()
        if value != default[name] or name in data.asked
    }
    fields = {name: value for name, value in values.items() if name in default}
    settings = {
        name: value
        for name, value in values.items()
        if name not in default and (name == "bias" or not decided)
    }
    if not (read or settings):
        raise UsageError(
            f"--recipe {recipe} changes nothing: it says what text '{method.name}' reads, and none "
            "is read here",
            "leave it out",
        )
    return replace(data, **{**fields, **given}), {**settings, **options}
