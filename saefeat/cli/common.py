"""What the commands share: options, progress, lists by commas, lines of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from saefeat.io import UserError

Model = Annotated[
    str, typer.Option("--model", help="Hub id, directory, .gguf file, or embedded:gemma-3-270m.")
]
CorpusName = Annotated[
    str,
    typer.Option(
        "--corpus",
        help="embedded:eld, a .jsonl/.csv/.tsv/.parquet file, a "
        "directory of LABEL.txt, a name of `saefeat corpus list`, or "
        "hub:OWNER/NAME[:CONFIG].",
    ),
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="Only these labels, by commas: de,fr,...")
]
Out = Annotated[Path, typer.Option("--out", help="Where to write.")]
Run = Annotated[Path, typer.Option("--run", help="Run directory.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Of the model: auto, float32, bfloat16, float16.")
]
Seed = Annotated[int, typer.Option("--seed", min=0)]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Budget of counted tokens a label.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print the forecast, and stop.")
]
Saes = Annotated[
    list[str] | None,
    typer.Option(
        "--saes",
        help="SAE directory, folder of them, release/sae_id of "
        "sae-lens, or hub id; may be repeated.",
    ),
]
Source = Annotated[
    str | None,
    typer.Option("--source", help="The label that is steered away from; default English."),
]
Gate = Annotated[
    bool, typer.Option("--gate/--no-gate", help="Try given SAEs on a little text; refuse misfits.")
]
TextColumn = Annotated[str, typer.Option("--text-column")]
LabelColumn = Annotated[str, typer.Option("--label-column")]
IdColumn = Annotated[str, typer.Option("--id-column")]


def say(line: str) -> None:
    """Progress on standard error: one line that is rewritten on a terminal, plain lines elsewhere."""
    if sys.stderr.isatty() and line.startswith(
        ("train: ", "collect: ", "lid: ", "steering: ", "matrix: ")
    ):
        width = max(20, _columns() - 1)
        sys.stderr.write("\r\x1b[K" + line[:width])
        say.open = True  # type: ignore[attr-defined]
    else:
        if getattr(say, "open", False):
            sys.stderr.write("\n")
            say.open = False  # type: ignore[attr-defined]
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def by_commas(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        raise UserError("an option that takes names separated by commas is empty")
    return parts


def input_lines(file: Path | None) -> list[str]:
    """Lines of a file, which may be packed, or of standard input. Every line counts, whatever its bytes are."""
    from saefeat.corpora.text import clean_text, decode_anyhow, read_bytes, split_lines

    data = sys.stdin.buffer.read() if file is None or str(file) == "-" else read_bytes(file)
    return [clean_text(line) for line in split_lines(decode_anyhow(data))]
