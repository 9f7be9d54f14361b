"""What the units of a site contribute to a prediction, at the last token of a prompt.

Contribution and effective score as in the code of Wang et al. (arXiv 2406.09265), and integrated
gradients in the form of knowledge neurons (Dai et al., arXiv 2104.08696), which their paper uses.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from saefeat.dictionaries import Dictionary, Identity
from saefeat.hooks import capture, intervene
from saefeat.io import UserError
from saefeat.lens import neuron_directions
from saefeat.models import LanguageModel, find_layers
from saefeat.models.sites import has_post_norm

STEPS = 20  # of the integral, as published for knowledge neurons
_CACHES = ("cache", "past_key_values")  # its names, of newer transformers first
_NEURONS = "mlp_act@"


@dataclass(frozen=True)
class Prompt:
    """A prompt of which all but the last token has been run. Its last token is run again and again.

    Attributes:
        ids: token ids, BOS included; at least one.
    """

    lm: LanguageModel
    ids: Sequence[int]

    @cached_property
    def _takes(self) -> str | None:
        """The argument of a forward pass that is the cache, if there is one."""
        names = inspect.signature(self.lm.model.forward).parameters
        return next((name for name in _CACHES if name in names), None)

    @cached_property
    def _cache(self) -> Any:
        """The cache of all tokens but the last; None where there is none, or no copies of it."""
        if len(self.ids) < 2 or self._takes is None:
            return None
        ids = torch.tensor([self.ids[:-1]], device=self.lm.device)
        with torch.no_grad():  # tensors of inference mode could not be used under gradients
            found = self.lm.model(input_ids=ids, use_cache=True).get(self._takes)
        return found if hasattr(found, "batch_repeat_interleave") else None

    def inputs(self, rows: int) -> dict[str, Any]:
        """The arguments of a forward pass of `rows` copies that ends with the last token."""
        cache = copy.deepcopy(self._cache)
        ids = list(self.ids) if cache is None else [self.ids[-1]]
        found = {"input_ids": torch.tensor([ids] * rows, device=self.lm.device), "use_cache": True}
        if cache is None:
            return found
        cache.batch_repeat_interleave(rows)
        return {**found, str(self._takes): cache}

    def vectors(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """The vectors of the last token at sites: float32 [1, d]."""
        paths = {site: self.lm.site(site).path for site in sites}
        inputs = self.inputs(1)
        several = tuple(dict.fromkeys(paths.values()))
        with capture(self.lm.model, several) as captured, torch.no_grad():
            found = captured.run(self.lm.model, **inputs)
        return {site: found[path][:, -1].float() for site, path in paths.items()}


@dataclass(frozen=True)
class Integral:
    """Integrated gradients of some units.

    Attributes:
        values: of the units, float32 [m].
        gradient: of the probability by each value, mean over the steps: float32 [m].
        probability: of the answer.
        zeroed: its probability when the units are zero at the last token.
    """

    values: Tensor
    gradient: Tensor
    probability: float
    zeroed: float

    @property
    def attribution(self) -> Tensor:
        """Float32 [m]. The sum is about `probability - zeroed`."""
        return self.values * self.gradient


def integrated_gradients(
    prompt: Prompt, answer: int, dictionary: Dictionary, units: Tensor, steps: int = STEPS
) -> Integral:
    """Attribute the probability of an answer to units of one dictionary.

    With w the values of the units at the last token, P the probability of the answer and m the
    number of steps, the attribution of unit j is `w_j / m * sum over t = 1..m of dP/dw_j` where all
    units have t/m of their values. Values and gradients are those of the last token. Units of an
    SAE are scaled within `x + (z' - z) @ directions`, so what the SAE does not reconstruct stays.
    Hidden neurons of `mlp_act` and of `mlp_hidden` have the same attribution, because a gate only
    multiplies them.

    Args:
        answer: token id.
        dictionary: on the device of the model.
        units: int64 [m], on the device of the model.
    """
    lm = prompt.lm
    alphas = torch.linspace(0, 1, steps + 1, device=lm.device)[:, None]
    scaled = torch.zeros(0)

    def scale(z: Tensor) -> Tensor:
        nonlocal scaled
        scaled = (alphas * z).detach().requires_grad_()
        return scaled

    def edit(x: Tensor, _steps: Tensor) -> Tensor:
        last = dictionary.edit_units(x[:, -1].float(), units, scale)
        return torch.cat([x[:, :-1], last[:, None].to(x.dtype)], dim=1)

    inputs = prompt.inputs(len(alphas))
    with torch.enable_grad(), intervene(lm.model, {lm.site(dictionary.site).path: edit}):
        logits = lm.model(**inputs).logits[:, -1].float()
        p = logits.softmax(-1)[:, answer]
        (gradient,) = torch.autograd.grad(p[1:].sum(), scaled)
    p = p.detach()
    return Integral(scaled.detach()[-1], gradient[1:].mean(0), float(p[-1]), float(p[0]))


@dataclass(frozen=True)
class Scores:
    """Scores of all units of a dictionary at the last token of one prompt: float32 [width] each.

    Attributes:
        values: of the units.
        contribution: |m_j| times the norm of v_j.
        effective: e_y . (m_j v_j).
        attribution: integrated gradients.
        probability, zeroed: see `Integral`.
    """

    values: Tensor
    contribution: Tensor
    effective: Tensor
    attribution: Tensor
    probability: float
    zeroed: float


@dataclass(frozen=True)
class Scorer:
    """Scores the units of dictionaries, which are on the model's device.

    m_j is the coefficient of unit j, v_j what it writes into the residual stream, and e_y the row
    of the answer in the output projection (which is its embedding in models that share it):

    - Of a hidden neuron, m_j is what the down projection reads, gate included, and v_j its row of
      the down projection. Where a norm follows (Gemma 2 and 3, OLMo 2, GLM 4), v_j is multiplied by
      the gain of the norm and by the factor that the norm has at this token.
    - Of a feature, m_j is its value and v_j its decoder direction.

    A norm after the neurons undoes a factor of all of them, so their published integral says
    nothing there. The norm then keeps the factor that it has at the full values.

    Raises UserError for units that do not write into what the output projection reads.
    """

    lm: LanguageModel
    dictionaries: Sequence[Dictionary]
    steps: int = STEPS

    def __post_init__(self) -> None:
        read = self.lm.unembedding().shape[1]
        for each in self.dictionaries:
            if (written := self._directions(each, [0]).shape[1]) != read:
                raise UserError(
                    f"units of {each.site} write {written} numbers, but the output projection "
                    f"reads {read}; give units that write into the residual stream",
                    "pools",
                )

    def _directions(self, dictionary: Dictionary, units: list[int]) -> Tensor:
        """What units write at 1, up to a factor of the token: [m, d]."""
        if dictionary.site.startswith(_NEURONS):
            return neuron_directions(self.lm, dictionary.site, units)
        return dictionary.directions_of(units)

    def score(self, prompt: Prompt, answer: int) -> dict[str, Scores | None]:
        """Scores by dictionary; None where a dictionary does not count the last token.

        `answer`: token id.
        """
        sites = [site for d in self.dictionaries for site in self._sites(d)]
        found = prompt.vectors([*dict.fromkeys(sites)])
        return {d.id: self._score(prompt, answer, d, found) for d in self.dictionaries}

    def _sites(self, dictionary: Dictionary) -> list[str]:
        """The sites of which the vectors are needed."""
        site = dictionary.site
        if not site.startswith(_NEURONS):
            return [site]
        return [site, _beside(site, "mlp_hidden"), *self._normed(site)]

    def _normed(self, site: str) -> list[str]:
        """The output of the norm that follows hidden neurons, if there is one."""
        blocks: Any = self.lm.model.get_submodule(find_layers(self.lm.model))
        follows = has_post_norm(blocks[self.lm.site(site).layer or 0])
        return [_beside(site, "mlp_out")] if follows else []

    def _score(
        self, prompt: Prompt, answer: int, dictionary: Dictionary, vectors: Mapping[str, Tensor]
    ) -> Scores | None:
        x = vectors[dictionary.site]
        kept = dictionary.keeps(x)
        if kept is not None and not kept.all():
            return None
        values = dictionary.encode(x).dense()[0]
        units = (values != 0).nonzero().flatten()
        m, v = self._written(dictionary, units, values, vectors)
        e = self.lm.unembedding()[answer].float()
        if normed := dictionary.site.startswith(_NEURONS) and self._normed(dictionary.site):
            out = Identity(normed[0], v.shape[1])
            whole_width = torch.arange(out.width, device=v.device)
            whole = integrated_gradients(prompt, answer, out, whole_width, self.steps)
            attribution = m * (v @ whole.gradient)
        else:
            whole = integrated_gradients(prompt, answer, dictionary, units, self.steps)
            attribution = whole.attribution
        parts = (m.abs() * v.norm(dim=1), m * (v @ e), attribution)
        contribution, effective, attributed = (
            torch.zeros_like(values).index_copy_(0, units, part).cpu() for part in parts
        )
        ends = whole.probability, whole.zeroed
        return Scores(values.cpu(), contribution, effective, attributed, *ends)

    def _written(
        self, dictionary: Dictionary, units: Tensor, values: Tensor, vectors: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Coefficients of units, float32 [m], and what they write at 1, float32 [m, d]."""
        site = dictionary.site
        if not site.startswith(_NEURONS):
            size = dictionary.spread(vectors[site])
            v = self._directions(dictionary, units.tolist()).to(units.device)
            return (values if size is None else values * size[0])[units], v
        m = vectors[_beside(site, "mlp_hidden")][0, units]
        v = self._directions(dictionary, units.tolist()).float()
        for normed in self._normed(site):
            whole, out = m @ v, vectors[normed][0]
            v = v * ((out @ whole) / (whole @ whole).clamp(min=1e-30))
        return m, v


def _beside(site: str, kind: str) -> str:
    """Another site of the block of `mlp_act@l`."""
    return f"{kind}@{site.removeprefix(_NEURONS)}"
