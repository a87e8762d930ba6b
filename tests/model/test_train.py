"""Training: the loop against bare torch, exact resuming, masks, distillation, and bad input."""

import json
import os
import shutil
import sys
from pathlib import Path
from traceback import StackSummary

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.api import CheckpointException

import tiny
from prunecli import check, init, prune, train
from prunecli.data import rows as row_sets
from prunecli.errors import InputError, OutputExists, PruneError, Stopped, UsageError
from prunecli.settings import Amount, Compute, Data, Output
from prunecli.training import schedule, state
from prunecli.training.config import SWEEP
from prunecli.training.loop import Loop
from prunecli.training.order import RowSampler
from tiny import same, stop_after

LENGTH = 16
# AdamW divides by |gradient| + eps: where a gradient is nearly 0, the usual 1e-8 makes a whole step
# of what float32 leaves of it (1e-6 here). Far above that, weights depend on it continuously.
EPS = 1e-3


@pytest.fixture(scope="module")
def ids(tmp_path_factory) -> str:
    """Rows with something to learn: each token follows from the one before."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(259, (400, 1), generator=draw)
    for _ in range(LENGTH - 1):
        rows = torch.cat([rows, (3 * rows[:, -1:] + 1) % 259], 1)
    path = tmp_path_factory.mktemp("rows") / "t.safetensors"
    save_file({"ids": rows.int()}, path)
    return f"{path}:ids"


@pytest.fixture(scope="module")
def sparse(models, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "p"
    prune(str(models("llama")), str(out), method="magnitude", amount=Amount(sparsity="2:4"))
    return out


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def log(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "train.jsonl").read_text().splitlines()]


def curve(folder) -> list[tuple]:
    return [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in log(folder)]


def bare(folder, data: str, steps: int, batch: int, lr: float) -> tuple[list[float], dict]:
    """Return losses and weights of the plainest loop: stock model, AdamW, the same rows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = row_sets.open_rows(data)
    order = RowSampler(rows, steps * batch, 0)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.95), eps=EPS, weight_decay=0.01
    )
    losses = []
    for step in range(steps):
        found = rows.read(order.batch(step, batch, slice(None)))
        logits = model(found).logits[:, :-1].flatten(0, 1)
        loss = F.cross_entropy(logits, found[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = schedule.cosine_lr(step, steps, lr, 0.05, 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()


@pytest.mark.parametrize("micro", [None, 1, 2])
def test_like_a_bare_loop(llama, ids, tmp_path, micro) -> None:
    """Float32, only sums in another order: 1e-5 of losses, 1e-4 of weights after ten steps."""
    out = str(tmp_path / "o")
    settings = {
        "data": ids,
        "steps": 10,
        "batch_size": 4,
        "lr": "1e-3",
        "micro_batch": micro,
        "eps": EPS,
    }
    made = train(str(llama), out, **settings)
    losses, state = bare(llama, ids, 10, 4, 1e-3)
    assert [line["loss"] for line in log(out)] == pytest.approx(losses, rel=1e-5)
    for name, tensor in weights(out).items():
        assert (tensor - state[name]).abs().max() < 1e-4, name
    trained = made.sidecar["tokens"]["trained"]
    digest = row_sets.open_rows(ids).digest
    assert trained == [{"rows": digest, "range": [0, 40], "count": 40 * LENGTH}]
    assert not Path(f"{out}.partial").exists()


@pytest.mark.parametrize("family", tiny.families())
def test_every_family_learns(models, family, ids, tmp_path) -> None:
    made = train(str(models(family)), str(tmp_path / "o"), ids, steps=12, batch_size=8, lr="3e-3")
    losses = made.results["curve"]["loss"]
    assert losses[-1] < losses[0]
    assert torch.isfinite(tiny.logits(tmp_path / "o", torch.zeros(1, 4))).all()


@pytest.mark.parametrize("recompute", [False, True])
def test_stopped_and_resumed_is_the_same(sparse, ids, tmp_path, recompute) -> None:
    settings = {
        "data": ids,
        "steps": 12,
        "batch_size": 4,
        "lr": "1e-3",
        "save_every": 5,
        "eval_data": f"{ids}:300:310",
        "eval_every": 3,
        "activation_checkpointing": recompute,
    }
    train(str(sparse), str(tmp_path / "whole"), **settings)
    for stop in (1, 4, 5):
        with pytest.raises(Stopped, match="rerun the same command"):
            train(str(sparse), str(tmp_path / "cut"), **settings, stop=stop_after(stop))
    assert not (tmp_path / "cut").exists()
    train(str(sparse), str(tmp_path / "cut"), **settings)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    records = [tiny.sidecar(tmp_path / name) for name in ("whole", "cut")]
    for record in records:
        record.pop("run")
    assert records[0] == records[1]


@pytest.mark.parametrize("recompute", [False, True])
def test_dropout_is_the_same_after_resuming(ids, tmp_path, recompute) -> None:
    """OPT trains with dropout, which a stopped run draws again as one that was not stopped."""
    model = tiny.make(tmp_path / "m", "opt", dropout=0.1, attention_dropout=0.1)
    settings = {
        "data": ids,
        "steps": 6,
        "batch_size": 4,
        "micro_batch": 2,
        "lr": "1e-3",
        "activation_checkpointing": recompute,
    }
    train(str(model), str(tmp_path / "whole"), **settings)
    with pytest.raises(Stopped):
        train(str(model), str(tmp_path / "cut"), **settings, stop=stop_after(3))
    torch.manual_seed(1)  # another process begins with other random numbers
    train(str(model), str(tmp_path / "cut"), **settings)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    still = tiny.make(tmp_path / "still", "opt")
    train(str(still), str(tmp_path / "none"), **settings | {"steps": 1})
    first = {name: curve(tmp_path / name)[0][1] for name in ("whole", "none")}
    assert first["whole"] != first["none"]  # it has dropout


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("at", [3, 5, 6, 11])
def test_killed_between_saves(llama, ids, tmp_path, monkeypatch, at) -> None:
    settings = {"data": ids, "steps": 12, "batch_size": 4, "lr": "1e-3", "save_every": 5}
    train(str(llama), str(tmp_path / "whole"), **settings)
    real = Loop.step

    def dying(self, step, stop=False):
        if step == at:
            raise Killed
        return real(self, step, stop)

    monkeypatch.setattr(Loop, "step", dying)
    with pytest.raises(Killed):
        train(str(llama), str(tmp_path / "cut"), **settings)
    monkeypatch.setattr(Loop, "step", real)
    # a save that was cut off leaves only what is ignored
    (tmp_path / "cut.partial" / ".step-00000099.tmp").mkdir()
    with (tmp_path / "cut.partial" / "log.jsonl").open("a") as file:
        file.write('{"step": 1')
    train(str(llama), str(tmp_path / "cut"), **settings)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")


def test_a_state_that_cannot_be_read(llama, ids, tmp_path) -> None:
    out, settings = str(tmp_path / "o"), {"data": ids, "steps": 6, "batch_size": 4, "save_every": 2}
    train(str(llama), str(tmp_path / "whole"), **settings)
    with pytest.raises(Stopped):
        train(str(llama), out, **settings, stop=stop_after(3))
    newest = sorted((tmp_path / "o.partial").glob("step-*"))[-1]
    os.truncate(newest / "__0_0.distcp", 100)
    with pytest.raises(InputError, match=rf"'{newest.name}' in '.*o.partial'.*the state before"):
        train(str(llama), out, **settings)
    # without it, the state before is resumed from
    shutil.rmtree(newest)
    left = sorted((tmp_path / "o.partial").glob("step-*"))
    assert len(left) == 1
    train(str(llama), out, **settings)
    assert same(tmp_path / "whole", tmp_path / "o")


def test_a_state_that_cannot_be_written(llama, ids, tmp_path, monkeypatch) -> None:
    settings = {"data": ids, "steps": 6, "batch_size": 4, "save_every": 2}

    def full(*args, **settings):
        cause = OSError(28, "No space left on device")
        raise CheckpointException("write", {0: (cause, StackSummary())})

    monkeypatch.setattr(state.state_dict_saver, "save", full)
    with pytest.raises(PruneError, match=r"step 2: .*No space.*free some.*rerun the same"):
        train(str(llama), str(tmp_path / "o"), **settings)
    assert not (tmp_path / "o").exists()


def test_state_of_another_run(llama, ids, tmp_path) -> None:
    out, settings = str(tmp_path / "o"), {"data": ids, "steps": 6, "batch_size": 4, "save_every": 2}
    with pytest.raises(Stopped):
        train(str(llama), out, **settings, stop=stop_after(3))
    with pytest.raises(OutputExists, match="--restart"):
        train(str(llama), out, **settings | {"lr": "1e-2"})
    # how often the state is saved makes no other run
    train(str(llama), out, **settings | {"save_every": 1, "keep_states": 1})
    assert (
        train(str(llama), out, **settings, output=Output(skip_existing=True)).results["steps"] == 6
    )
    with pytest.raises(OutputExists):
        train(str(llama), out, **settings)
    train(str(llama), out, **settings | {"lr": "1e-2"}, output=Output(force=True))
    assert tiny.sidecar(out)["options"]["lr"] == 1e-2


def test_restart(llama, ids, tmp_path) -> None:
    out, settings = str(tmp_path / "o"), {"data": ids, "steps": 6, "batch_size": 4, "save_every": 2}
    with pytest.raises(Stopped):
        train(str(llama), out, **settings, stop=stop_after(3))
    train(str(llama), out, **settings | {"lr": "1e-2", "restart": True})
    assert len(log(out)) == 6


def test_masks_after_two_hundred_steps(sparse, ids, tmp_path) -> None:
    settings = {
        "data": ids,
        "steps": 200,
        "batch_size": 2,
        "lr": "1e-2",
        "weight_decay": 0.1,
        "save_every": 50,
    }
    made = train(str(sparse), str(tmp_path / "o"), **settings)
    before, after = weights(sparse), weights(tmp_path / "o")
    held = 0
    for name, tensor in before.items():
        if ".layers." in name and tensor.dim() == 2:
            assert torch.equal(tensor == 0, after[name] == 0), name
            held += int((tensor == 0).sum())
    assert made.results["held"]["zeros"] == held
    assert made.results["nonzero"] == tiny.sidecar(sparse)["results"]["nonzero"]
    assert made.results["method"] == "magnitude"


def test_masks_dropped_or_taken_elsewhere(llama, sparse, ids, tmp_path) -> None:
    settings = {"data": ids, "steps": 3, "batch_size": 2, "lr": "1e-2"}
    train(str(sparse), str(tmp_path / "dense"), **settings | {"masks": "drop"})
    name = "model.layers.0.mlp.up_proj.weight"
    assert (weights(tmp_path / "dense")[name] != 0).all()
    train(str(sparse), str(tmp_path / "held"), **settings | {"masks": str(sparse)})
    assert torch.equal(weights(tmp_path / "held")[name] == 0, weights(sparse)[name] == 0)
    with pytest.raises(InputError, match="no sparse matrix, so no zeros to keep"):
        train(str(sparse), str(tmp_path / "no"), **settings | {"masks": str(llama)})
    with pytest.raises(InputError, match="masks do not fit"):
        train(str(llama), str(tmp_path / "no"), **settings | {"masks": str(sparse)})


def test_masks_that_are_not_what_the_sidecar_tells(sparse, ids, tmp_path) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    for path in sparse.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = weights(sparse)
    tensors["model.layers.0.mlp.up_proj.weight"][:] = 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="masks do not fit"):
        train(str(folder), str(tmp_path / "o"), ids, steps=2, batch_size=2)


def test_a_weight_that_passes_zero_stays_alive(sparse, ids, tmp_path, monkeypatch) -> None:
    """Unlike codes that look for zeros at every step."""
    name = "model.layers.0.mlp.up_proj.weight"
    row, column = (weights(sparse)[name] != 0).nonzero()[0].tolist()
    real = Loop.step

    def zeroing(self, step, stop=False):
        if step == 2:
            parameter = dict(self.objective.model.named_parameters())[name]
            with torch.no_grad():
                parameter[row, column] = 0
        return real(self, step, stop)

    monkeypatch.setattr(Loop, "step", zeroing)
    train(str(sparse), str(tmp_path / "o"), ids, steps=5, batch_size=2, lr="1e-2")
    assert weights(tmp_path / "o")[name][row, column] != 0


def test_distillation(llama, sparse, ids, tmp_path) -> None:
    settings = {
        "data": ids,
        "steps": 30,
        "batch_size": 4,
        "lr": "1e-2",
        "teacher": str(llama),
        "kd_weight": 1.0,
    }
    itself = train(str(llama), str(tmp_path / "same"), **settings | {"steps": 1})
    assert log(tmp_path / "same")[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert itself.sidecar["inputs"][2]["role"] == "teacher"
    train(str(sparse), str(tmp_path / "taught"), **settings)
    found = [line["kl"] for line in log(tmp_path / "taught")]
    assert found[-1] < 0.7 * found[0]


def test_sweep(llama, ids, tmp_path) -> None:
    """The winner has the lowest loss, and the weights are those of a run with its rate."""
    settings = {"data": ids, "steps": 12, "batch_size": 4, "lr": "sweep", "sweep_steps": 4}
    made = train(str(llama), str(tmp_path / "swept"), **settings)
    swept = made.results["sweep"]
    finals = {lr: swept["curves"][str(lr)][-1] for lr in SWEEP}
    assert swept["lr"] == min(SWEEP, key=lambda lr: finals[lr]) == made.results["lr"]
    assert swept["tokens"] == 5 * 4 * 4 * LENGTH
    assert made.sidecar["tokens"]["trained"][0]["count"] == 12 * 4 * LENGTH
    train(
        str(llama),
        str(tmp_path / "plain"),
        **settings | {"lr": str(swept["lr"]), "sweep_steps": None},
    )
    assert same(tmp_path / "swept", tmp_path / "plain")
    with pytest.raises(Stopped):
        train(str(llama), str(tmp_path / "cut"), **settings, stop=stop_after(10))
    train(str(llama), str(tmp_path / "cut"), **settings)
    assert same(tmp_path / "swept", tmp_path / "cut")
    listed = {**settings, "lr": ",".join(map(str, reversed(SWEEP)))}
    own = train(str(llama), str(tmp_path / "listed"), **listed)
    assert own.sidecar["id"] == made.sidecar["id"]


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_no_number(llama, ids, tmp_path, monkeypatch, bad) -> None:
    """A NaN stops the run before the weights are changed; the state is saved and resumed."""
    settings = {"data": ids, "steps": 8, "batch_size": 4, "lr": "1e-3", "save_every": 3}
    train(str(llama), str(tmp_path / "whole"), **settings)
    real = Loop.step

    def poisoned(self, step, stop=False):
        if step != 5:
            return real(self, step, stop)
        parameter = next(self.objective.model.parameters())
        if bad == "gradient":
            hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
            done = real(self, step, stop)
            hook.remove()
            return done
        forward = self.objective.forward
        monkeypatch.setattr(
            self.objective, "forward", lambda ids: tuple(x * float("inf") for x in forward(ids))
        )
        return real(self, step, stop)

    monkeypatch.setattr(Loop, "step", poisoned)
    with pytest.raises(PruneError, match="keeps the state after step 5") as error:
        train(str(llama), str(tmp_path / "o"), **settings)
    assert error.value.exit_code == 1
    monkeypatch.setattr(Loop, "step", real)
    train(str(llama), str(tmp_path / "o"), **settings)
    assert same(tmp_path / "whole", tmp_path / "o")


def test_repeat(llama, ids, tmp_path) -> None:
    settings = {"data": f"{ids}:0:10", "steps": 6, "batch_size": 4}
    with pytest.raises(InputError, match=r"need 24 rows.*has 10.*2\.40 times"):
        train(str(llama), str(tmp_path / "o"), **settings)
    made = train(str(llama), str(tmp_path / "o"), **settings | {"repeat": True})
    assert made.sidecar["tokens"]["trained"][0] | {"rows": ""} == {
        "rows": "", "range": [0, 10], "count": 24 * LENGTH,
    }  # fmt: skip
    assert made.results["epochs"] == pytest.approx(2.4)


def test_overlap_with_an_ancestor(llama, ids, tmp_path) -> None:
    first = {"data": f"{ids}:0:40", "steps": 4, "batch_size": 4}
    train(str(llama), str(tmp_path / "a"), **first)
    prune(
        str(tmp_path / "a"),
        str(tmp_path / "p"),
        method="magnitude",
        amount=Amount(ratio=0.5),
        data=Data(),
    )
    again = {"data": f"{ids}:10:100", "steps": 4, "batch_size": 4}
    with pytest.raises(InputError, match="6 of 16 rows were trained on by an ancestor"):
        train(str(tmp_path / "p"), str(tmp_path / "b"), **again)
    train(str(tmp_path / "p"), str(tmp_path / "b"), **again | {"allow_overlap": True})
    with pytest.raises(InputError, match="4 of 10 evaluation rows"):
        train(
            str(llama),
            str(tmp_path / "c"),
            f"{ids}:0:16",
            steps=4,
            batch_size=4,
            eval_data=f"{ids}:12:22",
        )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"data": "missing"}, InputError, "no such rows"),
        ({"steps": 0}, UsageError, "at least 1"),
        ({"tokens": 100.0}, UsageError, "cannot be combined"),
        ({"steps": None, "tokens": 10.0}, InputError, "less than one step"),
        ({"lr": "fast"}, UsageError, "expected a number, several"),
        ({"lr": "-1"}, UsageError, "more than 0"),
        ({"lr": "1e-3,"}, UsageError, "expected a number, several"),
        ({"lr": "1e-3,0"}, UsageError, "more than 0"),
        ({"lr": "1e-3,1e-3", "sweep_steps": 5}, UsageError, "--lr sweep"),
        ({"beta1": 1.5}, UsageError, "--beta1 1.5: expected 0 or more, below 1"),
        ({"beta2": 1.0}, UsageError, "--beta2 1.0: expected 0 or more, below 1"),
        ({"beta2": float("nan")}, UsageError, "--beta2 nan: expected 0 or more, below 1"),
        ({"weight_decay": -1.0}, UsageError, "--weight-decay -1.0: expected a finite number"),
        ({"weight_decay": float("inf")}, UsageError, "--weight-decay inf: expected a finite"),
        ({"eps": float("inf")}, UsageError, "--eps inf: expected a finite number"),
        ({"temperature": float("inf")}, UsageError, "--temperature inf: expected a finite"),
        ({"recipe": "official"}, UsageError, "did you mean 'paper'"),
        ({"recipe": "paper"}, InputError, "rows of 8192"),
        ({"micro_batch": 3}, InputError, "does not divide"),
        ({"kd_weight": 0.5}, UsageError, "--kd-weight needs --teacher"),
        ({"temperature": 2.0}, UsageError, "--temperature needs --teacher"),
        ({"eval_every": 5}, UsageError, "--eval-data"),
        ({"skip_bad": 5}, UsageError, "--eval-data"),
        ({"eval_data": "builtin", "text_column": "body"}, UsageError, "builtin has none"),
        ({"sweep_steps": 5}, UsageError, "--lr sweep"),
        ({"warmup": 2.0}, UsageError, "expected 0 to 1"),
        ({"clip": 0.0}, UsageError, "more than 0"),
        ({"save_dtype": "float8"}, UsageError, "not one of auto, float32, bfloat16"),
        ({"masks": "nowhere/at-all"}, InputError, "no such folder"),
        ({"track": "nothing"}, UsageError, "unknown tracker"),
    ],
)
def test_bad_requests_come_before_anything(llama, ids, tmp_path, change, kind, message) -> None:
    settings = {"data": ids, "steps": 4, "batch_size": 4, **change}
    with pytest.raises(kind, match=message):
        train(str(llama), str(tmp_path / "o"), **settings)
    assert not list(tmp_path.iterdir())


def test_processes_must_divide_the_batch(llama, ids, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="cannot be divided among 3"):
        train(str(llama), str(tmp_path / "o"), ids, steps=4, batch_size=4)


def test_rows_of_another_vocabulary_or_length(models, llama, tmp_path) -> None:
    wide = tiny.tokens(tmp_path / "w.safetensors", vocab=5000)
    with pytest.raises(InputError, match="another vocabulary"):
        train(str(llama), str(tmp_path / "o"), wide, steps=1, batch_size=1)
    long = tiny.tokens(tmp_path / "l.safetensors", length=99)
    with pytest.raises(InputError, match="context length, 64"):
        train(str(llama), str(tmp_path / "o"), long, steps=1, batch_size=1)


def test_bfloat16_products(llama, ids, tmp_path) -> None:
    """Weights stay float32; losses are those of float32 to bfloat16's three digits."""
    settings = {"data": ids, "steps": 10, "batch_size": 8, "lr": "1e-3"}
    train(str(llama), str(tmp_path / "wide"), **settings)
    train(str(llama), str(tmp_path / "narrow"), **settings, compute=Compute(dtype="bfloat16"))
    wide, narrow = ([x["loss"] for x in log(tmp_path / name)] for name in ("wide", "narrow"))
    assert wide != narrow
    assert narrow == pytest.approx(wide, rel=0.01)
    assert tiny.sidecar(tmp_path / "narrow")["options"]["dtype"] == "bfloat16"


class Recorder:
    """Stands for wandb and trackio, which have one interface."""

    def __init__(self) -> None:
        self.figures: list[dict] = []
        self.finished = False

    def init(self, project: str, name: str, config: dict) -> "Recorder":
        assert project == "prunecli" and name == "o" and config["steps"] == 4
        return self

    def log(self, figures: dict, step: int) -> None:
        self.figures.append({"step": step, **figures})

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_trackers(llama, ids, tmp_path, monkeypatch, kind) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, kind, recorder)
    train(str(llama), str(tmp_path / "o"), ids, steps=4, batch_size=4, track=kind)
    assert recorder.finished
    assert [x["loss"] for x in recorder.figures] == [x["loss"] for x in log(tmp_path / "o")]
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UsageError, match=f"prunecli\\[{kind}\\]"):
        train(str(llama), str(tmp_path / "p"), ids, steps=4, batch_size=4, track=kind)


@pytest.mark.slow
def test_compiled(llama, ids, tmp_path) -> None:
    settings = {"data": ids, "steps": 5, "batch_size": 4, "lr": "1e-3"}
    train(str(llama), str(tmp_path / "eager"), **settings)
    train(str(llama), str(tmp_path / "compiled"), **settings | {"compile": True})
    eager, compiled = ([x["loss"] for x in log(tmp_path / n)] for n in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-4)


def test_tied_weights(tmp_path, ids) -> None:
    model = tiny.make(tmp_path / "m", tie_word_embeddings=True)
    settings = {"data": ids, "steps": 5, "batch_size": 4, "lr": "1e-3", "eps": EPS}
    train(str(model), str(tmp_path / "o"), **settings)
    losses, state = bare(model, ids, 5, 4, 1e-3)
    assert [line["loss"] for line in log(tmp_path / "o")] == pytest.approx(losses, rel=1e-5)
    assert "lm_head.weight" not in weights(tmp_path / "o")
    for name, tensor in weights(tmp_path / "o").items():
        assert (tensor - state[name]).abs().max() < 1e-4, name


def padded(folder: Path, pad: int, out: Path) -> Path:
    """Return a copy of a model whose config.json says that `pad` is the id of padding."""
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "pad_token_id": pad}))
    return out


@pytest.mark.parametrize("pad", [7, -1])
@pytest.mark.parametrize("teacher", [False, True])
def test_the_id_of_padding_is_trained(llama, ids, tmp_path, pad, teacher) -> None:
    """Rows have no padding; where the separator is called so (Phi-3), it learns as all ids do."""
    model = padded(llama, pad, tmp_path / "m")
    settings = {
        "data": ids,
        "steps": 3,
        "batch_size": 8,
        "lr": "1e-2",
        "micro_batch": 4,
        "eps": EPS,
    }
    if teacher:
        settings = settings | {"teacher": str(model), "kd_weight": 0.0}
    train(str(model), str(tmp_path / "o"), **settings)
    name = "model.embed_tokens.weight"
    trained = weights(tmp_path / "o")[name]
    _, expected = bare(llama, ids, 3, 8, 1e-2)
    assert (trained - expected[name]).abs().max() < 1e-4
    assert (trained[pad] - weights(llama)[name][pad]).abs().max() > 1e-3


@pytest.mark.parametrize("family", tiny.families())
def test_padding_changes_no_family(models, family, ids, tmp_path) -> None:
    settings = {"data": ids, "steps": 2, "batch_size": 8, "lr": "1e-2"}
    model = padded(models(family), 7, tmp_path / "m")
    train(str(model), str(tmp_path / "pad"), **settings)
    train(str(models(family)), str(tmp_path / "none"), **settings)
    assert same(tmp_path / "pad", tmp_path / "none")


def test_storage_and_sharding_are_the_parents(tmp_path, ids) -> None:
    model = tiny.make(tmp_path / "m", dtype=torch.bfloat16, shard="50KB")
    train(str(model), str(tmp_path / "o"), ids, steps=2, batch_size=2)
    names = sorted(path.name for path in model.glob("*.safetensors"))
    assert len(names) > 1
    assert sorted(path.name for path in (tmp_path / "o").glob("*.safetensors")) == names
    assert load_file(tmp_path / "o" / names[0]).popitem()[1].dtype == torch.bfloat16


def loss_of(folder: Path, rows: torch.Tensor) -> float:
    """Return the mean loss of a folder as stock transformers loads it, in float32."""
    logits = tiny.logits(folder, rows)[:, :-1].flatten(0, 1)
    return float(F.cross_entropy(logits, rows[:, 1:].flatten().long()))


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("half") / "m", dtype=torch.bfloat16)


@pytest.mark.parametrize("held_out", [False, True])
def test_what_rounding_costs_is_told(half, ids, tmp_path, held_out) -> None:
    """Against stock transformers' losses of what was written; other sums of float32: to 1e-5."""
    settings = {"data": ids, "steps": 6, "batch_size": 8, "lr": "1e-4", "save_dtype": "float32"}
    rows = row_sets.open_rows(ids)
    last = rows.read(RowSampler(rows, 48, 0).batch(5, 8, slice(None)))
    if held_out:
        settings = settings | {"eval_data": f"{ids}:300:310"}
        last = row_sets.open_rows(f"{ids}:300:310").read(range(300, 310))
    wide, told = tmp_path / "wide", tiny.Told()
    made = train(str(half), str(wide), **settings, report=told)
    assert made.results["rounding"] is None
    assert not any("rounded" in note for note in told.notes)
    narrow = tmp_path / "narrow"
    made = train(str(half), str(narrow), **settings | {"save_dtype": "auto"}, report=told)
    exact = weights(wide)
    for name, tensor in weights(narrow).items():
        assert exact[name].dtype == torch.float32 and tensor.dtype == torch.bfloat16
        assert torch.equal(exact[name].bfloat16(), tensor), name
    cost = made.results["rounding"]
    assert cost["rows"] == ("held-out rows" if held_out else "rows of the last step")
    assert cost["loss_before"] == pytest.approx(loss_of(wide, last), rel=1e-5)
    assert cost["loss_after"] == pytest.approx(loss_of(narrow, last), rel=1e-5)
    assert cost["loss_before"] != cost["loss_after"]
    (note,) = [note for note in told.notes if "rounded" in note]
    assert note.startswith(f"rounded to bfloat16: loss on {cost['rows']} {cost['loss_before']:.5f}")


def test_stored_as_asked(llama, half, ids, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    settings = {"data": ids, "steps": 2, "batch_size": 4}
    for name, parent, dtype in (("w", half, "float32"), ("n", llama, "bfloat16")):
        out = str(tmp_path / name)
        made = train(str(parent), out, **settings | {"save_dtype": dtype})
        assert made.sidecar["options"]["save_dtype"] == dtype
        assert {str(t.dtype) for t in weights(out).values()} == {f"torch.{dtype}"}
        assert (
            str(AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype) == f"torch.{dtype}"
        )
        assert check(out, deep=True) == []
    assert train(str(llama), str(tmp_path / "a"), **settings).results["rounding"] is None


def test_dry_run(llama, ids, tmp_path) -> None:
    settings = {"data": ids, "steps": 4, "batch_size": 4, "lr": "sweep"}
    made = train(str(llama), str(tmp_path / "o"), **settings, output=Output(dry_run=True))
    assert made.results["tokens"] == 16 * LENGTH
    assert made.results["state_bytes"] > 0
    assert not list(tmp_path.iterdir())


def test_twins(models, ids, tmp_path) -> None:
    """A twin has its sibling's shape and storage, other weights, and learns from scratch."""
    for method in ("flap", "minitron-depth"):
        child, twin = tmp_path / method, tmp_path / f"{method}-twin"
        prune(
            str(models("llama")),
            str(child),
            method=method,
            amount=Amount(ratio=0.5),
            data=Data(ids, nsamples=8),
        )
        init(str(twin), like=str(child))
        ours, theirs = weights(twin), weights(child)
        assert {n: (t.shape, t.dtype) for n, t in ours.items()} == {
            n: (t.shape, t.dtype) for n, t in theirs.items()
        }
        assert not any(torch.equal(ours[n], theirs[n]) for n in ours if ours[n].dim() == 2)
        assert tiny.sidecar(twin)["results"]["method"] == "scratch"
        assert tiny.sidecar(twin)["history"][0]["inputs"][0]["id"] == tiny.sidecar(child)["id"]


def test_a_log_alone_is_no_state(llama, ids, tmp_path, monkeypatch) -> None:
    """A run that failed before its first save has nothing to go on from: another may begin."""

    def dying(self, step, stop=False):
        raise Killed

    settings = {"data": ids, "steps": 3, "batch_size": 4, "lr": "1e-3"}
    monkeypatch.setattr(Loop, "step", dying)
    with pytest.raises(Killed):
        train(str(llama), str(tmp_path / "o"), **settings)
    monkeypatch.undo()
    train(str(llama), str(tmp_path / "o"), **settings | {"lr": "1e-4"})
    assert tiny.sidecar(tmp_path / "o")["options"]["lr"] == 1e-4


def test_an_evaluation_that_is_stopped_is_made_when_the_run_resumes(llama, tmp_path):
    settings = {
        "data": tiny.tokens(tmp_path / "d.safetensors", rows=8),
        "eval_data": tiny.tokens(tmp_path / "e.safetensors", rows=8, seed=1),
        "steps": 4, "batch_size": 2, "micro_batch": 2, "eval_every": 2,
    }  # fmt: skip
    whole = train(str(llama), str(tmp_path / "whole"), **settings).results["evaluations"]
    # asked before each of two steps and four batches, then two steps and batches again
    for stopped in (4, 10):
        out = tmp_path / f"cut{stopped}"
        with pytest.raises(Stopped):
            train(str(llama), str(out), **settings, stop=stop_after(stopped))
        kept = (out.with_name(out.name + ".partial") / "log.jsonl").read_text().splitlines()
        assert "eval_loss" not in kept[-1] and len(kept) in (2, 4)
        made = train(str(llama), str(out), **settings)
        assert made.results["evaluations"] == whole
        assert same(out, tmp_path / "whole")
