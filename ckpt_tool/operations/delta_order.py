"""In which order the files of single ranks have the rows of gated DeltaNet: by what a norm is.

megatron-core and ms-swift call these tensors alike there, and order their rows otherwise. They
count the output's norm from another number too, from zero and from one, as its elements show.
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.blocks import BlockReader, FileTable
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.lazy import LazyTensor

_NORM = ".self_attention.out_norm.weight"
#: Halfway between the two.
_MOST = 0.5


def require_core_order(checkpoint: Checkpoint, tensors: Mapping[str, LazyTensor]) -> None:
    """MappingError where ranks' files are by their norms ms-swift's; reads these norms alone."""
    norms = [tensor for name, tensor in tensors.items() if name.endswith(_NORM)]
    if checkpoint.format != "megatron-ranks" or not norms:
        return
    mean = _find_mean(norms)
    if not mean <= _MOST:
        raise MappingError(
            f"{checkpoint.path}: elements of *{_NORM} are {mean:.2f} on average, expected some"
            " near 0, as megatron-core counts this norm: near 1 they are ms-swift's, whose files of"
            " single ranks have rows of in_proj and conv1d in another order under the same names",
            hint="Have ms-swift save torch_dist, whose keys say whose they are.",
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
