"""Damaged files of a run: each is one sentence that names it; a bug of ours is none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saefeat.io import UserError, load_tensors, save_tensors
from saefeat.report import view, write_report
from saefeat.rundir import RunDir

CFG = "saes/mlp_out@3/cfg.json"
SAMPLES = "steering/samples.jsonl"
LOADERS = {
    "run.json": RunDir.load_index,
    "lid/metrics.json": RunDir.load_lid_metrics,
    "steering/metrics.json": RunDir.load_steering_metrics,
    "steering/settings.json": RunDir.load_settings,
    "steering/matrix.json": RunDir.load_matrix,
    "examples/shown.json": RunDir.load_shown,
    "compare/metrics.json": lambda run: run.comparison.load_metrics(),
    "experiments/lens.json": lambda run: run.load_experiments(),
    SAMPLES: RunDir.load_samples,
    "gate.json": RunDir.load_fit_check,
}
OPTIONAL = {  # keys that a file may lack
    "arguments.labels",  # arguments that came later take their defaults
    "arguments.seed",
    "histogram",
    "features_ahead_by",
    "features_ahead_ci",
    "measured",
    "perplexity_in_context",
    "score_in_context",
    "score_in_context_ci",
    "lpr",
    "wpr",
    "lcpr",
}
MAPS = {  # objects whose keys are names, so that others may come and some may go
    "versions",
    "seeds",
    "skipped",
    "timings",
    "heads",
    "per_label",
    "by_length",
    "own",
    "parameters",
    "labels",
    "methods",
    "features",
    "sentences",
    "baseline",
    "counts",
    "rows",
    "better",
    "stated",
    "pools",
    "units",
}
ODD = (
    None,
    True,
    -1,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "x",
    [],
    [1],
    {},
    {"a": 1},
)


@pytest.fixture(autouse=True)
def fit_check(run: Path) -> None:
    found = {"id": "a", "site": "mlp_out@3", "fvu": 0.2, "l0": 32.0, "silent": 0.5, "tokens": 2048}
    found |= {"better": {"mlp_out@4": 0.1}, "stated": {"fvu": 0.2}, "doubt": None}
    found |= {"revisions": [], "bos": ""}
    RunDir(run).save_fit_check({"schema": 1, "request": "r", "saes": [found]})


def read(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return (
        [json.loads(line) for line in text.splitlines()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )


def write(path: Path, value: Any) -> None:
    lines = value if path.suffix == ".jsonl" else [value]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")


def places(value: Any, trail: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys that lead to each value within a value; of lists, the first two members."""
    if trail:
        yield trail
    members = dict(enumerate(value[:2])) if isinstance(value, list) else value
    for key, inner in members.items() if isinstance(members, dict) else ():
        yield from places(inner, (*trail, key))


def inside(value: Any, trail: tuple[Any, ...]) -> Any:
    for key in trail:
        value = value[key]
    return value


def refuses(name: str, run: Path) -> bool:
    try:
        LOADERS[name](RunDir(run))
    except UserError as error:
        assert Path(name).name in str(error) and "\n" not in str(error)
        return True
    return False


# The cells of an experiment may be of any type.
@pytest.mark.parametrize("name", [each for each in LOADERS if not each.startswith("experiments")])
def test_every_value_has_a_type_and_every_key_is_known(run: Path, name: str) -> None:
    whole, labels = read(run / name), RunDir(run).load_index()["corpus"]["labels"]
    assert not refuses(name, run)
    for trail in places(whole):
        damaged = deepcopy(whole)
        holder, key = inside(damaged, trail[:-1]), trail[-1]
        quoted = [str(holder[key])] if type(holder[key]) in (int, float, bool) else []
        for odd in ({"odd": [None]}, float("nan"), *quoted):
            holder[key] = odd
            write(run / name, damaged)
            assert refuses(name, run), (trail, odd)
        named = [part for part in trail if isinstance(part, str)]
        if isinstance(holder, dict) and key not in labels and not MAPS & set(named[-2:-1]):
            holder["unknown key"] = holder.pop(key)
            write(run / name, damaged)
            assert refuses(name, run), trail
            del holder["unknown key"]
            write(run / name, damaged)
            optional = {named[-1], ".".join(named[-2:])} & OPTIONAL
            assert refuses(name, run) != bool(optional), trail


@pytest.mark.parametrize("name", [*LOADERS.keys() - {"gate.json"}, CFG])
def test_whatever_stands_in_a_file_there_is_a_page_or_a_sentence(run: Path, name: str) -> None:
    whole = read(run / name)
    for seed in range(12):
        draw, damaged = Random(seed), deepcopy(whole)
        for _ in range(draw.choice((1, 1, 2))):
            trail = draw.choice(list(places(damaged)))
            holder, key = inside(damaged, trail[:-1]), trail[-1]
            if draw.random() < 0.3:
                del holder[key]
            else:
                holder[key] = draw.choice(ODD)
        write(run / name, damaged)
        try:
            write_report(run)
        except UserError as error:
            assert Path(name).name in str(error) and "\n" not in str(error)


# --------------------------------------------------------------------------- disagreeing values


def first_head(metrics: Any) -> Any:
    return metrics["by_length"]["all"]["heads"]["linear"]


DISAGREE = {
    "lid/metrics.json": {
        "another shape": lambda m: first_head(m)["confusion_matrix"].pop(),
        "other labels": lambda m: first_head(m)["per_label"].pop("de"),
        "no length": lambda m: m["by_length"].update({"ten": m["by_length"]["10"]}),
        "no 'all'": lambda m: m["by_length"].pop("all"),
        "the head linear is not": lambda m: m["heads"].pop("linear"),
    },
    "steering/metrics.json": {
        "the label de is not": lambda m: m["own"].pop("de"),
        "no chosen row": lambda m: [row.update(chosen=False) for row in m["rows"]],
        "other methods": lambda m: m["summary"].pop(),
        "twice": lambda m: m["summary"].append(m["summary"][0]),
    },
    "steering/matrix.json": {
        "the label de is not": lambda m: m["labels"].remove("de"),
        "no count": lambda m: m["interventions"][0]["counts"].pop("de"),
    },
    "compare/metrics.json": {
        "the label de is not": lambda m: m["labels"].remove("de"),
        "a rule is there twice": lambda m: m["rows"].append(m["rows"][0]),
        "the pools are others": lambda m: m["pools"].pop("neurons"),
        "a length is missing": lambda m: m["rows"][0]["identification"].pop("20"),
        "the rule diffmean is not listed": lambda m: m["rows"].pop(1),
    },
    "experiments/lens.json": {
        "a plot is of means that are not there": lambda e: e.pop("means"),
        "a plot is of columns that are not there": lambda e: e["plots"][0].pop("of"),
        "means have different columns": lambda e: e["means"][0].pop("of"),
    },
    "examples/shown.json": {"differ in number": lambda m: m[1]["passages"][0]["pieces"].pop()},
    "run.json": {"version 2": lambda m: m.update(schema=2)},
}


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, cases in DISAGREE.items() for words in cases]
)
def test_values_that_do_not_agree_are_a_sentence(run: Path, name: str, words: str) -> None:
    value = read(run / name)
    DISAGREE[name][words](value)
    write(run / name, value)
    with pytest.raises(UserError, match=rf"{Path(name).name} is not what .*{words}"):
        write_report(run)


def test_a_label_that_was_not_measured_in_the_matrix_is_no_damage(run: Path) -> None:
    path = run / "steering" / "matrix.json"
    matrix = read(path)
    del matrix["baseline"]["de"]
    del matrix["interventions"][0]["rows"]["ar"]
    write(path, matrix)
    write_report(run)


# --------------------------------------------------------------------------- Parquet, safetensors


def rewrite_predictions(run: Path, change: Any) -> None:
    path = run / "lid" / "predictions.parquet"
    rows = [change(row) for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist([row for row in rows if row]), path)


PREDICTIONS = {
    "heads saw different texts": lambda row: (
        None if (row["head"], row["length"], row["id"]) == ("fasttext", "10", "id0") else row
    ),
    "the length 'ten'": lambda row: {**row, "length": row["length"].replace("10", "ten")},
    "no column predicted": lambda row: {k: row[k] for k in row if k != "predicted"},
    "label has gaps": lambda row: {**row, "label": None if row["id"] == "id0" else row["label"]},
    "text is int64": lambda row: {**row, "text": 1},
}


@pytest.mark.parametrize("words", PREDICTIONS)
def test_damaged_predictions_are_a_sentence(run: Path, words: str) -> None:
    rewrite_predictions(run, PREDICTIONS[words])
    with pytest.raises(UserError, match=rf"predictions\.parquet is damaged .*{words}"):
        write_report(run)


def test_predictions_without_fasttext_are_errors_of_the_head_alone(run: Path) -> None:
    rewrite_predictions(run, lambda row: None if row["head"] == "fasttext" else row)
    write_report(run)
    rows = (run / "tables" / "errors.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 3 * 2 and all(",neither," in row for row in rows[1:])


STATS = {
    "other labels": lambda t, h: (t, {**h, "labels": [*h["labels"][1:], "xx"]}),
    "another dictionary": lambda t, h: (t, {**h, "dictionary": {**h["dictionary"], "id": "x"}}),
    "fewer units": lambda t, h: ({k: v[..., :2] if v.dim() > 1 else v for k, v in t.items()}, h),
    "negative counts": lambda t, h: ({**t, "fired": -t["fired"]}, h),
    "more than all tokens": lambda t, h: ({**t, "fired": t["fired"] + 10**6}, h),
}


@pytest.mark.parametrize("damage", STATS)
def test_statistics_that_do_not_fit_are_a_sentence(run: Path, damage: str) -> None:
    path = run / "stats" / "mlp_out@3.safetensors"
    save_tensors(path, *STATS[damage](*load_tensors(path)))
    with pytest.raises(UserError, match=r"mlp_out@3\.safetensors does not fit the other files"):
        write_report(run)


def test_odd_parameters_of_a_selection_are_a_sentence(run: Path) -> None:
    place = RunDir(run)
    selection = place.load_selection("sae-lape")
    for odd in ("much", 3.0, None):
        selection.header["parameters"] = {"ratio": odd}
        place.save_selection("sae-lape", selection)
        with pytest.raises(UserError, match=r"sae-lape\.parquet is damaged .*ratio"):
            write_report(run)


# --------------------------------------------------------------------------- our own bugs


@pytest.mark.parametrize(
    "bug", [TypeError, AttributeError, KeyError, ValueError, ZeroDivisionError]
)
def test_a_bug_of_ours_is_not_called_damage(
    run: Path, monkeypatch: pytest.MonkeyPatch, bug: type[Exception]
) -> None:
    def broken(*_: Any) -> None:
        raise bug("a bug")

    monkeypatch.setattr(view, "lid_view", broken)
    with pytest.raises(bug, match="a bug"):
        write_report(run)
