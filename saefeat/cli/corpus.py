"""`saefeat corpus`: which corpora have a name, and what is in one."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Annotated, Any

import typer

from saefeat.cli.common import IdColumn, LabelColumn, Labels, Seed, TextColumn, by_commas, say

app = typer.Typer(no_args_is_help=True, help="Corpora that have a name, and what is in one.")
_EXAMPLE = 60  # characters


@app.command("list")
def corpus_list() -> None:
    """Recipes by name: what it is, its labels and splits, where it lies and at which revision, its licence."""
    from saefeat.corpora.recipes import RECIPES

    for recipe in RECIPES.values():
        gates = [source.access_url for source in recipe.sources if source.access_url]
        splits = dict.fromkeys(split for source in recipe.sources for split in source.splits)
        most = sorted({source.max_texts for source in recipe.sources})
        typer.echo(f"{recipe.name}: {recipe.about}")
        typer.echo(f"    labels   {' '.join(recipe.labels)}")
        typer.echo(
            f"    splits   {', '.join(splits)}; {' or '.join(f'{n:,}' for n in most)} texts a label"
        )
        for at in dict.fromkeys(source.at for source in recipe.sources):
            typer.echo(f"    from     {at}")
        typer.echo(f"    licence  {recipe.licence}{f'; gated, see {gates[0]}' if gates else ''}")
    typer.echo("NAME:SPLIT takes another split than the first, NAME#500 at most 500 texts a label.")
    typer.echo(
        "--labels takes the source's own codes too. Any other data set of the hub: hub:OWNER/NAME[:CONFIG]."
    )


@app.command("show")
def corpus_show(
    corpus: Annotated[str, typer.Argument(help="As for --corpus.")],
    labels: Labels = None,
    seed: Seed = 0,
    text_column: TextColumn = "text",
    label_column: LabelColumn = "label",
    id_column: IdColumn = "id",
) -> None:
    """Of each label: texts, how they split, the median of their characters, and one of them."""
    from saefeat.corpora import load_corpus

    found = load_corpus(
        corpus,
        labels=by_commas(labels),
        min_labels=1,
        text_column=text_column,
        label_column=label_column,
        id_column=id_column,
        say=say,
    )
    _print(found, seed)


def _print(corpus: Any, seed: int) -> None:
    test = Counter(corpus.of[i] for i in corpus.positions("test", seed))
    texts: dict[str, list[str]] = {label: [] for label in corpus.labels}
    for text, label in zip(corpus.texts, corpus.of, strict=True):
        texts[label].append(text)
    rows: list[tuple[str, ...]] = [("label", "texts", "train", "test", "characters", "example")]
    for label, own in texts.items():
        sizes = (len(own), len(own) - test[label], test[label], round(median(map(len, own))))
        rows.append((_cut(label), *(f"{size:,}" for size in sizes), _cut(own[0])))
    whole = (len(corpus), len(corpus) - test.total(), test.total())
    rows.append(
        ("all", *(f"{size:,}" for size in whole), f"{round(median(map(len, corpus.texts))):,}", "")
    )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    typer.echo(f"{corpus.name}: {len(corpus.labels)} label{'s' * (len(corpus.labels) > 1)}")
    for label, *numbers, example in rows:
        aligned = "".join(
            f"{number:>{width + 2}}" for number, width in zip(numbers, widths[1:], strict=True)
        )
        typer.echo(f"{label:{widths[0]}}{aligned}  {example}".rstrip())
    if corpus.skipped:
        typer.echo(
            "rows skipped or mended: "
            + ", ".join(f"{reason} {n:,}" for reason, n in corpus.skipped.items())
        )


def _cut(text: str) -> str:
    """The beginning of a text on one line, without what would move a terminal's cursor."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= _EXAMPLE else line[: _EXAMPLE - 1] + "…"
