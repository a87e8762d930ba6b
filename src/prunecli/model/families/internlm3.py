"""InternLM 3: Llama, whose flags of biases have other names in its own config.json."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="internlm3",
    model_types=("internlm3",),
    classes="Llama",
    tensors=llama.FAMILY.tensors,
    biases=llama.FAMILY.biases,
    aliases={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "pad_token_id": 2,
    },
    hidden_divides=True,
    test_config={"attention_bias": True, "mlp_bias": True},
)
