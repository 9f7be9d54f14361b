"""SAEs for other libraries: directories that they open, with a model card; single directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saefeat.dictionaries import SAE
from saefeat.export import card
from saefeat.export.source import Exportable, open_source
from saefeat.io import (
    SCHEMA,
    UserError,
    atomic_path,
    kept_json,
    make_dir,
    read_header,
    replacing,
    save_tensors,
    write_json,
    write_text,
)
from saefeat.resume import check_replaceable
from saefeat.sae.writers import WRITERS, Writer

__all__ = ["export_direction", "export_saes", "open_source"]
CARD, MANIFEST = "README.md", "export.json"


def export_saes(source: str, form: str, out: Path) -> list[Path]:
    """Write one directory per SAE, with README.md (a model card) and export.json beside them.

    Everything appears at once. An earlier export in `out` is replaced.

    Args:
        source: a run directory, or anything that `load_saes` takes.
        form: name of a format of `saefeat.sae.writers.WRITERS`.

    Returns the directories of the SAEs. Raises UserError for an unknown format or one that cannot
    hold an SAE, and for an `out` that is not an earlier export.
    """
    writer = WRITERS[form]
    check_replaceable(out, "export", _is_export)
    given = open_source(source)
    folders = _name_folders(given, writer)
    hookpoints = {sae.id: given.hookpoint(sae) for sae in given.saes}
    with replacing(out) as temporary:
        for folder, sae in folders.items():
            (temporary / folder).mkdir()
            writer.write(sae, temporary / folder)
        if writer.summary_file:
            write_json(temporary / writer.summary_file, writer.summary(given.model, folders))
        write_text(temporary / CARD, card.render(given, form, folders, hookpoints))
        saes = {
            folder: {"id": sae.id, "fingerprint": sae.identity["fingerprint"]}
            for folder, sae in folders.items()
        }
        write_json(temporary / MANIFEST, {"schema": SCHEMA, "format": form, "saes": saes})
    return [out / folder for folder in folders]


def _name_folders(given: Exportable, writer: Writer) -> dict[str, SAE]:
    """Directory -> SAE. Raises UserError for an SAE that cannot be written."""
    found: dict[str, SAE] = {}
    for sae in given.saes:
        given.check(sae)
        writer.check(sae)
        folder = given.hookpoint(sae) if writer.by_hookpoint else sae.id
        if folder is None:
            raise UserError(
                f"the files of {sae.id} name no module of a model, which {writer.library} needs; "
                "run saefeat with the SAE and export the run"
            )
        if folder in found:
            raise UserError(
                f"{found[folder].id} and {sae.id} both read {folder}, where {writer.library} has "
                "one SAE; export them separately"
            )
        found[folder] = sae
    return found


def _is_export(out: Path) -> bool:
    """Whether a directory is empty or an earlier export. Raises UserError if it holds more."""
    if not out.is_dir():
        return False
    manifest = kept_json(out / MANIFEST)
    ours: set[str] = set()
    if manifest.get("format") in WRITERS and isinstance(manifest.get("saes"), dict):
        summaries = {writer.summary_file for writer in WRITERS.values()}
        ours = {CARD, MANIFEST, *summaries, *manifest["saes"]}
    others = sorted({entry.name for entry in out.iterdir()} - ours)
    if others:
        raise UserError(f"it holds {others[0]}")
    return True


def export_direction(source: str, feature: str, out: Path) -> dict[str, Any]:
    """Write a unit's decoder direction, float32 [d_in] in raw units, as `.safetensors` or `.npy`.

    Args:
        source: a run directory, or anything that `load_saes` takes.
        feature: `SAE:UNIT`, an SAE's id and the number of a unit.

    Returns what the direction is of: sae, site, module, model, unit, norm and normalize. It is the
    header of the `.safetensors` file too, whose tensor is `direction`. Unless `normalize` is
    "none", the direction has to be scaled by `SAE.spread` of the vector that it is added to.

    Raises UserError for an unknown SAE or unit, another suffix, and a file of something else.
    """
    if out.suffix not in (".safetensors", ".npy"):
        raise UserError(f"{out} should end in .safetensors or .npy", "out")
    check_replaceable(out, "exported direction", _is_direction)
    given = open_source(source)
    sae, unit = _find_unit(given, feature, source)
    given.check(sae)
    direction = sae.directions[unit].float().clone()
    about = {
        "schema": SCHEMA,
        "kind": "direction",
        "sae": sae.id,
        "site": sae.site,
        "module": sae.record.get("module"),
        "model": sae.record.get("model") or {},
        "unit": unit,
        "norm": float(direction.norm()),
        "normalize": sae.normalize,
    }
    make_dir(out.absolute().parent)
    if out.suffix == ".safetensors":
        save_tensors(out, {"direction": direction}, about)
    else:
        import numpy as np

        with atomic_path(out) as temporary:
            np.save(temporary, direction.numpy())
    return about


def _find_unit(given: Exportable, feature: str, source: str) -> tuple[SAE, int]:
    name, colon, number = feature.rpartition(":")
    saes = {sae.id: sae for sae in given.saes}
    if not colon or not number.isdecimal() or len(number) > 12:
        form = f"SAE:UNIT, such as {next(iter(saes))}:0"
        raise UserError(f"the feature {feature} should be {form}", "feature")
    if name not in saes:
        raise UserError(f"{source} has no SAE {name}; it has {', '.join(saes)}", "feature")
    width = saes[name].width
    if int(number) >= width:
        raise UserError(f"{name} has the units 0 to {width - 1}, and no {int(number)}", "feature")
    return saes[name], int(number)


def _is_direction(out: Path) -> bool:
    """Whether a file is an exported direction. A .npy does not say it, so none is replaced."""
    return out.suffix == ".safetensors" and read_header(out).get("kind") == "direction"
