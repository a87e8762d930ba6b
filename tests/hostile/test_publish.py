"""What runs that were killed, or that want one OUT at a time, leave: one result, whole, or none."""

import json
import os
import shutil
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import lines
import pytest
from faults import Layer, under
from forks import begun, ended, in_child

import prunecli
from prunecli.errors import InputError, OutputExists
from prunecli.files import output
from prunecli.files.claim import claimed
from prunecli.settings import Output, RunContext
from prunecli.tables.table import TableRequest, table

ID = "0123456789abcdef" * 2


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


def out_of(verb_name: str, folder: Path) -> Path:
    return folder / ("o.safetensors" if verb_name in ("calibrate", "score") else "o")


def test_killed_while_rows_become_out(llama, tmp_path):
    """`tokenize` turns OUT.partial itself into OUT: that is completed, or the old OUT stays."""
    prunecli.init(str(tmp_path / "any"), like=str(llama), seed=1)
    for old in (False, True):
        for exchange in (True, False):
            for point in range(100):
                folder = tmp_path / f"{old}{exchange}{point}"
                out = folder / "o"
                if old:
                    shutil.copytree(tmp_path / "any", out)
                with output.partial(str(out), ID, False) as state:
                    (state / "rows").write_text("new")
                    shutil.copy(tmp_path / "any" / "prunecli.json", state)
                status = in_child(
                    under(
                        Layer(folder, point, exchange=exchange),
                        partial(output.publish_partial, str(out)),
                    )
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
        with output.partial(out, ID, True) as state:
            (state / "step").write_text("half")
            output.discard(state)

    for point in range(100):
        folder = tmp_path / str(point)
        folder.mkdir()
        out = str(folder / "o")
        with output.partial(out, ID, False) as state:
            (state / "a").write_text("state")
            (state / "z").write_text("state")
        status = in_child(under(Layer(folder, point), partial(work, out)))
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
        output.check_partial(str(out), ID, restart=True)
    assert names(tmp_path) == {"e.json.partial"} and names(state) == {"mine"}


def test_what_is_not_of_a_dead_run_stays(llama, tmp_path):
    """Names of ours are known exactly; the lock says whether a run lives, no process number."""
    kept = [".o.tmp", ".o.old", ".o.20240101.old", f".o.{os.getpid()}.tmp", ".oo.prunecli-tmp"]
    kept += ["o.prunecli-tmp", ".o.prunecli-lock", "elsewhere"]
    gone = [".o.prunecli-tmp", ".o.partial.prunecli-tmp"]
    for name in (*kept, *gone):
        (tmp_path / name).write_text("text")
    (tmp_path / ".o.prunecli-old").symlink_to(tmp_path / "elsewhere")
    prunecli.init(str(tmp_path / "o"), like=str(llama))
    assert names(tmp_path) == {*kept, "o"}
    assert all((tmp_path / name).read_text() == "text" for name in kept)


@pytest.mark.parametrize("how", [{}, {"force": True}, {"skip_existing": True}])
def test_tensors_whose_sidecar_never_came(how, llama, calibration, tmp_path):
    """They say that they are ours; nobody reads them, so any run may take their place."""
    out, run = tmp_path / "s.safetensors", runs(llama, calibration)["calibrate"]
    run(str(out), 0)
    made, record = out.read_bytes(), tmp_path / "s.safetensors.json"
    record.unlink()
    run(str(out), 0, **how)
    assert out.read_bytes() == made and record.exists()
    shutil.copy(calibration.removesuffix(":ids"), out)
    record.unlink()
    with pytest.raises(OutputExists):
        run(str(out), 0, **how)
    assert names(tmp_path) == {out.name}


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
    """Processes that take and leave it all the time are never two inside.

    Nor where its folder is removed whenever nothing is in it, as by others that made it.
    """
    out, inside, held = str(tmp_path / "new" / "o"), tmp_path / "inside", tmp_path / "held"

    def remove():
        while True:
            with suppress(OSError):
                (tmp_path / "new").rmdir()

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

    remover = begun(remove)
    try:
        assert pair(work, work) == [0, 0]
    finally:
        os.kill(remover, signal.SIGKILL)
        ended(remover)
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


@pytest.mark.parametrize("name", [*lines.EIGHT, "speed --out"])
def test_an_out_that_exists_is_seen_before_the_model_is_read(name, words, tmp_path):
    """Which takes seconds: here it would be refused, with another status."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    folder, said = tmp_path / "work", tmp_path / "said"
    out = folder / lines.LINES[name][0]
    mine = out if out.suffix else out / "mine"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    bad = dict.fromkeys(("MODEL", "READER"), str(tmp_path / "bad"))
    assert lines.run(lines.line(name, words | bad, folder, 1), said) == 5
    assert f"OUT '{out}' exists" in said.read_text() and names(folder) == {out.name}


@pytest.mark.parametrize("name", ["loop", "loop/x"])
def test_an_out_that_is_a_link_to_itself(name, llama, calibration, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    out, half = str(tmp_path / name), {"method": "flap", "ratio": 0.2, "data": calibration}
    for write in (
        lambda: prunecli.init(out, like=str(llama)),
        lambda: prunecli.init(out, like=str(llama), dry_run=True),
        lambda: prunecli.prune(str(llama), str(tmp_path / "o"), keep=out, **half),
    ):
        with pytest.raises(InputError, match="is a link to itself"):
            write()
    assert names(tmp_path) == {"loop"}


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


def test_the_sidecar_of_another_result_is_kept(llama, calibration, tmp_path):
    """An evaluation can be where the sidecar of tensors would be, and that where JSON would."""
    run = runs(llama, calibration)
    held, out = tmp_path / "o.safetensors.json", str(tmp_path / "o.safetensors")
    prunecli.evaluate(str(llama), data=[calibration], out=str(held))
    before = held.read_bytes()
    for force in (False, True):
        for verb in ("calibrate", "score"):
            with pytest.raises(OutputExists, match="is of kind 'eval', expected 'stats' or"):
                run[verb](out, 0, force=force)
        assert held.read_bytes() == before and names(tmp_path) == {held.name}
    held.unlink()
    run["init"](str(tmp_path / "m"), 1)
    run["calibrate"](out, 0)
    for record in (held, tmp_path / "m" / "prunecli.json"):
        before = record.read_bytes()
        with pytest.raises(OutputExists, match=r"is of kind '(stats|checkpoint)', expected 'plan'"):
            prunecli.evaluate(str(llama), data=[calibration], out=str(record), force=True)
        assert record.read_bytes() == before


@pytest.mark.parametrize(
    "text", ["my key", "", "0" * 31 + "\n", "0" * 32 + "\n\n", "G" * 32 + "\n"]
)
def test_a_folder_of_the_users_with_a_file_named_key(text, llama, calibration, tmp_path):
    """It is no state, whatever else is in it: neither resumed from nor cleared."""
    state = tmp_path / "o.partial"
    state.mkdir()
    mine = {"key": text, "data.jsonl": "x", ".hidden": "y"}
    for name, content in mine.items():
        (state / name).write_text(content)
    for restart in (False, True):
        with (
            claimed(RunContext(), str(tmp_path / "o")),
            pytest.raises(OutputExists, match="not made"),
        ):
            output.check_partial(str(tmp_path / "o"), ID, restart)
        with pytest.raises(
            OutputExists, match=r"'o.partial' was not made by prunecli; move it away"
        ):
            prunecli.train(
                str(llama),
                str(tmp_path / "o"),
                data=calibration,
                steps=1,
                batch_size=2,
                restart=restart,
            )
    runs(llama, calibration)["prune"](str(tmp_path / "o"), 0)  # keeps nothing
    assert {file.name: file.read_text() for file in state.iterdir()} == mine
    shutil.move(state, tmp_path / "elsewhere")
    state.symlink_to("elsewhere")
    with pytest.raises(OutputExists, match="not made"):
        output.check_partial(str(tmp_path / "o"), ID, restart=True)


@pytest.mark.parametrize(
    "name", ["notes.txt", "key", "runs/1", "adapter_model.safetensors", "link"]
)
def test_files_of_the_users_in_an_old_out(name, llama, calibration, tmp_path):
    """`--force` replaces what prunecli wrote, so it is refused where that is not all."""
    out = tmp_path / "o"
    run = runs(llama, calibration)
    for verb in ("prune", "init"):
        run[verb](str(out), 0, force=True)  # only ours
        mine = out / name
        mine.parent.mkdir(exist_ok=True)
        mine.symlink_to("nowhere") if name == "link" else mine.write_text("mine")
        before = contents(out)
        for other in ("prune", "init"):
            with pytest.raises(OutputExists, match=f"holds '{name}', which prunecli did not write"):
                run[other](str(out), 1, force=True)
        assert contents(out) == before and names(tmp_path) == {"o"}
        run[verb](str(out), 0, skip_existing=True)  # removes nothing
        mine.unlink()


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
