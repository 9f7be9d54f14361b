"""Chosen examples of a large plan: arrays instead of dicts, and texts that are tokenised again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from saefeat.io import UserError, load_tensors, save_tensors
from saefeat.resume import claim

Tokenize = Callable[[Sequence[int]], list[list[int]]]
# tokens, counts, skipped and prompts, as in `Plan`
Choice = tuple[Mapping[int, list[int]], Mapping[int, int], dict[str, int], Mapping[int, int]]

_TEXTS = 1024  # that are tokenised at once


class Counts(Mapping[int, int]):
    """position -> number of tokens, in the order in which the examples were taken.

    Args:
        order: int64 [n], different positions.
        numbers: int32 [n].
    """

    def __init__(self, order: np.ndarray, numbers: np.ndarray) -> None:
        self.order = order
        ascending = np.argsort(order, kind="stable")
        self.positions, self.numbers = order[ascending], numbers[ascending]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self.order), _TEXTS):
            yield from self.order[start : start + _TEXTS].tolist()

    def __contains__(self, position: object) -> bool:
        if not isinstance(position, int):
            return False
        at = int(np.searchsorted(self.positions, position))
        return at < len(self.positions) and int(self.positions[at]) == position

    def __getitem__(self, position: int) -> int:
        if position not in self:
            raise KeyError(position)
        return int(self.numbers[np.searchsorted(self.positions, position)])

    def of(self, positions: np.ndarray) -> np.ndarray:
        """The numbers of some of the positions: int32."""
        return self.numbers[np.searchsorted(self.positions, positions)]


class Retokenized(Mapping[int, list[int]]):
    """position -> token ids, made from the text whenever they are asked for.

    Args:
        lengths: numbers of token ids.
        tokenize: positions -> token ids of each.
    """

    def __init__(self, lengths: Counts, tokenize: Tokenize) -> None:
        self.lengths, self.tokenize = lengths, tokenize

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.lengths)

    def __contains__(self, position: object) -> bool:
        return position in self.lengths

    def __getitem__(self, position: int) -> list[int]:
        if position not in self:
            raise KeyError(position)
        return self.tokenize([position])[0]

    def several(self, positions: Sequence[int]) -> dict[int, list[int]]:
        """The token ids of some positions, many of which are tokenised together."""
        starts = range(0, len(positions), _TEXTS)
        rows = (row for start in starts for row in self.tokenize(positions[start : start + _TEXTS]))
        return dict(zip(positions, rows, strict=True))


def kept_choice(place: Path, make: Callable[[], Choice], tokenize: Tokenize) -> Choice:
    """The choice of examples that is kept in a directory; it is made and written if it is missing.

    Other processes that want the same wait for the first.
    """
    path = place / "choice.safetensors"
    with claim(place, wait=True):
        try:
            kept, header = load_tensors(path)
            counts = Counts(kept["order"].numpy(), kept["numbers"].numpy())
            lengths = Counts(kept["order"].numpy(), kept["row_lengths"].numpy())
            prompts = Counts(kept["prompted"].numpy(), kept["lengths"].numpy())
            return Retokenized(lengths, tokenize), counts, header["skipped"], prompts
        except (UserError, KeyError):  # missing, damaged, or of a version without row lengths
            made = make()
        tokens, counts, skipped, prompts = made
        names = ("order", "numbers", "row_lengths", "prompted", "lengths")
        arrays = map(torch.tensor, (*_arrays(counts), _lengths(tokens), *_arrays(prompts)))
        save_tensors(path, dict(zip(names, arrays, strict=True)), {"skipped": skipped})
        return made


def _arrays(counts: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions, int64 [n], and numbers, int32 [n], in the order of the mapping."""
    if isinstance(counts, Counts):
        return counts.order, counts.of(counts.order)
    size = len(counts)
    return np.fromiter(counts, np.int64, size), np.fromiter(counts.values(), np.int32, size)


def _lengths(tokens: Mapping[int, list[int]]) -> np.ndarray:
    """Numbers of token ids, int32 [n], in the order of the mapping."""
    if isinstance(tokens, Retokenized):
        return _arrays(tokens.lengths)[1]
    return np.fromiter(map(len, tokens.values()), np.int32, len(tokens))
