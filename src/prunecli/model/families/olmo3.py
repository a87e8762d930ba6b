"""OLMo 3: OLMo 2 with a sliding window in three layers of four."""

from prunecli.model.families import olmo2
from prunecli.model.families._base import Family

FAMILY = Family(
    name="olmo3",
    model_types=("olmo3",),
    classes="Olmo3",
    tensors=olmo2.TENSORS,
    biases=olmo2.FAMILY.biases,
    inputs=olmo2.FAMILY.inputs,
    post_norms=olmo2.POST_NORMS,
    defaults={**olmo2.DEFAULTS, "sliding_window": 4096},
    layer_lists={
        "layer_types": lambda config, i: "sliding_attention" if (i + 1) % 4 else "full_attention"
    },
    test_config={"sliding_window": 8},
)
