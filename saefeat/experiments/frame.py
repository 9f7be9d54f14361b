"""What all experiments share: they resume, show progress, and write one file of flat rows."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saefeat.artefacts.experiments import Experiment, Plot, Row
from saefeat.io import SCHEMA, UserError, fingerprint, kept_json, make_dir, write_bytes, write_text
from saefeat.progress import track
from saefeat.report.plots import draw_plots
from saefeat.resume import check_replaceable, clear_finished, is_begun, resume
from saefeat.run.opened import OpenRun

_TABLE, _PLOTS = ".csv", ".svg"  # endings of the files beside a result


@dataclass(frozen=True)
class Question:
    """What an experiment asks.

    Attributes:
        name: of the experiment, and of its file in a run.
        title: a few words for readers.
        settings: all that the answer depends on beside the model, the corpus and the SAEs, as JSON.
        plots: how the rows are drawn.
        notes: sentences for the reader, such as what bounds the experiment.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = field(default_factory=list)


class Forecast:
    """The time that an experiment still needs, from the times of its parts.

    The first parts are often of the unedited model, which needs less time. So the mean of the later
    half of the parts counts, and what was said is corrected.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._said: float | None = None  # minutes left by what was said last

    def update(self, seconds: float, left: int) -> float | None:
        """Return the minutes that parts left need, after a part of some seconds.

        None where no part is left, or where what was said last is right within half of it or half a
        minute.
        """
        self._seconds.append(seconds)
        later = self._seconds[len(self._seconds) // 2 :]
        minutes = left * sum(later) / len(later) / 60
        if self._said is not None:
            self._said -= seconds / 60
            if abs(minutes - self._said) <= max(abs(self._said) / 2, 0.5):
                return None
        self._said = minutes
        return minutes if left else None


def carry_out(
    opened: OpenRun,
    out: Path,
    question: Question,
    parts: Sequence[str],
    measure: Callable[[str], list[Row]],
    summarize: Callable[[list[Row]], list[Row]],
    begin: Callable[[], object] = lambda: None,
    average: Callable[[list[Row]], list[Row]] | None = None,
) -> Experiment:
    """Measure an experiment part by part, write it to `out`, and return what is written.

    The same call resumes after a kill: parts that are done are kept. With another number of
    threads, which changes figures in bfloat16, the experiment starts again.

    Args:
        parts: names of different parts, in the order of their rows.
        measure: part -> its rows. All rows have the same columns.
        summarize: all rows -> the rows of the summary.
        begin: what all parts need, done before the first that is left; the forecast leaves it out.
        average: all rows -> the means of which there are plots.

    Raises UserError when `out` is something else than this kind of experiment, or would be replaced
    by the table or the plots beside it, or when these would replace files of others.
    """
    name = question.name
    check_replaceable(
        out, f"result of {name}", lambda path: kept_json(path).get("experiment") == name
    )
    _check_beside(out)
    saes = [sae.identity["fingerprint"] for sae in opened.saes]
    of = [opened.lm.fingerprint, opened.corpus.fingerprint, saes]
    request = fingerprint([*of, name, question.settings, list(parts)])
    if kept_json(out).get("request") == request:
        clear_finished(out, request)
        opened.say(f"{out} is complete already")
        return opened.files.load_experiment(out)
    make_dir(out.parent)
    with resume(out, request, name, opened.lm.threads, opened.say) as checkpoint:
        kept, _ = checkpoint.load() or ({}, {})
        done: dict[str, list[Row]] = kept.get("rows", {})
        left = [part for part in parts if part not in done]
        forecast = Forecast()
        if left:
            begin()
        with track(opened.say, name, len(parts), "parts", done=len(parts) - len(left)) as bar:
            for number, part in enumerate(left):
                begun = time.monotonic()
                done[part] = measure(part)
                checkpoint.save({"rows": done})
                rest = len(left) - number - 1
                if (minutes := forecast.update(time.monotonic() - begun, rest)) is not None:
                    opened.say(f"{name}: about {minutes:.1f} minutes left")
                bar.set_postfix_str(part, refresh=False)
                bar.update()
        rows = [row for part in parts for row in done[part]]
        result: Experiment = {
            "schema": SCHEMA,
            "request": request,
            "threads": opened.lm.threads,
            "experiment": name,
            "title": question.title,
            "corpus": opened.corpus.name,
            "settings": dict(question.settings),
            "rows": rows,
            "summary": summarize(rows),
            "plots": list(question.plots),
            "notes": list(question.notes),
        }
        if average is not None:
            result["means"] = average(rows)
        _write_beside(out, result)
        opened.files.save_experiment(result, out)  # last: it says that the work is done
    return result


def _check_beside(out: Path) -> None:
    """Raise UserError when the files beside `out` would replace it or files of others."""
    beside = [out.with_suffix(suffix) for suffix in (_TABLE, _PLOTS)]
    if out in beside:
        raise UserError(
            f"the result {out} is JSON, and a table and plots are written beside it; choose an "
            f"output that does not end in {out.suffix}",
            "out",
        )
    if not out.exists() and not is_begun(out) and (known := [x for x in beside if x.exists()]):
        raise UserError(
            f"{known[0]} exists, and would be replaced by what is written beside {out}; choose "
            "another output",
            "out",
        )


def _write_beside(out: Path, result: Experiment) -> None:
    """Write the rows as CSV and the plots as SVG, with the name of the result."""
    text = io.StringIO(newline="")
    if result["rows"]:
        writer = csv.DictWriter(text, list(result["rows"][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(result["rows"])
    write_bytes(out.with_suffix(_TABLE), text.getvalue().encode("utf-8", "replace"))
    drawn = draw_plots(result)
    if drawn is not None:
        write_text(out.with_suffix(_PLOTS), drawn)
    else:
        out.with_suffix(_PLOTS).unlink(missing_ok=True)  # of a result that is replaced


def mean_of(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    """The mean of a column over the rows that have a value there; None if no row has one."""
    known = [row[column] for row in rows if row[column] is not None]
    return sum(known) / len(known) if known else None
