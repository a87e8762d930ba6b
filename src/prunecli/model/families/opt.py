"""OPT: learned positions, LayerNorms, no gate, one flag for all biases.

Its dropouts are 0.1 by default and only matter in training.
"""

from prunecli.model.families import nemotron
from prunecli.model.families._base import HEAD_SIZE, MEAN, Family

LAYER = "model.decoder.layers.{i}."
ATTENTION = LAYER + "self_attn."
UNUSED = ("hidden_act", "initializer_range")


FAMILY = Family(
    name="opt",
    model_types=("opt",),
    classes="OPT",
    tensors={
        "model.decoder.embed_tokens.weight": ("vocab", "hidden"),
        "model.decoder.embed_positions.weight": ("positions", "hidden"),
        ATTENTION + "q_proj.weight": ("heads", "hidden"),
        ATTENTION + "k_proj.weight": ("kv_heads", "hidden"),
        ATTENTION + "v_proj.weight": ("kv_heads", "hidden"),
        ATTENTION + "out_proj.weight": ("hidden", "heads"),
        LAYER + "fc1.weight": ("ffn", "hidden"),
        LAYER + "fc2.weight": ("hidden", "ffn"),
        LAYER + "self_attn_layer_norm.weight": ("hidden",),
        LAYER + "self_attn_layer_norm.bias": ("hidden",),
        LAYER + "final_layer_norm.weight": ("hidden",),
        LAYER + "final_layer_norm.bias": ("hidden",),
        "model.decoder.final_layer_norm.weight": ("hidden",),
        "model.decoder.final_layer_norm.bias": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
    },
    biases={
        "enable_bias": {
            ATTENTION + "q_proj.bias": ("heads",),
            ATTENTION + "k_proj.bias": ("kv_heads",),
            ATTENTION + "v_proj.bias": ("kv_heads",),
            ATTENTION + "out_proj.bias": ("hidden",),
            LAYER + "fc1.bias": ("ffn",),
            LAYER + "fc2.bias": ("hidden",),
        }
    },
    flags={"enable_bias": True},
    layer=LAYER,
    embedding="model.decoder.embed_tokens",
    positions="model.decoder.embed_positions",
    position_offset=2,
    final_norm="model.decoder.final_layer_norm",
    keys={"ffn": "ffn_dim", "initializer_range": "init_std"},
    inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
    only={
        "do_layer_norm_before": (True,),
        "_remove_final_layer_norm": (False,),
        "layer_norm_elementwise_affine": (True,),
    },
    fixed={"hidden": MEAN, "heads": HEAD_SIZE},
    defaults={
        **{key: value for key, value in nemotron.DEFAULTS.items() if key not in UNUSED},
        "init_std": 0.02,
        "tie_word_embeddings": True,
        "pad_token_id": 1,
        "bos_token_id": 2,
    },
    test_config={
        "num_key_value_heads": 6,  # as many as query heads
        "ffn_dim": 80,
        "word_embed_proj_dim": 48,
        "init_std": 0.3,
        "dropout": 0.0,
    },
)
