"""search-arch: the paper's candidates from the rule, real losses, resumption, and bad budgets."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import evaluate, prune, search_arch, table
from prunecli.data import windows
from prunecli.errors import InputError, NotANumber, PruneError, Stopped, UsageError
from prunecli.measuring import perplexity
from prunecli.model.arch import Arch
from prunecli.pruning import grid
from prunecli.report import Report
from prunecli.settings import Amount, Data, Output
from prunecli.tables import reference
from prunecli.training import state


@pytest.fixture
def held_out(tmp_path):
    return Data(tiny.tokens(tmp_path / "held.safetensors", seed=9))


def run(model, out, calibration, held_out, method="flap", **settings):
    settings = {"ratio": 0.4, "multiple": 4, **settings}
    if method == "flap":
        settings = {"options": {"bias": "drop"}, **settings}
    return search_arch(
        str(model), str(out), method=method, data=Data(calibration), eval_data=held_out, **settings
    )


def test_the_rule_gives_the_papers_ffn_columns():
    """All fifteen of Tables 6 and 7, nine of twelve of Table 5."""
    rows = reference.searched().rows
    agree = {
        table: [row["ffn"] == row["ffn_rule"] for row in rows if row["table"] == table]
        for table in "567"
    }
    assert agree["6"] == [True] * 5 and agree["7"] == [True] * 10
    assert sum(agree["5"]) == 9 and len(agree["5"]) == 12
    assert grid.size_multiple(reference.parent()) == 128


def test_grids_hold_nothing_that_the_paper_lacks():
    budget = grid.budget(reference.parent(), 4_540_600_320, None, None)
    for axes, count in ((("heads", "ffn"), 5), (("hidden", "heads", "ffn"), 10)):
        found = grid.candidates(axes, reference.parent(), budget, 128).shapes
        assert len(found) == count
        assert all(0.96 * budget.most <= arch.total_params <= budget.most for arch in found)


@pytest.mark.parametrize("method", ["flap", "minitron-width", "wanda-sp", "llm-pruner"])
def test_losses_are_those_of_pruned_checkpoints(method, llama, calibration, held_out, tmp_path):
    """Every candidate, pruned for real with the dense parent's scores, and evaluated from disk."""
    made = run(llama, tmp_path / "a.json", calibration, held_out, method)
    found = made.results["candidates"]
    assert len(found) >= 2 and "default" in {entry["role"] for entry in found}
    assert [entry["loss"] for entry in found] == sorted(entry["loss"] for entry in found)
    assert made.results["arch"]["ffn"] == found[0]["ffn"]
    from prunecli import calibrate

    stats = tmp_path / "s.safetensors"
    calibrate(str(llama), str(stats), methods=[method], data=Data(calibration))
    for number, entry in enumerate(found):
        out = str(tmp_path / f"p{number}")
        keys = {"flap": ("heads", "ffn"), "minitron-width": ("hidden", "ffn")}
        shape = {key: entry[key] for key in keys.get(method, ("heads", "ffn"))}
        options = {"bias": "drop"} if method == "flap" else {}
        prune(
            str(llama), out, method=method, amount=Amount(**shape), options=options,
            stats=str(stats),
        )  # fmt: skip
        measured = evaluate(out, data=[held_out]).results
        assert entry["loss"] == pytest.approx(measured["loss"], rel=1e-6)
        assert Arch.read(out).total_params == entry["params"]
    assert not (tmp_path / "a.json.partial").exists()


def test_masks_are_learned_for_every_shape(llama, calibration, held_out, tmp_path, monkeypatch):
    """The loss of a shape is that of the model learned for it; stopped, none is learned again."""
    options = {"tokens": 4 * 4 * 32, "batch_size": 4}
    sheared = {"method": "sheared-llama", "options": options}
    made = run(llama, tmp_path / "a.json", calibration, held_out, **sheared)
    found = made.results["candidates"]
    assert len(found) >= 4 and {entry["hidden"] for entry in found} == {36, 40, 48}
    best = prune(
        str(llama), str(tmp_path / "o"), method="sheared-llama", data=Data(calibration),
        amount=Amount(arch=str(tmp_path / "a.json")), options=options,
    )  # fmt: skip
    measured = evaluate(str(tmp_path / "o"), data=[held_out]).results
    assert found[0]["loss"] == pytest.approx(measured["loss"], rel=1e-6)
    assert best.results["sizes"]["hidden"] == found[0]["hidden"]

    within_the_second = tiny.stop_after(6)
    with pytest.raises(Stopped):
        run(llama, tmp_path / "b.json", calibration, held_out, **sheared, stop=within_the_second)
    assert len(list((tmp_path / "b.json.partial").glob("*.json"))) == 1
    again = run(llama, tmp_path / "b.json", calibration, held_out, **sheared)
    assert again.results == made.results


def test_prune_takes_what_was_found(llama, calibration, held_out, tmp_path):
    path = tmp_path / "a.json"
    found = run(llama, path, calibration, held_out).results["arch"]
    made = prune(
        str(llama), str(tmp_path / "o"), method="flap", amount=Amount(arch=str(path)),
        data=Data(calibration), options={"bias": "drop"},
    )  # fmt: skip
    assert {axis: made.results["sizes"][axis] for axis in found} == found


def test_biases_count(models, calibration, held_out, tmp_path):
    """FLAP judged with its biases is another search than without them."""
    options = [{"bias": "keep"}, {"bias": "drop"}]
    losses = [
        run(
            models("llama"), tmp_path / f"{number}.json", calibration, held_out, options=chosen
        ).results["loss"]
        for number, chosen in enumerate(options)
    ]
    assert losses[0] != losses[1]


def test_stopped_and_resumed(llama, calibration, held_out, tmp_path, monkeypatch):
    """Candidates that were measured are not measured again; the result is the same."""
    from prunecli.pruning import search_arch as module

    whole = run(llama, tmp_path / "whole.json", calibration, held_out)
    calls = []
    real = perplexity.result

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module.perplexity, "result", failing)
    with pytest.raises(KeyboardInterrupt):
        run(llama, tmp_path / "a.json", calibration, held_out)
    assert not (tmp_path / "a.json").exists() and (tmp_path / "a.json.partial").is_dir()
    calls.extend([0] * 5)
    monkeypatch.setattr(module, "collect_all", None)  # scores are not made again
    made = run(llama, tmp_path / "a.json", calibration, held_out)
    assert made.results == whole.results
    assert len(calls) == 7 + len(whole.results["candidates"]) - 1


def test_the_same_again_is_accepted(llama, calibration, held_out, tmp_path):
    one = run(llama, tmp_path / "a.json", calibration, held_out)
    again = run(
        llama, tmp_path / "a.json", calibration, held_out, output=Output(skip_existing=True)
    )
    assert again.results == one.results
    assert json.loads((tmp_path / "a.json").read_text())["kind"] == "arch"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"method": "wanda"}, UsageError, "sets weights to zero"),
        ({"method": "shortgpt"}, UsageError, "leaves nothing to choose; use `prunecli prune`"),
        ({"method": "reap"}, UsageError, "removes experts only: .* leaves nothing to choose"),
        ({"params": 1e5}, UsageError, "one budget, got 2"),
        ({"ratio": None}, UsageError, "one budget, got 0"),
        ({"ratio": 1.5}, UsageError, "between 0 and 1"),
        ({"ratio": None, "flops": float("nan")}, UsageError, "--flops nan: expected a positive"),
        ({"ratio": None, "params": 1e9}, InputError, "is not below"),
        ({"ratio": None, "params": 20.0}, InputError, r"no shape has 96% to 100%.*nearest has"),
        ({"multiple": -1}, UsageError, "multiple is -1: expected 1 or more"),
        ({"multiple": 500}, InputError, r"no shape.*block-linear parameters; .*smaller --multiple"),
        ({"ratio": None, "flops": 1e3}, InputError, r"no shape.*FLOPs.*the nearest has"),
    ],
)
def test_bad_requests(llama, calibration, held_out, tmp_path, change, kind, message):
    with pytest.raises(kind, match=message):
        run(llama, tmp_path / "a.json", calibration, held_out, **change)
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("method", "options"), [("flap", {"structure": "AL-AM"}), ("llm-pruner", {"protect": "1,1"})]
)
def test_ragged_layers_are_no_shape(method, options, llama, calibration, held_out, tmp_path):
    with pytest.raises(UsageError, match="a search makes equal layers"):
        run(
            llama, tmp_path / "a.json", calibration, held_out, method, options=options,
            ratio=None, flops=2e8,
        )  # fmt: skip


def test_a_shape_that_nothing_holds_is_left_out(calibration, held_out, tmp_path):
    notes: list[str] = []

    class Told(Report):
        def info(self, message: str) -> None:
            notes.append(message)

    sizes = {"hidden_size": 40, "num_attention_heads": 8, "num_key_value_heads": 4}
    model = tiny.make(tmp_path / "m", "gemma2", **sizes)
    made = run(model, tmp_path / "a.json", calibration, held_out, "llm-pruner", report=Told())
    assert {entry["heads"] for entry in made.results["candidates"]} == {4, 8}
    assert any("left out: hidden 40 with 6 heads" in note for note in notes)
    with pytest.raises(InputError, match=r"no shape can be written: .*use --bias drop"):
        run(model, tmp_path / "b.json", calibration, held_out, options={"bias": "keep"})


def test_a_default_shape_beyond_the_budget_is_left_out(calibration, held_out, tmp_path):
    """UL-UM rounds whole groups: of three it takes one for a half."""
    model = tiny.make(tmp_path / "m", "llama", num_key_value_heads=3)
    options = {"structure": "UL-UM", "bias": "drop"}
    made = run(model, tmp_path / "a.json", calibration, held_out, ratio=0.5, options=options)
    assert {entry["role"] for entry in made.results["candidates"]} == {"grid"}


def test_a_shape_without_a_loss_comes_last(llama, calibration, held_out, tmp_path, monkeypatch):
    from prunecli.pruning import search_arch as module

    real, calls = perplexity.result, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 1:
            raise NotANumber("the loss is nan")
        return real(*args)

    monkeypatch.setattr(module.perplexity, "result", failing)
    made = run(llama, tmp_path / "a.json", calibration, held_out)
    *others, last = made.results["candidates"]
    assert last["loss"] is None and "nan" in last["failed"]
    assert made.results["loss"] == others[0]["loss"] and others
    table([str(tmp_path)], "table6")


def test_held_out_text_must_be_held_out(llama, calibration, tmp_path):
    with pytest.raises(PruneError, match="evaluation windows are calibrated on"):
        run(llama, tmp_path / "a.json", calibration, Data(calibration))
    # in windows that begin elsewhere, it is the same text
    whole = load_file(calibration.rsplit(":", 1)[0])["ids"].flatten()
    save_file({"ids": whole[5 : 5 + 7 * 32].view(7, 32)}, tmp_path / "s.safetensors")
    with pytest.raises(PruneError, match="7 of 7 evaluation windows are calibrated on"):
        run(llama, tmp_path / "a.json", calibration, Data(f"{tmp_path / 's.safetensors'}:ids"))
    padding = torch.full((24,), 7)
    rows = [torch.cat([torch.randint(259, (8,)), padding]) for _ in range(4)]
    assert windows.contamination(torch.stack(rows[:2]), torch.stack(rows[2:])) == 0
    assert windows.contamination(torch.randint(9, (9, 6)), torch.randint(9, (9, 6))) == 0


def test_a_full_disk_is_no_outcome_of_a_shape(llama, calibration, held_out, tmp_path, monkeypatch):
    def full(*args):
        raise PruneError("cannot save the state")

    monkeypatch.setattr(state, "save", full)
    options = {"tokens": 4 * 4 * 32, "batch_size": 4}
    with pytest.raises(PruneError, match="cannot save the state"):
        run(
            llama, tmp_path / "a.json", calibration, held_out,
            method="sheared-llama", options=options,
        )  # fmt: skip
    assert not list((tmp_path / "a.json.partial").glob("*.json"))


def test_flops_budget(llama, calibration, held_out, tmp_path):
    most = float(Arch.read(llama).child(ffn=40).flops(2048))
    made = run(llama, tmp_path / "a.json", calibration, held_out, ratio=None, flops=most)
    assert all(0.96 * most <= entry["flops"] <= most for entry in made.results["candidates"])


def test_candidates_in_a_table(llama, calibration, held_out, tmp_path):
    """Ours beside the paper's, in the table of methods that cut the same."""
    made = run(llama, tmp_path / "runs" / "a.json", calibration, held_out)
    found = table([str(tmp_path / "runs")], "table6", "paper").rows
    ours = [row for row in found if row["source"] == "ours"]
    assert len(found) == 5 + len(ours)
    candidates = made.results["candidates"]
    assert sorted(row["loss"].value for row in ours) == [entry["loss"] for entry in candidates]
    best = [row["loss"].value for row in ours if row["selected"].value == "yes"]
    assert best == [made.results["loss"]]
    with pytest.raises(InputError, match="no sidecar here has what layout 'table5' shows"):
        table([str(tmp_path / "runs")], "table5")
