"""`linear`: logistic regression on the bags of all units."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from sklearn.feature_selection import chi2
from sklearn.linear_model import LogisticRegression

from saefeat.corpora.examples import says_something
from saefeat.lid.features import Features, root_counts
from saefeat.lid.head import Head
from saefeat.lid.heads import FitData, FitSize, HeadKind

WEIGHTS = 2**24  # greatest number of units times labels; fitting takes about 200 bytes for each
DENSE_BYTES = 1.5e9  # below it the fit is dense, which is several times faster
C = 10.0  # inverse strength of the L2 penalty
SHORT = 20  # characters of a beginning of a text
CAPITALS = 0.2  # weight of a copy in capitals, which are rare


def linear_head(
    features: Features,
    of: Sequence[str],
    labels: Sequence[str],
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> Head:
    """Logistic regression on square-rooted, length-normalised counts.

    It reads all units where these make at most `WEIGHTS` weights, else those that tell the labels
    apart best, by chi-squared.

    Args:
        features: of n texts.
        of: the label of each text.
        labels: the K labels, in the order of the columns.
        weights: of the texts, float64 [n]; default 1.
    """
    rooted = root_counts(features.counts)
    names = sorted(rooted)
    x = sp.csr_matrix(sp.hstack([rooted[name] for name in names]), dtype=np.float32)
    kept, most = np.arange(x.get_shape()[1]), WEIGHTS // len(labels)
    if len(kept) > most:
        kept = _most_informative(x, of, most)
        x = sp.csr_matrix(x[:, kept])
    dense = x.toarray() if math.prod(x.get_shape()) * 4 <= DENSE_BYTES else x
    model = LogisticRegression(C=C, max_iter=200, tol=1e-3, random_state=seed)
    fitted = model.fit(dense, np.asarray(of), sample_weight=weights)
    coefficients, intercept = _in_order(fitted, labels)
    head = Head("linear", tuple(labels), {}, {}, {}, intercept, root=True, probabilistic=True)
    start = 0
    for name in names:
        width = rooted[name].get_shape()[1]
        mine = (kept >= start) & (kept < start + width)
        head.units[name] = kept[mine] - start
        head.counts[name] = coefficients[:, mine].T
        start += width
    return head


def _in_order(fitted: LogisticRegression, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [K, m] and intercept [K], float64, in the order of `labels`."""
    order = [list(fitted.classes_).index(label) for label in labels]
    coefficients, intercept = fitted.coef_, fitted.intercept_
    if len(labels) == 2:  # scikit-learn keeps one row for two classes
        coefficients = np.vstack([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    return np.asarray(coefficients, np.float64)[order], np.asarray(intercept, np.float64)[order]


def _most_informative(x: sp.csr_matrix, of: Sequence[str], most: int) -> np.ndarray:
    """The `most` columns of x of greatest chi-squared: int64, ascending; ties to the first."""
    scores = np.nan_to_num(chi2(x, np.asarray(of))[0], nan=-1.0)  # NaN: a unit that never fires
    return np.sort(np.argsort(-scores, kind="stable")[:most])


def make_copies(
    texts: Sequence[str], of: Sequence[str], *, letters: bool = True
) -> tuple[list[str], list[str], np.ndarray]:
    """Copy the beginnings of n texts, and the texts and beginnings in capitals.

    Copies that say nothing are left out, and so are copies in capitals that equal their text.

    Args:
        of: the label of each text.
        letters: whether a text needs a letter to say something (see `says_something`).

    Returns:
        The copies; their labels; the weights of the n whole texts (1) followed by those of the
        copies, float64.
    """
    short = [text[:SHORT] for text in texts]
    rows = [(text, label, 1.0) for text, label in zip(short, of, strict=True)]
    for text, label in zip([*texts, *short], [*of, *of], strict=True):
        if text.upper() != text:
            rows.append((text.upper(), label, CAPITALS))
    rows = [row for row in rows if says_something(row[0], letters=letters)]
    weights = np.array([1.0] * len(texts) + [weight for _, _, weight in rows])
    return [text for text, _, _ in rows], [label for _, label, _ in rows], weights


def fit(data: FitData) -> Head:
    """Fit on the texts, their beginnings, and both in capitals."""
    copies, copies_of, weights = make_copies(data.texts, data.of, letters=data.letters)
    features = data.load_features(copies)
    return linear_head(features, data.of + copies_of, data.labels, weights=weights, seed=data.seed)


def _fit_bytes(size: FitSize) -> float:
    """Dense rows, or the history of the optimiser."""
    kept = min(size.width, WEIGHTS // size.labels)
    dense = 4 * size.texts * kept * 4
    return dense * 3 if dense <= DENSE_BYTES else 24 * 8 * kept * size.labels


def _fit_tokens(size: FitSize) -> float:
    """Beginnings, and texts and beginnings in capitals."""
    return size.texts * 2.3 * min(size.tokens_per_text, 9.0) + 1.3 * size.tokens


HEAD = HeadKind(
    "logistic regression on bags of all units",
    fit,
    place=0,
    fit_bytes=_fit_bytes,
    fit_tokens=_fit_tokens,
)
