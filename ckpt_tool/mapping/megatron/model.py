"""A Megatron checkpoint's tensors as the Hugging Face model that they are."""

from __future__ import annotations

from collections.abc import Mapping

from ckpt_tool.common.wording import plural
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.hub.form import HubModel
from ckpt_tool.mapping.megatron.convert import from_megatron, padding
from ckpt_tool.mapping.megatron.keys import spelled
from ckpt_tool.mapping.megatron.numbers import family_of
from ckpt_tool.mapping.megatron.rules import Rules, rules_of
from ckpt_tool.mapping.megatron.verl_names import with_core_names
from ckpt_tool.tensors.lazy import LazyTensor


def model_of(
    tensors: Mapping[str, LazyTensor], config: ModelConfig, *, tied: bool | None = None
) -> HubModel:
    """The model that ``tensors``, in any of Megatron's spellings, are; ``tied`` as in `rules_of`.

    MappingError lists all that is missing, unexpected or misshapen.
    """
    tensors = with_core_names(tensors, config)
    keyed = spelled(tensors, multimodal=family_of(config).vision is not None)
    rules = rules_of(config, keyed, tied=tied)
    found = from_megatron(keyed, rules)
    repeats = {repeat.hf: found[repeat.of] for repeat in rules.repeats}
    return HubModel(
        found, config, dropped=_describe_padding(padding(keyed, rules), rules), repeats=repeats
    )


def _describe_padding(rows_by_name: Mapping[str, int], rules: Rules) -> dict[str, str]:
    vocab = rules.numbers.vocab_size
    return {
        f"{name}[{vocab}:{vocab + rows}]": f"{plural(rows, 'row')} of padding: the"
        f" vocabulary has {vocab} by config.json"
        for name, rows in rows_by_name.items()
    }
