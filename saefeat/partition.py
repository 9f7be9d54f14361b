"""Where in the model the chosen units are: classes of units by dictionary, and stages of layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saefeat.selection import Selection
from saefeat.sets import dictionary_positions, unit_keys
from saefeat.words import natural

ONE, SEVERAL, ALL = "one label", "several labels", "all labels"
# Classes of units of some labels, which are added, and of units of all, of which the first counts.
_OF_SOME = (ONE, SEVERAL, "specific", "related", "partial-shared")
_OF_ALL = (ALL, "all-shared", "general-all", "general")
_NUMBER = re.compile(r"(?:^|[@.])(\d+)(?=\.|$)")
FEWEST = 4  # layers that can have four stages


def layer_of(site: str) -> int | None:
    """The number of the block in the name of a site (`mlp_act@13`) or in a module path."""
    match = _NUMBER.search(site)
    return int(match[1]) if match else None


def class_counts(selection: Selection) -> dict[str, dict[str, float]]:
    """How many units of each class there are in each dictionary: {class: {dictionary: number}}.

    The classes are those of the method (`header["classes"]`, whose numbers may be means), or else
    units that one label owns, several labels own, and all labels own. With one label there is one
    class, with two there is no class of several.
    """
    if classes := selection.header.get("classes"):
        return {
            name: {each: counts.get(each, 0) for each in _dictionaries(selection)}
            for name, counts in classes.items()
        }
    labels, names = len(selection.labels), _dictionaries(selection)
    (keys,) = unit_keys(selection)
    _, row, owners = np.unique(keys, return_index=True, return_counts=True)
    of = dictionary_positions(selection, names)[row]
    found = {ONE: owners == 1, SEVERAL: (owners > 1) & (owners < labels), ALL: owners == labels}
    kept = [ONE, *([SEVERAL] if labels > 2 else []), *([ALL] if labels > 1 else [])]
    numbers = {name: np.bincount(of[found[name]], minlength=len(names)) for name in kept}
    return {name: dict(zip(names, numbers[name].tolist(), strict=True)) for name in kept}


def four_stages(of_some: Sequence[float], of_all: Sequence[float]) -> list[int] | None:
    """The stage, 1 to 4, of each layer, after Zhang et al. (arXiv 2505.21505), section on layers.

    The paper describes the stages without a rule: units of some languages (specific and related)
    are many in stage 1 (understanding) and stage 3 (the output language), and nearly vanish in
    stage 2 (shared reasoning); units of all languages are most in stage 4 (vocabulary). The rule:

    - stage 2 is the longest run of layers where the share of units of some labels is below its
      mean over layers (of equally long runs the first);
    - stage 1 is what comes before it;
    - stage 4 is the last layers after it, each with a share of units of all labels above the mean
      of stage 2, and with a smaller share of units of some labels than the layer before;
    - stage 3 is what lies between 2 and 4.

    Args:
        of_some: per layer, in order, the share of units that belong to some labels.
        of_all: per layer the share of units that belong to all labels.

    Returns:
        None where there are fewer than four layers, or none is below the mean.
    """
    some, every = np.asarray(of_some, float), np.asarray(of_all, float)
    n = len(some)
    below = some < some.mean() if n else np.zeros(0, bool)
    if n < FEWEST or not below.any():
        return None
    edges = np.flatnonzero(np.diff(np.concatenate([[0], below.view(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    start, end = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    level = every[start:end].mean()
    last = n
    while last > end and every[last - 1] > level and some[last - 1] < some[last - 2]:
        last -= 1
    return [1] * start + [2] * (end - start) + [3] * (last - end) + [4] * (n - last)


def layer_rows(selection: Selection) -> list[dict[str, Any]]:
    """Rows {dictionary, site, layer, width, classes, units, stage}, by kind of site and layer.

    `classes` has the counts of `class_counts`, `units` how many units the method chose.

    Layers are compared within one kind of dictionary at one kind of site; the counts of several
    such dictionaries of a layer make one share. `stage` is None where there is no partition.
    """
    classes, names = class_counts(selection), _dictionaries(selection)
    chosen = np.unique(unit_keys(selection)[0], return_index=True)[1]
    units = np.bincount(dictionary_positions(selection, names)[chosen], minlength=len(names))
    rows = []
    for at, name in enumerate(names):
        header = selection.dictionaries[name]
        site = str(header.get("site") or name)
        counts = {each: numbers[name] for each, numbers in classes.items()}
        rows.append(
            {
                "dictionary": name,
                "site": site,
                "series": (str(header.get("kind")), _NUMBER.sub("*", site, count=1)),
                "layer": layer_of(site),
                "width": header["width"],
                "classes": counts,
                "units": int(units[at]),
            }
        )
    stages = {
        (series, layer): stage
        for series in {row["series"] for row in rows}
        for layer, stage in _stages([row for row in rows if row["series"] == series]).items()
    }
    rows.sort(key=lambda row: (row["series"], row["layer"] is None, row["layer"] or 0))
    return [
        {key: value for key, value in row.items() if key != "series"}
        | {"stage": stages.get((row["series"], row["layer"]))}
        for row in rows
    ]


def _dictionaries(selection: Selection) -> list[str]:
    return sorted(selection.dictionaries, key=natural)


def _stages(rows: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Layer -> stage of the rows of one kind; empty where there is no partition."""
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    of_all = [name for name in _OF_ALL if name in rows[0]["classes"]][:1]
    widths, some, every = (dict.fromkeys(layers, 0.0) for _ in range(3))
    for row in rows:
        if (layer := row["layer"]) is not None:
            widths[layer] += row["width"]
            some[layer] += sum(row["classes"].get(name, 0) for name in _OF_SOME)
            every[layer] += sum(row["classes"][name] for name in of_all)
    shares = [[units[at] / widths[at] for at in layers] for units in (some, every)]
    stages = four_stages(*shares)
    return {} if stages is None else dict(zip(layers, stages, strict=True))
