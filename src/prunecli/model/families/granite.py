"""Granite: Llama with fixed multipliers of embeddings, residuals, attention and logits."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="granite",
    model_types=("granite",),
    classes="Granite",
    tensors=llama.FAMILY.tensors,
    biases=llama.FAMILY.biases,
    inputs=llama.INPUTS,
    defaults={**llama.DEFAULTS, "logits_scaling": 1.0},
    test_config={
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.125,
    },
)
