"""The kinds of layers that a config says in a way of its family's own."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.config import MTP_KEYS
from ckpt_tool.mapping.megatron.compressed import find_compressed
from ckpt_tool.mapping.megatron.lightning import find_lightning_kinds
from ckpt_tool.mapping.megatron.linear import find_linear_kinds
from ckpt_tool.mapping.megatron.shared_kv import find_shared_kinds
from ckpt_tool.mapping.megatron.step import find_step_kinds

_SPARSE = ("full_attention", "minimax_m3_sparse")
_INDEXERS = {"F": "full", "S": "shared"}


def find_indexers(text: Fields, layers: int) -> tuple[str, ...]:
    """Whether each layer has an indexer or takes what one before has chosen: ``full``, ``shared``.

    GLM-5's: a list, a pattern of letters, or after the first so many layers one in so many. Source:
    ``configuration_glm_moe_dsa.py`` of transformers 5.24. MappingError for what none can be.
    """
    kinds = text.texts("indexer_types")
    if not kinds and text.values.get("index_topk_pattern"):
        written = text.values["index_topk_pattern"]
        letters = written if isinstance(written, str) else text.texts("index_topk_pattern")
        kinds = [_INDEXERS.get(letter, letter) for letter in letters]
    if not kinds:
        every, first = text.size("index_topk_freq", 1), text.size("index_skip_topk_offset", 2)
        steps = (max(layer + 1 - first, 0) % max(every, 1) for layer in range(layers))
        kinds = ["shared" if step else "full" for step in steps]
    most = layers + text.agreed_size(MTP_KEYS, 0)
    if not layers <= len(kinds) <= most or not set(kinds) <= set(_INDEXERS.values()):
        raise MappingError(
            f"{text.path}: indexer_types or index_topk_pattern is {', '.join(kinds[:9])}, expected"
            f" full or shared for each of {layers} layers"
        )
    if layers and kinds[0] == "shared":
        raise MappingError(f"{text.path}: the first layer has no indexer, nor one before it")
    return tuple(kinds[:layers])


def find_sparse(text: Fields, layers: int) -> tuple[str, ...]:
    """``minimax_m3_sparse`` where a layer has an indexer, else ``full_attention``.

    A list of kinds, or, as released, of zeros and ones. Source: ``configuration_minimax_m3_vl.py``
    of transformers 5.24. MappingError for what none can be.
    """
    said = text.inside("sparse_attention_config").sizes("sparse_attention_freq")
    kinds = text.texts("layer_types") or [_SPARSE[bool(one)] for one in said]
    kinds = kinds or [_SPARSE[0]] * layers
    if len(kinds) != layers or not set(kinds) <= set(_SPARSE):
        raise MappingError(
            f"{text.path}: layer_types or sparse_attention_freq is {', '.join(kinds[:9])}, expected"
            f" {' or '.join(_SPARSE)} for each of {layers} layers"
        )
    return tuple(kinds)


#: What says the kinds of layers, where ``layer_types`` does not.
OWN_KINDS: dict[str, Callable[[Fields, int], tuple[str, ...]]] = {
    "indexer_types": find_indexers,
    "sparse_attention_config": find_sparse,
    "compress_ratios": find_compressed,
    "full_attention_interval": find_linear_kinds,
    "layer_group_size": find_lightning_kinds,
    "num_kv_shared_layers": find_shared_kinds,
    "attention_other_setting": find_step_kinds,
}
