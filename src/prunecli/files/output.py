"""Where results go: checked before any work, written to a temporary sibling, renamed at the end."""

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR

from prunecli.errors import InputError, OutputExists, PruneError, Stopped
from prunecli.files import regular, sidecar, tensorfile, unfinished, world
from prunecli.interruption import Interrupted, held
from prunecli.settings import Output, Result

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's <fcntl.h> and <linux/fs.h>
# to ask about a file: where there is no O_PATH, it must be one that may be read
AS_NAME = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK)
MARK = "key"
MARK_BYTES = 33  # an id, and the end of the line
STAGE = ".new"  # in OUT.partial: the result that is being written
LOGS = ".jsonl"
# files of folders that sidecars do not list by name
TENSOR_FILES = re.compile(r"(model|model-\d{5}-of-\d{5}|rows-\d{5,})\.safetensors")
# what is beside OUT while it is written: finished, replaced, and all else
NEW, OLD, TEMPORARY = "new", "old", "tmp"
ROOM = 300  # bytes by which paths of files below OUT and of its siblings are longer
SUFFIX = 24  # bytes at most by which names of temporary siblings are longer than OUT's


def check_path(out: str, output: Output, inputs: Sequence[Path | None]) -> None:
    """Refuse an OUT that is one of the inputs or lies inside one, or exists without --force.

    Raises InputError or OutputExists. Even --force only replaces what prunecli made. Of several
    processes the first looks for all.
    """
    if not world.is_first():
        return
    if not out.strip():
        raise InputError("OUT is empty", "name the output")
    _check_text(f"OUT '{out}'", out)
    path, what = regular.resolved(out), f"OUT '{out}'"
    for one in filter(None, inputs):
        is_folder = regular.is_dir(one)
        source = regular.resolved(one)
        if path == source:
            raise InputError(f"{what} is the input itself", "choose another OUT")
        if is_folder and source in path.parents:
            raise InputError(f"{what} lies inside the input", "choose another OUT")
        if path in source.parents:
            raise InputError(f"{what} contains the input", "choose another OUT")
    _check_parent(what, path)
    _check_name(what, path)
    if not occupied(path):
        _check_access(what, path)
        return
    if not (output.force or output.skip_existing):
        raise OutputExists(f"{what} exists", "use --force or --skip-existing, or move it away")
    _check_ours(what, path)
    if not output.skip_existing:
        _check_alone(what, path)
        _check_access(what, path)


def check_beside(out: str) -> None:
    """Refuse a file OUT where a folder is, or whose sidecar would replace what is not ours.

    Raises InputError or OutputExists.
    """
    path = regular.resolved(out)
    if path.is_dir():
        raise InputError(f"'{out}' is a folder, expected a file", "choose another")
    record = sidecar.path_of(path)
    if occupied(record):
        _check_ours(f"'{record.name}', the sidecar of OUT,", path)


def lies_in(path: str | Path, folder: str | Path) -> bool:
    """Return whether a path is a folder, or below it; raise InputError for what names none."""
    for one in (path, folder):
        _check_text(f"'{one}'", str(one))
    path, folder = regular.resolved(path), regular.resolved(folder)
    return folder == path or folder in path.parents


def check_kept(folder: str, names: Sequence[str], model: Path, out: str) -> None:
    """Refuse to keep these files in `folder` where that harms the input, OUT, or files of others.

    Raises InputError or OutputExists.
    """
    what = f"--keep '{folder}'"
    _check_text(what, folder)
    path = regular.resolved(folder)
    for owner, other in (("the input", regular.resolved(model)), ("OUT", regular.resolved(out))):
        if lies_in(path, other):
            raise InputError(f"{what} lies in {owner}", "choose another folder")
    check_place(what, path / "file")
    _check_name(what, path)
    for name in names:
        if occupied(path / name):
            _check_ours(f"'{Path(folder, name)}', which --keep would write,", path / name)
        check_beside(f"{folder}/{name}")


def check_place(what: str, path: Path) -> None:
    """Raise InputError where nothing can be written at `path`, which is absolute."""
    for check in (_check_parent, _check_access, _check_name):
        check(what, path)


def can_be_written(path: Path) -> bool:
    """Return whether `check_place` has nothing against a path."""
    try:
        check_place(str(path), path)
    except InputError:
        return False
    return True


def _check_text(what: str, path: str) -> None:
    if "\0" in path:
        raise InputError(f"{what} holds a null character, which no name does", "choose another")


def _check_parent(what: str, path: Path) -> None:
    with _nearest_parent(path) as (parent, handle):
        if not S_ISDIR(os.fstat(handle).st_mode):
            raise InputError(f"{what} lies under '{parent.name}', which is a file")


def _check_access(what: str, path: Path) -> None:
    with _nearest_parent(path) as (parent, handle):
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=handle):
            raise InputError(
                f"{what} cannot be written: no permission in '{parent}'", "choose another"
            )


@contextmanager
def _nearest_parent(path: Path) -> Iterator[tuple[Path, int]]:
    """Open the nearest of the folders above that exists; yield its path and its handle.

    What is open answers though another process removes it: `claim` asks before it locks.
    """
    while True:
        # unlike exists(), lexists() takes names that are too long for any file
        # the root, which has none, is its own
        nearest = next((parent for parent in path.parents if os.path.lexists(parent)), path)
        with suppress(FileNotFoundError):  # removed since
            handle = os.open(nearest, AS_NAME)
            break
    try:
        yield nearest, handle
    finally:
        os.close(handle)


def _check_name(what: str, path: Path) -> None:
    """Raise InputError for what is no file or folder, and for names too long to stage under."""
    with _nearest_parent(path) as (parent, handle):
        longest = os.fpathconf(handle, "PC_PATH_MAX") - ROOM
        limit = os.fpathconf(handle, "PC_NAME_MAX") - SUFFIX
    if len(os.fsencode(path)) > longest:
        raise InputError(f"{what} is a path of more than {longest} bytes", "choose a shorter one")
    if any(len(os.fsencode(part)) > limit for part in path.relative_to(parent).parts):
        raise InputError(f"{what} has a name longer than {limit} bytes", "choose a shorter one")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{what} is a device or a pipe, expected a file or folder")


def _check_ours(what: str, path: Path) -> None:
    """Raise OutputExists unless prunecli made what is there, and as an artefact of its own."""
    kind, possible = sidecar.kind_of(path), sidecar.kinds_at(path)
    if kind is None:
        raise OutputExists(f"{what} exists and was not made by prunecli", "move it away")
    if kind not in possible:
        raise OutputExists(
            f"{what} exists and is of kind '{kind}', expected {' or '.join(map(repr, possible))}",
            "move it away, or choose another OUT",
        )


def _check_alone(what: str, path: Path) -> None:
    """Raise OutputExists where files of the user's, which no sidecar lists, are in a folder."""
    if not path.is_dir():
        return
    listed = sidecar.listed(path)
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        is_folder = file.is_dir() and not file.is_symlink()
        if not is_folder and name not in listed and not TENSOR_FILES.fullmatch(name):
            raise OutputExists(
                f"{what} holds '{name}', which prunecli did not write", "move it away"
            )


def occupied(path: Path) -> bool:
    """Return whether something exists there that must not be lost.

    An empty folder is nothing, nor are tensors of ours whose sidecar never came: nothing reads
    them.
    """
    if path.is_file():
        return sidecar.path_of(path).exists() or not tensorfile.is_marked(path)
    return path.is_dir() and any(path.iterdir())


def existing_result(out: str, output: Output, identity: str) -> Result | None:
    """Return what exists at OUT if --skip-existing asks for it and `identity` is its id.

    Raises OutputExists if something else exists there.
    """
    path = Path(out)
    if not output.skip_existing or not occupied(path):
        return None
    record = sidecar.read(path)
    if record.id != identity:
        raise OutputExists(
            f"'{out}' exists and was made from other inputs or options", "use --force"
        )
    return Result(out, record.dump(), record.results)


def check_disk(out: str, needed: int) -> None:
    """Raise InputError if the disk of OUT has fewer than `needed` bytes free.

    The state of an unfinished run counts as free: it is resumed from, or cleared.
    """
    path = Path(out).resolve()
    while not path.exists():
        path = path.parent
    state = sum(file.lstat().st_size for file in partial_of(out).rglob("*"))
    free = shutil.disk_usage(path).free + state
    if needed > free:
        raise InputError(
            f"too little disk for '{out}': needs {needed / 1e9:.2f} GB, free {free / 1e9:.2f} GB",
            "free some space or choose another disk",
        )


@contextmanager
def staged(out: str) -> Iterator[Path]:
    """Yield a temporary sibling of OUT, which becomes OUT by rename when the block succeeds.

    The block makes a file or a folder there. On any failure it is removed, and OUT is untouched.
    """
    path = Path(out).resolve()
    with _temporary(path) as temporary:
        yield temporary
        publish(temporary, path)


@contextmanager
def staged_pair(out: str) -> Iterator[tuple[Path, Path]]:
    """Yield temporary paths of the file OUT and its sidecar, which appear when the block succeeds.

    No system renames two files at once. So both are made in one folder, and a rename of that says
    that they are whole: up to there OUT is untouched, and from there the next run that wants OUT
    completes what a kill interrupted.
    """
    path = Path(out).resolve()
    with _temporary(path) as temporary:
        temporary.mkdir()
        yield temporary / path.name, temporary / sidecar.path_of(path).name
        sync_all(temporary)
        whole = sibling(path, NEW)
        remove(whole)  # nobody had come back to complete it
        temporary.rename(whole)
        sync(path.parent)
        move_in(whole, path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    make_folder(path.parent)
    temporary = sibling(path, TEMPORARY)
    remove(temporary)
    try:
        yield temporary
    finally:
        remove(temporary)


def sibling(path: Path, kind: str) -> Path:
    """Return the name beside `path` of what is not, or no longer, there: NEW, OLD or TEMPORARY."""
    return path.with_name(f".{path.name}.prunecli-{kind}")


@held()
def move_in(whole: Path, path: Path) -> None:
    """Move a finished folder to its place, or a file and its sidecar out of their folder.

    If that was interrupted, it goes on. A finished folder bears its mark until the old one has made
    room, so that after an exchange the one is known from the other.
    """
    if whole.is_dir() and not (whole / sidecar.FOLDER_SIDECAR).exists():
        _move_pair(whole, path)
        return
    if not path.exists():
        remove(whole / MARK)
        sync(whole)
        whole.rename(path)
        old = sibling(path, OLD)
    elif mark_of(whole) is None or _exchange(whole, path):
        remove(path / MARK)
        sync(path)
        # from here on, no run must take the old one for something else
        old = whole.rename(sibling(path, TEMPORARY))
    else:
        old = _in_two_steps(whole, path)
        remove(path / MARK)
        sync(path)
    try:
        sync(path.parent)
    finally:
        remove(old)


def _move_pair(whole: Path, path: Path) -> None:
    tensors, record = whole / path.name, sidecar.path_of(path)
    if tensors.is_file():
        if record != path:
            # no moment at which an old sidecar describes new tensors
            record.unlink(missing_ok=True)
        tensors.replace(path)
        sync(path.parent)
    if (whole / record.name).is_file():
        (whole / record.name).replace(record)
        sync(path.parent)
    remove(whole)  # with what a stranger may have put there
    sync(path.parent)


def publish(temporary: Path, path: Path) -> None:
    """Replace `path` by a complete sibling of it: in one step, where the system has that.

    Elsewhere a folder needs two renames; the next run puts back what a kill between them moved.
    """
    sync_all(temporary)
    if not path.exists() or not (path.is_dir() or temporary.is_dir()):
        temporary.replace(path)
        sync(path.parent)
        return
    if _exchange(temporary, path):
        sync(path.parent)
        remove(temporary)
        return
    old = _in_two_steps(temporary, path)
    try:
        sync(path.parent)
    finally:
        remove(old)


def _in_two_steps(new: Path, path: Path) -> Path:
    """Replace `path` by a sibling of it; return where what was there is now."""
    old = sibling(path, OLD)
    path.rename(old)
    try:
        sync(path.parent)  # after a loss of power the new one is never seen here without the old
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step, by Linux's renameat2; return whether the system could."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    paths = [os.fsencode(path) for path in (one, other)]
    done: int = library.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE)
    return done == 0


def partial_of(out: str) -> Path:
    """Return the folder with the state of an unfinished run."""
    path = Path(out).resolve()
    return path.with_name(f"{path.name}.partial")


def mark_of(folder: Path) -> str | None:
    """Return the id in the mark of a folder that a run made; None of any other folder.

    A user's own may hold a file of that name too, but not with an id in it.
    """
    mark = folder / MARK
    if folder.is_symlink() or mark.is_symlink() or not mark.is_file():
        return None
    text = mark.read_bytes() if mark.stat().st_size == MARK_BYTES else b""
    identity = text.decode("latin-1").removesuffix("\n")
    return identity if sidecar.ID.fullmatch(identity) else None


def check_partial(out: str, identity: str, restart: bool) -> None:
    """Raise OutputExists if OUT.partial is not what the run of this id may resume from or clear.

    Raises InputError where it holds links, pipes or the like, which no run makes.
    """
    folder = partial_of(out)
    if not os.path.lexists(folder) or is_unmarked(folder):
        return
    mark = mark_of(folder)
    if mark is None:
        raise OutputExists(f"'{folder.name}' was not made by prunecli", "move it away")
    if restart or not _holds(folder, LOGS):
        return
    if mark != identity:
        raise OutputExists(
            f"'{folder.name}' is the state of a run with other inputs or options",
            "use --restart to start over, or choose another OUT",
        )
    with unfinished.refusals():
        regular.check_plain(folder)


@contextmanager
def partial(out: str, identity: str, restart: bool) -> Iterator[Path]:
    """Yield OUT.partial, the folder of an unfinished run; it is kept when the block fails.

    A folder without anything to resume from is no state: any run may take it. One that is left
    without is removed when the block fails. It appears with its mark in it, and disappears whole,
    so that a kill at no moment leaves one that the next run cannot tell from a user's folder.
    Raises OutputExists if it is the state of a run with another id, which `restart` clears;
    InputError if it holds links or the like; and Stopped where a signal interrupts the block and
    there is something to resume from. What is in it the block reads, and refuses, by itself.
    """
    folder = partial_of(out)
    check_partial(out, identity, restart)
    resumed = not restart and mark_of(folder) is not None and _holds(folder, LOGS)
    if not resumed:
        discard(folder)
        with _temporary(folder) as temporary:
            temporary.mkdir()
            write_text(temporary / MARK, f"{identity}\n")
            sync(temporary)
            temporary.rename(folder)
            sync(folder.parent)
    try:
        yield folder
    except Interrupted:
        if _holds(folder, LOGS):
            raise Stopped(
                f"stopped; '{folder.name}' keeps what is done", "rerun the same command to resume"
            ) from None
        raise
    finally:
        if folder.exists() and not _holds(folder):
            discard(folder)


def is_unmarked(folder: Path) -> bool:
    """Return whether there is nothing in a folder but a mark that was not yet written whole.

    Versions that made OUT.partial and its mark in two steps left such when they were killed.
    """
    if not folder.is_dir() or folder.is_symlink():
        return False
    return {path.name for path in folder.iterdir()} <= {f".{MARK}.tmp"}


def is_done(folder: Path, path: Path) -> bool:
    """Return whether OUT.partial is the state of the very run whose result is at OUT."""
    mark = mark_of(folder)
    if mark is None or sidecar.kind_of(path) is None:
        return False
    try:
        return sidecar.read(path).id == mark
    except InputError:
        return False


def discard(folder: Path) -> None:
    """Remove OUT.partial, first under another name: no later run finds it in pieces."""
    if folder.exists():
        gone = sibling(folder, TEMPORARY)
        remove(gone)
        folder.rename(gone)
        try:
            sync(gone.parent)
        finally:
            remove(gone)


def publish_partial(out: str) -> None:
    """Make OUT.partial, finished and with its sidecar in it, OUT."""
    folder, path = partial_of(out), Path(out).resolve()
    sync_all(folder)
    whole = sibling(path, NEW)
    folder.rename(whole)
    sync(path.parent)
    move_in(whole, path)


def publish_stage(out: str) -> None:
    """Make what stands in OUT.partial's stage, finished, OUT; the state is of no use then."""
    folder, path = partial_of(out), Path(out).resolve()
    if (folder / STAGE / sidecar.FOLDER_SIDECAR).exists():
        write_text(folder / STAGE / MARK, (folder / MARK).read_text("utf-8"))
    sync_all(folder / STAGE)
    whole = sibling(path, NEW)
    remove(whole)  # nobody had come back to complete it
    (folder / STAGE).rename(whole)
    sync(folder)
    sync(path.parent)
    discard(folder)
    move_in(whole, path)


def clear_stateless(out: str) -> None:
    """Remove OUT.partial if it is a run's that kept nothing to resume from."""
    folder = partial_of(out)
    if is_unmarked(folder):
        discard(folder)
    elif mark_of(folder) is not None:
        made = {path.name for path in folder.iterdir() if not path.match(".*.tmp")}
        if made <= {MARK, STAGE}:
            discard(folder)


def _holds(folder: Path, *beside: str) -> bool:
    # hidden files were being written; a log is of use only beside the state that it belongs to
    return any(
        path.name != MARK and path.suffix not in beside and not path.name.startswith(".")
        for path in folder.iterdir()
    )


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it exists whole or not at all."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it exists whole or not at all, and stays when this returns."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_bytes(temporary, content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, so that they stay."""
    while not path.is_dir():
        make_folder(path.parent)
        try:
            path.mkdir()
        except FileExistsError:
            with suppress(FileNotFoundError):  # another process has made and removed it
                if not S_ISDIR(path.lstat().st_mode):
                    raise
            continue
        _flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file and flush it to disk."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file and flush it to disk."""
    with regular.named(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it exists."""
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except OSError as error:
            error.filename = str(path)  # which is the name of a file in it, alone
            raise
    elif os.path.lexists(path):
        path.unlink()


def sync_all(path: Path) -> None:
    """Flush a file, or a folder and all that is in it: whoever wrote it may not have."""
    if path.is_dir():
        for below in path.iterdir():
            sync_all(below)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk; raise PruneError if there is none."""
    if not path.exists():
        raise PruneError(f"nothing was written for '{path.name}'")
    _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with regular.named(path):
            os.fsync(handle)
    finally:
        os.close(handle)
