"""Stages on their own: collect and rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from saefeat.activations import norm_limits
from saefeat.collection import check_ids
from saefeat.collection import collect as collect_stats
from saefeat.corpora import Corpus, Plan, make_plan
from saefeat.dictionaries import SAE, Dictionary, Identity
from saefeat.hooks import site_width
from saefeat.io import UserError, make_dir
from saefeat.methods import check_parameters, choose, get_method
from saefeat.models import LanguageModel
from saefeat.sae.gate import check_saes, describe
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.files import StatsFiles, list_stats
from saefeat.steering import norm_limit

Say = Callable[[str], None]


def quiet(_: str) -> None:
    """Say nothing."""


def set_threads() -> int:
    """Use every core that this process may use; results are the same for the same number."""
    _keep_memory()
    threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    torch.set_num_threads(threads)
    return threads


def _keep_memory() -> None:
    """Tell glibc to keep freed memory: large temporaries would otherwise cost page faults at every step."""
    import ctypes

    trim_threshold, top_pad, mmap_max = -1, -2, -4  # of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)
    except (OSError, AttributeError):  # another C library
        pass


def neurons(lm: LanguageModel, layers: Sequence[int] | None = None) -> list[Identity]:
    """Identity dictionaries of the hidden neurons (`mlp_act`) of layers, by default of all that have them."""
    sites = [
        lm.site(f"mlp_act@{layer}") for layer in (neuron_layers(lm) if layers is None else layers)
    ]
    return [Identity(site.name, site_width(lm, site)) for site in sites]


def neuron_layers(lm: LanguageModel) -> list[int]:
    """Layers whose hidden neurons are known; those of experts are not. Raises UserError where none are."""
    found = []
    for layer in range(lm.n_layers):
        try:
            lm.site(f"mlp_act@{layer}")
        except UserError:
            continue
        found.append(layer)
    if not found:
        lm.site("mlp_act@0")  # its sentence says why
    return found


def distinct(dictionaries: Sequence[Dictionary]) -> list[Dictionary]:
    """The same without repetitions: neurons may be at the site of an SAE, whose means are wanted too."""
    found: list[Dictionary] = []
    for one in dictionaries:
        if not any(
            isinstance(one, Identity) and isinstance(two, Identity) and one.id == two.id
            for two in found
        ):
            found.append(one)
    return found


def means(
    lm: LanguageModel, saes: Sequence[SAE], plan: Plan | None, sites: Iterable[str] = ()
) -> list[Identity]:
    """Identities of the sites of SAEs and of others: the difference of means, the force of steering, is read from them.

    They leave out the tokens that the SAEs of the site leave out; where these leave none out, or
    there is none, those of more than 8 times the median norm in a sample of the plan. Neurons
    (`mlp_act`) are all counted, as LAPE counts
    them: first tokens are no outliers there. plan None: no limits, where only sizes are asked for.
    """
    names = dict.fromkeys([*(sae.site for sae in saes), *sites])
    limits = {name: norm_limit(sae for sae in saes if sae.site == name) for name in names}
    unknown = [
        name for name, limit in limits.items() if limit is None and not name.startswith("mlp_act@")
    ]
    if plan is not None and unknown:
        limits |= norm_limits(lm, plan, unknown)
    found = [lm.site(name) for name in names]
    return [Identity(site.name, site_width(lm, site), max_norm=limits[site.name]) for site in found]


def collect(
    lm: LanguageModel,
    corpus: Corpus,
    saes: Sequence[SAE] = (),
    *,
    out: str | Path,
    with_neurons: bool = False,
    with_bags: bool = False,
    split: str = "train",
    max_tokens: int | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    count_bos: bool = False,
    gate: bool = False,
    progress: Say = quiet,
) -> list[Path]:
    """Statistics of SAEs and neurons over a corpus, one file a dictionary in `out`. See `collection.collect`.

    gate: try those SAEs on a little text first (`sae.gate.check_saes`) that have no statistics yet.
    """
    out = Path(out)
    if not saes and not with_neurons:
        raise UserError("nothing to collect: give SAEs, or ask for neurons")
    check_ids([*saes, *means(lm, saes, None)])
    plan = make_plan(corpus, lm, split=split, seed=seed, max_tokens=max_tokens, count_bos=count_bos)
    dictionaries = distinct([*saes, *means(lm, saes, plan), *(neurons(lm) if with_neurons else [])])
    bags = out / "bags" if with_bags else None
    check_ids(dictionaries)
    make_dir(out)
    if gate:
        new = [sae for sae in saes if not (out / f"{sae.id}.safetensors").exists()]
        for report in check_saes(lm, new, corpus, seed=seed):
            progress(describe(report))
    return collect_stats(lm, plan, dictionaries, out, shard=shard, bags=bags, progress=progress)


def rank(
    source: str | Path,
    method: str = "sae-lape",
    /,
    *,
    dictionaries: Sequence[str] | None = None,
    **parameters: Any,
) -> Selection:
    """Rank the units of statistics in a directory by a published rule. Raises UserError for unknown names."""
    rule, parameters = get_method(method), check_parameters(method, parameters)
    files = list_stats(Path(source))
    headers = [Stats.read_header(path)["dictionary"] for path in files.values()]
    paths = {header["id"]: path for header, path in zip(headers, files.values(), strict=True)}
    selection = rule.rank(
        StatsFiles([paths[name] for name in choose(headers, method, dictionaries)]), **parameters
    )
    selection.header["stats"] = str(Path(source).absolute())  # steering reads means there
    return selection
