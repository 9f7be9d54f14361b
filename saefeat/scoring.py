"""Score texts that should be in a label: forcing, language confusion, CLaS-Bench's steering score.

CLaS-Bench (arXiv 2601.08331): language forcing success (LFS) is the share of texts judged to be in
the label, output relevance (OR) the mean rating of their quality, from 0 to 1. The steering score
is the harmonic mean of both, computed from the means and not by text, in per cent.

The judge of quality is a plug: ratings of 0, 1 or 2 from a column or from a command, or, offline,
the perplexity and the repetition of a text against those of its unsteered twin.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from saefeat.baselines.judge import LanguageJudge
from saefeat.config import ScoreConfig
from saefeat.confusion import harmonic_mean, line_passes, pass_rates, split_words, word_passes
from saefeat.corpora.tables import read_table
from saefeat.corpora.text import text_lines
from saefeat.generation import distinct_trigrams, perplexities
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.progress import Say, quiet

RATINGS = (0, 1, 2)
TWINS = ("perplexity", "perplexity_twin", "distinct3", "distinct3_twin")
Row = Mapping[str, Any]


def score_file(path: Path, config: ScoreConfig, say: Say = quiet) -> list[dict[str, Any]]:
    """Score the rows of a table; see `score_texts`.

    A table that `steer generate` writes has all columns that are needed, those of the twins too.

    Raises UserError where a column is missing, a label cannot be judged, a rating is out of range,
    or the command that judges fails.
    """
    text, label, rating = config.text_column, config.label_column, config.rating_column
    judges = [x for x in ("rating_column", "judge_command", "model") if getattr(config, x)]
    if len(judges) > 1:
        raise UserError("quality has two judges; choose one", *judges)
    needed = {text: "text_column", label: "label_column"}
    if config.model:
        needed |= {"prompt": "model", "twin": "model"}
    rows = read_table(path, needed, others={rating: "rating_column"} if rating else {})
    texts, labels = [row[text] for row in rows], [row[label] for row in rows]
    judge = LanguageJudge(list(dict.fromkeys(labels)), config.judge_model)
    judge.check(judge.labels, "label_column")
    words = None if config.words is None else set(text_lines(Path(config.words)))
    if config.model:
        from saefeat.models import load_model

        some = [{"prompt": r["prompt"], "text": r[text], "twin": r["twin"]} for r in rows]
        lm = load_model(config.model, dtype=config.dtype, device=config.device, say=say)
        rows = [{**row, **more} for row, more in zip(rows, measure_twins(lm, some), strict=True)]
    quality = None
    if rating:
        quality = read_ratings((row[rating] for row in rows), str(path))
    elif config.judge_command:
        asked = zip(rows, texts, labels, strict=True)
        quality = ask_command(
            config.judge_command,
            [{"prompt": row.get("prompt"), "text": x, "label": of} for row, x, of in asked],
        )
    elif all(name in row for row in rows for name in TWINS):
        quality = quality_from_twins(rows)
    distinct = None
    if all("distinct3" in row for row in rows):
        distinct = [_number(row["distinct3"]) for row in rows]
    return score_texts(texts, labels, judge, quality=quality, distinct3=distinct, words=words)


def score_texts(
    texts: Sequence[str],
    labels: Sequence[str],
    judge: LanguageJudge,
    *,
    quality: Sequence[float | None] | None = None,
    distinct3: Sequence[float | None] | None = None,
    words: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Score texts label by label, and all together.

    Args:
        labels: the label that each text should be in; the judge has a code for each.
        quality: of each text, from 0 to 1; None: not rated.
        distinct3: share of distinct trigrams of each text; default that of its words.
        words: see `confusion.word_passes`.

    Returns:
        A row per label, and one of all texts with label None: texts, forcing (LFS), lpr, wpr and
        lcpr (see `saefeat.confusion`), distinct3, rated (texts that have a rating), relevance (OR)
        and score, the steering score in per cent. None where nothing can be measured.

    Raises UserError for a label that the judge cannot judge.
    """
    judge.check(dict.fromkeys(labels), "label_column")
    if distinct3 is None:
        distinct3 = [distinct_words(text) for text in texts]
    judged = judge(texts)
    values = {
        "hit": [found == label for found, label in zip(judged, labels, strict=True)],
        "line": [None] * len(texts),
        "word": [None] * len(texts),
        "distinct3": list(distinct3),
        "quality": [None] * len(texts) if quality is None else list(quality),
    }
    places = {x: [i for i, of in enumerate(labels) if of == x] for x in dict.fromkeys(labels)}
    for label, where in places.items():
        some = [texts[i] for i in where]
        lines, good = line_passes(some, label, judge.judge), word_passes(some, label, words)
        for i, line, word in zip(where, lines, good, strict=True):
            values["line"][i], values["word"][i] = line, word
    every: dict[str | None, Iterable[int]] = {**places, None: range(len(texts))}
    return [
        {"label": label, **_summarize({k: [v[i] for i in where] for k, v in values.items()})}
        for label, where in every.items()
    ]


def _summarize(values: Mapping[str, list[Any]]) -> dict[str, Any]:
    forcing, relevance = _mean(values["hit"]), _mean(values["quality"])
    score = None if forcing is None or relevance is None else steering_score(forcing, relevance)
    return {
        "texts": len(values["hit"]),
        "forcing": forcing,
        **pass_rates(values["line"], values["word"]),
        "distinct3": _mean(values["distinct3"]),
        "rated": sum(one is not None for one in values["quality"]),
        "relevance": relevance,
        "score": score,
    }


def steering_score(forcing: float, relevance: float) -> float:
    """CLaS-Bench's steering score, in per cent, from means of 0 to 1; 0 where either is 0."""
    return 100 * harmonic_mean(forcing, relevance)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def distinct_words(text: str) -> float | None:
    """Share of distinct trigrams of words; of letters where there are no blanks between words."""
    words = split_words(text)
    return distinct_trigrams([words]) if len(words) > 2 else None


# --------------------------------------------------------------------------- judges of quality


def read_ratings(ratings: Iterable[Any], where: str) -> list[float | None]:
    """Ratings of 0, 1 or 2 as quality from 0 to 1; None for one that is left out.

    Raises UserError for any other rating, with its number.
    """
    found: list[float | None] = []
    for number, given in enumerate(ratings, 1):
        rating = _number(given)
        if rating is not None and rating not in RATINGS:
            raise UserError(f"{where}: rating {number} is {given!r}; ratings are 0, 1 or 2")
        found.append(None if rating is None else rating / 2)
    return found


def ask_command(command: str, rows: Sequence[Row]) -> list[float | None]:
    """Quality from a shell command that reads a JSON object a line and prints a rating for each.

    `rows`: prompt, text and label, as the command reads them. An empty line leaves a text out.

    Raises UserError where the command fails, prints another number of lines, or another rating.
    """
    given = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = given.encode("utf-8", "replace")
    done = subprocess.run(command, shell=True, input=data, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = f": {said[-1]}" if said else ""
        raise UserError(
            f"the judge failed with exit code {done.returncode}{reason}", "judge_command"
        )
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if len(lines) != len(rows):
        raise UserError(
            f"the judge printed {len(lines)} lines for {len(rows)} texts; it prints a rating of 0, "
            "1 or 2 for each",
            "judge_command",
        )
    return read_ratings(lines, "the judge")


def quality_from_twins(rows: Sequence[Row]) -> list[float | None]:
    """Quality of steered texts against their unsteered twins, from 0 to 1.

    It is min(1, perplexity of the twin / perplexity) * min(1, distinct3 / distinct3 of the twin), 0
    for a text that is too short for a perplexity, and None where the twin is.

    `rows`: with the columns TWINS, which are numbers or empty.
    """
    found: list[float | None] = []
    for number, row in enumerate(rows, 1):
        values = {name: _number(row[name]) for name in TWINS}
        for name, value in values.items():
            if value is not None and not (0 <= value <= 1 if "distinct" in name else value > 0.5):
                raise UserError(f"row {number}: the column {name} is {row[name]!r}")
        perplexity, twin, distinct, twin_distinct = values.values()
        if twin is None or twin_distinct is None:
            found.append(None)
        elif perplexity is None or distinct is None:
            found.append(0.0)
        else:
            repetition = min(1.0, distinct / max(twin_distinct, 1e-9))
            found.append(min(1.0, twin / perplexity) * repetition)
    return found


def measure_twins(lm: LanguageModel, rows: Sequence[Row]) -> list[dict[str, float | None]]:
    """The columns TWINS of rows with a prompt, a text and its twin, under a model."""
    found: list[dict[str, float | None]] = [{} for _ in rows]
    prompts = [lm.prefix + _ids(lm, row["prompt"]) for row in rows]
    for column, end in (("text", ""), ("twin", "_twin")):
        ids = [_ids(lm, row[column]) for row in rows]
        for one, row, perplexity in zip(found, ids, perplexities(lm, prompts, ids), strict=True):
            one[f"perplexity{end}"] = perplexity
            one[f"distinct3{end}"] = distinct_trigrams([row]) if len(row) > 2 else None
    return found


def _ids(lm: LanguageModel, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def _number(value: Any) -> float | None:
    """A cell as a number; None for an empty one, nan for one that is no number."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
