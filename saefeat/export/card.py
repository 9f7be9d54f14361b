"""The model card of exported SAEs: what they read, their training, their quality, their use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from saefeat.dictionaries import SAE
from saefeat.export.source import Exportable
from saefeat.sae.formats.values import stated
from saefeat.sae.names import hub_name
from saefeat.sae.writers import WRITERS
from saefeat.sae.writers.sae_lens import transformer_lens_hook

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def _read_facts(given: Exportable) -> dict[str, Any]:
    """Variables of the template from the SAEs' records, and from statistics and fit of their run.

    figures: SAE id -> fvu, l0 and dead (a share), each a number or None. counts: label -> texts,
    and SAE id -> counted tokens. counted: corpus and split of the counts.
    """
    run = given.run
    fits = run.load_fit_check()["saes"] if run and run.fit_check.is_file() else []
    fvu = {fit["id"]: fit["fvu"] for fit in fits}
    figures: dict[str, dict[str, float | None]] = {}
    counts: dict[str, tuple[int, dict[str, int]]] = {}
    counted = ""
    for sae in given.saes:
        measured: dict[str, float | None] = {"fvu": fvu.get(sae.id), "l0": None, "dead": None}
        if run and run.stats_file(sae.id).is_file():
            stats = run.load_stats(sae.id)
            measured["l0"] = float(stats.fired.sum() / stats.tokens.sum().clamp(min=1))
            measured["dead"] = float((stats.fired.sum(0) == 0).float().mean())
            for label, texts, tokens in zip(
                stats.labels, stats.examples.tolist(), stats.tokens.tolist(), strict=True
            ):
                counts.setdefault(label, (texts, {}))[1][sae.id] = tokens
            counted = f"{stats.header['corpus']['name']}, {stats.header['policy']['split']} split"
        figures[sae.id] = {**measured, **stated(sae.record)}
    return {"figures": figures, "counts": counts, "counted": counted}


def render(
    given: Exportable, form: str, folders: Mapping[str, SAE], hookpoints: Mapping[str, str | None]
) -> str:
    """The card as Markdown. Raises UserError for files of a run that cannot be read.

    hookpoints: SAE id -> path in the base model of the module that it reads, or None.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    facts, model, writer = _read_facts(given), given.model, WRITERS[form]
    base = str(model.get("name") or "")
    name = hub_name(base)
    folder, first = next(iter(folders.items()))
    return environment.get_template("card.md").render(
        form=form,
        library=writer.library,
        loading=writer.loading.format(folder=json.dumps(folder)),
        encoding=writer.encoding,
        hub_id=name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None,
        by_transformers=not (name != base or name.endswith(".gguf")),
        model={**dict.fromkeys(("name", "revision", "fingerprint")), **model},
        name=name,
        rows=[
            _row(folder, sae, hookpoints[sae.id], facts["figures"][sae.id])
            for folder, sae in folders.items()
        ],
        policies=dict.fromkeys(map(_policy, folders.values())),
        trained=dict.fromkeys(filter(None, map(_training, folders.values()))),
        notes=_notes(form, list(folders.values()), hookpoints),
        **facts,
        sae=first,
        hookpoint=hookpoints[first.id],
    )


def _row(
    folder: str, sae: SAE, hookpoint: str | None, figures: Mapping[str, float | None]
) -> dict[str, Any]:
    dead = figures["dead"]
    return {
        "folder": folder,
        "site": sae.site,
        "module": hookpoint,
        "hook": transformer_lens_hook(sae),
        "units": f"{sae.width:,}",
        "activation": f"{sae.activation} {sae.k}" if sae.k else sae.activation,
        "FVU": _number(figures["fvu"], 3),
        "L0": _number(figures["l0"], 1),
        "dead": None if dead is None else f"{dead:.1%}",
        "max norm": _number(sae.max_norm, 2),
    }


def _policy(sae: SAE) -> str:
    """Which tokens the SAE was trained on."""
    policy, tokens = sae.record.get("policy"), sae.record.get("tokens")
    if policy:
        special = "Special tokens (BOS, EOS, padding) are fed to the model and"
        if policy.get("count_bos"):
            special = "BOS is fed to the model and counted; EOS and padding are"
        return (
            f"{special} left out of training and of every count; texts are cut at "
            f"{policy.get('token_limit')} tokens"
        )
    if tokens:
        listed = ", ".join(f"{name} {value}" for name, value in tokens.items())
        return f"{listed} (from the SAEs' own files)"
    return "not recorded"


def _training(sae: SAE) -> str | None:
    """The text that the SAE was trained on; None where it is not recorded."""
    tokens = (sae.record.get("training") or {}).get("tokens")
    if not tokens:
        return None
    corpus = sae.record.get("corpus") or {}
    labels = ", ".join(map(str, corpus.get("labels") or ()))
    split = (sae.record.get("policy") or {}).get("split")
    return f"{tokens:,} tokens of {corpus.get('name')} ({split} split; {labels})"


def _notes(form: str, saes: Sequence[SAE], hookpoints: Mapping[str, str | None]) -> list[str]:
    """What a user of another library has to know and the format cannot say."""
    notes = []
    if any(sae.max_norm is not None for sae in saes):
        notes.append(
            f"{form} encodes every token; those whose norm exceeds the max norm (massive "
            "activations) were in no training, so leave them out."
        )
    after = sorted(
        {
            f"`{place}`"
            for sae in saes
            if sae.site.startswith("mlp_out@")
            and (place := hookpoints[sae.id])
            and "norm" in place.rpartition(".")[2]
        }
    )
    if after:
        notes.append(
            "mlp_out is what the feed-forward part adds to the residual stream: in this model the "
            f"output of the norm after it ({', '.join(after)}), not of `mlp`."
        )
    if any(sae.dtype == "bfloat16" for sae in saes):
        notes.append(
            "Trained with matrix products in bfloat16; in float32 activations differ a little."
        )
    if any(sae.normalize != "none" for sae in saes):
        notes.append(
            "The input is normalised vector by vector, so activations and decoder rows are in "
            "units of its spread."
        )
    return notes


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _cell(value: Any) -> str:
    """A value as a cell of a table, without line breaks and with `|` escaped."""
    if value is None or value == "":
        return "–"
    return " ".join(str(value).split()).replace("|", "\\|")
