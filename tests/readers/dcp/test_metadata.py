"""``.metadata`` of many tensors is what torch's own classes hold, however its pickle repeats."""

import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import metadata as meta
from torch.distributed.checkpoint.filesystem import _StorageInfo

from ckpt_tool.common.errors import FormatError, UnsafeContentError
from ckpt_tool.readers.dcp.metadata import list_places, read_metadata
from ckpt_tool.tensors.geometry import Box

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
#: As the sizes of opcodes have it: numbers of one, two, four, five and six bytes, and negative.
NUMBERS = (0, 255, 256, 65_536, (1 << 31) - 1, 1 << 31, 1 << 40)


def properties(dtype: torch.dtype) -> meta.TensorProperties:
    return meta.TensorProperties(dtype=dtype)


def make(seed: int, *, share: bool) -> meta.Metadata:
    """Tensors of few kinds, in an order of its own; ``share``: objects that come again are one."""
    choose = random.Random(seed)
    entries: dict[str, Any] = {}
    places: dict[meta.MetadataIndex, Any] = {}
    names = [
        f"layers.{n}.{choose.choice(['weight', 'größe', 'b' * 300, 'norm'])}" for n in range(90)
    ]
    for name in names:
        rows = [choose.choice(NUMBERS[:-1]) or 1 for _ in range(choose.choice((1, 2)))]
        offsets = [torch.Size([at]) for at in (0, *(sum(rows[:n]) for n in range(1, len(rows))))]
        sizes = [torch.Size([row]) for row in rows]
        if not share:
            offsets, sizes = (pickle.loads(pickle.dumps(each)) for each in (offsets, sizes))
        chunks = list(map(meta.ChunkStorageMetadata, offsets, sizes))
        whole = sizes[0] if share and len(rows) == 1 else torch.Size([sum(rows)])
        entries[name] = meta.TensorStorageMetadata(properties(choose.choice(DTYPES)), whole, chunks)
        for number, chunk in enumerate(chunks):
            file = f"__{choose.choice((0, 0, 0, 1, 12))}_0.distcp"
            known = name if share else "".join(list(name))
            index = meta.MetadataIndex(known, chunk.offsets, number if share else None)
            places[index] = _StorageInfo(file, 1000 * len(places) + choose.choice(NUMBERS), 900)
        if choose.random() < 0.3:
            entries[f"{name}._extra_state/shard_0_1"] = meta.BytesStorageMetadata()
            index = meta.MetadataIndex(f"{name}._extra_state/shard_0_1")
            places[index] = _StorageInfo("__0_0.distcp", choose.choice(NUMBERS), 5)
    return meta.Metadata(entries, storage_data=places)


def dump(folder: Path, found: meta.Metadata, protocol: int) -> Path:
    path = folder / ".metadata"
    path.write_bytes(pickle.dumps(found, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_all_of_it_is_what_torch_holds(tmp_path, seed, share, protocol):
    expected = make(seed, share=share)
    found = read_metadata(dump(tmp_path, expected, protocol))
    tensors = {
        name: entry
        for name, entry in expected.state_dict_metadata.items()
        if isinstance(entry, meta.TensorStorageMetadata)
    }
    assert list(found.tensors) == list(tensors)
    assert set(found.objects) == expected.state_dict_metadata.keys() - tensors.keys()
    for name, entry in tensors.items():
        one = found.tensors[name]
        assert (one.shape, f"torch.{one.dtype}") == (entry.size, str(entry.properties.dtype))
        for (box, place), chunk in zip(one.blocks, entry.chunks, strict=True):
            info = expected.storage_data[meta.MetadataIndex(name, chunk.offsets)]
            assert box == Box(tuple(chunk.offsets), tuple(chunk.sizes))
            assert place is not None
            assert place[:4] == (info.relative_path, info.offset, info.length, False)
    rows = {(row.relative_path, row.offset) for row in expected.storage_data.values()}
    assert {place[:2] for place in list_places(tmp_path / ".metadata")} == rows


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_lies_behind_many_alike_is_looked_at_too(tmp_path, protocol):
    class Asks:
        def __reduce__(self) -> Any:
            return eval, ("1",)

    found = make(0, share=False)
    found.planner_data = [found.storage_data, Asks()]
    with pytest.raises(UnsafeContentError, match="eval"):
        read_metadata(dump(tmp_path, found, protocol))


@pytest.mark.parametrize("at", [5, 40, 80])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda entry: setattr(entry, "size", (8, -1)), "not a few sizes"),
        (lambda entry: setattr(entry, "size", "8"), "no size in a TensorStorageMetadata"),
        (lambda entry: setattr(entry, "chunks", None), "no chunks in a TensorStorageMetadata"),
        (lambda entry: setattr(entry.chunks[0], "sizes", None), "no sizes in a Chunk"),
        (lambda entry: setattr(entry, "properties", None), "no properties in a Tensor"),
    ],
)
def test_one_that_is_malformed_among_many_is_said(tmp_path, at, fault, said):
    found = make(1, share=False)
    tensors = [e for e in found.state_dict_metadata.values() if hasattr(e, "chunks")]
    fault(tensors[at])
    with pytest.raises(FormatError, match=said):
        read_metadata(dump(tmp_path, found, 4))
