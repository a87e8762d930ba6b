"""GPT-NeoX, Pythia: attention and FFN side by side, each behind a LayerNorm; q, k, v head by head.

Positions are on a quarter of each head. There is no gate.
"""

from prunecli.model.families import nemotron
from prunecli.model.families._base import HEAD_SIZE, MEAN, Family

LAYER = "gpt_neox.layers.{i}."
FAMILY = Family(
    name="gpt-neox",
    model_types=("gpt_neox",),
    classes="GPTNeoX",
    tensors={
        "gpt_neox.embed_in.weight": ("vocab", "hidden"),
        LAYER + "attention.query_key_value.weight": ("qkv_by_head", "hidden"),
        LAYER + "attention.dense.weight": ("hidden", "heads"),
        LAYER + "mlp.dense_h_to_4h.weight": ("ffn", "hidden"),
        LAYER + "mlp.dense_h_to_4h.bias": ("ffn",),
        LAYER + "mlp.dense_4h_to_h.weight": ("hidden", "ffn"),
        LAYER + "mlp.dense_4h_to_h.bias": ("hidden",),
        LAYER + "input_layernorm.weight": ("hidden",),
        LAYER + "input_layernorm.bias": ("hidden",),
        LAYER + "post_attention_layernorm.weight": ("hidden",),
        LAYER + "post_attention_layernorm.bias": ("hidden",),
        "gpt_neox.final_layer_norm.weight": ("hidden",),
        "gpt_neox.final_layer_norm.bias": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
    },
    biases={
        "attention_bias": {
            LAYER + "attention.query_key_value.bias": ("qkv_by_head",),
            LAYER + "attention.dense.bias": ("hidden",),
        }
    },
    flags={"attention_bias": True},
    layer=LAYER,
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    stored_names=(("embed_out.", "lm_head."),),
    buffers=(".attention.bias", ".attention.masked_bias"),
    inputs=(
        ("attention.query_key_value",),
        ("attention.dense",),
        ("mlp.dense_h_to_4h",),
        ("mlp.dense_4h_to_h",),
    ),
    fixed={"hidden": MEAN, "heads": HEAD_SIZE},
    defaults={**nemotron.DEFAULTS, "hidden_act": "gelu", "bos_token_id": 0},
    hidden_divides=True,
    # it has as many key as query heads
    test_config={"num_key_value_heads": 6},
)
