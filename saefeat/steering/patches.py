"""The values to which patched edits set units: statistics of a label over its sentences.

Rahmanisa et al. (arXiv 2507.22581): a unit has a mean over the tokens of each of 100 sentences.
`pmax` is the greatest of these means, `pmedian` their median, the lower middle value where their
number is even.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.collection import observe
from saefeat.corpora import Plan, first_by_hash, hashed
from saefeat.dictionaries import Dictionary
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.statistics.files import collected_beside
from saefeat.statistics.responses import Responses

SENTENCES = 100
Patches = dict[str, Tensor]  # name of the edit -> value of each unit, float32 [width], on the CPU


def patches_of(means: Tensor) -> Patches:
    """The values of the patched edits, from means by sentence: float32 [n, width]."""
    return {"pmax": means.amax(0), "pmedian": means.median(0).values}


def read_patches(directory: Path, header: Mapping[str, Any], label: str) -> Patches:
    """Read them from the `responses` that were collected with statistics.

    Of more than 100 examples of the label, the first by hashed id count.

    Args:
        directory: of the statistics.
        header: of the dictionary's statistics.

    Raises UserError where no responses were collected, or the label has none.
    """
    (table,) = collected_beside(directory, "responses", [header])
    rows = (table.label == table.labels.index(label)).nonzero().flatten().tolist()
    _check_some(rows, label)
    seed = header["policy"]["seed"]
    first = sorted(rows, key=lambda i: (hashed(seed, "budget", table.ids[i]), i))[:SENTENCES]
    kept = torch.zeros(len(table.ids), dtype=torch.bool)
    kept[first] = True
    return patches_of(table.of_rows(kept).read("mean"))


def collect_patches(
    lm: LanguageModel, plan: Plan, dictionaries: Sequence[Dictionary], label: str
) -> dict[str, Patches]:
    """Compute them from the first 100 texts of a label in a plan, by hashed id.

    Args:
        dictionaries: on the device of the model.

    Returns:
        Dictionary id -> its values.

    Raises UserError where the label has no text in the plan.
    """
    corpus, seed = plan.corpus, plan.policy["seed"]
    own = [int(i) for i in plan.chosen if corpus.of[int(i)] == label]
    _check_some(own, label)
    batches = plan.batches(lm, first_by_hash(corpus, own, seed, SENTENCES))
    found = {d.id: Responses.zeros(corpus.labels, d.width, signed=d.signed) for d in dictionaries}
    for _, observed in observe(lm, dictionaries, batches, corpus):
        for name, one in observed.items():
            found[name].add(one)
    return {name: patches_of(responses.mean) for name, responses in found.items()}


def _check_some(rows: Sequence[int], label: str) -> None:
    if not rows:
        raise UserError(f"{label} has no sentence from which units could be patched")
