"""Fields of configurations: descriptions, bounds, and what many of them share."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from saefeat.schema import STRICT


def about(description: str, default: Any = ..., **options: Any) -> Any:
    """A field with a description, a default (or a required one) and options of `Field`."""
    return Field(default=default, description=description, **options)


DEMO_MODEL = "embedded:gemma-3-270m"
MODEL = f"Hub id, directory, .gguf file, or {DEMO_MODEL}."
DEFAULT_METHOD = "sae-lape"  # the rule that ranks by default
DEFAULT_HEAD = "linear"  # the head that predicts by default
TEXT, LABEL, ID = "text", "label", "id"  # usual names of the columns of a corpus
SEED = about("Seed of all random choices.", 0, ge=0)
BUDGET = about("Counted tokens per label; default all.", None, ge=1)
LABELS = about("Use these labels only.", None)
ACTIVE = about("Active features per token.", 32, ge=1)


@dataclass(frozen=True, config=STRICT)
class Columns:
    """Names of the columns of a corpus."""

    text_column: str = about("Column with the text.", TEXT, kw_only=True)
    label_column: str = about("Column with the label.", LABEL, kw_only=True)
    id_column: str = about("Column with the id that translations share.", ID, kw_only=True)
    prompt_column: str | None = about(
        "Column with a prompt that the model reads before the text; its tokens count nowhere.",
        None,
        kw_only=True,
    )

    @property
    def columns(self) -> dict[str, Any]:
        """The names, as keyword arguments of `load_corpus`."""
        parts = ("text", "label", "id", "prompt")
        return {name: getattr(self, name) for name in (f"{part}_column" for part in parts)}


@dataclass(frozen=True, config=STRICT)
class Inputs(Columns):
    """A model and a corpus, and how they are loaded."""

    model: str = about(MODEL)
    corpus: str = about(
        "embedded:eld, a .jsonl/.csv/.tsv/.parquet file, a directory of LABEL.txt, a "
        "name of `saefeat corpus list`, or hub:OWNER/NAME[:CONFIG]."
    )
    labels: tuple[str, ...] | None = LABELS
    max_tokens: int | None = BUDGET
    seed: int = SEED
    device: str = about("auto, cpu, cuda, cuda:1, ...", "auto")
    dtype: str = about("Of the model: auto, float32, bfloat16, float16.", "auto")


@dataclass(frozen=True, config=STRICT)
class SAEInputs(Inputs):
    """A model, a corpus and SAEs that exist."""

    saes: tuple[str, ...] = about(
        "SAE directory, folder of them, sae-lens release/sae_id, or hub id.", ()
    )
    gate: bool = about("Try given SAEs on a little text first; refuse those that do not fit.", True)


# As many texts as the papers use: 500 of a label and 2,500 of five others (arXiv 2404.02431), 1,000
# inputs (2406.09265), 100 to 1,000 documents (2402.18815).
