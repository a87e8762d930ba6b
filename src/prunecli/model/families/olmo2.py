"""OLMo 2: norms behind attention and FFN instead of before, and over all queries and all keys.

A norm over all heads together means that removing one changes the scale of the others: what is left
does not compute the parent with those heads silenced, and prunecli says so.
"""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

TENSORS = {
    **llama.ROOT,
    **llama.LINEARS,
    llama.ATTENTION + "q_norm.weight": ("heads",),
    llama.ATTENTION + "k_norm.weight": ("kv_heads",),
    llama.LAYER + "post_attention_layernorm.weight": ("hidden",),
    llama.LAYER + "post_feedforward_layernorm.weight": ("hidden",),
}


POST_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
DEFAULTS = {
    **llama.DEFAULTS,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 50279,
}


FAMILY = Family(
    name="olmo2",
    model_types=("olmo2",),
    classes="Olmo2",
    tensors=TENSORS,
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=llama.INPUTS,
    post_norms=POST_NORMS,
    defaults=DEFAULTS,
)
