"""One rank's file of Megatron: ``torch.save`` of a state dict, or of one per pipeline chunk.

verl saves a list of state dicts (``model.pt``); Megatron-LM a dict with ``model``, or ``model0``,
``model1``, ... where a process has several chunks (``model_optim_rng.pt``), beside arguments,
optimizer and random states. ``_extra_state`` entries hold no weights. Experts are called
``experts.local_experts.<j>.linear_fc1.weight``, ``experts.linear_fc1.weight<j>`` or, several in one
tensor, ``experts.weight1`` (transposed). Source: ``megatron/core/transformer/moe/experts.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ckpt_tool.dtypes import DType
from ckpt_tool.errors import FormatError
from ckpt_tool.geometry import Shape, contiguous_strides
from ckpt_tool.lazy import Region
from ckpt_tool.readers.torch_names import TensorRef, resolve_run
from ckpt_tool.readers.torch_zip import StoredTensor, TorchArchive

_CHUNK = re.compile(r"model\d*")
_EXPERT = re.compile(
    r"(?P<stem>.*\.experts)\.(?:local_experts\.(?P<i>\d+)\.(?P<a>.+)"
    r"|(?P<b>linear_fc[12]\.(?:weight|bias))(?P<j>\d+))"
)
_GROUPED = re.compile(r"(?P<stem>.*\.experts)\.weight(?P<layer>[12])")


@dataclass(frozen=True, slots=True)
class Part:
    """What a file holds of one parameter; ``expert``: the number among those of the file."""

    name: str
    expert: int | None
    shape: Shape
    dtype: DType
    region: Region


def read_chunks(path: Path) -> tuple[list[list[Part]], list[str]]:
    """The parameters of each pipeline chunk, and what is wrong with single ones.

    Layers are numbered as in the file. FormatError where it is no such file, UnsafeContentError
    where its pickle asks for code.
    """
    faults: list[str] = []
    with TorchArchive(path) as archive:
        chunks = [list(_parts(archive, chunk, faults)) for chunk in _chunks(archive, path)]
    return chunks, faults


def _chunks(archive: TorchArchive, path: Path) -> list[dict[Any, Any]]:
    state = archive.load(resolve_run)
    if isinstance(state, dict):
        named = [name for name in state if isinstance(name, str) and _CHUNK.fullmatch(name)]
        named.sort(key=lambda name: int(name.removeprefix("model") or 0))
        state = [state[name] for name in named if state[name]] or [state]
    if not isinstance(state, list) or not all(isinstance(chunk, dict) for chunk in state):
        raise FormatError(f"{path}: no state dict of a model, and no list of them")
    return state


def _parts(archive: TorchArchive, state: dict[Any, Any], faults: list[str]) -> Iterator[Part]:
    for key, value in state.items():
        name = str(key)
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if name.endswith("_extra_state") or value is None:
            continue
        if not isinstance(value, TensorRef):
            faults.append(f"{name}: a {getattr(value, 'kind', type(value).__name__)}, no tensor")
            continue
        try:
            yield _named(name, archive.stored(value, name))
        except FormatError as error:
            faults.append(error.message)


def _named(name: str, tensor: StoredTensor) -> Part:
    """The parameter by one name, however its experts are stored."""
    matched = _EXPERT.fullmatch(name)
    if matched is None:
        return Part(name, None, tensor.shape, tensor.dtype, tensor.region)
    tail, number = matched["a"] or matched["b"], matched["i"] or matched["j"]
    name = f"{matched['stem']}.experts.{tail}"
    return Part(name, int(number), tensor.shape, tensor.dtype, tensor.region)


def is_grouped(part: Part) -> bool:
    """Whether the part is that of several experts, transposed."""
    return bool(_GROUPED.fullmatch(part.name))


def ungrouped(part: Part, hidden: int, count: int) -> list[Part]:
    """The parameters of ``count`` experts in one grouped tensor, as single experts have them.

    In memory it is [count, hidden, 2 x ffn] or [count, ffn, hidden], whatever shape it was given.
    FormatError where it is not.
    """
    matched = _GROUPED.fullmatch(part.name)
    assert matched
    other, rest = divmod(prod(part.shape), max(count * hidden, 1))
    if rest or not other or part.region.strides != contiguous_strides(part.shape):
        raise FormatError(
            f"{part.name}: {list(part.shape)}, expected {count} experts of hidden size {hidden}"
        )
    first = matched["layer"] == "1"
    shape, strides = ((other, hidden), (1, other)) if first else ((hidden, other), (1, hidden))
    name = f"{matched['stem']}.experts.linear_fc{matched['layer']}.weight"
    step = hidden * other * part.dtype.itemsize
    return [
        Part(
            name,
            j,
            shape,
            part.dtype,
            Region(part.region.path, part.region.offset + j * step, strides),
        )
        for j in range(count)
    ]
