"""EXAONE 3 and 3.5: Llama, whose keys and tensors have other names in its own checkpoints."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="exaone",
    model_types=("exaone",),
    classes="Llama",
    tensors=llama.FAMILY.tensors,
    biases=llama.FAMILY.biases,
    aliases={
        "num_layers": "num_hidden_layers",
        "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
    },
    stored_names=(
        ("transformer.wte.", "model.embed_tokens."),
        ("transformer.h.", "model.layers."),
        ("transformer.ln_f.", "model.norm."),
        (".attn.attention.", ".self_attn."),
        (".self_attn.out_proj.", ".self_attn.o_proj."),
        (".ln_1.", ".input_layernorm."),
        (".ln_2.", ".post_attention_layernorm."),
        (".mlp.c_fc_0.", ".mlp.gate_proj."),
        (".mlp.c_fc_1.", ".mlp.up_proj."),
        (".mlp.c_proj.", ".mlp.down_proj."),
    ),
    inputs=llama.INPUTS,
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "eos_token_id": 361,
    },
    hidden_divides=True,
)
