"""Embeddings of which single rows were trained: peft's ``trainable_token_indices``."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_tool.common.wording import count_noun
from ckpt_tool.mapping.hub.heads import is_head
from ckpt_tool.mapping.lora.adapters import Adapters
from ckpt_tool.mapping.lora.settings import CONFIG, Settings
from ckpt_tool.tensors.lazy import LazyTensor
from ckpt_tool.tensors.rows import replace_rows

Tensors = dict[str, LazyTensor]


def list_rows(adapters: Adapters, settings: Settings) -> Tensors:
    """The rows that were trained, by module, without those of a head that is tied to an embedding.

    A state dict has these twice, and the settings name only the embedding.
    """
    return {
        name: rows
        for name, rows in adapters.tokens.items()
        if len(adapters.tokens) == 1 or settings.names_rows(name, is_head(f"{name}.weight"))
    }


def put_rows(
    base: Mapping[str, LazyTensor], adapters: Adapters, settings: Settings
) -> tuple[Tensors, list[str]]:
    """Embeddings with the rows that were trained in place of their own; what does not fit."""
    found: Tensors = {}
    faults: list[str] = []
    named = list_rows(adapters, settings)
    for name, rows in adapters.tokens.items():
        weight = f"{name}.weight"
        if weight not in base and name not in named:  # tied, and there once
            continue
        try:
            found[weight] = replace_rows(base[weight], _find_numbers(rows, name, settings), rows)
        except KeyError:
            faults.append(f"{name}: the model has no {weight}")
        except ValueError as error:
            faults.append(f"{weight}: {error}")
    return found, faults


def _find_numbers(rows: LazyTensor, name: str, settings: Settings) -> list[int]:
    numbers = settings.token_rows(name)
    if numbers is None:
        raise ValueError(
            f"{count_noun(rows.shape[0], 'row')} of it trained, and no trainable_token_indices in"
            f" {CONFIG} beside the shards to say which"
        )
    return numbers
