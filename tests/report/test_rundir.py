"""The run directory: what is saved is what is loaded, byte for byte, and nothing else is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from saefeat.io import UserError
from saefeat.rundir import RunDir

PAIRS: dict[str, tuple[Callable[[RunDir], Any], Callable[[RunDir, Any], None]]] = {
    "run.json": (RunDir.load_index, RunDir.save_index),
    "examples/shown.json": (RunDir.load_shown, RunDir.save_shown),
    "lid/metrics.json": (RunDir.load_lid_metrics, RunDir.save_lid_metrics),
    "steering/metrics.json": (RunDir.load_steering_metrics, RunDir.save_steering_metrics),
    "steering/settings.json": (RunDir.load_settings, RunDir.save_settings),
    "steering/samples.jsonl": (RunDir.load_samples, RunDir.save_samples),
    "steering/matrix.json": (RunDir.load_matrix, RunDir.save_matrix),
    "compare/metrics.json": (
        lambda run: run.comparison.load_metrics(),
        lambda run, value: run.comparison.save_metrics(value),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_content_that_is_loaded_and_saved_gives_the_same_bytes(run: Path, name: str) -> None:
    load, save = PAIRS[name]
    place, path = RunDir(run), run / name
    save(place, load(place))  # numbers are written as they are here: 1.0 for 1
    before, value = path.read_bytes(), load(place)
    path.unlink()
    with pytest.raises(UserError, match=path.name):
        load(place)
    save(place, value)
    assert path.read_bytes() == before and load(place) == value


@pytest.mark.parametrize("name", PAIRS)
def test_content_of_another_type_is_not_saved(run: Path, name: str) -> None:
    load, save = PAIRS[name]
    before = (run / name).read_bytes()
    value = load(RunDir(run))
    for odd in (None, [value], {**value, "x": 1} if isinstance(value, dict) else [{}]):
        with pytest.raises((ValueError, TypeError)):
            save(RunDir(run), odd)
    assert (run / name).read_bytes() == before


def test_artefacts_are_listed_by_name_without_temporary_files(run: Path) -> None:
    place = RunDir(run)
    for folder, suffix in (("stats", "safetensors"), ("selections", "parquet")):
        (run / folder / f".x.1.saefeat-tmp.{suffix}").touch()
    assert place.collected() == ["mlp_act@3", "mlp_out@12", "mlp_out@3"]
    assert place.selected_methods() == ["lape", "sae-lape"]
    assert place.trained_saes() == ["mlp_out@12", "mlp_out@3"]
    empty = RunDir(run / "nowhere")
    assert not [*empty.collected(), *empty.selected_methods(), *empty.trained_saes()]


def test_predictions_lie_beside_their_metrics_and_come_back_by_length(run: Path) -> None:
    place, other = RunDir(run), run.parent / "other.json"
    assert place.predictions_file() == run / "lid" / "predictions.parquet"
    assert place.predictions_file(other) == run.parent / "other-predictions.parquet"
    columns = pq.read_table(place.predictions_file()).to_pydict()
    place.save_predictions(columns, other)
    assert pq.read_table(place.predictions_file(other)).to_pydict() == columns
    found = place.load_predictions(["linear", "nobody"], other)
    assert found.keys() == {"all", "10", "20", "50"}
    rows = found["10"].to_pylist()
    assert list(rows[0]) == ["id", "label", "text", "linear"]
    assert [row["linear"] for row in rows[:3]] == ["ar", None, "de"]
    assert place.load_predictions(["nobody"], other) == {}
