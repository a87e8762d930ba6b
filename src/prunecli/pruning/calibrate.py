"""The library verb `calibrate`: statistics of the dense model, layer by layer."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from prunecli.errors import UsageError
from prunecli.files.artefact import Artefact
from prunecli.files.claim import exclusive
from prunecli.files.keeping import Keeper
from prunecli.files.sidecar import SidecarBuilder
from prunecli.files.tensorfile import Spec
from prunecli.methods import registry
from prunecli.methods._base import Method, RequiredStatistic
from prunecli.model import memory
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import computable, dtype_of, settled
from prunecli.model.layout import POINTS
from prunecli.model.memory import MemoryNeed
from prunecli.pruning import shapes
from prunecli.pruning.calibration import Calibration, check_tensor_file, read_windows
from prunecli.pruning.sizes import check_supported, resolve_sizes
from prunecli.pruning.stats import registry as statistics
from prunecli.pruning.stats._base import GRADIENTS, INPUTS, MODEL, Statistic
from prunecli.ranks import Ranks
from prunecli.record import Record
from prunecli.settings import BATCH_TOKENS, Amount, Compute, Data, Result, RunContext
from prunecli.training.distributed import joined

if TYPE_CHECKING:
    import torch

    from prunecli.data.windows import Tokens

Required = tuple[RequiredStatistic, ...]
# of the size of a layer's largest statistic: SparseGPT makes a factor of a Gram matrix. While it
# prunes, what it holds of weights takes less than the Gram matrices that it has let go by then.
# Where float32 is too narrow for a factor, it takes three more for a while.
WORKING_COPIES = 1


@dataclass(frozen=True)
class CalibrateRequest(Record):
    """What to calibrate: for which methods, on which text.

    `amount` is for methods that try out what they remove (minitron-depth). `compat` collects what
    their official implementations read.
    """

    model: str
    methods: Sequence[str]
    data: Data = Data()
    amount: Amount = Amount()
    compat: bool = False


@exclusive
def calibrate(request: CalibrateRequest, run: RunContext = RunContext()) -> Result:
    """Collect what methods read, of the dense model on DATA, into OUT.safetensors.

    What is done of a long run is kept in OUT.partial; the next one goes on from there, unless
    `run.output.restart`. Under `torchrun` all processes call this and divide the rows of DATA; the
    first one writes, and nothing is kept. Raises UsageError, InputError, OutputExists, Stopped.
    """
    with joined(run) as run:
        return _calibrate(request, run)


def _calibrate(request: CalibrateRequest, run: RunContext) -> Result:
    run = computable(run)
    methods = [registry.get(name) for name in request.methods]
    _check_read(methods, request.compat)
    check_tensor_file(run.output, request.model)
    dense = Checkpoint(request.model, run.report)
    for method in methods:
        check_supported(method, dense.arch)
    num_removed = num_removed_layers(methods, request.amount, dense.arch)
    run = replace(run, compute=settled(run.compute, dense))
    required = required_statistics(methods, request.compat)
    calibration = share(
        read_windows(dense, request.data, run.report), required, dense.arch, run.ranks
    )
    run = memory.within(
        run, lambda run: memory_need(dense, calibration, required, run, num_removed)
    )
    digest = dense.digest(run.report)
    artefact = statistics_artefact(dense, digest, calibration, required, num_removed, run)
    need = memory_need(dense, calibration, required, run, num_removed)
    existing = run.ranks.of_first(lambda: need.settled(artefact, artefact.options, run.compute))
    return existing or write_statistics(artefact, dense, calibration, required, num_removed)


def share(calibration: Calibration, required: Required, arch: Arch, ranks: Ranks) -> Calibration:
    """Return a calibration with those rows that are this process's.

    Raises UsageError where there are too few of them, or where statistics are made of all in order;
    of experts, too, which are judged by the tokens that they see.
    """
    if ranks.alone or calibration.windows is None:
        return calibration
    if arch.experts:
        raise UsageError("experts are measured by one process", "run it without torchrun")
    for need in required:
        if statistics.get(need.name).ordered:
            raise UsageError(
                f"'{need.name}' is made of all rows of DATA in order, by one process",
                "run it without torchrun",
            )
    ids = calibration.windows.ids
    own = replace(calibration.windows, ids=ids[ranks.share(len(ids))])
    return replace(calibration, windows=own)


def required_statistics(methods: Sequence[Method], compat: bool) -> Required:
    """Return every statistic that any of these methods reads, each once."""
    needs = (need for method in methods for need in method.needed(compat))
    pairs = {(need.name, point) for need in needs for point in need.points}
    return tuple(
        RequiredStatistic(name, tuple(sorted(point for other, point in pairs if other == name)))
        for name in sorted({name for name, _ in pairs})
    )


def num_removed_layers(methods: Sequence[Method], amount: Amount, arch: Arch) -> int | None:
    """Return how many layers are removed, where a method must know that before it can calibrate.

    Raises UsageError where the amount is missing, or changes nothing.
    """
    removed = set()
    for method in methods:
        if depends_on_amount(method):
            if amount == Amount():
                raise UsageError(
                    f"'{method.name}' tries out what it removes",
                    "say how many with --ratio or --layers",
                )
            kept = resolve_sizes(method, method.resolve({}), amount, arch).layers
            removed.add(arch.layers - kept)
    if amount != Amount() and not removed:
        raise UsageError("the statistics of these methods do not depend on an amount")
    # an amount means the same number of layers for all
    return removed.pop() if removed else None


def depends_on_amount(method: Method) -> bool:
    """Return whether what a method reads depends on how many layers are removed."""
    return any(statistics.get(need.name).depends_on_amount for need in method.needs)


def statistics_artefact(
    dense: Checkpoint,
    digest: str,
    calibration: Calibration,
    required: Required,
    num_removed: int | None,
    run: RunContext,
) -> Artefact:
    """Return the file of statistics that a step makes, or finds made already."""
    options = {
        "statistics": {need.name: list(need.points) for need in required},
        "skip": num_removed,
        "dtype": run.compute.dtype,
    }
    return Artefact(
        SidecarBuilder("calibrate", run.output.argv), "stats", options,
        [dense.as_input(digest), *calibration.inputs], run, calibration=calibration.num_tokens,
        computed=memory.computed(dense.arch, run.compute, run.ranks.world),
        resumable=calibration.windows is not None,
    )  # fmt: skip


def statistics_bytes(required: Required, arch: Arch, copies: int = WORKING_COPIES) -> int:
    """Return the bytes that collectors of one layer hold, and of `copies` of the largest."""
    most = 0
    for i in arch.sorts:
        sizes = [n for of_point in _statistics_sizes(required, arch, i).values() for n in of_point]
        most = max(most, sum(sizes) + copies * max(sizes, default=0))
    return most


def solving_bytes(required: Required, arch: Arch) -> int:
    """Return what is held at the peak of pruning a layer's weights, input by input.

    Statistics of inputs that are done are let go. Beside the others there are working copies of
    this input's or, later, a matrix in float32 and what it changes by.
    """
    return max(_solving_bytes(required, arch, i) for i in arch.sorts)


def _solving_bytes(required: Required, arch: Arch, i: int) -> int:
    sizes = _statistics_sizes(required, arch, i)
    left, peak = sum(map(sum, sizes.values())), 0
    matrices = [prod(arch.shape(axes, i)) for axes in arch.inside(i).values()]
    for point in POINTS:
        own = sizes.get(point, [])
        peak = max(peak, left + max(WORKING_COPIES * max(own, default=0), 2 * 4 * max(matrices)))
        left -= sum(own)
    return peak


def _statistics_sizes(required: Required, arch: Arch, i: int) -> dict[str, list[int]]:
    """Return the bytes of the tensors that collectors of layer `i` hold, by point."""
    import torch

    sizes: dict[str, list[int]] = {}
    for need in required:
        record = statistics.get(need.name)
        for point in need.points if record.scope == INPUTS else ():
            for width, times in Counter(one.width for one in arch.places(i, point)).items():
                collector = record.make()
                seen = torch.empty(1, 1, width, device="meta")
                # of these two tensors enter: see Collector
                collector.update(*[seen] * (2 if point in ("block", "experts") else 1))
                own = [tensor.nbytes for tensor in collector.compute().values()]
                sizes.setdefault(point, []).extend(own * times)
    return sizes


def memory_need(
    dense: Checkpoint,
    calibration: Calibration,
    required: Required,
    run: RunContext,
    num_removed: int | None = None,
    edited: bool = False,
) -> MemoryNeed:
    """Return what collecting statistics needs; nothing where they are read from a file.

    `edited` says whether layers get other weights on the way.
    """
    if calibration.windows is None:
        return MemoryNeed()
    rows, length = calibration.windows.ids.shape
    solving = solving_bytes(required, dense.arch) if edited else 0
    # a layer that is edited is solved while no batch runs
    copies = WORKING_COPIES if not edited else 0
    held = statistics_bytes(required, dense.arch, copies)
    times = passes(required, dense.arch, num_removed or 0, edited)
    need = memory.of_walk(dense, run.compute, rows, length, held, times, edited)
    running = sum(need.device[name] for name in ("statistics", "a batch", "a matrix"))
    need = replace(need, device={**need.device, "solving": max(0, solving - running)})
    scopes = {statistics.get(one.name).scope for one in required}
    if scopes & {GRADIENTS, MODEL}:
        need = _with_losses(need, dense.arch, run.compute, GRADIENTS in scopes)
        records = [statistics.get(one.name) for one in required]
        of_layers = range(dense.arch.layers)
        made = sum(
            8 * prod(shape)
            for record in records
            for number in (of_layers if record.scope == GRADIENTS else (num_removed or 0,))
            for shape in record.shapes(dense.arch, number).values()
        )
        need = replace(need, host={**need.host, "statistics of all layers": made})
    if any(statistics.get(one.name).depends_on_amount for one in required):
        # of every candidate: as many rows as fit, and a batch of them at least
        width = dense.arch.states_width
        row = (dense.arch.layers + 1) * length * width * memory.item_bytes(run.compute)
        batch = max(1, BATCH_TOKENS // length) * row
        streams = min(rows * row, max(batch, memory.streams_bytes(run.compute)))
        need = replace(need, device={**need.device, "streams": streams})
        if all(statistics.get(one.name).depends_on_amount for one in required):
            # these are the states of the rows that are tried, and no others are held
            need = need.times("hidden states", 0)
    return need


def passes(required: Required, arch: Arch, num_removed: int, edited: bool) -> float:
    """Return how often the windows go through the model; a backward pass counts as two.

    A layer that is `edited` runs once to be observed, without the product that nobody reads, and
    once more for the next; gradients need a forward pass, and one more with the backward pass.
    """
    records = [statistics.get(one.name) for one in required]
    scopes = {record.scope for record in records}
    of_inputs = (1.75 if edited else 1.0) if INPUTS in scopes else 0.0
    of_model = sum(record.passes(arch, num_removed) for record in records if record.scope == MODEL)
    return of_inputs + (4.0 if GRADIENTS in scopes else 0.0) + of_model


def _with_losses(need: MemoryNeed, arch: Arch, compute: Compute, backward: bool) -> MemoryNeed:
    """Return what is held where losses are computed too, and if `backward`, their gradients."""
    from prunecli.model.stream import VOCAB_CHUNK

    chunk, batch = min(VOCAB_CHUNK, arch.vocab), memory.batch_tokens(arch, compute)
    device = {**need.device, "logits": 4 * chunk * (2 * batch + arch.hidden)}
    if not backward:
        return replace(need, device=device)
    # states between all layers; and in float32 a layer's weights, gradients, their sums and squares
    device["gradients"] = 5 * 4 * -(-arch.block_params // arch.layers)
    return replace(need, device=device).times("hidden states", arch.layers + 2)


def write_statistics(
    artefact: Artefact,
    dense: Checkpoint,
    calibration: Calibration,
    required: Required,
    num_removed: int | None,
) -> Result:
    """Collect statistics into a file; memory holds those of one layer."""
    assert calibration.windows is not None, "statistics are made of tokens"
    specs = _layout(dense, required, num_removed, artefact.run)
    with artefact.keeping() as keeper:
        parts = collect_statistics(
            dense, calibration.windows, required, num_removed, artefact.run, keeper
        )
        return artefact.write_tensors(parts, specs, keeper)


def collect_statistics(
    dense: Checkpoint,
    windows: "Tokens",
    required: Required,
    num_removed: int | None,
    run: RunContext,
    keeper: Keeper | None = None,
) -> "Iterator[dict[str, torch.Tensor]]":
    """Yield statistics of the dense model, layer by layer, and last those of the whole model.

    With a `keeper`, those of layers that a stopped run yielded are left out.
    """
    from prunecli.model.stream import LayerStream
    from prunecli.pruning.stats import _gradients, _hooks

    stream = LayerStream(dense, run.compute, run.report, keeper)
    of_inputs = tuple(need for need in required if statistics.get(need.name).scope == INPUTS)
    if of_inputs:
        yield from _hooks.dense(stream, windows.ids, of_inputs)
    of_gradients = _of_scope(required, GRADIENTS)
    if of_gradients:
        yield _gradients.gradients(stream, windows.ids, of_gradients)
    for record in _of_scope(required, MODEL):
        (name,) = record.shapes(dense.arch, num_removed or 0)
        yield {name: record.make(stream, windows.ids, num_removed or 0)}


def _of_scope(required: Required, scope: str) -> list[Statistic]:
    """Return the records of those statistics that are made of `scope`."""
    records = (statistics.get(need.name) for need in required)
    return [record for record in records if record.scope == scope]


def collect_all(
    dense: Checkpoint,
    windows: "Tokens",
    required: Required,
    num_removed: int | None,
    run: RunContext,
    keeper: Keeper,
) -> "dict[str, torch.Tensor]":
    """Return statistics of all layers, and those of the whole model, in one dictionary."""
    specs = _layout(dense, required, num_removed, run)
    found = keeper.remembered("statistics", specs)
    for part in collect_statistics(dense, windows, required, num_removed, run, keeper):
        found.update(part)
    keeper.check_whole(found, specs)
    return found


def _layout(
    dense: Checkpoint, required: Required, num_removed: int | None, run: RunContext
) -> dict[str, Spec]:
    """Return the tensors of all statistics that a run makes."""
    return shapes.of_run(required, dense.arch, num_removed or 0, dtype_of(run.compute, dense))


def _check_read(methods: Sequence[Method], compat: bool) -> None:
    """Raise UsageError for methods that read no statistics, or none that `compat` changes."""
    for method in methods:
        if not method.needed(compat):
            raise UsageError(f"'{method.name}' reads no statistics, there is nothing to calibrate")
    if compat and required_statistics(methods, True) == required_statistics(methods, False):
        raise UsageError(
            "--compat official changes nothing: the statistics of "
            f"{', '.join(method.name for method in methods)} are the same",
            "leave it out",
        )
