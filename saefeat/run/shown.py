"""What the report shows of ranked units: the tokens they promote, passages, histograms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.corpora import TOKEN_LIMIT, Batch, plan_batches
from saefeat.dictionaries import SAE
from saefeat.io import UserError
from saefeat.lens import NoDirection, neuron_directions, promoted_tokens
from saefeat.memory import group_to_fit
from saefeat.methods import is_sae
from saefeat.models import LanguageModel, load_model
from saefeat.models.sites import UnknownSite
from saefeat.progress import Say
from saefeat.rundir import sae_of
from saefeat.sae.store import load_sae
from saefeat.selection import Selection
from saefeat.statistics.examples import TopExamples, read_passages
from saefeat.statistics.histograms import Histograms

SHOWN = 5  # features per label that are shown with tokens and passages
_PASSAGES = 3  # passages per feature that get the activation of every token
_MANY = 300  # features; beyond, one passage each

Row = dict[str, Any]


def shown_units(
    lm: LanguageModel | None,
    selection: Selection,
    saes: dict[str, SAE],
    examples: Path,
    n: int = SHOWN,
) -> list[Row]:
    """The first n units of each label, with the tokens they promote and their passages.

    Args:
        lm: None leaves the tokens empty.
        saes: by id. Other dictionaries are hidden neurons, or their tokens stay empty.
        examples: directory of the highest-activating examples (`TopExamples`). The passages of a
            dictionary without a file there are left empty.

    Returns:
        The rows of the selection, with `method`, `tokens` and `passages` ({text, label, value}).
    """
    rows = selection.head(n).to_pandas().to_dict("records")
    for row in rows:
        row |= {"method": selection.header["method"], "tokens": [], "passages": []}
        if not math.isfinite(row["max"]):  # the unit never fires for its label
            row["max"] = None
    for name, members in _by_dictionary(rows).items():
        units = [row["unit"] for row in members]
        path = TopExamples.path(examples, name)
        passages = read_passages(path, units) if path.exists() else {}
        tokens = _promoted(lm, name, members[0]["site"], units, saes)
        for row, promoted in zip(members, tokens, strict=True):
            row |= {"tokens": promoted, "passages": passages.get(row["unit"], [])}
    return rows


def load_for_lens(
    selection: Selection, stats: Path, say: Say
) -> tuple[LanguageModel | None, dict[str, SAE]]:
    """Load the model and the SAEs of a selection. What cannot be loaded is reported and left out.

    `stats`: the statistics that were ranked; see `saefeat.rundir.sae_of`.
    """
    lm, saes, model = None, {}, selection.header.get("model")
    try:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            raise UserError("the statistics name no model")
        lm = load_model(model["name"], say=say)
        for name, entry in selection.dictionaries.items():
            if is_sae(entry):
                saes[name] = load_sae(sae_of({**entry, "id": name}, stats))
    except UserError as error:
        say(f"note: no promoted tokens ({error})")
    return lm, saes


def _by_dictionary(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["dictionary"], []).append(row)
    return found


def _promoted(
    lm: LanguageModel | None, name: str, site: str, units: list[int], saes: dict[str, SAE]
) -> list[list[str]]:
    """The tokens that units promote; empty where it is not known what they write."""
    if lm is not None:
        with suppress(UnknownSite, NoDirection):
            sae = saes.get(name)
            found = sae.directions[units].float() if sae else neuron_directions(lm, site, units)
            if found.shape[1] == lm.unembedding().shape[1]:
                return promoted_tokens(lm, found)
    return [[] for _ in units]


def add_histograms(rows: Sequence[Row], histograms: Path) -> None:
    """Give each row the `histogram` of its unit's firing values (see `Histograms.of`).

    Rows of dictionaries without a file in the directory `histograms` stay as they are.
    """
    for name, members in _by_dictionary(rows).items():
        path = Histograms.path(histograms, name)
        if path.exists():
            found = Histograms.load(path)
            for row in members:
                row["histogram"] = found.of(row["unit"])


# --------------------------------------------------------------------------- activations


def add_activations(
    lm: LanguageModel, rows: Sequence[Row], saes: dict[str, SAE], n: int | None = None
) -> None:
    """Give passages their tokens (`pieces`) and the unit's activation on each (`activations`).

    Each text is run once, for all units and sites together, and without a prompt. Rows of other
    dictionaries than `saes` stay as they are. `n`: passages per row; by default 3, or 1 where there
    are very many rows.
    """
    n = n or (_PASSAGES if len(rows) <= _MANY else 1)
    mine = [row for row in rows if row["dictionary"] in saes]
    asking: dict[str, list[tuple[Row, Row]]] = {}  # text -> (row, passage)
    for row in mine:
        for passage in row["passages"][:n]:
            asking.setdefault(passage["text"], []).append((row, passage))
    texts = list(asking)
    ids = lm.tokenize(texts, TOKEN_LIMIT) if texts else []
    units = {
        name: list(dict.fromkeys(row["unit"] for row in members))
        for name, members in _by_dictionary(mine).items()
    }
    batches = list(plan_batches(lm, dict(enumerate(ids))))
    # SAEs that do not fit in memory together come one group after another.
    for group in group_to_fit([saes[name] for name in units], lm.device) if units else []:
        for batch, values in _values(lm, group, units, batches):
            for place, i in enumerate(batch.positions):
                here = [both for both in asking[texts[i]] if both[0]["dictionary"] in values]
                parts = pieces(lm, ids[i]) if here else []
                inside = slice(len(lm.prefix), len(lm.prefix) + len(ids[i]))
                for row, passage in here:
                    unit = units[row["dictionary"]].index(row["unit"])
                    found = values[row["dictionary"]][place, inside, unit].tolist()
                    passage["pieces"] = parts
                    passage["activations"] = [round(value, 4) for value in found]


def _values(
    lm: LanguageModel, group: Sequence[SAE], units: dict[str, list[int]], batches: Sequence[Batch]
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Run batches; for each, by SAE, the activations of its units: float32 [rows, tokens, m].

    They are on the CPU, and 0 at tokens that do not count: special ones, padding, outliers.
    """
    here = [sae.to(lm.device) for sae in group]  # copies that are freed when this ends
    for batch, vectors in counted_vectors(lm, batches, [sae.site for sae in here]):
        found = {}
        for sae in here:
            index = torch.tensor(units[sae.id], device=lm.device)
            with torch.inference_mode():
                x, counted = sae.select(vectors[sae.site], batch.counted)
                values = sae.encode(x).of(index)
            found[sae.id] = torch.zeros(*counted.shape, len(index))
            found[sae.id][counted] = values.clamp(min=0).cpu()
        yield batch, found


def pieces(lm: LanguageModel, ids: list[int]) -> list[str]:
    """The text of each token: what decoding one more token adds. Together they are the whole text.

    A token may hold part of a character. It shows as a replacement character until the rest has
    come, so a piece is taken only as far as the text so far agrees with the whole.
    """
    texts = [lm.tokenizer.decode(ids[:i]) for i in range(len(ids) + 1)]
    whole, result, done = texts[-1], [], 0
    for text in texts[1:]:
        end = len(text) if whole.startswith(text) else done
        result.append(whole[done:end])
        done = max(done, end)
    if result:
        result[-1] += whole[done:]
    return result
