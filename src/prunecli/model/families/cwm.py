"""Code World Model: Llama with a sliding window in three layers of four, the first one aside."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="cwm",
    model_types=("cwm",),
    classes="Cwm",
    tensors=llama.FAMILY.tensors,
    biases={"mlp_bias": llama.MLP_BIAS},
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": 8192,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
    },
    layer_lists={
        "layer_types": lambda config, i: "sliding_attention" if i % 4 else "full_attention"
    },
    hidden_divides=True,
    # its config class takes no null here
    test_config={"sliding_window": 8, "bos_token_id": 1, "eos_token_id": 2},
)
