"""Nemotron-H: a layer is a Mamba 2 mixer, attention without positions, or an FFN without a gate."""

from collections.abc import Mapping
from typing import Any

from prunecli.model.families._base import Family
from prunecli.model.families._kinds import MAMBA_IN, NEEDED, counted, mamba, mamba_axes, of_types

MIXER = "model.layers.{i}.mixer."
PATTERN = "hybrid_override_pattern"
LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def mixes(config: Mapping[str, Any], i: int) -> str:
    """Return the type of layer `i`, as a letter tells."""
    pattern = config.get(PATTERN)
    letter = pattern[i : i + 1] if isinstance(pattern, str) else ""
    return LETTERS.get(letter, letter)


def relayered(config: Mapping[str, Any], kept: list[int]) -> Mapping[str, Any]:
    """Return the letters of the kept layers, where config.json has some."""
    pattern = config.get(PATTERN)
    if not isinstance(pattern, str):
        return {}
    return {PATTERN: "".join(pattern[i : i + 1] for i in kept)}


FAMILY = Family(
    name="nemotron-h",
    model_types=("nemotron_h",),
    classes="NemotronH",
    tensors={
        "model.embeddings.weight": ("vocab", "hidden"),
        "model.norm_f.weight": ("hidden",),
        "lm_head.weight": ("vocab", "hidden"),
        "model.layers.{i}.norm.weight": ("hidden",),
        **mamba(MIXER),
        MIXER + "q_proj.weight": ("heads", "hidden"),
        MIXER + "k_proj.weight": ("kv_heads", "hidden"),
        MIXER + "v_proj.weight": ("kv_heads", "hidden"),
        MIXER + "o_proj.weight": ("hidden", "heads"),
        MIXER + "up_proj.weight": ("ffn", "hidden"),
        MIXER + "down_proj.weight": ("hidden", "ffn"),
    },
    biases={
        "use_bias": {MIXER + "in_proj.bias": (MAMBA_IN,), MIXER + "out_proj.bias": ("hidden",)},
        "use_conv_bias": {MIXER + "conv1d.bias": ("mamba_conv",)},
        "mlp_bias": {MIXER + "up_proj.bias": ("ffn",), MIXER + "down_proj.bias": ("hidden",)},
    },
    flags={"use_conv_bias": True},
    embedding="model.embeddings",
    final_norm="model.norm_f",
    keys={"rms_norm_eps": "layer_norm_epsilon"},
    aliases={"layer_types": "layers_block_type"},
    stored_names=(("backbone.", "model."),),
    left_out=("mtp.",),
    variants=("nemotron-h-moe",),
    kinds={
        "linear_attention": tuple(
            name.removeprefix("model.layers.{i}.").removesuffix(".weight") for name in mamba(MIXER)
        ),
        "full_attention": ("mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.o_proj"),
        "mlp": ("mixer.up_proj", "mixer.down_proj"),
    },
    kinds_of=of_types(mixes, "layers_block_type"),
    needed=NEEDED,
    relayered=relayered,
    inputs=(
        ("mixer.q_proj", "mixer.k_proj", "mixer.v_proj"),
        ("mixer.o_proj",),
        ("mixer.up_proj",),
        ("mixer.down_proj",),
    ),
    beside={"q": (("mixer.in_proj",),), "o": (("mixer.out_proj",),)},
    axes=mamba_axes(
        lambda get: get("mamba_num_heads") * get("mamba_head_dim"),
        heads="mamba_num_heads",
        state="ssm_state_size",
        groups="n_groups",
        kernel="conv_kernel",
    ),
    # decay, write and read
    recurrences={
        "linear_attention": lambda get: (
            3 * get("mamba_num_heads") * get("mamba_head_dim") * get("ssm_state_size")
        )
    },
    layer_lists={"layers_block_type": mixes},
    initial={"dt_bias": 1.0, "mixer.D": 1.0, "A_log": counted},
    defaults={
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
    },
    test_config={
        PATTERN: "M*-*",
        "use_bias": True,
        "mlp_bias": True,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 4,
        "n_groups": 2,
    },
)
