"""How accuracy depends on d_sae, k, layers and tokens: the table behind the demo's defaults.

    python scripts/demo_defaults.py --out scripts/results/demo_defaults.json

All SAEs are trained on the activations of one set of forward passes and encode those of a second
one. Each row of the table uses the SAEs of its own sites and sizes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import options, parse, record, show
from sklearn.metrics import f1_score

from saefeat.collection import collect
from saefeat.config import TrainConfig
from saefeat.corpora import PAPER_LABELS, Corpus, first_by_hash, load_corpus, make_plan
from saefeat.dictionaries import SAE
from saefeat.lid.features import Features, featurize, read_features
from saefeat.lid.heads.linear import SHORT, linear_head
from saefeat.lid.heads.naive_bayes import naive_bayes_head
from saefeat.lid.heads.sae_count import count_head
from saefeat.lid.heads.sae_min_max import min_max_head
from saefeat.methods import METHODS
from saefeat.models import LanguageModel, load_model
from saefeat.sae.chunks import Draws, fill, single_chunk
from saefeat.sae.trainer import Trainer
from saefeat.statistics import Stats

EARLY = ("resid_post@0", "mlp_out@5", "resid_post@5")
LATE = ("resid_post@5", "mlp_out@8", "resid_post@8")


@dataclass(frozen=True)
class Row:
    name: str
    sites: tuple[str, ...] = EARLY
    d_sae: int = 2560
    k: int = 32
    share: float = 1.0  # of the training tokens

    def ids(self) -> list[str]:
        return [f"{site}-{self.d_sae}-{self.k}-{self.share}" for site in self.sites]


ROWS = (
    Row("default"),
    Row("d_sae 1280", d_sae=1280),
    Row("d_sae 5120", d_sae=5120),
    Row("k 16", k=16),
    Row("later layers", sites=LATE),
    Row("one site", sites=("resid_post@0",)),
    Row("half the tokens", share=0.5),
)


def train(x: torch.Tensor, row: Row, name: str, site: str) -> SAE:
    config = TrainConfig(k=row.k, d_sae=row.d_sae, passes=2, batch_size=1024)
    x = x[: int(len(x) * row.share)]
    steps = round(len(x) * config.passes / config.batch_size)
    with torch.inference_mode():
        trainer = Trainer(x.shape[1], config, steps, "cpu")
        trainer.fit_scaler(x)
        draws = Draws(trainer.usable(x), config, 0)
        for step in range(steps):
            trainer.step(x[draws.draw(step)])
        return trainer.sae(name, site, {"fvu": float(trainer.fvu)})


def train_all(lm: LanguageModel, corpus: Corpus, max_tokens: int) -> dict[str, SAE]:
    """The SAEs of all rows by name, trained on the activations of one set of forward passes."""
    plan = make_plan(corpus, lm, max_tokens=max_tokens, mixed=True)
    sites = sorted({site for row in ROWS for site in row.sites})
    start = time.monotonic()
    activations = fill(lm, plan, [lm.site(site) for site in sites], single_chunk(plan))
    saes: dict[str, SAE] = {}
    for row in ROWS:
        for name, site in zip(row.ids(), row.sites, strict=True):
            if name not in saes:
                saes[name] = train(activations[site], row, name, site)
    print(f"trained {len(saes)} SAEs in {time.monotonic() - start:.0f} s", flush=True)
    return saes


def make_table(
    lm: LanguageModel, corpus: Corpus, saes: dict[str, SAE], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    plan = make_plan(corpus, lm, max_tokens=arguments.max_tokens)
    half = make_plan(corpus, lm, max_tokens=arguments.max_tokens // 2)
    positions = sorted(plan.tokens)
    test = first_by_hash(corpus, corpus.positions("test", 0), 0, arguments.eval_texts)
    texts, of = [corpus.texts[i] for i in positions], np.array([corpus.of[i] for i in positions])
    truth = [corpus.of[i] for i in test]
    members = list(saes.values())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        collect(lm, plan, members, out, places={"bags": out / "bags"}, say=print)
        small = [sae for sae in members if sae.id.endswith("-0.5")]
        collect(lm, half, small, out / "half")
        stats = {sae.id: Stats.load(out / f"{sae.id}.safetensors") for sae in members}
        stats |= {sae.id: Stats.load(out / "half" / f"{sae.id}.safetensors") for sae in small}
        full = read_features(out / "bags", {sae.id: sae.width for sae in members}, positions)
    short = featurize(lm, members, [text[:SHORT] for text in texts])
    tests = {
        "whole": featurize(lm, members, [corpus.texts[i] for i in test]),
        "first 20": featurize(lm, members, [corpus.texts[i][:20] for i in test]),
    }
    in_half = np.array([i in half.tokens for i in positions])
    table = []
    for row in ROWS:
        ids = row.ids()
        keep = in_half if row.share < 1 else np.ones(len(positions), bool)
        table.append(
            evaluate(row, ids, [stats[i] for i in ids], saes, (full, short), keep, of, tests, truth)
        )
        show(table[-1])
    return table


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument("--max-tokens", type=int, default=5000)
    parser.add_argument("--eval-texts", type=int, default=60)
    arguments = parse(parser)
    lm = load_model(arguments.model)
    corpus = load_corpus("embedded:eld", labels=PAPER_LABELS)
    saes = train_all(lm, corpus, arguments.max_tokens)
    record(arguments, {"rows": make_table(lm, corpus, saes, arguments)})


def take(features: Features, ids: list[str], keep: np.ndarray | None = None) -> Features:
    rows = slice(None) if keep is None else keep
    return Features(
        {n: features.counts[n][rows] for n in ids}, {n: features.sums[n][rows] for n in ids}
    )


def evaluate(
    row: Row,
    ids: list[str],
    stats: list[Stats],
    saes: dict[str, SAE],
    train: tuple[Features, Features],
    keep: np.ndarray,
    of: np.ndarray,
    tests: dict[str, Features],
    truth: list[str],
) -> dict[str, Any]:
    """One row of the table: FVU, shares of silent features, and macro-F1 of every head."""
    parts = Features.stack([take(part, ids, keep) for part in train])
    selection = METHODS["sae-lape"].rank(stats)
    by_id = dict(zip(ids, stats, strict=True))
    heads = {
        "sae-count": count_head("sae-count", selection),
        "sae-min-max": min_max_head(selection, by_id.__getitem__),
        "naive-bayes": naive_bayes_head(by_id.__getitem__, ids, PAPER_LABELS),
        "linear": linear_head(parts, np.concatenate([of[keep], of[keep]]).tolist(), PAPER_LABELS),
    }
    silent = [float((s.fired.sum(0) == 0).float().mean()) for s in stats]
    found: dict[str, Any] = {
        "row": row.name,
        "sites": list(row.sites),
        "d_sae": row.d_sae,
        "k": row.k,
        "share": row.share,
    }
    found["fvu"] = [round(saes[i].record["fvu"], 4) for i in ids]
    found["silent"] = [round(value, 4) for value in silent]
    found["features"] = len(selection)
    for name, head in heads.items():
        for length, features in tests.items():
            predicted = [label or "?" for label in head.predict(take(features, ids))]
            f1 = f1_score(
                truth, predicted, labels=list(PAPER_LABELS), average="macro", zero_division="warn"
            )
            found[f"{name}, {length}"] = round(float(f1), 4)
    return found


if __name__ == "__main__":
    main()
