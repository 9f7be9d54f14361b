"""Check values of the configurations of SAEs, and make parts of the record of an SAE."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from saefeat.io import UserError, read_json
from saefeat.words import in_words


def positive(cfg: Mapping[str, Any], key: str, where: Path | str) -> int:
    """A positive whole number of a configuration. Raises UserError for any other value."""
    value = cfg.get(key)
    if type(value) is not int or value < 1:
        raise UserError(
            f"{where}: {key} is missing or not a positive number; add what the SAE was trained with"
        )
    return value


def active(cfg: Mapping[str, Any], d_sae: int, where: Path | str) -> int:
    """The k of a TopK SAE. Raises UserError if it is missing or greater than d_sae."""
    k = positive(cfg, "k", where)
    if k > d_sae:
        raise UserError(f"{where}: k {k} is greater than d_sae {d_sae}; correct it")
    return k


def check_known(key: str, value: Any, known: Collection[str], where: Path | str) -> None:
    """Raise UserError for a value that is not one of the known ones."""
    if value not in known:
        some = in_words(known, "and")
        raise UserError(f"{where}: the {key} {value} cannot be read; only {some} can")


def json_object(value: Any, where: Path) -> dict[str, Any]:
    """The value. Raises UserError if it is not a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is not a JSON object; fetch or save it again")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if there is none."""
    return json_object(read_json(path), path)


def encoding_dtype(value: Any, where: Path | str) -> str:
    """The dtype of the products in `encode`, by name. Raises UserError for an unknown one."""
    if value not in ("float32", "bfloat16"):
        raise UserError(
            f"{where}: an SAE cannot encode with the dtype {value}; only float32 and bfloat16 can"
        )
    return value


def base_record(model: Any, module: Any, revision: Any = None, **tokens: Any) -> dict[str, Any]:
    """The part of the record that all formats have: base model, module that is read, token policy.

    Names that are not strings become None; parts of the policy that are None are left out.
    """
    name, revision = (value if isinstance(value, str) else None for value in (model, revision))
    return {
        "model": {"name": name, "revision": revision},
        "module": module,
        "tokens": {key: value for key, value in tokens.items() if value is not None},
    }


def complement(share: Any) -> Any:
    """1 minus a share; None if the share is not a number."""
    return 1 - share if type(share) in (int, float) else None


def figures(fvu: Any = None, l0: Any = None, dead: Any = None) -> dict[str, float]:
    """Figures of quality for a record, without those that are missing or impossible."""
    given = {"fvu": fvu, "l0": l0, "dead": dead}
    return {
        name: float(value)
        for name, value in given.items()
        if type(value) in (int, float) and 0 <= value < 1e9
    }


def stated(record: Mapping[str, Any]) -> dict[str, float]:
    """The fvu, l0 and dead that the SAE's own files state; for our SAEs those on held-out text."""
    held = record.get("held_out")
    found = {**record, **(held if isinstance(held, dict) else {})}
    return figures(found.get("fvu"), found.get("l0"), found.get("dead"))
