"""Processes that divide the rows of a run, by gloo on a CPU: the results of one process.

Losses go through a model one window at a time, so they are the same to the bit. Statistics are
sums, which are rounded in another order.
"""

import json
import socket
import sys

import dividing
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_processes import ALONE, BIN, ROUNDING, TWO, finish

import tiny
from prunecli import ranks
from prunecli.cli import app
from prunecli.data import windows
from prunecli.data.windows import Tokens
from prunecli.errors import PruneError, UsageError
from prunecli.files import world
from prunecli.measuring import eval as measuring
from prunecli.measuring.eval import EvalRequest, evaluate
from prunecli.methods import registry
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.device import device_of, settled
from prunecli.pruning import calibrate, request, search_arch
from prunecli.pruning.calibration import Calibration
from prunecli.ranks import Ranks
from prunecli.settings import Amount, Compute, Data, Output, RunContext, Tasks

ROWS, HELD = 13, 5  # neither is even
SCRIPT = [str(BIN / "torchrun"), *TWO[1:3], dividing.__file__]
# of a random model's scores one in 1 / ROUNDING is within ROUNDING of another, and what it decides
# is in the sums of later layers: a hundred times that
NEAR_TIES = 100 * ROUNDING


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, tokens to prune by, and others beside."""
    root = tmp_path_factory.mktemp("rows")
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(259, (ROWS + HELD, 32), generator=draw, dtype=torch.int32)
    save_file({"ids": ids[:ROWS].clone(), "held": ids[ROWS:].clone()}, root / "t.safetensors")
    return str(tiny.make(root / "m")), f"{root / 't.safetensors'}:ids"


@pytest.fixture(scope="module")
def made(files, tmp_path_factory):
    """What one process makes, and what two make."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    dividing.work(*files, one)
    ended = finish([*SCRIPT, *files, str(two)], 900)
    assert ended.returncode == 0, ended.stderr
    # nothing is left beside the results, and nothing is missing
    assert {file.name for file in two.iterdir()} == {file.name for file in one.iterdir()}
    return one, two


def test_statistics_are_those_of_one_process(made) -> None:
    one, two = (load_file(folder / "s.safetensors") for folder in made)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        found, scale = two[name].double(), expected[expected.isfinite()].abs().max()
        assert torch.allclose(found, expected.double(), rtol=0, atol=ROUNDING * scale), name
    records = [json.loads((folder / "s.safetensors.json").read_text()) for folder in made]
    assert [record["run"]["ranks"] for record in records] == [1, 2]
    assert records[0]["id"] == records[1]["id"]
    assert records[0]["results"] == records[1]["results"]


@pytest.mark.parametrize("method", [*dividing.SPARSE, *dividing.CUT])
def test_pruned_models_are_those_of_one_process(made, method) -> None:
    one, two = (load_file(folder / method / "model.safetensors") for folder in made)
    assert {name: w.shape for name, w in one.items()} == {name: w.shape for name, w in two.items()}
    differ = sum(int(((one[name] == 0) != (two[name] == 0)).sum()) for name in one)
    assert differ <= NEAR_TIES * sum(weight.numel() for weight in one.values())
    for name, expected in one.items():
        if (expected == 0).equal(two[name] == 0):
            assert torch.allclose(two[name], expected, atol=1e-4), name
    records = [tiny.sidecar(folder / method) for folder in made]
    assert records[0]["id"] == records[1]["id"]
    assert records[0]["results"]["nonzero"] == records[1]["results"]["nonzero"]


def test_losses_are_those_of_one_process_to_the_bit(made) -> None:
    one, two = (json.loads((folder / "e.json").read_text()) for folder in made)
    assert one["results"] == two["results"]


def test_a_search_ends_as_that_of_one_process(made) -> None:
    one, two = (json.loads((folder / "a.json").read_text()) for folder in made)
    assert one["id"] == two["id"] and one["results"]["arch"] == two["results"]["arch"]
    losses = [[entry["loss"] for entry in record["results"]["candidates"]] for record in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=ROUNDING)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("fails", "process 1: 'buffer': No space left on device"),
        pytest.param("killed", "Signal 9 (SIGKILL)", marks=pytest.mark.slow),
    ],
)
def test_one_that_ends_early_ends_all(files, tmp_path, how, told) -> None:
    """Which process failed is told, and neither OUT nor anything beside it is there."""
    ended = finish([*SCRIPT, *files, str(tmp_path / "o"), how], 900)
    assert ended.returncode != 0 and not ended.stdout
    assert told in ended.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_several_models_are_evaluated_by_the_command(files, tmp_path) -> None:
    """Processes join for each; the first prints."""
    model, held = files[0], files[1].removesuffix("ids") + "held"
    line = ["eval", "--data", held, "--json", model, model]
    one, two = finish([*ALONE, *line]), finish([*TWO, *line])
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout) == json.loads(one.stdout)


@pytest.mark.parametrize("count", [2, 3, 7, 8, 100])
@pytest.mark.parametrize("world", [1, 2])
def test_every_row_has_one_process(count, world) -> None:
    shares = [range(count)[Ranks(rank, world).share(count)] for rank in range(world)]
    assert [row for share in shares for row in share] == [*range(count)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_without_a_row_is_refused() -> None:
    with pytest.raises(UsageError, match="3 rows of DATA cannot be divided among 4 processes"):
        Ranks(0, 4).share(3)


def test_what_reads_rows_in_order_is_refused(files) -> None:
    arch = Checkpoint(files[0]).arch
    calibration = Calibration([], windows=Tokens(torch.zeros(4, 8, dtype=torch.int32), {}, []))
    required = calibrate.required_statistics([registry.get("flap")], compat=True)
    with pytest.raises(UsageError, match="'fluctuation' is made of all rows of DATA in order"):
        calibrate.share(calibration, required, arch, Ranks(0, 2))
    assert calibrate.share(calibration, required, arch, ranks.ALONE) is calibration


@pytest.fixture
def a_job(monkeypatch) -> RunContext:
    """The first of two processes, without the second."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    return RunContext(ranks=Ranks(0, 2))


def test_what_cannot_be_divided_is_refused_by_name(a_job, llama, monkeypatch) -> None:
    half = {"model": str(llama), "amount": Amount(ratio=0.5)}
    with pytest.raises(UsageError, match="divide the rows of DATA, and this run reads none"):
        request.resolve(request.PruneRequest(method="magnitude", **half), Output("o"))
    with pytest.raises(UsageError, match="--keep writes statistics and scores in one process"):
        request.resolve(request.PruneRequest(method="flap", keep="k", **half), Output("o"))
    with pytest.raises(UsageError, match=r"trains masks \('sheared-llama'\) runs in one process"):
        asked = search_arch.SearchRequest(str(llama), "sheared-llama", ratio=0.5)
        search_arch._resolve(asked, RunContext(Output("a.json"), ranks=a_job.ranks))
    with pytest.raises(UsageError, match="tasks are answered by one process"):
        measuring._evaluate(EvalRequest(str(llama), tasks=Tasks(("x",))), a_job)
    for command in ("init", "tokenize", "speed", "table", "check"):
        monkeypatch.setattr(sys, "argv", ["prunecli", command])
        with pytest.raises(UsageError, match=f"'{command}' runs in one process"):
            app._run()


def test_processes_that_nobody_started_are_refused(monkeypatch, llama) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match=r"WORLD_SIZE says 2 processes.*RANK"):
        evaluate(EvalRequest(str(llama)))
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UsageError, match="WORLD_SIZE is 'many': expected a number of processes"):
        evaluate(EvalRequest(str(llama)))


def test_processes_that_cannot_meet_are_told_why(a_job, llama, monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(PruneError, match=r"cannot meet at .*; start them by torchrun$"):
            evaluate(EvalRequest(str(llama)))


@pytest.mark.parametrize("rank", ["1", "abc", ""])
def test_a_rank_without_others_is_that_of_the_first(
    rank, llama, run, monkeypatch, tmp_path
) -> None:
    """It prints, locks OUT and looks at it: clusters set RANK for what runs alone, too."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert run("check", str(llama)).out == f"{llama}: ok\n"
    (tmp_path / "mine").write_text("mine")
    assert run("init", "--like", str(llama), str(tmp_path / "mine")).code == 5
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("size", "rank", "told"),
    [
        ("2", "abc", "RANK is 'abc': expected a number below WORLD_SIZE"),
        ("9" * 5000, "0", "WORLD_SIZE is '99"),
        ("\u0662", "0", "WORLD_SIZE is '\u0662'"),
        ("0", "0", "WORLD_SIZE is '0': expected a number of processes"),
        ("", "0", "WORLD_SIZE is '': expected a number of processes"),
    ],
)
def test_numbers_of_processes_that_are_none(size, rank, told, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", rank)
    for command in ("methods", "check", "prune"):
        monkeypatch.setattr(sys, "argv", ["prunecli", command])
        with pytest.raises(UsageError) as refused:
            app._run()
        assert told in str(refused.value) and world.is_first()
    monkeypatch.setenv("LOCAL_RANK", "abc")
    with pytest.raises(UsageError, match="LOCAL_RANK is 'abc': expected a number"):
        device_of(Compute("cuda"))


def test_a_process_holds_its_share_of_hidden_states(files) -> None:
    """The estimate that is compared with the memory there is counts own rows alone."""
    dense = Checkpoint(files[0])
    run = RunContext(compute=settled(Compute(), dense))
    read = windows.load(
        Data(files[1]), folder=files[0], vocab_size=dense.arch.vocab, max_positions=64
    )
    required = calibrate.required_statistics([registry.get("wanda")], compat=False)
    whole = Calibration([], windows=read)
    needs = [
        calibrate.memory_need(
            dense, calibrate.share(whole, required, dense.arch, one), required, run
        )
        for one in (ranks.ALONE, Ranks(0, 2), Ranks(1, 2))
    ]
    held = [need.host["hidden states"] for need in needs]
    assert held[1] + held[2] == held[0] and held[2] - held[1] == held[0] // ROWS
