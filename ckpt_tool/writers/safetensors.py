"""Hugging Face weights: safetensors files of a bounded size, Hub names, and their index.

Layout of a file: 8 bytes header length, the JSON header padded with spaces to a multiple of 8,
the data. Within a file wide dtypes come first, as the safetensors library orders them, so that
every tensor is aligned. Which tensors share a file, and the names ``model-00001-of-0000N``,
follow ``huggingface_hub.split_torch_state_dict_into_shards``: in order, a file is closed when the
next tensor would exceed the limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_tool.common.errors import UsageError
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.writers.planned import PlannedFile

INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_model.safetensors"
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: str) -> int:
    """Bytes in ``5GB``, ``500MB``, ``4GiB`` or a plain number; UsageError otherwise."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", text.strip().upper())
    size = 0
    if matched and matched[2] in _UNITS:
        size = int(float(matched[1]) * _UNITS[matched[2]])
    if size <= 0:
        raise UsageError(f"{text!r} is not a size", hint="Write it like 5GB, 500MB or 4GiB.")
    return size


def plan_files(tensors: Mapping[str, LazyTensor], max_shard_size: int) -> list[PlannedFile]:
    """The files that hold ``tensors``; reads and writes nothing."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if groups[-1] and filled + tensor.nbytes > max_shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += tensor.nbytes
    return [
        plan_file(_file_name(number, len(groups)), {name: tensors[name] for name in group})
        for number, group in enumerate(groups, 1)
    ]


def index_json(files: Sequence[PlannedFile]) -> bytes | None:
    """The index of several files (``total_size`` in bytes); None for fewer."""
    if len(files) < 2:
        return None
    weight_map = {name: file.name for file in files for name in file.names}
    total = sum(tensor.nbytes for file in files for tensor in file.tensors)
    parameters = sum(tensor.numel for file in files for tensor in file.tensors)
    index = {
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return (json.dumps(index, indent=2) + "\n").encode()


def _file_name(number: int, total: int) -> str:
    return "model.safetensors" if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"


def plan_file(file: str, tensors: Mapping[str, LazyTensor]) -> PlannedFile:
    """One safetensors file that holds ``tensors``."""
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    ends, at = [], 0
    for name in names:
        tensor = tensors[name]
        end = at + tensor.nbytes
        rows[name] = {
            "dtype": tensor.dtype.safetensors,
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        ends.append(end)
        at = end
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    starts = (0, *(len(header) + start for start in [0, *ends[:-1]][: len(names)]))
    items: tuple[bytes | LazyTensor, ...] = (header, *(tensors[name] for name in names))
    return PlannedFile(file, tuple(names), items, starts, len(header) + at)
