"""GLM 4 of 9B (`glm`): Llama with gate and up in one matrix, and positions on half of each head."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

TENSORS = {
    **llama.ROOT,
    **llama.NORMS,
    llama.ATTENTION + "q_proj.weight": ("heads", "hidden"),
    llama.ATTENTION + "k_proj.weight": ("kv_heads", "hidden"),
    llama.ATTENTION + "v_proj.weight": ("kv_heads", "hidden"),
    llama.ATTENTION + "o_proj.weight": ("hidden", "heads"),
    llama.MLP + "gate_up_proj.weight": ("ffn+ffn", "hidden"),
    llama.MLP + "down_proj.weight": ("hidden", "ffn"),
}


INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_up_proj",),
    ("mlp.down_proj",),
)


DEFAULTS = {
    **llama.DEFAULTS,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-07,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "pad_token_id": 151329,
    "bos_token_id": None,
    "eos_token_id": [151329, 151336, 151338],
}


FAMILY = Family(
    name="glm",
    model_types=("glm",),
    classes="Glm",
    tensors=TENSORS,
    biases={"attention_bias": llama.QKV_BIAS},
    flags={"attention_bias": True},
    inputs=INPUTS,
    defaults=DEFAULTS,
)
