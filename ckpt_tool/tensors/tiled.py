"""Tensors as a sharded checkpoint is to hold them: a global shape, and blocks that tile it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.geometry import Box, Shape
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a larger tensor: where it begins, and its elements.

    ``tensor`` may lack leading dimensions, along which the block has size 1.
    """

    offsets: Shape
    tensor: LazyTensor

    @property
    def box(self) -> Box:
        """The block's place in the larger tensor."""
        lead = len(self.offsets) - len(self.tensor.shape)
        return Box(self.offsets, (1,) * lead + self.tensor.shape)

    def pieces(self, limit: int) -> Iterator[Block]:
        """The block cut along its first dimension into pieces of at most ``limit`` bytes.

        As many pieces as a power of two where that divides the rows, as tensor parallelism does;
        a row is never cut.
        """
        wanted = -(-self.tensor.nbytes // limit)
        if wanted <= 1 or not self.tensor.shape:
            yield self
            return
        count = 1 << (wanted - 1).bit_length()
        rows = self.tensor.shape[0]
        most = limit // (self.tensor.nbytes // rows)
        step = max(1, min(-(-rows // count), most))
        lead = len(self.offsets) - len(self.tensor.shape)
        for start in range(0, rows, step):
            offsets = list(self.offsets)
            offsets[lead] += start
            piece = self.tensor.narrow(0, start, min(step, rows - start))
            yield Block(tuple(offsets), piece)


@dataclass(frozen=True, slots=True)
class TiledTensor:
    """A tensor of ``shape`` that ``blocks``, in order, tile; ``sources``: what it is made of."""

    shape: Shape
    blocks: tuple[Block, ...]
    sources: tuple[str, ...]

    @property
    def dtype(self) -> DType:
        """The dtype of all blocks."""
        return self.blocks[0].tensor.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(block.tensor.nbytes for block in self.blocks)

    def tensor(self) -> LazyTensor:
        """All of it as one lazy tensor; ValueError where blocks differ in dtype on disk."""
        first = self.blocks[0].tensor
        chunks = []
        for block in self.blocks:
            if (block.tensor.dtype, block.tensor.source_dtype) != (first.dtype, first.source_dtype):
                raise ValueError(f"blocks of {first.dtype} and {block.tensor.dtype}")
            part = block.tensor
            for _ in range(len(block.offsets) - len(part.shape)):
                part = part.unsqueeze(0)
            for box, region in ((chunk.box, chunk.region) for chunk in part.chunks):
                moved = tuple(map(sum, zip(box.offsets, block.offsets, strict=True)))
                chunks.append(Chunk(Box(moved, box.sizes), region))
        return LazyTensor(self.shape, first.dtype, first.source_dtype, tuple(chunks))
