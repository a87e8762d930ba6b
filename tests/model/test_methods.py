"""Every method through the library: references, stages, and what must always hold."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from matrix import CELL
from prunecli import calibrate, prune, score
from prunecli.errors import OutputExists, PruneError
from prunecli.methods import registry
from prunecli.methods._masks import drop_mask
from prunecli.model import stock, stream
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.families import registry as families
from prunecli.model.pattern import SparsityPattern
from prunecli.pruning.masks import WeightMasker
from prunecli.pruning.recipe import with_recipe
from prunecli.pruning.stats import _gradients, greedy_skip, skip_loss, taylor
from prunecli.pruning.stats.gram import Gram
from prunecli.report import Report
from prunecli.settings import Amount, Compute, Data, Output

HALF = Amount(ratio=0.5)
# four layers are fewer than are protected by default, and few containers hold biases
ON_TINY = {
    "flap": {"bias": "drop"},
    "shortened-llama": {"protect": "1,1"},
    "sheared-llama": {"tokens": 6 * 4 * 32, "batch_size": 4},
}
BEHIND = tuple(name for name in families.names() if families.get(name).post_norms)
FIXED = {name: families.get(name).fixed for name in families.names()}


def cut_by_ratio(method: str) -> set[str]:
    """Return the axes that a ratio cuts: a method that can cut heads takes these and channels."""
    axes = {*registry.get(method).axes}
    return {"heads", "ffn"} if "heads" in axes else axes


REFUSED = {
    (method, family)
    for method in registry.names()
    for family in families.names()
    if {*FIXED[family]} & cut_by_ratio(method)
    or ("experts" in registry.get(method).axes and families.get(family).experts is None)
    or (registry.get(method).rotates and family in BEHIND)
}
# where half of the weights are not those of experts that could go
SHARING = {
    (method, family)
    for method in registry.names()
    for family in families.names()
    if "experts" in registry.get(method).axes and families.get(family).kinds
}
LESS = Amount(ratio=0.25)
UNSUPPORTED = "'{}' does not support {}|'{}' cannot lose"
STAGED = [
    *(
        ("flap", {"structure": structure, "bias": bias})
        for structure in ("UL-UM", "UL-MM", "AL-MM", "AL-AM")
        for bias in ("keep", "drop")
    ),
    ("minitron-width", {}),
    ("minitron-width", {"hidden_score": "nvidia", "mlp_score": "nvidia"}),
    ("minitron-depth", {}),
    ("shortgpt", {}),
    ("sleb", {}),
    ("shortened-llama", {"protect": "1,1"}),
    ("slicegpt-global", {}),
    ("llm-pruner", {}),
    ("llm-pruner", {"taylor": "mix", "protect": "1,0"}),
]  # fmt: skip


def contents(folder) -> dict[str, bytes]:
    """Return what must be equal in equal runs: all bytes but the sidecar's `run`."""
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    record = json.loads(found["prunecli.json"])
    record.pop("run")
    return {**found, "prunecli.json": json.dumps(record).encode()}


def cut(model, out, method, calibration, amount=HALF, **settings):
    return prune(
        str(model), str(out), method=method, amount=amount, data=Data(calibration), **settings
    )


def matrix():
    """Every method on every family: each row and column in the fast tests, the rest in `soak`."""
    for row, method in enumerate(registry.names()):
        for column, family in enumerate(families.names()):
            usual = "mixtral" if "experts" in registry.get(method).axes else "llama"
            short = family == usual or column % len(registry.names()) == row
            marks = [pytest.mark.matrix, *([] if short else [pytest.mark.slow])]
            yield pytest.param(method, family, marks=marks, id=f"{method}-{family}")


@pytest.mark.parametrize(("method", "family"), [*matrix()])
def test_what_always_holds(method, family, models, calibration, tmp_path, record_property):
    """Every method on every family: loads in transformers, repeats, leaves its input alone."""
    model = models(family)
    record_property(CELL, [method, family, "r" if (method, family) in REFUSED else "+"])
    if (method, family) in REFUSED:
        with pytest.raises(PruneError, match=UNSUPPORTED.format(method, family, family)):
            cut(model, tmp_path / "a", method, calibration)
        return
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    options = ON_TINY.get(method, {})
    amount = LESS if (method, family) in SHARING else HALF
    made = cut(model, tmp_path / "a", method, calibration, amount, options=options)
    cut(model, tmp_path / "b", method, calibration, amount, options=options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    ids = torch.arange(20)[None]
    assert tiny.logits(tmp_path / "a", ids).isfinite().all()
    # of four experts one is more than a fifth of the weights
    near = 0.12 if "experts" in registry.get(method).axes else 0.02
    parent, ratio = Checkpoint(str(model)).arch, amount.ratio
    if families.get(family).by_head and registry.get(method).rotates:
        near = 4 / 48  # in steps of 8 channels, where half of the weights are between two
    if families.get(family).kinds and registry.get(method).axes == ("layers",):
        # layers of several kinds are of several sizes
        gone = [parent.layer_params(i) for i in made.results["removed_layers"]]
        near, ratio = 1e-9, sum(gone) / parent.block_params
        assert len(gone) == 2
    assert made.results["ratio"] == pytest.approx(ratio, abs=near)
    checkpoint = Checkpoint(str(tmp_path / "a"))
    assert checkpoint.arch.total_params == made.results["params"]
    counted = sum(
        int(t.count_nonzero()) for t in load_file(tmp_path / "a" / "model.safetensors").values()
    )
    assert counted == made.results["nonzero"]
    record = tiny.sidecar(tmp_path / "a")
    assert record["outputs"]["digest"] == checkpoint.digest()
    assert record["id"] == checkpoint.arch.config["prunecli"]["id"]
    record.pop("run")
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize(
    ("method", "family", "amount"),
    [
        ("flap", "opt", Amount(ffn=48)),
        ("llm-pruner", "gpt-neox", Amount(ffn=48)),
        ("minitron-width", "phi", Amount(ffn=48)),
        ("sheared-llama", "cohere", Amount(layers=3, ffn=48)),
        ("sheared-llama", "gemma4", Amount(layers=3, hidden=32, ffn=48)),
        ("llm-pruner", "gemma4", Amount(ffn=48)),
        ("wanda-sp", "gemma4", Amount(ffn=48)),
        ("minitron-width", "gemma4", Amount(hidden=32, ffn=48)),
    ],
)
def test_what_a_family_can_lose_of_several_axes(
    method, family, amount, models, calibration, tmp_path
):
    """Where one axis is refused, the others of the method are cut, and nothing else."""
    options = {key: value for key, value in ON_TINY.get(method, {}).items() if key != "protect"}
    cut(models(family), tmp_path / "o", method, calibration, amount, options=options)
    before, after = (Checkpoint(str(m)).arch.sizes for m in (models(family), tmp_path / "o"))
    asked = {axis: size for axis, size in vars(amount).items() if axis in before and size}
    assert after == before | asked
    assert tiny.logits(tmp_path / "o", torch.arange(20)[None]).isfinite().all()


@pytest.mark.parametrize("bias", ["keep", "drop"])
@pytest.mark.parametrize("name", ["llama", "seed-oss"])
def test_flap_replaces_channels_by_their_means(name, bias, models, calibration, tmp_path):
    """The biased child computes the parent with removed inputs of o and down held at their mean."""
    model = models(name)
    made = cut(
        model, tmp_path / "out", "flap", calibration, options={"bias": bias}, keep=str(tmp_path)
    )
    plan = prune(
        str(model), str(tmp_path / "p.json"), method="flap", amount=HALF, data=Data(calibration),
        options={"bias": bias}, plan_only=True,
    ).results["keep"]  # fmt: skip
    means = load_file(tmp_path / "stats.safetensors")
    from transformers import AutoModelForCausalLM

    parent = AutoModelForCausalLM.from_pretrained(model).eval()
    for i, layer in enumerate(parent.model.layers):
        heads = [24 * group + j for group in plan["kv_heads"][i] for j in range(24)]
        for module, kept in (("self_attn.o_proj", heads), ("mlp.down_proj", plan["ffn"][i])):
            mean = means[f"model.layers.{i}.{module}:in.mean"].float()

            def hold(linear, inputs, mean=mean if bias == "keep" else mean * 0, kept=kept):
                held = mean.expand_as(inputs[0]).clone()
                held[..., kept] = inputs[0][..., kept]
                return (held,)

            layer.get_submodule(module).register_forward_pre_hook(hold)
    ids = torch.randint(259, (2, 24), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = parent(ids).logits
    assert torch.allclose(tiny.logits(tmp_path / "out", ids), expected, atol=1e-4)
    assert made.results["ragged"] is False


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_sequential_methods_propagate_what_they_wrote(method, llama, calibration, tmp_path):
    """Prune layer by layer with stock modules; masks and compensated weights must agree."""
    cut(llama, tmp_path / "out", method, calibration)
    found = load_file(tmp_path / "out" / "model.safetensors")
    from transformers import AutoModelForCausalLM

    from prunecli.methods import sparsegpt

    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    ids = load_file(calibration.rsplit(":", 1)[0])["ids"].long()
    options = {"block_size": 128, "damping": 0.01, "compat": False}
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            inputs = {}
            block_linears = {
                name: module
                for name, module in layer.named_modules()
                if isinstance(module, torch.nn.Linear)
            }
            hooks = [
                module.register_forward_pre_hook(
                    lambda m, x, into=inputs, name=name: into.__setitem__(
                        name, x[0].flatten(0, 1).double()
                    )
                )
                for name, module in block_linears.items()
            ]
            model(ids)
            for hook in hooks:
                hook.remove()
            for name, module in block_linears.items():
                X, W = inputs[name], module.weight.data
                if method == "wanda":
                    mask = drop_mask(
                        W.abs() * X.square().sum(0).sqrt().float(), SparsityPattern(0.5), "row"
                    )
                    W[mask] = 0
                else:
                    factor = sparsegpt.prepare({"gram": (X.T @ X).float()}, options)
                    W.copy_(sparsegpt.sparsify(W, factor, SparsityPattern(0.5), options))
                ours = found[f"model.layers.{i}.{name}.weight"]
                assert (ours == 0).equal(W == 0), (i, name)
                assert torch.allclose(ours, W, rtol=1e-3, atol=1e-3), (i, name)


def test_gram_matrices_are_let_go_once_used(llama, calibration, tmp_path, monkeypatch):
    """While a weight is pruned, only those of inputs to its right in the layer are held."""
    made, held = [], []
    compute, pruned = Gram.compute, WeightMasker._pruned

    def watched(self):
        found = compute(self)
        made.append(weakref.ref(found["gram"]))
        return found

    def counted(self, name, *rest):
        held.append((name.split(".")[-2], sum(ref() is not None for ref in made)))
        return pruned(self, name, *rest)

    monkeypatch.setattr(Gram, "compute", watched)
    monkeypatch.setattr(WeightMasker, "_pruned", counted)
    cut(llama, tmp_path / "out", "sparsegpt", calibration)
    expected = {"q": 3, "k": 3, "v": 3, "o": 2, "gate": 1, "up": 1, "down": 0}
    layer = [(f"{name}_proj", count) for name, count in expected.items()]
    assert held == layer * (len(held) // 7)
    assert held


def test_damping_that_was_raised_is_told(llama, tmp_path):
    """Fewer tokens than inputs: the Hessian is singular, and what was done about it is recorded."""
    data = tiny.tokens(tmp_path / "few.safetensors", rows=1, length=12)
    notes: list[str] = []

    class Told(Report):
        def info(self, message: str) -> None:
            notes.append(message)

    made = prune(
        str(llama), str(tmp_path / "o"), method="sparsegpt", amount=HALF, data=Data(data),
        options={"damping": 1e-9}, report=Told(),
    )  # fmt: skip
    point = "model.layers.0.mlp.down_proj:in"
    assert made.results["damped"][point] >= 1
    assert any(f"{point}: damping was raised tenfold" in note for note in notes)


def test_every_depth_candidate_is_that_of_the_naive_loop(llama, calibration):
    runner = stream.LayerStream(Checkpoint(str(llama)), Compute())
    ids = load_file(calibration.rsplit(":", 1)[0])["ids"]
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    dense = stream.sequence_losses(runner, ids).sum() / tokens
    assert skip_loss.skip_losses(runner, ids, 0).tolist() == [float(dense)] * 5
    for skip in (1, 2, 3):
        found = skip_loss.skip_losses(runner, ids, skip)
        naive = [
            stream.sequence_losses(runner, ids, range(i, i + skip)).sum() for i in range(5 - skip)
        ]
        assert found.equal(torch.stack(naive) / tokens)


def naive_loss(folder, ids, layers) -> float:
    """Return the mean loss of a stock model from which all but these layers were deleted.

    What its layers are given depends on their numbers in the whole model: windows, positions.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    kept = torch.nn.ModuleList(model.model.layers[i] for i in layers)
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    model.model.layers, model.config.num_hidden_layers = kept, len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in layers]
    with torch.no_grad():
        logits = model(ids.long(), use_cache=False).logits[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(logits, ids[:, 1:].long().flatten()))


@pytest.mark.parametrize("name", ["llama", "gemma3", "smollm3"])
def test_greedy_removal_is_that_of_the_naive_loop(name, calibration, tmp_path):
    """Round by round on whole models, each tried and kept as SLEB says."""
    model = tiny.make(tmp_path / "m", name, num_hidden_layers=6)
    ids = load_file(calibration.rsplit(":", 1)[0])["ids"]
    alive, gone = list(range(6)), []
    for _ in range(3):
        losses = {
            layer: naive_loss(model, ids, [i for i in alive if i != layer]) for layer in alive[1:-1]
        }
        gone.append(min(losses, key=losses.__getitem__))
        alive.remove(gone[-1])
    rounds = greedy_skip.greedy_skips(stream.LayerStream(Checkpoint(str(model)), Compute()), ids, 3)
    assert [rounds.tolist().index(turn) for turn in range(3)] == gone
    assert rounds.isinf().sum() == 3
    made = cut(model, tmp_path / "out", "sleb", calibration, Amount(layers=3))
    assert made.results["removed_layers"] == sorted(gone)


@pytest.mark.parametrize("tied", [False, True])
def test_taylor_scores_and_choice_are_those_of_autograd(family, tied, calibration, tmp_path):
    """Streamed layer by layer against one backward pass through a whole stock model."""
    from transformers import AutoModelForCausalLM

    model = tiny.make(tmp_path / "m", family, tie_word_embeddings=tied)
    ids = load_file(calibration.rsplit(":", 1)[0])["ids"]
    runner = stream.LayerStream(Checkpoint(str(model)), Compute())
    found = _gradients.gradients(runner, ids, [taylor.STATISTIC])
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    logits = whole(ids.long(), use_cache=False).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].long().flatten()).backward()
    naive = [
        sum(
            float((w.detach().double() * w.grad.double()).abs().sum())
            for w in layer.parameters()
            if w.grad is not None  # of a bias that only chooses experts
        )
        for layer in stock.Parts.of(whole, runner.arch.family).layers
    ]
    points = [f"{runner.arch.prefix(i).removesuffix('.')}:out.taylor" for i in range(4)]
    assert [float(found[point]) for point in points] == pytest.approx(naive, rel=1e-4)
    made = cut(
        model, tmp_path / "o", "shortened-llama", calibration, Amount(layers=3),
        options={"protect": "1,1"},
    )  # fmt: skip
    assert made.results["removed_layers"] == [1 if naive[1] < naive[2] else 2]


def naive_slopes(model, ids):
    """Return every weight with the gradient of the mean loss, and the mean of squared ones."""
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    squares = {name: 0.0 for name, _ in whole.named_parameters()}
    for row in ids.long():
        whole.zero_grad()
        logits = whole(row[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, row[1:]).backward()
        for name, weight in whole.named_parameters():
            squares[name] = squares[name] + weight.grad.double() ** 2 / len(ids)
    whole.zero_grad()
    logits = whole(ids.long(), use_cache=False).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].long().flatten()).backward()
    return {
        name: (weight.detach().double(), weight.grad.double(), squares[name])
        for name, weight in whole.named_parameters()
    }


@pytest.mark.parametrize("taylor", ["element1", "element2", "mix", "vector"])
def test_llm_pruner_scores_are_those_of_a_naive_loop(taylor, family, calibration, tmp_path):
    """Channel by channel from whole-model gradients; groups are one KV head and its own queries."""
    if families.get(family).experts is not None:
        return  # refused, as test_experts.py finds
    model = tiny.make(tmp_path / "m", family)
    path = str(tmp_path / "c.safetensors")
    score(str(model), path, method="llm-pruner", options={"taylor": taylor}, data=Data(calibration))
    found = load_file(path)
    slopes = naive_slopes(model, load_file(calibration.rsplit(":", 1)[0])["ids"])
    salience = {
        "element1": lambda w, g, f: float((w * g).abs().sum()),
        "element2": lambda w, g, f: float((w * w * f).abs().sum()),
        "mix": lambda w, g, f: float((w * g - w * w * f / 2).abs().sum()),
        "vector": lambda w, g, f: abs(float((w * g).sum())),
    }[taylor]

    def naive(layer, **indices):
        return sum(
            salience(*(t.select(dim, j) for t in slopes[name]))
            for name, dim, own in parts_of(arch, layer, indices)
            for j in own
        )

    arch = Checkpoint(str(model)).arch
    size, queries = arch.head_dim, arch.head_dim * arch.heads // arch.kv_heads
    attending, feeding = map(arch.ranked, ("kv_heads", "ffn"))
    assert feeding and bool(attending) == arch.even_heads
    for i in {*attending[:1], *attending[-1:]}:
        for group in range(arch.kv_heads):
            heads = range(queries * group, queries * (group + 1))
            own = range(size * group, size * (group + 1))
            fused, gated = (range(n * heads.start, n * heads.stop) for n in (3, 2))
            expected = naive(i, heads=heads, kv_heads=own, qkv_by_head=fused, gated_heads=gated)
            assert float(found[f"kv_heads.{i}"][group]) == pytest.approx(expected, rel=1e-3)
    for i in {feeding[0], feeding[-1]}:
        for channel in (0, arch.ffn // 2, arch.ffn - 1):
            expected = naive(i, ffn=[channel])
            assert float(found[f"ffn.{i}"][channel]) == pytest.approx(expected, rel=1e-3)


def parts_of(arch, layer, indices):
    """Yield the matrices of a layer that have some of these indices by axis: name, dim, where."""
    for name, tensor in arch.tensors().items():
        for dim, axis in enumerate(tensor.axes if tensor.layer == layer else ()):
            own, start = [], 0
            for part in axis.split("+"):
                own += [start + j for j in indices.get(part, ())]
                start += arch.axis_size(part)
            if own and len(tensor.axes) == 2:
                yield name, dim, own


def test_protected_layers_keep_everything(llama, calibration, tmp_path):
    """Layers of unequal sizes, written padded: the zeros are counted as gone."""
    made = cut(
        llama, tmp_path / "o", "llm-pruner", calibration, Amount(ratio=0.25),
        options={"protect": "1,1"},
    )  # fmt: skip
    assert made.results["kept"]["ffn"][0] == made.results["kept"]["ffn"][3] == 80
    assert made.results["kept"]["ffn"][1] == made.results["kept"]["ffn"][2] < 80
    assert made.results["ragged"] is True
    assert made.results["ratio"] == pytest.approx(0.25, abs=0.01)
    with pytest.raises(PruneError, match=r"cannot come from 2 of 4 layers.*below 0\.5"):
        cut(llama, tmp_path / "x", "llm-pruner", calibration, options={"protect": "1,1"})
    with pytest.raises(PruneError, match="leaves none of 4 layers"):
        cut(llama, tmp_path / "x", "llm-pruner", calibration, options={"protect": "2,2"})
    assert not (tmp_path / "x").exists()


FLOAT32_ROUTERS = {"deepseek-v3", "ernie4-5-moe", "glm4-moe", "glm4-moe-lite", "nemotron-h-moe"}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "name",
    tiny.families(f for f in families.names() if f not in BEHIND and "hidden" not in FIXED[f]),
)
def test_rotated_coordinates_compute_the_same(name, tied, tmp_path):
    """A whole model under a random rotation, biases and gains included, as stock code loads it."""
    from prunecli.pruning.rotate import Rotated

    flags = families.get(name).biases
    settings = {**dict.fromkeys(flags, True), "tie_word_embeddings": tied}
    model = tiny.make(tmp_path / "m", name, dtype=torch.float64, **settings)
    rotation = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))[0]
    rotated = Rotated(Checkpoint(str(model)), rotation, 48)
    out = tmp_path / "r"
    tiny.save({name: rotated.tensor(name) for name in rotated.specs}, out, rotated.arch.config)
    found, expected = tiny.exact_logits(out), tiny.exact_logits(model)
    # in each layer, a router that scores in float32 whatever the model's type rounds once
    rounded = 4 * 2**-23 * float(expected.abs().max()) if name in FLOAT32_ROUTERS else 0.0
    assert torch.allclose(found, expected, atol=max(tiny.EXACT, rounded), rtol=0)


def test_slicing_drops_the_least_directions(llama, calibration, tmp_path):
    """The child computes the parent, rotated, whose last channels are held at zero everywhere."""
    from transformers import AutoModelForCausalLM

    path = str(tmp_path / "c.safetensors")
    score(str(llama), path, method="slicegpt-global", data=Data(calibration))
    found = load_file(path)
    assert found["hidden"].tolist() == sorted(found["hidden"].tolist(), reverse=True)
    rotation = found["rotation"]
    assert torch.allclose(rotation @ rotation.T, torch.eye(48, dtype=torch.float64), atol=1e-10)
    cut(llama, tmp_path / "o", "slicegpt-global", calibration, Amount(hidden=30))
    keep = (rotation[:, :30] @ rotation[:, :30].T).float()
    parent = AutoModelForCausalLM.from_pretrained(llama).eval()

    def project(module, inputs, output):
        return output @ keep

    parent.model.embed_tokens.register_forward_hook(project)
    for layer in parent.model.layers:
        layer.self_attn.o_proj.register_forward_hook(project)
        layer.mlp.down_proj.register_forward_hook(project)
    ids = torch.randint(259, (2, 24), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = parent(ids).logits
    assert torch.allclose(tiny.logits(tmp_path / "o", ids), expected, atol=1e-3, rtol=1e-3)


def test_the_residual_gram_is_that_of_a_naive_loop(llama, calibration):
    from transformers import AutoModelForCausalLM

    from prunecli.pruning.stats.residual_gram import residual_gram

    ids = load_file(calibration.rsplit(":", 1)[0])["ids"]
    runner = stream.LayerStream(Checkpoint(str(llama)), Compute())
    model, seen = AutoModelForCausalLM.from_pretrained(llama).eval(), []
    for name, module in model.named_modules():
        if name.endswith("layernorm") or name == "model.norm":
            module.register_forward_pre_hook(lambda m, args: seen.append(args[0].double()))
    with torch.no_grad():
        model(ids.long())
    states = torch.cat([state.flatten(0, 1) for state in seen])
    states = states / states.square().mean(1, keepdim=True).sqrt()
    assert torch.allclose(residual_gram(runner, ids), states.T @ states, rtol=1e-5)


def test_the_first_and_last_layers_stay(calibration, tmp_path):
    model = tiny.make(tmp_path / "m", "llama", num_hidden_layers=9)
    made = cut(model, tmp_path / "a", "shortened-llama", calibration, Amount(layers=6))
    assert made.results["removed_layers"] == [4, 5, 6]
    with pytest.raises(PruneError, match=r"4 of 9 layers would go.*at most 3 can.*--protect"):
        cut(model, tmp_path / "b", "shortened-llama", calibration, Amount(layers=5))
    for wrong in ("four", "1", "-1,0", "²,0"):
        with pytest.raises(PruneError, match="expected FIRST,LAST"):
            cut(
                model,
                tmp_path / "b",
                "shortened-llama",
                calibration,
                Amount(layers=6),
                options={"protect": wrong},
            )


@pytest.mark.parametrize(
    ("amount", "gone"),
    [
        (Amount(layers=1), 3),
        (Amount(ratio=0.75), 3),
        (Amount(ratio=0.99), 4),
        (Amount(params=1), 3),
    ],
)
def test_protected_layers_are_never_let_go(amount, gone, llama, calibration, tmp_path):
    with pytest.raises(
        PruneError, match=rf"{gone} of 4 layers would go.*protects the first 1 and the last 1"
    ):
        cut(llama, tmp_path / "out", "sleb", calibration, amount)
    assert not (tmp_path / "out").exists()


def test_a_hidden_size_below_one_head_each(llama, calibration, tmp_path):
    with pytest.raises(PruneError, match=r"nearest reachable ratio is 0\.875"):
        cut(llama, tmp_path / "out", "slicegpt-global", calibration, Amount(ratio=0.99))
    made = cut(llama, tmp_path / "out", "slicegpt-global", calibration, Amount(ratio=0.875))
    assert made.results["ratio"] == 0.875


@pytest.mark.parametrize("method", ["flap", "minitron-depth", "minitron-width", "slicegpt-global"])
def test_a_number_of_parameters_out_of_reach(method, llama, calibration, tmp_path):
    """The error names the smallest number that can be had, and that one can."""
    options = {"bias": "drop"} if method == "flap" else {}

    def reach(params):
        return cut(
            llama, tmp_path / "out", method, calibration, Amount(params=params), options=options,
            output=Output(dry_run=True),
        ).results["params"]  # fmt: skip

    with pytest.raises(PruneError, match=f"cannot be reached by '{method}'") as caught:
        reach(100)
    least = int(str(caught.value).split()[-1])
    assert reach(least) == least
    with pytest.raises(PruneError, match=f"nearest is {least}$"):
        reach(least - 1)


def test_scores_of_fewer_removals_do_not_do(llama, calibration, tmp_path):
    stats, scores = str(tmp_path / "s.safetensors"), str(tmp_path / "c.safetensors")
    calibrate(str(llama), stats, methods=["sleb"], amount=Amount(layers=3), data=Data(calibration))
    score(str(llama), scores, method="sleb", stats=stats)
    with pytest.raises(PruneError, match="rank 1 layers, 2 are to go"):
        prune(str(llama), str(tmp_path / "out"), method="sleb", scores=scores, amount=HALF)


def test_permuted_hidden_channels_permute_their_scores(llama, calibration, tmp_path):
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    from safetensors.torch import save_file

    other = tmp_path / "permuted"
    other.mkdir()
    (other / "config.json").write_bytes((llama / "config.json").read_bytes())
    tensors, arch = load_file(llama / "model.safetensors"), Arch.read(llama)
    for name, tensor in arch.tensors().items():
        for dim, axis in enumerate(tensor.axes):
            if axis == "hidden":
                tensors[name] = tensors[name].index_select(dim, order)
    save_file({n: t.contiguous() for n, t in tensors.items()}, other / "model.safetensors")
    scores = []
    for model in (llama, other):
        path = tmp_path / f"{model.name}.safetensors"
        score(str(model), str(path), method="minitron-width", data=Data(calibration))
        scores.append(load_file(path)["hidden"])
    assert torch.allclose(scores[1], scores[0][order], rtol=1e-4)


@pytest.mark.parametrize(("method", "options"), STAGED)
def test_three_steps_give_the_bytes_of_one(method, options, llama, calibration, tmp_path):
    made = cut(
        llama, tmp_path / "one", method, calibration, options=options, keep=str(tmp_path / "kept")
    )
    amount = HALF if method in ("minitron-depth", "sleb") else None
    stats, scores = str(tmp_path / "s.safetensors"), str(tmp_path / "c.safetensors")
    stages = {option.name: option.stage for option in registry.get(method).options}
    scored = {k: v for k, v in options.items() if stages[k] == "score"}
    calibrate(str(llama), stats, methods=[method], amount=amount, data=Data(calibration))
    score(str(llama), scores, method=method, options=scored, stats=stats)
    three = prune(
        str(llama),
        str(tmp_path / "three"),
        method=method,
        amount=HALF,
        options=options,
        scores=scores,
    )
    one = (tmp_path / "one" / "model.safetensors").read_bytes()
    assert (tmp_path / "three" / "model.safetensors").read_bytes() == one
    assert three.results == made.results
    for name, path in (("stats", stats), ("scores", scores)):
        kept = (tmp_path / "kept" / f"{name}.safetensors").read_bytes()
        assert kept == Path(path).read_bytes()
    plan = str(tmp_path / "plan.json")
    if registry.get(method).rotates:
        assert not (tmp_path / "kept" / "plan.json").exists()
        with pytest.raises(PruneError, match="kept indices cannot express"):
            cut(llama, tmp_path / "plan.json", method, calibration, plan_only=True)
        return
    prune(
        str(llama), plan, method=method, amount=HALF, options=options, scores=scores, plan_only=True
    )
    kept = [json.loads(Path(p).read_text()) for p in (plan, tmp_path / "kept" / "plan.json")]
    assert kept[0]["results"] == kept[1]["results"]
    again = prune(
        str(llama),
        str(tmp_path / "planned"),
        method=method,
        options=options,
        plan=plan,
        stats=stats,
    )
    assert (tmp_path / "planned" / "model.safetensors").read_bytes() == one
    assert again.results["ratio"] == made.results["ratio"]


def test_one_file_of_statistics_serves_many(llama, calibration, tmp_path):
    """What other methods read beside is no part of a method's scores."""
    many = ["shortgpt", "shortened-llama", "minitron-depth", "slicegpt-global", "llm-pruner"]
    stats = str(tmp_path / "s.safetensors")
    calibrate(str(llama), stats, methods=many, amount=HALF, data=Data(calibration))
    for method in many:
        options, files = ON_TINY.get(method, {}), []
        for name, settings in (("all", {"stats": stats}), ("own", {"data": Data(calibration)})):
            if name == "own" and method == "minitron-depth":
                settings["amount"] = HALF
            files.append(tmp_path / f"{method}-{name}.safetensors")
            score(str(llama), str(files[-1]), method=method, options=options, **settings)
        assert files[0].read_bytes() == files[1].read_bytes()


def test_an_amount_that_one_of_many_cannot(llama, calibration, tmp_path):
    with pytest.raises(PruneError, match="'sleb' protects the first 1"):
        calibrate(
            str(llama), str(tmp_path / "s.safetensors"), methods=["minitron-depth", "sleb"],
            amount=Amount(layers=1), data=Data(calibration),
        )  # fmt: skip


def test_gradients_in_sixteen_bits(llama, calibration):
    """They are those of a sum: a mean over all tokens is too small for half precision."""
    ids = load_file(calibration.rsplit(":", 1)[0])["ids"]
    exact, rounded = (
        _gradients.gradients(
            stream.LayerStream(Checkpoint(str(llama)), Compute(dtype=dtype)),
            ids,
            [taylor.STATISTIC],
        )
        for dtype in ("float32", "bfloat16")
    )
    for name, value in exact.items():
        assert float(rounded[name]) == pytest.approx(float(value), rel=0.1)


def test_a_plan_tells_what_it_was_decided_on(llama, calibration, tmp_path):
    from prunecli import evaluate

    options = {"bias": "drop"}
    plan = tmp_path / "p.json"
    cut(llama, plan, "flap", calibration, options=options, plan_only=True)
    made = prune(str(llama), str(tmp_path / "o"), plan=str(plan))
    assert made.sidecar["tokens"]["calibration"] == 8 * 32
    with pytest.raises(PruneError, match="8 of 8 evaluation windows were calibrated on"):
        evaluate(str(tmp_path / "o"), data=[Data(calibration)])
    # read again for the biases, the same text counts once
    again = cut(llama, tmp_path / "b", "flap", calibration, amount=None, plan=str(plan))
    assert again.sidecar["tokens"]["calibration"] == 8 * 32


def test_nothing_that_is_read_is_written_to(llama, calibration, tmp_path):
    rows = tmp_path / "t.safetensors"
    rows.write_bytes(Path(calibration.rsplit(":", 1)[0]).read_bytes())
    for keep, what in ((llama, "the input"), (llama / "x", "the input"), (tmp_path / "o", "OUT")):
        with pytest.raises(PruneError, match=f"lies in {what}"):
            cut(llama, tmp_path / "o", "flap", calibration, keep=str(keep))
    with pytest.raises(PruneError, match="is the input itself"):
        cut(llama, rows, "magnitude", f"{rows}:ids", output=Output(force=True))
    with pytest.raises(PruneError, match="contains the input"):
        cut(llama, tmp_path, "magnitude", f"{rows}:ids", output=Output(force=True))
    assert not (llama / "x").exists() and not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["stats.safetensors", "scores.safetensors", "plan.json"])
def test_kept_files_of_others_stay(name, llama, calibration, tmp_path):
    keep = tmp_path / "k"
    keep.mkdir()
    (keep / name).write_text('{"mine": 1}')
    for output in (Output(), Output(force=True), Output(skip_existing=True)):
        with pytest.raises(OutputExists, match=rf"{name}', which --keep would write,.*not made"):
            cut(llama, tmp_path / "o", "llm-pruner", calibration, keep=str(keep), output=output)
    assert (keep / name).read_text() == '{"mine": 1}'
    assert [path.name for path in keep.iterdir()] == [name]
    assert not (tmp_path / "o").exists()


def test_kept_files_are_taken_or_replaced(llama, calibration, tmp_path, monkeypatch):
    kept = {"keep": str(tmp_path / "k")}
    cut(llama, tmp_path / "a", "llm-pruner", calibration, **kept)
    before = {path.name: path.read_bytes() for path in (tmp_path / "k").iterdir()}
    # the same run once more takes what is there
    cut(llama, tmp_path / "b", "llm-pruner", calibration, **kept)
    after = {path.name: path.read_bytes() for path in (tmp_path / "k").iterdir()}
    assert after.pop("plan.json") and before.pop("plan.json") and after == before
    # another run has another plan
    less = Amount(ratio=0.25)
    with pytest.raises(OutputExists, match="from other inputs or options"):
        cut(llama, tmp_path / "c", "llm-pruner", calibration, less, **kept)
    # and other scores are told before statistics are collected
    for name in ("stats.safetensors", "plan.json"):
        (tmp_path / "k" / name).unlink()
    mixed = {"options": {"taylor": "mix"}, **kept}
    monkeypatch.setattr("prunecli.pruning.prune.write_statistics", None)
    with pytest.raises(OutputExists, match=r"scores\.safetensors' exists and was made from other"):
        cut(llama, tmp_path / "c", "llm-pruner", calibration, **mixed)
    monkeypatch.undo()
    force = Output(force=True)
    made = cut(llama, tmp_path / "c", "llm-pruner", calibration, less, output=force, **kept)
    plan = json.loads((tmp_path / "k" / "plan.json").read_text())
    assert plan["results"]["ratio"] == made.results["ratio"]
    # statistics that are read are no statistics to keep
    cut(
        llama, tmp_path / "d", "flap", calibration, options={"bias": "drop"},
        stats=_flap_stats(llama, calibration, tmp_path / "own"), keep=str(tmp_path / "own"),
    )  # fmt: skip


def test_a_plan_alone_is_not_kept(llama, calibration, tmp_path):
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "plan.json").write_text("{}")
    kept = {"keep": str(tmp_path / "k"), "plan_only": True}
    cut(llama, tmp_path / "p.json", "llm-pruner", calibration, **kept)
    assert (tmp_path / "k" / "plan.json").read_text() == "{}"
    (tmp_path / "f").write_text("")
    with pytest.raises(PruneError, match="lies under 'f', which is a file"):
        cut(llama, tmp_path / "o", "llm-pruner", calibration, keep=str(tmp_path / "f" / "k"))


def test_options_of_a_plan(llama, calibration, tmp_path):
    """They are those that it was made with; of a recipe only text and biases count."""
    plan = str(tmp_path / "p.json")
    cut(
        llama, plan, "flap", calibration, plan_only=True,
        options={"metric": "IFV", "bias": "drop"},
    )  # fmt: skip
    planned = {"plan": plan, "amount": None}
    made = cut(llama, tmp_path / "a", "flap", calibration, options={"bias": "drop"}, **planned)
    assert made.sidecar["options"]["options"]["metric"] == "IFV"
    flap = registry.get("flap")
    assert with_recipe(flap, "official", Data(), {}, from_plan=True)[1].keys() <= {"bias"}
    assert "structure" in with_recipe(flap, "official", Data(), {})[1]
    with pytest.raises(PruneError, match="--metric WIFV cannot be combined with --plan"):
        cut(llama, tmp_path / "c", "flap", calibration, options={"metric": "WIFV"}, **planned)


@pytest.mark.parametrize(("ratio", "nearest"), [(0.49, True), (0.5, False)])
def test_ratios_beside_protected_layers(ratio, nearest, llama, calibration, tmp_path):
    options = {"protect": "1,1"}
    with pytest.raises(PruneError, match=rf"--ratio {ratio} cannot") as caught:
        cut(
            llama,
            tmp_path / "o",
            "llm-pruner",
            calibration,
            Amount(ratio=ratio),
            options=options,
        )
    if nearest:
        amount = Amount(ratio=float(str(caught.value).rsplit(" ", 1)[1]))
        made = cut(llama, tmp_path / "o", "llm-pruner", calibration, amount, options=options)
        assert made.results["ratio"] == pytest.approx(amount.ratio, abs=0.01)


def _flap_stats(model, calibration, folder):
    folder.mkdir()
    path = str(folder / "stats.safetensors")
    calibrate(str(model), path, methods=["flap"], data=Data(calibration))
    return path


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "wanda-sp"])
def test_one_pass_variant_of_sequential_methods(method, llama, calibration, tmp_path):
    stats = str(tmp_path / "s.safetensors")
    calibrate(str(llama), stats, methods=[method], data=Data(calibration))
    made = prune(str(llama), str(tmp_path / "out"), method=method, amount=HALF, stats=stats)
    assert made.results["ratio"] == pytest.approx(0.5, abs=0.01)
    cut(llama, tmp_path / "faithful", method, calibration)
    first, faithful = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "faithful"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert first[name].equal(faithful[name]), "the first layer has no predecessors"


@pytest.mark.parametrize("method", ["flap", "sparsegpt", "minitron-depth"])
def test_shards_bf16_ties_and_disk_buffers(method, calibration, tmp_path):
    sizes = {"dtype": torch.bfloat16, "tie_word_embeddings": True}
    whole = tiny.make(tmp_path / "whole", "llama", **sizes)
    sharded = tiny.make(tmp_path / "sharded", "llama", shard="60KB", **sizes)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    for model in (whole, sharded):
        out = tmp_path / f"{model.name}-out"
        cut(model, out, method, calibration, compute=Compute(buffer="disk"))
        cut(model, tmp_path / f"{model.name}-ram", method, calibration)
        assert contents(out) == contents(tmp_path / f"{model.name}-ram")
        many = model is sharded and method != "minitron-depth"
        assert (len(list(out.glob("*.safetensors"))) > 1) == many or method == "minitron-depth"
        specs = Checkpoint(str(out)).specs
        assert {spec.dtype for spec in specs.values()} == {"BF16"}
        assert "lm_head.weight" not in specs
    ids = torch.arange(20)[None]
    assert tiny.logits(tmp_path / "whole-out", ids).equal(
        tiny.logits(tmp_path / "sharded-out", ids)
    )


def test_a_pruned_checkpoint_is_a_checkpoint(llama, calibration, tmp_path):
    cut(llama, tmp_path / "first", "minitron-depth", calibration)
    cut(tmp_path / "first", tmp_path / "second", "wanda", calibration)
    record = tiny.sidecar(tmp_path / "second")
    assert [step["options"]["method"] for step in record["history"]] == ["minitron-depth", "wanda"]
    assert record["history"][1]["parent"] == record["history"][0]["id"]
    assert record["tokens"]["calibration"] == 2 * 8 * 32


def test_skip_existing_and_force(llama, calibration, tmp_path):
    out = tmp_path / "out"
    made = cut(llama, out, "magnitude", calibration)
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    again = cut(llama, out, "magnitude", calibration, output=Output(skip_existing=True))
    assert again.sidecar == made.sidecar
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(PruneError) as caught:
        cut(
            llama,
            out,
            "magnitude",
            calibration,
            Amount(ratio=0.25),
            output=Output(skip_existing=True),
        )
    assert caught.value.exit_code == 5
    cut(llama, out, "magnitude", calibration, Amount(ratio=0.25), output=Output(force=True))
    assert tiny.sidecar(out)["results"]["ratio"] == 0.25
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_amounts(llama, calibration, tmp_path):
    def plan(method, amount, **options):
        out = tmp_path / "dry"
        return prune(
            str(llama), str(out), method=method, amount=amount, options=options,
            data=Data(calibration), output=Output(dry_run=True),
        ).results  # fmt: skip

    sizes = plan("flap", Amount(heads=3, ffn=50))["sizes"]
    assert (sizes["heads"], sizes["kv_heads"], sizes["ffn"]) == (3, 1, 50)
    assert plan("minitron-depth", Amount(layers=1))["sizes"]["layers"] == 1
    assert plan("minitron-width", Amount(hidden=36))["sizes"]["hidden"] == 36
    total = Arch.read(llama).total_params
    for method in ("flap", "minitron-width", "minitron-depth", "wanda-sp"):
        params = plan(
            method,
            Amount(params=0.7 * total),
            **({"bias": "drop"} if method == "flap" else {}),
        )["params"]
        assert 0.4 * total < params <= 0.7 * total
    shape = tmp_path / "arch.json"
    shape.write_text(json.dumps({"hidden": 36, "ffn": 40}))
    assert plan("minitron-width", Amount(arch=str(shape)))["sizes"]["ffn"] == 40


def test_a_plan_that_keeps_everything_changes_no_tensor(llama, tmp_path):
    plan = tmp_path / "plan.json"
    keep = {"hidden": list(range(48)), "layers": [0, 1, 2, 3], "ffn": [list(range(80))] * 4}
    plan.write_text(json.dumps({"keep": keep}))
    made = prune(str(llama), str(tmp_path / "out"), plan=str(plan))
    assert made.results["ratio"] == 0
    before, after = (
        load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("method", ["wanda", "wanda-sp", "sparsegpt"])
def test_sequential_methods_make_no_product_that_nobody_reads(method, tmp_path, monkeypatch):
    """The first pass over a layer ends before its last product; the last layer has no second."""
    made, product = [], stream.StoredLinear.forward

    def counted(linear, states):
        made.append(tuple(linear.weight.shape))
        return product(linear, states)

    monkeypatch.setattr(stream.StoredLinear, "forward", counted)
    model, depth = tiny.make(tmp_path / "m"), tiny.SIZES["num_hidden_layers"]
    data = tiny.tokens(tmp_path / "ids.safetensors")
    prune(str(model), str(tmp_path / "out"), method=method, ratio=0.3, data=data)
    hidden, ffn = tiny.SIZES["hidden_size"], tiny.SIZES["intermediate_size"]
    assert made.count((hidden, ffn)) == depth - 1
    assert made.count((ffn, hidden)) == 2 * (2 * depth - 1)  # gate and up
