"""Llama 4: experts that weigh what they read, not what they give, in every layer or in some.

Every fourth layer attends to all tokens, and turns nothing by positions; the others have windows.
Norms of queries and keys have no weights.
"""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families import llama, qwen3_moe
from prunecli.model.families._base import OF_EXPERTS, Experts, Family
from prunecli.model.families._kinds import TURNS, rotates, sized

SPARSE = "moe_layers"


def attends(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i` where config.json has no list of types."""
    whole = "attention_chunk_size" in config and config["attention_chunk_size"] is None
    return "chunked_attention" if rotates(config, i) and not whole else "full_attention"


def feeds(config: Mapping[str, Any], i: int) -> str:
    """Return whether layer `i` is `sparse`, with experts, or `dense`."""
    listed, step = config.get(SPARSE), config.get("interleave_moe_layer_step") or 1
    sparse = i in listed if isinstance(listed, list) else (i + 1) % step == 0
    return "sparse" if sparse else "dense"


def restated(config: dict[str, Any]) -> dict[str, Any]:
    """Return `config` without a list that says nothing, as those of Llama 4 Scout have one."""
    return {key: value for key, value in config.items() if key != TURNS or value}


def named(name: str) -> str:
    """Return what Qwen's files call so, as Llama's do."""
    return name.replace("mlp.gate.", "mlp.router.").replace("mlp.", "feed_forward.")


FAMILY = Family(
    name="llama4",
    model_types=("llama4_text",),
    classes="Llama4",
    tensors={
        named(name): axes
        for name, axes in {
            **qwen3_moe.TENSORS,
            **qwen3_moe.DENSE,
            **qwen3_moe.shared_expert("shared_expert"),
        }.items()
    },
    biases={"attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS}},
    keys={"experts": "num_local_experts"},
    aliases={"num_experts": "num_local_experts"},
    kinds={
        "dense": tuple(map(named, qwen3_moe.KINDS["dense"])),
        "sparse": (
            "feed_forward.router",
            "feed_forward.experts",
            "feed_forward.shared_expert",
        ),
    },
    kinds_of=lambda config, i: (feeds(config, i),),
    relayered=lambda config, kept: {
        SPARSE: [n for n, i in enumerate(kept) if feeds(config, i) == "sparse"]
    },
    restated=restated,
    inputs=tuple(tuple(map(named, modules)) for modules in qwen3_moe.INPUTS),
    beside={
        point: tuple(tuple(map(named, modules)) for modules in groups)
        for point, groups in qwen3_moe.beside("mlp.shared_expert.").items()
    },
    axes=sized(
        dense_ffn=lambda get: get("intermediate_size_mlp"),
        shared_ffn=lambda get: get("intermediate_size"),
    ),
    experts=Experts(
        "feed_forward.experts",
        stacks=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        stacked=True,
        transposed=True,
    ),
    fixed={"ffn": OF_EXPERTS},
    layer_lists={TURNS: rotates, "layer_types": attends},
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
    },
    test_config={
        "intermediate_size_mlp": 112,
        "interleave_moe_layer_step": 2,
        "no_rope_layer_interval": 2,
        "attention_chunk_size": 8,
        "floor_scale": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
)
