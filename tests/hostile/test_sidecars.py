"""Sidecars whose frame is sound, and whose parts are not what their readers rely on."""

import copy
import json
from types import SimpleNamespace

import pytest

import prunecli
import tiny
from prunecli.errors import InputError
from prunecli.files.sidecar import HistoryStep, Input
from prunecli.tables import matching
from prunecli.tables.collect import collect
from prunecli.tables.remake import INPUTS
from prunecli.tables.runs import Runs


@pytest.fixture(scope="module")
def record(llama, tmp_path_factory):
    """The sidecar of a pruned model."""
    out = tmp_path_factory.mktemp("sidecars") / "out"
    prunecli.prune(str(llama), str(out), method="magnitude", ratio=0.5)
    return tiny.sidecar(out)


def of_rows(**more):
    return {"role": "rows", "digest": "d", "rows": "d", "range": [0, 4], "seq_len": 8, **more}


CHANGES = {
    "a digest in a list": lambda r: r["outputs"].update(digest=["d"]),
    "a digest in an object": lambda r: r["outputs"].update(digest={"d": 1}),
    "passes of null": lambda r: r["history"][-1]["inputs"].append(of_rows(passes=None)),
    "a length of null": lambda r: r["history"][-1]["inputs"].append(of_rows(seq_len=None)),
    "a range of null": lambda r: r["inputs"].append(of_rows(range=None)),
    "rows of null": lambda r: r["inputs"].append({"role": "rows", "digest": "d", "rows": None}),
    "a length of null alone": lambda r: r["history"][-1]["inputs"].append(
        {"role": "rows", "digest": "d", "seq_len": None}
    ),
    "a search by no method": lambda r: r.update(
        kind="arch", options={}, results={"candidates": [{"role": "x", "ratio": 0.5, "params": 3}]}
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_parts_that_are_of_another_type(what, record, tmp_path):
    changed = copy.deepcopy(record)
    CHANGES[what](changed)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(changed))
    with pytest.raises(InputError, match="lacks what its kind records"):
        Runs(collect([str(path)])).candidates  # noqa: B018 - it is computed when it is asked for
    # positive control
    path.write_text(json.dumps(record))
    assert prunecli.table([str(path)]).rows


def tangled(count):
    """Return histories of one step each, by id, each made of what all others made."""
    ids = [f"{i:032x}" for i in range(count)]
    return {
        own: [
            HistoryStep(
                id=own, parent=None, command="init", options={"masks": "keep"},
                inputs=[Input(role=role, id=one, digest="d") for one in ids if one != own
                        for role in ("like", "stats")],
            )
        ] * 3
        for own in ids
    }  # fmt: skip


def test_histories_that_lead_to_each_other_are_walked_once():
    """Every way through them would be more than there is time for."""
    known = tangled(20)
    for steps in known.values():
        record = SimpleNamespace(history=steps, results={})
        assert len(json.dumps(matching.recipe(record, known))) < 100_000
        assert str(matching.zeros(record, known)) == "None"


def test_a_history_deeper_than_a_program_may_recurse():
    known = {
        str(i): [
            HistoryStep(
                id=str(i), parent=None, command="init", options={"masks": "keep"},
                inputs=[Input(role="like", id=str(i - 1), digest="d")],
            )
        ]
        for i in range(1, 5000)
    }  # fmt: skip
    record = SimpleNamespace(history=known["4999"], results={"granularity": "weights"})
    assert matching.zeros(record, known) == "those of 0"
    assert matching.recipe(record, known)


def test_rows_in_many_pieces_are_compared_in_one_pass():
    one = {"d": tuple((i, i + 1, 1) for i in range(0, 400_000, 2))}
    other = {"d": tuple((i, i + 1, 1) for i in range(1, 400_000, 2))}
    assert matching.disjoint(one, other) and matching.disjoint(one, {"e": one["d"]})
    assert not matching.disjoint(one, {"d": (*other["d"], (399_998, 400_001, 2))})
    assert not matching.disjoint(one, {"d": ((7, 9, 1),)})


def test_a_script_of_steps_with_many_inputs_is_refused(record, tmp_path):
    changed = copy.deepcopy(record)
    changed["history"][-1]["inputs"] += [{"role": "x", "digest": "d"}] * INPUTS
    (tmp_path / "x.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=f"a script has at most {INPUTS}; leave out --commands"):
        prunecli.log([str(tmp_path / "x.json")]).commands()
