"""Writing a checkpoint from a stream of tensors, and the results that every sidecar of one has."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import PruneError
from prunecli.files import output, seal, sidecar
from prunecli.files.keeping import Keeper
from prunecli.files.sidecar import Sidecar
from prunecli.files.tensorfile import Spec
from prunecli.model import card, memory
from prunecli.model.arch import FLOPS_TOKENS, Arch
from prunecli.model.checkpoint import CheckpointWriter, check_loads
from prunecli.model.pattern import SparsityPattern
from prunecli.model.sparsity import Census
from prunecli.model.wrapper import Wrapper

if TYPE_CHECKING:
    import torch

    from prunecli.model.checkpoint import Stream


@dataclass
class WriteSummary:
    """What was written: the writer, the digest, and a census of the zeros."""

    writer: CheckpointWriter
    digest: str
    census: Census

    def around(self) -> dict[str, Any]:
        """Return what is recorded of the model around the language model."""
        around = self.writer.around
        assert around is not None
        of_parts = {"digest": self.writer.around_digest(), "params": around.params}
        return {"model_type": around.kind, **of_parts}

    def finish(
        self, made: Sidecar, companion_files: Mapping[str, bytes], out: str, parent: Path | None
    ) -> None:
        """Write the files around the tensors; the sidecar last, once transformers loads them.

        They will be at `out`; `parent` is the folder of the model whose weights go on in them.
        """
        folder = self.writer.folder
        self.writer.finish(made.id, companion_files)
        check_loads(folder)
        card.write(folder, made, parent, out)
        # a card is its user's to edit
        made.seal(seal.of_folder(folder, apart=(sidecar.CARD,)))
        output.write_text(folder / sidecar.FOLDER_SIDECAR, made.text())


def write_tensors(
    folder: Path,
    arch: Arch,
    specs: Mapping[str, Spec],
    shards: list[int],
    stream: "Stream",
    keeper: Keeper,
    pattern: SparsityPattern | None = None,
    around: Wrapper | None = None,
) -> WriteSummary:
    """Write tensors into `folder` as they come, counting those weights that are not zero.

    Those that a stopped run wrote, by the `keeper`, are counted and need not come again. The other
    parts of the model `around`, if any, are copied. Raises PruneError where a block matrix breaks
    the `pattern` that the sidecar will record.
    """
    census = Census(arch, pattern)
    size = sum(spec.bytes for spec in specs.values()) + (around.num_bytes if around else 0)
    with (
        CheckpointWriter(folder, arch.config, dict(specs), shards, keeper.writer, around) as writer,
        keeper.run.report.reading("writing weights", size) as passed,
    ):

        def counted(name: str, parts: "Iterable[torch.Tensor]") -> "Iterator[torch.Tensor]":
            for part in parts:
                census.add(name, part)
                yield part
                passed(part.nbytes)

        before = set()
        for name, values in writer.written():
            before.add(name)
            census.add(name, values)
            passed(values.nbytes)
        for name, parts in stream:
            if name in before:
                continue
            writer.write(name, counted(name, parts))
            memory.release()
            if census.broken:
                raise PruneError(f"nothing was written: {census.fault}")
            keeper.pause()
        for name in writer.copy_around():
            passed(writer.specs[name].bytes)
            memory.release()
            keeper.pause()
    return WriteSummary(writer, writer.digest(), census)


def size_results(arch: Arch, written: WriteSummary) -> dict[str, Any]:
    """Return the results on its size that the sidecar of every checkpoint has."""
    density = written.census.block_nonzero / arch.block_params
    return {
        "params": arch.total_params,
        "nonzero": written.census.nonzero,
        "params_by_group": arch.params(),
        "flops": arch.flops(FLOPS_TOKENS, density),
        "flops_tokens": FLOPS_TOKENS,
        "sizes": arch.sizes,
        "container": arch.config["model_type"],
        **arch.active_counts(),
    }
