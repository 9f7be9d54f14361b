"""Steer generation: edits of a site's vectors, with a schedule, on an unmodified model.

Edits work on the vectors themselves (`add`, `replace`) or on the values of chosen units (`scale`,
`clamp`, `ablate`, `shift`, `contrast`, and the amplifications of arXiv 2507.22581). Strength 1 is
the length of the difference of means at the site for `add`, the mean of the label for `clamp` and
`replace`, and the whole edit for others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from saefeat.config import CONSTANT, Schedule, SteeringRecipe
from saefeat.dictionaries import Dictionary
from saefeat.io import UserError
from saefeat.labels import own_label
from saefeat.models import LanguageModel
from saefeat.models.weights import is_outdated
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.files import load_stats
from saefeat.steering.changes import (
    EDITS,
    CannotSteer,
    Collected,
    NoUnits,
    Units,
    build_changes,
    open_dictionary,
)
from saefeat.steering.edits import (
    Change,
    ablate,
    add,
    apply,
    check_strength,
    clamp,
    hold,
    replace,
    scale,
    shift,
    times,
)
from saefeat.steering.following import follow
from saefeat.steering.patches import Patches, read_patches

__all__ = [
    "CONSTANT",
    "EDITS",
    "CannotSteer",
    "Change",
    "NoUnits",
    "Schedule",
    "SteeringRecipe",
    "ablate",
    "add",
    "apply",
    "changes_of",
    "check_strength",
    "clamp",
    "follow",
    "hold",
    "replace",
    "scale",
    "shift",
    "steer",
    "times",
]


@contextmanager
def steer(
    lm: LanguageModel,
    selection: Selection,
    label: str,
    strength: float = 1.0,
    *,
    edit: str = "add",
    source: str | None = None,
    schedule: Schedule | None = None,
    stats: str | Path | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> Iterator[None]:
    """Steer `lm.model` towards a label with its units in a selection, while the block runs.

    Args:
        label: a label of the selection, in any code system of `saefeat.labels`; so is `source`.
        strength: 1 is the length of the difference of means (`add`) or the mean of the label
            (`clamp`, `replace`); negative suppresses; 0 changes no bit.
        edit: add, scale, clamp, raise (a clamp that lowers nothing), ablate, replace, shift (add
            the means of the label to the units), or contrast (add their differences to the means of
            the source). Of arXiv 2505.05111: erase (subtract strength times what the vector has
            along the directions of the units). Of arXiv 2507.22581, each with the strength as a
            factor: constant (set the units to it), times (multiply by it), pmax and pmedian (set to
            the greatest or the median mean of the label's sentences, from collected `responses`),
            max, quantile, mean, std, iqr and mad (set to a statistic of the token's values of all
            units, see `saefeat.steering.following`; `quantile:0.5` names another than 0.9), and
            add-max, add-mean and so on, which add it. The published statistics are over all tokens
            of a pass: pass-max, pass-add-max, pass-mean and so on. They make text that is generated
            with and without a cache differ.
        source: the label that is steered away from; None: the mean of all others.
        schedule: default `Schedule()` for `add`: full strength on the prompt and the first tokens,
            little after. Other edits are constant by default, because a weak clamp would hold the
            units down.
        stats: directory of the statistics; default the one that was ranked, which the selection's
            header names.
        dictionaries: by id; default those at the paths in the selection's header.

    Raises:
        UserError: the label or edit is unknown, the label has no units (`NoUnits`), the selection
            is of another model, the strength is not finite, or the statistics of a site's identity
            are missing.
    """
    check_strength(strength)
    changes = changes_of(
        lm, selection, label, edit=edit, source=source, stats=stats, dictionaries=dictionaries
    )
    with apply(lm, changes, strength, schedule or (Schedule() if edit == "add" else CONSTANT)):
        yield


def changes_of(
    lm: LanguageModel,
    selection: Selection,
    label: str,
    *,
    edit: str = "add",
    source: str | None = None,
    stats: str | Path | None = None,
    dictionaries: Mapping[str, Dictionary] | None = None,
) -> dict[str, list[Change]]:
    """Build the changes of the units of a label, by site; for the arguments see `steer`."""
    label = own_label(label, selection.labels) or label
    source = source and (own_label(source, selection.labels) or source)
    rows = selection.for_label(label)
    if not len(rows):
        raise NoUnits(
            f"the selection has no units for {label}; rank with looser parameters, or by the "
            "method feature-diffmean"
        )
    _check_model(selection, lm)
    chosen: dict[str, list[Units]] = {}
    for name, entry in selection.dictionaries.items():
        units = rows.units(name)[label]
        if not units:
            continue
        dictionary = (dictionaries or {}).get(name) or open_dictionary(entry)
        if dictionary.identity["fingerprint"] != entry.get("fingerprint"):
            raise UserError(
                f"the dictionary {name} has changed since it was ranked; collect and rank again"
            )
        if edit not in ("add", "replace"):  # the others encode
            dictionary = dictionary.to(lm.device)
        chosen.setdefault(entry["site"], []).append(Units(dictionary, units))
    read = partial(_load_stats, stats or selection.header.get("stats"))
    directory = Path(str(stats or selection.header.get("stats")))

    def patches(dictionary: Dictionary, label: str) -> Patches:
        return read_patches(directory, read(dictionary.id).header, label)

    collected = Collected(read, source, lm.device, patches)
    return build_changes(edit, chosen, label, collected)


def _load_stats(directory: str | Path | None, dictionary: str) -> Stats:
    if not directory:
        raise UserError("the selection names no statistics; give their directory", "stats")
    return load_stats(Path(directory), dictionary)


def _check_model(selection: Selection, lm: LanguageModel) -> None:
    """Raise UserError when a selection is of another model."""
    model = selection.header.get("model") or {}
    if is_outdated(model.get("fingerprint")):
        raise UserError(
            "the selection was made by an older version of saefeat; collect and rank again"
        )
    if model.get("fingerprint") not in (None, lm.fingerprint):
        raise UserError(f"the selection is of the model {model.get('name')}, not of {lm.name}")
