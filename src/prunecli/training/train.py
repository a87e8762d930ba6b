"""The library verb `train`: token rows and a checkpoint become a trained checkpoint.

State lives in OUT.partial, each of its parts whole or absent; the same command goes on from there.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import perf_counter
from typing import TYPE_CHECKING, Any

from prunecli.data.rows import source_path
from prunecli.errors import InputError, PruneError, Stopped
from prunecli.files import output as place
from prunecli.files import sidecar
from prunecli.files.sidecar import Sidecar, SidecarBuilder
from prunecli.files.tensorfile import TORCH_NAMES, torch_dtype
from prunecli.model.checkpoint import Checkpoint, check_buildable
from prunecli.model.device import check_device
from prunecli.model.sparsity import (
    FixedMask,
    check_masks,
    claims,
    pattern_of,
    results_of,
    sparse_tensors,
)
from prunecli.model.write import WriteSummary, size_results, write_tensors
from prunecli.report import SILENT, Report
from prunecli.settings import Compute, Output, Result, Training
from prunecli.training import config as jobs
from prunecli.training.config import ResolvedTraining
from prunecli.training.log import curve, final
from prunecli.training.trackers import open_tracker

if TYPE_CHECKING:
    import torch

    from prunecli.training.distributed import Ranks
    from prunecli.training.loop import Loop, StepMetrics
    from prunecli.training.objective import Objective
LOG = "train.jsonl"
SWEEP_FILE = "sweep.json"
WIDE = {"F32", "F64"}  # what holds trained weights as they are


# what pruning (or being a twin) made of the model, which training does not change
SHAPED = ("method", "granularity", "ratio", "ratio_total", "ratio_embedding")


# dense bfloat16 FLOP/s, from the makers' data sheets
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "MI300X": 1307e12,
}  # fmt: skip


def train(
    model: str,
    out: str,
    training: Training,
    *,
    compute: Compute | None = None,
    output: Output | None = None,
    report: Report = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train the checkpoint IN on token rows and write OUT, sharded as IN, and stored so by default.

    `stop` is asked at every step; when it says so, the state is saved and Stopped raised. Under
    `torchrun` all processes call this; the first one writes.
    Raises UsageError, InputError, OutputExists, and PruneError where the loss is no number.
    """
    compute, output = compute or Compute(), output or Output()
    check_device(compute)
    recorder = SidecarBuilder("train", output.argv)
    checkpoint = Checkpoint(model, report)
    sources = (training.data, training.eval_data, training.teacher)
    read = [source_path(source) for source in sources if source]
    place.check_path(out, output, [checkpoint.folder, *read])
    job = jobs.prepare(checkpoint, training, report)
    dtype = jobs.dtype_of(compute)
    options = job.options(dtype)
    checkpoint.companion_files()  # refused now or never
    check_buildable(checkpoint.stored(training.save_dtype)[0])
    held = _held(job, report)
    found = job.inputs(report)
    key = sidecar.content_id("checkpoint", options, found)
    if same := place.existing_result(out, output, key):
        return same
    weights = 4 * job.checkpoint.arch.total_params
    place.check_disk(out, 3 * weights * (training.keep_states + 1) + weights)
    place.check_partial(out, key, training.restart)
    if output.dry_run:
        return Result(out, results={**options, **_expected(job)})

    import torch

    from prunecli.training import distributed as processes
    from prunecli.training import objective as models
    from prunecli.training.fixed_masks import Masks

    with ExitStack() as stack:
        ranks = stack.enter_context(processes.started(compute))
        if ranks.first:
            stack.enter_context(place.partial(out, key, training.restart))
        ranks.barrier()
        objective = models.build(
            job.checkpoint,
            job.teacher,
            ranks,
            dtype=getattr(torch, dtype),
            kd_weight=job.kd_weight,
            temperature=job.temperature,
            recompute=training.activation_checkpointing,
            compile=training.compile,
        )
        masks = Masks(objective.model, held.names, job.masked)
        run = _Run(job, objective, masks, ranks, out, report, stop)
        swept = run.sweep()
        loop = run.loop(swept["lr"] if swept else job.lrs[0], job.steps)
        lines = run.train(loop, options)
        rounding = run.rounding(loop)
        made = None
        if ranks.first:

            def record(written: WriteSummary) -> Sidecar:
                return recorder.sidecar(
                    "checkpoint",
                    options,
                    found,
                    outputs={"digest": written.digest, "params": checkpoint.arch.total_params},
                    results={
                        **_results(job, lines, loop.lr, held),
                        **claims(
                            results_of(checkpoint),
                            results_of(job.masked),
                            checkpoint.arch,
                            written.census,
                        ),
                        "rounding": rounding,
                        "sweep": swept,
                        **size_results(checkpoint.arch, written),
                    },
                    parent=checkpoint.sidecar,
                    trained=job.trained,
                    device=str(ranks.device),
                    dtype=options["dtype"],
                    ranks=ranks.world,
                )

            made = run.write(record)
        else:
            run.take_part_in_writing()
        ranks.barrier()
    if made is None:
        return Result(out)
    report.note(
        f"{job.steps} steps, {job.tokens} tokens, loss {made.results['loss']:.4f}, "
        f"{made.run.seconds:.0f} s"
    )
    return Result(out, made.dump(), made.results)


def _expected(job: ResolvedTraining) -> dict[str, Any]:
    """Return what a dry run tells; `state_bytes` are weights, moments and gradients."""
    arch, length = job.checkpoint.arch, job.rows.seq_len
    return {
        "tokens": job.tokens,
        "rows": list(job.trained.range),
        "params": arch.total_params,
        "flops": 3 * arch.flops(length) * (job.tokens // length),
        "state_bytes": 16 * arch.total_params,
        "micro_batch": job.micro,
        "save_every": job.save_every,
    }


def _held(job: ResolvedTraining, report: Report) -> FixedMask:
    """Return which weights are held at zero, having said so."""
    if job.masked is None:
        return FixedMask((), 0, 0)
    held = sparse_tensors(job.masked)
    if job.masked is not job.checkpoint:
        if not held.names:
            raise InputError(
                f"--masks '{job.training.masks}' has no sparse matrix, so no zeros to keep",
                "name a sparse checkpoint, or leave out --masks",
            )
        check_masks(job.masked, job.checkpoint, held)
    if held.names:
        report.note(
            f"holding {held.zeros} zeros ({held.zeros / held.weights:.4f} of "
            f"{len(held.names)} matrices); --masks drop trains them"
        )
    return held


def _results(
    job: ResolvedTraining, log: list[dict[str, Any]], lr: float, held: FixedMask
) -> dict[str, Any]:
    """Return what the sidecar reports of a run; `log` has a line per step."""
    losses = [line["loss"] for line in log]
    parent = results_of(job.checkpoint)
    return {
        **{name: parent[name] for name in SHAPED if name in parent},
        "steps": job.steps,
        "batch_size": job.batch_size,
        "seq_len": job.rows.seq_len,
        "tokens": job.tokens,
        "epochs": job.steps * job.batch_size / len(job.rows),
        "lr": lr,
        "loss": final(losses),
        "curve": curve(losses),
        "evaluations": [
            {"step": line["step"], "tokens": line["tokens"], "loss": line["eval_loss"]}
            for line in log
            if "eval_loss" in line
        ],
        "held": {"tensors": len(held.names), "zeros": held.zeros, "weights": held.weights},
    }


class _Run:
    """One process's part in a run: sweep, then steps, with everything that surrounds them."""

    def __init__(
        self,
        job: ResolvedTraining,
        objective: "Objective",
        masks: Any,
        ranks: "Ranks",
        out: str,
        report: Report,
        stop: Callable[[], bool],
    ) -> None:
        self.job, self.objective, self.masks, self.ranks = job, objective, masks, ranks
        self.out, self.report, self.stop = out, report, stop
        self.shape, self.specs = job.checkpoint.stored(job.training.save_dtype)
        self.folder = place.partial_of(out)
        self.name = f"{out.rstrip('/')}.partial"
        self.peak = _peak(ranks, objective)
        length = job.rows.seq_len
        self.flops_per_token = 3 * job.checkpoint.arch.flops(length) / length

    def loop(self, lr: float, steps: int) -> "Loop":
        """Return a loop of `steps` steps over the first rows."""
        from prunecli.training.loop import Loop

        job = self.job
        return Loop(
            self.objective, job.rows, job.training, self.masks, self.ranks,
            steps=steps, batch_size=job.batch_size, lr=lr, micro=job.micro,
        )  # fmt: skip

    def sweep(self) -> dict[str, Any] | None:
        """Train a short prefix with every learning rate; return all curves and the best rate.

        The best is that of the lowest mean loss over the last tenth of the prefix. Each runs the
        whole schedule on the prefix. Finished ones are kept when the run is stopped.
        """
        from prunecli.training.objective import fill

        job, steps = self.job, self.job.sweep_steps
        if len(job.lrs) == 1:
            return None
        file = self.folder / SWEEP_FILE
        curves: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
        if curves and self.ranks.first:
            self.report.note(f"resuming the sweep: {len(curves)} of {len(job.lrs)} rates are done")
        self.ranks.barrier()
        for lr in job.lrs:
            if str(lr) in curves:
                continue
            fill(self.objective.model, job.checkpoint, self.ranks)
            loop = self.loop(lr, steps)
            losses: list[float] = []
            for step in self.report.track(range(steps), f"trying {lr}", steps, "steps"):
                done = loop.step(step, self.stop())
                if done.stop:
                    raise Stopped(
                        f"stopped in the sweep; '{self.name}' keeps the rates that are done",
                        "the same command goes on",
                    )
                if not done.finite:
                    break
                losses.append(done.loss)
            curves[str(lr)] = losses
            if self.ranks.first:
                place.replace_text(file, json.dumps(curves))
        fill(self.objective.model, job.checkpoint, self.ranks)

        def reached(lr: float) -> float:
            losses = curves[str(lr)]
            tail = losses[-max(1, steps // 10) :]
            return sum(tail) / len(tail) if len(losses) == steps else float("inf")

        best = min(job.lrs, key=reached)
        if reached(best) == float("inf"):
            raise PruneError("no learning rate of the sweep stays finite")
        if self.ranks.first:
            told = ", ".join(f"{lr:g}: {reached(lr):.4f}" for lr in job.lrs)
            self.report.note(f"sweep over {steps} steps: {told}; taking {best:g}")
            if best in (job.lrs[0], job.lrs[-1]):
                self.report.note("the best rate lies at the edge of the sweep")
        return {
            "lr": best,
            "steps": steps,
            "tokens": steps * job.batch_size * job.rows.seq_len * len(job.lrs),
            "curves": curves,
        }

    def train(self, loop: "Loop", options: dict[str, Any]) -> list[dict[str, Any]]:
        """Take all steps that are left; return one record per step, validations among them."""
        from prunecli.training import trainer

        job, ranks, training = self.job, self.ranks, self.job.training
        run = trainer.Trainer(
            self.folder, self.name, "training", job.save_every, training.keep_states, False,
            self.report, self.stop,
        )  # fmt: skip
        tracker = None
        if ranks.first:
            name = self.folder.stem
            board = self.folder.parent / "tensorboard" / name
            tracker = open_tracker(training.track, board, name, options)
        clock, taken = perf_counter(), 0

        def line_of(step: int, done: "StepMetrics") -> dict[str, Any]:
            nonlocal taken
            taken += 1
            line = self._line(step, done, taken / (perf_counter() - clock))
            if job.held_out is not None and _due(step, job.eval_every, job.steps):
                line["eval_loss"] = loop.evaluate(job.held_out.ids)
            return line

        def told(line: dict[str, Any]) -> None:
            if tracker is not None:
                tracker.add(line["step"], {k: v for k, v in line.items() if k != "step"})
            self._show(line)

        try:
            lines = run.take(loop, line_of, told)
            self.masks.check()
        finally:
            if tracker is not None:
                tracker.close()
        return lines

    def rounding(self, loop: "Loop") -> dict[str, Any] | None:
        """Round the trained weights to what OUT can hold; return what that costs.

        That is the loss before and after, on the held-out rows, or those of the last step if there
        are none. None where nothing is rounded. All processes must take part.
        """
        from prunecli.training.objective import round_to

        job = self.job
        narrow = sorted({spec.dtype for spec in self.specs.values()} - WIDE)
        if not narrow:
            return None
        if job.held_out is not None:
            rows, ids = "held-out rows", job.held_out.ids
        else:
            last = loop.order.batch(job.steps - 1, job.batch_size, slice(None))
            rows, ids = "rows of the last step", job.rows.read(last)
        before = loop.evaluate(ids)
        round_to(self.specs, self.objective.model)
        after = loop.evaluate(ids)
        types = " and ".join(TORCH_NAMES[name] for name in narrow)
        self.report.note(
            f"rounded to {types}: loss on {rows} {before:.5f} before, {after:.5f} after; "
            "--save-dtype float32 rounds nothing"
        )
        return {"dtype": types, "rows": rows, "loss_before": before, "loss_after": after}

    def _stored(self) -> "Iterator[tuple[str, torch.Tensor]]":
        from prunecli.training.objective import whole_tensors

        for name, tensor in whole_tensors(self.objective.model):
            yield name, tensor.to("cpu", torch_dtype(self.specs[name].dtype))

    def write(self, record: Callable[[WriteSummary], Sidecar]) -> Sidecar:
        """Write OUT, sharded as IN, with the log, and drop the state."""
        from prunecli.training import state

        checkpoint = self.job.checkpoint
        shards = [checkpoint.shard(name) for name in self.specs]
        with place.staged(self.out) as temporary:
            pattern = pattern_of(results_of(self.job.masked))
            stream = self._stored()
            written = write_tensors(temporary, self.shape, self.specs, shards, stream, pattern)
            made = record(written)
            place.write_text(temporary / LOG, (self.folder / state.LOG).read_text("utf-8"))
            written.finish(made, checkpoint.companion_files())
        place.remove(self.folder)
        return made

    def take_part_in_writing(self) -> None:
        """Give this process's part of every tensor to the one that writes."""
        for _ in self._stored():
            pass

    def _line(self, step: int, done: "StepMetrics", rate: float) -> dict[str, Any]:
        """Return what the log tells of a step beside its loss; `rate` is in steps per second."""
        per_step = self.job.batch_size * self.job.rows.seq_len
        line = {"tokens": (step + 1) * per_step, "lr": done.lr, "grad_norm": done.grad_norm}
        if done.kl is not None:
            line["kl"] = done.kl
        return {**line, "tokens_per_second": round(rate * per_step, 1)}

    def _show(self, line: dict[str, Any]) -> None:
        rate = line["tokens_per_second"]
        text = f"loss {line['loss']:.4f}, {rate:.0f} tokens/s"
        if self.peak is not None:
            share = self.flops_per_token * rate / (self.peak * self.ranks.world)
            text += f", {100 * share:.1f} % of peak"
        self.report.live(text)


def _due(step: int, every: int, steps: int) -> bool:
    return (step + 1) % every == 0 or step + 1 == steps


def _peak(ranks: "Ranks", objective: "Objective") -> float | None:
    """Return the FLOP/s that one device could do in bfloat16, None where that is not known."""
    import torch

    if ranks.device.type != "cuda" or objective.dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(ranks.device)
    return next((flops for known, flops in PEAKS.items() if known in name), None)
