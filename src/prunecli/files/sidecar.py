"""The JSON beside every artefact: what it is, how it was made, and what it costs.

A folder's sidecar is `prunecli.json`, that of `NAME.safetensors` is `NAME.safetensors.json`; JSON
artefacts (plans, results) are their own. Everything outside `run` is deterministic.
"""

import hashlib
import json
import platform
import re
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from prunecli import __version__, registry
from prunecli.errors import InputError
from prunecli.files import forms, regular, seal, strict
from prunecli.files.forms import Part as Part

SCHEMA = 1
FOLDER_SIDECAR = "prunecli.json"
# what a hub shows of a repository: that of IN is read, but not copied, because it tells of IN
CARD = "README.md"
MEASUREMENTS = ("eval", "speed")
LIBRARIES = ("torch", "transformers", "safetensors", "tokenizers", "datasets", "numpy")


Kind = Literal[
    "checkpoint", "stats", "scores", "plan", "arch", "rows", "eval", "speed", "train-log"
]
OF_FOLDERS = ("checkpoint", "rows")
OF_TENSORS = ("stats", "scores")
ID = re.compile("[0-9a-f]{32}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Producer(_Strict):
    """The prunecli version and command that wrote this."""

    version: str
    """Version of prunecli."""
    command: str
    """Command, as in `prunecli COMMAND`."""


class Input(_Strict):
    """One input: its role, the id of its sidecar if it has one, and the digest of its content."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    role: str
    """What the input is to the command: model, calibration, evaluation, rows, plan..."""
    id: str | None = None
    """Id of its sidecar, if it has one."""
    digest: str
    """SHA-256 of its content."""


class Trained(_Strict):
    """Token rows that a model was trained on."""

    rows: str
    """Digest of the set of rows."""
    range: tuple[int, int]
    """First row, and the row after the last."""
    count: int
    """Tokens, counted as often as they were read."""


class TokensSeen(_Strict):
    """Tokens seen along the whole ancestry."""

    calibration: int = 0
    """Tokens read without training weights on them."""
    trained: list[Trained] = []
    """Rows that weights were trained on, oldest first."""


class HistoryStep(_Strict):
    """One step of an artefact's history, oldest first; `parent` is the id of the step before."""

    id: str
    """Id of what the step made."""
    parent: str | None
    """Id of the step before."""
    command: str
    """Command of the step."""
    options: dict[str, Any]
    """Every option that decides the result, with its value."""
    inputs: list[Input]
    """What the step read."""


class RunInfo(_Strict):
    """Fields that may differ between identical runs, and those that decide how sums are rounded.

    `cpu` is the CPU capability that torch's kernels use, `dtype` the compute type; `batch` is how
    many tokens went through a layer at once. Records of older versions lack them, and the digests.
    """

    argv: list[str]
    """Command line."""
    command: str | None = None
    """Command line in one form: what decides nothing is left out, files are without folders."""
    started: str
    """Time of the start, UTC."""
    seconds: float
    """Wall-clock seconds."""
    device: str
    """Device, as torch names it."""
    threads: int
    """CPU threads of torch."""
    cpu: str | None = None
    """CPU capability that torch's kernels used."""
    dtype: str | None = None
    """Compute type."""
    batch: int | None = None
    """Tokens that went through a layer at once."""
    ranks: int = 1
    """Processes that took part."""
    libraries: dict[str, str]
    """Versions of the libraries that were loaded."""
    peak_bytes: int
    """Largest resident memory of the process."""
    files: dict[str, str] = {}
    """SHA-256 of each file in the folder that holds no tensors, by name."""
    card: str | None = None
    """SHA-256 of the model card as it was written; it is its user's to edit."""
    digest: str | None = None
    """SHA-256 of this record without this field."""


class Sidecar(_Strict):
    """The whole record; its JSON Schema is docs/sidecar.schema.json."""

    schema_: int = SCHEMA
    """Number of this format."""
    kind: Kind
    """What kind of artefact this is."""
    id: str
    """Hash of kind, options and inputs: equal ids, equal artefacts."""
    made_by: Producer
    """Program that wrote it."""
    options: dict[str, Any]
    """Every option that decides the result, with its value."""
    inputs: list[Input]
    """What was read, by role and digest."""
    outputs: dict[str, Any]
    """Digest and size of what was written."""
    results: dict[str, Any]
    """What was measured or decided, by kind."""
    tokens: TokensSeen = TokensSeen()
    """Tokens seen by the model and its ancestors."""
    history: list[HistoryStep]
    """Steps that led here, oldest first; the last is this one."""
    run: RunInfo
    """What may differ between identical runs."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    def last(self, command: str) -> HistoryStep | None:
        """Return the last step of the history that was this command."""
        return next((step for step in self.history[::-1] if step.command == command), None)

    def seal(self, files: Mapping[str, str] = MappingProxyType({})) -> "Sidecar":
        """Record the digests of `files`, and last that of the record itself; return it."""
        self.run.files = dict(files)
        self.run.digest = seal.of_record(self.dump())
        return self

    def dump(self) -> dict[str, Any]:
        """Return the record as written to JSON, `schema` first."""
        record = self.model_dump(mode="json")
        return {"schema": record.pop("schema_"), **record}

    def text(self) -> str:
        """Return the JSON text of the record."""
        return json.dumps(self.dump(), indent=1) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a sidecar."""
    schema = Sidecar.model_json_schema()
    schema["properties"] = {"schema": schema["properties"].pop("schema_"), **schema["properties"]}
    schema["title"] = "prunecli sidecar"
    return schema


def tokens_input(role: str, meta: dict[str, Any], windows: list[str]) -> Input:
    """Return tokens as an input: where they come from, and a short hash of every window."""
    return Input.model_validate({"role": role, **meta, "windows": windows})


def content_id(kind: str, options: dict[str, Any], inputs: list[Input]) -> str:
    """Return the id of what these options and inputs make: equal ids, equal artefacts."""
    content = [kind, options, hashed(inputs)]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hashed(inputs: list[Input]) -> list[dict[str, Any]]:
    """Return what ids are made from of inputs: what they are, not the hub that they came from."""
    return [entry.model_dump(mode="json", exclude={"hub"}) for entry in inputs]


def path_of(artefact: str | Path) -> Path:
    """Return the path of an artefact's sidecar."""
    path = Path(artefact)
    if regular.is_dir(path):
        return path / FOLDER_SIDECAR
    return path if path.suffix == ".json" else path.with_name(path.name + ".json")


def read(artefact: str | Path, kinds: tuple[str, ...] = ()) -> Sidecar:
    """Read the sidecar of an artefact; raise InputError unless it is one of these `kinds`."""
    path = path_of(artefact)
    try:
        record = strict.read_object(regular.inside(path.parent, path))
    except FileNotFoundError:
        raise InputError(
            f"'{artefact}' has no sidecar ({path.name})", "was it made by prunecli, and finished?"
        ) from None
    if "schema" not in record or "schema_" in record:
        raise InputError(f"'{path}' is not a prunecli sidecar: it has no schema")
    record["schema_"] = record.pop("schema")
    try:
        sidecar = Sidecar.model_validate(record)
    except ValidationError as error:
        raise InputError(f"'{path}' is not a prunecli sidecar: {_first(error)}") from None
    _check_parts(artefact, sidecar)
    if kinds and sidecar.kind not in kinds:
        raise InputError(
            f"wrong kind of sidecar: '{artefact}' is '{sidecar.kind}', "
            f"expected {' or '.join(repr(kind) for kind in kinds)}"
        )
    return sidecar


def _check_parts(artefact: str | Path, record: Sidecar) -> None:
    """Raise InputError where others would read what is not there, or of another type."""
    if not record.history:
        raise InputError(f"the sidecar of '{artefact}' has no history", "make it again")
    if record.kind in MEASUREMENTS and not record.inputs:
        raise InputError(f"the sidecar of '{artefact}' does not say of what it is", "make it again")
    part(artefact, record.results, forms.RESULTS.get(record.kind, Part))
    part(artefact, record.outputs, forms.Outputs)
    inputs = [*record.inputs, *(entry for step in record.history for entry in step.inputs)]
    for entry in inputs:
        part(artefact, entry.model_extra or {}, forms.InputDetails)


AnyPart = TypeVar("AnyPart", bound=Part)


def part(artefact: str | Path, values: Any, form: type[AnyPart]) -> AnyPart:
    """Return a part of an artefact's sidecar as `form`; raise InputError unless it has that form.

    The sidecar itself says nothing of what options and results hold, which each kind decides.
    """
    try:
        return form.model_validate(values)
    except ValidationError as error:
        raise InputError(
            f"the sidecar of '{artefact}' lacks what its kind records: {_first(error)}",
            "make it again",
        ) from None


def _first(error: ValidationError) -> str:
    """Return where a record is not as it should be, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"])) or "the record"
    return f"{where}: {first['msg']}"


def read_if_any(artefact: str | Path) -> Sidecar | None:
    """Return the sidecar of an artefact, None if it has none."""
    return read(artefact) if regular.exists(path_of(artefact)) else None


def kind_of(artefact: str | Path) -> str | None:
    """Return the kind of an artefact that prunecli made, whatever version; None of all else."""
    try:
        record = strict.read_object(path_of(artefact))
    except (FileNotFoundError, InputError):
        return None
    schema, kind, identity = (record.get(key) for key in ("schema", "kind", "id"))
    if type(schema) is not int or not isinstance(kind, str) or not isinstance(identity, str):
        return None
    return kind if kind in get_args(Kind) and ID.fullmatch(identity) else None


def listed(folder: Path) -> set[str]:
    """Return the paths of files in an artefact's folder that its sidecar lists, and its own.

    The model card is among them, edited or not, if it can be kept as it is.
    """
    run = strict.read_object(path_of(folder)).get("run")
    files, card = (run.get("files"), run.get("card")) if isinstance(run, dict) else (None, None)
    has_card = isinstance(card, str) and regular.is_own(folder / CARD)
    return {FOLDER_SIDECAR, *(files if isinstance(files, dict) else ()), *[CARD] * has_card}


def kinds_at(artefact: str | Path) -> tuple[str, ...]:
    """Return the kinds that an artefact at a path can have: folder, tensors, or JSON."""
    if regular.is_dir(artefact):
        return OF_FOLDERS
    if path_of(artefact) != Path(artefact):
        return OF_TENSORS
    return tuple(kind for kind in get_args(Kind) if kind not in (*OF_FOLDERS, *OF_TENSORS))


@dataclass(frozen=True)
class Computed:
    """How an artefact was computed: what its sidecar's `run` records beside times and versions.

    `dtype` is the compute type, `batch` how many tokens went through a layer at once.
    """

    device: str = "cpu"
    dtype: str | None = None
    batch: int | None = None
    ranks: int = 1


class SidecarBuilder:
    """Builds the sidecars of one command; it holds the clock, so make it when that starts."""

    def __init__(self, command: str, argv: tuple[str, ...]) -> None:
        self.command, self.argv = command, argv
        self._clock = time.perf_counter()
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def sidecar(
        self,
        kind: Kind,
        options: dict[str, Any],
        inputs: list[Input],
        *,
        outputs: dict[str, Any],
        results: dict[str, Any],
        parent: Sidecar | None = None,
        seen: TokensSeen | None = None,
        computed: Computed | None = None,
    ) -> Sidecar:
        """Return the finished record; `parent` is the sidecar whose history it continues.

        `seen` are the tokens of this step; `computed` is recorded under `run`.
        """
        made = content_id(kind, options, inputs)
        step = HistoryStep(
            id=made,
            parent=parent.id if parent else None,
            command=self.command,
            options=options,
            inputs=inputs,
        )
        before, seen = parent.tokens if parent else TokensSeen(), seen or TokensSeen()
        return Sidecar(
            kind=kind,
            id=made,
            made_by=Producer(version=__version__, command=self.command),
            options=options,
            inputs=inputs,
            outputs=outputs,
            results=results,
            tokens=TokensSeen(
                calibration=before.calibration + seen.calibration,
                trained=[*before.trained, *seen.trained],
            ),
            history=[*(parent.history if parent else []), step],
            run=self._run(computed or Computed()),
        ).seal()

    def _run(self, computed: Computed) -> RunInfo:
        unit = 1 if sys.platform == "darwin" else 1024
        libraries = {"python": platform.python_version(), **registry.packages}
        for name in LIBRARIES:
            if name in sys.modules:
                libraries[name] = metadata.version(name)
        torch = sys.modules.get("torch")
        return RunInfo(
            argv=list(self.argv),
            started=self._started,
            seconds=round(time.perf_counter() - self._clock, 3),
            threads=torch.get_num_threads() if torch else 1,
            cpu=torch.backends.cpu.get_cpu_capability() if torch else None,
            **vars(computed),
            libraries=libraries,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        )
