"""The end of every verb: is it there already? Else it is written beside OUT, described, published.

A verb knows its artefact before it computes: kind, options and inputs make the id. So it asks
`settled` first, and what it computes then goes through one of the `write_` methods.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.files import output, sidecar
from prunecli.files.keeping import Keeper
from prunecli.files.sidecar import (
    Computed,
    Input,
    Kind,
    Sidecar,
    SidecarBuilder,
    TokensSeen,
    Trained,
)
from prunecli.files.tensorfile import Spec, combined_digest
from prunecli.settings import Result, RunContext

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Artefact:
    """What a verb makes, known by its id before it is made.

    Attributes:
        builder: of its sidecar; made when the command starts, since it holds the clock.
        kind, options, inputs: what its id is hashed from.
        run: `run.output` says where it goes; without a path there nothing is written.
        parent: the sidecar of the model, whose history goes on here.
        calibration, trained: the tokens that it has seen beside those of its parent.
        computed: the device and types it is computed with.
        label: what the Result calls it, unless that is OUT.
        resumable: an unfinished run leaves its state in OUT.partial.
    """

    builder: SidecarBuilder
    kind: Kind
    options: dict[str, Any]
    inputs: list[Input]
    run: RunContext
    parent: Sidecar | None = None
    calibration: int = 0
    trained: Trained | None = None
    computed: Computed = Computed()
    label: str = ""
    resumable: bool = False

    @property
    def id(self) -> str:
        """The hash of kind, options and inputs: equal ids, equal artefacts."""
        return sidecar.content_id(self.kind, self.options, self.inputs)

    @property
    def path(self) -> str:
        """OUT as the user gave it; empty where nothing is to be written."""
        return self.run.output.path

    def existing(self) -> Result | None:
        """Return what is at OUT if `skip_existing` asks for it and it is this artefact.

        Raises OutputExists if it is another one.
        """
        found = output.existing_result(self.path, self.run.output, self.id) if self.path else None
        return found and Result(self.label or self.path, found.sidecar, found.results)

    def settled(self, expected: Mapping[str, Any]) -> Result | None:
        """Return the result where nothing is to be computed: it exists, or this is a dry run.

        `expected` are the results of a dry run. Raises OutputExists if OUT, or the state in
        OUT.partial, is that of another artefact.
        """
        if found := self.existing():
            return found
        if self.path and self.resumable:
            output.check_partial(self.path, self.id, self.run.output.restart)
        if self.run.output.dry_run:
            return Result(self.label or self.path, results=dict(expected))
        return None

    def partial(self) -> AbstractContextManager[Path]:
        """Return OUT.partial, locked: the folder in which a run keeps what is done."""
        return output.partial(self.path, self.id, self.run.output.restart)

    @contextmanager
    def keeping(self) -> Iterator[Keeper]:
        """Yield what keeps a run's work in OUT.partial, or nothing where it is not resumable.

        With OUT there, the state goes. Several processes keep nothing.
        """
        if not (self.path and self.resumable):
            yield Keeper(self.run)
            return
        if not self.run.ranks.alone:
            yield Keeper(self.run)
            if self.run.ranks.is_main:
                output.discard(output.partial_of(self.path))  # that of one process
            return
        with self.partial() as folder:
            yield Keeper(self.run, folder)
            output.discard(folder)

    def sidecar(self, outputs: dict[str, Any], results: dict[str, Any]) -> Sidecar:
        """Return the finished record."""
        record = self.builder.sidecar(
            self.kind,
            self.options,
            self.inputs,
            outputs=outputs,
            results=results,
            parent=self.parent,
            seen=TokensSeen(
                calibration=self.calibration, trained=[self.trained] if self.trained else []
            ),
            computed=self.computed,
        )
        record.run.command = self.run.output.command or None
        return record.seal()

    def result(self, record: Sidecar) -> Result:
        """Return what the verb hands back, once everything is written."""
        return Result(self.label or self.path, record.dump(), record.results)

    def write_json(
        self, outputs: dict[str, Any], results: dict[str, Any], keeper: Keeper | None = None
    ) -> Result:
        """Write an artefact that is its own sidecar; without an OUT only return it.

        Of several processes the first writes.
        """
        record = self.sidecar(outputs, results)
        if self.path and self.run.ranks.is_main:
            with (keeper or Keeper(self.run)).staged_files() as (_, beside):
                output.write_text(beside, record.text())
        return self.result(record)

    def write_tensors(
        self,
        parts: "Iterable[Mapping[str, torch.Tensor]]",
        specs: Mapping[str, Spec],
        keeper: Keeper | None = None,
    ) -> Result:
        """Write a file of tensors, one part at a time; each is made when it is asked for.

        Parts that a stopped run wrote, by this `keeper`, do not come again. Of several processes,
        which make the parts together, the first writes them.
        """
        if not self.run.ranks.is_main:
            for _ in parts:
                pass
            return Result(self.path)
        keeper = keeper or Keeper(self.run)
        with keeper.staged_files() as (file, beside):
            if not keeper.begun(file):
                output.check_disk(self.path, sum(spec.bytes for spec in specs.values()))
            with keeper.writer(file, specs, marked=True) as writer:
                for part in parts:
                    for name, tensor in part.items():
                        writer.write(name, tensor)
            record = self.sidecar(
                {"digest": combined_digest(writer.digests), "tensors": len(specs)},
                {"calibration_tokens": self.calibration},
            )
            output.write_text(beside, record.text())
        return self.result(record)
