"""Cohere 2 (Command R7B and A): Cohere with windows, and no positions in every fourth layer."""

from prunecli.model.families import cohere, llama
from prunecli.model.families._base import MEAN, Family, windows

FAMILY = Family(
    name="cohere2",
    model_types=("cohere2",),
    classes="Cohere2",
    tensors=cohere.TENSORS,
    biases=cohere.FAMILY.biases,
    inputs=llama.INPUTS,
    fixed={"hidden": MEAN},
    logits_times="logit_scale",
    defaults={**cohere.DEFAULTS, "sliding_window": 4096},
    layer_lists={"layer_types": windows(4)},
    test_config={"attention_bias": True, "sliding_window": 8, "sliding_window_pattern": 2},
)
