"""Writing a checkpoint from a stream of tensors, and the results that every sidecar of one has."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import PruneError
from prunecli.files import output, seal, sidecar
from prunecli.files.keeping import Keeper
from prunecli.files.sidecar import Sidecar
from prunecli.files.tensorfile import Spec, TensorWriter
from prunecli.model import card, companions, memory
from prunecli.model.arch import FLOPS_TOKENS, Arch
from prunecli.model.checkpoint import CheckpointWriter, check_loads
from prunecli.model.pattern import SparsityPattern
from prunecli.model.sparsity import Census

if TYPE_CHECKING:
    import torch


@dataclass
class WriteSummary:
    """What was written: the writer, the digest, and a census of the zeros."""

    writer: CheckpointWriter
    digest: str
    census: Census

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
        made.seal(seal.of_folder(folder, apart=(companions.CARD,)))
        output.write_text(folder / sidecar.FOLDER_SIDECAR, made.text())


def write_tensors(
    folder: Path,
    arch: Arch,
    specs: Mapping[str, Spec],
    shards: list[int],
    stream: "Iterable[tuple[str, torch.Tensor]]",
    pattern: SparsityPattern | None = None,
    keeper: Keeper | None = None,
) -> WriteSummary:
    """Write tensors into `folder` as they come, counting those weights that are not zero.

    Those that a stopped run wrote, by the `keeper`, are counted and need not come again. Raises
    PruneError where a block matrix breaks the `pattern` that the sidecar will record.
    """
    census = Census(arch, pattern)
    opened = TensorWriter if keeper is None else keeper.writer
    with CheckpointWriter(folder, arch.config, dict(specs), shards, opened) as writer:
        for name, values in writer.written():
            census.add(name, values)
        for name, values in stream:
            writer.write(name, values)
            memory.release()
            census.add(name, values)
            if census.broken:
                raise PruneError(f"nothing was written: {census.fault}")
            if keeper is not None:
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
    }
