"""What a long run keeps of its work in OUT.partial, to go on from there when it was stopped.

A run is a sequence of walks: loops over layers, chunks or rounds that change named tensors, their
state. A walk may stand within a step of another. A rerun begins the same walks in the same order,
so each is known by its place. One that was done yields no step, one that was stopped yields the
steps that are left, and both find their state as it was. Results that a run writes as they come
are in files of OUT.partial too, and it goes on writing these.

A state is tensor files and one JSON file, which is written last: it names the others, with their
digests. So a state is whole, or it is the one before.

A run that ends soon never keeps anything, and keeping takes a small share of any other.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from prunecli import __version__
from prunecli.errors import InputError, PruneError, Stopped
from prunecli.files import output, seal, sidecar, unfinished
from prunecli.files.tensorfile import (
    TORCH_NAMES,
    Spec,
    TensorFile,
    TensorWriter,
    Unwritten,
    combined_digest,
    layout,
    read_header,
    read_tensor,
    spec_of,
    tensor_digest,
)
from prunecli.files.unfinished import RESTART
from prunecli.interruption import held
from prunecli.report import Report
from prunecli.settings import RunContext

if TYPE_CHECKING:
    import torch

LEAST = 20.0  # seconds of work between two states
SHARE = 0.03  # of the time that a run takes, at most, is spent on keeping
SPEED = 3e8  # bytes written a second, until it is measured
LARGE = 1 << 20  # bytes of a tensor that has a file of its own
STATE = "state.json"
FILE = r"[0-9]{1,9}\.safetensors"

T = TypeVar("T")
# makes room for a tensor that was read, and fills it; the second says that it was on a device
Place = Callable[["torch.Tensor", bool], "torch.Tensor"]
Specs = Mapping[str, Spec]
Holds = Callable[[int], Specs]


@dataclass
class Walk:
    """One loop: how many of its `total` steps are done, and the tensors that these changed.

    `inside` counts the walks that were begun within the step under way.
    """

    place: str
    what: str
    total: int
    state: "dict[str, torch.Tensor]"
    done: int = 0
    inside: int = 0


class KeptTensor(sidecar.Part):
    """Where a tensor of a state is, and whether it was on a device other than the CPU."""

    file: str
    name: str
    on_device: bool


class KeptWalk(sidecar.Part):
    """A walk in a state."""

    what: str
    total: int
    done: int
    tensors: dict[str, KeptTensor]


class KeptResult(sidecar.Part):
    """An unfinished file of results: digests of its layout, and of the tensors that are written."""

    layout: str
    tensors: dict[str, str]


class State(sidecar.Part):
    """A state: walks by place, digests of its files, and unfinished results by name."""

    version: str = __version__
    walks: dict[str, KeptWalk] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    written: dict[str, KeptResult] = Field(default_factory=dict)


@dataclass(frozen=True)
class _Saved:
    """A large tensor as it was when it went into a file."""

    tensor: "weakref.ref[torch.Tensor]"
    version: int
    file: str

    def is_of(self, tensor: "torch.Tensor") -> bool:
        return self.tensor() is tensor and self.version == tensor._version


def copied(tensor: "torch.Tensor", on_device: bool) -> "torch.Tensor":
    """Return a tensor of a state in memory of its own."""
    return tensor.clone()


class Keeper:
    """Walks a run's loops, and keeps their states in a folder; without one it keeps nothing.

    Args:
        run: `run.stop` is asked after every step, `run.report` shows progress.
        folder: OUT.partial, or a folder in it.

    A state that cannot be read is told to the report, and the run begins anew.
    """

    def __init__(self, run: RunContext, folder: Path | None = None) -> None:
        self.run, self.folder = run, folder
        self._walks: dict[str, Walk] = {}
        self._open = [Walk("", "", 0, {})]
        self._writers: dict[str, TensorWriter] = {}
        self._large: dict[str, _Saved] = {}
        self._digests: dict[str, str] = {}
        self._speed, self._failed = SPEED, False
        self._resumed = State() if folder is None else self._read(folder)
        self._resumes = bool(self._resumed.walks)
        self._digests.update(self._resumed.files)
        self._number = max((int(name.split(".")[0]) for name in self._digests), default=0)
        self._since = monotonic()

    def steps(
        self,
        items: Sequence[T],
        what: str,
        unit: str,
        state: "dict[str, torch.Tensor]",
        place: Place = copied,
        holds: Holds | None = None,
        spent: Collection[str] = (),
    ) -> Iterator[T]:
        """Yield what is left of `items`, showing progress; between two of them a state may be kept.

        `state` holds all that later steps need: each changes it, in place or by name. `holds` tells
        which tensors that are after so many steps; without it, those that it begins with. After the
        last step it is only read, but for what is `spent`, which goes. If a stopped run did some of
        these steps, it is filled with what they left. Raises Stopped where `run.stop` says so, and
        InputError where the state of a stopped run holds other tensors.
        """
        begins = {} if self.folder is None or holds else specs_of(state)
        walk = Walk(self._place(), what, len(items), state)
        self._begin(walk, holds or (lambda done: begins), spent, place)
        if 0 < walk.done < walk.total:
            self.run.report.info(f"resuming '{what}' after {walk.done} of {walk.total} {unit}")
        left = items[walk.done :]
        for item in self.run.report.progress(left, what, len(left), unit):
            # what is kept is asked for between two steps: one that is begun is finished
            with nullcontext() if self.folder is None else held():
                yield item
            walk.done += 1
            walk.inside = 0
            for name in spent if walk.done == walk.total else ():
                del walk.state[name]
            for inner in [key for key in self._walks if key.startswith(f"{walk.place}.")]:
                del self._walks[inner]
            self._rest(f"stopped after {walk.done} of {walk.total} {unit}")
        self._open.pop()

    def remembered(self, what: str, specs: Specs) -> "dict[str, torch.Tensor]":
        """Return what the steps of the walks that follow fill; it is kept with their states.

        Some of the tensors of `specs` are in it if a stopped run did some of these steps. Raises
        InputError where there are others.
        """
        walk = Walk(self._place(), what, 0, {})
        self._begin(walk, lambda done: specs, None, copied)
        self._open.pop()
        return walk.state

    def check_whole(self, state: "Mapping[str, torch.Tensor]", specs: Specs) -> None:
        """Raise InputError where what was remembered lacks one of `specs` after all steps."""
        for name in specs:
            if name not in state:
                raise self.misfit(f"it has no '{name}'")

    def misfit(self, why: str) -> InputError:
        """Return the refusal of a state that no stopped run of these steps left."""
        folder = self.folder.name if self.folder else "memory"
        return InputError(f"the state in '{folder}' does not fit this run: {why}", RESTART)

    def pause(self) -> None:
        """Raise Stopped where `run.stop` says so and no walk is under way."""
        if len(self._open) == 1:
            self._rest("stopped before the result was written")

    def _place(self) -> str:
        """Return the place of the next walk."""
        outer = self._open[-1]
        outer.inside += 1
        return f"{outer.place}.{outer.inside - 1}"

    def _begin(self, walk: Walk, holds: Holds, spent: Collection[str] | None, place: Place) -> None:
        """Begin a walk, where a stopped run has left it; `spent` is None if it may lack tensors."""
        kept = self._resumed.walks.get(walk.place)
        if kept is not None and self.folder is not None:
            if (kept.what, kept.total) != (walk.what, walk.total):
                raise self.misfit(f"'{kept.what}' is other work than '{walk.what}'")
            expected = dict(holds(kept.done))
            for name in spent or () if kept.done == kept.total else ():
                del expected[name]
            self._check(kept, expected, partly=spent is None)
            walk.done = kept.done
            self._fill(walk, kept, place)
            del self._resumed.walks[walk.place]
        if self.folder is not None:
            self._walks[walk.place] = walk
        self._open.append(walk)

    def _check(self, kept: KeptWalk, expected: Specs, partly: bool) -> None:
        """Raise InputError unless a kept walk has these tensors, or `partly` some of them."""
        assert self.folder is not None
        headers = {of.file: read_header(self.folder / of.file) for of in kept.tensors.values()}
        found = {name: headers[of.file][of.name] for name, of in kept.tensors.items()}
        for name in found if partly else [*expected, *found]:
            if found.get(name) != expected.get(name):
                got, wanted = _shown(found.get(name)), _shown(expected.get(name))
                raise self.misfit(f"'{name}' of '{kept.what}' is {got}, expected {wanted}")

    def _fill(self, walk: Walk, kept: KeptWalk, place: Place) -> None:
        """Give a walk the tensors that it had, in the room of those that it has."""
        assert self.folder is not None
        for name in walk.state.keys() - kept.tensors.keys():
            del walk.state[name]
        for name, of in kept.tensors.items():
            read, room = read_tensor(self.folder / of.file, of.name), walk.state.get(name)
            if room is not None and (room.shape, room.dtype) == (read.shape, read.dtype):
                room.copy_(read)
            else:
                walk.state[name] = place(read, of.on_device)
            tensor = walk.state[name]
            if tensor.nbytes >= LARGE:
                saved = _Saved(weakref.ref(tensor), tensor._version, of.file)
                self._large[f"{walk.place}/{name}"] = saved

    def _rest(self, where: str) -> None:
        """Keep a state if it is time to; raise Stopped, with one kept, if that is asked for."""
        if self.folder is None:
            return
        if self.run.stop():
            self._save()
            if self._failed:
                raise PruneError(f"{where}, and no state could be kept", "free some space")
            raise Stopped(where, "rerun the same command to resume")
        if self._failed:
            return
        cost = sum(tensor.nbytes for tensor in self._changed().values()) / self._speed
        if monotonic() - self._since >= max(LEAST, cost / SHARE):
            self._save()

    def _all(self) -> "dict[str, torch.Tensor]":
        return {
            f"{place}/{name}": tensor
            for place, walk in self._walks.items()
            for name, tensor in walk.state.items()
        }

    def _changed(self) -> "dict[str, torch.Tensor]":
        """Return all tensors but the large ones that are as they were when they were written."""
        known = self._large
        return {
            key: tensor
            for key, tensor in self._all().items()
            if key not in known or not known[key].is_of(tensor)
        }

    @held()
    def _save(self) -> None:
        """Write a state, and remove what only the one before needed; tell if it cannot be done."""
        assert self.folder is not None
        began, changed = monotonic(), self._changed()
        size = sum(tensor.nbytes for tensor in changed.values())
        try:
            self.folder.mkdir(exist_ok=True)
            if size > shutil.disk_usage(self.folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for writer in self._writers.values():
                writer.flush()
            small = {key: one for key, one in changed.items() if one.nbytes < LARGE}
            of_small = self._written(small) if small else ""
            for key in changed.keys() - small.keys():
                tensor = changed[key]
                file = self._written({key: tensor})
                self._large[key] = _Saved(weakref.ref(tensor), tensor._version, file)
            self._publish(of_small)
        except OSError as error:
            self._failed = True
            _clear(self.folder, set(self._digests))
            why = error.strerror or str(error)
            self.run.report.info(f"no state is kept in '{self.folder}': {why}")
            return
        self._since, self._failed = monotonic(), False
        if size > LARGE:
            self._speed = size / max(self._since - began, 1e-3)

    def _written(self, tensors: "Mapping[str, torch.Tensor]") -> str:
        """Write tensors to a file of the state; return its name."""
        assert self.folder is not None
        self._number += 1
        file = f"{self._number}.safetensors"
        temporary = self.folder / f".{file}.tmp"
        with TensorWriter(temporary, specs_of(tensors)) as one:
            for key, tensor in tensors.items():
                one.write(key, tensor)
        temporary.rename(self.folder / file)
        self._digests[file] = combined_digest(one.digests)
        return file

    def _publish(self, of_small: str) -> None:
        """Write the file that makes what was written a state, and remove what is of none."""
        assert self.folder is not None

        def where(key: str, tensor: "torch.Tensor") -> KeptTensor:
            file = of_small if tensor.nbytes < LARGE else self._large[key].file
            return KeptTensor(file=file, name=key, on_device=tensor.device.type != "cpu")

        walks = {
            place: KeptWalk(
                what=walk.what, total=walk.total, done=walk.done,
                tensors={name: where(f"{place}/{name}", t) for name, t in walk.state.items()},
            )
            for place, walk in self._walks.items()
        }  # fmt: skip
        used = {tensor.file for walk in walks.values() for tensor in walk.tensors.values()}
        self._digests = {file: self._digests[file] for file in sorted(used)}
        written = {
            name: KeptResult(layout=_layout(writer.specs), tensors=writer.digests)
            for name, writer in self._writers.items()
        }
        state = State(walks=walks, files=self._digests, written=written)
        output.sync(self.folder)
        keep(self.folder / STATE, state.model_dump(mode="json"))
        output.sync(self.folder)
        _clear(self.folder, used)

    def _read(self, folder: Path) -> State:
        """Return the state in a folder; an empty one if there is none, or none that can be read."""
        try:
            state = State.model_validate(kept(folder / STATE, dict[str, Any]))
            _check(folder, state)
        except FileNotFoundError:
            state = State()
        except (InputError, ValidationError, OSError) as error:
            why = error.what if isinstance(error, InputError) else "it is not one of this version"
            self.run.report.info(f"beginning anew: no state can be read in '{folder}' ({why})")
            output.remove(folder / STATE)
            state = State()
        _clear(folder, set(state.files))
        _clear_stage(folder / output.STAGE, state.written.keys())
        return state

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Yield the path of a folder that becomes OUT when the block succeeds.

        With it goes all that was kept. If a stopped run had begun to write, the folder is there.
        """
        out = self.run.output.path
        if self.folder is None:
            with output.staged(out) as temporary:
                yield temporary
            return
        with self._whole():
            yield self.folder / output.STAGE
        output.publish_stage(out)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Refuse a state whose steps are done, where results lack what these steps write."""
        try:
            yield
        except Unwritten as error:
            if not self._resumes:
                raise
            raise self.misfit(str(error)) from error

    @contextmanager
    def staged_files(self) -> Iterator[tuple[Path, Path]]:
        """Yield paths of a file and its sidecar, which become OUT when the block succeeds.

        They are one where a JSON file is its own sidecar.
        """
        out = self.run.output.path
        if self.folder is None and sidecar.path_of(out) == Path(out):
            with output.staged(out) as temporary:
                yield temporary, temporary
            return
        if self.folder is None:
            with output.staged_pair(out) as pair:
                yield pair
            return
        file = self.folder / output.STAGE / Path(out).resolve().name
        file.parent.mkdir(exist_ok=True)
        with self._whole():
            yield file, file.with_name(sidecar.path_of(file).name)
        output.publish_stage(out)

    def writer(self, path: Path, specs: Mapping[str, Spec], marked: bool = False) -> TensorWriter:
        """Return a writer of a file that is staged, which goes on with what is in it."""
        kept = self._resumed.written.get(path.name)
        if kept is not None and kept.layout != _layout(specs):
            raise unfinished.damaged(path, "it holds other tensors than this run writes")
        writer = TensorWriter(path, specs, None if kept is None else kept.tensors, marked)
        self._writers[path.name] = writer
        return writer

    def begun(self, path: Path) -> bool:
        """Return whether a stopped run wrote to this file, which is staged."""
        return path.name in self._resumed.written


class KeptObject(sidecar.Part):
    """A JSON value in a file of its own, with its digest."""

    result: Any
    digest: str


def keep(file: Path, value: Any) -> None:
    """Keep a JSON value in a file, sealed: it is read as it was written, or not at all."""
    output.replace_text(file, json.dumps({"result": value, "digest": seal.of_value(value)}))


def kept(file: Path, form: Any) -> Any:
    """Return the value that `keep` left in a file, as `form`, a type that pydantic knows.

    Raises InputError unless it is as it was written, and has that form.
    """
    found: KeptObject = unfinished.read(file, KeptObject)
    if found.digest != seal.of_value(found.result):
        raise unfinished.damaged(file, "it is not as it was written")
    try:
        return unfinished.checked(found.result, form)
    except ValueError as error:
        raise unfinished.damaged(file, str(error)) from None


def result(
    file: Path | None, make: Callable[[], dict[str, Any]], form: type[BaseModel], report: Report
) -> dict[str, Any]:
    """Return the JSON object that `make` makes, kept in a file; that of a stopped run is taken.

    Without a file nothing is kept. One that is not as it was written, or has not the `form` that
    it should have, is told, and made anew.
    """
    if file is None:
        return make()
    try:
        found: dict[str, Any] = kept(file, dict[str, Any])
        kept(file, form)
        return found
    except FileNotFoundError:
        pass
    except InputError as error:
        report.info(f"making '{file.name}' anew: {error.what}")
    made = make()
    keep(file, made)
    return made


def _clear_stage(stage: Path, begun: Collection[str]) -> None:
    """Remove from a stage what is not in a state: it is written anew, or by a stranger."""
    if not stage.is_dir():
        output.remove(stage)
        return
    for path in stage.iterdir():
        if path.name not in begun:
            output.remove(path)


def _clear(folder: Path, files: set[str]) -> None:
    """Remove the tensor files of a folder but these, and what was being written."""
    for path in folder.glob("*.safetensors*"):
        name = path.name.removeprefix(".").removesuffix(".tmp")
        if path.name not in files and re.fullmatch(FILE, name):
            output.remove(path)


def _check(folder: Path, state: State) -> None:
    """Raise InputError unless all that a state names is there, as it was written."""
    if state.version != __version__:
        raise InputError(f"it was written by version {state.version}")
    held = {}
    for name, digest in state.files.items():
        if re.fullmatch(FILE, name) is None:
            raise InputError(f"it names a file '{name}'")
        digests = _digests(folder / name)
        if combined_digest(digests) != digest:
            raise InputError(f"'{name}' is not as it was written")
        held[name] = digests.keys()
    for name, kept in state.written.items():
        if Path(name).name != name:
            raise InputError(f"it names a file '{name}'")
        path = folder / output.STAGE / name
        if (
            _layout(read_header(path)) != kept.layout
            or _digests(path, kept.tensors) != kept.tensors
        ):
            raise InputError(f"'{name}' is not as it was written")
    for walk in state.walks.values():
        if not 0 <= walk.done <= walk.total:
            raise InputError(f"'{walk.what}' has done {walk.done} of {walk.total} steps")
        for tensor in walk.tensors.values():
            if tensor.name not in held.get(tensor.file, ()):
                raise InputError(f"it lacks '{tensor.name}'")


def specs_of(tensors: "Mapping[str, torch.Tensor]") -> dict[str, Spec]:
    """Return type and shape of each tensor."""
    return {name: spec_of(tensor) for name, tensor in tensors.items()}


def _shown(spec: Spec | None) -> str:
    return "missing" if spec is None else f"{spec.dtype} {list(spec.shape)}"


def _layout(specs: Mapping[str, Spec]) -> str:
    start, _ = layout(specs)
    return hashlib.sha256(start).hexdigest()


def _digests(path: Path, names: Collection[str] | None = None) -> dict[str, str]:
    """Return the digests of these tensors of a file, or of all; raise InputError if it lacks one.

    The header is checked before, so that the library that reads tensors meets none that it cannot.
    """
    tensors = TensorFile(path)
    specs = read_header(path)
    wanted = specs.keys() if names is None else names
    if not all(name in specs and specs[name].dtype in TORCH_NAMES for name in wanted):
        raise InputError(f"'{path.name}' is not as it was written")
    return {name: tensor_digest(tensors[name]) for name in wanted}
