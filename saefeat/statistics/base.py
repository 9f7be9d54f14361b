"""The interface of accumulators. An accumulator collects one kind of statistics of one dictionary.

Batches may be split among accumulators in any way, added in any order and merged in any order: the
result has the same bytes. A subclass declares its tensors and how each is merged (`FIELDS`).
`zeros`, `merge`, `equal`, `save`, `load` and the checkpoints of a collection loop over `FIELDS`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NotRequired, Self

import torch
from pydantic import ConfigDict, with_config
from torch import Tensor
from typing_extensions import TypedDict

from saefeat.codes import REDUCE, Bag, Codes
from saefeat.io import SCHEMA, RunFailed, UserError, load_tensors, read_header, save_tensors
from saefeat.schema import checked

if TYPE_CHECKING:
    from saefeat.corpora import Corpus
    from saefeat.dictionaries import Dictionary

_NEUTRAL = {"sum": 0, "min": torch.inf, "max": -torch.inf}
# Names and paths may differ between machines, and windows between shards.
_IGNORED = {"model": ("name", "revision"), "dictionary": ("path",), "corpus": ("name",)}


class DictionaryHeader(TypedDict):
    id: NotRequired[str]
    site: NotRequired[str]


@with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))
class Header(TypedDict):
    """What a file of statistics says of itself, as far as the statistics themselves read it."""

    labels: list[str]
    windows: NotRequired[list[int]]
    window_count: NotRequired[int]
    dictionary: NotRequired[DictionaryHeader]


def comparable(header: dict[str, Any]) -> dict[str, Any]:
    """The part of a header that is equal in all shards and processes of a collection."""
    kept = {key: value for key, value in header.items() if key != "windows"}
    for key in _IGNORED.keys() & kept.keys():
        kept[key] = {k: v for k, v in kept[key].items() if k not in _IGNORED[key]}
    return kept


def _merge_headers(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The header whose first window has the lower number, with the windows of both.

    Where the first windows are equal, or there are none, the text of the headers decides.
    """

    def order(header: dict[str, Any]) -> tuple[float, str]:
        return min(header.get("windows", []), default=math.inf), json.dumps(header, sort_keys=True)

    header = min(one, other, key=order)
    if "windows" not in header:
        return header
    return {**header, "windows": sorted(one["windows"] + other["windows"])}


@dataclass(frozen=True)
class Field:
    """A tensor of an accumulator.

    Attributes:
        axes: "label", "unit", "row" (an empty accumulator has no rows), or a size.
        reduction: "sum", "min" or "max", elementwise; "joint": the accumulator's own `reduce`
            merges it together with other fields.
        neutral: of a "joint" field, its value in an empty accumulator.
        signed_only: kept only for dictionaries whose codes may be negative.
    """

    axes: tuple[str | int, ...]
    reduction: str
    dtype: torch.dtype = torch.int64
    neutral: float = 0
    signed_only: bool = False

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    def zeros(self, sizes: Mapping[str, int], device: str) -> Tensor:
        fill = _NEUTRAL.get(self.reduction, self.neutral)
        if not self.dtype.is_floating_point:  # integers have no infinity
            limits = torch.iinfo(self.dtype)
            fill = min(max(fill, limits.min), limits.max)
        return torch.full(self.shape(sizes), fill, dtype=self.dtype, device=device)

    def fits(self, tensor: Tensor, sizes: dict[str, int]) -> bool:
        """Whether a tensor has this field's type and shape. New axes are added to `sizes`."""
        if tensor.dim() != len(self.axes) or tensor.dtype != self.dtype:
            return False
        for axis, size in zip(self.axes, tensor.shape, strict=True):
            if isinstance(axis, str):
                sizes.setdefault(axis, size)
        return tuple(tensor.shape) == self.shape(sizes)


@dataclass
class Observed:
    """A batch of E examples in the codes of one dictionary.

    Attributes:
        codes: of the counted tokens, example by example.
        lengths: int64 [E] on the CPU, the counted tokens of each example.
        labels: int64 [E] on the device of the codes, the row of each example's label.
        positions: int64 [E] on the CPU, the place of each example in the corpus.
        batch: the number of the batch in its window; the rows of bags follow it.
        dictionary: the dictionary, where an accumulator needs more of it than its codes.
        kept: bool [E] on the CPU, the examples that tables by example keep; None: all.
        half: bool [E] on the CPU, the examples of the first half of the texts; None where no
            accumulator needs it.
    """

    codes: Codes
    lengths: Tensor
    labels: Tensor
    positions: Tensor
    batch: int = 0
    dictionary: Dictionary | None = None
    kept: Tensor | None = None
    half: Tensor | None = None

    @cached_property
    def bag(self) -> Bag:
        """The codes summed by example."""
        return self.codes.bag(self.lengths)


class Accumulator:
    """Statistics of one dictionary.

    A subclass declares `FIELDS` and defines `add`. It overrides `reduce` where fields depend on
    each other, and `save` and `load` where its file is not a safetensors file.

    Attributes:
        labels: the K labels, in order.
        tensors: the fields by name.
        header: what was collected: model, dictionary, corpus, token policy, windows.
    """

    FIELDS: ClassVar[dict[str, Field]]
    FOLDER: ClassVar[str] = ""  # of its files, in a directory of statistics; counts have none
    SUFFIX: ClassVar[str] = ".safetensors"
    ON_REQUEST: ClassVar[bool] = False  # whether it is collected only when it is asked for
    EACH_WINDOW: ClassVar[bool] = False  # whether each window has its own accumulator and file
    IN_RUN: ClassVar[bool] = True  # whether a run collects it unasked
    BUFFER: ClassVar[int] = 0  # bytes per unit of dense codes that it holds between batches
    LIMITED: ClassVar[bool] = False  # whether it keeps a limited number of examples per label
    HALVED: ClassVar[bool] = False  # whether it needs to know the first half of the examples
    SIGNED: ClassVar[bool] = True  # whether it is collected where codes may be negative
    FORMAT: ClassVar[dict[str, Any]] = {}  # constants that its files record

    def __init__(
        self,
        labels: tuple[str, ...],
        tensors: dict[str, Tensor],
        header: dict[str, Any] | None = None,
    ) -> None:
        self.labels, self._tensors, self.header = labels, tensors, header or {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self._tensors

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name == "tensors" or name not in self.tensors:
            raise AttributeError(name)
        return self.tensors[name]

    @property
    def dictionary(self) -> str:
        """The id of the dictionary."""
        return self.header["dictionary"]["id"]

    @property
    def site(self) -> str:
        return self.header["dictionary"]["site"]

    @classmethod
    def applies(cls, dictionary: Dictionary) -> bool:
        """Whether it is collected for a dictionary."""
        return cls.SIGNED or not dictionary.signed

    @classmethod
    def path(cls, place: Path, dictionary: str, window: int = 0) -> Path:
        """Its file for a dictionary (of a window, if `EACH_WINDOW`) in its directory `place`."""
        if cls.EACH_WINDOW:
            return place / dictionary / f"window-{window:05d}{cls.SUFFIX}"
        return place / f"{dictionary}{cls.SUFFIX}"

    @classmethod
    def zeros(
        cls,
        labels: tuple[str, ...],
        width: int,
        *,
        signed: bool = False,
        device: str = "cpu",
        **header: Any,
    ) -> Self:
        """The neutral element. `signed`: whether codes may be negative."""
        sizes = {"label": len(labels), "unit": width, "row": 0}
        fields = cls._fields(signed).items()
        return cls(labels, {name: f.zeros(sizes, device) for name, f in fields}, header)

    @classmethod
    def _fields(cls, signed: bool) -> dict[str, Field]:
        return {name: f for name, f in cls.FIELDS.items() if signed or not f.signed_only}

    @classmethod
    def unit_bytes(cls, labels: int, *, signed: bool, rows: int = 0) -> int:
        """Bytes per unit that its tensors take with so many rows."""
        sizes = {"label": labels, "unit": 1, "row": rows}
        return sum(
            field.dtype.itemsize * math.prod(field.shape(sizes))
            for field in cls._fields(signed).values()
            if "unit" in field.axes
        )

    def add(self, observed: Observed) -> None:
        """Add a batch in place."""
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """Both merged, as a new accumulator. They must pass `merging.check_mergeable`.

        Names and paths in the header may differ: those of the accumulator whose first window has
        the lower number are kept. Raises RunFailed when a sum leaves the exact range.
        """
        header = _merge_headers(self.header, other.header)
        return type(self)(self.labels, self.reduce(other), header).check_range()

    def reduce(self, other: Self) -> dict[str, Tensor]:
        """The merged tensors of both."""
        return {
            name: REDUCE[self.FIELDS[name].reduction](value, other.tensors[name])
            for name, value in self.tensors.items()
        }

    def check_range(self) -> Self:
        """Return self. Raises RunFailed when a sum has left the exact range."""
        for name, tensor in self.tensors.items():
            if self.FIELDS[name].reduction != "sum" or not tensor.numel():
                continue
            # Two sums below half of the range can be added without overflow.
            if tensor.abs().max() > torch.iinfo(tensor.dtype).max // 2:
                of = self.header.get("dictionary")
                raise RunFailed(f"the {name} of a unit of {of} exceeds the exact range")
        return self

    def equal(self, other: Self) -> bool:
        """Whether labels and tensors are the same; headers may differ."""
        mine, its = self.tensors, other.tensors
        same_kind = self.labels == other.labels and mine.keys() == its.keys()
        return same_kind and all(torch.equal(mine[name], its[name]) for name in mine)

    def save(self, path: Path, corpus: Corpus | None = None) -> None:
        """Write the file. `corpus` is needed by accumulators that write texts."""
        header = {"schema": SCHEMA, **self.FORMAT, "labels": list(self.labels), **self.header}
        save_tensors(path, {name: value.cpu() for name, value in self.tensors.items()}, header)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises UserError when it is damaged, or of another kind or version."""
        tensors, found = load_tensors(path)
        labels, header = cls._parse(found, path)
        cls._check(tensors, len(labels), path)
        return cls(labels, tensors, header)

    @classmethod
    def read_header(cls, path: Path) -> dict[str, Any]:
        """The `header` of a file, without its tensors. Raises UserError as `load` does."""
        return cls._parse(read_header(path), path)[1]

    @classmethod
    def _parse(cls, found: dict[str, Any], path: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Labels and `header`, of the header of a file."""
        constants = {"schema": SCHEMA, **cls.FORMAT}
        if "labels" not in found:
            raise UserError(f"{path} holds no statistics; it was written for something else")
        for name, value in constants.items():
            if found.get(name) != value:
                raise UserError(f"{path} has another {name} ({found.get(name)}); collect it again")
        labels = tuple(checked(Header, found, path)["labels"])
        if len(set(labels)) != len(labels):
            raise UserError(f"{path} names a label twice; collect it again")
        return labels, {k: v for k, v in found.items() if k not in {"labels", *constants}}

    @classmethod
    def _check(cls, tensors: dict[str, Tensor], labels: int, path: Path) -> None:
        """Raise UserError where a tensor is missing, unknown, or of another shape or type."""
        sizes = {"label": labels}
        for name in cls.FIELDS.keys() | tensors.keys():
            field, tensor = cls.FIELDS.get(name), tensors.get(name)
            if field and field.signed_only and tensor is None:
                continue
            if field is None or tensor is None or not field.fits(tensor, sizes):
                raise UserError(
                    f"{path} holds no statistics of {labels} labels (tensor {name}); "
                    "collect it again"
                )
