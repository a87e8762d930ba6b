"""Helium: Llama with interleaved rotary positions, and an output projection of hidden by hidden."""

from prunecli.model.families import llama
from prunecli.model.families._base import SQUARE, Family

FAMILY = Family(
    name="helium",
    model_types=("helium",),
    classes="Helium",
    tensors=llama.FAMILY.tensors,
    biases={"attention_bias": llama.QKV_BIAS, "mlp_bias": llama.MLP_BIAS},
    inputs=llama.INPUTS,
    fixed={"hidden": SQUARE, "heads": SQUARE},
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-8,
        "num_key_value_heads": 20,
        "head_dim": 128,
        "pad_token_id": 3,
    },
    test_config={"attention_bias": True, "mlp_bias": True},
)
