"""Labelled text: sources, splits, windows and the plan of batches."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.io import UserError, fingerprint
from saefeat.models import LanguageModel

PAPER_LABELS = ("en", "de", "fr", "it", "pt", "hi", "es", "th", "bg", "ru", "tr", "vi", "ja", "ko", "zh")
WINDOW = 1024
TOKEN_LIMIT = 256
BATCH_TOKENS = 512  # padded tokens of a batch on a CPU, where larger ones only add padding
GPU_BATCH_TOKENS = 16_384
_TEST_SHARE = 20  # per cent
_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


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
        return _hash(seed, "split", self.ids[position]) % 100 < _TEST_SHARE

    def positions(self, split: str, seed: int) -> list[int]:
        """Positions of the examples of a split: train, test or all."""
        if split == "all":
            return list(range(len(self)))
        if split not in ("train", "test"):
            raise UserError(f"unknown split {split}; use train, test or all")
        return [i for i in range(len(self)) if self.is_test(i, seed) == (split == "test")]


def _hash(*parts: Any) -> int:
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


# --------------------------------------------------------------------------- sources


def load_corpus(
    source: str | Path | Iterable[tuple[str, str]],
    *,
    labels: Iterable[str] | None = None,
    text_column: str = "text",
    label_column: str = "label",
    id_column: str = "id",
) -> Corpus:
    """Read `embedded:eld`, a .jsonl, .csv, .tsv or .parquet file, a directory of LABEL.txt, or (text, label) pairs.

    Rows without usable text are skipped and counted. Raises UserError for a source that cannot be read, a line
    that cannot be parsed (with its number), a missing column, or a label without usable text.
    """
    wanted = _wanted(labels)
    if isinstance(source, Path):
        source = str(source)
    if not isinstance(source, str):
        rows: Iterator[Row] = ((text, label, None) for text, label in source)
        return _build(rows, "python", wanted)
    columns = (text_column, label_column, id_column)
    return _build(_rows(source, columns, wanted), source, wanted)


Row = tuple[Any, Any, Any]


def _wanted(labels: Iterable[str] | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    wanted = tuple(labels)
    if len(set(wanted)) != len(wanted):
        raise UserError(f"a label is named twice in {','.join(wanted)}")
    if len(wanted) < 2:
        raise UserError("name at least two labels; with one there is nothing to tell apart")
    return wanted


def _rows(source: str, columns: tuple[str, str, str], wanted: tuple[str, ...] | None) -> Iterator[Row]:
    if source.startswith("hub:"):
        raise UserError(f"{source}: corpora on the hub are not supported yet; download it and give a local file")
    if source.startswith("embedded:"):
        return _embedded(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _directory(path, wanted)
    if not path.exists():
        raise UserError(f"the corpus {source} does not exist; give a file, a directory of LABEL.txt or embedded:eld")
    if path.suffix not in _SUFFIXES:
        raise UserError(f"the corpus {source} must end in {', '.join(_SUFFIXES)}, or be a directory of LABEL.txt")
    if path.stat().st_size == 0:
        raise UserError(f"the corpus {source} is empty")
    if path.suffix == ".parquet":
        return _parquet(path, columns)
    text = _read_text(path)
    if path.suffix == ".jsonl":
        return _jsonl(path, text, columns)
    return _delimited(path, text, columns, "\t" if path.suffix == ".tsv" else ",")


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}); convert it to UTF-8") from error


def _lines(text: str) -> list[str]:
    # Not splitlines(): sentences contain other line separators such as U+2028.
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines[:-1] if lines and not lines[-1] else lines)]


def _embedded(source: str) -> Iterator[Row]:
    from saefeat.assets import fetch

    if source != "embedded:eld":
        raise UserError(f"unknown embedded corpus {source}; there is embedded:eld")
    for number, line in enumerate(_lines(_read_text(fetch("eld"))), 1):
        label, tab, text = line.partition("\t")
        if not tab:
            raise UserError(f"{source}: line {number} has no tab")
        yield text, label, None


def _directory(path: Path, wanted: tuple[str, ...] | None) -> Iterator[Row]:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise UserError(f"the corpus directory {path} holds no LABEL.txt files")
    for file in files:
        if wanted is None or file.stem in wanted:
            for line in _lines(_read_text(file)) or [""]:  # a label without a line is a label without text
                yield line, file.stem, None


def _jsonl(path: Path, text: str, columns: tuple[str, str, str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        _check_columns(f"{path}: line {number}", row, columns)
        yield row[columns[0]], row[columns[1]], row.get(columns[2])


def _delimited(path: Path, text: str, columns: tuple[str, str, str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(_lines_kept(text), delimiter=delimiter, strict=True)
    try:
        _check_columns(str(path), reader.fieldnames or [], columns)
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}: line {reader.line_num} has another number of columns than the header")
            yield row[columns[0]], row[columns[1]], row.get(columns[2])
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.reader.line_num} cannot be parsed ({error})") from error


def _lines_kept(text: str) -> Iterator[str]:
    lines = text.split("\n")
    yield from (line + "\n" for line in lines[:-1])
    if lines[-1]:
        yield lines[-1]


def _parquet(path: Path, columns: tuple[str, str, str]) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    _check_columns(str(path), table.column_names, columns)
    ids = table[columns[2]].to_pylist() if columns[2] in table.column_names else [None] * len(table)
    return iter(zip(table[columns[0]].to_pylist(), table[columns[1]].to_pylist(), ids, strict=True))


def _check_columns(where: str, present: Iterable[str], columns: tuple[str, str, str]) -> None:
    names = list(present)
    for column, option in zip(columns[:2], ("--text-column", "--label-column"), strict=True):
        if column not in names:
            raise UserError(f"{where}: no column {column}; there are {', '.join(map(str, names))} (use {option})")
    if columns[2] != "id" and columns[2] not in names:
        raise UserError(f"{where}: no column {columns[2]}; there are {', '.join(map(str, names))} (use --id-column)")


def _build(rows: Iterator[Row], name: str, wanted: tuple[str, ...] | None) -> Corpus:
    corpus = Corpus([], [], [], (), name)
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    for text, label, identity in rows:
        label = "" if label is None else clean_text(str(label)).strip()
        seen.add(label)
        if wanted is not None and label not in wanted:
            continue
        clean = _clean(text, skipped) if label else None
        if not label:
            skipped["no label"] += 1
        if clean is None:
            continue
        corpus.texts.append(clean)
        corpus.of.append(label)
        corpus.ids.append(fingerprint(clean) if identity in (None, "") else clean_text(str(identity)))
    corpus.labels = wanted if wanted is not None else tuple(sorted(seen - {""}))
    corpus.skipped = dict(sorted(skipped.items()))
    _check_labels(corpus, seen)
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


def clean_text(text: str) -> str:
    """Replace NUL and lone surrogates, which no tokenizer takes, by spaces."""
    if text.isascii() and "\0" not in text:
        return text
    return "".join(" " if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def _check_labels(corpus: Corpus, seen: set[str]) -> None:
    for label in corpus.labels:
        if label not in seen:
            some = ", ".join(sorted(seen)[:70])
            raise UserError(f"the corpus {corpus.name} has no label {label}; there are {some}")
    counts = Counter(corpus.of)
    empty = [label for label in corpus.labels if not counts[label]]
    if empty:
        raise UserError(f"the label {empty[0]} of {corpus.name} has no usable text")
    if len(corpus.labels) < 2:
        found = corpus.labels[0] if corpus.labels else "none"
        raise UserError(f"the corpus {corpus.name} needs at least two labels with text (found: {found})")


# --------------------------------------------------------------------------- plan


@dataclass
class Batch:
    """Examples that are run together: positions in the corpus and padded inputs [rows, tokens]."""

    positions: list[int]
    input_ids: Tensor
    attention_mask: Tensor
    counted: Tensor  # bool [rows, tokens]: neither special nor padding


@dataclass
class Plan:
    """Which examples are run, in which windows and batches; decided before any forward pass.

    Attributes:
        tokens: position -> token ids without added special tokens, of the chosen examples only.
        counts: position -> counted tokens.
        policy: what artefacts record of the choice.
        order: the examples' order when it is not the corpus's own (SAE training mixes them by hashed id).
    """

    corpus: Corpus
    tokens: dict[int, list[int]]
    counts: dict[int, int]
    policy: dict[str, Any]
    skipped: dict[str, int]
    order: list[int] | None = None

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def window_count(self) -> int:
        size = len(self.corpus) if self.order is None else len(self.order)
        return -(-size // WINDOW)

    def window(self, number: int) -> list[int]:
        """Positions of the chosen examples of a window."""
        start = number * WINDOW
        if self.order is not None:
            return self.order[start : start + WINDOW]
        return [i for i in range(start, min(start + WINDOW, len(self.corpus))) if i in self.tokens]

    def batches(self, lm: LanguageModel, positions: list[int]) -> Iterator[Batch]:
        """The batches of a window's examples."""
        return plan_batches(lm, {i: self.tokens[i] for i in positions}, count_bos=self.policy["count_bos"])


def plan_batches(lm: LanguageModel, tokens: dict[int, list[int]], *, count_bos: bool = False) -> Iterator[Batch]:
    """Cut examples into batches: sorted by length, filled to a budget of padded tokens, none split."""
    budget = BATCH_TOKENS if lm.device == "cpu" else GPU_BATCH_TOKENS
    extra = len(lm.prefix) + len(lm.suffix)
    rows: list[int] = []
    for position in sorted(tokens, key=lambda i: (len(tokens[i]), i)):
        if rows and (len(rows) + 1) * (len(tokens[position]) + extra) > budget:
            yield make_batch(lm, rows, [tokens[i] for i in rows], count_bos=count_bos)
            rows = []
        rows.append(position)
    if rows:
        yield make_batch(lm, rows, [tokens[i] for i in rows], count_bos=count_bos)


def make_batch(lm: LanguageModel, positions: list[int], tokens: list[list[int]], *, count_bos: bool = False) -> Batch:
    """Pad token lists on the right, with the model's special tokens around them."""
    rows = [[*lm.prefix, *ids, *lm.suffix] for ids in tokens]
    longest = max(map(len, rows))
    pad = lm.tokenizer.pad_token_id
    pad = 0 if pad is None else pad
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    counted = mask.bool() & ~torch.isin(ids, torch.tensor(sorted(lm.special_ids), dtype=ids.dtype))
    if count_bos:
        counted[:, : len(lm.prefix)] = True
    return Batch(positions, ids, mask, counted)


def make_plan(
    corpus: Corpus,
    lm: LanguageModel,
    *,
    split: str = "train",
    seed: int = 0,
    max_tokens: int | None = None,
    token_limit: int = TOKEN_LIMIT,
    mixed: bool = False,
    count_bos: bool = False,
) -> Plan:
    """Choose examples of a split; `max_tokens` is a budget of counted tokens per label, filled by hashed id.

    `mixed`: order the examples by hashed id instead of the corpus's own order, for SAE training.
    `count_bos`: count the tokens that the tokenizer puts before a text, as SAE-LAPE was published.
    Raises UserError when a label has no usable text in the split.
    """
    positions = corpus.positions(split, seed)
    ids = lm.tokenize([corpus.texts[i] for i in positions], token_limit + 1)
    special = lm.special_ids
    tokens = {i: row[:token_limit] for i, row in zip(positions, ids, strict=True)}
    counts = {i: sum(t not in special for t in row) for i, row in tokens.items()}
    skipped = Counter({"no tokens": sum(not n for n in counts.values())})
    skipped["cut at the token limit"] = sum(len(row) > token_limit for row in ids)
    if count_bos:
        counts = {i: n + len(lm.prefix) if n else 0 for i, n in counts.items()}
    by_hash = sorted((i for i in positions if counts[i]), key=lambda i: (_hash(seed, "budget", corpus.ids[i]), i))
    chosen = _within_budget(corpus, by_hash, counts, max_tokens)
    for label in corpus.labels:
        if not any(corpus.of[i] == label for i in chosen):
            raise UserError(f"the label {label} of {corpus.name} has no usable text in the {split} split")
    policy = {"split": split, "seed": seed, "max_tokens": max_tokens, "token_limit": token_limit}
    policy |= {"special": "left out", "count_bos": count_bos}
    order = [i for i in by_hash if i in chosen] if mixed else None
    return Plan(
        corpus,
        {i: tokens[i] for i in chosen},
        {i: counts[i] for i in chosen},
        policy,
        {reason: n for reason, n in sorted(skipped.items()) if n},
        order,
    )


def _within_budget(corpus: Corpus, by_hash: list[int], counts: dict[int, int], budget: int | None) -> set[int]:
    used: Counter[str] = Counter()
    chosen = set()
    for i in by_hash:
        label = corpus.of[i]
        if budget is None or used[label] < budget:
            used[label] += counts[i]
            chosen.add(i)
    return chosen


def first_by_hash(corpus: Corpus, positions: list[int], seed: int, n: int) -> list[int]:
    """At most n examples of each label, chosen by hashed id, in the corpus's order."""
    taken: Counter[str] = Counter()
    chosen = []
    for i in sorted(positions, key=lambda i: (_hash(seed, "budget", corpus.ids[i]), i)):
        if taken[corpus.of[i]] < n:
            taken[corpus.of[i]] += 1
            chosen.append(i)
    return sorted(chosen)
