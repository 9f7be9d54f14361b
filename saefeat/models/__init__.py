"""Load models and tokenizers: hub, local directory, GGUF, embedded. Sites are in `saefeat.models.sites`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from saefeat.io import UserError, user_path
from saefeat.models.conversion import check_complete, converted, said
from saefeat.models.sites import KINDS, Site, find_layers, resolve_site
from saefeat.models.weights import devices, weights_fingerprint

# What transformers raises for bad models.
_LOADING = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    ImportError,
    StrictDataclassError,
)
_CUT_OFF = (
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "OfflineModeIsEnabled",
)  # of any client of the hub
_TEXTS = 1024  # tokenised in one call, whose result is many times their size
_FIRST = 5  # seconds for the question whether the hub is there
EMBEDDED = {"embedded:gemma-3-270m": "gemma-3-270m", "embedded:smollm2-135m": "smollm2-135m"}
__all__ = [
    "EMBEDDED",
    "KINDS",
    "LanguageModel",
    "Site",
    "choose_device",
    "choose_dtype",
    "convert_embedded",
    "find_layers",
    "load_model",
    "load_skeleton",
    "native_bf16",
    "resolve_site",
    "wrap",
]


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer and what identifies it.

    Attributes:
        model: the untouched transformers model, in evaluation mode.
        prefix: token ids that the tokenizer puts before a text (BOS), possibly none.
        suffix: token ids that it puts after a text, possibly none.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    fingerprint: str
    dtype: str
    device: str
    prefix: list[int]
    suffix: list[int]

    @property
    def identity(self) -> dict[str, Any]:
        """What artefacts record of the model."""
        return {
            "name": self.name,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
        }

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids) | set(self.prefix) | set(self.suffix)

    @property
    def threads(self) -> int | None:
        """How many threads its sums are split over, which changes their last bits; None on a GPU."""
        return torch.get_num_threads() if self.device == "cpu" else None

    def say_threads(self, header: dict[str, Any], what: str, say: Callable[[str], None]) -> None:
        """Say so where a stage goes on with another number of threads than its checkpoint's header records."""
        then = header.get("threads")
        if then not in (None, self.threads):
            say(
                f"note: {what} goes on with {self.threads} threads where {then} were used before; its last digits may "
                "differ from those of one that was not stopped"
            )

    @property
    def layers_path(self) -> str:
        return find_layers(self.model)

    @property
    def n_layers(self) -> int:
        """Number of blocks; raises UserError for a model whose blocks are not found (its sites are module paths)."""
        return len(self.model.get_submodule(self.layers_path))

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        # scikit-learn's clone copies parameters deeply; the model is never changed, so one will do.
        return self

    def site(self, name: str) -> Site:
        return resolve_site(self.model, name)

    def tokenize(self, texts: list[str], limit: int) -> list[list[int]]:
        """Token ids of each text without special tokens added, cut at `limit` tokens.

        Added tokens for which the model has no embedding ([PAD] in a text, where the embeddings
        were never resized) are left out; raises UserError for any other such token, because
        tokenizer and model do not belong together.
        """
        rows: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS):
            # A token is rarely longer than 64 characters; cutting first keeps one 100 MB line from
            # stalling the rest.
            cut = [text[: 64 * limit] for text in texts[start : start + _TEXTS]]
            ids = self.tokenizer(cut, add_special_tokens=False, return_attention_mask=False)[
                "input_ids"
            ]
            rows += [self._embedded(row)[:limit] for row in ids]
        return rows

    def _embedded(self, row: list[int]) -> list[int]:
        rows = self.embedding_rows
        if max(row, default=0) < rows:
            return row
        added = self.tokenizer.added_tokens_decoder
        odd = next((token for token in row if token >= rows and token not in added), None)
        if odd is not None:
            raise UserError(
                f"the tokenizer of {self.name} gives the token {odd}, but the model has embeddings of {rows} tokens "
                "alone; give it the tokenizer that it was trained with"
            )
        return [token for token in row if token < rows]

    @cached_property
    def embedding_rows(self) -> int:
        """Number of rows of the embedding matrix: a greater token id cannot be given to the model."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def pad_id(self) -> int:
        """A token id for positions that are masked: any that has an embedding will do."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next(
            (token for token in known if token is not None and token < self.embedding_rows), 0
        )

    def unembedding(self) -> Tensor:
        """[vocabulary, d] weight of the output projection."""
        return self.model.get_output_embeddings().weight.detach()


def native_bf16(device: str) -> bool:
    """Whether bf16 matrix products are faster than float32 ones on this device."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported()
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def choose_device(device: str) -> str:
    """`auto`: a GPU where there is one. Raises UserError for a device that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device).item()  # `meta` has no values
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {device} cannot be used here ({str(error).splitlines()[0]})"
        ) from error
    return device


def choose_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto`: bfloat16 where the machine is faster with it, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if native_bf16(device) else torch.float32
    table = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in table:
        raise UserError(f"--dtype {dtype} is unknown; use auto, {', '.join(table)}")
    return table[dtype]


def load_model(
    name: str | Path, *, dtype: str = "auto", device: str = "auto", revision: str | None = None
) -> LanguageModel:
    """Load by hub id, local directory, `.gguf` file or embedded name; raises UserError when that cannot be."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    name = str(name)
    chosen = choose_device(device)
    torch_dtype = choose_dtype(dtype, chosen)
    source = _source(name)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    cut_off = _cut_off(source)
    try:
        where: dict[str, Any] = {"revision": revision, "local_files_only": bool(cut_off)}
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, **where, dtype=torch_dtype, output_loading_info=True
        )
    except (*_LOADING, SafetensorError) as error:
        raise _cannot_load(name, error, cut_off) from error
    model, info = loaded
    check_complete(f"the model {name}", info)
    return wrap(
        model.to(chosen).eval(),
        tokenizer,
        name,
        revision or getattr(model.config, "_commit_hash", None),
    )


def load_skeleton(name: str | Path) -> nn.Module:
    """The modules of a model without their weights (on the `meta` device); raises UserError as `load_model` does."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    source = _source(str(name))
    transformers_logging.set_verbosity_error()
    cut_off = _cut_off(source)
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=bool(cut_off))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).eval()
    except _LOADING as error:
        raise _cannot_load(str(name), error, cut_off) from error


def _cut_off(source: str) -> str:
    """Why a model of the hub can come from the cache alone; "" where it need not.

    One question without the client's own attempts, which take half a minute for each file.
    """
    from huggingface_hub import HfApi

    if os.path.isdir(source):
        return ""
    try:
        HfApi().model_info(source, timeout=_FIRST, expand=["sha"])
    except Exception as error:  # of any other, loading tells
        return said(error) if type(error).__name__ in _CUT_OFF else ""
    return ""


def _cannot_load(name: str, error: Exception, cut_off: str) -> UserError:
    if cut_off and "couldn't connect" in str(error):
        return UserError(
            f"the model {name} is neither a directory here nor whole in the hub's cache, and the hub cannot be "
            f"reached ({cut_off}); check the name and the network, or fetch it where there is one (hf download {name})"
        )
    return UserError(f"cannot load the model {name}: {said(error)}")


def wrap(model: Any, tokenizer: Any, name: str, revision: str | None = None) -> LanguageModel:
    """Make a LanguageModel of a transformers model that is loaded already."""
    model.requires_grad_(False)
    prefix, suffix = _added_tokens(tokenizer)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    device = str(next(devices(model), "cpu"))
    lm = LanguageModel(
        model, tokenizer, name, revision, weights_fingerprint(model), dtype, device, prefix, suffix
    )
    greatest = max([*prefix, *suffix], default=0)
    if greatest >= lm.embedding_rows:
        raise UserError(
            f"the tokenizer of {name} puts the token {greatest} around a text, but the model has embeddings of "
            f"{lm.embedding_rows} tokens alone; give it the tokenizer that it was trained with"
        )
    return lm


def convert_embedded(asset: str, gguf: Path) -> Path:
    """The safetensors directory of an embedded model in the cache."""
    return converted(gguf, asset)


def _source(name: str) -> str:
    if name.startswith("embedded:"):
        from saefeat.assets import fetch

        if name not in EMBEDDED:
            raise UserError(f"unknown embedded model {name}; there are {', '.join(EMBEDDED)}")
        return str(converted(fetch(EMBEDDED[name]), EMBEDDED[name]))
    if (
        not name.strip()
    ):  # such as a shell's variable that is not set; as a path it would be this directory
        raise UserError(
            f"the model has an empty name; give a hub id, a directory, a .gguf file or {next(iter(EMBEDDED))}"
        )
    path = user_path(name)
    if path.suffix == ".gguf":
        if not os.path.isfile(path):  # pathlib's would raise for a name that is too long
            raise UserError(f"the model file {name} does not exist")
        return str(converted(path))
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise UserError(f"the directory {name} holds no model (no config.json)")
        return str(path)
    if name.startswith((".", "/", "~")):
        raise UserError(f"the model directory {name} does not exist")
    if name.count("/") > 1:
        raise UserError(f"the model {name} is neither a directory here nor a hub id (owner/name)")
    return name


def _added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens that the tokenizer puts before and after a text, seen on the first text that has tokens of its own."""
    for text in _probes(tokenizer):
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        full = tokenizer(text)["input_ids"]
        for start in range(len(full) - len(bare) + 1 if bare else 0):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
    return [], []


def _probes(tokenizer: Any) -> Iterator[str]:
    """Short texts: "a", and tokens of the vocabulary, for alphabets without it (DNA, proteins)."""
    yield from ("a", "A", "1")
    special = set(tokenizer.all_special_ids)
    yield from (
        tokenizer.decode([token])
        for token in range(min(len(tokenizer), 1000))
        if token not in special
    )
