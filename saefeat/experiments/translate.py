"""Translation under steering: is the output in the target language, and is it a translation?

arXiv 2510.07213. The prompt names the target language. ACC is the share of outputs
that fastText judges to be in it with a probability of at least .5. BLEU is the mean over these of
the BLEU of each sentence, and the score is their product. BLEU and chrF of the corpus are over all
outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saefeat.artefacts.experiments import Experiment, Row
from saefeat.config import Decoding, SteeringRecipe, TranslateConfig
from saefeat.corpora.tables import read_table
from saefeat.experiments.frame import Question, carry_out, mean_of
from saefeat.generation import cut_at_stops, encode_prompts, generate
from saefeat.io import UserError, fingerprint
from saefeat.labels import fasttext_code, language_name, own_label
from saefeat.run.opened import OpenRun
from saefeat.run.recipes import choose_recipe
from saefeat.run.steer import Bench, find_source
from saefeat.steering import NoUnits, apply
from saefeat.steering.twins import SEED

NAME = "translation"
SURE = 0.5  # least probability of fastText
_FIGURES = ("acc", "bleu", "acc_bleu", "corpus_bleu", "chrf")
Pairs = list[tuple[str, str]]  # source sentence and reference


def translate(
    opened: OpenRun, config: TranslateConfig, decoding: Decoding, out: Path | None = None
) -> Experiment:
    """Translate the sentences of a table into each label, steered and unsteered.

    Rows have the columns method ("none" is the unsteered model, "random" the random twin of the
    method, see `saefeat.steering.recipes.with_controls`), label, units, strength, sentences, acc,
    bleu (mean over the outputs in the language, 0 to 100), acc_bleu, corpus_bleu, chrf (both over
    all outputs) and tokenizer (of BLEU).

    Raises UserError where sacrebleu is missing, the table lacks a column, or has a label that the
    run lacks or fastText cannot judge.
    """
    _check_installed()
    bench = Bench(opened, find_source(opened, config.source), decoding)
    pairs = _read_pairs(bench, config)
    jobs = _jobs(bench, {label: choose_recipe(bench, label, config) for label in pairs})
    settings = {
        **asdict(config),
        "sentences_of": {label: [list(pair) for pair in some] for label, some in pairs.items()},
        "recipes": {name: asdict(recipe) for name, (_, recipe, _) in jobs.items()},
        "statistics": fingerprint(bench.origins([recipe for _, recipe, _ in jobs.values()])),
        "random_seed": SEED,
        "source_label": bench.source_label,
        "decoding": asdict(decoding),
        "tokenizers": {label: bleu_tokenizer(label) for label in pairs},
    }
    question = Question(
        NAME,
        "Translation: share in the language, BLEU and chrF",
        settings,
        [
            {"kind": "heat", "x": "label", "y": "method", "value": name, "panels": []}
            for name in ("acc", "acc_bleu", "chrf")
        ],
        [
            "BLEU is the mean over the outputs that are in the language; corpus BLEU and chrF are "
            "over all outputs."
        ],
    )

    def measure(part: str) -> list[Row]:
        name, recipe, label = jobs[part]
        row = _measure(bench, config, recipe, label, pairs[label])
        return [{"method": name, **row}]

    out = out or opened.files.experiment_file(NAME)
    return carry_out(opened, out, question, list(jobs), measure, _summarize)


def _read_pairs(bench: Bench, config: TranslateConfig) -> dict[str, Pairs]:
    """Label of the run -> the first sentences of the table with their translations."""
    names = ("source_column", "reference_column", "label_column")
    of = {getattr(config, name): name for name in names}
    rows = read_table(Path(config.table), of, "table")
    columns = [[row[getattr(config, name)] for row in rows] for name in names]
    own = {label: own_label(label, bench.opened.corpus.labels) for label in columns[2]}
    named = "labels" if config.labels else "label_column"
    chosen = [bench.find_target(label, named) for label in config.labels or own]
    pairs: dict[str | None, Pairs] = {label: [] for label in dict.fromkeys(chosen)}
    for source, reference, label in zip(*columns, strict=True):
        some = pairs.get(own[label])
        if some is not None and len(some) < config.sentences:
            some.append((source, reference))
    if empty := [label for label, some in pairs.items() if not some]:
        raise UserError(f"{config.table} has no sentence for {empty[0]}", "labels")
    found = {label: some for label, some in pairs.items() if label is not None}
    bench.judge.check(found, "label_column")
    return found


def _jobs(
    bench: Bench, recipes: Mapping[str, SteeringRecipe]
) -> dict[str, tuple[str, SteeringRecipe, str]]:
    """What is measured, by name: the name of a row's method, its recipe, and the label.

    A label without units for a method is reported and left out.
    """
    jobs: dict[str, tuple[str, SteeringRecipe, str]] = {}
    missing: NoUnits | None = None
    bench.collect_missing(recipes.values())
    for label, recipe in recipes.items():
        try:
            some = bench.add_controls(recipe, label)
        except NoUnits as error:
            bench.opened.say(f"note: {label} is skipped: {error}")
            missing = error
        else:
            jobs |= {f"{name} {label}": (name, one, label) for name, one in some.items()}
    if not jobs and missing:
        raise missing
    return jobs


def build_prompt(sentence: str, source: str, target: str) -> str:
    """The published prompt, with names of languages; its end asks for one line in the target."""
    article = "an" if source[0] in "AEIOU" else "a"
    return f"Translate {article} {source} sentence into {target}.\n{source}: {sentence}\n{target}: "


def _measure(
    bench: Bench, config: TranslateConfig, recipe: SteeringRecipe, label: str, pairs: Pairs
) -> Row:
    lm, decoding = bench.opened.lm, bench.decoding
    names = language_name(bench.source_label), language_name(label)
    prompts = [build_prompt(" ".join(source.split()), *names) for source, _ in pairs]
    ids = encode_prompts(lm, prompts, decoding.max_new_tokens)
    changes, units = bench.builder.build(recipe, label)
    with apply(lm, changes, recipe.strength, recipe.schedule):
        penalty = config.repetition_penalty
        rows = generate(lm, ids, decoding, repetition_penalty=penalty, stops=("\n",))
    outputs = [text.strip() for text in cut_at_stops(lm, rows, ("\n",))[1]]
    judged = bench.judge.judge(outputs)
    good = [one is not None and one[0] == label and one[1] >= SURE for one in judged]
    return {
        "label": label,
        "units": units,
        "strength": recipe.strength,
        "sentences": len(pairs),
        **translation_scores(outputs, [reference for _, reference in pairs], good, label),
        "tokenizer": bleu_tokenizer(label),
    }


def translation_scores(
    outputs: Sequence[str], references: Sequence[str], good: Sequence[bool], label: str
) -> dict[str, float | None]:
    """acc, bleu, acc_bleu, corpus_bleu and chrf; BLEU and chrF from 0 to 100.

    Args:
        good: which outputs are in the language.
        label: of the references, which says how BLEU cuts them into words.

    Raises UserError when sacrebleu is not installed.
    """
    _check_installed()
    metrics = import_module("sacrebleu.metrics")
    tokenizer = bleu_tokenizer(label)
    sentence = metrics.BLEU(effective_order=True, tokenize=tokenizer)
    each = [
        sentence.sentence_score(output, [reference]).score
        for output, reference, ok in zip(outputs, references, good, strict=True)
        if ok
    ]
    acc, bleu = len(each) / len(outputs), sum(each) / len(each) if each else None
    corpus = metrics.BLEU(tokenize=tokenizer).corpus_score(list(outputs), [list(references)])
    return {
        "acc": acc,
        "bleu": bleu,
        "acc_bleu": acc * (bleu or 0.0),
        "corpus_bleu": corpus.score,
        "chrf": metrics.CHRF().corpus_score(list(outputs), [list(references)]).score,
    }


def bleu_tokenizer(label: str) -> str:
    """How sacrebleu cuts text of a label into words: zh, ja-mecab (char without MeCab) or 13a."""
    code = fasttext_code(label)
    if code == "ja":
        return "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"
    return "zh" if code == "zh" else "13a"


def _check_installed() -> None:
    if not find_spec("sacrebleu"):
        raise UserError("BLEU and chrF need the library sacrebleu; install saefeat[translation]")


def _summarize(rows: list[Row]) -> list[Row]:
    """Means over labels, by method."""
    found: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        here: list[Mapping[str, Any]] = [row for row in rows if row["method"] == method]
        means = {name: mean_of(here, name) for name in _FIGURES}
        found.append({"method": method, "labels": len(here), **means})
    return found
