"""`saefeat corpus`: list the named corpora, and show the content of a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median
from typing import Annotated, Any

import typer

from saefeat.cli.common import Fields, print_table, say, with_options
from saefeat.config import Inputs

app = typer.Typer(no_args_is_help=True, help="Show the corpora that have a name, or one corpus.")
_EXAMPLE = 60  # characters
_HINTS = """\
NAME:SPLIT takes another split than the first; NAME#500 takes 500 texts per label.
--labels takes the source's own codes too. Any other data set of the hub: \
hub:OWNER/NAME[:CONFIG]."""
_SHOWN = Fields(
    *("labels", "seed", "text_column", "label_column", "id_column", "prompt_column"),
    preset={"model": "", "corpus": ""},
)


@app.command("list")
def corpus_list() -> None:
    """List recipes: labels, splits, where the data is and at which revision, and its licence."""
    from saefeat.corpora.recipes import RECIPES

    for recipe in RECIPES.values():
        gates = [source.access_url for source in recipe.sources if source.access_url]
        most = sorted({source.max_texts for source in recipe.sources})
        limit = " or ".join(f"{n:,}" for n in most)
        typer.echo(f"{recipe.name}: {recipe.about}")
        typer.echo(f"    labels   {' '.join(recipe.labels)}")
        typer.echo(f"    splits   {', '.join(recipe.splits)}; {limit} texts per label")
        for place in dict.fromkeys(source.at for source in recipe.sources):
            typer.echo(f"    from     {place}")
        typer.echo(f"    licence  {recipe.licence}{f'; gated, see {gates[0]}' if gates else ''}")
    typer.echo(_HINTS)


@app.command("show")
@with_options
def corpus_show(
    corpus: Annotated[str, typer.Argument(help="As for --corpus.")],
    config: Annotated[Inputs, _SHOWN],
) -> None:
    """Show for each label: texts, how they split, their median length, and one of them."""
    from saefeat.corpora import load_corpus
    from saefeat.corpora.corpus import describe_skipped

    found = load_corpus(corpus, labels=config.labels, min_labels=1, say=say, **config.columns)
    typer.echo(f"{found.name}: {len(found.labels)} label{'s' * (len(found.labels) > 1)}")
    print_table(list(_rows(found, config.seed)), right=range(1, 5))
    for line in describe_skipped(found):
        typer.echo(line)


def _rows(corpus: Any, seed: int) -> Iterator[list[str]]:
    test = Counter(corpus.of[i] for i in corpus.positions("test", seed))
    texts: dict[str, list[str]] = {label: [] for label in corpus.labels}
    for text, label in zip(corpus.texts, corpus.of, strict=True):
        texts[label].append(text)
    yield ["label", "texts", "train", "test", "characters", "example"]
    for label, its in texts.items():
        yield [_first_line(label), *_sizes(its, test[label]), _first_line(its[0])]
    yield ["all", *_sizes(corpus.texts, test.total())]


def _sizes(texts: list[str], test: int) -> list[str]:
    sizes = (len(texts), len(texts) - test, test, round(median(map(len, texts))))
    return [f"{size:,}" for size in sizes]


def _first_line(text: str) -> str:
    """The beginning of a text, without characters that move a terminal's cursor."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return line if len(line) <= _EXAMPLE else line[: _EXAMPLE - 1] + "…"
