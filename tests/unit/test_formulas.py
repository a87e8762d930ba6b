"""Formulas and statistics against naive fp64 loops."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.errors import PruneError
from prunecli.methods import magnitude, registry, sparsegpt, wanda
from prunecli.methods._base import LayerView
from prunecli.methods._masks import drop_mask
from prunecli.model.pattern import SparsityPattern
from prunecli.pruning.stats import registry as statistics
from prunecli.pruning.stats._base import INPUTS
from prunecli.pruning.stats.absmean import AbsMean
from prunecli.pruning.stats.block_influence import BlockInfluence
from prunecli.pruning.stats.feature_norm import FeatureNorm
from prunecli.pruning.stats.fluctuation import Fluctuation
from prunecli.pruning.stats.gram import Gram
from prunecli.pruning.stats.moments import Moments
from prunecli.ranks import Ranks

SPARSEGPT = {"block_size": 128, "damping": 0.01, "compat": False}


def random(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def correlated(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return random(rows, inputs, seed=seed) @ random(inputs, inputs, seed=seed + 1)


# ---------------------------------------------------------------- masks


def naive_mask(score, pattern, scope):
    """Sort (score, position) pairs: the lowest go, the earlier of equal ones first."""
    rows, columns = score.shape
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    if pattern.group:
        sets = [
            [(i, j + k) for k in range(pattern.group)]
            for i in range(rows)
            for j in range(0, columns, pattern.group)
        ]
    elif scope == "row":
        sets = [[(i, j) for j in range(columns)] for i in range(rows)]
    else:
        sets = [[(i, j) for i in range(rows) for j in range(columns)]]
    for places in sets:
        drop = pattern.group - pattern.keep if pattern.group else int(len(places) * pattern.ratio)
        for i, j in sorted(places, key=lambda place: (float(score[place]), place))[:drop]:
            mask[i, j] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7),
    st.integers(1, 6),
    st.sampled_from(
        [(0.0, 0, 0), (0.3, 0, 0), (0.5, 0, 0), (0.5, 2, 4), (0.75, 1, 4), (0.25, 3, 4)]
    ),
    st.sampled_from(["row", "matrix"]),
    st.integers(0, 99),
)
def test_masks_are_exact_and_ties_go_by_position(rows, fours, pattern, scope, seed):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 4, (rows, 4 * fours), generator=generator).float()
    found = drop_mask(score, SparsityPattern(*pattern), scope)
    assert found.equal(naive_mask(score, SparsityPattern(*pattern), scope))


@pytest.mark.parametrize("scope", ["matrix", "row"])
def test_magnitude(scope):
    weight = random(6, 16)
    found = magnitude.sparsify(
        weight, None, SparsityPattern(0.5), {"scope": scope, "compat": False}
    )
    mask = naive_mask(weight.abs(), SparsityPattern(0.5), scope)
    assert found.equal(weight.masked_fill(mask, 0))


def test_official_magnitude_takes_all_at_or_below_the_limit():
    weight = torch.tensor([[1.0, -1.0, 1.0, 2.0], [3.0, 1.0, -2.0, 4.0]])
    found = magnitude.sparsify(
        weight, None, SparsityPattern(0.25), {"scope": "matrix", "compat": True}
    )
    assert found.equal(weight * (weight.abs() > 1))


def test_wanda_against_loops():
    weight, inputs = random(5, 12, dtype=torch.float64), random(3, 7, 12, seed=3)
    collector = FeatureNorm()
    collector.update(inputs)
    norm = wanda.prepare(collector.compute(), {})
    found = wanda.sparsify(weight, norm, SparsityPattern(0.5), {})
    score = torch.zeros(5, 12, dtype=torch.float64)
    for i in range(5):
        for j in range(12):
            square = sum(float(inputs[s, t, j]) ** 2 for s in range(3) for t in range(7))
            score[i, j] = abs(float(weight[i, j])) * math.sqrt(square / 3)
    assert found.equal(weight.masked_fill(naive_mask(score, SparsityPattern(0.5), "row"), 0))
    assert (found == 0).sum(1).tolist() == [6] * 5


def test_wanda_on_white_inputs_is_magnitude_per_row():
    weight = random(8, 16)
    norm = wanda.prepare({"feature_norm": torch.full((16,), 2.5)}, {})
    expected = magnitude.sparsify(
        weight, None, SparsityPattern(0.5), {"scope": "row", "compat": False}
    )
    assert wanda.sparsify(weight, norm, SparsityPattern(0.5), {}).equal(expected)


# ---------------------------------------------------------------- SparseGPT


def naive_sparsegpt(weight, gram, pattern, block_size=128, damping=0.01, compat=False):
    """The update column by column, the inverse from scratch, all in fp64."""
    W = weight.double().clone()
    H = gram.double().clone()
    inputs = len(H)
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    H += damping * H.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    U = torch.linalg.cholesky(torch.linalg.inv(H), upper=True)
    for start in range(0, inputs, block_size):
        stop = min(start + block_size, inputs)
        score = (W[:, start:stop] / U.diagonal()[start:stop]) ** 2
        if pattern.group:
            mask = torch.zeros_like(score, dtype=torch.bool)
        elif compat:
            limit = score.flatten().sort().values[int(score.numel() * pattern.ratio)]
            mask = score <= limit
        else:
            mask = naive_mask(score, pattern, "matrix")
        for j in range(start, stop):
            if pattern.group and (j - start) % pattern.group == 0:
                group = (W[:, j : j + pattern.group] / U.diagonal()[j : j + pattern.group]) ** 2
                mask[:, j - start : j - start + pattern.group] = naive_mask(group, pattern, "row")
            for i in range(len(W)):
                if mask[i, j - start]:
                    error = W[i, j] / U[j, j]
                    W[i, j:] -= error * U[j, j:]
                    W[i, j] = 0
    return W


@pytest.mark.parametrize("size", [8, 16, 40, 128])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize(
    "pattern", [(0.5, 0, 0), (0.3, 0, 0), (0.5, 2, 4), (0.75, 1, 4), (0.5, 4, 8)]
)
def test_sparsegpt_masks_and_compensated_weights(pattern, compat, size):
    """Blocks of one step, of some and a part of one, and one that is wider than the matrix."""
    weight, inputs = random(6, 96), correlated(800, 96)
    inputs[:, 37] = 0
    gram = inputs.T @ inputs
    kept = gram.clone(), weight.clone()
    options = {**SPARSEGPT, "block_size": size, "compat": compat}
    found = sparsegpt.sparsify(
        weight, sparsegpt.prepare({"gram": gram}, options), SparsityPattern(*pattern), options
    )
    expected = naive_sparsegpt(weight, gram, SparsityPattern(*pattern), size, compat=compat)
    assert (found == 0).equal(expected == 0)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-3)
    assert found.is_contiguous()
    assert gram.equal(kept[0])
    assert weight.equal(kept[1])


def test_sparsegpt_counts_per_block():
    weight, inputs = random(96, 256), correlated(1024, 256)
    stats = {"gram": inputs.T @ inputs}
    for compat, count in ((False, 96 * 64), (True, 96 * 64 + 1)):
        options = {**SPARSEGPT, "compat": compat}
        found = sparsegpt.sparsify(
            weight, sparsegpt.prepare(stats, options), SparsityPattern(0.5), options
        )
        assert [int((found[:, a : a + 128] == 0).sum()) for a in (0, 128)] == [count, count]
    found = sparsegpt.sparsify(
        weight, sparsegpt.prepare(stats, SPARSEGPT), SparsityPattern(0.5, 2, 4), SPARSEGPT
    )
    assert (found.view(-1, 4) == 0).sum(1).eq(2).all()


def test_squared_diagonal_is_the_inverse_of_what_is_left():
    inputs = correlated(300, 20).double()
    gram = inputs.T @ inputs
    scale = sparsegpt.prepare({"gram": gram.clone()}, SPARSEGPT)["scale"].double()
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(20)
    for j in range(20):
        expected = torch.linalg.inv(damped[j:, j:])[0, 0]
        assert float(scale[j] ** -2) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("inputs", [1, 2, 7, 30])
def test_a_factor_is_turned_around_in_place(inputs, monkeypatch):
    """In pieces that do and do not divide it, it is the triangle R^T of H = R R^T."""
    monkeypatch.setattr(sparsegpt, "CHUNK", 10)
    matrix = random(60, inputs, dtype=torch.float64)
    gram = matrix.T @ matrix
    lower = sparsegpt._cholesky(gram, gram.diagonal() + 1)
    assert lower.equal(lower.tril())
    assert torch.allclose(lower.T @ lower, gram + torch.eye(inputs), rtol=1e-12)
    assert sparsegpt._cholesky(gram, gram.diagonal() - 1000) is None


def test_sparsegpt_beats_wanda_beats_nothing():
    weight, inputs = random(64, 128), correlated(4096, 128)
    gram, dense = inputs.T @ inputs, inputs @ weight.T

    def error(pruned):
        return float((inputs @ pruned.T - dense).square().sum())

    for pattern in (SparsityPattern(0.5), SparsityPattern(0.5, 2, 4)):
        ours = sparsegpt.sparsify(
            weight, sparsegpt.prepare({"gram": gram}, SPARSEGPT), pattern, SPARSEGPT
        )
        by_norm = wanda.sparsify(weight, gram.diagonal().sqrt(), pattern, {})
        by_size = weight.masked_fill(drop_mask(weight.abs(), pattern, "row"), 0)
        assert error(ours) < min(error(by_norm), error(by_size))


def test_dead_inputs_lose_their_weights():
    inputs = correlated(100, 16)
    inputs[:, 5] = 0
    factor = sparsegpt.prepare({"gram": inputs.T @ inputs}, SPARSEGPT)
    found = sparsegpt.sparsify(random(4, 16), factor, SparsityPattern(0.25), SPARSEGPT)
    assert (found[:, 5] == 0).all()


def test_a_singular_hessian_gets_more_damping_and_a_hopeless_one_an_error():
    rank_one = random(1, 32).T @ random(1, 32) + random(32, 32) * 1e-2
    rank_one = (rank_one + rank_one.T) / 2 + torch.eye(32) * 0.05
    factor = sparsegpt.prepare({"gram": rank_one}, SPARSEGPT)
    assert int(factor["retries"]) > 0
    assert factor["factor"].isfinite().all()
    with pytest.raises(PruneError, match="not positive definite"):
        sparsegpt.prepare({"gram": torch.eye(4) * torch.tensor([1.0, 1, 1, -1e9])}, SPARSEGPT)


@pytest.mark.parametrize("inputs", [1, 128, 300, 1100])
def test_a_gram_matrix_of_which_half_is_computed(inputs):
    """Batches of several processes: the product of all, and symmetric."""
    batches = [random(2, 5, inputs, seed=seed) for seed in range(3)]
    whole, other = Gram(), Gram()
    whole.update(batches[0])
    other.update(batches[1])
    other.update(batches[2])
    reduced([whole, other])
    found, X = whole.compute()["gram"], torch.cat(batches).flatten(0, 1).double()
    assert torch.allclose(found.double(), X.T @ X, atol=1e-4)
    assert found.triu(128).equal(found.tril(-128).T)


# ---------------------------------------------------------------- channel scores


def layer_view(inputs_o, inputs_down, weight_o, weight_down, kv_heads):
    stats = {}
    for point, inputs in (("o", inputs_o), ("down", inputs_down)):
        for name in ("moments", "feature_norm", "fluctuation"):
            collector = statistics.get(name).make()
            collector.update(inputs)
            stats |= {f"{point}.{key}": value for key, value in collector.compute().items()}
    return LayerView({"o": weight_o, "down": weight_down}, stats, kv_heads)


@pytest.fixture
def view():
    """Two KV groups of three heads of two channels; five FFN channels."""
    inputs = random(4, 6, 12, seed=1), random(4, 6, 5, seed=2) + 3
    weights = random(8, 12, seed=3), random(8, 5, seed=4)
    return inputs, weights, layer_view(*inputs, *weights, 2)


def naive_flap(inputs, weight, metric, compat=False):
    sequences, length, channels = inputs.shape
    scores = []
    for j in range(channels):
        x = [[float(inputs[s, t, j]) for t in range(length)] for s in range(sequences)]
        flat = [value for row in x for value in row]
        mean = sum(flat) / len(flat)
        variance = sum((value - mean) ** 2 for value in flat) / (len(flat) - 1)
        if compat:
            variance, mu = 0.0, 0.0
            for s, row in enumerate(x, 1):
                mu = ((s - 1) * mu + sum(row) / length) / s
                if s > 1:
                    variance += (s - 1) / s * sum((value - mu) ** 2 for value in row)
            variance /= sequences - 1
        column = [float(w) for w in weight[:, j]]
        scores.append(
            {
                "WIFV": variance * sum(w * w for w in column),
                "IFV": variance,
                "WIFN": sum(map(abs, column)) / len(column) * math.sqrt(sum(v * v for v in flat)),
            }[metric]
        )
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("metric", ["WIFV", "IFV", "WIFN"])
@pytest.mark.parametrize("structure", ["UL-MM", "AL-AM"])
def test_flap(view, metric, structure, compat):
    inputs, weights, layer = view
    options = {"structure": structure, "metric": metric, "compat": compat}
    found = registry.get("flap").score(layer, options)
    heads, ffn = (naive_flap(x, w, metric, compat) for x, w in zip(inputs, weights, strict=True))
    heads = heads**2
    if structure == "AL-AM":
        heads, ffn = ((x - x.mean()) / x.std() for x in (heads, ffn))
        groups = [heads[:6].mean(), heads[6:].mean()]
    else:
        groups = [heads[:6].sum(), heads[6:].sum()]
    assert torch.allclose(found["kv_heads"], torch.stack(groups), rtol=1e-4)
    assert torch.allclose(found["ffn"], ffn, rtol=1e-4)


def test_wanda_sp(view):
    inputs, weights, layer = view
    found = registry.get("wanda-sp").score(layer, {"compat": False})
    heads, ffn = (naive_flap(x, w, "WIFN") / 2 for x, w in zip(inputs, weights, strict=True))
    # a norm is over the mean of four sequences: its root is half of that over their sum
    assert torch.allclose(found["kv_heads"], torch.stack([heads[:6].sum(), heads[6:].sum()]))
    assert torch.allclose(found["ffn"], ffn)


def test_flap_of_a_layer_that_adds_nothing(view):
    """Its scores are all equal, and have no z-scores: they were NaN, and all of it was kept."""
    inputs, weights, _ = view
    silent = layer_view(*inputs, *(weight * 0 for weight in weights), 2)
    options = {"structure": "AL-AM", "metric": "WIFV", "compat": False}
    found = registry.get("flap").score(silent, options)
    assert found.keys() == {"kv_heads", "ffn"}
    assert all(bool((tensor == 0).all()) for tensor in found.values())


@pytest.mark.parametrize("name", ["flap", "wanda-sp"])
def test_a_group_is_its_own_contiguous_heads(name):
    """Head a carries weight a: groups of 4 heads must score sums over 0..3 and 4..7."""
    head_dim, group = 3, 4
    weight = torch.arange(8.0).repeat_interleave(head_dim)[None]
    inputs = random(2, 50, 24).sign() + torch.tensor([0.0, 1.0]).repeat(25)[None, :, None] * 1e-9
    layer = layer_view(inputs, random(2, 50, 4), weight, random(1, 4), 2)
    options = {"structure": "UL-MM", "metric": "WIFV", "compat": False}
    found = registry.get(name).score(layer, options)["kv_heads"]
    channel = {
        "flap": lambda a: naive_flap(inputs, weight, "WIFV") ** 2,
        "wanda-sp": lambda a: naive_flap(inputs, weight, "WIFN") / math.sqrt(2),
    }[name](0)
    expected = [channel[: group * head_dim].sum(), channel[group * head_dim :].sum()]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-4)


@pytest.mark.parametrize(("compat", "groups"), [(False, [3072, 11264]), (True, [6144, 8192])])
def test_llm_pruner_groups(compat, groups):
    """Query head a of eight is worth a: groups are 0..3 and 4..7, officially the even, the odd."""
    heads = torch.arange(8.0, dtype=torch.float64).repeat_interleave(512)
    stats = {"heads": heads, "kv_heads": torch.zeros(2 * 512), "ffn": torch.zeros(3)}
    layer = LayerView({}, {f"block.{axis}.mix": value for axis, value in stats.items()}, 2)
    found = registry.get("llm-pruner").score(layer, {"taylor": "mix", "compat": compat})
    assert found["kv_heads"].tolist() == groups


@pytest.mark.parametrize(
    ("hidden", "mlp"), [("ln-out", "l2"), ("block-out", "nvidia"), ("nvidia", "l2")]
)
def test_minitron_width(hidden, mlp):
    points = {
        name: random(3, 5, 4, seed=i) for i, name in enumerate(("q", "gate", "down", "block"))
    }
    stats = {}
    for point, inputs in points.items():
        for collector in (Moments(), AbsMean()):
            collector.update(inputs)
            stats |= {f"{point}.{name}": value for name, value in collector.compute().items()}
    options = {"hidden_score": hidden, "mlp_score": mlp, "compat": False}
    found = registry.get("minitron-width").score(LayerView({}, stats, 1), options)

    def squares(point):
        return points[point].double().square().sum((0, 1))

    def nvidia(point):
        return points[point].double().abs().mean(1).square().sum(0).sqrt()

    expected = {
        "ln-out": lambda: squares("q") + squares("gate"),
        "block-out": lambda: squares("block"),
        "nvidia": lambda: nvidia("q") + nvidia("gate"),
    }[hidden]()
    assert torch.allclose(found["hidden"], expected)
    assert torch.allclose(found["ffn"], squares("down") if mlp == "l2" else nvidia("down"))


# ---------------------------------------------------------------- statistics


def reduced(collectors):
    """Let collectors of several processes, each in a thread, take in what the others have seen."""
    gate, given = Barrier(len(collectors)), [None] * len(collectors)

    class Threads(Ranks):
        def sum(self, values):
            given[self.rank] = values.clone()
            gate.wait()
            found = sum(given[1:], given[0])
            gate.wait()
            return values.copy_(found)

    with ThreadPoolExecutor(len(collectors)) as threads:
        list(threads.map(
            lambda rank: collectors[rank].reduce(Threads(rank, len(collectors))),
            range(len(collectors)),
        ))  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 9), st.booleans())
def test_moments_and_gram_of_any_split(sizes, seed, several):
    rows = random(sum(sizes) + 1, 3, 4, seed=seed, dtype=torch.float64)
    rows[..., 1] += 1000
    parts = rows.split([1, *sizes])
    count = len(parts) if several else 1
    all_moments, grams = [Moments() for _ in range(count)], [Gram() for _ in range(count)]
    for number, part in enumerate(parts):
        for collector in (all_moments[number % count], grams[number % count]):
            collector.update(part)
    reduced(all_moments)
    reduced(grams)
    moments, gram = all_moments[-1], grams[-1]
    flat, found = rows.flatten(0, 1), moments.compute()
    assert int(found["count"]) == len(flat)
    assert torch.allclose(found["mean"], flat.mean(0), rtol=1e-12)
    assert torch.allclose(found["var"], flat.var(0), rtol=1e-9)
    assert torch.allclose(found["sumsq"], flat.square().sum(0), rtol=1e-12)
    assert torch.allclose(gram.compute()["gram"], flat.T @ flat, rtol=1e-12)


NEEDS = [need for name in registry.names() for need in registry.get(name).needs]
STREAMED = [name for name in statistics.names() if statistics.get(name).scope == INPUTS]


@pytest.mark.parametrize("name", STREAMED)
def test_collectors_compute_what_they_name(name):
    collector = statistics.get(name).make()
    collector.update(*[random(2, 5, 3)] * (2 if name in ("block_influence", "routed") else 1))
    assert tuple(collector.compute()) == collector.names


@pytest.mark.parametrize("name", [name for name in STREAMED if not statistics.get(name).ordered])
def test_processes_that_divide_rows_make_the_statistics_of_all(name):
    """Equal in all of them, and but for rounding those of one process."""
    record = statistics.get(name)
    seen = [[random(n, 5, 3, seed=n + k, dtype=torch.float64) for k in (0, 9)] for n in (2, 1, 4)]
    alone, several = record.make(), [record.make() for _ in seen]
    for one, tensors in zip(several, seen, strict=True):
        one.update(*tensors)
        alone.update(*tensors)
    reduced(several)
    for part, expected in alone.compute().items():
        first, *others = (one.compute()[part] for one in several)
        assert all(first.equal(other) for other in others)
        # a recursion over sequences is made in their order, whoever saw them
        exact = name == "feature_norm"
        assert torch.allclose(first, expected, rtol=0 if exact else 1e-12, atol=0), part


def test_moments_keep_their_precision_in_float32():
    rows = random(64, 32, 2) + torch.tensor([0.0, 1000.0])
    collector = Moments()
    for part in rows.split(8):
        collector.update(part)
    expected = rows.double().flatten(0, 1).var(0)
    assert torch.allclose(collector.compute()["var"], expected, rtol=1e-4)


def test_fluctuation_is_what_the_official_class_computes():
    """Its update in place makes old and new mean one; the first sequence adds nothing."""
    inputs = random(5, 7, 3)
    mean, fluctuation = torch.zeros(3), torch.zeros(3)
    for s, x in enumerate(inputs):
        mean *= s / (s + 1)
        mean += x.mean(0) / (s + 1)
        old = mean
        if s > 0:
            fluctuation *= (s - 1) / s
            fluctuation += ((x - mean) * (x - old)).sum(0) / (s + 1)
    collector = Fluctuation()
    collector.update(inputs)
    assert torch.allclose(collector.compute()["fluctuation"].float(), fluctuation, rtol=1e-5)


def test_block_influence():
    before, after = random(2, 5, 8), random(2, 5, 8, seed=1)
    collector = BlockInfluence()
    collector.update(before, after)
    cosines = [
        float(x @ y / (x.norm() * y.norm()))
        for x, y in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True)
    ]
    found = float(collector.compute()["block_influence"])
    assert found == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-6)


def test_feature_norm_of_split_sequences():
    inputs = random(6, 9, 4)
    whole, split = FeatureNorm(), FeatureNorm()
    whole.update(inputs)
    for part in inputs.split(2):
        split.update(part)
    assert whole.compute()["feature_norm"].equal(split.compute()["feature_norm"])
    expected = inputs.double().square().sum((0, 1)) / 6
    assert torch.allclose(whole.compute()["feature_norm"].double(), expected, rtol=1e-5)
