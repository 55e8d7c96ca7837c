"""A real megatron-core model on the meta device: modules and shapes, no memory for weights."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel, gpt_layer_specs
from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig

from ckpt_tool.mapping.megatron.lightning import is_lightning
from ckpt_tool.mapping.megatron.linear import is_linear
from ckpt_tool.mapping.megatron.numbers import require_rows
from ckpt_tool.plans.checks.megatron_child.config import (
    compute_joined_width,
    make_projection_config,
    make_text_config,
    make_vision_config,
)
from ckpt_tool.plans.checks.megatron_child.cpu import UnknownModelError, call, read_release
from ckpt_tool.plans.checks.megatron_child.heads import vary_heads
from ckpt_tool.plans.checks.megatron_child.hybrid import make_hybrid_model
from ckpt_tool.plans.checks.megatron_child.lightning import put_lightning
from ckpt_tool.plans.checks.megatron_child.linear import put_delta_net
from ckpt_tool.plans.checks.megatron_child.norms import fit_norms
from ckpt_tool.plans.checks.megatron_child.request import Request
from ckpt_tool.plans.checks.megatron_child.sparse import use_indexers
from ckpt_tool.plans.checks.unknown import find_unknown

#: Where megatron-core decides on it, since 0.19.
_NORMS = "megatron.core.transformer.mla_qk_norm_config"


class NoAttention(torch.nn.Module):
    """Stands in for the core of latent attention, which has no parameters and never runs here.

    The local layers have none: keys and values differ in width, as only Transformer Engine accepts.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()


def make_sharded_state(request: Request) -> dict[str, Any]:
    """What the model asks a checkpoint for: megatron-core's own sharded state, on meta.

    Raises whatever megatron-core raises of a model that it cannot build.
    """
    metadata = {"non_homogeneous_layers": request.layout != "stacked"}
    state: dict[str, Any] = {}
    with torch.device("meta"):
        for prefix, module in _modules(request).items():
            state |= module.sharded_state_dict(prefix=prefix, metadata=dict(metadata))
    return state


def _modules(request: Request) -> dict[str, Any]:
    """The modules by the prefix of their keys: one, or those of a model that sees too."""
    _require_plain_queries(request)
    if "sinks" in request.numbers.flags and read_release() < (0, 15):
        raise UnknownModelError("attention has sinks there since 0.15")
    unknown = find_unknown(request.numbers)
    if unknown:
        raise UnknownModelError(unknown)
    hybrid = request.layout == "hybrid"
    config = make_text_config(request.config, request.numbers, hybrid=hybrid)
    prefix = require_rows(request.config).around.prefix
    if hybrid:
        options = _describe_ends(request)
        pattern, flags = request.numbers.hybrid_pattern, request.numbers.flags
        return {prefix: make_hybrid_model(config, pattern, NoAttention, flags=flags, **options)}
    if not request.numbers.vision_layers:
        return {prefix: _language_model(request, config)}
    return {prefix: _language_model(request, config), **_tower(request, config)}


def _tower(request: Request, text: TransformerConfig) -> dict[str, Any]:
    """The blocks of a vision tower and, of one that ends as they do, what is after them."""
    vision, rows = request.config.raw["vision_config"], require_rows(request.config).around.vision
    ends = rows is not None and rows.projects
    gated = rows is not None and rows.gated
    config = make_vision_config(vision, request.numbers, gated=gated)
    blocks = TransformerBlock(config=config, spec=_block_spec(config), post_layer_norm=ends)
    if not ends:
        return {"vision_model.decoder.": blocks}
    projection = MultimodalProjector(
        config=make_projection_config(vision, text),
        submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
        projector_type="mlp",
        input_size=compute_joined_width(vision),
    )
    return {"vision_model.decoder.": blocks, "vision_model.projection.": projection}


def _require_plain_queries(request: Request) -> None:
    """UnknownModelError for queries that latent attention neither compresses nor norms.

    Since 0.19 megatron-core norms what they are made of, in every spec: another model.
    """
    text = request.config.text
    if text.get("kv_lora_rank") and not text.get("q_lora_rank") and find_spec(_NORMS) is not None:
        raise UnknownModelError(
            "since 0.19 queries of latent attention have a norm there, which this model has not;"
            " megatron-core 0.18 has it (pip install 'megatron-core<0.19')"
        )


def _language_model(request: Request, config: TransformerConfig) -> GPTModel:
    spec = _uneven_spec(config) if "blocks" in request.numbers.flags else _block_spec(config)
    if "shared_gate" in request.numbers.flags and not hasattr(config, "moe_shared_expert_gate"):
        _gate_shared_experts(spec)
    for layer in spec.layer_specs:
        fit_norms(layer, request.numbers.flags)
    if "sparse" in request.numbers.flags:
        use_indexers(spec.layer_specs)
    if "head_counts" in request.numbers.flags:
        vary_heads(spec.layer_specs, request.numbers.kinds, request.numbers)
    prediction = {}
    if request.numbers.mtp:
        last = _dense_spec(config) if "dense_ahead" in request.numbers.flags else spec
        if request.numbers.ahead:
            vary_heads([last], request.numbers.ahead, request.numbers)
        prediction["mtp_block_spec"] = gpt_layer_specs.get_gpt_mtp_block_spec(
            config, last, use_transformer_engine=False
        )
    for number, kind in enumerate(request.numbers.kinds):  # none of what predicts further
        if is_linear(kind):
            spec.layer_specs[number] = put_delta_net(spec.layer_specs[number])
        elif is_lightning(kind):
            norms = "qk_norm" in request.numbers.flags
            layer = put_lightning(spec.layer_specs[number], NoAttention, norms=norms)
            spec.layer_specs[number] = layer
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        **_describe_ends(request),
        **prediction,
    )


def _describe_ends(request: Request) -> dict[str, Any]:
    """What is outside of the layers."""
    return {
        "vocab_size": request.numbers.padded_vocab_size,
        "max_sequence_length": 1,  # of no account: positions are computed
        "share_embeddings_and_output_weights": "untied" not in request.numbers.flags,
        "position_embedding_type": "none" if "no_positions" in request.numbers.flags else "rope",
    }


def _block_spec(config: TransformerConfig) -> Any:
    spec = call(
        gpt_layer_specs.get_gpt_decoder_block_spec,
        config=config,
        use_transformer_engine=False,
        normalization=config.normalization,
    )
    spec.layer_norm = WrappedTorchNorm
    if getattr(config, "multi_latent_attention", False):
        for layer in spec.layer_specs:
            layer.submodules.self_attention.submodules.core_attention = NoAttention
    return spec


def _dense_spec(config: TransformerConfig) -> Any:
    """A layer without experts, of a model that has them."""
    return call(
        gpt_layer_specs.get_gpt_layer_local_spec,
        num_experts=None,
        qk_layernorm=config.qk_layernorm,
        normalization=config.normalization,
    )


def _uneven_spec(config: TransformerConfig) -> Any:
    """Of layers that have sizes of their own."""
    from megatron.core.models.gpt.heterogeneous.heterogeneous_layer_specs import (
        get_gpt_heterogeneous_layer_spec,  # since 0.12
    )

    return get_gpt_heterogeneous_layer_spec(config, use_te=False)


def _gate_shared_experts(spec: Any) -> None:
    """Before 0.16, whose config says it, the layer's description did."""
    for layer in spec.layer_specs:
        experts = getattr(layer.submodules.mlp.submodules, "shared_experts", None)
        if experts is not None and "gate" in (experts.params or {}):
            experts.params["gate"] = True
