"""The residual stream at all layers, read in one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.corpora import Batch, plan_batches
from saefeat.io import UserError
from saefeat.models import LanguageModel, find_layers

EMBEDDINGS = -1  # in place of the number of a layer: what the first block reads


def stream_sites(lm: LanguageModel, layers: Sequence[int] | None = None) -> dict[int, str]:
    """Find the sites of the residual stream: layer -> name of the site, ascending.

    Layer l is `resid_post@l`. EMBEDDINGS is the input of the first block, with positions and norms
    of embeddings where the model adds them.

    Args:
        layers: only these; None for all, the embeddings included.

    Raises UserError for a layer that does not exist, or if the blocks are not found.
    """
    last = lm.n_layers - 1
    wanted = range(EMBEDDINGS, last + 1) if layers is None else sorted(set(layers))
    if wrong := [layer for layer in wanted if not EMBEDDINGS <= layer <= last]:
        raise UserError(
            f"the layer {wrong[0]} does not exist: the model has the layers 0 to {last}, and "
            f"{EMBEDDINGS} stands for the embeddings",
            "layers",
        )
    first = f"{find_layers(lm.model)}.0:input"
    return {x: first if x == EMBEDDINGS else f"resid_post@{x}" for x in wanted}


def spread(places: Sequence[int], n: int) -> list[int]:
    """Choose at most n of some places, evenly spread; the last is among them."""
    n = min(n, len(places))
    return [places[(i + 1) * len(places) // n - 1] for i in range(n)]


def read_places(
    lm: LanguageModel,
    rows: Mapping[int, list[int]],
    places: Mapping[int, Sequence[int]],
    sites: Iterable[str],
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Read sites at chosen places of rows of tokens, as `counted_vectors` does.

    Args:
        rows: number -> token ids, without those that are put around a text.
        places: number -> places in its row, ascending.
    """

    def chosen() -> Iterator[Batch]:
        for batch in plan_batches(lm, rows):
            counted = torch.zeros_like(batch.counted)
            for row, number in enumerate(batch.positions):
                counted[row, [len(lm.prefix) + place for place in places[number]]] = True
            yield replace(batch, counted=counted)

    return counted_vectors(lm, chosen(), list(sites))


def by_row(batch: Batch, vectors: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Split the vectors [n, d] of a batch: yields the number of each row and its vectors."""
    lengths: list[int] = batch.counted.sum(1).tolist()
    yield from zip(batch.positions, vectors.split(lengths), strict=True)


def read_means(
    lm: LanguageModel, rows: Mapping[int, list[int]], sites: Iterable[str]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Read the mean vectors of the counted tokens of rows, each of which has such tokens.

    Yields the number of a row, and site -> float32 [d].
    """
    for batch, found in counted_vectors(lm, plan_batches(lm, rows), list(sites)):
        split = {site: dict(by_row(batch, vectors)) for site, vectors in found.items()}
        for number in batch.positions:
            each = {site: parts[number].float().mean(0).cpu() for site, parts in split.items()}
            yield number, each
