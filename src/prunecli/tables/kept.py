"""Figure `plan`: what went where, for plans and for pruned checkpoints.

Of a plan: the share of heads, channels and hidden dimensions that every layer keeps, and which. Of
a checkpoint: the share of each matrix that is not zero, read tensor by tensor. Shares are those of
the dense model where it is among the models given, else of what is stored.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

from prunecli.errors import InputError
from prunecli.files import regular, sidecar
from prunecli.files.sidecar import Sidecar
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint
from prunecli.pruning.plan import Indices, Plan, read_plan
from prunecli.tables import matching
from prunecli.tables.collect import Models, name_of, records_of
from prunecli.tables.panels import Drawing, Grid

AT_ONCE = 1 << 31  # bytes of weights that a report reads
MANY = 12  # models that one figure can show
DEEPEST = 1000  # layers that one figure can show
BINS = 16  # rows that channels are gathered into
CONFIG = "config.json"
ALL = "block weights"
AXES = {"heads": "heads", "KV heads": "kv_heads", "FFN channels": "ffn", "experts": "experts"}


@dataclass(frozen=True)
class _Model:
    """A plan or a pruned checkpoint, and the digest of what it was pruned from, if known."""

    name: str
    plan: Plan | None
    folder: Path | None
    of: str


@dataclass(frozen=True)
class Subjects:
    """What a figure is about: plans and pruned checkpoints, and dense models beside them."""

    models: tuple[_Model, ...]
    dense: tuple[Path, ...]

    def parent(self, model: _Model) -> Arch | None:
        """Return the shape of what a model was pruned from, if that is given."""
        if not model.of:  # written by hand: for the only one there is
            return Checkpoint(str(self.dense[0])).arch if len(self.dense) == 1 else None
        for folder in self.dense:
            found = Checkpoint(str(folder))
            own = found.sidecar.outputs.get("digest") if found.sidecar else None
            if model.of == (own or found.digest()):
                return found.arch
        return None


def subjects(paths: list[str]) -> Subjects:
    """Return the plans and pruned checkpoints in some files and folders, and the dense ones.

    Raises InputError for a path that is none, and where there are none or too many.
    """
    models: list[_Model] = []
    dense: list[Path] = []
    for path in paths:
        for one in _found(Path(path)):
            if isinstance(one, _Model):
                models.append(one)
            else:
                dense.append(one)
    if not models:
        raise InputError("no plan and no pruned checkpoint here", "make one with `prunecli prune`")
    if len(models) > MANY:
        raise InputError(
            f"{len(models)} plans and pruned checkpoints, a figure shows up to {MANY}", "name them"
        )
    return Subjects(tuple(models), tuple(dense))


def small(models: Models) -> list[str]:
    """Return the paths of collected plans and checkpoints that a report can show at once.

    None where they are many, or where reading their weights takes long.
    """
    folders = [path.parent for path, _ in models.checkpoints.values()]
    folders = [folder for folder in folders if (folder / CONFIG).is_file()]
    size = sum(file.stat().st_size for one in folders for file in one.glob("*.safetensors"))
    found = [one for folder in folders for one in _searched(folder)]
    pruned = [one for one in found if isinstance(one, _Model)]
    if size > AT_ONCE or len(pruned) + len(models.plans) > MANY:
        return []
    dense = [one for one in found if isinstance(one, Path)]
    return [*map(str, models.plans), *(str(one.folder) for one in pruned), *map(str, dense)]


def _found(path: Path) -> Iterator[_Model | Path]:
    if not regular.exists(path):
        raise InputError(f"no such file or folder: '{path}'", "check the path")
    if not regular.is_dir(path):
        if path.name == sidecar.FOLDER_SIDECAR:
            yield from _found(path.parent)
        else:
            yield _plan(path)
    elif (path / CONFIG).exists():
        yield _checkpoint(path, sidecar.read_if_any(path))
    else:
        for file, record in records_of(str(path)):
            if record.kind == "plan":
                yield _plan(file)
            elif record.kind == "checkpoint" and file.name == sidecar.FOLDER_SIDECAR:
                yield from _searched(file.parent)


def _searched(folder: Path) -> Iterator[_Model | Path]:
    """Yield a checkpoint that was not asked for by name: not what has the shape of another."""
    record = sidecar.read_if_any(folder)
    if record is not None and (record.made_by.command == "prune" or not record.last("prune")):
        yield _checkpoint(folder, record)


def _plan(path: Path) -> _Model:
    plan, record = read_plan(str(path))
    return _Model(name_of(path), plan, None, matching.origin(record) if record else "")


def _checkpoint(folder: Path, record: Sidecar | None) -> _Model | Path:
    """Return a pruned checkpoint, or the folder of one that is not known to be."""
    if record is None or record.last("prune") is None:
        return folder
    return _Model(folder.name, None, folder, matching.origin(record))


def drawing(paths: list[str]) -> Drawing:
    """Return the figure of these plans and checkpoints, with what is seen as its title."""
    found = subjects(paths)
    grids: list[Grid] = []
    told = []
    for model in found.models:
        arch = found.parent(model)
        if model.plan is not None:
            made = _of_plan(model.name, model.plan, arch)
        else:
            made = [_of_checkpoint(model, arch)]
        grids += made
        told.append(f"{model.name} keeps {_says(made[0])}")
    return Drawing("; ".join(told), grids)


def _says(grid: Grid) -> str:
    """Say what is kept in the layers: of all weights, or of every row that is not whole."""
    rows = dict(zip(grid.rows, grid.cells, strict=True))
    if ALL in rows:
        rows = {ALL: rows[ALL]}
    told = [f"{_range(row, grid.columns)} of {name}" for name, row in rows.items() if _cut(row)]
    gone = sum(cell is None for cell in grid.cells[0])
    layers = f"{len(grid.columns) - gone} of {len(grid.columns)} layers"
    return " and ".join([layers] * bool(gone) + told) or "everything"


def _cut(row: list[float | None]) -> bool:
    return any(cell is not None and cell < 1 for cell in row)


def _range(row: list[float | None], columns: list[str]) -> str:
    """Return the least and the most share of a row, and in which layers that is."""
    shares = {name: cell for name, cell in zip(columns, row, strict=True) if cell is not None}
    least, most = (pick(shares, key=lambda name: shares[name]) for pick in (min, max))
    if f"{shares[least]:.0%}" == f"{shares[most]:.0%}":
        return f"{shares[least]:.0%}"
    return f"{shares[least]:.0%} (layer {least}) to {shares[most]:.0%} (layer {most})"


# -- plans ---------------------------------------------------------------------------------------


def _of_plan(name: str, plan: Plan, arch: Arch | None) -> list[Grid]:
    """Return how much every layer keeps of every axis, then which of the axes that are cut."""
    if arch is not None:
        plan.check(arch)
    else:
        plan.check_alone()
    sizes = _sizes(plan) if arch is None else arch.sizes
    if sizes["layers"] > DEEPEST:
        raise InputError(f"'{name}' has {sizes['layers']} layers, a figure shows up to {DEEPEST}")
    if not sizes["layers"]:
        raise InputError(
            f"'{name}' cuts no layer, head or channel, so its layers are unknown",
            "give the dense model's folder, too",
        )
    columns = [str(i) for i in range(sizes["layers"])]
    kept = list(range(sizes["layers"])) if plan.layers is None else list(plan.layers)
    width = 1.0 if plan.hidden is None else len(plan.hidden) / sizes["hidden"]
    rows, cells, grids = ["hidden"], [_layers(columns, kept, [width] * len(kept))], []
    if arch is not None:
        # a layer's share, as if all others were removed
        alone = [
            plan.layer_params(arch, i) / arch.layer_params(layer) for i, layer in enumerate(kept)
        ]
        rows, cells = [ALL, *rows], [_layers(columns, kept, alone), *cells]
    for label, key in AXES.items():
        lists: tuple[Indices, ...] | None = getattr(plan, key)
        if lists is None and key in ("heads", "experts"):
            continue  # those of the kept groups stay, and experts are few models'
        widths = [sizes[key] if arch is None else arch.size(key, i) for i in kept]
        # a layer that has none has no share
        shares = [1.0 if arch is None or arch.has(key, i) else None for i in kept]
        if lists is not None:
            both = zip(lists, widths, strict=True)
            shares = [len(one) / width if one else None for one, width in both]
        rows.append(label)
        cells.append(_layers(columns, kept, shares))
        if lists is not None:
            title = f"{name}: which {label} stay"
            grids.append(_which(title, label, lists, widths, columns, kept))
    known = "" if arch is not None else " (of the highest index that the plan names)"
    return [Grid(f"{name}: share kept by layer{known}", "layer", "", rows, columns, cells), *grids]


def _sizes(plan: Plan) -> dict[str, int]:
    """Return the least sizes that a plan can be for."""
    lists = {key: getattr(plan, key) or () for key in AXES.values()}
    sizes = {key: _reach(own) for key, own in lists.items()}
    layers = max(_reach([plan.layers or ()]), *map(len, lists.values()))
    return sizes | {"layers": layers, "hidden": _reach([plan.hidden or ()])}


def _reach(lists: Iterable[Indices]) -> int:
    """Return the least size that has all these indices."""
    return max((one[-1] + 1 for one in lists if one), default=0)


def _layers(
    columns: list[str], kept: list[int], values: Sequence[float | None]
) -> list[float | None]:
    """Return a row of the dense model's layers; what is removed is None."""
    by_layer = dict(zip(kept, values, strict=True))
    return [by_layer.get(i) for i in range(len(columns))]


def _which(
    title: str,
    label: str,
    lists: tuple[Indices, ...],
    widths: list[int],
    columns: list[str],
    kept: list[int],
) -> Grid:
    """Return which indices of an axis stay, several to a row where there are many.

    Of layers that have fewer, only the rows that they have are shown.
    """
    size = max(widths)
    bins = min(size, BINS)
    edges = [round(i * size / bins) for i in range(bins + 1)]
    names = [str(a) if b - a == 1 else f"{a}-{b - 1}" for a, b in pairwise(edges)]
    cells = []
    for a, b in pairwise(edges):
        shares = [
            sum(a <= index < b for index in one) / (min(b, width) - a)
            if one and width > a
            else None
            for one, width in zip(lists, widths, strict=True)
        ]
        cells.append(_layers(columns, kept, shares))
    return Grid(title, "layer", label, names, columns, cells)


# -- checkpoints ---------------------------------------------------------------------------------


def _kept_layers(found: Checkpoint) -> tuple[int, list[int]]:
    """Return how many layers the dense model had, and which a checkpoint has of them.

    Its sidecar tells, if what it says can be.
    """
    stored = found.arch.layers
    removed = found.sidecar.results.get("removed_layers") if found.sidecar else None
    if isinstance(removed, list) and stored + len(removed) <= DEEPEST:
        kept = [i for i in range(stored + len(removed)) if i not in removed]
        if len(kept) == stored:
            return stored + len(removed), kept
    return stored, list(range(stored))


def _sizes_of(arch: Arch, templates: list[str]) -> dict[str, list[int]]:
    """Return how large matrices are in every layer, those of experts together; 0 without one."""
    sizes = {name: [0] * arch.layers for name in templates}
    for tensor in arch.tensors().values():
        if tensor.layer is not None and tensor.template in sizes:
            sizes[tensor.template][tensor.layer] += prod(tensor.shape)
    return sizes


def _shares(nonzero: list[int], whole: list[int]) -> list[float | None]:
    """Return the share of each layer's weights that is not zero, None where there are none."""
    return [n / size if size else None for n, size in zip(nonzero, whole, strict=True)]


def _of_checkpoint(model: _Model, dense: Arch | None) -> Grid:
    """Return the share of every matrix of every layer that is not zero."""
    found = Checkpoint(str(model.folder))
    layers, kept = _kept_layers(found)
    columns = [str(i) for i in range(layers)]
    templates = list(found.arch.block_linears())
    sizes, stayed = _sizes_of(dense or found.arch, templates), kept if dense else range(len(kept))
    whole = {name: [own[i] for i in stayed] for name, own in sizes.items()}
    counts = {name: [0] * found.arch.layers for name in templates}
    for name, tensor in found.arch.tensors().items():
        if tensor.layer is not None and tensor.template in counts:
            counts[tensor.template][tensor.layer] += int(found.tensor(name).count_nonzero())
    rows = [ALL, *(template.split(".")[-2] for template in templates)]
    of_all = [sum(layer) for layer in zip(*whole.values(), strict=True)]
    shares = [_shares([sum(layer) for layer in zip(*counts.values(), strict=True)], of_all)]
    shares += [_shares(counts[name], whole[name]) for name in templates]
    cells = [_layers(columns, kept, own) for own in shares]
    of = "the dense matrix that is left" if dense is not None else "the stored matrix not zero"
    return Grid(f"{model.name}: share of {of}", "layer", "", rows, columns, cells)
