"""A causal language model of transformers with its tokenizer and what identifies it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from saefeat.io import UserError, fingerprint
from saefeat.models.sites import Site, find_layers, resolve_site
from saefeat.models.weights import devices, weights_fingerprint
from saefeat.progress import beat
from saefeat.tokens import special_ids

_TEXTS = 1024  # texts tokenised in one call, whose result is many times their size
_TOKEN_CHARACTERS = 64  # a longer token is very rare
_PROBED = 1000  # number of first tokens of the vocabulary that are tried as a text


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer and what identifies it.

    Attributes:
        model: the untouched transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        name: as given to `load_model`.
        revision: commit of the hub, if known.
        fingerprint: of the weights, equal in all dtypes (see `weights_fingerprint`).
        dtype: of the weights: float32, bfloat16 or float16.
        device: cpu, cuda:0, ...
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
        names = ("name", "revision", "fingerprint", "dtype")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def tokenizer_mark(self) -> str | None:
        """What decides the token ids of a text, as a fingerprint; None if it cannot be told."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        around = [self.prefix, self.suffix, sorted(self.special_ids), self.embedding_rows]
        return fingerprint([backend.to_str(), *around])

    def counted_before(self, count_bos: bool) -> int:
        """Number of tokens before each text that count although they are special."""
        return len(self.prefix) if count_bos else 0

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of tokens that count nowhere (see `saefeat.tokens`)."""
        return special_ids(self.tokenizer, self.prefix, self.suffix)

    @property
    def threads(self) -> int | None:
        """Number of CPU threads, which changes the last bits of sums; None on a GPU."""
        return torch.get_num_threads() if self.device == "cpu" else None

    @property
    def n_layers(self) -> int:
        """Number of blocks. Raises UserError if they are not found; sites are module paths then."""
        return len(self.model.get_submodule(find_layers(self.model)))

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        # scikit-learn's `clone` copies parameters deeply; a model that never changes is shared.
        return self

    def site(self, name: str) -> Site:
        """Find a site by its name or module path. Raises UserError for an unknown one."""
        return resolve_site(self.model, name)

    def tokenize(self, texts: list[str], limit: int) -> list[list[int]]:
        """Return the token ids of each text, cut at `limit`, without those put around texts.

        Added tokens without an embedding are left out (a [PAD] in the text, if the embeddings were
        never resized). Raises UserError for any other token without an embedding: tokenizer and
        model do not belong together.
        """
        rows: list[list[int]] = []
        for start in range(0, len(texts), _TEXTS):
            # Cut before the call, so that one line of 100 MB does not delay the rest.
            cut = [text[: _TOKEN_CHARACTERS * limit] for text in texts[start : start + _TEXTS]]
            found = self.tokenizer(cut, add_special_tokens=False, return_attention_mask=False)
            rows += [self._embedded(row)[:limit] for row in found["input_ids"]]
            beat()
        return rows

    def tokenize_prompted(
        self, prompts: list[str], texts: list[str], limit: int
    ) -> tuple[list[list[int]], list[int]]:
        """Return the token ids of each prompt with its text, and how many of them are the prompt's.

        Prompt and text are tokenised as one string, see `tokenize`. A token belongs to the prompt
        if it ends where the prompt ends, or before. So a token with characters of both belongs to
        the text. Raises UserError where there is a prompt and the tokenizer does not tell the
        places of its tokens.
        """
        whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
        rows, lengths = self.tokenize(whole, limit), [0] * len(whole)
        asked = [i for i, prompt in enumerate(prompts) if prompt]
        if not asked:
            return rows, lengths
        if not self.tokenizer.is_fast:
            raise UserError(
                f"the tokenizer of {self.name} is not a fast one, which prompts need; leave the "
                "column of prompts out",
                "prompt_column",
            )
        cut = [whole[i][: _TOKEN_CHARACTERS * limit] for i in asked]
        found = self.tokenizer(cut, add_special_tokens=False, return_offsets_mapping=True)
        for i, ids, spans in zip(asked, found["input_ids"], found["offset_mapping"], strict=True):
            after = (n for n, (_, end) in enumerate(spans) if end > len(prompts[i]))
            lengths[i] = min(len(self._embedded(ids[: next(after, len(ids))])), limit)
        return rows, lengths

    def _embedded(self, row: list[int]) -> list[int]:
        """Return the ids that have an embedding."""
        rows = self.embedding_rows
        if max(row, default=0) < rows:
            return row
        added = self.tokenizer.added_tokens_decoder
        wrong = next((token for token in row if token >= rows and token not in added), None)
        if wrong is not None:
            raise UserError(
                f"the tokenizer of {self.name} gives the token {wrong}, but the model has "
                f"embeddings of {rows} tokens only; use the tokenizer that it was trained with"
            )
        return [token for token in row if token < rows]

    @cached_property
    def embedding_rows(self) -> int:
        """Number of rows of the embedding matrix; the model accepts lower token ids only."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def pad_id(self) -> int:
        """A token id for masked positions; any with an embedding will do."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((id_ for id_ in known if id_ is not None and id_ < self.embedding_rows), 0)

    def unembedding(self) -> Tensor:
        """Return the weight [vocabulary, d] of the output projection."""
        return self.model.get_output_embeddings().weight.detach()


def wrap(model: Any, tokenizer: Any, name: str, revision: str | None = None) -> LanguageModel:
    """Make a LanguageModel of a loaded transformers model, and switch off its gradients.

    Raises UserError if a token that the tokenizer puts around texts has no embedding, or if weights
    cannot be read.
    """
    model.requires_grad_(False)
    prefix, suffix = _added_tokens(tokenizer)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    device = str(next(devices(model), "cpu"))
    mark = weights_fingerprint(model)
    lm = LanguageModel(model, tokenizer, name, revision, mark, dtype, device, prefix, suffix)
    greatest = max([*prefix, *suffix], default=0)
    if greatest >= lm.embedding_rows:
        raise UserError(
            f"the tokenizer of {name} puts the token {greatest} around a text, but the model has "
            f"embeddings of {lm.embedding_rows} tokens only; use the tokenizer that it was trained "
            "with"
        )
    return lm


def _added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that are put before and after a text, found by tokenising short texts."""
    special = set(tokenizer.all_special_ids)
    known = (token for token in range(min(len(tokenizer), _PROBED)) if token not in special)
    # Tokenizers of DNA or proteins know no such letters, so texts of the vocabulary are tried too.
    for text in chain(("a", "A", "1"), map(tokenizer.decode, ([token] for token in known))):
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        full = tokenizer(text)["input_ids"]
        for start in range(len(full) - len(bare) + 1 if bare else 0):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
    return [], []
