"""Sharing: units that are active in all, some, one or none of parallel texts (2406.09265)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from saefeat.io import UserError
from saefeat.methods import Method, Rate, is_hidden_neurons, records_parameters
from saefeat.ranking import Part, make_part
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.by_example import Table, chunks
from saefeat.statistics.patterns import THRESHOLDS

SHARING = ("all-shared", "partial-shared", "specific", "non-activated")
Threshold = Annotated[float, Field(ge=0, le=0.5)]


@records_parameters("sharing")
def sharing(
    stats: Sequence[Stats],
    patterns: Sequence[Table],
    *,
    threshold: Threshold = 0.0,
    where: Literal["last", "any"] = "last",
    share: Rate = 0.5,
) -> Selection:
    """Choose the units that are active in one label's version of a text only, for most texts.

    Texts of one id, one in each of the K labels, are parallel. On such an input, a unit that is
    active in s of its K texts is all-shared (s = K), partial-shared (1 < s < K), specific (s = 1)
    or non-activated (s = 0). The header of the selection has the mean number of units of each class
    over the inputs, by dictionary, under `classes`; `specific: LABEL` is the part of `specific`
    that is active in that label. A label without examples is left out of K.

    Args:
        stats: one item per dictionary. It is read once, so it may load each item when asked.
        patterns: the table `patterns` of each dictionary.
        threshold: a unit is active where its value exceeds it: 0, 0.1, 0.2, 0.3, 0.4 or 0.5.
        where: at the last counted token, or at any.
        share: a unit belongs to a label if it is specific to it on at least this share of the
            inputs. The paper classifies units by input only. At more than half, a unit belongs to
            one label at most; at exactly half, two may share it.

    Returns:
        The selection. The score is minus the share of the inputs on which the unit is specific to
        the label.

    Raises:
        UserError: another threshold, the statistics cannot be pooled, fewer than two labels have
            examples, or no id occurs in all of them.
    """
    level = _level(threshold)
    parts: list[Part] = []
    classes: dict[str, dict[str, float]] = {}
    for each, table in zip(stats, patterns, strict=True):
        labels = table.counted(each.labels)
        names, rows = [each.labels[k] for k in labels], _parallel(table, labels)
        totals, specific = _count(table, rows, where, level)
        for name, total in _classes(totals, specific, names).items():
            classes.setdefault(name, {})[each.dictionary] = total / rows.shape[1]
        shares = specific.double() / rows.shape[1]
        label, unit = (shares >= share).nonzero(as_tuple=True)
        parts.append(make_part(each, unit, torch.tensor(labels)[label], -shares[label, unit]))
    return Selection.build(parts, classes=classes)


def sharing_units(
    stats: Sequence[Stats], patterns: Sequence[Table], threshold: float = 0.0
) -> dict[str, dict[str, list[int]]]:
    """The units of each class: {class: {dictionary: units}}.

    The paper classifies units by input. Here the class of a unit is the one that it has on most
    inputs, at the last counted token; of equally frequent classes the first of `SHARING`.

    Args: as `sharing`. Raises as `sharing`.
    """
    level = _level(threshold)
    found: dict[str, dict[str, list[int]]] = {name: {} for name in SHARING}
    for each, table in zip(stats, patterns, strict=True):
        rows = _parallel(table, table.counted(each.labels))
        none, one, *some, every = _count(table, rows, "last", level)[0]
        counts = torch.stack([every, sum(some, torch.zeros_like(one)), one, none])
        for number, name in enumerate(SHARING):
            mine = counts.argmax(0) == number
            found[name][each.dictionary] = mine.nonzero().flatten().tolist()
    return found


def sharing_classes(active: Tensor) -> Tensor:
    """The class of each unit on one input: int64 [width], a place in `SHARING`.

    `active`: bool [K, width], in which of the K parallel texts each unit is active.
    """
    s, labels = active.sum(0), len(active)
    found = torch.full_like(s, SHARING.index("partial-shared"))
    for name, count in (("specific", 1), ("all-shared", labels), ("non-activated", 0)):
        found[s == count] = SHARING.index(name)
    return found


METHOD = Method(
    rank=sharing,
    pools=is_hidden_neurons,
    needs="neurons at the site mlp_act",
    shown=False,
    score="-share",
    accumulators=("patterns",),
)


def _level(threshold: float) -> int:
    """The place of a threshold. Raises UserError for one that is not collected."""
    if threshold not in THRESHOLDS:
        known = ", ".join(f"{each:g}" for each in THRESHOLDS)
        raise UserError(f"the threshold {threshold:g} was not collected; choose from {known}")
    return THRESHOLDS.index(threshold)


def _parallel(table: Table, labels: Sequence[int]) -> Tensor:
    """The rows of the examples of each parallel input: int64 [labels, inputs].

    Of several texts of one label and id the first counts. Raises UserError where there is no input.
    """
    found: list[dict[str, int]] = [{} for _ in labels]
    for row, (label, name) in enumerate(zip(table.label.tolist(), table.ids, strict=True)):
        found[labels.index(label)].setdefault(name, row)
    shared = [name for name in found[0] if all(name in ids for ids in found)]
    if not shared:
        most = max(sum(name in ids for ids in found) for ids in found for name in ids)
        raise UserError(
            f"the texts are not parallel: of {len(set().union(*found)):,} ids none occurs in all "
            f"{len(labels)} labels, at most in {most}; give translations of one text the same id, "
            "or rank fewer labels",
            "id_column",
        )
    return torch.tensor([[ids[name] for name in shared] for ids in found])


def _count(table: Table, rows: Tensor, where: str, level: int) -> tuple[Tensor, Tensor]:
    """Count inputs by unit.

    Returns:
        int64 [K + 1, width]: by number of labels in which the unit is active; int64 [K, width]: on
        which it is active in this label alone.
    """
    counts, specific = [], []
    for units in chunks(table.width, len(table.label)):
        levels = table.read(where, units.start, units.stop)
        active = torch.stack([levels[own] > level for own in rows])  # [K, inputs, units]
        s = active.sum(0)
        counts.append(torch.stack([(s == n).sum(0) for n in range(len(rows) + 1)]))
        specific.append((active & (s == 1)).sum(1))
    return torch.cat(counts, dim=1), torch.cat(specific, dim=1)


def _classes(counts: Tensor, specific: Tensor, names: Sequence[str]) -> dict[str, int]:
    """The units of each class, summed over the inputs."""
    none, one, *some, every = counts.sum(1).tolist()
    each = zip(names, specific.sum(1).tolist(), strict=True)
    return {
        "all-shared": every,
        "partial-shared": sum(some),
        "specific": one,
        "non-activated": none,
        **{f"specific: {name}": total for name, total in each},
    }
