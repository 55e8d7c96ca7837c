"""A lazy tensor in the shape of a ``torch.Tensor``, for transformers' weight conversions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import Any

from ckpt_tool.tensors.lazy import LazyTensor, cat, make_zeros
from ckpt_tool.tensors.reshaped import reshape


class ConversionTensor(list[Any]):
    """Does to a lazy tensor what transformers' conversions do to a ``torch.Tensor``.

    It is the list of itself as well: operations are given tensors in lists or by themselves, and
    some tell these apart in a way that a stand-in for a tensor does not pass.
    """

    def __init__(self, tensor: LazyTensor) -> None:
        super().__init__([self])
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def ndim(self) -> int:
        return len(self.tensor.shape)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.tensor.numel

    def __getitem__(self, index: Any) -> Any:
        """The tensor, as the first of its list; or parts of its first dimensions, all of them kept.

        These are slices without a step, and lists of places.
        """
        if isinstance(index, int) and index == 0:
            return self
        found = self
        for dim, part in enumerate(index if isinstance(index, tuple) else (index,)):
            found = found._take(dim, part)
        return found

    def _take(self, dim: int, part: Any) -> ConversionTensor:
        if isinstance(part, slice) and part.step in (None, 1):
            start, stop, _ = part.indices(self.shape[dim])
            return self.narrow(dim, start, max(stop - start, 0))
        if not isinstance(part, list) or not part or min(part) < 0:
            raise NotImplementedError("[]")
        rows = [self.tensor.narrow(dim, place, 1) for place in part]
        return ConversionTensor(cat(rows, dim))

    def contiguous(self) -> ConversionTensor:
        return self

    def narrow(self, dim: int, start: int, length: int) -> ConversionTensor:
        return ConversionTensor(self.tensor.narrow(dim, start, length))

    def split(self, sizes: int | list[int], dim: int = 0) -> tuple[ConversionTensor, ...]:
        length = self.shape[dim]
        if isinstance(sizes, int):
            sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        return tuple(self.narrow(dim, at, n) for at, n in zip(starts, sizes, strict=True))

    def chunk(self, parts: int, dim: int = 0) -> tuple[ConversionTensor, ...]:
        return self.split(-(-self.shape[dim] // parts), dim)

    def select(self, dim: int, index: int) -> ConversionTensor:
        return ConversionTensor(self.tensor.select(dim, index))

    def unbind(self, dim: int = 0) -> tuple[ConversionTensor, ...]:
        return tuple(self.select(dim, index) for index in range(self.shape[dim]))

    def squeeze(self, dim: int) -> ConversionTensor:
        return self.select(dim, 0) if self.shape[dim] == 1 else self

    def transpose(self, dim0: int, dim1: int) -> ConversionTensor:
        return ConversionTensor(self.tensor.transpose(dim0, dim1))

    def reshape(self, *sizes: Any) -> ConversionTensor:
        shape = sizes if isinstance(sizes[0], int) else sizes[0]
        return ConversionTensor(reshape(self.tensor, shape))

    view = reshape

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> ConversionTensor:
        stop = end_dim % self.ndim + 1
        joined = prod(self.shape[start_dim:stop])
        return self.reshape(*self.shape[:start_dim], joined, *self.shape[stop:])

    def unflatten(self, dim: int, sizes: tuple[int, ...]) -> ConversionTensor:
        dim %= self.ndim
        return self.reshape(*self.shape[:dim], *sizes, *self.shape[dim + 1 :])

    def new_zeros(self, *sizes: int) -> ConversionTensor:
        if not self.tensor.chunks:  # a shape without data
            return ConversionTensor(replace(self.tensor, shape=sizes))
        zeros = make_zeros(sizes, self.tensor.source_dtype)
        return ConversionTensor(zeros.to(self.tensor.dtype))

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """``torch.chunk(stand_in, ...)`` and the like."""
        kwargs = dict(kwargs or {})
        if func.__name__ == "cat":
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
            return cls(cat([part.tensor for part in args[0]], dim))
        method = getattr(cls, func.__name__, None)
        if method is None:
            raise NotImplementedError(func.__name__)
        return method(*args, **kwargs)
