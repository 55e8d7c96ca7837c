"""In which order Megatron's checkpoints have rows that are called alike in several orders.

Gated DeltaNet's: ms-swift orders them by head, and megatron-core, where it has them in one tensor,
by what they are. Its keys then are the same: in the files of single ranks, and in what
Megatron-FSDP saved up to 0.17. The output's norm tells them apart, which the one counts from one
and the other from zero. Mamba's: Megatron-FSDP has the rows of one tensor-parallel rank after the
other, and nothing in its folder says how many there were. Sources: ``ssm/gated_delta_net``,
``ssm/mamba_mixer.py`` and ``fsdp_dtensor_checkpoint.py`` of megatron-core 0.16 to 0.19.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.lora.megatron import drop_adapters, has_megatron_adapters
from ckpt_tool.mapping.lora.part_rows import order_plain_rows
from ckpt_tool.mapping.megatron.numbers import read_numbers
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor

_NORM = ".self_attention.out_norm.weight"
_BY_HEAD = re.compile(r"\.self_attention\.in_proj(?:_qkvz|_ba)?\.weight$")
_MIXER = re.compile(r"\.mixer\.in_proj\.weight$")
_PROJECTION = re.compile(
    r"\.(?:mixer|mamba_mixer|self_attention)\.in_proj\.adapter\.linear_out\.weight$"
)
_LAYER = re.compile(r"(?:^|\.)decoder\.layers\.(\d+)\.")
_RANKS, _DISTRIBUTED = "megatron-ranks", "torch_dist"
#: Halfway between norms that count from zero and from one.
_MIDDLE = 0.5


def require_known_order(checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor]) -> None:
    """MappingError where rows are not in the order that keys say, or nothing says which.

    Reads the norms of gated DeltaNet, and nothing else.
    """
    adapters = [name for name in tensors if _PROJECTION.search(name)]
    if adapters and checkpoint.format not in (_RANKS, _DISTRIBUTED):
        raise MappingError(
            f"{checkpoint.path}: the rows of {adapters[0]} are in an order that nothing here says",
            hint="Have the run save torch_dist, or files of single ranks.",
        )
    mixers = [name for name in tensors if _MIXER.search(name)]
    if mixers and checkpoint.format != _RANKS:
        raise MappingError(
            f"{checkpoint.path}: {mixers[0]} is whole: Megatron-FSDP has its rows by"
            " tensor-parallel rank, and nothing here says how many there were",
            hint="Have the run save torch_dist, which has Mamba's parts apart.",
        )
    norms = [tensor for name, tensor in tensors.items() if name.endswith(_NORM)]
    if norms:
        _require_norms(checkpoint, _find_mean(norms), any(map(_BY_HEAD.search, tensors)))


def settle_adapters(
    checkpoint: Checkpoint, tensors: dict[str, LazyTensor], config: ModelConfig
) -> dict[str, LazyTensor]:
    """The tensors, of which files of ranks have put rows for a gate that the family has not.

    MappingError lists those that cannot be put right, and where it is not known whose they are.
    """
    mesh = checkpoint.mesh
    if checkpoint.format != _RANKS or mesh is None or not has_megatron_adapters(tensors):
        return tensors
    (ranks, stages, *_), numbers = mesh.shape, read_numbers(config)
    if stages > 1 and not drop_adapters(tensors):
        _require_every_layer(checkpoint, tensors, numbers.layers)
    return order_plain_rows(tensors, ranks) if "ungated" in numbers.flags else tensors


def _require_every_layer(
    checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor], layers: int
) -> None:
    """MappingError where some have no adapter: each stage of the pipeline counts from zero.

    How many layers a stage has is then said by nothing, so that those behind it have no number.
    """
    found = {matched[1] for matched in map(_LAYER.search, tensors) if matched}
    if len(found) < layers:
        raise MappingError(
            f"{checkpoint.path}: adapters of {len(found)} of {layers} layers, by the files of"
            " several pipeline stages: nothing says of which, as each stage counts from zero",
            hint="Have the run save torch_dist, or one pipeline stage.",
        )


def _require_norms(checkpoint: Checkpoint, mean: float, by_head: bool) -> None:
    """MappingError where norms of that ``mean`` are not of whom the keys are."""
    if not (mean > _MIDDLE if by_head else mean <= _MIDDLE):
        expected, found = ("ms-swift's", "megatron-core's")[:: 1 if by_head else -1]
        raise MappingError(
            f"{checkpoint.path}: rows of gated DeltaNet are ordered as {expected} by their keys,"
            f" and are {found} by *{_NORM}, whose elements are {mean:.2f} on average: near 0 in"
            " megatron-core, near 1 in ms-swift",
            hint="Have the run save torch_dist, with megatron-core 0.18 or newer: its keys say"
            " whose they are.",
        )


def _find_mean(tensors: list[LazyTensor]) -> float:
    import numpy as np

    total, count = 0.0, 0
    with FileTable() as files:
        reader = BlockReader(files)
        for tensor in tensors:
            found = np.empty(tensor.numel, np.float32)
            reader.read(tensor.to(FLOAT32), 0, tensor.numel, found.data.cast("B"))
            total += float(found.sum(dtype=np.float64))
            count += tensor.numel
    return total / max(count, 1)
