"""Build the changes of all ways to steer, from chosen units and statistics.

`steer()`, `steer generate`, `steer sweep` and `steer matrix` differ in how they choose units. This
module alone decides what an edit does with the units. Strength 1 is one force for all methods that
add a vector: the length of the difference of means at the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.dictionaries import Dictionary, Identity
from saefeat.io import UserError
from saefeat.methods.feature_diffmean import mean_difference
from saefeat.sae.store import load_sae
from saefeat.statistics import Stats
from saefeat.steering.along import erase
from saefeat.steering.edits import Change, ablate, add, clamp, replace, scale, shift, times
from saefeat.steering.following import STATISTICS, follow
from saefeat.steering.patches import Patches

_PATCHED = ("pmax", "pmedian")
_STATISTICS = {"max": 1.0, "quantile": 0.9, **{name: name for name in STATISTICS}}
_FOLLOWING: dict[str, dict[str, Any]] = {  # test-time edits: see `follow`
    f"{of_pass}{added}{name}": {
        "statistic": statistic,
        "added": bool(added),
        "of_pass": bool(of_pass),
    }
    for of_pass in ("", "pass-")
    for name, statistic in _STATISTICS.items()
    for added in ("", "add-")
}
EDITS = (
    *("add", "scale", "clamp", "raise", "ablate", "replace", "shift", "contrast"),
    *("constant", "times", "erase", *_PATCHED, *_FOLLOWING),
)
OF_PASS = tuple(name for name, how in _FOLLOWING.items() if how["of_pass"])
"""Edits of a token that depend on the other tokens of the forward pass; see `follow`."""


class CannotSteer(UserError):
    """A label or a run cannot be steered or measured. A sweep skips the label, a run the stage."""


class NoUnits(CannotSteer):
    """A label has nothing to be steered with."""


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
        patches: dictionary and label -> values of the patched edits (`saefeat.steering.patches`).
        control: dictionary id -> its statistics on random tokens; None where there are none.
    """

    read: Callable[[str], Stats]
    source_label: str | None
    device: str
    patches: Callable[[Dictionary, str], Patches] | None = None
    control: Callable[[str], Stats | None] | None = None

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
    empty = {*stats.labels} - {*stats.counted_labels}
    if source_label in empty:
        raise CannotSteer(f"the label {source_label} has no tokens in the statistics")
    if label in empty:
        raise NoUnits(f"the label {label} has no tokens in the statistics")


def build_changes(
    edit: str, chosen: Mapping[str, Sequence[Units]], label: str, collected: Collected
) -> dict[str, list[Change]]:
    """Build the changes that an edit of chosen units makes.

    Args:
        edit: one of `EDITS`; `quantile:0.5` is the quantile 0.5.
        chosen: site -> units of the dictionaries there. `scale`, `ablate`, `clamp` and `raise`
            encode, as `shift` and `contrast` do: their SAEs have to be on the model's device.
        label: of the statistics; the label that is steered towards.

    Returns:
        Site -> changes, for `apply`. Each site gets the force of its own means.

    Raises UserError for an unknown edit, and for statistics that are missing or of another
    dictionary; NoUnits and CannotSteer as `Collected.difference`.
    """
    check_edit(edit)
    return {site: _build_at(site, edit, here, label, collected) for site, here in chosen.items()}


def check_edit(edit: str, parameter: str = "edit") -> None:
    """Raise UserError for an edit that does not exist; `parameter` is the one that named it."""
    name, colon, quantile = edit.partition(":")
    if name not in EDITS or (colon and "quantile" not in name):
        raise UserError(f"there is no edit {edit!r}; the edits are {', '.join(EDITS)}", parameter)
    try:
        valid = not colon or 0 <= float(quantile) <= 1
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"the quantile of the edit {edit!r} is not a number from 0 to 1", parameter)


def _build_at(
    site: str, edit: str, here: Sequence[Units], label: str, collected: Collected
) -> list[Change]:
    if edit in ("scale", "ablate"):  # these read no statistics
        make = scale if edit == "scale" else ablate
        return [make(one.dictionary, one.units) for one in here]
    if edit == "erase":
        rows = torch.cat([one.dictionary.directions_of(one.units) for one in here])
        limit = norm_limit([one.dictionary for one in here])
        return [erase(rows.to(collected.device), limit)]
    name, _, quantile = edit.partition(":")
    if name in _FOLLOWING:
        how: dict[str, Any] = _FOLLOWING[name] | (
            {"statistic": float(quantile)} if quantile else {}
        )
        return [follow(one.dictionary, one.units, **how) for one in here]
    if edit == "times":
        return [times(one.dictionary, one.units) for one in here]
    if edit == "constant":
        return [
            clamp(one.dictionary, one.units, torch.ones(len(one.units), device=collected.device))
            for one in here
        ]
    if edit in _PATCHED:
        return [_patch(edit, one, label, collected) for one in here]
    if edit in ("clamp", "raise"):
        return [_clamp(one, label, collected, only_raise=edit == "raise") for one in here]
    if edit in ("shift", "contrast"):
        return [_shift(one, label, collected, contrast=edit == "contrast") for one in here]
    means = collected.read(site)
    limit = limit_of(means, [one.dictionary for one in here])
    if edit == "replace":
        return [replace(label_mean(means, label).float().to(collected.device), limit)]
    difference = collected.difference(site, label)
    vector = project_onto_units([(one.dictionary, one.units) for one in here], difference)
    return [add(vector.to(collected.device), limit)]


def _clamp(one: Units, label: str, collected: Collected, *, only_raise: bool) -> Change:
    """Set units to the means of the label, and the silenced ones to zero."""
    values = label_mean(collected.stats(one.dictionary), label)[list(one.units)].float()
    values = torch.cat([values, torch.zeros(len(one.silenced))]).to(collected.device)
    return clamp(one.dictionary, [*one.units, *one.silenced], values, only_raise=only_raise)


def _patch(edit: str, one: Units, label: str, collected: Collected) -> Change:
    """Set units to a statistic of the label over its sentences."""
    if collected.patches is None:
        raise UserError(f"the edit {edit} needs the means of units by sentence")
    collected.stats(one.dictionary).row(label)  # refuses another dictionary or label
    values = collected.patches(one.dictionary, label)[edit][list(one.units)]
    return clamp(one.dictionary, one.units, values.to(collected.device))


def _shift(one: Units, label: str, collected: Collected, *, contrast: bool) -> Change:
    """Add the means of the label to units, or their differences to the source label's means."""
    stats = collected.stats(one.dictionary)
    check_counted(stats, label, collected.source_label)
    if contrast:
        values = mean_difference(stats, label, collected.source_label)
    else:
        values = label_mean(stats, label)
    values = values[list(one.units)].float().to(collected.device)
    return shift(one.dictionary, one.units, values)


def project_onto_units(
    units: Sequence[tuple[Dictionary, Sequence[int]]], difference: Tensor
) -> Tensor:
    """Project a difference of means onto the span of units' directions, and keep its norm.

    Of all weighted sums of the directions the projection is the one nearest to the difference; what
    the directions do not carry stays out. All coordinates of the site (the units of a whole
    identity) carry everything: the result is then the difference itself.

    Args:
        units: (dictionary, units) of the dictionaries of one site.
        difference: float64 [d].

    Returns:
        float32 [d] on the CPU; zero for no units.
    """
    if any(len(set(chosen)) == d.width == d.d_in for d, chosen in units):
        return difference.float()
    rows = [d.directions_of(chosen).cpu().double() for d, chosen in units if len(chosen)]
    if not rows:
        return torch.zeros_like(difference).float()
    span = torch.cat(rows).T
    # gelsd takes directions that depend on one another, as those of two SAEs of a site may.
    weights = torch.linalg.lstsq(span, difference.double()[:, None], driver="gelsd").solution
    return rescale((span @ weights)[:, 0], float(difference.norm()))


def rescale(vector: Tensor, length: float) -> Tensor:
    """Scale a vector to a length, float32; a zero vector stays zero."""
    return (vector.double() * (length / max(float(vector.double().norm()), 1e-30))).float()


def label_mean(stats: Stats, label: str) -> Tensor:
    """Mean values over all tokens of a label, float64 [width]. Raises UserError if unknown."""
    return stats.mean().cpu()[stats.row(label)]


def norm_limit(dictionaries: Iterable[Dictionary]) -> float | None:
    """Greatest norm of a token that all of the dictionaries count; None: they count all tokens."""
    return min((d.max_norm for d in dictionaries if d.max_norm is not None), default=None)


def limit_of(means: Stats, dictionaries: Iterable[Dictionary]) -> float | None:
    """Greatest norm of a token that is edited at a site; None: all are.

    Args:
        means: statistics of the identity of the site, of which the difference of means is made.
        dictionaries: those of the site whose units steer.
    """
    return norm_limit([open_dictionary(means.header["dictionary"]), *dictionaries])


def open_dictionary(entry: Mapping[str, Any]) -> Dictionary:
    """Open the dictionary of a header. Raises UserError when its directory is missing."""
    if entry.get("kind") == "identity":
        return Identity(entry["site"], entry["width"], max_norm=entry.get("max_norm"))
    return load_sae(Path(str(entry.get("path"))), dtype=entry.get("dtype"))
