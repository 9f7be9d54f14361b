"""Prompts with answers, from a table or from the text of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from saefeat.config import Decoding
from saefeat.corpora import TOKEN_LIMIT, Corpus, first_by_hash, hashed
from saefeat.corpora.tables import read_table
from saefeat.experiments.words import split_word
from saefeat.generation import generate, token_losses
from saefeat.io import UserError
from saefeat.labels import own_label
from saefeat.models import LanguageModel
from saefeat.run.opened import OpenRun

_NEEDED = ("prompt", "answer", "label")
_BETWEEN = "|"  # options in one cell

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A prompt and its answer.

    Attributes:
        key: an id that parallel cases of other labels share.
        prompt: token ids, BOS included.
        answer: token ids, at least one.
        options: prompt and answer of each other answer. The tokens of a prompt may depend on what
            follows.
    """

    label: str
    key: str
    prompt: Tokens
    answer: Tokens
    options: tuple[tuple[Tokens, Tokens], ...] = ()


# --------------------------------------------------------------------------- sources


def load_cases(opened: OpenRun, path: Path) -> list[Case]:
    """Load a table (.csv, .tsv, .jsonl or .parquet) with the columns prompt, answer and label.

    The column `id`, which translations share, and the column `options`, the answers to choose from
    (separated by `|`, or a list in .jsonl), may be missing. An answer is written as it follows the
    prompt, with its space. Rows of labels that the run does not have are left out and reported.

    Raises UserError for a table that cannot be read or lacks a column, for an empty prompt, an
    answer without tokens or not among its options, and where no row is left.
    """
    rows = read_table(path, dict.fromkeys(_NEEDED, "table"), "table")
    found, others = [], set()
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        values = {name: row[name] for name in _NEEDED}
        for name in ("prompt", "label"):
            if not values[name].strip():
                raise UserError(f"{where}: the {name} is empty", "table")
        label = own_label(values["label"], opened.corpus.labels)
        if label is None:
            others.add(values["label"])
            continue
        key = str(row.get("id") or number)
        found.append(_case(opened.lm, where, label, key, values, _options(where, row)))
    if others:
        opened.say(
            f"note: the run has no label {', '.join(sorted(others))}; these rows are skipped"
        )
    if not found:
        raise UserError(f"{path} has no row of a label of the run", "table")
    return found


def _options(where: str, row: Mapping[str, Any]) -> list[str]:
    given = row.get("options") or []
    found = given.split(_BETWEEN) if isinstance(given, str) else given
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UserError(f"{where}: the options are {given!r}; give texts separated by {_BETWEEN}")
    if found and row["answer"] not in found:
        raise UserError(f"{where}: the answer {row['answer']!r} is not among its options")
    return [each for each in dict.fromkeys(found) if each != row["answer"]]


def _case(
    lm: LanguageModel,
    where: str,
    label: str,
    key: str,
    values: Mapping[str, str],
    others: Sequence[str],
) -> Case:
    answers = [values["answer"], *others]
    prompts = [values["prompt"]] * len(answers)
    rows, lengths = lm.tokenize_prompted(prompts, answers, TOKEN_LIMIT)
    split = [((*lm.prefix, *row[:n]), tuple(row[n:])) for row, n in zip(rows, lengths, strict=True)]
    for answer, (prompt, tokens) in zip(answers, split, strict=True):
        if not tokens:
            raise UserError(
                f"{where}: the answer {answer!r} has no tokens within {TOKEN_LIMIT} with its prompt"
            )
        if not prompt:
            raise UserError(f"{where}: the prompt has no tokens of its own before {answer!r}")
    return Case(label, key, *split[0], tuple(split[1:]))


def text_cases(
    opened: OpenRun, n: int, tokens: int | None, keys: Iterable[str] | None
) -> list[Case]:
    """Make cases of at most n test texts per label: the token after the first ones is the answer.

    The prompt has `tokens` tokens; of a shorter text, all but the last. Without `tokens` it has all
    but the last, up to TOKEN_LIMIT, of a text without the punctuation after its last word.

    Args:
        keys: ids of the texts to choose from; None: all.

    Raises UserError when no label has a text of two tokens.
    """
    lm, corpus, found = opened.lm, opened.corpus, []
    for label in corpus.labels:
        here = test_positions(opened, label, n, keys)
        texts = [corpus.texts[i] for i in here]
        if tokens is None:
            texts = ["".join(split_word(text)[:2]) for text in texts]
        rows = lm.tokenize(texts, (tokens or TOKEN_LIMIT) + 1)
        for i, row in zip(here, rows, strict=True):
            if len(row) > 1:
                prompt = (*lm.prefix, *row[:-1])
                found.append(Case(label, corpus.ids[i], prompt, (row[-1],)))
    if not found:
        raise UserError("no label has a test text of two tokens; give a table", "table")
    return found


def test_positions(opened: OpenRun, label: str, n: int, keys: Iterable[str] | None) -> list[int]:
    """Positions of at most n test texts of a label by hashed id; `keys`: only of these ids."""
    corpus, seed = opened.corpus, opened.config.seed
    chosen = None if keys is None else set(keys)
    here = [
        i
        for i in corpus.positions("test", seed)
        if corpus.of[i] == label and (chosen is None or corpus.ids[i] in chosen)
    ]
    return first_by_hash(corpus, here, seed, n)


# --------------------------------------------------------------------------- parallel inputs


def parallel_keys(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The keys that occur with every label, of (label, key); none where there is one label."""
    labels: dict[str, dict[str, None]] = {}
    for label, key in pairs:
        labels.setdefault(label, {})[key] = None
    first, *rest = labels.values() if len(labels) > 1 else [{}]
    return [key for key in first if all(key in keys for keys in rest)]


def translations(
    corpus: Corpus, positions: Iterable[int], base: str, n: int, seed: int
) -> dict[str, list[tuple[int, int]]]:
    """Find at most n translations of a label's texts into each other label, which share an id.

    Of several texts of a label with one id the first is taken. Texts that are the same in both
    labels are left out: without ids of its own, a corpus gives equal texts one id. Ids that all
    labels share come first, then by their hash.

    Args:
        positions: of the texts to choose from.

    Returns:
        label -> (position of the text of `base`, position of its translation).
    """
    by_label: dict[str, dict[str, int]] = {label: {} for label in corpus.labels}
    for i in positions:
        by_label[corpus.of[i]].setdefault(corpus.ids[i], i)
    own = by_label.pop(base)
    common = set(own).intersection(*by_label.values())
    order = sorted(own, key=lambda key: (key not in common, hashed(seed, "pairs", key), key))
    found = {}
    for label, there in by_label.items():
        shared = ((own[key], there[key]) for key in order if key in there)
        others = (pair for pair in shared if corpus.texts[pair[0]] != corpus.texts[pair[1]])
        found[label] = list(islice(others, n))
    return found


def test_keys(opened: OpenRun) -> list[str]:
    """The ids of the test split that occur in every label of it."""
    corpus = opened.corpus
    positions = corpus.positions("test", opened.config.seed)
    return parallel_keys((corpus.of[i], corpus.ids[i]) for i in positions)


# --------------------------------------------------------------------------- accuracy


def answered(lm: LanguageModel, cases: Sequence[Case]) -> list[bool]:
    """Whether the model, as it is now, answers each case.

    With options, the answer has to have a greater log-probability than each of them (summed over
    its tokens). Without, it has to be what the model generates greedily.
    """
    found = [False] * len(cases)
    choices = [i for i, case in enumerate(cases) if case.options]
    own = [(cases[i].prompt, cases[i].answer) for i in choices]
    pairs = [pair for i, one in zip(choices, own, strict=True) for pair in (one, *cases[i].options)]
    losses = iter(token_losses(lm, [p + a for p, a in pairs], [len(a) for _, a in pairs]))
    for i in choices:
        loss, *others = [sum(next(losses)) for _ in range(1 + len(cases[i].options))]
        found[i] = all(loss < other for other in others)
    if free := [i for i, case in enumerate(cases) if not case.options]:
        longest = max(len(cases[i].answer) for i in free)
        greedy = Decoding(max_new_tokens=longest, temperature=0.0)
        rows = generate(lm, [cases[i].prompt for i in free], greedy)
        for i, row in zip(free, rows, strict=True):
            found[i] = tuple(row[: len(cases[i].answer)]) == cases[i].answer
    return found
