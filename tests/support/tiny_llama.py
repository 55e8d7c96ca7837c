"""A llama of one layer: every tensor that its class wants, and no other; all values distinct."""

import torch

from tests.support.merging import TINY, values

LLAMA = TINY | {"intermediate_size": 12}

LAYER = {
    "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
    "self_attn.q_proj": (8, 8),
    "self_attn.k_proj": (8, 8),
    "self_attn.v_proj": (8, 8),
    "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (12, 8),
    "mlp.up_proj": (12, 8),
    "mlp.down_proj": (8, 12),
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SHAPES = {
    EMBEDDING: (16, 8),
    **{f"model.layers.0.{name}.weight": shape for name, shape in LAYER.items()},
    "model.norm.weight": (8,),
    HEAD: (16, 8),
}


def make_llama(vocab_size: int = 16) -> dict[str, torch.Tensor]:
    """Its tensors in float32, with this many rows in embedding and head."""
    sizes = SHAPES | dict.fromkeys((EMBEDDING, HEAD), (vocab_size, 8))
    return {name: values(*shape, start=n << 8) for n, (name, shape) in enumerate(sizes.items(), 1)}
