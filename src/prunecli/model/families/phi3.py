"""Phi 3 and 4: Llama with q, k, v in one matrix, and gate, up in another."""

from prunecli.model.families import llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    classes="Phi3",
    tensors={
        **llama.ROOT,
        **llama.NORMS,
        llama.ATTENTION + "qkv_proj.weight": ("heads+kv_heads+kv_heads", "hidden"),
        llama.ATTENTION + "o_proj.weight": ("hidden", "heads"),
        llama.MLP + "gate_up_proj.weight": ("ffn+ffn", "hidden"),
        llama.MLP + "down_proj.weight": ("hidden", "ffn"),
    },
    inputs=(
        ("self_attn.qkv_proj",),
        ("self_attn.o_proj",),
        ("mlp.gate_up_proj",),
        ("mlp.down_proj",),
    ),
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 32000,
        "eos_token_id": 32000,
    },
    test_config={"sliding_window": 8},
)
