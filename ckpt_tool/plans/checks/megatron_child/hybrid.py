"""A real HybridModel of megatron-core, its GPTModel's successor; before 0.18 a MambaModel.

Its own description of layers is Transformer Engine's; here GPTModel's local one is taken apart:
attention and the MLP are layers of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from ckpt_tool.plans.checks.megatron_child.cpu import UnknownModelError, call, replace_attribute
from ckpt_tool.plans.checks.megatron_child.linear import put_delta_net
from ckpt_tool.plans.checks.megatron_child.mamba import build_without_gpu, describe_mamba
from ckpt_tool.plans.checks.megatron_child.norms import fit_norms
from ckpt_tool.plans.checks.megatron_child.sparse import use_indexers

_ATTENTION = ("input_layernorm", "self_attention", "self_attn_bda")
_MLP = ("pre_mlp_layernorm", "mlp", "mlp_bda")


def make_hybrid_model(
    config: TransformerConfig,
    pattern: str,
    latent_attention: type,
    *,
    flags: frozenset[str] = frozenset(),
    given: Mapping[str, ModuleSpec] | None = None,
    **options: Any,
) -> Any:
    """The model of the layers in ``pattern``, whose ``options`` are those of a GPTModel.

    ``flags``: what its family says of its norms, and of an indexer. ``given``: layers in place of
    those that it would have, by their names among the parts of a stack.
    ``latent_attention`` is the core of latent attention. UnknownModelError where this megatron-core
    cannot have it; raises whatever it raises of a model that it cannot build.
    """
    found = _find_classes()
    _require_layers(found, config, pattern)
    parts = _describe_parts(config, latent_attention)
    if "/" in pattern:
        parts["mtp_block_spec"] = _describe_prediction()
    if "sparse" in flags:
        parts["dsa_layer"] = parts.pop("mla_layer")
        use_indexers([parts["dsa_layer"]])
    for name in ("attention_layer", "mlp_layer") if not config.multi_latent_attention else ():
        fit_norms(parts[name], flags)
    if "M" in pattern and not given:
        parts["mamba_layer"] = describe_mamba()
    if "G" in pattern:
        parts["gdn_layer"] = put_delta_net(parts["attention_layer"])
    parts |= given or {}
    known = inspect.signature(found.parts).parameters
    parts = {name: part for name, part in parts.items() if name in known}
    stack = ModuleSpec(found.stack, submodules=found.parts(**parts))
    last_norm = replace_attribute(found.block, "TENorm", WrappedTorchNorm)
    with last_norm, build_without_gpu(config):
        return call(
            found.model,
            config=config,
            hybrid_stack_spec=stack,
            mamba_stack_spec=stack,
            hybrid_layer_pattern=pattern,
            hybrid_override_pattern=None if found.cuts else pattern.replace("|", ""),
            **options,
        )


class _Classes(NamedTuple):
    """What such a model is made of; ``block``: the module of its stack."""

    model: Any
    stack: Any
    parts: Any
    block: Any
    symbols: Any

    @property
    def cuts(self) -> bool:
        """Whether a pattern says how a pipeline is cut, and what predicts further."""
        return "hybrid_layer_pattern" in inspect.signature(self.model).parameters


def _find_classes() -> _Classes:
    try:
        from megatron.core.models.hybrid import hybrid_block, hybrid_layer_allocation, hybrid_model
    except ImportError:
        from megatron.core.models.mamba import mamba_model
        from megatron.core.ssm import mamba_block, mamba_hybrid_layer_allocation

        return _Classes(
            mamba_model.MambaModel,
            mamba_block.MambaStack,
            mamba_block.MambaStackSubmodules,
            mamba_block,
            mamba_hybrid_layer_allocation.Symbols,
        )
    return _Classes(
        hybrid_model.HybridModel,
        hybrid_block.HybridStack,
        hybrid_block.HybridStackSubmodules,
        hybrid_block,
        hybrid_layer_allocation.Symbols,
    )


def _require_layers(found: _Classes, config: TransformerConfig, pattern: str) -> None:
    """UnknownModelError where the installed megatron-core has no such layers in such a model."""
    if not hasattr(found.symbols, "MOE"):
        raise UnknownModelError("HybridModel is there since 0.18, and such a MambaModel since 0.16")
    if config.multi_latent_attention and not hasattr(found.symbols, "MLA"):
        raise UnknownModelError("HybridModel has latent attention since 0.19")
    if "G" in pattern and not hasattr(found.symbols, "GDN"):
        raise UnknownModelError("MambaModel has gated DeltaNet since 0.17")
    if "/" in pattern and not found.cuts:
        raise UnknownModelError("MambaModel predicts further tokens since 0.17")


def _describe_parts(config: TransformerConfig, latent_attention: type) -> dict[str, ModuleSpec]:
    from megatron.core.ssm.mlp_layer import MLPLayer

    dense, experts = (
        get_gpt_layer_local_spec(
            num_experts=count,
            moe_grouped_gemm=False,
            qk_layernorm=config.qk_layernorm,
            multi_latent_attention=config.multi_latent_attention,
            normalization=config.normalization,
        )
        for count in (None, config.num_moe_experts or 1)
    )
    attention = "attention_layer"
    if config.multi_latent_attention:
        attention = "mla_layer"
        dense.submodules.self_attention.submodules.core_attention = latent_attention
    return {
        attention: _take(dense, _ATTENTION, TransformerLayer),
        "mlp_layer": _take(dense, _MLP, MLPLayer),
        "moe_layer": _take(experts, _MLP, TransformerLayer),
    }


def _describe_prediction() -> ModuleSpec:
    from megatron.core.transformer import multi_token_prediction as prediction  # since 0.12

    layer = prediction.MultiTokenPredictionLayerSubmodules(
        enorm=WrappedTorchNorm,
        hnorm=WrappedTorchNorm,
        eh_proj=ColumnParallelLinear,
        mtp_model_layer=None,  # made of the layers above
        layer_norm=WrappedTorchNorm,
    )
    block = prediction.MultiTokenPredictionBlockSubmodules(
        [ModuleSpec(prediction.MultiTokenPredictionLayer, submodules=layer)]
    )
    return ModuleSpec(prediction.MultiTokenPredictionBlock, submodules=block)


def _take(layer: ModuleSpec, names: tuple[str, ...], kind: type) -> ModuleSpec:
    """A layer of ``kind`` with some of the modules of another one, and with its keys."""
    modules = {name: getattr(layer.submodules, name) for name in names}
    keys = layer.submodules.sharded_state_dict_keys_map
    return ModuleSpec(
        kind, submodules=TransformerLayerSubmodules(**modules, sharded_state_dict_keys_map=keys)
    )
