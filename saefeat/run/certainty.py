"""How sure a selection is, from the files of its statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq

from saefeat.certainty import COLUMNS, Certainty, measure_certainty
from saefeat.io import atomic_path
from saefeat.methods import METHODS
from saefeat.resume import check_replaceable, claim_file
from saefeat.run.stages import has_columns
from saefeat.selection import Selection
from saefeat.statistics import ACCUMULATORS, Stats
from saefeat.statistics.by_example import ByExample
from saefeat.statistics.files import StatsFiles, collected_beside, control_of, list_stats


def assess_certainty(selection: Selection, source: str | Path, **options: Any) -> Certainty:
    """Measure how sure the units of a selection are; see `saefeat.certainty.measure_certainty`.

    Args:
        source: the directory of the statistics that the selection was ranked from, with the tables
            `responses`.
        options: `permutations`, `resamples`, `seed` and `say`.

    Raises:
        UserError: the tables were not collected, or a label has too few examples.
    """
    source = Path(source)
    files = {
        Stats.read_header(path)["dictionary"]["id"]: path for path in list_stats(source).values()
    }
    paths = [files[name] for name in selection.dictionaries]
    headers = [Stats.read_header(path) for path in paths]
    responses = collected_beside(source, "responses", headers)
    rule = METHODS[selection.header["method"]]
    tables = None
    if all(issubclass(ACCUMULATORS[name], ByExample) for name in rule.accumulators):
        tables = [collected_beside(source, name, headers) for name in rule.accumulators]
    control = [control_of(source, headers)] if rule.control else []
    return measure_certainty(selection, StatsFiles(paths), responses, tables, control, **options)


def certainty_into(out: Path, selection: Selection, source: Path, **options: Any) -> Certainty:
    """Measure it, and write the table: as CSV if the name of `out` ends so, else as Parquet."""
    check_replaceable(out, "table of certainty", lambda path: has_columns(path, COLUMNS))
    with claim_file(out):
        found = assess_certainty(selection, source, **options)
        with atomic_path(out) as temporary:
            if out.suffix == ".csv":
                pyarrow.csv.write_csv(found.table, temporary)
            else:
                pq.write_table(found.table, temporary)
    return found
