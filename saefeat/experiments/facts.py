"""Facts with an object in two languages: the embedded capitals, or a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from saefeat.config import FactColumns
from saefeat.corpora import clean_text
from saefeat.corpora.columns import Columns
from saefeat.corpora.files import local_rows
from saefeat.io import UserError
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


class _Columns(Columns):
    """The columns of facts, for the readers of corpora: the prompt is the text, base the label."""

    facts: FactColumns

    @property
    def named(self) -> list[tuple[str, str]]:
        names = (f"{field}_column" for field in Fact._fields)
        return [(getattr(self.facts, name), name) for name in names]


def read_facts(path: Path, columns: FactColumns) -> list[Fact]:
    """Read facts from a .csv, .tsv, .jsonl or .parquet file, one per row.

    Raises UserError for a file that cannot be read, lacks a column or has no row, and for a cell
    that is no text or is blank.
    """
    if not path.is_file():
        raise UserError(f"the table of facts {path} is not a file", "facts")
    asked = _Columns(columns.prompt_column, columns.base_column)
    asked.facts = columns
    facts: list[Fact] = []
    for number, row in enumerate(local_rows(str(path), asked, None, Counter()), 1):
        for cell, (column, _) in zip(row, asked.named, strict=True):
            if not isinstance(cell, str) or not cell.strip():
                message = f"{path}: row {number} has no text in the column {column}"
                raise UserError(message, "facts")
        facts.append(Fact(*(clean_text(cell).strip() for cell in row)))
    if not facts:
        raise UserError(f"{path} holds no facts; write one per row", "facts")
    return facts
