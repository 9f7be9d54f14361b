"""Sets of selections: union, intersection, difference, and units that several labels own.

A row of one selection is a row of another if the two have the same unit of the same dictionary and
labels that belong together. Which labels those are is the `match`:

- "labels": equal labels;
- "languages": labels of one language, in any code system (`da` and `dan_Latn`);
- "units": any two labels.

Pairs of labels that are given come before the match. So "pure culture" units (culture without
language, arXiv 2508.02241) are `combine("difference", culture, language)`, by the culture's own
language, and with `match="units"` by all languages together; "compound" units are the intersection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from saefeat.io import UserError
from saefeat.labels import in_codes
from saefeat.ranking import FIELDS, positions, rank_rows
from saefeat.selection import Selection

Operation = Literal["union", "intersection", "difference"]
Match = Literal["labels", "languages", "units"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
MATCHES: tuple[Match, ...] = get_args(Match)


def combine(
    operation: Operation,
    first: Selection,
    *others: Selection,
    match: Match = "labels",
    pairs: Iterable[tuple[str, str]] = (),
) -> Selection:
    """Combine selections of one model, from left to right.

    Args:
        operation: "intersection" keeps the rows of `first` that are in every other selection,
            "difference" those that are in none. "union" adds to the rows of `first`, after them
            within each label, the rows of the others that are not there yet, under the labels of
            `first` that they belong to. Rows whose label belongs to none keep it, as do all rows
            if only units count.
        first: its rows keep their scores, and their order gives the ranks.
        others: may have other dictionaries and, with a `match` or `pairs`, other labels.
        match: which labels belong together.
        pairs: (label of `first`, label of another selection). A label in several pairs belongs to
            all labels that it is paired with, and to no others.

    Returns:
        A selection whose header has the operation as its method, and as its parameters those of the
        combined selections (`of`) and, where they are given, the match and the pairs.

    Raises:
        UserError: models or dictionaries differ; a label of `first` belongs to none of another
            selection; a pair has an unknown label, or stands beside `match="units"`; in a union, a
            label of another selection that belongs to none of `first` is called like one of them.
    """
    paired: dict[str, list[str]] = {}
    for label, other in pairs:
        paired.setdefault(label, []).append(other)
    _check(operation, (first, *others), match, paired)
    found = first
    for other in others:
        together = _together(first, other, match, paired)
        if operation == "union" and match == "units":
            mine, theirs = unit_keys(found, other)
            new = other.filter(~np.isin(theirs, mine))
            found = _united(found, new, {name: [name] for name in other.labels})
        elif operation == "union":
            found = _united(found, other, _names(first, other, together))
        else:
            present = _present(found, other, together)
            found = found.filter(present if operation == "intersection" else ~present)
    header = _header(operation, (first, *others), found.labels)
    if match != "labels" or paired:
        header["parameters"] |= {"match": match, "pairs": paired}
    return Selection(found.table, header)


def read_pairs(texts: Iterable[str], parameter: str) -> list[tuple[str, str]]:
    """Pairs of labels from texts of the form LABEL=OTHER; `parameter` is the one that gave them.

    Raises UserError for another form.
    """
    found = []
    for text in texts:
        label, equals, other = (word.strip() for word in text.partition("="))
        if not (label and equals and other):
            raise UserError(f"{text!r} is not of the form LABEL=OTHER", parameter)
        found.append((label, other))
    return found


def with_labels(selection: Selection, labels: Iterable[str]) -> Selection:
    """The selection without the labels that are not among some."""
    wanted = {*labels}
    kept = [label for label in selection.labels if label in wanted]
    some = selection.filter(positions(selection.table["label"], kept) >= 0)
    return Selection(some.table, {**some.header, "labels": kept})


def shared(selection: Selection, owners: int, *, at_least: bool = False) -> Selection:
    """The rows of units that exactly, or at least, this number of labels own.

    Raises UserError for a number that no unit can have.
    """
    if not 1 <= owners <= len(selection.labels):
        raise UserError(
            f"the number of owners should be from 1 to {len(selection.labels)}, the number of "
            f"labels, not {owners}",
            "owners",
        )
    count = owner_counts(selection)
    return selection.filter(count >= owners if at_least else count == owners)


def owner_counts(selection: Selection) -> np.ndarray:
    """int64 [rows]: how many labels own the unit of each row."""
    (units,) = unit_keys(selection)
    _, column, counts = np.unique(units, return_inverse=True, return_counts=True)
    return counts[column]


def unit_keys(*selections: Selection) -> list[np.ndarray]:
    """For each selection int64 [rows]: a number that rows have in common if they have one unit."""
    widths = {name: d["width"] for each in selections for name, d in each.dictionaries.items()}
    names = sorted(widths)
    starts = np.cumsum([0, *(widths[name] for name in names)])
    return [
        starts[dictionary_positions(each, names)] + each.table["unit"].to_numpy()
        for each in selections
    ]


def label_positions(selection: Selection) -> np.ndarray:
    """int64 [rows]: the position of the label of each row in the labels of the selection."""
    return positions(selection.table["label"], selection.labels)


def dictionary_positions(selection: Selection, names: Sequence[str]) -> np.ndarray:
    """int64 [rows]: the position of the dictionary of each row in the names, -1 without one."""
    return positions(selection.table["dictionary"], names)


def _together(
    first: Selection, other: Selection, match: Match, paired: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Label of `first` -> the labels of the other selection that belong to it."""
    if match == "units":
        return {label: list(other.labels) for label in first.labels}
    named: Mapping[str, str] = {label: label for label in first.labels}
    if match == "languages":
        named = in_codes(first.labels, other.labels)
    wanted = {label: paired.get(label, [named.get(label, label)]) for label in first.labels}
    found = {label: [name for name in wanted[label] if name in other.labels] for label in wanted}
    if missing := [label for label in first.labels if not found[label]]:
        raise UserError(
            f"the label {missing[0]} has no counterpart in another selection, whose labels are "
            f"{', '.join(other.labels)}; pair the two, or compare units whatever their labels",
            "match",
            "pairs",
        )
    return found


def _present(left: Selection, right: Selection, together: Mapping[str, list[str]]) -> np.ndarray:
    """bool [rows of left]: whether the right has the unit for a label that belongs to the row's."""
    mine, theirs = unit_keys(left, right)
    units, theirs = np.unique(theirs, return_inverse=True)
    owned = np.zeros((len(right.labels), len(units) + 1), bool)  # the last column is of no unit
    owned[label_positions(right), theirs] = True
    position = {label: i for i, label in enumerate(right.labels)}
    rows = [owned[[position[name] for name in together[label]]].any(0) for label in left.labels]
    at = np.searchsorted(units, mine)
    at[~np.isin(mine, units)] = len(units)
    return np.stack(rows)[label_positions(left), at]


def _names(
    first: Selection, other: Selection, together: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Label of the other selection -> the labels under which a union has its rows."""
    found: dict[str, list[str]] = {name: [] for name in other.labels}
    for label, names in together.items():
        for name in names:
            found[name].append(label)
    if clash := [name for name, labels in found.items() if not labels and name in first.labels]:
        raise UserError(
            f"the label {clash[0]} of another selection belongs to no label of the first, which "
            "has one of this name; pair it too",
            "pairs",
        )
    return {name: labels or [name] for name, labels in found.items()}


def _united(left: Selection, right: Selection, names: Mapping[str, list[str]]) -> Selection:
    """The rows of the left and after them, within each label, the new ones of the right."""
    given = label_positions(right)
    pairs = [(k, new) for k, label in enumerate(right.labels) for new in names[label]]
    parts = [np.flatnonzero(given == k) for k, _ in pairs]
    rows = np.concatenate([np.zeros(0, np.int64), *parts])
    new = np.repeat(np.array([new for _, new in pairs], object), [len(part) for part in parts])
    order = rows.argsort(kind="stable")
    at = FIELDS.get_field_index("label")
    renamed = right.table.take(pa.array(rows[order]))
    renamed = renamed.set_column(at, FIELDS.field(at), pa.array(new[order], pa.string()))
    labels = list(dict.fromkeys([*left.labels, *(new for each in names.values() for new in each)]))
    dictionaries = {**right.dictionaries, **left.dictionaries}
    header = {**left.header, "labels": labels, "dictionaries": dictionaries}
    both = Selection(pa.concat_tables([left.table, renamed]), header)
    (units,) = unit_keys(both)
    cells = units * len(labels) + label_positions(both)
    kept = both.table.take(np.sort(np.unique(cells, return_index=True)[1]))
    return Selection(rank_rows(kept, labels, np.arange(kept.num_rows)), header)


def same_model(what: str, selections: Sequence[Selection]) -> None:
    """Raise UserError where selections are of other models, or of other dictionaries of one id."""
    known: dict[str, Any] = {}
    for each in selections:
        if each.header.get("model") != selections[0].header.get("model"):
            raise UserError(f"the {what} of selections needs the same model in all")
        for name, dictionary in each.dictionaries.items():
            mark = dictionary.get("fingerprint"), dictionary["width"]
            if known.setdefault(name, mark) != mark:
                raise UserError(
                    f"the {what} of selections needs the same dictionary {name} in all; "
                    "rank one again"
                )


def _check(
    operation: Operation,
    selections: Sequence[Selection],
    match: Match,
    paired: Mapping[str, Sequence[str]],
) -> None:
    """Raise UserError where models or dictionaries differ, or pairs make no sense."""
    same_model(operation, selections)
    first, *others = selections
    if paired and match == "units":
        raise UserError("pairs of labels say nothing where labels do not count", "match", "pairs")
    theirs = {label for other in others for label in other.labels}
    strangers = [label for label in paired if label not in first.labels]
    strangers += [name for names in paired.values() for name in names if name not in theirs]
    if strangers:
        raise UserError(
            f"there is no label {strangers[0]} to pair; the labels are "
            f"{', '.join(first.labels)} and {', '.join(sorted(theirs))}",
            "pairs",
        )


def _header(
    operation: Operation, selections: Sequence[Selection], labels: Sequence[str]
) -> dict[str, Any]:
    """The header of a combination. Counts of classes are those of one rule: they are left out."""
    first = {key: value for key, value in selections[0].header.items() if key != "classes"}
    dictionaries: dict[str, Any] = {}
    for each in reversed(selections):
        dictionaries |= each.dictionaries
    of = [
        {"method": each.header["method"], "parameters": each.header.get("parameters", {})}
        for each in selections
    ]
    return {
        **first,
        "method": operation,
        "parameters": {"of": of},
        "labels": list(labels),
        "dictionaries": dictionaries,
    }
