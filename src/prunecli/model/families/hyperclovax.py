"""HyperCLOVA X: Granite with norms behind attention and FFN, and logits multiplied, not divided."""

from prunecli.model.families import granite, llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="hyperclovax",
    model_types=("hyperclovax",),
    classes="HyperCLOVAX",
    tensors=llama.FAMILY.tensors,
    biases=llama.FAMILY.biases,
    optional={
        "use_post_norm": {
            llama.LAYER + "post_norm1.weight": ("hidden",),
            llama.LAYER + "post_norm2.weight": ("hidden",),
        },
    },
    flags={"use_post_norm": True},
    inputs=llama.INPUTS,
    post_norms=("post_norm1", "post_norm2"),
    logits_times="logits_scaling",
    defaults={**llama.DEFAULTS, "logits_scaling": 1.0},
    hidden_divides=True,
    test_config={**granite.FAMILY.test_config, "logits_scaling": 0.125},
)
