"""Baselines for the heads: classifiers of raw texts, by name.

The module of a baseline defines a `TextClassifier`.
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
REFERENCE = "fasttext"  # whose errors the report compares with those of the default head
