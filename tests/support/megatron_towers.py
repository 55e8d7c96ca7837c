"""Towers of the tiny models that see, by hand: two blocks 4 wide, MLPs of 7, or what suffices."""

from tests.support.megatron_parts import Shapes, gated, under

_ATTENTION: Shapes = {
    "attn.qkv.weight": (12, 4),
    "attn.qkv.bias": (12,),
    "attn.proj.weight": (4, 4),
    "attn.proj.bias": (4,),
}


def _blocks(block: Shapes) -> Shapes:
    return under("blocks.0.", block) | under("blocks.1.", block)


_GATED_BLOCK: Shapes = {"norm1.weight": (4,), "norm2.weight": (4,), **gated("mlp", 7, 4)}
_GATED_BLOCK |= {"mlp.gate_proj.bias": (7,), "mlp.up_proj.bias": (7,), "mlp.down_proj.bias": (4,)}
_GATED_BLOCK |= _ATTENTION
_QWEN2_5: Shapes = {
    "patch_embed.proj.weight": (4, 3, 2, 2, 2),
    "merger.ln_q.weight": (4,),
    "merger.mlp.0.weight": (16, 16),
    "merger.mlp.0.bias": (16,),
    "merger.mlp.2.weight": (6, 16),
    "merger.mlp.2.bias": (6,),
}
QWEN2_5_VL = under("visual.", _QWEN2_5 | _blocks(_GATED_BLOCK))

#: As Qwen2.5-VL's, with two query heads and one key and value head.
_ONE_KEY_HEAD: Shapes = {"attn.qkv.weight": (8, 4), "attn.qkv.bias": (8,)}
EXAONE4_5 = under("model.visual.", _QWEN2_5 | _blocks(_GATED_BLOCK | _ONE_KEY_HEAD))

_BIASED_BLOCK: Shapes = {
    "norm1.weight": (4,),
    "norm1.bias": (4,),
    "norm2.weight": (4,),
    "norm2.bias": (4,),
    **_ATTENTION,
    "mlp.linear_fc1.weight": (7, 4),
    "mlp.linear_fc1.bias": (7,),
    "mlp.linear_fc2.weight": (4, 7),
    "mlp.linear_fc2.bias": (4,),
}


def _merger(norm: int) -> Shapes:
    return {
        "linear_fc1.weight": (16, 16),
        "linear_fc1.bias": (16,),
        "linear_fc2.weight": (6, 16),
        "linear_fc2.bias": (6,),
        "norm.weight": (norm,),
        "norm.bias": (norm,),
    }


_QWEN3: Shapes = {
    "patch_embed.proj.weight": (4, 3, 2, 2, 2),
    "patch_embed.proj.bias": (4,),
    "pos_embed.weight": (9, 4),
    **under("merger.", _merger(4)),
}
_DEEPSTACK = under("deepstack_merger_list.0.", _merger(16))
_DEEPSTACK |= under("deepstack_merger_list.1.", _merger(16))
QWEN3_VL = under("model.visual.", _QWEN3 | _DEEPSTACK | _blocks(_BIASED_BLOCK))
QWEN3_5 = under("model.visual.", _QWEN3 | _blocks(_BIASED_BLOCK))

# The same on both sides, of no shape that a config says.
QWEN2_VL: Shapes = {"visual.blocks.0.attn.qkv.weight": (12, 4)}
QWEN2_VL |= {"visual.blocks.0.attn.qkv.bias": (12,)}
GEMMA3: Shapes = {
    "vision_tower.embeddings.patch_embedding.weight": (4, 3, 2, 2),
    "multi_modal_projector.mm_input_projection_weight": (4, 6),
    "multi_modal_projector.mm_soft_emb_norm.weight": (4,),
}
MISTRAL3: Shapes = {
    "vision_tower.patch_conv.weight": (4, 3, 2, 2),
    "multi_modal_projector.linear_1.weight": (5, 4),
}
