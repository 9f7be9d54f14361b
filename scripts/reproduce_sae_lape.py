"""Reproduce SAE-LAPE (arXiv 2507.11230): its units, perplexity changes and heads.

    python scripts/reproduce_sae_lape.py --out OUT
    python scripts/reproduce_sae_lape.py --model embedded:gemma-3-270m --out OUT

The first command needs the hub: Llama-3.2-1B and FLORES+ are gated. The second one runs the same
stages on the embedded model and text, with SAEs that it trains; the paper's figures are of another
model then, and only their order can be compared. An interrupted run is continued by the same
command. BOS is counted in the statistics and by the heads, and edited in the interventions, as
published.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from common import options, parse

from saefeat.baselines.fasttext import FastText
from saefeat.config import TrainConfig
from saefeat.corpora import PAPER_LABELS, Corpus, first_by_hash, load_corpus, make_plan
from saefeat.dictionaries import SAE, Identity
from saefeat.evaluation import head_metrics
from saefeat.generation import text_losses
from saefeat.hooks import Edit, intervene, site_width
from saefeat.io import kept_json, make_dir, write_json
from saefeat.lid.features import featurize
from saefeat.lid.heads.sae_count import count_head
from saefeat.lid.heads.sae_min_max import min_max_head
from saefeat.models import LanguageModel, load_model
from saefeat.run import collect, rank
from saefeat.sae.store import load_saes
from saefeat.sae.train import train_saes
from saefeat.selection import Selection
from saefeat.statistics import Stats

MODEL, SAES = "meta-llama/Llama-3.2-1B", "EleutherAI/sae-Llama-3.2-1B-131k"
HEADS = ("fasttext", "sae-count", "sae-min-max", "neuron-count")
VARIANTS: dict[str, dict[str, Any]] = {
    "all owners": {"owners": "any"},
    "one owner": {},
    **{f"{n} owners": {"owners": n} for n in range(2, 16)},
    "one owner, top 10": {"top": 10},
    "one owner, top 10 by frequency": {"top": 10, "by": "frequency"},
    "one owner, top 1 a layer": {"top": 1, "per_layer": True},
}


def _figures(kind: str, names: Iterable[object], values: Iterable[float]) -> dict[str, float]:
    return {f"{kind}: {name}": value for name, value in zip(names, values, strict=True)}


# Name -> figure in the paper's repository.
# fmt: off
PAPER: dict[str, float] = {
    "units: all owners": 1043,
    **_figures("units", [f"{n} owners" for n in range(2, 16)],
               (199, 96, 69, 38, 17, 16, 14, 5, 6, 5, 8, 5, 7, 18)),
    "units: one owner": 540,
    **_figures("units", [f"one owner, {label}" for label in PAPER_LABELS],
               (7, 13, 11, 18, 54, 115, 5, 64, 50, 26, 61, 37, 33, 22, 24)),
    "entropy: least": 0.0019078,
    "entropy: greatest": 2.7058110,
    "units: LAPE neurons": 1311,
    "perplexity change: neurons to zero, own": 266.4,
    "perplexity change: neurons to zero, own, median": 177.1,
    "perplexity change: neurons to zero, others": 16.8,
    "perplexity change: neurons to zero, others, median": 1.16,
    "perplexity change: features x -0.1, own": 156.4,
    "perplexity change: features x -0.1, own, median": 18.5,
    "perplexity change: features x -0.1, others": 2.6,
    "perplexity change: features x -0.1, others, median": 1.4,
    "perplexity change: features x -0.2, own": 261_286,
    "perplexity change: features x -0.2, own, median": 905,
    "perplexity change: features x -0.2, others": 42.8,
    "perplexity change: features x -0.2, others, median": 6.9,
    **_figures("accuracy", HEADS, (0.98267, 0.97213, 0.96107, 0.61733)),
    **_figures("macro-F1", HEADS, (0.98303, 0.97238, 0.96126, 0.52844)),
    **_figures("perplexity", PAPER_LABELS,
               (40.09, 23.99, 18.37, 20.55, 28.32, 9.92, 25.24, 16.14, 21.35, 20.80, 61.50, 44.93,
                32.67, 40.27, 49.43)),
}
# fmt: on


@dataclass
class Data:
    """The corpus and the split that each stage reads."""

    statistics: tuple[Corpus, str]
    perplexity: tuple[Corpus, str]
    identification: tuple[Corpus, str]

    @classmethod
    def load(cls, embedded: bool) -> Data:
        if embedded:
            text = load_corpus("embedded:eld", labels=PAPER_LABELS)
            return cls((text, "train"), (text, "test"), (text, "test"))
        names = ("sae-lape", "flores+:devtest#1000", "wili-2018:test#500")
        one, two, three = (load_corpus(name, labels=PAPER_LABELS, say=print) for name in names)
        return cls((one, "all"), (two, "all"), (three, "all"))


def main() -> None:
    parser = options(__doc__, out="directory of the results; default sae-lape")
    parser.add_argument("--model", default=MODEL, help="hub id, directory or embedded:...")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", help="published: float32")
    parser.add_argument(
        "--sentences", type=int, default=1000, help="per label, for the perplexity changes"
    )
    parser.add_argument("--texts", type=int, default=500, help="per label, for the heads")
    parser.add_argument(
        "--fasttext", type=Path, help="lid.176.bin, as published; default: the embedded lid.176.ftz"
    )
    parser.set_defaults(out=Path("sae-lape"))
    arguments = parse(parser)
    out = make_dir(arguments.out)
    embedded = arguments.model.startswith("embedded:")
    data = Data.load(embedded)
    lm = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    saes = _trained(lm, data, out) if embedded else load_saes(SAES, lm)
    corpus, split = data.statistics
    collect(
        lm,
        corpus,
        saes,
        out=out / "stats",
        neurons=True,
        split=split,
        count_bos=True,
        gate=not embedded,
        max_tokens=20_000 if embedded else None,
        say=print,
    )
    found, chosen = identification(out, saes)
    found |= perplexity_changes(lm, saes, chosen, out, data, arguments.sentences)
    found |= heads(lm, saes, chosen, out, data, arguments.texts, arguments.fasttext)
    write_json(out / "results.json", {"model": lm.identity, "figures": found, "paper": PAPER})
    report(found)


def _trained(lm: LanguageModel, data: Data, out: Path) -> list[SAE]:
    corpus, split = data.statistics
    plan = make_plan(corpus, lm, split=split, max_tokens=12_000, mixed=True)
    sites = [f"mlp_out@{layer}" for layer in range(0, lm.n_layers, 3)]
    return train_saes(
        lm, plan, sites, out / "saes", TrainConfig(k=32, d_sae=2560, batch_size=1024), say=print
    )


def identification(out: Path, saes: Sequence[SAE]) -> tuple[dict[str, float], dict[str, Selection]]:
    """Numbers of units by variant, and the selections that the other stages use."""
    found: dict[str, float] = {}
    kept = {}
    ids = [sae.id for sae in saes]
    for name, parameters in VARIANTS.items():
        selection = rank(out / "stats", "sae-lape", dictionaries=ids, **parameters)
        selection.save(out / "selections" / f"{name}.parquet")
        kept[name] = selection
        frame = selection.to_pandas()
        found[f"units: {name}"] = len(frame[["dictionary", "unit"]].drop_duplicates())
        if name == "all owners" and len(frame):
            found |= {
                "entropy: least": float(frame.score.min()),
                "entropy: greatest": float(frame.score.max()),
            }
        if name == "one owner":
            counts = Counter(frame.label)
            found |= {f"units: one owner, {label}": counts[label] for label in selection.labels}
    kept["neurons"] = rank(out / "stats", "lape")
    kept["neurons"].save(out / "selections" / "lape.parquet")
    found["units: LAPE neurons"] = len(
        kept["neurons"].to_pandas()[["dictionary", "unit"]].drop_duplicates()
    )
    return found, kept


def perplexity_changes(
    lm: LanguageModel,
    saes: Sequence[SAE],
    chosen: dict[str, Selection],
    out: Path,
    data: Data,
    n: int,
) -> dict[str, float]:
    """Mean perplexity of each label's sentences, and its change by interventions for each label."""
    corpus, split = data.perplexity
    picked = first_by_hash(corpus, corpus.positions(split, 0), 0, n)
    texts = {
        label: [corpus.texts[i] for i in picked if corpus.of[i] == label] for label in corpus.labels
    }
    kept = out / "perplexity.json"
    before = kept_json(kept)
    table: dict[str, Any] = before if before.get("sentences") == n else {"sentences": n, "rows": {}}
    base = table.setdefault("baseline", None) or _perplexities(lm, texts)
    table["baseline"] = base
    stats = {sae.id: Stats.load(out / "stats" / f"{sae.id}.safetensors") for sae in saes}
    makers: dict[str, Callable[[str], dict[str, Edit]]] = {
        "neurons to zero": lambda label: _zeroed(lm, chosen["neurons"], label),
        **{
            f"features x {m}": lambda label, m=m: _pushed(
                lm, saes, stats, chosen["one owner"], label, m
            )
            for m in (-0.1, -0.2)
        },
    }
    for name, edits_of in makers.items():
        rows = table["rows"].setdefault(name, {})
        for label in corpus.labels:
            edits = edits_of(label)
            if label not in rows and edits:
                # Without `special_ids`, BOS is edited too.
                with intervene(lm.model, edits):
                    rows[label] = _perplexities(lm, texts)
                write_json(kept, table)
                print(f"perplexity: {name}, {label}", flush=True)
    found = {f"perplexity: {label}": value for label, value in base.items()}
    for name, rows in table["rows"].items():
        own = [row[label] - base[label] for label, row in rows.items()]
        others = [
            row[other] - base[other]
            for label, row in rows.items()
            for other in row
            if other != label
        ]
        for kind, values in (("own", own), ("others", others)):
            if values:
                found[f"perplexity change: {name}, {kind}"] = fmean(values)
                found[f"perplexity change: {name}, {kind}, median"] = median(values)
    return found


def _perplexities(lm: LanguageModel, texts: dict[str, list[str]]) -> dict[str, float]:
    """Label -> mean perplexity of its sentences."""
    losses = iter(text_losses(lm, [text for some in texts.values() for text in some], 512))
    values = {
        label: [loss for _ in some if not math.isnan(loss := next(losses))]
        for label, some in texts.items()
    }
    return {
        label: fmean(math.exp(min(loss, 700)) for loss in some)
        for label, some in values.items()
        if some
    }


def _pushed(
    lm: LanguageModel,
    saes: Sequence[SAE],
    stats: dict[str, Stats],
    selection: Selection,
    label: str,
    m: float,
) -> dict[str, Edit]:
    """Add m times the greatest value of each feature of a label, along the feature's direction."""
    edits: dict[str, Edit] = {}
    for sae in saes:
        units = selection.units(sae.id)[label]
        if units:
            greatest = stats[sae.id].max[:, units].amax(0).to(sae.W_dec.device)
            # In float32: the SAE may be stored in half precision.
            vector = m * (greatest @ sae.W_dec[units].float())
            edits[lm.site(sae.site).path] = lambda x, steps, v=vector: x + v.to(x)
    return edits


def _zeroed(lm: LanguageModel, selection: Selection, label: str) -> dict[str, Edit]:
    edits: dict[str, Edit] = {}
    for site in selection.dictionaries:
        units = torch.tensor(selection.units(site)[label], device=lm.device)
        if len(units):
            edits[lm.site(site).path] = lambda x, steps, u=units: x.index_fill(-1, u, 0.0)
    return edits


def heads(
    lm: LanguageModel,
    saes: Sequence[SAE],
    chosen: dict[str, Selection],
    out: Path,
    data: Data,
    n: int,
    fasttext: Path | None,
) -> dict[str, float]:
    """Accuracy and macro-F1 of the four heads of the paper."""
    corpus, split = data.identification
    picked = first_by_hash(corpus, corpus.positions(split, 0), 0, n)
    texts, truth = [corpus.texts[i] for i in picked], [corpus.of[i] for i in picked]
    stats = {sae.id: Stats.load(out / "stats" / f"{sae.id}.safetensors") for sae in saes}
    made = [
        count_head("sae-count", chosen["one owner"]),
        min_max_head(chosen["one owner"], stats.__getitem__),
        count_head("neuron-count", chosen["neurons"]),
    ]
    picks = [
        Identity(site, site_width(lm, lm.site(site)), torch.from_numpy(units).to(lm.device))
        for site, units in made[-1].units.items()
    ]
    features = featurize(lm, [*saes, *picks], texts, count_bos=True, say=print)
    predicted = {head.name: head.predict(features) for head in made}
    predicted["fasttext"] = list(
        FastText(fasttext, labels=list(corpus.labels), unknown=None).fit().predict(texts)
    )
    found = {}
    for name in HEADS:
        metrics = head_metrics(truth, predicted[name], list(corpus.labels))
        found |= {
            f"accuracy: {name}": metrics["accuracy"],
            f"macro-F1: {name}": metrics["f1_macro"],
        }
    return found


def report(found: dict[str, float]) -> None:
    print(f"\n{'':56}{'here':>14}{'paper':>14}{'difference':>14}")
    for name, value in found.items():
        paper = PAPER.get(name)
        beside = f"{'-':>14}" if paper is None else f"{paper:>14,.4g}{value - paper:>+14,.4g}"
        print(f"{name:56}{value:>14,.4g}{beside}")
    missing = [name for name in PAPER if name not in found]
    if missing:
        print(json.dumps({"not measured": missing}))


if __name__ == "__main__":
    main()
