"""Configurations of experiments and lenses."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from saefeat.config.fields import SEED, Columns, about
from saefeat.schema import STRICT


@dataclass(frozen=True, config=STRICT)
class ExperimentUnits:
    """Which units an experiment edits. Random units stand beside each."""

    units: tuple[str, ...] = about(
        "features (of low entropy, higher in the label), neurons (by LAPE, of all layers), other "
        "rules of `saefeat rank`, or files of selections.",
        ("neurons", "features"),
        min_length=1,
        kw_only=True,
    )


@dataclass(frozen=True, config=STRICT)
class Continued(ExperimentUnits):
    """What an experiment continues, and how it decodes beside `Decoding`."""

    prompt_file: str | None = about(
        "File of prompts: .txt with one a line, or a table (.jsonl, .csv, .tsv, .parquet) with the "
        "column prompt and, where prompts are of several labels, label.",
        None,
        kw_only=True,
    )
    repetition_penalty: float = about(
        "Divides the logits of tokens that occurred; 1 is none.", 1.0, ge=1, kw_only=True
    )


@dataclass(frozen=True, config=STRICT)
class ArithmeticConfig(Continued):
    """What `saefeat steer arithmetic` swaps (arXiv 2507.22608)."""

    from_: tuple[str, ...] | None = about("Labels of the prompts; default all.", None)
    to: tuple[str, ...] | None = about("Labels to steer towards; default all.", None)
    activate: Literal["additive", "replacement", "diffmean", "none"] = about(
        "What the target's units get: their mean in the label is added or put in their place, or "
        "its difference to the mean of other labels is added.",
        "additive",
    )
    deactivate: float = about("Constant that the source's units are set to.", 0.0)
    keep_source: bool = about("Leave the source's units as they are.", False)
    alpha: float = about("Factor of the means.", 1.0)
    prompts: int = about(
        "Prompts per label: beginnings of its test texts, or the first of the file.",
        6,
        ge=1,
        le=128,
    )


@dataclass(frozen=True, config=STRICT)
class FallbackConfig(Continued):
    """What `saefeat steer fallback` switches off, label after label (arXiv 2507.22608)."""

    order: tuple[str, ...] | None = about(
        "Labels, in the order in which their units are switched off; default that of the paper.",
        None,
    )
    deactivate: float = about("Constant that the units are set to.", -1.5)
    source: str | None = about("Label of the prompts, in place of the English ones.", None)
    prompts: int = about("Prompts.", 16, ge=1, le=128)
    stops: tuple[str, ...] = about(
        r"String before which a continuation ends, \n for a new line.", ()
    )


@dataclass(frozen=True, config=STRICT)
class AblateConfig(ExperimentUnits, Columns):
    """What `saefeat steer ablate` takes out, and on which texts the loss is measured."""

    apart_from: str | None = about(
        "A file of a selection, such as languages: selections that are given get a set without its "
        "units (pure) and one of the units of both (compound).",
        None,
    )
    texts: str | None = about("A second corpus on whose texts the loss is measured too.", None)
    sentences: int = about("Test texts per label.", 15, ge=1)
    texts_split: Literal["test", "all"] = about(
        "Texts of the second corpus: those of its test split, by which no run with the same seed "
        "has chosen units, or all.",
        "test",
    )
    edit: Literal["ablate", "erase"] = about(
        "Set units to zero (ablate), or subtract what a vector has along their directions "
        "(erase, arXiv 2505.05111); for neurons both are the same.",
        "ablate",
    )
    match: Literal["languages", "units"] = about(
        "Split a label's units by those of its language in the other selection, or of all labels.",
        "languages",
    )
    map: tuple[str, ...] | None = about(
        "Labels that belong together but are not codes of one language, such as danish=da.", None
    )


@dataclass(frozen=True, config=STRICT)
class MixConfig(ExperimentUnits):
    """Which texts `saefeat mix` mixes word by word (arXiv 2507.20279)."""

    base: tuple[str, ...] | None = about("Labels of the texts; default the first two.", None)
    with_: tuple[str, ...] | None = about("Labels that are mixed in; default all.", None)
    rates: tuple[int, ...] = about("Per cent of the words that are replaced.", (0, 25, 50, 75, 100))
    dictionary: str | None = about(
        "A table (.csv, .tsv, .jsonl, .parquet) with a column for each label and the words of one "
        "meaning in a row. Default: the words of translations, or else of other texts.",
        None,
    )
    parallel: str | None = about(
        "Corpus whose translations share an id; default the run's own.", None
    )
    texts: int = about("Test texts per label.", 30, ge=1)
    seed: int = SEED


@dataclass(frozen=True, config=STRICT)
class SweptEdits(ExperimentUnits):
    """Which edits amplify units, and by what factors (arXiv 2507.22581)."""

    edits: tuple[str, ...] = about(
        "Edits: pmax, pmedian (patched with the label's sentences), max, quantile, quantile:0.5, "
        "mean, std, iqr, mad (of the values of the token; with add- before, added; with pass- or "
        "pass-add- before, of all tokens), constant, times, and all others of steering.",
        ("pmax", "pmedian", "max"),
        min_length=1,
        kw_only=True,
    )
    factors: tuple[float, ...] = about(
        "What the value of an edit is multiplied by; of constant it is the value, of times the "
        "factor of the present value. 0 edits nothing.",
        (1.0, 2.0),
        min_length=1,
        kw_only=True,
    )


@dataclass(frozen=True, config=STRICT)
class AmplifyConfig(SweptEdits):
    """What `saefeat steer amplify` amplifies and measures."""

    labels: tuple[str, ...] | None = about("Amplify units of these labels; default all.", None)
    sentences: int = about("Test texts per label.", 3, ge=1)
    edits: tuple[str, ...] = about(
        "Edits, as in steer lss.", ("pmax", "pmedian"), min_length=1, kw_only=True
    )
    factors: tuple[float, ...] = about(
        "Factors, as in steer lss.", (1.0,), min_length=1, kw_only=True
    )


@dataclass(frozen=True, config=STRICT)
class FactColumns:
    """Names of the columns of a table of facts."""

    prompt_column: str = about("Column with the prompt, in base.", "prompt", kw_only=True)
    base_column: str = about("Column with the label of the prompt.", "base", kw_only=True)
    target_column: str = about("Column with the label that is amplified.", "target", kw_only=True)
    base_object_column: str = about(
        "Column with the object in base, what follows the prompt.", "base_object", kw_only=True
    )
    target_object_column: str = about(
        "Column with the same object in target.", "target_object", kw_only=True
    )


@dataclass(frozen=True, config=STRICT)
class LSSConfig(SweptEdits, FactColumns):
    """What `saefeat steer lss` amplifies and scores."""

    from_: tuple[str, ...] | None = about(
        "Labels of the prompts; default all of a table, and English of the embedded facts.", None
    )
    to: tuple[str, ...] | None = about("Amplify units of these labels; default all.", None)
    max_facts: int | None = about("Facts per pair of labels; default all.", None, ge=1)


@dataclass(frozen=True, config=STRICT)
class UnitClasses:
    """How the units of a run are sorted into classes, and a table of prompts with answers."""

    pools: tuple[str, ...] = about(
        "Units: neurons (of all layers), features (of all SAEs).",
        ("neurons", "features"),
        min_length=1,
        kw_only=True,
    )
    classes: str | None = about(
        "Classes of units: inputs (all-shared, partial-shared, specific, non-activated on each "
        "parallel input), sharing (the one of these that a unit has on most inputs), ternary "
        "(specific, related, general), owners (one, several, all labels by LAPE), or the owners "
        "by a rule or a file of a selection. Default inputs where texts are parallel, else "
        "ternary.",
        None,
        kw_only=True,
    )
    threshold: float = about("A unit is active above it; by inputs or sharing.", 0.0, kw_only=True)
    table: str | None = about(
        "Table (.csv, .tsv, .jsonl) with prompt, answer, label and, if there are some, id (shared "
        "by translations) and options (separated by |).",
        None,
        kw_only=True,
    )


@dataclass(frozen=True, config=STRICT)
class AttributionConfig(UnitClasses):
    """What `saefeat steer attribute` attributes to units (arXiv 2406.09265)."""

    prompts: int = about("Prompts per label.", 6, ge=1)
    tokens: int | None = about(
        "Tokens of a test text that are a prompt; the next is the answer. Default 16; for classes "
        "by inputs, all but the last token of the last word, so that translations say the same.",
        None,
        ge=1,
    )
    steps: int = about("Steps of integrated gradients.", 20, ge=1)


@dataclass(frozen=True, config=STRICT)
class CategoriesConfig(UnitClasses):
    """What `saefeat steer categories` switches off and measures (2406.09265, 2505.21505)."""

    only: tuple[str, ...] | None = about("Classes to switch off; default all.", None, kw_only=True)
    sentences: int = about("Test texts per label; 0 for none.", 30, ge=0)


LENSES = ("languages", "scripts", "keywords", "words", "alignment", "probe")


@dataclass(frozen=True, config=STRICT)
class LensConfig:
    """What `saefeat lens` looks for in the residual stream, layer by layer."""

    kinds: tuple[str, ...] | None = about(
        f"{', '.join(LENSES)}; default those that the run allows.", None, min_length=1
    )
    layers: tuple[int, ...] | None = about(
        "Layers, -1 for the embeddings; default all.", None, min_length=1
    )
    norm: Literal["both", "with", "without"] = about(
        "Decode with the model's final norm, without it, or both.", "both"
    )
    texts: int = about("Test texts per label that are decoded.", 10, ge=1)
    positions: int = about("Positions per text; 1 is its last token.", 16, ge=1)
    generated: bool = about(
        "Decode where the model generates after the beginning of a text, not in the text.", False
    )
    top: int = about("Tokens decoded at a position.", 10, ge=1)
    reliable: float = about(
        "Least probability of fastText for a token's language.", 0.5, ge=0, le=1
    )
    words: str | None = about(
        "Table (.csv) with the column prompt and one column per language, which has the expected "
        "word (several with | between them); the column target, the language that is asked for, is "
        "optional. Default a table of nouns.",
        None,
    )
    prefixes: bool = about(
        "Count all tokens with which a word may begin, not the first token only.", False
    )
    keywords: str | None = about(
        "Table (.csv) with the columns label and keyword; default the keywords of Pygments.", None
    )
    programming: tuple[str, ...] | None = about(
        "Programming languages as Pygments names them; default those of the run's labels, or ten.",
        None,
        min_length=1,
    )
    programs: str | None = about(
        "Table (.csv) of programs, with one column per programming language: keywords are decoded "
        "where the model reads the translation of a program, not in test texts.",
        None,
    )
    parallel: str | None = about(
        "Corpus whose translations share an id; default the run's own.", None
    )
    pivot: str | None = about("Label that others are compared with; default English.", None)
    pairs: int = about("Pairs of translations per label.", 100, ge=3)
    train_texts: int = about("Train texts per label for the probe.", 100, ge=2)
    test_texts: int = about("Test texts per label for the probe.", 50, ge=1)
