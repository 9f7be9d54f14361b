"""The check of published figures, on small files in the layout of the authors' repositories."""

import importlib
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

LAYERS, WIDTH, TOKENS = 4, 300, 500


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    return importlib.import_module("check_published")


@pytest.fixture
def main(script, monkeypatch, capsys):
    """main(directory, *options) -> exit code, printed lines."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["check_published.py", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            script.main()
        return int(end.value.code), capsys.readouterr().out.splitlines()

    return call


def save(root, path, value):
    file = root / path.replace("*", "de76")
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, file)


def counts_of(labels, seed):
    """Firing counts int32 [L, D, K]: in each layer a unit of one label, of two, and of all."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(0, 0.4, (LAYERS, WIDTH, 1)) * rng.uniform(0.5, 1, (LAYERS, WIDTH, labels))
    for layer in range(LAYERS):
        units = rng.permutation(WIDTH)[:3]
        for unit, number in zip(units, (1, 2, labels), strict=True):
            own = rng.permutation(labels)[:number]
            p[layer, unit] = 0.01
            p[layer, unit, own] = rng.uniform(0.5, 0.9)
    return torch.from_numpy(rng.binomial(TOKENS, p).astype(np.int32))


def table(fired, tokens):
    """Units (layer, unit) with their probabilities, in order, and the .95 quantile, by loops."""
    units = {
        (layer, unit): [np.float32(c) / np.float32(tokens) for c in fired[layer, unit].tolist()]
        for layer in range(fired.shape[0])
        for unit in range(fired.shape[1])
    }
    flat = sorted(float(x) for p in units.values() for x in p)
    return units, flat[round(0.95 * len(flat)) - 1]


def spread(p):
    total = sum(map(float, p))
    return -sum(x / total * math.log(x / total) for x in map(float, p) if x > 0)


def owners(p, bar):
    return [k for k, x in enumerate(p) if float(x) > bar]


def figures(cells, labels, layers=LAYERS):
    """Figures of chosen units {(layer, unit): positions of labels}."""
    of = Counter(labels[k] for own in cells.values() for k in own)
    number = Counter(len(own) for own in cells.values())
    return {
        "union": len(cells),
        "by label": {label: of[label] for label in labels},
        "by number of labels": [number[n] for n in range(1, max(number) + 1)],
        "by layer": [sum(layer == at for layer, _ in cells) for at in range(layers)],
    }


def mask_of(cells, labels, layers=LAYERS):
    return [
        [torch.tensor(sorted(u for (layer, u), own in cells.items() if layer == at and k in own))
         .long() for at in range(layers)]
        for k in range(len(labels))
    ]  # fmt: skip


def lape_cells(fired):
    """LAPE by loops."""
    units, bar = table(fired, TOKENS)
    passing = [unit for unit, p in units.items() if owners(p, bar)]
    kept = sorted(passing, key=lambda unit: spread(units[unit]))[: round(0.01 * len(units))]
    return {unit: owners(units[unit], bar) for unit in kept}


def write_lape(root, script, seed=0):
    check, fired = script.CHECKS["lape"], counts_of(len(script.LAPE), seed)
    for k, lang in enumerate(script.LAPE):
        save(root, check.files[lang], {"n": TOKENS, "over_zero": fired[:, :, k].clone()})
    cells = lape_cells(fired)
    save(root, check.files["mask"], mask_of(cells, script.LAPE))
    return figures(cells, script.LAPE) | {"cells that differ from the mask": 0}


def write_ternary(root, script):
    """Counts of whole texts and of prompts. The figures are found by loops."""
    labels, check = script.MGSM, script.CHECKS["ternary"]
    fired, prompts = counts_of(len(labels), 1), counts_of(len(labels), 2) // 4
    for k, lang in enumerate(labels):
        whole = {"over_zero": (fired + prompts)[:, :, k].clone(), "total_tokens": TOKENS + 90}
        save(root, check.files[lang], whole)
        prompt = {"over_zero": prompts[:, :, k].clone(), "total_tokens": 90}
        save(root, check.files[f"prompt of {lang}"], prompt)
    units, bar = table(fired, TOKENS)
    scale = sum(1 / n for n in range(1, 11)) / 10
    own = {unit: owners(p, bar) for unit, p in units.items()}
    values = {unit: (spread(p) / math.log(10), float(max(p)) / scale) for unit, p in units.items()}

    def kept(penalty):
        order = sorted(units, key=lambda unit: values[unit][0] - penalty * values[unit][1])
        return order[: round(0.01 * len(units))]

    low, high = 0.0, 0.2
    while high - low > 1e-3:
        middle = (low + high) / 2
        general = any(len(own[unit]) == 10 for unit in kept(middle))
        low, high = (low, middle) if general else (middle, high)
    assert 0 < low < 0.19  # some penalties choose a general unit, others do not
    cells = {unit: own[unit] for unit in kept(low) if own[unit]}
    save(root, check.files["mask"], mask_of(cells, labels))
    every = [sum(len(own[at, u]) == 10 for u in range(WIDTH)) for at in range(LAYERS)]
    return figures(cells, labels) | {
        "penalty": low,
        "bar": bar,
        "selected without a label": round(0.01 * len(units)) - len(cells),
        "units that differ from the mask": 0,
        "general": sum(every),
        "general by layer": every,
        "specific and related by layer": figures(cells, labels)["by layer"],
    }


def write_features(root, script):
    """Sparse counts of tokens and examples for SAE-LAPE."""
    labels = ["Bulgarian", "English", "Thai"]
    rng = np.random.default_rng(3)
    examples = rng.choice([5, 40, 50], (2, 200, 3))
    tokens = np.where(examples < 50, examples, rng.integers(60, 400, (2, 200, 3)))
    sizes = {"num_tokens": torch.tensor([500] * 3), "num_examples": torch.tensor([50] * 3)}
    counts = {"over_zero_token": tokens, "over_zero_example": examples}
    sparse = {name: torch.from_numpy(of).to_sparse() for name, of in counts.items()}
    save(root, "lape_all.pt", {"sorted_lang": labels, **sizes, **sparse})
    cells, entropies = {}, []
    for layer, unit in np.ndindex(2, 200):
        t, e = tokens[layer, unit], examples[layer, unit]
        if e.max() >= 49 and t.max() > 50:
            cells[layer, unit] = [k for k in range(3) if t[k] >= 0.5 * t.max()]
            entropies.append(spread([np.float32(x) / np.float32(500) for x in t]))
    one = {unit: own for unit, own in cells.items() if len(own) == 1}
    return {
        "all owners": len(cells),
        "one owner": len(one),
        "by number of owners": figures(cells, labels, 2)["by number of labels"],
        "one owner, by label": figures(one, labels, 2)["by label"],
        "one owner, by layer": figures(one, labels, 2)["by layer"],
        "least entropy": round(min(entropies), 6),
        "greatest entropy": round(max(entropies), 6),
        "English": sorted([layer, unit] for (layer, unit), own in one.items() if own == [1]),
    }


def write_neurons(root, script):
    labels, fired = ["Bulgarian", "English", "Thai"], counts_of(3, 4)
    of = {"sorted_lang": labels, "num_tokens": torch.tensor([TOKENS] * 3)}
    save(root, "lape_neuron.pt", {**of, "over_zero_token": fired})
    return figures(lape_cells(fired), labels) | {"bar": table(fired, TOKENS)[1]}


def write_plnd(root, script):
    check, sets = script.CHECKS["plnd"], {}
    for n, (name, path) in enumerate(check.files.items()):
        sets[name] = {"fwd_up": {"0": list(range(n, 9)), "1": [n]}, "attn_q": {"0": [3], "1": []}}
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(sets[name]))
    return {
        "shared": 9 + 1 + 1,
        "exclusive": {name: 9 - n + 2 for n, name in enumerate(check.files) if n},
        "exclusive to zh and to th": len(range(3, 9)) + 1,  # the last in attn_q
    }


WRITERS = {
    "lape": write_lape,
    "ternary": write_ternary,
    "sae-lape": write_features,
    "sae-lape-neurons": write_neurons,
    "plnd": write_plnd,
}


@pytest.mark.parametrize("name", WRITERS)
def test_figures_are_those_of_an_oracle_and_a_wrong_one_is_reported(
    name, script, main, tmp_path, monkeypatch
):
    expected = WRITERS[name](tmp_path, script)
    check = script.CHECKS[name]
    assert check.expected.keys() - expected.keys() <= {"units of en", "units of bn", "stages"}
    monkeypatch.setitem(script.CHECKS, name, replace(check, expected=expected))
    code, lines = main(tmp_path, "--checks", name)
    assert (code, lines[0]) == (0, f"{name} (arXiv {check.paper}): agrees")
    figure, value = next((f, v) for f, v in expected.items() if isinstance(v, int))
    monkeypatch.setitem(
        script.CHECKS, name, replace(check, expected=expected | {figure: value + 1})
    )
    code, lines = main(tmp_path, "--checks", name, "--out", tmp_path / "out.json")
    assert code == 1 and lines[0].endswith(": differs")
    assert [line for line in lines if "DIFFERS" in line] == [
        f"  {figure}: {value}, expected {value + 1}: DIFFERS"
    ]
    kept = json.loads((tmp_path / "out.json").read_text())["checks"][name]["figures"]
    assert [name for name, each in kept.items() if not each["same"]] == [figure]


def test_a_changed_count_changes_the_mask(script, main, tmp_path):
    write_lape(tmp_path, script)
    write_lape(tmp_path / "other", script, seed=7)
    mask = script.CHECKS["lape"].files["mask"]
    (tmp_path / "other" / mask).replace(tmp_path / mask)
    code, lines = main(tmp_path, "--checks", "lape")
    differ = [line for line in lines if line.startswith("  cells that differ from the mask")]
    assert code == 1 and differ[0].endswith("expected 0: DIFFERS") and ": 0," not in differ[0]


def test_masks_are_checked_one_by_one(script, main, tmp_path, monkeypatch):
    check = script.CHECKS["lape-masks"]
    cells = {(0, 3): [0], (1, 5): [1, 6], (1, 6): [1]}
    save(tmp_path, check.files["LLaMA-2-7B"], mask_of(cells, script.LAPE, 2))
    small = {
        "LLaMA-2-7B: union": 3,
        "LLaMA-2-7B: by label": [1, 2, 0, 0, 0, 0, 1],
        "LLaMA-2-7B: by number of labels": [2, 1],
        "LLaMA-2-7B: zh and ja": 1,
    }
    monkeypatch.setitem(
        script.CHECKS, "lape-masks", replace(check, expected={**check.expected, **small})
    )
    code, lines = main(tmp_path, "--checks", "lape-masks")
    assert code == 0 and lines[0].endswith(": agrees")
    assert "needs LLaMA-2-13B.neuron.pth and 5 more of" in lines[2]
    assert [line.split(": ")[0] for line in lines[3:]] == ["  LLaMA-2-7B"] * 4


def test_files_that_are_not_there_or_hold_code(script, main, tmp_path):
    code, lines = main(tmp_path)
    assert code == 0
    states = [line for line in lines if "(arXiv" in line]
    assert len(states) == len(script.CHECKS)
    assert all(line.endswith(": not found") for line in states)
    save(tmp_path, "lape_neuron.pt", Path("run"))  # an object that is no tensor is not unpickled
    code, lines = main(tmp_path, "--checks", "sae-lape-neurons")
    assert code == 1 and lines[0].endswith(": unreadable")
    assert "UnpicklingError" in lines[2]
