"""DeepSeek-V4's layers, as its config says them: how keys are compressed, who chooses experts."""

from __future__ import annotations

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields
from ckpt_tool.mapping.config import MTP_KEYS

#: What layers are called by how many tokens one key is made of, as released configs have it.
_BY_RATIO = {
    0: "sliding_attention",
    4: "compressed_sparse_attention",
    128: "heavily_compressed_attention",
}
_KINDS = tuple(_BY_RATIO.values())
#: How many first layers have a table of experts where nothing says it.
_HASHED = 3


def find_compressed(text: Fields, layers: int) -> tuple[str, ...]:
    """How each layer attends, after ``hash, `` where each token has its experts in a table.

    By ``layer_types`` and ``mlp_layer_types``, or by ``compress_ratios``, which counts layers for
    multi-token prediction too, and ``num_hash_layers``. Source: ``configuration_deepseek_v4.py`` of
    transformers 5.24. MappingError for what none can be.
    """
    kinds, ratios = text.texts("layer_types"), text.sizes("compress_ratios")
    by_ratio = [_BY_RATIO.get(ratio, f"compressed by {ratio}") for ratio in ratios]
    most = layers + text.agreed_size(MTP_KEYS, 0)
    if any(by_ratio[at] != _KINDS[0] for at in range(layers, len(ratios))):
        raise MappingError(f"{text.path}: a layer for multi-token prediction that compresses keys")
    known = [kind in _KINDS for kind in (*kinds, *by_ratio)]
    if len(by_ratio) > most or (kinds and by_ratio and kinds != by_ratio[:layers]):
        known = [False]
    kinds = kinds or by_ratio[:layers] or _alternate(layers)
    if len(kinds) != layers or not all(known):
        raise MappingError(
            f"{text.path}: layer_types or compress_ratios is"
            f" {', '.join(map(str, (text.texts('layer_types') or ratios)[:9]))}, expected"
            f" {', '.join(_KINDS)} for each of {layers} layers, or {', '.join(map(str, _BY_RATIO))}"
        )
    hashed = _find_hashed(text, layers)
    return tuple("hash, " * (layer in hashed) + kind for layer, kind in enumerate(kinds))


def _alternate(layers: int) -> list[str]:
    """What the config's class has where nothing is said."""
    return [_KINDS[2] if layer < 2 or layer % 2 == 0 else _KINDS[1] for layer in range(layers)]


def _find_hashed(text: Fields, layers: int) -> frozenset[int]:
    kinds = text.texts("mlp_layer_types")
    if not kinds:
        return frozenset(range(min(layers, text.size("num_hash_layers", _HASHED))))
    if len(kinds) != layers or not set(kinds) <= {"hash_moe", "moe"}:
        raise MappingError(
            f"{text.path}: mlp_layer_types is {', '.join(kinds[:9])}, expected hash_moe or moe for"
            f" each of {layers} layers"
        )
    return frozenset(layer for layer, kind in enumerate(kinds) if kind == "hash_moe")


def read_compressed_sizes(text: Fields, heads: int, head: int) -> dict[str, int]:
    """The sizes of streams, of compressed keys, and of the two matrices after attention.

    Nothing of a model that has no streams.
    """
    streams, groups = text.size("hc_mult", 0), text.size("o_groups", 0)
    if not streams:
        return {}
    rates = text.beside("compress_rates")
    return {
        "three": 3,
        "streams": streams,
        "streams_in": streams * text.size("hidden_size"),
        "streams_out": streams * streams + 2 * streams,
        "out_group": heads * head // groups if groups else 0,
        "out_rank": groups * text.size("o_lora_rank", 0),
        "two_head": 2 * head,
        "two_index_head": 2 * text.size("index_head_dim", 0),
        "csa_rate": rates.agreed_size((_KINDS[1], "compress_rate_csa"), 4),
        "hca_rate": rates.agreed_size((_KINDS[2], "compress_rate_hca"), 128),
        "experts_chosen": text.size("num_experts_per_tok", 0),
    }
