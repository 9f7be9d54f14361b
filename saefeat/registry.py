"""Registries: a name, and the module that holds what it stands for, imported when it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar

from saefeat.io import UserError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names and what they stand for, in a fixed order.

    A registry is a table of `name: "module:attribute"`. To add an entry is to write one module and
    one line of the table. Modules are imported on demand, so that help texts, which need the names
    only, do not wait for torch.

    Args:
        kind: what an entry is, in messages: "method", "head".
        places: name -> "module:attribute".
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
        return name in self._places  # Mapping would look for a KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
