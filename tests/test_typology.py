"""Scripts and families of labels."""

from __future__ import annotations

import sys

import pytest
from helpers import refused

from saefeat.labels import typology
from saefeat.labels.typology import families, groupings, scripts


def test_scripts_are_those_of_the_label_or_the_likely_ones():
    labels = ("de", "rus", "hi", "hi_Latn", "zh", "zh_Hant", "ja", "srp_Cyrl", "python", "")
    assert scripts(labels) == {
        "de": "Latn",
        "rus": "Cyrl",
        "hi": "Deva",
        "hi_Latn": "Latn",
        "zh": "Hans",
        "zh_Hant": "Hant",
        "ja": "Jpan",
        "srp_Cyrl": "Cyrl",
    }


def test_families_of_languages_macrolanguages_and_isolates():
    pytest.importorskip("qq", reason="qwanqwa is not installed (saefeat[typology])")
    labels = ("de", "hi", "zh", "cmn_Hans", "ar", "et", "tr", "eu", "ja", "python")
    assert families(labels) == {
        "de": "Indo-European",
        "hi": "Indo-European",
        "zh": "Sino-Tibetan",
        "cmn_Hans": "Sino-Tibetan",
        "ar": "Afro-Asiatic",
        "et": "Uralic",
        "tr": "Turkic",
        "eu": "Basque",
        "ja": "Japonic",
    }
    assert list(groupings()) == ["script", "family"]


def test_without_the_library_there_are_scripts_only(monkeypatch):
    monkeypatch.setattr(typology, "find_spec", lambda _: None)
    assert list(groupings()) == ["script"]
    monkeypatch.setitem(sys.modules, "qq", None)
    typology._database.cache_clear()
    typology._family.cache_clear()
    with refused("install saefeat"):
        families(["de"])
