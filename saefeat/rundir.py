"""The run directory: where each artefact of a run is, and how it is read and written.

The types of what JSON files hold are in `saefeat.artefacts`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saefeat import schema
from saefeat.artefacts import FitCheck, RunIndex, SAEConfig, ShownUnit
from saefeat.artefacts.comparison import Comparison
from saefeat.artefacts.experiments import Experiment
from saefeat.artefacts.lid import LIDMetrics, is_length
from saefeat.artefacts.steering import (
    PerplexityMatrix,
    SteeringMetrics,
    SteeringSample,
    SteeringSettings,
)
from saefeat.io import UserError, visible
from saefeat.parquet import read_table, write_table
from saefeat.sae.formats.sae_lens import CFG
from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.bags import Bags
from saefeat.statistics.examples import TopExamples
from saefeat.statistics.files import (
    CONTROL,
    control_of,
    list_stats,
    load_stats,
    stats_file,
    stats_header,
    stats_origin,
)
from saefeat.statistics.histograms import Histograms
from saefeat.statistics.responses import Responses

if TYPE_CHECKING:
    import pyarrow as pa


class ComparisonDir:
    """Paths and artefacts of a comparison of rules in the directory `root`; see `RunDir`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.metrics = root / "metrics.json"
        self.selections = root / "selections"

    def is_ours(self) -> bool:
        """Whether the directory is empty or holds a comparison, finished or not."""
        known = {self.metrics.name, self.selections.name, f"{self.metrics.stem}-partial"}
        return {path.name for path in visible(self.root)} <= known

    def selection_file(self, pool: str, method: str) -> Path:
        """What a rule chooses in a pool of dictionaries."""
        return self.selections / pool / f"{method}.parquet"

    def load_metrics(self) -> Comparison:
        return schema.read(Comparison, self.metrics, help="compare again")

    def save_metrics(self, comparison: Mapping[str, Any]) -> None:
        schema.write(Comparison, self.metrics, comparison)


class RunDir:
    """Paths and artefacts of a run in the directory `root`.

    Attributes and `*_file` methods give paths. `load_*` methods read; they raise UserError when a
    file is missing or damaged. `save_*` methods write a file as a whole. What they are given has
    to be what the `load_*` method returns; anything else is a bug of the caller and raises
    ValueError. Nothing is made or read until it is asked for.

    Where `load_*` and `save_*` take a `path`, it is another file of the same kind, anywhere.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.index = root / "run.json"  # arguments, versions, seeds, fingerprints and timings
        self.fit_check = root / "gate.json"  # how well given SAEs fit the model and the corpus
        self.report = root / "report.html"
        self.tables = root / "tables"  # of the report

        self.saes = root / "saes"  # those that the run has trained
        self.stats = root / "stats"
        self.bags = root / Bags.FOLDER
        self.responses = root / Responses.FOLDER  # of units to examples
        self.histograms = root / Histograms.FOLDER  # of the firing values of units
        self.examples = root / TopExamples.FOLDER  # highest-activating passages
        self.shown = self.examples / "shown.json"  # what the report shows of ranked units
        self.selections = root / "selections"

        self.lid = root / "lid"
        self.heads = self.lid / "heads"  # claimed by the process that fits them
        self.lid_metrics = self.lid / "metrics.json"

        self.steering = root / "steering"
        self.steering_stats = self.steering / "stats"  # of sites that only steering reads
        self.steering_metrics = self.steering / "metrics.json"
        self.settings = self.steering / "settings.json"  # of each label, for `steer generate`
        self.samples = self.steering / "samples.jsonl"
        self.matrix = self.steering / "matrix.json"

        self.comparison = ComparisonDir(root / "compare")  # of rules
        self.experiments = root / "experiments"

    # ----------------------------------------------------------------------- the run

    def load_index(self) -> RunIndex:
        if not self.index.exists():
            raise UserError(
                f"{self.root} is not a run directory: it has no {self.index.name}; give the "
                "directory of a run"
            )
        return schema.read(RunIndex, self.index, help="start a new run")

    def save_index(self, index: Mapping[str, Any]) -> None:
        schema.write(RunIndex, self.index, index)

    def load_fit_check(self) -> FitCheck:
        return schema.read(FitCheck, self.fit_check)

    def save_fit_check(self, found: Mapping[str, Any]) -> None:
        schema.write(FitCheck, self.fit_check, found)

    # ----------------------------------------------------------------------- SAEs, statistics

    def sae(self, dictionary: str) -> Path:
        """Directory of an SAE that the run has trained."""
        return self.saes / dictionary

    def trained_saes(self) -> list[str]:
        """Ids of the SAEs that the run has trained."""
        return [path.parent.name for path in visible(self.saes, f"*/{CFG}")]

    def load_sae_config(self, dictionary: str) -> SAEConfig:
        return schema.read(SAEConfig, self.sae(dictionary) / CFG)

    def stats_file(self, dictionary: str) -> Path:
        return stats_file(self.stats, dictionary)

    def collected(self) -> list[str]:
        """Ids of the dictionaries whose statistics are there."""
        return [path.stem for path in visible(self.stats, f"*{Stats.SUFFIX}")]

    def has_stats(self, dictionary: str) -> bool:
        """Whether `load_stats` finds statistics of a dictionary."""
        return self._stats_place(dictionary) is not None

    def load_stats(self, dictionary: str) -> Stats:
        """Statistics of a dictionary, also those that only steering reads."""
        return load_stats(self._stats_place(dictionary) or self.stats, dictionary)

    def load_control(self, dictionary: str) -> Stats | None:
        """Statistics of a dictionary on random tokens; None where the run has not collected them.

        Raises UserError where they are unfinished, or of another model or dictionary.
        """
        if not stats_file(self.stats / CONTROL, dictionary).is_file():
            return None
        return control_of(self.stats, [stats_header(self.stats, dictionary)])[0]

    def stats_origins(
        self, dictionaries: Iterable[str], *, control: bool = False
    ) -> list[dict[str, Any]]:
        """What the statistics of dictionaries were collected from; see `statistics.files`.

        `control`: those on random tokens too, where there are any.
        """
        names, controls = list(dictionaries), self.stats / CONTROL
        found = [stats_origin(self._stats_place(name) or self.stats, name) for name in names]
        known = [name for name in names if control and stats_file(controls, name).is_file()]
        return found + [stats_origin(controls, name) for name in known]

    def take_steering_stats(self, directory: Path) -> None:
        """Move the statistics of a finished collection to those that only steering reads."""
        for path in list_stats(directory).values():
            path.replace(self.steering_stats / path.name)
        shutil.rmtree(directory)

    def _stats_place(self, dictionary: str) -> Path | None:
        places = (self.stats, self.steering_stats)
        return next((p for p in places if stats_file(p, dictionary).is_file()), None)

    # ----------------------------------------------------------------------- units, selections

    def load_shown(self) -> list[ShownUnit]:
        return schema.read(list[ShownUnit], self.shown)

    def save_shown(self, units: Sequence[Mapping[str, Any]]) -> None:
        schema.write(list[ShownUnit], self.shown, units)

    def selected_methods(self) -> list[str]:
        """Names of the methods whose selections are there."""
        return [path.stem for path in visible(self.selections, "*.parquet")]

    def selection_file(self, method: str) -> Path:
        return self.selections / f"{method}.parquet"

    def load_selection(self, method: str) -> Selection:
        return Selection.load(self.selection_file(method))

    def save_selection(self, method: str, selection: Selection) -> None:
        selection.save(self.selection_file(method))

    # ----------------------------------------------------------------------- identification

    def head_file(self, name: str) -> Path:
        """A fitted head or baseline."""
        return self.lid / f"{name}.safetensors"

    def load_lid_metrics(self, path: Path | None = None) -> LIDMetrics:
        return schema.read(LIDMetrics, path or self.lid_metrics, help="evaluate again")

    def save_lid_metrics(self, metrics: Mapping[str, Any], path: Path | None = None) -> None:
        schema.write(LIDMetrics, path or self.lid_metrics, metrics)

    def predictions_file(self, metrics: Path | None = None) -> Path:
        """The predictions behind metrics; they lie beside them."""
        metrics = metrics or self.lid_metrics
        prefix = "" if metrics.name == self.lid_metrics.name else f"{metrics.stem}-"
        return metrics.with_name(f"{prefix}predictions.parquet")

    def load_predictions(
        self, heads: Sequence[str], metrics: Path | None = None
    ) -> dict[str, pa.Table]:
        """Predictions of those of the heads that are there, by length.

        Returns:
            "all", or a number of characters -> a table with a row per text and the columns id,
            label, text (cut to the length), and one column per head, with gaps where the head said
            nothing.
        """
        import pyarrow.compute as pc

        path = self.predictions_file(metrics)
        fields = _prediction_fields(required=True)
        table = read_table(path, fields, [("head", "in", list(heads))])
        found: dict[str, pa.Table] = {}
        for length in sorted(table["length"].unique().to_pylist()):
            if not is_length(length):
                raise UserError(f"{path} is damaged (the length {length!r}); evaluate again")
            here = table.filter(pc.field("length") == length)
            of = {head: here.filter(pc.field("head") == head) for head in heads}
            found[length] = _side_by_side({k: v for k, v in of.items() if v.num_rows}, path)
        return found

    def save_predictions(
        self, columns: Mapping[str, Sequence[str | None]], metrics: Path | None = None
    ) -> None:
        """Write a row per length, head and text: id, label, text, length, head, predicted."""
        import pyarrow as pa

        table = pa.table(dict(columns), schema=_prediction_fields(required=False))
        write_table(self.predictions_file(metrics), table)

    # ----------------------------------------------------------------------- steering

    def load_steering_metrics(self, path: Path | None = None) -> SteeringMetrics:
        return schema.read(SteeringMetrics, path or self.steering_metrics, help="sweep again")

    def save_steering_metrics(self, metrics: Mapping[str, Any], path: Path | None = None) -> None:
        schema.write(SteeringMetrics, path or self.steering_metrics, metrics)

    def load_settings(self) -> SteeringSettings:
        return schema.read(SteeringSettings, self.settings, help="sweep again")

    def save_settings(self, settings: Mapping[str, Any]) -> None:
        schema.write(SteeringSettings, self.settings, settings)

    def load_samples(self) -> list[SteeringSample]:
        return schema.read_lines(SteeringSample, self.samples)

    def save_samples(self, samples: Iterable[Mapping[str, Any]]) -> None:
        schema.write_lines(SteeringSample, self.samples, samples)

    def load_matrix(self, path: Path | None = None) -> PerplexityMatrix:
        return schema.read(PerplexityMatrix, path or self.matrix, help="measure it again")

    def save_matrix(self, matrix: Mapping[str, Any], path: Path | None = None) -> None:
        schema.write(PerplexityMatrix, path or self.matrix, matrix)

    # ----------------------------------------------------------------------- experiments

    def experiment_file(self, name: str) -> Path:
        """What an experiment has measured."""
        return self.experiments / f"{name}.json"

    def load_experiments(self) -> dict[str, Experiment]:
        """What all experiments of the run have measured, by the names of their files."""
        paths = visible(self.experiments, "*.json")
        return {path.stem: self.load_experiment(path) for path in paths}

    def load_experiment(self, path: Path) -> Experiment:
        return schema.read(Experiment, path, help="run the experiment again")

    def save_experiment(self, experiment: Mapping[str, Any], path: Path) -> None:
        schema.write(Experiment, path, experiment)


def _prediction_fields(*, required: bool) -> pa.Schema:
    """Columns of predictions. `required`: gaps are an error, but for what heads did not say."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field(name, pa.string(), nullable=not required or name == "predicted")
            for name in ("id", "label", "text", "length", "head", "predicted")
        ]
    )


def _side_by_side(tables: Mapping[str, pa.Table], path: Path) -> pa.Table:
    """Predictions of heads on the same texts, as one table with a column per head."""
    keys = ["id", "label", "text"]
    texts = next(iter(tables.values())).select(keys)
    if not all(table.select(keys).equals(texts) for table in tables.values()):
        raise UserError(f"{path} is damaged (its heads saw different texts); evaluate again")
    for head, table in tables.items():
        texts = texts.append_column(head, table["predicted"])
    return texts


def examples_of(stats: Path) -> Path:
    """Directory of the examples of statistics: inside them, or in a run beside them."""
    inside = stats / TopExamples.FOLDER
    return inside if inside.is_dir() else RunDir(stats.parent).examples


def sae_of(entry: Mapping[str, Any], stats: Path) -> Path:
    """Directory of an SAE, by its header in statistics. One that a run trained moves with it."""
    path, trained = Path(entry.get("path") or ""), RunDir(stats.parent).sae(entry["id"])
    recorded = entry.get("path") and (path.exists() or not trained.is_dir())
    return path if recorded else trained
