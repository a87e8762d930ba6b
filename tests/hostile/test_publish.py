"""What runs that were killed, or that want one OUT at a time, leave: one result, whole, or none."""

import json
import os
from pathlib import Path

import pytest

import prunecli
from prunecli.errors import OutputExists
from prunecli.files import output
from prunecli.files.tensorfile import combined_digest, read_header, read_tensor, tensor_digest

STEPS = ("open", "mkdir", "rename", "replace", "fsync", "unlink", "rmdir")
KILLED = 9


def in_child(work) -> int:
    """Return the exit status of a process that does `work` and nothing else: 1 if that raised."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


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
            model, out, method="magnitude", sparsity=f"0.{5 + way}", **how
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
            run(str(out), 0)
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
