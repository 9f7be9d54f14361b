"""The stages strung together over a run directory: what the command line and a notebook call."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from saefeat import lid
from saefeat.baselines import FastText, TokenNaiveBayes
from saefeat.collection import collect as collect_stats
from saefeat.corpora import TOKEN_LIMIT, Corpus, Plan, load_corpus, make_plan
from saefeat.dictionaries import SAE, Dictionary, Identity
from saefeat.evaluation import lid_metrics
from saefeat.hooks import capture, site_width
from saefeat.io import SCHEMA, UserError, atomic_path, fingerprint, make_dir, read_json, write_json
from saefeat.lens import neuron_directions, promoted_tokens
from saefeat.methods import check_parameters, choose, get_method
from saefeat.models import LanguageModel, load_model
from saefeat.sae.store import load_sae, load_saes
from saefeat.sae.train import TrainConfig, Trainer, sae_id, train_saes
from saefeat.selection import Selection
from saefeat.stats import Stats

Say = Callable[[str], None]
_PACKAGES = ("saefeat", "torch", "transformers", "numpy", "scikit-learn", "safetensors", "pyarrow")
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


# --------------------------------------------------------------------------- stages on their own


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
    progress: Say = quiet,
) -> list[Path]:
    """Statistics of SAEs and neurons over a corpus, one file a dictionary in `out`. See `collection.collect`."""
    out = Path(out)
    dictionaries = [*(sae.to(lm.device) for sae in saes), *(neurons(lm) if with_neurons else [])]
    if not dictionaries:
        raise UserError("nothing to collect: give SAEs, or ask for neurons")
    plan = make_plan(corpus, lm, split=split, seed=seed, max_tokens=max_tokens)
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
    headers = [Stats.load(path).header["dictionary"] for path in files.values()]
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
    elif site.startswith("mlp_act@"):
        directions = neuron_directions(lm, site, units)
    else:
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


# --------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class RunConfig:
    """What `saefeat run` is asked for. None stands for a default that depends on the model (see `complete`).

    Attributes:
        sites: where SAEs are trained when none are given.
        train_tokens, max_tokens: counted tokens a label for SAE training and for statistics.
        eval_texts: greatest number of texts a label in the evaluation; None: the whole test split.
        neuron_layers: how many of the first layers have their neurons counted (0: none); None: up to the deepest
            site of an SAE.
    """

    model: str
    corpus: str
    saes: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    sites: tuple[str, ...] | None = None
    d_sae: int | None = None
    k: int = 32
    train_tokens: int | None = 8000
    max_tokens: int | None = 8000
    eval_texts: int | None = None
    neuron_layers: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    text_column: str = "text"
    label_column: str = "label"
    id_column: str = "id"


DEMO: dict[str, Any] = {"d_sae": 2560, "train_tokens": 6000, "max_tokens": 7000, "eval_texts": 60}
DEPTHS = (("resid_post", 0.0), ("mlp_out", 0.3), ("resid_post", 0.3))


def default_sites(n_layers: int) -> list[str]:
    """Sites by depth: the first block, whose features part languages best, and both kinds of site at 30 %."""
    sites = [f"{kind}@{min(n_layers - 1, round(depth * (n_layers - 1)))}" for kind, depth in DEPTHS]
    return list(dict.fromkeys(sites))


@dataclass
class Setting:
    """A run with everything loaded that its stages need."""

    config: RunConfig
    out: Path
    lm: LanguageModel
    corpus: Corpus
    sites: list[str]
    training: TrainConfig
    given: list[SAE]
    say: Say

    @property
    def layers(self) -> list[int]:
        """Layers whose neurons are counted."""
        if self.config.neuron_layers is not None:
            return list(range(min(self.config.neuron_layers, self.lm.n_layers)))
        names = [sae.site for sae in self.given] or self.sites
        deepest = max(self.lm.site(name).layer or 0 for name in names)
        return list(range(deepest + 1))

    def saes(self) -> list[SAE]:
        """The SAEs of the run: those given, or those that it has trained."""
        found = self.given or [load_sae(self.out / "saes" / sae_id(site)) for site in self.sites]
        return [sae.to(self.lm.device) for sae in found]


def open_setting(config: RunConfig, out: Path, say: Say = quiet) -> Setting:
    """Check and load everything; raises UserError before any long work."""
    index = out / "run.json"
    request = json.loads(json.dumps(asdict(config)))
    if index.exists() and read_json(index).get("arguments") != request:
        raise UserError(f"{out} holds a run with other arguments; choose another --out or remove it")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; choose another --out")
    if out.is_dir() and not index.exists() and any(not entry.name.startswith(".") for entry in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no run; choose another --out")
    make_dir(next(place for place in (out, *out.absolute().parents) if place.exists()))  # checks, and makes nothing
    corpus = load_corpus(
        config.corpus,
        labels=config.labels,
        text_column=config.text_column,
        label_column=config.label_column,
        id_column=config.id_column,
    )
    lm = load_model(config.model, dtype=config.dtype, device=config.device)
    given = load_saes(list(config.saes), lm) if config.saes else []
    sites = [] if given else list(config.sites or default_sites(lm.n_layers))
    training = _training(config, corpus)
    for site in sites:
        training.width(site_width(lm, lm.site(site)))
    return Setting(config, out, lm, corpus, sites, training, given, say)


def _training(config: RunConfig, corpus: Corpus) -> TrainConfig:
    # Few tokens need many small steps.
    few = config.train_tokens is not None and config.train_tokens * len(corpus.labels) < 1_000_000
    return TrainConfig(k=config.k, d_sae=config.d_sae, seed=config.seed, batch_size=1024 if few else 2048)


def run(config: RunConfig, out: Path, *, say: Say = quiet, dry_run: bool = False) -> Path | None:
    """The whole path into a run directory; run again, it goes on where it stopped. Returns the report's path."""
    threads = set_threads()
    setting = open_setting(config, out, say)
    for line in forecast(setting):
        say(line)
    if dry_run:
        return None
    index = _index(setting, threads)
    with _timed(index, out, "train"):
        if not setting.given:
            plan = make_plan(setting.corpus, setting.lm, seed=config.seed, max_tokens=config.train_tokens, mixed=True)
            train_saes(setting.lm, plan, setting.sites, out / "saes", setting.training, progress=say)
    dictionaries: list[Dictionary] = [*setting.saes(), *neurons(setting.lm, setting.layers)]
    with _timed(index, out, "collect"):
        collect_stats(
            setting.lm,
            _stats_plan(setting),
            dictionaries,
            out / "stats",
            bags=out / "bags",
            examples=out / "examples",
            progress=say,
        )
    with _timed(index, out, "rank"):
        _rank_all(setting)
    with _timed(index, out, "lid fit"):
        fit_heads(setting)
    with _timed(index, out, "lid evaluate"):
        evaluate(setting, None, split="test", out=out / "lid" / "metrics.json", max_texts=config.eval_texts)
    with _timed(index, out, "report"):
        _show(setting)
        from saefeat.report import write_report

        index["complete"] = True
        write_json(out / "run.json", index)
        report = write_report(out)
    return report


def _stats_plan(setting: Setting) -> Plan:
    return make_plan(setting.corpus, setting.lm, seed=setting.config.seed, max_tokens=setting.config.max_tokens)


def _index(setting: Setting, threads: int) -> dict[str, Any]:
    path = setting.out / "run.json"
    old = read_json(path) if path.exists() else {}
    index = {
        "schema": SCHEMA,
        "arguments": json.loads(json.dumps(asdict(setting.config))),
        "versions": _versions(),
        "machine": {"device": setting.lm.device, "threads": threads},
        "seeds": {"seed": setting.config.seed},
        "model": setting.lm.identity,
        "corpus": {
            "name": setting.corpus.name,
            "fingerprint": setting.corpus.fingerprint,
            "labels": list(setting.corpus.labels),
            "examples": len(setting.corpus),
            "skipped": setting.corpus.skipped,
        },
        "sites": setting.sites or [sae.site for sae in setting.given],
        "complete": False,
        "timings": old.get("timings", {}),
    }
    write_json(path, index)
    return index


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree
            continue
    return found


@contextmanager
def _timed(index: dict[str, Any], out: Path, stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds = round(time.monotonic() - start, 1)
    # A stage that was finished before keeps the time that it took then.
    index["timings"][stage] = max(seconds, index["timings"].get(stage, 0.0))
    write_json(out / "run.json", index)


def _rank_all(setting: Setting) -> None:
    for method in ("sae-lape", "lape"):
        if method == "lape" and not setting.layers:
            continue
        rank(setting.out / "stats", method).save(setting.out / "selections" / f"{method}.parquet")


def _show(setting: Setting) -> None:
    selection = Selection.load(setting.out / "selections" / "sae-lape.parquet")
    saes = {sae.id: sae for sae in setting.saes()}
    rows = shown_units(setting.lm, selection, saes, setting.out / "examples")
    add_activations(setting.lm, rows, saes)
    write_json(setting.out / "examples" / "shown.json", rows)


# --------------------------------------------------------------------------- language identification


def open_run(out: Path, say: Say = quiet, *, with_corpus: bool = True) -> Setting:
    """Load a run directory's model, SAEs and (where wanted) corpus from its `run.json`."""
    index = read_json(out / "run.json")
    arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in index["arguments"].items()}
    config = RunConfig(**arguments)
    columns = {k: arguments[k] for k in ("text_column", "label_column", "id_column")}
    labels = index["corpus"]["labels"]
    corpus = (
        load_corpus(config.corpus, labels=config.labels, **columns)
        if with_corpus
        else Corpus([], [], [], tuple(labels), config.corpus)
    )
    if with_corpus and corpus.fingerprint != index["corpus"]["fingerprint"]:
        raise UserError(f"the corpus {config.corpus} has changed since the run in {out}; start a new run")
    lm = load_model(config.model, dtype=config.dtype, device=config.device)
    if lm.fingerprint != index["model"]["fingerprint"]:
        raise UserError(f"the model {config.model} has changed since the run in {out}; start a new run")
    given = load_saes(list(config.saes), lm) if config.saes else []
    training = _training(config, corpus)
    return Setting(config, out, lm, corpus, index["sites"] if not given else [], training, given, say)


def fit_heads(setting: Setting, *, force: bool = False) -> None:
    """Fit every head and baseline of a run and save them in `RUN/lid`."""
    out, labels = setting.out / "lid", setting.corpus.labels
    names = [*lid.HEADS, "token-naive-bayes"] if setting.layers else [
        *(name for name in lid.HEADS if name != "neuron-count"), "token-naive-bayes"]  # fmt: skip
    if not force and all((out / f"{name}.safetensors").exists() for name in names):
        setting.say("lid: the heads are fitted already")
        return
    make_dir(out)
    saes = setting.saes()
    plan = _stats_plan(setting)
    positions = sorted(plan.tokens)
    of = [setting.corpus.of[i] for i in positions]
    texts = [setting.corpus.texts[i] for i in positions]
    token_nb(setting.lm, plan).fit(texts, of).save(out / "token-naive-bayes.safetensors")
    stats = [Stats.load(setting.out / "stats" / f"{sae.id}.safetensors") for sae in saes]
    selection = Selection.load(setting.out / "selections" / "sae-lape.parquet")
    for name in ("sae-count", "sae-min-max"):
        lid.selection_head(name, selection, stats).save(out / f"{name}.safetensors")
    lid.naive_bayes_head(stats, labels).save(out / "naive-bayes.safetensors")
    if setting.layers:
        chosen = Selection.load(setting.out / "selections" / "lape.parquet")
        neuron_stats = [Stats.load(setting.out / "stats" / f"mlp_act@{layer}.safetensors") for layer in setting.layers]
        lid.selection_head("neuron-count", chosen, neuron_stats).save(out / "neuron-count.safetensors")
    whole = lid.features_from_bags(setting.out / "bags", {sae.id: sae.width for sae in saes}, positions)
    short = lid.featurize(setting.lm, saes, [text[: lid.SHORT] for text in texts], progress=setting.say)
    setting.say("lid: fitting the linear head")
    head = lid.linear_head(lid.Features.stack([whole, short]), of + of, labels, seed=setting.config.seed)
    head.save(out / "linear.safetensors")


def token_nb(lm: LanguageModel, plan: Plan | None = None) -> TokenNaiveBayes:
    """The token baseline with the model's own tokenizer, special tokens left out."""
    limit = plan.policy["token_limit"] if plan else TOKEN_LIMIT
    special = lm.special_ids

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[t for t in row if t not in special] for row in lm.tokenize(texts, limit)]

    return TokenNaiveBayes(tokenize, vocabulary=max(len(lm.tokenizer), lm.unembedding().shape[0]))


def load_heads(out: Path) -> dict[str, lid.Head]:
    """The fitted heads of a run; raises UserError when there are none."""
    found = {name: out / "lid" / f"{name}.safetensors" for name in lid.HEADS}
    heads = {name: lid.Head.load(path) for name, path in found.items() if path.exists()}
    if not heads:
        raise UserError(f"{out} has no fitted heads; run `saefeat lid fit --run {out}` first")
    return heads


def head_dictionaries(setting: Setting, heads: dict[str, lid.Head]) -> list[Any]:
    """The dictionaries that heads read: the run's SAEs, and of the neurons only those that are selected."""
    wanted = {name for head in heads.values() for name in head.units}
    saes = [sae for sae in setting.saes() if sae.id in wanted]
    known = {sae.id for sae in saes}
    picked = []
    for name in sorted(wanted - known):
        head = next(h for h in heads.values() if name in h.units)
        width = site_width(setting.lm, setting.lm.site(name))
        picked.append(Identity(name, width, units=torch.from_numpy(head.units[name]).to(setting.lm.device)))
    return [*saes, *picked]


def local_heads(heads: dict[str, lid.Head]) -> dict[str, lid.Head]:
    """Heads on neurons with their units renumbered to the columns of the sliced dictionaries."""
    import numpy as np

    result = dict(heads)
    if "neuron-count" in heads:
        head = heads["neuron-count"]
        units = {name: np.arange(len(members)) for name, members in head.units.items()}
        result["neuron-count"] = lid.Head(head.name, head.labels, units, head.counts)
    return result


def evaluate(
    setting: Setting, other: Corpus | None, *, split: str, out: Path, max_texts: int | None = None
) -> dict[str, Any]:
    """Evaluate every head and baseline, whole texts and by length; write the metrics and the predictions.

    other: another corpus than the run's own; its labels must be among the run's.
    """
    corpus = other or setting.corpus
    unknown = [label for label in corpus.labels if label not in setting.corpus.labels]
    if unknown:
        raise UserError(f"{corpus.name} has the label {unknown[0]}, which the run does not know; use --labels")
    request = {"corpus": corpus.fingerprint, "split": split, "max_texts": max_texts}
    request["run"] = fingerprint(asdict(setting.config))
    before = _measured(out, request["run"])
    if before is not None and before["request"] == request and other is None:
        setting.say("lid: evaluated already")
        return before
    make_dir(out.parent)
    positions = _evaluated(corpus, split, setting.config.seed, max_texts)
    truth = [corpus.of[i] for i in positions]
    labels = list(setting.corpus.labels)
    heads = load_heads(setting.out)
    dictionaries = head_dictionaries(setting, heads)
    local = local_heads(heads)
    fasttext = FastText(labels=labels)
    tokens = TokenNaiveBayes.load(setting.out / "lid" / "token-naive-bayes.safetensors", token_nb(setting.lm).tokenize)
    by_length: dict[str, dict[str, list[str | None]]] = {}
    for length in lid.LENGTHS:
        key = "all" if length is None else str(length)
        texts = [corpus.texts[i][:length] for i in positions]
        setting.say(f"lid: evaluating {len(texts):,} texts, {'whole' if length is None else f'first {length}'}")
        features = lid.featurize(setting.lm, dictionaries, texts, progress=setting.say)
        predicted = {name: head.predict(features) for name, head in local.items()}
        predicted["token-naive-bayes"] = list(tokens.predict(texts))
        predicted["fasttext"] = list(fasttext.predict(texts))
        by_length[key] = predicted
    metrics = lid_metrics(corpus.name, split, labels, truth, by_length, seed=setting.config.seed)
    metrics["request"] = request
    # Beside the run's own metrics others may stand; each has its own predictions.
    name = "predictions" if out.name == "metrics.json" else f"{out.stem}-predictions"
    _write_predictions(out.with_name(f"{name}.parquet"), corpus, positions, by_length)
    write_json(out, metrics)
    return metrics


def _measured(out: Path, run: str) -> dict[str, Any] | None:
    """Metrics of this run that were written before; raises UserError where `out` holds something else."""
    if not out.exists():
        return None
    found = read_json(out)
    request = found.get("request") if isinstance(found, dict) else None
    if not isinstance(request, dict) or request.get("run", run) != run:
        raise UserError(f"{out} exists and holds something else; choose another --out")
    return found


def _evaluated(corpus: Corpus, split: str, seed: int, max_texts: int | None) -> list[int]:
    positions = corpus.positions(split, seed)
    if max_texts is None:
        return positions
    from saefeat.corpora import first_by_hash

    return first_by_hash(corpus, positions, seed, max_texts)


def _write_predictions(
    path: Path, corpus: Corpus, positions: list[int], by_length: dict[str, dict[str, list[str | None]]]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {name: [] for name in ("id", "label", "text", "length", "head", "predicted")}
    for length, heads in by_length.items():
        for head, predicted in heads.items():
            columns["id"] += [corpus.ids[i] for i in positions]
            columns["label"] += [corpus.of[i] for i in positions]
            columns["text"] += [
                corpus.texts[i] if length == "all" else corpus.texts[i][: int(length)] for i in positions
            ]
            columns["length"] += [length] * len(positions)
            columns["head"] += [head] * len(positions)
            columns["predicted"] += predicted
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def predict(setting: Setting, texts: Sequence[str], head: str = "linear") -> list[dict[str, Any]]:
    """One object a text: text, label (None where nothing can be said), score, and the units that decided."""
    heads = load_heads(setting.out)
    if head not in heads:
        raise UserError(f"unknown head {head}; this run has {', '.join(heads)}")
    chosen = {head: heads[head]}
    # A head that was given no units reads nothing and says nothing; the features still need their rows.
    features = lid.featurize(setting.lm, head_dictionaries(setting, chosen) or setting.saes()[:1], texts)
    local = local_heads(chosen)[head]
    labels = local.predict(features)
    scores = local.probabilities(features).max(1)
    evidence = local.evidence(features)
    for row in evidence:
        for item in row:
            if head == "neuron-count":  # back to the neurons' own numbers
                item["unit"] = int(heads[head].units[item["dictionary"]][item["unit"]])
    return [
        {"text": text, "label": label, "score": round(float(s), 6) if label else 0.0, "units": e if label else []}
        for text, label, s, e in zip(texts, labels, scores, evidence, strict=True)
    ]


# --------------------------------------------------------------------------- forecast


def forecast(setting: Setting) -> list[str]:
    """What a run will do and what it will take, from the speed of this machine on a few batches."""
    config, lm = setting.config, setting.lm
    plan = _stats_plan(setting)
    training = make_plan(setting.corpus, lm, seed=config.seed, max_tokens=config.train_tokens)
    sites = setting.sites or [sae.site for sae in setting.given]
    deepest = max([*(lm.site(s).layer or 0 for s in sites), *setting.layers])
    texts = len(_evaluated(setting.corpus, "test", config.seed, config.eval_texts))
    mean = plan.total / max(len(plan.tokens), 1) + len(lm.prefix)
    short = min(mean, 9.0)
    passes = {
        "train": training.total if not setting.given else 0,
        "collect": plan.total,
        "lid fit": int(len(plan.tokens) * short),
        "lid evaluate": int(texts * (2 * short + 1.3 * short + mean)),
    }
    speed = _forward_speed(setting, plan, max(lm.site(s).layer or 0 for s in sites))
    seconds = {stage: tokens / speed for stage, tokens in passes.items()}
    if not setting.given:
        seconds["train"] += _training_seconds(setting, training.total)
    seconds["lid fit"] += 1e-3 * len(plan.tokens) * len(sites)
    width = sum(sae.width for sae in setting.given) or sum(setting.training.width(_d(lm, s)) for s in sites)
    chunk = min(setting.training.chunk_tokens * 1.25, training.total) * sum(_d(lm, s) for s in sites) * 2
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    dense = min(2 * len(plan.tokens) * width * 4, lid._DENSE_BYTES) * 3
    memory = 1.2e9 + weights + max(chunk + width * _d(lm, sites[0]) * 4 * 10, dense)
    k = len(setting.corpus.labels)
    disk = k * width * 44 + plan.total * config.k * len(sites) * 8 + width * _d(lm, sites[0]) * 8 + 6e6
    lines = [
        f"model {lm.name} ({lm.dtype}, {lm.n_layers} layers), corpus {setting.corpus.name}, {k} labels, "
        f"SAEs at {', '.join(sites)} (width {width // len(sites)}, k {config.k}), "
        + (f"neurons of {len(setting.layers)} layers" if setting.layers else "no neurons"),
        f"forecast: {sum(seconds.values()) + 20:,.0f} s ("
        + ", ".join(f"{stage} {s:,.0f}" for stage, s in seconds.items())
        + f"), {memory / 1e9:.1f} GB of memory, {disk / 1e6:,.0f} MB on disk; "
        f"layers read: 0 to {deepest}, {speed:,.0f} tokens/s",
    ]
    if setting.corpus.skipped or plan.skipped:
        counts = ", ".join(f"{reason} {n}" for reason, n in {**setting.corpus.skipped, **plan.skipped}.items())
        lines.append(f"rows skipped or mended: {counts}")
    return lines


def _d(lm: LanguageModel, site: str) -> int:
    return site_width(lm, lm.site(site))


def _forward_speed(setting: Setting, plan: Plan, layer: int) -> float:
    """Counted tokens/s through the model up to a layer, on two batches of the plan after a warm-up."""
    some = sorted(plan.tokens, key=lambda i: len(plan.tokens[i]))
    middle = some[len(some) // 2 :][:24]
    batch = next(plan.batches(setting.lm, middle))
    path = setting.lm.site(f"resid_post@{layer}").path
    inputs = {"input_ids": batch.input_ids.to(setting.lm.device)}
    inputs["attention_mask"] = batch.attention_mask.to(setting.lm.device)
    with capture(setting.lm.model, (path,)) as captured, torch.inference_mode():
        captured.run(setting.lm.model, **inputs, use_cache=False)
        start = time.monotonic()
        captured.run(setting.lm.model, **inputs, use_cache=False)
    return float(batch.counted.sum()) / max(time.monotonic() - start, 1e-6)


def _training_seconds(setting: Setting, tokens: int) -> float:
    """Time of SAE steps, from one step at each site's shape."""
    total = 0.0
    for site in setting.sites:
        width = _d(setting.lm, site)
        with torch.inference_mode():
            trainer = Trainer(width, setting.training, 1, setting.lm.device)
            x = torch.randn(setting.training.batch_size, width, device=setting.lm.device)
            trainer.set_frame(x)
            start = time.monotonic()
            trainer.train_on(x)
            total += time.monotonic() - start
    return total * tokens * setting.training.passes / setting.training.batch_size
