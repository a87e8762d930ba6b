"""Cohere (Command R, Aya): attention and FFN side by side behind one LayerNorm without biases."""

from prunecli.model.families import llama, nemotron
from prunecli.model.families._base import MEAN, Family

TENSORS = {
    **llama.ROOT,
    **llama.LINEARS,
    llama.LAYER + "input_layernorm.weight": ("hidden",),
}


DEFAULTS = {
    **nemotron.DEFAULTS,
    "max_position_embeddings": 8192,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 255001,
}


FAMILY = Family(
    name="cohere",
    model_types=("cohere",),
    classes="Cohere",
    tensors=TENSORS,
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=llama.INPUTS,
    only={"use_qk_norm": (False,)},
    fixed={"hidden": MEAN},
    logits_times="logit_scale",
    defaults=DEFAULTS,
    test_config={"attention_bias": True},
)
