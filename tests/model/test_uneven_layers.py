"""Models whose layers are not alike: what is made of them is sound, and told as it will be."""

import json

import pytest

import prunecli
import tiny
from prunecli.errors import InputError
from prunecli.measuring.check import check
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.families import registry
from prunecli.settings import Data, Output

UNEVEN = [name for name in registry.names() if len(Arch(tiny.config_of(name)).sorts) > 1]


@pytest.mark.parametrize("family", UNEVEN)
def test_what_a_method_keeps_is_sound(family, models, calibration, tmp_path):
    """Statistics, scores and plan pass `check`, and the plan is shown with its model or without."""
    model, kept = str(models(family)), tmp_path / "kept"
    arch = Arch.read(models(family))
    how = {"method": "reap", "experts": 3} if arch.experts else {
        "method": "flap", "ratio": 0.3, "options": {"bias": "drop"},
    }  # fmt: skip
    out = tmp_path / "plan.json"
    prunecli.prune(model, str(out), data=Data(calibration), plan_only=True, keep=str(kept), **how)
    files = [out, *kept.glob("*.safetensors")]
    assert len(files) > 1
    assert {path.name: faults for path in files if (faults := check(str(path), deep=True))} == {}
    axis = "experts" if arch.experts else "FFN channels"
    for paths in ([str(out)], [str(out), model]):
        grids = {grid.title: grid for grid in prunecli.figure(paths, "plan").drawing.panels}
        (shares,) = [grid for title, grid in grids.items() if "share kept" in title]
        (which,) = [grid for title, grid in grids.items() if f"which {axis} stay" in title]
        cells = dict(zip(shares.rows, shares.cells, strict=True))[axis]
        has = [arch.has("experts" if arch.experts else "ffn", i) for i in range(arch.layers)]
        assert [cell is not None for cell in cells] == has
        assert [any(row[i] is not None for row in which.cells) for i in range(arch.layers)] == has


def test_a_wide_layer_is_shown_in_full(models, calibration, tmp_path):
    """Gemma 4's last layer has twice as many FFN channels: of its own it keeps a share."""
    model, plan = str(models("gemma4")), tmp_path / "plan.json"
    prunecli.prune(model, str(plan), method="flap", ratio=0.3, options={"bias": "drop"},
                   data=Data(calibration), plan_only=True)  # fmt: skip
    keep = json.loads(plan.read_text())["results"]["keep"]["ffn"]
    panels = prunecli.figure([str(plan), model], "plan").drawing.panels
    cells = dict(zip(panels[0].rows, panels[0].cells, strict=True))["FFN channels"]
    assert cells == [
        pytest.approx(len(one) / size) for one, size in zip(keep, (80, 80, 80, 160), strict=True)
    ]
    (which,) = [grid for grid in panels if "which FFN channels" in grid.title]
    of_last = [row[3] for row in which.cells]
    assert None not in of_last and [row[0] for row in which.cells[8:]] == [None] * 8
    assert sum(of_last) * 10 == pytest.approx(len(keep[3]))


@pytest.mark.parametrize("family", UNEVEN)
def test_a_dry_run_bounds_what_layers_leave(family, models, calibration, tmp_path):
    """Which layers go is not known before scores are: it tells the least and the most."""
    arch = Arch.read(models(family))
    sizes = {arch.layer_params(i) for i in range(arch.layers)}
    for amount in ({"layers": arch.layers - 1}, {"ratio": 0.25}):
        how = {"method": "shortgpt", "data": Data(calibration), **amount}
        told = prunecli.prune(str(models(family)), "o", output=Output(dry_run=True), **how).results
        made = prunecli.prune(str(models(family)), str(tmp_path / f"{amount}"), **how).results
        assert ("range" in told) is (len(sizes) > 1)
        ends = told.get("range", {name: [told[name]] * 2 for name in ("ratio", "params")})
        assert ends["ratio"][0] - 1e-9 <= made["ratio"] <= ends["ratio"][1] + 1e-9
        assert ends["params"][0] >= made["params"] >= ends["params"][1]
        assert (told["ratio"], told["params"]) == (ends["ratio"][0], ends["params"][0])


@pytest.mark.parametrize("family", registry.names())
def test_a_model_begins_as_one_of_its_own_shape(family, models, tmp_path):
    """`init --from` a model of the same shape copies every tensor, those of experts, too."""
    model = models(family)
    (tmp_path / "c.json").write_text((model / "config.json").read_text())
    prunecli.init(str(tmp_path / "o"), config=str(tmp_path / "c.json"), warm=str(model), seed=5,
                  tokenizer="none")  # fmt: skip
    ours, theirs = Checkpoint(str(tmp_path / "o")), Checkpoint(str(model))
    assert [name for name in theirs.specs if not ours.tensor(name).equal(theirs.tensor(name))] == []


BARE = {
    "M*-*": (0, 1, 3),  # of Nemotron-H; layers without their FFN
    "M-M-": (0, 2),
}


@pytest.mark.parametrize("letters", BARE)
@pytest.mark.parametrize("method", ["flap", "minitron-width", "wanda-sp"])
def test_channels_that_no_layer_has(letters, method, calibration, tmp_path):
    model = tiny.make(tmp_path / "m", "nemotron-h", hybrid_override_pattern=letters)
    (tmp_path / "plan.json").write_text(json.dumps({"keep": {"layers": BARE[letters]}}))
    prunecli.prune(str(model), str(tmp_path / "bare"), plan=str(tmp_path / "plan.json"))
    for amount in ({"ratio": 0.3}, {"ffn": 40}):
        with pytest.raises(InputError, match=f"no layer .* has FFN channels, which '{method}'"):
            prunecli.prune(str(tmp_path / "bare"), str(tmp_path / "o"), method=method,
                           data=Data(calibration), **amount)  # fmt: skip


def test_as_many_layers_as_letters(tmp_path):
    """transformers goes by the letters alone, and never looks at the number."""
    config = tiny.config_of("nemotron-h", hybrid_override_pattern="M*-*M")
    path = tmp_path / "c.json"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match="has 5 letters, expected one for each of 4 layers"):
        prunecli.init(str(tmp_path / "o"), config=str(path), tokenizer="none")
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "num_hidden_layers"}))
    prunecli.init(str(tmp_path / "o"), config=str(path), tokenizer="none")
    assert Arch.read(tmp_path / "o").layers == 5
    assert len(tiny.stock(tmp_path / "o").model.layers) == 5


@pytest.mark.parametrize("family", ["deepseek-v3", "glm4-moe", "glm4-moe-lite", "nemotron-h-moe"])
def test_routers_that_compare_pairs(family, calibration, tmp_path):
    """The score of a group is that of its two best experts, even where there is one group."""
    model = tiny.make(tmp_path / "m", family, num_experts_per_tok=1)
    with pytest.raises(InputError, match="1: its router compares the two best; keep 2"):
        prunecli.prune(str(model), str(tmp_path / "o"), method="expert-random", experts=1)
    prunecli.prune(str(model), str(tmp_path / "o"), method="expert-random", experts=2)
    assert prunecli.evaluate(str(tmp_path / "o"), data=[Data(calibration)]).results["loss"] > 0
    config = tiny.config_of(family, num_experts_per_tok=1, n_routed_experts=1)
    with pytest.raises(InputError, match="has 1 experts: its router compares the two best"):
        Arch(config)
