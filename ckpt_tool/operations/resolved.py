"""A model after its adapters were dealt with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ckpt_tool.mapping.lora.options import AdapterFiles, LoraNote
from ckpt_tool.readers.base import Checkpoint
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Resolved:
    """A model's tensors after its adapters were dealt with.

    ``note`` is None where there are none. ``dropped`` are names that are left out, and why;
    ``base`` the checkpoint that most tensors are of, where the adapters came without it.
    """

    tensors: dict[str, LazyTensor]
    note: LoraNote | None = None
    files: AdapterFiles | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    base: Checkpoint | None = None

    def with_base(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with the files of the base that its adapters were fused into."""
        if self.base is None:
            return checkpoint
        return replace(checkpoint, files=(*checkpoint.files, *self.base.files))
