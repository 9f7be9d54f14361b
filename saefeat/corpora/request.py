"""Parse the name of a corpus: a recipe, or a data set of the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from saefeat.corpora.columns import PARAMETERS, Columns
from saefeat.corpora.recipes import RECIPES
from saefeat.corpora.sources import Recipe, Source
from saefeat.io import UserError

_HUB_TEXTS = 10_000
_MAX_DIGITS = 12  # of a number of texts; Python refuses to parse thousands of digits


@dataclass(frozen=True)
class Request:
    """A recipe, with the split and the texts per label that are asked for (None: the default)."""

    recipe: Recipe
    split: str | None = None
    max_texts: int | None = None


def find_recipe(name: str, columns: Columns) -> Request | None:
    """Parse `NAME[:SPLIT][#N]` or `hub:REPO[@REVISION][:CONFIG[:SPLIT]][#N]`.

    The text column may be a template over columns. Returns None for a corpus that is neither a
    recipe nor on the hub. Raises UserError if a part of the name cannot be parsed.
    """
    bare, marked, number = name.partition("#")
    first, *parts = bare.split(":")
    if first != "hub" and first not in RECIPES:
        return None
    if marked and (not number.isdecimal() or len(number) > _MAX_DIGITS or not int(number)):
        raise UserError(
            f"{name}: the part after # must be the greatest number of texts per label, such as "
            f"{bare}#500"
        )
    if first == "hub":
        recipe, split = _from_hub(name, parts, columns), None
    else:
        recipe, split = _from_recipe(name, RECIPES[first], parts, columns)
    return Request(recipe, split, int(number) if marked else None)


def _from_recipe(
    name: str, recipe: Recipe, parts: list[str], columns: Columns
) -> tuple[Recipe, str | None]:
    if len(parts) > 1 or any(split not in recipe.splits for split in parts):
        raise UserError(
            f"{name}: {recipe.name} has the splits {', '.join(recipe.splits)}; give {recipe.name} "
            f"or {recipe.name}:{recipe.splits[0]}"
        )
    if columns[1:3] != Columns()[1:3]:
        raise UserError(
            f"the recipe {recipe.name} has its own label and id columns; do not name them",
            *PARAMETERS[1:3],
        )
    if columns.text != Columns().text:
        sources = tuple(replace(source, text=_template(columns.text)) for source in recipe.sources)
        recipe = replace(recipe, sources=sources)
    return recipe, parts[0] if parts else None


def _from_hub(name: str, parts: list[str], columns: Columns) -> Recipe:
    repo, _, revision = (parts[0] if parts else "").partition("@")
    if len(parts) > 3 or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise UserError(
            f"{name} is not a data set of the hub; write hub:OWNER/NAME or hub:OWNER/NAME:CONFIG"
        )
    configuration, split = [*parts[1:], "", ""][:2]
    source = Source(
        name=repo,
        at=repo,
        read="hub",
        files=configuration,
        text=_template(columns.text),
        label=columns.label,
        identity="{" + columns.id + "}",
        splits=(split,),
        max_texts=_HUB_TEXTS,
        revision=revision,
        access_url=f"https://huggingface.co/datasets/{repo}",
    )
    return Recipe(f"hub:{repo}", "a data set of the hub", "", (source,))


def _template(column: str) -> str:
    return column if "{" in column else "{" + column + "}"
