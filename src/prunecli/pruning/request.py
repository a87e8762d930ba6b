"""What `prune` is asked for: checked by itself, then against a model, before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prunecli.data.rows import source_path
from prunecli.errors import InputError, PruneError, UsageError
from prunecli.files import regular, sidecar, world
from prunecli.methods import registry
from prunecli.methods._base import Method, Setting, domains_of
from prunecli.model.arch import Arch
from prunecli.model.checkpoint import Checkpoint, check_buildable
from prunecli.model.pattern import SparsityPattern
from prunecli.pruning import rotate
from prunecli.pruning.plan import plan_results, read_plan
from prunecli.pruning.recipe import with_recipe
from prunecli.pruning.sizes import (
    BLOCK,
    MULTIPLE_AXES,
    Sizes,
    block_params,
    check_supported,
    divides,
    extremes,
    resolve_pattern,
    resolve_sizes,
)
from prunecli.record import Record
from prunecli.settings import Amount, Data, Output

OTHER_SHAPE = "ask for other sizes, or remove layers instead"
NOT_SKIPPED = (
    "{}: vLLM, SGLang, llama.cpp and others read such a model as a dense one, no faster "
    "(docs/running.md); structured methods are faster everywhere"
)
# what common runtimes do with FLAP's biases, by the model type that holds them (docs/running.md)
LOSE_BIASES = {
    "llama": "SGLang leaves out those of the FFN",
    "seed_oss": "llama.cpp and ONNX Runtime refuse them",
}
# files of the steps between, in the folder of --keep
STATS, SCORES, PLAN = "stats.safetensors", "scores.safetensors", "plan.json"


@dataclass(frozen=True)
class PruneRequest(Record):
    """What to prune, how, and by how much.

    Attributes:
        model: the folder IN, or `hf:org/name`.
        method: its name. Without one, `plan` is carried out.
        options: those of the method that are not to have their defaults.
        amount: how much to remove; a plan says so itself.
        data: the text that statistics are collected on, or masks are trained on.
        recipe: fills in what is not explicit of data and options.
        stats, scores, plan: files that replace the steps before them. A plan with a method takes
            the biases that compensate for it from statistics.
        plan_only: stop at the plan, and write it to OUT.json.
        keep: a folder for the files of the steps between: statistics, scores, plan.
        compat: follow the official implementation where it differs from the paper.
        keep_wrapper: write the multimodal model that IN is, its other parts copied, instead of its
            language model.
    """

    model: str
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    amount: Amount = Amount()
    data: Data = Data()
    recipe: str | None = None
    stats: str | None = None
    scores: str | None = None
    plan: str | None = None
    plan_only: bool = False
    keep: str | None = None
    compat: bool = False
    keep_wrapper: bool = False


@dataclass(frozen=True)
class ResolvedPrune:
    """A request with its method, and with data and options as the recipe and files complete them.

    `asked` is the request as it came: what it names is explicit.
    """

    asked: PruneRequest
    method: Method | None
    options: dict[str, Any]
    data: Data

    @property
    def read(self) -> list[Path | None]:
        """Every file and folder that is read beside the model."""
        asked = self.asked
        data = [source_path(name) for name in (self.data.source, *domains_of(self.options))]
        files = (asked.stats, asked.scores, asked.plan, asked.amount.arch)
        return data + [Path(path) for path in files if path]

    @property
    def kept(self) -> list[str]:
        """The files of the steps between that `keep` gets."""
        asked, method = self.asked, self.method
        if asked.keep is None or method is None:
            return []
        scored = asked.scores is None and not method.trains_masks
        if method.sequential and asked.stats is None:
            # statistics of half-pruned layers are of no use elsewhere
            scored = False
        made = {
            STATS: scored and asked.stats is None and bool(method.needs),
            SCORES: scored,
            PLAN: not (asked.plan_only or method.rotates),
        }
        return [name for name, kept in made.items() if kept]

    @property
    def trains_masks(self) -> bool:
        """Whether masks are trained, instead of scores computed."""
        return self.method is not None and self.method.trains_masks

    @property
    def reads_text(self) -> bool:
        """Whether the model runs on DATA before anything is pruned."""
        asked, method = self.asked, self.method
        if method is None or not method.needs or asked.stats or asked.scores:
            return False
        return asked.plan is None or self.biased

    @property
    def biased(self) -> bool:
        """Whether removed channels leave a bias."""
        return self.method is not None and self.method.biased(self.options)

    @property
    def structure(self) -> str | None:
        """The method's `--structure`, if it has one."""
        return self.options.get("structure")


def resolve(request: PruneRequest, output: Output) -> ResolvedPrune:
    """Return a request with its method and all options; explicit > of a file > of the recipe.

    Raises UsageError for what makes no sense together, and InputError for files that cannot be
    read, or were made with other options.
    """
    method, options, data = None, dict(request.options), request.data
    if request.method is not None:
        method = registry.get(request.method)
        if request.plan is not None:
            options = _with_those_of_plan(request.plan, method, options)
        reads_text = not (request.stats or request.scores)
        if request.plan is not None:
            reads_text = reads_text and method.biased({"bias": "keep", **options})
        data, options = with_recipe(
            method, request.recipe, data, options,
            from_plan=request.plan is not None, reads_text=reads_text,
        )  # fmt: skip
        if request.scores is not None:
            options = {**_those_of_scores(request.scores, method, options), **options}
        options = method.resolve(options)
    elif options or request.recipe:
        raise UsageError("method options and recipes need a --method")
    pruning = ResolvedPrune(request, method, options, data)
    _check(pruning, output)
    if output.restart and not (pruning.trains_masks or pruning.reads_text):
        raise UsageError("--restart: a run that reads no text keeps nothing to resume", "remove it")
    if world.size() > 1:
        _check_divided(pruning)
    return pruning


def _check_divided(pruning: ResolvedPrune) -> None:
    """Raise UsageError for what several processes cannot do together."""
    if not (pruning.trains_masks or pruning.reads_text):
        raise UsageError(
            "several processes divide the rows of DATA, and this run reads none",
            "run it without torchrun",
        )
    if {STATS, SCORES} & {*pruning.kept}:
        raise UsageError(
            "--keep writes statistics and scores in one process",
            "run it without torchrun, or make statistics with `prunecli calibrate`",
        )


def _check(pruning: ResolvedPrune, output: Output) -> None:
    """Raise UsageError for requests that make no sense together."""
    asked, method = pruning.asked, pruning.method
    if method is None:
        if asked.plan is None:
            raise UsageError("no method was given", "use --method, or --plan")
        if asked.stats or asked.scores:
            raise UsageError("a plan without a method reads no statistics", "add --method")
    if asked.scores and (asked.stats or asked.plan):
        raise UsageError("--scores takes the place of --stats and --plan", "give one of them")
    if asked.plan and asked.amount != Amount():
        raise UsageError("--plan says already how much is removed", "remove the amount")
    if asked.plan and asked.keep:
        raise UsageError("with --plan there is nothing to --keep")
    if asked.plan and asked.compat:
        raise UsageError("--compat cannot be combined with --plan", "remove it")
    if asked.plan_only != output.path.endswith(".json"):
        raise UsageError(
            f"--plan-only writes a JSON file, OUT is '{output.path}'",
            "name it .json" if asked.plan_only else "add --plan-only or name a folder",
        )
    if method is not None:
        _check_method(asked, method)


def _check_method(asked: PruneRequest, method: Method) -> None:
    """Raise UsageError for what a method has no use for."""
    name = method.name
    if method.trains_masks and (asked.stats or asked.scores or asked.plan):
        raise UsageError(f"'{name}' trains its masks: it reads no scores and no plan")
    if method.rotates and (asked.plan or asked.plan_only):
        raise UsageError(
            f"'{name}' rotates the residual stream, which kept indices cannot express",
            "use --keep and --scores",
        )
    if method.unit != "weights":
        return
    if asked.scores or asked.plan or asked.plan_only or asked.keep:
        raise UsageError(
            f"'{name}' sets weights to zero: it has no scores and no plan to read or keep"
        )
    if asked.stats and not method.needs:
        raise UsageError(f"'{name}' reads no statistics", "remove --stats")


class _Choices(sidecar.Part):
    method: str | None
    options: dict[str, Any]


def _those_of_scores(path: str, method: Method, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the scores in `path` were made with; explicit ones must agree."""
    if not regular.is_file(path):
        raise InputError(f"no such file: '{path}'", "make it with `prunecli score`")
    recorded = sidecar.part(path, sidecar.read(path, ("scores",)).options, _Choices)
    if recorded.method != method.name:
        raise InputError(f"'{path}' has scores of '{recorded.method}', not of '{method.name}'")
    options = {name: value for name, value in recorded.options.items() if name != "compat"}
    for name, value in options.items():
        if explicit.get(name, value) != value:
            raise InputError(
                f"'{path}' was scored with --{name.replace('_', '-')} {value}, not "
                f"{explicit[name]}",
                "score again, or remove the option",
            )
    return options


def _with_those_of_plan(path: str, method: Method, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that the plan in `path` was made with, and the explicit ones.

    They must agree, but for that of biases, which is free. Raises UsageError for options that had
    no part in the plan.
    """
    record, recorded = read_plan(path)[1], {}
    made = None if record is None else sidecar.part(path, record.options, _Choices)
    if made is not None and made.method == method.name:
        recorded = {k: v for k, v in made.options.items() if k != "bias"}
    for name, value in explicit.items():
        if name != "bias" and (name not in recorded or recorded[name] != value):
            raise UsageError(
                f"--{name.replace('_', '-')} {value} cannot be combined with --plan", "remove it"
            )
    return {**recorded, **explicit}


@dataclass(frozen=True)
class PruneTarget:
    """What a request means for one model.

    Attributes:
        options: what decides the result, as it will be recorded.
        granularity: what is removed, in words.
        expected: what a dry run returns.
        num_bytes: how much OUT takes, at most.
        pattern: of zeros; or
        sizes: of the pruned model; neither where a plan is carried out.
        told: what a user should know of what is made, lines.
    """

    options: dict[str, Any]
    granularity: str
    expected: dict[str, Any]
    num_bytes: int
    pattern: SparsityPattern | None = None
    sizes: Sizes | None = None
    told: tuple[str, ...] = ()


def resolve_target(pruning: ResolvedPrune, dense: Checkpoint) -> PruneTarget:
    """Check a request against a model; raise UsageError or InputError for what cannot be done."""
    method = pruning.method
    options: dict[str, Any] = {
        "method": method.name if method else None,
        "options": pruning.options,
        "compat": "official" if pruning.asked.compat else None,
        **({"wrapper": _wrapper_kind(pruning, dense)} if pruning.asked.keep_wrapper else {}),
    }
    if method is not None and method.unit == "weights":
        return _zeros_target(pruning, method, dense, options)
    if pruning.asked.plan is not None:
        return _plan_target(pruning, pruning.asked.plan, dense, options)
    assert method is not None, "without a plan there is a method"
    return _sizes_target(pruning, method, dense, options)


def _wrapper_kind(pruning: ResolvedPrune, dense: Checkpoint) -> str:
    """Return the kind of multimodal model to keep; raise UsageError where there is none to keep."""
    flag, leave = "--keep-wrapper", "leave it out"
    if dense.part_of is None:
        raise UsageError(f"{flag}: '{dense.folder.name}' is no multimodal model", leave)
    if pruning.asked.plan_only:
        raise UsageError(f"{flag} changes nothing of a plan", leave)
    if pruning.method is not None and pruning.method.rotates:
        raise UsageError(
            f"{flag}: '{pruning.method.name}' rotates the hidden channels, which other parts of "
            f"'{dense.part_of}' write to",
            "use another method",
        )
    return dense.part_of


def _check_wrapper(pruning: ResolvedPrune, dense: Checkpoint, shape: Arch) -> None:
    """Raise UsageError for a hidden size that other parts do not fit, where they are kept."""
    wrapper = dense.wrapper() if pruning.asked.keep_wrapper else None
    if wrapper is None:
        return
    if shape.hidden != dense.arch.hidden:
        raise UsageError(
            f"--keep-wrapper: hidden would be {shape.hidden}, and other parts of '{wrapper.kind}' "
            f"write {dense.arch.hidden} channels",
            f"keep them (--hidden {dense.arch.hidden}), or prune layers, heads or FFN channels",
        )
    wrapper.check(shape)


def _zeros_target(
    pruning: ResolvedPrune, method: Method, dense: Checkpoint, options: dict[str, Any]
) -> PruneTarget:
    """Return the pattern of zeros that an amount means for a model."""
    arch = dense.arch
    pattern = resolve_pattern(pruning.asked.amount, arch)
    _refuse_idle(pruning, dense, pattern=pattern)
    if method.check is not None:
        method.check(pruning.options, pattern)
    check_buildable(arch)
    _check_wrapper(pruning, dense, arch)
    recorded = {**options, "ratio": pattern.ratio, "sparsity": str(pattern)}
    expected = {"ratio": pattern.ratio, "params": arch.total_params, "sizes": arch.sizes}
    granularity = f"{method.granularity}, {pattern}"
    told = (NOT_SKIPPED.format(pattern),) if pattern.group else ()
    return PruneTarget(recorded, granularity, expected, dense.num_bytes, pattern, told=told)


def _plan_target(
    pruning: ResolvedPrune, path: str, dense: Checkpoint, options: dict[str, Any]
) -> PruneTarget:
    """Return what a plan means for a model."""
    plan, _ = read_plan(path)
    plan.check(dense.arch)
    shape = plan.child(dense.arch, pruning.biased)
    _check_wrapper(pruning, dense, shape)
    check_buildable(shape, OTHER_SHAPE)
    expected = plan_results(plan, dense.arch, shape)
    granularity = pruning.method.granularity if pruning.method else "as planned"
    told = _about_biases(pruning, shape)
    return PruneTarget(options, granularity, expected, dense.num_bytes, told=told)


def _sizes_target(
    pruning: ResolvedPrune, method: Method, dense: Checkpoint, options: dict[str, Any]
) -> PruneTarget:
    """Return the sizes that an amount means for a model."""
    arch = dense.arch
    check_supported(method, arch)
    if method.rotates:
        arch = rotate.untied(arch)
    sizes = resolve_sizes(method, pruning.options, pruning.asked.amount, arch)
    axes = ("layers", "hidden", "kv_heads", "ffn")
    cut = frozenset(axis for axis in axes if getattr(sizes, axis) < getattr(arch, axis))
    cut |= {"experts"} if sizes.experts else set()
    _refuse_idle(pruning, dense, cut=cut, of_ratio=sizes.ratio is not None)
    shape = _widest_shape(pruning, sizes, arch)
    _check_wrapper(pruning, dense, shape)
    check_buildable(shape, OTHER_SHAPE)
    expected = {
        **_left(sizes, shape, arch),
        "sizes": shape.sizes,
        "container": shape.config["model_type"],
        **({} if sizes.multiple is None else {"multiple": sizes.multiple}),
    }
    recorded = {**options, "sizes": sizes.recorded()}
    return PruneTarget(
        recorded, method.granularity, expected, dense.num_bytes, sizes=sizes,
        told=(
            *_about_layers(expected.get("range")),
            *_about_sizes(pruning, method, sizes, arch),
            *_about_biases(pruning, shape),
        ),
    )  # fmt: skip


def _left(sizes: Sizes, shape: Arch, arch: Arch) -> dict[str, Any]:
    """Return the ratio and the parameters that a dry run tells.

    Which layers go is not known before scores are: where they are of unequal sizes, these are of
    the largest model that can be left, and `range` has those of the largest and of the smallest.
    """
    if sizes.layers == arch.layers or len({arch.layer_params(i) for i in arch.sorts}) == 1:
        ratio = 1 - block_params(sizes, arch) / arch.block_params
        return {"ratio": ratio, "params": shape.total_params}
    ends = extremes(sizes, arch)
    ratios = [1 - end.block_params / arch.block_params for end in ends]
    params = [end.total_params for end in ends]
    return {
        "ratio": ratios[0],
        "params": params[0],
        "range": {"ratio": ratios, "params": params},
    }


def _about_layers(ends: Mapping[str, list[float]] | None) -> tuple[str, ...]:
    """Return what a ratio can become, in a line or none."""
    if ends is None:
        return ()
    least, most = ends["ratio"]
    return (f"layers are of unequal sizes: the ratio will be {least:.4f} to {most:.4f}",)


def _about_biases(pruning: ResolvedPrune, shape: Arch) -> tuple[str, ...]:
    """Return which common runtimes do not read the biases that a method adds, in a line or none."""
    lost = LOSE_BIASES.get(shape.config["model_type"]) if pruning.biased else None
    if lost is None:
        return ()
    made = f"{shape.family.classes}ForCausalLM"
    return (f"{made} holds the biases: {lost} (docs/running.md); --bias drop leaves them out",)


def _about_sizes(
    pruning: ResolvedPrune, method: Method, sizes: Sizes, arch: Arch
) -> tuple[str, ...]:
    """Return what a user should know of sizes that were made here, in a line or none.

    They were taken to a multiple; or quantized formats cannot take them, where those of the model
    can be taken and a multiple would do.
    """

    def ratio(one: Sizes) -> str:
        return f"ratio {1 - block_params(one, arch) / arch.block_params:.4f}"

    if sizes.least > 1:
        made = f"hidden {sizes.hidden}, FFN {sizes.ffn}, {ratio(sizes)}"
        return (f"sizes are multiples of {sizes.multiple}: {made} (--multiple 1: exact sizes)",)
    if sizes.multiple is None or not divides(BLOCK, arch):
        return ()
    shape = _widest_shape(pruning, sizes, arch)
    matrices = [one for one in shape.tensors().values() if len(one.shape) == 2]
    odd = [one for one in matrices if one.axes[-1] in MULTIPLE_AXES and one.shape[-1] % BLOCK]
    if not odd:
        return ()
    try:
        amount = replace(pruning.asked.amount, multiple=BLOCK)
        other = resolve_sizes(method, pruning.options, amount, arch)
    except PruneError:
        return ()
    return (
        f"{len(odd)} of {len(matrices)} matrices have rows that llama.cpp's Q8_0 cannot take, "
        f"hidden {sizes.hidden}, FFN {sizes.ffn}: use --multiple {BLOCK} ({ratio(other)} instead "
        f"of {ratio(sizes).removeprefix('ratio ')})",
    )


def _widest_shape(pruning: ResolvedPrune, sizes: Sizes, arch: Arch) -> Arch:
    """Return the shape that transformers must take before anything is computed.

    Of plans with layers of unequal sizes it is that of the widest.
    """
    widest = sizes.widest(arch, pruning.structure)
    return arch.child(
        layers=arch.first_of(range(arch.layers), widest.layers),
        hidden=widest.hidden,
        ffn=widest.ffn,
        kv_heads=widest.kv_heads,
        experts=widest.experts or None,
        biased=pruning.biased,
    )


def _refuse_idle(pruning: ResolvedPrune, dense: Checkpoint, **known: Any) -> None:
    """Raise UsageError for options that change nothing beside the others, on this model."""
    asked, method = pruning.asked, pruning.method
    assert method is not None
    stored = {dense.specs[name].dtype for name in dense.specs if ".layers." in name}
    rounded = method.sequential and asked.stats is None and stored != {"F32"}
    beside = Setting(
        pruning.options, asked.compat, group=dense.arch.group, rounded=rounded, **known
    )
    method.refuse_idle(asked.options, beside)
