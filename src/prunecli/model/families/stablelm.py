"""StableLM 2 and 3B: Llama with LayerNorms, and positions on a quarter of each head."""

from prunecli.model.families import llama, nemotron
from prunecli.model.families._base import HEAD_SIZE, MEAN, Family

FAMILY = Family(
    name="stablelm",
    model_types=("stablelm",),
    classes="StableLm",
    tensors={**llama.ROOT, **llama.LINEARS, **llama.NORMS, **nemotron.NORM_BIAS},
    biases={"use_qkv_bias": llama.QKV_BIAS},
    inputs=llama.INPUTS,
    only={"qk_layernorm": (False,), "use_parallel_residual": (False,)},
    fixed={"hidden": MEAN, "heads": HEAD_SIZE},
    defaults={
        **nemotron.DEFAULTS,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 32,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    test_config={"use_qkv_bias": True},
)
