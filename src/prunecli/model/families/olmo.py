"""OLMo 1: Llama with LayerNorms that have neither gains nor biases."""

from prunecli.model.families import llama, nemotron
from prunecli.model.families._base import MEAN, Family

FAMILY = Family(
    name="olmo",
    model_types=("olmo",),
    classes="Olmo",
    tensors={
        "model.embed_tokens.weight": ("vocab", "hidden"),
        **llama.LINEARS,
        "lm_head.weight": ("vocab", "hidden"),
    },
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=llama.INPUTS,
    fixed={"hidden": MEAN},
    defaults={
        **nemotron.DEFAULTS,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 50279,
    },
    test_config={"attention_bias": True, "clip_qkv": 2.0},
)
