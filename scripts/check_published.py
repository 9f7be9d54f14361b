"""Recompute published figures from the files that authors have put beside their papers.

    python scripts/check_published.py DIR [--checks ternary,lape,...] [--out FILE]

DIR holds clones of the authors' repositories, or parts of them in the same folders; saefeat ships
none of these files. Counts are written as the statistics that `saefeat collect` writes, and ranked
by `saefeat.run.rank` with the published parameters. Masks and lists of units become selections.
Each figure is printed beside the expected one. A check whose files are not there is reported as not
found. The exit code is 1 when a figure differs or a file cannot be used, else 0. Files are read
with `torch.load(weights_only=True)`, so nothing in them is executed.

The expected figures are those of the papers, or were computed from the same files by another
program. The script is tested on small files of the same layout; it has not been run on the authors'
files yet.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from common import choose_parts, options, parse, record
from torch import Tensor

from saefeat.io import UserError
from saefeat.methods.lape import Pool, quantile
from saefeat.partition import four_stages
from saefeat.ranking import make_part
from saefeat.run import rank
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.words import natural

Found = dict[str, Any]
# What a file of another layout raises.
UNUSABLE = (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)
UNUSABLE += (UserError, pickle.UnpicklingError)
HUB = "https://github.com/"
MGSM = ("en", "ru", "es", "fr", "de", "zh", "ja", "bn", "th", "sw")
LAPE = ("en", "zh", "fr", "es", "vi", "id", "ja")
# fmt: off
CLAS = ("en", "ar", "bo", "da", "de", "es", "fr", "hi", "it", "ja", "ko", "mt", "nl", "no", "pl",
        "pt", "ru", "sv", "tr", "zh", "sk", "el", "kk", "sw", "ka", "uk", "fa", "th", "id", "vi",
        "cs", "ro")
# fmt: on
PLND = ("en", "zh", "th", "fr", "de", "sw")


@dataclass(frozen=True)
class Check:
    """Figures of a paper that its authors' files give.

    Attributes:
        paper: arXiv number.
        repository: where the files are.
        does: what is run on them.
        files: name -> path in the repository; `*` stands for any characters.
        compute: the files by name -> figure -> value.
        expected: figure -> value. A figure without an expected value is not compared.
        alone: whether each file has figures of its own, `NAME: ...`, and can be checked alone.
    """

    paper: str
    repository: str
    does: str
    files: Mapping[str, str]
    compute: Callable[[Mapping[str, Path]], Found]
    expected: Mapping[str, Any]
    alone: bool = False


# --------------------------------------------------------------------------- files


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("directory", type=Path, help="clones of the authors' repositories")
    parser.add_argument("--checks", default=",".join(CHECKS))
    arguments = parse(parser)
    result = {}
    for name in choose_parts(parser, arguments.checks, tuple(CHECKS)):
        result[name] = run_check(CHECKS[name], arguments.directory)
        print("\n".join(lines_of(name, CHECKS[name], result[name])), flush=True)
    if arguments.out is not None:
        record(arguments, {"checks": result})
    sys.exit(any(each["state"] in ("differs", "unreadable") for each in result.values()))


def run_check(check: Check, directory: Path) -> Found:
    """{state, ...}: `not found`, `unreadable`, `differs` or `agrees`, with the figures."""
    places = {name: sorted(directory.rglob(path)) for name, path in check.files.items()}
    files = {name: paths[0] for name, paths in places.items() if paths}
    missing = [path for name, path in check.files.items() if name not in files]
    if missing and not (check.alone and files):
        return {"state": "not found", "missing": missing}
    try:
        values = check.compute(files)
    except UNUSABLE as error:
        return {"state": "unreadable", "error": f"{type(error).__name__}: {error}"}
    figures = {
        name: {"expected": value, "found": values.get(name), "same": same(value, values.get(name))}
        for name, value in check.expected.items()
        if not check.alone or name.split(":")[0] in files
    }
    state = "agrees" if all(each["same"] for each in figures.values()) else "differs"
    return {"state": state, "figures": figures, "missing": missing}


def same(expected: Any, found: Any) -> bool:
    """Whether values are equal; fractions up to the digits that the expected one has."""
    if isinstance(expected, float) and isinstance(found, float):
        digits = -int(Decimal(repr(expected)).as_tuple().exponent)
        return abs(expected - found) <= 0.5000001 * 10**-digits
    return expected == found


def lines_of(name: str, check: Check, result: Found) -> Iterator[str]:
    """What is printed of a check."""
    yield f"{name} (arXiv {check.paper}): {result['state']}"
    yield f"  {check.does}"
    if missing := result.get("missing"):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        yield f"  needs {missing[0]}{more} of {HUB}{check.repository}"
    if error := result.get("error"):
        yield f"  a file cannot be used: {error}"
    for figure, each in result.get("figures", {}).items():
        differs = "" if each["same"] else f", expected {each['expected']}: DIFFERS"
        yield f"  {figure}: {each['found']}{differs}"


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


# --------------------------------------------------------------------------- statistics


def layer_stats(
    labels: Sequence[str],
    tokens: Tensor,
    fired: Tensor,
    *,
    kind: str = "identity",
    site: str = "mlp_act",
    examples: Tensor | None = None,
    fired_examples: Tensor | None = None,
) -> Iterator[Stats]:
    """Statistics of one dictionary per layer.

    Args:
        tokens: [K]; examples: [K], where they are known.
        fired: [L, width, K], dense or sparse; fired_examples: the same of examples.
    """
    for layer in range(fired.shape[0]):
        name = f"{'sae-' if kind == 'sae' else ''}{site}@{layer}"
        header = {"id": name, "site": f"{site}@{layer}", "width": fired.shape[1], "kind": kind}
        stats = Stats.zeros(tuple(labels), fired.shape[1], dictionary={**header, "fingerprint": ""})
        counts = {"fired": fired, "fired_examples": fired_examples}
        for field, of in counts.items():
            if of is not None:
                dense = of[layer].to_dense() if of.is_sparse else of[layer]
                stats.tensors[field] += dense.t().long()
        stats.tensors["tokens"] += tokens.long()
        if examples is not None:
            stats.tensors["examples"] += examples.long()
        yield stats


def ranked(stats: Iterator[Stats], method: str, *variants: Mapping[str, Any]) -> list[Selection]:
    """Write statistics as `collect` does, and rank them, once per set of parameters."""
    with tempfile.TemporaryDirectory() as place:
        for each in stats:
            each.save(Stats.path(Path(place), each.dictionary))
        return [rank(place, method, **parameters) for parameters in variants]


def bar_of(stats: Iterator[Stats]) -> float:
    """The .95 quantile of all firing probabilities."""
    return float(quantile(Pool.of(list(stats)).p, 0.95))


def selection_of(labels: Sequence[str], units: Sequence[Sequence[Sequence[int]]]) -> Selection:
    """A list of units per label and layer as a selection."""
    layers = len(units[0])
    width = 1 + max((int(u) for of in units for layer in of for u in layer), default=0)
    empty = torch.zeros(layers, width, len(labels), dtype=torch.int8)
    parts = []
    for at, stats in enumerate(layer_stats(labels, torch.zeros(len(labels)), empty)):
        pairs = [(int(u), k) for k, of in enumerate(units) for u in of[at]]
        unit, label = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        parts.append(make_part(stats, unit, label, torch.zeros(len(pairs))))
    return Selection.build(parts)


# --------------------------------------------------------------------------- figures


def units_of(selection: Selection) -> dict[tuple[str, int], int]:
    """(dictionary, unit) -> number of its labels."""
    return Counter((name, unit) for name, unit, _ in selection.cells())


def figures_of(selection: Selection) -> Found:
    """Sizes of the sets of a selection."""
    owners = units_of(selection)
    shared = Counter(owners.values())
    of = Counter(label for _, _, label in selection.cells())
    layers = Counter(name for name, _ in owners)
    return {
        "union": len(owners),
        "by label": {label: of[label] for label in selection.labels},
        "by number of labels": [shared[n] for n in range(1, max(shared, default=0) + 1)],
        "by layer": [layers[name] for name in sorted(selection.dictionaries, key=natural)],
    }


def both(selection: Selection, one: str, other: str) -> int:
    """How many units two labels share."""
    sets = [{(name, u) for name, u, label in selection.cells() if label == k} for k in (one, other)]
    return len(sets[0] & sets[1])


def ternary_figures(files: Mapping[str, Path]) -> Found:
    """Counts of answers with the counts of their prompts -> classes, and the authors' mask."""
    whole = [load(files[lang]) for lang in MGSM]
    prompts = [load(files[f"prompt of {lang}"]) for lang in MGSM]
    pairs = list(zip(whole, prompts, strict=True))
    fired = torch.stack([one["over_zero"] - p["over_zero"] for one, p in pairs], -1).clamp(min=0)
    tokens = [int(one["total_tokens"]) - int(prompt["total_tokens"]) for one, prompt in pairs]

    def stats() -> Iterator[Stats]:
        return layer_stats(MGSM, torch.tensor(tokens).clamp(min=1), fired)

    (selection,) = ranked(stats(), "ternary", {"normalised": True})
    classes = {
        name: [of[each] for each in sorted(of, key=natural)]
        for name, of in selection.header["classes"].items()
    }
    some = [a + b for a, b in zip(classes["specific"], classes["related"], strict=True)]
    mask = selection_of(MGSM, load(files["mask"]))
    found = figures_of(selection)
    kept = round(0.01 * fired.shape[0] * fired.shape[1])
    return found | {
        "penalty": selection.header["parameters"]["penalty"],
        "bar": bar_of(stats()),
        "selected without a label": kept - found["union"],
        "units that differ from the mask": len(units_of(selection).keys() ^ units_of(mask).keys()),
        "units of en": found["by label"]["en"],
        "units of bn": found["by label"]["bn"],
        "general": sum(classes["general-all"]),
        "general by layer": classes["general-all"],
        "specific and related by layer": some,
        "stages": four_stages(some, classes["general-all"]),
    }


def lape_figures(files: Mapping[str, Path]) -> Found:
    """Counts of tokens -> LAPE, and the authors' mask."""
    counts = [load(files[lang]) for lang in LAPE]
    fired = torch.stack([each["over_zero"] for each in counts], dim=-1)
    tokens = torch.tensor([int(each["n"]) for each in counts])
    (selection,) = ranked(layer_stats(LAPE, tokens, fired), "lape", {})
    mask = selection_of(LAPE, load(files["mask"]))
    differ = set(selection.cells()) ^ set(mask.cells())
    return figures_of(selection) | {"cells that differ from the mask": len(differ)}


def masks(labels: Sequence[str]) -> Callable[[Mapping[str, Path]], Found]:
    """The sizes of released masks; a mask may have the first of the labels only."""

    def compute(files: Mapping[str, Path]) -> Found:
        found: Found = {}
        for name, path in files.items():
            units = load(path)
            selection = selection_of(labels[: len(units)], units)
            sizes = figures_of(selection)
            found[f"{name}: union"] = sizes["union"]
            found[f"{name}: by label"] = list(sizes["by label"].values())
            found[f"{name}: by number of labels"] = sizes["by number of labels"]
            if {"zh", "ja"} <= set(selection.labels):
                found[f"{name}: zh and ja"] = both(selection, "zh", "ja")
        return found

    return compute


def sae_lape_figures(files: Mapping[str, Path]) -> Found:
    """Counts of an SAE's features, BOS included -> SAE-LAPE."""
    of = load(files["counts"])
    labels = [str(name) for name in of["sorted_lang"]]
    tokens, examples = (torch.as_tensor(of[f"num_{what}"]) for what in ("tokens", "examples"))
    stats = layer_stats(
        labels,
        tokens,
        of["over_zero_token"],
        kind="sae",
        site="mlp_out",
        examples=examples,
        fired_examples=of["over_zero_example"],
    )
    every, one = ranked(stats, "sae-lape", {"owners": "any"}, {"owners": 1})
    scores = every.table["score"].to_pylist()
    alone = figures_of(one)
    layers = {name: at for at, name in enumerate(sorted(one.dictionaries, key=natural))}
    english = sorted([layers[name], unit] for name, unit, k in one.cells() if k == "English")
    return {
        "all owners": figures_of(every)["union"],
        "one owner": alone["union"],
        "by number of owners": figures_of(every)["by number of labels"],
        "one owner, by label": alone["by label"],
        "one owner, by layer": alone["by layer"],
        "least entropy": min(scores),
        "greatest entropy": max(scores),
        "English": english,
    }


def neuron_figures(files: Mapping[str, Path]) -> Found:
    """Counts of neurons, BOS included -> LAPE."""
    of = load(files["counts"])
    labels, tokens = [str(name) for name in of["sorted_lang"]], torch.as_tensor(of["num_tokens"])

    def stats() -> Iterator[Stats]:
        return layer_stats(labels, tokens, of["over_zero_token"])

    (selection,) = ranked(stats(), "lape", {})
    return figures_of(selection) | {"bar": bar_of(stats())}


def plnd_figures(files: Mapping[str, Path]) -> Found:
    """Sizes of shared and exclusive sets over all kinds of weights."""
    units = {}
    for name, path in files.items():
        kinds = json.loads(path.read_text(encoding="utf-8"))
        units[name] = [of[at] for _, of in sorted(kinds.items()) for at in sorted(of)]
    (shared,) = figures_of(selection_of(("shared",), [units.pop("shared")]))["by label"].values()
    exclusive = selection_of(PLND, [units[lang] for lang in PLND])
    return {
        "shared": shared,
        "exclusive": figures_of(exclusive)["by label"],
        "exclusive to zh and to th": both(exclusive, "zh", "th"),
    }


# --------------------------------------------------------------------------- the checks


def _by(labels: Sequence[str], values: Sequence[int]) -> dict[str, int]:
    return dict(zip(labels, values, strict=True))


# fmt: off
_NAMES = ("Bulgarian", "Chinese", "English", "French", "German", "Hindi", "Italian", "Japanese",
          "Korean", "Portuguese", "Russian", "Spanish", "Thai", "Turkish", "Vietnamese")
# fmt: on
_MODELS = {
    "LLaMA-2-7B": (3523, [95, 583, 1022, 838, 836, 1068, 582]),
    "LLaMA-2-13B": (5530, [161, 1168, 1583, 1255, 1252, 1384, 1435]),
    "LLaMA-2-70B": (22938, [731, 5366, 6482, 5873, 5515, 6522]),
    "BLOOM-7B": (4915, [445, 653, 680, 918, 551, 2823]),
    "Mistral-7B": (4588, [76, 1190, 919, 838, 1554, 1445]),
    "OPT-6.7B": (5243, [347, 833, 1571, 1517, 752, 1129]),
    "Phi-2-2.7B": (3277, [52, 196, 1032, 1119, 511, 764]),
}
_RUCAI = "RUCAIBox/Language-Specific-Neurons"
_FEATURES = "LyzanderAndrylie/language-specific-features"
# fmt: off
CHECKS: dict[str, Check] = {
    "ternary": Check(
        "2505.21505", "NJUNLP/Language-Neurons-Alignment",
        "ternary -p normalised=true, the penalty by search, on counts of answers less prompts",
        {lang: f"activations/mgsm/activation.{lang}.Mistral-*.pt" for lang in MGSM}
        | {f"prompt of {lang}": f"activations/mgsm/prefix.activation.{lang}.Mistral-*.pt"
           for lang in MGSM}
        | {"mask": "activation_masks/mgsm/0.01-0.109375/mask.Mistral-*"},
        ternary_figures,
        {"penalty": 0.109375, "bar": 0.5644363164901733, "union": 3219,
         "selected without a label": 1369, "units that differ from the mask": 0,
         "by number of labels": [1866, 617, 310, 153, 127, 59, 40, 27, 20],
         "units of en": 142, "units of bn": 948, "general": 7797,
         "general by layer": [
             181, 106, 103, 114, 192, 194, 253, 253, 270, 307, 334, 431, 417, 443, 555, 445, 348,
             423, 316, 261, 151, 92, 66, 48, 50, 51, 54, 66, 108, 136, 284, 745],
         "specific and related by layer": [
             188, 12, 281, 65, 40, 3, 2, 3, 1, 1, 1, 1, 0, 3, 5, 7, 4, 0, 89, 102, 82, 76, 59, 74,
             106, 89, 95, 292, 526, 591, 269, 152],
         "stages": [1] * 3 + [2] * 16 + [3] * 12 + [4]}),
    "lape": Check(
        "2402.16438", _RUCAI, "lape on the counts of LLaMA-2-7B",
        {lang: f"activations/activation.{lang}.train.llama-7b" for lang in LAPE}
        | {"mask": "LLaMA-2-7B.neuron.pth"},
        lape_figures,
        {"union": 3523, "by label": _by(LAPE, _MODELS["LLaMA-2-7B"][1]),
         "by number of labels": [2396, 856, 193, 58, 15, 5],
         "cells that differ from the mask": 0}),
    "lape-masks": Check(
        "2402.16438", _RUCAI, "sizes of the released masks",
        {name: f"{name}.neuron.pth" for name in _MODELS},
        masks(LAPE),
        {f"{name}: union": union for name, (union, _) in _MODELS.items()}
        | {f"{name}: by label": sizes for name, (_, sizes) in _MODELS.items()}
        | {"LLaMA-2-7B: by number of labels": [2396, 856, 193, 58, 15, 5],
           "LLaMA-2-7B: zh and ja": 217},
        alone=True),
    "clas-masks": Check(
        "2601.08331", "d-gurgurov/CLaS-Bench", "sizes of the released masks of Llama-3.1-8B",
        {f"{n} %": f"identification/activation_mask/llama-{n}" for n in (1, 5)},
        masks(CLAS),
        {"1 %: union": 4588, "5 %: union": 22938,
         "1 %: by label": [
             78, 319, 1099, 412, 308, 253, 238, 640, 297, 554, 466, 522, 325, 391, 315, 257, 335,
             392, 379, 562, 371, 239, 654, 691, 444, 389, 406, 395, 376, 415, 339, 337]},
        alone=True),
    "sae-lape": Check(
        "2507.11230", _FEATURES,
        "sae-lape -p owners=any and -p owners=1 on counts that include BOS (in an archive of "
        "the folder compressed, which has to be unpacked)",
        {"counts": "lape_all.pt"},
        sae_lape_figures,
        {"all owners": 1043, "one owner": 540,
         "by number of owners": [540, 199, 96, 69, 38, 17, 16, 14, 5, 6, 5, 8, 5, 7, 18],
         "one owner, by label": _by(
             _NAMES, [50, 24, 7, 11, 13, 115, 18, 33, 22, 54, 26, 5, 64, 61, 37]),
         "one owner, by layer": [25, 11, 14, 13, 14, 12, 12, 12, 22, 34, 43, 45, 51, 75, 85, 72],
         "least entropy": 0.0019078, "greatest entropy": 2.705811,
         "English": [[0, 93066], [0, 128132], [2, 14207], [4, 34138], [8, 123973], [15, 5889],
                     [15, 67343]]}),
    "sae-lape-neurons": Check(
        "2507.11230", _FEATURES, "lape on counts of neurons that include BOS (archive as above)",
        {"counts": "lape_neuron.pt"},
        neuron_figures,
        {"union": 1311, "bar": 0.7173123,
         "by label": _by(
             _NAMES, [348, 128, 48, 246, 270, 254, 279, 189, 133, 253, 138, 191, 180, 282, 130])}),
    "plnd": Check(
        "2506.09890", "chenyuxin1999/Abstract_Thought",
        "sizes of the released sets of Llama-3.1-8B",
        {"shared": "neuron/Llama-3.1-8B_shared_neurons_0.05.json"}
        | {lang: f"neuron/Llama-3.1-8B_exclusive_{lang}_neuron_0.05.json" for lang in PLND},
        plnd_figures,
        {"shared": 21062,
         "exclusive": _by(PLND, [9204, 14800, 18270, 12518, 12308, 17926]),
         "exclusive to zh and to th": 9082}),
}
# fmt: on


if __name__ == "__main__":
    main()
