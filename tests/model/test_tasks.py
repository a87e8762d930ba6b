"""Tasks as lm-eval asks and judges them: what identifies one, and all that is told of it."""

import json
import random
from math import sqrt
from pathlib import Path

import pytest

import tiny
from prunecli import evaluate, init
from prunecli.errors import InputError, NotANumber, OutputExists, UsageError
from prunecli.measuring import harness
from prunecli.measuring import tasks as of_tasks
from prunecli.model.checkpoint import Checkpoint
from prunecli.report import SILENT
from prunecli.settings import Compute, Data, Output, Tasks

TEXT = "the cat dog sat on mat house tree runs blue green sky walks slowly table chair"
WORDS = TEXT.split(" ")
BOTH = [{"metric": "acc"}, {"metric": "acc_norm"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model that reads bytes; byte 0 stands for the end of a text."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "c.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    init(str(folder / "m"), config=str(folder / "c.json"), seed=3, tokenizer="bytes")
    settings = json.loads((folder / "m" / "tokenizer_config.json").read_text())
    settings["eos_token"] = "!"
    (folder / "m" / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder / "m")


def task(folder: Path, name: str = "own", items: int = 24, seed: int = 0, **changes) -> Tasks:
    """Write a task of four choices, with its data; JSON is YAML."""
    folder.mkdir(exist_ok=True, parents=True)
    draw = random.Random(seed)
    file = folder / f"{name.replace('/', '-')}.jsonl"
    rows = [
        {
            "query": " ".join(draw.sample(WORDS, 3)),
            "choices": [" ".join(draw.sample(WORDS, k)) for k in (1, 2, 3, 1)],
            "gold": draw.randrange(4),
            "number": number,
        }
        for number in range(items)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": BOTH,
        "metadata": {"version": 1},
        **changes,
    }
    text = json.dumps({key: value for key, value in record.items() if value is not None})
    text = text.replace('"!function ', "!function ").replace('!"', "")
    file.with_suffix(".yaml").write_text(text)
    return Tasks((name,), str(folder), allow_code=True)


def group(folder: Path, name: str, tasks: list, *means: dict) -> Tasks:
    record = {"group": name, "task": tasks, "aggregate_metric_list": list(means)}
    (folder / f"{name}.yaml").write_text(json.dumps(record))
    return Tasks((name,), str(folder), allow_code=True)


def code(folder: Path, text: str) -> str:
    """Write code.py beside tasks, and return what calls its `judge`."""
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "code.py").write_text(text)
    return "!function code.judge!"


GENERATING = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "none",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_choice": None,
    "doc_to_text": "",
    "doc_to_target": "{{query}}",
    "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
}
FEW = {"num_fewshot": 2, "fewshot_split": "test"}
CHANGES = [
    ({}, {"description": "Choose.\n\n"}),
    ({}, {"target_delimiter": "\n\nAnswer: "}),
    ({}, {"doc_to_text": "{{query}}?"}),
    ({}, {"doc_to_target": "{{3 - gold}}"}),
    ({}, {"doc_to_choice": "{{choices[::-1]}}"}),
    ({}, {"metric_list": BOTH[:1]}),
    ({}, {"gen_prefix": "It is"}),
    ({}, {"seed": 1}),
    ({}, FEW),
    (FEW, {"fewshot_delimiter": "\n"}),
    (FEW, {"fewshot_config": {"sampler": "first_n"}}),
    (GENERATING, {"generation_kwargs": {"until": ["."], "max_gen_toks": 4}}),
    (GENERATING, {"filter_list": [{"name": "a", "filter": [{"function": "take_first"}]}]}),
    (GENERATING, {"metric_list": [{"metric": "exact_match", "ignore_case": True}]}),
]


@pytest.mark.parametrize(("before", "change"), CHANGES)
def test_whatever_changes_a_task_changes_its_id(before, change, tmp_path):
    (first,), _ = of_tasks.load(task(tmp_path, **before), SILENT)
    (other,), _ = of_tasks.load(task(tmp_path, **{**before, **change}), SILENT)
    (again,), _ = of_tasks.load(task(tmp_path, **before), SILENT)
    assert first.digest == again.digest != other.digest
    assert first.items == other.items == 24


def test_where_a_task_lies_is_no_part_of_it(tmp_path):
    (one,), _ = of_tasks.load(task(tmp_path / "a"), SILENT)
    (other,), _ = of_tasks.load(task(tmp_path / "b"), SILENT)
    assert one.as_input("t") == other.as_input("t")


def test_code_that_judges_is_part_of_a_task(tmp_path):
    """With what it calls: the function that the task names is the same here."""
    digests = []
    for value in (0, 1):
        text = f"def right(): return {value}\ndef judge(doc, results): return {{'acc': right()}}\n"
        folder = tmp_path / str(value)
        wanted = task(folder, process_results=code(folder, text))
        (found,), _ = of_tasks.load(wanted, SILENT)
        digests.append(found.digest)
    assert digests[0] != digests[1]


def test_other_prompts_are_no_existing_result(model, tmp_path):
    """Neither --skip-existing nor OUT.partial take the old accuracy for the new prompts."""
    out = str(tmp_path / "e.json")
    first = evaluate(model, tasks=task(tmp_path / "t"), out=out)
    changed = task(tmp_path / "t", target_delimiter="\n\nAnswer: ")
    with pytest.raises(OutputExists, match="made from other inputs"):
        evaluate(model, tasks=changed, out=out, output=Output(skip_existing=True))
    made = evaluate(model, tasks=changed, out=out, output=Output(force=True))
    alone = evaluate(model, tasks=changed)
    assert made.results == alone.results
    assert made.results["tasks"][0]["metrics"] != first.results["tasks"][0]["metrics"]


def test_another_tokenizer_is_another_result(model, tmp_path):
    """Also where the vocabulary is the same, and only what a text begins with is not."""
    other = tmp_path / "other"
    other.mkdir()
    for path in Path(model).glob("tokenizer*"):
        (other / path.name).write_bytes(path.read_bytes())
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "?"}))
    wanted = task(tmp_path / "t")
    made = [
        evaluate(model, tasks=Tasks(wanted.names, wanted.include_path, tokenizer=folder)).sidecar
        for folder in (None, model, str(other))
    ]
    assert made[0]["id"] == made[1]["id"] != made[2]["id"]


@pytest.mark.parametrize("changes", [{}, FEW, {**GENERATING, **FEW}])
def test_requests_are_those_of_lm_evals_own_program(model, tmp_path, changes):
    """Having been built twice does not change the examples that are drawn for a prompt."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    wanted = task(tmp_path, **changes)
    (made,) = evaluate(model, tasks=wanted).results["tasks"]
    asked = []
    loaded = harness.Harness(Checkpoint(model), Compute(), wanted, None, SILENT)._load()
    kind = "generate_until" if "generation_kwargs" in changes else "loglikelihood"
    real = getattr(loaded, kind)
    setattr(loaded, kind, lambda requests: (asked.extend(requests), real(requests))[1])
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs = simple_evaluate(
        loaded, tasks=["own"], task_manager=manager, bootstrap_iters=0, log_samples=False
    )["results"]["own"]
    assert {f"{name},none": value for name, value in made["metrics"].items()} == {
        key: value for key, value in theirs.items() if "," in key and "stderr" not in key
    }
    (found,), _ = of_tasks.load(wanted, SILENT)
    of_tasks.seed(found.loaded)
    found.loaded.build_all_requests()
    assert [one.args for one in found.loaded.instances] == [one.args for one in asked]


def test_every_filter_is_told(model, tmp_path):
    """As gsm8k has them: here one finds nothing, which is the answer, the other all there is."""
    filters = [
        {"name": name, "filter": [{"function": "regex", **found}, {"function": "take_first"}]}
        for name, found in (
            ("flexible", {"regex_pattern": "^(.*)$", "fallback": "[]"}),
            ("strict", {"regex_pattern": "(no such thing)", "fallback": "none"}),
        )
    ]
    wanted = task(tmp_path, **{**GENERATING, "filter_list": filters})
    (made,) = evaluate(model, tasks=wanted).results["tasks"]
    assert made["metrics"] == {"exact_match,flexible": 0.0, "exact_match,strict": 1.0}
    assert made["metric"] == "exact_match,flexible" and made["value"] == 0.0
    assert made["counts"] == {"exact_match,flexible": 24, "exact_match,strict": 24}


def test_items_are_counted_for_each_metric(model, tmp_path):
    judged = code(
        tmp_path,
        "def judge(doc, results):\n"
        "    own = {'acc': doc['number'] % 2}\n"
        "    return {**own, 'f1': 0.5} if doc['number'] < 10 else own\n",
    )
    means = [
        {"metric": name, "aggregation": "mean", "higher_is_better": better}
        for name, better in (("f1", False), ("acc", True))
    ]
    wanted = task(tmp_path, process_results=judged, metric_list=means)
    (made,) = evaluate(model, tasks=wanted).results["tasks"]
    assert made["counts"] == {"acc": 24, "f1": 10} and made["n"] == 24
    assert made["metrics"] == {"acc": 0.5, "f1": 0.5}
    assert made["sigmas"] == {"acc": pytest.approx(sqrt(0.25 / 24)), "f1": None}
    assert made["lower_is_better"] == ["f1"]


@pytest.mark.parametrize("by_size", [True, False])
def test_groups_are_means_of_their_tasks(model, tmp_path, by_size):
    for name, items in (("one", 5), ("two", 11), ("three", 24)):
        task(tmp_path, name, items, seed=items)
    mean = {"metric": "acc", "weight_by_size": by_size}
    group(tmp_path, "inner", ["two", "three"], mean, {**mean, "metric": "acc_norm"})
    wanted = group(tmp_path, "outer", ["one", "inner"], mean)
    made = evaluate(model, tasks=wanted)
    found = {one["name"]: one for one in made.results["tasks"]}
    assert found.keys() == {"one", "two", "three", "inner", "outer"}
    for name, members in (("inner", ("two", "three")), ("outer", ("one", "two", "three"))):
        parts, told = [found[member] for member in members], found[name]
        sizes = [part["n"] if by_size else 1 for part in parts]
        pairs = list(zip(sizes, parts, strict=True))
        assert set(told["tasks"]) == set(members) and told["n"] == sum(p["n"] for p in parts)
        assert told["metrics"]["acc"] == pytest.approx(
            sum(size * part["metrics"]["acc"] for size, part in pairs) / sum(sizes)
        )
        assert told["sigmas"]["acc"] == pytest.approx(
            sqrt(sum((size * part["sigmas"]["acc"]) ** 2 for size, part in pairs)) / sum(sizes)
        )
    assert found["inner"]["metric"] == "acc_norm" and found["outer"]["metric"] == "acc"
    roles = [entry["role"] for entry in made.sidecar["inputs"]]
    assert roles == ["model", *["task"] * 3, *["group"] * 2]
    (limited,) = (
        one
        for one in evaluate(
            model, tasks=Tasks(("inner",), str(tmp_path), limit=7)
        ).results["tasks"]
        if one["name"] == "inner"
    )  # fmt: skip
    assert limited["n"] == 14 and limited["limit"] == 7


def test_what_cannot_be_measured_is_refused_before_a_model_runs(model, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.Harness, "run", lambda *_: pytest.fail("ran a model"))

    def refused(wanted: Tasks, said: str, error=InputError) -> None:
        with pytest.raises(error, match=said):
            evaluate(model, tasks=wanted)

    task(tmp_path, "plain", metric_list=BOTH[:1])
    task(tmp_path, "norm", metric_list=BOTH[1:])
    mixed = group(tmp_path, "mixed", ["plain", "norm"], {"metric": "acc"})
    refused(mixed, "'mixed' is a mean of 'acc,none', which 1 of its 2 tasks lack .'norm'")
    named = group(tmp_path, "named", ["plain"], {"metric": "acc", "filter_list": ["strict"]})
    refused(named, "mean of 'acc,strict', which 1 of its 1 tasks lack")
    few = {"task": "plain", **FEW}
    group(tmp_path, "few", [few], {"metric": "acc"})
    both = Tasks(("plain", "few"), str(tmp_path))
    refused(both, "'plain' is asked for twice, in forms that differ", UsageError)
    absent = [*BOTH, {"metric": "perplexity"}]
    refused(task(tmp_path, "x", metric_list=absent), "metric 'perplexity', which lm-eval does not")
    refused(task(tmp_path, "x", metric_list=[*BOTH, *BOTH]), "has metric 'acc' twice")
    filters = [{"name": "a", "filter": [{"function": "take_first"}]}] * 2
    refused(task(tmp_path, "x", filter_list=filters), "has filter 'a' twice")
    refused(task(tmp_path, "x", metric_list=[{"metric": "bypass"}]), "has no metric")
    refused(task(tmp_path, "x", unsafe_code=True), "runs code that the model writes")
    refused(task(tmp_path, "x", doc_to_image="query"), "has images or sound")
    refused(task(tmp_path, "x", doc_to_text="{{query[}}"), "cannot (make its requests|load)")
    with pytest.raises(UsageError, match="limit is -1: expected 1 or more"):
        Tasks(("plain",), str(tmp_path), limit=-1)


@pytest.mark.parametrize(
    ("returned", "said", "error"),
    [
        ("{'acc': float('nan')}", "metric 'acc' of task 'own' is nan", NotANumber),
        ("{'f1': 1}", "asks for metric 'acc', which lm-eval does not give", InputError),
    ],
)
def test_what_is_no_figure_is_refused(model, tmp_path, returned, said, error):
    judged = code(tmp_path, f"def judge(doc, results): return {returned}\n")
    with pytest.raises(error, match=said):
        evaluate(model, tasks=task(tmp_path, process_results=judged, metric_list=BOTH[:1]))


def test_names_that_are_alike_as_files_are_apart(model, tmp_path):
    names = ("a/b", "a_b")
    for number, name in enumerate(names):
        task(tmp_path / "t", name, 10 + number, seed=number)
    tokens = [tiny.tokens(tmp_path / f"{name}.safetensors") for name in "ab"]
    given = {"data": [Data(d) for d in tokens], "tasks": Tasks(names, str(tmp_path / "t"))}
    made = evaluate(model, out=str(tmp_path / "e.json"), **given).results
    assert made == evaluate(model, **given).results
    assert [one["n"] for one in made["tasks"]] == [10, 11]
    assert [one["source"] for one in made["data"]] == ["a.safetensors:ids", "b.safetensors:ids"]
