"""Whether the streamed walk computes what unmodified transformers does, on a few tokens."""

import os
from collections.abc import Iterator
from typing import Any

import torch

from prunecli.model import configs
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.stream import LayerStream
from prunecli.report import Report
from prunecli.settings import Compute

ROWS, LENGTH = 2, 8
STRIDE = 7919  # a prime: ids from all over the vocabulary
# of the largest logit. Rounding in float32 stays a hundred times below it, while another layout or
# rotation of the weights moves logits by about as much as they are
TOLERANCE = 1e-2
ITEM = 4  # bytes of a float32


def faults(checkpoint: Checkpoint, report: Report) -> Iterator[str]:
    """Yield how logits differ from those of transformers; nothing for a model that does not fit.

    Both compute in float32 on the CPU. Transformers holds the whole model: it may take half of the
    machine's memory. The language model of a multimodal one is another class there, and left out.
    """
    if checkpoint.part_of is not None or not _fits(checkpoint):
        report.info(f"'{checkpoint.folder.name}' was not compared with transformers")
        return
    length = min(LENGTH, checkpoint.arch.max_positions)
    ids = torch.arange(ROWS * length).mul(STRIDE).remainder(checkpoint.arch.vocab)
    ids_BT = ids.view(ROWS, length)
    expected = _stock_logits(checkpoint, ids_BT)  # [B, T - 1, V]
    difference = (_streamed_logits(checkpoint, ids_BT) - expected).abs().max()
    # a NaN is not within it either
    if not difference <= TOLERANCE * expected.abs().max():
        yield f"its logits are not those of transformers: they differ by {difference:.3g}"


def _fits(checkpoint: Checkpoint) -> bool:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return checkpoint.arch.total_params * ITEM <= memory / 2


def _streamed_logits(checkpoint: Checkpoint, ids_BT: torch.Tensor) -> torch.Tensor:
    """Return the logits [B, T - 1, V] of our walk."""
    stream = LayerStream(checkpoint, Compute("cpu", "float32"))
    hidden = stream.embed(ids_BT)  # [B, T, D]
    for i in range(stream.arch.layers):
        with torch.no_grad():
            hidden = stream.forward(stream.layer(i), i, hidden)
    return stream.logits(hidden)


def _stock_logits(checkpoint: Checkpoint, ids_BT: torch.Tensor) -> torch.Tensor:
    """Return those of transformers; raise InputError if it does not load the model as it is."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with configs.refusals("transformers cannot load it"):
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(checkpoint.folder),
            config=configs.transformers_config(checkpoint.arch.config),
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
        ).eval()
        with torch.no_grad():
            logits: torch.Tensor = model(ids_BT).logits[:, :-1].float()
    return logits
