"""What `prune` is asked for: checked by itself, then against a model, before anything runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prunecli.data.rows import source_path
from prunecli.data.tokenizer import IDS, OFFICIAL
from prunecli.errors import InputError, UsageError
from prunecli.files import sidecar
from prunecli.methods._base import Method, Setting, domains_of
from prunecli.model.checkpoint import Checkpoint, check_buildable
from prunecli.model.pattern import SparsityPattern
from prunecli.pruning import rotate
from prunecli.pruning.plan import plan_results, read_plan
from prunecli.pruning.sizes import Sizes, block_params, resolve_pattern, resolve_sizes
from prunecli.settings import Amount, Data

OTHER_SHAPE = "ask for other sizes, or remove layers instead"


STATS, SCORES, PLAN = "stats.safetensors", "scores.safetensors", "plan.json"


@dataclass(frozen=True)
class PruneRequest:
    """What `prune` was asked for, before anything is read."""

    method: Method | None
    options: dict[str, Any]
    amount: Amount
    data: Data
    stats: str | None
    scores: str | None
    plan: str | None
    plan_only: bool
    keep: str | None
    compat: bool
    given: Mapping[str, Any] = field(default_factory=dict)  # options, of which none was filled in

    @property
    def read(self) -> list[Path | None]:
        """Every file and folder that is read beside the model."""
        data = [source_path(name) for name in (self.data.source, *domains_of(self.options))]
        files = (self.stats, self.scores, self.plan, self.amount.arch)
        return data + [Path(path) for path in files if path]

    @property
    def kept(self) -> list[str]:
        """The files of the steps between that `keep` gets."""
        if self.keep is None or self.method is None:
            return []
        planned = not (self.plan_only or self.method.rotates)
        scored = self.scores is None and not self.method.learned
        if self.method.sequential and self.stats is None:
            # statistics of half-pruned layers are of no use elsewhere
            scored = False
        made = {
            STATS: scored and self.stats is None and bool(self.method.needs),
            SCORES: scored,
            PLAN: planned,
        }
        return [name for name, kept in made.items() if kept]

    @property
    def biased(self) -> bool:
        """Whether removed channels leave a bias."""
        return self.method is not None and self.method.biased(self.options)

    @property
    def structure(self) -> str | None:
        """The method's `--structure`, if it has one."""
        return self.options.get("structure")

    def check(self, out: str) -> None:
        """Raise UsageError for requests that make no sense together."""
        if self.method is None:
            if self.plan is None:
                raise UsageError("no method was given", "use --method, or --plan")
            if self.stats or self.scores:
                raise UsageError("a plan without a method reads no statistics", "add --method")
        if self.scores and (self.stats or self.plan):
            raise UsageError("--scores takes the place of --stats and --plan", "give one of them")
        if self.plan and self.amount != Amount():
            raise UsageError("--plan says already how much goes", "leave out the amount")
        if self.plan and self.keep:
            raise UsageError("with --plan there is nothing to --keep")
        if self.plan and self.compat:
            raise UsageError("--plan says already what goes, --compat has no part in it")
        if self.plan_only != out.endswith(".json"):
            raise UsageError(
                f"--plan-only writes a JSON file, OUT is '{out}'",
                "name it .json" if self.plan_only else "add --plan-only or name a folder",
            )
        if self.method is None:
            return
        name = self.method.name
        if self.method.learned and (self.stats or self.scores or self.plan):
            raise UsageError(f"'{name}' learns what stays: it reads no scores and no plan")
        if self.method.rotates and (self.plan or self.plan_only):
            raise UsageError(
                f"'{name}' turns the residual stream first, which no plan of indices tells",
                "use --keep and --scores",
            )
        if self.method.unit != "weights":
            return
        if self.scores or self.plan or self.plan_only or self.keep:
            raise UsageError(
                f"'{name}' sets weights to zero: it has no scores and no plan to read or keep"
            )
        if self.stats and not self.method.needs:
            raise UsageError(f"'{name}' reads no statistics", "leave out --stats")


def scored_with(path: str, method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the method options that the scores in `path` were made with; the given must agree."""
    if not Path(path).is_file():
        raise InputError(f"no such file: '{path}'", "make it with `prunecli score`")
    recorded = sidecar.read(path, ("scores",)).options
    if recorded["method"] != method.name:
        raise InputError(f"'{path}' has scores of '{recorded['method']}', not of '{method.name}'")
    options = {name: value for name, value in recorded["options"].items() if name != "compat"}
    for name, value in options.items():
        if given.get(name, value) != value:
            raise InputError(
                f"'{path}' was scored with --{name.replace('_', '-')} {value}, not {given[name]}",
                "score again, or leave the option out",
            )
    return options


def planned_with(path: str, method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the plan in `path` was made with, with which the given must agree.

    That of biases is free, and taken as given. Raises UsageError for options that had no part in
    the plan.
    """
    made, decided = read_plan(path)[1], {}
    if made is not None and made.options["method"] == method.name:
        decided = {k: v for k, v in made.options["options"].items() if k != "bias"}
    for name, value in given.items():
        if name != "bias" and (name not in decided or decided[name] != value):
            raise UsageError(
                f"--plan says already what goes, --{name.replace('_', '-')} {value} has no part "
                "in it",
                "leave it out",
            )
    return {**decided, **given}


@dataclass(frozen=True)
class PruneTarget:
    """A request checked against a model: what will be recorded, and what to expect."""

    options: dict[str, Any]
    granularity: str
    expected: dict[str, Any]
    bytes: int
    pattern: SparsityPattern | None = None
    sizes: Sizes | None = None


def prepare(request: PruneRequest, checkpoint: Checkpoint) -> PruneTarget:
    """Check a request against a model; raise UsageError or InputError for what cannot be done."""
    arch, method = checkpoint.arch, request.method
    size = sum(spec.bytes for spec in checkpoint.specs.values())
    options: dict[str, Any] = {
        "method": method.name if method else None,
        "options": request.options,
        "compat": "official" if request.compat else None,
    }
    if method is not None and method.unit == "weights":
        pattern = resolve_pattern(request.amount, arch)
        _refuse_idle(request, checkpoint, pattern=pattern)
        if method.check is not None:
            method.check(request.options, pattern)
        check_buildable(arch)
        options |= {"ratio": pattern.ratio, "sparsity": str(pattern)}
        expected = {"ratio": pattern.ratio, "params": arch.total_params, "sizes": arch.sizes}
        return PruneTarget(options, f"{method.granularity}, {pattern}", expected, size, pattern)
    granularity = method.granularity if method else "as planned"
    if request.plan is not None:
        plan, _ = read_plan(request.plan)
        plan.check(arch)
        child = plan.child(arch, request.biased)
        check_buildable(child, OTHER_SHAPE)
        return PruneTarget(options, granularity, plan_results(plan, arch, child), size)
    assert method is not None
    if method.rotates and arch.family.behind:
        raise InputError(
            f"'{method.name}' cannot serve {arch.family.name}: its norms behind sublayers pass no "
            "rotation",
            "take another method",
        )
    if method.rotates:
        arch = rotate.untied(arch)
    sizes = resolve_sizes(method, request.options, request.amount, arch)
    axes = ("layers", "hidden", "kv_heads", "ffn")
    cut = frozenset(axis for axis in axes if getattr(sizes, axis) < getattr(arch, axis))
    _refuse_idle(request, checkpoint, cut=cut, of_ratio=sizes.ratio is not None)
    options |= {"sizes": asdict(sizes)}
    # transformers must take the shape before anything is computed; of ragged plans the widest
    widest = sizes.widest(arch, request.structure)
    child = arch.child(
        layers=list(range(widest.layers)),
        hidden=widest.hidden,
        ffn=widest.ffn,
        kv_heads=widest.kv_heads,
        biased=request.biased,
    )
    check_buildable(child, OTHER_SHAPE)
    expected = {
        "ratio": 1 - block_params(sizes, arch) / arch.block_params,
        "params": child.total_params,
        "sizes": child.sizes,
        "container": child.config["model_type"],
    }
    return PruneTarget(options, granularity, expected, size, sizes=sizes)


def _refuse_idle(request: PruneRequest, checkpoint: Checkpoint, **known: Any) -> None:
    """Raise UsageError for options that change nothing beside the others, on this model."""
    assert request.method is not None
    stored = {checkpoint.specs[name].dtype for name in checkpoint.specs if ".layers." in name}
    rounded = request.method.sequential and request.stats is None and stored != {"F32"}
    beside = Setting(
        request.options, request.compat, group=checkpoint.arch.group, rounded=rounded, **known
    )
    request.method.refuse_idle(request.given, beside)


# how recipes that name a text turn it into tokens: the authors' codes call their tokenizers as for
# a prompt, then cut windows, so that few of them begin with BOS
OFFICIAL_TEXT = {"bos": OFFICIAL, "special_tokens": IDS}


def with_recipe(
    method: Method,
    recipe: str | None,
    data: Data,
    options: Mapping[str, Any],
    decided: bool = False,
    read: bool = True,
) -> tuple[Data, dict[str, Any]]:
    """Return data and options with a recipe's values wherever none were given.

    Where what goes is `decided`, of the options only that of biases is taken. Raises UsageError for
    a recipe that the method does not have, or that says nothing where no text is `read`.
    """
    if recipe is None:
        return data, dict(options)
    if recipe not in method.recipes:
        known = ", ".join(method.recipes) or "none"
        raise UsageError(f"'{method.name}' has no recipe '{recipe}'", f"it has: {known}")
    values = method.recipes[recipe]
    if "source" in values:
        values = {**OFFICIAL_TEXT, **values}
    default = asdict(Data())
    given = {
        name: value
        for name, value in asdict(data).items()
        if value != default[name] or name in data.asked
    }
    fields = {name: value for name, value in values.items() if name in default}
    settings = {
        name: value
        for name, value in values.items()
        if name not in default and (name == "bias" or not decided)
    }
    if not (read or settings):
        raise UsageError(
            f"--recipe {recipe} changes nothing: it says what text '{method.name}' reads, and none "
            "is read here",
            "leave it out",
        )
    return replace(data, **{**fields, **given}), {**settings, **options}
