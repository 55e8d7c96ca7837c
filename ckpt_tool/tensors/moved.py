"""Arrays of the elements of one tensor, in other places or several times: nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """What such arrays have alike; each has a shape and a recipe, and says how it is read."""

    tensor: LazyTensor

    @property
    def dtype(self) -> DType:
        """That of the tensor."""
        return self.tensor.dtype

    @property
    def origin(self) -> DType:
        """What the tensor has on disk."""
        return self.tensor.origin

    @property
    def operands(self) -> tuple[LazyTensor, ...]:
        """The tensor."""
        return (self.tensor,)
