"""Apertus: no gate, norms on every query and key head, and an activation with parameters (xIELU).

The activation's parameters are of a whole layer, so its FFN channels are cut without them.
"""

from prunecli.model.families import arcee, llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="apertus",
    model_types=("apertus",),
    classes="Apertus",
    tensors={
        **llama.ROOT,
        **arcee.UNGATED,
        llama.ATTENTION + "q_norm.weight": ("head_dim",),
        llama.ATTENTION + "k_norm.weight": ("head_dim",),
        llama.MLP + "act_fn.alpha_p": ("one",),
        llama.MLP + "act_fn.alpha_n": ("one",),
        llama.MLP + "act_fn.beta": (),
        llama.MLP + "act_fn.eps": (),
        llama.LAYER + "attention_layernorm.weight": ("hidden",),
        llama.LAYER + "feedforward_layernorm.weight": ("hidden",),
    },
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    inputs=arcee.UNGATED_INPUTS,
    initial={  # softplus of alpha_p is 0.8, that of alpha_n and beta are 0.8 in all
        "act_fn.alpha_p": 0.2033,
        "act_fn.alpha_n": -1.0502,
        "act_fn.beta": 0.5,
        "act_fn.eps": -1e-6,
    },
    defaults={
        **llama.DEFAULTS,
        "hidden_act": "xielu",
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 3,
    },
    test_config={"attention_bias": True},
)
