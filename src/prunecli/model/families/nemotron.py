"""Nemotron 4 and Minitron: LayerNorms whose gains count from one, no gate, squared positives."""

from prunecli.model.families import arcee, llama
from prunecli.model.families._base import MEAN, Family

NORM_BIAS = {
    llama.LAYER + "input_layernorm.bias": ("hidden",),
    llama.LAYER + "post_attention_layernorm.bias": ("hidden",),
    "model.norm.bias": ("hidden",),
}


DEFAULTS = {key: value for key, value in llama.DEFAULTS.items() if key != "rms_norm_eps"}
FAMILY = Family(
    name="nemotron",
    model_types=("nemotron",),
    classes="Nemotron",
    tensors={**llama.ROOT, **arcee.UNGATED, **llama.NORMS, **NORM_BIAS},
    biases=arcee.FAMILY.biases,
    inputs=arcee.UNGATED_INPUTS,
    fixed={"hidden": MEAN},
    defaults={
        **DEFAULTS,
        "hidden_act": "relu2",
        "initializer_range": 0.0134,
        "max_position_embeddings": 4096,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    norm_weight_offset=1.0,
    test_config={"attention_bias": True, "mlp_bias": True},
)
