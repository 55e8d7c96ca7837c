"""Every class of transformers that writes, tiny: built of its own config, made small.

What cannot be made small this way is said and left out: it is about the config, not the weights.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

#: What configs call the numbers that make a model large, and what they are here.
_SMALL = {
    32: "hidden_size d_model n_embd dim embedding_size embed_dim out_hidden_size image_size"
    " projection_dim text_hidden_size hidden_dim lm_head_hidden_size",
    2: "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers depth"
    " num_decoder_layers num_encoder_layers num_key_value_heads num_experts_per_tok moe_layers",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads num_experts"
    " decoder_attention_heads num_local_experts n_routed_experts moe_num_experts"
    " mm_tokens_per_image",
    40: "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim d_inner"
    " ffn_hidden_size",
    24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size",
    8: "head_dim d_kv qk_nope_head_dim qk_rope_head_dim v_head_dim patch_size state_size"
    " mamba_d_state mamba_n_heads mamba_d_head",
    16: "q_lora_rank kv_lora_rank qk_head_dim",
    64: "max_position_embeddings n_positions n_ctx",
    48: "vocab_size",
    0: "pad_token_id",
    1: "bos_token_id decoder_start_token_id n_group topk_group mamba_n_groups"
    " first_k_dense_replace",
}
_SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
_PER_LAYER = ("layer_types", "mlp_layer_types", "block_types", "layers_block_type")
_MOST_PARAMETERS = 3_000_000
_SECONDS = 60


class TooLargeError(Exception):
    """A model that its config does not make small."""


def list_classes() -> list[tuple[str, str]]:
    """Model type and class, of all that generate text from whatever they are given."""
    from transformers.models.auto import modeling_auto as auto

    found: dict[tuple[str, str], None] = {}
    for kind in ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "SEQ_TO_SEQ_CAUSAL_LM", "MULTIMODAL_LM"):
        for model_type, named in getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES", {}).items():
            for each in named if isinstance(named, (tuple, list)) else (named,):
                found[model_type, each] = None
    return list(found)


def build_tiny(model_type: str, class_name: str) -> Any:
    """The model with random weights. Raises whatever its code does where it cannot be small."""
    return build_small(model_type, class_name, None)


def build_small(model_type: str, class_name: str, fit: Callable[[Any], None] | None) -> Any:
    """The same of a config that ``fit`` completes where being small has left it halves."""
    import torch
    import transformers

    config = transformers.CONFIG_MAPPING[model_type]()
    shrink(config)
    if fit is not None:
        fit(config)
    model_class = getattr(transformers, class_name)
    with _in_time(), torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(config).parameters())
    if count > _MOST_PARAMETERS:
        raise TooLargeError(f"{count / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    with _in_time():
        return model_class(config)


def list_wide(model_type: str, class_name: str, dtype: str) -> list[str]:
    """:func:`find_wide` of the model, tiny; of what cannot be built nothing."""
    import transformers

    try:
        config = transformers.CONFIG_MAPPING[model_type]()
        shrink(config)
        return find_wide(getattr(transformers, class_name), config, dtype)
    except Exception:
        return []


def find_wide(model_class: Any, config: Any, dtype: str) -> list[str]:
    """What a model holds as float32 though it is built in ``dtype``, by names in memory.

    Created as float32, or kept so by the loader.
    """
    import torch
    from transformers.modeling_utils import local_torch_dtype

    asked = getattr(torch, dtype)
    with _in_time(), torch.device("meta"), local_torch_dtype(asked):
        model = model_class(config)
    kept = [re.compile(pattern) for pattern in model._get_dtype_plan(asked)]
    return [
        name
        for name, tensor in model.state_dict().items()
        if tensor.dtype == torch.float32 or any(pattern.search(name) for pattern in kept)
    ]


def shrink(config: Any) -> None:
    """Make its numbers small, and those of the configs in it."""
    import transformers

    for key, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            shrink(value)
        elif type(value) is int and value > _SIZES.get(key, value):
            with suppress(Exception):  # some are computed of others
                setattr(config, key, _SIZES[key])
    for key in _PER_LAYER:
        if isinstance(getattr(config, key, None), list):
            with suppress(Exception):
                setattr(config, key, getattr(config, key)[:2])


@contextmanager
def _in_time() -> Iterator[None]:
    """Some build for minutes, on the meta device too."""

    def stop(*_: object) -> None:
        raise TooLargeError(f"not built in {_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
