"""The kinds of layers that a config says in a way of its family's own."""

from __future__ import annotations

from collections.abc import Callable

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields

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
    most = layers + text.size("num_nextn_predict_layers", 0)
    if not layers <= len(kinds) <= most or not set(kinds) <= set(_INDEXERS.values()):
        raise MappingError(
            f"{text.path}: indexer_types or index_topk_pattern is {', '.join(kinds[:9])}, expected"
            f" full or shared for each of {layers} layers"
        )
    if layers and kinds[0] == "shared":
        raise MappingError(f"{text.path}: the first layer has no indexer, nor one before it")
    return tuple(kinds[:layers])


#: What says the kinds of layers, where ``layer_types`` does not.
OWN_KINDS: dict[str, Callable[[Fields, int], tuple[str, ...]]] = {"indexer_types": find_indexers}
