"""A Megatron checkpoint's tensors as the Hugging Face model that they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.convert import from_megatron, padding
from ckpt_tool.mapping.megatron.keys import spelled
from ckpt_tool.mapping.megatron.numbers import family_of
from ckpt_tool.mapping.megatron.rules import Rules, rules_of
from ckpt_tool.mapping.megatron.verl_names import with_core_names
from ckpt_tool.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Model:
    """``tensors`` by their names on the Hub, ``rules`` by which they were found.

    ``repeats``: what the Hub's form has twice. ``padding``: by Megatron's names, how many rows
    were left out because they only pad the vocabulary.
    """

    tensors: dict[str, LazyTensor]
    repeats: dict[str, LazyTensor]
    rules: Rules
    padding: dict[str, int]


def model_of(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, *, tied: bool | None = None
) -> Model:
    """The model that ``tensors``, in any of Megatron's spellings, are; ``tied`` as in `rules_of`.

    MappingError lists all that is missing, unexpected or misshapen.
    """
    tensors = with_core_names(tensors, config)
    keyed = spelled(tensors, multimodal=family_of(config).vision is not None)
    rules = rules_of(config, keyed, tied=tied)
    found = from_megatron(keyed, rules)
    repeats = {repeat.hf: found[repeat.of] for repeat in rules.repeats}
    return Model(found, repeats, rules, padding(keyed, rules))
