"""Seed-OSS: Llama with separate flags for the biases of q, k, v, of o, and of the MLP.

The one stock container that holds FLAP's biases for any number of heads. Its dropouts are 0.1 by
default and only matter in training, so they are written as 0.
"""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="seed-oss",
    model_types=("seed_oss",),
    classes="SeedOss",
    tensors=llama.FAMILY.tensors,
    biases={
        "attention_bias": llama.QKV_BIAS,
        "attention_out_bias": llama.O_BIAS,
        "mlp_bias": llama.MLP_BIAS,
    },
    flags={"attention_bias": True},
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "pad_token_id": 1,
        "bos_token_id": 0,
    },
    as_container={"attention_dropout": 0.0, "residual_dropout": 0.0},
    test_config={"attention_bias": True, "attention_out_bias": True, "mlp_bias": True},
)
