"""Stages that need no run directory: collect and rank; what a collection counts; threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from saefeat.activations import norm_limits
from saefeat.collection import check_ids
from saefeat.collection import collect as collect_stats
from saefeat.config import DEFAULT_METHOD, NEURON_SITES, CollectConfig, OnRequest
from saefeat.corpora import Corpus, Plan, make_plan
from saefeat.corpora.random_tokens import random_plan
from saefeat.dictionaries import SAE, Dictionary, Identity
from saefeat.hooks import site_width
from saefeat.io import UserError, make_dir
from saefeat.methods import METHODS, check_parameters, choose
from saefeat.models import LanguageModel
from saefeat.models.sites import UnknownSite, written_norms
from saefeat.progress import Say, quiet
from saefeat.ranking import COLUMNS
from saefeat.resume import check_replaceable, claim_file
from saefeat.sae.fit_check import check_saes, describe
from saefeat.selection import Selection
from saefeat.statistics import ACCUMULATORS, Stats
from saefeat.statistics.files import (
    CONTROL,
    StatsFiles,
    collected_beside,
    control_of,
    list_stats,
    stats_file,
)
from saefeat.steering.changes import norm_limit
from saefeat.world import ALONE, World


def set_threads(processes: int = 1, threads: int | None = None) -> int:
    """Use every core that this process may use, and return the number of threads.

    Results are the same for the same number of threads.

    Args:
        processes: number of processes that share the cores.
        threads: use so many, whatever the number of cores.
    """
    _keep_memory()
    linux = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    threads = threads or max(1, cores // processes)
    torch.set_num_threads(threads)
    return threads


def _keep_memory() -> None:
    """Tell glibc to keep freed memory.

    Otherwise the large temporary tensors of each step are returned to the system, and cost page
    faults when they are allocated again.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # constants of malloc.h
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 64 * 2**20)


def neurons(
    lm: LanguageModel, layers: Sequence[int] | None = None, kind: str = "mlp_act"
) -> list[Identity]:
    """Identity dictionaries of the hidden neurons of layers; default all known ones.

    `kind` of their site: `mlp_act`, or `mlp_hidden`, where the norms of what they write are known.
    """
    layers = neuron_layers(lm) if layers is None else layers
    sites = [lm.site(f"{kind}@{layer}") for layer in layers]
    return [Identity(s.name, site_width(lm, s), norms=written_norms(lm.model, s)) for s in sites]


def neuron_layers(lm: LanguageModel) -> list[int]:
    """Layers whose hidden neurons are known. Raises UnknownSite if there are none."""
    found = []
    for layer in range(lm.n_layers):
        with suppress(UnknownSite):
            lm.site(f"mlp_act@{layer}")
            found.append(layer)
    if not found:
        lm.site("mlp_act@0")  # raises the error that says why
    return found


def counted_dictionaries(
    lm: LanguageModel, saes: Sequence[SAE], plan: Plan | None, hidden: Sequence[Identity] = ()
) -> list[Dictionary]:
    """What a collection counts: SAEs, the identities of their sites (`means`), hidden neurons.

    An SAE may read hidden neurons; their site is counted once.
    """
    of_sites = {identity.site: identity for identity in means(lm, saes, plan)}
    return [*saes, *of_sites.values(), *(each for each in hidden if each.site not in of_sites)]


def means(
    lm: LanguageModel, saes: Sequence[SAE], plan: Plan | None, sites: Iterable[str] = ()
) -> list[Identity]:
    """Identities of the sites of SAEs, and of further sites.

    Their statistics hold the means of the site, from which steering takes the difference of means.
    An identity leaves out the tokens that the SAEs of its site leave out. Where these have no
    limit, or there is no SAE, the limit is 8 times the median norm in a sample of the plan. Hidden
    neurons (`mlp_act`) have no limit, because LAPE counts all tokens: first tokens are no outliers
    there. Nor have they at `mlp_hidden`.

    `plan`: the texts to sample; None where only sizes are needed, and limits are not.
    """
    names = dict.fromkeys([*(sae.site for sae in saes), *sites])
    limits = {name: norm_limit(sae for sae in saes if sae.site == name) for name in names}
    others = [name for name in names if not name.startswith(("mlp_act@", "mlp_hidden@"))]
    if plan is not None and (unlimited := [name for name in others if limits[name] is None]):
        limits |= norm_limits(lm, plan, unlimited)
    found = [lm.site(name) for name in names]
    return [Identity(site.name, site_width(lm, site), max_norm=limits[site.name]) for site in found]


def collect(
    lm: LanguageModel,
    corpus: Corpus,
    saes: Sequence[SAE] = (),
    *,
    out: str | Path,
    gate: bool = False,
    say: Say = quiet,
    world: World = ALONE,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> list[Path]:
    """Collect statistics of SAEs and neurons over a corpus. The same call resumes after a kill.

    Args:
        saes: the SAEs; the identities of their sites are counted too.
        out: directory of the statistics; each other accumulator has a folder there.
        gate: try the SAEs without statistics in `out` on a little text first.
        say: takes progress lines.
        world, stop: see `saefeat.collection.collect`. The first rank tries the SAEs for all.
        options: fields of `saefeat.config.CollectConfig`, such as `max_tokens=1000`,
            `neurons=True` or `with_=("histograms",)`.

    Returns:
        The files of statistics, one per dictionary.

    Raises:
        UserError: there is nothing to collect, an accumulator is unknown, an SAE does not fit the
            model, or `out` holds statistics of something else.
    """
    config, out = CollectConfig(**options), Path(out)
    places = {name: out / ACCUMULATORS[name].FOLDER for name in config.requested}
    if not saes and not config.neurons:
        raise UserError("nothing to collect: give SAEs, or ask for neurons", "saes", "neurons")
    check_ids(counted_dictionaries(lm, saes, None))
    plan = collection_plan(lm, corpus, config)
    dictionaries = counted_dictionaries(lm, saes, plan, collected_neurons(lm, config))
    check_ids(dictionaries)
    make_dir(out)
    if gate and world.leads:
        new = [sae for sae in saes if not stats_file(out, sae.id).exists()]
        check_fit(lm, new, corpus, config.seed, say)
    i, n = map(int, config.shard.split("/"))
    shared = {"shard": (i, n), "say": say, "world": world, "stop": stop}
    return collect_requested(lm, plan, dictionaries, out, config, places, **shared)


def collect_requested(
    lm: LanguageModel,
    plan: Plan,
    dictionaries: Sequence[Dictionary],
    out: Path,
    config: OnRequest,
    places: Mapping[str, Path],
    **options: Any,
) -> list[Path]:
    """Collect the statistics of texts and, if they are asked for, those of random tokens.

    `places` and `options` are those of `saefeat.collection.collect`. Random tokens have the
    statistics that are always collected.
    """
    limit = {"table_examples": config.table_examples}
    paths = collect_stats(lm, plan, dictionaries, out, places=places, **limit, **options)
    if config.random_tokens:
        control = random_plan(lm, plan, config.random_tokens)
        collect_stats(lm, control, dictionaries, out / CONTROL, **options)
    return paths


def chosen_neurons(
    lm: LanguageModel, config: OnRequest, layers: Sequence[int] | None = None
) -> list[Identity]:
    """The neurons of layers at the sites that a configuration asks for; default all known ones."""
    kinds = NEURON_SITES if config.neuron_site == "both" else (config.neuron_site,)
    return [each for kind in kinds for each in neurons(lm, layers, kind)]


def collected_neurons(lm: LanguageModel, config: CollectConfig) -> list[Identity]:
    """The neurons that a collection counts."""
    return chosen_neurons(lm, config) if config.neurons else []


def check_fit(
    lm: LanguageModel, saes: Sequence[SAE], corpus: Corpus, seed: int, say: Say
) -> list[Any]:
    """Try SAEs on a little text, and report how well they fit (see `check_saes`)."""
    reports = check_saes(lm, saes, corpus, seed=seed)
    for report in reports:
        say(describe(report))
    return reports


def collection_plan(lm: LanguageModel, corpus: Corpus, config: CollectConfig) -> Plan:
    """The texts that a collection counts."""
    options = {name: getattr(config, name) for name in ("split", "seed", "max_tokens", "count_bos")}
    return make_plan(corpus, lm, **options)


def rank(
    source: str | Path,
    method: str = DEFAULT_METHOD,
    /,
    *,
    dictionaries: Sequence[str] | None = None,
    **parameters: Any,
) -> Selection:
    """Rank the units of a directory of statistics by a published rule.

    Args:
        source: the directory.
        method: name of the rule, see `saefeat.methods.METHODS`.
        dictionaries: patterns of ids of dictionaries; default those that the method pools.
        parameters: of the rule; default the published ones.

    Raises:
        UserError: an unknown method, parameter or dictionary, or no statistics.
    """
    parameters = check_parameters(method, parameters)
    files = list_stats(Path(source)).values()
    headers = {path: Stats.read_header(path) for path in files}
    paths = {header["dictionary"]["id"]: path for path, header in headers.items()}
    chosen = choose([header["dictionary"] for header in headers.values()], method, dictionaries)
    pooled = [paths[name] for name in chosen]
    others = read_beside(Path(source), method, [headers[path] for path in pooled])
    selection = METHODS[method].rank(StatsFiles(pooled), *others, **parameters)
    selection.header["stats"] = str(Path(source).absolute())  # steering reads means there
    return selection


def read_beside(
    source: Path, method: str, headers: Sequence[Mapping[str, Any]]
) -> list[Sequence[Any]]:
    """What a rule reads beside the counts, for each of its arguments one item per dictionary.

    Raises UserError when it was not collected.
    """
    rule = METHODS[method]
    others = [collected_beside(source, name, headers) for name in rule.accumulators]
    return [*others, control_of(source, headers)] if rule.control else others


def rank_into(out: Path, source: Path, method: str, /, **options: Any) -> Selection:
    """Rank, and write the selection: as CSV if the name of `out` ends so, else as Parquet.

    Args:
        options: `dictionaries`, and parameters of the method.

    Raises as `rank`, and UserError when `out` is no selection or another process writes it.
    """
    return write_selection(out, lambda: rank(source, method, **options))


def write_selection(out: Path, make: Callable[[], Selection]) -> Selection:
    """Make a selection, and write it: as CSV if the name of `out` ends so, else as Parquet.

    Raises UserError, before it is made, when `out` is no selection or another process writes it.
    """
    check_replaceable(out, "selection", lambda path: has_columns(path, COLUMNS))
    with claim_file(out):
        selection = make()
        if out.suffix == ".csv":
            selection.to_csv(out)
        else:
            selection.save(out)
    return selection


def has_columns(path: Path, columns: Sequence[str]) -> bool:
    """Whether a file is a table, CSV or Parquet by its name, of these columns."""
    with suppress(OSError, pa.ArrowInvalid):  # a directory, or a file of another kind
        if path.suffix != ".csv":
            return pq.read_schema(path).names == list(columns)
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().replace('"', "").strip() == ",".join(columns)
    return False
