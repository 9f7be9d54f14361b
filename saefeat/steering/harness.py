"""A steered model as a model of lm-evaluation-harness (the optional library lm-eval)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from saefeat.config import CONSTANT, Schedule
from saefeat.generation import edit_text_logits, logit_processors
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.steering.edits import Change, apply, check_strength


def harness_model(
    lm: LanguageModel,
    changes: Mapping[str, Sequence[Change]],
    strength: float = 1.0,
    schedule: Schedule = CONSTANT,
    *,
    batch_size: int = 1,
    **options: Any,
) -> Any:
    """Make a model for `lm_eval.simple_evaluate(model=...)` that is steered in every pass.

    A text whose likelihood is measured is a prompt: all of it gets the full strength. Generated
    text follows the schedule. Special tokens and padding are not edited.

    Args:
        changes: site -> changes, as `saefeat.steering.changes_of` builds them; {}: unsteered.
        options: further arguments of lm-eval's `HFLM`, such as max_length.

    Raises UserError when lm-eval is not installed, or the strength is not finite.
    """
    check_strength(strength)
    # lm-eval may give the tokenizer a padding token.
    tokenizer = copy.deepcopy(lm.tokenizer)
    logger = logging.getLogger("lm_eval")
    level, logger.level = logger.level, logging.ERROR  # it warns of every model that is an object
    try:
        return _steered_class()(
            pretrained=lm.model,
            tokenizer=tokenizer,
            backend="causal",
            batch_size=batch_size,
            edited=lm,
            steering=lambda: apply(lm, changes, strength, schedule),
            **options,
        )
    finally:
        logger.setLevel(level)


def check_installed() -> None:
    """Raise UserError when lm-eval is not installed."""
    if not find_spec("lm_eval") or not find_spec("accelerate"):
        raise UserError(
            "tasks of lm-evaluation-harness need the library lm-eval; install saefeat[lm-eval]"
        )


@cache
def _steered_class() -> Any:
    check_installed()
    base: Any = import_module("lm_eval.models.huggingface").HFLM

    class Steered(base):
        """lm-eval's model of transformers, with edits of its vectors and logits in every call."""

        def __init__(
            self, *args: Any, edited: LanguageModel, steering: Any, **options: Any
        ) -> None:
            self._edited, self._steering = edited, steering
            super().__init__(*args, **options)

        def _model_call(self, *args: Any, **options: Any) -> Any:
            with self._steering():
                return edit_text_logits(self._edited, super()._model_call(*args, **options))

        def _model_generate(self, context: Any, *args: Any, **options: Any) -> Any:
            with self._steering():
                edits = logit_processors(self._edited, context.shape[1])
                return super()._model_generate(context, *args, logits_processor=edits, **options)

    return Steered
