"""Does the model load the checkpoint? First by names and shapes, then by loading all of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, apply_factories
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from ckpt_tool.plans.checks.megatron_child.cpu import replace_attribute
from ckpt_tool.plans.checks.megatron_child.names import list_engine_states, rename_to_engine

#: At most this much is loaded at a time, unless one tensor is larger.
GROUP_BYTES = 256 << 20

#: What no module of megatron-core has: trainers bring their own around a tower's blocks.
_FOREIGN = (
    "vision_model.patch_embed.",
    "vision_model.pos_embed.",
    "vision_model.merger.",
    "vision_model.decoder.deepstack_merger_list.",
    "multi_modal_projector.",
    "lightning_indexers.",
)

#: A loader that misses a key quotes all keys there are.
_QUOTED = 600


class LoadFaultError(Exception):
    """The model does not load the checkpoint; ``faults`` says why, line by line."""

    def __init__(self, message: str, faults: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)


@dataclass(frozen=True)
class Wanted:
    """What the model asks for, under the keys on disk."""

    tensors: list[ShardedTensor]
    objects: list[ShardedObject]

    @classmethod
    def of(cls, state: dict[str, Any]) -> Wanted:
        """What a local model asks for with Transformer Engine's layers in place of its own."""
        apply_factories(state)
        entries = list(nested_values(state))
        tensors = [entry for entry in entries if isinstance(entry, ShardedTensor)]
        objects = [entry for entry in entries if isinstance(entry, ShardedObject)]
        rename_to_engine([*tensors, *objects])
        return cls(tensors, objects + list_engine_states(tensors))


def check(state: dict[str, Any], folder: str, towers: tuple[str, ...] = ()) -> int:
    """Compare and load; the number of tensors that were asked for.

    ``towers``: prefixes of what is no part of megatron-core's model.
    LoadFaultError names everything that is missing, unexpected or of another shape, or quotes what
    megatron-core says of a checkpoint that it cannot read.
    """
    wanted = Wanted.of(state)
    try:
        metadata = FileSystemReader(folder).read_metadata()
    except Exception as error:  # whatever a pickle raises
        raise LoadFaultError(f"cannot read .metadata: {_quoted(error)}") from error
    faults = _compare(wanted, metadata, towers)
    if faults:
        raise LoadFaultError("does not load this", faults)
    # Each load would read the list of all blocks anew: of a large model that takes seconds.
    with replace_attribute(FileSystemReader, "read_metadata", lambda *_, **__: metadata):
        for group in _groups(wanted):
            _load(group, folder)
    return len({tensor.key for tensor in wanted.tensors})


def _compare(wanted: Wanted, metadata: Metadata, towers: tuple[str, ...]) -> list[str]:
    """Every difference between what is asked for and what is there.

    States that nothing asks for are as they should be: which modules ask depends on the release.
    """
    there = metadata.state_dict_metadata
    shapes = {tensor.key: tuple(tensor.global_shape) for tensor in wanted.tensors}
    keys = dict.fromkeys(entry.unique_key for entry in wanted.objects)
    missing = [f"missing: {key} {list(shape)}" for key, shape in shapes.items() if key not in there]
    missing += [f"missing: {key}" for key in keys if key not in there]
    unexpected, mismatched = [], []
    for key, entry in there.items():
        if not isinstance(entry, TensorStorageMetadata) or key.startswith(_FOREIGN + towers):
            continue
        if key not in shapes:
            unexpected.append(f"unexpected: {key}")
        elif tuple(entry.size) != shapes[key]:
            expected = list(shapes[key])
            mismatched.append(f"mismatched: {key}: {list(entry.size)}, expected {expected}")
        elif _volume(entry) != entry.size.numel():
            mismatched.append(
                f"incomplete: {key}: blocks of {_volume(entry):,} elements,"
                f" expected {entry.size.numel():,}"
            )
    return missing + unexpected + mismatched


def _volume(entry: TensorStorageMetadata) -> int:
    """How many elements all blocks have: a loader leaves what no block covers as it was."""
    return sum(math.prod(chunk.sizes) for chunk in entry.chunks)


def _load(group: dict[str, Any], folder: str) -> None:
    """Load some of the pieces; strict, that is: all of them have to be there."""
    try:
        dist_checkpointing.load(group, folder, validate_access_integrity=False)
    except (Exception, CheckpointException) as error:  # whatever reading files raises
        raise LoadFaultError(f"fails to load this: {_quoted(error)}") from error


def _groups(wanted: Wanted) -> Iterator[dict[str, Any]]:
    """Sharded states to load one after the other, so that memory stays bounded."""
    yield {str(number): entry for number, entry in enumerate(wanted.objects)}
    group: dict[str, Any] = {}
    size = 0
    for number, tensor in enumerate(wanted.tensors):
        nbytes = math.prod(tensor.local_shape) * tensor.dtype.itemsize
        if group and size + nbytes > GROUP_BYTES:
            yield group
            group, size = {}, 0
        group[str(number)] = _materialised(tensor)
        size += nbytes
    yield group


def _materialised(tensor: ShardedTensor) -> ShardedTensor:
    """The piece with memory, by itself: a piece of a stack would otherwise need all its layers."""
    shape = (1,) * tensor.prepend_axis_num + tuple(tensor.local_shape)
    data = torch.empty(shape, dtype=tensor.dtype)
    return replace(tensor, data=data, local_shape=shape, prepend_axis_num=0)


def _quoted(error: BaseException) -> str:
    """The error in a line; of one that collects those of all ranks, the first."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]} ..."
