"""Memory: how much there is, how much each stage takes, and which dictionaries fit together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from saefeat.corpora import BATCH_TOKENS, GPU_BATCH_TOKENS, TOKEN_LIMIT, WINDOW
from saefeat.dictionaries import Dictionary
from saefeat.generation import LOGITS
from saefeat.statistics import Accumulator, collected_kinds

D = TypeVar("D", bound=Dictionary)
Kinds = Sequence[type[Accumulator]]

LIBRARIES = 0.7e9  # bytes of a process that collects
MORE_LIBRARIES = 0.5e9  # bytes that scikit-learn, the judge and the report add
_SMALL = 5e7  # bytes of mapped weights that are not mentioned


# --------------------------------------------------------------------------- what there is


def memory_limit(device: str = "cpu") -> int:
    """Return the bytes of memory that this process may use.

    Of a GPU, those that are free now or held by this process without use. Else those of the
    machine, or of the control groups (containers, Slurm jobs) that limit this process to fewer.
    """
    if device.startswith("cuda"):
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits(Path("/"))])


def _group_limits(root: Path) -> Iterator[int]:
    """Yield the limits of the process's control groups and those around them, version 1 or 2."""
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":  # version 2
                mount, name = "", "memory.max"
            elif "memory" in controllers.split(","):
                mount, name = "memory", "memory.limit_in_bytes"
            else:
                continue
            for group in (Path(path), *Path(path).parents):
                file = root / "sys/fs/cgroup" / mount / group.relative_to("/") / name
                with suppress(OSError, ValueError):  # not seen in this container, or no limit
                    yield int(file.read_text())


def dictionary_budget(device: str) -> int:
    """Return the bytes that dictionaries may take together: half of the memory."""
    return memory_limit(device) // 2


# --------------------------------------------------------------------------- dictionaries


def group_to_fit(
    dictionaries: Sequence[D],
    device: str,
    labels: int = 0,
    budget: int | None = None,
    kinds: Kinds | None = None,
) -> list[list[D]]:
    """Split dictionaries into groups that fit in memory, in their order.

    A group has at least one dictionary, even where that alone does not fit.

    Args:
        device: where they encode.
        labels: number of labels of the statistics that are collected; 0 where none are.
        budget: bytes that a group may take; default `dictionary_budget`.
        kinds: the accumulators; default those that are always collected.
    """
    budget = dictionary_budget(device) if budget is None else budget
    groups: list[list[D]] = [[]]
    used = 0
    for dictionary in dictionaries:
        size = working_bytes(dictionary, device, labels, kinds)
        if groups[-1] and used + size > budget:
            groups.append([])
            used = 0
        groups[-1].append(dictionary)
        used += size
    return groups


def working_bytes(
    dictionary: Dictionary, device: str, labels: int = 0, kinds: Kinds | None = None
) -> int:
    """Return the memory of a dictionary at work: encoder, weights, and statistics of some labels.

    On a CPU weights stay in their file, mapped into memory, and do not count. Those that the
    encoder itself reads there count, because every batch needs them.
    """
    size = state_bytes(dictionary, labels, kinds) + dictionary.encoder_bytes
    if dictionary.signed:  # dense codes
        size += dictionary.width * sum(kind.BUFFER for kind in kinds or ())
    return size + (dictionary.weight_bytes if _on_gpu(device) else dictionary.weights_read)


def state_bytes(
    dictionary: Dictionary, labels: int, kinds: Kinds | None = None, rows: int = WINDOW
) -> int:
    """Return the bytes of accumulators of a dictionary; by default those always collected.

    `rows`: examples in tables by example; while a corpus is collected, those of a window.
    """
    wanted = [k for k in (collected_kinds() if kinds is None else kinds) if k.applies(dictionary)]
    signed = dictionary.signed
    return dictionary.width * sum(k.unit_bytes(labels, signed=signed, rows=rows) for k in wanted)


def encoders_fit(dictionaries: Sequence[Dictionary], device: str) -> bool:
    """Return whether all dictionaries can encode at the same time."""
    return sum(working_bytes(d, device) for d in dictionaries) <= dictionary_budget(device)


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda")


# --------------------------------------------------------------------------- stages of a run


def collecting_bytes(
    dictionaries: Sequence[Dictionary], device: str, labels: int, kinds: Kinds | None = None
) -> int:
    """Return the peak memory of a collection, without the model and mapped weights.

    It is the memory of the largest group of dictionaries (see `group_to_fit`), and of their
    pre-activations and codes of one batch.
    """

    def unmapped_bytes(d: Dictionary) -> int:
        mapped = 0 if _on_gpu(device) else d.weights_read
        return working_bytes(d, device, labels, kinds) - mapped

    groups = group_to_fit(dictionaries, device, labels, kinds=kinds)
    largest = max(sum(map(unmapped_bytes, group)) for group in groups)
    tokens = GPU_BATCH_TOKENS if _on_gpu(device) else BATCH_TOKENS
    cells = max((min(d.cells(device), tokens * d.width) for d in dictionaries), default=0)
    return largest + 2 * 4 * cells  # float32 pre-activations, and codes made of them


def mapped_bytes(dictionaries: Sequence[Dictionary]) -> int:
    """Return the bytes of weights that stay in their files, mapped into memory."""
    return sum(dictionary.weight_bytes for dictionary in dictionaries)


def training_bytes(chunk: float, d_ins: Sequence[int], widths: Sequence[int]) -> float:
    """Return what the training of SAEs takes: a chunk of activations, weights and optimiser.

    `chunk` is in tokens; `d_ins` and `widths` are those of the SAE at each site.
    """
    weights = sum(d_in * width for d_in, width in zip(d_ins, widths, strict=True))
    return 2 * chunk * sum(d_ins) + 4 * 10 * weights


def judging_bytes(tokens: float, vocabulary: int, itemsize: int) -> float:
    """Return the memory of logits when the perplexity of texts is measured.

    The logits of a group of texts, of `tokens` in all, are in the model's dtype. One text of the
    group at a time is converted to float32.

    Args:
        vocabulary: logits per token.
        itemsize: bytes of a value in the model's dtype.
    """
    return min(LOGITS, tokens * vocabulary) * itemsize + 1.5 * 4 * TOKEN_LIMIT * vocabulary


def describe_memory(device: str, on_device: float, in_process: float, mapped: float) -> str:
    """Say how many bytes the device and the process need, and how many mapped weights may use."""
    need = f"{(on_device + in_process) / 1e9:.1f} GB of memory"
    if device != "cpu":
        need = f"{on_device / 1e9:.1f} GB of GPU memory and {in_process / 1e9:.1f} GB of memory"
    if mapped > _SMALL:
        need += f" (and up to {mapped / 1e9:.1f} for weights of SAEs, which stay in their files)"
    return need
