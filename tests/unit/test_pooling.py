"""Which runs are seeds of one run, which are twins, and the noise of means and differences."""

import json
import random
from math import inf, sqrt
from statistics import fmean

import pytest
from test_tables import Runs, collected, differences, task

from prunecli import table
from prunecli.errors import InputError, UsageError
from prunecli.files.sidecar import Input
from prunecli.tables import advice, figures, matching
from prunecli.tables.entries import Metric, noise, standard_error
from prunecli.tables.layouts import rows_of_layout


@pytest.fixture
def runs(tmp_path):
    return Runs(tmp_path / "runs")


def calibrated(digest="tokens", **meta):
    return Input.model_validate({"role": "calibration", "digest": digest, **meta})


def model(digest):
    """Return a released model, which has no sidecar."""
    return Input(role="model", digest=digest)


def pooled(runs):
    return sorted(entry.seeds for entry in collected(runs.folder).rows)


def pruned(runs, name, *inputs, **options):
    results = {"method": "wanda", "ratio": 0.5}
    return runs.made(name, "prune", None, {"method": "wanda", **options}, inputs, results)


DRAWN = {"source": "a.txt", "text": "text", "sampler": "random", "nsamples": 8}
FIRST = (model("parent"), calibrated("x", seed=0, **DRAWN))
OTHERS = {
    "another parent": (model("another"), FIRST[1]),
    "another text of that name": (FIRST[0], calibrated("y", seed=1, **{**DRAWN, "text": "other"})),
    "another number of windows": (FIRST[0], calibrated("y", seed=1, **{**DRAWN, "nsamples": 9})),
    "given windows": (FIRST[0], calibrated("y", source="a.txt", text=None, seed=None)),
    "other windows of one seed": (FIRST[0], calibrated("y", seed=0, **{**DRAWN, "text": "t"})),
    "statistics beside": (*FIRST, Input(role="stats", digest="s")),
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_other_inputs_are_no_seeds(runs, what):
    pruned(runs, "a", *FIRST)
    pruned(runs, "b", *OTHERS[what])
    assert pooled(runs) == [1, 1]


def test_other_windows_of_one_text_are_seeds(runs):
    pruned(runs, "a", *FIRST)
    pruned(runs, "b", FIRST[0], calibrated("y", seed=1, windows=["w"], **DRAWN))
    assert pooled(runs) == [2]


def test_masks_learned_on_other_windows_of_one_text_are_seeds(runs):
    """The windows are the rows of that training, too."""
    for name, digest, seed in (("a", "x", 0), ("b", "y", 1)):
        rows = Input.model_validate({"role": "rows", "digest": digest, "range": [0, 8]})
        pruned(runs, name, FIRST[0], calibrated(digest, seed=seed, **DRAWN), rows)
    pruned(runs, "c", FIRST[0], Input.model_validate({"role": "rows", "digest": "given"}))
    assert pooled(runs) == [1, 2]


@pytest.mark.parametrize("role", ["teacher", "masks"])
def test_a_teacher_counts_by_how_it_was_made(runs, role):
    """Teachers that are seeds of one run make seeds, others do not."""
    start = runs.made("start", "init")
    teachers = [
        runs.trained(f"t{seed}", start, 0, 4, seed=seed, options={"lr": rate})
        for seed, rate in ((0, 1), (1, 1), (2, 5))
    ]
    for seed, teacher in enumerate(teachers):
        entry = Input(role=role, id=teacher.id, digest=teacher.outputs["digest"])
        runs.made(f"m{seed}", "train", start, {"seed": seed}, [entry])
    found = {entry.name: entry.seeds for entry in collected(runs.folder).rows}
    assert found["m0"] == 2 and found["m2"] == 1


def like(made):
    return Input(role="like", id=made.id, digest=made.outputs["digest"])


def twin(runs, name, made, masks="keep", **results):
    return runs.made(name, "init", None, {"masks": masks, "seed": 1}, [like(made)], results)


def test_twins_are_known_by_what_made_their_zeros(runs):
    """Not by how many weights are zero, which training and biases change a little."""
    sparse = pruned(runs, "a", *FIRST, sparsity="2:4")
    other = pruned(runs, "b", *FIRST, sparsity="1:2", ratio=0.5)
    kept = runs.trained("kept", sparse, 0, 4, options={"masks": "keep"}, nonzero=48)
    dropped = runs.trained("dropped", sparse, 0, 4, options={"masks": "drop"})
    one = twin(runs, "one", kept, nonzero=51)
    own = runs.trained("own", one, 0, 4, options={"masks": "keep"}, nonzero=50)
    dense = twin(runs, "dense", kept, masks="drop")
    known = matching.histories([sparse, other, kept, dropped, one, own, dense])
    zeros = [
        matching.zeros(record, known)
        for record in (sparse, other, kept, dropped, one, own, dense)
    ]  # fmt: skip
    assert zeros == [sparse.id, other.id, sparse.id, None, sparse.id, sparse.id, None]
    names = {record.id: name for name, record in (("kept", kept), ("dropped", dropped))}
    found = {
        (names[pair.pruned], pair.scratch == own.id)
        for pair in collected(runs.folder).pairs
        if pair.pruned in names and pair.scratch in (own.id, dense.id)
    }
    assert found == {("kept", True), ("dropped", False)}


def test_zero_biases_hide_no_twin(runs):
    """What is structured is told by its shape: an untrained twin's biases are all zero."""
    cut = runs.made("cut", "prune", None, {}, results={"method": "flap", "ratio": 0.5})
    twin(runs, "twin", cut, nonzero=90)
    runs.made("biased", "init", None, {"seed": 3}, results={"params": 101, "nonzero": 100})
    (pair,) = collected(runs.folder).pairs
    assert collected(runs.folder).models.checkpoints[pair.scratch][0].parent.name == "twin"


# -- noise -------------------------------------------------------------------------------------


def naive_error(rows):
    """Variance components of two crossed factors, term by term."""
    seeds, windows = len(rows), len(rows[0])
    centre = sum(map(sum, rows)) / (seeds * windows)
    of_seed = [sum(row) / windows for row in rows]
    of_window = [sum(row[w] for row in rows) / seeds for w in range(windows)]
    by_seed = windows * sum((x - centre) ** 2 for x in of_seed) / (seeds - 1)
    by_window = seeds * sum((x - centre) ** 2 for x in of_window) / (windows - 1)
    rest = 0.0
    for s in range(seeds):
        for w in range(windows):
            rest += (rows[s][w] - of_seed[s] - of_window[w] + centre) ** 2
    rest /= (seeds - 1) * (windows - 1)
    seed_part = max(0.0, (by_seed - rest) / windows)
    window_part = (by_window - rest) / seeds
    return sqrt(seed_part / seeds + window_part / windows + rest / (seeds * windows))


def drawn(seeds, windows, of_seed, of_window, of_rest, seed=0):
    draw = random.Random(seed)
    hard = [draw.gauss(0, of_window) for _ in range(windows)]
    return [
        [base + w + draw.gauss(0, of_rest) for w in hard]
        for base in (draw.gauss(3, of_seed) for _ in range(seeds))
    ]


@pytest.mark.parametrize("sizes", [(0.5, 1, 0.1), (0, 1, 0.5), (0, 0, 1), (1, 0.1, 0.1)])
@pytest.mark.parametrize("seeds", [2, 5])
def test_the_noise_of_a_mean_over_seeds_and_windows(sizes, seeds):
    rows = drawn(seeds, 40, *sizes)
    assert standard_error(rows) == pytest.approx(naive_error(rows))


def test_the_noise_is_that_of_repeated_experiments():
    """Its square is the variance of the mean, on average over many experiments."""
    made = [drawn(4, 12, 0.3, 0.8, 0.4, seed) for seed in range(2000)]
    means = [fmean(map(fmean, rows)) - 3 for rows in made]
    told = fmean(standard_error(rows) ** 2 for rows in made)
    exact = 0.3**2 / 4 + 0.8**2 / 12 + 0.4**2 / 48
    assert fmean(m * m for m in means) == pytest.approx(exact, rel=0.15)
    assert told == pytest.approx(exact, rel=0.15)


def means(rows, names):
    seeds = {n: Metric(fmean(row), windows=tuple(row)) for n, row in zip(names, rows, strict=True)}
    return Metric(fmean(map(fmean, rows)), 9.0, seeds=seeds, spread=1.0)


def test_pairs_stay_pairs_over_seeds():
    rows = drawn(2, 30, 0.1, 2, 0.1)
    other = [[x + 0.1 + 0.01 * w for w, x in enumerate(row)] for row in rows]
    apart = [
        [a - b for a, b in zip(one, two, strict=True)] for one, two in zip(rows, other, strict=True)
    ]
    exact = naive_error(apart)
    assert noise(means(rows, "ab"), means(other, "ab")) == pytest.approx(exact)
    # the order in which runs are found is no part of it
    assert noise(means(rows, "ab"), means(other[::-1], "ba")) == pytest.approx(exact)
    assert exact < 0.1 < noise(Metric(0.0, 0.4), Metric(0.0, 0.4))


def test_other_seeds_are_paired_by_windows_alone():
    rows, other = drawn(2, 30, 0.1, 2, 0.1), drawn(3, 30, 0.3, 2, 0.1)
    over = [[fmean(window) for window in zip(*side, strict=True)] for side in (rows, other)]
    apart = [a - b for a, b in zip(*over, strict=True)]
    centre = fmean(apart)
    expected = sum((x - centre) ** 2 for x in apart) / 29 / 30
    for side in (rows, other):
        by_window = [fmean(window) for window in zip(*side, strict=True)]
        middle = fmean(by_window)
        alone = sum((x - middle) ** 2 for x in by_window) / 29 / 30
        expected += naive_error(side) ** 2 - alone
    assert noise(means(rows, "ab"), means(other, "abc")) == pytest.approx(sqrt(expected))
    # a single run tells nothing of seeds
    single = Metric(1.0, windows=tuple(rows[0]))
    assert noise(single, single) == 0


def test_two_seeds_show_what_one_shows(runs):
    """Hard and easy windows are the same for all, so a small difference stands out."""
    hard, draw = (1.0, 3.0, 5.0), random.Random(0)
    cut = runs.made("cut", "prune", None, {}, results={"method": "flap", "ratio": 0.5})
    start = twin(runs, "twin", cut)
    for seed in (0, 1):
        for name, parent, by in (("p", cut, 0.0), ("s", start, 0.2)):
            made = runs.trained(f"{name}{seed}", parent, 0, 4, seed=seed)
            losses = [x + by + draw.uniform(-0.01, 0.01) for x in hard]
            runs.eval(f"e{name}{seed}", made, fmean(losses), losses=losses)
    (row,) = differences(table([str(runs.folder)], "scaling"))
    assert row["loss_text.txt"] == pytest.approx(0.2, abs=0.02) and "within_noise" not in row


def test_perplexities_are_paired_too(runs):
    cut = runs.made("cut", "prune", None, {}, results={"method": "flap", "ratio": 0.5})
    for name, parent, by in (("p", cut, 0.0), ("s", twin(runs, "twin", cut), 0.05)):
        losses = [x + by for x in (1.0, 2.0, 3.0)]
        made = runs.trained(name, parent, 0, 4)
        runs.eval(f"e{name}", made, 0, losses=losses, source="c4", perplexity=7.0 + by)
    (row,) = differences(table([str(runs.folder)], "scaling"))
    assert row["ppl_c4"] == pytest.approx(0.05) and "within_noise" not in row
    exact = [7.05 * (x + 0.05) - 7.0 * x for x in (1.0, 2.0, 3.0)]
    found = {e.name: e.metrics["ppl_c4"] for e in collected(runs.folder).rows if e.tokens}
    middle = fmean(exact)
    expected = sqrt(sum((x - middle) ** 2 for x in exact) / 2 / 3)
    assert noise(found["s"], found["p"]) == pytest.approx(expected)


# -- what seeds and models were measured by ------------------------------------------------------


def test_seeds_that_were_measured_differently_are_told(runs):
    start = runs.made("start", "init")
    for seed, dtype in ((0, "float32"), (1, "float32"), (2, "bfloat16")):
        made = runs.trained(f"m{seed}", start, 0, 4, seed=seed)
        runs.eval(f"e{seed}", made, 2.0 + seed, dtype=dtype)
    (row,) = [r for r in table([str(runs.folder)], "table1").objects() if r["seeds"] == 3]
    (entry,) = [e for e in collected(runs.folder).rows if e.seeds == 3]
    measure = entry.metrics["loss_text.txt"]
    assert row["name"] == "m0" and measure.value == pytest.approx(2.5)
    assert measure.note == "2 of 3 seeds, the others: dtype bfloat16 instead of float32"


def test_pairs_of_two_types_have_no_difference(runs):
    cut = runs.made("cut", "prune", None, {}, results={"method": "flap", "ratio": 0.5})
    for name, parent, dtype in (("p", cut, "float32"), ("s", twin(runs, "t", cut), "bfloat16")):
        runs.eval(f"e{name}", runs.trained(name, parent, 0, 4), 2.0, dtype=dtype)
    rows = table([str(runs.folder)], "pairs").objects()
    (row,) = [r for r in rows if (r["pruned"], r["scratch"]) == ("p", "s")]
    assert row["matched"] == "yes" and row["difference"] is None
    assert row["why"] == "scratch was measured in bfloat16, pruned in float32"


def test_files_of_one_name_are_not_one_model(tmp_path):
    """Two released models, each evaluated into e.json of a folder of its own."""
    for name, loss in (("a", 2.0), ("b", 3.0)):
        runs = Runs(tmp_path / "runs" / name)
        made = runs.made(name, "init")
        (runs.folder / name / "prunecli.json").unlink()
        runs.eval("e", made, loss, source=f"{name}.txt")
        told = json.loads((runs.folder / "e.json").read_text())
        told["inputs"][0]["id"] = None
        (runs.folder / "e.json").write_text(json.dumps(told))
    found = [sorted(entry.metrics) for entry in collected(tmp_path / "runs").rows]
    assert sorted(found) == [["loss_a.txt"], ["loss_b.txt"]]


def test_bars_of_different_runs_stand_apart(runs):
    start = runs.made("start", "init")
    runs.eval("e-s", runs.trained("s", start, 0, 4), 3.0)
    for name, loss in (("a", 2.0), ("b", 2.5)):
        results = {"method": "flap", "ratio": 0.5}
        cut = runs.made(f"cut-{name}", "prune", None, {}, [calibrated(name)], results)
        runs.eval(f"e-{name}", runs.trained(f"p-{name}", cut, 0, 4), loss, [task()])
    runs.eval("e-s", runs.trained("s", start, 0, 4), 3.0, [task()])
    found = rows_of_layout(collected(runs.folder), "table16", None)
    series = figures.drawing(found, "1").panels[0].series[0]
    assert series.x == ["flap", "flap (p-b, s)"]


def test_auto_of_older_evaluations_is_what_it_was(runs):
    made = runs.trained("m", runs.made("start", "init"), 0, 4)
    runs.eval("e", made, 2.0, dtype="auto")
    (row,) = [r for r in table([str(runs.folder)]).objects() if r["model"] == "m"]
    assert row["dtype"] == "float32"


def test_advice_takes_no_run_for_another(runs):
    """Two calibrations at one token count are no one point of a curve."""
    for name in "ab":
        cut = runs.made(f"cut-{name}", "prune", None, {}, [calibrated(name)],
                        {"method": "flap", "ratio": 0.5})  # fmt: skip
        runs.eval(f"e-{name}", runs.trained(f"p-{name}", cut, 0, 4), 2.0 + (name == "b"))
    start = runs.made("start", "init")
    runs.eval("e-s", runs.trained("s", start, 0, 4), 3.0)
    with pytest.raises(InputError, match="differ from the other in more than seeds"):
        advice.advise(collected(runs.folder), None, 1000.0)


def test_every_metric_has_a_row_and_only_accuracies_are_points(runs):
    made = runs.made("start", "init")
    metrics = {"byte_perplexity": 40.0, "bits_per_byte": 5.3}
    own = task("wiki", 0.5, metric="byte_perplexity", metrics=metrics, sigmas={},
               lower_is_better=list(metrics))  # fmt: skip
    own |= {"value": 40.0, "sigma": None}
    both = {"exact_match,strict": 0.25, "exact_match,flexible": 0.5}
    text = task("gsm", 0.25, metric="exact_match,strict", metrics=both)
    whole = task("both", 0.4, tasks=["cloze"])
    runs.eval("e", made, 2.0, [own, text, whole, task("cloze", 0.4)])
    rows = {(r["data"], r["metric"]): r for r in table([str(runs.folder)]).objects()}
    assert rows["wiki", "bits_per_byte"]["value"] == 5.3
    assert rows["wiki", "byte_perplexity"]["accuracy"] is None
    assert rows["gsm", "exact_match,flexible"]["accuracy"] == 50
    assert rows["gsm", "exact_match,flexible"]["sd"] is None
    assert rows["gsm", "exact_match,strict"]["sd"] == pytest.approx(100 * text["sigma"])
    (entry,) = collected(runs.folder).rows
    found = entry.metrics
    assert found["wiki byte_perplexity"].value == 40 and found["wiki byte_perplexity"].lower
    # a group is no task beside its own
    assert found["average"].value == pytest.approx((25 + 40) / 2)


def columns(runs, *measured):
    """Return what stands in the columns of one evaluation of all these (source, digest, loss)."""
    record = pruned(runs, "m", *FIRST)
    runs.eval("m", record, 1.0)
    path = runs.folder / "m.json"
    told = json.loads(path.read_text())
    (one,) = told["results"]["data"]
    told["results"]["data"] = [
        {**one, "source": source, "digest": digest, "loss": loss, "perplexity": 10 * loss}
        for source, digest, loss in measured
    ]
    path.write_text(json.dumps(told))
    (entry,) = collected(runs.folder).rows
    return {key: float(measure.value) for key, measure in entry.metrics.items()}


def test_files_of_one_name_have_a_column_each(runs):
    found = columns(runs, ("t.txt", "first", 1.0), ("t.txt", "second", 2.0), ("u.txt", "third", 3))
    assert found == {"loss_t.txt first": 1.0, "loss_t.txt second": 2.0, "loss_u.txt": 3.0}


def test_the_same_tokens_twice_are_one_column(runs):
    assert columns(runs, ("t.txt", "first", 1.0), ("t.txt", "first", 1.0)) == {"loss_t.txt": 1.0}


def test_another_part_of_a_named_set_does_not_hide_that_of_the_suite(runs):
    found = columns(
        runs,
        ("c4:calibration", "first", 1.0),
        ("c4:evaluation", "second", 2.0),
        ("wikitext2:evaluation", "third", 3.0),
    )
    assert found == {"loss_c4:calibration first": 1.0, "ppl_c4": 20.0, "ppl_wikitext2": 30.0}


def test_a_perplexity_beyond_all_numbers_is_told_by_its_loss(runs):
    for seed in range(2):
        record = pruned(runs, f"m{seed}", FIRST[0], calibrated(f"x{seed}", seed=seed, **DRAWN))
        losses = [800.0, 801.0 + seed, 802.0]
        runs.eval(f"m{seed}", record, 0, source="c4:evaluation", perplexity=inf, losses=losses)
    (entry,) = collected(runs.folder).rows
    (key, measure) = entry.metrics.popitem()
    assert (key, entry.seeds) == ("loss_c4:evaluation", 2)
    assert measure.value == pytest.approx((801 + 801 + 1 / 3) / 2, rel=1e-12)


def test_a_model_without_sidecar_measured_in_two_ways_says_so(runs):
    record = pruned(runs, "m", *FIRST)
    for name, dtype in (("a", "float32"), ("b", "bfloat16")):
        (runs.folder / name).mkdir(parents=True)
        runs.eval(f"{name}/m", record, 1.0, dtype=dtype)
        path = runs.folder / name / "m.json"
        told = json.loads(path.read_text())
        told["results"].pop("model")
        path.write_text(json.dumps(told))
    (runs.folder / "m" / "prunecli.json").unlink()
    (entry,) = collected(runs.folder).rows
    note = entry.metrics["loss_text.txt"].note
    assert note == "measured more than once, also with dtype float32 instead of bfloat16"


def test_what_an_older_evaluation_does_not_tell_is_unknown(runs):
    """Those of tasks did not tell the tokenizer; two of that kind compare as before."""
    record = pruned(runs, "m", *FIRST)
    runs.eval("m", record, 1.0, [task(num_fewshot=None)])
    (entry,) = collected(runs.folder).rows
    protocol = dict(entry.metrics["cloze"].protocol)
    assert (protocol["tokenizer"], protocol["shots"]) == ("unknown", "several")


def test_a_budget_without_end_is_no_number_of_tokens(runs):
    pruned(runs, "m", *FIRST)
    with pytest.raises(UsageError, match="--budget inf: expected a finite number of tokens"):
        advice.advise(collected(runs.folder), None, inf)
