#!/usr/bin/env python3
"""Tokens per second of the training loop against a bare torch loop and the Hugging Face Trainer.

    python benchmarks/throughput.py [ROUNDS]

Same model, rows, batch size and dtype, alternating in one process. Prints the medians of the ratios
of adjacent rounds, so that a machine that is slow for a while slows both. The Trainer is skipped if
accelerate is not installed.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from prunecli import init
from prunecli.data.rows import open_rows
from prunecli.model.checkpoint import Checkpoint
from prunecli.settings import Compute, Optimization
from prunecli.training import distributed as processes
from prunecli.training import objective as models
from prunecli.training import schedule
from prunecli.training.fixed_masks import Masks
from prunecli.training.loop import Loop, LoopSettings

STEPS, BATCH, LENGTH, VOCAB = 6, 8, 256, 8192
SHAPE = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": LENGTH,
}
TOTAL = 10_000


def ours(folder: str, data: str):
    """Return a function that takes so many steps of our loop."""
    checkpoint = Checkpoint(folder)
    with processes.process_group(Compute(device="cpu")) as ranks:
        objective = models.build(checkpoint, None, ranks, dtype=torch.float32)
    loop = Loop(
        objective, open_rows(data), LoopSettings(TOTAL, BATCH, BATCH, 1e-4, Optimization()),
        Masks(objective.model, ()), ranks,
    )  # fmt: skip
    done = 0

    def take(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            loop.step(done % 100)
            done += 1

    return take


def bare(folder: str, data: str):
    """Return the same for the plainest loop."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    rows = open_rows(data).read(range(800))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    done = 0

    def take(steps: int) -> None:
        nonlocal done
        for _ in range(steps):
            start = done % 100 * BATCH
            ids = rows[start : start + BATCH]
            logits = model(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            loss = F.cross_entropy(logits.float(), ids[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = schedule.cosine_lr(done, TOTAL, 1e-4, 0.05, 0.1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
            done += 1

    return take


def trainer(folder: str, data: str):
    """Return the same for the Hugging Face Trainer; one call of it takes all the steps."""
    from transformers import Trainer, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = open_rows(data).read(range(800))
    found = [{"input_ids": row, "labels": row} for row in rows]

    def take(steps: int) -> None:
        settings = TrainingArguments(
            tempfile.mkdtemp(), per_device_train_batch_size=BATCH, max_steps=steps,
            learning_rate=1e-4, adam_beta2=0.95, weight_decay=0.01, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            lr_scheduler_type="cosine", optim="adamw_torch_fused",
        )  # fmt: skip
        Trainer(model=model, args=settings, train_dataset=found).train()

    return take


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as work:
        Path(work, "c.json").write_text(json.dumps(SHAPE))
        folder, data = f"{work}/m", f"{work}/t.safetensors"
        params = init(folder, config=f"{work}/c.json").results["params"]
        save_file({"ids": torch.randint(VOCAB, (800, LENGTH), dtype=torch.int32)}, data)
        kinds = {"prunecli": ours, "bare torch": bare, "HF Trainer": trainer}
        takes = {}
        for name, make in kinds.items():
            try:
                takes[name] = make(folder, f"{data}:ids")
                takes[name](2)
            except ImportError:
                takes.pop(name, None)
                print(f"{name}: not installed")
        seconds: dict[str, list[float]] = {name: [] for name in takes}
        for number in range(rounds):
            # neither side always goes first
            for name in list(takes) if number % 2 else list(takes)[::-1]:
                start = time.perf_counter()
                takes[name](STEPS)
                seconds[name].append(time.perf_counter() - start)
    tokens = STEPS * BATCH * LENGTH
    print(f"{params} parameters, {BATCH} x {LENGTH} tokens a step, float32, {rounds} rounds")
    for name, found in seconds.items():
        ratios = [b / a for a, b in zip(found, seconds["bare torch"], strict=True)]
        spread = statistics.quantiles(ratios, n=4)
        print(
            f"{name:12} {tokens / statistics.median(found):8.0f} tokens/s   of bare torch: "
            f"{statistics.median(ratios):.3f} (quartiles {spread[0]:.3f} to {spread[2]:.3f})"
        )


if __name__ == "__main__":
    main()
