"""`--multiple`: hidden and FFN sizes made from a ratio or a number of parameters."""

from functools import partial
from math import floor

import pytest

import tiny
from prunecli import prune
from prunecli.errors import InputError, UsageError
from prunecli.methods import registry
from prunecli.model.arch import Arch
from prunecli.model.families import registry as families
from prunecli.pruning.sizes import MULTIPLE_AXES, block_params, resolve_sizes
from prunecli.settings import Amount

WIDTH = [
    name for name in registry.names() if {"hidden", "ffn"} & set(registry.get(name).axes)
]  # fmt: skip
# of usual proportions: hidden, FFN and heads of SmolLM2-135M, Llama 3.2 1B and Llama 2 7B
SHAPES = {"smollm2": (576, 1536, 9, 3), "1b": (2048, 8192, 32, 8), "7b": (4096, 11008, 32, 32)}
RATIOS = (0.2, 0.3, 0.5, 0.65)


def shapes_of_families():
    """Every shape of Llama and one of each other family in the fast tests, the rest in `soak`."""
    for row, shape in enumerate(SHAPES):
        for column, family in enumerate(families.names()):
            short = family == "llama" or column % len(SHAPES) == row
            marks = [] if short else [pytest.mark.slow]
            yield pytest.param(shape, family, marks=marks, id=f"{shape}-{family}")


def arch_of(shape, family="llama"):
    hidden, ffn, heads, kv_heads = SHAPES[shape]
    return Arch(
        tiny.config_of(
            family, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
            head_dim=hidden // heads, **{families.get(family).key("ffn"): ffn},
        )
    )  # fmt: skip


def reachable(arch):
    """Return the ratios for which FFN channels stay beside whole heads and all of the mixers."""
    params = arch.params()

    def rest(ratio):
        heads = 1 - floor(ratio * arch.kv_heads) / arch.kv_heads
        block = (1 - ratio) * arch.block_params
        return block - arch.other_block_params - heads * params["attention"]

    return [ratio for ratio in RATIOS if rest(ratio) > 0.1 * params["ffn"]]


def skip_what_is_fixed(method, arch):
    """Skip a method that cuts what this family cannot lose."""
    if fixed := set(registry.get(method).axes) & {*arch.family.fixed}:
        pytest.skip(f"{arch.family.name} cannot lose {', '.join(sorted(fixed))}")


def sizes_of(method, model, **amount):
    record = registry.get(method)
    return resolve_sizes(record, record.resolve({}), Amount(**amount), model)


def achieved(sizes, arch):
    return 1 - block_params(sizes, arch) / arch.block_params


def half_a_step(method, sizes, arch):
    """Return how much of the blocks half a multiple of the axis that is filled last is."""
    if "ffn" not in registry.get(method).axes:
        return sizes.multiple / 2 / arch.hidden
    channels = sum(arch.times("ffn", i) for i in range(arch.layers)) * sizes.multiple
    return arch.ffn_matrices * sizes.hidden * channels / 2 / arch.block_params


@pytest.mark.parametrize(("shape", "family"), [*shapes_of_families()])
@pytest.mark.parametrize("method", WIDTH)
def test_cut_sizes_are_multiples_and_the_ratio_is_the_nearest(method, shape, family):
    arch = arch_of(shape, family)
    skip_what_is_fixed(method, arch)
    for multiple in (8, 32, 48, 64):
        for ratio in reachable(arch):
            try:
                sizes = sizes_of(method, arch, ratio=ratio, multiple=multiple)
            except InputError as error:  # of gemma, where the heads must divide the size as well
                assert arch.family.hidden_divides and "multiples of" in str(error)
                continue
            for axis in MULTIPLE_AXES:
                size = getattr(sizes, axis)
                assert size == getattr(arch, axis) or size % multiple == 0
            if sizes.ffn < arch.ffn or method != "minitron-width":
                step = half_a_step(method, sizes, arch)
                if arch.family.hidden_divides and not arch.family.containers:
                    step *= arch.heads
                assert abs(achieved(sizes, arch) - ratio) <= step + 1e-9


@pytest.mark.parametrize(("shape", "family"), [*shapes_of_families()])
@pytest.mark.parametrize("method", WIDTH)
def test_the_default_moves_the_ratio_by_less_than_a_hundredth(method, shape, family):
    arch = arch_of(shape, family)
    skip_what_is_fixed(method, arch)
    amounts = [{"ratio": ratio} for ratio in reachable(arch)]
    # in others most sizes are refused, or more than all FFN channels would have to go
    takes = arch.family.containers or not arch.family.hidden_divides
    if takes and 0.3 * arch.total_params / arch.block_params < max(reachable(arch), default=0):
        amounts.append({"params": 0.7 * arch.total_params})
    for amount in amounts:
        sizes, exact = (sizes_of(method, arch, **amount, **m) for m in ({}, {"multiple": 1}))
        assert exact.multiple == 1
        assert sizes.multiple in (256, 32, 1)
        assert abs(achieved(sizes, arch) - achieved(exact, arch)) < 0.01
        if sizes.multiple == 1:
            assert sizes == exact
        if "params" in amount:
            axes = ("layers", "hidden", "kv_heads", "ffn")
            kept = dict(zip(axes, sizes.axes, strict=True)) | {"layers": [*range(arch.layers)]}
            assert arch.child(**kept).total_params <= amount["params"]


@pytest.mark.parametrize(
    ("method", "shape", "ratio", "multiple", "hidden", "ffn"),
    [
        # 5504 channels are 21.5 times 256, which moves the ratio by 0.0078
        ("flap", "7b", 0.5, 256, 4096, 5632),
        # 1760 and 6933 are nearest to 1792 and 6656 of 256, which would move it by 0.0106
        ("minitron-width", "1b", 0.25, 32, 1760, 6944),
        # 256 is no part of 576
        ("minitron-width", "smollm2", 0.5, 32, 384, 1024),
        # 403 is nearest to 416 of 32, which would move it by 0.0226
        ("slicegpt-global", "smollm2", 0.3, 1, 405, 1536),
    ],
)
def test_the_branches_of_the_default(method, shape, ratio, multiple, hidden, ffn):
    sizes = sizes_of(method, arch_of(shape), ratio=ratio)
    assert (sizes.multiple, sizes.hidden, sizes.ffn) == (multiple, hidden, ffn)


def test_sizes_of_a_model_without_blocks_stay_exact():
    arch = Arch(tiny.config_of("llama"))  # hidden 48, FFN 80
    sizes = sizes_of("flap", arch, ratio=0.5)
    assert sizes == sizes_of("flap", arch, ratio=0.5, multiple=1)


@pytest.mark.parametrize("method", WIDTH)
def test_exact_shapes_are_as_given(method, tmp_path):
    arch, axes = arch_of("1b"), registry.get(method).axes
    given = {axis: n for axis, n in {"hidden": 1021, "ffn": 4099}.items() if axis in axes}
    sizes = sizes_of(method, arch, **given)
    assert {axis: getattr(sizes, axis) for axis in given} == given
    assert sizes.multiple is None and "multiple" not in sizes.recorded()
    path = tmp_path / "arch.json"
    path.write_text(str(given).replace("'", '"'))
    assert sizes_of(method, arch, arch=str(path)) == sizes


@pytest.mark.parametrize("method", WIDTH)
def test_equal_sizes_are_recorded_equally_and_made_again(method):
    arch, known = arch_of("smollm2"), {}
    for multiple in (1, 2, 16, 24, 28, 32, 64, 96, None):
        sizes = sizes_of(method, arch, ratio=0.5, multiple=multiple)
        record = sizes.recorded()
        assert known.setdefault(sizes.axes, record) == record
        again = sizes_of(method, arch, ratio=0.5, multiple=record.get("multiple", 1))
        assert again.axes == sizes.axes
        if multiple == 1:
            assert "multiple" not in record


@pytest.mark.parametrize(
    ("method", "amount", "options", "kind", "message"),
    [
        ("minitron-depth", {"ratio": 0.5}, {}, UsageError, "hidden and FFN sizes stay"),
        ("magnitude", {"ratio": 0.5}, {}, UsageError, "sets weights to zero"),
        ("flap", {"ffn": 64}, {}, UsageError, "exact ones are as given"),
        ("flap", {"ratio": 0.5}, {"structure": "AL-AM"}, UsageError, "use --structure UL-UM"),
        ("flap", {"ratio": 0.5, "multiple": 81}, {}, InputError, "the model has ffn 80"),
        ("slicegpt-global", {"ratio": 0.9}, {}, InputError, r"in multiples of 32.*nearest"),
    ],
)
def test_refused(method, amount, options, kind, message, llama, tmp_path):
    asked = Amount(**{"multiple": 32, **amount})
    with pytest.raises(kind, match=message):
        prune(llama, tmp_path / "o", method=method, amount=asked, options=options)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("method", "ratio"), [("minitron-depth", 0.5), ("magnitude", 0.5)])
def test_one_is_what_other_methods_do_anyway(method, ratio, llama, calibration, tmp_path):
    made = partial(prune, llama, method=method, data=calibration, ratio=ratio)
    one, other = (made(tmp_path / str(m), multiple=m) for m in (None, 1))
    assert one.sidecar["id"] == other.sidecar["id"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Return a model whose sizes are multiples of 32."""
    return tiny.make(tmp_path_factory.mktemp("wide") / "m", hidden_size=96, intermediate_size=256)


def test_what_is_made_and_said(wide, calibration, tmp_path):
    made = partial(prune, wide, method="minitron-width", data=calibration, ratio=0.4)
    notes = {multiple: tiny.Told() for multiple in (1, 32)}
    for multiple, told in notes.items():
        expected = made(tmp_path / "x", multiple=multiple, dry_run=True, report=told).results
        result = made(tmp_path / f"{multiple}", multiple=multiple)
        arch = Arch.read(tmp_path / f"{multiple}")
        assert expected["sizes"] == arch.sizes and expected["multiple"] == multiple
        assert expected["ratio"] == pytest.approx(result.results["ratio"])
        assert result.sidecar["history"][-1]["options"]["sizes"].get("multiple", 1) == multiple
    assert arch.hidden % 32 == 0 and arch.ffn % 32 == 0
    (rounded,) = [note for note in notes[32].notes if "multiples" in note]
    assert f"hidden {arch.hidden}, FFN {arch.ffn}, ratio {expected['ratio']:.4f}" in rounded
    assert "--multiple 1" in rounded
    (warned,) = [note for note in notes[1].notes if "Q8_0" in note]
    assert f"use --multiple 32 (ratio {expected['ratio']:.4f} instead of" in warned
    # 7 matrices in each of 4 layers, the embedding and the output head
    of_30 = int(warned.split(" of 30 ")[0])
    exact = Arch.read(tmp_path / "1")
    assert of_30 == (22 if exact.hidden % 32 else 0) + (4 if exact.ffn % 32 else 0)


def test_no_word_where_no_multiple_would_help(llama, calibration, tmp_path):
    told = tiny.Told()
    prune(llama, tmp_path / "o", method="flap", data=calibration, ratio=0.5, report=told)
    assert not any("multiple" in note for note in told.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "flap", "ratio": 0.5}, ["SGLang", "--bias drop"]),
        ({"method": "flap", "ratio": 0.5, "options": {"bias": "drop"}}, []),
        ({"method": "magnitude", "sparsity": "2:4"}, ["2:4", "no faster"]),
        ({"method": "magnitude", "ratio": 0.5}, []),
    ],
)
def test_which_runtimes_do_not_read_it(options, said, llama, calibration, tmp_path):
    told = tiny.Told()
    data = {} if options["method"] == "magnitude" else {"data": calibration}
    prune(llama, tmp_path / "o", **data, **options, dry_run=True, report=told)
    lines = [note for note in told.notes if "docs/running.md" in note]
    assert len(lines) == bool(said)
    assert all(word in lines[0] for word in said)
