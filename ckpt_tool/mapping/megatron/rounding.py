"""What Megatron does not hold bit for bit: norms that it counts from another number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ckpt_tool.mapping.megatron.bindings import Binding
from ckpt_tool.mapping.megatron.gated_ops import CountedFromZero
from ckpt_tool.tensors.lazy import LazyTensor


def round_as_stored(
    tensors: Mapping[str, LazyTensor], bindings: Iterable[Binding]
) -> dict[str, LazyTensor]:
    """The Hugging Face tensors as they will come back; what is stored as it is, is the same one.

    A norm from 0.5 on comes back bit for bit as well.
    """
    found = dict(tensors)
    for binding in bindings:
        if isinstance(binding.op, CountedFromZero):
            stored = binding.op.join([tensors[name] for name in binding.hf])
            found.update(
                zip(binding.hf, binding.op.split([whole for (whole,) in stored]), strict=True)
            )
    return found
