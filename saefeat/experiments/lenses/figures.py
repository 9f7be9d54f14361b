"""How many decoded tokens are of the text's own class, and of the pivot's, with their controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from saefeat.artefacts.experiments import Row
from saefeat.experiments.frame import mean_of

NOTES = [
    "Own: share of the decoded tokens of a label's texts that are of its own class. Its control, "
    "own_in_others, is the share of the same class in the texts of labels without it.",
    "Pivot: share of the pivot's class in the texts of labels without it. Its control, "
    "pivot_vocabulary, is the share of the pivot's class among random tokens of the vocabulary.",
]
FIGURES = ("own", "own_in_others", "pivot", "pivot_vocabulary", "attributed")


def text_figures(
    own_classes: Callable[[str], frozenset[str]], pivot: str | None, rows: Sequence[Row]
) -> list[Row]:
    """What the texts of each label decode to, by norm and layer, from the rows of the lens.

    Rows have the columns norm, layer, own (share of the label's own classes), own_in_others (mean
    share of these classes in the texts of the labels that have none of them), pivot (share of the
    pivot's classes; None where the label has one of them), pivot_vocabulary (the same share of
    random tokens) and attributed. A share and its control are None in the same rows.
    """
    each: dict[tuple[Any, ...], dict[Any, list[Any]]] = {}
    for row in rows:
        each.setdefault((row["norm"], row["layer"]), {}).setdefault(row["text"], []).append(row)
    of = {text: own_classes(text) for text in dict.fromkeys(str(row["text"]) for row in rows)}
    thought = own_classes(pivot) if pivot else frozenset()
    found: list[Row] = []
    for (norm, layer), texts in each.items():
        for text, here in texts.items():
            own = _total(here, of[text], "share")
            others = [
                {"share": _total(some, of[text], "share")}
                for other, some in texts.items()
                if not of[other] & of[text]
            ]
            reached = None if of[text] & thought else _total(here, thought, "share")
            found.append(
                {
                    "norm": norm,
                    "layer": layer,
                    "own": own,
                    "own_in_others": None if own is None else mean_of(others, "share"),
                    "pivot": reached,
                    "pivot_vocabulary": (
                        None if reached is None else _total(here, thought, "vocabulary")
                    ),
                    "attributed": here[0]["attributed"],
                }
            )
    return found


def _total(rows: list[Any], classes: frozenset[str], column: str) -> float | None:
    """The sum of a column over the rows of some classes; None where it is not known."""
    some = [row[column] for row in rows if row["decoded"] in classes]
    return sum(some) if some and None not in some else None
