"""A rank's file of optimizer states of DeepSpeed: flat partitions of the master weights.

Stages 1 and 2 have one partition per group of parameters, ``single_partition_of_fp32_groups``,
without the padding at its end; stage 3 has ``fp32_flat_groups``. The optimizer's own state beside
them is not looked at. Source: ``state_dict`` in ``deepspeed/runtime/zero/stage_1_and_2.py``,
``zero/stage3.py`` and ``bf16_optimizer.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tool.common.errors import FormatError
from ckpt_tool.readers.base import name_file
from ckpt_tool.readers.deepspeed.values import read_counts, read_rows, read_size
from ckpt_tool.readers.torch_save.archive import StoredTensor, TorchArchive
from ckpt_tool.readers.torch_save.names import resolve_run
from ckpt_tool.readers.torch_save.rebuilding import TensorRef
from ckpt_tool.readers.torch_save.standins import Builder, StandIn, name_kind
from ckpt_tool.tensors.checksums import FileSums

_STATE = "optimizer_state_dict"
_JOINED, _EACH = "single_partition_of_fp32_groups", "fp32_flat_groups"
#: Members of DeepSpeed's enumeration, which some versions of Python pickle by name.
_STAGES = {"optimizer_states": 1, "gradients": 2, "weights": 3}


@dataclass(frozen=True, slots=True)
class OptimStates:
    """What a rank's file of optimizer states says.

    ``stage``: of ZeRO, where it is there. ``each``: whether every parameter is cut by itself, as in
    stage 3. ``groups``: the flat partitions. ``counts``: into how many each group is cut, one
    number in stage 3. ``paddings``: elements left out behind each partition. ``gaps``: of padding
    behind each parameter, by group. ``fragments``: by group, where in the partition (``start``)
    how many elements (``numel``) of a parameter are.
    """

    stage: int | None
    each: bool
    groups: list[StoredTensor]
    counts: list[int]
    paddings: list[int]
    gaps: Sequence[Any]
    fragments: Sequence[Any]
    sums: FileSums


def read_optim_states(path: Path) -> OptimStates:
    """What a rank's file says.

    FormatError where it is none, UnsafeContentError where its pickle asks for code.
    """
    with TorchArchive(path) as archive, name_file(path):
        loaded = archive.load(resolve_run)
        state = loaded.get(_STATE) if isinstance(loaded, dict) else None
        if not isinstance(state, dict):
            raise FormatError(f"no optimizer states of DeepSpeed: no dict {_STATE!r} in it")
        key = next((key for key in (_EACH, _JOINED) if key in state), None)
        if key is None:
            raise FormatError(f"no master weights: neither {_JOINED!r} nor {_EACH!r} in it")
        groups = [
            _locate_flat(archive, ref, f"{key}[{index}]")
            for index, ref in enumerate(read_rows(state[key], key))
        ]
        return OptimStates(
            stage=_read_stage(state.get("zero_stage")),
            each=key == _EACH,
            groups=groups,
            counts=read_counts(state.get("partition_count"), "partition_count"),
            paddings=read_counts(state.get("group_paddings"), "group_paddings"),
            gaps=read_rows(state.get("param_alignment_paddings"), "param_alignment_paddings"),
            fragments=read_rows(state.get("param_slice_mappings"), "param_slice_mappings"),
            sums=FileSums(archive.sums()),
        )


def _locate_flat(archive: TorchArchive, ref: Any, what: str) -> StoredTensor:
    if not isinstance(ref, TensorRef):
        raise FormatError(f"{what} is a {name_kind(ref)}, no tensor")
    is_flat = len(ref.shape) == 1 and (ref.strides == (1,) or ref.shape[0] < 2)
    if not is_flat or not ref.dtype.is_float:
        raise FormatError(f"{what} is {ref.dtype} {list(ref.shape)}, expected flat weights")
    return archive.locate_tensor(ref, what)


def _read_stage(value: Any) -> int | None:
    """The stage: a number, or a member of DeepSpeed's enumeration."""
    if isinstance(value, Builder):
        value = _STAGES.get(value.qualname.rsplit(".", maxsplit=1)[-1])
    elif isinstance(value, StandIn):
        value = value.args[0] if value.args else None
    stage = read_size(value)
    return stage if stage in (1, 2, 3) else None


def read_fragment(value: Any) -> tuple[int, int] | None:
    """Where a parameter begins in a partition, and how many elements it has there."""
    if not isinstance(value, StandIn):
        return None
    start, numel = (read_size(value.get(key)) for key in ("start", "numel"))
    return None if start is None or numel is None else (start, numel)
