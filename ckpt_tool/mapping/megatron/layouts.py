"""In which layout a model's layers can be: stacked, each by itself, or as a HybridModel's."""

from __future__ import annotations

from ckpt_tool.common.errors import MappingError
from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.numbers import Numbers, require_rows


def require_layout(layout: str, config: ModelConfig, numbers: Numbers) -> None:
    """MappingError where the model has no such layout; empty is Megatron's own."""
    family = require_rows(config)
    if layout not in ("", "hybrid") and family.is_patterned:
        raise MappingError(
            f"`layers={layout!r}`: a {config.model_type} is a HybridModel of megatron-core",
            hint="Leave `layers` out: the model is then written for one.",
        )
    widths = {block.ffn for block in numbers.blocks}
    if layout not in ("", "per-layer") and (len(widths) > 1 or "blocks" in numbers.flags):
        raise MappingError(
            f"`layers={layout!r}`: layers of a {config.model_type} have sizes of their own",
            hint="Leave `layers` out: this model is then written per layer.",
        )
    uneven = 0 < len(numbers.moe) < numbers.layers
    several = len(set(numbers.kinds)) > 1 and "by_kind" not in numbers.flags
    if layout == "stacked" and (uneven or several):
        what = "have experts and some have not" if uneven else "have another attention"
        raise MappingError(
            f"`layers='stacked'`: some layers {what}, so that they cannot be stacked",
            hint="Leave `layers` out: this model is then written per layer.",
        )
    seen = family.around.sees and not family.is_patterned
    apart = {
        "norms_beside": "norms beside attention and MLP",
        "streams": "hyper-connections",
        "head_counts": "layers that differ in heads",
        "lightning": "lightning attention",
    }
    found = [what for flag, what in apart.items() if flag in numbers.flags]
    if layout == "hybrid" and (seen or found):
        what = "a vision tower" if seen else found[0]
        raise MappingError(
            f"`layers='hybrid'`: a {config.model_type} has {what}, which megatron-core's"
            " HybridModel has not",
            hint="Leave `layers` out: the model is then written for a GPTModel.",
        )
