"""Files from strangers: regular and bounded, parsed strictly, inside their folder."""

import json
import os
import shutil
import socket

import pytest
from typer.testing import CliRunner

import tiny
from prunecli import init, prune, score, speed, tokenize
from prunecli.cli.app import app
from prunecli.data.rows import open_rows
from prunecli.errors import PruneError
from prunecli.files import regular, sidecar, strict
from prunecli.files.tensorfile import MAX_TENSORS, read_header
from prunecli.model import companions
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.settings import Amount, Data, Output

DEEP = "[" * 50_000 + "]" * 50_000
TEXTS = {
    "deep": ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
    "very deep": ('{"a": ' + DEEP + "}", "nested too deeply"),
    "digits": ('{"a": ' + "9" * 5000 + "}", "more than 40 digits"),
    "huge": ('{"a": 1e999}', "no finite number"),
    "nan": ('{"a": NaN}', "no finite number"),
    "twice": ('{"a": 1, "a": 2}', "a name occurs twice"),
    "twice inside": ('{"b": [{"a": 1, "a": 2}]}', "a name occurs twice"),
    "half a pair": ('{"a": "\\ud800"}', "surrogate"),
    "half a pair as a name": ('{"\\udc00": 1}', "surrogate"),
    "no UTF-8": (b'{"a": "\xff"}', "not readable as JSON"),
    "no JSON": ("{", "not readable as JSON"),
    "empty": ("", "not readable as JSON"),
}


@pytest.fixture
def model(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "in")


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(call, *words):
    """Call, which must raise one line with all `words` and a documented status."""
    with pytest.raises(PruneError) as caught:
        call()
    message = str(caught.value)
    assert caught.value.exit_code in (2, 4), message
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path, words in (
            (tmp_path / "pipe", "is a pipe, expected a file"),
            ("/dev/zero", "is a device, expected a file"),
            (tmp_path, "is a folder, expected a file"),
            (tmp_path / "socket", "cannot read"),
            ("a\0b", "cannot read"),
        ):
            refused(lambda path=path: regular.content(path), words)
    with pytest.raises(FileNotFoundError):
        regular.content(tmp_path / "nowhere")
    assert regular.content(write(tmp_path / "file", "abc"), 3) == b"abc"
    refused(lambda: regular.content(tmp_path / "file", 2), "has more than")


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "model.safetensors.index.json", "prunecli.json",
     "tokenizer.json", "tokenizer_config.json", "LICENSE"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_a_checkpoint(name, kind, model, tmp_path):
    (model / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(model / name)
    else:
        (model / name).symlink_to("/dev/zero")
    out = tmp_path / "out"
    words = "is a pipe" if kind == "pipe" else "link to a file outside"
    refused(
        lambda: prune(str(model), str(out), method="magnitude", amount=Amount(ratio=0.5)), words
    )
    assert not out.exists()


@pytest.mark.parametrize("option", ["plan", "arch"])
def test_a_pipe_as_a_plan_or_shape(option, model, calibration, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    pipe = str(tmp_path / "pipe")
    given = {"plan": pipe} if option == "plan" else {"amount": Amount(arch=pipe)}
    method = {} if option == "plan" else {"method": "shortgpt", "data": Data(calibration)}
    refused(lambda: prune(str(model), str(tmp_path / "out"), **method, **given), "is a pipe")


def test_a_pipe_as_tokens_stats_and_config(model, tmp_path):
    for name in ("ids.safetensors", "stats.safetensors", "config.json"):
        os.mkfifo(tmp_path / name)
    out = str(tmp_path / "out.safetensors")
    stats = str(tmp_path / "stats.safetensors")
    refused(lambda: score(str(model), out, method="wanda-sp", stats=stats), "stats.safetensors")
    refused(lambda: init(str(tmp_path / "new"), config=str(tmp_path / "config.json")), "is a pipe")
    result = CliRunner().invoke(app, ["check", "--config", str(tmp_path / "config.json")])
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit | PruneError), result.exception


@pytest.mark.parametrize("row", TEXTS)
def test_json_that_does_harm(row, model, calibration, tmp_path):
    content, words = TEXTS[row]
    path = write(tmp_path / "x.json", content)
    refused(lambda: strict.read_value(path), words)
    refused(lambda: sidecar.read(path), "x.json")
    assert sidecar.kind_of(path) is None
    refused(lambda: prune(str(model), str(tmp_path / "out"), plan=str(path)), words)
    by_shape = {"method": "shortgpt", "data": Data(calibration), "amount": Amount(arch=str(path))}
    refused(lambda: prune(str(model), str(tmp_path / "out"), **by_shape), words)
    write(model / "prunecli.json", content)
    refused(lambda: Checkpoint(str(model)), words)


@pytest.mark.parametrize(
    ("option", "record", "words"),
    [
        ("plan", {"keep": {"layers": [0]}, "kep": {}}, "'kep' too; remove it"),
        ("plan", {"keep": {"layer": [0]}}, "this one has 'layer'"),
        ("arch", {"hiden": 32, "ffn": 40}, "'hiden', which is no size of a shape: did you mean"),
        ("arch", {"ffn": 40, "intermediate_size": 48}, "says that ffn are 40 and 48"),
        ("arch", {"heads": 3, "kv_heads": 3}, "3 KV heads for 3 heads, but 3 share one here"),
    ],
)
def test_unread_names_are_no_part_of_it(option, record, words, model, calibration, tmp_path):
    """A name that is misspelt would change nothing, silently."""
    path = write(tmp_path / "x.json", json.dumps(record))
    given = {"method": "flap", "data": Data(calibration), "amount": Amount(arch=str(path))}
    given = {"plan": str(path)} if option == "plan" else given
    refused(lambda: prune(str(model), str(tmp_path / "out"), **given), words)


def test_values_are_counted(monkeypatch):
    monkeypatch.setattr(strict, "MAX_VALUES", 10)
    assert strict.parsed("[1, 2, 3]") == [1, 2, 3]
    with pytest.raises(ValueError, match="more than 10 values"):
        strict.parsed("[" + "{}," * 10 + "{}]")


@pytest.mark.parametrize(
    "record",
    [
        {"schema": 1},
        {"schema": 1, "kind": "plan", "results": 3},
        {"schema": [], "kind": {}, "id": 1},
        {"kind": "plan"},
        {"kind": ["arch"]},
        {"schema_": 1, "schema": 1},
    ],
)
def test_sidecars_that_are_none(record, model, tmp_path):
    path = write(tmp_path / "x.json", json.dumps(record))
    refused(lambda: sidecar.read(path), "is not a prunecli sidecar")
    refused(lambda: prune(str(model), str(tmp_path / "out"), plan=str(path)))


def header(**changes):
    """Return the header of one tensor of two bytes, changed."""
    entry = {"dtype": "F16", "shape": [1], "data_offsets": [0, 2], **changes}
    return {"x": {key: value for key, value in entry.items() if value is not ...}}


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (header(data_offsets=[0.0, 2.0]), "no whole numbers"),
        (header(data_offsets=[-2, 0]), "no whole numbers"),
        (header(data_offsets=[2, 0]), "-2 bytes"),
        (header(data_offsets=[0, 2, 4]), "no whole numbers"),
        (header(data_offsets=None), "no whole numbers"),
        (header(data_offsets=[2, 4]), "overlap or leave holes"),
        (header(data_offsets=[0, 10**39], shape=[10**39]), "no whole numbers"),
        (header(shape=[True]), "no whole numbers"),
        (header(shape={"0": 1}), "no whole numbers"),
        (header(shape=[1] * 1000), "no whole numbers"),
        (header(shape=...), "does not describe"),
        (header(more=1), "does not describe"),
        (header(dtype=["F16"]), "expected one of"),
        (header(dtype={}), "expected one of"),
        ({"x": 1}, "does not describe"),
        ({**header(), "y": header()["x"]}, "overlap or leave holes"),
        ({**header(), "__metadata__": {"format": 1}}, "metadata"),
        ({**header(), "__metadata__": ["pt"]}, "metadata"),
        ([1], "does not describe"),
        (
            {f"{i}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
             for i in range(MAX_TENSORS + 1)},
            "more than 100000",
        ),
    ],
)  # fmt: skip
def test_headers_that_cannot_be(described, words, tmp_path):
    text = json.dumps(described).encode()
    path = write(tmp_path / "x.safetensors", len(text).to_bytes(8, "little") + text + b"\0\0")
    refused(lambda: read_header(path), words)


def test_sizes_are_compared_before_they_are_expanded(model, monkeypatch, tmp_path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10_000}))
    monkeypatch.setattr(Arch, "tensors", lambda self: pytest.fail("tensors were listed"))
    refused(lambda: Checkpoint(str(model)), "num_hidden_layers is 10000", "of 4 layers")
    # counting lists no tensors at all
    counted = speed(str(model), flops_only=True)
    assert counted.results["sizes"]["layers"] == 10_000


def test_links_are_followed_inside_their_folder_only(model, tmp_path):
    write(tmp_path / "secret", "secret")
    for name in ("tokenizer.json", "LICENSE", "config.json", "model.safetensors", "prunecli.json"):
        folder = shutil.copytree(model, tmp_path / f"of {name}")
        if (folder / name).exists():
            shutil.move(folder / name, tmp_path / name)
        else:
            write(tmp_path / name, "{}")
        (folder / name).symlink_to(tmp_path / name)
        out = tmp_path / "out"
        by = {"method": "magnitude", "amount": Amount(ratio=0.5)}
        refused(lambda f=folder, o=out, b=by: prune(str(f), str(o), **b), "link", "outside")
        assert not out.exists()
    (model / "weights").mkdir()
    shutil.move(model / "model.safetensors", model / "weights" / "model.safetensors")
    (model / "model.safetensors").symlink_to("weights/model.safetensors")
    assert Checkpoint(str(model)).arch.layers == 4


def test_links_of_a_hub_cache_are_followed(model, tmp_path):
    repo = tmp_path / "models--org--name"
    (repo / "blobs").mkdir(parents=True)
    snapshot = repo / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        shutil.move(file, repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    assert Checkpoint(str(snapshot)).arch.layers == 4
    # not where the folder of blobs is itself a link
    shutil.move(repo / "blobs", tmp_path / "elsewhere")
    (repo / "blobs").symlink_to(tmp_path / "elsewhere")
    refused(lambda: Checkpoint(str(snapshot)), "link to a file outside")


def test_a_link_to_itself(model):
    (model / "config.json").unlink()
    (model / "config.json").symlink_to("config.json")
    refused(lambda: Checkpoint(str(model)), "config.json")


def test_one_file_beside_an_index_of_others(tmp_path):
    sharded = tiny.make(tmp_path / "in", shard="60KB")
    Checkpoint(str(sharded))
    one = tiny.make(tmp_path / "one")
    shutil.copy(one / "model.safetensors", sharded)
    refused(lambda: Checkpoint(str(sharded)), "out of date", "index")
    index = {"weight_map": dict.fromkeys(Checkpoint(str(one)).specs, "model.safetensors")}
    (one / "model.safetensors.index.json").write_text(json.dumps(index))
    Checkpoint(str(one))


def test_a_copied_tokenizer_never_names_code(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    write(path, '{"auto_map": {"a": "b"}, "x": 1}')
    assert json.loads(companions.contents(tmp_path)[path.name]) == {"x": 1}
    write(path, '{"auto_map": {"a": "b"}, "auto_map": 2}')
    refused(lambda: companions.contents(tmp_path), "a name occurs twice")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.yaml", "1: 2\n"),
        ("x.yaml", "a: &a [*a]\nseed: *a\n"),
        ("x.yaml", "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n"
            for i in range(12)
        )),
        ("x.yaml", "[" * 5000),
        ("x.json", '{"seed": ' + DEEP + "}"),
        ("x.json", '{"seed": 1, "seed": 2}'),
        ("x.toml", "[" * 5000),
    ],
)  # fmt: skip
def test_config_files_that_do_harm(name, text, tmp_path):
    path = write(tmp_path / name, text)
    result = CliRunner().invoke(app, ["calibrate", "--config", str(path), "a", "b"])
    assert isinstance(result.exception, PruneError), (result.exception, result.output)
    assert result.exception.exit_code == 2
    assert "\n" not in str(result.exception)


ODD = [None, True, -1, 10**30, 1.5, "", "x", [], [1], {}, {"a": [1]}]


def changes(record, keys=("options", "results", "outputs", "inputs", "history", "tokens")):
    """Yield copies of a sidecar in which one value is odd, or is not there."""
    for key in keys:
        parts = record[key] if isinstance(record[key], dict) else {}
        for name in parts:
            for odd in (..., *ODD):
                rest = {k: v for k, v in parts.items() if k != name}
                yield {**record, key: rest if odd is ... else {**rest, name: odd}}
        yield from ({**record, key: odd} for odd in ODD)


@pytest.mark.parametrize("kind", ["rows", "scores", "plan", "checkpoint"])
def test_a_sidecar_with_an_odd_value_is_used_or_refused(kind, model, calibration, tmp_path):
    data, half = Data(calibration), Amount(ratio=0.5)
    scores, plan = str(tmp_path / "s.safetensors"), str(tmp_path / "p.json")
    if kind == "scores":
        score(str(model), scores, method="shortgpt", data=data)
        file = sidecar.path_of(scores)
    elif kind == "plan":
        prune(str(model), plan, method="shortgpt", data=data, amount=half, plan_only=True)
        file = sidecar.path_of(plan)
    elif kind == "rows":
        init(str(tmp_path / "bytes"), config=str(model / "config.json"))
        tokenize("builtin", str(tmp_path / "rows"), tokenizer=str(tmp_path / "bytes"), seq_len=64)
        file = sidecar.path_of(tmp_path / "rows")
    else:
        prune(str(model), str(tmp_path / "pruned"), method="magnitude", amount=half)
        file = sidecar.path_of(tmp_path / "pruned")
    uses = {
        "scores": lambda: prune(
            str(model), str(tmp_path / "out"), method="shortgpt", scores=scores, amount=half,
            output=Output(dry_run=True),
        ),
        "plan": lambda: prune(
            str(model), str(tmp_path / "out"), plan=plan, output=Output(dry_run=True)
        ),
        "rows": lambda: open_rows(str(tmp_path / "rows")),
        "checkpoint": lambda: speed(str(tmp_path / "pruned"), flops_only=True),
    }  # fmt: skip
    uses[kind]()
    for changed in changes(json.loads(file.read_text())):
        file.write_text(json.dumps(changed))
        try:
            uses[kind]()
        except PruneError as error:
            assert error.exit_code in (2, 4), error
            assert "\n" not in str(error)
