"""What is shown of ranked units: the tokens they promote, the passages on which they fire most, a histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.corpora import TOKEN_LIMIT, Batch, Plan, first_by_hash, plan_batches
from saefeat.dictionaries import SAE
from saefeat.io import UserError, understood
from saefeat.lens import neuron_directions, promoted_tokens
from saefeat.memory import group_to_fit
from saefeat.models import LanguageModel
from saefeat.selection import Selection

SHOWN = 5  # features of each label that are shown with tokens and passages
BINS = 24  # of a histogram
_PASSAGES = 3  # of each feature that get the activation of every token
_MANY = 300  # features; beyond, one passage each
_SAMPLE = (12, 600, 64)  # of a histogram: texts a label, texts in all, tokens a text


def shown_units(
    lm: LanguageModel | None,
    selection: Selection,
    saes: dict[str, SAE],
    examples: Path,
    n: int = SHOWN,
) -> list[dict[str, Any]]:
    """The first n units of each label with the tokens that they promote and the passages on which they fire most.

    `examples`: directory of `<id>.parquet`. What is missing (model, SAE, passages) is left empty.
    """
    rows = selection.head(n).to_pandas().to_dict("records")
    for row in rows:
        row |= {"method": selection.header["method"], "tokens": [], "passages": []}
        row["max"] = (
            row["max"] if math.isfinite(row["max"]) else None
        )  # a unit that never fires for its label
    by_dictionary: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_dictionary.setdefault(row["dictionary"], []).append(row)
    for name, members in by_dictionary.items():
        units = [row["unit"] for row in members]
        for row, tokens in zip(
            members, _promoted(lm, name, members[0]["site"], units, saes), strict=True
        ):
            row["tokens"] = tokens
        for row, passages in zip(
            members, _passages(examples / f"{name}.parquet", units), strict=True
        ):
            row["passages"] = passages
    return rows


def _promoted(
    lm: LanguageModel | None, name: str, site: str, units: list[int], saes: dict[str, SAE]
) -> list[list[str]]:
    if lm is None:
        return [[] for _ in units]
    if name in saes:
        directions = saes[name].directions[units].float()
    else:
        try:
            directions = neuron_directions(lm, site, units)
        except UserError:  # nothing is known of where these units write
            return [[] for _ in units]
    if directions.shape[1] != lm.unembedding().shape[1]:
        return [[] for _ in units]
    return promoted_tokens(lm, directions)


def _passages(path: Path, units: list[int]) -> list[list[dict[str, Any]]]:
    return (
        understood(path, lambda: _read_passages(path, units))
        if path.exists()
        else [[] for _ in units]
    )


def _read_passages(path: Path, units: list[int]) -> list[list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(path, filters=[("unit", "in", sorted(set(units)))]).to_pylist()
    if not all(math.isfinite(row["value"]) for row in rows):
        raise ValueError("a value is not a number")
    found: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["unit"], r["place"])):
        found.setdefault(row["unit"], []).append(
            {key: row[key] for key in ("text", "label", "value")}
        )
    return [found.get(unit, []) for unit in units]


# --------------------------------------------------------------------------- activations


def add_activations(
    lm: LanguageModel, rows: list[dict[str, Any]], saes: dict[str, SAE], n: int | None = None
) -> None:
    """Give the first n passages of each row their tokens (`pieces`) and the unit's activation on each.

    n None: three, or one where there are very many rows. Each text is run once, for all units and
    sites together.
    """
    n = n or (_PASSAGES if len(rows) <= _MANY else 1)
    asked = [
        (row, passage)
        for row in rows
        if row["dictionary"] in saes
        for passage in row["passages"][:n]
    ]
    texts = list(dict.fromkeys(passage["text"] for _, passage in asked))
    ids = dict(zip(texts, lm.tokenize(texts, TOKEN_LIMIT) if texts else [], strict=True))
    wanted = _wanted(rows, saes)
    column = {name: {unit: at for at, unit in enumerate(units)} for name, units in wanted.items()}
    asking: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for row, passage in asked:
        asking.setdefault(passage["text"], []).append((row, passage))
    batches = list(plan_batches(lm, {at: ids[text] for at, text in enumerate(texts)}))
    for batch, values in _values(lm, saes, wanted, batches):
        for place, position in enumerate(batch.positions):
            text = texts[position]
            inside = slice(len(lm.prefix), len(lm.prefix) + len(ids[text]))
            here = [(row, passage) for row, passage in asking[text] if row["dictionary"] in values]
            parts = pieces(lm, ids[text]) if here else []
            for row, passage in here:
                name = row["dictionary"]
                of_tokens = (
                    values[name][place, inside, column[name][row["unit"]]]
                    .nan_to_num(0)
                    .clamp(min=0)
                )
                passage["pieces"] = parts
                passage["activations"] = [round(value, 4) for value in of_tokens.tolist()]


def add_histograms(
    lm: LanguageModel, rows: list[dict[str, Any]], saes: dict[str, SAE], plan: Plan
) -> None:
    """Give each row the `histogram` of its unit's firing values on a sample of the plan's texts.

    A histogram is {tokens, fired, max, counts}: counted tokens, those on which the unit fired, the
    greatest value, and how many firing values lie in each of `BINS` equal bins from 0 to it. The
    sample is the first texts of each label by hashed id, cut short, so that it costs little
    whatever the corpus.
    """
    wanted = _wanted(rows, saes)
    per_label, in_all, length = _SAMPLE
    per_label = max(1, min(per_label, in_all // len(plan.corpus.labels)))
    sample = first_by_hash(plan.corpus, sorted(plan.tokens), plan.policy["seed"], per_label)
    batches = list(plan_batches(lm, {i: plan.tokens[i][:length] for i in sample}))
    firing: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in wanted}
    tokens = dict.fromkeys(wanted, 0)
    for _, values in _values(lm, saes, wanted, batches):
        for name, found in values.items():
            known = found[~found[..., 0].isnan()]
            fires = known > 0
            firing[name].append((fires.nonzero()[:, 1], known[fires]))
            tokens[name] += len(known)
    flat = {
        name: [torch.cat(part) for part in zip(*parts, strict=True)]
        for name, parts in firing.items()
        if parts
    }
    for row in rows:
        name = row["dictionary"]
        if name in flat:
            columns, values = flat[name]
            row["histogram"] = _histogram(
                values[columns == wanted[name].index(row["unit"])], tokens[name]
            )


def _histogram(values: Tensor, tokens: int) -> dict[str, Any]:
    top = float(values.max()) if len(values) else 0.0
    counts = (
        torch.histc(values.double(), BINS, 0, top).long()
        if len(values)
        else torch.zeros(BINS, dtype=torch.long)
    )
    return {"tokens": tokens, "fired": len(values), "max": round(top, 4), "counts": counts.tolist()}


def _wanted(rows: list[dict[str, Any]], saes: dict[str, SAE]) -> dict[str, list[int]]:
    """The units to look at, by SAE."""
    found: dict[str, dict[int, None]] = {}
    for row in rows:
        if row["dictionary"] in saes:
            found.setdefault(row["dictionary"], {})[row["unit"]] = None
    return {name: list(units) for name, units in found.items()}


def _values(
    lm: LanguageModel, saes: dict[str, SAE], wanted: dict[str, list[int]], batches: Sequence[Batch]
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Run batches; for each, by SAE, the values of its wanted units: float32 [rows, tokens, m] on the CPU.

    NaN at tokens that do not count: special ones, padding, outliers. SAEs that do not fit in memory
    together come one group after another, each with all batches.
    """
    for group in group_to_fit([saes[name] for name in wanted], lm.device) if wanted else []:
        yield from _values_of(lm, group, wanted, batches)


def _values_of(
    lm: LanguageModel, group: Sequence[SAE], wanted: dict[str, list[int]], batches: Sequence[Batch]
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """The same of one group; a function, so that what it has moved goes when it ends."""
    here = {sae.id: sae.to(lm.device) for sae in group}
    for batch, vectors in counted_vectors(lm, batches, [sae.site for sae in group]):
        with torch.inference_mode():
            found = {
                name: _of(sae, wanted[name], vectors[sae.site], batch.counted)
                for name, sae in here.items()
            }
        yield batch, {name: values.clone() for name, values in found.items()}


def _of(sae: SAE, units: list[int], x: Tensor, counted: Tensor) -> Tensor:
    x, counted = sae.select(x, counted)
    values = torch.full((*counted.shape, len(units)), torch.nan)
    values[counted] = sae.encode(x).of(torch.tensor(units, device=x.device)).cpu()
    return values


def pieces(lm: LanguageModel, ids: list[int]) -> list[str]:
    """The text of each token such that their concatenation is the whole: what decoding one more token adds."""
    texts = [lm.tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
    whole, result, done = texts[-1], [], 0
    for text in texts[1:]:
        # A token may hold part of a character: it shows as a replacement until the rest has come.
        end = len(text) if whole.startswith(text) else done
        result.append(whole[done:end])
        done = max(done, end)
    if result:
        result[-1] += whole[done:]
    return result
