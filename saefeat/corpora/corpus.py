"""Examples with labels, from any source, and their splits."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from saefeat.corpora.columns import Row
from saefeat.corpora.fetch import recipe_rows
from saefeat.corpora.files import local_rows
from saefeat.corpora.given import given_rows, listed
from saefeat.corpora.recipes import find_recipe
from saefeat.corpora.text import UNFIT, clean_text
from saefeat.io import UserError, fingerprint
from saefeat.labels import to_labels

_TEST_SHARE = 20  # per cent


@dataclass
class Corpus:
    """Examples in their own order.

    Attributes:
        texts, of, ids: text, label and id of each example; translations of one text share an id.
        labels: the K labels, sorted, or in the order asked for.
        skipped: why rows were left out or mended, and how many.
        name: the source as given.
    """

    texts: list[str]
    of: list[str]
    ids: list[str]
    labels: tuple[str, ...]
    name: str
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """Of all texts, labels and ids in their order."""
        digest = hashlib.sha256()
        for row in zip(self.texts, self.of, self.ids, strict=True):
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()[:16]

    def is_test(self, position: int, seed: int) -> bool:
        """Whether an example belongs to the test split: by the hash of its id alone, so more data moves nothing."""
        return hashed(seed, "split", self.ids[position]) % 100 < _TEST_SHARE

    def positions(self, split: str, seed: int) -> list[int]:
        """Positions of the examples of a split: train, test or all."""
        if split == "all":
            return list(range(len(self)))
        if split not in ("train", "test"):
            raise UserError(f"unknown split {split}; use train, test or all")
        return [i for i in range(len(self)) if self.is_test(i, seed) == (split == "test")]


def hashed(*parts: Any) -> int:
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def load_corpus(
    source: Any,
    *,
    labels: Iterable[str] | None = None,
    least: int = 2,
    text_column: str = "text",
    label_column: str = "label",
    id_column: str = "id",
    say: Any = None,
) -> Corpus:
    """Read labelled text.

    Args:
        source: `embedded:eld`; a .jsonl, .csv, .tsv or .parquet file, which may be packed (.gz,
            .bz2, .xz, .zst); a directory of LABEL.txt, or one of `Dataset.save_to_disk`; a recipe
            of `saefeat corpus list`, `NAME[:SPLIT][#N]` with at most N texts a label;
            `hub:REPO[@REVISION][:CONFIG[:SPLIT]][#N]`, any data set of the hub that needs no
            script; (text, label) pairs or (text, label, id) triples; rows by name; a table
            with the columns: a dict of lists, a Dataset, a data frame.
        labels: only these, in this order. One that is not there stands for the same language in
            another code system (`de` for `deu_Latn`). A recipe takes the source's own codes here
            too.
        least: how many labels there must be; one can be looked at, but not told from others.
        text_column: a column, `metadata.text` for one within another, or, for recipes and the hub,
            a template over
            columns: "{premise} {hypothesis}". So is label_column, and id_column, without the
                template.
        say: a function that is told, in one line, what is fetched, and which labels are taken for
            others.

    Rows without usable text are skipped and counted. What comes over the network is kept in the
    cache and read from there the next time. Raises UserError for a source that cannot be read, a
    line that cannot be parsed (with its number), a missing column, labels that are numbers without
    names, or a label without usable text.
    """
    wanted = _wanted(labels, least)
    columns = (text_column, label_column, id_column)
    skipped: Counter[str] = Counter()
    if isinstance(source, Path):
        source = str(source)
    if not isinstance(source, str):
        return _build(
            given_rows(source, columns), "python", wanted, least, "give strings", skipped, say
        )
    if (
        not source.strip()
    ):  # such as a shell's variable that is not set; as a path it would be this directory
        raise UserError(
            "the corpus has an empty name; give a file, a directory of LABEL.txt, or embedded:eld"
        )
    request = find_recipe(source, columns)
    rows = (
        local_rows(source, columns, wanted, skipped)
        if request is None
        else recipe_rows(request, wanted, say)
    )
    mend = f"name a column of strings with --text-column, which {text_column} is not"
    return _build(rows, source, wanted, least, mend, skipped, say)


def _wanted(labels: Iterable[str] | None, least: int) -> tuple[str, ...] | None:
    if labels is None:
        return None
    wanted = tuple(listed(labels, "labels"))
    if len(set(wanted)) != len(wanted):
        raise UserError(f"a label is named twice in {','.join(wanted)}")
    if len(wanted) < least:
        raise UserError("name at least two labels; with one there is nothing to tell apart")
    return wanted


def _build(
    given: Iterator[Row],
    name: str,
    wanted: tuple[str, ...] | None,
    least: int,
    mend: str,
    skipped: Counter[str],
    say: Any,
) -> Corpus:
    """`mend`: what helps where values that are no strings stand in place of texts."""
    corpus = Corpus([], [], [], (), name)
    odd: dict[str, str] = {}  # label -> type of what stands in place of its text
    rows = [
        (text, "" if label is None else clean_text(label).strip(), identity)
        for text, label, identity in given
    ]
    seen = {label for _, label, _ in rows}
    names = {label: label for label in seen} if wanted is None else to_labels(sorted(seen), wanted)
    if say is not None and (
        others := [f"{label} as {own}" for label, own in names.items() if label != own]
    ):
        say(f"labels of {name}: {', '.join(others)}")
    for text, label, identity in rows:
        if label not in names:
            continue
        clean = _clean(text, skipped) if label else None
        if text is not None and not isinstance(text, str):
            odd[names[label]] = type(text).__name__
        if not label:
            skipped["no label"] += 1
        if clean is None:
            continue
        corpus.texts.append(clean)
        corpus.of.append(names[label])
        corpus.ids.append(
            fingerprint(clean) if identity in (None, "") else clean_text(str(identity))
        )
    corpus.labels = wanted if wanted is not None else tuple(sorted(seen - {""}))
    corpus.skipped = dict(sorted(skipped.items()))
    instead = {label: f", but values of the type {kind}; {mend}" for label, kind in odd.items()}
    _check_labels(corpus, seen, set(names.values()), least, instead)
    return corpus


def _clean(text: Any, skipped: Counter[str]) -> str | None:
    if not isinstance(text, str):
        skipped["no text"] += 1
        return None
    if text.startswith("\ufeff"):
        skipped["mended: byte-order mark"] += 1
    if UNFIT.search(text):
        skipped["mended: NUL or lone surrogate"] += 1
    text = clean_text(text)
    if not text.strip():
        skipped["blank"] += 1
        return None
    return text


def _check_labels(
    corpus: Corpus, seen: set[str], named: set[str], least: int, instead: dict[str, str]
) -> None:
    """`seen`: labels as they stand; `named`: as the corpus has them; `instead`: what is there in place of a text."""
    for label in corpus.labels:
        if label not in named:
            some = ", ".join(sorted(seen)[:70])
            raise UserError(f"the corpus {corpus.name} has no label {label}; there are {some}")
    counts = Counter(corpus.of)
    empty = [label for label in corpus.labels if not counts[label]]
    if empty:
        raise UserError(
            f"the label {empty[0]} of {corpus.name} has no usable text{instead.get(empty[0], '')}"
        )
    if len(corpus.labels) < least:
        found = corpus.labels[0] if corpus.labels else "none"
        needed = "one label" if least == 1 else "two labels"
        raise UserError(
            f"the corpus {corpus.name} needs at least {needed} with text (found: {found})"
        )
