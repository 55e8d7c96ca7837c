"""What the parent process asks for: one JSON object."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_tool.mapping.config import ModelConfig
from ckpt_tool.mapping.megatron.blocks import Block
from ckpt_tool.mapping.megatron.numbers import Numbers


@dataclass(frozen=True)
class Request:
    """A model, and the checkpoint that it is to load. ``layout``: that of the rules."""

    config: ModelConfig
    numbers: Numbers
    layout: str
    folder: str

    @classmethod
    def of(cls, value: dict[str, Any]) -> Request:
        """The request that :func:`ckpt_tool.plans.checks.megatron.make_request` wrote down."""
        numbers = value["numbers"]
        sets = {name: frozenset(numbers[name]) for name in ("moe", "flags")}
        blocks = {"blocks": tuple(Block(**block) for block in numbers["blocks"])}
        return cls(
            ModelConfig(Path(), value["config"], {}),
            Numbers(**numbers | sets | blocks),
            value["layout"],
            value["folder"],
        )
