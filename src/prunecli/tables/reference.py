"""The paper's own tables as entries (package data), its misprints marked."""

import csv
import json
from decimal import Decimal
from functools import cache
from importlib import resources
from statistics import fmean
from typing import Any

from prunecli.measuring.costs import count_costs
from prunecli.model.arch import FLOPS_TOKENS, Arch
from prunecli.pruning import grid as shapes_of
from prunecli.tables.entries import BASE, PRUNED, SUITE, TABLES, Metric, ModelRow
from prunecli.tables.render import Column, Table

RUN = ("method", "ratio", "initialization", "train_tokens_b")
ROUNDING = 0.1  # half a unit of each of the eight columns, and half a unit of the mean itself


@cache
def read(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of one of the paper's files."""
    text = (resources.files(__package__) / "paper" / f"{name}.csv").read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def entries(name: str) -> list[ModelRow]:
    """Return one of the paper's tables, each row with what is wrong with it."""
    return [_entry(row) for row in read(name)]


def _entry(row: dict[str, str]) -> ModelRow:
    """Return a row of token-scaling, equal-total, ratio-ablation or pruning-only."""
    deviations = read("noise")[0]
    metrics = {
        key: Metric(
            Decimal(text),
            sd=float(deviations[key]) if key in deviations else None,
            note=_misprint(row, key),
        )
        for key, text in row.items()
        if key not in (*RUN, "parent") and text
    }
    parent = row.get("parent") or row.get("initialization", "").partition("-")[2]
    dense = row["method"] == BASE
    return ModelRow(
        name=f"{row['method']} {row.get('ratio', '')}".strip(),
        method=row["method"],
        ratio=Decimal(row["ratio"]) if "ratio" in row else None,
        initialization=row.get("initialization") or (BASE if dense else f"{PRUNED}-{parent}"),
        tokens=Decimal(row["train_tokens_b"]) if "train_tokens_b" in row else None,
        before=Decimal(parent[1:]) if parent[1:].isdigit() else None,
        metrics=metrics,
        source="paper",
        parent=parent,
    )


def _misprint(row: dict[str, str], key: str) -> str:
    if key == "average":
        mean = fmean(float(row[task]) for task in SUITE)
        if abs(mean - float(row[key])) > ROUNDING:
            return f"printed {row[key]}, but its eight columns have the mean {mean:.2f}"
        return ""
    others = _elsewhere().get((_run(row), key), {})
    if len(others) < 2:
        return ""
    where = ", ".join(f"{value} in {table}" for value, table in others.items())
    return f"printed differently: {where}"


def _run(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row.get(k, "") for k in RUN)


@cache
def _elsewhere() -> dict[tuple[tuple[str, ...], str], dict[str, str]]:
    """Return for every run and column its published values, each with the table that has it."""
    tables = {
        "Tables 12-15": "token-scaling",
        "Table 11": "ratio-ablation",
        "Table 16": "equal-total",
    }
    tables_by_value: dict[tuple[tuple[str, ...], str], dict[Decimal, list[str]]] = {}
    for table, name in tables.items():
        for row in read(name):
            for key, text in row.items():
                if key not in RUN:
                    values = tables_by_value.setdefault((_run(row), key), {})
                    values.setdefault(Decimal(text), []).append(table)
    return {
        cell: {str(value): " and ".join(names) for value, names in values.items()}
        for cell, values in tables_by_value.items()
    }


def inconsistencies() -> list[str]:
    """Return what is wrong in the paper's tables, one line each."""
    lines: dict[str, None] = {}
    for name in ("token-scaling", "ratio-ablation", "equal-total"):
        for entry in entries(name):
            for key, metric in entry.metrics.items():
                if metric.note:
                    run = f"{entry.name} {entry.initialization} {entry.tokens}B"
                    lines[f"{run}, {key}: {metric.note}"] = None
    for entry in [*shapes(), *candidates()]:
        lines |= {
            f"{entry.name}, {key}: {note}": None for key, note in entry.shape["notes"].items()
        }
    return list(lines)


def parent() -> Arch:
    """Return the shape of the paper's parent."""
    text = (resources.files(__package__) / "paper" / "parent.json").read_text("utf-8")
    return Arch(json.loads(text))


def shapes() -> list[ModelRow]:
    """Return the models of Tables 1 and 9: published and computed parameters and FLOPs."""
    return [_shape(row) for row in read("shapes")]


def candidates(table: str = "") -> list[ModelRow]:
    """Return the candidates of Tables 5-7, or of one of them."""
    return [_shape(row) for row in read("candidates") if table in ("", row["table"])]


# parameters that the candidates of Tables 5-7 had to stay within: what reproduces them best, which
# for Table 5 are not the sizes that it prints; half of the block linears where there is none
BUDGETS = {"0.5": 4_540_600_320, "0.625": 3.1e9, "0.75": 2.1e9, "0.813": 1.6e9}
NAMES, DETAILS = ("table", "method", "ratio"), ("kv_heads", "ffn_rule")
SIZES = ("hidden", "heads", "kv_heads", "ffn")
GRIDS = {table: axes for axes, table in TABLES.items()}


def searched() -> Table:
    """Return the candidates of Tables 5-7 with exact counts, beside the FFN that the rule gives."""
    rows = []
    for entry in candidates():
        shape = entry.shape
        own = _grid(shape["table"], str(entry.ratio))
        rows.append(
            {
                "table": shape["table"],
                "method": entry.method,
                "ratio": str(entry.ratio),
                **{key: shape[key] for key in SIZES},
                "ffn_rule": own.get((shape["hidden"], shape["heads"])),
                "params": shape["params"],
                "flops": shape["flops"],
                "selected": shape["selected"],
            }
        )
    plain = {
        key: Column(key, key.replace("_", " "), repeats=key in NAMES, detail=key in DETAILS)
        for key in rows[0]
    }
    plain["flops"] = Column("flops", "TFLOPs", ".4g", unit=1e12)
    return Table(rows, tuple(plain.values()), "Candidate architectures of the paper's Tables 5-7")


@cache
def _grid(table: str, ratio: str) -> dict[tuple[int, int], int]:
    """Return the FFN that the rule gives to every hidden size and number of heads of a table."""
    dense = parent()
    within = shapes_of.budget(dense, BUDGETS[ratio], None, None)
    grid = shapes_of.candidates(GRIDS[table], dense, within, shapes_of.size_multiple(dense))
    return {(shape.hidden, shape.heads): shape.ffn for shape in grid.shapes}


def _shape(row: dict[str, str]) -> ModelRow:
    dense = parent()
    config = {**dense.config, "hidden_size": int(row["hidden"])}
    config |= {"intermediate_size": int(row["ffn"]), "num_attention_heads": int(row["heads"])}
    config |= {"num_key_value_heads": int(row["kv_heads"])}
    config["num_hidden_layers"] = int(row.get("layers") or dense.layers)
    arch, density = Arch(config), float(row.get("density", 1))
    costs = count_costs(arch, density, FLOPS_TOKENS)
    by_rule = count_costs(arch, density, FLOPS_TOKENS, official=True)
    published = Decimal(row["params_printed_b"])
    tflops = Decimal(row["tflops_printed"]) if "tflops_printed" in row else None
    notes = {}
    for key, value, exact in (
        ("params_b", published, costs["nonzero"] / 1e9),
        ("tflops", tflops, costs["flops"] / 1e12),
    ):
        if value is not None and abs(float(value) - exact) > 0.05:
            notes[key] = f"printed {value}, its shape gives {exact:.3f}"
    sizes: dict[str, Any] = {a: arch.sizes[a] for a in ("layers", "hidden", "heads", "kv_heads")}
    return ModelRow(
        name=f"{row['method']} {row['ratio']}",
        method=row["method"],
        ratio=Decimal(row["ratio"]),
        initialization=BASE if row["method"] == BASE else PRUNED,
        shape={
            **sizes,
            "ffn": arch.ffn,
            **{name: costs[name] for name in ("params", "nonzero", "flops")},
            "flops_official": by_rule["flops"],
            "params_b": published,
            "tflops": tflops,
            "selected": row.get("selected", ""),
            "table": row.get("table", ""),
            "notes": notes,
        },
        source="paper",
    )
