"""Attention with as many heads as the layer's kind has, as trainers of Step-3.5 bring it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any

from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from ckpt_tool.mapping.megatron.numbers import Numbers
from ckpt_tool.plans.checks.megatron_child.cpu import UnknownModelError, read_release


def vary_heads(layers: Iterable[ModuleSpec], kinds: Sequence[str], numbers: Numbers) -> None:
    """Have described layers be of these ``kinds``, which they find by their number.

    UnknownModelError where megatron-core's attention has no gates.
    """
    if read_release() < (0, 16):
        raise UnknownModelError("heads have gates there since 0.16")
    sizes = numbers.sizes
    sliding = {
        "num_attention_heads": sizes["sliding_heads"],
        "num_query_groups": sizes["sliding_groups"],
        "kv_channels": sizes["sliding_head"],
    }

    class Attention(SelfAttention):  # type: ignore[misc]
        def __init__(
            self, config: TransformerConfig, submodules: Any, layer_number: int, **options: Any
        ) -> None:
            config = copy(config)
            # Before 0.19 what predicts further is numbered on from the layers.
            behind = numbers.layers if layer_number > len(kinds) else 0
            if kinds[layer_number - behind - 1] == "sliding_attention":
                vars(config).update(sliding)
            super().__init__(config, submodules, layer_number, **options)

    for layer in layers:
        layer.submodules.self_attention.module = Attention
