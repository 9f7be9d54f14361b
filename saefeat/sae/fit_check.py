"""The fit check: is an SAE loaded correctly, and does it read the place it was trained at?

An SAE that reads vectors of the wrong site, layer or scale still gives codes; only its
reconstruction error shows the mistake. So each SAE is run on a little text, at its own site and at
every other site of the same width.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.artefacts import SAEFit
from saefeat.corpora import Batch, Corpus, first_by_hash, plan_batches
from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import UserError
from saefeat.models import KINDS, LanguageModel
from saefeat.models.sites import UnknownSite
from saefeat.sae.formats.values import stated
from saefeat.tokens import finite, without_outliers

TOKENS = 2048  # on which each SAE is run at its own site
COMPARED_TOKENS = 512  # on which the own site is compared with the best other sites
SCAN_TOKENS = 128  # on which every other site is tried
MIN_TOKENS = 32  # with fewer, the figures mean nothing
TEXT_TOKENS = 128  # texts are cut after so many tokens
OUTLIER_SHARE = 0.5  # greatest share of tokens that an SAE may leave out for their norm
BETTER_FACTOR = 2.0  # an SAE is refused if another site has an FVU this many times smaller
FAR_FACTOR = 3.0  # FVU and L0 that differ from the stated ones by this factor are reported
BETTER_SITES = 3  # number of better sites that are reported


def measure_fit(sae: SAE, x: Tensor) -> dict[str, Any]:
    """Measure how well an SAE reconstructs vectors x [n, d_in].

    Vectors of outlier norm are left out, because a few of them make up most of the variance.

    Returns:
        fvu: the fraction of the variance that is left unexplained; l0: the mean number of active
        units per token; silent: the share of units that fire on none of the vectors (far more
        than the dead ones if there are few vectors); tokens: the number of vectors.
    """
    x, _ = without_outliers(finite(x.float()))
    codes = sae.encode(x)
    assert codes.indices is not None
    fires = codes.values > 0
    fired = torch.zeros(sae.width, dtype=torch.bool, device=x.device)
    fired[codes.indices[fires]] = True
    error = (x - sae.reconstruct(x)).double().square().sum()
    variance = (x - x.mean(0)).double().square().sum().clamp(min=1e-30)
    return {
        "fvu": float(error / variance),
        "l0": float(fires.sum() / len(x)),
        "silent": 1 - float(fired.float().mean()),
        "tokens": len(x),
    }


def check_saes(
    lm: LanguageModel, saes: Sequence[SAE], corpus: Corpus, *, seed: int = 0
) -> list[SAEFit]:
    """Run SAEs on a little text at their own sites, and at all sites of the same width.

    Raises:
        UserError: an SAE has an FVU of 1 or more, or fits another site with at most half of the
            FVU (the message names the better sites); it leaves out most tokens; or there is too
            little text.
    """
    if not saes:
        return []
    own = {sae.id: lm.site(sae.site).path for sae in saes}
    others = {width: _sites_of_width(lm, width) for width in {sae.d_in for sae in saes}}
    paths = {*own.values(), *(path for sites in others.values() for path in sites)}
    vectors = _sample_vectors(lm, _balanced_batches(lm, corpus, seed), paths)
    return [_check(lm, sae, vectors, own[sae.id], others[sae.d_in]) for sae in saes]


def _check(
    lm: LanguageModel, sae: SAE, vectors: dict[str, Tensor], path: str, others: dict[str, str]
) -> SAEFit:
    """Check one SAE. path: of its site; others: path -> name of all sites of its width."""
    sae = sae.to(lm.device)  # here only, because all SAEs together may not fit there

    def fvu(path: str, tokens: int) -> float:
        return measure_fit(sae, vectors[path][:tokens])["fvu"]

    own, here = measure_fit(sae, vectors[path]), fvu(path, COMPARED_TOKENS)
    scan = {other: fvu(other, SCAN_TOKENS) for other in others if other != path}
    best = sorted(scan, key=scan.__getitem__)[:BETTER_SITES]
    found = {others[other]: fvu(other, COMPARED_TOKENS) for other in best}
    better = {name: value for name, value in found.items() if value < here}
    if not own["fvu"] < 1 or min(better.values(), default=torch.inf) * BETTER_FACTOR <= here:
        raise UserError(_describe_misfit(lm, sae, own, better), "gate")
    _check_norms(sae, vectors[path])
    return SAEFit(
        id=sae.id,
        site=sae.site,
        **own,
        better=better,
        stated=stated(sae.record),
        doubt=sae.record.get("doubt"),
        revisions=_differing_revisions(sae, lm),
        bos=_describe_bos(sae, lm),
    )


def _check_norms(sae: SAE, x: Tensor) -> None:
    """Raise UserError when an SAE leaves out most of the vectors."""
    kept = sae.keeps(x)
    if kept is not None and (out := len(kept) - int(kept.sum())) > len(kept) * OUTLIER_SHARE:
        raise UserError(
            f"the SAE {sae.id} leaves out {out} of {len(kept)} tokens, whose norms exceed its "
            f"max_norm {sae.max_norm:g}; check its base model and scale, or skip the fit check",
            "gate",
        )


def describe(report: SAEFit) -> str:
    """One line with the figures of an SAE that has passed, and those that its files state."""
    said, found = report["stated"], {"fvu": report["fvu"], "l0": report["l0"]}

    def figure(name: str, form: str) -> str:
        beside = f" (stated {said[name]:{form}})" if name in said else ""
        return f"{name.upper()} {found[name]:{form}}{beside}"

    dead = f" (stated dead {said['dead']:.1%})" if "dead" in said else ""
    parts = [
        f"fit check: {report['id']} at {report['site']}, {figure('fvu', '.3f')}, "
        f"{figure('l0', '.1f')}, {report['silent']:.1%} silent on {report['tokens']:,} tokens{dead}"
    ]
    if report["better"]:
        sites = (f"{name} ({fvu:.3f})" for name, fvu in report["better"].items())
        parts.append("better at " + ", ".join(sites))
    far = [name.upper() for name, value in found.items() if _is_far(value, said.get(name))]
    if far:
        parts.append(
            f"{' and '.join(far)} differ{'s' if len(far) == 1 else ''} widely from the stated; "
            "check the model, the site and the corpus"
        )
    parts += filter(None, (report["doubt"], report["bos"]))
    if report["revisions"]:
        then, now = report["revisions"]
        parts.append(f"trained on revision {then} of the base model, this is {now}")
    return "; ".join(parts)


def _is_far(found: float, said: float | None) -> bool:
    if not said:
        return False
    return not said / FAR_FACTOR <= found <= said * FAR_FACTOR and abs(found - said) > 0.1


def _describe_bos(sae: SAE, lm: LanguageModel) -> str:
    """Whether only one of training and tokenizer puts BOS before texts, in words; "" if not."""
    recorded = (sae.record.get("tokens") or {}).get("prepend_bos")
    if recorded is None or bool(recorded) == bool(lm.prefix):
        return ""
    if recorded:
        return "trained on texts with BOS before them, which this tokenizer does not add"
    return "trained on texts without BOS before them, which this tokenizer adds"


def _differing_revisions(sae: SAE, lm: LanguageModel) -> list[str]:
    """The commits of the base model in training and now, if both are known and differ; else []."""
    known = [str((sae.record.get("model") or {}).get("revision")), str(lm.revision)]
    commits = all(re.fullmatch("[0-9a-f]{40}", name) for name in known)
    return known if commits and known[0] != known[1] else []


def _balanced_batches(lm: LanguageModel, corpus: Corpus, seed: int) -> list[Batch]:
    """Batches of about TOKENS tokens, with equally many texts of each label."""
    picked = first_by_hash(corpus, corpus.in_split("all", seed), seed, TOKENS)
    waiting = {label: [i for i in picked if corpus.of[i] == label] for label in corpus.labels}
    chosen: dict[int, list[int]] = {}
    total = 0
    while total < TOKENS and any(waiting.values()):
        turn = [some.pop(0) for some in waiting.values() if some]
        rows = lm.tokenize([corpus.texts[i] for i in turn], TEXT_TOKENS)
        chosen.update(zip(turn, rows, strict=True))
        total = sum(map(len, chosen.values()))
    return list(plan_batches(lm, {i: row for i, row in chosen.items() if row}))


def _sample_vectors(
    lm: LanguageModel, batches: Iterable[Batch], paths: Collection[str]
) -> dict[str, Tensor]:
    """Path -> vectors of at most TOKENS counted tokens [n, d]. Raises UserError for too few.

    They are shuffled, because batches are sorted by length and only the first ones are compared.
    """
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    for _, vectors in counted_vectors(lm, batches, sorted(paths)):
        for path, x in vectors.items():
            found[path].append(x)
    n = sum(map(len, next(iter(found.values()))))
    if n < MIN_TOKENS:
        raise UserError(
            f"the corpus has {n} tokens, too few to check the SAEs on; give it more text, or skip "
            "the fit check",
            "gate",
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:TOKENS].to(lm.device)
    return {path: torch.cat(parts)[order].clone() for path, parts in found.items()}


def _sites_of_width(lm: LanguageModel, width: int) -> dict[str, str]:
    """Path -> name of the sites of this width, of all kinds and layers."""
    found: dict[str, str] = {}
    widths: dict[str, int] = {}  # by kind; equal in all layers
    with suppress(UnknownSite):  # the blocks of this family are not known
        for layer in range(lm.n_layers):
            for kind in KINDS:
                with suppress(UnknownSite):  # the neurons of experts are not known
                    site = lm.site(f"{kind}@{layer}")
                    if kind not in widths:
                        widths[kind] = site_width(lm, site)
                    if widths[kind] == width:
                        found.setdefault(site.path, site.name)
    return found


def _describe_misfit(
    lm: LanguageModel, sae: SAE, own: dict[str, Any], better: dict[str, float]
) -> str:
    sites = sorted((fvu, name) for name, fvu in better.items() if fvu < 1)
    hint = "it fits better at " + ", ".join(f"{name} {fvu:.2f}" for fvu, name in sites)
    if not sites:
        hint = "it fits at no layer, so check its base model and normalisation"
    if sae.record.get("doubt"):
        hint += f"; {sae.record['doubt']}"
    return (
        f"the SAE {sae.id} does not fit {sae.site} of {lm.name}: FVU {own['fvu']:.2f}, "
        f"L0 {own['l0']:.1f} on {own['tokens']} tokens; {hint}; skip the fit check to use it anyway"
    )
