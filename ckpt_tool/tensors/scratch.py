"""Memory to compute in that serves again and again: made anew each time, it would be cleared."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ckpt_tool.tensors.geometry import Shape


class Scratch:
    """Memory by names, each as large as the largest that was asked of it; for one thread."""

    def __init__(self) -> None:
        self._memory: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str, shape: Shape, dtype: DTypeLike) -> NDArray[Any]:
        """An array over the memory of this name, with what that held."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if len(self._memory.get(name, ())) < size:
            self._memory[name] = np.empty(size, np.uint8)
        found: NDArray[Any] = self._memory[name][:size].view(dtype).reshape(shape)
        return found
