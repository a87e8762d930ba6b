"""The library verb `train`: token rows and a checkpoint become a trained checkpoint.

The state of an unfinished run is in OUT.partial, from which the same request resumes.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from prunecli.data.rows import source_path
from prunecli.errors import InputError
from prunecli.files import output, world
from prunecli.files.artefact import Artefact
from prunecli.files.claim import exclusive
from prunecli.files.keeping import Keeper
from prunecli.files.sidecar import Computed, SidecarBuilder
from prunecli.files.tensorfile import torch_dtype
from prunecli.model import memory
from prunecli.model.checkpoint import Checkpoint, check_buildable, home
from prunecli.model.device import computable, device_of
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
from prunecli.training.run_log import LOG, loss_curve, tail_mean

if TYPE_CHECKING:
    import torch

    from prunecli.model.checkpoint import Stream
    from prunecli.training.distributed import Ranks
    from prunecli.training.trainer import TrainedModel
KEPT_LOG = "train.jsonl"  # the log in OUT

# results of pruning (or of a scratch twin) that training does not change
INHERITED = ("method", "granularity", "ratio", "ratio_total", "ratio_embedding", "params_before")


@exclusive
def train(training: Training, run: RunContext = RunContext()) -> Result:
    """Train a checkpoint on token rows and write OUT, sharded and (by default) stored as IN.

    When `run.stop` says so, the state is saved and Stopped raised. Under `torchrun` all processes
    call this; the main one writes.
    Raises UsageError, InputError, OutputExists, and PruneError where the loss is not finite.
    """
    run = computable(run)
    builder = SidecarBuilder("train", run.output.argv)
    resolved = _resolve(training, run)
    fixed_mask = _fixed_mask(resolved, run.report)
    artefact = _artefact(builder, resolved, run)
    if existing := artefact.existing():
        return existing
    weights = 4 * resolved.checkpoint.arch.total_params
    output.check_disk(artefact.path, 3 * weights * (training.keep_states + 1) + weights)
    expected = resolved.expected
    tokens = resolved.micro_batch_size * resolved.rows.seq_len
    need = memory.of_training(
        expected["state_bytes"],
        expected["flops"],
        memory.activations(
            resolved.checkpoint.arch,
            tokens,
            4 if resolved.dtype == "float32" else 2,
            bool(resolved.training.activation_checkpointing),
        ),
    )
    if dry_run := need.settled(artefact, {**resolved.options, **expected}, run.compute):
        return dry_run

    from prunecli.training.trainer import Trainer

    with _processes(artefact) as ranks:
        trained = Trainer(resolved, fixed_mask, ranks, run).train()
        tensors = _stored_tensors(resolved, trained.model)
        if ranks.is_main:
            result = _write(resolved, trained, fixed_mask, tensors, artefact)
        else:
            result = Result(artefact.path)
            for _ in tensors:
                pass  # a tensor is gathered from all processes
        ranks.barrier()
    return result


def _resolve(training: Training, run: RunContext) -> ResolvedTraining:
    """Open and check everything that is read, and OUT."""
    sources = (training.data, training.eval_data, training.teacher)
    read = [source_path(source) for source in sources if source]
    output.check_path(run.output.path, run.output, [home(training.model), *read])
    checkpoint = Checkpoint(training.model, run.report)
    resolved = resolve_training(checkpoint, training, run.compute, run.report)
    checkpoint.companion_files()  # those that cannot be copied are refused before training
    check_buildable(checkpoint.stored(training.save_dtype)[0])
    return resolved


def _artefact(builder: SidecarBuilder, resolved: ResolvedTraining, run: RunContext) -> Artefact:
    """Return what will be at OUT; reads every weight once, for the digests."""
    return Artefact(
        builder,
        "checkpoint",
        resolved.options,
        resolved.inputs(run.report),
        run,
        parent=resolved.checkpoint.sidecar,
        trained=resolved.trained,
        computed=Computed(str(device_of(run.compute)), resolved.dtype, ranks=world.size()),
        resumable=True,
    )


def _fixed_mask(resolved: ResolvedTraining, report: Report) -> FixedMask:
    """Return which weights stay zero, and report it."""
    if resolved.masked is None:
        return FixedMask((), 0, 0)
    mask = sparse_tensors(resolved.masked, report)
    if resolved.masked is not resolved.checkpoint:
        if not mask.names:
            raise InputError(
                f"--masks '{resolved.training.masks}' has no sparse matrix, so no zeros to keep",
                "name a sparse checkpoint, or remove --masks",
            )
        check_masks(resolved.masked, resolved.checkpoint, mask)
    if mask.names:
        report.info(
            f"keeping {mask.zeros} zeros ({mask.zeros / mask.weights:.4f} of "
            f"{len(mask.names)} matrices); use --masks drop to train them"
        )
    return mask


@contextmanager
def _processes(artefact: Artefact) -> "Iterator[Ranks]":
    """Join the processes of the run, of which the main one makes and locks OUT.partial."""
    from prunecli.training.distributed import process_group

    with ExitStack() as stack:
        ranks = stack.enter_context(process_group(artefact.run.compute))
        if ranks.is_main:
            stack.enter_context(artefact.partial())
        ranks.barrier()
        yield ranks


def _stored_tensors(resolved: ResolvedTraining, model: "torch.nn.Module") -> "Stream":
    """Yield every weight as OUT stores it; all processes must take part."""
    from prunecli.training.objective import full_tensors

    for name, tensor in full_tensors(model):
        yield name, (tensor.to("cpu", torch_dtype(resolved.stored_specs[name].dtype)),)


def _write(
    resolved: ResolvedTraining,
    trained: "TrainedModel",
    fixed_mask: FixedMask,
    tensors: "Stream",
    artefact: Artefact,
) -> Result:
    """Write OUT, sharded as IN, with the log and the sidecar, and remove the state."""
    checkpoint, folder = resolved.checkpoint, output.partial_of(artefact.path)
    arch, specs = checkpoint.stored(resolved.training.save_dtype)
    shards = [checkpoint.shard(name) for name in specs]
    pattern = pattern_of(results_of(resolved.masked))
    with output.staged(artefact.path) as temporary:
        written = write_tensors(
            temporary, arch, specs, shards, tensors, Keeper(artefact.run), pattern
        )
        record = artefact.sidecar(
            {"digest": written.digest, "params": checkpoint.arch.total_params},
            {
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
        written.finish(record, checkpoint.companion_files(), artefact.path, checkpoint.folder)
    output.discard(folder)
    artefact.run.report.info(
        f"{resolved.steps} steps, {resolved.tokens} tokens, loss {record.results['loss']:.4f}, "
        f"{record.run.seconds:.0f} s"
    )
    return artefact.result(record)


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
