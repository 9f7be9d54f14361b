"""Examples with labels, from any origin, and their splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import compress, islice
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any

import numpy as np

from saefeat.config import ID, LABEL, TEXT
from saefeat.corpora.columns import PARAMETERS, Columns, Row
from saefeat.corpora.fetch import recipe_rows, recipe_state
from saefeat.corpora.files import local_path, local_rows, local_state
from saefeat.corpora.given import given_rows, listed
from saefeat.corpora.request import find_recipe
from saefeat.corpora.store import Names, Rows, Strings, Usable, gather, open_rows
from saefeat.corpora.text import UNUSABLE, clean_text, is_usable
from saefeat.io import SCHEMA, UserError, cache_dir, fingerprint
from saefeat.labels import to_labels
from saefeat.progress import Say, quiet, track

_TEST_SHARE = 20  # per cent
_CHECKED_ROWS = 256  # that are cleaned at once
_HASHED_ROWS = 4096  # whose hashes are made at once
_LISTED_LABELS = 70  # at most so many in a message


@dataclass(frozen=True)
class Corpus:
    """Labelled examples in their own order.

    The columns are lists. Those of a large corpus stay in a file (see `saefeat.corpora.store`):
    they are read by position, slice or in order.

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

    texts: Sequence[str]
    of: Sequence[str]
    ids: Sequence[str]
    labels: tuple[str, ...]
    name: str
    skipped: dict[str, int] = field(default_factory=dict)
    prompts: Sequence[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of all texts, labels, ids and prompts in order."""
        digest = hashlib.sha256()
        columns = [self.texts, self.of, self.ids, *([self.prompts] if self.prompts else [])]
        # As JSON lists; quoting each string is several times faster than encoding the lists.
        rows = zip(*(map(quoted, column) for column in columns), strict=True)
        while some := list(islice(rows, _HASHED_ROWS)):
            digest.update(_as_lists(some))
        return digest.hexdigest()[:16]

    @cached_property
    def codes(self) -> np.ndarray:
        """The number of each example's label in `labels`: int32 [examples]."""
        index = {label: k for k, label in enumerate(self.labels)}
        if isinstance(self.of, Names):
            return np.array([index.get(name, -1) for name in self.of.names], np.int32)[
                self.of.codes
            ]
        return np.array([index.setdefault(label, len(index)) for label in self.of], np.int32)

    def is_test(self, position: int, seed: int) -> bool:
        """Whether an example belongs to the test split.

        The hash of its id alone decides, so that more data never moves an example.
        """
        return hashed(seed, "split", self.ids[position]) % 100 < _TEST_SHARE

    def positions(self, split: str, seed: int) -> list[int]:
        """Positions of the examples of a split: train, test or all."""
        return self.in_split(split, seed).tolist()

    def in_split(self, split: str, seed: int) -> np.ndarray:
        """Positions of the examples of a split, train, test or all: int64, ascending."""
        if split == "all":
            return np.arange(len(self))
        if split not in ("train", "test"):
            raise UserError(f"unknown split {split}; use train, test or all", "split")
        test = self.hashes(seed, "split") % 100 < _TEST_SHARE
        return np.flatnonzero(test if split == "test" else ~test)

    def hashes(self, *parts: Any, at: np.ndarray | None = None) -> np.ndarray:
        """The hashes of `parts` and the ids of all examples, or of those `at`: uint64.

        Each is `hashed(*parts, id)`.
        """
        if at is None:
            ids: Iterator[str] = iter(self.ids)
        elif isinstance(self.ids, Strings) and (np.diff(at) > 0).all():
            ids = iter(self.ids.take(at))  # columns are read in order faster
        elif 4 * len(at) > len(self):
            return self.hashes(*parts)[at]
        else:
            where: list[int] = at.tolist()
            ids = (self.ids[i] for i in where)
        start, blake2b = "".join(f"{part}\x1f" for part in parts), hashlib.blake2b
        found = []
        while some := list(islice(ids, _HASHED_ROWS)):
            each = [blake2b((start + i).encode(), digest_size=8).digest() for i in some]
            found.append(np.frombuffer(b"".join(each), ">u8").astype(np.uint64))
        return np.concatenate(found) if found else np.empty(0, np.uint64)


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

    Rows without usable text are skipped and counted. Downloads are kept in the cache. So are the
    rows of a corpus by name that is too large for lists: it is read once, until its files change.

    Args:
        data: one of

            - `embedded:eld`;
            - a .jsonl, .csv, .tsv or .parquet file, which may be compressed (.gz, .bz2, .xz, .zst);
            - a directory of LABEL.txt, one of `Dataset.save_to_disk`, or one of shards: files of
              the kinds above whose names differ in numbers only;
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
    if isinstance(data, Path):
        data = str(data)
    named = isinstance(data, str)
    called = name if name is not None else data if named else "python"
    place = _place(data, columns, wanted) if named else None
    rows = open_rows(place) if place is not None else None
    if rows is None:
        rows = _read(data, columns, wanted, called, place, say)
    present = set(rows.notes["labels"])
    renamed = _rename(present, wanted, called, say)
    for label in wanted or ():
        if label not in renamed.values():
            some = ", ".join(sorted(present)[:_LISTED_LABELS])
            raise UserError(f"the corpus {called} has no label {label}; there are {some}", "labels")
    kept = wanted if wanted is not None else tuple(sorted(present - {""}))
    return _select(rows, renamed, kept, called, min_labels, named=named)


def check_name(name: str) -> None:
    """Raise UserError unless a string names a corpus, as `load_corpus` takes it.

    Only the name is judged, and whether a local corpus exists; nothing is read or fetched.
    """
    if find_recipe(name, Columns()) is None:
        local_path(name)


def _select(
    rows: Rows,
    renamed: Mapping[str, str],
    labels: tuple[str, ...],
    name: str,
    min_labels: int,
    *,
    named: bool,
) -> Corpus:
    """The corpus of the rows whose labels are among `renamed`."""
    skipped: Counter[str] = Counter(rows.notes["counts"])
    for label, reason, number in rows.notes["skipped"]:
        if label in renamed:
            skipped[reason] += number
    types = {renamed[label]: t for label, t in rows.notes["types"].items() if label in renamed}
    rows = rows.where(np.array([label in renamed for label in rows.names], bool)[rows.codes])
    with_text = {renamed[rows.names[code]] for code in np.flatnonzero(np.bincount(rows.codes))}
    _check_texts(name, labels, with_text, types, min_labels, from_column=named)
    names = [renamed.get(label, "") for label in rows.names]
    large = not isinstance(rows.texts, list)
    of = Names(rows.codes, names) if large else [names[code] for code in rows.codes.tolist()]
    counts = dict(sorted(skipped.items()))
    prompts = rows.prompts if renamed.keys() & set(rows.notes["prompted"]) else []
    corpus = Corpus(rows.texts, of, rows.ids, labels, name, counts, prompts)
    whole = not prompts and all(renamed.get(label) == label for label in rows.names)
    if whole and "fingerprint" in rows.notes:
        vars(corpus)["fingerprint"] = rows.notes["fingerprint"]
    elif large:
        key = fingerprint(sorted(renamed.items()))
        vars(corpus)["fingerprint"] = rows.remember(
            f"fingerprint-{key}", lambda: corpus.fingerprint
        )
    return corpus


def _place(data: str, columns: Columns, wanted: tuple[str, ...] | None) -> Path | None:
    """The directory in the cache of a corpus by name, if it is large; None if none is kept."""
    request = find_recipe(data, columns)
    state = local_state(data) if request is None else recipe_state(request)
    if state is None:
        return None
    key = fingerprint([SCHEMA, data if request else "", state, columns, wanted])
    return cache_dir() / "corpora" / "large" / key


def _with_prompts(rows: Iterator[Row], name: str) -> Iterator[Row]:
    """The rows. Raises UserError if they have no column of prompts."""
    for row in rows:
        if len(row) < len(Columns._fields):
            raise _no_prompts(name)
        yield row


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


def _read(
    data: Any,
    columns: Columns,
    wanted: tuple[str, ...] | None,
    name: str,
    place: Path | None,
    say: Say,
) -> Rows:
    """Read and clean all rows. The notes are counts of what is skipped, by label, and types."""
    counts: Counter[str] = Counter()
    found = _Found()
    with track(say, "corpus", None, "rows", brief=True) as bar:
        given = _rows(data, columns, wanted, counts, say)
        if columns.prompt is not None:
            given = _with_prompts(given, name)
        return gather(found.usable(given, bar), place, lambda: found.notes(counts))


class _Found:
    """What is found beside usable rows.

    Attributes:
        labels: label as it is read -> cleaned.
        skipped: (label, reason) -> number of rows that were skipped or repaired.
        types: label -> type of a text that is not a string.
        prompted: labels of rows with a prompt.
        digest: of all rows, without prompts, as that of `Corpus.fingerprint`.
    """

    def __init__(self) -> None:
        self.labels: dict[str | None, str] = {None: ""}
        self.skipped: Counter[tuple[str, str]] = Counter()
        self.types: dict[str, str] = {}
        self.prompted: set[str] = set()
        self.digest = hashlib.sha256()

    def notes(self, counts: Mapping[str, int]) -> dict[str, Any]:
        present = sorted(set(self.labels.values()) - {""})
        if self.unlabelled:
            present = ["", *present]
        skipped = [[*key, number] for key, number in sorted(self.skipped.items())]
        return {
            "labels": present,
            "skipped": skipped,
            "types": self.types,
            "prompted": sorted(self.prompted),
            "counts": dict(counts),
            "fingerprint": self.digest.hexdigest()[:16],
        }

    @property
    def unlabelled(self) -> bool:
        """Whether a row has no label."""
        return ("", "no label") in self.skipped

    def usable(self, rows: Iterable[Row], bar: Any) -> Iterator[Usable]:
        """The usable rows, cleaned, in blocks."""
        rows = iter(rows)
        while block := list(islice(rows, _CHECKED_ROWS)):
            bar.update(len(block))
            columns: list[list[Any]] = list(map(list, zip(*block, strict=True)))
            texts, raw, ids, *prompts = columns
            labels: list[str] = [self.labels.get(label) or self._label(label) for label in raw]
            if not (all(labels) and _are_clean(texts)):
                columns = [list(map(self._clean, texts, labels)), labels, ids, *prompts]
                kept = [text is not None for text in columns[0]]
                texts, labels, ids, *prompts = (list(compress(each, kept)) for each in columns)
            if not texts:
                continue
            quotes = list(map(quoted, texts))
            keys = list(map(_key, ids, quotes))
            prompts = list(map(_clean_prompt, prompts[0])) if prompts else [""] * len(texts)
            self.prompted.update(compress(labels, prompts))
            in_json = (quotes, map(quoted, labels), map(quoted, keys))
            self.digest.update(_as_lists(zip(*in_json, strict=True)))
            yield texts, labels, keys, prompts

    def _label(self, raw: str | None) -> str:
        """The cleaned label; empty if it is missing or blank."""
        if raw not in self.labels:
            self.labels[raw] = clean_text(raw or "").strip()
        return self.labels[raw]

    def _clean(self, text: Any, label: str) -> str | None:
        """The cleaned text; None if the row cannot be used. Counts repairs too."""
        skipped = self.skipped
        if text is not None and not isinstance(text, str):
            self.types[label] = type(text).__name__
        if not label:
            skipped[label, "no label"] += 1
            return None
        if not isinstance(text, str):
            skipped[label, "no text"] += 1
            return None
        if text.startswith("\ufeff"):
            skipped[label, "mended: byte-order mark"] += 1
            text = text.lstrip("\ufeff")
        if UNUSABLE.search(text):
            skipped[label, "mended: NUL or lone surrogate"] += 1
            text = clean_text(text)
        if not text or text.isspace():
            skipped[label, "blank"] += 1
            return None
        return text


def _are_clean(texts: list[Any]) -> bool:
    """Whether all texts can be used as they are. False where it takes a closer look."""
    if set(map(type, texts)) != {str} or not all(texts) or any(map(str.isspace, texts)):
        return False
    joined = "".join(texts)
    return "\ufeff" not in joined and is_usable(joined)


def _key(identity: Any, quote: str) -> str:
    """The id of an example: the one given, or else the hash of its text in JSON.

    The hash is that of `saefeat.io.fingerprint`, but faster.
    """
    if identity is None or identity == "":
        return hashlib.sha256(quote.encode()).hexdigest()[:16]
    return clean_text(str(identity))


def _as_lists(rows: Iterable[tuple[str, ...]]) -> bytes:
    """Rows of strings in JSON as JSON lists."""
    return f"[{']['.join(map(', '.join, rows))}]".encode()


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
