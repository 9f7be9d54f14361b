"""How far sets of units overlap: between labels, between rules, and within groups of labels.

Two sets of units have an overlap coefficient (units in both by those of the smaller set) and an
intersection over union (IoU, Jaccard). Beside each stands what is expected of random sets that have
as many units in each dictionary as the two sets have.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.stats import binom

from saefeat.io import UserError, write_bytes
from saefeat.labels.typology import groupings
from saefeat.partition import layer_rows
from saefeat.selection import Selection
from saefeat.sets import dictionary_positions, label_positions, same_model

PERMUTATIONS = 9_999
_FEW = 32  # units of a set
_AT_ONCE = 2**23  # values in memory
# fmt: off
_PAIR = ("size", "other_size", "both", "either", "overlap", "iou", "expected_both",
         "expected_overlap", "expected_iou")
FIELDS: dict[str, tuple[str, ...]] = {
    "labels": ("selection", "label", "other", *_PAIR),
    "rules": ("selection", "other", "label", *_PAIR),
    "layers": ("selection", "dictionary", "site", "layer", "width", "stage", "kind", "of", "units",
               "share", "expected_share"),
    "typology": ("selection", "grouping", "labels", "groups", "pairs_within", "pairs_across",
                 "iou_within", "iou_across", "expected_within", "expected_across", "p"),
}
# fmt: on


def compare_sets(
    sizes: np.ndarray, other_sizes: np.ndarray, both: np.ndarray, widths: np.ndarray
) -> dict[str, np.ndarray]:
    """Overlaps of pairs of sets, and their expectations.

    Random sets with a_d and b_d of the w_d units of dictionary d have on average
    m = sum of a_d b_d / w_d units in both, with the variance v of hypergeometric numbers. The
    coefficient is linear in that number, so m gives its expectation exactly. The expectation of the
    IoU, f(x) = x / (a + b - x), is taken to the second order: f(m) + v f''(m) / 2, or, where the
    smaller set has at most 32 units, as that of a binomial number of mean m, with a correction of
    this order for its variance.

    Args:
        sizes: int64 [..., D], units of the one set in each dictionary.
        other_sizes: int64 [..., D], of the other set.
        both: int64 [...], units in both sets.
        widths: int64 [D], units of each dictionary.

    Returns:
        size, other_size, both, either (int64), overlap, iou, expected_both, expected_overlap,
        expected_iou (float64), each [...]. With an empty set, the coefficient is 0; with two, the
        IoU is 0 too.
    """
    a, b, w = sizes.astype(float), other_sizes.astype(float), widths.astype(float)
    mean = a * b / w
    rest = np.maximum(w - 1, 1)
    v = (mean * (1 - a / w) * (w - b) / rest).sum(-1)
    m, size, other = mean.sum(-1), sizes.sum(-1), other_sizes.sum(-1)
    total, smaller = size + other, np.minimum(size, other)
    expected = _expected_iou(m, v, smaller.astype(float), total.astype(float))
    return {
        "size": size,
        "other_size": other,
        "both": both,
        "either": total - both,
        "overlap": _ratio(both, smaller),
        "iou": _ratio(both, total - both),
        "expected_both": m,
        "expected_overlap": _ratio(m, smaller),
        "expected_iou": expected,
    }


def _expected_iou(m: np.ndarray, v: np.ndarray, n: np.ndarray, total: np.ndarray) -> np.ndarray:
    """The expectation of x / (total - x), where x has mean m and variance v and is at most n."""
    start, reference = _ratio(m, total - m), np.zeros_like(m)
    small = (n <= _FEW) & (n > 0)
    if small.any():
        k = np.arange(_FEW + 1)
        few, rate = n[small], m[small] / n[small]
        p = binom.pmf(k, few[:, None], rate[:, None])
        start[small] = (p * k / np.maximum(total[small][:, None] - k, 1)).sum(-1)
        reference[small] = few * rate * (1 - rate)
    half_curve = total / np.maximum(total - m, 1) ** 3
    return start + (v - reference) * half_curve


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)


# --------------------------------------------------------------------------- pairs of sets


def label_overlap(selection: Selection) -> dict[str, np.ndarray]:
    """Overlaps between the labels of a selection: values of `compare_sets`, each [K, K]."""
    sets = _sets(selection, sorted(selection.dictionaries))
    sizes = sets.by_dictionary
    both = (sets.units @ sets.units.T).toarray()
    shape = (len(both), len(both), sizes.shape[1])
    one, other = (np.broadcast_to(s, shape) for s in (sizes[:, None], sizes[None]))
    return compare_sets(one, other, both, sets.widths)


def rule_overlap(first: Selection, other: Selection) -> dict[str, np.ndarray] | None:
    """Overlaps between two selections of the same labels: values of `compare_sets`, each [L].

    L are the labels of `first` that the other has too, in order. Sets are those of the dictionaries
    that both ranked; None where there are none.
    """
    names = sorted(first.dictionaries.keys() & other.dictionaries.keys())
    labels = [label for label in first.labels if label in other.labels]
    if not names or not labels:
        return None
    one, two = _sets(first, names), _sets(other, names)
    rows = [first.labels.index(label) for label in labels]
    others = [other.labels.index(label) for label in labels]
    both = np.asarray(one.units[rows].multiply(two.units[others]).sum(1)).ravel()
    return compare_sets(one.by_dictionary[rows], two.by_dictionary[others], both, one.widths)


class _Sets:
    """The sets of units of labels: units [K, all units] (0 or 1), by_dictionary [K, D], widths."""

    def __init__(self, units: sp.csr_array, by_dictionary: np.ndarray, widths: np.ndarray) -> None:
        self.units, self.by_dictionary, self.widths = units, by_dictionary, widths


def _sets(selection: Selection, names: Sequence[str]) -> _Sets:
    """The sets of the labels of a selection in some of its dictionaries."""
    widths = np.array([selection.dictionaries[name]["width"] for name in names], np.int64)
    owner = dictionary_positions(selection, names)
    kept = owner >= 0
    owner, label = owner[kept], label_positions(selection)[kept]
    unit = (np.cumsum(widths) - widths)[owner] + selection.table["unit"].to_numpy()[kept]
    labels = len(selection.labels)
    ones = np.ones(len(unit), np.int64)
    units = sp.csr_array((ones, (label, unit)), shape=(labels, int(widths.sum())))
    by = np.zeros((labels, len(names)), np.int64)
    np.add.at(by, (label, owner), 1)
    return _Sets(units, by, widths)


# --------------------------------------------------------------------------- groups of labels


def typology(
    overlaps: Mapping[str, np.ndarray], labels: Sequence[str], groups: Mapping[str, str]
) -> dict[str, Any] | None:
    """Compare the IoU within groups of labels with that across them.

    The p-value is that of a Mantel test: the share of permutations of the labels whose mean IoU
    within groups is at least the one found. As the number of pairs within groups stays the same,
    that is the test of the correlation between the IoU and "same group". The permutations come from
    a fixed seed, so the same input gives the same value.

    Args:
        overlaps: what `label_overlap` returns, for K labels.
        labels: K labels. Those without units are left out, and those without group.
        groups: label -> group.

    Returns:
        labels, groups (how many), pairs_within, pairs_across, iou_within, iou_across,
        expected_within, expected_across (means over pairs), p; None without a pair of each kind.
    """
    sizes = overlaps["size"].diagonal()
    rows = [i for i, label in enumerate(labels) if label in groups and sizes[i]]
    names = np.array([groups[labels[i]] for i in rows], object)
    one, two = np.triu_indices(len(rows), 1)
    same = names[one] == names[two] if len(rows) else np.zeros(0, bool)
    if not same.any() or same.all():
        return None
    iou, expected = (overlaps[key][np.ix_(rows, rows)] for key in ("iou", "expected_iou"))
    values, chance = iou[one, two], expected[one, two]
    within = values[same].mean()
    return {
        "labels": len(rows),
        "groups": len(set(names)),
        "pairs_within": int(same.sum()),
        "pairs_across": int((~same).sum()),
        "iou_within": float(within),
        "iou_across": float(values[~same].mean()),
        "expected_within": float(chance[same].mean()),
        "expected_across": float(chance[~same].mean()),
        "p": _mantel(iou, one[same], two[same], within),
    }


def _mantel(iou: np.ndarray, one: np.ndarray, two: np.ndarray, found: float) -> float:
    """The share of permutations of the labels with a mean over these pairs of at least `found`."""
    generator, n = np.random.default_rng(0), len(iou)
    at_once = max(1, _AT_ONCE // max(len(one), n))
    reached = 1  # the labels as they are
    for start in range(0, PERMUTATIONS, at_once):
        many = min(at_once, PERMUTATIONS - start)
        order = generator.permuted(np.tile(np.arange(n), (many, 1)), axis=1)
        means = iou[order[:, one], order[:, two]].mean(1)
        reached += int((means >= found - 1e-12).sum())
    return reached / (PERMUTATIONS + 1)


# --------------------------------------------------------------------------- tables


def label_rows(selections: Mapping[str, Selection]) -> list[dict[str, Any]]:
    """Rows of `labels`, one per selection and pair of labels."""
    rows = []
    for name, selection in selections.items():
        found = label_overlap(selection)
        for i, j in combinations(range(len(selection.labels)), 2):
            pair = {"label": selection.labels[i], "other": selection.labels[j]}
            rows.append({"selection": name, **pair, **_values(found, (i, j))})
    return rows


def rule_rows(selections: Mapping[str, Selection]) -> list[dict[str, Any]]:
    """Rows of `rules`, one per pair of selections of one dictionary or more, and label."""
    rows = []
    for one, other in combinations(selections, 2):
        found = rule_overlap(selections[one], selections[other])
        if found is not None:
            theirs = selections[other].labels
            labels = [label for label in selections[one].labels if label in theirs]
            for i, label in enumerate(labels):
                pair = {"selection": one, "other": other, "label": label}
                rows.append({**pair, **_values(found, (i,))})
    return rows


def typology_rows(selections: Mapping[str, Selection]) -> list[dict[str, Any]]:
    """Rows of `typology`, one per selection and grouping of its labels (script, family)."""
    rows = []
    for name, selection in selections.items():
        found = label_overlap(selection)
        for grouping, group in groupings().items():
            row = typology(found, selection.labels, group(selection.labels))
            if row is not None:
                rows.append({"selection": name, "grouping": grouping, **_rounded(row)})
    return rows


def share_rows(selections: Mapping[str, Selection]) -> list[dict[str, Any]]:
    """Rows of `layers`: units of each class, and of each label, by dictionary.

    `share` is the part of the class or of the label that is in the dictionary, `expected_share` the
    dictionary's part of all units.
    """
    rows = []
    for name, selection in selections.items():
        layers = layer_rows(selection)
        names = [row["dictionary"] for row in layers]
        by = _sets(selection, names).by_dictionary
        width = sum(row["width"] for row in layers)
        counts = {("class", of): [r["classes"][of] for r in layers] for of in layers[0]["classes"]}
        labels = zip(selection.labels, by.tolist(), strict=True)
        counts |= {("label", label): units for label, units in labels}
        for (kind, of), numbers in counts.items():
            for row, units in zip(layers, numbers, strict=True):
                where = {key: row[key] for key in FIELDS["layers"] if key in row and key != "units"}
                share = {"share": units / sum(numbers) if sum(numbers) else 0.0}
                share |= {"expected_share": row["width"] / width}
                what = {"kind": kind, "of": of, "units": units}
                rows.append({"selection": name, **where, **what, **_rounded(share)})
    return rows


def overlap_tables(selections: Mapping[str, Selection]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each table of `FIELDS`."""
    return {
        "labels": label_rows(selections),
        "rules": rule_rows(selections),
        "layers": share_rows(selections),
        "typology": typology_rows(selections),
    }


def write_overlap(selections: Mapping[str, Selection], out: Path) -> list[dict[str, Any]]:
    """Write the tables of `FIELDS` as CSV files into a directory.

    Returns the rows of `typology`.

    Raises:
        UserError: selections are of two models or of other dictionaries of one name; `out` is no
            directory, or has a file of one of these names that is none of these tables.
    """
    same_model("overlap", list(selections.values()))
    _check_replaceable(out)
    tables = overlap_tables(selections)
    for name, rows in tables.items():
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS[name], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(out / f"{name}.csv", text.getvalue().encode("utf-8", "replace"))
    return tables["typology"]


def _check_replaceable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no directory; choose another output", "out")
    for name, fields in FIELDS.items():
        path = out / f"{name}.csv"
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                if file.readline().rstrip("\r\n").split(",") != list(fields):
                    raise UserError(f"{path} exists and is another table; remove it", "out")


def _values(found: Mapping[str, np.ndarray], at: tuple[int, ...]) -> dict[str, Any]:
    return _rounded({key: found[key][at].item() for key in _PAIR})


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
