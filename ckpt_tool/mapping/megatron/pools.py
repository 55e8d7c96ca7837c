"""What configs of ERNIE-4.5-VL say of its two pools of experts: of text, and of what is seen.

Some keys have a list of two, as transformers writes it, and more of them as released. Source:
``configuration_ernie4_5_vl_moe.py`` of transformers 5.24.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields

_WIDTHS = "moe_intermediate_size"
#: What both pools have alike, or there is no model of Megatron's that is this one.
_ALIKE = ("moe_num_experts", "moe_layer_start_index", "moe_layer_end_index")


def take_pools(text: Fields) -> Fields:
    """The config with a number in place of each list, and the second width by a name of its own.

    MappingError where the pools have not as many experts, or not in the same layers.
    """
    found: dict[str, Any] = dict(text.values)
    for key in _ALIKE:
        if isinstance(found.get(key), list):
            found[key] = _take_one(text, key)
    widths = text.sizes(_WIDTHS) or [1536, 512]
    if len(widths) != 2:
        raise MappingError(
            f"{text.path}: {_WIDTHS} is {widths[:9]}, expected two, one of each pool"
        )
    found[_WIDTHS], found[f"vision_{_WIDTHS}"] = widths
    return replace(text, values=found)


def _take_one(text: Fields, key: str) -> int:
    numbers = text.sizes(key)
    if key.endswith("_end_index"):  # beyond the last layer is beyond it
        last = text.size("num_hidden_layers") - 1
        numbers = [min(number, last) for number in numbers]
    if len(numbers) != 2 or numbers[0] != numbers[1]:
        raise MappingError(
            f"{text.path}: {key} is {text.values[key]}, expected the same number for both pools of"
            " experts"
        )
    return numbers[0]
