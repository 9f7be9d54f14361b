"""Changes of a site's vectors, and their application to a model during a generation.

`add` and `replace` work on the vectors. `scale`, `ablate` and `clamp` work on units z and write
back only the difference that they make, `x + (z' - z) @ directions`: decoding all of z' would also
replace x by the SAE's reconstruction of it. Tokens of outlier norm are not edited, because the
statistics that the edits are made from leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import zip_longest

import torch
from torch import Tensor

from saefeat.config import CONSTANT, Schedule
from saefeat.dictionaries import Dictionary
from saefeat.generation import edited_logits
from saefeat.hooks import Edit, intervene
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.tokens import outliers

Change = Callable[[Tensor, Tensor], Tensor]
"""(x float32 [batch, tokens, d], strength float32 [batch, tokens, 1]) -> the edited x."""
LOGITS = "logits"  # in place of a site: the logits of `saefeat.generation`


def add(vector: Tensor, max_norm: float | None = None) -> Change:
    """Add strength * vector, float32 [d]. Vectors whose norm exceeds `max_norm` are kept."""
    return edit_inliers(max_norm, lambda x, strength: x + strength * vector)


def replace(mean: Tensor, max_norm: float | None = None) -> Change:
    """Replace the whole vector by strength * mean, float32 [d]. For `max_norm` see `add`."""
    return edit_inliers(max_norm, lambda x, strength: (strength * mean).expand_as(x))


def scale(dictionary: Dictionary, units: Sequence[int]) -> Change:
    """Multiply the units' values by 1 + strength: 1 doubles them, -1 sets them to zero.

    Here and below, an SAE has to be on the model's device.
    """
    return _edit_units(dictionary, units, lambda z, strength: z * (1 + strength))


def ablate(dictionary: Dictionary, units: Sequence[int]) -> Change:
    """Multiply the units' values by 1 - strength: 1 sets them to zero."""
    return _edit_units(dictionary, units, lambda z, strength: z * (1 - strength))


def clamp(
    dictionary: Dictionary, units: Sequence[int], values: Tensor, *, only_raise: bool = False
) -> Change:
    """Set the units' values to strength * values.

    Args:
        values: float32 [m], one per unit, on the model's device.
        only_raise: leave values that are higher already as they are.
    """

    def rule(z: Tensor, strength: Tensor) -> Tensor:
        target = strength * values
        return torch.maximum(z, target) if only_raise else target.expand_as(z)

    return _edit_units(dictionary, units, rule)


def shift(dictionary: Dictionary, units: Sequence[int], values: Tensor) -> Change:
    """Add strength * values to the units' values; float32 [m], on the model's device.

    Language arithmetics (arXiv 2507.22608) adds the means of a label so.
    """
    return _edit_units(dictionary, units, lambda z, strength: z + strength * values)


def hold(dictionary: Dictionary, units: Sequence[int], value: float) -> Change:
    """Set the units' values to a constant, whatever the strength; strength 0 leaves them."""
    return _edit_units(dictionary, units, lambda z, _: torch.full_like(z, value))


def times(dictionary: Dictionary, units: Sequence[int]) -> Change:
    """Multiply the units' values by the strength; strength 0 leaves them (see `ablate`)."""
    return _edit_units(dictionary, units, lambda z, strength: z * strength)


def _edit_units(
    dictionary: Dictionary, units: Sequence[int], rule: Callable[[Tensor, Tensor], Tensor]
) -> Change:
    """Write back what a rule, (values z [..., m], strength) -> new values, changes."""
    index = torch.tensor(list(units), dtype=torch.int64)

    def edit(x: Tensor, strength: Tensor) -> Tensor:
        return dictionary.edit_units(x, index.to(x.device), lambda z: rule(z, strength))

    return edit_inliers(dictionary.max_norm, edit)


def edit_inliers(max_norm: float | None, change: Change) -> Change:
    """Make a change leave out the tokens that statistics leave out (see `saefeat.tokens`)."""
    if max_norm is None:
        return change
    return lambda x, strength: torch.where(outliers(x, max_norm)[..., None], x, change(x, strength))


# --------------------------------------------------------------------------- application


def token_strengths(schedule: Schedule, steps: Tensor, strength: float | Tensor) -> Tensor:
    """Strength of each token: float32 [batch, tokens, 1], 0 where nothing is edited.

    Args:
        steps: int64 [batch, tokens], as in `hooks.Edit`.
        strength: one number, or float32 [batch], one per row.

    Raises UserError when there are neither one nor `batch` strengths.
    """
    full = torch.as_tensor(strength, dtype=torch.float32, device=steps.device).view(-1, 1)
    if len(full) not in (1, len(steps)):
        raise UserError(
            f"there are {len(full)} strengths for a batch of {len(steps)} rows; give one, or "
            "one per row"
        )
    later = full if schedule.rest is None else full.clamp(-schedule.rest, schedule.rest)
    return torch.where(steps > schedule.first, later, full).masked_fill(steps < 0, 0.0)[..., None]


def check_strength(strength: float | Tensor) -> None:
    """Raise UserError unless the strength is a finite number."""
    if not torch.as_tensor(strength).isfinite().all():
        raise UserError(
            f"the strength {strength} is not a finite number; 1 is the difference of means where a "
            "vector is added, else the whole edit",
            "strength",
        )


def schedule_change(change: Change, strength: float | Tensor, schedule: Schedule) -> Edit:
    """Make an edit for `hooks.intervene` from a change. Where the strength is 0, no bit changes.

    Rows of strength 0 are not computed: a batch may have a change for each of its rows.
    """

    given = torch.as_tensor(strength).flatten()
    rows = given.nonzero()[:, 0]

    def edit(x: Tensor, steps: Tensor) -> Tensor:
        at = token_strengths(schedule, steps, strength)
        if not len(rows):
            return x
        if len(rows) == len(given):
            return _change_where(change, x, at)
        here = rows.to(x.device)
        return x.index_copy(0, here, _change_where(change, x[here], at[here]))

    return edit


def _change_where(change: Change, x: Tensor, at: Tensor) -> Tensor:
    """Change x [rows, tokens, d] where the strength, float32 [rows, tokens, 1], is not 0."""
    return torch.where(at == 0, x, change(x.float(), at).to(x.dtype))


@contextmanager
def apply(
    lm: LanguageModel,
    changes: Mapping[str, Sequence[Change]],
    strength: float | Tensor,
    schedule: Schedule = CONSTANT,
) -> Iterator[None]:
    """Edit the sites of an unmodified model while the block runs.

    Args:
        changes: site -> changes, made in this order. At the site `LOGITS` they change the logits
            of `saefeat.generation` and `saefeat.steering.harness`; a call of the model itself does
            not see them.
        strength: one number, or float32 [batch], one per row.

    Raises UserError when a strength is not finite.
    """
    check_strength(strength)
    by_path: dict[str, list[Edit]] = {}  # one module may have two names
    logits: list[Edit] = []
    for site, here in changes.items():
        edits = [schedule_change(change, strength, schedule) for change in here]
        at = logits if site == LOGITS else by_path.setdefault(lm.site(site).path, [])
        at.extend(edits)
    with ExitStack() as stack:
        stack.enter_context(edited_logits(lm, logits))
        # `intervene` takes one edit per module: first the first edits of all, then the second ones.
        for edits in zip_longest(*by_path.values()):
            layer = {path: edit for path, edit in zip(by_path, edits, strict=True) if edit}
            stack.enter_context(intervene(lm.model, layer, lm.special_ids))
        yield
