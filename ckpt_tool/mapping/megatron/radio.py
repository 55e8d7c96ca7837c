"""How many layers and heads a RADIO vision tower has: its config names the architecture alone.

Source: ``vision_transformer.py`` of timm, whose names these are.
"""

from __future__ import annotations

from ckpt_tool.common.errors import MappingError
from ckpt_tool.common.untrusted import Fields

_SIZES = {
    "vit_base_patch16_224": (12, 12),
    "vit_large_patch16_224": (24, 16),
    "vit_huge_patch16_224": (32, 16),
}


def read_radio(vision: Fields) -> tuple[int, int]:
    """Layers and heads; MappingError for an architecture that is not known."""
    named = vision.inside("args").find_text("model") or vision.find_text("model_name")
    if named not in _SIZES:
        raise MappingError(
            f"{vision.path}: vision_config.args.model is {named!r}, expected one of"
            f" {', '.join(_SIZES)}"
        )
    return _SIZES[named]
