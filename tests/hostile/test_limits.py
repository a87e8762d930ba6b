"""Full disks, limits on the size of files, missing permissions and no TMPDIR: what a user is told.

One line that says which path and what to do, nothing half-written, and the next run without the
limit makes what an undisturbed one does.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import Case, contents
from faults import Ended, Layer, ended
from forks import in_child
from lines import CHANGED

import prunecli
from prunecli import errors, limits
from prunecli.errors import OutOfMemory
from prunecli.model import checkpoint

SIZES = 10
NOBODY = 65534
WRITERS = ("calibrate", "prune", "prune --keep", "tokenize", "train", "eval", "table --plot")


def files_of(most: int):
    """Return what limits the files of a process to so many bytes."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    return limit


def limited(case: Case, most: int) -> list[str]:
    """Return what is wrong where no file may have more than `most` bytes, and afterwards."""
    folder = case.begun("limited")
    first = case.run(folder, before=files_of(most))
    wrong = [] if first.status else ["mute: it succeeded"]
    wrong += case.mixed(folder)
    wrong += case.untold(folder, first, "the size of files")
    wrong += case.half_written(folder)
    return [f"{one} ({case.name}, {most} bytes)" for one in [*wrong, *case.afterwards(folder)]]


def largest(case: Case) -> int:
    files = [file for file in case.root.joinpath("new").rglob("*") if file.is_file()]
    return max(file.stat().st_size for file in files)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["calibrate", "prune", "tokenize", "train"])
def test_files_may_not_be_large(name, force, words, tmp_path):
    """Three of ten sizes over four commands, with and without an old result."""
    case = Case(name, words, tmp_path, force)
    for i in (0, 3, 9):
        assert not limited(case, largest(case) * i // SIZES)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CHANGED)
def test_files_of_every_command_may_not_be_large(name, words, tmp_path):
    wrong = []
    for force in (False, True):
        case = Case(name, words, tmp_path / str(force), force)
        for i in range(SIZES):
            wrong += limited(case, largest(case) * i // SIZES)
    print(f"\nlimited: {name}: {2 * SIZES} runs, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def disk(tmp_path):
    """Return a function that makes a small disk, of so many bytes, at a folder."""
    mounted = []

    def mount(folder: Path, size: int, *options: str) -> None:
        line = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size}"]), "none"]
        done = subprocess.run([*line, str(folder)], capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"no small disk here (mount: {done.stderr.strip()}); files are limited")
        assert done.returncode == 0, done.stderr
        mounted.append(folder)

    yield mount
    for folder in set(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def filled(case: Case, size: int, disk) -> list[str]:
    """Return what is wrong on a disk with `size` bytes left, and when it has more."""
    place = case.root / "small"
    folder = place / "at"
    place.mkdir(exist_ok=True)
    disk(place, 1 << 30)
    (place / "other").write_bytes(bytes(4096))  # a limit of 0 would be none
    shutil.copytree(case.old, folder)
    disk(place, shutil.disk_usage(place).used + size, "remount")
    first = case.run(folder)
    # it may succeed in less than was thought, where all is there then
    wrong = [] if first.status or contents(folder) == case.after else ["mute: it succeeded"]
    wrong += case.mixed(folder)
    wrong += case.untold(folder, first, "free some space")
    wrong += case.half_written(folder)
    disk(place, 1 << 30, "remount")
    wrong += case.afterwards(folder)
    subprocess.run(["umount", "--lazy", str(place)], check=True)
    return [f"{one} ({case.name}, {size} bytes left)" for one in wrong]


def needed(case: Case) -> int:
    """Return the bytes of what a command makes, in whole pages."""
    files = [file for file in case.root.joinpath("new").rglob("*") if file.is_file()]
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["calibrate", "prune", "tokenize"])
def test_a_full_disk(name, force, words, tmp_path, disk):
    case = Case(name, words, tmp_path, force)
    for i in (1, 5, 9):
        assert not filled(case, needed(case) * i // SIZES // 4096 * 4096, disk)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CHANGED)
def test_full_disks_of_ten_sizes(name, words, tmp_path, disk):
    wrong = []
    for force in (False, True):
        case = Case(name, words, tmp_path / str(force), force)
        for i in range(SIZES):
            wrong += filled(case, needed(case) * i // SIZES // 4096 * 4096, disk)
    print(f"\nfull: {name}: {2 * SIZES} runs, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def shared():
    """A folder that every user can enter, and what makes a child one who may not write."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


def nobody() -> None:
    if os.getuid() == 0:
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def without_rights(line: str, root: Path, words: dict[str, str]) -> Ended:
    for word, text in words.items():
        line = line.replace(word, text)
    talk = root / "said"
    return ended([*line.split(), "--quiet"], Layer(root), talk, before=nobody)


@pytest.mark.parametrize(
    "line, named",
    [
        ("init --like MODEL SHUT/o", "OUT"),
        ("init --like MODEL SHUT/new/o", "OUT"),
        ("prune --method flap --ratio 0.2 --data TOKENS --keep SHUT MODEL OPEN/o", "--keep"),
        ("speed --flops-only --out SHUT/o.json MODEL", "OUT"),
        ("table --reference paper --figure 1 --plot SHUT/o.png", "--plot"),
    ],
)
def test_no_permission(line, named, words, shared, tmp_path):
    own = {**words, "SHUT": str(shared / "shut"), "OPEN": str(shared / "open")}
    for name, mode in (("open", 0o777), ("shut", 0o555)):
        (shared / name).mkdir()
        (shared / name).chmod(mode)
    shutil.copytree(words["MODEL"], shared / "model")
    shutil.copy(words["TOKENS"].removesuffix(":ids"), shared / "t.safetensors")
    (shared / "model" / "model.safetensors").chmod(0o644)
    own |= {"MODEL": str(shared / "model"), "TOKENS": f"{shared}/t.safetensors:ids"}
    told = without_rights(line, shared, own)
    assert told.status in (1, 4) and len(told.lines) == 1, told
    assert "ermission" in told.lines[0] and str(shared / "shut") in told.lines[0], told
    assert named in told.lines[0] and "choose another" in told.lines[0]
    assert not contents(shared / "shut") and not any((shared / "open").iterdir())


def test_no_folder_for_temporary_files(words, tmp_path, shared, monkeypatch):
    line = f"calibrate --for flap --data {words['TOKENS']} --buffer disk {words['MODEL']} OUT"
    out = tmp_path / "o.safetensors"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    told = ended(line.replace("OUT", str(out)).split(), Layer(tmp_path), tmp_path / "said")
    assert told.status == 4
    assert told.lines == [
        f"prunecli: error: TMPDIR '{tmp_path / 'none'}' is no folder; make it, or set TMPDIR anew"
    ]
    assert not out.exists()


def test_a_temporary_folder_that_is_full(words, tmp_path, disk, monkeypatch):
    """Room for hidden states is taken before the first layer: a mapped file needs it later."""
    small, out = tmp_path / "small", tmp_path / "o.safetensors"
    small.mkdir()
    disk(small, 8192)
    monkeypatch.setenv("TMPDIR", str(small))
    line = f"calibrate --for flap --data {words['TOKENS']} --buffer disk {words['MODEL']} {out}"
    told = ended([*line.split(), "--quiet"], Layer(tmp_path), tmp_path / "said")
    assert told.status == 1 and told.lines == [
        f"prunecli: error: '{small}': No space left on device; "
        "free some space, or choose another disk"
    ]
    assert not out.exists() and not any(small.iterdir())


def test_a_cache_that_cannot_be_written(monkeypatch):
    """What a library makes of a refusal names the path, and what to do."""
    import huggingface_hub

    def shut(*args, **kwargs):
        try:
            raise PermissionError(13, "Permission denied", "/cache/models--org--name")
        except PermissionError as error:
            raise RuntimeError("something went wrong") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", shut)
    with pytest.raises(errors.PruneError, match=r"^'/cache/models--org--name': Permission denied;"):
        checkpoint.Checkpoint("hf:org/name")


def test_rows_that_no_disk_holds(words, tmp_path):
    """What is asked for is compared with the free space before the text is read."""
    line = f"tokenize --seq-len 16 --tokenizer {words['READER']} --tokens 1e17 {words['TEXT']}"
    told = ended([*line.split(), str(tmp_path / "o")], Layer(tmp_path), tmp_path / "said")
    assert told.status == 4 and "too little disk for" in told.lines[-1]
    assert not (tmp_path / "o").exists() and not (tmp_path / "o.partial").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit it")
def test_a_limit_of_memory_is_no_fault_of_the_model(words, tmp_path):
    """Where there is too little, every path that was checked before is told, and none is blamed."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (HELD,) * 2)\n"
    start = "import sys\nfrom prunecli.cli.app import main\nmain()"
    plan = tmp_path / "plan.json"
    words_of = {"method": "shortgpt", "layers": 3, "plan_only": True}
    prunecli.prune(words["MODEL"], str(plan), data=words["TOKENS"], **words_of)

    def checked(held):
        line = [sys.executable, "-c", limit.replace("HELD", str(held)) + start]
        paths = ["check", "--deep", str(plan), words["MODEL"]]
        return subprocess.run([*line, *paths], capture_output=True, text=True)

    assert checked(-1).returncode == 0
    found = checked(400 << 20)  # torch alone maps more
    assert (found.returncode, found.stdout) == (1, f"{plan}: ok\n")
    assert found.stderr.startswith("prunecli: error: too little memory: ")
    assert found.stderr.count("\n") == 1


def test_what_a_file_needs_is_told_from_what_the_process_may():
    """A bound on a stranger's file is its fault, a lower limit of the process is not."""

    def taken(own):
        if own:
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2)
        try:
            with limits.memory((64 << 30) if own else (256 << 20)):
                bytearray(8 << 30)
        except (MemoryError, OutOfMemory) as error:
            os._exit(isinstance(error, OutOfMemory))
        os._exit(9)

    assert in_child(lambda: taken(own=False)) == 0
    assert in_child(lambda: taken(own=True)) == 1
