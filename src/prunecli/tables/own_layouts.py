"""The layouts that are our own: every model with each of its measurements, and pairs of them."""

from collections.abc import Iterator
from pathlib import Path

from prunecli.errors import InputError
from prunecli.files import sidecar
from prunecli.files.sidecar import Sidecar
from prunecli.measuring.harness import is_accuracy
from prunecli.tables.collect import name_of
from prunecli.tables.metrics import dtype_of
from prunecli.tables.render import Cell, Column, Row, Table
from prunecli.tables.runs import OUTDATED, Pair, Runs

COLUMNS = (
    Column("model", "model", repeats=True),
    Column("method", "method"),
    Column("granularity", "granularity", detail=True),
    Column("ratio", "block ratio", ".4f"),
    Column("params", "parameters", detail=True),
    Column("active", "active", detail=True),
    Column("nonzero", "non-zero"),
    Column("tflops", "TFLOPs", ".5g", detail=True),
    Column("trained", "trained tokens", detail=True),
    Column("matched", "token-matched with", detail=True),
    Column("data", "data"),
    Column("tokens", "tokens", detail=True),
    Column("loss", "loss", ".4f"),
    Column("perplexity", "perplexity", ".6g"),
    Column("accuracy", "accuracy", ".2f"),
    Column("sd", "sd", ".2f", detail=True),
    Column("seconds", "seconds", ".1f", detail=True),
    Column("peak_mb", "peak MB", ".0f", detail=True),
    Column("metric", "metric", detail=True),
    Column("value", "value", ".6g", detail=True),
    Column("dtype", "computed in", detail=True),
)


PAIR_COLUMNS = (
    Column("pruned", "pruned", repeats=True),
    Column("scratch", "scratch", repeats=True),
    Column("matched", "matched", detail=True),
    Column("setting", "setting"),
    Column("method", "method", detail=True),
    Column("params", "parameters", detail=True),
    Column("nonzero", "non-zero", detail=True),
    Column("data", "data", detail=True),
    Column("pruned_loss", "loss pruned", ".4f"),
    Column("scratch_loss", "loss scratch", ".4f"),
    Column("difference", "scratch - pruned", ".4f"),
    Column("why", "why not matched"),
)


LAYOUTS = ("models", "pairs")


def build(runs: Runs, layout: str) -> Table:
    """Return one of LAYOUTS; raise InputError if nothing belongs into it."""
    rows, columns, what = (
        (_pair_rows(runs), PAIR_COLUMNS, "pair of a pruned and a scratch model of one size")
        if layout == "pairs"
        else (_model_rows(runs), COLUMNS, "model")
    )
    if not rows:
        raise InputError(f"no {what} among these sidecars")
    return Table(rows, columns)


# -- models --------------------------------------------------------------------------------------


def _model_rows(runs: Runs) -> list[Row]:
    """Return a row for every model and measurement, then for the models that were not measured."""
    models, partners = runs.models, _partners(runs)
    rows: list[Row] = []
    for path, record, key in models.evaluations():
        model = _model(runs, key, path, partners, record)
        rows += [model | one for one in (*_losses(record), *_task_metrics(record))]
    evaluated = {key for _, _, key in models.evaluations()}
    rows += [
        _model(runs, key, path, partners)
        for key, (path, _) in models.checkpoints.items()
        if key not in evaluated
    ]
    return list({repr(row): row for row in rows}.values())


def _partners(runs: Runs) -> dict[str, str]:
    """Return for every model the names of those that it is token-matched with."""
    partners: dict[str, list[str]] = {}
    for pair in runs.pairs:
        if pair.setting is not None:
            for one, other in ((pair.pruned, pair.scratch), (pair.scratch, pair.pruned)):
                partners.setdefault(one, []).append(runs.models.name(other))
    return {key: ", ".join(names) for key, names in partners.items()}


def _model(
    runs: Runs,
    key: str | None,
    path: Path,
    partners: dict[str, str],
    evaluation: Sidecar | None = None,
) -> Row:
    """Return what is recorded of a model: how it was made, and how an evaluation read it."""
    counts = evaluation.results if evaluation else {}
    row: Row = {
        "model": Cell(name_of(path)),
        "method": "dense",
        "ratio": 0.0,
        "dtype": dtype_of(evaluation) if evaluation else None,
    }
    if key is not None:
        path, record = runs.models.checkpoints[key]
        counts = {**counts, **record.results}
        error = runs.models.integrity_errors.get(key, "")
        if evaluation and evaluation.inputs[0].digest != record.outputs.get("digest"):
            error = error or OUTDATED
        row |= {"model": Cell(name_of(path), note=error), **_making(path, record)}
        row["matched"] = partners.get(key)
    flops = counts.get("flops")
    row["params"], row["tflops"] = counts.get("params"), None if flops is None else flops / 1e12
    row["active"] = counts.get("active_params")
    return row


def _making(path: Path, record: Sidecar) -> Row:
    results = record.results
    # an evaluation records what its model is, not what it took to make it
    whole = path.name == sidecar.FOLDER_SIDECAR
    return {
        "method": results.get("method") or record.made_by.command,
        "granularity": results.get("granularity"),
        "ratio": results.get("ratio"),
        "nonzero": results.get("nonzero"),
        "trained": sum(entry.count for entry in record.tokens.trained),
        "seconds": record.run.seconds if whole else None,
        "peak_mb": record.run.peak_bytes / 1e6 if whole else None,
    }


def _losses(record: Sidecar) -> Iterator[Row]:
    """Yield the loss and perplexity of every D."""
    for data in record.results.get("data", []):
        keys = ("tokens", "loss", "perplexity")
        yield {"data": data["source"], **{key: data.get(key) for key in keys}}


def _task_metrics(record: Sidecar) -> Iterator[Row]:
    """Yield every metric of every task; those of older evaluations have no noise of their own."""
    for task in record.results.get("tasks", []):
        sigmas = {task["metric"]: task["sigma"], **task.get("sigmas", {})}
        for metric, value in {task["metric"]: task["value"], **task.get("metrics", {})}.items():
            row: Row = {"data": task["name"], "metric": metric, "value": value}
            if is_accuracy(metric):
                sigma = sigmas.get(metric)
                row |= {"accuracy": 100 * value, "sd": None if sigma is None else 100 * sigma}
            yield row


# -- pairs ---------------------------------------------------------------------------------------


def _pair_rows(runs: Runs) -> list[Row]:
    """Return a row for every pair and every D that both were measured on, or one without D."""
    losses = _losses_by_tokens(runs)
    rows = []
    for pair in runs.pairs:
        ours, theirs = losses.get(pair.pruned, {}), losses.get(pair.scratch, {})
        for digest in sorted(ours.keys() & theirs.keys()) or [""]:
            rows.append(_pair_row(runs, pair, ours.get(digest), theirs.get(digest)))
    return rows


Loss = tuple[str, float, str]  # its D, its value, and the type that it was computed in


def _losses_by_tokens(runs: Runs) -> dict[str, dict[str, Loss]]:
    """Return the losses of every model by the digest of the tokens."""
    losses: dict[str, dict[str, Loss]] = {}
    for _, record, key in runs.models.evaluations():
        for data in record.results.get("data", []):
            if key is not None:
                loss = (data["source"], data["loss"], dtype_of(record))
                losses.setdefault(key, {})[data["digest"]] = loss
    return losses


def _pair_row(runs: Runs, pair: Pair, ours: Loss | None, theirs: Loss | None) -> Row:
    results = runs.models.checkpoints[pair.pruned][1].results
    source, loss, dtype = ours or (None, None, "")
    _, scratch_loss, scratch_dtype = theirs or (None, None, "")
    # a difference means something only where the comparison is fair
    fair = pair.setting is not None and dtype == scratch_dtype
    difference = None
    if fair and loss is not None and scratch_loss is not None:
        difference = scratch_loss - loss
    other = f"scratch was measured in {scratch_dtype}, pruned in {dtype}"
    return {
        "pruned": runs.models.name(pair.pruned),
        "scratch": runs.models.name(pair.scratch),
        "matched": "no" if pair.setting is None else "yes",
        "setting": pair.setting,
        "method": results.get("method"),
        "params": results.get("params"),
        "nonzero": results.get("nonzero"),
        "data": source,
        "pruned_loss": loss,
        "scratch_loss": scratch_loss,
        "difference": difference,
        "why": pair.why or (other if dtype != scratch_dtype else None),
    }
