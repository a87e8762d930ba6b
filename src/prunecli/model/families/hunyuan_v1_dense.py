"""Hunyuan V1, dense: Llama with norms on every query and key head, behind the rotation."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="hunyuan-v1-dense",
    model_types=("hunyuan_v1_dense",),
    classes="HunYuanDenseV1",
    tensors={
        **llama.FAMILY.tensors,
        llama.ATTENTION + "query_layernorm.weight": ("head_dim",),
        llama.ATTENTION + "key_layernorm.weight": ("head_dim",),
    },
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=llama.INPUTS,
    defaults={**llama.DEFAULTS, "rms_norm_eps": 1e-5, "pad_token_id": 0},
    test_config={"attention_bias": True},
)
