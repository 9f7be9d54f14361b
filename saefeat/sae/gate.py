"""The gate: whether an SAE was loaded right and reads where it was trained, told from a little text.

An SAE fed from the wrong site, layer or scale still gives codes; only its reconstruction error
tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from saefeat.activations import counted_vectors
from saefeat.corpora import Corpus, first_by_hash, plan_batches
from saefeat.dictionaries import SAE
from saefeat.hooks import site_width
from saefeat.io import UserError
from saefeat.models import LanguageModel
from saefeat.sae.formats.tensors import stated
from saefeat.tokens import finite, without_outliers

TOKENS = 2048  # of text that an SAE is run on
FEW = 512  # of them that the best of the other sites is compared on
FEWER = 128  # of them that every other site is tried with
LEAST = 32  # tokens; of fewer nothing can be told
OUTLIERS = 0.5  # share of tokens that an SAE may leave out for their norm
LENGTH = 128  # tokens of a text
KINDS = ("resid_post", "mlp_out", "mlp_act")
FACTOR = 2.0  # another site that has the error this many times smaller is where the SAE belongs
STRANGE = 3.0  # an L0 or FVU this many times the stated one is worth a warning
SHOWN = 3  # sites that fit better


@dataclass(frozen=True)
class Fidelity:
    """What an SAE makes of some vectors.

    Attributes:
        fvu: share of their variance that the reconstruction leaves out.
        l0: mean number of active units of a token.
        silent: share of the units that fire on none of them; of few tokens it is no share of dead
            units.
        tokens: how many they are.
    """

    fvu: float
    l0: float
    silent: float
    tokens: int


def fidelity(sae: SAE, x: Tensor) -> Fidelity:
    """FVU, L0 and silent share of an SAE on vectors x [n, d_in], those of outlier norm left out."""
    x = without_outliers(finite(x.float()))
    codes = sae.encode(x)
    assert codes.indices is not None
    fires = codes.values > 0
    seen = torch.zeros(sae.width, dtype=torch.bool, device=x.device)
    seen[codes.indices[fires]] = True
    error = (x - sae.reconstruct(x)).double().square().sum()
    spread = (x - x.mean(0)).double().square().sum().clamp(min=1e-30)
    return Fidelity(
        float(error / spread), float(fires.sum() / len(x)), 1 - float(seen.float().mean()), len(x)
    )


def check_saes(
    lm: LanguageModel, saes: Sequence[SAE], corpus: Corpus, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Run SAEs on a little of the corpus, at their own sites and at those of every layer that are as wide.

    Returns, for each SAE: id, site, fvu, l0, silent, tokens; `better`, FVU by site of up to three
    that fit better; `stated`, what its own files say of fvu, l0, dead; `doubt`, why its files may
    be wrong; `revisions`, of the base model it was trained on and of the one at hand, where both
    are known and differ; and `bos`, how its files and the tokenizer differ in it, or "".

    Raises:
        UserError: the error is as great as the variance (FVU of 1 or more), or another site has
            half of it or less, with the sites that fit better; the SAE leaves out most tokens; or
            there is too little text to tell.
    """
    if not saes:
        return []
    own = {sae.id: lm.site(sae.site).path for sae in saes}
    others = {width: _sites(lm, width) for width in {sae.d_in for sae in saes}}
    paths = {*own.values(), *(path for sites in others.values() for path in sites)}
    vectors = _vectors(lm, _batches(lm, corpus, seed), paths)
    n = len(next(iter(vectors.values())))
    if n < LEAST:
        raise UserError(
            f"the corpus has {n} tokens, too few to try the SAEs on; give it more text, or use --no-gate"
        )
    return [_tried(lm, sae, vectors, own[sae.id], others[sae.d_in]) for sae in saes]


def _tried(
    lm: LanguageModel, sae: SAE, vectors: dict[str, Tensor], home: str, others: dict[str, str]
) -> dict[str, Any]:
    """The report on one SAE; a function, so that it leaves the device when it ends: all may not fit there."""
    sae = sae.to(lm.device)
    at_home, few = fidelity(sae, vectors[home]), fidelity(sae, vectors[home][:FEW]).fvu
    errors = {path: fidelity(sae, vectors[path][:FEWER]).fvu for path in others if path != home}
    ranked = sorted(errors, key=errors.__getitem__)[:SHOWN]
    better = {others[path]: fidelity(sae, vectors[path][:FEW]).fvu for path in ranked}
    better = {name: fvu for name, fvu in better.items() if fvu < few}
    if not at_home.fvu < 1 or min(better.values(), default=torch.inf) * FACTOR <= few:
        raise UserError(_refusal(lm, sae, at_home, better))
    kept = sae.keeps(vectors[home])
    if kept is not None and (out := len(kept) - int(kept.sum())) > len(kept) * OUTLIERS:
        raise UserError(
            f"the SAE {sae.id} leaves out {out} of {len(kept)} tokens, whose norms exceed its max_norm "
            f"{sae.max_norm:g}; look at its base model and scale (--no-gate uses it anyway)"
        )
    return {
        "id": sae.id,
        "site": sae.site,
        **asdict(at_home),
        "better": better,
        "stated": stated(sae.record),
        "doubt": sae.record.get("doubt"),
        "revisions": _revisions(sae, lm),
        "bos": _bos(sae, lm),
    }


def describe(report: dict[str, Any]) -> str:
    """A line on an SAE that has passed, beside what its own files say."""
    said = report["stated"]

    def beside(name: str, form: str) -> str:
        return f" (stated {said[name]:{form}})" if name in said else ""

    line = (
        f"gate: {report['id']} at {report['site']}, FVU {report['fvu']:.3f}{beside('fvu', '.3f')}, "
        f"L0 {report['l0']:.1f}{beside('l0', '.1f')}, {report['silent']:.1%} silent on {report['tokens']:,} tokens"
        + (f" (stated dead {said['dead']:.1%})" if "dead" in said else "")
    )
    if report["better"]:
        line += "; better at " + ", ".join(
            f"{name} ({fvu:.3f})" for name, fvu in report["better"].items()
        )
    odd = [
        name.upper() for name in ("fvu", "l0") if said.get(name) and _far(report[name], said[name])
    ]
    if odd:
        line += f"; {' and '.join(odd)} far from the stated: are this the model, the site and text it was trained on?"
    for remark in (report["doubt"], report["bos"]):
        line += f"; {remark}" if remark else ""
    if report["revisions"]:
        line += "; trained on revision {} of the base model, this is {}".format(
            *report["revisions"]
        )
    return line


def _bos(sae: SAE, lm: LanguageModel) -> str:
    """How the SAE's training differs from the tokenizer in what stands before a text; "" where it does not."""
    recorded = (sae.record.get("tokens") or {}).get("prepend_bos")
    if recorded is None or bool(recorded) == bool(lm.prefix):
        return ""
    if recorded:
        return "trained on texts with BOS before them, which this tokenizer does not add"
    return "trained on texts without BOS before them, which this tokenizer adds"


def _revisions(sae: SAE, lm: LanguageModel) -> list[str]:
    known = [str((sae.record.get("model") or {}).get("revision")), str(lm.revision)]
    # Commits alone are compared: a branch may be at any.
    return (
        known
        if known[0] != known[1] and all(re.fullmatch("[0-9a-f]{40}", name) for name in known)
        else []
    )


def _far(found: float, stated: float) -> bool:
    return not stated / STRANGE <= found <= stated * STRANGE and abs(found - stated) > 0.1


def _batches(lm: LanguageModel, corpus: Corpus, seed: int) -> list[Any]:
    """Batches of some TOKENS tokens, the labels taking turns."""
    picked = first_by_hash(corpus, list(range(len(corpus))), seed, TOKENS)
    waiting = {label: [i for i in picked if corpus.of[i] == label] for label in corpus.labels}
    chosen: dict[int, list[int]] = {}
    total = 0
    while total < TOKENS and any(waiting.values()):
        turn = [some.pop(0) for some in waiting.values() if some]
        chosen.update(zip(turn, lm.tokenize([corpus.texts[i] for i in turn], LENGTH), strict=True))
        total = sum(map(len, chosen.values()))
    return list(plan_batches(lm, {i: row for i, row in chosen.items() if row}))


def _vectors(lm: LanguageModel, batches: Iterable[Any], paths: set[str]) -> dict[str, Tensor]:
    """Path -> vectors of counted tokens [n, d], at most TOKENS."""
    found: dict[str, list[Tensor]] = {path: [] for path in paths}
    for _, here in counted_vectors(lm, batches, sorted(paths)):
        for path, x in here.items():
            found[path].append(x)
    generator = torch.Generator().manual_seed(
        0
    )  # batches are sorted by length: few tokens should be of all kinds
    if not any(map(len, next(iter(found.values())))):
        raise UserError(
            "the corpus has no token to try the SAEs on; give it text, or use --no-gate"
        )
    n = len(torch.cat(next(iter(found.values()))))
    order = torch.randperm(n, generator=generator)[:TOKENS].to(lm.device)
    return {path: torch.cat(parts)[order].clone() for path, parts in found.items()}


def _sites(lm: LanguageModel, width: int) -> dict[str, str]:
    """Path -> site of the stream, the feed-forward output and the neurons of every layer, where as wide as this."""
    found: dict[str, str] = {}
    widths: dict[str, int] = {}  # of a kind, equal in all layers
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


def _refusal(lm: LanguageModel, sae: SAE, at_home: Fidelity, better: dict[str, float]) -> str:
    """One sentence with the numbers and the sites that fit better."""
    where = ", ".join(
        f"{name} {fvu:.2f}" for name, fvu in sorted(better.items(), key=lambda b: b[1]) if fvu < 1
    )
    hint = (
        f"it fits better at {where}"
        if where
        else "it fits at no layer, so look at its base model and normalisation"
    )
    if sae.record.get("doubt"):
        hint += f"; {sae.record['doubt']}"
    return (
        f"the SAE {sae.id} does not fit {sae.site} of {lm.name}: FVU {at_home.fvu:.2f}, L0 {at_home.l0:.1f} "
        f"on {at_home.tokens} tokens; {hint} (--no-gate uses it all the same)"
    )
