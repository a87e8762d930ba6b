"""One process's part in a run: the sweep of learning rates, the fit with its states and log."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from pydantic import FiniteFloat

from prunecli.errors import NotANumber, PruneError, Stopped
from prunecli.files import keeping, output, unfinished
from prunecli.files.tensorfile import TORCH_NAMES
from prunecli.interruption import held
from prunecli.model.sparsity import FixedMask
from prunecli.settings import RunContext
from prunecli.training import state
from prunecli.training.config import ResolvedTraining
from prunecli.training.distributed import Ranks
from prunecli.training.fixed_masks import Masks
from prunecli.training.loop import Loop, LoopSettings, StepMetrics
from prunecli.training.objective import Objective, build, load_weights, round_to
from prunecli.training.run_log import Log
from prunecli.training.trackers import open_tracker

SWEEP_FILE = "sweep.json"
EXACT = {"F32", "F64"}  # storage types that hold trained weights without rounding

# dense bfloat16 FLOP/s, from the makers' data sheets
PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "MI300X": 1307e12,
}  # fmt: skip

Line = dict[str, Any]
StepRecord = Callable[[int, StepMetrics], Line]
Evaluation = Callable[[int], Line]


@dataclass(frozen=True)
class StateFolder:
    """Where a run saves its states and its log, and when.

    Attributes:
        name: the folder's in messages.
        every: steps between states, the last `keep` of which are kept.
        at_end: save a state after the last step too.
    """

    path: Path
    name: str
    every: int
    keep: int
    at_end: bool = False


def no_record(step: int, metrics: StepMetrics) -> Line:
    """Return nothing to log of a step beside its number and loss."""
    return {}


def no_evaluation(step: int) -> Line:
    """Return nothing: no rows are held out."""
    return {}


@held()
def fit(
    loop: Loop,
    folder: StateFolder,
    run: RunContext,
    task: str,
    on_log: Callable[[Line], None],
    step_record: StepRecord = no_record,
    evaluation: Evaluation = no_evaluation,
) -> list[Line]:
    """Take all steps that are left; return one line of the log per step, on the main process.

    The last state is resumed from. `task` names the progress bar. `step_record` returns what is
    logged of a step beside its number and loss, on all processes, and `evaluation` what is measured
    after it, if that is due; one that was stopped is made again when the run resumes. `on_log` is
    called with each line, on the main process.
    Raises Stopped when `run.stop` says so, and NotANumber where the loss is not finite; the state
    is saved in either case.
    """
    steps, report = loop.steps, run.report
    start = _resume(loop, folder, run)
    log = Log(folder.path, start) if loop.ranks.is_main else None

    def save(step: int) -> None:
        if log is not None:
            log.sync()
        state.save(folder.path, step, loop, folder.keep)

    try:
        if found := _evaluated_late(loop, log, evaluation, start):
            on_log(found)
        for step in report.progress(range(start, steps), task, steps - start, "steps"):
            metrics = loop.step(step, run.stop())
            if not metrics.finite:
                save(step)
                raise NotANumber(
                    f"the loss of step {step + 1} is {metrics.loss} (gradient norm "
                    f"{metrics.grad_norm}); '{folder.name}' keeps the state after step {step}",
                    "rerun to resume from that step, or use --restart with a lower learning rate",
                )
            line = {"step": step + 1, "loss": metrics.loss, **step_record(step, metrics)}
            line, cut = _evaluated(line, evaluation, step)
            if log is not None:
                log.add(line)
                on_log(line)
            ended = step + 1 == steps
            due = (step + 1) % folder.every == 0 and not ended
            if due or metrics.stop or cut or (ended and folder.at_end):
                save(step + 1)
            if cut or (metrics.stop and not ended):
                raise Stopped(
                    f"stopped after step {step + 1} of {steps}; '{folder.name}' keeps the state",
                    "rerun the same command to resume",
                )
    finally:
        if log is not None:
            log.close()
    return log.lines if log is not None else []


def _evaluated(line: Line, evaluation: Evaluation, step: int) -> tuple[Line, bool]:
    """Return a line with what is measured after its step, and whether that was stopped."""
    try:
        return line | evaluation(step), False
    except Stopped:
        return line, True


def _evaluated_late(loop: Loop, log: Log | None, evaluation: Evaluation, start: int) -> Line | None:
    """Make the evaluation in which a run was stopped; return its line, on the main process.

    None where all are made. All processes must take part.
    """
    lacks = log is not None and bool(log.lines) and "eval_loss" not in log.lines[-1]
    if not loop.ranks.sum(torch.full((1,), float(lacks), device=loop.ranks.device)).item():
        return None
    found = evaluation(start - 1)
    if log is None or not found:
        return None
    log.complete(found)
    return log.lines[-1]


def _resume(loop: Loop, folder: StateFolder, run: RunContext) -> int:
    """Load the last state, if there is one; return how many steps are done."""
    states = state.saved_states(folder.path)
    if not states:
        return 0
    start = state.step_of(states[-1])
    if start > loop.steps:
        raise unfinished.damaged(states[-1], f"the run has {loop.steps} steps")
    state.load(states[-1], loop, folder.name)
    if loop.ranks.is_main:
        run.report.info(f"resuming '{folder.name}' at step {start} of {loop.steps}")
    return start


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, rounded to its storage types; and what the sidecar reports of the run.

    Attributes:
        log: one line per step, on the main process.
        lr: the peak learning rate; `sweep` has what it was chosen by, None without a sweep.
        rounding: the loss before and after rounding, None where nothing is rounded.
    """

    model: torch.nn.Module
    log: list[Line]
    lr: float
    sweep: dict[str, Any] | None
    rounding: dict[str, Any] | None


class Trainer:
    """One process's part in a run."""

    def __init__(
        self, resolved: ResolvedTraining, fixed_mask: FixedMask, ranks: Ranks, run: RunContext
    ) -> None:
        self.resolved, self.ranks, self.run = resolved, ranks, run
        training = resolved.training
        self.objective = build(
            resolved.checkpoint,
            resolved.teacher,
            ranks,
            dtype=getattr(torch, resolved.dtype),
            kd_weight=resolved.kd_weight,
            temperature=resolved.temperature,
            recompute=training.activation_checkpointing,
            compile=training.compile,
        )
        self.masks = Masks(self.objective.model, fixed_mask.names, resolved.masked)
        self.folder = StateFolder(
            output.partial_of(run.output.path),
            f"{run.output.path.rstrip('/')}.partial",
            resolved.save_every,
            training.keep_states,
        )
        self.peak_flops = _peak_flops(ranks, self.objective)

    def train(self) -> TrainedModel:
        """Choose the learning rate, take all steps, and round the weights."""
        sweep = self.sweep()
        lr = sweep["lr"] if sweep else self.resolved.lrs[0]
        loop = self.loop(lr, self.resolved.steps)
        log = self.fit(loop)
        return TrainedModel(self.objective.model, log, lr, sweep, self.round_weights(loop))

    def loop(self, lr: float, steps: int) -> Loop:
        """Return a loop of `steps` steps over the first rows."""
        resolved = self.resolved
        settings = LoopSettings(
            steps, resolved.batch_size, resolved.micro_batch_size, lr, resolved.training
        )
        return Loop(self.objective, resolved.rows, settings, self.masks, self.ranks)

    def sweep(self) -> dict[str, Any] | None:
        """Train a short prefix at every learning rate; return all loss curves and the best rate.

        The best has the lowest mean loss over the last tenth of the prefix. Each trial runs the
        whole schedule on the prefix. Finished trials are kept when the run is stopped.
        """
        resolved, steps = self.resolved, self.resolved.sweep_steps
        if len(resolved.lrs) == 1:
            return None
        file = self.folder.path / SWEEP_FILE
        curves: dict[str, list[float]] = {}
        if file.exists():
            curves = keeping.kept(file, dict[str, list[FiniteFloat]])
            if not curves.keys() <= {*map(str, resolved.lrs)}:
                raise unfinished.damaged(file, "it has learning rates that this run does not try")
            if any(len(losses) > steps for losses in curves.values()):
                raise unfinished.damaged(file, f"it has trials of more than {steps} steps")
        if curves and self.ranks.is_main:
            done = f"{len(curves)} of {len(resolved.lrs)} learning rates are done"
            self.run.report.info(f"resuming the sweep: {done}")
        self.ranks.barrier()
        for lr in resolved.lrs:
            if str(lr) in curves:
                continue
            load_weights(self.objective.model, resolved.checkpoint, self.ranks)
            curves[str(lr)] = self._trial(lr)
            if self.ranks.is_main:
                keeping.keep(file, curves)
        load_weights(self.objective.model, resolved.checkpoint, self.ranks)
        return {
            "lr": self._best(curves),
            "steps": steps,
            "tokens": steps * resolved.batch_size * resolved.rows.seq_len * len(resolved.lrs),
            "curves": curves,
        }

    @held()
    def _trial(self, lr: float) -> list[float]:
        """Return the losses of the steps of a trial, which ends early where one is not finite."""
        steps, losses = self.resolved.sweep_steps, []
        loop = self.loop(lr, steps)
        for step in self.run.report.progress(range(steps), f"sweep: lr {lr}", steps, "steps"):
            metrics = loop.step(step, self.run.stop())
            if metrics.stop:
                raise Stopped(
                    f"stopped in the sweep; '{self.folder.name}' keeps the finished trials",
                    "rerun the same command to resume",
                )
            if not metrics.finite:
                break
            losses.append(metrics.loss)
        return losses

    def _best(self, curves: dict[str, list[float]]) -> float:
        """Return the learning rate of the lowest final loss; raise PruneError if all diverge."""
        lrs, steps = self.resolved.lrs, self.resolved.sweep_steps

        def final_loss(lr: float) -> float:
            losses = curves[str(lr)]
            tail = losses[-max(1, steps // 10) :]
            return sum(tail) / len(tail) if len(losses) == steps else float("inf")

        best = min(lrs, key=final_loss)
        if final_loss(best) == float("inf"):
            raise PruneError("the loss diverges at every learning rate of the sweep")
        if self.ranks.is_main:
            losses = ", ".join(f"{lr:g}: {final_loss(lr):.4f}" for lr in lrs)
            self.run.report.info(f"sweep over {steps} steps: {losses}; choosing {best:g}")
            if best in (lrs[0], lrs[-1]):
                self.run.report.info(
                    "the best learning rate is at the edge of the sweep; give --lr a list "
                    "that goes further"
                )
        return best

    def fit(self, loop: Loop) -> list[Line]:
        """Take all steps that are left; return the log, evaluations included."""
        tracker = None
        if self.ranks.is_main:
            path = self.folder.path
            logs = path.parent / "tensorboard" / path.stem
            tracker = open_tracker(
                self.resolved.training.track, logs, path.stem, self.resolved.options
            )

        def on_log(line: Line) -> None:
            if tracker is not None:
                tracker.add(line["step"], {k: v for k, v in line.items() if k != "step"})
            self._show(line)

        try:
            lines = fit(
                loop,
                self.folder,
                self.run,
                "training",
                on_log,
                self._step_record(),
                self._evaluation(loop),
            )
            self.masks.check()
        finally:
            if tracker is not None:
                tracker.close()
        return lines

    def _step_record(self) -> StepRecord:
        """Return the function that returns what is logged of a step."""
        resolved, clock, taken = self.resolved, perf_counter(), 0
        per_step = resolved.batch_size * resolved.rows.seq_len

        def record(step: int, metrics: StepMetrics) -> Line:
            nonlocal taken
            taken += 1
            line = {
                "tokens": (step + 1) * per_step,
                "lr": metrics.lr,
                "grad_norm": metrics.grad_norm,
            }
            if metrics.kl is not None:
                line["kl"] = metrics.kl
            line["tokens_per_second"] = round(taken / (perf_counter() - clock) * per_step, 1)
            return line

        return record

    def _evaluation(self, loop: Loop) -> Evaluation:
        """Return the function that returns the loss on held-out rows after a step, if it is due."""
        resolved, stop = self.resolved, self.run.stop

        def evaluated(step: int) -> Line:
            due = (step + 1) % resolved.eval_every == 0 or step + 1 == resolved.steps
            if resolved.held_out is None or not due:
                return {}
            return {"eval_loss": loop.evaluate(resolved.held_out.ids, stop)}

        return evaluated

    def _show(self, line: Line) -> None:
        rate = line["tokens_per_second"]
        text = f"loss {line['loss']:.4f}, {rate:.0f} tokens/s"
        if self.peak_flops is not None:
            length = self.resolved.rows.seq_len
            flops_per_token = 3 * self.resolved.checkpoint.arch.flops(length) / length
            utilization = flops_per_token * rate / (self.peak_flops * self.ranks.world)
            text += f", {100 * utilization:.1f} % of peak FLOP/s"
        self.run.report.status(text)

    def round_weights(self, loop: Loop) -> dict[str, Any] | None:
        """Round the weights to the types that OUT stores; return the loss before and after.

        The loss is that of the held-out rows, or of the rows of the last step if there are none.
        None where nothing is rounded. All processes must take part.
        """
        resolved = self.resolved
        narrow = sorted({spec.dtype for spec in resolved.stored_specs.values()} - EXACT)
        if not narrow:
            return None
        if resolved.held_out is not None:
            rows, ids = "held-out rows", resolved.held_out.ids
        else:
            last = loop.order.batch(resolved.steps - 1, resolved.batch_size, slice(None))
            rows, ids = "rows of the last step", resolved.rows.read(last)
        before = loop.evaluate(ids)
        round_to(resolved.stored_specs, self.objective.model)
        after = loop.evaluate(ids)
        types = " and ".join(TORCH_NAMES[name] for name in narrow)
        self.run.report.info(
            f"rounded to {types}: loss on {rows} {before:.5f} before, {after:.5f} after; "
            "use --save-dtype float32 to avoid rounding"
        )
        return {"dtype": types, "rows": rows, "loss_before": before, "loss_after": after}


def _peak_flops(ranks: Ranks, objective: Objective) -> float | None:
    """Return the peak FLOP/s of a device in bfloat16, None where it is not known."""
    if ranks.device.type != "cuda" or objective.dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(ranks.device)
    return next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)
