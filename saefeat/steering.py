"""Steer generation: edits of a site's vectors, with a schedule, on an unmodified transformers model.

An edit works on the vectors themselves (`add`, `replace`) or on the values of chosen units
(`scale`, `clamp`, `ablate`). Edits of units write the difference that they make, `(z' - z) @
directions`, so the reconstruction error of an SAE stays out. Strength 1 is one force for all: the
length of the difference of means at the site for `add`, the label's mean for `clamp` and `replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from saefeat.dictionaries import Dictionary, Identity
from saefeat.hooks import Edit, intervene
from saefeat.io import UserError
from saefeat.labels import own_label
from saefeat.methods.feature_diffmean import mean_difference
from saefeat.models import LanguageModel
from saefeat.models.weights import is_outdated
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.files import load_stats
from saefeat.tokens import outliers

Change = Callable[[Tensor, Tensor], Tensor]
"""(x float32 [batch, tokens, d], strength float32 [batch, tokens, 1]) -> the edited x."""

EDITS = ("add", "scale", "clamp", "raise", "ablate", "replace")


@dataclass(frozen=True)
class Schedule:
    """Strength over a generation: the full one on the prompt and the first `first` new tokens, then at most `rest`.

    rest None: the full strength throughout.
    """

    first: int = 2
    rest: float | None = 0.3

    def strengths(self, steps: Tensor, strength: float | Tensor) -> Tensor:
        """float32 [batch, tokens, 1] for the steps (see `hooks.Edit`), 0 where nothing is to be edited.

        strength: one for all, or float32 [batch], one a row; UserError for another number of them.
        """
        full = torch.as_tensor(strength, dtype=torch.float32, device=steps.device).view(-1, 1)
        if len(full) not in (1, len(steps)):
            raise UserError(
                f"there are {len(full)} strengths for a batch of {len(steps)} rows; give one for all or each"
            )
        later = full if self.rest is None else full.clamp(-self.rest, self.rest)
        return torch.where(steps > self.first, later, full).masked_fill(steps < 0, 0.0)[..., None]


CONSTANT = Schedule(first=0, rest=None)


class CannotSteer(UserError):
    """A label or a run cannot be steered or measured. A sweep skips the label, a run the stage."""


class NoUnits(CannotSteer):
    """A label has nothing to be steered with."""


# --------------------------------------------------------------------------- changes


def add(vector: Tensor, max_norm: float | None = None) -> Change:
    """x + strength * vector; vector float32 [d]. Tokens whose norm exceeds `max_norm` keep their vector."""
    return _sparing(max_norm, lambda x, strength: x + strength * vector)


def replace(mean: Tensor, max_norm: float | None = None) -> Change:
    """The whole vector replaced by strength * mean; mean float32 [d], of a label at the site. max_norm as in `add`."""
    return _sparing(max_norm, lambda x, strength: (strength * mean).expand_as(x))


def _sparing(max_norm: float | None, change: Change) -> Change:
    """The change without tokens of outlier norm, which are left out of the means that make it."""
    if max_norm is None:
        return change
    return lambda x, strength: torch.where(outliers(x, max_norm)[..., None], x, change(x, strength))


def scale(dictionary: Dictionary, units: Sequence[int]) -> Change:
    """The units' values times 1 + strength: 1 doubles them, -1 silences them. An SAE is on the model's device."""
    return _on_units(dictionary, units, lambda z, strength: z * (1 + strength))


def ablate(dictionary: Dictionary, units: Sequence[int]) -> Change:
    """The units' values times 1 - strength: 1 sets them to zero. An SAE is on the model's device."""
    return _on_units(dictionary, units, lambda z, strength: z * (1 - strength))


def clamp(
    dictionary: Dictionary, units: Sequence[int], values: Tensor, *, least: bool = False
) -> Change:
    """The units' values set to strength * values; `least`: only those that are lower. values float32 [m].

    An SAE and the values are on the model's device.
    """
    if least:
        return _on_units(dictionary, units, lambda z, strength: torch.maximum(z, strength * values))
    return _on_units(dictionary, units, lambda z, strength: (strength * values).expand_as(z))


def _on_units(
    dictionary: Dictionary, units: Sequence[int], rule: Callable[[Tensor, Tensor], Tensor]
) -> Change:
    """Change the values z [..., m] of chosen units by a rule, and write the difference back.

    An SAE has to be on the model's device (`SAE.to`).
    """
    index = torch.tensor(list(units), dtype=torch.int64)

    def change(x: Tensor, strength: Tensor) -> Tensor:
        return dictionary.edit_units(x, index.to(x.device), lambda z: rule(z, strength))

    return _sparing(dictionary.max_norm, change)


def scheduled(change: Change, strength: float | Tensor, schedule: Schedule) -> Edit:
    """A change as an edit for `hooks.intervene`; where its strength is 0, no bit changes."""

    def edit(x: Tensor, steps: Tensor) -> Tensor:
        at = schedule.strengths(steps, strength)
        return torch.where(at == 0, x, change(x.float(), at).to(x.dtype))

    return edit


@contextmanager
def apply(
    lm: LanguageModel,
    changes: Mapping[str, Sequence[Change]],
    strength: float | Tensor,
    schedule: Schedule = CONSTANT,
) -> Iterator[None]:
    """Edit the sites of an unmodified model while the block runs; the changes of a site are made in order.

    strength: one for all, or float32 [batch], one a row. Raises UserError where it is not finite.
    """
    check_strength(strength)
    by_path: dict[str, list[Change]] = {}  # one module may have two names
    for site, here in changes.items():
        by_path.setdefault(lm.site(site).path, []).extend(here)
    with ExitStack() as stack:
        for place in range(max(map(len, by_path.values()), default=0)):
            edits = {
                path: scheduled(here[place], strength, schedule)
                for path, here in by_path.items()
                if place < len(here)
            }
            stack.enter_context(intervene(lm.model, edits, lm.special_ids))
        yield


def check_strength(strength: float | Tensor) -> None:
    """Raises UserError unless the strength is a finite number."""
    if not torch.as_tensor(strength).isfinite().all():
        raise UserError(
            f"the strength {strength} is not a finite number; 1 is the force of the difference of means"
        )


# --------------------------------------------------------------------------- from statistics


def towards_with(units: Sequence[tuple[Dictionary, Sequence[int]]], difference: Tensor) -> Tensor:
    """What units of dictionaries of one site hold of a difference of means, in its length: float32 [d].

    The difference, float64 [d], is projected on the span of the units' directions: of all their
    weighted sums it is the one nearest to the difference. What their directions do not carry stays
    out. Zero for no units.
    """
    rows = [
        dictionary.directions_of(chosen).cpu().double()
        for dictionary, chosen in units
        if len(chosen)
    ]
    if not rows:
        return torch.zeros_like(difference).float()
    span = torch.cat(rows).T
    # gelsd takes directions that depend on one another, as those of two SAEs of a site may.
    weights = torch.linalg.lstsq(span, difference.double()[:, None], driver="gelsd").solution
    return of_length((span @ weights)[:, 0], float(difference.norm()))


def of_length(vector: Tensor, length: float) -> Tensor:
    """The vector scaled to a length; a zero vector stays zero. float32."""
    return (vector.double() * (length / max(float(vector.double().norm()), 1e-30))).float()


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
    """Steer `lm.model` towards a label with the units that a selection has for it, while the block runs.

    Args:
        label: of the selection, in any code system of `saefeat.labels`; so is `source`.
        strength: 1 is the force of the difference of means (`add`) or the label's mean (`clamp`);
            negative suppresses; 0 changes no bit.
        edit: add, scale, clamp, raise (clamp to at least), ablate, replace.
        source: the label that is steered away from; None: the mean of the others.
        schedule: default full strength on the prompt and the first tokens and little after for
            `add`, constant for edits of units, whose weak form would hold the units down.
        stats: directory of the statistics; default the one that was ranked, by the selection's
            header.
        dictionaries: by id; default those at the paths in the selection's header.

    Raises:
        UserError: unknown label or edit, a label without units, another model, a strength that is
            not finite, or statistics that lack the identity of a site.
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
    """Site -> changes that the units of a label make; see `steer`. Each site gets the force of its own means."""
    if edit not in EDITS:
        raise UserError(f"there is no edit {edit!r}; the edits are {', '.join(EDITS)}")
    label = own_label(label, selection.labels) or label
    source = None if source is None else own_label(source, selection.labels) or source
    rows = selection.for_label(label)
    if not len(rows):
        raise NoUnits(
            f"the selection has no units for {label}: rank with looser parameters, or with --method feature-diffmean"
        )
    model = selection.header.get("model") or {}
    if is_outdated(model.get("fingerprint")):
        raise UserError(
            "the selection was made by an older version of saefeat; collect and rank again"
        )
    if model.get("fingerprint") not in (None, lm.fingerprint):
        raise UserError(f"the selection is of the model {model.get('name')}, not of {lm.name}")
    folder = Path(stats or selection.header.get("stats") or "")
    chosen: dict[str, list[tuple[Dictionary, list[int]]]] = {}
    for name, entry in selection.dictionaries.items():
        units = rows.units(name)[label]
        if units:
            dictionary = (dictionaries or {}).get(name) or open_dictionary(entry)
            if dictionary.identity["fingerprint"] != entry.get("fingerprint"):
                raise UserError(
                    f"the dictionary {name} has changed since it was ranked; collect and rank again"
                )
            if edit not in ("add", "replace"):  # these two do not encode
                dictionary = dictionary.to(lm.device)
            chosen.setdefault(entry["site"], []).append((dictionary, units))
    if edit == "replace":
        found = {site: load_stats(folder, site) for site in chosen}
        return {
            site: [
                replace(
                    label_mean(stats, label).float().to(lm.device),
                    limit_of(stats, [d for d, _ in chosen[site]]),
                )
            ]
            for site, stats in found.items()
        }
    if edit == "add":
        forces = {}
        for site, here in chosen.items():
            means = load_stats(folder, site)
            force = towards_with(here, mean_difference(means, label, source)).to(lm.device)
            forces[site] = [add(force, limit_of(means, [d for d, _ in here]))]
        return forces
    return {
        site: [_patch(lm, folder, *each, label, edit) for each in here]
        for site, here in chosen.items()
    }


def open_dictionary(entry: Mapping[str, object]) -> Dictionary:
    """The dictionary that a header entry speaks of; raises UserError when its directory is gone."""
    if entry.get("kind") == "identity":
        limit = entry.get("max_norm")
        return Identity(
            str(entry["site"]),
            int(str(entry["width"])),
            max_norm=None if limit is None else float(str(limit)),
        )
    from saefeat.sae.store import load_sae

    dtype = entry.get("dtype")
    return load_sae(Path(str(entry.get("path"))), dtype=None if dtype is None else str(dtype))


def _patch(
    lm: LanguageModel,
    folder: Path,
    dictionary: Dictionary,
    units: Sequence[int],
    label: str,
    edit: str,
) -> Change:
    """The change that an edit makes to the values of units."""
    if edit in ("scale", "ablate"):
        return {"scale": scale, "ablate": ablate}[edit](dictionary, units)
    values = label_mean(stats_of(folder, dictionary), label)[list(units)].float().to(lm.device)
    return clamp(dictionary, units, values, least=edit == "raise")


def norm_limit(dictionaries: Iterable[Dictionary]) -> float | None:
    """The greatest norm of a token that all the dictionaries of a site count; None: they count all tokens."""
    return min((d.max_norm for d in dictionaries if d.max_norm is not None), default=None)


def limit_of(means: Stats, saes: Iterable[Dictionary]) -> float | None:
    """The greatest norm of a token that a force moves: of those in its means and in the statistics of its SAEs."""
    return norm_limit([open_dictionary(means.header["dictionary"]), *saes])


def label_mean(stats: Stats, label: str) -> Tensor:
    """Mean values over all tokens of a label: float64 [width]; raises UserError for an unknown label."""
    if label not in stats.labels:
        raise UserError(
            f"there is no label {label!r} in the statistics; they have {', '.join(stats.labels)}"
        )
    return stats.mean().cpu()[stats.labels.index(label)]


def stats_of(folder: Path, dictionary: Dictionary) -> Stats:
    """Statistics of this very dictionary; raises UserError when they are not there or of another one of its name."""
    stats = load_stats(folder, dictionary.id)
    if stats.header["dictionary"].get("fingerprint") != dictionary.identity["fingerprint"]:
        raise UserError(
            f"the statistics of {dictionary.id} in {folder} are of another dictionary; collect and rank again"
        )
    return stats
