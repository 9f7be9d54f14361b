"""Registries: tables of names, whose entries are imported when they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from saefeat.io import UserError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to entries, in a fixed order.

    A new entry is one module and one line of the table. Help texts need only the names, so the
    modules are imported on demand and `--help` does not wait for torch.

    Args:
        kind: what an entry is called in messages: "method", "head".
        places: name -> "module:attribute".

    Raises:
        UserError: (by `[]`) there is no entry of this name.
    """

    def __init__(self, kind: str, places: Mapping[str, str]) -> None:
        self.kind = kind
        self._places = dict(places)

    def __getitem__(self, name: str) -> T:
        if name not in self._places:
            raise UserError(f"unknown {self.kind} {name!r}; choose from {', '.join(self)}")
        module, attribute = self._places[name].split(":")
        found: Any = getattr(import_module(module), attribute)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._places  # that of Mapping expects a KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
