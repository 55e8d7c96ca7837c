"""A tensor that several ranks have saved, as torch.distributed.checkpoint writes it: by one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class Shards(torch.Tensor):
    """Rows of one rank after the other, each a block of its own; for `save_megatron`."""

    @staticmethod
    def of(parts: Sequence[torch.Tensor]) -> Shards:
        found: Shards = torch.Tensor._make_subclass(Shards, torch.cat(list(parts)))
        found.parts = list(parts)
        return found

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        items, at = [], 0
        for part in self.parts:
            offsets = torch.Size([at] + [0] * (part.dim() - 1))
            at += len(part)
            chunk = ChunkStorageMetadata(offsets=offsets, sizes=part.size())
            properties = TensorProperties.create_from_tensor(part)
            data = TensorWriteData(chunk=chunk, properties=properties, size=self.size())
            index = MetadataIndex(name, offsets)
            items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
        return items

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        at = 0
        for part in self.parts:
            if index.offset is not None and index.offset[0] == at:
                return part
            at += len(part)
        raise KeyError(index)
