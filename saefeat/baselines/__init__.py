"""What features must beat: classifiers of raw texts, by name.

A baseline is one module with a `TextClassifier`, and one line of `BASELINES`. This module imports
no torch, so that help texts can list the names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from saefeat.registry import Registry

if TYPE_CHECKING:
    from saefeat.baselines.classifier import TextClassifier

BASELINES: Registry[type[TextClassifier]] = Registry(
    "baseline",
    {
        "token-naive-bayes": "saefeat.baselines.tokens:TokenNaiveBayes",
        "char-naive-bayes": "saefeat.baselines.characters:CharNaiveBayes",
        "fasttext": "saefeat.baselines.fasttext:FastText",
    },
)
