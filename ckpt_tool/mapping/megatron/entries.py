"""An entry of a stacked tensor of Megatron's: that of a layer, or of a layer and an expert."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.tensors.geometry import Shape
from ckpt_tool.tensors.lazy import LazyTensor

#: Per name and depth, which slice was cut last, and it.
Slices = dict[tuple[str, int], tuple[Shape, LazyTensor]]


def select_entry(
    name: str, binding: Binding, tensors: Mapping[str, LazyTensor], slices: Slices
) -> LazyTensor:
    """The entry of the leading axes; the last slice of an outer axis is kept, for its entries.

    ValueError where the tensor has not as many entries as the binding says.
    """
    found = tensors[name]
    if found.shape[: len(binding.extent)] != binding.extent:
        raise ValueError(f"expected {list(binding.extent)} as its first sizes")
    for depth, index in enumerate(binding.index, 1):
        if depth == len(binding.index):
            return found.select(0, index)
        where, kept = binding.index[:depth], slices.get((name, depth))
        if kept is None or kept[0] != where:
            kept = slices[name, depth] = where, found.select(0, index)
        found = kept[1]
    return found
