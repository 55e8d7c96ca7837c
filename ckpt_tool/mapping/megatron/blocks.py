"""Layers of which each has sizes of its own, or lacks attention or an MLP: ``block_configs``.

So NVIDIA's architecture search leaves a Llama (DeciLM). Source: ``megatron/core/transformer/
heterogeneous/heterogeneous_config.py``, and ``configuration_decilm.py`` beside the models.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields, require_object

#: The width of an MLP is rounded up to a multiple of it.
_WIDTH = 256
_MOST_FFN = 1000.0


@dataclass(frozen=True, slots=True)
class Block:
    """A layer: its query groups, and the width of its MLP; 0 where it has none.

    ``head_dim``: how wide its heads are; 0 where they are as those of all layers.
    """

    groups: int
    ffn: int
    head_dim: int = 0

    def count_sizes(self, heads: int, head_dim: int) -> dict[str, int]:
        """The words of tables whose sizes are the layer's own; its heads are so wide."""
        rows = {"query": heads * head_dim, "key": self.groups * head_dim, "head": head_dim}
        return rows | {"ffn": self.ffn}

    def find_parts(self) -> set[str]:
        """Which of attention and MLP are there: flags of rows."""
        return {part for part, size in (("attention", self.groups), ("mlp", self.ffn)) if size}


def read_blocks(text: Fields, layers: int, heads: int) -> tuple[Block, ...]:
    """What ``block_configs`` says of each layer; nothing where there is none.

    FormatError or MappingError where it cannot be true, or has a linear layer in place of one.
    """
    blocks = text.values.get("block_configs")
    if not blocks:
        return ()
    if not isinstance(blocks, list) or len(blocks) != layers:
        raise MappingError(
            f"{text.path}: block_configs is no list of {layers} layers, as num_hidden_layers is"
        )
    return tuple(_read_block(Fields(require_object(each, text.path), text.path), text, heads)
                 for each in blocks)  # fmt: skip


def _read_block(block: Fields, text: Fields, heads: int) -> Block:
    attention = block.inside("attention")
    ffn = block.inside("ffn") if block.values.get("ffn") else block.inside("mlp")
    return Block(
        groups=_count_groups(attention, heads) if _is_there(attention) else 0,
        ffn=_find_width(ffn, text) if _is_there(ffn) else 0,
    )


def _is_there(part: Fields) -> bool:
    if part.find_bool("replace_with_linear"):
        raise MappingError(
            f"{part.path}: a layer of block_configs has a linear layer in place of attention or an"
            " MLP (replace_with_linear), which is not supported"
        )
    return not part.find_bool("no_op")


def _count_groups(attention: Fields, heads: int) -> int:
    groups = attention.find_size("num_query_groups")
    if groups is not None:
        _require_same(attention, groups, heads)
        return groups
    together = attention.size("n_heads_in_group")
    if not together or heads % together:
        raise MappingError(
            f"{attention.path}: n_heads_in_group is {together} in block_configs, of"
            f" {heads} heads in all"
        )
    return heads // together


def _require_same(attention: Fields, groups: int, heads: int) -> None:
    together = attention.find_size("n_heads_in_group")
    if together is not None and together * groups != heads:
        raise MappingError(
            f"{attention.path}: num_query_groups is {groups} in block_configs, but n_heads_in_group"
            f" is {together}, of {heads} heads in all"
        )


def _find_width(ffn: Fields, text: Fields) -> int:
    width = ffn.find_size(ffn.agree("ffn_hidden_size", "intermediate_size"))
    if width is not None:
        return width
    times = ffn.find_number("ffn_mult", _MOST_FFN)
    if times is None or times <= 0:
        raise MappingError(f"{ffn.path}: a layer of block_configs has no ffn_mult")
    rows = int(2 * times * text.size("hidden_size") / 3)
    return -(-rows // _WIDTH) * _WIDTH
