"""Rules side by side on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from saefeat.artefacts.comparison import ComparedRule, Comparison
from saefeat.report.formats import rounded

Values = dict[str, Any]


def comparison_view(comparison: Comparison) -> Values:
    """What the page shows of a comparison.

    Returns:
        units: asked for per label; measured: on what, or None; pools: [{name, dictionaries: their
        number, rows: those of the rules with `per_label` (mean units) and `empty` (labels without
        units), strength: of steering or None, overlap: {names, rows: (name, IoU by rule)}}];
        left_out: (pool, method, reason, command).
    """
    pools = []
    for name, dictionaries in comparison["pools"].items():
        rows = [row for row in comparison["rows"] if row["pool"] == name]
        steered = [row["steering"]["strength"] for row in rows if row["steering"]]
        pools.append(
            {
                "name": name,
                "dictionaries": len(dictionaries),
                "rows": [_row(row) for row in rows],
                "strength": steered[0] if steered else None,
                "overlap": _overlap(comparison, name, [row["method"] for row in rows]),
            }
        )
    return {
        "units": comparison["units"],
        "labels": len(comparison["labels"]),
        "measured": comparison.get("measured"),
        "pools": pools,
        "left_out": [
            (each["pool"], each["method"], each["reason"], each["command"])
            for each in comparison["left_out"]
        ],
    }


def _row(row: ComparedRule) -> Values:
    counts = list(row["units"].values())
    steering, ablation = row["steering"], row["ablation"]
    return {
        **row,
        "per_label": rounded(sum(counts) / max(len(counts), 1)),
        "empty": sum(count == 0 for count in counts),
        "ablated": len(ablation["labels"]) if ablation else 0,
        "steered": len(steering["labels"]) if steering else 0,
    }


def _overlap(comparison: Comparison, pool: str, names: list[str]) -> Values:
    """The IoU of every two rules of a pool; None on the diagonal."""
    found: dict[tuple[str, str], float] = {}
    for pair in comparison["overlap"]:
        if pair["pool"] == pool:
            for ends in ((pair["method"], pair["other"]), (pair["other"], pair["method"])):
                found[ends] = pair["iou"]
    rows = [(one, [rounded(found.get((one, other))) for other in names]) for one in names]
    return {"names": names, "rows": rows}


def comparison_rows(comparison: Comparison) -> list[Values]:
    """Rows of `compare.csv`, one per pool and rule, with means over labels."""
    return [_flat(row) for row in comparison["rows"]]


def _flat(row: ComparedRule) -> Values:
    flat: Values = {name: row[name] for name in ("pool", "method", "parameters", "distinct")}
    flat["units"] = sum(row["units"].values())
    parts: Mapping[str, Any] = {
        "stability": row["stability"],
        **{f"f1_{length}": found for length, found in (row["identification"] or {}).items()},
        "ablation": row["ablation"],
        "steering": row["steering"],
    }
    for part, values in parts.items():
        for key, value in (values or {}).items():
            if key != "labels":
                flat[f"{part}_{key.removeprefix('f1_macro').removeprefix('_')}".rstrip("_")] = value
    return flat
