"""Latent attention with an indexer, which megatron-core describes for Transformer Engine only."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm

from ckpt_tool.mapping.megatron.numbers import Numbers
from ckpt_tool.plans.checks.megatron_child.cpu import UnknownModelError


class _WholeLinear(torch.nn.Module):
    """A linear layer that every rank has whole; it never runs here."""

    def __init__(self, input_size: int, output_size: int, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(output_size, input_size))


def describe_indexer(numbers: Numbers, *, hybrid: bool) -> dict[str, Any]:
    """What the config of megatron-core says of it.

    In a ``hybrid`` model attention is every second layer. UnknownModelError where it cannot say
    which layers have one.
    """
    every, first = _find_steps(numbers.kinds)
    if hybrid and every > 1:
        every, first = 2 * every, 2 * first - 1
    return {
        "dsa_indexer_n_heads": numbers.sizes["index_heads"],
        "dsa_indexer_head_dim": numbers.sizes["index_head"],
        "dsa_indexer_topk": 1,  # of no account
        "dsa_indexer_topk_freq": every,
        "dsa_indexer_skip_topk_offset": first,
    }


def _find_steps(kinds: Sequence[str]) -> tuple[int, int]:
    """After how many layers one in how many has an indexer: ``is_dsa_skip_topk_layer``."""
    count = len(kinds)
    wanted = [kind == "shared" for kind in kinds]
    for every in range(1, count + 1):
        for first in range(1, count + 1):
            steps = (max(layer + 1 - first, 0) % every for layer in range(count))
            if [bool(step) for step in steps] == wanted:
                return every, first
    if "shared" in kinds:
        raise UnknownModelError("there, layers share an indexer at regular distances only")
    return 1, 0


def use_indexers(layers: Iterable[ModuleSpec]) -> None:
    """Give described layers such attention. UnknownModelError before 0.19."""
    if find_spec("megatron.core.transformer.mla_qk_norm_config") is None:
        raise UnknownModelError("latent attention with an indexer is there since 0.19")
    from megatron.core.transformer.experimental_attention_variant import absorbed_mla, dsa

    indexer = dsa.DSAIndexerSubmodules(_WholeLinear, _WholeLinear, WrappedTorchNorm, _WholeLinear)
    core = dsa.DSAttentionSubmodules(ModuleSpec(dsa.DSAIndexer, submodules=indexer))
    names = ("q_proj", "q_down_proj", "q_up_proj", "kv_down_proj", "kv_up_proj")
    parts = absorbed_mla.AbsorbedMLASelfAttentionSubmodules(
        **{f"linear_{name}": ColumnParallelLinear for name in names},
        core_attention=ModuleSpec(dsa.DSAttention, submodules=core),
        linear_proj=RowParallelLinear,
        q_layernorm=WrappedTorchNorm,
        kv_layernorm=WrappedTorchNorm,
    )

    class Attention(absorbed_mla.AbsorbedMLASelfAttention):  # type: ignore[misc]
        """Told what it is: descriptions of local layers refuse a config that says it."""

        def __init__(self, config: Any, *rest: Any, **options: Any) -> None:
            config = copy.copy(config)
            config.experimental_attention_variant = "dsa"
            super().__init__(config, *rest, **options)

    described = ModuleSpec(
        Attention, params={"attn_mask_type": AttnMaskType.causal}, submodules=parts
    )
    for layer in layers:
        layer.submodules.self_attention = described
