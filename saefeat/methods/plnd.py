"""PLND, parallel language-specific neuron detection (Zhao et al., arXiv 2402.18815)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from saefeat.methods import Count, Method, records_parameters
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.by_example import Table

Ratio = Annotated[float, Field(gt=0, lt=1)]
FEWEST = 2  # documents of a label; the papers have 100 to 1,000


@records_parameters("plnd")
def plnd(
    stats: Sequence[Stats],
    importances: Sequence[Table],
    *,
    top: Ratio | Count = 0.01,
    sets: Literal["exclusive", "whole", "shared"] = "exclusive",
) -> Selection:
    """Choose the units that are among the most important ones for every document of a label.

    The importance of a unit for a document is the norm of the change of what it writes into when it
    is deactivated (see `saefeat.statistics.importances`). In each dictionary and document the units
    of greatest importance are kept; the set of a label is what is kept in all of its documents.
    The more documents, the smaller it is. A label without documents is left out.

    The released code scores a feed-forward neuron by the sum over tokens of |up projection|, which
    leaves out the gate and the down projection. No site that is collected has this number, so the
    rule offers the published definition alone. Attention is not scored.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        importances: the table `importances` of each dictionary.
        top: how many units of a dictionary are kept per document: a share, rounded down but at
            least one unit (0.01: Chen et al., arXiv 2506.09890), or a number.
        sets: "exclusive": the set of a label without the units that are in the sets of all labels
            (2506.09890; a unit may still be in the sets of several); "whole": the set of a label
            (2402.18815); "shared": the units that are in the sets of all labels, for each label.

    Returns:
        The selection. The score is minus the mean importance over the label's documents. The header
        has the number of units of the sets under `classes`: `shared`, and for each label
        `exclusive: LABEL`.

    Raises:
        UserError: the statistics cannot be pooled, a label has a single document, or fewer than two
            labels have some.
    """
    parts: list[Part] = []
    classes: dict[str, dict[str, float]] = {}
    for each, table in zip(stats, importances, strict=True):
        labels = table.counted(each.labels, FEWEST)
        kept, means = _sets(table, labels, _number(top, table.width))
        shared = kept.all(0)
        classes.setdefault("shared", {})[each.dictionary] = int(shared.sum())
        for k, own in zip(labels, kept, strict=True):
            count = int((own & ~shared).sum())
            classes.setdefault(f"exclusive: {each.labels[k]}", {})[each.dictionary] = count
        chosen = {"whole": kept, "exclusive": kept & ~shared, "shared": kept & shared}[sets]
        label, unit = chosen.nonzero(as_tuple=True)
        parts.append(make_part(each, unit, torch.tensor(labels)[label], -means[label, unit]))
    return Selection.build(parts, classes=classes)


def _is_weighed(header: Mapping[str, Any]) -> bool:
    """Whether a dictionary is the neurons that the down projection reads."""
    return header.get("kind") == "identity" and header.get("site", "").startswith("mlp_hidden@")


METHOD = Method(
    rank=plnd,
    pools=_is_weighed,
    needs="neurons at the site mlp_hidden",
    shown=False,
    score="-importance",
    accumulators=("importances",),
)


def _number(top: float | int, width: int) -> int:
    """The units that are kept per document, exact for the decimal notation of a share."""
    return min(top, width) if isinstance(top, int) else max(1, int(Fraction(repr(top)) * width))


def _sets(table: Table, labels: Sequence[int], number: int) -> tuple[Tensor, Tensor]:
    """The set of each label, bool [k, width], and its mean importances, float64 [k, width]."""
    kept = torch.ones(len(labels), table.width, dtype=torch.bool)
    total = torch.zeros(len(labels), table.width, dtype=torch.float64)
    for label, values in table.windows("importance"):
        for k, own in enumerate(labels):
            rows = values[label == own]
            kept[k] &= _greatest(rows, number).all(0)
            total[k] += rows.sum(0, dtype=torch.float64)
    counts = torch.bincount(table.label, minlength=len(table.labels))[labels]
    return kept, total / counts[:, None]


def _greatest(values: Tensor, number: int) -> Tensor:
    """Which values are among the greatest of their row; of equal ones the first are."""
    least = values.topk(number, dim=1).values[:, -1:]
    above, equal = values > least, values == least
    return above | (equal & (equal.cumsum(1) <= number - above.sum(1, keepdim=True)))
