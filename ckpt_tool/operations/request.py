"""What the steps from a checkpoint to a model on the Hub are told beside the model."""

from __future__ import annotations

from dataclasses import dataclass, field

from ckpt_tool.mapping.hub.form import HubModel, Tensors
from ckpt_tool.mapping.lora.resolve import Place
from ckpt_tool.operations.beside import lacks_model
from ckpt_tool.operations.options import ModelOptions
from ckpt_tool.operations.source import list_adapter_folders, list_roots
from ckpt_tool.readers.base import Checkpoint


@dataclass(frozen=True)
class Heads:
    """What is wanted of heads: ``tied`` to the embedding, of a ``value`` model; None: as it is."""

    tied: bool | None = None
    value: bool | None = None


@dataclass(frozen=True)
class Request:
    """Where the model is from, what its adapters are fused into, and how it is to be named.

    ``writes``: it is to be written, not compared. ``absent``: what of the base no model of
    Megatron's has, where it is one of these that is fused.
    """

    checkpoint: Checkpoint
    base: HubModel | None
    options: ModelOptions
    heads: Heads
    writes: bool = False
    absent: Tensors = field(default_factory=dict)

    @property
    def keeps_adapters(self) -> bool:
        """Whether adapters stay as they are where no config explains the model.

        Adapters alone need none to become a folder for peft.
        """
        if self.options.lora.asked:
            return False
        return not self.writes or self.options.keep_names or not lacks_model(self.checkpoint)

    @property
    def place(self) -> Place:
        """Where adapters are from, and what may describe them."""
        checkpoint = self.checkpoint
        return Place(checkpoint.path, list_adapter_folders(checkpoint), list_roots(checkpoint))
