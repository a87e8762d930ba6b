"""Granite 4 without experts (H-Micro, H-1B): Mamba 2 in most layers, attention in some, FFN in all.

Its multipliers are those of Granite.
"""

from prunecli.model.families import granite, llama
from prunecli.model.families._base import INNER, Family
from prunecli.model.families._kinds import MAMBA_IN, NEEDED, counted, mamba, mamba_axes, of_types

MIXER, FFN = llama.LAYER + "mamba.", llama.LAYER + "shared_mlp."


FAMILY = Family(
    name="granitemoehybrid",
    model_types=("granitemoehybrid",),
    classes="GraniteMoeHybrid",
    tensors={
        **llama.ROOT,
        **llama.ATTENTION_LINEARS,
        **mamba(MIXER),
        FFN + "input_linear.weight": ("ffn+ffn", "hidden"),
        FFN + "output_linear.weight": ("hidden", "ffn"),
        **llama.NORMS,
    },
    biases={
        "attention_bias": {**llama.QKV_BIAS, **llama.O_BIAS},
        "mamba_conv_bias": {MIXER + "conv1d.bias": ("mamba_conv",)},
        "mamba_proj_bias": {
            MIXER + "in_proj.bias": (MAMBA_IN,),
            MIXER + "out_proj.bias": ("hidden",),
        },
    },
    flags={"mamba_conv_bias": True},
    keys={"ffn": "shared_intermediate_size"},
    aliases={"layers_block_type": "layer_types"},
    variants=("granitemoehybrid-moe",),
    kinds={"linear_attention": ("mamba",), "full_attention": ("self_attn",)},
    kinds_of=of_types(lambda config, i: "linear_attention"),
    needed=NEEDED,
    inputs=(
        *llama.INPUTS[:2],
        ("shared_mlp.input_linear",),
        ("shared_mlp.output_linear",),
    ),
    beside={"q": (("mamba.in_proj",),), "o": (("mamba.out_proj",),)},
    axes=mamba_axes(
        lambda get: get("mamba_expand") * get("hidden_size"),
        heads="mamba_n_heads",
        state="mamba_d_state",
        groups="mamba_n_groups",
        kernel="mamba_d_conv",
    ),
    # decay, write and read
    recurrences={
        "linear_attention": lambda get: (
            3 * get("mamba_expand") * get("hidden_size") * get("mamba_d_state")
        )
    },
    fixed={"hidden": INNER.format("Mamba mixer")},
    initial={"dt_bias": 1.0, "mamba.D": 1.0, "A_log": counted},
    defaults={
        **granite.FAMILY.defaults,
        "shared_intermediate_size": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    },
    test_config={
        **granite.FAMILY.test_config,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "position_embedding_type": "rope",
        "attention_bias": True,
        "mamba_proj_bias": True,
        "shared_intermediate_size": 80,
        "num_local_experts": 0,
        "mamba_n_heads": 4,
        "mamba_n_groups": 2,
        "mamba_d_state": 16,
    },
)
