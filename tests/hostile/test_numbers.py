"""Files of statistics and scores that fit a model, and hold numbers that there cannot be."""

import math
import shutil

import pytest
from safetensors.torch import load_file, save_file

import prunecli
import tiny
from prunecli.errors import InputError

METHODS = ("wanda", "flap", "shortgpt", "sparsegpt")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, and a file of statistics and one of scores that are of it."""
    root = tmp_path_factory.mktemp("numbers")
    model, data = str(tiny.make(root / "m")), tiny.tokens(root / "d.safetensors")
    prunecli.calibrate(model, str(root / "stats.safetensors"), methods=METHODS, data=data)
    prunecli.score(model, str(root / "scores.safetensors"), method="minitron-width", data=data)
    return root


def changed(made, kind, folder, number) -> str:
    """Return a copy of a file whose tensors all have this number somewhere."""
    file = folder / f"{kind}.safetensors"
    shutil.copy(made / f"{kind}.safetensors.json", folder)
    tensors = load_file(made / file.name)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.view(-1)[-1] = number
    save_file(tensors, file, metadata={"format": "pt"})
    return str(file)


# a negative variance, or similarity, is a score as any other
ODD = [
    *((method, *odd) for method in METHODS for odd in ((math.nan, "NaN"), (math.inf, "infinity"))),
    ("wanda", -1.0, "make the scores of 'wanda' NaN"),
]


@pytest.mark.parametrize(("method", "number", "told"), ODD)
def test_statistics_that_are_no_numbers(method, number, told, made, tmp_path):
    """NaN is no score: Wanda's masks were left empty by it, and means would be biases."""
    given = {"stats": changed(made, "stats", tmp_path, number), "ratio": 0.5, "method": method}
    with pytest.raises(InputError, match=told):
        prunecli.prune(str(made / "m"), str(tmp_path / "o"), **given)
    assert not (tmp_path / "o").exists()
    # positive control
    given["stats"] = str(made / "stats.safetensors")
    prunecli.prune(str(made / "m"), str(tmp_path / "o"), **given)


def test_negative_sums_of_squares_score_nothing(made, tmp_path):
    stats = changed(made, "stats", tmp_path, -1.0)
    with pytest.raises(InputError, match="make the score NaN; make it again"):
        prunecli.score(
            str(made / "m"), str(tmp_path / "s.safetensors"), method="flap", stats=stats,
            options={"metric": "WIFN"},
        )  # fmt: skip


def test_scores_that_are_none(made, tmp_path):
    scores = changed(made, "scores", tmp_path, math.nan)
    with pytest.raises(InputError, match=r"'ffn\.0' has NaN; make it again with `prunecli score`"):
        prunecli.prune(
            str(made / "m"), str(tmp_path / "o"), method="minitron-width", ratio=0.5, scores=scores
        )
