"""Tables from printed figures and from sidecars: differences, noise, marks, forgeries, figures."""

import base64
import copy
import csv
import hashlib
import io
import json
import re
from decimal import Decimal
from itertools import pairwise
from math import exp, sqrt
from pathlib import Path
from statistics import fmean, stdev

import pytest

from prunecli import table
from prunecli.errors import InputError, OutputExists, UsageError
from prunecli.files import provenance, sidecar
from prunecli.files.sidecar import Input, SidecarBuilder, TokensSeen, Trained
from prunecli.measuring.eval import MODEL
from prunecli.measuring.suite import TASKS
from prunecli.tables import advice, comparison, draw, figures, html, matching, reference, sketch
from prunecli.tables.collect import Models, collect
from prunecli.tables.entries import SUITE, Metric, noise
from prunecli.tables.layouts import LAYOUTS, rows_of_layout
from prunecli.tables.panels import Panel, Series
from prunecli.tables.render import Column, Table
from prunecli.tables.runs import Runs as Collected
from prunecli.tables.table import LAYOUT_NAMES, build_table, check_file

PAPER_LAYOUTS = {11: "table11", 12: "table12", 13: "table13", 14: "table14", 15: "table15"}
PAPER_LAYOUTS[16] = "table16"
PAPER_FIGURES = [number for number in figures.FIGURES if number.isdigit()]
NAMED = ("method", "ratio", "initialization", "train_tokens_b", "minus", "minus_tokens_b")


def as_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_printed_differences_follow_from_printed_values():
    """All 896 cells, to one unit of the last printed digit, and no difference row is missing."""
    found = {
        (number, *(row[name] for name in NAMED)): row
        for number, layout in PAPER_LAYOUTS.items()
        for row in as_rows(table([], layout, "paper").render("csv"))
        if row["minus"]
    }
    printed = reference.read("deltas")
    assert len(found) == len(printed) == 64
    cells = 0
    for row in printed:
        key = (int(row["table"]), row["method"], row["ratio"], row["row"])
        ours = found[(*key, row["row_tokens_b"], row["minus"], row["minus_tokens_b"])]
        for name, text in row.items():
            if name not in ("table", "method", "ratio", "row", "minus") and "_tokens_b" not in name:
                value = Decimal(text)
                unit = Decimal(1).scaleb(value.as_tuple().exponent)
                assert abs(Decimal(ours[name]) - value) <= unit, (key, name)
                cells += 1
    assert cells == 896


def test_printed_values_keep_their_precision():
    rows = [row for row in as_rows(table([], "table16", "paper").render("csv")) if not row["minus"]]
    for ours, printed in zip(rows, reference.read("equal-total"), strict=True):
        assert all(ours[name] == text for name, text in printed.items())


def test_columns_of_the_suite_are_its_tasks():
    assert set(SUITE) == set(TASKS)


def test_inconsistent_rows_are_told():
    lines = reference.inconsistencies()
    assert sum("but its eight columns have the mean" in line for line in lines) == 13
    assert any("24.2 in Tables 12-15, 33.8 in Table 11" in line for line in lines)
    assert any("13.68 in Tables 12-15, 13.64 in Table 16" in line for line in lines)
    assert any("printed 3.1, its shape gives 2.855" in line for line in lines)
    assert sum("printed 16.5, its shape gives 18.646" in line for line in lines) == 4
    text = table([], "table13", "paper").render("rich")
    assert "printed 46.8, but its eight columns have the mean 49.01" in text


def test_flops_of_table_9():
    """Every dense row to the printed digit, sparse rows by both rules."""
    rows = table([], "table9", "paper").objects()
    for row in rows:
        sparse = row["params"] != row["nonzero"]
        assert row["tflops_official" if sparse else "tflops_exact"] == pytest.approx(
            row["tflops"], abs=0.0501
        )
        if sparse:
            assert row["tflops_exact"] == pytest.approx(18.646, abs=5e-4)


def test_noise_of_printed_differences():
    """Table 8's deviations: WinoGrande 1.3, SciQ 0.8."""
    rows = table([], "table16", "paper").objects()
    (row,) = [
        r for r in rows if r["method"] == "flap" and r["minus"] and r["train_tokens_b"] == 250
    ]
    assert row["winogrande"] == pytest.approx(0.2) and "winogrande" in row["within_noise"]
    assert row["sciq"] == pytest.approx(-2.8) and "sciq" not in row["within_noise"]


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("format", ["rich", "md", "csv", "tex", "json"])
def test_every_layout_in_every_format(layout, format):
    text = table([], layout, "paper").render(format)
    assert len(text.splitlines()) > 5
    assert "None" not in text


# -- our own runs, as sidecars that a real chain would leave -------------------------------------


class Runs:
    """Writes sidecars of a chain: init, train, prune, twin, train, eval."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges: dict[str, int] = {}

    def made(self, name, command, parent=None, options=None, inputs=(), results=None, **more):
        recorder = SidecarBuilder(command, ("prunecli", command))
        sizes = {"layers": 2, "hidden": 8, "ffn": 16, "heads": 2, "kv_heads": 1}
        base = {"params": 100, "nonzero": 100, "sizes": sizes, "flops": 1000, "flops_tokens": 8}
        given = []
        if parent is not None:
            given = [Input(role="model", id=parent.id, digest=parent.outputs["digest"])]
        record = recorder.sidecar(
            "checkpoint",
            {"seed": 0, **(options or {})},
            [*given, *inputs],
            outputs={"digest": f"weights of {name}"},
            results={**base, **(results or {})},
            parent=parent,
            **more,
        )
        self.write(name, record)
        return record

    def write(self, name, record):
        (self.folder / name).mkdir(exist_ok=True, parents=True)
        (self.folder / name / "prunecli.json").write_text(record.text())

    def trained(self, name, parent, start, stop, rows="r", seed=0, options=None, **results):
        fields = {"range": [start, stop], "passes": stop - start, "seq_len": 4}
        entry = Input.model_validate({"role": "rows", "digest": rows, **fields})
        count = (stop - start) * 4
        seen = Trained(rows=rows, range=(start, stop), count=count)
        kept = {k: parent.results[k] for k in ("method", "ratio") if k in parent.results}
        options = {"seed": seed, "steps": 1, **(options or {})}
        return self.made(
            name,
            "train",
            parent,
            options,
            [entry],
            {**kept, **results},
            seen=TokensSeen(trained=[seen]),
        )

    def eval(self, name, model, loss, tasks=(), source="text.txt", **data):
        recorder = SidecarBuilder("eval", ())
        digest = data.pop("digest", "tokens")
        meta = {"source": source, "tokenizer": data.pop("tokenizer", "t"), "seq_len": 8}
        windows = data.pop("losses", [loss - 0.1, loss, loss + 0.1])
        counts = {"windows": len(windows), "seq_len": 8, "tokens": 7 * len(windows)}
        measured = {"source": source, "digest": digest, **counts}
        measured |= {"loss": fmean(windows), "perplexity": 2.0, "window_losses": windows}
        record = recorder.sidecar(
            "eval",
            {"dtype": data.pop("dtype", "float32")},
            [
                Input(
                    role="model", id=model.id, digest=data.pop("weights", model.outputs["digest"])
                ),
                Input.model_validate({"role": "evaluation", "digest": digest, **meta}),
            ],
            outputs={},
            results={
                "data": [measured | data],
                "tasks": list(tasks),
                "model": {k: v for k, v in model.results.items() if k in MODEL},
            },
            parent=model,
        )
        (self.folder / f"{name}.json").write_text(record.text())


def task(name="cloze", value=0.5, n=100, **changes):
    sigma = sqrt(value * (1 - value) / n)
    fields = {"version": 1, "metric": "acc_norm", "num_fewshot": 0, "n": n, "digest": "items"}
    return {"name": name, "value": value, "sigma": sigma, **fields, **changes}


@pytest.fixture
def runs(tmp_path):
    """P (rows 0:10) pruned and retrained on 10:14; twins on the same, on all, and on one more."""
    chain = Runs(tmp_path / "runs")
    parent = chain.trained("parent", chain.made("random", "init"), 0, 10)
    pruned = chain.made(
        "pruned", "prune", parent, {"method": "flap"}, results={"method": "flap", "ratio": 0.5}
    )
    chain.models = {
        "parent": parent,
        "p": chain.trained("p", pruned, 10, 14),
        "s": chain.trained("s", chain.made("twin", "init", options={"seed": 1}), 10, 14),
        "whole": chain.trained("whole", chain.made("twin2", "init", options={"seed": 2}), 0, 14),
    }
    chain.eval("e-p", chain.models["p"], 2.0, [task(value=0.6)])
    chain.eval("e-s", chain.models["s"], 3.0, [task(value=0.5)])
    chain.eval("e-whole", chain.models["whole"], 2.5, [task(value=0.58)])
    return chain


def collected(folder):
    return Collected(collect([str(folder)]))


def differences(made):
    return [row for row in made.objects() if row.get("minus")]


def test_own_runs_in_the_papers_layout(runs):
    made = table([str(runs.folder)], "table16")
    found = {(row["name"], row["minus"]): row for row in differences(made)}
    assert {name for name, _ in found} == {"s - p", "whole - p"}
    row = found["s - p", "pruned-p40"]
    assert row["loss_text.txt"] == pytest.approx(-1.0)
    assert row["cloze"] == pytest.approx(-10)
    assert row["average"] == pytest.approx(-10)
    # 0.6 - 0.5 with 100 items: more than sqrt(0.24 + 0.25) / 10; 0.6 - 0.58 is less
    assert "within_noise" not in row
    assert found["whole - p", "pruned-p40"]["within_noise"] == ["cloze", "average"]


def test_evaluations_alone_tell_as_much(runs, tmp_path):
    """Their histories are those of their models: no checkpoint needs to lie beside them."""
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("e-p", "e-s", "e-whole"):
        (alone / f"{name}.json").write_bytes((runs.folder / f"{name}.json").read_bytes())
    made = {row["name"]: row for row in differences(table([str(alone)], "table16"))}
    assert made.keys() == {"e-s - e-p", "e-whole - e-p"}
    assert made["e-s - e-p"]["loss_text.txt"] == pytest.approx(-1.0)
    rows = table([str(alone)]).objects()
    assert {row["method"] for row in rows} == {"flap", "train"}
    assert all(row["seconds"] is None for row in rows)


def test_scaling_has_no_equal_total(runs):
    names = [row["name"] for row in differences(table([str(runs.folder)], "scaling"))]
    assert names == ["p - s"]


def test_seeds_become_mean_and_spread(runs):
    twin = runs.made("twin-b", "init", options={"seed": 7})
    again = runs.trained("s-b", twin, 10, 14, seed=7)
    runs.eval("e-s-b", again, 3.2, [task(value=0.4)])
    made = table([str(runs.folder)], "table16")
    (row,) = [r for r in made.objects() if r["seeds"] == 2 and not r["minus"]]
    assert row["loss_text.txt"] == pytest.approx(3.1)
    assert row["spread"]["loss_text.txt"] == pytest.approx(stdev([3.0, 3.2]))
    assert "± " in made.render("rich")
    assert len(differences(made)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer": "another", "digest": "others"}, "tokenizer another"),
        ({"digest": "others"}, "tokens others"),
        ({"losses": [2.9, 3.0, 3.0, 3.1]}, "windows 4"),
        ({"dtype": "bfloat16"}, "dtype bfloat16"),
    ],
)
def test_unlike_measures_are_marked_not_compared(runs, change, said):
    runs.eval("e-s", runs.models["s"], 3.0, **change)
    made = table([str(runs.folder)], "table16")
    assert said in made.render("rich")
    (row,) = [r for r in differences(made) if r["name"] == "s - p"]
    assert row["loss_text.txt"] is None


@pytest.mark.parametrize(
    "change",
    [{"version": 2}, {"metric": "acc"}, {"n": 99}, {"digest": "other items"}, {"num_fewshot": 5}],
)
def test_unlike_tasks_are_marked_not_compared(runs, change):
    runs.eval("e-s", runs.models["s"], 3.0, [task(value=0.5, **change)])
    made = table([str(runs.folder)], "table16")
    (row,) = [r for r in differences(made) if r["name"] == "s - p"]
    assert row["cloze"] is None and "cloze" in row["notes"]
    assert row["loss_text.txt"] is not None


def test_measures_of_other_weights_are_marked(runs):
    runs.eval("e-s", runs.models["s"], 3.0, weights="replaced")
    assert "measured on other weights" in table([str(runs.folder)], "table16").render("md")
    assert "measured on other weights" in table([str(runs.folder)]).render("md")


def test_a_model_measured_twice_says_so(runs):
    runs.eval("f-s", runs.models["s"], 3.1, [task(value=0.4, n=50, digest="some items")])
    text = table([str(runs.folder)], "table16").render("md")
    assert "measured more than once, also with items 100 (items) instead of 50" in text


def forge(record, path, value):
    """Return a record with one field changed, and nothing else."""
    changed = copy.deepcopy(record.model_dump(mode="json"))
    *way, last = path
    place = changed
    for step in way:
        place = place[step]
    assert place[last] != value
    place[last] = value
    return sidecar.Sidecar.model_validate(changed)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("history", -1, "inputs", -1, "range"), [9, 13]),
        (("history", -1, "inputs", -1, "passes"), 5),
        (("history", -1, "inputs", -1, "digest"), "q"),
        (("history", -1, "inputs", -1, "seq_len"), 8),
        (("history", 1, "inputs", -1, "range"), [0, 9]),
        (("history", 1, "options", "seed"), 5),
        (("history", 2, "parent"), None),
        (("tokens", "trained", 0, "count"), 1),
        (("tokens", "trained"), []),
        (("id",), "0" * 32),
        (("options", "steps"), 2),
        (("inputs", -1, "range"), [0, 4]),
    ],
)
def test_forged_sidecars_are_refused(runs, path, value):
    """Whatever of the tokens seen is changed, the pair gets no difference, and it says why."""
    runs.write("p", forge(runs.models["p"], path, value))
    made = table([str(runs.folder)], "table16")
    assert [row["name"] for row in differences(made)] == []
    pairs = [r for r in table([str(runs.folder)], "pairs").objects() if r["pruned"] == "p"]
    assert {row["matched"] for row in pairs} == {"no"}
    assert all(row["why"] for row in pairs)


def test_a_step_cannot_be_exchanged(runs):
    """Even with a fitting id of its own, the step after it was made from another."""
    forged = runs.models["p"].model_dump(mode="json")
    step = forged["history"][1]
    step["options"]["seed"] = 5
    entered = [Input.model_validate(entry) for entry in step["inputs"]]
    step["id"] = forged["history"][2]["parent"] = sidecar.content_id(
        "checkpoint", step["options"], entered
    )
    record = sidecar.Sidecar.model_validate(forged)
    assert "was not made from the step before" in provenance.integrity_error(record)
    assert not provenance.integrity_error(runs.models["p"])


@pytest.mark.parametrize(
    ("start", "stop", "rows"), [(10, 15, "r"), (10, 13, "r"), (9, 13, "r"), (10, 14, "q")]
)
def test_other_tokens_are_not_matched(runs, start, stop, rows):
    twin = runs.made("twin", "init", options={"seed": 1})
    runs.eval("e-s", runs.trained("s", twin, start, stop, rows), 3.0)
    made = table([str(runs.folder)], "table16")
    assert [row["name"] for row in differences(made)] == ["whole - p"]
    assert "not compared: p with s: scratch saw" in made.render("rich")


def test_paired_noise_of_losses():
    one = Metric(2.0, 0.5, windows=(1.0, 2.0, 3.0))
    other = Metric(3.0, 0.5, windows=(2.1, 2.9, 4.0))
    expected = stdev([-1.1, -0.9, -1.0]) / sqrt(3)
    assert noise(one, other) == pytest.approx(expected)
    assert noise(Metric(1.0, 3.0), Metric(2.0, 4.0)) == pytest.approx(5.0)
    assert noise(Metric(1.0), Metric(2.0, 4.0)) is None


def test_reference_beside_our_own(runs):
    made = table([str(runs.folder)], "table16", "paper")
    sources = {row["source"] for row in made.objects()}
    assert sources == {"paper", "ours"}
    assert {row["name"] for row in differences(made) if row["source"] == "ours"} == {
        "s - p",
        "whole - p",
    }


def test_bad_requests(runs, tmp_path):
    with pytest.raises(UsageError, match="no sidecars given"):
        table([])
    with pytest.raises(UsageError, match="did you mean 'table6'"):
        table([], "table61", "paper")
    with pytest.raises(UsageError, match="unknown reference"):
        table([], "table16", "papers")
    with pytest.raises(UsageError, match="has no rows of the paper"):
        table([], "pairs", "paper")
    with pytest.raises(InputError, match="no sidecar here has what layout 'table6' shows"):
        table([str(runs.folder)], "table6")
    (tmp_path / "x.svg").write_text("mine")
    from prunecli.settings import Output

    with pytest.raises(OutputExists):
        check_file("plot", str(tmp_path / "x.svg"), Output())


@pytest.mark.parametrize("number", PAPER_FIGURES)
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_of_the_paper(number, suffix, tmp_path):
    layout = figures.FIGURES[number].layouts[0]
    drawing = figures.drawing(LAYOUTS[layout].published(), number)
    for name in ("a", "b"):
        draw.save(drawing, str(tmp_path / f"{name}{suffix}"))
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("a", "b"))
    assert first == second and len(first) > 5000


def test_figures_show_the_papers_figures():
    """Figure 5's difference at equal total budget is the row of Table 16."""
    drawing = figures.drawing(LAYOUTS["table16"].published(), "5")
    both, apart = drawing.panels
    printed = {
        row["method"]: row["average"]
        for row in reference.read("deltas")
        if row["table"] == "16" and row["row_tokens_b"] == "250"
    }
    (series,) = apart.series
    assert dict(zip(series.x, series.y, strict=True)) == pytest.approx(
        {method: -float(value) for method, value in printed.items()}, abs=0.1001
    )
    assert len(both.series) == 2
    lines = figures.drawing(LAYOUTS["scaling"].published(), "3").panels[0].series
    assert len(lines) == 12 and all(line.x == [10, 30, 50, 250, 500] for line in lines)


@pytest.mark.parametrize("number", PAPER_FIGURES)
def test_figures_in_a_terminal(number):
    layout = figures.FIGURES[number].layouts[0]
    text = sketch.as_text(figures.drawing(LAYOUTS[layout].published(), number), 80)
    assert "minitron-depth" in text and "\x1b" not in text


def test_whiskers_are_the_interval_of_the_difference(runs):
    """Both read the same windows, so what varies with these is not in it; accuracies are not."""
    twin = runs.made("twin-b", "init", options={"seed": 7})
    runs.eval("e-s-b", runs.trained("s-b", twin, 10, 14, seed=7), 3.2, [task(value=0.4)])
    rows = rows_of_layout(collected(runs.folder), "table16", None)
    panel = figures.drawing(rows, "1").panels[0]
    errors = {series.label: series.errors for series in panel.series}
    of_scratch = max(stdev([50, 40]) / sqrt(2), 100 * sqrt(0.25 / 100))
    of_pruned = 100 * sqrt(0.24 / 100)
    assert errors["pruned"][0] == pytest.approx(1.96 * sqrt(of_scratch**2 + of_pruned**2))
    assert errors["scratch"] == [None]
    # what is compared has one scale, which holds every whisker
    one, other = figures.drawing(rows, "1").panels
    assert one.span == other.span
    for series in (*one.series, *other.series):
        for y, error in zip(series.y, series.errors, strict=True):
            assert one.span[0] <= y - (error or 0) and y + (error or 0) <= one.span[1]


def test_titles_say_what_is_seen(runs):
    rows = rows_of_layout(collected(runs.folder), "table16", None)
    seen = "Pruned is better than scratch in 1 of 1"
    assert figures.drawing(rows, "1").title == (
        f"{seen} at equal retraining tokens, in 1 of 1 at equal total budget"
    )
    assert figures.drawing(rows, "3").title == f"{seen} at the fewest tokens, in 1 at the most"
    paper = LAYOUTS["table16"].published()
    assert figures.drawing(paper, "5").title.endswith("in 5 of 8 at equal total budget")


def swept(runs):
    """Add models of two methods that were pruned only, and what all are compared with."""
    parent = runs.models["parent"]
    runs.eval("e-parent", parent, 1.5)
    for method, losses in (("flap", (2.0, 2.5)), ("magnitude", (2.2, 3.5))):
        for ratio, loss in zip((0.25, 0.5), losses, strict=True):
            made = {"method": method, "ratio": ratio, "nonzero": round(100 * (1 - ratio))}
            model = runs.made(f"{method}-{ratio}", "prune", parent, made, results=made)
            runs.eval(f"e-{method}-{ratio}", model, loss)
    return figures.figure(collected(runs.folder), "sweep", None, None)


def test_sweep(runs):
    """Perplexity by ratio, loss by size; the parent and the trained twins are in every panel."""
    found = swept(runs)
    assert found.title == (
        f"At ratio 0.5, flap has the lowest perplexity of 2 methods: {exp(2.5):.4g}, "
        f"the parent {exp(1.5):.4g}"
    )
    ratios, sizes = found.panels
    lines = {one.label: one for one in ratios.series}
    assert lines["flap"].x == [0.25, 0.5]
    assert lines["flap"].y == pytest.approx([exp(2.0), exp(2.5)])
    assert lines["parent"].x == [0.0] and lines["parent"].y == pytest.approx([exp(1.5)])
    lines = {one.label: one for one in sizes.series}
    assert lines["magnitude"].x == [50, 75] and lines["magnitude"].y == pytest.approx([3.5, 2.2])
    assert sorted(lines["scratch, trained"].y) == pytest.approx([2.5, 3.0])
    for panel in found.panels:
        small = panel.small()
        assert [one.title for one in small] == ["flap", "magnitude"]
        assert all("parent" in [line.label for line in one.series] for one in small)
        assert len({one.span for one in small}) == 1
    text = sketch.as_text(found, 80)
    assert "a flap" in text and max(map(len, text.splitlines())) <= 80


def test_sweep_shows_what_was_measured_alike(runs):
    swept(runs)
    runs.eval("e-flap-0.5", runs.models["parent"].model_copy(), 9.0, digest="other tokens")
    model = collected(runs.folder).models
    assert model.plans == []
    other = runs.made("sleb-0.5", "prune", runs.models["parent"], results={"method": "sleb",
                      "ratio": 0.5})  # fmt: skip
    runs.eval("e-sleb", other, 0.1, digest="other tokens")
    found = figures.figure(collected(runs.folder), "sweep", None, None)
    assert all("sleb" not in one.label for panel in found.panels for one in panel.series)


def test_many_lines_are_small_panels_before_the_others():
    lines = [Series(f"m{i}", [0.1, 0.2], [1.0 + i, 2.0], group=f"m{i}", part=f"m{i}")
             for i in range(9)]  # fmt: skip
    small = Panel("t", "x", "y", lines, apart=True).small()
    assert len(small) == 9 and all(len(one.series) == 1 for one in small)
    assert all(len(one.behind) == 8 for one in small)
    few = Panel("t", "x", "y", lines[:3], apart=True).small()
    assert all(not one.behind for one in few)


@pytest.mark.parametrize("wanted", [[0.5] * 4, [0.1, 0.11, 0.9], [0.0, 0.05, 0.06, 1.0]])
def test_names_at_lines_do_not_collide(wanted):
    places = draw._spread(wanted, 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(places))
    assert fmean(places) == pytest.approx(fmean(wanted), abs=0.1)


def test_marks_are_apart_without_colour():
    """In grey the kinds differ by their marks, filled and open; lines by marks and dashes."""
    kinds = [draw._mark(kind) for kind in ("pruned", "scratch", "base")]
    assert len({(one["marker"], one["markerfacecolor"]) for one in kinds}) == 3
    lines = [draw._line(Series("", [], [], group=str(i), part=str(i)), i) for i in range(6)]
    assert len({(one["marker"], str(one["linestyle"])) for one in lines}) == 6


def script_of(text):
    """Return the only script of a page, which its policy allows by hash."""
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert text.count("<script") == 1
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in text and "default-src 'none';" in text
    return script


def test_html_stands_alone(runs, tmp_path):
    found = collected(runs.folder)
    path = tmp_path / "report.html"
    html.write(str(path), found, build_table(found, "table16", "paper"), "paper")
    text = path.read_text()
    assert "http" not in script_of(text) and "src=" not in text and "<link" not in text
    for key in found.models.checkpoints:
        assert f"id='{key}'" in text
    assert matching.EQUAL_TOTAL in text and text.count("<svg") > 4
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert text == html.page(found, build_table(found, "table16", "paper"), "paper", tmp_path)


def test_the_report_begins_with_the_verdict(runs):
    found = collected(runs.folder)
    text = html.page(found, build_table(found, "models", None), None)
    parts = ["Pruned is better than scratch in 1 of 1", "<svg", "Pruned beside scratch",
             "<h2>Models</h2>", "How each model was made"]  # fmt: skip
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    # a pair a row: pruned, scratch, difference, interval of equal differences of all windows
    row = re.search(r"<tr>.*?loss text.txt.*?</tr>", text)[0]
    cells = [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td.*?</td>", row)]
    assert cells[4:8] == ["2.0000", "3.0000", "+1.0000", "+1 to +1"]
    assert "TFLOPs" in text and "peak MB" in text and "granularity" not in text


def test_the_report_has_our_pairs_beside_the_papers(runs):
    found = collected(runs.folder)
    rows = comparison.pair_table(found, "paper").objects()
    ours = {row["metric"] for row in rows if row["source"] == "ours"}
    assert ours == {"loss text.txt", "average"}
    assert {"DCLM loss", "average"} == {r["metric"] for r in rows if r["source"] == "paper"}


def test_the_report_tells_no_home(runs, tmp_path):
    model = runs.models["p"].model_copy(deep=True)
    model.options["sizes"] = {"layers": 2, "list": [1, 2]}
    model.history[-1].options["sizes"] = {"layers": 2, "list": [1, 2], "none": None}
    model.run.argv = ["/home/ann/bin/prunecli", "train", "--data", "/home/ann/rows:0:9",
                      f"--teacher={tmp_path}/a b/t", f"{tmp_path}/in", "out"]  # fmt: skip
    runs.write("p", model)
    found = collected(runs.folder)
    text = html.page(found, build_table(found, "models", None), None, tmp_path)
    assert "/home/ann" not in text and str(tmp_path) not in text
    command = "prunecli train --data .../rows:0:9 &#39;--teacher=a b/t&#39; in out"
    assert command in text
    assert "steps 1, sizes (layers 2, list 1 2); from" in text and "{&#39;" not in text


def test_html_escapes_what_sidecars_say(runs, tmp_path):
    evil = "<script>alert('1')</script>"
    model = runs.trained("p' onclick='x", runs.models["p"], 14, 15, options={"note": evil})
    forged = sidecar.Sidecar.model_validate(model.model_dump(mode="json") | {"id": "'><b>"})
    runs.write("<i>forged", forged)
    found = collected(runs.folder)
    text = html.page(found, build_table(found, "models", None), None)
    script_of(text)
    assert "<b>" not in text and "<i>forged" not in text
    assert "&lt;script&gt;" in text and "id='&#39;&gt;&lt;b&gt;'" in text


def test_tables_in_a_notebook(runs):
    made = table([str(runs.folder)], "pairs")
    text = made._repr_html_()
    assert text.startswith("<table>") and text.count("<tr>") == 1 + len(made.rows)
    evil = Table([{"a": "<b>'x"}], (Column("a", "<i>", repeats=True), Column("b", "empty")))
    assert "<b>" not in evil._repr_html_() and "<i>" not in evil._repr_html_()
    assert "empty" not in evil._repr_html_()


def test_advice_from_the_papers_curves():
    """The released depth-pruned parent at 50B tokens: the paper's +0.14 nats, surely."""
    found = advice.advise(Collected(Models()), "paper", 50e9)
    cases = {case["case"]: case for case in found.results["cases"]}
    depth = cases["minitron-depth (paper) 0.5 of meta"]
    assert depth["verdict"] == "prune" and depth["chance_that_pruning_is_better"] > 0.95
    low, high = depth["advantage_interval"]
    assert low < 0.14 < high
    assert cases["wanda-2:4 (paper) 0.5 of p200"]["verdict"] == "not enough runs"
    assert "scratch by 0.05" in cases["minitron-depth (paper) 0.5 of p200"]["equal_total_budget"]


def test_advice_finds_a_known_crossover(monkeypatch):
    """Two laws that cross at a token count known in closed form."""
    pruned = [(n, 2.0 + 0.5 * n**-0.5, 1.9 + 3.0 * n**-0.5, 0.0) for n in (10, 30, 100, 300, 1000)]
    case = advice.Case("m", "0.5", "p", pruned, "")
    near = advice._case_advice(case, 100.0)
    exact = (2.5 / 0.1) ** 2
    assert near["crossover_tokens"] == pytest.approx(exact, rel=0.05)
    assert near["verdict"] == "prune" and not near["extrapolated"]
    beyond = advice._case_advice(case, 5000.0)
    assert beyond["verdict"] == "scratch" and beyond["extrapolated"]


def test_advice_names_the_next_run(runs):
    found = advice.advise(collected(runs.folder), None, 1000.0)
    (case,) = found.results["cases"]
    assert case["verdict"] == "not enough runs" and case["next_tokens"] == 1000
    assert case["equal_total_budget"].startswith("pruning by 0.5")
    assert "prunecli train --tokens 1000" in found.text()


def test_pooling_keeps_one_entry_per_run(runs):
    names = [(entry.name, entry.initialization) for entry in collected(runs.folder).rows]
    assert ("parent", "base") in names and ("p", "pruned-p40") in names
    assert json.dumps(LAYOUT_NAMES)
