"""No whole tensor is copied, cast, drawn, compared or hashed at once."""

import json
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from prunecli.files import tensorfile
from prunecli.files.tensorfile import (
    GROUP,
    PIECE,
    Inside,
    Spec,
    TensorWriter,
    layout,
    pieces,
    read_tensor,
    rows_of,
    spans,
    spec_of,
    tensor_digest,
)
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import FLOATS, all_finite
from prunecli.model.sparsity import Census

MB = 1 << 20
BOUND = 64 * MB  # of a gigabyte
SHORT = 40 * MB  # of 64 MB
# each line passes a whole model whose embedding and head are large, and holds parts of it
PASSES = """
import json, sys, threading, time
import torch
from pathlib import Path
from prunecli.files.keeping import Keeper
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.sparsity import faults
from prunecli.model.stream import LayerStream
from prunecli.model.write import write_tensors
from prunecli.pruning.plan import Plan
from prunecli.pruning.rotate import Rotated
from prunecli.pruning.surgery import PrunedModel
from prunecli.report import SILENT
from prunecli.settings import Compute, RunContext
from prunecli.training.init import Initializer, Target

torch.set_num_threads(1)
folder, tied, planted = sys.argv[1:]
dense = Checkpoint(folder)
arch = dense.arch


def anonymous():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def through(tensors):
    for _, parts in tensors:
        for _ in parts:
            pass


def drawn(scheme, masked=()):
    target = Target(arch, dense.specs, [], dense, dense if masked else None)
    return Initializer(target, "0", scheme, set(masked)).tensors()


def cut(weights):
    plan = Plan(hidden=tuple(range(0, arch.hidden, 2)))
    return PrunedModel(weights, plan, plan.child(weights.arch)).stream()


def written(out):
    Path(out).mkdir()
    specs = dense.specs
    write_tensors(Path(out), arch, specs, [0] * len(specs), dense.stream(), Keeper(RunContext()))


def predicted():
    stream, ids = LayerStream(dense, Compute("cpu", "float32")), torch.zeros(1, 9, dtype=torch.int)
    stream.losses(stream.embed(ids), ids)
    stream.loss_gradient(stream.embed(ids), ids)


head = ["lm_head.weight"]
passes = {
    "digest and finite check": dense.digest,
    "comparison": lambda: Checkpoint(tied),
    "zeros": lambda: faults(dense, SILENT),
    "random draws": lambda: through(drawn("hf", head)),
    "casts": lambda: through(drawn("official")),
    "cuts": lambda: through(cut(dense)),
    "rotation": lambda: through(cut(Rotated(dense, torch.eye(arch.hidden), arch.hidden // 2))),
    "writing": lambda: written(folder + "/out"),
    "logits": predicted,
}
if planted == "planted":
    passes = {"planted": lambda: dense.tensor("lm_head.weight").float()}
for act in () if planted == "planted" else (dense.digest, predicted):
    act()  # what the libraries take at first is none of it
held = {}
for name, act in passes.items():
    before, most, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            most[0] = max(most[0], anonymous() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    act()
    done.set()
    watcher.join()
    held[name] = most[0]
print(json.dumps(held))
"""


# a walk over layers of large matrices holds one of them in the type of the products
WALK = """
import sys, torch
from prunecli.model import memory
from prunecli.model.checkpoint import Checkpoint
from prunecli.model.stream import LayerStream
from prunecli.settings import Compute

torch.set_num_threads(1)
folder, planted = sys.argv[1:]


def peak():  # of anonymous memory alone: the file is mapped
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def walk():
    stream = LayerStream(Checkpoint(folder), Compute("cpu", "float32"))
    hidden, most = stream.embed(torch.zeros(1, 4, dtype=torch.int)), 0
    before = peak()
    for i in range(stream.arch.layers):
        layer = stream.layer(i, cast=bool(planted))
        with torch.no_grad():
            for _ in range(2):
                stream.forward(layer, i, hidden)
        most = max(most, peak() - before)
    return most


walk()  # what the libraries take at first is none of it
memory.heap().give_back()  # else a layer takes what was freed, and is not seen to
print(walk())
"""


def model_of(folder: Path, size: int, tied: bool = False, hidden: int = 64, **more: int) -> Path:
    """Write a model of zeros whose embedding and head take `size` bytes each; files with holes."""
    sizes = {"vocab_size": size // (2 * hidden), "hidden_size": hidden, "num_hidden_layers": 1}
    sizes |= more
    config = tiny.config_of("llama", **sizes, num_attention_heads=8, dtype="bfloat16")
    tensors = Arch(config).tensors()
    specs = {name: tensorfile.Spec("BF16", tensor.shape) for name, tensor in tensors.items()}
    start, _ = layout(specs)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(start)
        file.truncate(len(start) + sum(spec.bytes for spec in specs.values()))
    return folder


def held_by(tmp_path: Path, size: int, planted: str = "") -> dict[str, int]:
    """Return how many bytes each pass took of memory at its peak, beside the mapped file."""
    folders = [model_of(tmp_path / name, size, name == "tied") for name in ("model", "tied")]
    line = [sys.executable, "-c", PASSES, *map(str, folders), planted]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="the system's own figures of a process")


@linux
def test_large_tensors_pass_in_parts(tmp_path):
    held = held_by(tmp_path, BOUND)
    assert len(held) > 8 and max(held.values()) < SHORT, held


@linux
def test_a_whole_copy_is_seen(tmp_path):
    assert held_by(tmp_path, BOUND, "planted")["planted"] > 2 * SHORT


@linux
@pytest.mark.slow
def test_a_gigabyte_passes_in_64_megabytes(tmp_path):
    held = held_by(tmp_path, 1 << 30)
    print({name: f"{size / MB:.0f} MB" for name, size in held.items()})
    assert max(held.values()) < BOUND, held


@linux
@pytest.mark.parametrize("planted", ["", "whole"])
def test_a_layer_is_taken_to_float32_by_matrices(planted, tmp_path):
    hidden, ffn = 1024, 6144
    sizes = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": 2}
    model_of(tmp_path / "model", 64 * hidden, hidden=hidden, **sizes)
    line = [sys.executable, "-c", WALK, str(tmp_path / "model"), planted]
    done = subprocess.run(line, stdout=subprocess.PIPE, check=True)
    matrix = 4 * hidden * ffn
    if planted:
        assert int(done.stdout) > 3 * matrix
    else:
        assert matrix <= int(done.stdout) < 1.5 * matrix


def test_spans_are_bounded_and_leave_no_little_rest():
    for count, size in ((0, 4), (1, 4), (15, 1), (16, PIECE), (31, PIECE), (3 * PIECE + 5, 1)):
        found = list(spans(count, size))
        assert sum(one.stop - one.start for one in found) == count
        assert all(one.stop == other.start for one, other in pairwise(found))
        for one in found:
            length = one.stop - one.start
            assert one.start % GROUP == 0
            assert length * size < max(PIECE, GROUP * size) + GROUP * size
            assert length >= GROUP or len(found) == 1


def test_numbers_come_in_turn(monkeypatch):
    monkeypatch.setattr(tensorfile, "PIECE", 200)
    for tensor in (torch.arange(1000.0).view(100, 10), torch.arange(999.0), torch.tensor(1.5),
                   torch.arange(1000.0).view(20, 50).T, torch.empty(0, 3)):  # fmt: skip
        assert torch.equal(torch.cat([tensor.new_empty(0), *pieces(tensor)]), tensor.flatten())
        assert tensor.dim() == 0 or torch.equal(torch.cat([tensor[:0], *rows_of(tensor)]), tensor)


def test_draws_in_parts_are_those_of_one_draw(monkeypatch):
    monkeypatch.setattr(tensorfile, "PIECE", 4 * 64)
    for rows, columns in ((3, 5), (64, 1), (65, 1), (81, 1), (33, 7), (100, 16), (1000, 3)):
        whole, parts = (torch.Generator().manual_seed(7) for _ in range(2))
        drawn = [
            torch.empty(span.stop - span.start, columns).normal_(0, 0.02, generator=parts)
            for span in spans(rows, 4 * columns)
        ]
        expected = torch.empty(rows, columns).normal_(0, 0.02, generator=whole)
        assert torch.equal(torch.cat(drawn), expected), (rows, columns)


@pytest.mark.parametrize("name", FLOATS)
def test_one_number_that_is_none_is_found(name):
    dtype = tensorfile.torch_dtype(name)
    sound = torch.linspace(-2, 2, 1031, dtype=torch.float64).to(dtype)
    largest = torch.finfo(dtype).max
    sound[3], sound[4] = largest, -largest
    assert all_finite(sound)
    for value in (torch.nan, torch.inf, -torch.inf):
        for place in (0, 1, 17, 512, 1029, 1030):
            broken = sound.clone()
            broken[place] = value
            assert not all_finite(broken), (value, place)


def test_a_tensor_in_parts_is_written_and_counted_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "PIECE", 512)
    arch = Arch(tiny.config_of("llama"))
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = torch.randn(80, 48).masked_fill(torch.rand(80, 48) < 0.4, 0)
    whole, parts = Census(arch), Census(arch)
    assert whole.add(name, tensor) == sum(parts.add(name, part) for part in tensor.split(7))
    assert whole.nonzero == parts.block_nonzero == int((tensor != 0).sum())
    specs = {"a": spec_of(tensor.T), "b": spec_of(torch.tensor(1.0))}
    with TensorWriter(tmp_path / "own", specs) as writer:
        writer.write("b", torch.tensor(1.0))
        writer.write_rows("a", tensor.T.split(7))
    save_file({"a": tensor.T.contiguous(), "b": torch.tensor(1.0)}, tmp_path / "theirs")
    assert torch.equal(load_file(tmp_path / "own")["a"], tensor.T)
    monkeypatch.undo()
    assert writer.digests["a"] == tensor_digest(tensor.T.contiguous())
    for wrong in ([tensor.T[:40]], [tensor], [tensor.T.double()]):
        with TensorWriter(tmp_path / "wrong", specs) as writer:
            with pytest.raises(ValueError, match="announced"):
                writer.write_rows("a", wrong)
            writer.write("a", tensor.T)
            writer.write("b", torch.tensor(1.0))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_tensors_in_a_stack(interleaved, transposed, tmp_path):
    """In any order, some of them after a stop, beside one that is by itself; number by number."""
    parts = torch.arange(3 * 2 * 4 * 5, dtype=torch.float32).view(3, 2, 4, 5)
    stack = torch.empty(3, 5, 8) if transposed else torch.empty(3, 8, 5)
    for e, part, row, column in product(range(3), range(2), range(4), range(5)):
        at = row * 2 + part if interleaved else part * 4 + row
        place = (e, column, at) if transposed else (e, at, column)
        stack[place] = parts[e, part, row, column]
    whole = {"a": torch.ones(2), "stack": stack}
    save_file(whole, tmp_path / "theirs", metadata={"format": "pt"})
    places = {
        f"{e}.{part}": Inside("stack", 3, e, 2, part, interleaved, transposed)
        for e in range(3)
        for part in range(2)
    }
    specs = {"a": spec_of(torch.ones(2))}
    specs |= {name: Spec("F32", (4, 5), place) for name, place in places.items()}
    order, path = ["2.1", "0.0", "a", "1.1", "0.1", "2.0", "1.0"], tmp_path / "own"

    def write(writer, names):
        for name in names:
            e, _, part = name.partition(".")
            own = torch.ones(2) if name == "a" else parts[int(e), int(part)]
            writer.write_rows(name, own.split(3))
            assert writer.digests[name] == tensor_digest(own)

    first = TensorWriter(path, specs)
    write(first, order[:4])
    first.flush()
    with TensorWriter(path, specs, first.digests) as writer:
        with pytest.raises(ValueError, match="announced"):
            writer.write("0.0", torch.ones(5, 4))
        write(writer, order[4:])
    assert path.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert all(torch.equal(read_tensor(path, "stack", places[f"{e}.{part}"]), parts[e, part])
               for e in range(3) for part in range(2))  # fmt: skip
