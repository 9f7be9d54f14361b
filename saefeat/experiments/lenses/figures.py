"""How much of what is decoded is of the text's own class, and of the pivot's, with controls."""

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
    "Figures of mass are of the next-token probability that lies on the decoded tokens of a class. "
    "The control of pivot_mass, pivot_mass_by_chance, is what lies on all decoded tokens, times "
    "the part of the vocabulary that is of the pivot's class.",
]
FIGURES = (
    *("own", "own_in_others", "pivot", "pivot_vocabulary", "attributed"),
    *("own_mass", "own_mass_in_others", "pivot_mass", "pivot_mass_by_chance"),
)


def text_figures(
    own_classes: Callable[[str], frozenset[str]], pivot: str | None, rows: Sequence[Row]
) -> list[Row]:
    """What the texts of each label decode to, by norm and layer, from the rows of the lens.

    Rows have the columns norm, layer, own (share of the label's own classes), own_in_others (mean
    share of these classes in the texts of the labels that have none of them), pivot (share of the
    pivot's classes; None where the label has one of them), pivot_vocabulary (the same share of
    random tokens), attributed, and the same of the mass: own_mass, own_mass_in_others, pivot_mass,
    pivot_mass_by_chance. A figure and its control are None in the same rows.
    """
    each: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        texts = each.setdefault((row["norm"], row["layer"]), {})
        texts.setdefault(str(row["text"]), []).append(row)
    of = {text: own_classes(text) for text in dict.fromkeys(str(row["text"]) for row in rows)}
    thought = own_classes(pivot) if pivot else frozenset()
    return [
        {
            "norm": norm,
            "layer": layer,
            "attributed": here[0]["attributed"],
            **_compare(text, texts, of, thought, "share", "vocabulary", "own", "pivot"),
            **_compare(text, texts, of, thought, "mass", "by_chance", "own_mass", "pivot_mass"),
        }
        for (norm, layer), texts in each.items()
        for text, here in texts.items()
    ]


def _compare(
    text: str,
    texts: dict[str, list[Row]],
    of: dict[str, frozenset[str]],
    thought: frozenset[str],
    column: str,
    control: str,
    own: str,
    pivot: str,
) -> Row:
    """The figures of a column: of the own classes and of the pivot's, with their controls."""
    here = texts[text]
    mine = _total(here, of[text], column)
    others: list[Row] = [
        {column: _total(some, of[text], column)}
        for other, some in texts.items()
        if not of[other] & of[text]
    ]
    reached = None if of[text] & thought else _total(here, thought, column)
    return {
        own: mine,
        f"{own}_in_others": None if mine is None else mean_of(others, column),
        pivot: reached,
        f"{pivot}_{control}": None if reached is None else _total(here, thought, control),
    }


def _total(rows: list[Row], classes: frozenset[str], column: str) -> float | None:
    """The sum of a column over the rows of some classes; None where it is not known."""
    some: list[Any] = [row[column] for row in rows if row["decoded"] in classes]
    return sum(some) if some and None not in some else None
