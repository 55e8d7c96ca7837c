"""The head of a tied model, where adapters are about it or about its embedding.

peft changes each by itself: an adapter of the embedding, or an embedding that was trained whole,
leaves the head the embedding that was, and the other way round. So the head is there as that, and
whoever names the model sees whether the two still are one (``huggingface/peft#2018``).
"""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.heads import find_only_embedding, is_head
from ckpt_tool.mapping.lora.adapters import Adapters
from ckpt_tool.tensors.lazy import LazyTensor

_HEAD = "lm_head.weight"
#: Ends of classes that have a head of their own; of others there is none to be given.
_WITH_HEAD = ("ForCausalLM", "ForConditionalGeneration")

Tensors = dict[str, LazyTensor]


def give_tied_head(
    tensors: Mapping[str, LazyTensor], adapters: Adapters, config: ModelConfig | None
) -> Tensors:
    """``tensors`` with a head that is the embedding, where adapters may change one of the two."""
    found = dict(tensors)
    embedding = find_only_embedding(tensors)
    if config is None or not config.tied or embedding is None or any(map(is_head, tensors)):
        return found
    changed = [module.weight for module in adapters.modules.values()]
    changed += adapters.trained_whole()
    heads = [name for name in changed if is_head(name)]
    has_head = config.architecture.endswith(_WITH_HEAD) or not config.architecture
    if heads or (embedding in changed and has_head):
        found[heads[0] if heads else _HEAD] = tensors[embedding]
    return found
