"""Long runs go on where they were stopped, and end with the bytes of a run that was not.

Every verb that walks layers is killed at the start of a layer, or asked to stop, with states kept
after every step; the runs that follow must compute what is left, no layer twice but the one that
was under way.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from forks import in_child
from test_publish import contents, names

import prunecli
import tiny
from prunecli.errors import OutputExists, Stopped
from prunecli.files import keeping
from prunecli.methods import registry
from prunecli.model.stream import LayerStream

KILLED = 9
AMOUNTS = {"layers": {"layers": 3}, "weights": {"ratio": 0.5}, "channels": {"ratio": 0.3}}
METHODS = [
    name for name in registry.names() if registry.get(name).needs and not registry.get(name).trains_masks
]


def amount(method: str) -> dict:
    return AMOUNTS["layers" if registry.get(method).axes == ("layers",) else registry.get(method).unit]


def options(method: str) -> dict:
    known = {option.name for option in registry.get(method).options}
    return {"options": {"protect": "0,0"}} if "protect" in known else {}


def scored(method: str) -> bool:
    record = registry.get(method)
    return record.unit != "weights" and not record.sequential


def counted(method: str) -> dict:
    """Return the amount, for verbs that take it of methods alone that try out what they remove."""
    return amount(method) if "layers" in amount(method) and method in TRYING else {}


# of those the statistics depend on the amount
TRYING = [
    name
    for name in METHODS
    if any("skip" in need.name for need in registry.get(name).needs)
]
CASES = [
    *(("prune", method) for method in METHODS),
    *(("calibrate", method) for method in METHODS),
    *(("score", method) for method in METHODS if scored(method)),
]


def verb(case, model, data):
    """Return a function of OUT that does what a case says, on so many windows."""
    name, method = case
    how = {"data": data, "nsamples": 3}
    if name == "calibrate":
        return lambda out, **more: prunecli.calibrate(
            str(model), str(out), methods=[method], **counted(method), **how, **more
        )
    if name == "score":
        given = {} if method != "shortened-llama" else {}
        return lambda out, **more: prunecli.score(
            str(model), str(out), method=method, **counted(method), **given, **how, **more
        )
    return lambda out, **more: prunecli.prune(
        str(model), str(out), method=method, **amount(method), **options(method), **how, **more
    )


def out_of(case, folder: Path) -> Path:
    return folder / ("o" if case[0] == "prune" else "o.safetensors")


@pytest.fixture
def always(monkeypatch):
    """Keep a state after every step, of small files and large."""
    monkeypatch.setattr(keeping, "LEAST", 0.0)
    monkeypatch.setattr(keeping, "SHARE", float("inf"))
    monkeypatch.setattr(keeping, "LARGE", 1 << 12)


@pytest.fixture
def layers(monkeypatch):
    """Count the layers that are loaded to be computed; `layers.die` ends the process at one."""

    class Layers:
        count, die = 0, None

    real, seen = LayerStream.layer, Layers()

    def layer(self, i):
        seen.count += 1
        if seen.count == seen.die:
            os._exit(KILLED)
        return real(self, i)

    monkeypatch.setattr(LayerStream, "layer", layer)
    return seen


def killed_at(layers, number: int, work) -> None:
    """Do the work in a process that ends, as if by SIGKILL, as it begins this layer."""

    def dying():
        layers.count, layers.die = 0, number
        work()

    assert in_child(dying) == KILLED


def test_resumed(llama, calibration, tmp_path, monkeypatch, layers, always):
    pass
