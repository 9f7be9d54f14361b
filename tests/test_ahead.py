"""The next item is made while the one before it is used."""

from __future__ import annotations

import threading

import pytest

from saefeat.corpora.ahead import ahead


def test_the_next_item_is_made_while_one_is_used_and_no_further_one():
    made = [threading.Event() for _ in range(5)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in ahead(items()):
        if number < 4:
            assert made[number + 1].wait(10)
        assert not any(event.is_set() for event in made[number + 2 :])
    assert number == 4 and list(ahead([])) == []


def test_an_error_takes_the_place_of_its_item_and_a_caller_may_stop_early():
    def items():
        yield 1
        raise ValueError("second")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="second"):
        next(found)
    threads = threading.active_count()
    left = ahead(range(9))
    assert next(left) == 0 and threading.active_count() == threads + 1
    left.close()
    assert threading.active_count() == threads
