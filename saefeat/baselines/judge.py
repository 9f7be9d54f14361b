"""Judge the language of texts: fastText's best of all its codes, in the codes of given labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from saefeat.baselines.fasttext import FastText
from saefeat.io import UserError


@dataclass
class LanguageJudge:
    """Calls fastText on texts. The model is loaded at the first use.

    Attributes:
        labels: those in whose codes the judgements are given, of any code system.
        path: a model of fastText; None: the embedded lid.176.ftz.
    """

    labels: Sequence[str]
    path: str | Path | None = None

    def __call__(self, texts: Sequence[str]) -> list[str | None]:
        """The label of each text, or a code where no label has it; None where nothing is said."""
        return [found[0] if found else None for found in self.judge(texts)]

    def judge(self, texts: Sequence[str]) -> list[tuple[str, float] | None]:
        """The label of each text and its probability."""
        # By the labels of the whole, not by those that occur in these texts.
        names = self._fasttext.names
        best = self._fasttext.judge(texts)
        return [(names.get(found[0], found[0]), found[1]) if found else None for found in best]

    def unknown(self, labels: Iterable[str]) -> list[str]:
        """Those of some labels that the judge has no code for."""
        known = set(self._fasttext.names.values())
        return [label for label in labels if label not in known]

    def check(self, labels: Iterable[str], *parameters: str) -> None:
        """Raise UserError for a label that the judge has no code for."""
        if unknown := self.unknown(labels):
            raise UserError(
                f"fastText cannot judge {unknown[0]}; choose another label", *parameters
            )

    @cached_property
    def _fasttext(self) -> FastText:
        return FastText(self.path, labels=list(self.labels), unknown=None).fit()
