"""Build the changes of all ways to steer, from chosen units and statistics.

`steer()`, `steer generate`, `steer sweep` and `steer matrix` differ in how they choose units. What
an edit does with them is decided here alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from saefeat.dictionaries import Dictionary
from saefeat.io import UserError
from saefeat.methods.feature_diffmean import mean_difference
from saefeat.statistics import Stats
from saefeat.steering.edits import Change, ablate, add, clamp, replace, scale
from saefeat.steering.errors import CannotSteer, NoUnits
from saefeat.steering.vectors import label_mean, limit_of, project_onto_units


@dataclass(frozen=True)
class Units:
    """Units of one dictionary that are edited together.

    Attributes:
        units: may be empty: the dictionary then only adds its limit on the norm of edited tokens.
        silenced: further units that `clamp` sets to zero.
    """

    dictionary: Dictionary
    units: Sequence[int]
    silenced: Sequence[int] = ()


@dataclass(frozen=True)
class Collected:
    """The statistics that changes are built from.

    Attributes:
        read: dictionary id -> its statistics; those of a site's identity have the id of the site.
        source_label: the label that is steered away from; None: the mean of all others.
        device: of the model.
    """

    read: Callable[[str], Stats]
    source_label: str | None
    device: str

    def stats(self, dictionary: Dictionary) -> Stats:
        """Read statistics of this very dictionary. Raises UserError if they are of another one."""
        stats = self.read(dictionary.id)
        if stats.header["dictionary"].get("fingerprint") != dictionary.identity["fingerprint"]:
            raise UserError(
                f"the statistics of {dictionary.id} are of another dictionary; collect and rank "
                "again"
            )
        return stats

    def difference(self, site: str, label: str) -> Tensor:
        """Difference of means at a site, label minus source: float64 [d].

        Raises NoUnits when the label has no tokens, CannotSteer when the source label has none.
        """
        means = self.read(site)
        check_counted(means, label, self.source_label)
        return mean_difference(means, label, self.source_label)


def check_counted(stats: Stats, label: str, source_label: str | None) -> None:
    """Raise CannotSteer when a label of the statistics has no tokens."""
    empty = {name for name, n in zip(stats.labels, stats.tokens.tolist(), strict=True) if not n}
    if source_label in empty:
        raise CannotSteer(f"the label {source_label} has no tokens in the statistics")
    if label in empty:
        raise NoUnits(f"the label {label} has no tokens in the statistics")


def build_changes(
    edit: str, chosen: Mapping[str, Sequence[Units]], label: str, collected: Collected
) -> dict[str, list[Change]]:
    """Build the changes that an edit of chosen units makes.

    Args:
        edit: one of `EDITS`.
        chosen: site -> units of the dictionaries there. `scale`, `ablate`, `clamp` and `raise`
            encode: their SAEs have to be on the model's device.
        label: of the statistics; the label that is steered towards.

    Returns:
        Site -> changes, for `apply`. Each site gets the force of its own means.

    Raises UserError for an unknown edit, and for statistics that are missing or of another
    dictionary; NoUnits and CannotSteer as `Collected.difference`.
    """
    if edit not in _BUILDERS:
        raise UserError(f"there is no edit {edit!r}; the edits are {', '.join(EDITS)}", "edit")
    return {site: _BUILDERS[edit](site, here, label, collected) for site, here in chosen.items()}


def _add(site: str, here: Sequence[Units], label: str, collected: Collected) -> list[Change]:
    """Add what the units carry of the difference of means."""
    limit = limit_of(collected.read(site), [one.dictionary for one in here])
    difference = collected.difference(site, label)
    vector = project_onto_units([(one.dictionary, one.units) for one in here], difference)
    return [add(vector.to(collected.device), limit)]


def _replace(site: str, here: Sequence[Units], label: str, collected: Collected) -> list[Change]:
    """Replace the vector by the mean of the label."""
    means = collected.read(site)
    limit = limit_of(means, [one.dictionary for one in here])
    return [replace(label_mean(means, label).float().to(collected.device), limit)]


def _clamp(
    only_raise: bool, _site: str, here: Sequence[Units], label: str, collected: Collected
) -> list[Change]:
    """Set the units to the means of the label."""
    made = []
    for one in here:
        values = label_mean(collected.stats(one.dictionary), label)[list(one.units)].float()
        values = torch.cat([values, torch.zeros(len(one.silenced))]).to(collected.device)
        units = [*one.units, *one.silenced]
        made.append(clamp(one.dictionary, units, values, only_raise=only_raise))
    return made


def _multiply(
    make: Callable[[Dictionary, Sequence[int]], Change],
    _site: str,
    here: Sequence[Units],
    _label: str,
    _collected: Collected,
) -> list[Change]:
    """Scale or ablate the units, which reads no statistics."""
    return [make(one.dictionary, one.units) for one in here]


_BUILDERS: dict[str, Callable[[str, Sequence[Units], str, Collected], list[Change]]] = {
    "add": _add,
    "scale": partial(_multiply, scale),
    "clamp": partial(_clamp, False),
    "raise": partial(_clamp, True),
    "ablate": partial(_multiply, ablate),
    "replace": _replace,
}
EDITS = tuple(_BUILDERS)
