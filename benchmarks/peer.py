#!/usr/bin/env python3
"""Prune with llm-compressor, as a process of its own in its own environment; print CPU seconds.

    peer.py MODEL TOKENS.safetensors:NAME OUT METHOD

`cost.py` runs it in turns with prunecli's own pruning, where PEER names the Python of that
environment (`pip install torch==2.13.0 llmcompressor`). Loading the model, saving it and the
imports are not part of the seconds.
"""

import sys
import time

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

MODIFIERS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}

torch.set_num_threads(1)
folder, data, out, method = sys.argv[1:]
path, name = data.rsplit(":", 1)
ids = load_file(path)[name].long()
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
masks = [[1] * ids.shape[1]] * len(ids)
rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": masks})
recipe = MODIFIERS[method](sparsity=0.5, mask_structure="0:0", targets=["re:.*_proj$"])
start = time.process_time()
oneshot(
    model=model,
    dataset=rows,
    recipe=recipe,
    num_calibration_samples=len(ids),
    max_seq_length=ids.shape[1],
)
seconds = time.process_time() - start
weights = [weight for name, weight in model.named_parameters() if name.endswith("_proj.weight")]
zeros = sum(int((weight == 0).sum()) for weight in weights)
share = zeros / sum(weight.numel() for weight in weights)
assert 0.499 < share < 0.501, share
print(seconds)
