"""`log`: histories as tables and JSON; and scripts that make them again, run by a real shell."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import prunecli
import tiny
from prunecli.errors import InputError
from prunecli.files import sidecar
from prunecli.files.sidecar import HistoryStep, Input
from prunecli.tables.history import FIRST, LAST
from prunecli.tables.remake import MOST, START
from prunecli.tables.terminal import shown

TEXT = "".join(f"The {n} numbers before {n} add up to {n * (n - 1) // 2}.\n" for n in range(700))
WINDOWS = "--data {text} --nsamples 4 --seq-len 16"
# in order, each with what it writes; {..} are paths
CHAIN = {
    "in": "init --config {config} --tokenizer bytes {in}",
    "flap": f"prune --method flap --heads 3 --ffn 40 {WINDOWS} {{in}} {{flap}}",
    "rows": "tokenize --tokenizer {in} --seq-len 16 --tokens 2000 --workers 1 {text} {rows}",
    "trained": "train --data {rows}:8:99 --steps 2 --batch-size 4 --lr 1e-3 --clip 0.5 {flap} "
    "{trained}",
    "again": f"prune --method wanda --sparsity 2:4 {WINDOWS} {{trained}} {{again}}",
    "stats": f"calibrate --for flap,wanda {WINDOWS} {{in}} {{stats}}.safetensors",
    "scores": "score --method flap --metric WIFN --stats {stats}.safetensors {in} "
    "{scores}.safetensors",
    "scored": "prune --method flap --scores {scores}.safetensors --ratio 0.3 {in} {scored}",
    "plan": f"prune --method minitron-width --hidden 40 --ffn 64 --plan-only {WINDOWS} {{in}} "
    "{plan}.json",
    "planned": "prune --plan {plan}.json {in} {planned}",
    "masks": "prune --method sheared-llama --layers 3 --hidden 36 --heads 3 --ffn 40 --tokens 128 "
    "--batch-size 4 --seed 1 --data {rows}:60:99 {in} {masks}",
    "twin": "init --like {again} --seed 3 {twin}",
    "distilled": "train --data {rows} --steps 2 --batch-size 2 --teacher {in} --masks drop {again} "
    "{distilled}",
    "measured": f"eval {WINDOWS} --allow-overlap --out {{measured}}.json {{distilled}}",
}

FILES = {"stats": ".safetensors", "scores": ".safetensors", "plan": ".json", "measured": ".json"}

# stands in for the program, which would take seconds to start: the test itself runs what it is told
CLIENT = """#!{python} -S
import json, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    server.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
    sys.exit(int(server.makefile().readline()))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, str]:
    """Return the path of everything that CHAIN makes, by its name."""
    root = tmp_path_factory.mktemp("log")
    (root / "text.txt").write_text(TEXT)
    (root / "config.json").write_text(json.dumps(tiny.config_of("llama")))
    return {"text": str(root / "text.txt"), "config": str(root / "config.json")} | {
        name: str(root / name) for name in CHAIN
    }


@pytest.fixture
def made(run, place) -> dict[str, str]:
    """Return the path of every artefact, made once, by the command line."""
    for name, line in CHAIN.items():
        path = place[name] + FILES.get(name, "")
        if not os.path.exists(path):
            ended = run(*line.format(**place).split())
            assert ended.code == 0, ended.err
    return {name: place[name] + FILES.get(name, "") for name in CHAIN}


def served(run, script: str, folder: Path, **variables: str) -> tuple[int, str]:
    """Run a script with `sh`, and every `prunecli` in it here; return its status and messages."""
    address, program = str(folder / "s"), folder / "bin" / "prunecli"
    program.parent.mkdir()
    program.write_text(CLIENT.format(python=sys.executable, address=address))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = f"{program.parent}:/usr/bin:/bin"
    (folder / "again.sh").write_text(script)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        server.settimeout(0.05)
        shell = subprocess.Popen(
            ["sh", "again.sh"], cwd=folder, text=True,
            env={"PATH": path, "OUT": str(folder / "o"), **variables},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        for words, connection in requests(server, shell):
            ended = run(*words)
            assert ended.code == 0, (words, ended.err)
            connection.sendall(f"{ended.code}\n".encode())
        assert shell.stderr is not None
        return shell.wait(), shell.stderr.read()


def requests(server, shell) -> Iterator[tuple[list[str], socket.socket]]:
    """Yield the words of every command that the shell runs, and where its status goes."""
    while shell.poll() is None:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            continue
        with connection:
            yield json.loads(connection.makefile().readline()), connection


def test_the_script_makes_it_again(run, made, place, tmp_path) -> None:
    """Every kind of step, from a config and a text; digests and bytes are those of the first."""
    ended = run("log", "--commands", *made.values())
    assert (ended.code, ended.err) == (0, "prunecli: set CONFIG, TEXT before you run the script\n")
    assert str(Path(place["text"]).parent) not in ended.out
    status, messages = served(run, ended.out, tmp_path, CONFIG=place["config"], TEXT=place["text"])
    assert (status, messages) == (0, "")
    again = {known_by(path): path for path in (tmp_path / "o").iterdir() if sidecar.kind_of(path)}
    for name, path in made.items():
        record = sidecar.read(path)
        other = sidecar.read(again[known_by(path)])
        assert other.outputs == record.outputs and other.options == record.options, name
        # the id of masks holds what the folder of rows is called; how many rows there are is not
        # recorded of a training on some of them
        assert other.id == record.id or name == "masks"
        assert {**other.results, "epochs": 0} == {**record.results, "epochs": 0}, name
    folders = [name for name in made if (Path(made[name]) / "model.safetensors").exists()]
    assert len(folders) == 9
    for name in folders:
        assert tiny.same(made[name], again[known_by(made[name])])


def known_by(path) -> str:
    record = sidecar.read(path)
    return record.outputs.get("digest", record.id)


@pytest.mark.slow
def test_the_script_with_the_program_itself(run, made, place, tmp_path) -> None:
    (tmp_path / "again.sh").write_text(run("log", "--commands", *made.values()).out)
    environment = {**os.environ, "CONFIG": place["config"], "TEXT": place["text"]}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for _ in range(2):  # what is done is kept
        ended = subprocess.run(
            ["sh", "again.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        assert "not as recorded" not in ended.stderr


def test_another_result_is_told(run, made, place, tmp_path) -> None:
    """A config with other weights makes another model: the script goes on, and fails at its end."""
    script = run("log", "--commands", made["in"]).out
    config = json.loads(Path(place["config"]).read_text())
    other = tmp_path / "c.json"
    other.write_text(json.dumps({**config, "initializer_range": 0.1}))
    status, messages = served(run, script, tmp_path, CONFIG=str(other))
    digest = tiny.sidecar(made["in"])["outputs"]["digest"]
    assert status == 1
    assert messages == f'{tmp_path}/o/1-init/prunecli.json: not as recorded: "digest": "{digest}"\n'


def test_what_was_recorded_is_printed_as_it_is(tmp_path) -> None:
    """A digest may be anybody's text, and some shells make escapes of it where they echo."""
    line = f"{START}\nsame /dev/null '\\033]0;x\\007'"
    ended = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stderr == "/dev/null: not as recorded: \\033]0;x\\007\n"


def test_variables_for_what_is_not_given(run, made, tmp_path) -> None:
    """Of a checkpoint alone the whole chain is known, but for what its steps read beside it."""
    ended = run("log", "--commands", made["again"])
    assert ended.code == 0
    assert ended.err == "prunecli: set CONFIG, TEXT, ROWS before you run the script\n"
    assert "#   ROWS  the rows that step 3 read (digest " in ended.out
    assert ' --data "$ROWS":8:16 ' in ended.out
    status, messages = served(run, ended.out, tmp_path)
    assert status != 0 and "CONFIG: is not set" in messages
    assert not (tmp_path / "o").exists()


def test_a_model_of_somebody_else(run, made, place, llama, tmp_path) -> None:
    out = str(tmp_path / "o1")
    run("prune", "--method", "magnitude", "--ratio", "0.5", str(llama), out)
    script = run("log", "--commands", out).out
    assert ': "${MODEL:?is not set: see the top}"' in script
    (tmp_path / "again").mkdir()
    status, messages = served(run, script, tmp_path / "again", MODEL=str(llama))
    assert (status, messages) == (0, "")
    assert tiny.same(out, tmp_path / "again" / "o" / "1-prune")


def test_text_read_with_another_tokenizer(run, made, place, llama, tmp_path) -> None:
    """The parent has none: the script asks for the one that was named."""
    out = str(tmp_path / "o1")
    line = f"prune --method wanda --ratio 0.5 --tokenizer {{in}} {WINDOWS} {llama} {out}"
    assert run(*line.format(**place).split()).code == 0
    script = run("log", "--commands", out).out
    named = {"MODEL": str(llama), "TOKENIZER": made["in"], "TEXT": place["text"]}
    assert all(f': "${{{name}:?is not set' in script for name in named)
    (tmp_path / "again").mkdir()
    assert served(run, script, tmp_path / "again", **named) == (0, "")
    assert tiny.same(out, tmp_path / "again" / "o" / "1-prune")


def test_steps_that_no_record_tells(run, made, tmp_path) -> None:
    speed = str(tmp_path / "s.json")
    run("speed", "--flops-only", "--out", speed, made["in"])
    ended = run("log", "--commands", speed, made["in"])
    assert ended.code == 4
    assert "1 of 2 steps are not in the script: step 2, speed: times are another" in ended.err
    assert "\n# cannot be made again from its record: times are another machine's\n" in ended.out
    assert subprocess.run(["sh", "-n"], input=ended.out, text=True).returncode == 0


def test_the_chain(run, made) -> None:
    """Oldest first; results where the step's own sidecar is given."""
    ended = run("log", made["again"])
    _, _, *lines = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "")
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert [line[12:20].split()[0] for line in lines] == ["init", "prune", "train", "prune"]
    record = tiny.sidecar(made["again"])
    assert record["id"][:12] in lines[3] and record["outputs"]["digest"][:12] in lines[3]
    assert record["inputs"][0]["digest"][:12] in lines[2]
    assert lines[3].endswith(prunecli.__version__)
    ended = run("log", "--json", made["again"])
    (result,) = [json.loads(ended.out)]
    assert result["sidecar"] == record
    steps = result["results"]["steps"]
    assert [step["parent"] for step in steps] == [None, *(step["id"] for step in steps[:3])]
    assert [step["tokens"] for step in steps] == [None, 64, 128, 64]
    assert [step["loss"] for step in steps] == [None] * 4
    assert steps[3]["params"] == record["outputs"]["params"]
    assert steps[1]["options"] == record["history"][1]["options"]

    trained = tiny.sidecar(made["trained"])["results"]
    measured = json.loads(Path(made["measured"]).read_text())["results"]
    ended = run("log", "--json", *made.values())
    several = {one["path"]: one["results"]["steps"] for one in json.loads(ended.out)["results"]}
    assert several.keys() == set(made.values())
    assert several[made["again"]][2]["loss"] == trained["loss"]
    last = several[made["measured"]][-1]
    assert (last["loss"], last["perplexity"]) == (measured["loss"], measured["perplexity"])
    assert [step["command"] for step in several[made["scores"]]] == ["score"]


def test_order_and_ways_of_naming(run, made, tmp_path) -> None:
    """Steps follow what they read, in whichever order the paths are; a sidecar is its artefact."""
    beside = f"{made['again']}/prunecli.json"
    paths = [made["scored"], beside, made["scores"], made["rows"], f"{made['stats']}.json"]
    history = prunecli.log(paths)
    places = {step.made.id: number for number, step in enumerate(history.steps)}
    for step in history.steps:
        assert all(places[e.id] < places[step.made.id] for e in step.made.inputs if e.id in places)
    assert len(places) == len(history.steps) == 8
    assert prunecli.log(Path(made["again"])).steps[-1].digest == history.of(beside)[-1].digest
    assert history.commands() == history.script().text
    ended = run("log", "-", stdin=f"{made['again']}\n")
    assert ended.out == run("log", made["again"]).out
    ended = run("log", "--commands", "--json", made["again"])
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    for path in (str(tmp_path), str(tmp_path / "none"), made["stats"][:-12]):
        ended = run("log", path)
        assert (ended.code, ended.out) == (4, "")
        assert "has no sidecar" in ended.err
    with pytest.raises(InputError, match="has no sidecar"):
        prunecli.log(tmp_path)


@pytest.mark.parametrize("width", [80, 100])
def test_long_histories_fit(made, tmp_path, width: int) -> None:
    """Thousands of steps: the first and the last in a terminal, all of them in a pipe."""
    count = 1500
    copy = tmp_path / "long"
    shutil.copytree(made["again"], copy)
    record = sidecar.read(copy)
    steps = [record.history[0]]
    for number in range(count):
        entry = Input(role="model", id=steps[-1].id, digest=f"{number:064}")
        options = {"number": number, "method": "wanda", "ratio": 0.1}
        made_id = sidecar.content_id("checkpoint", options, [entry])
        steps.append(HistoryStep(
            id=made_id, parent=steps[-1].id, command="prune", options=options, inputs=[entry]
        ))  # fmt: skip
    text = record.model_copy(update={"history": steps, "id": steps[-1].id}).text()
    (copy / "prunecli.json").write_text(text)
    history = prunecli.log(copy)
    lines = shown(history.table(short=True), "rich", width).splitlines()
    assert max(map(len, lines)) <= width
    assert f"{count + 1 - FIRST - LAST} steps after step {FIRST} are not shown" in "\n".join(lines)
    assert len(shown(history.table(), "rich", None).splitlines()) > count
    assert len(history.script().missing) == count


EVIL = "x'; touch ruin; $(touch ruin) `touch ruin`\n touch ruin \x1b[2J\u202e [red]"


def test_a_stranger_s_sidecar(run, made, tmp_path) -> None:
    """What comes in a sidecar is neither markup nor a command, wherever it stands."""
    record = json.loads((Path(made["again"]) / "prunecli.json").read_text())
    places = strings(record)
    assert len(places) > 100
    marks = {"id", "parent", "digest", "command", "source", "role", "sampler", "version"}
    chosen = [way for way in places if {*map(str, way)} & marks]
    folder = tmp_path / "m"
    folder.mkdir()
    served_ruin = 0
    for way in [*chosen[:: max(1, len(chosen) // 12)], *places[:: max(1, len(places) // 12)]]:
        for value in (EVIL, EVIL.replace("\n", " ").replace("\x1b", "").replace("\u202e", "")):
            (folder / "prunecli.json").write_text(json.dumps(replaced(record, way, value)))
            for words in (["log"], ["log", "--commands"]):
                ended = run(*words, str(folder))
                assert ended.code in (0, 4), (way, ended.err)
                assert not set(ended.out + ended.err) & {"\x1b", "\u202e"}, way
                if words[1:] and ended.out:
                    stub = f"prunecli() {{ :; }}\ngrep() {{ :; }}\n{ended.out}"
                    named = dict.fromkeys(("CONFIG", "TEXT", "ROWS", "MODEL"), "x")
                    subprocess.run(
                        ["sh"], input=stub, text=True, cwd=folder, env={"PATH": "/bin", **named},
                        capture_output=True,
                    )  # fmt: skip
                    served_ruin += 1
                    assert not (folder / "ruin").exists(), way
                    assert not (folder / "again" / "ruin").exists(), way
    assert served_ruin > 20


def test_circles_and_crowds_of_a_stranger(run, made, tmp_path) -> None:
    """Each step is looked at once, however often it is named."""
    path = tmp_path / "m" / "prunecli.json"
    path.parent.mkdir()
    record = json.loads((Path(made["again"]) / "prunecli.json").read_text())
    step = record["history"][-1]

    def named(id: str, *read: str) -> dict:
        return {
            **step,
            "id": id,
            "inputs": [{"role": "model", "id": r, "digest": "d"} for r in read],
        }

    many = 20_000
    record["history"] = [named("a", *["b"] * many), named("b", *["c"] * many), named("c", "a")]
    path.write_text(json.dumps(record))
    begun = time.process_time()
    assert run("log", str(path.parent)).code == 0
    assert time.process_time() - begun < 10
    record["history"] = [named(str(number)) for number in range(MOST + 1)]
    path.write_text(json.dumps(record))
    ended = run("log", "--commands", str(path.parent))
    assert ended.code == 4 and f"{MOST + 1} steps, a script has at most {MOST}" in ended.err


def strings(value, way: tuple = ()) -> list[tuple]:
    """Return the ways to every text and key in nested JSON."""
    if isinstance(value, dict):
        return [one for key in value for one in strings(value[key], (*way, key))]
    if isinstance(value, list):
        return [one for i, item in enumerate(value) for one in strings(item, (*way, i))]
    return [way] if isinstance(value, str) else []


def replaced(value, way: tuple, new):
    """Return nested JSON with one value replaced."""
    if not way:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = replaced(value[way[0]], way[1:], new)
    return copy


def test_no_heavy_import(made) -> None:
    """A history is read without torch, and so is a script written."""
    code = f"""
import sys
import time
from prunecli.cli import app
for words in (["log"], ["log", "--json"], ["log", "--commands"]):
    sys.argv = ["prunecli", *words, *{list(made.values())}]
    try:
        app.main()
    except SystemExit as end:
        assert not end.code, end.code
heavy = ["torch", "transformers", "datasets", "numpy", "tokenizers", "rich.progress"]
print([name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == "[]"
