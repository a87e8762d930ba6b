"""Phi 1 to 2: attention and FFN side by side behind one LayerNorm, no gate, biases everywhere.

The output head has a bias too. Positions are on half of each head.
"""

from prunecli.model.families import llama, nemotron
from prunecli.model.families._base import MEAN, Family

FAMILY = Family(
    name="phi",
    model_types=("phi",),
    classes="Phi",
    tensors={
        "model.embed_tokens.weight": ("vocab", "hidden"),
        llama.ATTENTION + "q_proj.weight": ("heads", "hidden"),
        llama.ATTENTION + "k_proj.weight": ("kv_heads", "hidden"),
        llama.ATTENTION + "v_proj.weight": ("kv_heads", "hidden"),
        llama.ATTENTION + "dense.weight": ("hidden", "heads"),
        llama.ATTENTION + "dense.bias": ("hidden",),
        **llama.QKV_BIAS,
        llama.MLP + "fc1.weight": ("ffn", "hidden"),
        llama.MLP + "fc1.bias": ("ffn",),
        llama.MLP + "fc2.weight": ("hidden", "ffn"),
        llama.MLP + "fc2.bias": ("hidden",),
        llama.LAYER + "input_layernorm.weight": ("hidden",),
        llama.LAYER + "input_layernorm.bias": ("hidden",),
        "model.final_layernorm.weight": ("hidden",),
        "model.final_layernorm.bias": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
        "lm_head.bias": ("vocab",),
    },
    final_norm="model.final_layernorm",
    inputs=(llama.INPUTS[0], ("self_attn.dense",), ("mlp.fc1",), ("mlp.fc2",)),
    only={"qk_layernorm": (False,)},
    fixed={"hidden": MEAN},
    defaults={**nemotron.DEFAULTS, "hidden_act": "gelu_new"},
)
