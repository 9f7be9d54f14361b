"""A linear probe for the label at every layer (arXiv 2511.16693).

Logistic regression on the mean vector of a text's counted tokens. Beside it stand the same probe
with shuffled labels, and naive Bayes on counts of the tokens, which needs no forward pass.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from saefeat.artefacts.experiments import Row
from saefeat.baselines import BASELINES
from saefeat.evaluation import head_metrics
from saefeat.experiments.frame import Question
from saefeat.experiments.lenses.bench import LAYERS, Examples, LensBench, Prepared, stage_means
from saefeat.lens.stream import read_means
from saefeat.progress import track

PROBE, SHUFFLED, TOKENS = "probe", "shuffled labels", "token-naive-bayes"
_STEPS = 500  # of the optimiser


def probe(bench: LensBench) -> Prepared:
    """Fit a probe at every layer on train texts, and measure it on test texts.

    Rows have the columns layer, classifier, accuracy, low and high (its 95 % interval), f1_macro,
    train and test (numbers of texts). Naive Bayes has the same figures at all layers.
    """
    config = bench.config
    question = Question(
        "lens-probe",
        "Linear probe for the label by layer",
        bench.settings("train_texts", "test_texts"),
        [{"kind": "lines", "x": "layer", "y": "classifier", "value": "f1_macro", "panels": []}],
        [LAYERS],
    )
    train = bench.examples("train", config.train_texts)
    test = bench.examples("test", config.test_texts)
    probes = _Probes(bench, train, test)

    def summarize(rows: list[Row]) -> list[Row]:
        columns = ("accuracy", "f1_macro")
        return stage_means(rows, ("classifier",), columns, list(bench.sites))

    parts = [str(layer) for layer in bench.sites]
    return Prepared(
        question,
        parts,
        lambda part: probes.measure(int(part)),
        summarize,
        begin=lambda: probes.means,
    )


class _Probes:
    """Fits and measures the probe of one layer after the other."""

    def __init__(self, bench: LensBench, train: Examples, test: Examples) -> None:
        self.bench, self.train, self.test = bench, train, test
        self.labels = list(bench.opened.corpus.labels)

    @cached_property
    def means(self) -> np.ndarray:
        """Mean vectors of all texts, train before test: float32 [layers, texts, d].

        They are in a temporary file, so that memory does not grow with texts and layers.
        """
        lm, sites = self.bench.lm, self.bench.sites
        tokens = [*self.train.tokens, *self.test.tokens]
        found: np.ndarray | None = None
        with track(self.bench.opened.say, "lens-probe", len(tokens), "texts") as bar:
            for number, vectors in read_means(lm, dict(enumerate(tokens)), sites.values()):
                if found is None:
                    width = next(iter(vectors.values())).shape[0]
                    with tempfile.TemporaryFile(dir=self.bench.opened.out) as file:
                        shape = (len(sites), len(tokens), width)
                        found = np.memmap(file, np.float32, "w+", shape=shape)
                for place, site in enumerate(sites.values()):
                    found[place, number] = vectors[site].numpy()
                bar.update()
        assert found is not None
        return found

    @cached_property
    def naive_bayes(self) -> list[str | None]:
        """What naive Bayes on counts of tokens says of the test texts."""
        model = BASELINES[TOKENS].for_run(self.bench.lm, self.labels)
        return model.fit(self.train.texts, self.train.of).predict(self.test.texts)

    def measure(self, layer: int) -> list[Row]:
        x = np.asarray(self.means[list(self.bench.sites).index(layer)])
        cut, seed = len(self.train.of), self.bench.opened.config.seed
        shuffled = np.random.default_rng(seed).permutation(self.train.of).tolist()
        said: dict[str, Sequence[str | None]] = {
            PROBE: fit_probe(x[:cut], self.train.of, x[cut:]),
            SHUFFLED: fit_probe(x[:cut], shuffled, x[cut:]),
            TOKENS: self.naive_bayes,
        }
        return [self._row(layer, name, predicted) for name, predicted in said.items()]

    def _row(self, layer: int, name: str, predicted: Sequence[str | None]) -> Row:
        found: Any = head_metrics(self.test.of, predicted, self.labels)
        low, high = found["accuracy_ci"]
        return {
            "layer": layer,
            "classifier": name,
            "accuracy": found["accuracy"],
            "low": low,
            "high": high,
            "f1_macro": found["f1_macro"],
            "train": len(self.train.of),
            "test": len(self.test.of),
        }


def fit_probe(x: np.ndarray, of: Sequence[str], unseen: np.ndarray) -> list[str]:
    """Fit logistic regression on standardised vectors x [n, d], and label unseen ones [m, d]."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, list(of)).predict(unseen).tolist()
