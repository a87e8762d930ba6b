"""Jais 2: LayerNorms, no gate, squared positives."""

from prunecli.model.families import arcee, llama, nemotron
from prunecli.model.families._base import MEAN, Family

FAMILY = Family(
    name="jais2",
    model_types=("jais2",),
    classes="Jais2",
    tensors={**llama.ROOT, **arcee.UNGATED, **llama.NORMS, **nemotron.NORM_BIAS},
    biases=arcee.FAMILY.biases,
    flags={"attention_bias": True, "mlp_bias": True},
    inputs=arcee.UNGATED_INPUTS,
    fixed={"hidden": MEAN},
    defaults={
        **nemotron.DEFAULTS,
        "hidden_act": "relu2",
        "max_position_embeddings": 8192,
        "num_key_value_heads": 26,
        "head_dim": 128,
        "bos_token_id": 0,
        "eos_token_id": 150024,
    },
)
