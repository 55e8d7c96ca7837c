"""Adapters as they were taken out of a state dict: plain data, by the names that modules have."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Module:
    """A module with a low-rank update: A [r, in] and B [out, r].

    Of an embedding, "in" are the tokens and "out" the features; of a convolution A has the
    kernel's dimensions after them, and B ones. ``magnitude`` with DoRA: a length for each of "out".
    ``bias`` [out] is B's own.

    ``parameter``: what of the module is updated. Where peft wrapped that rather than the module
    (``by_parameter``), it may be a stack of ``experts`` matrices, each with its own r rows of A and
    every ``experts``-th column of B; ``turned``: these are [in, out]. Each wrapper around a module
    has a ``base_layer`` more in its name: ``wrapper`` is that with all of them.
    """

    name: str
    a: LazyTensor
    b: LazyTensor
    magnitude: LazyTensor | None = None
    bias: LazyTensor | None = None
    is_embedding: bool = False
    wrapper: str = ""
    parameter: str = "weight"
    by_parameter: bool = False
    experts: int = 1
    turned: bool = False

    @property
    def rank(self) -> int:
        """r, by the factors' shapes."""
        return self.a.shape[0] // self.experts

    @property
    def weight(self) -> str:
        """The name of the weight that it updates."""
        return f"{self.name}.{self.parameter}"

    @property
    def key(self) -> str:
        """What settings call it: peft looks for patterns of ranks and of alpha in this."""
        return self.weight if self.by_parameter else self.name

    @property
    def beyond_factors(self) -> dict[str, bool]:
        """Whether it has what these settings of peft add to A and B."""
        return {"use_dora": self.magnitude is not None, "lora_bias": self.bias is not None}

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of its update."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class Adapters:
    """``base``: the model without its adapters, by the names it has without them.

    ``modules`` by the names of their wrappers. ``saved``: parameters trained in place of those of
    the same names, by module and the name below it. ``tokens``: rows [n, dim] of an embedding that
    were trained in place of its own, by its module. ``beside``: where the adapters were saved
    without their model, parameters that were saved with them (biases, embeddings).
    """

    base: dict[str, LazyTensor]
    modules: dict[str, Module]
    saved: dict[str, dict[str, LazyTensor]]
    tokens: dict[str, LazyTensor] = field(default_factory=dict)
    beside: dict[str, LazyTensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """R of most modules; 0 where there is none."""
        ranks = Counter(module.rank for module in self.modules.values())
        return ranks.most_common(1)[0][0] if ranks else 0

    def trained_whole(self) -> dict[str, LazyTensor]:
        """What takes the place of a parameter of the model, by its full name."""
        saved = {
            f"{module}.{name}": tensor
            for module, found in self.saved.items()
            for name, tensor in found.items()
        }
        return saved | self.beside
