"""The model card of exported SAEs: what they read, what they were trained on, how good they are, how to load them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from saefeat.dictionaries import SAE
from saefeat.io import kept_json
from saefeat.sae.formats.values import stated
from saefeat.sae.layouts import transformer_lens_hook
from saefeat.sae.names import on_hub
from saefeat.statistics import Stats

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_LIBRARIES = {"sae-lens": "saelens", "sparsify": "sparsify"}  # as the hub knows them


@dataclass(frozen=True)
class Facts:
    """What the card says beside the SAEs' own configurations.

    Attributes:
        model: name, revision and fingerprint of the base model, as far as they are recorded.
        figures: SAE id -> fvu, l0 and dead (a share), each a number or None.
        counts: label -> texts, and SAE id -> counted tokens; empty without a run.
        counted: the corpus and the split of the counts.
    """

    model: dict[str, Any]
    figures: dict[str, dict[str, float | None]]
    counts: dict[str, tuple[int, dict[str, int]]]
    counted: str


def read_facts(saes: Sequence[SAE], model: dict[str, Any], run: Path | None) -> Facts:
    """The facts of SAEs from their records, and from the statistics and the gate of the run that used them.

    Raises UserError for statistics that cannot be read; those that are missing are left out.
    """
    reports = kept_json(run / "gate.json").get("saes") if run else None
    gate = {report["id"]: report for report in reports or ()}
    figures, counts, counted = {}, {}, ""
    for sae in saes:
        measured = {"fvu": gate.get(sae.id, {}).get("fvu")}
        path = run / "stats" / f"{sae.id}.safetensors" if run else None
        if path and path.is_file():
            stats = Stats.load(path)
            measured["l0"] = float(stats.fired.sum() / stats.tokens.sum().clamp(min=1))
            measured["dead"] = float((stats.fired.sum(0) == 0).float().mean())
            for label, texts, tokens in zip(
                stats.labels, stats.examples.tolist(), stats.tokens.tolist(), strict=True
            ):
                counts.setdefault(label, (texts, {}))[1][sae.id] = tokens
            counted = f"{stats.header['corpus']['name']}, {stats.header['policy']['split']} split"
        names = ("fvu", "l0", "dead")
        figures[sae.id] = {name: {**measured, **stated(sae.record)}.get(name) for name in names}
    return Facts(model, figures, counts, counted)


def render(
    form: str, folders: Mapping[str, SAE], hookpoints: Mapping[str, str | None], facts: Facts
) -> str:
    """The card as Markdown.

    Args:
        form: the format of the export, `sae-lens` or `sparsify`.
        folders: folder -> the SAE in it.
        hookpoints: SAE id -> path in the base model of the module that it reads, or None.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "number": _number}
    given = str(facts.model.get("name") or "")
    name = on_hub(given)
    folder, first = next(iter(folders.items()))
    return environment.get_template("card.md").render(
        form=form,
        library=_LIBRARIES[form],
        hub_id=name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None,
        by_transformers=not (name != given or name.endswith(".gguf")),
        model={**dict.fromkeys(("name", "revision", "fingerprint")), **facts.model},
        name=name,
        rows=[
            _row(folder, sae, hookpoints[sae.id], facts.figures[sae.id])
            for folder, sae in folders.items()
        ],
        policies=dict.fromkeys(map(_policy, folders.values())),
        trained=dict.fromkeys(filter(None, map(_training, folders.values()))),
        notes=_notes(form, list(folders.values()), hookpoints),
        facts=facts,
        folder=folder,
        sae=first,
        hookpoint=hookpoints[first.id],
    )


def _row(
    folder: str, sae: SAE, hookpoint: str | None, figures: Mapping[str, float | None]
) -> dict[str, Any]:
    activation = f"{sae.activation} {sae.k}" if sae.k else sae.activation
    dead = figures["dead"]
    return {
        "folder": folder,
        "site": sae.site,
        "module": hookpoint,
        "hook": transformer_lens_hook(sae),
        "units": f"{sae.width:,}",
        "activation": activation,
        "FVU": _number(figures["fvu"], 3),
        "L0": _number(figures["l0"], 1),
        "dead": None if dead is None else f"{dead:.1%}",
        "max norm": _number(sae.max_norm, 2),
    }


def _policy(sae: SAE) -> str:
    policy, tokens = sae.record.get("policy"), sae.record.get("tokens")
    if policy:
        special = (
            "BOS is fed to the model and counted; EOS and padding are"
            if policy.get("count_bos")
            else ("Special tokens (BOS, EOS, padding) are fed to the model and")
        )
        return f"{special} left out of training and of every count; texts are cut at {policy.get('token_limit')} tokens"
    if tokens:
        return (
            ", ".join(f"{name} {value}" for name, value in tokens.items())
            + " (from the SAEs' own files)"
        )
    return "not recorded"


def _training(sae: SAE) -> str | None:
    tokens, corpus = (
        (sae.record.get("training") or {}).get("tokens"),
        sae.record.get("corpus") or {},
    )
    if not tokens:
        return None
    labels = ", ".join(map(str, corpus.get("labels") or ()))
    split = (sae.record.get("policy") or {}).get("split")
    return f"{tokens:,} tokens of {corpus.get('name')} ({split} split; {labels})"


def _notes(form: str, saes: Sequence[SAE], hookpoints: Mapping[str, str | None]) -> list[str]:
    """What a reader of another library has to do, because its format does not say it."""
    notes = []
    if any(sae.max_norm is not None for sae in saes):
        notes.append(
            f"{form} encodes every token; those whose norm exceeds the max norm (massive activations) were in "
            "no training, so leave them out."
        )
    after = sorted(
        {place for sae in saes if (place := hookpoints[sae.id]) and _is_post_norm(sae, place)}
    )
    if after:
        notes.append(
            f"mlp_out is what the feed-forward part adds to the residual stream: in this model the output of "
            f"the norm after it ({', '.join(f'`{place}`' for place in after)}), not of `mlp`."
        )
    if any(sae.dtype == "bfloat16" for sae in saes):
        notes.append(
            "Trained with matrix products in bfloat16; in float32 activations differ a little."
        )
    if any(sae.normalize != "none" for sae in saes):
        notes.append(
            "The input is normalised vector by vector, so activations and decoder rows are in units of its "
            "spread."
        )
    return notes


def _is_post_norm(sae: SAE, hookpoint: str) -> bool:
    return sae.site.startswith("mlp_out@") and "norm" in hookpoint.rpartition(".")[2]


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _cell(value: Any) -> str:
    """A value as a cell of a table; nothing in it can end the cell."""
    return "–" if value is None or value == "" else " ".join(str(value).split()).replace("|", "\\|")
