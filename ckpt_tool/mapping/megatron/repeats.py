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
    around, (copy, copied_head) = family.around, family.mtp.copies
    embedding, head = (around.ends.get(name, name) for name in ("embed_tokens", "lm_head"))
    embedding = f"{around.trunk}{embedding}.weight"
    head = f"{around.head}{head}.weight" if "untied" in numbers.flags else embedding
    found = []
    for number in range(numbers.mtp if family.mtp.repeats else 0):
        layer = format_mtp_prefix(family, numbers, number)
        found.append(Repeat(layer + copy, embedding))
        if "value" not in numbers.flags:
            found.append(Repeat(layer + copied_head, head))
    return found
