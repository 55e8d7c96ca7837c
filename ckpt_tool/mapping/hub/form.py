"""A model on its way to the Hub: what every step of naming takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.lora.options import AdapterFiles, LoraNote
from ckpt_tool.tensors.dtypes import DType
from ckpt_tool.tensors.lazy import LazyTensor

Tensors = dict[str, LazyTensor]


@dataclass(frozen=True)
class View:
    """One of the classes that open the same files: its config, and the tensors it ignores."""

    config: ModelConfig
    ignored: frozenset[str]


@dataclass(frozen=True)
class Tie:
    """A tensor that repeats another one, as its class says; ``source``: the name of that."""

    copy: LazyTensor
    source: str
    original: LazyTensor


@dataclass(frozen=True)
class Copies:
    """Rows that have to be equal: of ``rows`` [N * times, ...] each ``times`` that follow.

    ``where``: the tensor of the checkpoint that they are in.
    """

    where: str
    rows: LazyTensor
    times: int


@dataclass(frozen=True)
class HubModel:
    """A model's tensors by name, its config, and what was done to get there.

    ``config`` is None where names are kept as they are in the checkpoint. Set aside until names are
    the Hub's are ``head``, trl's value head, and ``repeats``, what the Hub's form has twice and the
    checkpoint once. ``dropped`` maps names that are left out on purpose to the reason, ``tied``
    those of them that repeat another tensor to its name.
    ``adapter``: what is written for peft; ``lora``: what was done with adapters. ``views``: where
    several classes open the same files, each of them, the config's own first. ``ties``: set aside
    is what the class says repeats another tensor, by name; None where it was not asked.
    ``copies``: what the Hub has once of what the checkpoint has several times, by its name there.
    """

    tensors: Tensors
    config: ModelConfig | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    lora: LoraNote | None = None
    adapter: AdapterFiles | None = None
    views: tuple[View, ...] = ()
    head: Tensors = field(default_factory=dict)
    repeats: Tensors = field(default_factory=dict)
    ties: dict[str, Tie] | None = None
    tied: dict[str, str] = field(default_factory=dict)
    copies: dict[str, Copies] = field(default_factory=dict)

    @property
    def is_adapter(self) -> bool:
        """Whether there is no model, only an adapter folder."""
        return self.adapter is not None and not self.adapter.folder

    def with_dtype(self, dtype: DType | None) -> HubModel:
        """The model whose configs name the dtype of the weights as written."""
        if self.config is None:
            return self
        views = tuple(replace(view, config=view.config.with_dtype(dtype)) for view in self.views)
        return replace(self, config=self.config.with_dtype(dtype), views=views)
