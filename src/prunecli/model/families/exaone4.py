"""EXAONE 4: norms behind attention and FFN and on every query and key head, none before them.

Windows in three layers of four; where there are windows, the other layers have no positions.
"""

from prunecli.model.families import llama, olmo2
from prunecli.model.families._base import Family, windows

FAMILY = Family(
    name="exaone4",
    model_types=("exaone4",),
    classes="Exaone4",
    tensors={
        **olmo2.TENSORS,
        llama.ATTENTION + "q_norm.weight": ("head_dim",),
        llama.ATTENTION + "k_norm.weight": ("head_dim",),
    },
    inputs=llama.INPUTS,
    post_norms=olmo2.POST_NORMS,
    defaults={
        **llama.DEFAULTS,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "bos_token_id": 0,
    },
    layer_lists={"layer_types": windows(4)},
    test_config={"sliding_window": 8, "sliding_window_pattern": 2},
)
