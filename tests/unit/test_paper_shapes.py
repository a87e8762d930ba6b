"""Parameters and FLOPs of the paper's Tables 1, 5, 6, 7 and 9, from configs alone.

`printed` is what the paper prints, in billions or TFLOPs; `misprint` marks the rows whose printed
value does not follow from the shape that it trained.
"""

import pytest

from prunecli.methods import registry
from prunecli.model.arch import Arch
from prunecli.pruning import sizes
from prunecli.settings import Amount

LLAMA_8B = Arch(
    {
        "model_type": "llama",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
)
# name, sizes, parameters, printed, misprint, TFLOPs printed
TABLES_1_AND_9 = [
    ("base", {}, 8_030_261_248, 8.0, False, 32.9),
    ("depth 50", {"layers": list(range(16))}, 4_540_469_248, 4.5, False, 17.5),
    ("depth 62.5", {"layers": list(range(8))}, 2_795_573_248, 2.8, False, 9.8),
    ("depth 75", {"layers": list(range(4))}, 1_923_125_248, 1.9, False, 6.0),
    ("depth 81.3", {"layers": list(range(2))}, 1_486_901_248, 1.5, False, 4.1),
    ("width 50", {"hidden": 3072, "ffn": 9216}, 4_512_746_496, 4.5, False, 19.1),
    ("width 62.5", {"hidden": 2432, "ffn": 6144}, 2_855_364_992, 3.1, True, 12.6),
    ("width 75", {"hidden": 1792, "ffn": 6016}, 2_081_933_056, 2.0, True, 9.8),
    ("width 81.3", {"hidden": 1536, "ffn": 4736}, 1_595_770_368, 1.5, True, 7.9),
    ("flap", {"kv_heads": 5, "ffn": 6656}, 4_507_045_888, 4.5, False, 17.7),
    ("sheared", {"hidden": 3456, "ffn": 7552}, 4_524_764_544, 4.6, True, 18.9),
]
# hidden, heads, ffn, parameters; the columns headed "KV heads" hold query heads
TABLES_6_AND_7 = [
    (4096, 16, 7168, 4_540_600_320),
    (4096, 20, 6656, 4_507_045_888),
    (4096, 24, 6272, 4_523_823_104),
    (4096, 28, 5888, 4_540_600_320),
    (4096, 32, 5376, 4_507_045_888),
    (3072, 16, 11008, 4_537_912_320),
    (3072, 20, 10496, 4_512_746_496),
    (3072, 24, 10112, 4_525_329_408),
    (3072, 28, 9728, 4_537_912_320),
    (3072, 32, 9216, 4_512_746_496),
    (3456, 16, 9216, 4_510_608_768),
    (3456, 20, 8832, 4_524_764_544),
    (3456, 24, 8448, 4_538_920_320),
    (3456, 28, 7936, 4_510_608_768),
    (3456, 32, 7552, 4_524_764_544),
]
# hidden, ffn, parameters, printed, misprint
TABLE_5 = [
    (2176, 7168, 2_768_709_760, 3.1, True),
    (2304, 6656, 2_818_328_832, 3.1, True),
    (2432, 6144, 2_855_364_992, 3.1, True),
    (2560, 6400, 3_068_561_920, 3.1, False),
    (2688, 5888, 3_089_869_440, 3.1, False),
    (1664, 6656, 2_035_459_712, 2.0, False),
    (1792, 6016, 2_081_933_056, 2.0, True),
    (1920, 5248, 2_089_084_800, 2.0, True),
    (2048, 4480, 2_077_362_176, 2.0, True),
    (1408, 5632, 1_583_900_032, 1.5, True),
    (1536, 4736, 1_595_770_368, 1.5, True),
    (1664, 3840, 1_585_620_608, 1.5, True),
]


@pytest.mark.parametrize(
    ("name", "sizes", "params", "printed", "misprint", "tflops"), TABLES_1_AND_9
)
def test_tables_1_and_9(name, sizes, params, printed, misprint, tflops):
    arch = LLAMA_8B.child(**sizes)
    assert arch.total_params == params
    assert (round(params / 1e9, 1) != printed) == misprint
    assert round(arch.flops(2048) / 1e12, 1) == tflops


def test_sparse_rows_of_table_9():
    """The paper prints 16.5, half of everything; half of the block linears is 18.6."""
    assert LLAMA_8B.flops(2048, density=0.5) / 1e12 == pytest.approx(18.646, abs=5e-4)
    assert LLAMA_8B.total_params - LLAMA_8B.block_params // 2 == 4_540_600_320


@pytest.mark.parametrize(("hidden", "heads", "ffn", "params"), TABLES_6_AND_7)
def test_tables_6_and_7(hidden, heads, ffn, params):
    arch = LLAMA_8B.child(hidden=hidden, kv_heads=heads // 4, ffn=ffn)
    assert arch.total_params == params
    assert (arch.heads, arch.kv_heads) == (heads, heads // 4)
    assert arch.config["model_type"] == ("llama" if hidden % heads == 0 else "mistral")


@pytest.mark.parametrize(("hidden", "ffn", "params", "printed", "misprint"), TABLE_5)
def test_table_5(hidden, ffn, params, printed, misprint):
    assert LLAMA_8B.child(hidden=hidden, ffn=ffn).total_params == params
    assert (round(params / 1e9, 1) != printed) == misprint


def test_groups_sum_to_the_whole_and_kv_follows_heads():
    assert sum(LLAMA_8B.params().values()) == LLAMA_8B.total_params
    assert LLAMA_8B.block_params == 32 * 218_103_808


@pytest.mark.parametrize(("kept", "ffn"), [(4, 7168), (5, 6742), (6, 6315), (7, 5888), (8, 5462)])
def test_flap_fills_the_ffn_as_the_official_formula_does(kept, ffn):
    flap = registry.get("flap")
    found = sizes._fill_ffn(
        sizes.Sizes(32, 4096, kept, 0), LLAMA_8B.block_params / 2 / 32, LLAMA_8B
    )
    assert found.ffn == ffn
    default = sizes.resolve_sizes(flap, {"structure": "UL-MM"}, Amount(ratio=0.5), LLAMA_8B)
    assert (default.kv_heads, default.ffn) == (4, 7168)


def test_llm_pruner_as_its_readme_counts():
    """25 % of layers 4 to 29: 24 heads and 10752 channels there, 6,612,586,496 parameters."""
    method, amount = registry.get("llm-pruner"), Amount(ratio=0.25 * 26 / 32)
    found = sizes.resolve_sizes(method, {"protect": "4,2"}, amount, LLAMA_8B)
    assert (found.kv_heads, found.ffn, found.untouched) == (6, 10752, (4, 2))
    removed = LLAMA_8B.block_params - sizes.block_params(found, LLAMA_8B)
    assert LLAMA_8B.total_params - removed == 6_612_586_496
