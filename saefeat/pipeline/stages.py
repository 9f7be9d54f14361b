"""Stages on their own: collect, rank, and what is shown of ranked units."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from saefeat.collection import collect as collect_stats
from saefeat.corpora import TOKEN_LIMIT, Corpus, make_plan
from saefeat.dictionaries import SAE, Identity
from saefeat.hooks import capture, site_width
from saefeat.io import UserError
from saefeat.lens import neuron_directions, promoted_tokens
from saefeat.methods import check_parameters, choose, get_method
from saefeat.models import LanguageModel
from saefeat.selection import Selection
from saefeat.stats import Stats

Say = Callable[[str], None]
SHOWN = 5  # features of each label that are shown with tokens and a passage


def quiet(_: str) -> None:
    """Say nothing."""


def set_threads() -> int:
    """Use every core that this process may use; results are the same for the same number."""
    _keep_memory()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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
    """Identity dictionaries of the hidden neurons (`mlp_act`) of layers, by default of all."""
    chosen = range(lm.n_layers) if layers is None else layers
    sites = [lm.site(f"mlp_act@{layer}") for layer in chosen]
    return [Identity(site.name, site_width(lm, site)) for site in sites]


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
    progress: Say = quiet,
) -> list[Path]:
    """Statistics of SAEs and neurons over a corpus, one file a dictionary in `out`. See `collection.collect`."""
    out = Path(out)
    dictionaries = [*(sae.to(lm.device) for sae in saes), *(neurons(lm) if with_neurons else [])]
    if not dictionaries:
        raise UserError("nothing to collect: give SAEs, or ask for neurons")
    plan = make_plan(corpus, lm, split=split, seed=seed, max_tokens=max_tokens, count_bos=count_bos)
    bags = out / "bags" if with_bags else None
    return collect_stats(lm, plan, dictionaries, out, shard=shard, bags=bags, progress=progress)


def stats_files(source: str | Path) -> dict[str, Path]:
    """Dictionary id -> statistics in a directory; raises UserError when it holds none."""
    path = Path(source)
    found = [path] if path.is_file() else path.glob("*.safetensors") if path.is_dir() else []
    files = sorted(file for file in found if not file.name.startswith("."))  # a killed process leaves such names
    if not files:
        raise UserError(f"{source} holds no statistics; collect them first")
    if path.is_dir() and (path / "partial").exists():
        raise UserError(f"{source} is unfinished; run its collect again first")
    return {file.stem: file for file in files}


class StatsFiles(Sequence[Stats]):
    """Statistics read from disk one at a time, whenever they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return StatsFiles(self.paths[index])
        return Stats.load(self.paths[index])


def rank(
    source: str | Path, method: str = "sae-lape", *, dictionaries: Sequence[str] | None = None, **parameters: Any
) -> Selection:
    """Rank the units of statistics in a directory by a published rule. Raises UserError for unknown names."""
    rule, parameters = get_method(method), check_parameters(method, parameters)
    files = stats_files(source)
    headers = [Stats.read_header(path)["dictionary"] for path in files.values()]
    paths = {header["id"]: path for header, path in zip(headers, files.values(), strict=True)}
    return rule.rank(StatsFiles([paths[name] for name in choose(headers, method, dictionaries)]), **parameters)


def shown_units(
    lm: LanguageModel | None, selection: Selection, saes: dict[str, SAE], examples: Path, n: int = SHOWN
) -> list[dict[str, Any]]:
    """The first n units of each label with the tokens that they promote and the passages on which they fire most.

    `examples`: directory of `<id>.parquet`. What is missing (model, SAE, passages) is left empty.
    """
    rows = selection.head(n).to_pandas().to_dict("records")
    for row in rows:
        row |= {"method": selection.header["method"], "tokens": [], "passages": []}
    by_dictionary: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_dictionary.setdefault(row["dictionary"], []).append(row)
    for name, members in by_dictionary.items():
        units = [row["unit"] for row in members]
        for row, tokens in zip(members, _promoted(lm, name, members[0]["site"], units, saes), strict=True):
            row["tokens"] = tokens
        for row, passages in zip(members, _passages(examples / f"{name}.parquet", units), strict=True):
            row["passages"] = passages
    return rows


def _promoted(
    lm: LanguageModel | None, name: str, site: str, units: list[int], saes: dict[str, SAE]
) -> list[list[str]]:
    if lm is None:
        return [[] for _ in units]
    if name in saes:
        directions = saes[name].directions[units]
    else:
        try:
            directions = neuron_directions(lm, site, units)
        except UserError:  # nothing is known of where these units write
            return [[] for _ in units]
    if directions.shape[1] != lm.unembedding().shape[1]:
        return [[] for _ in units]
    return promoted_tokens(lm, directions)


def _passages(path: Path, units: list[int]) -> list[list[dict[str, Any]]]:
    if not path.exists():
        return [[] for _ in units]
    import pyarrow.parquet as pq

    rows = pq.read_table(path, filters=[("unit", "in", sorted(set(units)))]).to_pylist()
    found: dict[int, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (r["unit"], r["place"])):
        found.setdefault(row["unit"], []).append({key: row[key] for key in ("text", "label", "value")})
    return [found.get(unit, []) for unit in units]


def add_activations(lm: LanguageModel, rows: list[dict[str, Any]], saes: dict[str, SAE], n: int = 1) -> None:
    """Give the first n passages of each row their tokens (`pieces`) and the unit's activation on each."""
    for row in rows:
        sae = saes.get(row["dictionary"])
        for passage in row["passages"][:n] if sae else []:
            ids = lm.tokenize([passage["text"]], TOKEN_LIMIT)[0]
            inputs = torch.tensor([[*lm.prefix, *ids]], device=lm.device)
            path = lm.site(row["site"]).path
            with capture(lm.model, (path,)) as captured, torch.inference_mode():
                x = captured.run(lm.model, input_ids=inputs, use_cache=False)[path][0, len(lm.prefix) :]
                codes = sae.to(lm.device).encode(x) if sae else None
            assert codes is not None and codes.indices is not None
            values = torch.where(codes.indices == row["unit"], codes.values, 0).sum(1)
            passage["pieces"] = pieces(lm, ids)
            passage["activations"] = [round(v, 4) for v in values.tolist()]


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
