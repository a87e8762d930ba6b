"""No task file of others runs code without --allow-code, whichever way it takes."""

import json
import re
import resource
import time

import pytest

import tiny
from prunecli import evaluate, init
from prunecli.errors import InputError
from prunecli.measuring import confined
from prunecli.settings import Tasks


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "c.json").write_text(json.dumps(tiny.config_of("llama", vocab_size=300)))
    init(str(folder / "m"), config=str(folder / "c.json"), seed=3, tokenizer="bytes")
    return str(folder / "m")


def task(folder, **changes) -> dict:
    (folder / "rows.jsonl").write_text(json.dumps({"q": "x", "a": "y", "b": "z", "l": 0}) + "\n")
    return {
        "task": "own", "dataset_path": "json", "test_split": "test", "doc_to_text": "{{q}}",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "output_type": "multiple_choice", "doc_to_target": "l", "metric_list": [{"metric": "acc"}],
        "doc_to_choice": ["{{a}}", "{{b}}"], **changes,
    }  # fmt: skip


GLOBALS = '{{ lipsum["\\x5f\\x5fglobals\\x5f\\x5f"]["os"].system("touch %s") }}'
HIDDEN = "{%% set u = '_' %%}{{ lipsum[u~u~'globals'~u~u]['os'].system('touch %s') }}"


@pytest.mark.parametrize("way", ["globals", "hidden", "tag", "directive", "include", "metric",
                                 "choices", "long"])  # fmt: skip
def test_nothing_runs(way, model, tmp_path):
    folder, mark = tmp_path / "tasks", tmp_path / "ran"
    folder.mkdir()
    code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n\ndef f(*_):\n    return 0\n"
    (folder / "evil.py").write_text(code)
    (folder / "base.txt").write_text("process_docs: !function evil.f\n")
    (folder / "met.py").write_text(code)
    changes = {
        "globals": {"doc_to_text": GLOBALS % mark},
        "hidden": {"doc_to_text": HIDDEN % mark},
        "metric": {"metric_list": [{"metric": str(folder / "met.py")}]},
        "choices": {"doc_to_choice": GLOBALS % mark},
        "include": {"include": "base.txt"},
        "long": {"doc_to_text": '{{ "x" * 3000000000 }}'},
    }
    text = json.dumps(task(folder, **changes.get(way, {})))
    if way == "tag":
        text = text[:-1] + ', "process_docs": !%66unction evil.f}'
    if way == "directive":
        text = "%TAG !e! !func\n---\n" + text[:-1] + ', "process_docs": !e!tion evil.f}'
    (folder / "own.yaml").write_text(text)
    with pytest.raises(InputError):
        evaluate(model, tasks=Tasks(("own",), str(folder)))
    assert not mark.exists()


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set n = namespace(x='x' * 1000) %}"
    "{% for i in range(50) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)
TREE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"


@pytest.mark.parametrize("template", [
    LOOPS, DOUBLED, TREE, "{{ 'x' | center(3000000000) }}", "{{ '%3000000000d' | format(1) }}",
    "{{ 'x'.ljust(3000000000) }}", "{{ lipsum(n=99999999) }}", "{{ 9 ** 9 ** 9 }}",
    "{{ range(99999) | list | string * 99 }}",
])  # fmt: skip
def test_templates_are_bounded(template, model, tmp_path):
    before = time.process_time(), peak()
    (tmp_path / "own.yaml").write_text(json.dumps(task(tmp_path, doc_to_text=template)))
    with pytest.raises(InputError, match="a template of a task file is not for any text: "):
        evaluate(model, tasks=Tasks(("own",), str(tmp_path)))
    assert time.process_time() - before[0] < 10 and peak() - before[1] < 2 * confined.MEMORY


def peak() -> int:
    """Return the most bytes that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


FILTER = [{"name": "x", "filter": [{"function": "regex", "regex_pattern": "(.?.?)*[^\\s\\S]"}]}]
GENERATED = {"output_type": "generate_until", "doc_to_target": "{{a}}",
             "generation_kwargs": {"max_gen_toks": 32, "until": []}}  # fmt: skip


def test_filters_are_bounded(model, tmp_path):
    """An expression that tries all ways of taking an answer apart ends after a while."""
    before = time.process_time()
    (tmp_path / "own.yaml").write_text(json.dumps(task(tmp_path, **GENERATED, filter_list=FILTER,
        metric_list=[{"metric": "exact_match"}])))  # fmt: skip
    with pytest.raises(InputError, match="a filter of a task file is not for any text: it takes"):
        evaluate(model, tasks=Tasks(("own",), str(tmp_path)))
    assert time.process_time() - before < 10


def test_metrics_are_bounded(tmp_path):
    def search(task, document, answers):
        return re.sub("(x|x|xx)*y", "", "x" * 99)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(confined._own, "score", search)
        with pytest.raises(InputError, match="a metric of a task file is not for any text"):
            confined._score(None, None, None)


MERGES = "".join(
    f"k{n}: &k{n} {{<<: [{', '.join([f'*k{n - 1}'] * 9)}]}}\n" if n else "k0: &k0 {a: 1}\n"
    for n in range(9)
)
LISTS = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9) if n else 1}]\n" for n in range(12))


@pytest.mark.parametrize("how", ["alone", "included"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MERGES, "merges mappings by '<<'"),
        (LISTS, "names the same values again and again"),
        ("k: &k [*k]\n", "nested too deeply"),
        ("#" * 1_000_001, "more than 1 MB"),
    ],
)
def test_what_unfolds_in_a_task_file(text, told, how, model, tmp_path):
    own = "\n".join(f"{key}: {json.dumps(value)}" for key, value in task(tmp_path).items())
    beside = {"alone": "", "included": "include: base.txt\n"}[how]
    (tmp_path / "base.txt").write_text(text)
    (tmp_path / "own.yaml").write_text(f"{beside or text}\n{own}\n")
    with pytest.raises(InputError, match=re.escape(told)):
        evaluate(model, tasks=Tasks(("own",), str(tmp_path)))


@pytest.mark.parametrize("allow_code", [False, True])
def test_a_file_that_is_missing_is_named(allow_code, model, tmp_path):
    """Once the task that includes it was called unknown, after all of lm-eval's were indexed."""
    (tmp_path / "own.yaml").write_text(json.dumps({"include": "gone.txt", **task(tmp_path)}))
    with pytest.raises(InputError, match=r"'gone.txt' cannot be loaded"):
        evaluate(model, tasks=Tasks(("own",), str(tmp_path), allow_code=allow_code))


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset_path": "pandas"},
        {"dataset_path": "webdataset"},
        {"dataset_kwargs": {"trust_remote_code": True}},
    ],
)
def test_data_that_are_more_than_rows(changes, model, tmp_path):
    (tmp_path / "own.yaml").write_text(json.dumps(task(tmp_path, **changes)))
    with pytest.raises(InputError, match=r"has its data in|asks for data that need code"):
        evaluate(model, tasks=Tasks(("own",), str(tmp_path)))


@pytest.mark.parametrize("changes, told", [
    ({"output_type": "generate_until", "doc_to_target": "{{a}}"},
     "generates up to 256 tokens, expected 1 to 63"),
    ({"output_type": "generate_until", "doc_to_target": "{{a}}",
      "generation_kwargs": {"max_new_tokens": "x"}}, "generates up to x tokens"),
    ({"doc_to_choice": ["{{a}}", {"b": 1}]}, "task 'own' cannot"),
    ({"doc_to_choice": ["{{ nothing.at.all }}", "{{b}}"], "doc_to_target": "{{ [] }}"},
     "task 'own' cannot"),
    ({"doc_to_choice": []}, "task 'own' cannot"),
    ({"doc_to_choice": [["a"], ["b"]], "doc_to_target": 7}, "task 'own' cannot"),
])  # fmt: skip
def test_what_does_not_work_is_told(changes, told, model, tmp_path):
    (tmp_path / "own.yaml").write_text(json.dumps(task(tmp_path, **changes)))
    with pytest.raises(InputError, match=told):
        evaluate(model, tasks=Tasks(("own",), str(tmp_path)))


def test_an_ordinary_one_is_measured(model, tmp_path):
    (tmp_path / "own.yaml").write_text(json.dumps(task(tmp_path)))
    made = evaluate(model, tasks=Tasks(("own",), str(tmp_path)))
    assert made.results["tasks"][0]["n"] == 1
