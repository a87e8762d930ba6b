"""GLM 4 of 2025 and Z1 (`glm4`): GLM with norms behind attention and FFN too."""

from prunecli.model.families import glm, llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="glm4",
    model_types=("glm4",),
    classes="Glm4",
    tensors={
        **glm.TENSORS,
        llama.LAYER + "post_self_attn_layernorm.weight": ("hidden",),
        llama.LAYER + "post_mlp_layernorm.weight": ("hidden",),
    },
    biases=glm.FAMILY.biases,
    flags=glm.FAMILY.flags,
    inputs=glm.INPUTS,
    post_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
    defaults=glm.DEFAULTS,
)
