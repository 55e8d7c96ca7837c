"""What of a model on the Hub repeats another tensor, so that it is not in Megatron's."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tool.mapping.families.megatron_form import MegatronRows
from ckpt_tool.mapping.megatron.bindings import format_mtp_prefix
from ckpt_tool.mapping.megatron.numbers import Numbers


@dataclass(frozen=True, slots=True)
class Repeat:
    """A Hugging Face tensor that repeats another one and has no counterpart of its own."""

    hf: str
    of: str


def find_repeats(family: MegatronRows, numbers: Numbers) -> list[Repeat]:
    """What layers for multi-token prediction repeat of the model: the embedding and the head.

    A value model has no head that they could repeat.
    """
    embedding = f"{family.around.trunk}embed_tokens.weight"
    head = f"{family.around.head}lm_head.weight" if "untied" in numbers.flags else embedding
    found = []
    for number in range(numbers.mtp if family.mtp.repeats else 0):
        layer = format_mtp_prefix(family, numbers, number)
        found.append(Repeat(f"{layer}embed_tokens.weight", embedding))
        if "value" not in numbers.flags:
            found.append(Repeat(f"{layer}shared_head.head.weight", head))
    return found
