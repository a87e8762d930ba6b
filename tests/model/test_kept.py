"""Figure `plan`: what plans and pruned checkpoints keep, counted again from their weights."""

import json

import pytest
from safetensors.torch import load_file

import prunecli
from prunecli.errors import InputError, UsageError

KEEP = {
    "layers": [0, 1, 3],
    "hidden": list(range(0, 48, 2)),
    "kv_heads": [[0, 1], [1], [0]],
    "ffn": [list(range(80)), list(range(40)), list(range(70, 80))],
}


def shown(*paths):
    found = prunecli.figure([str(path) for path in paths], "plan")
    return found, {grid.title.partition(": ")[2]: grid for grid in found.drawing.panels}


def test_a_plan_by_hand(llama, tmp_path):
    plan = tmp_path / "mine.json"
    plan.write_text(json.dumps({"keep": KEEP}))
    found, grids = shown(plan, llama)
    grid = grids["share kept by layer"]
    cells = dict(zip(grid.rows, grid.cells, strict=True))
    assert grid.columns == ["0", "1", "2", "3"]
    assert cells["hidden"] == [0.5, 0.5, None, 0.5]
    assert cells["KV heads"] == [1.0, 0.5, None, 0.5]
    assert cells["FFN channels"] == [1.0, 0.5, None, 0.125]
    # of 2 x 48 x 8 (6 + 2) + 3 x 48 x 80: half the width, and of that 3 query and 1 KV heads
    whole, half = 2 * 48 * 8 * 8 + 3 * 48 * 80, 2 * 24 * 8 * 4
    wanted = [0.5, (half + 3 * 24 * 40) / whole, None, (half + 3 * 24 * 10) / whole]
    assert cells["block weights"] == [w if w is None else pytest.approx(w) for w in wanted]
    assert found.title.startswith("mine keeps 3 of 4 layers and 13% (layer 3) to 50% (layer 0)")
    which = grids["which KV heads stay"]
    assert which.cells == [[1.0, 0.0, None, 1.0], [1.0, 1.0, None, 0.0]]
    channels = grids["which FFN channels stay"]
    assert channels.rows[0] == "0-4" and len(channels.rows) == 16
    assert [row[3] for row in channels.cells] == [0.0] * 14 + [1.0] * 2
    # alone, it is of the highest index that it names
    _, alone = shown(plan)
    (title,) = [title for title in alone if title.startswith("share kept by layer")]
    assert "highest index" in title and "block weights" not in alone[title].rows
    assert max(map(len, found.text(80).splitlines())) <= 80


def test_checkpoints(llama, tmp_path):
    """Each cell is a count of the stored weights, over those of the dense model."""
    for name, words in {
        "sparse": {"method": "magnitude", "ratio": 0.5},
        "narrow": {"method": "magnitude", "sparsity": "2:4"},
    }.items():
        prunecli.prune(llama, tmp_path / name, **words)
        tensors = load_file(tmp_path / name / "model.safetensors")
        found, grids = shown(tmp_path / name, llama)
        (grid,) = grids.values()
        for row, cells in zip(grid.rows[1:], grid.cells[1:], strict=True):
            for i, cell in enumerate(cells):
                part = "mlp" if row in ("gate_proj", "up_proj", "down_proj") else "self_attn"
                weights = tensors[f"model.layers.{i}.{part}.{row}.weight"]
                assert cell == pytest.approx(float((weights != 0).double().mean()))
        assert f"{name} keeps" in found.title
    made = shown(tmp_path)[1]  # a folder of both
    assert len(made) == 1 and len(shown(tmp_path)[0].drawing.panels) == 2
    assert "of the stored matrix" in next(iter(made))


def test_removed_layers(llama, calibration, tmp_path):
    prunecli.prune(llama, tmp_path / "cut", method="shortgpt", layers=2, data=calibration)
    record = json.loads((tmp_path / "cut" / "prunecli.json").read_text())
    removed = record["results"]["removed_layers"]
    _, grids = shown(tmp_path / "cut", llama)
    (grid,) = grids.values()
    for row in grid.cells:
        assert [i for i, cell in enumerate(row) if cell is None] == removed
        assert {cell for cell in row if cell is not None} == {1.0}
    # a sidecar that says what cannot be is not believed
    for lie in ([0] * 3, [10**9, 1], "all", [[0], [1]]):
        record["results"]["removed_layers"] = lie
        (tmp_path / "cut" / "prunecli.json").write_text(json.dumps(record))
        _, grids = shown(tmp_path / "cut")
        (grid,) = grids.values()
        assert grid.columns == ["0", "1"] and None not in grid.cells[0]


def test_what_is_no_plan(llama, tmp_path):
    with pytest.raises(InputError, match="no plan and no pruned checkpoint"):
        shown(llama)
    with pytest.raises(InputError, match="no such file or folder"):
        shown(tmp_path / "none")
    with pytest.raises(UsageError, match="shows your own models"):
        prunecli.figure([], "plan")
    with pytest.raises(UsageError, match=r"unknown figure 'plans'.*plan"):
        prunecli.figure([str(llama)], "plans")
    (tmp_path / "p.json").write_text(json.dumps({"keep": {"layers": [0, 10**12]}}))
    with pytest.raises(InputError, match="layers, a figure shows up to"):
        shown(tmp_path / "p.json")
    (tmp_path / "p.json").write_text(json.dumps({"keep": {}}))
    with pytest.raises(InputError, match="its layers are unknown"):
        shown(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        ({"layers": [0, 1], "ffn": [[0], [1], [2]]}, "numbers of layers differ: 2 for layers, 3"),
        ({"ffn": [[0], [1]], "kv_heads": [[0]]}, "numbers of layers differ: 2 for ffn, 1 for kv_"),
        ({"ffn": [[], []]}, "the plan keeps no ffn; at least one"),
        ({"hidden": [], "ffn": [[0]]}, "the plan keeps no hidden"),
        ({"layers": [3, 0]}, "layers are not ascending"),
        ({"kv_heads": [[-1]]}, "kv_heads of layer 0 begin at -1"),
    ],
)
def test_plans_of_no_model(keep, told, tmp_path):
    """Nobody knows the model that a plan alone is for, and of these there is none."""
    (tmp_path / "p.json").write_text(json.dumps({"keep": keep}))
    with pytest.raises(InputError, match=told):
        shown(tmp_path / "p.json")
