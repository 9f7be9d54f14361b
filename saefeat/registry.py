"""Registries: tables of names, whose entries are imported when they are used.

A new entry is one module and one line of its table. Help texts need only the names, so a module
that holds a registry imports no torch, and `--help` does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

from saefeat.io import UserError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to entries, in a fixed order.

    Args:
        kind: what an entry is called in messages: "method", "head".
        places: name -> "module:attribute".
        option: the parameter that takes a name; default `kind`.

    Raises:
        UserError: (by `[]`) there is no entry of this name.
    """

    def __init__(self, kind: str, places: Mapping[str, str], option: str = "") -> None:
        self.kind, self.option = kind, option or kind
        self._places = dict(places)

    def __getitem__(self, name: str) -> T:
        if name not in self._places:
            known = ", ".join(self)
            raise UserError(f"unknown {self.kind} {name!r}; choose from {known}", self.option)
        module, attribute = self._places[name].split(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # that of Mapping expects a KeyError

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
