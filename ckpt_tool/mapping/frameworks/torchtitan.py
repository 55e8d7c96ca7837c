"""torchtitan's names of a model -> those of Hugging Face.

Source: ``torchtitan/models/{llama3,qwen3}/model/state_dict_adapter.py``. Llama's rotary embedding
turns neighbouring elements there, as Meta's does, and halves of a head in transformers: the rows of
query and key are in another order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.families.table import FAMILIES
from ckpt_tool.tensors.chunks import Chunk
from ckpt_tool.tensors.geometry import Box
from ckpt_tool.tensors.lazy import LazyTensor, cat

Tensors = dict[str, LazyTensor]

_EMBEDDING = "tok_embeddings.weight"
_TOP = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_NAME = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def is_torchtitan(names: Mapping[str, object]) -> bool:
    """Whether a model is named as torchtitan names it."""
    return _EMBEDDING in names


def from_torchtitan(tensors: Mapping[str, LazyTensor], config: ModelConfig) -> Tensors:
    """The tensors by Hugging Face's names, rotary rows in its order.

    MappingError for other families, and for names that a model of the family has not.
    """
    if not config.family.torchtitan:
        known = [name for name, family in FAMILIES.items() if family.torchtitan]
        raise MappingError(
            "names as torchtitan has them (tok_embeddings, layers.N.attention.wq), of a"
            f" {config.model_type}: known for {', '.join(known)}",
            hint="Name them as transformers does with `names.rename`, like"
            " `names.rename=['layers.*.attention.wq=model.layers.*.self_attn.q_proj']`, if the rows"
            " of query and key are in its order.",
        )
    turns_neighbours = config.family.torchtitan == "neighbours"
    found: Tensors = {}
    unknown = []
    for name, tensor in tensors.items():
        new = _rename(name)
        if not new:
            unknown.append(name)
        elif turns_neighbours and re.search(r"\.attention\.w[qk]\.", name):
            found[new] = _pair_halves(name, tensor, config)
        else:
            found[new] = tensor
    if unknown:
        raise MappingError(
            f"{len(unknown)} tensors that torchtitan's {config.model_type} has not",
            unknown,
            hint="Leave tensors out with `names.select`, or name them with `names.rename`.",
        )
    return found


def _rename(name: str) -> str:
    matched = _NAME.fullmatch(name)
    if matched is not None and matched[2] in _LAYER:
        return f"model.layers.{matched[1]}.{_LAYER[matched[2]]}.{matched[3]}"
    module, _, kind = name.rpartition(".")
    return f"{_TOP[module]}.{kind}" if module in _TOP else ""


def _pair_halves(name: str, tensor: LazyTensor, config: ModelConfig) -> LazyTensor:
    """Of each head, first its even rows and then its odd ones."""
    heads = config.text.get("num_attention_heads")
    if ".wk." in name:
        heads = config.text.get("num_key_value_heads") or heads
    rows = tensor.shape[0] if tensor.shape else 0
    if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
        raise MappingError(f"{name}: {list(tensor.shape)} is no whole rows for {heads} heads")
    size = rows // heads
    parts = [
        _take_every_second(tensor, head * size + odd, size // 2)
        for head in range(heads)
        for odd in (0, 1)
    ]
    return cat(parts, 0)


def _take_every_second(tensor: LazyTensor, start: int, count: int) -> LazyTensor:
    """Rows ``start``, ``start + 2``, ...: ``count`` of them."""
    chunks = []
    shape = (count, *tensor.shape[1:])
    window = Box((start, *(0 for _ in shape[1:])), (2 * count - 1, *shape[1:]))
    for chunk, _ in tensor.chunks_in(window):
        box, region = chunk.box, chunk.region
        first = max(0, (box.offsets[0] - start + 1) // 2)
        last = min(count, (box.offsets[0] + box.sizes[0] - start + 1) // 2)
        if first >= last:
            continue
        skipped = (start + 2 * first - box.offsets[0]) * region.strides[0]
        strides = (2 * region.strides[0], *region.strides[1:])
        offset = region.offset + skipped * tensor.source_dtype.itemsize
        moved = Box((first, *box.offsets[1:]), (last - first, *box.sizes[1:]))
        chunks.append(Chunk(moved, region._replace(offset=offset, strides=strides)))
    return LazyTensor(shape, tensor.dtype, tensor.source_dtype, tuple(chunks))
