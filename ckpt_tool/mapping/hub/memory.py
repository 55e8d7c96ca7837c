"""The model as the Hub has it -> its tensors in memory, by the way from memory to the Hub.

That way is geometry, so it can be gone once with tensors whose elements are only places in a tensor
in memory: where each element of the Hub's comes from is where it has to go back to. No family needs
a rule for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.hub.library import find_unknown, quieten
from ckpt_tool.mapping.hub.loader import take_untied
from ckpt_tool.mapping.hub.names import split_fused, to_hub
from ckpt_tool.mapping.hub.transformers_tables import build_known
from ckpt_tool.tensors.chunks import Chunk, Region
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.geometry import Box, Shape, make_strides, unravel
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.tiled import Block, TiledTensor


def to_memory(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> Tensors:
    """Tensors of a model on the Hub by the names, and in the layouts, of its class in memory.

    Of a tensor of which a part is missing there is nothing; what belongs to none is left out.
    MappingError where transformers does not know the class, or cannot build it.
    """
    unknown = find_unknown(config)
    if unknown:
        raise MappingError(
            f"what the tensors of model type {config.model_type} are in memory is not known:"
            f" {unknown}"
        )
    with quieten():
        state = take_untied(build_known(config))
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    places = {name: _make_places(name, shape) for name, shape in shapes.items() if all(shape)}
    on_hub = to_hub(HubModel(places, config)).tensors
    if not on_hub.keys() <= tensors.keys():  # of experts that may be fused on the Hub, or not
        on_hub = split_fused(on_hub, config)
    blocks: dict[str, list[Block]] = {}
    for name in on_hub.keys() & tensors.keys():
        for chunk in on_hub[name].chunks:
            source = chunk.region.path
            blocks.setdefault(source, []).append(_put_back(chunk, tensors[name], shapes[source]))
    return {
        name: TiledTensor(shapes[name], tuple(found), ()).tensor()
        for name, found in blocks.items()
        if sum(block.tensor.numel for block in found) == places[name].numel
    }


def _make_places(name: str, shape: Shape) -> LazyTensor:
    """A tensor whose elements stand for those of the tensor ``name`` in memory."""
    region = Region(name, 0, make_strides(shape))
    return LazyTensor(shape, FLOAT32, FLOAT32, (Chunk(Box((0,) * len(shape), shape), region),))


def _put_back(chunk: Chunk, tensor: LazyTensor, shape: Shape) -> Block:
    """The part of ``tensor`` that a chunk of places is about, as a block of one of ``shape``."""
    offsets = unravel(chunk.region.offset // FLOAT32.itemsize, shape)
    strides, part = make_strides(shape), tensor
    for dim, (start, size) in enumerate(zip(*chunk.box, strict=True)):
        part = part.narrow(dim, start, size)
    goes_to: list[int] = []
    for dim in reversed(range(len(part.shape))):
        if part.shape[dim] == 1:
            part = part.select(dim, 0)
        else:
            steps = (d for d, size in enumerate(shape) if size > 1)
            goes_to.insert(0, next(d for d in steps if strides[d] == chunk.region.strides[dim]))
    part = _sort_dims(part, goes_to)
    for dim in range(len(shape)):
        if dim not in goes_to:
            part = part.unsqueeze(dim)
    return Block(offsets, part)


def _sort_dims(tensor: LazyTensor, keys: Sequence[int]) -> LazyTensor:
    """The tensor with its dimensions in the order of their keys."""
    order = list(keys)
    for at in range(len(order)):
        least = min(range(at, len(order)), key=order.__getitem__)
        order[at], order[least] = order[least], order[at]
        tensor = tensor.transpose(at, least)
    return tensor
