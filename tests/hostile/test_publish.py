"""What runs that were killed, or that want one OUT at a time, leave: one result, whole, or none."""

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from forks import begun, ended, in_child

import prunecli
from prunecli.errors import OutputExists
from prunecli.files import output
from prunecli.files.claim import claimed
from prunecli.files.tensorfile import combined_digest, read_header, read_tensor, tensor_digest
from prunecli.settings import Output, RunContext
from prunecli.tables.table import TableRequest, table

STEPS = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir")
KILLED = 9


def dying(work, point: int, exchange=True):
    """Return `work` that ends, as if by SIGKILL, right before its write point of this number."""

    def killed():
        left = iter(range(point))

        def counted(real):
            def step(*args, **kwargs):
                writes = real is not os_open or args[1] & os.O_CREAT
                if writes and next(left, None) is None:
                    os._exit(KILLED)
                return real(*args, **kwargs)

            return step

        os_open = os.open
        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        output._exchange = counted(output._exchange) if exchange else lambda one, other: False
        work()

    return killed


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(path: Path) -> dict[str, object]:
    """Return what a result consists of, but for the part that differs between equal runs."""
    files = [path, path.with_name(path.name + ".json")]
    if path.is_dir():
        files = sorted(path.iterdir())
    found: dict[str, object] = {}
    for file in files:
        if file.suffix == ".json" and file.is_file():
            found[file.name] = json.loads(file.read_text())
            found[file.name].pop("run", None)  # type: ignore[attr-defined]
        elif file.is_file():
            found[file.name] = file.read_bytes()
    return found


def whole(path: Path) -> bool:
    """Return whether a file of tensors is there with the sidecar that describes it."""
    beside = path.with_name(path.name + ".json")
    if not (path.exists() and beside.exists()):
        return False
    digests = {name: tensor_digest(read_tensor(path, name)) for name in read_header(path)}
    return json.loads(beside.read_text())["outputs"]["digest"] == combined_digest(digests)


def runs(llama, calibration):
    """Return the verbs by name: each writes OUT, in a way that its second argument changes."""
    model = str(llama)
    return {
        "calibrate": lambda out, way, **how: prunecli.calibrate(
            model, out, methods=["flap"], data=calibration, nsamples=1 + way, **how
        ),
        "score": lambda out, way, **how: prunecli.score(
            model, out, method="flap", data=calibration, nsamples=1 + way, **how
        ),
        "prune": lambda out, way, **how: prunecli.prune(
            model, out, method="magnitude", ratio=0.5 + way / 10, **how
        ),
        "init": lambda out, way, **how: prunecli.init(out, like=model, seed=way, **how),
    }


VERBS = ("calibrate", "score", "prune", "init")


def out_of(verb_name: str, folder: Path) -> Path:
    return folder / ("o.safetensors" if verb_name in ("calibrate", "score") else "o")


@pytest.mark.parametrize("force, exchange", [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("command", VERBS)
def test_killed_anywhere(command, force, exchange, llama, calibration, tmp_path):
    """The next run makes what an undisturbed one does, and leaves nothing; nothing old is lost."""
    run = runs(llama, calibration)[command]
    expected = out_of(command, tmp_path / "expected")
    old = out_of(command, tmp_path / "old")
    run(str(expected), 1)
    run(str(old), 0)
    new_bytes, old_bytes = contents(expected), contents(old)
    assert new_bytes != old_bytes
    point = 0
    while True:
        folder = tmp_path / str(point)
        folder.mkdir()
        out = out_of(command, folder)
        if force:
            shutil.copytree(old.parent, folder, dirs_exist_ok=True)
        status = in_child(dying(lambda o=out: run(str(o), 1, force=force), point, exchange))
        if status == 0:
            break
        assert status == KILLED
        if force and (out.is_dir() or whole(out)):
            assert contents(out) in (old_bytes, new_bytes), f"point {point}"
        elif force:  # between two steps: the one or the other is whole beside it
            assert [n for n in names(folder) if n.endswith((".new", ".old"))], f"point {point}"
        try:
            run(str(out), 1, force=force)
        except OutputExists:  # it was published before the kill
            assert not force and contents(out) == new_bytes, f"point {point}"
        assert contents(out) == new_bytes, f"point {point}"
        assert names(folder) == names(expected.parent), f"point {point}"
        point += 1
    assert point > 5


def test_killed_while_rows_become_out(llama, tmp_path):
    """`tokenize` turns OUT.partial itself into OUT: that is completed, or the old OUT stays."""
    for old in (False, True):
        for exchange in (True, False):
            for point in range(100):
                folder = tmp_path / f"{old}{exchange}{point}"
                out = folder / "o"
                if old:
                    prunecli.init(str(out), like=str(llama), seed=1)
                with output.partial(str(out), "id", False) as state:
                    (state / "rows").write_text("new")
                    made = prunecli.init(str(tmp_path / "any"), like=str(llama), force=True)
                    (state / "prunecli.json").write_text(json.dumps(made.sidecar))
                status = in_child(
                    dying(lambda o=out: output.publish_partial(str(o)), point, exchange)
                )
                with claimed(RunContext(), str(out)):
                    pass
                moved = {"prunecli.json", "rows"}
                if (folder / "o.partial").exists():  # not begun
                    assert names(folder / "o.partial") == {*moved, "key"}
                    assert out.exists() == old and names(folder) == {"o.partial", *["o"][:old]}
                else:
                    assert names(folder) == {"o"}
                    assert names(out) == moved or (old and "model.safetensors" in names(out))
                if status == 0:
                    assert names(out) == moved
                    break
            assert 3 < point < 99


def test_killed_while_a_state_begins_or_ends(tmp_path):
    """OUT.partial has its mark from the first moment to the last: none is refused."""

    def work(out):
        with output.partial(out, "id", True) as state:
            (state / "step").write_text("half")
            output.discard(state)

    for point in range(100):
        folder = tmp_path / str(point)
        folder.mkdir()
        out = str(folder / "o")
        with output.partial(out, "id", False) as state:
            (state / "a").write_text("state")
            (state / "z").write_text("state")
        status = in_child(dying(lambda out=out: work(out), point))
        with claimed(RunContext(), out):
            state = output.partial_of(out)
            assert not state.exists() or names(state) in (
                {"key", "a", "z"},
                {"key"},
                {"key", "step"},
            )
            assert names(folder) <= {"o.partial", ".o.prunecli-lock"}
            work(out)
        assert not names(folder)
        if status == 0:
            break
    assert 3 < point < 99


def test_a_mark_that_was_never_written(tmp_path):
    """Versions that made the folder first left this; it is no user's."""
    out, state = tmp_path / "e.json", tmp_path / "e.json.partial"
    state.mkdir()
    (state / ".key.tmp").write_text("")
    with claimed(RunContext(), str(out)):
        pass
    assert not names(tmp_path)
    state.mkdir()
    (state / "mine").write_text("precious")
    with claimed(RunContext(), str(out)), pytest.raises(OutputExists, match="not made by prunecli"):
        output.check_partial(str(out), "id", restart=True)
    assert names(tmp_path) == {"e.json.partial"} and names(state) == {"mine"}


def test_what_is_not_of_a_dead_run_stays(llama, tmp_path):
    sleeper = subprocess.Popen(["sleep", "60"])
    dead = subprocess.Popen(["true"])
    dead.wait()
    try:
        kept = [f".o.{sleeper.pid}.tmp", ".o.tmp", ".o.12x.tmp", f".oo.{dead.pid}.tmp"]
        kept += [f"o.{dead.pid}.tmp", f".o.{10**30}.tmp", ".o.prunecli-lock", "o.old"]
        gone = [f".o.{dead.pid}.tmp", f".o.partial.{dead.pid}.tmp", f".o.{os.getpid()}.tmp"]
        for name in (*kept, *gone):
            (tmp_path / name).write_text("text")
        (tmp_path / f".o.{dead.pid}.old").symlink_to(tmp_path / "o.old")
        prunecli.init(str(tmp_path / "o"), like=str(llama))
    finally:
        sleeper.kill()
        sleeper.wait()
    assert names(tmp_path) == {*kept, f".o.{dead.pid}.old", "o"}
    assert all((tmp_path / name).read_text() == "text" for name in kept)


def pair(first, second) -> list[int]:
    """Return the exit statuses of two processes that begin together."""
    reader, writer = os.pipe()

    def ready(work):
        os.close(writer)
        os.read(reader, 1)  # until the last writer is closed
        try:
            work()
        except OutputExists:
            os._exit(5)

    children = [begun(partial(ready, work)) for work in (first, second)]
    os.close(writer)
    os.close(reader)
    return [ended(child) for child in children]


@pytest.mark.parametrize("command", ["score", "init"])
def test_two_at_once(command, llama, calibration, tmp_path):
    """One wins, the other is told; what is there is one result, not a mixture."""
    run = runs(llama, calibration)[command]
    made = []
    for way in (0, 1):
        run(str(out_of(command, tmp_path / f"alone{way}")), way)
        made.append(contents(out_of(command, tmp_path / f"alone{way}")))
    for force in (False, True):
        for i in range(6):
            out = out_of(command, tmp_path / f"{force}{i}")
            ends = pair(*(partial(run, str(out), way, force=force) for way in (0, 1)))
            assert sorted(ends) in ([0, 5], *([[0, 0]] if force else []))
            found = contents(out)
            assert found in made and (sum(ends) == 0 or found == made[ends.index(0)])
            assert names(out.parent) == set(names(tmp_path / "alone0"))


def test_the_lock_is_one_though_it_is_removed(tmp_path):
    """Processes that take and leave it all the time are never two inside."""
    out, inside, held = str(tmp_path / "new" / "o"), tmp_path / "inside", tmp_path / "held"

    def work():
        count = 0
        while count < 150:
            try:
                with claimed(RunContext(), out):
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # raises if another is there
                    inside.unlink()
                    count += 1
            except OutputExists:
                pass
        held.touch()

    assert pair(work, work) == [0, 0]
    # the one that made the folder may have left while the other was in it
    assert names(tmp_path) <= {"held", "new"} and not any((tmp_path / "new").glob("*"))


def test_a_locked_out_is_refused(llama, tmp_path):
    out, model = str(tmp_path / "deep" / "o"), str(llama)
    with claimed(RunContext(), out):
        for more in ({}, {"force": True}, {"skip_existing": True}):
            with pytest.raises(OutputExists, match="another process is writing"):
                prunecli.init(out, like=model, **more)
        prunecli.init(out, like=model, dry_run=True)  # writes nothing
    assert not names(tmp_path)


def test_kept_files_have_one_writer(llama, calibration, tmp_path):
    with (
        claimed(RunContext(), str(tmp_path / "kept" / "stats.safetensors")),
        pytest.raises(OutputExists, match=r"writing .*stats"),
    ):
        prunecli.prune(
            str(llama), str(tmp_path / "o"), method="flap", ratio=0.2, data=calibration,
            keep=str(tmp_path / "kept"),
        )  # fmt: skip
    assert not names(tmp_path)


def test_the_sidecar_of_others_is_kept(llama, calibration, tmp_path):
    """OUT is free, but the place of its sidecar is not."""
    mine = tmp_path / "o.safetensors.json"
    mine.write_text("{}")
    for force in (False, True):
        with pytest.raises(OutputExists, match="sidecar of OUT, exists and was not made by"):
            runs(llama, calibration)["score"](str(tmp_path / "o.safetensors"), 0, force=force)
    assert mine.read_text() == "{}" and names(tmp_path) == {mine.name}


def test_force_replaces_only_our_figures_and_reports(llama, calibration, tmp_path):
    pytest.importorskip("matplotlib")
    for option, suffixes in {"plot": (".png", ".svg", ".pdf"), "html": (".html",)}.items():
        for suffix in suffixes:
            file = tmp_path / f"f{suffix}"
            request = TableRequest(reference="paper", **{option: str(file)})
            forced = RunContext(Output(force=True))
            file.write_text("my own prunecli table")
            with pytest.raises(OutputExists, match="was not made by prunecli"):
                table(request, forced)
            assert file.read_text() == "my own prunecli table"
            file.unlink()
            table(request)
            with pytest.raises(OutputExists, match="use --force"):
                table(request)
            before = file.read_bytes()
            table(request, forced)
            assert file.read_bytes() == before
    assert not [name for name in names(tmp_path) if name.startswith(".")]
