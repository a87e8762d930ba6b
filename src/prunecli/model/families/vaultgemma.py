"""VaultGemma: Gemma 2 without the norms behind attention and FFN."""

from prunecli.model.families import gemma2, llama
from prunecli.model.families._base import Family

FAMILY = Family(
    name="vaultgemma",
    model_types=("vaultgemma",),
    classes="VaultGemma",
    tensors={
        **llama.ROOT,
        **llama.LINEARS,
        llama.LAYER + "input_layernorm.weight": ("hidden",),
        llama.LAYER + "pre_feedforward_layernorm.weight": ("hidden",),
    },
    biases=gemma2.FAMILY.biases,
    inputs=llama.INPUTS,
    defaults=gemma2.DEFAULTS,
    layer_lists=gemma2.FAMILY.layer_lists,
    hidden_divides=True,
    scales_embedding=True,
    norm_weight_offset=1.0,
    test_config=gemma2.FAMILY.test_config,
)
