"""The keys of a Megatron model, however they are spelled, as the tables have them.

Checkpoints differ in prefixes (``module.``, ``model.``), in where norms live (in the linear layer
that follows, as in Transformer Engine's layers, or by themselves, as in the local ones), and in
how experts and gated layers are stored (``singleton_local_shards`` and Megatron-FSDP: each expert,
and gate and up as ``weight_w`` and ``weight_v``, under a key of its own). Sources:
``gpt_layer_specs.py``, ``mlp.py`` and ``experts.py`` of megatron-core 0.11 to 0.19, the keys of all
compared; ``fsdp_dtensor_checkpoint.py`` of 0.17 to 0.19.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.renaming import rename_all
from ckpt_tool.tensors.lazy import LazyTensor, cat, stack

Tensors = Mapping[str, LazyTensor]

_TOP = (
    r"decoder|embedding|output_layer|mtp|language_model|vision_model|llava_model"
    r"|visual|vision_tower|multi_modal_projector"  # transformers' own modules
    r"|lightning_indexers|image_insert_embedding|resampler_model"
    r"|per_layer_embedding|per_layer_model_proj|per_layer_proj_norm"
    r"|embed_vision|audio_tower|embed_audio"
)
_PREFIX = re.compile(rf"^(?:(?:module|model)\.)+(?=(?:{_TOP})\.)")
#: ms-swift has transformers' tower in a module of that name.
_SWIFT = re.compile(r"^visual\.(?=visual\.)")
_OWN = re.compile(
    r"(^|\.)(embedding\.word_embeddings\.weight$|self_attention(?:_sliding|_global)?\.linear_"
    r"|layers\.(\d+\.)?(transformer_layer\.)?mlp\."  # not visual.blocks.0 of Qwen3-VL
    r"((shared_)?experts\.(experts\.)?)?linear_fc)"
)
#: ``decoder.layers.``, ``decoder.layers.3.`` or ``mtp.layers.0.transformer_layer.``, and the rest;
#: of a HybridModel ``mtp.layers.0.mtp_model_layer.layers.1.``.
_LAYER = re.compile(
    r"((?:.*\.)?(?:decoder\.layers\.(?:\d+\.)?"
    r"|mtp\.layers\.\d+\.(?:transformer_layer\.|mtp_model_layer\.layers\.\d+\.)))(.+)"
)
#: What a GPTModel's modules call that layer since 0.17, but its checkpoints do not.
_AHEAD = re.compile(r"\.mtp_model_layer\.(?!layers\.)")
_EXPERT = re.compile(r"(.*\.experts\.experts\.)(\d{1,9})\.(.+)")
#: The same as the modules are called, which Megatron-FSDP keeps: of the local layers, and, numbered
#: at the end, of Transformer Engine's.
_MODULE = re.compile(
    r"(.*\.experts)\.(?:local_experts\.(\d{1,9})\.(linear_fc[12]\.\w+)"
    r"|(linear_fc[12]\.(?:weight|bias))(\d{1,9})(_[wv])?)"
)
_HALF = re.compile(r"(.*\.linear_fc1\.(?:weight|bias))_(w|v)")

_GROUPED = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "input_layernorm.bias": "self_attention.linear_qkv.layer_norm_bias",
    # Where they are of all heads together, slime and ms-swift bring modules of their own.
    "self_attention.q_norm.weight": "self_attention.q_layernorm.weight",
    "self_attention.k_norm.weight": "self_attention.k_layernorm.weight",
}
_LATENT = {
    # Where the down projections are fused, whose norm 0.19 calls otherwise on disk.
    "self_attention.linear_qkv_down_proj.layer_norm_weight": "input_layernorm.weight",
    "self_attention.q_layernorm.weight": "self_attention.linear_q_up_proj.layer_norm_weight",
    "self_attention.kv_layernorm.weight": "self_attention.linear_kv_up_proj.layer_norm_weight",
}
#: Of latent attention with an indexer, which wants norms by themselves.
_SPARSE = {
    "self_attention.linear_q_up_proj.layer_norm_weight": "self_attention.q_layernorm.weight",
    "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attention.kv_layernorm.weight",
}
#: megatron-core's, and slime's.
_INDEXER = re.compile(r"\.self_attention\.(?:core_attention\.indexer\.|wq_b\.)")
#: Of gated DeltaNet, where the norm is by itself.
_LINEAR = {"input_layernorm.weight": "self_attention.in_proj.layer_norm_weight"}
#: Of attention with one head, whose keys are values too, and of lightning attention: all norms are
#: by themselves.
_APART: dict[str, str] = {}
#: What tells these two: of the latter, as ms-swift and as AReaL have it.
_HAS_APART = tuple(
    f"self_attention.{name}.weight" for name in ("linear_kv_proj", "g_norm", "gate_norm")
)
_DENSE = {
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "pre_mlp_layernorm.bias": "mlp.linear_fc1.layer_norm_bias",
}
_MAMBA = {"norm.weight": "mixer.in_proj.layer_norm_weight"}
#: As modules, but not checkpoints, call a convolution's since 0.19.
_CONVOLUTION = re.compile(r"(?<=mixer\.conv1d)_(?=(?:weight|bias)$)")
_ROUTERS = ("mlp.router.weight", "mlp.text_moe_layer.router.weight")
_EXPERTS = {"mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight"}


def unify_keys(
    tensors: Tensors, *, multimodal: bool = False, beside: Iterable[str] = ()
) -> dict[str, LazyTensor]:
    """The model by the tables' keys; of one that is ``multimodal``, ``language_model.`` stays.

    ``beside``: what else its layers have, of which ``tensors`` are a part. MappingError where two
    tensors are of one key, or some of those that make one are missing.
    """
    short = {name: _strip(name, multimodal) for name in tensors}
    names = name_engine_keys({*short.values(), *(_strip(name, multimodal) for name in beside)})
    found = rename_all(tensors, lambda name: names[short[name]])
    return _stack_experts(_join_halves(found))


def strip_wrappers(tensors: Tensors) -> dict[str, LazyTensor]:
    """The tensors without what wrappers put before their names, as NeMo's ``module.``.

    MappingError where two tensors then have one name.
    """
    return rename_all(tensors, lambda name: _PREFIX.sub("", name))


def is_megatron(names: Iterable[str]) -> bool:
    """Whether these are the names of a megatron-core model, with whatever prefix."""
    return any(_OWN.search(name) for name in names)


def name_engine_keys(keys: Collection[str]) -> dict[str, str]:
    """The Transformer Engine name of each key of a model, be it one already or a local one."""
    every = frozenset(keys)
    latent = _SPARSE if any(map(_INDEXER.search, every)) else _LATENT
    return {key: _name_engine_key(key, every, latent) for key in every}


def _name_engine_key(key: str, keys: frozenset[str], of_latent: dict[str, str]) -> str:
    found = _LAYER.fullmatch(key)
    if found is None:
        return key
    prefix, name = found.groups()
    if f"{prefix}layer_scalar" in keys:  # Gemma 4's, which has norms where it has them
        return key
    if f"{prefix}mixer.A_log" in keys:
        return str(prefix) + _MAMBA.get(name, name)
    latent = f"{prefix}self_attention.linear_kv_down_proj.weight" in keys
    table = _EXPERTS if any(prefix + router in keys for router in _ROUTERS) else _DENSE
    linear = f"{prefix}self_attention.A_log" in keys
    attention = of_latent if latent else _LINEAR if linear else _GROUPED
    if any(prefix + name in keys for name in _HAS_APART):
        attention = _APART
    return str(prefix) + (table | attention).get(name, name)


def _strip(name: str, multimodal: bool) -> str:
    name = _SWIFT.sub("", _PREFIX.sub("", name))
    if not multimodal:
        name = name.removeprefix("language_model.")
    name = _CONVOLUTION.sub(".", name)
    return _AHEAD.sub(".transformer_layer.", _name_expert(name))


def _name_expert(name: str) -> str:
    """``experts.local_experts.3.x`` and ``experts.x3`` -> ``experts.experts.3.x``."""
    found = _MODULE.fullmatch(name)
    if found is None:
        return name
    prefix, local, local_name, grouped_name, grouped, half = found.groups(default="")
    return f"{prefix}.experts.{local or grouped}.{local_name or grouped_name + half}"


def _join_halves(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Gate and up that have keys of their own, joined."""
    found: dict[str, LazyTensor] = {}
    missing = []
    for name, tensor in tensors.items():
        matched = _HALF.fullmatch(name)
        if matched is None:
            found[name] = tensor
            continue
        gate, up = (tensors.get(f"{matched[1]}_{half}") for half in "wv")
        if gate is None or up is None:
            missing.append(f"{matched[1]}_{'v' if gate else 'w'}")
        elif gate.shape != up.shape or gate.dtype != up.dtype:
            missing.append(f"{name}: {list(gate.shape)} and {list(up.shape)}")
        elif matched[1] not in found:
            found[matched[1]] = cat([gate, up], 0)
    if missing:
        raise MappingError("gate and up do not go together", sorted(set(missing)))
    return found


def _stack_experts(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Experts that have keys of their own, one after the other along a first dimension."""
    found: dict[str, LazyTensor] = {}
    experts: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        matched = _EXPERT.fullmatch(name)
        if matched is None:
            found[name] = tensor
        else:
            experts.setdefault(matched[1] + matched[3], {})[int(matched[2])] = tensor
    faults = []
    for name, numbered in experts.items():
        alike = {(tensor.shape, tensor.dtype) for tensor in numbered.values()}
        if set(numbered) != set(range(len(numbered))) or len(alike) > 1:
            faults.append(f"{name}: experts {_list_numbers(numbered)}, of {len(alike)} shapes")
        else:
            found[name] = stack([numbered[number] for number in range(len(numbered))])
    if faults:
        raise MappingError("experts are missing, or differ in shape", faults)
    return found


def _list_numbers(numbers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
