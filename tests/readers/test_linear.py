"""Crafted files of few bytes: time and memory are linear in these, or there is a clear error.

Each of them once took minutes, gigabytes, or for ever: what holds itself many times over was walked
as often as it says, what is shared by many was read for each.
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tool.common.errors import CkptError
from ckpt_tool.readers import open_checkpoint
from tests.support.crafted import (
    FLOAT32,
    SHARDED,
    Call,
    Name,
    Persistent,
    Raw,
    archive,
    dtensor,
    dumps,
    floats,
    longs,
    mesh,
    placement,
    storage,
    subclass,
    tensor,
)
from tests.support.limited import run_limited

MANY = 4_000
#: A tuple of two of a tuple of two of ..., which has 2**60 empty ones in it.
NESTED = Raw(b")" + b"2\x86" * 60)
MEBIBYTE = 1 << 20
CODES = Name("_codecs", "encode")


def rank_file(folder: Path, state: object, storages: dict[str, bytes] | None = None) -> Path:
    storages = storages or {"0": floats(1, 2)}
    return archive(folder / "model_world_size_1_rank_0.pt", dumps(state), storages)


def value() -> Call:
    return tensor(storage("0", 2), (2,), (1,))


def metadata(folder: Path, entries: dict, places: dict) -> Path:
    """A folder of torch.distributed.checkpoint, as far as its ``.metadata`` goes."""
    kind = Name("torch.distributed.checkpoint.metadata", "Metadata")
    state = {"state_dict_metadata": entries, "storage_data": places}
    (folder / ".metadata").write_bytes(dumps(Call(kind, (), state)))
    return folder


def of_plan(kind: str, **state: object) -> Call:
    return Call(Name("torch.distributed.checkpoint.metadata", kind), (), state)


def stored(shape: tuple, chunks: list) -> Call:
    properties = Call(Name("torch.distributed.checkpoint.metadata", "TensorProperties"), (), ())
    properties = Call(properties.function, (), (FLOAT32,))
    return of_plan("TensorStorageMetadata", size=shape, chunks=chunks, properties=properties)


def block(offsets: tuple, sizes: tuple) -> Call:
    return of_plan("ChunkStorageMetadata", offsets=offsets, sizes=sizes)


def key_that_holds_itself(folder: Path) -> Path:
    held = Persistent(("storage", Name("torch", "FloatStorage"), NESTED, "cpu", 2))
    return rank_file(folder, {"w": tensor(held, (2,), (1,))})


def metadata_that_hold_themselves(folder: Path) -> Path:
    return rank_file(folder, {"w": tensor(storage("0", 2), (2,), (1,), metadata=(NESTED,))})


def mesh_whose_name_holds_itself(folder: Path) -> Path:
    ranks = tensor(storage("1", 1, "LongStorage"), (1,), (1,))
    state = dtensor(value(), (2,), [placement("Replicate")], mesh(ranks, (NESTED,)))
    return rank_file(folder, {"w": state}, {"0": floats(1, 2), "1": longs(0)})


def integer_as_key_again_and_again(folder: Path) -> Path:
    number = b"\x8b" + struct.pack("<i", MEBIBYTE) + b"\x01" * MEBIBYTE
    return rank_file(folder, Raw(b"}" + number + b"q\x00N" + b"sh\x00N" * MANY + b"s"))


def integers_of_one_hash(folder: Path) -> Path:
    return rank_file(folder, {number * (2**61 - 1): None for number in range(MANY)})


def text_encoded_again_and_again(folder: Path) -> Path:
    text = "x" * MEBIBYTE
    return rank_file(folder, [Call(CODES, (text, "latin1")) for _ in range(MANY)])


def names_that_are_long(folder: Path) -> Path:
    text = b"X" + struct.pack("<I", MEBIBYTE) + b"x" * MEBIBYTE + b"q\x00"
    return rank_file(folder, Raw(text + b"h\x00\x930h\x00" * MANY))


def storages_whose_key_is_long(folder: Path) -> Path:
    key = "x" * MEBIBYTE
    state = {f"w{n}": tensor(storage(key, 2), (2,), (1,)) for n in range(MANY)}
    return rank_file(folder, state)


def tensors_whose_name_is_long(folder: Path) -> Path:
    return rank_file(folder, {"x" * MEBIBYTE: value()})


def placements_of_many(folder: Path) -> Path:
    shared = tuple(placement("Replicate") for _ in range(MANY))
    ranks = tensor(storage("1", 1, "LongStorage"), (1,), (1,))
    state = {}
    for number in range(MANY):
        state[f"w{number}"] = found = dtensor(value(), (2,), (), mesh(ranks))
        found.args[3]["_spec"].state["placements"] = shared
    return rank_file(folder, state, {"0": floats(1, 2), "1": longs(0)})


def shards_of_many(folder: Path) -> Path:
    shared = [None] * MANY
    state = {f"w{n}": subclass(SHARDED, FLOAT32, (2,), (shared, None)) for n in range(MANY)}
    return rank_file(folder, state)


def meshes_of_more_ranks_than_bytes(folder: Path) -> Path:
    ranks = [tensor(storage("1", 8, "LongStorage"), (1 << 22,), (0,), at) for at in range(8)]
    state = {
        f"w{at}": dtensor(value(), (2,), [placement("Replicate")], mesh(each))
        for at, each in enumerate(ranks)
    }
    return rank_file(folder, state, {"0": floats(1, 2), "1": longs(*range(8))})


def one_chunk_in_place_of_many(folder: Path) -> Path:
    path = folder / "mp_rank_00"
    path.mkdir()
    chunk = {f"decoder.layers.{n}.weight": value() for n in range(200)}
    archive(path / "model.pt", dumps([chunk] * MANY), {"0": floats(1, 2)})
    return folder


def object_whose_name_holds_itself(folder: Path) -> Path:
    name = Call(Name("torch.distributed.checkpoint.metadata", "MetadataIndex"), (NESTED,))
    return metadata(folder, {name: None}, {})


def blocks_of_many(folder: Path) -> Path:
    shared = [block((0,), (1,))] * MANY
    return metadata(folder, {f"w{n}": stored((1,), shared) for n in range(MANY)}, {})


def blocks_across_each_other(folder: Path) -> Path:
    dims = 40
    shape = (2,) * dims
    halves = [
        block(tuple(at if d == dim else 0 for d in range(dims)), (2,) * dim + (1,) + (2,) * rest)
        for dim, rest in zip(range(dims), reversed(range(dims)), strict=True)
        for at in (0, 1)
    ]
    return metadata(folder, {"w": stored(shape, halves)}, {})


def blocks_in_one_place(folder: Path) -> Path:
    pickle = dumps(["x" * MEBIBYTE])
    path = archive(folder / "__0_0.distcp", pickle, {"0": floats(1)})
    info = Name("torch.distributed.checkpoint.filesystem", "_StorageInfo")
    state = {"relative_path": path.name, "offset": 0, "length": path.stat().st_size}
    entries = {f"w{n}": stored((1,), [block((0,), (1,))]) for n in range(MANY)}
    places = {of_plan("MetadataIndex", fqn=name, offset=(0,)): Call(info, (), state)
              for name in entries}  # fmt: skip
    return metadata(folder, entries, places)


def metadata_of_holes(folder: Path) -> Path:
    (folder / ".metadata").touch()
    os.truncate(folder / ".metadata", 1 << 40)
    return folder


def rank_file_of_holes(folder: Path) -> Path:
    path = folder / "model_world_size_1_rank_0.pt"
    path.touch()
    os.truncate(path, 1 << 40)
    return path


def pipe_in_place_of_a_rank(folder: Path) -> Path:
    os.mkfifo(folder / "model_world_size_1_rank_0.pt")
    return folder


def pipe_in_place_of_weights(folder: Path) -> Path:
    os.mkfifo(folder / "model.safetensors")
    return folder


def links_that_lead_back(folder: Path) -> Path:
    (folder / "iter_0000001").mkdir()
    for name in ("actor", "critic", "policy", "iter_0000001/actor"):
        (folder / name).symlink_to(folder)
    return folder


def header_of_many_dimensions(folder: Path) -> Path:
    row = {"dtype": "F32", "shape": [2**47] * 50 * MANY, "data_offsets": [0, 0]}
    text = json.dumps({"w": row}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return folder


def one_of_many_files(folder: Path) -> Path:
    for number in range(200):
        (folder / f"model-00001-of-{99999 - number}.safetensors").write_bytes(b"")
    return folder


def shards_of_far_numbers(folder: Path) -> Path:
    for number in range(0, 10**9, 10**6):
        (folder / f"shard-{number + 1:05d}-model-00001-of-{10**9 - 1 - number}.safetensors").touch()
    return folder


#: What makes a checkpoint, and what is said of it; nothing where it is read.
CRAFTED: dict[Callable[[Path], Path], str] = {
    key_that_holds_itself: "a malformed storage: a tuple",
    metadata_that_hold_themselves: "lazy conjugation or negation (a tuple)",
    mesh_whose_name_holds_itself: "",
    integer_as_key_again_and_again: "an integer of 1048576 bytes",
    integers_of_one_hash: "a pickled int as a key, or one too long for a name",
    text_encoded_again_and_again: "the same long text again and again",
    names_that_are_long: "a name of 1048576 characters",
    storages_whose_key_is_long: "a malformed storage: 'xxx",
    tensors_whose_name_is_long: "a pickled str as a key, or one too long for a name",
    placements_of_many: "longer than any that torch writes",
    shards_of_many: "longer than any that torch writes",
    meshes_of_more_ranks_than_bytes: "device meshes of more ranks than their file has bytes",
    one_chunk_in_place_of_many: "one state dict in place of several",
    object_whose_name_holds_itself: "",
    blocks_of_many: "more blocks than it has room for",
    blocks_across_each_other: "cut across each other in more ways than any writer cuts a tensor",
    blocks_in_one_place: "at byte 0 of __0_0.distcp, in that of w0",
    metadata_of_holes: "has 1099511627776 bytes, expected metadata only",
    rank_file_of_holes: "no zip directory at its end",
    pipe_in_place_of_a_rank: "not a regular file",
    pipe_in_place_of_weights: "not a regular file",
    links_that_lead_back: "no checkpoint of a known format",
    header_of_many_dimensions: "w: a malformed row",
    shards_of_far_numbers: "shard 2-1000000, 1000002-2000000, ",
    one_of_many_files: "file 2-99999 of 99999 is not there, and there is no index",
}


def look(path: Path) -> str:
    """What is said of a checkpoint, by a problem or an error of ours."""
    try:
        problems = open_checkpoint(path).problems
    except CkptError as error:
        return error.message
    return "\n".join(str(problem) for problem in problems)


@pytest.mark.slow
@pytest.mark.parametrize("craft", CRAFTED, ids=lambda craft: craft.__name__)
def test_what_is_crafted_takes_no_longer_than_its_bytes(craft, tmp_path):
    path = craft(tmp_path)
    said = run_limited(lambda: look(path))
    if not CRAFTED[craft]:
        assert said == ""
    assert CRAFTED[craft] in said
