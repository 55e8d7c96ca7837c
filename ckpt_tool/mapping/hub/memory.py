"""The model as the Hub has it -> its tensors in memory, by the way from memory to the Hub.

That way is geometry, so it can be gone once with tensors whose elements are only places in a tensor
in memory: where each element of the Hub's comes from is where it has to go back to. No family needs
a rule for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.hub.library import find_unknown, quieten
from ckpt_tool.mapping.hub.loader import take_untied
from ckpt_tool.mapping.hub.names import split_fused, to_hub
from ckpt_tool.mapping.hub.saved_names import use_published_names
from ckpt_tool.mapping.hub.transformers_tables import (
    build_known,
    make_places,
    name_without_prefixes,
)
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.dtypes import FLOAT32
from ckpt_tool.tensors.geometry import Shape, make_strides, unravel
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.tiled import Block, TiledTensor


@dataclass(frozen=True)
class InMemory:
    """A model as its class has it: tensors by their names there; the names of the ``rest``.

    The rest has no place in the class, or is of a tensor of which a part is missing.
    """

    tensors: Tensors
    rest: frozenset[str]


def to_memory(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> InMemory:
    """Tensors of a model on the Hub by the names, and in the layouts, of its class in memory.

    MappingError where transformers does not know the class or cannot build it, or shapes are others
    than its.
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
    places = {name: make_places(name, shape) for name, shape in shapes.items() if all(shape)}
    on_hub = _choose_form(places, tensors.keys(), config)
    _require_geometry(on_hub, config)
    _require_shapes(tensors, on_hub)
    blocks: dict[str, list[Block]] = {}
    for name in on_hub.keys() & tensors.keys():
        for chunk in on_hub[name].chunks:
            source = chunk.region.path
            blocks.setdefault(source, []).append(_put_back(chunk, tensors[name], shapes[source]))
    whole = {
        name: TiledTensor(shapes[name], tuple(found), ()).tensor()
        for name, found in blocks.items()
        if sum(block.tensor.numel for block in found) == places[name].numel
    }
    used = {
        name
        for name, place in on_hub.items()
        if all(chunk.region.path in whole for chunk in place.chunks)
    }
    return InMemory(whole, frozenset(tensors.keys() - used))


def _require_geometry(on_hub: Tensors, config: ModelConfig) -> None:
    computed = [name for name, place in on_hub.items() if place.is_computed]
    if computed:
        raise MappingError(
            f"model type {config.model_type}: on the Hub its weights are rearranged, in a way that"
            " is not undone here",
            computed,
        )


def _choose_form(places: Tensors, names: Set[str], config: ModelConfig) -> Tensors:
    """The form of the Hub that has the most of these names."""
    forms = [to_hub(HubModel(places, config)).tensors]
    if config.family.hub is None:
        forms.append(name_without_prefixes(places, config))
        forms.append(use_published_names(forms[0], config))
    else:  # of experts that may be fused on the Hub, or not
        forms.append(split_fused(forms[0], config))
    return max(forms, key=lambda form: len(form.keys() & names))


def _require_shapes(tensors: Mapping[str, LazyTensor], on_hub: Tensors) -> None:
    faults = [
        f"{name}: shape {list(tensors[name].shape)}, expected {list(place.shape)}"
        for name, place in on_hub.items()
        if name in tensors and tensors[name].shape != place.shape
    ]
    if faults:
        raise MappingError("a model folder whose tensors are not what its config says", faults)


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
