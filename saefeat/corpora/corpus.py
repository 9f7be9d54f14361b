"""Examples with labels, from any origin, and their splits."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from saefeat.config import ID, LABEL, TEXT
from saefeat.corpora.columns import PARAMETERS, Columns, Row
from saefeat.corpora.fetch import recipe_rows
from saefeat.corpora.files import local_rows
from saefeat.corpora.given import given_rows, listed
from saefeat.corpora.request import find_recipe
from saefeat.corpora.text import UNUSABLE, clean_text
from saefeat.io import UserError, fingerprint
from saefeat.labels import to_labels
from saefeat.progress import Say, quiet, track

_TEST_SHARE = 20  # per cent
_COUNTED_ROWS = 1024  # between two updates of the progress
_LISTED_LABELS = 70  # at most so many in a message


@dataclass(frozen=True)
class Corpus:
    """Labelled examples in their own order.

    Attributes:
        texts: text of each example.
        of: label of each example.
        ids: id of each example; translations of one text share an id.
        labels: the K labels, sorted, or in the order asked for.
        name: what the corpus is called in messages and artefacts.
        skipped: reason -> number of rows, files or cells that were skipped or repaired.
        prompts: what the model reads before each text, possibly nothing. Its tokens count nowhere
            (see `saefeat.tokens`). Empty: no example has a prompt.
    """

    texts: list[str]
    of: list[str]
    ids: list[str]
    labels: tuple[str, ...]
    name: str
    skipped: dict[str, int] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of all texts, labels, ids and prompts in order."""
        digest = hashlib.sha256()
        prompts = [self.prompts] if self.prompts else []
        for row in zip(self.texts, self.of, self.ids, *prompts, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()[:16]

    def is_test(self, position: int, seed: int) -> bool:
        """Whether an example belongs to the test split.

        The hash of its id alone decides, so that more data never moves an example.
        """
        return hashed(seed, "split", self.ids[position]) % 100 < _TEST_SHARE

    def positions(self, split: str, seed: int) -> list[int]:
        """Positions of the examples of a split: train, test or all."""
        if split == "all":
            return list(range(len(self)))
        if split not in ("train", "test"):
            raise UserError(f"unknown split {split}; use train, test or all", "split")
        return [i for i in range(len(self)) if self.is_test(i, seed) == (split == "test")]


def hashed(*parts: Any) -> int:
    """A hash of the parts' strings: 64 bits, the same in every process."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def half_of(identity: str, seed: int) -> int:
    """The half of the examples, 0 or 1, to which an id belongs. Translations stay together."""
    return hashed(seed, "half", identity) % 2


def load_corpus(
    data: Any,
    *,
    labels: Iterable[str] | None = None,
    min_labels: int = 2,
    text_column: str = TEXT,
    label_column: str = LABEL,
    id_column: str = ID,
    prompt_column: str | None = None,
    name: str | None = None,
    say: Say = quiet,
) -> Corpus:
    """Read labelled text.

    Rows without usable text are skipped and counted. Downloads are kept in the cache.

    Args:
        data: one of

            - `embedded:eld`;
            - a .jsonl, .csv, .tsv or .parquet file, which may be compressed (.gz, .bz2, .xz, .zst);
            - a directory of LABEL.txt, or one of `Dataset.save_to_disk`;
            - a recipe of `saefeat corpus list`: `NAME[:SPLIT][#N]`, with at most N texts per label;
            - `hub:REPO[@REVISION][:CONFIG[:SPLIT]][#N]`: a data set of the hub that needs no
              script;
            - (text, label) pairs, (text, label, id) triples, or rows as mappings;
            - a table with the columns: a dict of lists, a Dataset, a data frame.
        labels: only these labels, in this order. A label that does not occur may be the code of
            the same language in another system (`de` for `deu_Latn`). For a recipe, the codes of
            its source are allowed too.
        min_labels: how many labels there must be.
        text_column: name of the column, `metadata.text` for a nested one. For recipes and the hub
            also a template over columns: "{premise} {hypothesis}".
        label_column: name of the column, which may be nested.
        id_column: name of the column, which may be nested. Without a column `id`, the id of an
            example is the hash of its text alone, so that texts stay in their split whether a
            prompt stands before them or not.
        prompt_column: name of the column, which may be nested, with a prompt that the model reads
            directly before the text (nothing is put between them); missing values are empty. The
            tokens of a prompt count nowhere, and language identification reads texts alone. Files
            and Python objects with columns may have prompts.
        name: what the corpus is called in messages and artefacts; by default `data` if it is a
            string, or else "python".
        say: takes notes: what is fetched, and which labels stand for others.

    Raises:
        UserError: the corpus does not exist or cannot be read, a line cannot be parsed (the message
            has its number), a column is missing, labels are numbers without names, or a label has
            no usable text.
    """
    wanted = _check_wanted(labels, min_labels)
    columns = Columns(text_column, label_column, id_column, prompt_column)
    skipped: Counter[str] = Counter()
    if isinstance(data, Path):
        data = str(data)
    named = isinstance(data, str)
    called = name if name is not None else data if named else "python"
    rows = []
    with track(say, "corpus", None, "rows", brief=True) as bar:
        for text, label, *others in _rows(data, columns, wanted, skipped, say):
            if prompt_column is not None and len(others) < 2:
                raise _no_prompts(called)
            rows.append((text, "" if label is None else clean_text(label).strip(), *others))
            if not len(rows) % _COUNTED_ROWS:
                bar.update(_COUNTED_ROWS)
    present = {label for _, label, *_ in rows}
    renamed = _rename(present, wanted, called, say)
    for label in wanted or ():
        if label not in renamed.values():
            some = ", ".join(sorted(present)[:_LISTED_LABELS])
            raise UserError(f"the corpus {called} has no label {label}; there are {some}", "labels")
    usable, types = _usable(rows, renamed, skipped)
    texts, of, ids, prompts = ([row[n] for row in usable] for n in range(4))
    kept = wanted if wanted is not None else tuple(sorted(present - {""}))
    _check_texts(called, kept, set(of), types, min_labels, from_column=named)
    counts = dict(sorted(skipped.items()))
    return Corpus(texts, of, ids, kept, called, counts, prompts if any(prompts) else [])


def _no_prompts(name: str) -> UserError:
    return UserError(
        f"the corpus {name} has no column of prompts; give a file with columns, such as .jsonl",
        "prompt_column",
    )


def _check_wanted(labels: Iterable[str] | None, min_labels: int) -> tuple[str, ...] | None:
    if labels is None:
        return None
    wanted = tuple(listed(labels, "labels"))
    if len(set(wanted)) != len(wanted):
        raise UserError(f"a label is named twice in {','.join(wanted)}", "labels")
    if len(wanted) < min_labels:
        raise UserError("name at least two labels; one cannot be told from others", "labels")
    return wanted


def _rows(
    data: Any, columns: Columns, wanted: tuple[str, ...] | None, skipped: Counter[str], say: Say
) -> Iterator[Row]:
    if not isinstance(data, str):
        return given_rows(data, columns)
    if not data.strip():  # such as a shell variable that is not set; as a path it would be `.`
        raise UserError(
            "the corpus has an empty name; give a file, a directory of LABEL.txt, or embedded:eld"
        )
    request = find_recipe(data, columns)
    if request is None:
        return local_rows(data, columns, wanted, skipped, say)
    if columns.prompt is not None:
        raise _no_prompts(data)
    return recipe_rows(request, wanted, say)


def _rename(
    present: set[str], wanted: tuple[str, ...] | None, name: str, say: Say
) -> dict[str, str]:
    """Label in the corpus -> label asked for."""
    if wanted is None:
        return {label: label for label in present}
    renamed = to_labels(sorted(present), wanted)
    others = [f"{label} as {ours}" for label, ours in renamed.items() if label != ours]
    if others:
        say(f"labels of {name}: {', '.join(others)}")
    return renamed


def _usable(
    rows: Iterable[Row], renamed: Mapping[str, str], skipped: Counter[str]
) -> tuple[list[tuple[str, str, str, str]], dict[str, str]]:
    """The usable rows, cleaned and renamed; label -> type of a value that is not a string."""
    found, types = [], {}
    for text, label, identity, *prompt in rows:
        if label not in renamed:
            continue
        if text is not None and not isinstance(text, str):
            types[renamed[label]] = type(text).__name__
        if not label:
            skipped["no label"] += 1
            continue
        clean = _clean(text, skipped)
        if clean is not None:
            key = fingerprint(clean) if identity in (None, "") else clean_text(str(identity))
            found.append((clean, renamed[label], key, *map(_clean_prompt, prompt or [None])))
    return found, types


def _clean_prompt(prompt: Any) -> str:
    """The cleaned prompt; empty if it is missing. Raises UserError if it is not a string."""
    if prompt is None or prompt != prompt:  # NaN
        return ""
    if not isinstance(prompt, str):
        raise UserError(
            f"a prompt is a value of type {type(prompt).__name__}; name a column of strings",
            "prompt_column",
        )
    return clean_text(prompt)


def _clean(text: Any, skipped: Counter[str]) -> str | None:
    """The cleaned text, or None if it is missing or blank. Counts repairs too."""
    if not isinstance(text, str):
        skipped["no text"] += 1
        return None
    if text.startswith("\ufeff"):
        skipped["mended: byte-order mark"] += 1
    if UNUSABLE.search(text):
        skipped["mended: NUL or lone surrogate"] += 1
    text = clean_text(text)
    if not text.strip():
        skipped["blank"] += 1
        return None
    return text


def _check_texts(
    name: str,
    labels: tuple[str, ...],
    with_text: set[str],
    types: Mapping[str, str],
    min_labels: int,
    *,
    from_column: bool,
) -> None:
    """Raise UserError for a label without usable text, and for too few labels.

    `from_column`: whether the user can name another column of texts.
    """
    empty = next((label for label in labels if label not in with_text), None)
    if empty is not None:
        message = f"the label {empty} of {name} has no usable text"
        if empty not in types:
            raise UserError(message)
        message += f", but values of type {types[empty]}; "
        if from_column:
            raise UserError(f"{message}name a column of strings", PARAMETERS.text)
        raise UserError(f"{message}give strings")
    if len(labels) < min_labels:
        needed = "one label" if min_labels == 1 else "two labels"
        found = labels[0] if labels else "none"
        raise UserError(f"the corpus {name} needs at least {needed} with text (found: {found})")


def describe_skipped(*sources: Any) -> list[str]:
    """A line on the rows of a corpus (or plan) that were skipped or repaired, if there are any."""
    counts = {reason: n for source in sources for reason, n in source.skipped.items()}
    listed = ", ".join(f"{reason} {n:,}" for reason, n in counts.items())
    return [f"rows skipped or repaired: {listed}"] if counts else []
