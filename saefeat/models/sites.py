"""Sites: places in a model where vectors are read or written, found in the tree of its modules."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from saefeat.io import UserError

MEANINGS = {
    "mlp_out": "what the feed-forward part adds to the residual stream",
    "mlp_act": "hidden neurons: the activation function's output, where LAPE counts",
    "mlp_hidden": "hidden neurons as the down projection reads them, gated if there is a gate",
    "resid_post": "the residual stream after the block",
}
KINDS = tuple(MEANINGS)
_SITE = re.compile(rf"^({'|'.join(KINDS)})@(\d{{1,9}})$")
_BLOCK = re.compile(r"(?:model\.|transformer\.)?(?:layers|h)\.(\d+(?:\..+)?)")
_ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation", "gelu_impl")
_DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2")
_INPUT = ":input"  # at the end of a path: the module's input instead of its output
_POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")  # Gemma 2, 3 and OLMo 2; GLM 4


@dataclass(frozen=True)
class Site:
    """A place in the model where vectors are read or written.

    Attributes:
        name: as given: `mlp_out@13`, or a module path.
        path: dotted path of the module whose output it is. With `:input` at the end, it is the
            input of the module.
        layer: number of the block, if the path has one.
    """

    name: str
    path: str
    layer: int | None


class UnknownSite(UserError):
    """The model does not have a site, or its place in this family of models is not known."""


def find_layers(model: nn.Module) -> str:
    """Return the dotted path of the list of transformer blocks.

    It is the longest ModuleList whose members have a feed-forward part; in a model that takes
    images or sound, of its text part. Raises UserError if there is none.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model  # type: ignore[operator]
    inside = set(decoder.modules())  # type: ignore[union-attr]
    lists = {path: m for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and m}
    lists = {path: blocks for path, blocks in lists.items() if blocks in inside}
    known = {path: len(blocks) for path, blocks in lists.items() if _holder(blocks[0]) is not None}
    if not known:
        raise UnknownSite(
            "this model has no list of blocks with an `mlp`; name sites by their module path"
            + _some_paths(lists)
        )
    return max(known, key=known.__getitem__)  # of equals the first


def _some_paths(lists: dict[str, Any]) -> str:
    """Return the first block of the longest list and its parts, as the end of a sentence."""
    if not lists:
        return ""
    path = max(lists, key=lambda path: len(lists[path]))
    paths = [f"{path}.0", *(f"{path}.0.{name}" for name, _ in lists[path][0].named_children())]
    return f", such as {', '.join(paths)} (of {len(lists[path])} blocks)"


def resolve_site(model: nn.Module, name: str) -> Site:
    """Find the module of a site.

    - `mlp_out` is what the feed-forward part adds to the residual stream: the output of the norm
      after it if the block has one (Gemma 2 and 3, OLMo 2); of the last projection if the part is
      no module of its own (OPT) or adds the residual stream itself (BLOOM); else of the
      feed-forward module.
    - `mlp_act` is the output of the activation function, where LAPE counts. Mixtures of experts
      have none.
    - `mlp_hidden` is the input of the last projection, the product with the gate where the block
      has gates. Mixtures of experts have none.
    - `resid_post` is the output of the block.
    - Anything else is a module path, with `:input` at the end for the module's input.

    Raises UserError for a site that the model does not have.
    """
    match = _SITE.match(name)
    if not match:
        return _explicit(model, name)
    kind, layer = match[1], int(match[2])
    layers = find_layers(model)
    blocks: Any = model.get_submodule(layers)
    if layer >= len(blocks):
        raise UnknownSite(
            f"the site {name} does not exist: the model has the layers 0 to {len(blocks) - 1}"
        )
    part = _PARTS[kind](blocks[layer])
    if part is None:
        where = f"{layers}.{layer}{_holder(blocks[layer]) or ''}"
        if is_mixture(blocks[layer]):
            raise UnknownSite(
                f"the site {name} does not exist: {where} is a mixture of experts, whose neurons "
                f"change from token to token; use mlp_out@{layer}"
            )
        raise UnknownSite(f"the site {name} cannot be found in {where}; name its module path")
    return Site(name, f"{layers}.{layer}{part}", layer)


def _explicit(model: nn.Module, name: str) -> Site:
    """Find a site by its module path, which may lack the base model's prefix."""
    module, end = split_input(name)
    paths = [module, f"{getattr(model, 'base_model_prefix', '')}.{module}"] if module else []
    if block := _BLOCK.fullmatch(module):  # another model's path, or that of the text part alone
        with suppress(UnknownSite):
            paths.append(f"{find_layers(model)}.{block[1]}")
    for path in paths:
        try:
            model.get_submodule(path)
        except AttributeError:
            continue
        numbers = re.findall(r"\.(\d+)(?:\.|$)", path)
        return Site(name, path + end, int(numbers[0]) if numbers else None)
    kinds = ", ".join(f"{kind}@LAYER" for kind in KINDS)
    raise UnknownSite(f"unknown site {name}: use {kinds} or a module path of the model")


def split_input(path: str) -> tuple[str, str]:
    """Split the path of a site into that of its module and `:input`, or "" for its output."""
    module = path.removesuffix(_INPUT)
    return module, path[len(module) :]


def feed_forward(block: nn.Module) -> Any:
    """Return the module of a block's feed-forward projections: its `mlp`, or the block (OPT)."""
    return getattr(block, "mlp", block)


def down_projection(block: nn.Module) -> Any:
    """Return the module that hidden neurons write through ([neurons] -> [d]), if known."""
    path = _child(block, _DOWN)
    return None if path is None else block.get_submodule(path[1:])


def written_rows(down: Any) -> Tensor:
    """Return what each neuron of value 1 writes through a down projection: [neurons, d]."""
    weight = down.weight.detach()
    return weight.t() if isinstance(down, nn.Linear) else weight  # GPT-2's Conv1D: [neurons, d]


def written_norms(model: nn.Module, site: Site) -> Tensor | None:
    """Return the norms of `written_rows` of a site `mlp_hidden`, float32 [neurons]; else None."""
    if not site.name.startswith("mlp_hidden@"):
        return None
    down = model.get_submodule(split_input(site.path)[0])
    return written_rows(down).float().norm(dim=1).cpu()


def norm_after(block: nn.Module) -> nn.Module | None:
    """Return the norm between the feed-forward part and the next block, if there is one.

    Gemma 2 and 3, OLMo 2 and GLM 4 have it before the addition to the residual stream, OPT-350m
    after it.
    """
    if names := _post_norms(block):
        return getattr(block, names[0])
    late = getattr(block, "do_layer_norm_before", True) is False
    return getattr(block, "final_layer_norm", None) if late else None


def has_post_norm(block: nn.Module) -> bool:
    """Return whether a norm stands between the feed-forward part and the residual stream.

    Such a norm undoes any factor that all hidden neurons share.
    """
    return bool(_post_norms(block))


def _post_norms(block: nn.Module) -> list[str]:
    return [name for name in _POST_NORMS if hasattr(block, name)]


def is_mixture(block: nn.Module) -> bool:
    """Return whether the feed-forward part of a block is a mixture of experts."""
    return hasattr(feed_forward(block), "experts")


def is_gated(part: nn.Module) -> bool:
    """Return whether a feed-forward module multiplies its hidden neurons by a second projection."""
    return any(hasattr(part, name) for name in ("gate_proj", "gate_up_proj"))


def _holder(block: nn.Module) -> str | None:
    """Return the path of `feed_forward` in the block, with a dot before it; "" for the block."""
    if hasattr(block, "mlp"):
        return ".mlp"
    return "" if hasattr(block, "fc1") and hasattr(block, "fc2") else None


def _added(block: nn.Module) -> str | None:
    """Return the path in the block of `mlp_out`."""
    if norms := _post_norms(block):
        return f".{norms[0]}"
    holder = _holder(block)
    if holder and "residual" not in inspect.signature(feed_forward(block).forward).parameters:
        return holder
    return _child(block, _DOWN)


def _activation(block: nn.Module) -> str | None:
    """Return the path in the block of `mlp_act`."""
    return None if is_mixture(block) else _child(block, _ACTIVATIONS)


def _hidden(block: nn.Module) -> str | None:
    """Return the path in the block of `mlp_hidden`."""
    path = None if is_mixture(block) else _child(block, _DOWN)
    return path and f"{path}{_INPUT}"


def _child(block: nn.Module, names: tuple[str, ...]) -> str | None:
    """Return the path in the block of the first of these modules that its feed-forward part has."""
    holder = feed_forward(block)
    found = [name for name in names if isinstance(getattr(holder, name, None), nn.Module)]
    return f"{_holder(block) or ''}.{found[0]}" if found else None


_PARTS = {
    "mlp_out": _added,
    "mlp_act": _activation,
    "mlp_hidden": _hidden,
    "resid_post": lambda _block: "",
}


def describe_sites(model: Any) -> list[dict[str, Any]]:
    """Return one row per kind and layer of a transformers model, whose weights are not needed.

    Each row has the keys site, kind, layer, module (dotted path), width, sparsify and
    transformer_lens (the names in these libraries). For a site that the model does not have, these
    four are None, and `refused` is the reason.
    """
    blocks = [*enumerate(model.get_submodule(find_layers(model)))]
    return [_describe(model, kind, layer, block) for kind in KINDS for layer, block in blocks]


def _describe(model: Any, kind: str, layer: int, block: nn.Module) -> dict[str, Any]:
    row: dict[str, Any] = {"site": f"{kind}@{layer}", "kind": kind, "layer": layer}
    row |= dict.fromkeys(("module", "width", "sparsify", "transformer_lens", "refused"))
    try:
        path = resolve_site(model, row["site"]).path
    except UnknownSite as error:
        return {**row, "refused": str(error)}
    row["module"], row["width"] = path, _width(model, kind, block)
    if not split_input(path)[1]:  # sparsify hooks outputs
        row["sparsify"] = path.removeprefix(f"{model.base_model_prefix}.")
    row["transformer_lens"] = _hook(kind, layer, block)
    return row


def _width(model: Any, kind: str, block: nn.Module) -> int | None:
    """Return the width of a site by the configuration and the shape of its projection."""
    if kind not in ("mlp_act", "mlp_hidden"):
        return model.config.get_text_config().hidden_size
    down = down_projection(block)
    return None if down is None else len(written_rows(down))


def _hook(kind: str, layer: int, block: nn.Module) -> str | None:
    """Return TransformerLens's name of a site."""
    if kind == "mlp_hidden":
        return f"blocks.{layer}.mlp.hook_post"
    if kind != "mlp_act":
        return f"blocks.{layer}.hook_{kind}"
    # In gated blocks, `hook_post` is the product with the up projection: no module's output.
    return None if is_gated(feed_forward(block)) else f"blocks.{layer}.mlp.hook_post"
