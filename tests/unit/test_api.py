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
        (api.RunWords, names(Output, Compute, RunContext) - {"path"}),
        (api.AmountWords, names(Amount) | {"amount"}),
        (api.DataWords, names(Data) - {"source", "up_to", "asked"} | {"data"}),
        (api.InitWords, names(Output, Compute, RunContext, InitRequest) - {"path"}),
        (api.TrainWords, names(Output, Compute, RunContext, Training) - {"path", "model", "data"}),
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


@pytest.mark.parametrize("code", EXAMPLES, ids=["prune", "steps", "scratch"])
def test_examples_of_the_page(code, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(tiny.config_of("llama")))
    prunecli.init(str(tmp_path / "in"), config=str(tmp_path / "config.json"), tokenizer="bytes")
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
