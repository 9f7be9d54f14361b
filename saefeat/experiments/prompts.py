"""Prompts of an experiment that generates, from a file of the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saefeat.corpora.tables import read_table
from saefeat.corpora.text import clean_text, plain_name, text_lines
from saefeat.generation import encode_prompts
from saefeat.io import UserError
from saefeat.labels import own_label
from saefeat.run.opened import OpenRun


def read_prompts(opened: OpenRun, path: Path, n: int, new_tokens: int) -> list[list[int]]:
    """The first n prompts of a file (see `_rows`) as token ids, BOS included.

    Raises UserError where the file cannot be read or has no prompt, and as `encode_prompts`.
    """
    return encode_prompts(opened.lm, [row["prompt"] for row in _rows(path)[:n]], new_tokens)


def read_prompts_of(
    opened: OpenRun, path: Path, labels: Sequence[str], n: int, new_tokens: int
) -> dict[str, list[list[int]]]:
    """The first n prompts of each label in a file, as `read_prompts`; no entry where none are.

    Without a column `label`, all are of the one label that is asked for. Raises UserError where
    there are several.
    """
    found: dict[str, list[str]] = {label: [] for label in labels}
    for row in _rows(path):
        if len(labels) > 1 and not isinstance(row.get("label"), str):
            raise UserError(
                f"{path} does not say which label its prompts have; give a table with the column "
                "label, or name one label",
                "prompt_file",
                "from_",
            )
        label = own_label(row["label"], opened.corpus.labels) if "label" in row else labels[0]
        if label in found:
            found[label].append(row["prompt"])
    some = {label: texts[:n] for label, texts in found.items() if texts}
    return {label: encode_prompts(opened.lm, texts, new_tokens) for label, texts in some.items()}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table with the column `prompt`, or the lines of a .txt file."""
    if plain_name(path).suffix != ".txt":
        return read_table(path, {"prompt": "prompt_file"}, "prompt_file", blank=False)
    rows = [{"prompt": clean_text(line)} for line in text_lines(path) if line.strip()]
    if not rows:
        raise UserError(f"{path} holds no prompt; write one per line", "prompt_file")
    return rows
