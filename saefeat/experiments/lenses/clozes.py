"""Prompts after which a word is expected, in several languages: from a table, or of nouns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saefeat.corpora.tables import read_table
from saefeat.experiments.lenses.bench import NotApplicable
from saefeat.io import UserError
from saefeat.labels import in_codes
from saefeat.models import LanguageModel

_TABLE = Path(__file__).with_name("words.csv")
_SHOTS = 4  # translations before the one that is asked for
_SYNONYMS = "|"  # between the words of a cell


@dataclass(frozen=True)
class Cloze:
    """A prompt, and the words that are expected after it: language -> one or several.

    `target`: the language in which the answer is asked for, if it is known.
    """

    prompt: str
    words: Mapping[str, Sequence[str]]
    target: str | None = None


def read_clozes(path: Path) -> list[Cloze]:
    """Read a table with the column prompt, and a column for each language with the expected word.

    A cell may have several words, with | between them. The column target is optional; it has the
    language (the name of a column) in which the answer is asked for.

    Raises UserError for a table that `read_table` refuses, that has no language, or whose target is
    none; or for an empty cell.
    """
    rows = read_table(path, {"prompt": "words"}, "words")
    languages = [name for name in rows[0] if name not in ("prompt", "target")]
    if not languages:
        raise UserError(f"{path} has no column of a language beside the prompt", "words")
    found = []
    for number, row in enumerate(rows, 1):
        target = str(row.get("target") or "").strip() or None
        if target is not None and target not in languages:
            raise UserError(f"{path}: row {number} has the target {target}, which is no column")
        words = {name: _words(str(row.get(name) or "")) for name in languages}
        if empty := [name for name, some in words.items() if not all(some)]:
            raise UserError(f"{path}: row {number} has no word in {empty[0]}; give one", "words")
        if not row["prompt"].strip():
            raise UserError(f"{path}: row {number} has no prompt; give one", "words")
        found.append(Cloze(row["prompt"], words, target))
    return found


def _words(cell: str) -> list[str]:
    return [word.strip() for word in cell.split(_SYNONYMS)]


def noun_clozes(labels: Sequence[str]) -> list[Cloze]:
    """Translations of nouns into each label but English, as Wendler et al. ask for them.

    Four translations come first. They are from French, and into French from German.

    Raises NotApplicable where the table has fewer than three of the languages.
    """
    names, *rows = read_table(_TABLE, {}, "words")
    codes = in_codes(labels, names)
    table = [{label: _words(row[code]) for label, code in codes.items()} for row in rows]
    if len(codes) < 3 or len(set(codes.values())) < len(codes):
        raise NotApplicable(
            "the table of nouns has fewer than three of the labels of the run; give a table of "
            "prompts and words",
            "words",
        )
    return [
        Cloze(prompt, words, target)
        for target, code in codes.items()
        if code != "en"
        for prompt, words in _translations(names, rows, code, "de" if code == "fr" else "fr", table)
    ]


def _translations(
    names: Mapping[str, str],
    rows: Sequence[Mapping[str, str]],
    target: str,
    source: str,
    table: Sequence[dict[str, list[str]]],
) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """A prompt for each noun, with the expected words."""
    pairs = [(_words(row[source])[0], _words(row[target])[0]) for row in rows]
    for i, words in enumerate(table):
        shots = [pairs[(i + 1 + n) % len(pairs)] for n in range(_SHOTS)]
        begun = [f'{names[source]}: "{a}" - {names[target]}: "{b}"' for a, b in shots]
        yield "\n".join([*begun, f'{names[source]}: "{pairs[i][0]}" - {names[target]}: "']), words


def first_tokens(lm: LanguageModel, word: str, *, prefixes: bool = False) -> set[int]:
    """Find the tokens with which a word may begin, after a space or not.

    `prefixes`: all tokens that are a beginning of the word, as Wendler et al. count them, not only
    those that the tokenizer gives for the whole word.

    Raises UserError for a word without tokens, or with blank ones only.
    """
    found: set[int] = set()
    for text in (word, f" {word}"):
        ids = lm.tokenizer(text, add_special_tokens=False)["input_ids"]
        found.update(ids[:1])
        if prefixes:
            parts = [text[:n] for n in range(1, len(text))]
            rows = lm.tokenizer(parts, add_special_tokens=False)["input_ids"] if parts else []
            found.update(row[0] for row in rows if len(row) == 1)
    found = {token for token in found if lm.tokenizer.decode([token]).strip()}
    if not found:
        raise UserError(f"the word {word!r} has no tokens; give another", "words")
    return found


def shows(cloze: Cloze, other: Cloze) -> bool:
    """Whether a word that another prompt expects, in any language, stands in this prompt."""
    return any(stands(words, cloze.prompt) for words in other.words.values())


def stands(words: Sequence[str], prompt: str) -> bool:
    """Whether one of some words stands in a prompt, be it within another word."""
    return any(word in prompt for word in words)
