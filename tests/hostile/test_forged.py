"""States that came from elsewhere: a folder OUT.partial, unpacked from a stranger's archive.

Whatever is in it, a run ends with a documented status, writes nothing elsewhere and waits for
nothing; `--restart` always helps.
"""

import io
import json
import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_publish import contents, names
from torch.distributed.checkpoint import FileSystemReader, state_dict_saver
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

import prunecli
import tiny
from prunecli.data.shards import STATE, Shards
from prunecli.errors import InputError, OutputExists, PruneError, Stopped, UsageError
from prunecli.files import keeping, output, seal
from prunecli.files.tensorfile import combined_digest
from prunecli.methods import registry
from prunecli.settings import Amount
from prunecli.training import state

SCORES, MODEL, STEPS = "s.safetensors", "o", "t"
# walks of other kinds: backward, within others, with what is remembered, in a folder of its own
GRADIENTS, NESTED, REMEMBERED, LOSSES = "g.safetensors", "n.safetensors", "r", "e.json"
WALKS = (SCORES, MODEL, GRADIENTS, NESTED, REMEMBERED, LOSSES)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder with the states of three runs that were stopped, and functions that resume them."""
    root = tmp_path_factory.mktemp("stopped")
    model, data = str(tiny.make(root / "model", num_hidden_layers=4)), ""
    data = tiny.tokens(root / "d.safetensors", rows=8)
    runs = {
        SCORES: lambda out, **how: prunecli.calibrate(
            model, out, methods=["flap"], data=data, nsamples=3, **how
        ),
        MODEL: lambda out, **how: prunecli.prune(
            model, out, method="wanda", ratio=0.5, data=data, nsamples=3, **how
        ),
        STEPS: lambda out, **how: prunecli.train(
            model, out, data=data, steps=4, save_every=1, batch_size=2, lr=1e-3, **how
        ),
        GRADIENTS: lambda out, **how: prunecli.calibrate(
            model, out, methods=["flap", "llm-pruner"], data=data, nsamples=3, **how
        ),
        NESTED: lambda out, **how: prunecli.score(
            model, out, method="sleb", layers=3, data=data, nsamples=3, **how
        ),
        REMEMBERED: lambda out, **how: prunecli.prune(
            model, out, method="wanda-sp", ratio=0.5, data=data, nsamples=3, **how
        ),
        LOSSES: lambda out, **how: prunecli.evaluate(model, data=[data], out=out, **how),
    }
    steps = {STEPS: 3, GRADIENTS: 4 + 6}
    for name, run in runs.items():
        for stop in (None, tiny.stop_after(steps.get(name, 2))):
            out = str(root / ("whole" if stop is None else "begun") / name)
            with suppress(Stopped):
                run(out, **({"stop": stop} if stop else {}))
    return root, runs


@pytest.fixture
def forged(stopped, tmp_path):
    """Return a function: a state, changed, and a run that finds it; then what it makes."""
    root, runs = stopped
    victim = tmp_path / "victim"
    victim.write_text("precious")

    def tried(name, change):
        out, place = tmp_path / name, tmp_path / f"{name}.partial"
        shutil.copytree(root / "begun" / f"{name}.partial", place)
        change(place)
        try:
            runs[name](str(out))
            told = ""
        except PruneError as error:
            told = str(error)
            assert not out.exists()
            runs[name](str(out), restart=True)
        assert victim.read_text() == "precious"
        assert result(out) == result(root / "whole" / name)
        assert names(tmp_path) == {"victim", name, f"{name}.json"} & names(tmp_path)
        return told

    return tried


def result(out: Path) -> dict[str, object]:
    """Return what a run made, but for its log, which holds times."""
    return {name: one for name, one in contents(out).items() if not name.endswith(".jsonl")}


def last(place: Path) -> Path:
    return state.saved_states(place)[-1]


def linked(place, path):
    place.joinpath(path).unlink(missing_ok=True)
    place.joinpath(path).symlink_to(place.parent / "victim")


def hard(place, path):
    place.joinpath(path).unlink(missing_ok=True)
    os.link(place.parent / "victim", place / path)


def pipe(place, path):
    place.joinpath(path).unlink(missing_ok=True)
    os.mkfifo(place / path)


@pytest.mark.parametrize("put", [linked, hard, pipe])
@pytest.mark.parametrize(
    ("name", "path"),
    [
        (SCORES, ".new/s.safetensors"), (SCORES, "1.safetensors"), (SCORES, "state.json"),
        (MODEL, ".new/model.safetensors"), (MODEL, ".new/config.json"), (STEPS, "log.jsonl"),
        (STEPS, "step-00000003/__0_0.distcp"), (STEPS, "step-00000003/.metadata"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_its_own(name, path, put, forged):
    told = forged(name, lambda place: put(place, path))
    assert Path(path).name in told and "expected" in told and "use --restart" in told


@pytest.mark.parametrize("name", [SCORES, MODEL])
def test_what_no_run_staged(name, forged):
    """It is neither published nor in the way."""

    def put(place):
        (place / ".new" / "modeling_x.py").write_text("import os")
        (place / ".new" / "deep" / "er").mkdir(parents=True)

    assert forged(name, put) == ""


def test_a_finished_pair_with_more_in_its_folder(stopped, tmp_path):
    """It is moved to its place, and the rest is removed."""
    root, runs = stopped
    beside = tmp_path / f".{SCORES}.prunecli-new"
    beside.mkdir()
    for file in (root / "whole").glob(f"{SCORES}*"):
        shutil.copy(file, beside)
    (beside / "more").mkdir()
    runs[SCORES](str(tmp_path / SCORES))
    assert names(tmp_path) == {SCORES, f"{SCORES}.json"}
    # a file or a link of that name is no finished result
    for _ in range(2):
        beside.symlink_to("more") if beside.exists() else beside.write_text("x")
        with pytest.raises(OutputExists):
            runs[SCORES](str(tmp_path / SCORES))
        assert names(tmp_path) == {SCORES, f"{SCORES}.json"}


def no_tensors(record):
    for walk in record["walks"].values():
        walk["tensors"] = {}


def all_done(record):
    for walk in record["walks"].values():
        walk["done"] = walk["total"]


def nothing_written(record):
    record["written"] = {}


def another_layout(record):
    for result in record["written"].values():
        result["tensors"] = {}


CHANGES = (no_tensors, all_done, nothing_written, another_layout)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", [SCORES, MODEL])
def test_a_state_that_is_not_as_it_was(name, change, sealed, forged):
    """One with a seal that does not fit is passed over; one sealed by a stranger is told."""

    def put(place):
        file = place / keeping.STATE
        record = json.loads(file.read_text())
        change(record["result"])
        if sealed:
            record["digest"] = seal.of_value(record["result"])
        file.write_text(json.dumps(record))

    told = forged(name, put)
    assert told == "" or (sealed and "use --restart" in told)


def shorter(kept, tensors):
    return lambda tensor: tensor[..., :-1].clone() if tensor.dim() else tensor[None]


def of_another_type(kept, tensors):
    return lambda tensor: tensor.to(torch.int32)


def another_name(kept, tensors):
    tensors["other"] = tensors.pop(kept)


def none_of_it(kept, tensors):
    del tensors[kept]


def one_more(kept, tensors):
    tensors["other"] = tensors[kept]


def forged_tensors(place, change):
    """Change the last tensor of each walk of a state in turn; seal it. Yields which that is."""
    (file,) = place.rglob(keeping.STATE)
    before = file.read_text()
    for number, walk in json.loads(before)["result"]["walks"].items():
        if not walk["tensors"]:
            continue
        record = json.loads(before)["result"]
        tensors = record["walks"][number]["tensors"]
        kept = max(tensors)
        of = tensors[kept]["file"]
        content = (file.parent / of).read_bytes()
        make = change(kept, tensors)
        if make is not None:
            found = load_file(file.parent / of)
            found[tensors[kept]["name"]] = make(found[tensors[kept]["name"]])
            save_file(found, file.parent / of)
            record["files"][of] = combined_digest(keeping._digests(file.parent / of))
        keeping.keep(file, record)
        yield f"{kept} of {walk['what']}"
        (file.parent / of).write_bytes(content)


@pytest.mark.parametrize("name", WALKS)
def test_tensors_that_no_step_left(name, stopped, tmp_path):
    """The digests are right, and names, shapes or types are not: told before they are read."""
    root, runs = stopped
    out, place = tmp_path / name, tmp_path / f"{name}.partial"
    tried = 0
    for change in (shorter, of_another_type, another_name, none_of_it, one_more):
        shutil.copytree(root / "begun" / f"{name}.partial", place)
        for which in forged_tensors(place, change):
            with pytest.raises(InputError, match=r"not fit this run: .*; use --restart") as told:
                runs[name](str(out))
            assert "Error" not in str(told.value), (which, change)
            tried += 1
        shutil.rmtree(place)
    assert tried >= 5
    # positive control: what was not changed is gone on from
    shutil.copytree(root / "begun" / f"{name}.partial", place)
    runs[name](str(out))
    assert result(out) == result(root / "whole" / name)


def rewritten(change):
    """Return a change of a state of `train`: of what its index says."""

    def put(place):
        file = last(place) / state.INDEX
        index = pickle.loads(file.read_bytes())
        change(index, place)
        file.write_bytes(pickle.dumps(index))

    return put


def elsewhere(target):
    def change(index, place):
        for one in index.storage_data.values():
            object.__setattr__(one, "relative_path", target(place))

    return rewritten(change)


@pytest.mark.parametrize(
    "target",
    [
        lambda place: str(place.parent / "victim"),
        lambda place: f"../../{place.name}/{last(place).name}/__0_0.distcp",
        lambda place: str(place / "key"),
        lambda place: 3,
    ],
)
def test_an_index_that_names_files_elsewhere(target, forged):
    assert "use --restart" in forged(STEPS, elsewhere(target)).replace("remove it", "use --restart")


def first(state):
    return next(iter(state["optimizer"]["state"].values()))


def steps_below_none(state):
    first(state)["step"] -= 9


def shorter_moments(state):
    first(state)["exp_avg"] = first(state)["exp_avg"][..., :-1].clone()


def no_moments(state):
    del first(state)["exp_avg_sq"]


def other_settings(state):
    state["optimizer"]["param_groups"][0] |= {"betas": (torch.ones(3), "x"), "lr": torch.ones(5)}


CHANGES_OF_STEPS = (steps_below_none, shorter_moments, no_moments, other_settings)


@pytest.mark.parametrize("change", CHANGES_OF_STEPS)
def test_states_of_training_that_no_step_left(change, forged):
    """What the optimizer's settings are follows from the options, whatever a state says."""

    def put(place):
        found = {}
        reader, planner = FileSystemReader(last(place)), _EmptyStateDictLoadPlanner()
        _load_state_dict(found, reader, planner=planner, no_dist=True)
        change(found)
        state_dict_saver.save(found, checkpoint_id=last(place), no_dist=True)

    told = forged(STEPS, put).replace("remove it", "use --restart")
    assert told == "" if change is other_settings else "use --restart" in told


@pytest.mark.parametrize("ours", [KeyError("x"), AssertionError(), TypeError("x"), IndexError()])
def test_a_fault_of_ours_is_not_the_state_s(ours, tmp_path):
    """A run that goes on from a state can have faults of its own, which are told as such."""
    place = tmp_path / "o.partial"
    place.mkdir()
    (place / "key").write_text("0123456789abcdef" * 2 + "\n")
    (place / keeping.STATE).write_text("{}")
    with (
        pytest.raises(type(ours)),
        output.partial(str(tmp_path / "o"), "0123456789abcdef" * 2, restart=False),
    ):
        raise ours
    assert names(place) == {"key", keeping.STATE}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda curves: curves.update({"7.0": [0.0]}), "learning rates that this run does not try"),
        (lambda curves: curves.update({"0.001": [0.0] * 3}), "trials of more than 1 steps"),
    ],
)
def test_a_sweep_that_no_run_made(change, told, stopped, tmp_path):
    root, _ = stopped
    model, data, out = str(root / "model"), f"{root / 'd.safetensors'}:ids", str(tmp_path / "t")
    words = {"data": data, "steps": 2, "batch_size": 2, "lr": "1e-3,1e-4", "sweep_steps": 1}
    with pytest.raises(Stopped):
        prunecli.train(model, out, **words, stop=tiny.stop_after(2))
    file = tmp_path / "t.partial" / "sweep.json"
    curves = keeping.kept(file, dict[str, list[float]])
    change(curves)
    keeping.keep(file, curves)
    with pytest.raises(InputError, match=f"{told}; use --restart"):
        prunecli.train(model, out, **words)
    prunecli.train(model, out, **words, restart=True)


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x0b", b"p200000000\n", b"q\xff"])
def test_an_index_with_a_memo_of_gigabytes(put, forged):
    def change(place):
        (last(place) / state.INDEX).write_bytes(b"\x80\x02}" + put + b".")

    assert "its memo jumps from 0 to" in forged(STEPS, change)


def test_the_indices_of_torch_are_read_whole(tmp_path):
    """Positive control: every protocol numbers its memo one by one."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        shared = [torch.Size((2, 3))] * 3
        state._check_memo(pickle.dumps({str(n): (shared, n) for n in range(999)}, protocol))
    for dump in (pickle._dumps, pickle.dumps):
        state._check_memo(dump({str(n): [str(n)] for n in range(999)}, 2))


class Got:
    """What pickles as a call of getattr."""

    def __init__(self, *of):
        self.of = of

    def __reduce__(self):
        return getattr, self.of


def test_members_of_enums_are_got_and_nothing_else_is():
    """Python 3.11.2 pickles them as calls of getattr, and so may a stranger call it."""
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    content = pickle.dumps(Got(_MEM_FORMAT_ENCODING, member.name))
    assert state._Unpickler(io.BytesIO(content)).load() is member
    for of in ((Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "__init__"), (torch.Size, "count")):
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            state._Unpickler(io.BytesIO(pickle.dumps(Got(*of)))).load()


@pytest.mark.parametrize("key", ["used", "text"])
def test_the_state_of_tokenize_is_sealed(key, stopped, tmp_path):
    """How many ids of a batch are in finished shards cannot be seen from the rows."""
    root, _ = stopped
    prunecli.init(str(tmp_path / "words"), like=str(root / "model"), tokenizer="bytes")
    (tmp_path / "text.txt").write_text("some words of text. " * 400)
    out, place = tmp_path / "o", tmp_path / "o.partial"

    def run(**more):
        prunecli.tokenize(
            str(tmp_path / "text.txt"), str(out), seq_len=16, tokenizer=str(tmp_path / "words"),
            shard_tokens=64, workers=1, **more,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "finish", lambda shards: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(PruneError):
            run()
    file = place / STATE
    record = json.loads(file.read_text())
    record["result"][key] = "" if key == "text" else record["result"][key] + 1
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="not as it was written; use --restart"):
        run()
    run(restart=True)
    assert names(tmp_path) == {"words", "text.txt", "o"}


@pytest.mark.parametrize("tokens", [64, 64.0])
def test_one_id_for_one_number(tokens, stopped, tmp_path):
    root, _ = stopped
    made = prunecli.prune(
        str(root / "model"), str(tmp_path / "o"), method="sheared-llama", layers=3, hidden=36,
        heads=3, ffn=40, data=f"{root / 'd.safetensors'}:ids", dry_run=True,
        options={"tokens": tokens, "batch_size": 2},
    )  # fmt: skip
    assert type(made.results["tokens"]) is int
    assert type(registry.get("sheared-llama").resolve({"tokens": tokens})["tokens"]) is float
    assert type(Amount(params=tokens).params) is float
    with pytest.raises(UsageError, match="params is larger than"):
        Amount(params=10**400)
