"""Load models and tokenizers from the hub, a directory, a GGUF file, or the embedded assets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from saefeat.assets import ASSETS, fetch
from saefeat.io import UserError, first_line, user_path
from saefeat.models.conversion import check_complete, convert, silence_transformers
from saefeat.models.language_model import LanguageModel, wrap
from saefeat.progress import Say, quiet, waiting

EMBEDDED = {f"embedded:{asset.name}": asset for asset in ASSETS.values() if asset.hub}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What transformers raises for bad models.
_LOADING = (
    *(OSError, ValueError, KeyError, TypeError, ArithmeticError, RuntimeError, ImportError),
    StrictDataclassError,
)
# Names of errors that clients of the hub raise without a network; each has its own classes.
_UNREACHABLE = ("ConnectError", "ConnectionError", "ConnectTimeout", "OfflineModeIsEnabled")
_HUB_SECONDS = 5  # to wait for the hub's first answer


# --------------------------------------------------------------------------- device and dtype


def native_bf16(device: str) -> bool:
    """Return whether bfloat16 matrix products are faster than float32 ones on a device."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def choose_device(device: str) -> str:
    """Return the device; for `auto` a GPU if there is one, else the CPU.

    Raises UserError for a device that cannot be used.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # fails on `meta` too, which keeps no values
    except (RuntimeError, AssertionError) as error:
        message = f"the device {device} cannot be used here ({first_line(error)})"
        raise UserError(message, "device") from error
    return device


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """Return a dtype by name, see `load_model`. Raises UserError for an unknown one."""
    if dtype == "auto":
        return torch.bfloat16 if native_bf16(device) else torch.float32
    if dtype not in DTYPES:
        raise UserError(f"the dtype {dtype} is unknown; use auto, {', '.join(DTYPES)}", "dtype")
    return DTYPES[dtype]


# --------------------------------------------------------------------------- loading


def load_model(
    name: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    say: Say = quiet,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: hub id, directory, `.gguf` file, or embedded name (`embedded:gemma-3-270m`).
        dtype: of the weights: float32, bfloat16, float16; `auto`: bfloat16 if it is faster on this
            device, else float32.
        device: cpu, cuda, cuda:1, ...; `auto`: a GPU if there is one.
        revision: branch, tag or commit of the hub.
        say: takes a line before a model is fetched or converted, and the progress of that.

    Raises:
        UserError: there is no such model, device or dtype, the hub cannot be reached, or the files
            are damaged or incomplete.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name, chosen = str(name), choose_device(device)
    torch_dtype = choose_dtype(dtype, chosen)
    with _located(name, say) as (place, offline):
        where: dict[str, Any] = {"revision": revision, "local_files_only": offline}
        tokenizer = AutoTokenizer.from_pretrained(place, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, **where, dtype=torch_dtype, output_loading_info=True
        )
    model, info = loaded
    check_complete(f"the model {name}", info)
    commit = revision or getattr(model.config, "_commit_hash", None)
    return wrap(model.to(chosen).eval(), tokenizer, name, commit)


def load_skeleton(name: str | Path) -> nn.Module:
    """Load the modules of a model without their weights, on the `meta` device.

    `name` and the errors are those of `load_model`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with _located(str(name), quiet) as (place, offline):
        config = AutoConfig.from_pretrained(place, local_files_only=offline)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).eval()


@contextmanager
def _located(name: str, say: Say) -> Iterator[tuple[str, bool]]:
    """Yield what transformers loads (see `_find_model`), and whether only the hub's cache is used.

    Raises UserError if the block fails to load it.
    """
    from safetensors import SafetensorError

    place = _find_model(name, say)
    silence_transformers()
    unreachable = _unreachable(place)
    local = unreachable or os.path.isdir(place)
    try:
        with nullcontext() if local else waiting():  # it may fetch the files, in an unknown time
            yield place, bool(unreachable)
    except (*_LOADING, SafetensorError) as error:
        if unreachable and "couldn't connect" in str(error):
            raise UserError(
                f"the model {name} is neither a directory here nor complete in the hub's cache, "
                f"and the hub cannot be reached ({unreachable}); check the name and the network, "
                f"or fetch the model where there is a network (hf download {name})"
            ) from error
        raise UserError(f"cannot load the model {name}: {first_line(error)}") from error


def _find_model(name: str, say: Say) -> str:
    """Return what transformers loads: a directory that holds the model, or a hub id."""
    if name.startswith("embedded:"):
        if name not in EMBEDDED:
            raise UserError(f"unknown embedded model {name}; there are {', '.join(EMBEDDED)}")
        asset = EMBEDDED[name].name
        return str(convert(fetch(asset, say=say), asset, say))
    if not name.strip():  # an unset variable of a shell; as a path it would be this directory
        raise UserError(
            "the model has an empty name; give a hub id, a directory, a .gguf file or "
            f"{next(iter(EMBEDDED))}"
        )
    path = user_path(name)
    if path.suffix == ".gguf":
        if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
            raise UserError(f"the model file {name} does not exist")
        return str(convert(path, say=say))
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise UserError(f"the directory {name} holds no model (no config.json)")
        return str(path)
    if name.startswith((".", "/", "~")):
        raise UserError(f"the model directory {name} does not exist")
    if name.count("/") > 1:
        raise UserError(f"the model {name} is neither a directory here nor a hub id (owner/name)")
    return name


def _unreachable(place: str) -> str:
    """Return why the hub cannot be reached, so that only its cache is used; "" if it can.

    It is one request, without the client's own retries, which take half a minute per file.
    """
    from huggingface_hub import HfApi

    if os.path.isdir(place):
        return ""
    try:
        HfApi().model_info(place, timeout=_HUB_SECONDS, expand=["sha"])
    except Exception as error:  # any other failure shows again when the model is loaded
        return first_line(error) if type(error).__name__ in _UNREACHABLE else ""
    return ""
