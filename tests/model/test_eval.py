"""`eval`: tasks as lm-eval scores them, losses as plain transformers computes them, resuming."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli import evaluate, init, tokenize
from prunecli.data import documents
from prunecli.errors import InputError, Stopped, UsageError
from prunecli.measuring import harness, perplexity
from prunecli.measuring.suite import TASKS, suite
from prunecli.model import stream
from prunecli.model.checkpoint import Checkpoint
from prunecli.report import SILENT
from prunecli.settings import Compute, Data, Output, Tasks

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
{metrics}metadata:
  version: {version}
"""
METRICS = {"acc": "  - metric: acc\n", "acc_norm": "  - metric: acc_norm\n"}
TEXT = "the river runs past an old mill where nobody has ground any corn for years"
WORDS = TEXT.split(" ")


def write_task(folder: Path, name: str, metrics=("acc", "acc_norm"), items=12, version=1) -> None:
    """Write a task of its own: which of four words of different lengths comes next."""
    folder.mkdir(exist_ok=True, parents=True)
    rows = [
        {
            "query": " ".join(WORDS[i : i + 3]),
            "choices": [WORDS[(i + k * 3) % len(WORDS)] for k in (1, 2, 3, 4)],
            "gold": (i * 7) % 4,
        }
        for i in range(items)
    ]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = "".join(METRICS[metric] for metric in metrics)
    text = TASK.format(name=name, data=data.resolve(), metrics=listed, version=version)
    (folder / f"{name}.yaml").write_text(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "c.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    (folder / "text.txt").write_text(" ".join(WORDS * 40))
    rows = str(folder / "rows")
    tokenize(str(folder / "text.txt"), rows, seq_len=16, train_tokenizer=270, workers=1)
    init(str(folder / "m"), config=str(folder / "c.json"), seed=3, tokenizer=rows)
    return str(folder / "m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks, one with both metrics and one with plain accuracy."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "next4")
    write_task(folder, "plain4", ("acc",), items=9, version=2)
    return folder


def on(folder, *names, **changes) -> Tasks:
    return Tasks(names or ("next4", "plain4"), str(folder), **changes)


def test_tasks_equal_lm_evals_own_program(model, folder, tmp_path):
    made = {task["name"]: task for task in evaluate(model, tasks=on(folder)).results["tasks"]}
    command = [str(Path(sys.executable).with_name("lm-eval")), "run", "--model", "hf"]
    command += ["--model_args", f"pretrained={model},softmax_dtype=float32,dtype=float32"]
    command += ["--tasks", "next4,plain4", "--include_path", str(folder), "--device", "cpu"]
    command += ["--batch_size", "8", "--output_path", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=200)
    (file,) = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]
    assert theirs["next4"]["acc,none"] == made["next4"]["acc"]
    assert theirs["next4"]["acc_norm,none"] == made["next4"]["acc_norm"] == made["next4"]["value"]
    assert theirs["plain4"]["acc,none"] == made["plain4"]["value"]


def test_what_is_recorded(model, folder):
    made = evaluate(model, tasks=on(folder))
    one, other = made.results["tasks"]
    assert (one["metric"], one["n"], one["version"], one["num_fewshot"]) == ("acc_norm", 12, "1", 0)
    assert (other["metric"], other["n"], other["version"]) == ("acc", 9, "2")
    for task in (one, other):
        value = task["value"]
        assert task["sigma"] == pytest.approx(math.sqrt(value * (1 - value) / task["n"]))
    assert made.results["data"] == [] and "loss" not in made.results
    roles = [entry["role"] for entry in made.sidecar["inputs"]]
    assert roles == ["model", "task", "task"]


def test_limit_takes_the_first_items(model, folder):
    (few,) = evaluate(model, tasks=on(folder, "next4", limit=5)).results["tasks"]
    (all_,) = evaluate(model, tasks=on(folder, "next4")).results["tasks"]
    assert few["n"] == 5 and few["limit"] == 5 and few["digest"] != all_["digest"]


def test_batch_size_changes_nothing(model, folder):
    one, eight = (
        evaluate(model, tasks=on(folder, "next4", batch_size=size)).results["tasks"]
        for size in (1, 8)
    )
    assert one == eight


def test_average_needs_all_eight():
    tasks = [{"name": name, "value": 0.5 + i / 100} for i, name in enumerate(TASKS)]
    assert harness.average(tasks) == pytest.approx(0.535)
    assert harness.average(tasks[:-1]) is None


def test_perplexity_equals_a_plain_loop(model, tmp_path):
    from safetensors.torch import load_file

    data = tiny.tokens(tmp_path / "t.safetensors", rows=6, length=32)
    made = evaluate(model, data=[Data(data)]).results
    ids = load_file(tmp_path / "t.safetensors")["ids"]
    total = 0.0
    for row in ids:
        scores = tiny.logits(model, row[None])[0, :-1].double().log_softmax(-1)
        total -= float(scores[range(31), row[1:].long()].sum())
    loss = total / (6 * 31)
    assert made["loss"] == pytest.approx(loss, rel=1e-6)
    assert made["perplexity"] == pytest.approx(math.exp(loss), rel=1e-6)


def test_data_and_tasks_in_one_sidecar(model, folder, tmp_path):
    data = Data(tiny.tokens(tmp_path / "t.safetensors"))
    out = tmp_path / "e.json"
    made = evaluate(model, data=[data], tasks=on(folder), out=str(out))
    assert json.loads(out.read_text())["results"] == made.results
    assert len(made.results["data"]) == 1 and len(made.results["tasks"]) == 2
    assert not list(tmp_path.glob("*.partial"))


def test_resumes_by_measurement(model, folder, tmp_path, monkeypatch):
    """What was finished before a failure is not run again, and the result is the same."""
    data = Data(tiny.tokens(tmp_path / "t.safetensors"))
    whole = evaluate(model, data=[data], tasks=on(folder), out=str(tmp_path / "whole.json"))
    ran: list[str] = []
    real = harness.Harness.run

    def cut(self, task, turn):
        ran.append(task.name)
        if task.name == "plain4" and ran.count("plain4") == 1:
            raise KeyboardInterrupt
        return real(self, task, turn)

    monkeypatch.setattr(harness.Harness, "run", cut)
    out = str(tmp_path / "e.json")
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data=[data], tasks=on(folder), out=out)
    assert not Path(out).exists() and Path(f"{out}.partial").is_dir()
    monkeypatch.setattr(perplexity, "result", lambda *_: pytest.fail("measured again"))
    made = evaluate(model, data=[data], tasks=on(folder), out=out)
    assert ran == ["next4", "plain4", "plain4"]
    assert made.results == whole.results
    assert not Path(f"{out}.partial").exists()


def test_stopped_within_a_task(model, folder, tmp_path):
    """A batch is the step: the task before is kept, the one under way begins anew."""
    whole = evaluate(model, tasks=on(folder), out=str(tmp_path / "whole.json"))
    out = str(tmp_path / "e.json")
    batches = []

    def stop() -> bool:
        batches.append(1)
        return len(list(Path(f"{out}.partial").glob("task-*.json"))) == 1

    with pytest.raises(Stopped, match="stopped within a task; rerun the same command to resume"):
        evaluate(model, tasks=on(folder), out=out, stop=stop)
    first = len(batches) - 1  # the last was asked for by the second task
    rest: list[int] = []
    made = evaluate(model, tasks=on(folder), out=out, stop=lambda: bool(rest.append(1)))
    assert made.results == whole.results
    total: list[int] = []
    evaluate(model, tasks=on(folder), out=str(tmp_path / "a"), stop=lambda: bool(total.append(1)))
    assert first > 0 and first + len(rest) == len(total)
    assert {path.name for path in tmp_path.iterdir()} >= {"whole.json", "e.json"}
    assert not Path(f"{out}.partial").exists()


def test_a_changed_task_is_another_result(model, folder, tmp_path):
    """The key holds the items: --skip-existing does not take an old result for a new task."""
    copy = tmp_path / "tasks"
    write_task(copy, "next4")
    out = str(tmp_path / "e.json")
    first = evaluate(model, tasks=on(copy, "next4"), out=out)
    same = evaluate(model, tasks=on(copy, "next4"), out=out, output=Output(skip_existing=True))
    assert same.sidecar == first.sidecar
    write_task(copy, "next4", items=11)
    with pytest.raises(Exception, match="made from other inputs"):
        evaluate(model, tasks=on(copy, "next4"), out=out, output=Output(skip_existing=True))


def test_names_are_checked_first(model, folder, monkeypatch):
    monkeypatch.setattr(perplexity, "read", lambda *_: pytest.fail("too late"))
    with pytest.raises(UsageError, match="unknown task 'piqaa': did you mean 'piqa'"):
        evaluate(model, data=[Data()], tasks=on(folder, "next4", "piqaa"))


def test_offline_tasks_name_their_data(model, monkeypatch):
    monkeypatch.setattr(harness.Harness, "run", lambda *_: pytest.fail("ran a model"))
    with pytest.raises(InputError, match=r"baber/piqa.*--include-path"):
        evaluate(model, tasks=Tasks(("piqa",)))


def test_offline_suite_names_its_data(model):
    data, names = suite("paper", official=False)
    with pytest.raises(InputError, match="data 'c4' needs the Hugging Face hub"):
        evaluate(model, data=data)
    assert names == TASKS
    with pytest.raises(UsageError, match="unknown suite"):
        suite("papers", official=False)


def test_suite_takes_whole_windows_there_are(model, monkeypatch):
    """Fewer than 256 windows are no error, a short model shortens them, both are recorded."""
    parts = []

    def text(source, part, lazy, reading):
        parts.append(source)
        return documents.Text(source, [" ".join(WORDS * 40)])

    monkeypatch.setattr("prunecli.data.documents.open_text", text)
    data, _ = suite("paper", official=False)
    made = evaluate(model, data=data).results["data"]
    assert parts == [
        "c4:evaluation",
        "wikitext103:evaluation",
        "wikitext2:evaluation",
        "cnn_dailymail:evaluation",
    ]
    for one in made:
        assert one["seq_len"] == 64 and 1 < one["windows"] < 256
    official, _ = suite("paper", official=True)
    assert official[0].source == "c4:calibration"


@pytest.mark.parametrize(
    "line", ["process_docs: !function code.py", "doc_to_text: \"{{ ''.__class__ }}\""]
)
def test_code_needs_to_be_allowed(model, tmp_path, line):
    write_task(tmp_path, "next4")
    with (tmp_path / "next4.yaml").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"next4.yaml' can run code .* --allow-code"):
        evaluate(model, tasks=on(tmp_path, "next4"))


def test_underscores_in_a_path_are_no_code(model, tmp_path):
    write_task(tmp_path / "my__tasks", "next4")
    (task,) = evaluate(model, tasks=on(tmp_path / "my__tasks", "next4")).results["tasks"]
    assert task["n"] == 12


def test_bad_folders_and_models(model, folder, llama, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        evaluate(model, tasks=on(tmp_path / "none", "next4"))
    with pytest.raises(InputError, match="has no tokenizer, which tasks need"):
        evaluate(str(llama), tasks=on(folder))
    (folder / "next4.jsonl").rename(folder / "moved")
    try:
        with pytest.raises(InputError, match="task 'next4' cannot load its data"):
            evaluate(model, tasks=on(folder, "next4"))
    finally:
        (folder / "moved").rename(folder / "next4.jsonl")


def of_bytes(folder: Path, vocab: int) -> str:
    """Make a model with the tokenizer that `init` gives it."""
    (folder / "c.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=vocab)))
    init(str(folder / "m"), config=str(folder / "c.json"))
    return str(folder / "m")


@pytest.mark.parametrize("vocab", [256, 300])
def test_a_tokenizer_without_beginning_of_sequence(folder, tmp_path, vocab):
    """Bytes, as `init` gives them, have no token to begin a text with; lm-eval wants one."""
    (task,) = evaluate(of_bytes(tmp_path, vocab), tasks=on(folder, "next4")).results["tasks"]
    assert task["n"] == 12


@pytest.fixture
def generation(tmp_path):
    """A task whose answers are written: it stops at the end of sequence, or at a blank line."""
    write_task(tmp_path / "tasks", "written", metrics=(), items=3)
    file = tmp_path / "tasks" / "written.yaml"
    text = file.read_text().replace("multiple_choice", "generate_until")
    text = text.replace("doc_to_choice: choices\n", "").replace("metadata", METRIC + "metadata")
    file.write_text(text)
    return on(tmp_path / "tasks", "written")


METRIC = """  - metric: exact_match
generation_kwargs:
  until: ["\\n\\n"]
  max_gen_toks: 4
"""


def test_generation_with_the_tokenizer_of_init(generation, tmp_path):
    model = of_bytes(tmp_path, 300)
    (task,) = evaluate(model, tasks=generation).results["tasks"]
    assert (task["n"], task["metric"], task["value"]) == (3, "exact_match", 0)


def test_generation_needs_an_end_of_sequence(generation, tmp_path, monkeypatch):
    monkeypatch.setattr(harness.Harness, "run", lambda *_: pytest.fail("ran a model"))
    with pytest.raises(InputError, match=r"'written' generates text, .* no end of sequence to"):
        evaluate(of_bytes(tmp_path, 256), tasks=generation)


@pytest.mark.parametrize("adds", [True, False])
def test_tasks_begin_with_bos_as_data_does(model, folder, tmp_path, monkeypatch, adds):
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, processors

    first: dict[str, set[int]] = {}
    real = HFLM._model_call

    def call(self, inputs, *arguments, **settings):
        first.setdefault(bos, set()).update(inputs[:, 0].tolist())
        return real(self, inputs, *arguments, **settings)

    monkeypatch.setattr(HFLM, "_model_call", call)
    words = tmp_path / "words"
    shutil.copytree(model, words, ignore=shutil.ignore_patterns("*.safetensors"))
    bare = Tokenizer.from_file(str(words / "tokenizer.json"))
    bare.add_special_tokens(["<s>"])
    if adds:
        bare.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 270)]
        )
    bare.save(str(words / "tokenizer.json"))
    config = json.loads((words / "tokenizer_config.json").read_text())
    (words / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<s>"}))
    made = {}
    for bos in ("auto", "always", "never"):
        tasks = on(folder, "next4", bos=bos, tokenizer=str(words))
        made[bos] = evaluate(model, tasks=tasks).sidecar
        assert made[bos]["options"]["bos"] == bos
    begins = {bos: 270 in ids for bos, ids in first.items()}
    assert begins == {"auto": adds, "always": True, "never": False}
    assert all(ids == {270} for bos, ids in first.items() if begins[bos])
    assert len({record["id"] for record in made.values()}) == 3
    with pytest.raises(InputError, match="--bos always: the tokenizer has no beginning"):
        evaluate(model, tasks=on(folder, "next4", bos="always"))


def test_bfloat16_has_fp32_log_probabilities(model, folder):
    made = evaluate(model, tasks=on(folder, "next4"), compute=Compute(dtype="bfloat16"))
    assert made.sidecar["options"]["dtype"] == "bfloat16"
    loaded = harness.Harness(
        Checkpoint(model), Compute(dtype="bfloat16"), on(folder), None, SILENT
    )._load()
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert loaded.softmax_dtype == torch.float32
    assert loaded._model_call(ids).dtype == torch.bfloat16


def test_a_loss_is_that_of_its_text_alone(llama, tmp_path) -> None:
    """The same bits whatever other windows are measured, and in whatever order."""
    ids = load_file(tiny.tokens(tmp_path / "t.safetensors", rows=9, length=31)[:-4])["ids"]
    save_file({"few": ids[4:7].clone(), "back": ids.flip(0).clone()}, tmp_path / "o.safetensors")

    def losses(name: str) -> list[float]:
        found = evaluate(str(llama), data=[Data(name)]).results["data"][0]
        return found["window_losses"]

    whole = losses(f"{tmp_path / 't.safetensors'}:ids")
    assert losses(f"{tmp_path / 'o.safetensors'}:few") == whole[4:7]
    assert losses(f"{tmp_path / 'o.safetensors'}:back") == whole[::-1]


def test_the_noise_that_is_left(llama, tmp_path, monkeypatch) -> None:
    """Greatest differences between the times: none on a CPU, else what the times differ by."""
    data = [Data(tiny.tokens(tmp_path / "t.safetensors"))]
    assert "noise" not in evaluate(str(llama), data=data).results["data"][0]
    made = evaluate(str(llama), data=data, repeat=3)
    assert made.results["data"][0]["noise"] == {"repeats": 3, "loss": 0.0, "window_loss": 0.0}
    assert made.sidecar["options"]["repeat"] == 3

    exact, turns = stream.sequence_losses, iter(range(3))

    def noisy(runner, ids):
        found = exact(runner, ids)
        # of the first window in the order asked for: the last one in the second turn
        found[0] += (ids.shape[1] - 1) * next(turns)
        return found

    monkeypatch.setattr(stream, "sequence_losses", noisy)
    noise = evaluate(str(llama), data=data, repeat=3).results["data"][0]["noise"]
    assert noise["loss"] == pytest.approx(2 / 8) and noise["window_loss"] == pytest.approx(2)


def test_batches_of_tasks_are_halved_to_see_their_noise(model, folder) -> None:
    wanted = on(folder, "next4", batch_size=4)
    task = evaluate(model, tasks=wanted, repeat=2).results["tasks"][0]
    assert task["noise"]["repeats"] == 2 and set(task["noise"]["metrics"]) == set(task["metrics"])
    # the same answers: what batches do to the sums is far below what tells these apart
    assert task["noise"]["value"] == 0
    alone = evaluate(model, tasks=on(folder, "next4")).sidecar["options"]
    assert alone["batch_size"] == 1
