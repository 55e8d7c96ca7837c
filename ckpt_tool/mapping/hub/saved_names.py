"""Names as transformers saves a family, and as those who made it have published them.

DeepSeek-V4: what transformers saves has ``model.`` before the names, and others for some norms.
Kimi-K2.5: layers of the language model are called as those of the tower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.renaming import rename_all

T = TypeVar("T")


def use_published_names(tensors: Mapping[str, T], config: ModelConfig) -> dict[str, T]:
    """What is said of tensors, by the names that the family's rows have for them.

    MappingError where two get one.
    """
    patterns = _list_patterns(config)

    def publish(name: str) -> str:
        for pattern, published in patterns:
            name = re.sub(pattern, published, name)
        return name

    return rename_all(tensors, publish)


def are_published(tensors: Mapping[str, object], config: ModelConfig) -> bool:
    """Whether these are names that transformers would save otherwise."""
    return bool(_list_patterns(config)) and list(use_published_names(tensors, config)) == [*tensors]


def spell_alike(
    tensors: dict[str, T], other: Mapping[str, T], config: ModelConfig | None
) -> dict[str, T]:
    """The tensors by published names where more of ``other`` is called so; else as they are."""
    if config is None or not _list_patterns(config):
        return tensors
    published = use_published_names(tensors, config)
    more = len(published.keys() & other.keys()) > len(tensors.keys() & other.keys())
    return published if more else tensors


def _list_patterns(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    rows = config.family.megatron
    return rows.around.saved if rows is not None else ()
