"""The steps of a run: from its last state on, with a log, states now and then, and an end."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.errors import NotANumber, Stopped
from prunecli.report import Report
from prunecli.training import state
from prunecli.training.loop import Loop, StepMetrics

Line = dict[str, Any]


@dataclass(frozen=True)
class Trainer:
    """Where a run keeps its states, and how it is watched.

    Attributes:
        folder: of states and log; `name` is what the user knows it by.
        what: what is done, for the progress shown.
        every: steps between states, the last `keep` of which stay; `last` saves after the end too.
        report: told about progress. stop: asked at every step whether to end.
    """

    folder: Path
    name: str
    what: str
    every: int
    keep: int
    last: bool
    report: Report
    stop: Callable[[], bool]

    def take(
        self,
        loop: Loop,
        line_of: Callable[[int, StepMetrics], Line],
        told: Callable[[Line], None],
    ) -> list[Line]:
        """Take all steps that are left; return one line of the log per step, on the first process.

        `line_of` says what the log tells of a step beside its number and loss, all processes ask
        it; `told` is given each whole line, on the first process.
        Raises Stopped when asked to end, and NotANumber where the loss is no number; the state is
        saved either way.
        """
        saved, first, steps = state.saved(self.folder), loop.ranks.first, loop.steps
        start = state.step_of(saved[-1]) if saved else 0
        if saved:
            state.load(saved[-1], loop, self.name)
            if first:
                self.report.note(f"resuming '{self.name}' at step {start} of {steps}")
        log = state.Log(self.folder, start) if first else None
        try:
            left = steps - start
            for step in self.report.track(range(start, steps), self.what, left, "steps"):
                done = loop.step(step, self.stop())
                if not done.finite:
                    if log is not None:
                        log.sync()
                    state.save(self.folder, step, loop, self.keep)
                    raise NotANumber(
                        f"the loss of step {step + 1} is {done.loss} (gradient {done.grad_norm}); "
                        f"'{self.name}' keeps the state after step {step}",
                        "the same command goes on from there, --restart takes lower learning rates",
                    )
                line = {"step": step + 1, "loss": done.loss, **line_of(step, done)}
                if log is not None:
                    log.add(line)
                    told(line)
                ended = step + 1 == steps
                due = (step + 1) % self.every == 0 and not ended
                if due or done.stop or (ended and self.last):
                    if log is not None:
                        log.sync()
                    state.save(self.folder, step + 1, loop, self.keep)
                if done.stop and not ended:
                    raise Stopped(
                        f"stopped after step {step + 1} of {steps}; '{self.name}' keeps the state",
                        "the same command goes on",
                    )
        finally:
            if log is not None:
                log.close()
        return log.lines if log is not None else []
