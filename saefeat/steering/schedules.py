"""Apply changes to the sites of a model, with a strength that depends on the generated token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from saefeat.hooks import Edit, intervene
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.schema import STRICT
from saefeat.steering.edits import Change


@dataclass(frozen=True, config=STRICT)
class Schedule:
    """Strength over a generation.

    The prompt and the first `first` new tokens get the full strength. Later tokens get at most
    `rest`, with the same sign; None: the full strength.
    """

    first: Annotated[int, Field(ge=0)] = 2
    rest: Annotated[float | None, Field(ge=0)] = 0.3

    def strengths(self, steps: Tensor, strength: float | Tensor) -> Tensor:
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
        later = full if self.rest is None else full.clamp(-self.rest, self.rest)
        return torch.where(steps > self.first, later, full).masked_fill(steps < 0, 0.0)[..., None]


CONSTANT = Schedule(first=0, rest=None)


def check_strength(strength: float | Tensor) -> None:
    """Raise UserError unless the strength is a finite number."""
    if not torch.as_tensor(strength).isfinite().all():
        raise UserError(
            f"the strength {strength} is not a finite number; 1 has the length of the difference "
            "of means",
            "strength",
        )


def schedule_change(change: Change, strength: float | Tensor, schedule: Schedule) -> Edit:
    """Make an edit for `hooks.intervene` from a change. Where the strength is 0, no bit changes."""

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
    """Edit the sites of an unmodified model while the block runs.

    Args:
        changes: site -> changes, made in this order.
        strength: one number, or float32 [batch], one per row.

    Raises UserError when a strength is not finite.
    """
    check_strength(strength)
    by_path: dict[str, list[Change]] = {}  # one module may have two names
    for site, here in changes.items():
        by_path.setdefault(lm.site(site).path, []).extend(here)
    with ExitStack() as stack:
        for place in range(max(map(len, by_path.values()), default=0)):
            edits = {
                path: schedule_change(here[place], strength, schedule)
                for path, here in by_path.items()
                if place < len(here)
            }
            stack.enter_context(intervene(lm.model, edits, lm.special_ids))
        yield
