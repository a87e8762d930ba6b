"""The library verb `train`: token rows and a checkpoint become a trained checkpoint.

The state of an unfinished run is in OUT.partial, from which the same request resumes.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from prunecli.data.rows import place_of
from prunecli.errors import InputError
from prunecli.files import output, sidecar
from prunecli.files.sidecar import Sidecar, SidecarBuilder
from prunecli.files.tensorfile import torch_dtype
from prunecli.model.checkpoint import Checkpoint, check_holds
from prunecli.model.device import check_device
from prunecli.model.sparsity import (
    FixedMask,
    check_masks,
    claims,
    pattern_of,
    results_of,
    sparse_tensors,
)
from prunecli.model.write import size_results, write_tensors
from prunecli.report import Report
from prunecli.settings import Result, RunContext, Training
from prunecli.training.config import ResolvedTraining, resolve_training
from prunecli.training.log import LOG, loss_curve, tail_mean

if TYPE_CHECKING:
    import torch

    from prunecli.training.distributed import Ranks
    from prunecli.training.trainer import TrainedModel
KEPT_LOG = "train.jsonl"  # the log in OUT

# results of pruning (or of a scratch baseline) that training does not change
INHERITED = ("method", "granularity", "ratio", "ratio_total", "ratio_embedding")


def train(training: Training, run: RunContext = RunContext()) -> Result:
    """Train a checkpoint on token rows and write OUT, sharded and (by default) stored as IN.

    When `run.stop` says so, the state is saved and Stopped raised. Under `torchrun` all processes
    call this; the main one writes.
    Raises UsageError, InputError, OutputExists, and PruneError where the loss is not finite.
    """
    check_device(run.compute)
    builder = SidecarBuilder("train", run.output.argv)
    resolved = _resolve(training, run)
    fixed_mask = _fixed_mask(resolved, run.report)
    inputs = resolved.inputs(run.report)
    content_id = sidecar.key("checkpoint", resolved.options, inputs)
    out = run.output.path
    if existing := output.same_already(out, run.output, content_id):
        return existing
    weights = 4 * resolved.checkpoint.arch.total_params
    output.check_disk(out, 3 * weights * (training.keep_states + 1) + weights)
    output.check_partial(out, content_id, run.output.restart)
    if run.output.dry_run:
        return Result(out, results={**resolved.options, **resolved.expected})

    from prunecli.training.trainer import Trainer

    with _processes(run, content_id) as ranks:
        trained = Trainer(resolved, fixed_mask, ranks, run).train()
        tensors = _stored_tensors(resolved, trained.model)
        record = None
        if ranks.is_main:
            record_of = partial(
                builder.sidecar, "checkpoint", resolved.options, inputs,
                parent=resolved.checkpoint.sidecar, trained=resolved.trained,
                device=str(ranks.device), dtype=resolved.dtype, ranks=ranks.world,
            )  # fmt: skip
            record = _write(resolved, trained, fixed_mask, tensors, record_of, out)
        else:
            for _ in tensors:
                pass  # a tensor is gathered from all processes
        ranks.barrier()
    if record is None:
        return Result(out)
    run.report.note(
        f"{resolved.steps} steps, {resolved.tokens} tokens, loss {record.results['loss']:.4f}, "
        f"{record.run.seconds:.0f} s"
    )
    return Result(out, record.dump(), record.results)


def _resolve(training: Training, run: RunContext) -> ResolvedTraining:
    """Open and check everything that is read, and OUT."""
    checkpoint = Checkpoint(training.model, run.report)
    sources = (training.data, training.eval_data, training.teacher)
    read = [place_of(source) for source in sources if source]
    output.check_place(run.output.path, run.output, [checkpoint.folder, *read])
    resolved = resolve_training(checkpoint, training, run.compute, run.report)
    checkpoint.tag_along()  # companion files that cannot be copied are refused before training
    check_holds(checkpoint.stored(training.save_dtype)[0])
    return resolved


def _fixed_mask(resolved: ResolvedTraining, report: Report) -> FixedMask:
    """Return which weights stay zero, and report it."""
    if resolved.masked is None:
        return FixedMask((), 0, 0)
    mask = sparse_tensors(resolved.masked)
    if resolved.masked is not resolved.checkpoint:
        if not mask.names:
            raise InputError(
                f"--masks '{resolved.training.masks}' has no sparse matrix, so no zeros to keep",
                "name a sparse checkpoint, or remove --masks",
            )
        check_masks(resolved.masked, resolved.checkpoint, mask)
    if mask.names:
        report.note(
            f"keeping {mask.zeros} zeros ({mask.zeros / mask.weights:.4f} of "
            f"{len(mask.names)} matrices); use --masks drop to train them"
        )
    return mask


@contextmanager
def _processes(run: RunContext, content_id: str) -> "Iterator[Ranks]":
    """Join the processes of the run, of which the main one makes and locks OUT.partial."""
    from prunecli.training.distributed import process_group

    with ExitStack() as stack:
        ranks = stack.enter_context(process_group(run.compute))
        if ranks.is_main:
            folder = output.partial(run.output.path, content_id, run.output.restart)
            stack.enter_context(folder)
        ranks.barrier()
        yield ranks


def _stored_tensors(
    resolved: ResolvedTraining, model: "torch.nn.Module"
) -> "Iterator[tuple[str, torch.Tensor]]":
    """Yield every weight as OUT stores it; all processes must take part."""
    from prunecli.training.objective import full_tensors

    for name, tensor in full_tensors(model):
        yield name, tensor.to("cpu", torch_dtype(resolved.stored_specs[name].dtype))


def _write(
    resolved: ResolvedTraining,
    trained: "TrainedModel",
    fixed_mask: FixedMask,
    tensors: "Iterator[tuple[str, torch.Tensor]]",
    record_of: Callable[..., Sidecar],
    out: str,
) -> Sidecar:
    """Write OUT, sharded as IN, with the log and the sidecar, and remove the state."""
    checkpoint, folder = resolved.checkpoint, output.partial_of(out)
    arch, specs = checkpoint.stored(resolved.training.save_dtype)
    shards = [checkpoint.shard(name) for name in specs]
    pattern = pattern_of(results_of(resolved.masked))
    with output.staged(out) as temporary:
        written = write_tensors(temporary, arch, specs, shards, tensors, pattern)
        record = record_of(
            outputs={"digest": written.digest, "params": checkpoint.arch.total_params},
            results={
                **_results(resolved, trained, fixed_mask),
                **claims(
                    results_of(checkpoint), results_of(resolved.masked), checkpoint.arch,
                    written.census,
                ),
                "rounding": trained.rounding,
                "sweep": trained.sweep,
                **size_results(checkpoint.arch, written),
            },
        )  # fmt: skip
        output.write_text(temporary / KEPT_LOG, (folder / LOG).read_text("utf-8"))
        written.finish(record, checkpoint.tag_along())
    output.remove(folder)
    return record


def _results(
    resolved: ResolvedTraining, trained: "TrainedModel", fixed_mask: FixedMask
) -> dict[str, Any]:
    """Return what the sidecar reports of the run and of its log."""
    losses = [line["loss"] for line in trained.log]
    parent = results_of(resolved.checkpoint)
    return {
        **{name: parent[name] for name in INHERITED if name in parent},
        "steps": resolved.steps,
        "batch_size": resolved.batch_size,
        "seq_len": resolved.rows.seq_len,
        "tokens": resolved.tokens,
        "epochs": resolved.steps * resolved.batch_size / len(resolved.rows),
        "lr": trained.lr,
        "loss": tail_mean(losses),
        "curve": loss_curve(losses),
        "evaluations": [
            {"step": line["step"], "tokens": line["tokens"], "loss": line["eval_loss"]}
            for line in trained.log
            if "eval_loss" in line
        ],
        "held": {
            "tensors": len(fixed_mask.names),
            "zeros": fixed_mask.zeros,
            "weights": fixed_mask.weights,
        },
    }
