"""Make the next item in a thread, while the one before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
_END: Any = object()


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in their order; an error while one is made is raised in its place.

    It pays where making an item leaves the interpreter free, as tokenising does, and where the
    caller waits for a GPU.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "ahead") as pool:
        waiting = pool.submit(next, source, _END)
        while (item := waiting.result()) is not _END:
            waiting = pool.submit(next, source, _END)
            yield item
