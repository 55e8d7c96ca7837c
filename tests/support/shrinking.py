"""Configs of transformers, made small: by the names of their numbers, whatever the family.

What these rules do not know of a family is in :mod:`tests.support.shrinking_recipes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

#: What configs call the numbers that make a model large, and what they are here.
_SMALL = {
    32: "hidden_size d_model n_embd dim embedding_size embed_dim out_hidden_size image_size"
    " projection_dim text_hidden_size hidden_dim lm_head_hidden_size emb_dim num_mel_bins"
    " lru_width pooler_hidden_size intra_bottleneck_size text_embed_dim hidden_size_global"
    " projector_hidden_size base_channels latent_channels image_token_embed_dim adapter_rank"
    " pred_hidden_size crop_size d_latents upsample_groups",
    2: "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers depth"
    " num_decoder_layers num_encoder_layers num_key_value_heads num_experts_per_tok moe_layers"
    " moe_k num_experts_per_token num_blocks num_cross_attention_layers num_global_layers"
    " num_pooler_layers num_filters pred_num_hidden_layers num_self_attends_per_block"
    " frames_per_clip",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads num_experts"
    " decoder_attention_heads num_local_experts n_routed_experts moe_num_experts"
    " mm_tokens_per_image num_conv_pos_embedding_groups"
    " pred_num_attention_heads num_self_attention_heads num_cross_attention_heads",
    40: "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim d_inner"
    " ffn_hidden_size",
    24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size",
    8: "head_dim d_kv qk_nope_head_dim qk_rope_head_dim v_head_dim patch_size state_size"
    " rotary_dim mamba_d_state mamba_n_heads mamba_d_head num_conv_pos_embeddings global_head_dim"
    " hidden_size_per_layer_input",
    16: "q_lora_rank kv_lora_rank qk_head_dim num_latents",
    64: "attention_hidden_size max_position_embeddings n_positions n_ctx"
    " vocab_size_per_layer_input",
    48: "vocab_size unpadded_vocab_size num_embeddings encoder_hash_byte_group_vocab"
    " entity_vocab_size pronunciation_vocab_size shape_vocab_size",
    0: "pad_token_id blank_token_id",
    1: "bos_token_id decoder_start_token_id n_group num_group num_expert_group topk_group"
    " mamba_n_groups first_k_dense_replace",
}
_SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
#: Widths, stage by stage, and how many layers a stage has.
_WIDTHS = (
    "hidden_sizes embed_dims embed_dim conv_dim neck_hidden_sizes encoder_hidden_sizes"
    " stage_in_channels stage_mid_channels stage_out_channels"
).split()
_DEPTHS = "depths stage_num_blocks stage_numb_of_layers encoder_layers".split()
_PER_LAYER = "layer_types mlp_layer_types block_types layers_block_type".split()
#: Parts of the rotary embedding by axis: half of a head, which is 8 here.
_ROTARY = {"mrope_section": [1, 1, 2]}
#: By how a name ends, what is in none of the above.
_ENDS = {
    "intermediate_size": 40, "ffn_dim": 40, "mlp_dim": 40, "hidden_size": 32, "output_dim": 32,
    "out_dim": 32, "in_dim": 32, "input_dim": 32, "embed_dim": 32, "intermediate_size_mlp": 40,
}  # fmt: skip
#: What some leave open, and their models need.
_NEEDED = {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_MOST_LAYERS = 4


def shrink(config: Any) -> None:
    """Make the numbers of ``config``, and of the configs in it, small where they are known."""
    for each in walk(config):
        layers = _choose_layers(each)
        small = {key: _find_small(key, value) for key, value in vars(each).items()} | layers
        if "_out_features" in small:  # stages that are no more; the last is what is left out
            small |= {"_out_features": None, "_out_indices": None}
        if each is not config and _rotates(each):
            small["rope_parameters"] = _ROTARY | small["rope_parameters"]
        if "kv_lora_rank" in small:  # latent attention has a key for each query
            small["num_key_value_heads"] = small.get("num_attention_heads")
        for key, value in small.items():
            if value != vars(each).get(key):
                with suppress(Exception):  # some are computed of others
                    setattr(each, key, value)


def _rotates(config: Any) -> bool:
    """Whether it is a part of a model that may count positions by axis: what is so is not said."""
    return "rope_theta" in (getattr(config, "rope_parameters", None) or ())


def walk(config: Any) -> Iterator[Any]:
    """The config and those in it, at any depth."""
    from transformers import PretrainedConfig

    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            yield from walk(value)


def _find_small(key: str, value: Any) -> Any:
    if value is None:
        return _NEEDED.get(key)
    if type(value) is int:
        return min(value, _SIZES.get(key, _find_size(key)))
    if isinstance(value, (list, tuple)) and value and all(type(each) is int for each in value):
        if key in _WIDTHS and max(value) > 64:
            return type(value)(max(8, each // 128 * 8) for each in value)
        if key in _DEPTHS:
            return type(value)(min(each, 1) for each in value)
    if isinstance(value, dict):
        return {name: _find_rotary(name, each) for name, each in value.items()}
    return value


def _find_size(key: str) -> float:
    """The most of a number that is not known by its whole name."""
    return next((size for end, size in _ENDS.items() if key.endswith(end)), float("inf"))


def _find_rotary(name: str, value: Any) -> Any:
    """The same of what is in ``rope_parameters``, where each layer type may have its own."""
    if isinstance(value, dict):
        return {key: _find_rotary(key, each) for key, each in value.items()}
    small = _ROTARY.get(name)
    return small if small and sum(value) > sum(small) else value


def _choose_layers(config: Any) -> dict[str, Any]:
    """One layer of each kind, two at least: their number, and each list that has one for each."""
    values = vars(config)
    known = [values[key] for key in _PER_LAYER if isinstance(values.get(key), list)]
    count = min(map(len, known), default=0)
    if not count:
        return {}
    kinds = list(zip(*(value[:count] for value in known), strict=True))
    chosen = sorted({kinds.index(kind) for kind in kinds})[:_MOST_LAYERS]
    if count <= _MOST_LAYERS:
        chosen = list(range(count))
    elif len(chosen) < 2:
        chosen = [0, 1]
    lists = {
        key: [value[index] for index in chosen]
        for key, value in values.items()
        if isinstance(value, list) and (key in _PER_LAYER or len(value) == count)
    }
    numbers = [key for key in ("num_hidden_layers", "num_layers") if key in values]
    return lists | dict.fromkeys(numbers, len(chosen))
