"""Sheared LLaMA: gates against their formulas, masked models against cut ones, runs as a whole."""

import json
import shutil
from math import cos, exp, log, pi

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import calibrate, prune, score, train
from prunecli.data import joined
from prunecli.errors import InputError, OutputExists, PruneError, Stopped, UsageError
from prunecli.files import provenance, sidecar
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.families import registry
from prunecli.pruning import gates, mask_training, sheared, surgery
from prunecli.pruning.sizes import Sizes
from prunecli.settings import Amount, Data, Optimization, Output
from prunecli.training import schedule
from prunecli.training.domains import DomainMixture
from prunecli.training.loop import Loop, LoopSettings

IDS = torch.randint(259, (2, 24), generator=torch.Generator().manual_seed(4))
SMALL = Amount(layers=3, hidden=36, heads=3, ffn=40)
FEW = {"tokens": 12 * 4 * 32, "batch_size": 4}


def run(model, out, calibration, amount=SMALL, **settings):
    settings.setdefault("options", FEW)
    return prune(
        str(model), str(out), method="sheared-llama", amount=amount, data=Data(calibration),
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("log_alpha", "chance"), [(0.0, 0.168178), (log(100), 0.002018), (-log(100), 0.952870)]
)
def test_chance_of_a_zero_gate(log_alpha, chance):
    alpha = torch.tensor(log_alpha, dtype=torch.float64)
    assert float(gates.prob_zero(alpha)) == pytest.approx(chance, abs=5e-7)
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = gates.sample(alpha, uniform.clamp(1e-6, 1 - 1e-6))
    assert float((drawn == 0).double().mean()) == pytest.approx(chance, abs=0.003)
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1


def test_settled_gates():
    alpha = torch.tensor([[4.60517, -1.0, 4.60517, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = gates.final_masks(alpha, 2)
    assert found[0].tolist() == pytest.approx([0.99603, 0, 0.99603, 0], abs=5e-6)
    assert found[1].tolist() == [0, 0, 0.5, 0.5]  # of equal ones the lower index goes first


def random_gates(arch, seed):
    """Return gates at zero or in (0.5, 1), as many at zero in every layer."""
    draw = torch.Generator().manual_seed(seed)

    def some(*shape, keep):
        values = 0.5 + 0.5 * torch.rand(shape, generator=draw)
        gone = torch.rand(shape, generator=draw).argsort(-1)[..., keep:]
        return values.scatter(-1, gone, 0.0)

    return {
        "layers": some(arch.layers, keep=3),
        "hidden": some(arch.hidden, keep=36),
        "kv_heads": some(len(arch.with_units("heads")), arch.kv_heads, keep=1),
        "ffn": some(len(arch.with_units("ffn")), arch.ffn, keep=50),
    }


@pytest.mark.parametrize("axes", [None, "layers", "hidden", "kv_heads", "ffn"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", tiny.families())
def test_a_masked_model_is_the_cut_one(name, tied, axes, tmp_path):
    """Every norm, projection and head: gates in the forward, or folded into what is left."""
    from transformers import AutoModelForCausalLM

    flags = registry.get(name).biases
    folder = tiny.make(tmp_path / "m", name, tie_word_embeddings=tied, **dict.fromkeys(flags, True))
    parent = Checkpoint(str(folder))
    if parent.arch.experts:
        return  # the method is refused, as test_methods.py finds
    fixed = parent.arch.family.fixed
    kept = {"heads": "kv_heads"}.get
    values = random_gates(parent.arch, 1)
    values = {axis: z for axis, z in values.items() if axis not in {kept(a, a) for a in fixed}}
    if axes is not None and axes not in values:
        return  # no cut of it is exact, and test_families.py finds it refused
    if axes is not None:
        values = {axes: values[axes]}
    plan = gates.plan_of(values, parent.arch)
    child = surgery.PrunedModel(gates.MergedMasks(parent, values), plan, plan.child(parent.arch))
    out = tmp_path / "cut"
    out.mkdir()
    save_file(
        {key: child.tensor(key).contiguous() for key in child.specs},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    (out / "config.json").write_text(json.dumps(child.arch.config))
    masked = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    gates.attach(masked, parent.arch, lambda: values)
    with torch.no_grad():
        expected = masked(IDS, use_cache=False).logits
    # the rounding of float32 alone, by a pass in float64, is 2e-4 on the worst of these models
    assert torch.allclose(tiny.logits(out, IDS), expected, atol=5e-4, rtol=1e-4)


def test_drawn_gates():
    """Against the formulas written out, one number at a time."""
    draw = torch.Generator().manual_seed(5)
    alpha = 6 * torch.randn(500, generator=draw, dtype=torch.float64)
    uniform = torch.rand(500, generator=draw, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    naive = []
    for a, u in zip(alpha.tolist(), uniform.tolist(), strict=True):
        soft = 1 / (1 + exp(-(log(u) - log(1 - u) + a) / (2 / 3)))
        naive.append(min(1.0, max(0.0, soft * 1.2 - 0.1)))
    assert gates.sample(alpha, uniform).tolist() == pytest.approx(naive, abs=1e-12)
    assert {0.0, 1.0} < set(naive)


@pytest.mark.parametrize("steps", [40, 300])
def test_the_official_rate_is_one_step_behind(steps):
    """Composer's cosine with warm-up, t = 0 at the first step; ours has no step without a rate."""
    warm = round(0.1 * steps)
    for step in range(steps):
        late = schedule.delayed_cosine_lr(step, steps, 2.0, 0.1, 0.1)
        share = step / warm
        if step >= warm:
            share = 0.1 + 0.9 * (1 + cos(pi * (step - warm) / (steps - warm))) / 2
        assert late == pytest.approx(2.0 * share, abs=1e-12)
    ahead = [schedule.cosine_lr(step, steps, 2.0, 0.1, 0.1) for step in range(warm)]
    behind = [schedule.delayed_cosine_lr(step, steps, 2.0, 0.1, 0.1) for step in range(1, warm + 1)]
    assert ahead == pytest.approx(behind)


def soft_gates(arch):
    """Return gates of all axes in (0.5, 1), none at zero."""
    draw = torch.Generator().manual_seed(6)
    shapes = {
        "layers": (arch.layers,),
        "hidden": (arch.hidden,),
        "kv_heads": (len(arch.with_units("heads")), arch.kv_heads),
        "ffn": (len(arch.with_units("ffn")), arch.ffn),
    }
    return {axis: 0.5 + 0.5 * torch.rand(shape, generator=draw) for axis, shape in shapes.items()}


@pytest.mark.parametrize("official", [False, True])
def test_the_official_embedding_is_not_gated_while_it_learns(llama, official):
    """Masked, it is the model whose other weights have the gates folded in."""
    from transformers import AutoModelForCausalLM

    from prunecli.training import objective as models
    from prunecli.training.distributed import Ranks

    parent = Checkpoint(str(llama))
    values = soft_gates(parent.arch)
    objective = models.assemble(
        parent, None, Ranks(0, 1, torch.device("cpu"), None),
        lambda model, _: sheared.ShearedObjective(
            model, parent.arch, sheared.HardConcreteMasks(parent.arch, Sizes(3, 36, 1, 40), 0),
            torch.float32, 1.0, official,
        ),
    )  # fmt: skip
    objective.values = values
    expected = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    folded = gates.MergedMasks(parent, values)
    with torch.no_grad():
        for name, weight in expected.named_parameters():
            if not (official and name == "model.embed_tokens.weight"):
                weight.copy_(folded.tensor(name))
        found = objective.model.eval()(IDS, use_cache=False).logits
        assert torch.allclose(found, expected(IDS).logits, atol=1e-3, rtol=1e-4)
    objective.release()


@pytest.mark.parametrize("tied", [False, True])
def test_the_official_head_is_multiplied_too(tied, tmp_path):
    """Norm and head both have the hidden gates, which no masked forward has."""
    parent = Checkpoint(str(tiny.make(tmp_path / "m", tie_word_embeddings=tied)))
    values = soft_gates(parent.arch)
    ours, theirs = (gates.MergedMasks(parent, values, official) for official in (False, True))
    hidden, norm, table = values["hidden"], "model.norm.weight", "model.embed_tokens.weight"
    assert theirs.tensor(norm).equal(parent.tensor(norm) * hidden)
    assert theirs.tensor(table).equal(parent.tensor(table) * hidden)
    assert ours.tensor(table).equal(theirs.tensor(table))
    if tied:
        assert ours.tensor(norm).equal(parent.tensor(norm))
    else:
        head = parent.tensor("lm_head.weight")
        assert theirs.tensor("lm_head.weight").equal(head * hidden)
        assert ours.tensor("lm_head.weight").equal(head)
    name = "model.layers.1.self_attn.o_proj.weight"
    assert ours.tensor(name).equal(theirs.tensor(name))


def gradients(llama, calibration, official, clip):
    """Return the gradients that reach the optimiser in step 3: of weights, and of what masks are.

    Multipliers are not at zero, so that the constraint has a part in those of the masks.
    """
    from prunecli.training import objective as models
    from prunecli.training.distributed import Ranks
    from prunecli.training.fixed_masks import Masks

    parent, ranks = Checkpoint(str(llama)), Ranks(0, 1, torch.device("cpu"), None)
    masks = sheared.HardConcreteMasks(parent.arch, Sizes(3, 36, 1, 40), 0)
    with torch.no_grad():
        for two in masks.multipliers.values():
            two.fill_(3.0)
    objective = models.assemble(
        parent, None, ranks,
        lambda model, _: sheared.ShearedObjective(
            model, parent.arch, masks, torch.float32, 1.0, official
        ),
    )  # fmt: skip
    ids = load_file(calibration.rsplit(":", 1)[0])["ids"]
    loop = Loop(
        objective, joined.WindowRows(ids), LoopSettings(10, 4, 4, 1e-3, Optimization(clip=clip)),
        Masks(objective.model, ()), ranks,
    )  # fmt: skip
    found = []

    def take():
        for module in (objective.model, masks):
            grads = [p.grad.double().flatten() for p in module.parameters() if p.grad is not None]
            found.append(torch.cat(grads))

    loop.optimizer.step = take
    norm = loop.step(3).grad_norm
    objective.release()
    return *found, norm


@pytest.mark.parametrize("official", [False, True])
def test_what_is_clipped_together(llama, calibration, official):
    """Weights alone; in the official code log alpha and multipliers by the same norm."""
    weights, masks, _ = gradients(llama, calibration, official, 1e9)
    clipped_weights, clipped_masks, told = gradients(llama, calibration, official, 1.0)
    square = sum(x * x for x in weights.tolist())
    if official:
        square += sum(x * x for x in masks.tolist())
    norm = square**0.5
    assert norm > 1 and float(masks.norm()) > 0.01 * norm
    assert told == pytest.approx(norm, rel=1e-4)
    assert torch.allclose(clipped_weights, weights / norm, rtol=1e-3, atol=1e-7)
    assert torch.allclose(clipped_masks, masks / norm if official else masks, rtol=1e-3, atol=1e-7)


def test_official_quirks_are_another_run(llama, calibration, tmp_path):
    """Recorded, and in what comes out."""
    made = run(llama, tmp_path / "a", calibration, compat=True)
    assert made.sidecar["options"]["compat"] == "official"
    run(llama, tmp_path / "b", calibration)
    assert not tiny.same(tmp_path / "a", tmp_path / "b")


def test_the_official_recipe_is_the_published_run(tmp_path):
    """3200 steps of 32 x 4096 whatever the text: everything in it is counted in steps."""
    model = tiny.make(tmp_path / "m", max_position_embeddings=4096)
    rows = tiny.tokens(tmp_path / "t.safetensors", rows=3, length=4096)
    short = tiny.tokens(tmp_path / "s.safetensors", rows=3, length=2048)
    told = run(
        model, tmp_path / "o", rows, options={}, recipe="official", output=Output(dry_run=True)
    ).results
    assert (told["steps"], told["tokens"]) == (3200, 3200 * 32 * 4096)
    with pytest.raises(UsageError, match="or the --recipe that sets it"):
        run(model, tmp_path / "o", short, options={}, recipe="official")


def test_the_constraint(llama):
    """Against the formula written out, two multipliers per axis, a mean over the layers."""
    arch = Arch.read(llama)
    sizes = Sizes(arch.layers, 30, 1, 40)
    masks = sheared.HardConcreteMasks(arch, sizes, seed=3)
    assert masks.keep == {"hidden": 30, "kv_heads": 1, "ffn": 40}
    with torch.no_grad():
        for number, two in enumerate(masks.multipliers.values()):
            two.copy_(torch.tensor([0.5 + number, -0.25]))
        for alpha in masks.log_alpha.values():
            alpha.copy_(torch.randn(alpha.shape, generator=torch.Generator().manual_seed(1)))
    naive = 0.0
    for number, (axis, alpha) in enumerate(masks.log_alpha.items()):
        rows = alpha.view(-1, alpha.shape[-1])
        keep = {"hidden": 30 / 48, "kv_heads": 1 / 2, "ffn": 40 / 80}[axis]
        terms = []
        for row in rows.tolist():
            zero = [1 / (1 + torch.e ** (1.598597 + a)) for a in row]
            off = sum(zero) / len(zero) - 0.4 * (1 - keep)
            terms.append((0.5 + number) * off - 0.25 * off**2)
        naive += sum(terms) / len(terms)
    assert float(masks.penalty(0.4).detach()) == pytest.approx(naive, rel=1e-5)


def test_a_run(llama, calibration, tmp_path):
    """The shape that was asked for, the loss that stock code finds; every trained token told."""
    options = {"tokens": 200 * 8 * 32, "batch_size": 8, "lr": 1e-3}
    made = run(llama, tmp_path / "o", calibration, options=options)
    sizes = made.results["sizes"]
    assert (sizes["layers"], sizes["hidden"], sizes["heads"], sizes["ffn"]) == (3, 36, 3, 40)
    told = made.results["learned"]
    for axis, target in told["target_sparsity"].items():
        assert told["expected_sparsity"][axis] == pytest.approx(target, abs=0.05)
    losses = told["loss"]
    assert len(losses["parent_with_random_masks"]) == 3
    assert told["mask_loss"] == pytest.approx(sum(told["curve"]["loss"][-10:]) / 10)
    ids = load_file(calibration.rsplit(":", 1)[0])["ids"][: mask_training.EVAL_WINDOWS].long()
    logits = tiny.logits(tmp_path / "o", ids)[:, :-1].flatten(0, 1)
    exact = float(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
    assert losses["learned"] == pytest.approx(exact, rel=1e-5)
    record = sidecar.read(tmp_path / "o")
    assert [entry.count for entry in record.tokens.trained] == [options["tokens"]]
    assert provenance.integrity_error(record) == ""
    assert not (tmp_path / "o.partial").exists()


def planted(folder, family):
    """Make a model that hardly needs half of its units, and tokens that it would write itself.

    Returns the model, D, and the FFN channels and the KV group of each layer that it needs.
    """
    from transformers import AutoModelForCausalLM

    model = tiny.make(folder / "m", family)
    tensors, draw = load_file(model / "model.safetensors"), torch.Generator().manual_seed(3)
    needed = []
    for i in range(4):
        channels = torch.randperm(80, generator=draw)[:40].tolist()
        group = int(torch.randint(2, (1,), generator=draw))
        needed.append((set(channels), group))
        rest, other = list(set(range(80)) - set(channels)), 24 * (1 - group)
        tensors[f"model.layers.{i}.mlp.down_proj.weight"][:, rest] *= 0.01
        tensors[f"model.layers.{i}.self_attn.o_proj.weight"][:, other : other + 24] *= 0.01
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    stock = AutoModelForCausalLM.from_pretrained(model).eval()
    ids = torch.randint(259, (64, 1), generator=draw)
    with torch.no_grad():
        for _ in range(31):
            chances = stock(ids).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=draw)], 1)
    save_file({"ids": ids.int()}, folder / "t.safetensors")
    return model, f"{folder / 't.safetensors'}:ids", needed


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2"])
@pytest.mark.parametrize("frozen", [False, True])
def test_masks_find_what_is_needed(family, frozen, tmp_path):
    """Not by a score: gates that go through the loss leave the units that the model needs."""
    model, data, needed = planted(tmp_path, family)
    options = {"tokens": 150 * 8 * 32, "batch_size": 8, "freeze_weights": frozen}
    made = run(
        model,
        tmp_path / "p.json",
        data,
        Amount(heads=3, ffn=40),
        options=options,
        plan_only=True,
    )
    for i, (channels, group) in enumerate(needed):
        # weights that learn along can give what another group gave
        assert not frozen or made.results["keep"]["kv_heads"][i] == (group,)
        # of 40 out of 80 chance finds 20, give or take 2.2
        assert len(channels & set(made.results["keep"]["ffn"][i])) >= 20 + 4 * 2.2
    losses = made.results["learned"]["loss"]
    assert losses["learned"] + 1 < min(losses["parent_with_random_masks"])
    assert losses["parent_with_learned_masks"] + 1 < min(losses["parent_with_random_masks"])


def test_the_id_of_padding_is_trained(llama, calibration, tmp_path):
    """Windows have no padding, so what config.json calls so changes nothing."""
    model, path = tmp_path / "m", calibration.removesuffix(":ids")
    pad = int(load_file(path)["ids"][0, 0])
    shutil.copytree(llama, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
    run(model, tmp_path / "pad", calibration)
    run(llama, tmp_path / "none", calibration)
    assert tiny.same(tmp_path / "pad", tmp_path / "none")


def test_frozen_weights_are_the_parents(llama, calibration, tmp_path):
    made = run(
        llama,
        tmp_path / "o",
        calibration,
        Amount(ffn=40),
        options={**FEW, "freeze_weights": True},
    )
    assert made.results["learned"]["variant"] == "masks alone, weights frozen"
    assert made.sidecar["tokens"]["trained"] == []
    # a variant is none of the method's runs, in tables neither
    assert made.results["method"] == "sheared-llama-frozen"
    name = "model.layers.1.self_attn.q_proj.weight"
    found, parent = (
        load_file(folder / "model.safetensors")[name] for folder in (tmp_path / "o", llama)
    )
    assert found.equal(parent)


def test_stopped_and_resumed_is_the_same(llama, calibration, tmp_path, monkeypatch):
    run(llama, tmp_path / "whole", calibration)
    real = Loop.step

    def failing(self, step, stop=False):
        if step == 7:
            raise KeyboardInterrupt
        return real(self, step, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            run(llama, tmp_path / "cut", calibration)
    assert (tmp_path / "cut.partial").is_dir() and not (tmp_path / "cut").exists()
    run(llama, tmp_path / "cut", calibration)
    assert tiny.same(tmp_path / "whole", tmp_path / "cut")


def test_asked_to_stop_it_saves_first(llama, calibration, tmp_path):
    with pytest.raises(Stopped, match="stopped after step 5 of 12"):
        run(llama, tmp_path / "cut", calibration, stop=tiny.stop_after(5))
    run(llama, tmp_path / "cut", calibration)
    run(llama, tmp_path / "whole", calibration)
    assert tiny.same(tmp_path / "whole", tmp_path / "cut")


def test_asked_to_stop_at_the_end_it_keeps_what_was_learned(llama, calibration, tmp_path):
    # twelve steps, two of the losses that are reported
    with pytest.raises(Stopped, match="with all masks trained"):
        run(llama, tmp_path / "cut", calibration, stop=tiny.stop_after(15))
    run(llama, tmp_path / "cut", calibration)
    run(llama, tmp_path / "whole", calibration)
    assert tiny.same(tmp_path / "whole", tmp_path / "cut")


def test_a_frozen_state_has_no_weights(llama, calibration, tmp_path):
    frozen = {**FEW, "freeze_weights": True}
    with pytest.raises(Stopped):
        run(llama, tmp_path / "o", calibration, options=frozen, stop=lambda: True)
    state = sum(f.stat().st_size for f in (tmp_path / "o.partial").rglob("*") if f.is_file())
    assert state < (llama / "model.safetensors").stat().st_size / 2
    run(llama, tmp_path / "o", calibration, options=frozen)
    run(llama, tmp_path / "whole", calibration, options=frozen)
    assert tiny.same(tmp_path / "whole", tmp_path / "o")


def test_the_state_of_another_run(llama, calibration, tmp_path):
    with pytest.raises(Stopped):
        run(llama, tmp_path / "o", calibration, stop=lambda: True)
    other = {**FEW, "lr": 2e-4}
    with pytest.raises(OutputExists, match="--restart"):
        run(llama, tmp_path / "o", calibration, options=other)
    run(llama, tmp_path / "o", calibration, options=other, restart=True)
    # rows have no seed, their order has, and so have gates
    with pytest.raises(Stopped):
        run(llama, tmp_path / "s", calibration, stop=lambda: True)
    with pytest.raises(OutputExists, match="--restart"):
        prune(
            str(llama), str(tmp_path / "s"), method="sheared-llama", amount=SMALL, options=FEW,
            data=Data(calibration, seed=1),
        )  # fmt: skip
    with pytest.raises(UsageError, match="keeps nothing to resume"):
        prune(str(llama), str(tmp_path / "x"), method="magnitude", amount=SMALL, restart=True)


def naive_update(weights, losses, reference):
    """One update, each number by itself."""
    raised = [
        w * 2.718281828459045 ** (a - b) for w, a, b in zip(weights, losses, reference, strict=True)
    ]
    mixed = [(1 - 1e-4) * r / sum(raised) + 1e-4 / len(raised) for r in raised]
    return [m / sum(mixed) for m in mixed]


def test_evaluation_has_no_noise(llama, calibration):
    """As many gates at zero as are expected to be, whatever the step has drawn."""
    from prunecli.training import objective as models
    from prunecli.training.distributed import Ranks

    arch = Arch.read(llama)
    masks = sheared.HardConcreteMasks(arch, Sizes(4, 36, 1, 40), seed=0)
    with torch.no_grad():
        masks.log_alpha["ffn"][:, :20] = -100.0
    ranks = Ranks(0, 1, torch.device("cpu"), None)
    objective = models.assemble(
        Checkpoint(str(llama)), None, ranks,
        lambda model, _: sheared.ShearedObjective(model, arch, masks, torch.float32, 1.0),
    )  # fmt: skip
    objective.model.eval()
    found = []
    for step in (0, 1):
        objective.on_step_begin(step, 10)
        with torch.no_grad():
            found.append([float(part) for part in objective(IDS)])
    assert found[0] == found[1] and found[0][0] == found[0][1]
    gone = (objective.values["ffn"] == 0).sum(1)
    # 20 channels whose chance is 0.9529, 60 of 0.002
    assert gone.tolist() == [19] * 4
    assert float(objective.values["hidden"].max()) == pytest.approx(0.99603, abs=5e-6)


def test_what_was_gated_can_be_forgotten(llama):
    """Gates hold the model and the model its gates: taken off, both go without a collector."""
    import gc
    import weakref

    from prunecli.training import objective as models
    from prunecli.training.distributed import Ranks

    arch = Arch.read(llama)
    masks = sheared.HardConcreteMasks(arch, Sizes(4, 36, 1, 40), seed=0)
    objective = models.assemble(
        Checkpoint(str(llama)), None, Ranks(0, 1, torch.device("cpu"), None),
        lambda model, _: sheared.ShearedObjective(model, arch, masks, torch.float32, 1.0),
    )  # fmt: skip
    gc.disable()
    try:
        weight = weakref.ref(objective.model.model.layers[0].mlp.down_proj.weight)
        objective.release()
        del objective
        assert weight() is None
    finally:
        gc.enable()


def test_mixtures_follow_the_losses():
    mixture = DomainMixture([10, 30, 5], seed=1)
    losses, reference = torch.tensor([3.0, 2.0, 5.0]), torch.tensor([2.0, 2.5, 3.0])
    expected = [10 / 45, 30 / 45, 5 / 45]  # natural shares
    assert mixture.weights.tolist() == pytest.approx(expected)
    for _ in range(3):
        mixture.update(losses.double(), reference.double())
        expected = naive_update(expected, losses.tolist(), reference.tolist())
        assert mixture.weights.tolist() == pytest.approx(expected, rel=1e-9)
    mixture = DomainMixture([10, 30, 5], 1, [2.0, 5.0, 3.0])
    assert mixture.weights.tolist() == pytest.approx([0.2, 0.5, 0.3])
    drawn = [row for step in range(400) for row in mixture.batch(step, 20, slice(None))]
    for part, weight in zip(mixture.parts, (0.2, 0.5, 0.3), strict=True):
        inside = [row for row in drawn if part.start <= row < part.stop]
        assert len(inside) / len(drawn) == pytest.approx(weight, abs=0.03)
    whole = mixture.batch(400, 8, slice(None))
    assert mixture.batch(400, 8, slice(0, 4)) + mixture.batch(400, 8, slice(4, 8)) == whole


def test_a_domain_is_read_once_before_it_is_read_again():
    """Each pass over a domain has every row once, in an order of its own."""
    mixture = DomainMixture([7, 50, 3], seed=5)
    drawn = [row for step in range(30) for row in mixture.batch(step, 8, slice(None))]
    for part in mixture.parts:
        read = [row for row in drawn if part.start <= row < part.stop]
        size = part.stop - part.start
        passes = [read[start : start + size] for start in range(0, len(read) - size + 1, size)]
        assert passes and all(sorted(one) == [*range(part.start, part.stop)] for one in passes)
        assert len(set(read[len(passes) * size :])) == len(read) % size
    first = [row for row in drawn if 7 <= row < 57]
    assert first[:50] != sorted(first[:50]) and first[:50] != first[50:100]


def test_what_was_read_is_part_of_the_state():
    """Resumed after any step, or at a step that came to nothing, a mixture goes on as it was."""
    whole = DomainMixture([7, 50], seed=2)
    expected = [whole.batch(step, 4, slice(None)) for step in range(20)]
    cut = DomainMixture([7, 50], seed=2)
    for step in range(20):
        assert cut.batch(step, 4, slice(None)) == expected[step]
        resumed = DomainMixture([7, 50], seed=2)
        for name, tensor in resumed.state().items():
            tensor.copy_(cut.state()[name])
        assert resumed.batch(step, 4, slice(2, 4)) == expected[step][2:]
        cut = resumed


def test_domains_are_loaded_by_loss(llama, calibration, tmp_path, monkeypatch):
    """Stopped and resumed too: weights of domains are part of the state."""
    other = tiny.tokens(tmp_path / "other.safetensors", rows=6, seed=11)
    options = {**FEW, "domains": other, "domain_every": 2}
    made = run(llama, tmp_path / "whole", calibration, options=options)
    weights = made.results["learned"]["domain_weights"]
    assert len(weights) == 2 and sum(weights) == pytest.approx(1) and weights[0] != weights[1]
    record = sidecar.read(tmp_path / "whole")
    assert provenance.integrity_error(record) == ""
    assert sum(entry.role == "calibration" for entry in record.inputs) == 2
    told = record.dump()
    assert told["options"]["dtype"] == "float32" and told["options"]["seed"] == 0
    del told["run"]
    assert str(tmp_path) not in json.dumps(told)
    real = Loop.step

    def failing(self, step, stop=False):
        if step == 9:
            raise KeyboardInterrupt
        return real(self, step, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", failing)
        with pytest.raises(KeyboardInterrupt):
            run(llama, tmp_path / "cut", calibration, options=options)
    again = run(llama, tmp_path / "cut", calibration, options=options)
    assert again.results == made.results


def test_losses_of_domains_are_those_of_windows_apart(llama, calibration, tmp_path, monkeypatch):
    """The last tenth of each domain is looked at, recorded, and never learned on."""
    other = tiny.tokens(tmp_path / "other.safetensors", rows=30, seed=11)
    ids = [load_file(data.rsplit(":", 1)[0])["ids"].long() for data in (calibration, other)]
    looked, learned = [], []
    evaluate, read = Loop.evaluate, joined.ConcatRows.read

    def evaluated(self, rows):
        looked.append(rows)
        return evaluate(self, rows)

    def was_read(self, indices):
        found = read(self, indices)
        learned.extend(found)
        return found

    monkeypatch.setattr(Loop, "evaluate", evaluated)
    monkeypatch.setattr(joined.ConcatRows, "read", was_read)
    options = {"tokens": 40 * 4 * 32, "batch_size": 4, "domains": other, "domain_every": 40}
    made = run(llama, tmp_path / "o", calibration, options=options)
    assert [rows.tolist() for rows in looked] == [ids[0][7:].tolist(), ids[1][27:].tolist()]
    everything = {tuple(row.tolist()) for row in learned}
    assert everything == {tuple(row) for row in [*ids[0][:7].tolist(), *ids[1][:27].tolist()]}
    inputs = made.sidecar["inputs"]
    ranges = {(e["role"], *e["range"]) for e in inputs if e["role"] != "model"}
    assert ranges == {
        ("calibration", 0, 7), ("calibration", 0, 27), ("rows", 0, 34),
        ("evaluation", 7, 8), ("evaluation", 27, 30),
    }  # fmt: skip


def test_shares_to_begin_with(llama, calibration, tmp_path):
    """Those of the rows that are learned on, or as given: one number for each D."""
    other = tiny.tokens(tmp_path / "other.safetensors", rows=30, seed=11)
    options = {**FEW, "domains": other}  # twelve steps: none looks at losses
    made = run(llama, tmp_path / "a", calibration, options=options)
    assert made.results["learned"]["domain_weights"] == pytest.approx([7 / 34, 27 / 34])
    given = {**options, "domain_weights": "0.67,0.33"}
    made = run(llama, tmp_path / "b", calibration, options=given)
    assert made.results["learned"]["domain_weights"] == pytest.approx([0.67, 0.33])
    for wrong in ("1", "1,2,3", "1,-1", "1,x", "1,nan", "0,1"):
        with pytest.raises(UsageError, match="expected 2 numbers above 0"):
            run(llama, tmp_path / "c", calibration, options={**options, "domain_weights": wrong})
    one = tiny.tokens(tmp_path / "one.safetensors", rows=1, seed=12)
    with pytest.raises(InputError, match="has one window, and needs another for its loss"):
        run(llama, tmp_path / "c", calibration, options={**FEW, "domains": one})


def test_rows_are_read_as_they_are_needed(llama, calibration, tmp_path):
    """A range of rows is what was trained on; evaluating on them is refused, beside them is not."""
    from prunecli import evaluate

    made = run(llama, tmp_path / "o", f"{calibration}:2:7")
    (trained,) = made.sidecar["tokens"]["trained"]
    assert trained["range"] == [2, 7] and trained["count"] == 12 * 4 * 32
    assert made.sidecar["tokens"]["calibration"] == 0  # they are counted as trained on
    entry = next(entry for entry in made.sidecar["inputs"] if entry["role"] == "calibration")
    assert entry["windows"] == [] and entry["range"] == [2, 7]
    with pytest.raises(InputError, match="2 of 3 evaluation windows were"):
        evaluate(str(tmp_path / "o"), data=[Data(f"{calibration}:5:8")])
    evaluate(str(tmp_path / "o"), data=[Data(f"{calibration}:0:2")])
    frozen = {**FEW, "freeze_weights": True}
    run(llama, tmp_path / "f", f"{calibration}:2:7", options=frozen)
    with pytest.raises(InputError, match="2 of 3 evaluation windows were calibrated"):
        evaluate(str(tmp_path / "f"), data=[Data(f"{calibration}:5:8")])


def test_only_what_is_read_is_recorded(llama, calibration, tmp_path):
    """A short run on a long D leaves the rest for evaluation."""
    from prunecli import evaluate

    made = run(llama, tmp_path / "o", calibration, options={"tokens": 3 * 32, "batch_size": 1})
    (trained,) = made.sidecar["tokens"]["trained"]
    assert trained["range"] == [0, 3]
    evaluate(str(tmp_path / "o"), data=[Data(f"{calibration}:3:8")])
    with pytest.raises(InputError, match="1 of 6 evaluation windows"):
        evaluate(str(tmp_path / "o"), data=[Data(f"{calibration}:2:8")])


def test_domains_of_unequal_lengths(llama, calibration, tmp_path):
    other = tiny.tokens(tmp_path / "other.safetensors", length=16)
    with pytest.raises(InputError, match="unequal lengths"):
        run(llama, tmp_path / "o", calibration, options={**FEW, "domains": other})


def test_a_dry_run_tells_what_a_run_takes(llama, calibration, tmp_path):
    told = [
        run(
            llama, tmp_path / "o", calibration, output=Output(dry_run=True),
            options={**FEW, "freeze_weights": frozen},
        ).results
        for frozen in (False, True)
    ]  # fmt: skip
    params = Arch.read(llama).total_params
    assert [entry["steps"] for entry in told] == [12, 12]
    assert told[0]["tokens"] == 12 * 4 * 32
    assert [entry["state_bytes"] for entry in told] == [16 * params, 4 * params]
    assert list(tmp_path.iterdir()) == []


def test_a_ratio_means_flaps_shape(llama, calibration, tmp_path):
    found = [
        prune(
            str(llama), str(tmp_path / name), method=name, amount=Amount(ratio=0.5),
            data=Data(calibration), output=Output(dry_run=True),
            options={"bias": "drop"} if name == "flap" else {},
        ).results["sizes"]
        for name in ("flap", "sheared-llama")
    ]  # fmt: skip
    assert found[0] == found[1]


def test_a_shape_that_changes_nothing(llama, calibration, tmp_path):
    with pytest.raises(InputError, match="--ffn 80: the model has this size already"):
        run(llama, tmp_path / "o", calibration, Amount(ffn=80))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"batch_size": 0}, UsageError, "expected a number above 0"),
        ({"lr": -1.0}, UsageError, "expected a number above 0"),
        ({"tokens": float("nan")}, UsageError, "expected a number above 0"),
        ({"tokens": 10.0}, InputError, "less than one step"),
    ],
)
def test_bad_options(llama, calibration, tmp_path, options, kind, message):
    with pytest.raises(kind, match=message):
        run(llama, tmp_path / "o", calibration, options=options)


def test_the_plan_is_kept(llama, calibration, tmp_path):
    """The parent's own weights, cut by the masks that were learned."""
    made = run(llama, tmp_path / "o", calibration, keep=str(tmp_path / "k"))
    assert [path.name for path in (tmp_path / "k").iterdir()] == ["plan.json"]
    cut = prune(str(llama), str(tmp_path / "c"), plan=str(tmp_path / "k" / "plan.json"))
    assert cut.results["kept"] == made.results["kept"]
    assert cut.sidecar["tokens"]["trained"] == []


def test_there_are_no_scores_to_keep(llama, calibration, tmp_path):
    with pytest.raises(UsageError, match="reads no scores and no plan"):
        run(llama, tmp_path / "o", calibration, stats=str(tmp_path / "s.safetensors"))
    with pytest.raises(UsageError, match="trains its masks inside prune"):
        score(str(llama), str(tmp_path / "c.safetensors"), method="sheared-llama")
    with pytest.raises(UsageError, match="reads no statistics"):
        calibrate(str(llama), str(tmp_path / "s.safetensors"), methods=["sheared-llama"])


def test_a_domain_given_twice(llama, calibration, tmp_path):
    with pytest.raises(InputError, match="have the same text"):
        run(llama, tmp_path / "o", calibration, options={**FEW, "domains": calibration})
    with pytest.raises(InputError, match="have the same text"):
        run(llama, tmp_path / "o", f"{calibration}:0:5", options={**FEW, "domains": calibration})


def test_rows_of_domains_are_known_to_be_trained_on(llama, calibration, tmp_path):
    """Two parts of one set are two domains; others of them are another training."""
    parts = [f"{calibration}:0:3", f"{calibration}:3:6", f"{calibration}:5:8"]
    seen = []
    for number, other in enumerate(parts[1:]):
        out = tmp_path / f"o{number}"
        made = run(llama, out, parts[0], options={**FEW, "domains": other})
        seen.append(made.sidecar["tokens"]["trained"][0]["rows"])
    assert seen[0] != seen[1]
    settings = {"data": f"{calibration}:1:8", "steps": 1, "batch_size": 1}
    with pytest.raises(PruneError, match="rows were trained on by an ancestor"):
        train(str(tmp_path / "o0"), str(tmp_path / "t"), **settings)
    train(str(tmp_path / "o0"), str(tmp_path / "t"), **settings | {"data": f"{calibration}:6:8"})


def test_a_loss_that_is_no_number(llama, calibration, tmp_path):
    with pytest.raises(PruneError, match=r"loss of step .* is nan.*lower learning rate"):
        run(llama, tmp_path / "o", calibration, options={**FEW, "lr": 1e30})
    assert not (tmp_path / "o").exists()
