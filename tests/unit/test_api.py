"""The library by keywords: typed as its records are, and every example of its page runs."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import prunecli
import tiny
from prunecli import api
from prunecli.errors import UsageError
from prunecli.settings import Amount, Compute, Data, InitRequest, Output, RunContext, Training

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)


def names(*records: type) -> set[str]:
    return {field.name for record in records for field in dataclasses.fields(record)}


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (api.RunWords, names(Output, Compute, RunContext) - {"path", "ranks"}),
        (api.AmountWords, names(Amount) | {"amount"}),
        (api.DataWords, names(Data) - {"source", "up_to", "asked"} | {"data"}),
        (api.InitWords, names(Output, Compute, RunContext, InitRequest) - {"path", "ranks"}),
        (
            api.TrainWords,
            names(Output, Compute, RunContext, Training) - {"path", "ranks", "model", "data"},
        ),
    ],
)
def test_keywords_are_the_fields_of_records(words, fields):
    assert set(get_type_hints(words)) == fields


def test_records_and_keywords_are_one(llama, calibration, tmp_path):
    made = [
        prunecli.prune(
            str(llama), str(tmp_path / "a"), method="flap", amount=Amount(ratio=0.5),
            data=Data(calibration), compute=Compute(dtype="float32"),
        ),
        prunecli.prune(
            str(llama), str(tmp_path / "b"), method="flap", ratio=0.5, data=calibration,
            dtype="float32",
        ),
    ]  # fmt: skip
    assert made[0].sidecar["id"] == made[1].sidecar["id"]


def test_an_unknown_keyword(llama, tmp_path):
    with pytest.raises(UsageError, match=r"unknown keyword 'rati'.*did you mean 'ratio'"):
        prunecli.prune(str(llama), str(tmp_path / "o"), method="flap", rati=0.5)
    with pytest.raises(UsageError, match="'structure' is an option of a method; use options="):
        prunecli.prune(str(llama), str(tmp_path / "o"), method="flap", structure="AL-AM")


@pytest.mark.parametrize("code", EXAMPLES, ids=["prune", "steps", "scratch", "notebook"])
def test_examples_of_the_page(code, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config_of("llama")))
    prunecli.init(str(tmp_path / "in"), config=str(tmp_path / "config.json"), tokenizer="bytes")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"dtype": "float16"}, r"dtype: unknown value 'float16': did you mean 'bfloat16'"),
        ({"buffer": "x"}, "buffer: unknown value 'x'; choose from auto, device, ram, disk"),
        ({"seed": "a"}, "seed is 'a': expected a whole number"),
        ({"seed": -1}, "seed is -1: expected 0 or more"),
        ({"seed": 2**70}, "expected 4.29497e\\+09 or less"),
        ({"nsamples": "4"}, "nsamples is '4': expected a whole number or None"),
        ({"skip_bad": -1}, "skip_bad is -1: expected 0 or more"),
        ({"ratio": "0.5"}, "ratio is '0.5': expected a number or None"),
        ({"layers": 2.5}, "layers is 2.5: expected a whole number or None"),
        ({"layers": True}, "layers is True: expected a whole number or None"),
        ({"amount": 0.5}, r"amount is 0.5: expected a record Amount\(...\)"),
        ({"compute": "cpu"}, r"compute is 'cpu': expected a record Compute\(...\)"),
        ({"compat": "yes"}, "compat is 'yes': expected True or False"),
        ({"options": "structure=UL-MM"}, "options is 'structure=UL-MM': expected a Mapping"),
        ({"options": {"structur": "UL-MM"}}, "--structur: did you mean 'structure'"),
        ({"options": {"metric": 3}}, "--metric: expected str, got 3"),
        ({"report": None}, "report is None: expected a Report"),
        ({"argv": "hello"}, "argv is 'hello': expected a tuple of text"),
        ({"path": "zz"}, "unknown keyword 'path'"),
        ({"up_to": True}, "unknown keyword 'up_to'"),
        ({"output": Output("other")}, "output has the path 'other'; give OUT by itself"),
    ],
)  # fmt: skip
def test_wrong_values(llama, calibration, tmp_path, words, message):
    """What the command line refuses, a Python caller hears of in one line, before any work."""
    asked = {"method": "flap", "ratio": 0.5, "data": calibration} | words
    with pytest.raises(UsageError, match=message):
        prunecli.prune(str(llama), str(tmp_path / "o"), **asked)
    assert not list(tmp_path.iterdir())


def test_paths_and_single_names(llama, calibration, tmp_path):
    stats = tmp_path / "s.safetensors"
    prunecli.calibrate(llama, stats, "flap,minitron-width", data=calibration, compat="official")
    made = prunecli.prune(
        llama, tmp_path / "o", method="flap", ratio=0.5, stats=stats, compat="official"
    )
    assert made.sidecar["options"]["compat"] == "official"
    prunecli.evaluate(tmp_path / "o", tmp_path / "e.json", data=calibration, allow_overlap=True)
    assert prunecli.table(tmp_path).objects()
    assert prunecli.check(tmp_path / "o") == []
    with pytest.raises(UsageError, match="limit is for tasks, and none is named"):
        prunecli.evaluate(llama, data=calibration, limit=3)
    with pytest.raises(UsageError, match="rounds is 0: expected 1 or more"):
        prunecli.speed(llama, rounds=0)
    with pytest.raises(UsageError, match="methods names no method"):
        prunecli.calibrate(llama, stats, [])


def test_what_a_caller_finds():
    assert set(dir(prunecli)) == set(prunecli.__all__)
    code = "import prunecli\ntry:\n    prunecli.prune('a', 'b', metho='c')\n"
    code += "except prunecli.errors.PruneError as error:\n    print(error)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "did you mean 'method'" in ended.stdout
