"""Registries: names without imports, entries imported when used, unknown names refused."""

from __future__ import annotations

import sys

import pytest

from saefeat.io import UserError
from saefeat.registry import Registry

PLACES = {"square root": "math:sqrt", "this": "this:d", "broken": "saefeat.io:no_such_name"}


@pytest.fixture
def registry():
    sys.modules.pop("this", None)
    return Registry("rule", PLACES)


def test_names_are_iterated_in_order_and_import_nothing(registry):
    assert list(registry) == list(PLACES) and len(registry) == 3
    assert "this" in registry and "that" not in registry
    assert "this" not in sys.modules


def test_an_entry_is_imported_when_it_is_used(registry, capsys):
    assert registry["square root"](9.0) == 3.0
    assert registry["this"]["A"] == "N"
    assert "this" in sys.modules


def test_an_unknown_name_is_one_sentence_that_lists_the_names(registry):
    with pytest.raises(UserError, match="unknown rule 'that'; choose from square root, this, bro"):
        registry["that"]


def test_a_wrong_line_in_the_table_is_a_bug_and_no_user_error(registry):
    with pytest.raises(AttributeError, match="no_such_name"):
        registry["broken"]
