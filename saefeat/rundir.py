"""The run directory: every path of a run, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saefeat.selection import Selection
from saefeat.statistics import Stats
from saefeat.statistics.files import load_stats


@dataclass(frozen=True)
class RunDir:
    """Paths and artefacts of a run in the directory `root`. Nothing is made or read at first.

    `*_file` methods and properties give paths; `load_*` methods read.
    """

    root: Path

    @property
    def index(self) -> Path:
        """What the run was asked for, with versions, seeds, fingerprints and timings."""
        return self.root / "run.json"

    @property
    def fit_check(self) -> Path:
        """How well given SAEs fit the model and the corpus."""
        return self.root / "gate.json"

    @property
    def saes(self) -> Path:
        return self.root / "saes"

    def sae(self, dictionary: str) -> Path:
        """Directory of an SAE that the run has trained."""
        return self.saes / dictionary

    @property
    def stats(self) -> Path:
        return self.root / "stats"

    def stats_file(self, dictionary: str) -> Path:
        return self.stats / f"{dictionary}.safetensors"

    def load_stats(self, dictionary: str) -> Stats:
        """Raises UserError when they are missing or damaged."""
        return load_stats(self.stats, dictionary)

    @property
    def bags(self) -> Path:
        return self.root / "bags"

    @property
    def examples(self) -> Path:
        return self.root / "examples"

    def examples_file(self, dictionary: str) -> Path:
        """Highest-activating passages of the units of a dictionary."""
        return self.examples / f"{dictionary}.parquet"

    @property
    def shown(self) -> Path:
        """What the report shows of ranked units."""
        return self.examples / "shown.json"

    @property
    def selections(self) -> Path:
        return self.root / "selections"

    def selection_file(self, method: str) -> Path:
        return self.selections / f"{method}.parquet"

    def load_selection(self, method: str) -> Selection:
        """Raises UserError when it is missing or damaged."""
        return Selection.load(self.selection_file(method))

    @property
    def lid(self) -> Path:
        return self.root / "lid"

    def head_file(self, name: str) -> Path:
        """A fitted head or baseline."""
        return self.lid / f"{name}.safetensors"

    @property
    def lid_metrics(self) -> Path:
        return self.lid / "metrics.json"

    @property
    def predictions(self) -> Path:
        return self.lid / "predictions.parquet"

    @property
    def steering(self) -> Path:
        return self.root / "steering"

    @property
    def steering_metrics(self) -> Path:
        return self.steering / "metrics.json"

    @property
    def steering_stats(self) -> Path:
        """Statistics that only steering reads: those of further sites."""
        return self.steering / "stats"

    @property
    def settings(self) -> Path:
        """The setting of each label that `steer generate` reads."""
        return self.steering / "settings.json"

    @property
    def samples(self) -> Path:
        return self.steering / "samples.jsonl"

    @property
    def matrix(self) -> Path:
        return self.steering / "matrix.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def tables(self) -> Path:
        return self.root / "tables"
