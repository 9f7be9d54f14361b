"""What the report shows of ranked units: activations of every token, and histograms."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saefeat.corpora import TOKEN_LIMIT
from saefeat.hooks import capture
from saefeat.run import OpenRun, open_run
from saefeat.run import shown as module
from saefeat.run.shown import add_activations, add_histograms, shown_units
from saefeat.selection import Selection
from saefeat.statistics import Stats


@pytest.fixture(scope="module")
def opened(tiny_run: Path) -> OpenRun:
    return open_run(tiny_run)


@pytest.fixture
def rows(tiny_run: Path, opened: OpenRun) -> list[dict[str, Any]]:
    selection = Selection.load(tiny_run / "selections/sae-lape.parquet")
    found = shown_units(opened.lm, selection, saes_of(opened), tiny_run / "examples")
    assert found
    return found


def saes_of(opened: OpenRun) -> dict[str, Any]:
    return {sae.id: sae for sae in opened.saes}


def alone(opened: OpenRun, row: dict[str, Any], text: str) -> list[float]:
    """The unit's value on each token of a text that is run by itself."""
    lm, sae = opened.lm, saes_of(opened)[row["dictionary"]]
    ids = lm.tokenize([text], TOKEN_LIMIT)[0]
    path = lm.site(row["site"]).path
    with capture(lm.model, (path,)) as captured, torch.inference_mode():
        x = captured.run(lm.model, input_ids=torch.tensor([[*lm.prefix, *ids]]), use_cache=False)[
            path
        ]
        return sae.encode(x[0, len(lm.prefix) :]).of(torch.tensor([row["unit"]]))[:, 0].tolist()


def test_activations_of_passages_in_batches_are_those_of_each_passage_alone(
    opened: OpenRun, rows: list[dict[str, Any]]
) -> None:
    add_activations(opened.lm, rows, saes_of(opened), 2)
    for row in rows:
        for passage in row["passages"][:2]:
            assert "".join(passage["pieces"]) == passage["text"]
            assert passage["activations"] == pytest.approx(
                alone(opened, row, passage["text"]), abs=1e-3
            )
        assert all("pieces" not in passage for passage in row["passages"][2:])


def test_three_passages_get_activations_and_one_where_there_are_very_many_units(
    opened: OpenRun, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = max(len(row["passages"]) for row in rows)
    for limit, expected in ((module._MANY, min(3, most)), (0, 1)):
        monkeypatch.setattr(module, "_MANY", limit)
        these = copy.deepcopy(rows)
        add_activations(opened.lm, these, saes_of(opened))
        assert (
            max(sum("pieces" in passage for passage in row["passages"]) for row in these)
            == expected
        )


def test_a_histogram_counts_what_the_statistics_count(
    tiny_run: Path, opened: OpenRun, rows: list[dict[str, Any]]
) -> None:
    add_histograms(rows, tiny_run / "histograms")
    for row in rows:
        stats = Stats.load(tiny_run / f"stats/{row['dictionary']}.safetensors")
        found = row["histogram"]
        assert found["tokens"] == int(stats.tokens.sum())
        assert found["fired"] == sum(found["counts"]) == int(stats.fired[:, row["unit"]].sum())
        assert found["max"] == pytest.approx(float(stats.max[:, row["unit"]].max()), abs=1e-3)
        assert len(found["edges"]) == len(found["counts"]) + 1
    json.dumps(rows, allow_nan=False)


def test_units_of_dictionaries_that_are_not_there_are_left_as_they_are(
    tmp_path: Path, opened: OpenRun, rows: list[dict[str, Any]]
) -> None:
    before = copy.deepcopy(rows)
    add_activations(opened.lm, rows, {})
    add_histograms(rows, tmp_path)
    assert rows == before
