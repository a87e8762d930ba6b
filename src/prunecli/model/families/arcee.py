"""Arcee (AFM): Llama without a gate: a channel is squared where it is positive."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

UNGATED = {name: axes for name, axes in llama.LINEARS.items() if "gate_proj" not in name}
UNGATED_BIAS = {name: axes for name, axes in llama.MLP_BIAS.items() if "gate_proj" not in name}


UNGATED_INPUTS = (*llama.INPUTS[:2], ("mlp.up_proj",), ("mlp.down_proj",))


FAMILY = Family(
    name="arcee",
    model_types=("arcee",),
    classes="Arcee",
    tensors={**llama.ROOT, **UNGATED, **llama.NORMS},
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}, "mlp_bias": UNGATED_BIAS},
    inputs=UNGATED_INPUTS,
    defaults={
        **llama.DEFAULTS,
        "hidden_act": "relu2",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    hidden_divides=True,
    test_config={"attention_bias": True, "mlp_bias": True},
)
