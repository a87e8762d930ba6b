"""StarCoder 2: LayerNorms, no gate, one flag for all biases of its matrices."""

from prunecli.model.families import llama, nemotron
from prunecli.model.families._base import MEAN, Family

FAMILY = Family(
    name="starcoder2",
    model_types=("starcoder2",),
    classes="Starcoder2",
    tensors={
        **llama.ROOT,
        llama.ATTENTION + "q_proj.weight": ("heads", "hidden"),
        llama.ATTENTION + "k_proj.weight": ("kv_heads", "hidden"),
        llama.ATTENTION + "v_proj.weight": ("kv_heads", "hidden"),
        llama.ATTENTION + "o_proj.weight": ("hidden", "heads"),
        llama.MLP + "c_fc.weight": ("ffn", "hidden"),
        llama.MLP + "c_proj.weight": ("hidden", "ffn"),
        **llama.NORMS,
        **nemotron.NORM_BIAS,
    },
    biases={
        "use_bias": {
            **llama.QKV_BIAS,
            **llama.O_BIAS,
            llama.MLP + "c_fc.bias": ("ffn",),
            llama.MLP + "c_proj.bias": ("hidden",),
        }
    },
    flags={"use_bias": True},
    inputs=(*llama.INPUTS[:2], ("mlp.c_fc",), ("mlp.c_proj",)),
    fixed={"hidden": MEAN},
    defaults={
        **nemotron.DEFAULTS,
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.018042,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "sliding_window": None,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
    test_config={"sliding_window": 8},
)
