"""Whose keywords are decoded where programs are translated, by layer (arXiv 2506.01074).

The model reads few-shot prompts `SOURCE: program - TARGET: program`. At the tokens of the last
program, which is the translation as the table has it, the top tokens of every layer are attributed
to programming languages by their keywords, and to English.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path

from saefeat.artefacts.experiments import Row
from saefeat.baselines.fasttext import FastText
from saefeat.corpora.tables import read_table
from saefeat.experiments.frame import Question, mean_of
from saefeat.experiments.lenses.bench import (
    LAYERS,
    MEANS,
    LensBench,
    Prepared,
    layer_means,
    stage_means,
)
from saefeat.experiments.lenses.tokens import Attribution, TokenReader, keywords, sample_vocabulary
from saefeat.experiments.lenses.top import TopTokens
from saefeat.generation import encode_prompts
from saefeat.io import UserError, fingerprint
from saefeat.models import LanguageModel

ENGLISH = "English"
_SHOTS = 4  # translations before the one that is read, as published
_FIGURES = ("share", "control")
_NOTES = [
    "Source, target: share of the decoded tokens that are keywords of these languages. The control "
    "is the share of the same keywords in prompts between other languages, of which a table of two "
    "has none.",
    f"{ENGLISH}: tokens that are no keyword and that fastText reads as English. Other: mean share "
    "of the keywords of one other language. Their control is the share among random tokens of the "
    "vocabulary.",
    "A keyword of several languages counts for each.",
]

Programs = Mapping[str, Sequence[str]]
"""Programming language -> programs; those at one place are translations of each other."""


def read_programs(path: Path) -> Programs:
    """Read a table with a column for each programming language, and a row for each program.

    Raises UserError for a table that `read_table` refuses, that has fewer than two columns or rows,
    or that has an empty cell.
    """
    rows = [
        {name.strip(): cell for name, cell in row.items()}
        for row in read_table(path, {}, "programs")
    ]
    languages = list(rows[0])
    if len(languages) < 2 or len(rows) < 2:
        raise UserError(
            f"{path} has {len(languages)} languages (columns) and {len(rows)} programs (rows); two "
            "of each are needed",
            "programs",
        )
    for number, row in enumerate(rows, 1):
        for name in languages:
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise UserError(f"{path}: row {number} has no program in {name}", "programs")
    return {name: [row[name].strip() for row in rows] for name in languages}


def translation_prompts(
    programs: Programs, source: str, target: str, n: int
) -> Iterator[tuple[str, str]]:
    """What stands before a translation, and the translation, of the first n programs.

    The programs of the rows that follow, at most four, are the translations that come first; the
    paper has four fixed ones.
    """
    pairs = list(zip(programs[source], programs[target], strict=True))
    for i, (program, translation) in enumerate(pairs[:n]):
        shots = [pairs[(i + 1 + k) % len(pairs)] for k in range(min(_SHOTS, len(pairs) - 1))]
        lines = [f"{source}: {a} - {target}: {b}" for a, b in shots]
        yield "\n".join([*lines, f"{source}: {program} - {target}:"]), f" {translation}"


class _ProgramTokens(TopTokens):
    """Counts the top tokens of pairs of languages, where translations are read."""

    def __init__(self, bench: LensBench, programs: Programs) -> None:
        super().__init__(bench)
        self.programs = programs

    def rows(self, label: str) -> tuple[list[list[int]], list[list[int]]]:
        """The prompts of a pair with translations, and the places before each token of these."""
        source, target = self.pairs[label]
        lm, n = self.bench.lm, self.bench.config.texts
        begun, after = map(
            list, zip(*translation_prompts(self.programs, source, target, n), strict=True)
        )
        longest = _longest(lm, [a + b for a, b in zip(begun, after, strict=True)], label)
        rows, lengths = lm.tokenize_prompted(begun, after, longest)
        pairs = zip(rows, lengths, strict=True)
        return rows, [[*range(length - 1, len(row) - 1)] for row, length in pairs]

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """Name -> source and target."""
        return {f"{one} to {other}": (one, other) for one, other in permutations(self.programs, 2)}


def _longest(lm: LanguageModel, texts: list[str], pair: str) -> int:
    """The tokens of the longest text. Raises UserError where one exceeds the context."""
    try:
        return max(map(len, encode_prompts(lm, texts, 0)))
    except UserError as error:
        raise UserError(f"{pair}: {error}; give shorter programs", "programs") from error


def program_keywords(bench: LensBench) -> Prepared:
    """Attribute the top tokens of every layer where translations of programs are read.

    Of each translation `positions` are decoded, evenly spread; the paper decodes all.

    Rows have the columns source, target, norm, layer, decoded (a class), role (source, target,
    English or other) and, as in `decode_tokens`, count, share, attributed, vocabulary, mass and
    by_chance.

    Raises UserError for a table of programs that cannot be used, a language without keywords, and
    where generated text is asked for.
    """
    config = bench.config
    if config.generated:
        raise UserError(
            "the lens on programs reads the translations of the table, not what the model "
            "generates; leave one of the two out",
            "programs",
            "generated",
        )
    programs = read_programs(Path(config.programs or ""))
    attribution = _with_english(bench, keywords(bench, list(programs)))
    top = _ProgramTokens(bench, programs)
    pairs = top.pairs
    size = {name: sum(map(len, some)) for name, some in programs.items()}
    top.rows(max(pairs, key=lambda pair: sum(size[name] for name in pairs[pair])))  # checks
    question = Question(
        "lens-programs",
        "Logit lens: keywords of the decoded tokens where programs are translated, by layer",
        {
            **bench.settings("norm", "texts", "positions", "top", "reliable"),
            **attribution.settings,
            "programs": fingerprint({name: list(some) for name, some in programs.items()}),
        },
        [MEANS],
        [LAYERS, *_NOTES],
    )
    reader = TokenReader(bench.lm, attribution)
    chance = cache(lambda: sample_vocabulary(bench, reader))

    def measure(pair: str) -> list[Row]:
        source, target = pairs[pair]
        roles = {source: "source", target: "target", ENGLISH: ENGLISH}
        return [
            {
                "source": source,
                "target": target,
                "norm": norm,
                "layer": layer,
                **row,
                "role": roles.get(str(row["decoded"]), "other"),
            }
            for (norm, layer), counted in top.count(pair).items()
            for row in reader.rows(counted, chance())
        ]

    def summarize(rows: list[Row]) -> list[Row]:
        return stage_means(with_controls(rows), ("norm", "role"), _FIGURES, list(bench.sites))

    def average(rows: list[Row]) -> list[Row]:
        return layer_means(with_controls(rows), _FIGURES, "role")

    return Prepared(question, list(pairs), measure, summarize, average=average)


def _with_english(bench: LensBench, found: Attribution) -> Attribution:
    """A rule that knows English too: what is no keyword, and reliably English by fastText.

    Raises UserError where a programming language has that name.
    """
    if ENGLISH in found.classes:
        raise UserError(
            f"{ENGLISH} is the class of words that are no keywords; name the language otherwise",
            "keywords",
        )
    judge, least = FastText(labels=["en"], unknown=None).fit().judge, bench.config.reliable

    def read(strings: list[str]) -> list[tuple[str, ...]]:
        pairs = zip(found.read(strings), judge(strings), strict=True)
        return [
            names or ((ENGLISH,) if best and best[0] == "en" and best[1] >= least else ())
            for names, best in pairs
        ]

    return replace(found, classes=[*found.classes, ENGLISH], read=read)


def with_controls(rows: Sequence[Row]) -> list[Row]:
    """The rows with the column control, which a share is compared with.

    For a source or target it is the mean share of its keywords, at the same norm and layer, in the
    prompts between other languages; None where there are none. For other classes it is the share in
    the vocabulary.
    """
    elsewhere: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row["role"] == "other":
            elsewhere.setdefault((row["norm"], row["layer"], row["decoded"]), []).append(row)
    found: list[Row] = []
    for row in rows:
        control = row["vocabulary"]
        if row["role"] in ("source", "target"):
            key = (row["norm"], row["layer"], row["decoded"])
            control = mean_of(elsewhere.get(key, []), "share")
        found.append({**row, "control": control})
    return found
