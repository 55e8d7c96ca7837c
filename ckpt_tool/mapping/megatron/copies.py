"""What Megatron's tensors have several times and the Hub once: rows that have to be equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckpt_tool.mapping.hub.form import Copies
from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.mapping.megatron.entries import Slices, select_entry
from ckpt_tool.mapping.megatron.head_gate_ops import HeadGates
from ckpt_tool.tensors.lazy import LazyTensor


def find_gates(tensors: Mapping[str, LazyTensor], bindings: Iterable[Binding]) -> dict[str, Copies]:
    """The gates of heads, by the names on the Hub of the one row of each; reads nothing.

    ``tensors``: Megatron's, which have the shapes that the bindings say.
    """
    found: dict[str, Copies] = {}
    slices: Slices = {}
    for binding in bindings:
        if isinstance(binding.op, HeadGates):
            (name,) = binding.names
            rows = binding.op.find_gates(select_entry(name, binding, tensors, slices))
            where = name + "".join(f"[{index}]" for index in binding.index)
            found[binding.hf[-1]] = Copies(where, rows, binding.op.head_dim)
    return found
