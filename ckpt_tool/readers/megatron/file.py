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
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.torch_save.archive import StoredTensor, TorchArchive
from ckpt_tool.readers.torch_save.names import refuse_foreign, resolve_run
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.readers.torch_save.standins import StandIn, name_kind
from ckpt_tool.tensors.checksums import FileSums
from ckpt_tool.tensors.chunks import Region
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Shape, make_strides

#: verl 0.7 saves LoRA adapters of a rank below this.
_ADAPTERS = "adapter_state_dict"
_CHUNK = re.compile(r"model(\d{0,9})")
_WRAPPERS = re.compile(r"^(?:module\.)+")
_EXPERT = re.compile(
    r"(?P<stem>.*\.experts)\.(?:local_experts\.(?P<i>\d{1,9})\.(?P<a>.+)"
    r"|(?P<b>linear_fc[12]\.(?:weight|bias))(?P<j>\d{1,9}))"
)
_GROUPED = re.compile(r"(?P<stem>.*\.experts)\.weight(?P<layer>[12])")


#: How Megatron-LM's arguments call the sizes.
_SIZES = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "ep": "expert_model_parallel_size",
    "expert_tp": "expert_tensor_parallel_size",
}
_MOST_RANKS = 1 << 16
_MOST_STEPS = 1 << 62


@dataclass(frozen=True, slots=True)
class Part:
    """What a file holds of one parameter; ``expert``: the number among those of the file."""

    name: str
    expert: int | None
    shape: Shape
    dtype: DType
    region: Region

    def take_rows(self, name: str, start: int, rows: int) -> Part:
        """Some of its rows, as a part of another name."""
        offset = self.region.offset + start * self.region.strides[0] * self.dtype.itemsize
        return replace(
            self,
            name=name,
            shape=(rows, *self.shape[1:]),
            region=self.region._replace(offset=offset),
        )


@dataclass(frozen=True, slots=True)
class RankFile:
    """The parameters of each pipeline chunk, and what is wrong with single ones.

    Layers are numbered as in the file. ``said``: parallel sizes, where the run's arguments are
    there: ``tp``, ``pp``, ``ep`` and ``expert_tp``. ``sums``: the checksums that the file has.
    ``iteration``: of the run, where it is there.
    """

    chunks: list[list[Part]]
    faults: list[str]
    said: dict[str, int]
    sums: FileSums
    iteration: int | None = None


def read_rank_file(path: Path) -> RankFile:
    """What a file holds.

    FormatError where it is no such file, UnsafeContentError where its pickle asks for code.
    """
    faults: list[str] = []
    with TorchArchive(path) as archive:
        state = archive.load(resolve_run)
        chunks = [list(_parts(archive, chunk, faults)) for chunk in _chunks(state, path)]
        sums = FileSums(archive.sums())
    top = state if isinstance(state, dict) else {}
    iteration = _read_iteration(top.get("iteration"))
    return RankFile(chunks, faults, _said(top.get("args")), sums, iteration)


def _read_iteration(found: Any) -> int | None:
    is_number = isinstance(found, int) and not isinstance(found, bool)
    return found if is_number and 0 <= found < _MOST_STEPS else None


def _said(args: Any) -> dict[str, int]:
    """The parallel sizes among a run's arguments."""
    if not isinstance(args, StandIn):
        return {}
    found = {key: args.get(name) for key, name in _SIZES.items()}
    return {
        key: size
        for key, size in found.items()
        if isinstance(size, int) and not isinstance(size, bool) and 0 < size <= _MOST_RANKS
    }


def _chunks(state: Any, path: Path) -> list[dict[Any, Any]]:
    """The state dicts: a list of them, ``model0``, ``model1``, ..., ``model``, or the whole."""
    if isinstance(state, dict) and isinstance(state.get(_ADAPTERS), dict):
        return [state[_ADAPTERS]]
    if isinstance(state, dict):
        named = {key: _CHUNK.fullmatch(key) for key in state if isinstance(key, str)}
        numbered = sorted((int(found[1] or 0), key) for key, found in named.items() if found)
        state = [state[key] for _, key in numbered if state[key]] or [state]
    if not isinstance(state, list) or not all(isinstance(chunk, dict) for chunk in state):
        raise FormatError("no state dict of a model, and no list of them", path=path)
    if any(isinstance(chunk.get("language_model"), dict) for chunk in state):
        raise FormatError(
            "weights of a legacy model of Megatron-LM (language_model), not of megatron-core: make"
            " one of it with Megatron-LM's own tools/checkpoint/convert.py",
            path=path,
        )
    if len({id(chunk) for chunk in state}) < len(state):
        raise FormatError("one state dict in place of several", path=path)
    return state


def _parts(archive: TorchArchive, state: dict[Any, Any], faults: list[str]) -> Iterator[Part]:
    for key, value in state.items():
        if not isinstance(key, str):
            faults.append("a name that is no text")
            continue
        name = _WRAPPERS.sub("", key)
        if name.endswith("_extra_state") or value is None:
            refuse_foreign(name, value, archive.path)
            continue
        if not isinstance(value, TensorRef):
            refuse_foreign(name, value, archive.path)
            faults.append(f"{name}: a {name_kind(value)}, no tensor")
            continue
        try:
            yield _named(name, archive.locate_tensor(value, name))
        except FormatError as error:
            faults.append(error.reason)


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


def ungroup(part: Part, hidden: int, count: int) -> list[Part]:
    """The parameters of ``count`` experts in one grouped tensor, as single experts have them.

    In memory it is [count, hidden, 2 x ffn] or [count, ffn, hidden], whatever shape it was given.
    FormatError where it is not.
    """
    matched = _GROUPED.fullmatch(part.name)
    assert matched
    other, rest = divmod(prod(part.shape), max(count * hidden, 1))
    if not count * hidden * other or rest or part.region.strides != make_strides(part.shape):
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
