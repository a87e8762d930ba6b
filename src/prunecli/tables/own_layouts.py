"""The layouts that are our own: every model with each of its measurements, and pairs of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunecli.errors import InputError
from prunecli.files import sidecar
from prunecli.files.sidecar import Sidecar
from prunecli.measuring.harness import is_accuracy
from prunecli.tables.collect import STALE, Models, dtype_of, name_of
from prunecli.tables.render import Cell, Column, Row, Table

COLUMNS = (
    Column("model", "model"),
    Column("method", "method"),
    Column("granularity", "granularity"),
    Column("ratio", "block ratio", ".4f"),
    Column("params", "parameters"),
    Column("nonzero", "non-zero"),
    Column("tflops", "TFLOPs", ".5g"),
    Column("trained", "trained tokens"),
    Column("matched", "token-matched with"),
    Column("data", "data"),
    Column("tokens", "tokens"),
    Column("loss", "loss", ".4f"),
    Column("perplexity", "perplexity", ".6g"),
    Column("accuracy", "accuracy", ".2f"),
    Column("sd", "sd", ".2f"),
    Column("seconds", "seconds", ".1f"),
    Column("peak_mb", "peak MB", ".0f"),
    Column("metric", "metric"),
    Column("value", "value", ".6g"),
    Column("dtype", "computed in"),
)


PAIR_COLUMNS = (
    Column("pruned", "pruned"),
    Column("scratch", "scratch"),
    Column("matched", "matched"),
    Column("setting", "setting"),
    Column("method", "method"),
    Column("params", "parameters"),
    Column("nonzero", "non-zero"),
    Column("data", "data"),
    Column("pruned_loss", "loss pruned", ".4f"),
    Column("scratch_loss", "loss scratch", ".4f"),
    Column("difference", "scratch - pruned", ".4f"),
    Column("why", "why not"),
)


LAYOUTS = ("models", "pairs")


def build(models: Models, layout: str) -> Table:
    """Return one of LAYOUTS; raise InputError if nothing belongs into it."""
    rows = _pairs(models) if layout == "pairs" else _rows(models)
    if not rows:
        missing = (
            "pair of a pruned and a scratch model of one size" if layout == "pairs" else "model"
        )
        raise InputError(f"no {missing} among these sidecars")
    return Table(rows, PAIR_COLUMNS if layout == "pairs" else COLUMNS)


def _rows(models: Models) -> list[Row]:
    partners = _partners(models)
    rows = [
        _row(models, path, key, record, measured, partners)
        for path, record, key in models.evaluations()
        for measured in (*record.results["data"], *_figures(record))
    ]
    evaluated = {key for _, _, key in models.evaluations()}
    rows += [
        _row(models, path, key, None, {}, partners)
        for key, (path, _) in models.made.items()
        if key not in evaluated
    ]
    return list({repr(row): row for row in rows}.values())


def _figures(record: Sidecar) -> Iterator[dict[str, Any]]:
    """Yield every metric of every task; those of older evaluations have no noise of their own."""
    for task in record.results.get("tasks", []):
        sigmas = {task["metric"]: task["sigma"], **task.get("sigmas", {})}
        for metric, value in {task["metric"]: task["value"], **task.get("metrics", {})}.items():
            sigma = sigmas.get(metric)
            told: dict[str, Any] = {"name": task["name"], "metric": metric, "value": value}
            if is_accuracy(metric):
                told |= {"accuracy": 100 * value, "sd": None if sigma is None else 100 * sigma}
            yield told


def _partners(models: Models) -> dict[str, list[str]]:
    """Return for every model the names of those that it is token-matched with."""
    found: dict[str, list[str]] = {}
    for pair in models.twins:
        if pair.setting is not None:
            for one, other in ((pair.pruned, pair.scratch), (pair.scratch, pair.pruned)):
                found.setdefault(one, []).append(name_of(models.made[other][0]))
    return found


def _pairs(models: Models) -> list[Row]:
    losses: dict[str, dict[str, tuple[str, float, str]]] = {}
    for _, record, key in models.evaluations():
        for measured in record.results["data"]:
            if key is not None:
                found = (measured["source"], measured["loss"], dtype_of(record))
                losses.setdefault(key, {})[measured["digest"]] = found
    rows: list[Row] = []
    for pair in models.twins:
        ours, theirs = losses.get(pair.pruned, {}), losses.get(pair.scratch, {})
        path, record = models.made[pair.pruned]
        results = record.results
        for digest in sorted(ours.keys() & theirs.keys()) or [""]:
            source, loss, dtype = ours.get(digest, (None, None, ""))
            _, other, their = theirs.get(digest, (None, None, ""))
            fair = pair.setting is not None and dtype == their
            unlike = f"scratch was measured in {their}, pruned in {dtype}" if dtype != their else ""
            rows.append(
                {
                    "pruned": name_of(path),
                    "scratch": name_of(models.made[pair.scratch][0]),
                    "matched": "no" if pair.setting is None else "yes",
                    "setting": pair.setting,
                    "method": results.get("method"),
                    "params": results.get("params"),
                    "nonzero": results.get("nonzero"),
                    "data": source,
                    "pruned_loss": loss,
                    "scratch_loss": other,
                    # a difference means something only where the comparison is fair
                    "difference": other - loss
                    if fair and loss is not None and other is not None
                    else None,
                    "why": pair.why or unlike or None,
                }
            )
    return rows


def _row(
    models: Models,
    path: Path,
    key: str | None,
    evaluation: Sidecar | None,
    measured: dict[str, Any],
    partners: dict[str, list[str]],
) -> Row:
    """Return one row: a model's making beside one measurement of it."""
    where, made = models.made[key] if key else (path, None)
    whole = where.name == sidecar.FOLDER_SIDECAR
    wrong = models.wrong.get(key, "") if key else ""
    if made and evaluation and evaluation.inputs[0].digest != made.outputs.get("digest"):
        wrong = wrong or STALE
    results = made.results if made else {}
    known = {**(evaluation.results if evaluation else {}), **results}
    nonzero = results.get("nonzero")
    flops = known.get("flops")
    return {
        "model": Cell(name_of(where), note=wrong),
        "method": results.get("method") or (made.made_by.command if made else "dense"),
        "granularity": results.get("granularity"),
        "ratio": results.get("ratio", None if made else 0.0),
        "params": known.get("params"),
        "nonzero": nonzero,
        "tflops": None if flops is None else flops / 1e12,
        "trained": sum(entry.count for entry in made.tokens.trained) if made else None,
        "matched": ", ".join(partners.get(made.id, [])) or None if made else None,
        "data": measured.get("source", measured.get("name")),
        "tokens": measured.get("tokens"),
        "loss": measured.get("loss"),
        "perplexity": measured.get("perplexity"),
        "accuracy": measured.get("accuracy"),
        "sd": measured.get("sd"),
        # an evaluation tells what its model is, not what it took to make it
        "seconds": made.run.seconds if made and whole else None,
        "peak_mb": made.run.peak_bytes / 1e6 if made and whole else None,
        "metric": measured.get("metric"),
        "value": measured.get("value"),
        "dtype": dtype_of(evaluation) if evaluation else None,
    }
