"""The fit check: whether an SAE was loaded right and reads where it was trained.

An SAE that is fed from the wrong site, layer or scale still gives codes. Only its reconstruction
error shows it, so SAEs are run on a little text, at their own site and at all others of their
width.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor
from typing_extensions import TypedDict

from saefeat.activations import counted_vectors
from saefeat.corpora import Batch, Corpus, first_by_hash, plan_batches
from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import UserError
from saefeat.models import KINDS, LanguageModel
from saefeat.sae.formats.values import stated
from saefeat.schema import STRICT
from saefeat.tokens import finite, without_outliers

TOKENS = 2048  # of the text that an SAE is run on
COMPARED_TOKENS = 512  # of them on which an SAE is compared at its own and the best other sites
SCAN_TOKENS = 128  # of them on which it is tried at every other site
MIN_TOKENS = 32  # fewer tell nothing
TEXT_TOKENS = 128  # tokens after which a text is cut
OUTLIER_SHARE = 0.5  # of the tokens that an SAE may leave out for their norm
BETTER_FACTOR = 2.0  # an SAE belongs to another site whose error is this many times smaller
FAR_FACTOR = 3.0  # L0 and FVU that differ by this factor from the stated ones are reported
BETTER_SITES = 3  # how many sites that fit better are reported


class Fit(TypedDict):
    """How an SAE reconstructs some vectors.

    fvu: fraction of their variance that the reconstruction leaves unexplained. l0: mean number of
    active units per token. silent: share of the units that fire on none of them; on few tokens far
    more than the share of dead units. tokens: number of vectors.
    """

    fvu: float
    l0: float
    silent: float
    tokens: int


class FitReport(Fit):
    """What the fit check finds of one SAE, its `Fit` at its own site among it.

    better: FVU by site of up to three sites that fit better. stated: what the SAE's own files say
    of fvu, l0 and dead. doubt: why its files may be wrong. revisions: of the base model then and
    now, where both are known and differ. bos: how training and tokenizer differ in what stands
    before a text, or "".
    """

    id: str
    site: str
    better: dict[str, float]
    stated: dict[str, float]
    doubt: str | None
    revisions: list[str]
    bos: str


class FitChecks(TypedDict):
    """Content of the file of a run's fit check; request: fingerprint of what was checked."""

    __pydantic_config__ = STRICT  # pyright: ignore[reportGeneralTypeIssues]
    schema: int
    request: str
    saes: list[FitReport]


def measure_fit(sae: SAE, x: Tensor) -> Fit:
    """The fit of an SAE on vectors x [n, d_in], without those of outlier norm.

    A few outliers would be nearly all of the variance.
    """
    x = without_outliers(finite(x.float()))
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
) -> list[FitReport]:
    """Run SAEs on a little text at their own sites, and at all sites of the same width.

    Returns one report per SAE.

    Raises:
        UserError: an SAE has an FVU of 1 or more, or at most half of its FVU at another site (the
            message names the sites that fit better); it leaves out most tokens; or there is too
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
    lm: LanguageModel, sae: SAE, vectors: dict[str, Tensor], own_path: str, others: dict[str, str]
) -> FitReport:
    """Check one SAE; others: path -> name of the sites of its width.

    The SAE is on the device only while this function runs: all SAEs may not fit there.
    """
    sae = sae.to(lm.device)
    own = measure_fit(sae, vectors[own_path])
    better, elsewhere = _compare_sites(sae, vectors, own_path, others)
    if not own["fvu"] < 1 or elsewhere:
        raise UserError(_describe_misfit(lm, sae, own, better), "gate")
    _check_norms(sae, vectors[own_path])
    return {
        "id": sae.id,
        "site": sae.site,
        **own,
        "better": better,
        "stated": stated(sae.record),
        "doubt": sae.record.get("doubt"),
        "revisions": _differing_revisions(sae, lm),
        "bos": _describe_bos(sae, lm),
    }


def _compare_sites(
    sae: SAE, vectors: dict[str, Tensor], own_path: str, others: dict[str, str]
) -> tuple[dict[str, float], bool]:
    """FVU by site of the best sites that fit better, and whether one of them fits far better."""
    own = measure_fit(sae, vectors[own_path][:COMPARED_TOKENS])["fvu"]
    scan = {
        path: measure_fit(sae, vectors[path][:SCAN_TOKENS])["fvu"]
        for path in others
        if path != own_path
    }
    best = sorted(scan, key=scan.__getitem__)[:BETTER_SITES]
    found = {
        others[path]: measure_fit(sae, vectors[path][:COMPARED_TOKENS])["fvu"] for path in best
    }
    better = {name: fvu for name, fvu in found.items() if fvu < own}
    return better, min(better.values(), default=torch.inf) * BETTER_FACTOR <= own


def _check_norms(sae: SAE, x: Tensor) -> None:
    """Raise UserError when an SAE leaves out most of the vectors."""
    kept = sae.keeps(x)
    if kept is not None and (out := len(kept) - int(kept.sum())) > len(kept) * OUTLIER_SHARE:
        raise UserError(
            f"the SAE {sae.id} leaves out {out} of {len(kept)} tokens, whose norms exceed its "
            f"max_norm {sae.max_norm:g}; check its base model and scale, or skip the fit check",
            "gate",
        )


def describe(report: FitReport) -> str:
    """One line on an SAE that has passed, beside what its own files state."""
    said = report["stated"]

    def beside(name: str, form: str) -> str:
        return f" (stated {said[name]:{form}})" if name in said else ""

    line = (
        f"fit check: {report['id']} at {report['site']}, "
        f"FVU {report['fvu']:.3f}{beside('fvu', '.3f')}, "
        f"L0 {report['l0']:.1f}{beside('l0', '.1f')}, "
        f"{report['silent']:.1%} silent on {report['tokens']:,} tokens"
        + (f" (stated dead {said['dead']:.1%})" if "dead" in said else "")
    )
    if report["better"]:
        sites = (f"{name} ({fvu:.3f})" for name, fvu in report["better"].items())
        line += "; better at " + ", ".join(sites)
    found = {"fvu": report["fvu"], "l0": report["l0"]}
    far = [name.upper() for name, value in found.items() if _is_far(value, said.get(name))]
    if far:
        verb = "differs" if len(far) == 1 else "differ"
        line += (
            f"; {' and '.join(far)} {verb} widely from the stated; check the model, the site and "
            "the corpus"
        )
    for remark in (report["doubt"], report["bos"]):
        line += f"; {remark}" if remark else ""
    if report["revisions"]:
        then, now = report["revisions"]
        line += f"; trained on revision {then} of the base model, this is {now}"
    return line


def _is_far(found: float, said: float | None) -> bool:
    if not said:
        return False
    return not said / FAR_FACTOR <= found <= said * FAR_FACTOR and abs(found - said) > 0.1


def _describe_bos(sae: SAE, lm: LanguageModel) -> str:
    """How the training and the tokenizer differ in what stands before a text; "" if they do not."""
    recorded = (sae.record.get("tokens") or {}).get("prepend_bos")
    if recorded is None or bool(recorded) == bool(lm.prefix):
        return ""
    if recorded:
        return "trained on texts with BOS before them, which this tokenizer does not add"
    return "trained on texts without BOS before them, which this tokenizer adds"


def _differing_revisions(sae: SAE, lm: LanguageModel) -> list[str]:
    """The commits of the base model then and now where they differ, else an empty list.

    Only commits are compared: a branch may be at any commit.
    """
    known = [str((sae.record.get("model") or {}).get("revision")), str(lm.revision)]
    commits = all(re.fullmatch("[0-9a-f]{40}", name) for name in known)
    return known if commits and known[0] != known[1] else []


def _balanced_batches(lm: LanguageModel, corpus: Corpus, seed: int) -> list[Batch]:
    """Batches of about TOKENS tokens, taken from the labels in turn."""
    picked = first_by_hash(corpus, list(range(len(corpus))), seed, TOKENS)
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
    """Path -> vectors of at most TOKENS counted tokens [n, d], in a random order.

    Batches are sorted by length; in a random order, the first few tokens are of all texts.
    Raises UserError where there are too few.
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
    """Path -> site of every layer's stream, feed-forward output and neurons of a width."""
    found: dict[str, str] = {}
    widths: dict[str, int] = {}  # by kind; equal in all layers
    with suppress(UserError):  # a family whose blocks are not known
        for layer in range(lm.n_layers):
            for kind in KINDS:
                with suppress(UserError):  # the neurons of experts are not known
                    site = lm.site(f"{kind}@{layer}")
                    if kind not in widths:
                        widths[kind] = site_width(lm, site)
                    if widths[kind] == width:
                        found.setdefault(site.path, site.name)
    return found


def _describe_misfit(lm: LanguageModel, sae: SAE, own: Fit, better: dict[str, float]) -> str:
    """One sentence with the figures and the sites that fit better."""
    sites = sorted((fvu, name) for name, fvu in better.items() if fvu < 1)
    hint = (
        "it fits better at " + ", ".join(f"{name} {fvu:.2f}" for fvu, name in sites)
        if sites
        else "it fits at no layer, so check its base model and normalisation"
    )
    if sae.record.get("doubt"):
        hint += f"; {sae.record['doubt']}"
    return (
        f"the SAE {sae.id} does not fit {sae.site} of {lm.name}: FVU {own['fvu']:.2f}, "
        f"L0 {own['l0']:.1f} on {own['tokens']} tokens; {hint}; skip the fit check to use it anyway"
    )
