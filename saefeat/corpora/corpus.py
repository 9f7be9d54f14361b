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

from saefeat.corpora.fetch import recipe_rows
from saefeat.corpora.files import Row, check_label, clean_text, local_rows
from saefeat.corpora.recipes import find_recipe
from saefeat.io import UserError, fingerprint

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
    source: str | Path | Iterable[tuple[str, str]],
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
        source: `embedded:eld`; a .jsonl, .csv, .tsv or .parquet file; a directory of LABEL.txt; a recipe of `saefeat
            corpus list`, `NAME[:SPLIT][#N]` with at most N texts a label; `hub:REPO[@REVISION][:CONFIG[:SPLIT]][#N]`,
            any data set of the hub that needs no script; or (text, label) pairs.
        labels: only these, in this order. A recipe takes the source's own codes here too.
        least: how many labels there must be; one can be looked at, but not told from others.
        text_column: a column, or, for recipes and the hub, a template over columns: "{premise} {hypothesis}".
        say: a function that is told, in one line, what is fetched.

    Rows without usable text are skipped and counted. What comes over the network is kept in the cache and read from
    there the next time. Raises UserError for a source that cannot be read, a line that cannot be parsed (with its
    number), a missing column, labels that are numbers without names, or a label without usable text.
    """
    wanted = _wanted(labels, least)
    if isinstance(source, Path):
        source = str(source)
    if not isinstance(source, str):
        return _build(_pairs(source), "python", wanted, least, "give strings")
    if not source.strip():  # such as a shell's variable that is not set; as a path it would be this directory
        raise UserError("the corpus has an empty name; give a file, a directory of LABEL.txt, or embedded:eld")
    columns = (text_column, label_column, id_column)
    request = find_recipe(source, columns)
    rows = local_rows(source, columns, wanted) if request is None else recipe_rows(request, wanted, say)
    mend = f"name a column of strings with --text-column, which {text_column} is not"
    return _build(rows, source, wanted, least, mend)


def _pairs(source: Iterable[tuple[str, str]]) -> Iterator[Row]:
    for text, label in source:
        check_label(label, "(the second of each pair)", "give strings")
        yield text, label, None


def _wanted(labels: Iterable[str] | None, least: int) -> tuple[str, ...] | None:
    if labels is None:
        return None
    wanted = tuple(labels)
    if len(set(wanted)) != len(wanted):
        raise UserError(f"a label is named twice in {','.join(wanted)}")
    if len(wanted) < least:
        raise UserError("name at least two labels; with one there is nothing to tell apart")
    return wanted


def _build(rows: Iterator[Row], name: str, wanted: tuple[str, ...] | None, least: int, mend: str) -> Corpus:
    """`mend`: what helps where values that are no strings stand in place of texts."""
    corpus = Corpus([], [], [], (), name)
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    odd: dict[str, str] = {}  # label -> type of what stands in place of its text
    for text, label, identity in rows:
        label = "" if label is None else clean_text(str(label)).strip()
        seen.add(label)
        if wanted is not None and label not in wanted:
            continue
        clean = _clean(text, skipped) if label else None
        if text is not None and not isinstance(text, str):
            odd[label] = type(text).__name__
        if not label:
            skipped["no label"] += 1
        if clean is None:
            continue
        corpus.texts.append(clean)
        corpus.of.append(label)
        corpus.ids.append(fingerprint(clean) if identity in (None, "") else clean_text(str(identity)))
    corpus.labels = wanted if wanted is not None else tuple(sorted(seen - {""}))
    corpus.skipped = dict(sorted(skipped.items()))
    _check_labels(
        corpus, seen, least, {label: f", but values of the type {kind}; {mend}" for label, kind in odd.items()}
    )
    return corpus


def _clean(text: Any, skipped: Counter[str]) -> str | None:
    if not isinstance(text, str):
        skipped["no text"] += 1
        return None
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        skipped["mended: NUL or lone surrogate"] += 1
        text = clean_text(text)
    if not text.strip():
        skipped["blank"] += 1
        return None
    return text


def _check_labels(corpus: Corpus, seen: set[str], least: int, instead: dict[str, str]) -> None:
    """`instead`: what labels have in place of text, as the end of a sentence."""
    for label in corpus.labels:
        if label not in seen:
            some = ", ".join(sorted(seen)[:70])
            raise UserError(f"the corpus {corpus.name} has no label {label}; there are {some}")
    counts = Counter(corpus.of)
    empty = [label for label in corpus.labels if not counts[label]]
    if empty:
        raise UserError(f"the label {empty[0]} of {corpus.name} has no usable text{instead.get(empty[0], '')}")
    if len(corpus.labels) < least:
        found = corpus.labels[0] if corpus.labels else "none"
        needed = "one label" if least == 1 else "two labels"
        raise UserError(f"the corpus {corpus.name} needs at least {needed} with text (found: {found})")
