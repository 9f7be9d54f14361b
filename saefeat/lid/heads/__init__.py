"""Heads: how weights on bags are found, by name. The module of a head defines a `HeadKind`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saefeat.methods import is_sae
from saefeat.registry import Registry

if TYPE_CHECKING:
    from saefeat.lid.features import Features
    from saefeat.lid.head import Head
    from saefeat.selection import Selection
    from saefeat.statistics import Stats


@dataclass(frozen=True)
class FitData:
    """What a head is fitted on.

    Attributes:
        texts: n texts that say something.
        of: their labels.
        labels: the K labels, in the order of the columns.
        letters: whether a text needs a letter to say something.
        seed: of everything random.
        dictionaries: ids of the dictionaries that the head reads.
        load_stats: computes or reads the statistics of the texts, of one dictionary.
        load_selection: computes or reads what a method chooses, with its published parameters.
        load_features: computes or reads bags of SAEs: the rows of the texts, followed by those of
            the given copies of them.
    """

    texts: list[str]
    of: list[str]
    labels: tuple[str, ...]
    letters: bool
    seed: int
    dictionaries: Sequence[str]
    load_stats: Callable[[str], Stats]
    load_selection: Callable[[str], Selection]
    load_features: Callable[[Sequence[str]], Features]


@dataclass(frozen=True)
class FitSize:
    """How much a head or baseline is fitted on.

    Attributes:
        texts: number of texts.
        tokens: counted tokens of all texts.
        tokens_per_text: mean, with the tokens before a text.
        width: units of all SAEs.
        labels: number of labels.
    """

    texts: int
    tokens: int
    tokens_per_text: float
    width: int
    labels: int


@dataclass(frozen=True)
class HeadKind:
    """A kind of head, and what the stages need to know of it.

    Attributes:
        title: what it is, in a few words, for tables.
        fit: fits a head.
        reads: whether it reads the dictionary of a header. It is fitted where it reads one or
            more.
        place: its place in the report: lower ones first, equal ones as in `HEADS`.
        fit_bytes: bytes of memory that fitting takes.
        fit_tokens: tokens that run through the model for the fit.
    """

    title: str
    fit: Callable[[FitData], Head]
    reads: Callable[[Mapping[str, Any]], bool] = is_sae
    place: int = 2
    fit_bytes: Callable[[FitSize], float] = lambda _: 0.0
    fit_tokens: Callable[[FitSize], float] = lambda _: 0.0


HEADS: Registry[HeadKind] = Registry(
    "head",
    {
        "sae-count": "saefeat.lid.heads.sae_count:HEAD",
        "sae-min-max": "saefeat.lid.heads.sae_min_max:HEAD",
        "neuron-count": "saefeat.lid.heads.neuron_count:HEAD",
        "naive-bayes": "saefeat.lid.heads.naive_bayes:HEAD",
        "linear": "saefeat.lid.heads.linear:HEAD",
    },
)


def sae_heads() -> list[str]:
    """Names of the heads that read SAEs."""
    return [name for name, kind in HEADS.items() if kind.reads({"kind": "sae", "site": ""})]
