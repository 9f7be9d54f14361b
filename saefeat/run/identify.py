"""Language identification over a run directory: fit, evaluate, predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saefeat import lid
from saefeat.baselines import CharNaiveBayes, FastText, TokenNaiveBayes
from saefeat.corpora import TOKEN_LIMIT, Corpus, Plan
from saefeat.corpora.examples import need_letters
from saefeat.dictionaries import Dictionary, Identity
from saefeat.evaluation import lid_metrics
from saefeat.hooks import site_width
from saefeat.io import (
    UserError,
    atomic_path,
    file_sha256,
    fingerprint,
    make_dir,
    read_json,
    understood,
    write_json,
)
from saefeat.labels import in_codes
from saefeat.models import LanguageModel
from saefeat.run.opened import OpenRun as Setting
from saefeat.run.stages import neurons
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.bags import Bags
from saefeat.statistics.files import StatsFiles
from saefeat.tokens import without_special

FITTED = ("token-naive-bayes", "char-naive-bayes")  # baselines that are fitted on the run's texts


def fit_heads(setting: Setting, *, force: bool = False) -> None:
    """Fit every head and baseline of a run and save them in `RUN/lid`."""
    out, labels = setting.out / "lid", setting.corpus.labels
    names = [*(name for name in lid.HEADS if setting.layers or name != "neuron-count"), *FITTED]
    if not force and all((out / f"{name}.safetensors").exists() for name in names):
        setting.say("lid: the heads are fitted already")
        return
    make_dir(out)
    saes = setting.saes
    plan = setting.plan
    positions = sorted(plan.tokens)
    of = [setting.corpus.of[i] for i in positions]
    texts = [setting.corpus.texts[i] for i in positions]
    letters = need_letters(texts, of)
    if not letters:
        setting.say(
            "lid: some label is written without letters, so digits, punctuation and symbols say something too"
        )
    _fit_baselines(setting, texts, of)
    stats = StatsFiles([setting.out / "stats" / f"{sae.id}.safetensors" for sae in saes])
    selection = Selection.load(setting.out / "selections" / "sae-lape.parquet")
    heads = [lid.selection_head(name, selection, stats) for name in ("sae-count", "sae-min-max")]
    heads.append(lid.naive_bayes_head(stats, labels))
    if setting.layers:
        chosen = Selection.load(setting.out / "selections" / "lape.parquet")
        neuron_stats = StatsFiles(
            [setting.out / "stats" / f"mlp_act@{layer}.safetensors" for layer in setting.layers]
        )
        heads.append(lid.selection_head("neuron-count", chosen, neuron_stats))
    bags, widths = setting.out / "bags", {sae.id: sae.width for sae in saes}
    for sae in saes:
        windows = Stats.read_header(setting.out / "stats" / f"{sae.id}.safetensors").get(
            "windows", []
        )
        lost = [path for w in windows if not (path := Bags.path(bags, sae.id, w)).is_file()]
        if lost:
            raise UserError(
                f"{lost[0]} is missing; remove {setting.out / 'stats'} and give the run's command again"
            )
    whole = understood(bags, lambda: _finite(lid.features_from_bags(bags, widths, positions)))
    copies, copies_of, weights = lid.linear_copies(texts, of, letters=letters)
    beside = lid.featurize(setting.lm, saes, copies, letters=letters, progress=setting.say)
    setting.say("lid: fitting the linear head")
    features = lid.Features.stack([whole, beside])
    heads.append(
        lid.linear_head(features, of + copies_of, labels, weights=weights, seed=setting.config.seed)
    )
    marks = {d.id: d.identity["fingerprint"] for d in (*saes, *neurons(setting.lm, setting.layers))}
    for head in heads:
        head.reads = {name: marks[name] for name in head.units}
        head.letters = letters
        head.save(out / f"{head.name}.safetensors")


def _fit_baselines(setting: Setting, texts: list[str], of: list[str]) -> None:
    """Fit what the heads must beat, on the same texts; the characters, as `linear`, on their beginnings too."""
    out = setting.out / "lid"
    token_nb(setting.lm, setting.plan).fit(texts, of).save(out / "token-naive-bayes.safetensors")
    short = [text[: lid.SHORT] for text in texts]
    CharNaiveBayes(unknown=None).fit(texts + short, of + of).save(
        out / "char-naive-bayes.safetensors"
    )


def load_baselines(setting: Setting, fasttext: Path | None = None) -> dict[str, Any]:
    """What the heads of a run must beat, by name; they predict None where nothing can be said.

    Raises UserError where one is missing, as in runs of older versions.
    """
    for name in FITTED:
        if not (setting.out / "lid" / f"{name}.safetensors").exists():
            raise UserError(
                f"{setting.out} has no {name}; run `saefeat lid fit --run {setting.out}` first"
            )
    tokens, characters = (setting.out / "lid" / f"{name}.safetensors" for name in FITTED)
    fitted = {
        tokens: lambda: TokenNaiveBayes.load(tokens, token_nb(setting.lm).tokenize),
        characters: lambda: CharNaiveBayes.load(characters),
    }
    found = {
        path.stem: understood(path, read).set_params(unknown=None) for path, read in fitted.items()
    }
    for path in fitted:  # what is damaged shows before the long work
        understood(path, lambda path=path: found[path.stem].predict(["a"]))
    return {
        **found,
        "fasttext": FastText(path=fasttext, labels=list(setting.corpus.labels), unknown=None).fit(),
    }


def token_nb(lm: LanguageModel, plan: Plan | None = None) -> TokenNaiveBayes:
    """The token baseline with the model's own tokenizer, special tokens left out."""
    limit = plan.policy["token_limit"] if plan else TOKEN_LIMIT

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [without_special(row, lm.special_ids) for row in lm.tokenize(texts, limit)]

    return TokenNaiveBayes(
        tokenize, max(len(lm.tokenizer), lm.unembedding().shape[0]), unknown=None
    )


def _finite(features: lid.Features) -> lid.Features:
    """The features; raises ValueError where a value is not a number."""
    for matrix in (*features.counts.values(), *features.sums.values()):
        if not np.isfinite(matrix.data).all():
            raise ValueError("a value is not a number")
    return features


def load_heads(out: Path) -> dict[str, lid.Head]:
    """The fitted heads of a run; raises UserError when there are none."""
    found = {name: out / "lid" / f"{name}.safetensors" for name in lid.HEADS}
    heads = {
        name: understood(path, lambda path=path: _whole(lid.Head.load(path)))
        for name, path in found.items()
        if path.exists()
    }
    if not heads:
        raise UserError(f"{out} has no fitted heads; run `saefeat lid fit --run {out}` first")
    return heads


def _whole(head: lid.Head) -> lid.Head:
    """The head; raises ValueError where its parts do not fit together."""
    k = len(head.labels)
    shapes = [
        (part[name].shape, (len(head.units[name]), k))
        for part in (head.counts, head.sums)
        for name in part
    ]
    shapes += [(units.shape, (units.size,)) for units in head.units.values()]
    if head.counts.keys() != head.units.keys() or any(one != two for one, two in shapes):
        raise ValueError("its tensors do not fit together")
    if head.intercept.shape not in ((0,), (k,)) or not all(
        map(_is_finite, [*head.counts.values(), head.intercept])
    ):
        raise ValueError("its weights are damaged")
    if not isinstance(head.root, bool) or not isinstance(head.probabilistic, bool):
        raise ValueError("its flags are damaged")
    if any(units.dtype.kind != "i" or (units < 0).any() for units in head.units.values()):
        raise ValueError("its units are damaged")
    if not all(isinstance(text, str) for text in [*head.labels, *head.reads, *head.reads.values()]):
        raise ValueError("its labels or dictionaries are damaged")
    return head


def _is_finite(weights: np.ndarray) -> bool:
    return weights.dtype.kind == "f" and bool(np.isfinite(weights).all())


def head_dictionaries(setting: Setting, heads: dict[str, lid.Head]) -> list[Dictionary]:
    """The dictionaries that heads read: the run's SAEs, and of the neurons only those that are selected."""
    wanted = {name for head in heads.values() for name in head.units}
    saes = [sae for sae in setting.saes if sae.id in wanted]
    known = {sae.id for sae in saes}
    picked = []
    for name in sorted(wanted - known):
        head = next(h for h in heads.values() if name in h.units)
        width = site_width(setting.lm, setting.lm.site(name))
        _check_units(head, name, width)
        picked.append(
            Identity(name, width, units=torch.from_numpy(head.units[name]).to(setting.lm.device))
        )
    found: list[Dictionary] = [*saes, *picked]
    marks = {d.id: d.identity["fingerprint"] for d in found}
    for head in heads.values():
        for sae in saes:
            _check_units(head, sae.id, sae.width)
    for head in heads.values():
        changed = [name for name, mark in head.reads.items() if marks.get(name, mark) != mark]
        if changed:
            raise UserError(
                f"{changed[0]} has changed since the head {head.name} was fitted; fit it again with --force"
            )
    return found


def _check_units(head: lid.Head, name: str, width: int) -> None:
    """Raises UserError where a head reads units that its dictionary does not have."""
    if name in head.units and (head.units[name] >= width).any():
        raise UserError(f"the head {head.name} is damaged; fit it again with --force")


def evaluate(
    setting: Setting,
    other: Corpus | None,
    *,
    split: str,
    out: Path,
    max_texts: int | None = None,
    fasttext: Path | None = None,
) -> dict[str, Any]:
    """Evaluate every head and baseline, whole texts and by length; write the metrics and the predictions.

    other: another corpus than the run's own; its labels must be among the run's, in any code
    system.
    fasttext: a fastText model; default the embedded lid.176.ftz.
    """
    corpus = setting.corpus if other is None else _in_labels(setting, other)
    request: dict[str, Any] = {"corpus": corpus.fingerprint, "split": split, "max_texts": max_texts}
    request["fasttext"] = (
        file_sha256(fasttext)[:16] if fasttext and fasttext.is_file() else "embedded"
    )
    request["run"] = fingerprint(asdict(setting.config))
    heads = load_heads(setting.out)
    request["heads"] = sorted([*heads, *FITTED])  # metrics of an older version lack some of them
    before = _measured(out, request["run"])
    if before is not None and before["request"] == request and other is None:
        setting.say("lid: evaluated already")
        return before
    make_dir(out.parent)
    positions = evaluated(corpus, split, setting.config.seed, max_texts)
    truth = [corpus.of[i] for i in positions]
    labels = list(setting.corpus.labels)
    dictionaries = head_dictionaries(setting, heads)
    baselines = load_baselines(setting, fasttext)
    letters = all(head.letters for head in heads.values())
    by_length: dict[str, dict[str, list[str | None]]] = {}
    for length in lid.LENGTHS:
        key = "all" if length is None else str(length)
        texts = [corpus.texts[i][:length] for i in positions]
        setting.say(
            f"lid: evaluating {len(texts):,} texts, {'whole' if length is None else f'first {length}'}"
        )
        features = lid.featurize(
            setting.lm, dictionaries, texts, letters=letters, progress=setting.say
        )
        predicted = {name: head.predict(features) for name, head in heads.items()}
        by_length[key] = predicted | {
            name: baseline.predict(texts) for name, baseline in baselines.items()
        }
    metrics = lid_metrics(corpus.name, split, labels, truth, by_length, seed=setting.config.seed)
    metrics["request"] = request
    # Beside the run's own metrics others may stand; each has its own predictions.
    name = "predictions" if out.name == "metrics.json" else f"{out.stem}-predictions"
    _write_predictions(out.with_name(f"{name}.parquet"), corpus, positions, by_length)
    write_json(out, metrics)
    return metrics


def _in_labels(setting: Setting, corpus: Corpus) -> Corpus:
    """A corpus with the run's labels in place of its own, which may be of another code system."""
    names = in_codes(corpus.labels, setting.corpus.labels)
    unknown = [label for label in corpus.labels if label not in names]
    if unknown:
        raise UserError(
            f"{corpus.name} has the label {unknown[0]}, which the run does not know; use --labels"
        )
    others = [f"{label} as {own}" for label, own in names.items() if label != own]
    if not others:
        return corpus
    setting.say(f"labels of {corpus.name}: {', '.join(others)}")
    labels = tuple(dict.fromkeys(names.values()))
    return replace(corpus, of=[names[label] for label in corpus.of], labels=labels)


def _measured(out: Path, run: str) -> dict[str, Any] | None:
    """Metrics of this run that were written before; raises UserError where `out` holds something else."""
    if not out.exists():
        return None
    found = read_json(out)
    request = found.get("request") if isinstance(found, dict) else None
    if not isinstance(request, dict) or request.get("run", run) != run:
        raise UserError(f"{out} exists and holds something else; choose another --out")
    return found


def evaluated(corpus: Corpus, split: str, seed: int, max_texts: int | None) -> list[int]:
    positions = corpus.positions(split, seed)
    if max_texts is None:
        return positions
    from saefeat.corpora import first_by_hash

    return first_by_hash(corpus, positions, seed, max_texts)


def _write_predictions(
    path: Path,
    corpus: Corpus,
    positions: list[int],
    by_length: dict[str, dict[str, list[str | None]]],
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "label", "text", "length", "head", "predicted")
    }
    for length, heads in by_length.items():
        for head, predicted in heads.items():
            columns["id"] += [corpus.ids[i] for i in positions]
            columns["label"] += [corpus.of[i] for i in positions]
            columns["text"] += [
                corpus.texts[i] if length == "all" else corpus.texts[i][: int(length)]
                for i in positions
            ]
            columns["length"] += [length] * len(positions)
            columns["head"] += [head] * len(positions)
            columns["predicted"] += predicted
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def choose_head(setting: Setting, name: str) -> lid.Head:
    """A fitted head of the run; raises UserError that lists the heads for an unknown one."""
    heads = load_heads(setting.out)
    if name not in heads:
        raise UserError(f"unknown head {name}; this run has {', '.join(heads)}")
    return heads[name]


def predict(setting: Setting, texts: Sequence[str], head: lid.Head) -> list[dict[str, Any]]:
    """One object a text: text, label (None where nothing can be said), score, and the units that decided."""
    # A head that was given no units reads nothing and says nothing; the features still need their
    # rows.
    dictionaries = head_dictionaries(setting, {head.name: head}) or setting.saes[:1]
    features = lid.featurize(setting.lm, dictionaries, texts, letters=head.letters)
    labels, scores, evidence = (
        head.predict(features),
        head.probabilities(features).max(1),
        head.evidence(features),
    )
    return [
        {
            "text": text,
            "label": label,
            "score": round(float(s), 6) if label else 0.0,
            "units": e if label else [],
        }
        for text, label, s, e in zip(texts, labels, scores, evidence, strict=True)
    ]
