"""`saefeat select` and `saefeat overlap`: sets of selections, and how far they overlap."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from saefeat.cli.common import Out, print_table
from saefeat.cli.rank import print_counts
from saefeat.io import UserError

Selections = Annotated[
    list[Path], typer.Argument(metavar="SELECTION...", help="Files of `rank`, or of a run.")
]
_OPERATIONS = ("union", "intersection", "difference")
_MATCHES = ("labels", "languages", "units")


def select(
    selections: Selections,
    out: Out,
    op: Annotated[str | None, typer.Option(help=f"{', '.join(_OPERATIONS)}.")] = None,
    match: Annotated[
        str, typer.Option(help=f"What has to be equal besides the unit: {', '.join(_MATCHES)}.")
    ] = "labels",
    pairs: Annotated[
        list[str] | None,
        typer.Option("--map", help="LABEL=OTHER,...: labels that belong together; repeatable."),
    ] = None,
    owners: Annotated[
        str | None,
        typer.Option(help="Keep units that this number of labels own; 3+ means at least 3."),
    ] = None,
) -> None:
    """Combine selections of one model: union, intersection, difference, shared units.

    The difference of cultures and languages has the pure culture units: by the culture's own
    language as it is, by all languages with --match units.
    """
    from saefeat.run.stages import write_selection
    from saefeat.selection import Selection
    from saefeat.sets import combine, read_pairs, shared

    for value, known, name in ((op, _OPERATIONS, "op"), (match, _MATCHES, "match")):
        if value is not None and value not in known:
            raise UserError(f"{value} is none of {', '.join(known)}", name)
    if (op is None) != (len(selections) == 1):
        raise UserError("an operation needs at least two selections, and these need one", "op")
    if op is None and owners is None:
        raise UserError("there is nothing to do with one selection; say which units", "owners")
    number, at_least = _owners(owners) if owners is not None else (None, False)
    given_pairs = ",".join(pairs).split(",") if pairs else []
    given: Any = {"match": match, "pairs": read_pairs(given_pairs, "pairs")}

    def make() -> Selection:
        first, *others = [Selection.load(path) for path in selections]
        found = combine(op, first, *others, **given) if op else first  # type: ignore[arg-type]
        return found if number is None else shared(found, number, at_least=at_least)

    print_counts(out, write_selection(out, make))


def _owners(text: str) -> tuple[int, bool]:
    """The number in "3" or "3+", and whether more are fine."""
    match = re.fullmatch(r"([0-9]{1,9})(\+?)", text)
    if not match:
        raise UserError(f"{text} is not a number of labels such as 3 or 3+", "owners")
    return int(match[1]), bool(match[2])


def overlap(selections: Selections, out: Out) -> None:
    """Write tables of how far sets of units overlap, into the directory --out.

    labels.csv: labels of each selection; rules.csv: the same label in two selections; layers.csv:
    units of each dictionary; typology.csv: labels of one script or family against others.
    """
    from saefeat.overlap import write_overlap
    from saefeat.selection import Selection

    names = [path.stem for path in selections]
    if len(set(names)) < len(names):
        names = [str(path) for path in selections]
    loaded = {name: Selection.load(path) for name, path in zip(names, selections, strict=True)}
    if len(loaded) < len(selections):
        raise UserError("a selection is given twice", "selections")
    rows = write_overlap(loaded, out)
    head = ["selection", "grouping", "labels", "IoU within", "across", "p"]
    lines = [
        [row["selection"], row["grouping"], str(row["labels"]), *(
            f"{row[key]:.3f}" for key in ("iou_within", "iou_across")
        ), f"{row['p']:.4f}"]
        for row in rows
    ]  # fmt: skip
    typer.echo(f"{out}: labels.csv, rules.csv, layers.csv, typology.csv")
    if lines:
        print_table([head, *lines], right=(2, 3, 4, 5))
