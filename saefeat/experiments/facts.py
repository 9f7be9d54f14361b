"""Facts with an object in two languages: the embedded capitals, or a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from saefeat.config import FactColumns
from saefeat.corpora.tables import read_table
from saefeat.labels import in_codes


class Fact(NamedTuple):
    """A prompt in the language `base`, and what follows it there and in the language `target`."""

    prompt: str
    base: str
    target: str
    base_object: str
    target_object: str


def embedded_facts(labels: Sequence[str]) -> list[Fact]:
    """Twelve capitals for each pair of labels, in 15 languages.

    Capitals that are written the same in both languages are left out, because they cannot shift.
    Labels may be of any code system; those of other languages have no facts.
    """
    capitals = json.loads(files("saefeat.experiments").joinpath("facts.json").read_text("utf-8"))
    codes = in_codes(labels, capitals)
    of = {label: capitals[codes[label]] for label in labels if label in codes}
    return [
        Fact(own["prompt"].format(country), base, target, here, there)
        for base, own in of.items()
        for target, other in of.items()
        for country, here, there in zip(own["of"], own["capitals"], other["capitals"], strict=True)
        if here != there
    ]


def read_facts(path: Path, columns: FactColumns) -> list[Fact]:
    """Read facts from a .csv, .tsv, .jsonl or .parquet file, one per row.

    Raises UserError as `read_table`, and for a cell that is blank.
    """
    names = {field: getattr(columns, f"{field}_column") for field in Fact._fields}
    needed = {column: f"{field}_column" for field, column in names.items()}
    rows = read_table(path, needed, "facts", blank=False)
    return [Fact(*(row[names[field]].strip() for field in Fact._fields)) for row in rows]
